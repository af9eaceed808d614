"""Rows staged as they come are the rows that staging everything at once gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tianshou.data import Batch, VectorReplayBuffer

from tianshou_ext.data.growing import GrowingReplay
from tianshou_ext.data.replay import Replay
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

GAMMA = 0.9
BUFFERS = {
    "one environment": lambda: ReplayBuffer(1000),
    "ring": lambda: ReplayBuffer(37),
    "three environments": lambda: VectorReplayBuffer(900, 3),
    "three rings": lambda: VectorReplayBuffer(48, 3),
}


class Filler:
    """Adds rows whose observation is their number, in episodes of random length and end."""

    def __init__(self, buffer: ReplayBuffer, seed: int = 0) -> None:
        self.buffer = buffer
        self.rng = np.random.default_rng(seed)
        self.count = 0

    def row(self) -> Batch:
        self.count += 1
        kind = self.rng.integers(6)
        return Batch(
            obs=np.full(2, self.count, np.float64),
            act=self.rng.uniform(-1, 1, 2),
            rew=float(self.rng.normal()),
            terminated=kind == 0,
            truncated=kind == 1,
            obs_next=np.full(2, self.count + 0.5, np.float64),
            info={},
        )

    def add(self, rows: int) -> None:
        subs = len(getattr(self.buffer, "buffers", [0]))
        for _ in range(rows):
            if subs == 1:
                self.buffer.add(self.row())
            else:
                ids = sorted(self.rng.choice(subs, self.rng.integers(1, subs + 1), replace=False))
                self.buffer.add(Batch([self.row() for _ in ids]), buffer_ids=ids)


def table(batch: Any) -> dict[float, list[float]]:
    """Return the rows of a batch by their number."""
    columns = [batch.rew, batch.terminated, batch.obs_next[:, 0], batch.discount, *batch.act.T]
    values = torch.stack(columns, 1)
    return {float(obs): row.tolist() for obs, row in zip(batch.obs[:, 0], values, strict=True)}


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("kind", BUFFERS)
def test_rows_are_those_of_a_buffer_staged_at_once(kind, n_step):
    buffer = BUFFERS[kind]()
    filler = Filler(buffer)
    filler.add(1)
    growing = GrowingReplay(buffer)
    for rows in (0, 1, 1, 5, 17, 3, 30):
        filler.add(rows)
        growing.sync()
        found = table(growing.sample(0, gamma=GAMMA, n_step=n_step))
        expected = table(Replay(buffer).sample(0, gamma=GAMMA, n_step=n_step))
        assert len(growing) == len(buffer)
        assert found.keys() == expected.keys()
        for key, row in expected.items():
            assert found[key] == pytest.approx(row, rel=1e-6)


@pytest.mark.parametrize("rows", [37, 38, 100])
def test_a_ring_that_is_full_when_it_is_staged_first_is_staged_whole(rows):
    buffer = ReplayBuffer(37)
    Filler(buffer).add(rows)
    growing = GrowingReplay(buffer)
    growing.sync()
    expected = table(Replay(buffer).sample(0))
    assert table(growing.sample(0)).keys() == expected.keys()
    assert len(growing) == 37


def test_a_buffer_that_was_reset_is_staged_anew():
    buffer = ReplayBuffer(10)
    filler = Filler(buffer)
    filler.add(4)
    growing = GrowingReplay(buffer)
    growing.sync()
    buffer.reset()
    filler.add(3)
    growing.sync()
    assert set(table(growing.sample(0))) == {5.0, 6.0, 7.0}


@pytest.mark.parametrize("added", [10, 13])
def test_a_ring_that_came_round_since_is_staged_anew(added):
    """Where it stands tells nothing: it may be where it was."""
    buffer = ReplayBuffer(10)
    filler = Filler(buffer)
    filler.add(14)
    growing = GrowingReplay(buffer)
    growing.sync()
    filler.add(added)
    growing.sync()
    assert set(table(growing.sample(0))) == {float(14 + added - k) for k in range(10)}


def test_draws_are_uniform_and_follow_their_generator():
    buffer = VectorReplayBuffer(900, 3)
    Filler(buffer).add(10)
    growing = GrowingReplay(buffer)
    growing.sync()
    first, second = (
        growing.sample(4000, torch.Generator().manual_seed(1)).obs[:, 0] for _ in range(2)
    )
    assert torch.equal(first, second)
    counts = np.unique(first.numpy(), return_counts=True)[1]
    assert len(counts) == len(buffer)
    assert counts.min() > 0.6 * 4000 / len(buffer)


def test_a_run_goes_on_with_the_same_rows_after_its_buffer_was_restored():
    buffer = VectorReplayBuffer(300, 3)
    Filler(buffer).add(40)
    growing = GrowingReplay(buffer)
    growing.sync()
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    rows = growing.sample(64, generators[0]).obs
    assert torch.equal(rows, Replay(buffer).sample(64, generators[1]).obs)


def test_nan_from_an_environment_is_named():
    buffer = ReplayBuffer(10)
    filler = Filler(buffer)
    filler.add(3)
    growing = GrowingReplay(buffer)
    growing.sync()
    bad = filler.row()
    bad.rew = float("nan")
    buffer.add(bad)
    with pytest.raises(InputError, match="NaN or infinity in row 3"):
        growing.sync()


def test_frames_and_buffers_without_next_observations_are_sampled_directly():
    frames = ReplayBuffer(5, ignore_obs_next=True)
    Filler(frames).add(2)
    assert not GrowingReplay.suits(frames)
    vectors = ReplayBuffer(5)
    Filler(vectors).add(2)
    assert GrowingReplay.suits(vectors)


def test_next_actions_are_those_of_the_same_episode():
    buffer = ReplayBuffer(200)
    Filler(buffer).add(60)
    growing = GrowingReplay(buffer, next_act=True)
    growing.sync()
    batch = growing.sample(0)
    for row in range(59):
        own = row if buffer.done[row] else row + 1
        assert batch.act_next[row].numpy() == pytest.approx(buffer.act[own], rel=1e-6)
    going_on = ~np.asarray(buffer.done[:60])
    assert batch.has_act_next.tolist() == [*going_on[:59].tolist(), False]
    assert going_on.sum() < 60
