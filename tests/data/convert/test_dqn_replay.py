"""DQN Replay: against a small logger that works as Dopamine's, whose transitions are known."""

from __future__ import annotations

import gzip
import io
import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tianshou_ext.data.convert import dqn_replay_plan
from tianshou_ext.data.convert.dqn_replay import convert
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.data.replay import Replay
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

SAMPLES = Path(__file__).parents[3].parent / "shared/data/formats"
needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="needs the shared samples")
NAMES = ("observation", "action", "reward", "terminal")
KEYS = ("obs", "act", "rew", "terminated")
SIDE = 6


class Logger:
    """A circular buffer that logs itself when its last slot is still to be filled."""

    def __init__(self, folder: Path, capacity: int, seed: int = 0) -> None:
        self.folder, self.capacity = folder, capacity
        folder.mkdir(parents=True)
        rng = np.random.default_rng(seed)  # as np.empty: whatever was in memory
        self.store = [
            rng.integers(0, 256, (capacity, SIDE, SIDE)).astype(np.uint8),
            rng.integers(-(2**30), 2**30, capacity).astype(np.int32),
            rng.normal(size=capacity).astype(np.float32),
            rng.integers(0, 200, capacity).astype(np.uint8),
        ]
        self.added, self.logs, self.missed = 0, 0, False
        self.started = False
        self.log_of: list[int] = []  # of every real row: cycle it was added in
        self.rows: list[tuple[Any, ...]] = []

    def add(self, *row: Any) -> None:
        if not self.started or self.rows[-1][3]:
            for _ in range(3):
                self._add(0, 0, 0, 0)
                self.missed |= self.added % self.capacity == self.capacity - 1
        self.started = True
        self.log_of.append(self.added // self.capacity)
        self._add(*row)
        self.rows.append(row)
        if self.added % self.capacity == self.capacity - 1:
            self.save(self.added)

    def _add(self, *row: Any) -> None:
        for column, value in zip(self.store, row, strict=True):
            column[self.added % self.capacity] = value
        self.added += 1

    def save(self, add_count: int) -> None:
        k = self.logs
        for name, column in zip(NAMES, self.store, strict=True):
            save(self.folder / f"$store$_{name}_ckpt.{k}.gz", column)
        save(self.folder / f"add_count_ckpt.{k}.gz", np.array(add_count))
        save(self.folder / f"invalid_range_ckpt.{k}.gz", np.arange(5))
        with gzip.open(self.folder / f"episode_end_indices_ckpt.{k}.gz", "wb") as file:
            pickle.dump(Trap(), file)
        self.logs += 1

    def save_last(self) -> None:
        self.save(self.added % self.capacity)


class Trap:
    """Fails when it is unpickled."""

    def __reduce__(self) -> Any:
        return (eval, ("1/0",))


def save(path: Path, array: Any) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        np.save(file, array)


def play(
    logger: Logger,
    steps: int,
    seed: int = 0,
    mean: float = 20,
    black: float = 0.2,
    miss: bool = False,
) -> None:
    """Add random steps; some of the frames are black, as real ones can be.

    :param miss: let padding pass the place where a log is made, so that this log is missing.
    """
    rng = np.random.default_rng(seed)
    for step in range(steps):
        frame = rng.integers(0, 256, (SIDE, SIDE)).astype(np.uint8) * (rng.random() > black)
        is_last = rng.random() < 1 / mean and step < steps - 1
        if not miss and (logger.added + 1) % logger.capacity >= logger.capacity - 4:
            is_last = False
        logger.add(frame, rng.integers(0, 4), rng.integers(-1, 2), int(is_last))


def columns(rows: list[tuple[Any, ...]]) -> dict[str, Any]:
    return {key: np.array([row[k] for row in rows]) for k, key in enumerate(KEYS)}


def assert_holds(path: Path, rows: list[tuple[Any, ...]], truncated: Any = None) -> None:
    expected = columns(rows)
    expected["truncated"] = np.zeros(len(rows), bool) if truncated is None else truncated
    for buffer in (load_buffer(path), ReplayBuffer.load_hdf5(str(path))):
        assert len(buffer) == buffer.maxsize == len(rows)
        assert (buffer.stack_num, buffer._save_obs_next) == (4, False)
        for key, values in expected.items():
            assert np.array_equal(buffer._meta[key], values), key
        assert buffer.obs.dtype == np.uint8 and buffer.act.dtype == np.int64


def last_only(count: int) -> Any:
    return np.arange(count) == count - 1


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: Any) -> None:
    monkeypatch.setattr(dqn_replay_plan, "BLOCK_BYTES", 7 * SIDE * SIDE)


@pytest.mark.parametrize("seed", range(6))
def test_every_step_that_was_played_comes_back_in_order(seed: int, tmp_path: Path):
    logger = Logger(tmp_path / "logs", 50, seed)
    play(logger, 180 + 13 * seed, seed)
    logger.save_last()
    report = convert(tmp_path / "logs", tmp_path / "b", progress=False)
    assert not logger.missed
    assert_holds(tmp_path / "b", logger.rows, last_only(len(logger.rows)))
    assert report.truncated == 1 and not report.faults


def test_missed_logs_cut_episodes_wherever_they_are(tmp_path: Path):
    missed = 0
    for seed in range(4):
        logger = Logger(tmp_path / f"logs{seed}", 50, seed)
        play(logger, 300, seed, mean=8, miss=True)
        logger.save_last()
        report = convert(tmp_path / f"logs{seed}", tmp_path / "b", progress=False)
        assert_is_part(tmp_path / "b", logger)
        assert logger.missed or report.rows == 300
        missed += logger.missed
    assert missed > 1


def assert_is_part(path: Path, logger: Logger) -> None:
    """Check that rows are some of those played, and that chains break where some are missing."""
    buffer = load_buffer(path)
    found, rows = ([one[key] for key in KEYS] for one in (buffer._meta, columns(logger.rows)))
    place = -1
    for row in range(len(buffer)):
        before = place
        place += 1
        while not all(np.array_equal(f[row], r[place]) for f, r in zip(found, rows, strict=True)):
            place += 1
        if row and place != before + 1:
            assert buffer.done[row - 1], row
    assert buffer.done[-1]


def test_a_missed_log_cuts_the_episode(tmp_path: Path):
    logger = Logger(tmp_path / "logs", 20)
    rng = np.random.default_rng(0)

    def step(terminal: int = 0) -> None:
        frame = rng.integers(1, 256, (SIDE, SIDE)).astype(np.uint8)
        logger.add(frame, int(rng.integers(4)), 1, terminal)

    while logger.added < 38:  # the second log would be made at 39
        step(int(logger.added == 37))
    while logger.added < 59:
        step()
    assert logger.logs == 2
    report = convert(tmp_path / "logs", tmp_path / "b", progress=False)
    # Rows 0 to 18 of the first cycle and of the third: the rest stands in no log.
    cycles = np.array(logger.log_of)
    first = np.flatnonzero(cycles == 0)[:-1]
    third = np.flatnonzero(cycles == 2)
    kept = [logger.rows[k] for k in [*first, *third]]
    truncated = np.isin(np.arange(len(kept)), [len(first) - 1, len(kept) - 1])
    assert_holds(tmp_path / "b", kept, truncated)
    assert any("goes on with none" in note for note in report.notes)


def test_a_missed_log_before_the_last_one_is_seen_too(tmp_path: Path):
    logger = Logger(tmp_path / "logs", 20)
    play(logger, 16, mean=1e9, black=0)
    assert logger.logs == 1
    logger.added += 20  # a cycle that was not logged
    for column in logger.store:
        column[:] = np.random.default_rng(5).integers(0, 2, column.shape)
    play(logger, 5, seed=1, mean=1e9, black=0)
    logger.save_last()
    convert(tmp_path / "logs", tmp_path / "b", progress=False)
    kept = [*logger.rows[:16], *logger.rows[17:]]
    assert_holds(tmp_path / "b", kept, np.isin(np.arange(20), [15, 19]))


@pytest.mark.parametrize("added", [98, 99, 100, 101, 103])
def test_the_last_log_near_the_end_of_a_cycle(added: int, tmp_path: Path):
    logger = Logger(tmp_path / "logs", 50)
    play(logger, added - 3, mean=1e9)
    logger.save_last()
    report = convert(tmp_path / "logs", tmp_path / "b", progress=False)
    assert logger.added == added
    assert_holds(tmp_path / "b", logger.rows, last_only(added - 3))
    assert any("repeats" in note for note in report.notes) == (added == 99)


def test_only_one_log_leaves_its_last_slot_out(tmp_path: Path):
    logger = Logger(tmp_path / "logs", 50)
    play(logger, 46, mean=1e9)
    assert logger.logs == 1
    convert(tmp_path / "logs", tmp_path / "b", progress=False)
    assert_holds(tmp_path / "b", logger.rows, last_only(46))


@pytest.mark.parametrize("seed", range(3))
def test_checkpoints_are_chosen_and_cut(seed: int, tmp_path: Path):
    logger = Logger(tmp_path / "logs", 50, seed)
    play(logger, 500, seed, mean=30)
    for chosen, first, last in (("2", 0, 2), ("1:3", 1, 3), ("2:", 2, logger.logs), (":1", 0, 1)):
        convert(tmp_path / "logs", tmp_path / "b", checkpoints=chosen, progress=False)
        assert read_provenance(tmp_path / "b")["checkpoints"] == list(range(first, last))
        assert_is_part(tmp_path / "b", logger)
        assert abs(len(load_buffer(tmp_path / "b")) - 50 * (last - first)) < 9 * (last - first) + 9
    for bad in ("x", "3:1", "70:", "-1"):
        with pytest.raises(InputError, match="checkpoints"):
            convert(tmp_path / "logs", tmp_path / "b", checkpoints=bad, progress=False)


def test_padding_that_the_log_before_began(tmp_path: Path):
    for shift in range(4):
        logger = Logger(tmp_path / f"logs{shift}", 50)
        play(logger, 42 + shift, mean=1e9, black=0)
        frame = np.ones((SIDE, SIDE), np.uint8)
        logger.add(frame, 1, 1, 1)
        play(logger, 60, seed=1, mean=1e9, black=0)
        logger.save_last()
        assert logger.missed == (shift < 3)
        for chosen in (None, "1:"):
            path = tmp_path / "b"
            convert(tmp_path / f"logs{shift}", path, checkpoints=chosen, progress=False)
            buffer = load_buffer(path)
            assert buffer.obs.reshape(len(buffer), -1).any(1).all()
            assert_is_part(path, logger)


def test_a_part_is_whole_episodes(tmp_path: Path):
    logger = Logger(tmp_path / "logs", 50)
    play(logger, 400, 3, mean=12)
    logger.save_last()
    assert logger.logs > 7
    ends = np.flatnonzero([row[3] for row in logger.rows])
    convert(tmp_path / "logs", tmp_path / "b", episodes="3:20", progress=False)
    assert_holds(tmp_path / "b", logger.rows[ends[2] + 1 : ends[19] + 1])
    report = convert(tmp_path / "logs", tmp_path / "b", fraction=0.5, progress=False)
    assert report.episodes == (len(ends) + 1) // 2
    edges = [0, *(ends + 1), len(logger.rows)]
    kept = [k for a, b in list(itertools.pairwise(edges))[1::2] for k in range(a, b)]
    assert_holds(tmp_path / "b", [logger.rows[k] for k in kept], np.array(kept) == 399)


def test_a_policy_never_starts_from_the_last_row(tmp_path: Path):
    logger = Logger(tmp_path / "logs", 50)
    play(logger, 80, mean=1e9, black=0)
    logger.save_last()
    convert(tmp_path / "logs", tmp_path / "b", progress=False)
    replay = Replay(load_buffer(tmp_path / "b"))
    assert np.array_equal(replay.rows, np.arange(79))
    batch = replay.gather(replay.rows[[50]])
    frames = columns(logger.rows)["obs"]
    assert np.array_equal(batch.obs.numpy()[0], frames[47:51])
    assert np.array_equal(batch.obs_next.numpy()[0], frames[48:52])


@needs_samples
def test_the_sample(tmp_path: Path):
    folder = SAMPLES / "dqn_replay/Breakout/1/replay_logs"
    logs: list[dict[str, Any]] = []
    for k in range(3):
        logs.append({})
        for name in NAMES:
            with gzip.open(folder / f"$store$_{name}_ckpt.{k}.gz") as file:
                logs[-1][name] = np.load(io.BytesIO(file.read()), allow_pickle=False)
    # In the order of play: (checkpoint, slot); the last log holds 26 rows.
    places = [(0, s) for s in range(199)] + [(1, 199)] + [(1, s) for s in range(199)]
    places += [(2, 199)] + [(2, s) for s in range(26)]
    rows, skip = [], 3
    for k, slot in places:
        row = tuple(logs[k][name][slot] for name in NAMES)
        if skip:
            assert not row[0].any()
            skip -= 1
            continue
        rows.append(row)
        skip = 3 if row[3] else 0
    for src in (folder, folder.parent, folder.parent.parent):
        report = convert(src, tmp_path / "b", progress=False)
        assert_holds(tmp_path / "b", rows, last_only(len(rows)))
    assert report.episodes == 2 and report.terminated == 1
    assert any("6 rows of padding" in note for note in report.notes)
    recorded = read_provenance(tmp_path / "b")
    assert recorded["dataset"] == "dqn_replay/Breakout/1"
    assert recorded["ordered"] and recorded["checkpoints"] == [0, 1, 2]


# Faults


def damage(folder: Path, how: str) -> Path:
    """Damage checkpoint 1; return the file at fault."""
    frames, actions, rewards, terminals = (folder / f"$store$_{n}_ckpt.1.gz" for n in NAMES)
    whole = gzip.decompress(frames.read_bytes())
    if how == "missing":
        actions.unlink()
        return actions
    if how == "count":
        (folder / "add_count_ckpt.1.gz").unlink()
        return folder / "add_count_ckpt.1.gz"
    if how == "nan":
        save(rewards, np.full(50, np.nan, np.float32))
        return rewards
    if how == "flags":
        save(terminals, np.full(50, 7, np.uint8))
        return terminals
    if how in ("no action", "too many actions"):
        save(actions, np.full(50, -1 if how == "no action" else 18, np.int32))
        return actions
    if how == "unequal":
        save(actions, np.zeros(49, np.int32))
        return actions
    if how == "objects":
        save(actions, np.array([Trap()] * 50, dtype=object))
        return actions
    if how == "padding":
        save(frames, np.ones((50, SIDE, SIDE), np.uint8))
    if how == "short":
        frames.write_bytes(frames.read_bytes()[:-900])
    if how == "cut":
        frames.write_bytes(gzip.compress(whole[:-10]))
    if how == "long":
        frames.write_bytes(gzip.compress(whole + b"x"))
    if how == "crc":
        octets = bytearray(frames.read_bytes())
        octets[-6] ^= 1
        frames.write_bytes(octets)
    if how == "empty":
        frames.write_bytes(b"")
    if how == "plain":
        frames.write_bytes(whole)
    if how == "magic":
        frames.write_bytes(gzip.compress(b"x" + whole))
    if how == "huge":
        with io.BytesIO() as out:
            np.lib.format.write_array_header_1_0(
                out, {"descr": "|u1", "fortran_order": False, "shape": (10**12, SIDE, SIDE)}
            )
            frames.write_bytes(gzip.compress(out.getvalue() + bytes(200)))
    if how == "dtype":
        save(frames, np.zeros((50, SIDE, SIDE), np.float32))
    if how == "shape":
        save(frames, np.zeros((50, SIDE, SIDE + 1), np.uint8))
    if how == "fortran":
        save(frames, np.asfortranarray(np.zeros((50, SIDE, SIDE), np.uint8)))
    return frames


HOW = (
    *("missing", "count", "nan", "flags", "unequal", "objects", "padding", "short", "cut", "long"),
    *("crc", "empty", "plain", "magic", "huge", "dtype", "shape", "fortran"),
    *("no action", "too many actions"),
)


def test_the_slot_of_a_number_that_cannot_be_is_named(tmp_path: Path):
    play(Logger(tmp_path / "logs", 50), 120, 1, mean=15)
    path = tmp_path / "logs" / "$store$_reward_ckpt.1.gz"
    with gzip.open(path) as file:
        rewards = np.load(io.BytesIO(file.read()))
    rewards[31] = np.nan
    save(path, rewards)
    with pytest.raises(InputError, match="reward_ckpt.1.gz: the reward is NaN .* 31"):
        convert(tmp_path / "logs", tmp_path / "b", progress=False)


@pytest.mark.parametrize("how", HOW)
def test_a_damaged_log_stops_or_is_left_out(how: str, tmp_path: Path):
    logger = Logger(tmp_path / "logs", 50)
    play(logger, 230, 1, mean=15)
    assert logger.logs >= 4 and not logger.missed
    bad = damage(tmp_path / "logs", how)
    with pytest.raises(InputError) as caught:
        convert(tmp_path / "logs", tmp_path / "b", progress=False)
    text = str(caught.value)
    assert text.startswith("expected") and str(bad) in text and "\n" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    report = convert(tmp_path / "logs", tmp_path / "b", on_error="skip", progress=False)
    assert [fault.file for fault in report.faults] == [str(bad)]
    assert read_provenance(tmp_path / "b")["checkpoints"][:2] == [0, 2]
    assert_is_part(tmp_path / "b", logger)


def test_a_checkpoint_without_its_frames_is_a_fault(tmp_path: Path):
    logger = Logger(tmp_path / "logs", 50)
    play(logger, 130)
    logger.save_last()
    (tmp_path / "logs" / f"$store$_observation_ckpt.{logger.logs - 1}.gz").unlink()
    with pytest.raises(InputError, match=r"observation_ckpt.2.gz.*No such file"):
        convert(tmp_path / "logs", tmp_path / "b", progress=False)


def test_a_log_of_nothing_that_follows_none_is_no_traceback(tmp_path: Path):
    logger = Logger(tmp_path / "logs", 50)
    play(logger, 130)
    store = [column.copy() for column in logger.store]
    store[3][-1] = 0  # the row before slot 0 ends no episode
    logger.store = store
    logger.save(0)
    with pytest.raises(InputError, match="expected"):
        convert(tmp_path / "logs", tmp_path / "b", checkpoints="2:", progress=False)


def test_rewards_that_are_not_clipped_are_reported(tmp_path: Path):
    for reward, note in ((1, "rewards were clipped"), (5, "WARNING: rewards of up to 5")):
        logger = Logger(tmp_path / f"logs{reward}", 50)
        play(logger, 20)
        logger.add(np.ones((SIDE, SIDE), np.uint8), 0, reward, 1)
        logger.save_last()
        report = convert(tmp_path / f"logs{reward}", tmp_path / "b", progress=False)
        assert any(line.startswith(note) for line in report.notes)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize("name", ["observation", "reward"])
def test_a_file_joined_from_several_is_reported(name: str, on_error: Any, tmp_path: Path):
    logger = Logger(tmp_path / "logs", 50)
    play(logger, 80)
    logger.save_last()
    path = tmp_path / "logs" / f"$store$_{name}_ckpt.1.gz"
    data = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(data[:150]) + gzip.compress(data[150:]))
    report = convert(tmp_path / "logs", tmp_path / "b", progress=False, on_error=on_error)
    assert_holds(tmp_path / "b", logger.rows, last_only(len(logger.rows)))
    joined = [note for note in report.notes if "several gzip members" in note]
    assert len(joined) == 1 and joined[0].startswith(f"WARNING: {path.name}")


def test_a_source_that_is_none(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    for src, match in ((tmp_path, "none"), (tmp_path / "x", "none"), (tmp_path / "file", "file")):
        with pytest.raises(InputError, match=match):
            convert(src, tmp_path / "b", progress=False)
    for run in "12":
        play(Logger(tmp_path / "Pong" / run / "replay_logs", 50), 60)
    with pytest.raises(InputError, match="choose one"):
        convert(tmp_path / "Pong", tmp_path / "b", progress=False)
