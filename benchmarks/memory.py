"""Memory and time to open a buffer of Atari frames, mapped and loaded, beside Tianshou's own.

Each way runs in a process of its own: open the file, then gather 1,000 batches of 32.

    python benchmarks/memory.py --rows 1000000
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from speed import write_frames

from tianshou_ext.cli import launch

WORKER = """
import json, sys, time
path, way = sys.argv[1:]

def memory():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return {k: int(fields[k].split()[0]) / 1e6 for k in ("RssAnon", "RssFile", "VmHWM")}

from tianshou.data import ReplayBuffer
from tianshou_ext.data.hdf5 import load_buffer
from tianshou_ext.data.replay import Replay
before = memory()["RssAnon"]
start = time.perf_counter()
if way == "tianshou":
    buffer = ReplayBuffer.load_hdf5(path)
else:
    replay = Replay(load_buffer(path, mapped=way == "mapped"))
seconds = time.perf_counter() - start
opened = memory()["RssAnon"] - before
start = time.perf_counter()
for _ in range(1000):
    buffer.sample(32) if way == "tianshou" else replay.sample(32)
rate = 1000 / (time.perf_counter() - start)
print(json.dumps({"way": way, "seconds": seconds, "gb": opened, "batches": rate}))
"""


@dataclass
class Args:
    """Measure memory and time to open a buffer of Atari frames."""

    rows: int = 1_000_000
    """Frames; a million take 7.1 GB of disk."""
    folder: Path = Path("/tmp")
    """Where the buffer file goes, and is removed from."""
    ways: tuple[Literal["mapped", "loaded", "tianshou"], ...] = ("mapped", "loaded", "tianshou")
    """What to measure."""


def main(args: Args) -> None:
    path = args.folder / "tianshou_ext_memory.hdf5"
    write_frames(path, args.rows)
    try:
        print(f"{'way':10} {'open, s':>9} {'private GB':>11} {'batches of 32/s':>16}")
        for way in args.ways:
            command = [sys.executable, "-c", WORKER, str(path), way]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            row = json.loads(done.stdout.splitlines()[-1])
            print(f"{way:10} {row['seconds']:9.2f} {row['gb']:11.3f} {row['batches']:16.0f}")
    finally:
        path.unlink()


if __name__ == "__main__":
    launch(main, Args)
