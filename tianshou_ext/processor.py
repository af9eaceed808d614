"""What a CPU, and the libraries on it, are told while a policy learns."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from tianshou_ext.errors import InputError

Precision = Literal["fp32", "bf16"]
PRECISIONS = get_args(Precision)
PROBE = 256
"""Rows and columns of the matrices that are multiplied to see how exact products are."""
TOLERANCE = 1e-3
"""Of the entries of this product, up to 14; of factors in bfloat16 they would be 0.7 off."""


def keep_freed_memory() -> None:
    """Let the process keep freed pieces of up to 32 MB for its next allocations.

    Else glibc returns each to the system, which clears it page by page when it is wanted again; the
    activations of CQL's critics are 16 MB each, at every step. Elsewhere than on glibc: nothing.
    """
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 1 << 25)
        mallopt(trim_threshold, 1 << 30)


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Let the CPU take numbers below 1e-38 for zero.

    Adam's averages of vanished gradients decay into such numbers, on which a CPU is slow: a third
    of a discrete CQL step on frames went into them after 5,000 steps.
    """
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # numpy warns if it first looks at a type's range afterwards
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def check_precision(device: torch.device, precision: str) -> None:
    """Check that a processor can compute in a precision.

    :raises InputError: if it has no instructions for it, or there is no such precision.
    """
    if precision not in PRECISIONS:
        raise InputError(f"expected one of {', '.join(PRECISIONS)} as precision, got {precision!r}")
    if precision == "bf16" and not _has_bf16(device):
        raise InputError(
            f"expected a processor with instructions for bfloat16 as {device}, found none; leave "
            "precision at fp32"
        )


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # not in older torch
    return device.type == "cpu" and bool(asked())


def has_bf16_units(device: torch.device) -> bool:
    """Whether it is a CPU with units for products in bfloat16 (AMX)."""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # not in older torch
    return device.type == "cpu" and bool(asked())


@contextlib.contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """Compute in a precision, by ``fast_products``.

    :param precision: with ``bf16`` the factors of products are rounded to bfloat16, and so are
        hidden layers; weights, optimizers and the answers of our networks stay in float32.
    """
    rounded: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if precision == "bf16":
        # Weights change within a step, so their rounded copies must not be kept.
        rounded = torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    with fast_products(device), rounded:
        yield


@contextlib.contextmanager
def fast_products(device: torch.device) -> Iterator[None]:
    """Let products of float32 matrices on an AMD processor take half the time, as exact as before.

    torch multiplies such matrices by MKL, which took twice the time of oneDNN where it was measured
    (docs/benchmarks.md), and by oneDNN only where the product may be rounded to bfloat16.
    Processors with units for that (AMX) would round; others do not, so whether this one does is
    tried once. What a user has chosen by ``torch.set_float32_matmul_precision`` stays.

    :param device: of the matrices.
    """
    if device.type != "cpu" or not _onednn_is_exact():
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def _onednn_is_exact() -> bool:
    """Whether oneDNN is the faster one here and does not round, and torch is as it was."""
    try:
        untouched = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by torch.backends, of which this function knows nothing
        return False
    return untouched and _onednn_is_exact_here()


@functools.cache
def _onednn_is_exact_here() -> bool:
    return _is_amd() and _rounding("medium") < TOLERANCE


def _is_amd() -> bool:
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:  # no Linux
        about = platform.processor()
    return "AuthenticAMD" in about


def _rounding(precision: str) -> float:
    """Return how far off the largest error of a product of float32 matrices is.

    :param precision: as ``torch.set_float32_matmul_precision`` takes it.
    """
    one = torch.arange(float(PROBE**2)).view(PROBE, PROBE).sin()
    other = 10.0 * one.t().contiguous().cos()
    exact = one.double() @ other.double()
    torch.set_float32_matmul_precision(precision)
    try:
        return float((one @ other - exact).abs().max())
    finally:
        torch.set_float32_matmul_precision("highest")
