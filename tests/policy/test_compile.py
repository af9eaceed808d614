"""Compiled gradient steps give what eager ones give."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import torch
from contract import SETTINGS, update

from tianshou_ext import processor
from tianshou_ext.errors import InputError
from tianshou_ext.policy.compiled import EAGER_STEPS, Adam, CompiledStep, clip_norm

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU"
)
VECTORS = [s for s in SETTINGS if s.obs == "vector"]
CLONES = ("bc", "vector", "continuous")


def same_as_eager(eager, compiled, buffer, rtol=1e-3, atol=1e-5) -> None:
    compiled.compile_step()
    for step, (a, b) in enumerate(
        zip(update(eager, buffer, times=8), update(compiled, buffer, times=8), strict=True)
    ):
        assert a.keys() == b.keys()
        for key in a:
            assert np.isclose(a[key], b[key], rtol, atol), (step, key, a[key], b[key])


def halving(policy) -> None:
    """Let the learning rate halve at each step."""
    (optim,) = policy.optimizers.values()
    policy.lr_scheduler = torch.optim.lr_scheduler.ExponentialLR(optim, 0.5)


@needs_compiler
def test_compiled_steps_learn_the_same_along_a_schedule(make_policy, make_buffer):
    eager, compiled = make_policy(*CLONES), make_policy(*CLONES)
    for policy in (eager, compiled):
        halving(policy)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    same_as_eager(eager, compiled, make_buffer(*CLONES[1:]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1
    for a, b in zip(eager.parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("setting", VECTORS, ids=str)
def test_compiled_steps_learn_the_same_for_every_method(setting, make_policy, make_buffer):
    eager, compiled = make_policy(*setting.kinds), make_policy(*setting.kinds)
    same_as_eager(eager, compiled, make_buffer(*setting.kinds[1:]))


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(
    not processor._has_bf16(torch.device("cpu")),
    reason="needs a processor with instructions for bfloat16",
)
@pytest.mark.parametrize("method", ["iql", "td3_bc", "sac_n"])
def test_compiled_steps_in_bf16_learn_nearly_the_same(method, make_policy, make_buffer):
    """One step sees weights that the same step has changed, rounded anew."""
    kinds = (method, *CLONES[1:])
    eager, compiled = make_policy(*kinds), make_policy(*kinds)
    for policy in (eager, compiled):
        policy.set_precision("bf16")
    same_as_eager(eager, compiled, make_buffer(*kinds[1:]), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_steps_of_adam_are_torchs(optimizer, decay):
    params = [torch.randn(3, 2, requires_grad=True), torch.randn(4, requires_grad=True)]
    mine = [param.detach().clone() for param in params]
    optim = optimizer(params, lr=0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=decay)
    columns = [[torch.zeros_like(p) for p in mine] for _ in range(2)]
    counts = [torch.zeros(()) for _ in mine]
    lr = torch.tensor(0.01, dtype=torch.float64)
    decoupled = optimizer is torch.optim.AdamW
    adam = Adam("actor", mine, counts, *columns, lr, optim.param_groups[0], decoupled)
    for step in range(5):
        grads = [torch.randn(3, 2), torch.randn(4) if step != 2 else None]
        grads = [None, None] if step == 3 else grads
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optim.step()
        adam.step(grads)
    for param, own in zip(params, mine, strict=True):
        assert torch.allclose(param, own, atol=1e-6)


@pytest.mark.parametrize("size", [0.1, 10.0])
def test_gradients_are_clipped_as_torch_does(size):
    grads = [size * torch.randn(3), None, size * torch.randn(2, 2)]
    params = [torch.zeros(3), torch.zeros(1), torch.zeros(2, 2)]
    for param, grad in zip(params, grads, strict=True):
        param.grad = None if grad is None else grad.clone()
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    clipped = clip_norm(grads, 1.0)
    assert clipped[1] is None
    assert torch.allclose(clipped[0], params[0].grad) and torch.allclose(clipped[2], params[2].grad)


@needs_compiler
def test_a_restored_optimizer_goes_on_from_its_own_state(make_policy, make_buffer):
    policy = make_policy(*CLONES)
    compiled = CompiledStep(policy)
    update(policy, make_buffer(*CLONES[1:]), times=EAGER_STEPS)
    (optim,) = policy.optimizers.values()
    optim.load_state_dict(copy.deepcopy(optim.state_dict()))
    compiled._refresh()
    (adam,) = compiled._adams
    for param, mean in zip(adam.params, adam.means, strict=True):
        assert optim.state[param]["exp_avg"] is mean
    assert [float(step) for step in adam.steps] == [EAGER_STEPS] * len(adam.steps)


@needs_compiler
def test_a_copy_is_not_compiled(make_policy, make_buffer):
    policy = make_policy(*CLONES)
    policy.compile_step()
    other = copy.deepcopy(policy)
    assert other._compiled is None
    update(other, make_buffer(*CLONES[1:]), times=3)


@needs_compiler
def test_another_optimizer_is_refused(make_policy):
    policy = make_policy(*CLONES)
    policy.optimizers["actor"] = torch.optim.SGD(policy.actor.parameters(), lr=0.1)
    with pytest.raises(InputError, match="expected Adam or AdamW .* for actor .* got SGD"):
        policy.compile_step()


@needs_compiler
def test_what_cannot_be_compiled_is_named(make_policy, make_buffer):
    policy = make_policy(*CLONES)
    forward = policy.actor.forward

    def broken(*args):
        torch._dynamo.graph_break()
        return forward(*args)

    policy.actor.forward = broken
    policy.compile_step()
    with pytest.raises(InputError, match="expected a gradient step that torch.compile can follow"):
        update(policy, make_buffer(*CLONES[1:]), times=EAGER_STEPS + 1)


def test_without_a_compiler_there_is_one_sentence(make_policy, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"expected a C\+\+ compiler .* found none"):
        make_policy("bc").compile_step()


@needs_compiler
def test_an_older_torch_is_named(make_policy, monkeypatch):
    monkeypatch.delattr(torch._dynamo, "config")
    monkeypatch.setattr(torch._dynamo, "config", object(), raising=False)
    with pytest.raises(InputError, match="expected a torch that can compile gradients too"):
        make_policy("bc").compile_step()
