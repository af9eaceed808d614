"""Converters: one file per source of logs, each with ``convert(src, dst, **options) -> Report``."""
