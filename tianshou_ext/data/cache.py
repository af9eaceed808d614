"""The cache of made, converted and fetched data: each file made once, also by several processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def cache_folder() -> Path:
    """Return the cache's folder: ``$TIANSHOU_EXT_CACHE`` or ``~/.cache/tianshou_ext``."""
    default = Path.home() / ".cache" / "tianshou_ext"
    return Path(os.environ.get("TIANSHOU_EXT_CACHE", default))


def cached(name: str, make: Callable[[Path], Any]) -> Path:
    """Return a file of the cache, which is made on first use.

    Where another process is making it, as when several seeds are started at once, wait for that.

    :param name: path below the cache's folder.
    :param make: makes the file at the path given; what it raises is passed on.
    """
    path = cache_folder() / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process that is making {path}", flush=True)
        lock.acquire()
    try:
        if not path.exists():
            make(path)
    finally:
        lock.release()
    return path
