"""Writing files so that nothing is lost."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def atomic_write(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a temporary file beside ``path``, then rename it.

    :raises OSError: if writing fails, for example on a full disk; ``path`` is then as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError.
        raise OSError(
            f"expected to write {path}, but that failed ({error}); make room or choose another "
            "folder, what was there before is untouched"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
