"""A gradient step as one compiled graph: losses, gradients, optimizers and targets together.

``CompiledStep(policy)(batch)`` does what ``policy.gradient_step(batch)`` does, with the same
numbers within rounding. torch.compile follows the method's own code; what it could not follow
stands here, and nowhere else:

- random numbers come from the policy's generator through an operator of our own, in the same order;
- ``optimize`` asks for the gradients and takes Adam's step on tensors, the optimizer's own moments;
- learning rates are tensors, so that a schedule does not compile anew.
"""

from __future__ import annotations

import itertools
import os
import shutil
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tianshou_ext.errors import InputError

if TYPE_CHECKING:
    from tianshou_ext.policy.base import OfflinePolicy

Kind = Literal["normal", "uniform", "bits"]
"""Standard normal, uniform in [0, 1), or 64 random bits."""

EAGER_STEPS = 2
"""Counts 0 and 1 are constants to the compiler, which would compile each on its own."""
COUNTS = ("num_updates", "online_steps")
"""Of a policy; they change while it learns, which must not compile anew."""
RECOMPILES = 32
"""Graphs of one policy; one for each way through its gradient step and each size of batch."""


def draw_numbers(
    kind: Kind, shape: Sequence[int], generator: torch.Generator, device: torch.device
) -> Tensor:
    """Return random numbers on a device.

    :param generator: on the CPU; bits, of which there are many, are drawn on the device from a
        generator that this one seeds.
    """
    if kind == "bits":
        if device.type != "cpu":
            seed = int(torch.randint(2**62, (), generator=generator))
            generator = torch.Generator(device).manual_seed(seed)
        bits = torch.empty(*shape, dtype=torch.int64, device=device)
        return bits.random_(-(2**63), None, generator=generator)
    draw = torch.randn if kind == "normal" else torch.rand
    return draw(*shape, generator=generator).to(device)


_steps: weakref.WeakValueDictionary[int, CompiledStep] = weakref.WeakValueDictionary()
_handles = itertools.count()


@torch.library.custom_op("tianshou_ext::draw", mutates_args=("order",))
def _draw(order: Tensor, handle: int, kind: str, shape: Sequence[int]) -> Tensor:
    """Draw from the policy of a compiled step; ``order`` keeps draws in the order of the code."""
    return _steps[handle].policy.random(kind, *shape)  # type: ignore[arg-type]


@_draw.register_fake
def _(order: Tensor, handle: int, kind: str, shape: Sequence[int]) -> Tensor:
    dtype = torch.int64 if kind == "bits" else torch.float32
    return torch.empty(shape, dtype=dtype, device=order.device)


@dataclass
class Adam:
    """A group of parameters of one Adam or AdamW, its state and settings."""

    name: str
    params: list[Tensor]
    steps: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    lr: Tensor
    group: dict[str, Any]
    decoupled: bool
    """Whether weights decay by themselves, as in AdamW."""

    def step(self, grads: Sequence[Tensor | None]) -> None:
        """Take a step; parameters without a gradient stay as they are.

        Kingma, Ba: arXiv 1412.6980, algorithm 1; AdamW: arXiv 1711.05101, algorithm 2.
        """
        (beta1, beta2), eps = self.group["betas"], self.group["eps"]
        decay = self.group["weight_decay"]
        columns = (self.params, self.steps, self.means, self.squares)
        rows = [row for row in zip(grads, *columns, strict=True) if row[0] is not None]
        if not rows:
            return
        given, params, steps, means, squares = (list(column) for column in zip(*rows, strict=True))
        if decay and self.decoupled:
            torch._foreach_mul_(params, 1.0 - self.lr * decay)
        elif decay:
            given = list(torch._foreach_add(given, params, alpha=decay))
        torch._foreach_add_(steps, 1.0)
        torch._foreach_lerp_(means, given, 1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, given, given, value=1.0 - beta2)
        counts = [step.double() for step in steps]
        sizes = [(self.lr / (1.0 - beta1**count)).float() for count in counts]
        scales = [(1.0 - beta2**count).sqrt().float() for count in counts]
        roots = torch._foreach_div(torch._foreach_sqrt(squares), scales)
        moves = torch._foreach_div(means, torch._foreach_add(roots, eps))
        torch._foreach_sub_(params, torch._foreach_mul(moves, sizes))


class CompiledStep:
    """A policy's gradient step, compiled when it is first taken.

    :param policy: whose ``gradient_step`` it is.
    :raises InputError: on the CPU without a C++ compiler, with a torch that cannot compile
        gradients, or with another optimizer than Adam or AdamW.
    """

    def __init__(self, policy: OfflinePolicy) -> None:
        check_compiler(policy.device)
        self.policy = policy
        self.handle = next(_handles)
        self.order = torch.zeros(1, device=policy.device)
        self._states: list[Any] = []
        self._adams: list[Adam] = []
        self._refresh()
        _steps[self.handle] = self
        torch._dynamo.config.trace_autograd_ops = True
        torch._dynamo.config.allow_unspec_int_on_nn_module = True
        sources = torch.compiler.config.dynamic_sources.split(",")
        added = [rf"L\['policy'\]\.{name}" for name in COUNTS]
        torch.compiler.config.dynamic_sources = ",".join(
            source for source in dict.fromkeys([*sources, *added]) if source
        )
        self._run = torch.compile(  # type: ignore[call-overload]
            _whole_step,
            fullgraph=True,
            recompile_limit=RECOMPILES,
            isolate_recompiles=True,
            # Else Python calls each of the graph's kernels, which takes longer than some of them.
            options={"cpp_wrapper": True} if policy.device.type == "cpu" else None,
        )

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        """Take a gradient step; return its metrics.

        :raises InputError: if the method or a network of yours cannot become one graph.
        """
        if self.policy.num_updates < EAGER_STEPS:
            return self.policy.gradient_step(batch)
        self._refresh()
        try:
            metrics: dict[str, Tensor] = self._run(self.policy, batch)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"expected a gradient step that torch.compile can follow, but: {reason}; leave "
                "compile out"
            ) from error
        return metrics

    def draw(self, kind: Kind, shape: Sequence[int]) -> Tensor:
        """Draw random numbers from within the graph."""
        drawn: Tensor = torch.ops.tianshou_ext.draw(self.order, self.handle, kind, list(shape))
        return drawn

    def optimize(self, loss: Tensor, names: Sequence[str]) -> None:
        """Take one step down the gradient of ``loss``, from within the graph; as the policy's."""
        adams = [a for a in self._adams if not names or a.name.removesuffix("2") in names]
        params = [param for adam in adams for param in adam.params]
        grads: Sequence[Tensor | None] = torch.autograd.grad(loss, params, allow_unused=True)
        with torch.no_grad():
            if self.policy.max_grad_norm is not None:
                grads = clip_norm(grads, self.policy.max_grad_norm)
            for adam in adams:
                adam.step(grads[: len(adam.params)])
                grads = grads[len(adam.params) :]

    def _refresh(self) -> None:
        """Look up the optimizers' state, which a checkpoint replaces, and their learning rates."""
        optims = self.policy.optimizers
        states = [optim.state for optim in optims.values()]
        if len(states) != len(self._states) or any(
            a is not b for a, b in zip(states, self._states, strict=True)
        ):
            self._states = states
            self._adams = [a for name, optim in optims.items() for a in self._look_up(name, optim)]
        due = self.policy.lr_share()
        for adam in self._adams:
            adam.lr.fill_(float(adam.group["lr"]) * due)

    def _look_up(self, name: str, optim: torch.optim.Optimizer) -> list[Adam]:
        if type(optim) not in (torch.optim.Adam, torch.optim.AdamW) or any(
            group["amsgrad"] or group["maximize"] for group in optim.param_groups
        ):
            raise InputError(
                f"expected Adam or AdamW without amsgrad and maximize for {name} to compile, got "
                f"{type(optim).__name__}; use one of them, or leave compile out"
            )
        adams = []
        for group in optim.param_groups:
            for param in group["params"]:
                if not optim.state[param]:
                    optim.state[param]["step"] = torch.zeros((), device=param.device)
                    optim.state[param]["exp_avg"] = torch.zeros_like(param)
                    optim.state[param]["exp_avg_sq"] = torch.zeros_like(param)
            states = [optim.state[param] for param in group["params"]]
            adams.append(
                Adam(
                    name,
                    group["params"],
                    steps=[state["step"] for state in states],
                    means=[state["exp_avg"] for state in states],
                    squares=[state["exp_avg_sq"] for state in states],
                    lr=torch.zeros((), dtype=torch.float64, device=self.policy.device),
                    group=group,
                    decoupled=isinstance(optim, torch.optim.AdamW),
                )
            )
        return adams


def _whole_step(policy: Any, batch: Any) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in policy.gradient_step(batch).items()}


def clip_norm(grads: Sequence[Tensor | None], most: float) -> tuple[Tensor | None, ...]:
    """Scale gradients to a common norm of at most ``most``, as torch's ``clip_grad_norm_``."""
    norm = torch.stack([grad.square().sum() for grad in grads if grad is not None]).sum().sqrt()
    share = (most / (norm + 1e-6)).clamp(max=1.0)
    return tuple(None if grad is None else grad * share for grad in grads)


def check_compiler(device: torch.device) -> None:
    """Check that gradient steps can be compiled here.

    :raises InputError: on the CPU without a C++ compiler, or if torch is too old.
    """
    compilers = [os.environ.get("CXX", "g++"), "clang++", "cl"]
    if device.type == "cpu" and not any(map(shutil.which, compilers)):
        raise InputError(
            "expected a C++ compiler (g++ or clang++) for compile, found none; install one, "
            "or leave compile out"
        )
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise InputError(
            f"expected a torch that can compile gradients too, such as 2.13, got "
            f"{torch.__version__}; install a newer one, or leave compile out"
        )
