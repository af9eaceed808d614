"""Products in gradient steps: faster where they are as exact, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

from tianshou_ext import processor
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
