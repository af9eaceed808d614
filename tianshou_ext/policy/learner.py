"""What gradient steps are made of: optimizers, target networks, random numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from tianshou_ext.errors import InputError
from tianshou_ext.policy.compiled import CompiledStep, Kind, draw_numbers
from tianshou_ext.schedules import Together
from tianshou_ext.tianshou_api import BasePolicy, as_optimizer

TModule = TypeVar("TModule", bound=nn.Module)


class Learner(BasePolicy):
    """A Tianshou policy with what the losses of all methods need; ``OfflinePolicy`` is one.

    :param seed: of the generators for sampling, learning and acting.
    :param spaces: what Tianshou's own base takes.
    """

    max_grad_norm: float | None = None
    """Gradients are scaled down to this norm, all of a step's together; None: they are not."""

    def __init__(self, *, seed: int, **spaces: Any) -> None:
        super().__init__(**spaces)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        if seed < 0:
            raise InputError(f"expected a seed of at least 0, got {seed}; change it")
        # Streams of their own: those of neighbouring seeds have nothing in common.
        states = np.random.SeedSequence(seed).generate_state(3, np.uint64)
        self.generators = {
            name: torch.Generator().manual_seed(int(state >> np.uint64(1)))
            for name, state in zip(("sample", "act", "learn"), states, strict=True)
        }
        self.num_updates = 0
        self._compiled: CompiledStep | None = None
        self._targets: list[tuple[nn.Module, nn.Module]] = []
        self._first_parameter: list[Tensor] = []  # a list, so that it is registered once only

    def add_optimizer(self, name: str, optim: Any, *modules: nn.Module) -> None:
        """Register the optimizer of ``modules`` (a torch one, or a Tianshou 2.x factory).

        A scheduler that the factory makes is stepped with the policy's own.

        A second one for the same loss is called as the first with a 2: critic, critic2.
        """
        owner = modules[0] if len(modules) == 1 else nn.ModuleList(modules)
        self.optimizers[name], scheduler = as_optimizer(optim, owner)
        if scheduler is not None:
            both = (self.lr_scheduler, scheduler)
            self.lr_scheduler: Any = scheduler if both[0] is None else Together(*both)

    def optimize(self, loss: Tensor, *names: str) -> None:
        """Take one step down the gradient of ``loss``.

        :param names: of the optimizers that step; ``critic`` stands for ``critic2`` too. All if
            none is given.
        """
        if self._compiled is not None and torch.compiler.is_compiling():
            self._compiled.optimize(loss, names)
            return
        optims = [
            optim
            for name, optim in self.optimizers.items()
            if not names or name.removesuffix("2") in names
        ]
        for optim in optims:
            optim.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        groups = [group for optim in optims for group in optim.param_groups]
        if self.max_grad_norm is not None:
            params = [param for group in groups for param in group["params"]]
            nn.utils.clip_grad_norm_(params, self.max_grad_norm)
        share, rates = self.lr_share(), [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * share
        for optim in optims:
            optim.step()
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate  # a schedule goes on from it

    def lr_share(self) -> float:
        """Return the share of every learning rate that the next step takes, as while warming up."""
        return 1.0

    @staticmethod
    def frozen(module: nn.Module) -> Callable[..., Any]:
        """Return ``module`` as a function through which no gradient reaches its parameters."""
        weights = {name: p.detach() for name, p in module.named_parameters()}

        def call(*args: Tensor) -> Any:
            return functional_call(module, weights, args)

        return call

    def draw_actions(self, logits: Tensor) -> Tensor:
        """Draw actions (B,) by logits (B, n), with the policy's own generator."""
        probs = logits.softmax(1).cpu()
        return torch.multinomial(probs, 1, generator=self.generators["act"]).squeeze(1)

    def random(self, kind: Kind, *shape: int) -> Tensor:
        """Return random numbers for a gradient step, from the policy's own generator."""
        if self._compiled is not None and torch.compiler.is_compiling():
            return self._compiled.draw(kind, shape)
        return draw_numbers(kind, shape, self.generators["learn"], self.device)

    def randn_like(self, like: Tensor) -> Tensor:
        """Return standard normal numbers for a gradient step."""
        return self.randn(*like.shape)

    def randn(self, *shape: int) -> Tensor:
        """Return standard normal numbers for a gradient step."""
        return self.random("normal", *shape)

    def rand(self, *shape: int) -> Tensor:
        """Return uniform numbers in [0, 1) for a gradient step."""
        return self.random("uniform", *shape)

    def act_noise(self, like: Tensor) -> Tensor:
        """Return standard normal numbers for acting, from the policy's own generator."""
        return torch.randn(like.shape, generator=self.generators["act"]).to(like.device)

    def add_target(self, source: TModule) -> TModule:
        """Return a frozen copy of ``source``, to be updated by the methods below."""
        target = copy.deepcopy(source).requires_grad_(False).eval()
        self._targets.append((source, target))
        return target

    @torch.no_grad()
    def copy_targets(self) -> None:
        """Set every target network to its source."""
        for source, target in self._targets:
            for old, new in zip(target.parameters(), source.parameters(), strict=True):
                old.copy_(new)
            _copy_buffers(source, target)

    @torch.no_grad()
    def move_targets(self, tau: float) -> None:
        """Move every target network towards its source: ``(1 - tau) * target + tau * source``."""
        for source, target in self._targets:
            old: list[Tensor] = list(target.parameters())
            new: list[Tensor] = list(source.parameters())
            torch._foreach_lerp_(old, new, tau)
            _copy_buffers(source, target)

    def update_targets(self, freq: int) -> None:
        """Set the targets to their sources before every ``freq``-th gradient step."""
        if freq > 0 and self.num_updates % freq == 0:
            self.copy_targets()

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        if not self._first_parameter:
            self._first_parameter.append(next(self.parameters()))
        return self._first_parameter[0].device

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for _, target in self._targets:
            target.eval()
        return self


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Copy what is no parameter, such as the running statistics of batch normalisation."""
    for old, new in zip(target.buffers(), source.buffers(), strict=True):
        old.copy_(new)
