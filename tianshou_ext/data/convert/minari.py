"""Minari datasets: HDF5 without the minari package, Arrow and Parquet with pyarrow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np

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
from tianshou_ext.data.convert.minari_episodes import read_episode
from tianshou_ext.data.convert.minari_files import Source, count_steps, open_dataset
from tianshou_ext.data.convert.minari_spaces import (
    bounds_to_scale,
    brief,
    joins_actions,
    layout,
    leaves,
    starts_of,
)
from tianshou_ext.errors import InputError

__all__ = ["convert"]


def convert(
    src: str | Path, dst: str | Path, /, *, flatten: bool = False, **options: Unpack[Options]
) -> Report:
    """Convert a Minari dataset.

    An episode's last row with neither flag becomes truncated. Dict and Tuple observations become
    Tianshou's nested Batch unless flattened, and so do such actions unless all parts are boxes.
    float64 becomes float32; discrete actions count from 0, continuous ones are scaled from finite
    bounds to [-1, 1], as Tianshou's buffers hold them.

    :param src: dataset id, such as mujoco/hopper/medium-v0, or its folder or main_data.hdf5.
    :param dst: the buffer file to make.
    :param flatten: make observations, and actions that are a Dict or Tuple, one vector each, as
        gymnasium's flatten does.
    :raises InputError: if the dataset is missing, damaged, or holds what a buffer cannot.
    """
    settings = Settings(**options)
    source = open_dataset(src)
    _check_spaces(source)
    lengths = count_steps(source)
    kept = chosen_episodes(len(lengths), settings)
    names = [source.episodes[k] for k in kept]
    seen: Counter[str] = Counter()
    notes = [*_notes(source, sum(lengths))]

    def blocks() -> Iterator[Block | Fault]:
        read = partial(read_episode, source, flatten)
        for name, (columns, found) in zip(
            names, ordered_map(read, names, settings.jobs), strict=True
        ):
            seen.update(found)
            where = str(source.folder), f"episode {name}"
            yield Fault(*where, columns) if isinstance(columns, str) else Block(columns, *where)
        notes.extend(f"{count} {what}" for what, count in seen.items())

    actions_join = joins_actions(source.actions, flatten)
    return write_blocks(
        blocks(),
        dst,
        source="minari",
        inputs=source.files(),
        size=max(1, sum(lengths[k] for k in kept)),  # if none can be read, the fault says why
        settings=settings,
        notes=notes,
        provenance={
            "dataset": _said(source.metadata, "dataset_id"),
            "task": _task(source.metadata),
            "algorithm": _said(source.metadata, "algorithm_name"),
            "minari_version": _said(source.metadata, "minari_version"),
            "observation_space": brief(source.observations),
            "action_space": brief(source.actions),
            "observation_order": layout(source.observations) if flatten else None,
            "action_order": layout(source.actions) if actions_join else None,
            "action_start": starts_of(source.actions),
            "actions_scaled": any(bounds_to_scale(leaf) for _, leaf in leaves(source.actions)),
            "ordered": True,
        },
    )


def _said(metadata: Mapping[str, Any], key: str) -> str | None:
    return str(metadata[key])[:200] if metadata.get(key) else None


def _task(metadata: Mapping[str, Any]) -> str | None:
    try:
        return str(json.loads(metadata["env_spec"])["id"])
    except (KeyError, ValueError, TypeError, RecursionError):
        return None


def _notes(source: Source, steps: int) -> Iterator[str]:
    found = {"total_steps": steps, "total_episodes": len(source.episodes)}
    for key, count in found.items():
        said = source.metadata.get(key)
        if said is not None and str(said) != str(count):
            yield f"the metadata say {key} {str(said)[:20]}, the data hold {count}"
    if starts := starts_of(source.actions):
        yield f"actions counted from {starts}, now from 0"
    for path, leaf in leaves(source.actions):
        if bounds := bounds_to_scale(leaf):
            low, high = (np.asarray(bound) for bound in bounds)
            which = f" ({path})" if path else ""
            yield (
                f"actions{which} within {low.min():g} to {high.max():g} are scaled to [-1, 1], as "
                "Tianshou's buffers hold them"
            )
    if source.observations.get("guessed") or source.actions.get("guessed"):
        yield "the metadata name no spaces: taken from the data, and discrete actions from 0"


def _check_spaces(source: Source) -> None:
    """Refuse text as actions.

    :raises InputError: if a part of them is text.
    """
    kinds = {path: leaf["type"] for path, leaf in leaves(source.actions)}
    if "Text" in kinds.values():
        raise InputError(
            f"expected actions that are numbers in {source.folder}, got {kinds}; choose a dataset "
            "without text actions"
        )
