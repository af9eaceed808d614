"""Convert RL Unplugged's Atari transitions: shards of shuffled records, four PNGs before and after.

A shard is ``atari/{Game}/run_{1..5}-{00000..00099}-of-00100``: about 500,000 ``tf.train.Example``
with ``o_t o_tp1`` (4 PNGs of 84x84 grey each, oldest first), ``a_t`` int64, ``r_t`` and ``d_t``
float32. See DeepMind's ``rl_unplugged/atari.py``.
"""

import functools
import itertools
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
from tqdm import tqdm

from tianshou_ext.data.convert import rlu_atari_tensorflow
from tianshou_ext.data.convert.check import MAX_ACTIONS
from tianshou_ext.data.convert.common import (
    Block,
    Fault,
    Options,
    Report,
    Settings,
    chosen_episodes,
    ordered_map,
    write_blocks,
)
from tianshou_ext.data.convert.png import PngError, grey_rows, unfilter
from tianshou_ext.data.convert.rlu_atari_plain import (
    SIDE,
    STACK,
    Transitions,
    frames_of,
    shares_frames,
    transitions,
)
from tianshou_ext.data.convert.tfrecord import RecordError, parse_example, read_batches
from tianshou_ext.errors import InputError

__all__ = ["convert"]

SOURCE = "rlu-atari"
COMPILED_BYTES = 1 << 23  # of a shard, from which on compiling pays
ROWS = 256  # decoded at once; few enough for the allocator to reuse memory
MAX_BYTES = 1 << 24  # of a record; real ones have about 15 kB
SHARD = re.compile(r"run_(\d+)-(\d+)-of-(\d+)")

Reader = Literal["own", "tensorflow"]


def convert(
    src: str | Path, dst: str | Path, /, *, reader: Reader = "own", **options: Unpack[Options]
) -> Report:
    """Convert RL Unplugged's Atari transitions (shards run_1-00000-of-00100, ...).

    The records are shuffled. So there are no episodes: a row that is not terminated is marked
    truncated, and n-step returns or stacking never join two rows. Observations are (4, 84, 84)
    uint8, oldest frame first; the five frames of a row are stored once.

    :param src: a shard, or a folder with shards.
    :param dst: the buffer file to make; or a folder (that exists, or with a slash at the end) to
        make one file a shard, where those that are there already are kept.
    :param reader: tensorflow reads and decodes with TensorFlow instead, slowly, to compare.
    :raises InputError: if a shard is missing, truncated, damaged or of another format.
    """
    settings = Settings(**options)
    if settings.episodes is not None:
        raise InputError(
            f"expected no --episodes for RL Unplugged's transitions, got {settings.episodes!r}: "
            "the records are shuffled and belong to no episode; use --fraction"
        )
    paths = _shards(Path(src).expanduser())
    target = Path(dst).expanduser()
    if not (target.is_dir() or str(dst).endswith("/")):
        return _convert(paths, target, reader, settings)
    if target.is_file():
        raise InputError(f"expected a folder to write to, got the file {target}; name another")
    return _convert_each(paths, target, reader, settings)


def _shards(src: Path) -> list[Path]:
    if not src.is_dir():
        if not src.exists():
            raise InputError(f"expected a shard or a folder with shards at {src}, found none")
        return [src]
    paths = sorted(path for path in src.glob("run_*-of-*") if SHARD.fullmatch(path.name))
    if not paths:
        found = sorted(path.name for path in itertools.islice(src.iterdir(), 5))
        raise InputError(
            f"expected shards like run_1-00000-of-00100 in {src}, found {found or 'nothing'}; "
            "pass the folder of one game, such as atari/Breakout"
        )
    return paths


def _convert_each(paths: list[Path], folder: Path, reader: Reader, settings: Settings) -> Report:
    """Make one file a shard, in parallel; keep those that are there."""
    start = time.monotonic()
    total = Report(SOURCE, folder)
    pending = [path for path in paths if not _target(folder, path).exists()]
    if len(pending) < len(paths):
        total.notes.append(
            f"{len(paths) - len(pending)} of {len(paths)} files were there already and are kept; "
            "remove them to have them made again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    alone = len(pending) == 1 or settings.jobs == 1
    inner = settings if alone else replace(settings, jobs=1, progress=False)
    one = functools.partial(_convert_to, folder=folder, reader=reader, settings=inner)
    reports = ordered_map(one, pending, 1 if alone else settings.jobs)
    for report in tqdm(
        reports, "shards", len(pending), unit="", disable=alone or not settings.progress
    ):
        for name in ("rows", "episodes", "terminated", "truncated"):
            setattr(total, name, getattr(total, name) + getattr(report, name))
        total.notes += [note for note in report.notes if note not in total.notes]
        total.faults += report.faults
    if total.rows == 0 and pending == paths:
        where, fault = paths[0].parent, total.faults[0]
        raise InputError(f"expected sound records in {where}, got none; the first fault is {fault}")
    total.seconds = time.monotonic() - start
    return total


def _target(folder: Path, path: Path) -> Path:
    return folder / f"{path.name}.hdf5"


def _convert_to(path: Path, folder: Path, reader: Reader, settings: Settings) -> Report:
    target = _target(folder, path)
    try:
        return _convert([path], target, reader, settings)
    except InputError as error:
        if settings.on_error == "stop":
            raise
        return Report(SOURCE, target, faults=[Fault(str(path), "", str(error))])


def _convert(paths: list[Path], dst: Path, reader: Reader, settings: Settings) -> Report:
    start = time.monotonic()
    look = functools.partial(_survey, reader=reader, progress=settings.progress)
    shards = []
    for shard in ordered_map(look, paths, min(settings.jobs, len(paths))):
        fault = shard.damage or shard.first_fault
        if fault and (settings.on_error == "stop" or len(paths) == 1 > shard.records):
            raise InputError(
                f"expected sound records, got a fault in {fault}; remove and fetch that file "
                "again, or pass --on-error skip to keep the others"
            )
        shards.append(shard)
    kept = [_kept(shard, settings) for shard in shards]
    shared = all(shard.shared for shard in shards)
    decode = functools.partial(_decode, reader=reader, shared=shared)
    batches = itertools.chain.from_iterable(map(_batches, shards, kept, itertools.repeat(reader)))
    decoded = itertools.chain.from_iterable(ordered_map(decode, batches, settings.jobs))
    damages = [shard.damage for shard in shards if shard.damage]
    report = write_blocks(
        itertools.chain(decoded, damages),
        dst,
        source=SOURCE,
        inputs=paths,
        size=sum(int(mask.sum()) for mask in kept),
        settings=settings,
        shared_frames=shared,
        notes=list(_notes(shards, settings)),
        provenance={
            "ordered": False,
            "reader": reader,
            "shards": [path.name for path in paths],
            "task": _task(paths[0]),
            "frames": "oldest first",
        },
    )
    report.seconds = time.monotonic() - start
    return report


def _task(path: Path) -> str | None:
    """Return the game, if the shard lies in its folder as in the bucket."""
    name = path.absolute().parent.name
    return name if SHARD.fullmatch(path.name) and re.fullmatch(r"[A-Z]\w+", name) else None


def _kept(shard: "Shard", settings: Settings) -> np.ndarray[Any, Any]:
    """Return which records of a shard to convert, (R,) bool."""
    mask = np.zeros(shard.records, bool)
    if shard.records:
        mask[chosen_episodes(shard.records, settings)] = True
    return mask


def _notes(shards: "list[Shard]", settings: Settings) -> Iterator[str]:
    yield "the records are shuffled: rows that are not terminated are marked truncated"
    for shard in shards:
        for what in sorted(shard.seen):
            yield f"WARNING: {shard.path.name} has {what}"
        if shard.records and not shard.terminals:
            yield (
                f"WARNING: none of the {shard.records} records of {shard.path.name} has d_t = 0, "
                "so no row is terminated and every target bootstraps; check the shard"
            )
        if not shard.shared:
            yield (
                f"in {shard.path.name} o_tp1 does not always go on where o_t ends, so obs and "
                "obs_next are stored in full"
            )
    low, high = min(s.low for s in shards), max(s.high for s in shards)
    if (low < -1 or high > 1) and not settings.clip_rewards:
        yield (
            f"rewards go from {low:g} to {high:g} and are kept so; pass --clip-rewards to clip "
            "them to [-1, 1]"
        )


@dataclass
class Shard:
    """What a first look at a shard found."""

    path: Path
    records: int = 0
    """That can be read."""
    terminals: int = 0
    low: float = 0.0
    """The lowest reward, if it is below 0."""
    high: float = 0.0
    shared: bool = True
    """The last three frames of ``o_t`` are the first three of ``o_tp1``, in all records."""
    seen: set[str] = field(default_factory=set)
    """What is unusual about the file."""
    first_fault: Fault | None = None
    """In a record."""
    damage: Fault | None = None
    """Of the file, after its readable records."""


def _survey(path: Path, reader: Reader, progress: bool) -> Shard:
    """Check all records but their images."""
    shard = Shard(path)
    parse, _ = _functions(reader)
    bar = tqdm(desc=f"checking {path.name}", unit=" records", unit_scale=True, disable=not progress)
    try:
        for data, bounds in _read(path, reader, seen=shard.seen):
            found = _plain(data, bounds, reader, path)
            if found is None:
                for start, stop in bounds.tolist():
                    _survey_record(shard, parse, data[start:stop])
            else:
                shard.records += len(bounds)
                shard.terminals += int((found.discounts == 0).sum())
                shard.low = min(shard.low, float(found.rewards.min()))
                shard.high = max(shard.high, float(found.rewards.max()))
                shard.shared = shard.shared and shares_frames(data, found)
            bar.update(len(bounds))
    except RecordError as error:
        shard.damage = Fault(str(path), f"record {shard.records}", error.reason)
    return shard


def _survey_record(shard: Shard, parse: Callable[..., Any], record: bytes) -> None:
    try:
        images, _, reward, discount = _transition(parse(record))
    except RecordError as error:
        fault = Fault(str(shard.path), f"record {shard.records}", error.reason)
        shard.first_fault = shard.first_fault or fault
    else:
        shard.terminals += discount == 0
        shard.low, shard.high = min(shard.low, reward), max(shard.high, reward)
        shard.shared = shard.shared and images[1:STACK] == images[STACK:-1]
    shard.records += 1


@dataclass
class Batch:
    """Some records of a shard."""

    path: Path
    numbers: list[int]
    data: bytes
    bounds: np.ndarray[Any, Any]
    """Where in the data they start and stop, (R, 2)."""


def _batches(shard: Shard, kept: np.ndarray[Any, Any], reader: Reader) -> Iterator[Batch]:
    """Read the kept records; their checksums were checked before."""
    batches, done = _read(shard.path, reader, check_crc=False), 0
    while done < shard.records:
        data, bounds = next(batches)
        numbers = done + np.flatnonzero(kept[done : done + len(bounds)])
        for some in np.array_split(numbers, range(ROWS, len(numbers), ROWS)):
            places = bounds[some - done]
            first = places[0, 0]
            yield Batch(shard.path, some.tolist(), data[first : places[-1, 1]], places - first)
        done += len(bounds)


def _decode(batch: Batch, reader: Reader, shared: bool) -> list[Block | Fault]:
    """Decode records to one block, and those that cannot be to faults."""
    found = _plain(batch.data, batch.bounds, reader, batch.path)
    if found is not None and (frames := frames_of(batch.data, found, shared)) is not None:
        rewards, discounts = found.rewards, found.discounts
        return [_block(batch, frames, shared, found.actions, rewards, discounts)]
    return _decode_each(batch, reader, shared)


def _plain(
    data: bytes, bounds: np.ndarray[Any, Any], reader: Reader, path: Path
) -> Transitions | None:
    """Return what records hold, if compiled code can tell and pays."""
    if reader != "own" or path.stat().st_size < COMPILED_BYTES:
        return None
    return transitions(data, bounds, MAX_ACTIONS)


def _decode_each(batch: Batch, reader: Reader, shared: bool) -> list[Block | Fault]:
    parse, decode = _functions(reader)
    found: list[Block | Fault] = []
    rows, actions, rewards, discounts = [], [], [], []
    for number, (start, stop) in zip(batch.numbers, batch.bounds.tolist(), strict=True):
        try:
            images, action, reward, discount = _transition(parse(batch.data[start:stop]))
            if shared:
                del images[STACK:-1]
            rows += [decode(image) for image in images]  # all or none
        except (RecordError, PngError) as error:
            found.append(Fault(str(batch.path), f"record {number}", error.reason))
            continue
        actions.append(action)
        rewards.append(reward)
        discounts.append(discount)
    if not rows:
        return found
    many = STACK + 1 if shared else 2 * STACK
    frames = np.empty((len(actions), many, SIDE, SIDE), np.uint8)
    unfilter(b"".join(rows), frames.reshape(-1, SIDE, SIDE))
    return [*found, _block(batch, frames, shared, actions, rewards, discounts)]


def _block(
    batch: Batch,
    frames: np.ndarray[Any, Any],
    shared: bool,
    actions: Sequence[int] | np.ndarray[Any, Any],
    rewards: Sequence[float] | np.ndarray[Any, Any],
    discounts: Sequence[float] | np.ndarray[Any, Any],
) -> Block:
    obs = {"obs": frames[:, :STACK], "obs_next": frames[:, STACK:]}
    terminated = np.asarray(discounts) == 0
    columns = {
        **({"frames": frames} if shared else obs),
        "act": np.asarray(actions, np.int64),
        "rew": np.asarray(rewards, np.float32),
        "terminated": terminated,
        "truncated": ~terminated,
    }
    numbers = f"records {batch.numbers[0]} to {batch.numbers[-1]}"
    return Block(columns, str(batch.path), numbers)


def _transition(example: dict[str, Any]) -> tuple[list[bytes], int, float, float]:
    """Return the eight images of a record, its action, reward and discount.

    :raises RecordError: if it is no transition.
    """
    images = [
        *_feature(example, "o_t", "bytes", STACK),
        *_feature(example, "o_tp1", "bytes", STACK),
    ]
    action = int(_feature(example, "a_t", "int64", 1)[0])
    reward = float(_feature(example, "r_t", "float32", 1)[0])
    discount = float(_feature(example, "d_t", "float32", 1)[0])
    if not 0 <= action < MAX_ACTIONS:
        raise RecordError(f"the action {action} where 0 to {MAX_ACTIONS - 1} are expected")
    if not math.isfinite(reward):
        raise RecordError(f"the reward {reward}")
    if not 0 <= discount <= 1:
        raise RecordError(f"the discount {discount} where 0 to 1 is expected")
    return images, action, reward, discount


def _feature(example: dict[str, Any], name: str, kind: str, length: int) -> Any:
    values = example.get(name)
    if values is None:
        raise RecordError(f"no feature {name}, but {[key[:30] for key in sorted(example)[:12]]}")
    found = "bytes" if isinstance(values, list) else values.dtype.name
    if found != kind or len(values) != length:
        raise RecordError(
            f"a feature {name} with {len(values)} {found} where {length} {kind} are expected"
        )
    return values


def _read(
    path: Path, reader: Reader, *, check_crc: bool = True, seen: set[str] | None = None
) -> Iterator[tuple[bytes, np.ndarray[Any, Any]]]:
    """Yield bytes, and where in them records start and stop, (K, 2)."""
    if reader == "own":
        return read_batches(path, check_crc=check_crc, max_bytes=MAX_BYTES, seen=seen)
    return rlu_atari_tensorflow.read(path)


def _functions(reader: Reader) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return what parses a record, and what decodes an image to a PNG's unfiltered rows."""
    if reader == "own":
        return parse_example, functools.partial(grey_rows, height=SIDE, width=SIDE)
    return rlu_atari_tensorflow.parse, rlu_atari_tensorflow.rows_of
