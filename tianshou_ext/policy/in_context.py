"""Acting on a return asked for, with a memory of the episode: what Decision Transformer acts by.

The policy's state is one ``Context`` for each environment, which a collector hands back and empties
when an episode ends. The return asked for goes down by what each step pays; Tianshou tells no
policy what its action paid, so a collector is made with ``on_step_hook=policy.on_step``, and a loop
of one's own calls ``record``. Without either the second step of an episode is refused. Where all of
the data's rewards are -1, 0 or 1, as of logged Atari play, a step counts by the sign of what it
paid.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete
from tianshou.data import Batch
from torch import Tensor

from tianshou_ext.errors import InputError
from tianshou_ext.nn.contexts import Context, ContextReader, as_contexts, as_state
from tianshou_ext.nn.transformer import DecisionTransformer
from tianshou_ext.policy.base import OfflinePolicy


class InContextPolicy(OfflinePolicy):
    """A policy that reads an episode so far, and acts for a return.

    Its config has ``context_len``, ``slide``, ``rtg_scale``, ``target_return``, ``sample_actions``.
    """

    learns_online: ClassVar[bool] = False
    data_returns: Tensor
    rewards_are_signs: Tensor

    def set_up_acting(self, model: DecisionTransformer) -> None:
        """Take the network; to be called once, when the policy is made."""
        self.model = model
        self.is_discrete = isinstance(self.action_space, Discrete)
        # Least and largest return of the data's episodes; the wrong way round before there are any.
        self.register_buffer("data_returns", torch.tensor([math.inf, -math.inf]))
        self.register_buffer("rewards_are_signs", torch.tensor(False))
        self.asked: float | None = next(iter(self.config.target_return), None)
        """The return that was asked for by hand; None: the best of the data's."""
        self._reader = ContextReader(model)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights, also of files that are older than ``rewards_are_signs``."""
        newer = {"rewards_are_signs": torch.tensor(False)}
        return super().load_state_dict({**newer, **state_dict}, *args, **kwargs)

    @property
    def target_return(self) -> float:
        """The return that new episodes ask for; 0 if none was given and there were no data yet."""
        best = float(self.data_returns[1])
        return self.asked if self.asked is not None else best if math.isfinite(best) else 0.0

    def set_target_return(self, target: float | None) -> None:
        """Let new episodes ask for another return; None is the best of the data's.

        :raises InputError: if it is no finite number.
        """
        if target is not None:
            if not math.isfinite(target):
                raise InputError(f"expected a finite target return, got {target}; change it")
            self.check_target(target)
        self.asked = None if target is None else float(target)

    def check_target(self, target: float) -> None:
        """Warn if no episode of the data has such a return."""
        low, high = self.data_returns.tolist()
        if low <= high and not low <= target <= high:
            warnings.warn(
                f"expected a target return between {low:g} and {high:g}, the returns of the data's "
                f"episodes, got {target:g}; none shows how to get that, so expect anything",
                stacklevel=3,
            )

    def act(self, obs: Tensor, deterministic: bool) -> tuple[Tensor, Tensor]:
        """Choose actions at the beginning of episodes; ``forward`` knows what came before."""
        return self._act([self._new_context() for _ in range(len(obs))], obs, deterministic)

    def _new_context(self) -> Context:
        return Context(next_rtg=self.target_return / self.config.rtg_scale)

    def _act(
        self, contexts: Sequence[Context], obs: Tensor, deterministic: bool
    ) -> tuple[Tensor, Tensor]:
        steps = self.config.context_len
        slide = self.config.slide or max(1, steps // 2)
        for one, seen in zip(contexts, obs.unbind(), strict=True):
            one.see(seen, steps, slide)
        out = self._reader.read(contexts)
        if not self.is_discrete:
            return torch.tanh(out), out
        if deterministic and not self.config.sample_actions:
            return out.argmax(1), out
        return self.draw_actions(out), out

    @torch.no_grad()
    def forward(self, batch: Any, state: Any = None, **kwargs: Any) -> Batch:
        """Choose actions for ``batch.obs`` (raw observations, (R, ...)) of R environments.

        Discrete actions are the likeliest outside a training step and samples inside one.

        :param state: what the last call returned, (R,) objects; an empty entry (None or 0) begins
            an episode, and no state at all begins R of them.
        :return: with ``act``, ``logits`` and ``state``.
        :raises InputError: if a reward is missing, or the state is none of this policy's.
        """
        obs = self.normalize(self.plain_obs(batch))
        contexts = as_contexts(state, len(obs), self._new_context)
        act, logits = self._act(contexts, obs, not self.is_within_training_step)
        return Batch(act=act.cpu().numpy(), logits=logits, state=as_state(contexts))

    def record(self, state: Any, act: Any, rew: Any, done: Any) -> None:
        """Tell the policy what was done in R environments and what it paid.

        :param state: what ``forward`` returned beside the actions.
        :param act: (R,) or (R, A) actions as the policy has them, exploration noise included.
        :param rew: (R,) rewards of the environment.
        :param done: (R,) whether the episode ended; what comes next in its place is another.
        :raises InputError: if a reward is no finite number, or a step is recorded twice.
        """
        for one, a, r, ended in zip(state, act, rew, done, strict=True):
            if not math.isfinite(r):
                raise InputError(f"expected finite rewards, got {r}; see to the environment")
            taken = int(a) if self.is_discrete else np.asarray(a, np.float32).reshape(-1)
            paid = math.copysign(1.0, r) if self.rewards_are_signs and r else float(r)
            one.record(taken, paid / self.config.rtg_scale, bool(ended))

    def on_step(self, action_batch: Any, rollout_batch: Any) -> None:
        """``record`` for a collector: give it this method as ``on_step_hook``.

        The collector's buffer then does not store contexts.
        """
        if action_batch.hidden_state is not None:
            steps = rollout_batch
            self.record(action_batch.hidden_state, steps.act, steps.rew, steps.done)
            steps.policy.pop("hidden_state", None)


class Solo(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One environment that a policy plays by hand, as for watching: it is told what it got.

    :param env: to play in.
    :param policy: to act by.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], policy: InContextPolicy) -> None:
        super().__init__(env)
        self.policy = policy
        self._last: Batch | None = None

    def reset(self, **options: Any) -> Any:
        self._last = None
        return self.env.reset(**options)

    def choose(self, obs: Any) -> Any:
        """Return the action of the environment at an observation."""
        state = None if self._last is None else self._last.state
        self._last = self.policy(Batch(obs=np.asarray(obs)[None], info={}), state)
        return self.policy.map_action(self._last.act)[0]

    def step(self, action: Any) -> Any:
        obs, rew, terminated, truncated, info = self.env.step(action)
        if self._last is not None:
            taken = [action] if self.policy.is_discrete else self._last.act
            self.policy.record(self._last.state, taken, [rew], [terminated or truncated])
        return obs, rew, terminated, truncated, info
