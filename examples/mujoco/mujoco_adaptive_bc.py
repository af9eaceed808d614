"""Train Adaptive BC on logged continuous control: python mujoco_adaptive_bc.py --task Hopper-v4"""

from dataclasses import dataclass
from typing import Any

from mujoco_common import OfflineArgs, train

from tianshou_ext.cli import launch
from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.scores import reference_scores

R_MAX = {"halfcheetah": 15.743, "walker2d": 10.271, "hopper": 6.918}
"""Greatest rewards of a step: official code, main.py."""


@dataclass
class Args(OfflineArgs):
    """Adaptive BC on logged continuous control; what is for the online phase says so."""

    alpha: float | None = None
    """Weight of cloning against the values offline; the preset's, or 0.4."""
    alpha_online: float | None = None
    """Its start and its greatest value online; the preset's, or alpha."""
    kp: float | None = None
    """Online: what a step takes from alpha for a return of 1 that lacks; the preset's, or 3e-5."""
    kd: float | None = None
    """Online: what a step adds to alpha for a return of 1 below the average; the preset's, or
    1e-4."""
    target_return: float = 1.05
    """Online: return that is aimed at, where an expert's is 1."""
    return_low: float | None = None
    """Online: return that counts as 0; D4RL's reference if left out."""
    return_high: float | None = None
    """Online: return that counts as 1; D4RL's reference if left out."""
    use_r_max: bool = False
    """Online: not those references, but 0 and r_max times episode_length."""
    r_max: float | None = None
    """Greatest reward of a step, as use_r_max; the paper's, or the data's, if left out."""
    episode_length: int = 1000
    """Steps of a whole episode, for r_max."""
    num_critics: int = 10
    """Critics."""
    subset_size: int = 2
    """Critics whose least value is the target's."""
    exploration_noise: float = 0.1
    """Deviation of the noise on actions online."""
    tau: float = 0.005
    """Share of actor and critics in their targets at each move."""
    policy_noise: float = 0.2
    """Deviation of the noise on the targets' actions."""
    noise_clip: float = 0.5
    """Bound of that noise."""
    update_actor_freq: int = 2
    """Gradient steps from one of the actor and the targets to the next."""
    critic_lr: float | None = None
    """Adam's learning rate for the critics; lr if left out."""


def references(args: Args) -> dict[str, Any]:
    """Return what returns are measured by; nothing where the data are to say."""
    if args.use_r_max or args.r_max is not None:
        r_max = R_MAX.get(args.task.rpartition("-v")[0].lower())
        return {} if r_max is None else {"r_max": r_max}
    if args.return_low is not None or args.return_high is not None:
        return {}
    return reference_returns(args.task)


def reference_returns(task: str) -> dict[str, float]:
    """Return what counts as 0 and as 1 on a task of D4RL's; nothing on others."""
    try:
        known = reference_scores(task)
    except InputError:
        return {}
    return {"return_low": known.minimum, "return_high": known.maximum}


def main(args: Args) -> list[dict[str, float]]:
    return train(args, "adaptive_bc", config_defaults=references(args))


if __name__ == "__main__":
    launch(main, Args)
