"""Settings per method and data set, each with its source; ``--no-preset`` leaves them out.

A row holds for a robot and a level (``*``: all), whether the data are D4RL's or our own of that
level. Its settings are fields of the method's config, and ``batch_size``. Rows further down go
before rows above.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tianshou_ext.data.behaviour import LEVELS
from tianshou_ext.errors import InputError
from tianshou_ext.policy import get_method

ROBOTS = ("halfcheetah", "hopper", "walker2d")
BATCH_SIZES = {"bcq": 100, "rebrac": 1024, "dt": 64}
"""Transitions a gradient step of the papers, without a preset; the others' are 256."""
SAME_CONFIG = {"lb_sac": "sac_n"}
"""Names that are another method with other settings."""


@dataclass(frozen=True)
class Preset:
    """Settings of a method on a data set, and where they are from."""

    method: str
    robot: str
    level: str
    settings: Mapping[str, Any]
    source: str


def _table(
    method: str, source: str, names: str, rows: Mapping[tuple[str, str], tuple[Any, ...]]
) -> list[Preset]:
    """Return a row per data set: ``names`` are those of the values, in order."""
    return [
        Preset(method, robot, level, dict(zip(names.split(), values, strict=True)), source)
        for (robot, level), values in rows.items()
    ]


def _every(method: str, source: str, **settings: Any) -> list[Preset]:
    return [Preset(method, "*", "*", settings, source)]


_CORL = "CORL 6afec90, configs/offline"

PRESETS: list[Preset] = [
    *_every("bc", f"{_CORL}/bc", lr=3e-4, hidden_sizes=(256, 256), obs_norm="standard"),
    *_every(
        "td3_bc",
        f"arXiv 2106.06860; {_CORL}/td3_bc",
        alpha=2.5,
        obs_norm="standard",
        batch_size=256,
    ),
    *_every(
        "iql",
        "arXiv 2110.06169; official code, configs/mujoco_config.py",
        expectile=0.7,
        inv_temperature=3.0,
        reward_norm="return_range",
        batch_size=256,
    ),
    *_every(
        "cql",
        "arXiv 2006.04779; official code, README: no Lagrange, weight 5 or 10",
        cql_weight=5.0,
        actor_lr=1e-4,
        batch_size=256,
    ),
    *_every(
        "cal_ql",
        "those of CQL: arXiv 2303.05479 has no data of robots that run",
        cql_weight=5.0,
        actor_lr=1e-4,
        batch_size=256,
    ),
    *_every("bcq", "arXiv 1812.02900; official code", phi=0.05, lr=1e-3, batch_size=100),
    *_every(
        "crr",
        "d3rlpy 2.8.1, CRRConfig, with the targets of Acme's example; the paper has no D4RL",
        beta=1.0,
        use_sarsa_target=True,
        batch_size=100,
    ),
    *_every(
        "awac",
        f"arXiv 2006.09359; {_CORL}/awac",
        lam=1.0 / 3.0,
        obs_norm="standard",
        batch_size=256,
    ),
    *_table(
        "decision_transformer",
        "arXiv 2106.01345; official code, gym/experiment.py",
        "target_return batch_size",
        {
            ("halfcheetah", "*"): ((12_000.0, 6000.0), 64),
            ("hopper", "*"): ((3600.0, 1800.0), 64),
            ("walker2d", "*"): ((5000.0, 2500.0), 64),
        },
    ),
    *_every("rebrac", f"arXiv 2305.09836; {_CORL}/rebrac", lr=1e-3, batch_size=1024),
    *_table(
        "rebrac",
        f"arXiv 2305.09836; {_CORL}/rebrac",
        "actor_bc_coef critic_bc_coef",
        {
            ("halfcheetah", "random"): (0.001, 0.1),
            ("halfcheetah", "medium"): (0.001, 0.01),
            ("halfcheetah", "medium-replay"): (0.01, 0.001),
            ("halfcheetah", "medium-expert"): (0.01, 0.1),
            ("halfcheetah", "expert"): (0.01, 0.01),
            ("hopper", "random"): (0.001, 0.01),
            ("hopper", "medium"): (0.01, 0.01),
            ("hopper", "medium-replay"): (0.05, 0.5),
            ("hopper", "medium-expert"): (0.1, 0.01),
            ("hopper", "expert"): (0.1, 0.1),
            ("walker2d", "random"): (0.01, 0.0),
            ("walker2d", "medium"): (0.05, 0.1),
            ("walker2d", "medium-replay"): (0.05, 0.01),
            ("walker2d", "medium-expert"): (0.01, 0.01),
            ("walker2d", "expert"): (0.01, 0.5),
        },
    ),
    *_table(
        "sac_n",
        f"arXiv 2110.01548; {_CORL}/sac_n",
        "num_critics",
        {
            ("halfcheetah", "*"): (10,),
            ("hopper", "medium"): (500,),
            ("hopper", "medium-replay"): (200,),
            ("hopper", "medium-expert"): (200,),
            ("walker2d", "*"): (20,),
        },
    ),
    *_table(
        "edac",
        f"arXiv 2110.01548; {_CORL}/edac",
        "num_critics eta",
        {
            ("halfcheetah", "medium"): (10, 1.0),
            ("halfcheetah", "medium-replay"): (10, 1.0),
            ("halfcheetah", "medium-expert"): (10, 5.0),
            ("hopper", "medium"): (50, 1.0),
            ("hopper", "medium-replay"): (50, 1.0),
            ("hopper", "medium-expert"): (50, 1.0),
            ("walker2d", "medium"): (10, 1.0),
            ("walker2d", "medium-replay"): (10, 1.0),
            ("walker2d", "medium-expert"): (10, 5.0),
        },
    ),
    *_every(
        "lb_sac",
        f"arXiv 2211.11092; {_CORL}/lb-sac",
        lr=1.8e-3,
        small_init=False,
        batch_size=10_000,
    ),
    *_table(
        "lb_sac",
        f"arXiv 2211.11092; {_CORL}/lb-sac",
        "num_critics",
        {
            ("halfcheetah", "random"): (2,),
            ("halfcheetah", "medium"): (4,),
            ("halfcheetah", "medium-replay"): (4,),
            ("halfcheetah", "medium-expert"): (8,),
            ("halfcheetah", "expert"): (6,),
            ("hopper", "random"): (25,),
            ("hopper", "medium-replay"): (20,),
            ("hopper", "medium-expert"): (40,),
            ("hopper", "expert"): (50,),
            ("walker2d", "random"): (15,),
            ("walker2d", "medium"): (10,),
            ("walker2d", "medium-replay"): (4,),
            ("walker2d", "medium-expert"): (10,),
        },
    ),
    *_table(
        "lb_sac",
        f"arXiv 2211.11092; {_CORL}/lb-sac",
        "num_critics layer_norm small_init",
        {("hopper", "medium"): (25, "before", False), ("walker2d", "expert"): (30, "none", True)},
    ),
    *_every(
        "spot",
        "arXiv 2202.06239; official code, configs/offline",
        obs_norm="standard",
        batch_size=256,
    ),
    *_table(
        "spot",
        "arXiv 2202.06239; official code, configs/offline",
        "lam",
        {
            ("halfcheetah", "medium"): (0.05,),
            ("halfcheetah", "medium-replay"): (0.05,),
            ("halfcheetah", "medium-expert"): (1.0,),
            ("hopper", "medium"): (0.1,),
            ("hopper", "medium-replay"): (0.1,),
            ("hopper", "medium-expert"): (0.2,),
            ("walker2d", "medium"): (0.2,),
            ("walker2d", "medium-replay"): (0.2,),
            ("walker2d", "medium-expert"): (0.5,),
        },
    ),
    *_every("adaptive_bc", "arXiv 2210.13846; official code, main.py", alpha=0.4, batch_size=256),
    *_table(
        "adaptive_bc",
        "arXiv 2210.13846; official code, main.py",
        "alpha alpha_online",
        {("walker2d", "random"): (100.0, 0.4)},
    ),
]


def robot_and_level(task: str, dataset: str) -> tuple[str, str]:
    """Return which rows a data set takes; empty where only those for all do.

    :param task: of the run, whose robot a level is of.
    :param dataset: a level, or a D4RL id.
    """
    robot = task.rpartition("-v")[0].lower()
    if dataset in LEVELS:
        return robot, dataset
    match = re.fullmatch(rf"({'|'.join(ROBOTS)})-({'|'.join(LEVELS)})-v\d+", dataset)
    return (match[1], match[2]) if match else (robot, "")


def preset_for(method: str, task: str, dataset: str) -> tuple[dict[str, Any], list[str]]:
    """Return a method's settings for a data set, and their sources.

    :param method: its name in the registry, or one of ``SAME_CONFIG``.
    :raises InputError: if a row names a field that the method does not have.
    """
    robot, level = robot_and_level(task, dataset)
    settings: dict[str, Any] = {}
    sources: list[str] = []
    for row in PRESETS:
        if row.method == method and row.robot in ("*", robot) and row.level in ("*", level):
            check_row(row)
            settings |= row.settings
            if row.source not in sources:
                sources.append(row.source)
    return settings, sources


def check_row(row: Preset) -> None:
    """Check that a row names fields of its method's config, or the batch size.

    :raises InputError: if it does not.
    """
    config_class = get_method(SAME_CONFIG.get(row.method, row.method)).config_class
    known = {f.name for f in fields(config_class)} | {"batch_size"}
    unknown = sorted(set(row.settings) - known)
    if unknown:
        raise InputError(
            f"expected a preset of {row.method} to name its fields ({', '.join(sorted(known))}), "
            f"got {', '.join(unknown)} for {row.robot} {row.level}; correct the row in presets.py"
        )
