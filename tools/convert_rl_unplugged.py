"""Fetch shards of RL Unplugged's Atari transitions and convert them to Tianshou buffers.

    python tools/convert_rl_unplugged.py --task Breakout --run-id 1 --shard-id 0-9

Shards that are there are not fetched, buffers that are there are not made again. The buffers open
with ``load_buffer`` or Tianshou's ``ReplayBuffer.load_hdf5``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from tianshou_ext.cli import launch
from tianshou_ext.data.convert.common import OnError, Report, Settings
from tianshou_ext.data.convert.rlu_atari import Reader, convert
from tianshou_ext.data.download import fetch
from tianshou_ext.data.writer import Compression
from tianshou_ext.errors import InputError

HOME = "~/.rl_unplugged"


def _folder(variable: str, name: str) -> Path:
    return Path(os.environ.get(variable, f"{HOME}/{name}"))


@dataclass
class Args:
    """Fetch shards of RL Unplugged's Atari transitions and convert them to Tianshou buffers."""

    task: str
    """The game, as the bucket spells it: Breakout, MsPacman."""
    run_id: int = 1
    """Training run, 1 to 5."""
    shard_id: str = "0"
    """Shards, 0 to 99: 1, or 0-9, or 0,3,5-7. One has about 500,000 transitions."""
    total_num_shards: int = 100
    """Shards a run has."""
    dataset_dir: Path = field(default_factory=lambda: _folder("RLU_DATASET_DIR", "datasets"))
    """Where the shards are, or are fetched to."""
    buffer_dir: Path = field(default_factory=lambda: _folder("RLU_BUFFER_DIR", "buffers"))
    """Where the buffers go."""
    jobs: int = 1
    """Processes that decode."""
    reader: Reader = "own"
    """tensorflow reads and decodes with TensorFlow instead, slowly, to compare."""
    compression: Compression = "none"
    """none can be mapped instead of read (18 GB a shard); gzip, zstd save disk."""
    clip_rewards: bool = False
    """Clip rewards to [-1, 1]."""
    fraction: float = 1.0
    """Share of the transitions to keep, 0 to 1."""
    on_error: OnError = "stop"
    """skip leaves out faulty records and names them."""
    progress: bool = True
    """Show progress bars."""
    url: str = "https://storage.googleapis.com/rl_unplugged/atari"
    """Where the shards are fetched from."""


def shard_ids(text: str, total: int) -> list[int]:
    """Return the shards that ``0,3,5-7`` names, each once.

    :raises InputError: if it is written otherwise, or names one that is not below ``total``.
    """
    ids: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < total:
            raise InputError(
                f"expected --shard-id like 1, 0-9 or 0,3,5-7, with numbers below {total}, got "
                f"{text!r}"
            )
        ids += range(first, last + 1)
    return list(dict.fromkeys(ids))


def main(args: Args) -> list[Report]:
    """Fetch and convert shard by shard; return the reports of the buffers that were made."""
    if not (re.fullmatch(r"\w+", args.task) and 1 <= args.run_id <= 5):
        raise InputError(
            f"expected a --task like Breakout and a --run-id of 1 to 5, got {args.task!r} and "
            f"{args.run_id}"
        )
    Settings(fraction=args.fraction, jobs=args.jobs)  # refused before anything is fetched
    reports = []
    for number in shard_ids(args.shard_id, args.total_num_shards):
        name = f"run_{args.run_id}-{number:05d}-of-{args.total_num_shards:05d}"
        shard = args.dataset_dir.expanduser() / args.task / name
        buffer = args.buffer_dir.expanduser() / args.task / f"{name}.hdf5"
        if buffer.exists():
            print(f"{buffer}: there already, kept; remove it to have it made again")
            continue
        if not shard.exists():
            fetch(f"{args.url}/{args.task}/{name}", shard, progress=args.progress)
        report = convert(
            shard,
            buffer,
            reader=args.reader,
            fraction=args.fraction,
            clip_rewards=args.clip_rewards,
            compression=args.compression,
            on_error=args.on_error,
            jobs=args.jobs,
            progress=args.progress,
        )
        print(report)
        reports.append(report)
    return reports


if __name__ == "__main__":
    launch(main, Args)
