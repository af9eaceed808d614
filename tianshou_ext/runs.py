"""The policy in the folder of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from tianshou_ext.checkpoint import load_policy
from tianshou_ext.policy import OfflinePolicy, get_method
from tianshou_ext.policy.config import make_config
from tianshou_ext.trainer import BEST, CHECKPOINT, read_facts

Which = Literal["last", "best"]
WEIGHTS = {"last": CHECKPOINT, "best": BEST}


def load_run_policy(folder: str | Path, env: Any, which: Which = "last") -> OfflinePolicy:
    """Return the policy of a run's folder, on the CPU.

    :param env: whose spaces the policy is for.
    :param which: ``last``: as the run left it; ``best``: at its best test.
    :raises InputError: if the folder holds no run, or one for other spaces.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["config"].items()}
    method = get_method(facts["method"])
    policy = method.policy_class.build(
        env.observation_space,
        env.action_space,
        make_config(method.config_class, None, options),
    )
    load_policy(policy, folder / WEIGHTS[which])
    policy.eval()
    return policy
