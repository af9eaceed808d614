"""Learning rates go to 0 in a line or along a cosine, also through an interruption."""

from __future__ import annotations

import math

import pytest
import torch

from tianshou_ext.errors import InputError
from tianshou_ext.schedules import CosineDecay, LinearDecay, Together


def optimizers() -> list[torch.optim.Optimizer]:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": weights[:1], "lr": 0.4}, {"params": weights[1:2], "lr": 0.8}]
    return [torch.optim.SGD(groups), torch.optim.Adam(weights[2:], lr=1.0)]


def rates(optims: list[torch.optim.Optimizer]) -> list[float]:
    return [group["lr"] for optim in optims for group in optim.param_groups]


def test_every_rate_falls_in_a_line_to_zero_and_stays_there():
    optims = optimizers()
    schedule = LinearDecay(optims, 4)
    seen = [rates(optims)]
    for _ in range(5):
        schedule.step()
        seen.append(rates(optims))
    for row, left in zip(seen, (1, 0.75, 0.5, 0.25, 0, 0), strict=True):
        assert row == pytest.approx([0.4 * left, 0.8 * left, left])


def test_a_cosine_starts_slowly_and_ends_at_zero():
    optims = optimizers()
    schedule = CosineDecay(optims, 4)
    seen = [rates(optims)]
    for _ in range(5):
        schedule.step()
        seen.append(rates(optims))
    shares = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in (0, 1, 2, 3, 4, 4)]
    for row, left in zip(seen, shares, strict=True):
        assert row == pytest.approx([0.4 * left, 0.8 * left, left])
    assert seen[-1] == [0.0, 0.0, 0.0]


def test_a_restored_cosine_goes_on_where_it_was():
    optims, others = optimizers(), optimizers()
    schedule, restored = CosineDecay(optims, 4), CosineDecay(others, 4)
    schedule.step()
    for old, new in zip(optims, others, strict=True):
        new.load_state_dict(old.state_dict())
    restored.load_state_dict(schedule.state_dict())
    restored.step()
    assert rates(others) == pytest.approx([0.2, 0.4, 0.5])


def test_a_restored_schedule_goes_on_where_it_was():
    optims = optimizers()
    schedule = LinearDecay(optims, 4)
    schedule.step()
    others = optimizers()
    restored = LinearDecay(others, 4)
    for old, new in zip(optims, others, strict=True):
        new.load_state_dict(old.state_dict())  # brings the lowered rates
    restored.load_state_dict(schedule.state_dict())
    restored.step()
    assert rates(others) == pytest.approx([0.2, 0.4, 0.5])


@pytest.mark.parametrize("decay", [LinearDecay, CosineDecay])
def test_no_steps_are_refused(decay):
    with pytest.raises(InputError, match="at least one step"):
        decay(optimizers(), 0)


def test_schedules_together_are_stepped_and_restored_as_one():
    optims, others = optimizers(), optimizers()
    schedule, restored = (
        Together(LinearDecay(both[:1], 4), LinearDecay(both[1:], 2)) for both in (optims, others)
    )
    schedule.step()
    assert rates(optims) == pytest.approx([0.3, 0.6, 0.5])
    restored.load_state_dict(schedule.state_dict())
    restored.step()
    assert rates(others) == pytest.approx([0.2, 0.4, 0.0])
