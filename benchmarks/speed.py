"""Gradient steps per second of our DiscreteCQL beside Tianshou's own, sampling included.

Same network (Nature CNN, 512, 6 actions x 200 quantiles), batch 32, same data, one process. The
two take turns, a window each; what counts is the ratio within a pair of windows. Both are driven
through ``policy.update(batch_size, buffer)``. Needs Tianshou 1.2, whose class is compared.

    python benchmarks/speed.py --threads 2
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from tianshou.data import ReplayBuffer
from torch import nn

from tianshou_ext.cli import launch
from tianshou_ext.data.writer import BufferWriter
from tianshou_ext.errors import InputError
from tianshou_ext.policy import DiscreteCQLPolicy
from tianshou_ext.tianshou_api import LINE, training_step

NUM_ACTIONS, NUM_QUANTILES = 6, 200


@dataclass
class Args:
    """Compare gradient steps per second with Tianshou's DiscreteCQL."""

    threads: int = 2
    """Threads of torch."""
    pairs: int = 7
    """Pairs of windows."""
    steps: int = 20
    """Gradient steps a window."""
    rows: int = 20_000
    """Frames in the buffer (random ones)."""
    batch_size: int = 32
    """Transitions a gradient step."""
    folder: Path = Path("/tmp")
    """Where the buffer file goes, and is removed from."""


class QuantileNet(nn.Module):
    """The network of Tianshou's example ``atari_network.QRDQN``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 3, stride=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(3136, 512),
            nn.ReLU(inplace=True),
            nn.Linear(512, NUM_ACTIONS * NUM_QUANTILES),
        )

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> Any:
        obs = torch.as_tensor(obs, dtype=torch.float32)
        return self.net(obs).view(-1, NUM_ACTIONS, NUM_QUANTILES), state


def write_frames(path: Path, rows: int) -> None:
    """Write a buffer of random frames in episodes of 1,000 steps."""
    rng = np.random.default_rng(0)
    with BufferWriter(path, rows, stack_num=4, save_obs_next=False) as writer:
        for start in range(0, rows, 1000):
            count = min(1000, rows - start)
            writer.append(
                obs=rng.integers(0, 256, (count, 84, 84), dtype=np.uint8),
                act=rng.integers(0, NUM_ACTIONS, count),
                rew=rng.integers(-1, 2, count).astype(np.float32),
                terminated=np.arange(count) == count - 1,
                truncated=np.zeros(count, bool),
            )


def main(args: Args) -> None:
    if LINE != 1:
        raise InputError("expected Tianshou 1.2, whose DiscreteCQLPolicy is compared, got 2.x")
    from tianshou.policy import DiscreteCQLPolicy as TianshouCQL

    torch.set_num_threads(args.threads)
    path = args.folder / "tianshou_ext_speed.hdf5"
    write_frames(path, args.rows)
    buffer = ReplayBuffer.load_hdf5(str(path))
    path.unlink()
    spaces = {
        "action_space": Discrete(NUM_ACTIONS),
        "observation_space": Box(0, 255, (4, 84, 84), np.uint8),
    }
    theirs_net = QuantileNet()
    theirs = TianshouCQL(
        model=theirs_net,
        optim=torch.optim.Adam(theirs_net.parameters(), lr=1e-4),
        num_quantiles=NUM_QUANTILES,
        target_update_freq=500,
        min_q_weight=10.0,
        **spaces,
    )
    # Both read the raw grey levels, so that both do the same work.
    ours = DiscreteCQLPolicy.build(**spaces, num_quantiles=NUM_QUANTILES, obs_norm="none")

    def window(policy: Any, steps: int) -> float:
        start = time.perf_counter()
        with training_step(policy):
            for _ in range(steps):
                policy.update(args.batch_size, buffer)
        return steps / (time.perf_counter() - start)

    window(ours, 5), window(theirs, 5)
    pairs = [(window(ours, args.steps), window(theirs, args.steps)) for _ in range(args.pairs)]
    ratios = [a / b for a, b in pairs]
    print(f"torch {torch.__version__}, {args.threads} threads, batch {args.batch_size}")
    for name, values in (
        ("tianshou_ext, steps/s", [a for a, _ in pairs]),
        ("Tianshou 1.2, steps/s", [b for _, b in pairs]),
        ("ratio, pair by pair", ratios),
    ):
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:24} median {middle:6.2f}  least {low:6.2f}  most {high:6.2f}")


if __name__ == "__main__":
    launch(main, Args)
