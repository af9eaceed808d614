"""The shared losses against explicit tables in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tianshou_ext.losses import conservative_loss, expectile_loss, quantile_huber_loss


def table(quantiles: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return loss (B,) and gradient (B, N) from every pair of a quantile and a target."""
    batch, count = quantiles.shape
    loss, gradient = np.zeros(batch), np.zeros((batch, count))
    for b in range(batch):
        for i in range(count):
            tau = (2 * i + 1) / (2 * count)
            for y in target[b].astype(np.float64):
                u = y - float(quantiles[b, i])
                huber = 0.5 * u * u if abs(u) <= 1 else abs(u) - 0.5
                weight = abs(tau - (u < 0))
                loss[b] += weight * huber / target.shape[1]
                gradient[b, i] -= weight * max(-1.0, min(1.0, u)) / target.shape[1]
    return loss, gradient


def check(quantiles: np.ndarray, target: np.ndarray, rtol: float = 1e-6) -> None:
    predicted = torch.from_numpy(quantiles).requires_grad_(True)
    loss = quantile_huber_loss(predicted, torch.from_numpy(target))
    expected, gradient = table(quantiles, target)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=rtol, atol=1e-6)
    weights = torch.linspace(-1.0, 2.0, len(loss), dtype=loss.dtype)
    (loss * weights).sum().backward()
    expected_gradient = gradient * weights.numpy()[:, None]
    np.testing.assert_allclose(predicted.grad.numpy(), expected_gradient, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "num_targets"), [(1, 1), (8, 8), (5, 11), (11, 5), (1, 7), (7, 1)]
)
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_quantile_huber_is_that_of_the_table(count, num_targets, spread):
    rng = np.random.default_rng(count * 100 + num_targets)
    quantiles = (spread * rng.normal(size=(6, count))).astype(np.float32)
    check(quantiles, (spread * rng.normal(size=(6, num_targets))).astype(np.float32), rtol=1e-5)


def test_quantile_huber_with_ties_and_at_its_kinks():
    """Differences of exactly -1, 0 and 1, and targets that repeat."""
    quantiles = np.array([[0.0, 0.0, 1.0, 2.0], [3.0, 3.0, 3.0, 3.0]], np.float32)
    target = np.array([[0.0, 1.0, 1.0, 2.0, -1.0], [3.0, 4.0, 2.0, 3.0, 4.0]], np.float32)
    check(quantiles, target)
    check(quantiles, quantiles)


def test_quantile_huber_of_a_perfect_point_prediction_is_zero():
    ones = torch.ones(3, 4)
    assert quantile_huber_loss(ones, ones).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("level", [1e3, 1e5, -1e5])
def test_quantile_huber_keeps_its_precision_at_large_values(level):
    """Prefix sums of squares lose digits in single precision; returns of Atari reach 1e5."""
    rng = np.random.default_rng(0)
    quantiles = (level + rng.integers(-8, 9, (4, 32)) / 8).astype(np.float32)
    target = (level + rng.integers(-8, 9, (4, 32)) / 8).astype(np.float32)
    check(quantiles, target, rtol=1e-4)


def test_quantile_huber_gives_the_target_no_gradient_and_keeps_the_dtype():
    quantiles = torch.randn(2, 3, requires_grad=True)
    target = torch.randn(2, 3, requires_grad=True)
    loss = quantile_huber_loss(quantiles, target)
    loss.sum().backward()
    assert loss.dtype == quantiles.grad.dtype == torch.float32
    assert target.grad is None


@pytest.mark.parametrize(
    ("quantiles", "target"), [((4,), (4,)), ((4, 3), (5, 3)), ((4, 3, 1), (4, 3)), ((4, 3), (4,))]
)
def test_quantile_huber_refuses_other_shapes(quantiles, target):
    with pytest.raises(ValueError, match="expected .B, N. quantiles"):
        quantile_huber_loss(torch.zeros(quantiles), torch.zeros(target))


def test_expectile_weighs_positive_differences_by_the_expectile():
    diff = torch.tensor([2.0, -2.0, 0.0, 0.5])
    assert torch.allclose(expectile_loss(diff, 0.9), torch.tensor([3.6, 0.4, 0.0, 0.225]))


def test_expectile_of_a_half_is_half_the_squared_error():
    diff = torch.randn(50)
    assert torch.equal(expectile_loss(diff, 0.5), 0.5 * diff**2)


def test_expectile_regression_ends_between_mean_and_maximum():
    """The minimiser solves e * sum(x - v)+ = (1 - e) * sum(v - x)+."""
    data = torch.tensor([0.0, 1.0, 2.0, 10.0], dtype=torch.float64)
    value = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optim = torch.optim.SGD([value], lr=0.1)
    for _ in range(500):
        optim.zero_grad()
        expectile_loss(data - value, 0.9).sum().backward()
        optim.step()
    v = value.item()
    above, below = (data - v).clamp(min=0).sum().item(), (v - data).clamp(min=0).sum().item()
    assert data.mean() < v < data.max()
    assert 0.9 * above == pytest.approx(0.1 * below, rel=1e-6)


def test_conservative_loss_by_hand():
    q = torch.tensor([[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]])
    loss = conservative_loss(q, torch.tensor([1, 2]))
    first = math.log(math.exp(1) + math.exp(2) + math.exp(-1)) - 2.0
    assert loss.tolist() == pytest.approx([first, math.log(3)], rel=1e-6)


def test_conservative_loss_is_never_negative():
    q = 100 * torch.randn(200, 5)
    best = q.argmax(1)
    assert (conservative_loss(q, best) >= 0).all()
    assert (conservative_loss(q, best) <= conservative_loss(q, (best + 1) % 5)).all()


def test_conservative_gradient_pushes_up_the_data_only():
    q = torch.zeros(1, 4, requires_grad=True)
    conservative_loss(q, torch.tensor([2])).sum().backward()
    assert torch.allclose(q.grad, torch.tensor([[0.25, 0.25, -0.75, 0.25]]))
