"""Gradient steps per second of the methods for continuous actions, beside others.

Contestants, as far as they exist and are installed: ours; ours compiled, in bf16, or both; the
plain PyTorch loops of ``reference.py``; Tianshou's own class; d3rlpy's; and the products: the
matrix products of our own steps and nothing else, the floor of their arithmetic. Same data, batch
size and widths of the networks; sampling, target networks and logging included. All take turns in
one process, a window each, in an order that rotates; what counts are the ratios within a round.

    python benchmarks/speed_continuous.py --methods bc td3_bc iql cql sac_n --json speed.json
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tianshou
import torch
from peers import ACT_DIM, NUM_CRITICS, OBS_DIM, SPACES, d3rlpy_algo, tianshou_1, tianshou_2
from reference import REFERENCES, ArrayBuffer
from tianshou.data import ReplayBuffer
from torch.utils._python_dispatch import TorchDispatchMode

from tianshou_ext import processor
from tianshou_ext.cli import launch
from tianshou_ext.policy import METHODS, staging
from tianshou_ext.tianshou_api import LINE, training_step

EPISODE = 1000
OPTIONS: dict[str, dict[str, Any]] = {
    "bc": {"hidden_sizes": (256, 256), "lr": 3e-4},
    "td3_bc": {"hidden_sizes": (256, 256)},
    "iql": {"hidden_sizes": (256, 256)},
    "cql": {"hidden_sizes": (256, 256, 256)},
    "sac_n": {"hidden_sizes": (256, 256, 256), "num_critics": NUM_CRITICS},
    "bcq": {},
}
"""Of our policies, where the defaults are others."""

COMPILED, ROUNDED, BOTH = "ours, compiled", "ours, bf16", "ours, compiled bf16"
VARIANTS = ("ours", COMPILED, ROUNDED, BOTH)

Run = Callable[[int], None]
"""Takes this many gradient steps."""


@dataclass
class Args:
    """Compare gradient steps per second on data of HalfCheetah's shape."""

    methods: tuple[Literal["bc", "td3_bc", "iql", "cql", "sac_n", "bcq"], ...] = (
        "bc",
        "td3_bc",
        "iql",
        "cql",
        "sac_n",
    )
    """Methods to measure."""
    threads: int = 2
    """Threads of torch."""
    pairs: int = 7
    """Rounds; each contestant has a window in each."""
    seconds_per_window: float = 2.0
    """Length of a window, about: its steps are counted out before the first round."""
    steps: int | None = None
    """Gradient steps a window, instead of its length."""
    rows: int = 1_000_000
    """Transitions, random ones, in episodes of 1,000 that time out."""
    batch_size: int = 256
    """Transitions a gradient step."""
    log_every: int = 1000
    """Gradient steps from one look at the losses to the next; Tianshou and d3rlpy always look."""
    compile: bool = False
    """Measure our steps compiled too."""
    bf16: bool = False
    """Measure them with hidden layers in bfloat16 too; with --compile also both together."""
    fast_products: bool = True
    """Ours and the products: by oneDNN, where that is as exact; else all by torch's own choice."""
    keep_freed_memory: bool = True
    """What a policy does when it stages its data; for all contestants, being in one process."""
    json: Path | None = None
    """Where to write all rates."""


@dataclass
class Contestants:
    """The contestants of one method."""

    runs: dict[str, Run] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """Why others are not there."""
    gflop: float = 0.0
    """Of the matrix products of one of our steps."""


# ---- data ---------------------------------------------------------------------------------


@dataclass
class Data:
    """The same transitions for everyone, standard normal, so that normalisation is not needed."""

    obs: np.ndarray[Any, Any]
    act: np.ndarray[Any, Any]
    rew: np.ndarray[Any, Any]
    obs_next: np.ndarray[Any, Any]
    terminated: np.ndarray[Any, Any]
    truncated: np.ndarray[Any, Any]

    @staticmethod
    def random(rows: int) -> Data:
        rng = np.random.default_rng(0)
        obs = rng.standard_normal((rows + 1, OBS_DIM), dtype=np.float32)
        truncated = np.arange(1, rows + 1) % EPISODE == 0
        truncated[-1] = True
        return Data(
            obs=obs[:-1].copy(),
            act=rng.uniform(-1.0, 1.0, (rows, ACT_DIM)).astype(np.float32),
            rew=rng.standard_normal(rows, dtype=np.float32),
            obs_next=obs[1:].copy(),
            terminated=np.zeros(rows, bool),
            truncated=truncated,
        )

    def tianshou(self) -> ReplayBuffer:
        arrays: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return ReplayBuffer.from_data(**arrays, done=self.terminated | self.truncated)

    def arrays(self) -> ArrayBuffer:
        terminated = self.terminated.astype(np.float32)
        return ArrayBuffer(self.obs, self.act, self.rew, self.obs_next, terminated)

    @cached_property
    def d3rlpy(self) -> Any:
        from d3rlpy.dataset import MDPDataset

        return MDPDataset(
            self.obs,
            self.act,
            self.rew,
            terminals=self.terminated.astype(np.float32),
            timeouts=self.truncated.astype(np.float32),
        )


# ---- the products alone -------------------------------------------------------------------

PRODUCTS = {
    torch.ops.aten.mm: torch.mm,
    torch.ops.aten.addmm: torch.addmm,
    torch.ops.aten.bmm: torch.bmm,
    torch.ops.aten.baddbmm: torch.baddbmm,
}
RECORDED_STEPS = 2
"""So that a delayed actor is counted as often as it steps."""


@dataclass(frozen=True)
class Operand:
    """Where a product found a matrix: the same memory is the same operand again."""

    storage: tuple[int, int]  # address and bytes
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @staticmethod
    def of(tensor: torch.Tensor) -> Operand:
        storage = tensor.untyped_storage()
        return Operand(
            (storage.data_ptr(), storage.nbytes()),
            tensor.dtype,
            tuple(tensor.shape),
            tensor.stride(),
            int(tensor.storage_offset()),
        )


class ProductRecorder(TorchDispatchMode):
    """Notes the operands of every matrix product while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[Operand]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in PRODUCTS:
            operands = [Operand.of(a) for a in args if isinstance(a, torch.Tensor)]
            self.calls.append((PRODUCTS[func.overloadpacket], operands))
        return func(*args, **(kwargs or {}))


def products(update: Callable[[], Any]) -> tuple[Run, float]:
    """Return what replays the matrix products of ``update``, and their GFLOP a step."""
    with ProductRecorder() as recorder:
        for _ in range(RECORDED_STEPS):
            update()
    memory: dict[Any, torch.Tensor] = {}

    def matrix(operand: Operand) -> torch.Tensor:
        key = operand.storage, operand.dtype
        if key not in memory:
            count = operand.storage[1] // operand.dtype.itemsize
            memory[key] = torch.randn(count, dtype=operand.dtype)
        return memory[key].as_strided(operand.size, operand.stride, operand.offset)

    jobs: list[Callable[[], Any]] = []
    results: dict[tuple[int, ...], torch.Tensor] = {}
    flop = 0
    for function, operands in recorder.calls:
        given = [matrix(operand) for operand in operands]
        left, right = given[-2:]
        shape = (*left.shape[:-1], right.shape[-1])
        out = results.setdefault(shape, torch.empty(shape, dtype=left.dtype))
        jobs.append(partial(function, *given, out=out))
        flop += 2 * left.numel() * right.shape[-1]

    def run(steps: int) -> None:
        with processor.fast_products(torch.device("cpu")):
            for _ in range(steps // RECORDED_STEPS):
                for job in jobs:
                    job()

    return run, flop / RECORDED_STEPS / 1e9


# ---- contestants --------------------------------------------------------------------------


def updates(policy: Any, buffer: ReplayBuffer, batch_size: int) -> Run:
    """Return what drives one of our or of Tianshou's policies."""

    def run(steps: int) -> None:
        with training_step(policy):
            for _ in range(steps):
                policy.update(sample_size=batch_size, buffer=buffer)

    return run


def gather(method: str, args: Args, buffer: ReplayBuffer, data: Data) -> Contestants:
    """Set up everyone who has ``method``."""
    contestants = Contestants()

    def add(name: str, reason_against: str | None, make: Callable[[], Run]) -> None:
        if reason_against is None:
            contestants.runs[name] = make()
        else:
            contestants.absent[name] = reason_against

    def ours(compiled: bool = False, rounded: bool = False) -> Any:
        policy = METHODS[method].policy_class.build(**SPACES, **OPTIONS[method])
        policy.metrics_interval = args.log_every
        if compiled:
            policy.compile_step()
        if rounded:
            policy.set_precision("bf16")
        return policy

    if method not in METHODS:
        contestants.absent["ours"] = "no such method"
        return contestants
    plain = ours()
    contestants.runs["ours"] = updates(plain, buffer, args.batch_size)

    for name, asked, options in (
        (COMPILED, args.compile, {"compiled": True}),
        (ROUNDED, args.bf16, {"rounded": True}),
        (BOTH, args.compile and args.bf16, {"compiled": True, "rounded": True}),
    ):
        if asked:
            contestants.runs[name] = updates(ours(**options), buffer, args.batch_size)

    def reference() -> Run:
        loop, arrays = REFERENCES[method](OBS_DIM, ACT_DIM), data.arrays()
        loop.log_every = args.log_every

        def run(steps: int) -> None:
            for _ in range(steps):
                loop.update(arrays.sample(args.batch_size))

        return run

    add("reference", None if method in REFERENCES else "not written for this method", reference)

    peer = (tianshou_1 if LINE < 2 else tianshou_2)(method)
    add(
        f"Tianshou {tianshou.__version__}",
        None if peer is not None else "has no such method",
        lambda: updates(peer, buffer, args.batch_size),
    )

    def d3rlpy() -> Run:
        dataset = data.d3rlpy
        algo = d3rlpy_algo(method, dataset)

        def run(steps: int) -> None:
            for _ in range(steps):
                algo.update(dataset.sample_transition_batch(args.batch_size))

        return run

    installed = importlib.util.find_spec("d3rlpy") is not None
    add("d3rlpy", None if installed else "not installed", d3rlpy)

    contestants.runs["ours"](RECORDED_STEPS)  # stages the data
    with training_step(plain):
        contestants.runs["products"], contestants.gflop = products(
            lambda: plain.update(sample_size=args.batch_size, buffer=buffer)
        )
    return contestants


# ---- measuring ----------------------------------------------------------------------------


WARM_UP_STEPS = 10
"""In which data are staged and steps compiled, some of them anew when a count first changes."""


def rate(run: Run, steps: int) -> float:
    """Return gradient steps per second."""
    start = time.perf_counter()
    run(steps)
    return steps / (time.perf_counter() - start)


def window_steps(run: Run, args: Args) -> int:
    """Warm up; return an even number of steps for a window."""
    run(WARM_UP_STEPS)
    if args.steps is not None:
        return max(2, args.steps + args.steps % 2)
    count = 2
    while (measured := rate(run, count)) * 0.25 > count:
        count *= 2
    return max(2, 2 * round(measured * args.seconds_per_window / 2))


def busy_seconds() -> float | None:
    """Return the CPU time that everything on this machine has used, where Linux tells."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, stat.read_text().split()[1:11])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


@dataclass
class Summary:
    """Median and range."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Summary:
        return Summary(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        digits = 2 if self.median < 10 else 1 if self.median < 100 else 0
        return "{:8.{d}f} ({:.{d}f} to {:.{d}f})".format(*vars(self).values(), d=digits)


def measure(contestants: Contestants, args: Args) -> dict[str, Any]:
    """Let everyone take turns; return rates round by round, and ratios within the rounds."""
    names = list(contestants.runs)
    steps = {name: window_steps(run, args) for name, run in contestants.runs.items()}
    rates: dict[str, list[float]] = {name: [] for name in names}
    busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
    for turn in range(args.pairs):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            rates[name].append(rate(contestants.runs[name], steps[name]))
    foreign = None
    if busy is not None and (busy_now := busy_seconds()) is not None:
        others = busy_now - busy - (time.process_time() - own)
        foreign = max(0.0, others) / (time.perf_counter() - start)
    ratios = {
        lead: {
            name: Summary.of([a / b for a, b in zip(rates[lead], rates[name], strict=True)])
            for name in names
            if name not in VARIANTS or (name == "ours" and lead != "ours")
        }
        for lead in names
        if lead in VARIANTS
    }
    return {
        "steps_a_window": steps,
        "rates": rates,
        "rate": {name: Summary.of(values) for name, values in rates.items()},
        "ratios": ratios,
        "absent": contestants.absent,
        "gflop": contestants.gflop,
        "foreign_cores": foreign,
    }


def report(method: str, result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of one method's table."""
    load = result["foreign_cores"]
    busy = "" if load is None else f"; others kept {load:.2f} cores busy"
    yield f"\n{method}: products of {result['gflop']:.2f} GFLOP a step{busy}"
    leads = result["ratios"]
    yield f"{'':20}{'steps/s':>26}" + "".join(f"{lead + ' / this':>28}" for lead in leads)
    for name, summary in result["rate"].items():
        cells = [leads[lead].get(name, "-") for lead in leads]
        yield f"{name:20}{summary!s:>26}" + "".join(f"{cell!s:>28}" for cell in cells)
    for name, reason in result["absent"].items():
        yield f"{name:20} left out: {reason}"


def means(results: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield geometric means over the methods that a pair of contestants share."""
    pairs: dict[tuple[str, str], list[float]] = {}
    for result in results.values():
        for lead, others in result["ratios"].items():
            for name, summary in others.items():
                pairs.setdefault((lead, name), []).append(summary.median)
    for (lead, name), medians in pairs.items():
        mean = math.exp(statistics.fmean(map(math.log, medians)))
        yield f"{lead} / {name}: {mean:.2f} over {len(medians)} methods"


def main(args: Args) -> None:
    """Measure method by method; print tables, and write all rates if asked to."""
    torch.set_num_threads(args.threads)
    if not args.keep_freed_memory:
        staging.keep_freed_memory = lambda: None
    if not args.fast_products:
        processor._onednn_is_exact_here = lambda: False
    data = Data.random(args.rows)
    buffer = data.tianshou()
    head = {
        "torch": torch.__version__,
        "tianshou": tianshou.__version__,
        "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "args": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
    }
    print(f"torch {torch.__version__}, {args.threads} threads, batch {args.batch_size}")
    results: dict[str, dict[str, Any]] = {}
    for method in args.methods:
        contestants = gather(method, args, buffer, data)
        if "ours" not in contestants.runs:
            print(f"\n{method}: {contestants.absent['ours']}")
            continue
        results[method] = measure(contestants, args)
        print("\n".join(report(method, results[method])), flush=True)
    print("\nGeometric means of the median ratios\n" + "\n".join(means(results)))
    if args.json is not None:
        args.json.write_text(json.dumps(head | {"methods": results}, default=asdict, indent=1))


if __name__ == "__main__":
    launch(main, Args)
