"""Merging, splitting, subsampling and relabelling files keep transitions what they are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tianshou_ext.data import blocks
from tianshou_ext.data.edit import merge, split, subsample
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.data.inspect import inspect
from tianshou_ext.data.relabel import relabel
from tianshou_ext.data.replay import Replay
from tianshou_ext.data.writer import BufferWriter
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

LENGTHS = (5, 9, 1, 12, 7, 30, 3, 8, 4, 21)
STARTS = np.cumsum([0, *LENGTHS[:-1]])
ROWS = sum(LENGTHS)
QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(autouse=True, params=[7, 1 << 16])
def block_rows(request: Any, monkeypatch: Any) -> None:
    """Let every test cross the borders of blocks, too."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", request.param)


def episodes(seed: int = 0, obs_dtype: Any = np.float32) -> dict[str, Any]:
    """Episodes of unequal length, every third terminated, returns known."""
    rng = np.random.default_rng(seed)
    last = np.isin(np.arange(ROWS), STARTS + np.array(LENGTHS) - 1)
    number = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    obs = rng.normal(size=(ROWS, 3)).astype(obs_dtype)
    obs_next = np.concatenate([obs[1:], obs[:1]])
    obs_next[last] = rng.normal(size=(last.sum(), 3)).astype(obs_dtype)
    return {
        "obs": obs,
        "obs_next": obs_next,
        "act": rng.uniform(-1, 1, (ROWS, 2)).astype(np.float32),
        "rew": rng.normal(size=ROWS).astype(np.float32),
        "terminated": last & (number % 3 == 0),
        "truncated": last & (number % 3 != 0),
    }


def origins(seed: int = 0) -> dict[str, Any]:
    """Info of every row, flat and nested, from which the row can be told."""
    rows = np.arange(ROWS, dtype=np.int32)
    return {
        "row": rows,
        "of": {"seed": np.full(ROWS, seed, np.uint8), "at": rows[:, None] * [1, 2]},
    }


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    with BufferWriter(path, len(columns["rew"]), **options) as writer:
        writer.append(**columns)
    return path


def frames(path: Path, info: Any = None, **options: Any) -> Path:
    """The same episodes, of frames; the last row of a truncated one is no transition."""
    columns = episodes()
    del columns["obs_next"]
    columns["obs"] = np.arange(ROWS, dtype=np.uint8)[:, None, None] * np.ones((6, 6), np.uint8)
    columns["act"] = np.arange(ROWS) % 4
    columns["rew"][columns["truncated"]] = 0
    columns |= {} if info is None else {"info": info}
    return write(path, columns, stack_num=4, save_obs_next=False, **options)


def read(path: Path) -> dict[str, Any]:
    """Return the columns as Tianshou itself reads them, having checked that our reader agrees."""
    own, theirs = load_buffer(path), ReplayBuffer.load_hdf5(str(path))
    columns = {key: getattr(theirs, key) for key in theirs._meta.get_keys() if key != "info"}
    for key, values in columns.items():
        if isinstance(values, np.ndarray):
            assert np.array_equal(values, getattr(own, key)), key
    ends = own.terminated | own.truncated
    assert ends[-1] and np.array_equal(own.done, ends)
    return columns


def info_of(path: Path) -> Any:
    """Return the info as Tianshou itself reads it, having checked that our reader agrees."""
    own, theirs = load_buffer(path).info, ReplayBuffer.load_hdf5(str(path)).info
    assert str(own) == str(theirs)
    return theirs


def number_of(columns: dict[str, Any], source: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return which row of the source each row is."""
    rows = {values.tobytes(): k for k, values in enumerate(source["obs"])}
    return np.array([rows[np.ascontiguousarray(values).tobytes()] for values in columns["obs"]])


def same(columns: dict[str, Any], source: dict[str, Any], rows: Any, *but: str) -> None:
    for key in set(source) - set(but):
        assert np.array_equal(columns[key], source[key][rows]), key


def test_merged_files_stand_behind_one_another(tmp_path: Path):
    first, second = episodes(0), episodes(1)
    first["terminated"][-1] = first["truncated"][-1] = False  # unfinished
    paths = [write(tmp_path / "a", first, provenance={"dataset": "d", "notes": ["a note"]})]
    paths += [write(tmp_path / "b", second, provenance={"dataset": "d", "notes": ["b note"]})]
    report = merge(paths, out=tmp_path / "out.hdf5", **QUIET)
    columns = read(tmp_path / "out.hdf5")
    assert (report.rows, report.episodes) == (2 * ROWS, 2 * len(LENGTHS))
    same({key: values[ROWS:] for key, values in columns.items()}, second, slice(None))
    first["truncated"][-1] = True
    same({key: values[:ROWS] for key, values in columns.items()}, first, slice(None))
    recorded = read_provenance(tmp_path / "out.hdf5")
    assert recorded["dataset"] == "d" and recorded["notes"] == ["a note", "b note"]
    assert [parent["file"] for parent in recorded["made_from"]] == ["a", "b"]
    assert recorded["inputs"]["files"] == 2 and recorded["ordered"] is True
    json.dumps(recorded)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_where_a_row_came_from_is_known_in_an_edited_file(compression: Any, tmp_path: Path):
    columns = episodes()
    made = [tmp_path / name for name in ("most", "rest", "few", "top", "changed")]
    path = write(tmp_path / "a", {**columns, "info": origins()}, compression=compression)
    how: dict[str, Any] = {**QUIET, "compression": compression}
    split(path, at=(0.7,), out=(made[0], made[1]), **how)
    subsample(path, out=made[2], transitions=0.3, **how)
    subsample(path, out=made[3], top=0.3, **how)
    relabel(path, out=made[4], reward_shift=1, **how)
    for one in made:
        info = info_of(one)
        assert np.array_equal(info.row, number_of(read(one), columns)), one
        assert info.row.dtype == np.int32 and info.of.seed.dtype == np.uint8
        assert np.array_equal(info["of"]["at"], info.row[:, None] * [1, 2])
    reports = [merge(made[:2], out=tmp_path / "whole", **how)]
    assert sorted(info_of(tmp_path / "whole").row.tolist()) == list(range(ROWS))
    reports += [merge([path, path], out=tmp_path / "twice", **how)]
    assert info_of(tmp_path / "twice").row.tolist() == [*range(ROWS)] * 2
    assert not any(report.notes for report in reports)


def test_frames_keep_their_info(tmp_path: Path):
    source = frames(tmp_path / "a", info=origins())
    subsample(source, out=tmp_path / "s", episodes=4, **QUIET)
    assert np.array_equal(info_of(tmp_path / "s").row, read(tmp_path / "s")["obs"][:, 0, 0])


def test_merging_says_which_info_the_files_do_not_share(tmp_path: Path):
    columns, first, second = episodes(), origins(1), origins(2)
    first["only"], second["row"] = first["row"], second["row"].astype(np.int64)
    del second["of"]["at"]
    paths = [
        write(tmp_path / name, {**columns, "info": info})
        for name, info in (("a", first), ("b", second))
    ]
    report = merge(paths, out=tmp_path / "out", **QUIET)
    info = info_of(tmp_path / "out")
    assert list(info.keys()) == ["of"] and list(info["of"].keys()) == ["seed"]
    assert info["of"].seed.tolist() == [1] * ROWS + [2] * ROWS
    noted = ["info that not all files have alike left out: info/of/at, info/only, info/row"]
    assert report.notes == noted == read_provenance(tmp_path / "out")["notes"]
    report = merge([paths[0], write(tmp_path / "c", columns)], out=tmp_path / "out", **QUIET)
    assert not info_of(tmp_path / "out").keys() and "info/of/seed" in str(report)


def test_rewards_that_are_nan_are_not_copied_in_silence(tmp_path: Path):
    columns = episodes()
    columns["rew"] = np.where(np.arange(len(columns["rew"])) == 3, np.nan, columns["rew"])
    paths = [write(tmp_path / name, columns) for name in ("a", "b")]
    report = merge(paths, out=tmp_path / "out", progress=False)
    assert report.notes == ["2 rewards of the source are NaN or infinite: repair them"]
    assert read_provenance(tmp_path / "out")["notes"] == report.notes


def test_episodes_merged_with_shuffled_transitions_are_no_longer_chained(tmp_path: Path):
    shuffled = episodes(1)
    shuffled["truncated"] = ~shuffled["terminated"]
    path = write(tmp_path / "a", episodes())
    other = write(tmp_path / "b", shuffled, provenance={"ordered": False})
    report = merge([other, path], out=tmp_path / "out.hdf5", **QUIET)
    columns = read(tmp_path / "out.hdf5")
    assert columns["done"].all() and not (columns["terminated"] & columns["truncated"]).any()
    same({key: v[ROWS:] for key, v in columns.items()}, episodes(), slice(None), "truncated")
    assert any("a holds episodes, but other files shuffled" in note for note in report.notes)
    assert inspect(tmp_path / "out.hdf5", progress=False).exit_code == 0


def test_files_that_differ_are_not_merged(tmp_path: Path):
    base = write(tmp_path / "a", episodes())
    flat = episodes()
    flat["obs"] = flat["obs"][:, :2]
    flat["obs_next"] = flat["obs_next"][:, :2]
    flat, wide = write(tmp_path / "b", flat), write(tmp_path / "c", episodes(0, np.float64))
    for other, words in (
        (flat, r"obs \[3\] of float32 in .*a and \[2\] of float32 in .*b"),
        (wide, r"obs \[3\] of float32 in .*a and \[3\] of float64"),
        (frames(tmp_path / "d"), r"act \[2\] of float32 in .*a and \[\] of int64 in"),
    ):
        with pytest.raises(InputError, match=words):
            merge([base, other], out=tmp_path / "out", **QUIET)
    with pytest.raises(InputError, match="two or more"):
        merge([base], out=tmp_path / "out", **QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_frames_stay_one_a_row(compression: Any, tmp_path: Path):
    source = frames(tmp_path / "a", compression=compression)
    whole = read(source)
    report = merge([source, source], out=tmp_path / "m", compression=compression, **QUIET)
    merged = read(tmp_path / "m")
    assert np.array_equal(merged["obs"], np.concatenate([whole["obs"], whole["obs"]]))
    assert report.rows == 2 * ROWS
    subsample(source, out=tmp_path / "s", episodes=4, seed=3, **QUIET)
    part, buffer = read(tmp_path / "s"), load_buffer(tmp_path / "s")
    assert buffer.stack_num == 4 and not buffer._save_obs_next
    rows = part["obs"][:, 0, 0]
    ends = np.nonzero(part["terminated"] | part["truncated"])[0]
    for chunk in np.split(rows, ends[:-1] + 1):  # whole episodes, in the order of the file
        k = int(np.searchsorted(STARTS, chunk[0]))
        assert STARTS[k] == chunk[0] and np.array_equal(chunk, STARTS[k] + np.arange(LENGTHS[k]))
    assert len(ends) == 4 and (np.diff(rows.astype(int)) > 0).all()
    for way in ({"transitions": 0.5}, {"transitions": 3}):
        with pytest.raises(InputError, match="one frame a row.*--episodes"):
            subsample(source, out=tmp_path / "x", **way, **QUIET)


def test_shared_frames_and_nested_observations_are_kept(tmp_path: Path):
    columns = episodes()
    obs, obs_next = columns.pop("obs"), columns.pop("obs_next")
    nested = [{"x": one, "deep": {"y": one[:, 0]}} for one in (obs, obs_next)]
    path = write(tmp_path / "n", {**columns, "obs": nested[0], "obs_next": nested[1]})
    subsample(path, out=tmp_path / "n2", transitions=0.5, **QUIET)
    buffer = load_buffer(tmp_path / "n2")
    rows = number_of({"obs": buffer.obs.x}, {"obs": obs})
    assert np.array_equal(buffer.obs_next.deep.y, obs_next[rows, 0])
    relabel(path, out=tmp_path / "n3", obs_noise=0.1, **QUIET)
    buffer = load_buffer(tmp_path / "n3")
    inside = np.nonzero(~buffer.done)[0]
    assert np.array_equal(buffer.obs_next.deep.y[inside], buffer.obs.deep.y[inside + 1])
    assert not np.array_equal(buffer.obs.deep.y - obs[:, 0], buffer.obs.x[:, 0] - obs[:, 0])

    shared = np.random.default_rng(0).integers(0, 256, (ROWS, 5, 6, 6), dtype=np.uint8)
    path = write(tmp_path / "s", {**columns, "frames": shared}, shared_frames=True)
    split(path, at=(0.5,), out=(tmp_path / "s1", tmp_path / "s2"), shuffle=False, **QUIET)
    parts = [read(tmp_path / name) for name in ("s1", "s2")]
    assert np.array_equal(np.concatenate([p["obs"] for p in parts]), shared[:, :4])
    assert np.array_equal(np.concatenate([p["obs_next"] for p in parts]), shared[:, 1:])
    with h5py.File(tmp_path / "s1") as file:
        assert "frames" in file


@pytest.mark.parametrize("shuffle", [True, False])
def test_parts_of_a_split_are_all_episodes_once(shuffle: bool, tmp_path: Path):
    columns = episodes()
    path = write(tmp_path / "walker.hdf5", columns)
    reports = split(path, at=(0.6, 0.1), shuffle=shuffle, seed=1, **QUIET)
    assert [r.dst.name for r in reports] == [
        f"walker_{part}.hdf5" for part in ("train", "val", "test")
    ]
    assert [r.episodes for r in reports] == [6, 1, 3] and "walker_val" in str(reports)
    rows = []
    for report in reports:
        part = read(report.dst)
        rows.append(number_of(part, columns))
        same(part, columns, rows[-1])
        assert (np.diff(rows[-1]) > 0).all()
    assert sorted(np.concatenate(rows).tolist()) == list(range(ROWS))
    assert np.array_equal(np.concatenate(rows), np.arange(ROWS)) == (not shuffle)
    again = split(path, at=(0.6, 0.1), shuffle=shuffle, seed=1, **QUIET)
    assert np.array_equal(number_of(read(again[0].dst), columns), rows[0])


def test_bad_splits_are_refused(tmp_path: Path):
    path = write(tmp_path / "a.hdf5", episodes())
    outs = tuple(tmp_path / name for name in "123")
    for options, words in (
        ({"at": (0.0,)}, "shares above 0"),
        ({"at": (0.8, 0.4)}, "at most 1"),
        ({"at": (float("nan"),)}, "shares"),
        ({"at": ()}, "shares"),
        ({"at": (1.0,)}, "two parts or more"),
        ({"at": (0.99,)}, "at least one episode for each of 2"),
        ({"at": (0.5,), "out": outs}, "--out with 2 files"),
        ({"at": (0.2, 0.2, 0.2)}, "--out with 4 files"),
        ({"at": (0.5,), "out": (outs[0], outs[0])}, "2 different files"),
        ({"at": (0.5,), "out": (outs[0], path)}, "another file to write"),
        ({"at": (0.5,), "out": (outs[0], tmp_path)}, "folder"),
        ({"seed": -1}, "seed of 0 or more"),
    ):
        with pytest.raises(InputError, match=words):
            split(path, **options, **QUIET)
    twice = (outs[0], tmp_path / ".." / tmp_path.name / outs[0].name)
    with pytest.raises(InputError, match="2 different files"):
        split(path, at=(0.5,), out=twice, **QUIET)
    assert len(read(path)["rew"]) == ROWS and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("way", ["top", "bottom"])
def test_the_best_and_the_worst_episodes_are_found(way: str, tmp_path: Path):
    columns = episodes()
    path = write(tmp_path / "a", columns)
    report = subsample(path, out=tmp_path / "b", **{way: 0.3}, **QUIET)
    returns = np.add.reduceat(columns["rew"].astype(float), STARTS)
    order = np.argsort(returns)
    chosen = np.sort(order[-3:] if way == "top" else order[:3])
    rows = np.concatenate([STARTS[k] + np.arange(LENGTHS[k]) for k in chosen])
    assert report.episodes == 3
    same(read(tmp_path / "b"), columns, rows)


@pytest.mark.parametrize("amount", [0.4, 40, 1, ROWS])
def test_a_drawn_row_whose_successor_is_missing_is_truncated(amount: float, tmp_path: Path):
    columns = episodes()
    path = write(tmp_path / "a", columns)
    subsample(path, out=tmp_path / "b", transitions=amount, seed=4, **QUIET)
    part = read(tmp_path / "b")
    rows = number_of(part, columns)
    assert len(rows) == {0.4: 40}.get(amount, amount)
    same(part, columns, rows, "truncated")
    follows = np.append(np.diff(rows) == 1, False)
    ends = (columns["terminated"] | columns["truncated"])[rows]
    assert np.array_equal(part["truncated"], ~part["terminated"] & (ends | ~follows))
    assert inspect(tmp_path / "b", **QUIET).exit_code == 0
    noted = " ".join(read_provenance(tmp_path / "b")["notes"])
    assert "drawn one by one" in noted
    subsample(path, out=tmp_path / "c", transitions=amount, seed=5, **QUIET)
    other = number_of(read(tmp_path / "c"), columns)
    assert np.array_equal(rows, other) == (amount == ROWS)


def test_shuffled_transitions_are_drawn_row_by_row(tmp_path: Path):
    columns = episodes()
    columns["truncated"] = ~columns["terminated"]
    path = write(tmp_path / "a", columns, provenance={"ordered": False})
    report = subsample(path, out=tmp_path / "b", transitions=0.5, **QUIET)
    part = read(tmp_path / "b")
    same(part, columns, number_of(part, columns))
    assert read_provenance(tmp_path / "b")["ordered"] is False
    changed = relabel(tmp_path / "b", out=tmp_path / "c", reward_shift=1, **QUIET)
    for one in (report, changed):  # they have no episodes, although every row is an end
        assert (one.rows, one.episodes) == (ROWS // 2, 0) and "shuffled" in str(one)
    assert read_provenance(tmp_path / "c")["episodes"] == 0
    for way in ("episodes", "top", "bottom"):
        with pytest.raises(InputError, match="shuffled transitions.*--transitions"):
            subsample(path, out=tmp_path / "c", **{way: 0.5}, **QUIET)


def test_bad_amounts_are_refused(tmp_path: Path):
    path = write(tmp_path / "a", episodes())
    for options in (
        {"transitions": 0}, {"transitions": -1}, {"transitions": 1.5}, {"transitions": ROWS + 1},
        {"transitions": 0.001}, {"transitions": float("nan")}, {"transitions": float("inf")},
        {"episodes": 11}, {"episodes": 0.01}, {"top": 0}, {"top": 0.01}, {"bottom": 5},
        {}, {"top": 0.1, "bottom": 0.1},
    ):  # fmt: skip
        with pytest.raises(InputError, match="^expected .*got"):
            subsample(path, out=tmp_path / "b", **options, **QUIET)
    with pytest.raises(InputError, match="folder"):
        subsample(path, out=tmp_path, top=0.5, **QUIET)
    with pytest.raises(InputError, match="seed of 0 or more"):
        subsample(path, out=tmp_path / "b", episodes=2, seed=-1, **QUIET)
    columns = episodes()
    columns["rew"][3] = np.nan
    with pytest.raises(InputError, match="finite rewards"):
        subsample(write(tmp_path / "n", columns), out=tmp_path / "b", top=0.5, **QUIET)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "n"]


def test_rewards_are_scaled_shifted_and_clipped(tmp_path: Path):
    columns = episodes()
    path = write(tmp_path / "a", columns)
    relabel(
        path, out=tmp_path / "b", reward_scale=3, reward_shift=-1, reward_clip=(-2, 1.5), **QUIET
    )
    part = read(tmp_path / "b")
    assert np.allclose(part["rew"], np.clip(3 * columns["rew"] - 1, -2, 1.5), atol=1e-6)
    same(part, columns, slice(None), "rew")
    assert read_provenance(tmp_path / "b")["options"]["reward_clip"] == [-2, 1.5]
    source = frames(tmp_path / "f")
    relabel(source, out=tmp_path / "g", reward_shift=10, **QUIET)
    before, after = read(source), read(tmp_path / "g")
    assert (after["rew"][before["truncated"]] == 0).all()
    kept = ~before["truncated"]
    assert np.allclose(after["rew"][kept], before["rew"][kept] + 10)


def test_noise_keeps_rows_and_next_rows_in_agreement(tmp_path: Path):
    columns = episodes()
    path = write(tmp_path / "a", columns)
    relabel(path, out=tmp_path / "b", obs_noise=0.5, seed=1, **QUIET)
    part = read(tmp_path / "b")
    same(part, columns, slice(None), "obs", "obs_next")
    ends = columns["terminated"] | columns["truncated"]
    inside = np.nonzero(~ends)[0]
    assert np.array_equal(part["obs_next"][inside], part["obs"][inside + 1])
    for rows in (np.arange(ROWS), ends):
        noise = part["obs_next"][rows] - columns["obs_next"][rows]
        assert 0.3 < noise.std() < 0.7 and abs(noise.mean()) < 0.4
    assert abs((part["obs"] - columns["obs"]).std() - 0.5) < 0.1
    assert inspect(tmp_path / "b", **QUIET).figures["obs_next"]["differ"] == 0
    relabel(path, out=tmp_path / "c", obs_noise=0.5, seed=2, **QUIET)
    assert not np.array_equal(read(tmp_path / "c")["obs"], part["obs"])


def test_noise_does_not_depend_on_the_size_of_blocks(tmp_path: Path, monkeypatch: Any):
    path = write(tmp_path / "a", episodes())
    made = []
    for size in (3, 50):
        monkeypatch.setattr(blocks, "BLOCK_ROWS", size)
        relabel(path, out=tmp_path / "b", obs_noise=1, act_noise=1, **QUIET)
        made.append(read(tmp_path / "b"))
    same(made[0], made[1], slice(None))


def test_actions_are_scaled_from_the_environments_bounds(tmp_path: Path):
    columns = episodes()
    unit = columns["act"].copy()
    columns["act"] = (unit * [2.0, 1.5] + [0.0, 1.5]).astype(np.float32)  # to [-2, 2] and [0, 3]
    path = write(tmp_path / "a", columns)
    relabel(path, out=tmp_path / "b", act_low=(-2.0, 0.0), act_high=(2.0, 3.0), **QUIET)
    assert np.allclose(read(tmp_path / "b")["act"], unit, atol=1e-6)
    relabel(path, out=tmp_path / "c", act_low=(-3.0,), act_high=(3.0,), **QUIET)
    assert np.allclose(read(tmp_path / "c")["act"], columns["act"] / 3.0, atol=1e-6)
    for low, high, sentence in [
        ((-1.0,), (1.0,), "expected actions within --act-low and --act-high, got .* in dimension"),
        ((-2.0,), (), "of 1 number, or one for each of an action's, got 1 and 0"),
        ((-2.0,) * 3, (2.0,), "got 3 and 1 for act of shape"),
        ((2.0,), (-2.0,), "--act-low below --act-high"),
        ((-math.inf,), (2.0,), "expected finite numbers"),
    ]:
        with pytest.raises(InputError, match=sentence):
            relabel(path, out=tmp_path / "d", act_low=low, act_high=high, **QUIET)
    with pytest.raises(InputError, match="not both: noise leaves the bounds"):
        relabel(path, out=tmp_path / "d", act_noise=0.1, act_low=(-3,), act_high=(3,), **QUIET)
    assert not (tmp_path / "d").exists()


def test_noisy_actions_are_clipped_only_if_asked(tmp_path: Path):
    columns = episodes()
    path = write(tmp_path / "a", columns)
    relabel(path, out=tmp_path / "b", act_noise=0.5, **QUIET)
    relabel(path, out=tmp_path / "c", act_noise=0.5, clip_actions=True, **QUIET)
    free, clipped = (read(tmp_path / name)["act"] for name in "bc")
    assert np.abs(free).max() > 1
    assert np.array_equal(clipped, np.clip(free, columns["act"].min(0), columns["act"].max(0)))


def test_rewards_that_become_infinite_are_refused(tmp_path: Path, recwarn: Any):
    columns = episodes()
    columns["rew"][[11, 40]] = -1e20, np.inf  # what was infinite before is only noted
    path = write(tmp_path / "a", columns)
    with pytest.raises(InputError, match=r"float32 can hold, got -1e\+45 in row 11 of"):
        relabel(path, out=tmp_path / "out", reward_scale=1e25, **QUIET)
    assert list(tmp_path.iterdir()) == [path]
    relabel(path, out=tmp_path / "out", reward_scale=1e10, **QUIET)
    assert not recwarn.list


def test_bad_relabelling_is_refused(tmp_path: Path):
    path, pixels = write(tmp_path / "a", episodes()), frames(tmp_path / "f")
    for source, options, words in (
        (path, {}, "something to change"),
        (path, {"reward_scale": float("nan")}, "finite"),
        (path, {"reward_scale": 1e300}, "at most 1e"),
        (path, {"obs_noise": 1, "seed": -1}, "seed of 0 or more"),
        (path, {"reward_clip": (1, -1)}, "LOW HIGH"),
        (path, {"obs_noise": -1}, "0 or more"),
        (path, {"reward_scale": 2, "clip_actions": True}, "--act-noise"),
        (pixels, {"obs_noise": 1}, "obs of uint8"),
        (pixels, {"act_noise": 1}, "act of int64"),
    ):
        with pytest.raises(InputError, match=words):
            relabel(source, out=tmp_path / "out", **options, **QUIET)
    for same_file in (path, tmp_path / "sub" / ".." / "a"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(InputError, match="another file to write"):
            relabel(path, out=same_file, reward_scale=2, **QUIET)
    assert not (tmp_path / "out").exists() and len(read(path)["rew"]) == ROWS


def test_an_edited_file_can_be_trained_on_and_edited_again(tmp_path: Path):
    path = write(tmp_path / "hopper-medium-v0.hdf5", episodes())
    subsample(path, out=tmp_path / "b", episodes=5, **QUIET)
    relabel(tmp_path / "b", out=tmp_path / "c", reward_scale=2, compression="gzip", **QUIET)
    merge([tmp_path / "c", tmp_path / "c"], out=tmp_path / "d", **QUIET)
    batch = Replay(load_buffer(tmp_path / "d")).sample(0, n_step=3)
    assert np.isfinite(batch.rew.numpy()).all()
    findings = inspect(tmp_path / "d", **QUIET).findings
    assert any("no timeouts" in str(finding) for finding in findings)  # through three parents


def test_a_file_of_tianshou_is_edited(tmp_path: Path):
    buffer = ReplayBuffer(12)
    from tianshou.data import Batch

    for k in range(17):
        buffer.add(
            Batch(
                obs=np.array([float(k)]),
                act=k % 2,
                rew=k,
                terminated=k == 9,
                truncated=False,
                obs_next=np.array([k + 1.0]),
                info={},
            )
        )
    buffer.save_hdf5(str(tmp_path / "a"))
    merge([tmp_path / "a", tmp_path / "a"], out=tmp_path / "b", **QUIET)
    part = read(tmp_path / "b")
    assert np.array_equal(part["rew"], [*range(5, 17)] * 2)  # oldest first
    assert np.nonzero(part["truncated"])[0].tolist() == [11, 23]
    assert np.nonzero(part["terminated"])[0].tolist() == [4, 16]


def test_texts_in_the_info_of_a_file_of_tianshou_are_left_out_and_named(tmp_path: Path):
    from tianshou.data import Batch

    buffer = ReplayBuffer(12)
    for k in range(17):
        info = {"number": k, "of": {"name": f"player {k}"}, "thing": {k}}
        row = {"obs": np.zeros(1), "obs_next": np.zeros(1), "act": 0, "rew": 0.0}
        buffer.add(Batch(**row, terminated=k % 5 == 4, truncated=False, info=info))
    buffer.save_hdf5(str(tmp_path / "a"))
    report = relabel(tmp_path / "a", out=tmp_path / "b", reward_shift=1, **QUIET)
    info = info_of(tmp_path / "b")
    assert list(info.keys()) == ["number"] and info.number.tolist() == [
        *range(5, 17)
    ]  # oldest first
    assert report.notes == ["info that is no array of numbers left out: info/of/name, info/thing"]
