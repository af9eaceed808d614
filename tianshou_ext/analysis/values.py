"""What a discrete policy thinks of states: probabilities of all actions, Q and V, for any method.

Methods keep their networks under names of their own; this is the one place that reads them all.

    bc             pi = softmax(logits); no values
    discrete_cql   pi = softmax(Q), whose likelihood is what CQL's conservative term trains:
                   logsumexp_a Q(s, a) - Q(s, a_data) = -log softmax(Q)[a_data];  V = max_a Q
    discrete_iql   pi = softmax(actor);  Q = the least critic;  V = the value network
    discrete_crr   pi = softmax(actor);  V = sum_a pi(a | s) Q(s, a)
    discrete_bcq   pi = softmax of the imitation logits;  V = max_a Q over the actions it allows
    others         pi = softmax of the logits or values that act() returns; no values
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from tianshou_ext.errors import InputError
from tianshou_ext.policy.base import OfflinePolicy
from tianshou_ext.policy.registry import method_name

__all__ = ["Thoughts", "thoughts"]

Array = np.ndarray[Any, Any]
BLOCK = 2048


@dataclass(frozen=True)
class Thoughts:
    """Of B states."""

    act: Array
    """(B,) what the policy does in a test; the likeliest, if it draws."""
    log_prob: Array
    """(B, A) logarithms of probabilities."""
    q: Array | None
    """(B, A), or None for a method without values."""
    v: Array | None
    """(B,)"""

    def q_of(self, act: Any) -> Array:
        """Return the values of chosen actions (B,), (B,)."""
        if self.q is None:
            raise InputError("expected a method with values, got one without; leave out its Q")
        chosen: Array = self.q[np.arange(len(self.q)), np.asarray(act)]
        return chosen


@torch.no_grad()
def thoughts(policy: OfflinePolicy, obs: Any) -> Thoughts:
    """Ask a policy about raw observations (B, ...).

    :raises InputError: if its actions are not discrete.
    """
    if not isinstance(policy.action_space, Discrete):
        raise InputError(
            f"expected a policy with discrete actions, got {policy.action_space}; continuous "
            "destinations have no probability for each cell"
        )
    policy.eval()
    parts = [
        _block(policy, policy.normalize(np.ascontiguousarray(obs[start : start + BLOCK])))
        for start in range(0, len(obs), BLOCK)
    ]
    if not parts:
        raise InputError("expected observations (B, ...), got none")
    columns: list[Any] = [
        None if column[0] is None else torch.cat(column).cpu().numpy()
        for column in zip(*parts, strict=True)
    ]
    return Thoughts(*columns)


def _block(policy: Any, obs: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    act, logits = policy.act(obs, True)
    method, q, v = method_name(policy), None, None
    if method == "discrete_cql":
        q = logits = logits.mean(2)  # (B, A)
        v = q.amax(1)
    elif method == "discrete_iql":
        q = policy.critic(obs)[0].amin(0)  # (B, A)
        v = policy.value(obs)[0].squeeze(1)
    elif method == "discrete_crr":
        logits, q = policy.logits_and_values(policy.actor, policy.critic, obs)
        v = (logits.softmax(1) * q).sum(1)
    elif method == "discrete_bcq":
        q, logits = policy.values_and_logits(obs)
        v = q.gather(1, act.unsqueeze(1)).squeeze(1)
    elif logits.ndim == 3:  # quantiles (B, A, N)
        logits = logits.mean(2)
    if getattr(policy.config, "sample_actions", False):
        act = logits.argmax(1)
    return act, logits.log_softmax(1), q, v
