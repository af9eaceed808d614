"""Decision Transformer: gradient steps and acting steps per second, beside others.

Contestants: ours; the plain loop below, written as single-file libraries write it (one network of
torch's own layers, windows cut out of numpy arrays one by one, the whole context read again at each
step); d3rlpy, where it is installed. All have K = 20, 3 layers, 1 head, width 128, dropout 0.1,
batches of 64 windows, AdamW with clipping and warm-up. For learning also the products: the matrix
products of our own steps and nothing else.

Acting is in episodes of 1,000 steps, once in one environment and once in several at a time. The
plain loop reads all environments in one batch; d3rlpy has no batches, so one after the other.

    python benchmarks/speed_dt.py --threads 2 --json speed_dt.json
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import ACT_DIM, OBS_DIM, SPACES
from speed_continuous import (
    COMPILED,
    EPISODE,
    ROUNDED,
    Contestants,
    Data,
    Run,
    measure,
    products,
    report,
    updates,
)
from tianshou.data import Batch
from torch import Tensor, nn

from tianshou_ext.cli import launch
from tianshou_ext.policy import DecisionTransformerPolicy
from tianshou_ext.tianshou_api import training_step

K, LAYERS, WIDTH, DROPOUT, SCALE, BATCH = 20, 3, 128, 0.1, 1000.0, 64
LR, DECAY, WARM_UP, CLIP, TARGET = 1e-4, 1e-4, 10_000, 0.25, 3600.0


@dataclass
class Args:
    """Compare speed on data of HalfCheetah's shape."""

    threads: int = 2
    """Threads of torch."""
    pairs: int = 7
    """Rounds; each contestant has a window in each."""
    seconds_per_window: float = 2.0
    """Length of a window, about."""
    steps: int | None = None
    """Steps a window, instead of its length."""
    rows: int = 200_000
    """Transitions, random ones, in episodes of 1,000 that time out."""
    envs: int = 10
    """Environments that are played at a time."""
    compile: bool = False
    """Measure our gradient steps compiled too."""
    bf16: bool = False
    """Measure them with hidden layers in bfloat16 too."""
    json: Path | None = None
    """Where to write all rates."""


# ---- the plain loop -----------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 1, DROPOUT, batch_first=True)
        self.drop = nn.Dropout(DROPOUT)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(DROPOUT)
        )
        self.register_buffer("later", torch.triu(torch.ones(3 * K, 3 * K), 1).bool())

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        n = self.norm1(x)
        later = self.later[: x.shape[1], : x.shape[1]]
        mixed = self.attention(n, n, n, padding, attn_mask=later, need_weights=False)[0]
        x = x + self.drop(mixed)
        return x + self.mlp(self.norm2(x))


class PlainTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Embedding(EPISODE, WIDTH)
        self.embed_return = nn.Linear(1, WIDTH)
        self.embed_obs, self.embed_act = nn.Linear(OBS_DIM, WIDTH), nn.Linear(ACT_DIM, WIDTH)
        self.norm, self.last_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.drop = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Sequential(nn.Linear(WIDTH, ACT_DIM), nn.Tanh())

    def forward(self, obs: Tensor, act: Tensor, rtg: Tensor, time: Tensor, mask: Tensor) -> Tensor:
        when = self.time(time)
        parts = [self.embed_return(rtg), self.embed_obs(obs), self.embed_act(act)]
        x = torch.stack([part + when for part in parts], dim=2).flatten(1, 2)
        x = self.drop(self.norm(x))
        padding = (mask == 0).repeat_interleave(3, dim=1)
        for block in self.blocks:
            x = block(x, padding)
        out: Tensor = self.head(self.last_norm(x[:, 1::3]))
        return out


class PlainLoop:
    """Learns from and acts on what single-file libraries do."""

    def __init__(self, data: Data) -> None:
        self.model = PlainTransformer()
        self.optim = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=DECAY)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optim, lambda step: min((step + 1) / WARM_UP, 1.0)
        )
        self.rng = np.random.default_rng(0)
        cuts = np.flatnonzero(data.truncated) + 1
        columns = [np.split(column, cuts[:-1]) for column in (data.obs, data.act, data.rew)]
        self.episodes = [
            (obs, act, rew[::-1].cumsum()[::-1].copy())
            for obs, act, rew in zip(*columns, strict=True)
        ]
        lengths = np.array([len(act) for _, act, _ in self.episodes])
        self.chances = lengths / lengths.sum()

    def sample(self) -> list[Tensor]:
        rows: list[list[np.ndarray[Any, Any]]] = [[], [], [], [], []]
        for k in self.rng.choice(len(self.episodes), BATCH, p=self.chances):
            obs, act, rtg = self.episodes[k]
            start = self.rng.integers(len(act))
            real = len(act[start : start + K])

            def pad(values: np.ndarray[Any, Any], real: int = real) -> np.ndarray[Any, Any]:
                return np.pad(values, [(0, K - real)] + [(0, 0)] * (values.ndim - 1))

            rows[0].append(pad(obs[start : start + K]))
            rows[1].append(pad(act[start : start + K]))
            rows[2].append(pad(rtg[start : start + K, None] / SCALE))
            rows[3].append(pad(np.arange(start, start + real)))
            rows[4].append(pad(np.ones(real, np.float32)))
        return [torch.from_numpy(np.stack(column)) for column in rows]

    def update(self) -> None:
        obs, act, rtg, time, mask = self.sample()
        pred = self.model(obs, act, rtg, time, mask)
        loss = ((pred - act).square() * mask.unsqueeze(-1)).mean()
        self.optim.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optim.step()
        self.schedule.step()

    def player(self, envs: int) -> Callable[[np.ndarray[Any, Any]], Any]:
        """Return what acts at one observation of each environment after the other, (R, D)."""
        obs = torch.zeros(envs, EPISODE, OBS_DIM)
        act = torch.zeros(envs, EPISODE, ACT_DIM)
        rtg = torch.full((envs, EPISODE, 1), TARGET / SCALE)
        time = torch.arange(EPISODE).expand(envs, -1)
        step = 0

        @torch.no_grad()
        def play(seen: np.ndarray[Any, Any]) -> Any:
            nonlocal step
            obs[:, step] = torch.from_numpy(seen)
            if step:
                rtg[:, step] = rtg[:, step - 1] - 1.0 / SCALE
            now = slice(max(0, step + 1 - K), step + 1)
            mask = torch.ones(envs, now.stop - now.start)
            pred = self.model(obs[:, now], act[:, now], rtg[:, now], time[:, now], mask)
            act[:, step] = pred[:, -1]
            step = (step + 1) % EPISODE
            return act[:, step - 1].numpy()

        return play


# ---- contestants --------------------------------------------------------------------------


def ours_player(policy: DecisionTransformerPolicy, envs: int) -> Callable[[Any], Any]:
    state, step = None, 0
    pays, goes_on = np.ones(envs), np.zeros(envs, bool)

    def play(seen: np.ndarray[Any, Any]) -> Any:
        nonlocal state, step
        result = policy(Batch(obs=seen, info={}), state)
        policy.record(result.state, result.act, pays, goes_on)
        step = (step + 1) % EPISODE
        state = result.state if step else None
        return result.act

    return play


def d3rlpy_algo() -> Any:
    from d3rlpy.algos import DecisionTransformerConfig
    from d3rlpy.models.encoders import VectorEncoderFactory
    from d3rlpy.optimizers import AdamWFactory

    algo = DecisionTransformerConfig(
        batch_size=BATCH,
        context_size=K,
        max_timestep=EPISODE,
        num_layers=LAYERS,
        encoder_factory=VectorEncoderFactory([WIDTH], exclude_last_activation=True),
        optim_factory=AdamWFactory(weight_decay=DECAY, clip_grad_norm=CLIP),
    ).create(device=False)
    algo.create_impl((OBS_DIM,), ACT_DIM)
    return algo


def d3rlpy_player(algo: Any, envs: int) -> Callable[[Any], Any]:
    players = [algo.as_stateful_wrapper(target_return=TARGET) for _ in range(envs)]
    step = 0

    def play(seen: np.ndarray[Any, Any]) -> Any:
        nonlocal step
        if step == 0:
            for player in players:
                player.reset()
        step = (step + 1) % EPISODE
        return [player.predict(one, 1.0) for player, one in zip(players, seen, strict=True)]

    return play


def acting(play: Callable[[Any], Any], envs: int) -> Run:
    """Return what plays so many steps in every environment."""
    rng = np.random.default_rng(0)
    seen = rng.standard_normal((100, envs, OBS_DIM), dtype=np.float32)

    def run(steps: int) -> None:
        for k in range(steps):
            play(seen[k % 100])

    return run


def main(args: Args) -> None:
    """Measure learning and acting; print tables, and write all rates if asked to."""
    torch.set_num_threads(args.threads)
    data = Data.random(args.rows)
    buffer = data.tianshou()
    build = DecisionTransformerPolicy.build
    policy = build(**SPACES, target_return=TARGET, obs_norm="none", dropout=DROPOUT)
    sliding = build(**SPACES, target_return=TARGET, obs_norm="none", slide=1)
    policy.metrics_interval = 1000
    plain = PlainLoop(data)
    plain.model.train()
    learning = Contestants()
    learning.runs["ours"] = updates(policy, buffer, BATCH)
    for name, asked in ((COMPILED, args.compile), (ROUNDED, args.bf16)):
        if asked:
            other = build(**SPACES, target_return=TARGET, obs_norm="none", dropout=DROPOUT)
            other.metrics_interval = 1000
            other.compile_step() if name == COMPILED else other.set_precision("bf16")
            learning.runs[name] = updates(other, buffer, BATCH)
    learning.runs["plain loop"] = lambda steps: [plain.update() for _ in range(steps)] and None
    peer = d3rlpy_algo() if importlib.util.find_spec("d3rlpy") else None
    if peer is not None:
        dataset = data.d3rlpy
        learning.runs["d3rlpy"] = lambda steps: (
            [peer.update(dataset.sample_trajectory_batch(BATCH, K)) for _ in range(steps)] and None
        )
    learning.runs["ours"](2)
    with training_step(policy):
        learning.runs["products"], learning.gflop = products(
            lambda: policy.update(sample_size=BATCH, buffer=buffer)
        )
    results = {"learning": measure(learning, args)}  # type: ignore[arg-type]
    print("\n".join(report("gradient steps", results["learning"])), flush=True)
    plain.model.eval()
    policy.eval(), sliding.eval()
    for envs in (1, args.envs):
        contestants = Contestants()
        contestants.runs["ours"] = acting(ours_player(policy, envs), envs)
        contestants.runs["ours, slide 1"] = acting(ours_player(sliding, envs), envs)
        contestants.runs["plain loop"] = acting(plain.player(envs), envs)
        if peer is not None:
            contestants.runs["d3rlpy"] = acting(d3rlpy_player(peer, envs), envs)
        name = f"acting, {envs} environments"
        results[name] = measure(contestants, args)  # type: ignore[arg-type]
        print(f"\n{name}: steps of each a second")
        print("\n".join([*report(name, results[name])][1:]), flush=True)
    if args.json is not None:
        head = {"torch": torch.__version__, "args": {k: str(v) for k, v in vars(args).items()}}
        args.json.write_text(json.dumps(head | results, default=asdict, indent=1))


if __name__ == "__main__":
    launch(main, Args)
