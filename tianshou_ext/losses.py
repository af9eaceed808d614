"""Losses that more than one method uses: pure functions that check their shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def quantile_huber_loss(quantiles: Tensor, target: Tensor) -> Tensor:
    """Quantile regression with a Huber loss of kappa 1: QR-DQN, arXiv 1710.10044, equation 10.

    Quantile i stands for the fraction (2i + 1) / 2N. Summed over the N quantiles, mean over the
    M targets, per sample.

    :param quantiles: (B, N) predicted.
    :param target: (B, M) targets, without gradient.
    :return: (B,) loss of each sample.
    :raises ValueError: if the shapes do not fit.
    """
    if quantiles.ndim != 2 or target.ndim != 2 or len(quantiles) != len(target):
        raise ValueError(
            f"expected (B, N) quantiles and (B, M) targets, got {tuple(quantiles.shape)} and "
            f"{tuple(target.shape)}"
        )
    loss: Tensor = _QuantileHuber.apply(quantiles, target)  # type: ignore[no-untyped-call]
    return loss


class _QuantileHuber(torch.autograd.Function):
    """Exact loss and gradient without the N x M table of differences.

    With u = target_j - theta_i, the Huber loss is u^2 / 2 for |u| <= 1 and |u| - 1/2 beyond, its
    derivative in theta_i is -clamp(u, -1, 1), and both are weighted by tau_i where u >= 0 and by
    1 - tau_i elsewhere. For sorted targets each of the four pieces (u < -1, < 0, <= 1, beyond) is
    a run, so sums over j are differences of prefix sums of the targets and of their squares:
    O(N log M) instead of O(N M). Sums are in double precision.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, quantiles: Tensor, target: Tensor) -> Any:
        count, num_targets = quantiles.shape[1], target.shape[1]
        tau = (torch.arange(count, dtype=torch.float64, device=quantiles.device) + 0.5) / count
        theta = quantiles.double()  # (B, N)
        y = target.double().sort(1).values  # (B, M)
        sums = functional.pad(y.cumsum(1), (1, 0))  # (B, M + 1): sums[k] adds the k least
        squares = functional.pad(y.square().cumsum(1), (1, 0))

        def inside(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            """Return the count, sum of u and sum of u^2 of the targets start..stop-1, (B, N)."""
            k = (stop - start).double()
            s1 = sums.gather(1, stop) - sums.gather(1, start)
            s2 = squares.gather(1, stop) - squares.gather(1, start)
            return k, s1 - k * theta, s2 - 2.0 * theta * s1 + k * theta.square()

        zero = torch.zeros_like(theta, dtype=torch.int64)
        low = torch.searchsorted(y, theta - 1.0)  # targets with u < -1
        mid = torch.searchsorted(y, theta)  # u < 0
        high = torch.searchsorted(y, theta + 1.0, right=True)  # u <= 1
        far_below, below = inside(zero, low), inside(low, mid)
        above, far_above = inside(mid, high), inside(high, zero + num_targets)
        loss_below = -far_below[1] - 0.5 * far_below[0] + 0.5 * below[2]
        loss_above = far_above[1] - 0.5 * far_above[0] + 0.5 * above[2]
        slope = (1.0 - tau) * (far_below[0] - below[1]) - tau * (above[1] + far_above[0])
        ctx.save_for_backward((slope / num_targets).to(quantiles.dtype))
        loss = (1.0 - tau) * loss_below + tau * loss_above
        return (loss.sum(1) / num_targets).to(quantiles.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (slope,) = ctx.saved_tensors
        return grad.unsqueeze(1) * slope, None


def expectile_loss(diff: Tensor, expectile: float) -> Tensor:
    """Asymmetric squared error: IQL, arXiv 2110.06169, equation 5.

    :param diff: (B,) ``q - v``.
    :param expectile: in (0, 1), the weight where ``diff`` is positive.
    :return: (B,) ``|expectile - 1[diff < 0]| * diff**2``.
    """
    weight = torch.where(diff < 0, 1.0 - expectile, expectile)
    return weight * diff.square()


def conservative_loss(q: Tensor, act: Tensor) -> Tensor:
    """Push down all values, push up those of the data: CQL(H), arXiv 2006.04779, equation 4.

    :param q: (B, A) values.
    :param act: (B,) int64 actions of the data.
    :return: (B,) ``logsumexp_a q(s, a) - q(s, act)``, at least 0.
    """
    return q.logsumexp(1) - q.gather(1, act.unsqueeze(1)).squeeze(1)
