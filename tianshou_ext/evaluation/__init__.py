"""Measures of a policy's quality."""
