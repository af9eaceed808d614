"""RL Unplugged control suite, locomotion and real-world RL: TFRecords of float32 features.

==========  =============================================  ============================
layout      where                                          a record
==========  =============================================  ============================
sarsa       dm_control_suite, dm_locomotion/*/seq2         two steps, shuffled
windows     dm_locomotion/*/seq40                          at most 40 steps, overlapping
episodes    dm_control_suite_episodes,                     an episode; reward and
            dm_locomotion_episodes                         discount one row late
rwrl        combined_challenge_*                           an episode; action, reward
                                                           and discount one row late
==========  =============================================  ============================

Sources: DeepMind's ``rl_unplugged`` loaders and TensorFlow Datasets' ``rl_unplugged``.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np

from tianshou_ext.data.convert.common import Options, Report
from tianshou_ext.data.convert.records import (
    Example,
    check_discounts,
    convert_records,
    feature,
    missing_shards,
    shards,
)
from tianshou_ext.data.convert.tfrecord import parse_example, read_records
from tianshou_ext.errors import InputError

__all__ = ["concatenated", "convert", "nested"]

OBSERVATION = re.compile(r"observation([/:])(.+)")
CAMERA = (64, 64, 3)
LONGEST_WINDOW = 40
LOOKED_AT = 16  # records, to find out the layout
FIRST, LAST = 0, 2  # dm_env's step types

Array = np.ndarray[Any, Any]
Layout = Literal["sarsa", "windows", "episodes", "rwrl"]


def convert(
    src: str | Path,
    dst: str | Path,
    /,
    *,
    layout: Literal["auto", "sarsa", "windows", "episodes", "rwrl"] = "auto",
    flatten: bool = True,
    **options: Unpack[Options],
) -> Report:
    """Convert RL Unplugged control suite, locomotion and real-world RL data.

    Shuffled two-step records become rows that are each truncated (or terminated), so nothing
    chains them. For these, the options ``fraction`` and ``episodes`` count records.

    :param src: a shard (``train-00000-of-00100``) or a folder of shards of one task.
    :param dst: the HDF5 file to make.
    :param layout: what a record is: two steps (sarsa), a window of an episode, or an episode of
        the control suite or of real-world RL (rwrl). auto tells from keys, length and path.
    :param flatten: one float32 vector, parts in alphabetical order, camera images left out;
        otherwise a nested Batch of all.
    :param options: those of every converter.
    :raises InputError: if the source is missing, damaged or of another format.
    """
    if layout not in ("auto", "sarsa", "windows", "episodes", "rwrl"):
        raise InputError(f"expected layout auto, sarsa, windows, episodes or rwrl, got {layout!r}")
    files = shards(Path(src))
    reader = _recognised(files, layout, flatten)
    notes = missing_shards(files)
    if reader.layout == "sarsa":
        notes.append("single transitions in random order; none has a successor")
    if reader.layout == "windows":
        notes.append("windows of one episode may overlap, so transitions may occur more than once")
    if flatten and reader.cameras:
        notes.append(f"images left out: {', '.join(reader.cameras)}; --no-flatten keeps them")
    return convert_records(
        dict.fromkeys(files),
        dst,
        reader,
        source="rlu-control",
        options=options,
        merge=True,
        notes=notes,
        provenance={
            "path": "/".join(files[0].absolute().parts[-4:-1]),
            "shards": [path.name for path in files],
            "layout": reader.layout,
            "obs_widths": dict(reader.widths),  # in the order of concatenation
            "images": [] if flatten else list(reader.cameras),
            "flatten": flatten,
            "ordered": reader.layout != "sarsa",
        },
    )


@dataclass(frozen=True)
class _Rows:
    """Reads one record of T rows: T-1 transitions.

    :param widths: of the observation's float parts by name, in alphabetical order.
    :param cameras: the observation's images.
    """

    layout: Layout
    separator: str
    widths: tuple[tuple[str, int], ...]
    cameras: tuple[str, ...]
    act_width: int
    flatten: bool

    def rows(self, example: Example) -> int:
        rew = feature(example, "reward", "float")
        discount = feature(example, "discount", "float")
        if len(rew) != len(discount):
            raise InputError(f"{len(rew)} rewards, but {len(discount)} discounts")
        if len(rew) < 2:
            raise InputError(f"{len(rew)} rows have no transition")
        if self.layout == "sarsa" and len(rew) != 2:
            raise InputError(f"{len(rew)} rows, expected 2; try --layout windows")
        found = {match[2] for name in example if (match := OBSERVATION.fullmatch(name))}
        if found != (expected := {*dict(self.widths), *self.cameras}):
            raise InputError(f"observations {sorted(found)}, expected {sorted(expected)}")
        return len(rew) - 1

    def columns(self, example: Example) -> dict[str, Any]:
        count = self.rows(example)
        if "step_type" in example:
            self._check_step_types(feature(example, "step_type", "float"), count + 1)
        # RWRL and the episodes follow dm_env: a step's reward and discount came before its
        # observation. RWRL's action did too.
        here, late = slice(None, -1), slice(1, None)
        is_late = self.layout in ("episodes", "rwrl")
        act = _matrix(example, "action", count + 1, self.act_width)
        discount = feature(example, "discount", "float")[late if is_late else here]
        check_discounts(discount)
        terminated = discount == 0
        if terminated[:-1].any():
            row = int(np.flatnonzero(terminated)[0])
            raise InputError(f"the discount is 0 in row {row}, but the rows go on")
        obs = self._observation(example, count + 1)
        return {
            "obs": _sliced(obs, here),
            "act": act[late if self.layout == "rwrl" else here],
            "rew": feature(example, "reward", "float")[late if is_late else here],
            "terminated": terminated,
            "truncated": (np.arange(count) == count - 1) & ~terminated,
            "obs_next": _sliced(obs, late),
        }

    def _check_step_types(self, types: Array, count: int) -> None:
        if len(types) != count:
            raise InputError(f"{count} rewards, but {len(types)} step types")
        if (types[1:] == FIRST).any():
            raise InputError("an episode begins within the rows")
        if self.layout == "episodes" and (types[:-1] == LAST).any():
            raise InputError("an episode ends within the rows")

    def _observation(self, example: Example, count: int) -> Any:
        key = f"observation{self.separator}"
        parts = {n: _matrix(example, key + n, count, w) for n, w in self.widths}
        if self.flatten:
            return concatenated(parts)
        for name in self.cameras:
            images = feature(example, key + name, "bytes")
            if len(images) != count or {len(image) for image in images} != {np.prod(CAMERA)}:
                raise InputError(f"expected {count} images of {np.prod(CAMERA)} bytes in {name}")
            parts[name] = np.frombuffer(b"".join(images), np.uint8).reshape(count, *CAMERA)
        return nested(parts)


def _recognised(files: Iterable[Path], layout: str, flatten: bool) -> _Rows:
    """Return a reader for files like most of the first sound records.

    :raises InputError: if there is none.
    """
    found: Counter[_Rows] = Counter()
    trouble: InputError | None = None
    for path in files:
        try:
            for record in itertools.islice(read_records(path), LOOKED_AT - found.total()):
                try:
                    found[_recognise(parse_example(record), path, layout, flatten)] += 1
                except InputError as error:
                    trouble = trouble or InputError(f"{error} (the first record of {path})")
        except InputError as error:
            trouble = trouble or error
        if found:
            return found.most_common(1)[0][0]
    raise InputError(str(trouble)) from trouble


def _recognise(example: Example, path: Path, layout: str, flatten: bool) -> _Rows:
    matches = [match for name in sorted(example) if (match := OBSERVATION.fullmatch(name))]
    if len({match[1] for match in matches}) != 1:
        raise InputError(
            "expected features reward, discount, action and observation/... or observation:..., "
            f"got {sorted(example)[:12]}"
        )
    count = len(feature(example, "reward", "float"))
    if count == 0:
        raise InputError("expected rewards, got none")
    separator, parts = matches[0][1], path.absolute().parts
    if layout == "auto":
        if separator == ":":
            layout = "rwrl"
        elif "episode_id" in example or count > LONGEST_WINDOW or _any_ends(parts, "_episodes"):
            layout = "episodes"
        else:
            layout = "sarsa" if count == 2 and "seq40" not in parts else "windows"
    floats = [m[2] for m in matches if not isinstance(example[m[0]], list)]
    if flatten and not floats:
        raise InputError("expected float observations, got images only; pass --no-flatten")
    widths = tuple((n, _width(example, f"observation{separator}{n}", count)) for n in floats)
    cameras = tuple(match[2] for match in matches if match[2] not in floats)
    act_width = _width(example, "action", count)
    reader = _Rows(layout, separator, widths, cameras, act_width, flatten)  # type: ignore[arg-type]
    reader.columns(example)
    return reader


def _any_ends(parts: Iterable[str], end: str) -> bool:
    return any(part.endswith(end) for part in parts)


def _width(example: Example, name: str, count: int) -> int:
    values = feature(example, name, "float")
    if len(values) == 0 or len(values) % count:
        raise InputError(f"expected a multiple of {count} numbers in {name}, got {len(values)}")
    return len(values) // count


def _matrix(example: Example, name: str, count: int, width: int) -> Array:
    """Return a feature as (count, width) float32."""
    values: Array = feature(example, name, "float")
    if len(values) != count * width:
        raise InputError(
            f"expected {count} rows of {width} numbers in {name}, got {len(values)} numbers"
        )
    return values.reshape(count, width)


def _sliced(values: Any, rows: slice) -> Any:
    if isinstance(values, Mapping):
        return {key: _sliced(inner, rows) for key, inner in values.items()}
    return values[rows]


def concatenated(parts: Mapping[str, Array]) -> Array:
    """Return parts (T, ...) side by side in the order of their names, (T, D) float32."""
    flat = [parts[name].reshape(len(parts[name]), -1) for name in sorted(parts)]
    return np.concatenate(flat, axis=1, dtype=np.float32, casting="unsafe")


def nested(parts: Mapping[str, Array]) -> dict[str, Any]:
    """Return parts by path as nested dicts: ``a/b`` becomes ``{"a": {"b": ...}}``.

    :raises InputError: if a path is no path, or also the start of another one.
    """
    tree: dict[str, Any] = {}
    for path, values in parts.items():
        *groups, name = path.split("/")
        if not all(part.strip(".") for part in (*groups, name)):
            raise InputError(f"expected names with / between them, got {path!r}")
        place: Any = tree
        for group in groups:
            place = place.setdefault(group, {})
            if not isinstance(place, dict):
                break
        if not isinstance(place, dict) or name in place:
            raise InputError(f"{path} and a part of it are both observations")
        place[name] = values
    return tree
