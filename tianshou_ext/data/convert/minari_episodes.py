"""Read an episode of a Minari dataset as the columns of a buffer.

HDF5: ``observations`` (T+1, ...), ``actions``, ``rewards``, ``terminations``, ``truncations``
(T, ...); a Dict is a group, a Tuple a group of ``_index_<i>``. Arrow and Parquet: every column is
T+1 rows long, the last row of all but the observations being padding.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

from tianshou_ext.data.blocks import mapped_leaves
from tianshou_ext.data.convert.minari_files import DAMAGE, Source, checked_dataset, steps_said
from tianshou_ext.data.convert.minari_spaces import Space, is_nested, joins_actions
from tianshou_ext.data.convert.minari_values import (
    as_flags,
    as_vector,
    decode,
    from_zero,
    join_parts,
    parts_of,
    scaled_to_unit,
)
from tianshou_ext.errors import InputError

__all__ = ["read_episode"]

FLAT = ("rewards", "terminations", "truncations")


def read_episode(
    source: Source, flatten: bool, episode: int
) -> tuple[dict[str, Any] | str, list[str]]:
    """Return the columns of an episode, or what is wrong with it, and what should be noted."""
    noted: list[str] = []
    try:
        raw = (_read_hdf5 if source.main else _read_columnar)(source, episode)
        return _columns(source, raw, flatten, noted), noted
    except InputError as error:
        return str(error), []
    except DAMAGE as error:
        return f"it cannot be read ({' '.join(str(error).split())[:200]})", []


def _columns(
    source: Source, raw: dict[str, Any], flatten: bool, noted: list[str]
) -> dict[str, Any]:
    with np.errstate(over="ignore"):  # infinite values are reported as such later
        rew = as_vector("rewards", raw["rewards"]).astype(np.float32)
    terminated, truncated = (as_flags(key, raw[key]) for key in ("terminations", "truncations"))
    act = decode(source.actions, raw["actions"], "actions", noted)
    act = scaled_to_unit(source.actions, act)
    obs = decode(source.observations, raw["observations"], "observations", noted)
    if joins_actions(source.actions, flatten):
        act = join_parts(source.actions, act)
    else:
        act = from_zero(source.actions, act)
    if flatten:
        obs = join_parts(source.observations, obs)
    steps = len(rew)
    lengths = {"rewards": steps, "actions": len(next(parts_of(act)))}
    lengths |= {"terminations": len(terminated), "truncations": len(truncated)}
    rows = {len(part) for part in parts_of(obs)}
    if {*lengths.values()} != {steps} or rows not in ({steps + 1}, {steps}):
        raise InputError(
            f"columns of unequal length, {lengths} and {sorted(rows)} observations, of which there "
            f"should be {steps + 1}"
        )
    if steps == 0:
        raise InputError("no steps")
    if (terminated | truncated)[:-1].any():
        noted.append("episodes have an end flag before their last step, and are cut there")
    if rows == {steps}:
        # What the last step led to was not stored: only a true end can do without.
        if terminated[-1]:
            obs = mapped_leaves(lambda _, part: np.concatenate([part, part[-1:]]), obs, "")
            noted.append("episodes lack the observation after their terminal step: repeated")
        else:
            steps -= 1
            act = mapped_leaves(lambda _, part: part[:steps], act, "")
            rew, terminated, truncated = (column[:steps] for column in (rew, terminated, truncated))
            if steps == 0:
                raise InputError("a single step, of which the next observation is missing")
            truncated[-1] |= not terminated[-1]
            noted.append("episodes lack their last observation: the last step is left out")
    elif not (terminated[-1] or truncated[-1]):
        truncated[-1] = True
        noted.append("episodes end without a flag: their last step is truncated")
    return {
        "obs": mapped_leaves(lambda _, part: part[:-1], obs, ""),
        "act": act,
        "rew": rew,
        "terminated": terminated,
        "truncated": truncated,
        "obs_next": mapped_leaves(lambda _, part: part[1:], obs, ""),
    }


def _read_hdf5(source: Source, episode: int) -> dict[str, Any]:
    with h5py.File(source.main, "r") as file:
        group = file[f"episode_{episode}"]
        return {
            "observations": _tree(source.observations, _member(group, "observations")),
            "actions": _tree(source.actions, _member(group, "actions")),
            **{key: checked_dataset(_member(group, key))[()] for key in FLAT},
        }


def _tree(space: Space, item: Any) -> Any:
    """Read a dataset, or a group and all below it."""
    if is_nested(space):
        prefix = "_index_" if space["type"] == "Tuple" else ""
        return {
            key: _tree(part, _member(item, prefix + key)) for key, part in space["parts"].items()
        }
    return checked_dataset(item)[()]


def _member(group: Any, key: str) -> Any:
    if not isinstance(group, h5py.Group):
        raise InputError(f"{group.name} is an array, expected a group with {key!r}")
    if key not in group:
        raise InputError(f"{group.name} lacks {key!r}, it has {list(group)[:12]}")
    return group[key]


def _read_columnar(source: Source, episode: int) -> dict[str, Any]:
    try:
        import pyarrow
        import pyarrow.dataset
    except ImportError as error:
        raise ImportError(
            "expected the package pyarrow for a Minari dataset in Arrow or Parquet, found none "
            "that loads; pip install pyarrow"
        ) from error
    try:
        table = pyarrow.dataset.dataset(
            source.folder / str(episode),
            format=source.metadata["data_format"],
            ignore_prefixes=["_", ".", "metadata.json"],
        ).to_table()
        columns: dict[str, Any] = {}
        for key in ("observations", "actions", *FLAT):
            if key not in table.column_names:
                raise InputError(f"it lacks {key!r}, it has {table.column_names}")
            columns[key] = pyarrow.concat_arrays(table.column(key).chunks)
        said, held = steps_said(source, episode), max(0, len(table) - 1)
        if held != said:
            raise InputError(f"its metadata.json says {said} steps, its arrays hold {held}")
        # The last row holds an observation only, the rest of it is padding.
        return {
            "observations": _arrow_tree(source.observations, columns["observations"]),
            "actions": _arrow_tree(source.actions, columns["actions"], slice(-1)),
            **{key: columns[key].to_numpy(zero_copy_only=False)[:-1] for key in FLAT},
        }
    except pyarrow.ArrowException as error:
        raise InputError(f"it cannot be read ({' '.join(str(error).split())[:200]})") from error


def _arrow_tree(space: Space, values: Any, rows: slice = slice(None)) -> Any:
    """Return an Arrow column, or a struct and all below it, as numpy arrays."""
    if values.null_count and space["type"] != "Text":
        raise InputError(f"{values.null_count} values are missing")
    if is_nested(space):
        return {
            key: _arrow_tree(part, values.field(key), rows) for key, part in space["parts"].items()
        }
    if hasattr(values, "flatten") and hasattr(values.type, "list_size"):
        values = values.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(-1, *space["shape"])[rows]
    return values.to_numpy(zero_copy_only=False)[rows]
