"""RL Unplugged Atari, ordered episodes: one frame a row.

``gs://rl_unplugged/atari_episodes_ordered/{Game}/run_{1..5}-{shard}-of-00050``: TFRecord, gzip, one
tf.train.Example an episode. Sources: the formats as read by TensorFlow Datasets'
``rl_unplugged/atari_utils.py``.

``shards``, ``feature`` and ``convert_records`` serve every source that keeps one episode, window or
transition in one tf.train.Example.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, Unpack

import numpy as np
from tqdm import tqdm

from tianshou_ext.data.convert.common import (
    Block,
    Fault,
    Options,
    Report,
    Settings,
    check_block,
    chosen_episodes,
    fingerprint,
    leaves,
    ordered_map,
    write_blocks,
)
from tianshou_ext.data.convert.png import PngError, decode_grey
from tianshou_ext.data.convert.tfrecord import RecordError, parse_example, read_records
from tianshou_ext.errors import InputError

__all__ = ["Example", "Reader", "convert", "convert_records", "feature", "missing_shards", "shards"]

SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
FRAME = (84, 84)
CHUNK_BYTES, CHUNK_RECORDS = 1 << 18, 1024  # records handed to a process at once

Array = np.ndarray[Any, Any]
Example = Mapping[str, list[bytes] | Array]
Rewards = Literal["unclipped", "clipped"]


def convert(
    src: str | Path,
    dst: str | Path,
    /,
    *,
    rewards: Rewards = "unclipped",
    **options: Unpack[Options],
) -> Report:
    """Convert RL Unplugged Atari episodes, in order, one frame a row.

    The buffer has ``stack_num`` 4. A truncated episode ends with one extra row: its final
    observation, never sampled.

    :param src: a shard (``run_1-00000-of-00050``) or a folder of shards of one game.
    :param dst: the HDF5 file to make.
    :param rewards: the game's rewards, or those clipped to [-1, 1] by the source.
    :param options: those of every converter.
    :raises InputError: if the source is missing, damaged or of another format.
    """
    if rewards not in ("unclipped", "clipped"):
        raise InputError(f"expected rewards to be unclipped or clipped, got {rewards!r}")
    files = shards(Path(src))
    return convert_records(
        dict.fromkeys(files),
        dst,
        _Episodes(rewards),
        source="rlu-atari-episodes",
        options=options,
        stack_num=4,
        notes=missing_shards(files),
        provenance={
            "game": files[0].absolute().parent.name,
            "shards": [path.name for path in files],
            "rewards": rewards,
            "ordered": True,
        },
    )


@dataclass(frozen=True)
class _Episodes:
    """Reads one episode: T steps, of which the last brings only the observation."""

    rewards: Rewards

    def _steps(self, example: Example) -> tuple[list[bytes], Array, Array, bool]:
        frames = feature(example, "observations", "bytes")
        act = feature(example, "actions", "int")
        rew = feature(example, f"{self.rewards}_rewards", "float")
        discounts = feature(example, "discounts", "float")
        lengths = [len(frames), len(act), len(rew), len(discounts)]
        if len(set(lengths)) != 1:
            raise InputError(
                f"observations, actions, rewards and discounts have the unequal lengths {lengths}"
            )
        if len(act) < 2:
            raise InputError(f"an episode of {len(act)} steps has no transition")
        if not np.isfinite(discounts).all():
            raise InputError("discounts are NaN or infinite")
        # The source's own readers look at the last discount only; the one before belongs to the
        # same transition where discounts are aligned with actions.
        if (discounts[:-2] == 0).any() or (discounts[-2] == 0 and discounts[-1] != 0):
            raise InputError("a discount is 0, but the episode goes on")
        if (act[:-1] < 0).any():
            raise InputError(f"an action is {act[:-1].min()}, expected 0 or more")
        return frames, act, rew, bool(discounts[-1] == 0)

    def rows(self, example: Example) -> int:
        _, act, _, terminal = self._steps(example)
        return len(act) - terminal

    def columns(self, example: Example) -> dict[str, Any]:
        frames, act, rew, terminal = self._steps(example)
        count = len(act) - terminal
        last = np.arange(count) == count - 1
        if not terminal:  # the extra row
            act, rew = np.where(last, 0, act), np.where(last, 0, rew)
        obs = np.empty((count, *FRAME), dtype=np.uint8)
        for k in range(count):
            try:
                decode_grey(frames[k], obs[k])
            except PngError as error:
                raise InputError(f"step {k}, got {error.reason}") from error
        return {
            "obs": obs,
            "act": act[:count],
            "rew": rew[:count],
            "terminated": last & terminal,
            "truncated": last & (not terminal),
        }


def shards(src: Path) -> list[Path]:
    """Return a file as it is, or the shards in a folder in their order.

    :raises InputError: if there is none.
    """
    if src.is_file():
        return [src]
    if not src.is_dir():
        raise InputError(f"expected a shard or a folder of shards at {src}, found none")
    files = sorted(path for path in src.iterdir() if path.is_file() and SHARD.search(path.name))
    if not files:
        names = sorted(path.name for path in src.iterdir())[:6]
        raise InputError(
            f"expected shards named like train-00000-of-00100 in {src}, found {names}; give the "
            "folder with the shards, or one file"
        )
    return files


def missing_shards(files: Sequence[Path]) -> list[str]:
    """Return a note if some shards of a set are not there; which is usual for a download."""
    matches = [match for path in files if (match := SHARD.search(path.name))]
    sets = {(match.string[: match.start()], int(match[2])) for match in matches}
    total = sum(count for _, count in sets)
    return [f"{len(matches)} of {total} shards are there"] if len(matches) < total else []


def feature(example: Example, name: str, kind: Literal["bytes", "float", "int"]) -> Any:
    """Return a feature's values: list of bytes, float32 (N,) or int64 (N,).

    :raises InputError: if it is missing or of another kind.
    """
    if name not in example:
        raise InputError(f"no feature {name}, features are {sorted(example)[:12]}")
    values = example[name]
    if len(values) == 0:
        return (
            values if kind == "bytes" else np.empty(0, np.float32 if kind == "float" else np.int64)
        )
    found = "bytes" if isinstance(values, list) else {"f": "float", "i": "int"}[values.dtype.kind]
    if found != kind:
        raise InputError(f"feature {name} holds {found}, expected {kind}")
    return values


class Reader(Protocol):
    """Reads an example; both raise ``InputError`` with what is wrong with it."""

    def rows(self, example: Example) -> int:
        """Return how many rows ``columns`` will have, without decoding."""
        ...

    def columns(self, example: Example) -> dict[str, Any]:
        """Return the rows as ``BufferWriter.append`` takes them."""
        ...


def convert_records(
    files: Mapping[Path, int | None],
    dst: str | Path,
    reader: Reader,
    *,
    source: str,
    options: Options,
    stack_num: int = 1,
    merge: bool = False,
    faults: Sequence[Fault] = (),
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any],
) -> Report:
    """Write examples, each a closed group of rows, in two passes: count, then convert.

    :param files: TFRecord files and how many records each must hold, if that is known.
    :param reader: picklable.
    :param stack_num: above 1, frames are stored once a row and ``obs_next`` is not.
    :param merge: write small examples together; they must be of one layout.
    :param faults: those already known.
    """
    settings = Settings(**options)
    rows, faults = _count(files, reader, settings, faults)
    counts = np.concatenate(rows)
    kept = np.zeros(len(counts), dtype=bool)
    sound = np.flatnonzero(counts > 0)
    if not faults or (settings.on_error == "skip" and len(sound)):
        kept[sound[chosen_episodes(len(sound), settings)]] = True
    masks = np.split(kept, np.cumsum([len(part) for part in rows])[:-1])
    blocks = _blocks(
        dict(zip(files, masks, strict=True)), partial(_convert, reader, merge), settings
    )
    return write_blocks(
        itertools.chain(faults, _of_one_layout(blocks)),
        dst,
        source=source,
        size=max(1, int(counts[kept].sum())),
        settings=settings,
        stack_num=stack_num,
        save_obs_next=stack_num == 1,
        notes=notes,
        provenance={"inputs": fingerprint([*files]), **provenance},
    )


def _count(
    files: Mapping[Path, int | None], reader: Reader, settings: Settings, known: Sequence[Fault]
) -> tuple[list[Array], list[Fault]]:
    """Return the rows of every record of every file, 0 for a faulty one, and the faults.

    Stops at the first fault if that is to be refused.
    """
    rows: list[Array] = []
    faults = [*known]
    stop = settings.on_error == "stop"
    for path in tqdm(files, desc="counting rows", unit=" files", disable=not settings.progress):
        expected, counts = files[path], list[int]()
        try:
            for number, record in enumerate(read_records(path) if expected != 0 else ()):
                if faults and stop:
                    break
                counts.append(0)
                try:
                    counts[-1] = reader.rows(parse_example(record))
                except InputError as error:
                    faults.append(Fault(str(path), f"record {number}", _reason(error)))
            if expected is not None and len(counts) != expected:
                reason = f"expected {expected} records, got {len(counts)}"
                faults.append(Fault(str(path), "", reason))
        except InputError as error:  # what follows in this file cannot be found
            faults.append(Fault(str(path), f"record {len(counts)}", _reason(error)))
        rows.append(np.array(counts, dtype=np.int32))
    return rows, faults


def _reason(error: InputError) -> str:
    return f"got {error.reason}" if isinstance(error, RecordError | PngError) else str(error)


def _blocks(
    masks: Mapping[Path, Array], convert_chunk: Any, settings: Settings
) -> Iterator[Block | Fault]:
    for results in ordered_map(convert_chunk, _chunks(masks), settings.jobs):
        yield from results


def _chunks(masks: Mapping[Path, Array]) -> Iterator[list[tuple[str, int, bytes]]]:
    """Yield the chosen records of every file, some at a time."""
    chunk: list[tuple[str, int, bytes]] = []
    size = 0
    for path, mask in masks.items():
        last = int(np.flatnonzero(mask)[-1]) if mask.any() else -1
        for number, record in enumerate(itertools.islice(read_records(path), last + 1)):
            if not mask[number]:
                continue
            chunk.append((str(path), number, record))
            size += len(record)
            if size >= CHUNK_BYTES or len(chunk) == CHUNK_RECORDS:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _convert(
    reader: Reader, merge: bool, chunk: Iterable[tuple[str, int, bytes]]
) -> list[Block | Fault]:
    results: list[Block | Fault] = []
    for file, number, record in chunk:
        name = f"record {number}"
        try:
            block = Block(reader.columns(parse_example(record)), file, name)
        except InputError as error:
            results.append(Fault(file, name, _reason(error)))
            continue
        results.append(check_block(block) or block)
    return list(_merged(results)) if merge else results


def _merged(results: Iterable[Block | Fault]) -> Iterator[Block | Fault]:
    for kind, group in itertools.groupby(results, type):
        items = list(group)
        if kind is Fault:
            yield from items
            continue
        blocks = [item for item in items if isinstance(item, Block)]
        name = f"{blocks[0].record} to {blocks[-1].record}"
        yield Block(_concatenated([block.columns for block in blocks]), blocks[0].file, name)


def _concatenated(columns: Sequence[Any]) -> Any:
    if isinstance(columns[0], Mapping):
        return {key: _concatenated([c[key] for c in columns]) for key in columns[0]}
    return np.concatenate(columns)


def _of_one_layout(blocks: Iterable[Block | Fault]) -> Iterator[Block | Fault]:
    """Replace blocks whose shapes or types are not those of the first one."""
    first: dict[str, Any] | None = None
    for block in blocks:
        if isinstance(block, Block):
            found = {
                key: (array.shape[1:], array.dtype.name)
                for name in ("obs", "act")
                for key, array in leaves(name, block.columns[name])
            }
            first = first or found
            if found != first:
                reason = f"expected {first} as in the first one, got {found}"
                yield Fault(block.file, block.record, reason)
                continue
        yield block
