"""Fetch public files over http: progress, going on after a break, and a check of the length."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from tianshou_ext.errors import InputError

TIMEOUT = 60.0  # seconds without a byte
READ_BYTES = 1 << 20


def fetch(url: str, path: Path, *, progress: bool = True) -> None:
    """Fetch ``url`` to ``path``, which appears when complete; go on where an earlier call stopped.

    :raises InputError: if it cannot be fetched, or is shorter than announced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    start = partial.stat().st_size if partial.exists() else 0
    # Without this header Google's storage may unpack a file, then of unknown length.
    headers = {"Accept-Encoding": "gzip"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        ) as answer:
            sent = answer.headers.get("Content-Range", "")
            if answer.status != 206 or not sent.startswith(f"bytes {start}-"):
                start = 0  # the whole file comes
            said = answer.headers.get("Content-Length", "none")
            if not said.isdecimal():  # whether all of it came could not be told
                raise InputError(
                    f"expected the length of {url} from its server, got {said!r:.40}; fetch the "
                    f"file another way and put it at {path}"
                )
            length = int(said)
            with (
                partial.open("ab" if start else "wb") as file,
                tqdm(
                    desc=path.name,
                    total=start + length,
                    initial=start,
                    unit="B",
                    unit_scale=True,
                    disable=not progress,
                ) as bar,
            ):
                while data := answer.read(READ_BYTES):
                    bar.update(file.write(data))
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{start}":
            partial.replace(path)  # was complete
            return
        if error.code == 416 and start:  # longer than the file: of another one
            partial.unlink()
            fetch(url, path, progress=progress)
            return
        raise InputError(
            f"expected to fetch {url}, got HTTP {error.code} {error.reason}; check what was asked "
            f"for, or put the file by hand at {path}"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"expected to fetch {url}, but that failed ({' '.join(str(error).split())}); run this "
            f"again to go on, or put the file by hand at {path}"
        ) from error
    found = partial.stat().st_size
    if found != start + length:
        if found > start + length:
            partial.unlink()
        raise InputError(
            f"expected {start + length} bytes from {url}, got {found}; run this again to go on, or "
            f"put the file by hand at {path}"
        )
    partial.replace(path)
