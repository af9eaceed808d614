"""Let the disk take a growing file while its next rows are made."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

__all__ = ["SyncedAhead"]

SYNC_BYTES = 1 << 25  # that the file grows by before the disk is asked again


class SyncedAhead:
    """Sync a file from time to time in a thread, so that little is left to wait for at the end.

    :raises OSError: in every method, if the disk failed since.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR)
        self._thread = ThreadPoolExecutor(1)
        self._at_work: Future[None] | None = None
        self._waiting = 0  # bytes

    def grew(self, count: int) -> None:
        """Take in that the file has ``count`` bytes more, about."""
        self._waiting += count
        if self._waiting >= SYNC_BYTES and (self._at_work is None or self._at_work.done()):
            if self._at_work is not None:
                self._at_work.result()
            self._at_work = self._thread.submit(os.fsync, self._file)
            self._waiting = 0

    def close(self) -> None:
        """Wait for the disk; what came after its last call is not synced."""
        self._thread.shutdown()
        os.close(self._file)
        if self._at_work is not None:
            self._at_work.result()
