"""Settings per method and data set, each with its source; ``--no-preset`` leaves them out.

A row holds for a robot and a level (``*``: all), whether the data are D4RL's, Minari's or our own
of that level; a maze's ant, a hand's task and the kitchen count as robots. Its settings are fields
of the method's config, and ``batch_size``. Rows further down go before rows above.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from tianshou_ext.errors import InputError
from tianshou_ext.policy import get_method

ADROIT = ("pen", "door", "hammer", "relocate")
RUNNERS = ("halfcheetah", "hopper", "walker2d")
FAMILIES = {
    "antmaze": "antmaze",
    "adroithandpen": "pen",
    "adroithanddoor": "door",
    "adroithandhammer": "hammer",
    "adroithandrelocate": "relocate",
    "frankakitchen": "kitchen",
}
"""How the ids of tasks begin, and the robot of the rows."""
ROBOTS = (*RUNNERS, *FAMILIES.values())
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


def _every(
    method: str, source: str, robots: tuple[str, ...] = ("*",), **settings: Any
) -> list[Preset]:
    return [Preset(method, robot, "*", settings, source) for robot in robots]


_CORL = "CORL 6afec90, configs/offline"
_LB_SAC = "lb-sac 7253267, configs"

PRESETS: list[Preset] = [
    *_every("bc", f"{_CORL}/bc", lr=3e-4, hidden_sizes=(256, 256), obs_norm="standard"),
    *_every(
        "td3_bc",
        f"arXiv 2106.06860; {_CORL}/td3_bc",
        alpha=2.5,
        obs_norm="standard",
        batch_size=256,
    ),
    *_every("td3_bc", f"{_CORL}/td3_bc", ("antmaze",), reward_norm="minus_one"),
    *_every(
        "iql",
        "arXiv 2110.06169; official code, configs/mujoco_config.py",
        expectile=0.7,
        inv_temperature=3.0,
        reward_norm="return_range",
        batch_size=256,
    ),
    *_every(
        "iql",
        "official code, configs/antmaze_config.py",
        ("antmaze",),
        expectile=0.9,
        inv_temperature=10.0,
        reward_norm="minus_one",
    ),
    *_every(
        "iql",
        "official code, configs/kitchen_config.py",
        (*ADROIT, "kitchen"),
        inv_temperature=0.5,
        dropout=0.1,
        reward_norm="none",
    ),
    *_every(
        "cql",
        "arXiv 2006.04779; official code, README: no Lagrange, weight 5 or 10",
        cql_weight=5.0,
        actor_lr=1e-4,
        batch_size=256,
    ),
    *_every(
        "cql",
        "official script for AntMaze",
        ("antmaze",),
        lagrange_threshold=5.0,
        reward_norm="times_4_minus_2",
    ),
    *_every("cql", f"{_CORL}/cql", ADROIT, cql_weight=1.0, obs_norm="standard"),
    *_every(
        "cal_ql",
        "those of CQL: arXiv 2303.05479 has no data of robots that run",
        cql_weight=5.0,
        actor_lr=1e-4,
        batch_size=256,
    ),
    *_every(
        "cal_ql",
        "arXiv 2303.05479; official code, run_antmaze.sh",
        ("antmaze",),
        failure_reward=-5.0,
        hidden_sizes=(256, 256),
        critic_hidden_sizes=(256, 256, 256, 256),
        lagrange_threshold=4.0,
        max_q_backup=True,
        orthogonal_init=True,
        reward_norm="times_10_minus_5",
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
    *_every("awac", f"{_CORL}/awac", ADROIT, lam=0.1),
    *_every("awac", f"{_CORL}/awac", ("antmaze",), lam=0.1, reward_norm="minus_one"),
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
    *_every(
        "decision_transformer",
        f"{_CORL}/dt",
        ("antmaze",),
        rtg_scale=1.0,
        target_return=(1.0, 0.5),
        batch_size=64,
    ),
    *_every("rebrac", f"arXiv 2305.09836; {_CORL}/rebrac", lr=1e-3, batch_size=1024),
    *_every(
        "rebrac",
        f"arXiv 2305.09836; {_CORL}/rebrac",
        ("antmaze",),
        lr=3e-4,
        critic_lr=5e-5,
        gamma=0.999,
        reward_norm="times_100",
        batch_size=256,
    ),
    *_every("rebrac", f"arXiv 2305.09836; {_CORL}/rebrac", ADROIT, lr=3e-4, batch_size=256),
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
            ("halfcheetah", "full-replay"): (0.001, 0.1),
            ("hopper", "random"): (0.001, 0.01),
            ("hopper", "medium"): (0.01, 0.01),
            ("hopper", "medium-replay"): (0.05, 0.5),
            ("hopper", "medium-expert"): (0.1, 0.01),
            ("hopper", "expert"): (0.1, 0.1),
            ("hopper", "full-replay"): (0.01, 0.01),
            ("walker2d", "random"): (0.01, 0.0),
            ("walker2d", "medium"): (0.05, 0.1),
            ("walker2d", "medium-replay"): (0.05, 0.01),
            ("walker2d", "medium-expert"): (0.01, 0.01),
            ("walker2d", "expert"): (0.01, 0.5),
            ("walker2d", "full-replay"): (0.01, 0.01),
            ("antmaze", "umaze"): (0.003, 0.002),
            ("antmaze", "umaze-diverse"): (0.003, 0.001),
            ("antmaze", "medium-play"): (0.001, 0.0005),
            ("antmaze", "medium-diverse"): (0.001, 0.0),
            ("antmaze", "large-play"): (0.002, 0.001),
            ("antmaze", "large-diverse"): (0.002, 0.002),
            ("pen", "human"): (0.1, 0.5),
            ("pen", "cloned"): (0.05, 0.5),
            ("pen", "expert"): (0.01, 0.01),
            ("door", "human"): (0.1, 0.1),
            ("door", "cloned"): (0.01, 0.1),
            ("door", "expert"): (0.05, 0.01),
            ("hammer", "human"): (0.01, 0.5),
            ("hammer", "cloned"): (0.1, 0.5),
            ("hammer", "expert"): (0.01, 0.01),
            ("relocate", "human"): (0.1, 0.01),
            ("relocate", "cloned"): (0.1, 0.01),
            ("relocate", "expert"): (0.05, 0.01),
        },
    ),
    *_table(
        "sac_n",
        f"arXiv 2110.01548; {_CORL}/sac_n; {_LB_SAC}/sac-n",
        "num_critics",
        {
            ("halfcheetah", "*"): (10,),
            ("hopper", "medium-replay"): (200,),
            ("hopper", "medium-expert"): (200,),
            ("hopper", "full-replay"): (200,),
            ("hopper", "random"): (500,),
            ("hopper", "medium"): (500,),
            ("hopper", "expert"): (500,),
            ("walker2d", "*"): (20,),
            ("walker2d", "expert"): (100,),
            ("antmaze", "*"): (25,),
            **{(robot, "*"): (100,) for robot in ADROIT},
        },
    ),
    *_table(
        "edac",
        f"arXiv 2110.01548; {_CORL}/edac; {_LB_SAC}/edac",
        "num_critics eta",
        {
            ("halfcheetah", "*"): (10, 1.0),
            ("halfcheetah", "random"): (10, 0.0),
            ("halfcheetah", "medium-expert"): (10, 5.0),
            ("hopper", "medium"): (50, 1.0),
            ("hopper", "medium-replay"): (50, 1.0),
            ("hopper", "medium-expert"): (50, 1.0),
            ("hopper", "full-replay"): (50, 1.0),
            ("hopper", "expert"): (50, 1.0),
            ("hopper", "random"): (50, 0.0),
            ("walker2d", "*"): (10, 1.0),
            ("walker2d", "medium-expert"): (10, 5.0),
            ("walker2d", "expert"): (10, 5.0),
            ("pen", "expert"): (20, 10.0),
            **{(robot, "*"): (50, 200.0) for robot in ADROIT[1:]},
        },
    ),
    *_table(
        "edac",
        "arXiv 2110.01548, Adroit",
        "num_critics eta actor_lr reward_norm max_q_backup",
        {
            ("pen", "human"): (20, 1000.0, 3e-5, "standard", False),
            ("pen", "cloned"): (20, 10.0, 3e-5, "standard", True),
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
            ("halfcheetah", "full-replay"): (4,),
            ("hopper", "random"): (25,),
            ("hopper", "medium-replay"): (20,),
            ("hopper", "medium-expert"): (40,),
            ("hopper", "expert"): (50,),
            ("hopper", "full-replay"): (25,),
            ("walker2d", "random"): (15,),
            ("walker2d", "medium"): (10,),
            ("walker2d", "medium-replay"): (4,),
            ("walker2d", "medium-expert"): (10,),
            ("walker2d", "full-replay"): (4,),
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
            ("antmaze", "umaze"): (0.25,),
            ("antmaze", "umaze-diverse"): (0.25,),
            ("antmaze", "medium-play"): (0.05,),
            ("antmaze", "medium-diverse"): (0.025,),
            ("antmaze", "large-play"): (0.025,),
            ("antmaze", "large-diverse"): (0.025,),
        },
    ),
    *_every(
        "spot",
        "arXiv 2202.06239; official code, configs/offline",
        ("antmaze",),
        actor_lr=1e-4,
        dropout=0.0,
        small_init=True,
        obs_norm="none",
        reward_norm="minus_one",
    ),
    *_every("adaptive_bc", "arXiv 2210.13846; official code, main.py", alpha=0.4, batch_size=256),
    *_table(
        "adaptive_bc",
        "arXiv 2210.13846; official code, main.py",
        "alpha alpha_online",
        {("walker2d", "random"): (100.0, 0.4)},
    ),
    *_table(
        "adaptive_bc",
        "arXiv 2210.13846; official code, main.py",
        "alpha kp kd",
        {(robot, "expert"): (8.0, 6e-4, 2e-3) for robot in ADROIT},
    ),
]


def robot_and_level(task: str, dataset: str) -> tuple[str, str]:
    """Return which rows a data set takes; what is not known is empty.

    :param task: of the run, whose robot a level is of.
    :param dataset: a level, or an id of D4RL's or Minari's.
    """
    robots = "|".join(ROBOTS)
    match = re.fullmatch(rf"(?:D4RL/|mujoco/)?({robots})[-/]([a-z-]+)-v\d+", dataset)
    if match:
        return match[1], match[2]
    name = task.rpartition(":")[2].lower()  # of a task with the module that registers it
    if (robot := name.rpartition("-v")[0]) in RUNNERS:
        return robot, dataset
    return next((own for start, own in FAMILIES.items() if name.startswith(start)), ""), dataset


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
