"""Products in gradient steps: faster where they are as exact, and nothing left behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract import SETTINGS, update

from tianshou_ext import processor
from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import EnsembleCritic
from tianshou_ext.policy import BCPolicy
from tianshou_ext.processor import fast_products
from tianshou_ext.tianshou_api import training_step

CPU = torch.device("cpu")


@pytest.fixture
def chosen(monkeypatch):
    """As on a processor whose products by oneDNN are exact."""
    monkeypatch.setattr(processor, "_onednn_is_exact_here", lambda: True)


def test_products_are_chosen_for_the_gradient_step_only(
    chosen, monkeypatch, cartpole, cartpole_buffer
):
    policy = BCPolicy.build(cartpole.observation_space, cartpole.action_space, hidden_sizes=(8,))
    seen = []
    step = policy.gradient_step

    def watched(batch):
        seen.append(torch.get_float32_matmul_precision())
        return step(batch)

    policy.gradient_step = watched
    with training_step(policy):
        policy.update(sample_size=8, buffer=cartpole_buffer)
    assert seen == ["medium"]
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_step_that_fails_leaves_torch_as_it_was(chosen):
    with pytest.raises(ZeroDivisionError), fast_products(CPU):
        raise ZeroDivisionError
    assert torch.get_float32_matmul_precision() == "highest"


def test_what_the_user_chose_stays(chosen):
    torch.set_float32_matmul_precision("high")
    try:
        with fast_products(CPU):
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_processor_that_would_round_is_left_alone(monkeypatch):
    processor._onednn_is_exact_here.cache_clear()
    monkeypatch.setattr(processor, "_is_amd", lambda: True)
    monkeypatch.setattr(processor, "_rounding", lambda precision: 0.7)
    with fast_products(CPU):
        assert torch.get_float32_matmul_precision() == "highest"
    processor._onednn_is_exact_here.cache_clear()


def test_other_devices_are_left_alone(chosen):
    with fast_products(torch.device("meta")):
        assert torch.get_float32_matmul_precision() == "highest"


def test_the_chosen_products_are_exact_here():
    with fast_products(CPU):
        precision = torch.get_float32_matmul_precision()
    assert processor._rounding(precision) < processor.TOLERANCE


needs_bf16 = pytest.mark.skipif(
    not processor._has_bf16(CPU), reason="needs a processor with instructions for bfloat16"
)


@needs_bf16
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_steps_in_bf16_learn_nearly_the_same(setting, make_policy, make_buffer):
    exact, rounded = make_policy(*setting.kinds), make_policy(*setting.kinds)
    rounded.set_precision("bf16")
    buffer = make_buffer(*setting.kinds[1:])
    (a, *_), (b, *_) = update(exact, buffer, times=3), update(rounded, buffer, times=3)
    assert a.keys() == b.keys()
    for key in a:
        assert np.isclose(a[key], b[key], rtol=0.1, atol=0.1), (key, a[key], b[key])
    assert any(a[key] != b[key] for key in a)
    for parameter in rounded.parameters():
        assert parameter.dtype == torch.float32
        assert torch.isfinite(parameter).all()


@needs_bf16
def test_values_in_bf16_keep_the_digits_of_float32():
    """Rounded to bfloat16 a value of 1000.5 would be 1000."""
    net = EnsembleCritic((3,), 1, (8,), 2)
    torch.nn.init.constant_(net.members[-1].bias, 1000.5)
    torch.nn.init.zeros_(net.members[-1].weight)
    with processor.arithmetic(CPU, "bf16"):
        values = net(torch.randn(4, 3), torch.randn(4, 1))
        several = net.values(torch.randn(4, 3), torch.randn(4, 5, 1))
    assert values.dtype == several.dtype == torch.float32
    assert (values == 1000.5).all() and (several == 1000.5).all()


@needs_bf16
def test_a_step_in_bf16_sees_the_weights_that_it_has_just_changed():
    """TD3+BC's actor asks the critic after the critic's step."""
    x = torch.randn(4, 8)
    layer = torch.nn.Linear(8, 8)
    with processor.arithmetic(CPU, "bf16"):
        before = layer(x)
        with torch.no_grad():
            layer.weight.add_(1.0)
        assert not torch.equal(before, layer(x))


@pytest.mark.parametrize(
    ("precision", "sentence"),
    [("fp16", "expected one of fp32, bf16 as precision"), ("bf16", "expected a processor with")],
)
def test_a_precision_that_is_not_there_gets_one_sentence(
    precision, sentence, make_policy, monkeypatch
):
    monkeypatch.setattr(processor, "_has_bf16", lambda device: False)
    policy = make_policy("bc", "vector", "continuous")
    with pytest.raises(InputError, match=sentence):
        policy.set_precision(precision)
    assert policy.precision == "fp32"
