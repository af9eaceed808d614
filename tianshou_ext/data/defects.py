"""Known defects of known datasets, found by the name of the dataset, task or file."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Defect", "known_defects"]


@dataclass(frozen=True)
class Defect:
    """Something wrong with a published dataset."""

    pattern: str
    """Regular expression that is searched in the name, upper or lower case alike."""
    what: str
    advice: str
    ruins_training: bool
    """Whether training on the data as published, read naively, learns something wrong."""
    repaired_by: str = ""
    """Our converter that repairs it."""


_GYM = r"(?<![a-z])(?<!bullet-)(?:ant|halfcheetah|hopper|walker(?:2d)?)[-_]"

DEFECTS = (
    Defect(
        r"(?<![/a-z])antmaze-[a-z-]*-v0",
        "D4RL antmaze v0: timeouts are out of step with the real resets, so that some transitions "
        "jump by up to 20 m",
        "use the v2 dataset",
        True,
    ),
    Defect(
        r"(?<![/a-z])antmaze-[a-z-]*-v\d|ant_maze_.*sparse",
        "D4RL antmaze: terminals mark the rows at the goal, in runs inside an episode; only "
        "timeouts end a trajectory",
        "cut episodes at timeouts, and bootstrap nowhere from a row at the goal",
        True,
        "d4rl",
    ),
    Defect(
        r"(?<![/a-z])antmaze-(?:eval-)?umaze-diverse-v\d|ant_maze_u-?maze_.*multigoal_true",
        "D4RL antmaze-umaze-diverse: a reached goal is marked by a single terminal, in the other "
        "antmaze sets by a run of them",
        "do not take the number of terminals for the number of successes across the sets",
        False,
    ),
    Defect(
        r"(?<!bullet-)(?<![a-z])maze2d-",
        "D4RL maze2d: the reward of a row belongs to the observation of that row, not to the next "
        "one, so it comes one step late",
        "as published the benchmark is run so; for exact rewards compute them from obs_next and "
        "the goal",
        False,
    ),
    Defect(
        r"(?<!bullet-)(?<![a-z])maze2d-",
        "D4RL maze2d: one long trajectory without terminals; its timeouts stand where a goal was "
        "reached and changed, at irregular distances",
        "take timeouts as truncations, and returns for what they are: the length of the way to a "
        "goal",
        False,
    ),
    Defect(
        _GYM + r"(?:random|medium|expert|mixed|full)[a-z_-]*-v0",
        "D4RL gym-mujoco v0: no timeouts are stored; read by its terminals alone, the last step "
        "before the time limit leads to the first of the next episode",
        "cut episodes at the environment's limit of 1000 steps, or use the v2 dataset",
        True,
        "d4rl",
    ),
    Defect(
        _GYM + r"(?:medium[-_]replay|full[-_]replay|mixed)",
        "D4RL replay sets: the file is cut at a number of rows, so the last episode is unfinished "
        "and its return too low",
        "take its last row as truncated, and leave it out where episodes are ranked by return",
        False,
    ),
    Defect(
        r"(?<![a-z])kitchen-(?:complete|mixed|partial)|kitchen_microwave_",
        "D4RL kitchen: terminals stand at the end of a demonstration, which is no success, and no "
        "timeouts are stored; the reward counts the subtasks completed so far",
        "read success from the rewards, not from terminals",
        False,
    ),
    Defect(
        r"(?<![a-z])(?:pen|hammer|door|relocate)-human(?!-longhorizon)|-v0_demos_clipped",
        "D4RL adroit human: demonstrations are longer than the environment's time limit",
        "keep whole episodes, and compare returns with the limit of the longhorizon ids (pen 200, "
        "hammer 600, door 300, relocate 500)",
        False,
    ),
    Defect(
        r"(?<![a-z])antmaze[-/]umaze-v0",
        "Minari antmaze-umaze-v0: early versions have episodes with as many observations as "
        "actions, so the last step has no next observation",
        "use a later version, or leave the last step of such episodes out",
        True,
        "minari",
    ),
    Defect(
        r"(?:rlu|rl[-_ ]?unplugged).*asterix|asterix.*run_\d",
        "RL Unplugged Asterix: users report shards without a single terminal (discount 1 "
        "everywhere); values then never see an episode's end",
        "count the terminated rows; if there are none, use another run or RL Unplugged's ordered "
        "episodes",
        True,
    ),
    Defect(
        r"dqn[-_ ]?replay|replay_logs",
        "DQN replay: the time limit of 27,000 steps is stored as a terminal",
        "if it matters, mark the ends of episodes of that length as truncated",
        False,
    ),
    Defect(
        r"dqn[-_ ]?replay|replay_logs",
        "DQN replay: every episode starts with three rows of zeros that were never played, and one "
        "row of every file is a leftover of the file before",
        "leave these rows out; black frames at an episode's start are a sign of them",
        True,
        "dqn-replay",
    ),
    Defect(
        r"walker_(?:walk|run)-td3-medium|collected_data",
        "Walker collected_data: in the raw files a row's action and reward led to the observation "
        "of the same row, so that taken as they are they are one step off; a repaired copy of the "
        "files is shifted already",
        "pair action and reward with the observation of the row before, in raw files only: their "
        "first action is zero, in repaired ones the last",
        True,
        "walker",
    ),
)


def known_defects(name: str) -> list[Defect]:
    """Return what is known to be wrong with a dataset.

    :param name: id of the dataset or task, file name, or several of them in one string.
    """
    return [defect for defect in DEFECTS if re.search(defect.pattern, name, re.IGNORECASE)]
