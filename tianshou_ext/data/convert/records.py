"""Records of TFRecord files that are each one episode, window or transition, to a buffer.

Every source that keeps one tf.train.Example a closed group of rows brings a ``Reader`` and calls
``convert_records``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

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
    ordered_map,
    write_blocks,
)
from tianshou_ext.data.convert.png import PngError
from tianshou_ext.data.convert.tfrecord import RecordError, parse_example, read_records
from tianshou_ext.errors import InputError

__all__ = [
    "Example",
    "Reader",
    "check_discounts",
    "convert_records",
    "feature",
    "missing_shards",
    "shards",
]

SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
CHUNK_BYTES, CHUNK_RECORDS = 1 << 18, 1024  # records handed to a process at once

Array = np.ndarray[Any, Any]
Example = Mapping[str, list[bytes] | Array]


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


def check_discounts(discounts: Array) -> None:
    """Check discounts (T,).

    :raises InputError: if one is not 0 to 1.
    """
    sound = (discounts >= 0) & (discounts <= 1)  # NaN is neither
    if not sound.all():
        step = int(np.argmin(sound))
        raise InputError(f"the discount is {discounts[step]:g} in row {step}, expected 0 to 1")


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
    rows, faults, unusual = _count(files, reader, settings, faults)
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
        itertools.chain(faults, blocks),
        dst,
        source=source,
        inputs=[*files],
        size=max(1, int(counts[kept].sum())),
        settings=settings,
        stack_num=stack_num,
        save_obs_next=stack_num == 1,
        notes=[*notes, *unusual],
        provenance=provenance,
    )


def _count(
    files: Mapping[Path, int | None], reader: Reader, settings: Settings, known: Sequence[Fault]
) -> tuple[list[Array], list[Fault], list[str]]:
    """Return the rows of every record of every file, 0 for a faulty one; the faults; and notes.

    Stops at the first fault if that is to be refused.
    """
    rows: list[Array] = []
    faults, notes = [*known], list[str]()
    stop = settings.on_error == "stop"
    for path in tqdm(files, desc="counting rows", unit=" files", disable=not settings.progress):
        expected, counts, seen = files[path], list[int](), set[str]()
        try:
            for number, record in enumerate(read_records(path, seen=seen) if expected != 0 else ()):
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
        notes += [f"WARNING: {path.name} has {what}" for what in seen]
    return rows, faults, notes


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
            with np.errstate(over="ignore"):  # infinite values are reported as such below
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
