"""Your own arrays: kinds of files, names of columns, and what is derived of what is missing."""

from __future__ import annotations

import pickle
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tianshou_ext.data.convert.arrays import convert
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.data.replay import Replay
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

SAMPLES = Path(__file__).parents[3].parent / "shared/data/formats"
RNG = np.random.default_rng(0)
N = 12
T, F = True, False


def columns(**changes: Any) -> dict[str, Any]:
    """Four episodes: 4 rows terminated, 3 truncated, 2 terminated, 3 unfinished."""
    ends = np.zeros((2, N), bool)
    ends[0, [3, 8]] = ends[1, 6] = True
    made = {
        "observations": RNG.normal(size=(N, 3)),
        "actions": RNG.normal(size=(N, 2)).astype(np.float32),
        "rewards": RNG.normal(size=N),
        "terminals": ends[0],
        "timeouts": ends[1],
    } | changes
    return {key: values for key, values in made.items() if values is not None}


def with_next(table: dict[str, Any]) -> dict[str, Any]:
    obs = table["observations"]
    last = np.flatnonzero(table["terminals"] | table["timeouts"])
    obs_next = np.roll(obs, -1, axis=0)
    obs_next[[*last, N - 1]] = 100
    return {**table, "next_observations": obs_next}


def as_npz(table: dict[str, Any], path: Path) -> Path:
    np.savez(path / "a.npz", **table)
    return path / "a.npz"


def as_small_npz(table: dict[str, Any], path: Path) -> Path:
    np.savez_compressed(path / "c.npz", **table)
    return path / "c.npz"


def as_npy(table: dict[str, Any], path: Path) -> Path:
    (path / "folder").mkdir(exist_ok=True)
    for file in (path / "folder").iterdir():
        file.unlink()
    for key, values in table.items():
        np.save(path / "folder" / f"{key}.npy", values)
    return path / "folder"


def as_hdf5(table: dict[str, Any], path: Path) -> Path:
    with h5py.File(path / "a.h5", "w") as file:
        for key, values in table.items():
            file.create_dataset(f"data/{key}", data=values, compression="gzip", chunks=True)
        file["data/note"] = "text"
    return path / "a.h5"


def as_pickle(table: Any, path: Path) -> Path:
    (path / "a.pkl").write_bytes(pickle.dumps(table, 4))
    return path / "a.pkl"


def flat(table: dict[str, Any]) -> dict[str, Any]:
    """Name the columns as a table of single numbers does: obs_0, obs_1, ..."""
    parts: dict[str, Any] = {}
    for key, values in table.items():
        if np.ndim(values) == 1:
            parts[key] = values
        else:
            parts |= {f"{key}_{k}": values[:, k] for k in reversed(range(values.shape[1]))}
    return parts


def as_csv(table: dict[str, Any], path: Path) -> Path:
    pandas = pytest.importorskip("pandas")
    pandas.DataFrame(flat(table)).to_csv(path / "a.csv", index=False)
    return path / "a.csv"


def as_parquet(table: dict[str, Any], path: Path) -> Path:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow", exc_type=ImportError)
    pandas.DataFrame(flat(table)).to_parquet(path / "a.parquet")
    return path / "a.parquet"


KINDS: list[Callable[[Any, Path], Path]] = [
    *(as_npz, as_small_npz, as_npy, as_hdf5, as_pickle, as_csv, as_parquet)
]


def run(src: Path, tmp_path: Path, *map: str, **options: Any) -> ReplayBuffer:
    convert(src, tmp_path / "b.hdf5", map=map, progress=False, **options)
    return load_buffer(tmp_path / "b.hdf5")


def notes(tmp_path: Path) -> str:
    return "; ".join(read_provenance(tmp_path / "b.hdf5")["notes"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_with_stored_next_observations(kind: Any, tmp_path: Path):
    table = with_next(columns())
    run(kind(table, tmp_path), tmp_path)
    ends = np.flatnonzero(table["terminals"])
    for buffer in (
        load_buffer(tmp_path / "b.hdf5"),
        ReplayBuffer.load_hdf5(str(tmp_path / "b.hdf5")),
    ):
        assert np.allclose(buffer.obs, table["observations"], atol=1e-6)
        assert np.allclose(buffer.obs_next, table["next_observations"], atol=1e-6)
        assert np.allclose(buffer.act, table["actions"]) and buffer.act.dtype == np.float32
        assert np.allclose(buffer.rew, table["rewards"]) and buffer.rew.dtype == np.float32
        assert np.flatnonzero(buffer.terminated).tolist() == ends.tolist()
        assert np.flatnonzero(buffer.truncated).tolist() == [6, 11]
    about = read_provenance(tmp_path / "b.hdf5")
    assert about["ordered"] and about["observation"]["shape"] == [3]


@pytest.mark.parametrize("kind", KINDS)
def test_next_observations_from_the_row_below(kind: Any, tmp_path: Path):
    table = columns()
    buffer = run(kind(table, tmp_path), tmp_path)
    kept = [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]
    obs = np.float32(table["observations"])
    assert np.allclose(buffer.obs, obs[kept])
    assert np.allclose(buffer.obs_next, obs[[1, 2, 3, 3, 5, 6, 8, 8, 10, 11]])
    assert np.flatnonzero(buffer.terminated).tolist() == [3, 7]
    assert np.flatnonzero(buffer.truncated).tolist() == [5, 9]
    assert "2 last rows of cut-off episodes left out" in notes(tmp_path)
    assert "obs_next of terminal rows is not stored" in notes(tmp_path)


def reference(table: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return the transitions that can be had, row by row."""
    made: list[tuple[Any, ...]] = []
    obs, start = np.float32(table["observations"]), 0
    for row in range(N):
        ended, cut = table["terminals"][row], table["timeouts"][row] or row == N - 1
        if ended:
            made.append((obs[row], obs[row], True, bool(table["timeouts"][row])))
        elif cut:
            if row > start:
                made[-1] = (*made[-1][:3], True)
        else:
            made.append((obs[row], obs[row + 1], False, False))
        start = row + 1 if ended or cut else start
    return made


@pytest.mark.parametrize("seed", range(20))
def test_derived_transitions_against_a_row_by_row_reading(seed: int, tmp_path: Path):
    rng = np.random.default_rng(seed)
    table = columns(terminals=rng.random(N) < 0.3, timeouts=rng.random(N) < 0.3)
    expected = reference(table)
    buffer = run(as_npz(table, tmp_path), tmp_path)
    assert len(buffer) == len(expected)
    for row, (obs, obs_next, terminated, truncated) in enumerate(expected):
        assert np.array_equal(buffer.obs[row], obs)
        assert np.array_equal(buffer.obs_next[row], obs_next)
        assert (buffer.terminated[row], buffer.truncated[row]) == (terminated, truncated)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("options", [{"episodes": "1:3"}, {"fraction": 0.5}, {}])
def test_small_blocks_give_the_same(
    stored: bool, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    table = with_next(columns()) if stored else columns()
    src = as_npy(table, tmp_path)
    one = run(src, tmp_path, **options)
    for rows in (1, 2, 5):
        monkeypatch.setattr("tianshou_ext.data.convert.arrays_episodes.BLOCK_ROWS", rows)
        convert(src, tmp_path / "c.hdf5", progress=False, **options)
        two = load_buffer(tmp_path / "c.hdf5")
        for key in ("obs", "act", "rew", "terminated", "truncated", "obs_next"):
            assert np.array_equal(getattr(one, key), getattr(two, key))


def test_shuffled_rows_are_never_chained(tmp_path: Path):
    table = with_next(columns())
    order = np.array([5, 0, 9, 3, 11, 7, 2, 8, 6, 1, 10, 4])
    buffer = run(as_npz({k: v[order] for k, v in table.items()}, tmp_path), tmp_path)
    assert (buffer.terminated ^ buffer.truncated).all() and len(buffer) == N
    assert not read_provenance(tmp_path / "b.hdf5")["ordered"]
    assert "8 rows do not lead to the row below" in notes(tmp_path)


def test_next_observations_logged_after_a_reset_are_noted(tmp_path: Path):
    table = with_next(columns())
    table["next_observations"][6] = table["observations"][7]
    assert np.flatnonzero(run(as_npz(table, tmp_path), tmp_path).truncated).tolist() == [6, 11]
    assert "1 cut-off rows have the first observation of the next episode" in notes(tmp_path)


def test_flags_and_what_they_mean(tmp_path: Path):
    table = with_next(columns())
    done = table["terminals"] | table["timeouts"]
    cases: dict[str, tuple[dict[str, Any], list[int]]] = {
        "done is taken as terminated": (
            {"terminals": None, "timeouts": None, "dones": done},
            [3, 6, 8],
        ),
        "1 episodes end": ({"terminals": None, "dones": done}, [3, 8]),
        "episodes end without": ({"timeouts": None, "done": done.astype(float)[:, None]}, [3, 8]),
        "": ({"terminals": None, "discount": 0.99 * ~table["terminals"]}, [3, 8]),
        "never": ({"terminals": None}, []),
    }
    for note, (changes, terminated) in cases.items():
        changed = {k: v for k, v in (table | changes).items() if v is not None}
        buffer = run(as_npz(changed, tmp_path), tmp_path)
        assert np.flatnonzero(buffer.terminated).tolist() == terminated
        rest = sorted({3, 6, 8, 11} - {*terminated})
        assert np.flatnonzero(buffer.truncated).tolist() == rest
        assert note in notes(tmp_path)


@pytest.mark.parametrize("names", [[1, 1, 1, 1, 0, 0, 0, 5, 5, 7, 7, 7], [*"aaaabbbccddd"]])
def test_episodes_by_a_column(names: list[Any], tmp_path: Path):
    table = columns(timeouts=None, episode=np.array(names))
    buffer = run(as_csv(table, tmp_path), tmp_path)
    assert np.flatnonzero(buffer.terminated).tolist() == [3, 7]
    assert np.flatnonzero(buffer.truncated).tolist() == [5, 9]
    table["episode"] = np.arange(N) % 2
    with pytest.raises(InputError, match="stand apart"):
        run(as_csv(table, tmp_path), tmp_path)


def test_without_ends_one_must_be_named(tmp_path: Path):
    table = columns(terminals=None, timeouts=None)
    src = as_npz(table, tmp_path)
    with pytest.raises(InputError, match="--episode-length or --one-episode"):
        run(src, tmp_path)
    buffer = run(src, tmp_path, episode_length=5)
    assert len(buffer) == 9 and np.flatnonzero(buffer.truncated).tolist() == [3, 7, 8]
    buffer = run(src, tmp_path, one_episode=True)
    assert len(buffer) == 11 and buffer.truncated.tolist() == [F] * 10 + [T]
    table["observations"] = RNG.normal(size=(N + 1, 3))
    with pytest.raises(InputError, match="unequal length"):
        run(as_npz(table, tmp_path), tmp_path, episode_length=5)
    buffer = run(as_npz(table, tmp_path), tmp_path, one_episode=True)
    assert len(buffer) == 12 and buffer.truncated.tolist() == [F] * 11 + [T]
    assert np.allclose(buffer.obs_next, table["observations"][1:])


def test_only_terminals_may_hide_time_limits(tmp_path: Path):
    run(as_npz(columns(timeouts=None), tmp_path), tmp_path)
    assert "no column says where episodes were cut off" in notes(tmp_path)


def test_columns_by_name(tmp_path: Path):
    names = {"observations": "s", "actions": "u", "rewards": "r", "terminals": "d", "timeouts": "t"}
    table = columns()
    renamed = {names[key]: values for key, values in table.items()}
    src = as_npz(renamed, tmp_path)
    with pytest.raises(InputError, match=r"obs and act and rew in .*found s, u, r, d, t.*--map"):
        run(src, tmp_path)
    asked = ("obs=s", "act=u", "rew=r", "terminated=d", "truncated=t")
    buffer = run(src, tmp_path, *asked)
    assert len(buffer) == 10
    for wrong in ("obs", "observation=s", "obs=s", "obs_next=x", "=s"):
        with pytest.raises(InputError):
            run(src, tmp_path, *asked, wrong)
    with pytest.raises(InputError, match="one column that can be obs .* observations and state"):
        run(as_npz({**table, "state": table["observations"]}, tmp_path), tmp_path)
    both = {**table, "state": table["observations"] + 1}
    assert np.allclose(run(as_npz(both, tmp_path), tmp_path, "obs=state").obs, buffer.obs + 1)
    table["next_obs"] = table["observations"] * np.nan
    assert len(run(as_npz(table, tmp_path), tmp_path, "obs_next=")) == 10


def test_several_columns_side_by_side(tmp_path: Path):
    pytest.importorskip("pandas")
    rows = ["y,x,act,rew,done,v_2,v_10,v_1"] + [
        f"{k},{k + 100},{k % 2},1,{int(k == 5)},2,10,1" for k in range(6)
    ]
    (tmp_path / "a.csv").write_text("\n".join(rows).replace("v_10", "v_3"))
    buffer = run(tmp_path / "a.csv", tmp_path, "obs=x,y,v")
    assert buffer.obs[2].tolist() == [102, 2, 1, 2, 10]
    assert buffer.act.tolist() == [0, 1, 0, 1, 0, 1] and buffer.act.dtype == np.int64
    about = read_provenance(tmp_path / "b.hdf5")
    order = [["x", 1], ["y", 1], ["v_1", 1], ["v_2", 1], ["v_3", 1]]
    assert about["observation"]["order"] == order
    (tmp_path / "a.csv").write_text("\n".join(rows))
    with pytest.raises(InputError, match=r"without gaps, got \[1, 2, 10\]"):
        run(tmp_path / "a.csv", tmp_path, "obs=x,y,v")


def test_shapes_and_kinds_of_numbers(tmp_path: Path):
    table = columns(
        observations=np.arange(N, dtype=">f8"),
        actions=np.arange(N, dtype=np.uint8)[:, None],
        rewards=np.ones((N, 1), np.int32),
        terminals=np.arange(N)[:, None] == 11,
    )
    buffer = run(as_hdf5(table, tmp_path), tmp_path)
    assert buffer.obs.shape == (11, 1) and buffer.obs.dtype == np.dtype("<f4")
    assert buffer.obs[:4, 0].tolist() == [0, 1, 2, 3]
    assert buffer.act.shape == (11,) and buffer.act.dtype == np.int64
    assert buffer.rew.shape == (11,) and buffer.rew.dtype == np.float32
    table["actions"] = np.linspace(-1, 1, N)
    assert run(as_hdf5(table, tmp_path), tmp_path).act.shape == (11, 1)


def test_links_within_an_hdf5_file_are_columns(tmp_path: Path):
    path = as_hdf5(columns(), tmp_path)
    plain = run(path, tmp_path)
    with h5py.File(path, "r+") as file:
        file["data/itself"] = file["data"]
        file["seen"] = h5py.SoftLink("/data/observations")
        file["again"] = file["data/rewards"]
        file["nowhere"] = h5py.SoftLink("/none")
        file["elsewhere"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/data")
    buffer = run(path, tmp_path, "obs=seen", "rew=again")
    assert np.array_equal(buffer.obs, plain.obs) and np.array_equal(buffer.rew, plain.rew)
    for name in ("nowhere", "elsewhere"):
        with pytest.raises(InputError, match=name):
            run(path, tmp_path, f"obs={name}")


def frames(**changes: Any) -> dict[str, Any]:
    return columns(observations=RNG.integers(0, 256, (N, 6, 6), dtype=np.uint8), **changes)


def test_frames_are_stored_one_a_row(tmp_path: Path):
    table = with_next(frames())
    table["next_observations"][[6, 11]] = [[[66]], [[111]]]
    buffer = run(as_npz(table, tmp_path), tmp_path, stack_num=4)
    rows = [0, 1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 11, 11]
    expected = table["observations"][rows]
    expected[[7, 13]] = [[[66]], [[111]]]
    assert np.array_equal(buffer.obs, expected)
    assert np.flatnonzero(buffer.terminated).tolist() == [3, 9]
    assert np.flatnonzero(buffer.truncated).tolist() == [7, 13]
    assert not buffer.act[[7, 13]].any() and not buffer.rew[[7, 13]].any()
    replay = Replay(buffer)
    assert sorted(replay.rows.tolist()) == [*range(7), *range(8, 13)]
    batch = replay.gather(replay.rows[[6]])
    assert (batch.obs_next[0, -1] == 66).all()
    assert np.array_equal(batch.obs_next[0, 0].numpy(), table["observations"][4])


def test_frames_whose_successor_is_unknown_are_not_sampled(tmp_path: Path):
    buffer = run(as_npz(frames(), tmp_path), tmp_path, stack_num=4)
    assert len(buffer) == N and np.flatnonzero(buffer.truncated).tolist() == [6, 11]
    assert sorted(Replay(buffer).rows.tolist()) == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10]
    assert "2 last rows of cut-off episodes cannot be sampled" in notes(tmp_path)
    run(as_npz(frames(), tmp_path), tmp_path)
    assert "pass --stack-num 4" in notes(tmp_path)
    with pytest.raises(InputError, match="single uint8 frames"):
        run(as_npz(columns(), tmp_path), tmp_path, stack_num=4)


def trajectory(steps: int, **changes: Any) -> dict[str, Any]:
    made = {
        "observations": RNG.normal(size=(steps, 3)).astype(np.float32),
        "next_observations": RNG.normal(size=(steps, 3)).astype(np.float32),
        "actions": RNG.normal(size=(steps, 2)).astype(np.float32),
        "rewards": RNG.normal(size=steps),
        "terminals": np.arange(steps) == steps - 1,
    } | changes
    made["next_observations"][:-1] = made["observations"][1:steps]
    return {key: values for key, values in made.items() if values is not None}


def test_lists_of_trajectories(tmp_path: Path):
    listed = [trajectory(4), trajectory(1, terminals=np.zeros(1)), trajectory(3)]
    buffer = run(as_pickle(listed, tmp_path), tmp_path)
    assert np.array_equal(buffer.obs_next, np.concatenate([t["next_observations"] for t in listed]))
    assert buffer.terminated.tolist() == [F, F, F, T, F, F, F, T]
    assert buffer.truncated.tolist() == [F, F, F, F, T, F, F, F]
    run(as_pickle(listed[:1], tmp_path), tmp_path)
    assert len(load_buffer(tmp_path / "b.hdf5")) == 4
    lists = [{k: v.tolist() for k, v in one.items()} for one in listed]
    lists = [{**one, "infos": {"x": [[1], [1, 2]]}} for one in lists]
    again = run(as_pickle(lists, tmp_path), tmp_path)
    assert np.array_equal(again.obs, buffer.obs)


def test_trajectories_with_their_final_observation(tmp_path: Path):
    listed = []
    for steps in (4, 1, 3):
        one = trajectory(steps, terminals=None)
        del one["next_observations"]
        one["observations"] = RNG.normal(size=(steps + 1, 3)).astype(np.float32)
        listed.append(one)
    buffer = run(as_pickle(listed, tmp_path), tmp_path)
    assert np.array_equal(buffer.obs, np.concatenate([t["observations"][:-1] for t in listed]))
    assert np.array_equal(buffer.obs_next, np.concatenate([t["observations"][1:] for t in listed]))
    assert buffer.truncated.tolist() == [F, F, F, T, T, F, F, T]
    for one in listed:
        one["observations"] = RNG.integers(0, 9, (len(one["rewards"]) + 1, 5, 5), dtype=np.uint8)
    buffer = run(as_pickle(listed, tmp_path), tmp_path, stack_num=2)
    assert np.array_equal(buffer.obs, np.concatenate([t["observations"] for t in listed]))
    assert len(Replay(buffer)) == 8


BAD_TRAJECTORIES: dict[str, dict[str, Any]] = {
    "rewards is missing": {"rewards": None},
    "unequal length": {"rewards": np.zeros(2)},
    "rew is NaN": {"rewards": np.full(3, np.nan)},
    "before they were": {"observations": np.zeros((3, 4)), "next_observations": np.zeros((3, 4))},
    "obs_next has the shape": {
        "observations": np.zeros((3, 5)),
        "next_observations": np.zeros((3, 4)),
    },
    "no rows": trajectory(0),
    "terminals is 2 in row 1": {"terminals": np.array([0, 2, 0])},
}


@pytest.mark.parametrize("match", BAD_TRAJECTORIES)
def test_a_faulty_trajectory_stops_or_is_left_out(match: str, tmp_path: Path):
    good, changes = trajectory(3), BAD_TRAJECTORIES[match]
    bad = {k: v for k, v in (trajectory(3) | changes).items() if v is not None}
    src = as_pickle([trajectory(2), bad, good], tmp_path)
    with pytest.raises(InputError, match=match) as error:
        run(src, tmp_path)
    assert "episode 1" in str(error.value) and "\n" not in str(error.value)
    assert len(run(src, tmp_path, on_error="skip")) == 5


INF = RNG.normal(size=(N, 3))
INF[5, 0] = np.inf
FAULTS: dict[str, dict[str, Any]] = {
    "unequal length": {"actions": np.zeros((N - 1, 2))},
    "observations holds object": {"observations": np.array([{}] * N, dtype=object)},
    "actions holds .*U1": {"actions": np.array(["a"] * N)},
    "rewards holds complex128": {"rewards": np.zeros(N, complex)},
    "rew holds .2,. a row": {"rewards": np.zeros((N, 2))},
    "terminals is 0.5 in row 0": {"terminals": np.full(N, 0.5)},
    "terminals is nan in row 0": {"terminals": np.full(N, np.nan)},
    "rows 4 to 6: obs is NaN or infinite in row 5": {"observations": INF},
    "rows 0 to 3: rew is NaN or infinite in row 0": {"rewards": np.full(N, np.nan)},
    "discount is nan in row 2, expected 0 to 1": {
        "terminals": None,
        "discount": np.where(np.arange(N) == 2, np.nan, 0.9),
    },
    "act is negative in row 0": {"actions": np.full(N, -1)},
    "no rows": {k: v[:0] for k, v in columns().items()},
    "obs holds no numbers": {"observations": np.zeros((N, 0))},
}


@pytest.mark.parametrize("match", FAULTS)
@pytest.mark.parametrize("kind", [as_npz, as_hdf5, as_pickle])
def test_faulty_arrays_are_refused_in_a_sentence(match: str, kind: Any, tmp_path: Path):
    table = columns(**FAULTS[match])
    kinds = {values.dtype.kind for values in table.values()}
    if kinds & {"O", "U"}:
        match = f"{match}|Python objects|plain numbers|not numbers"
        if kind is as_hdf5:
            pytest.skip("HDF5 has no such arrays")
    if "c" in kinds:
        match += "|plain numbers"
    with pytest.raises(InputError, match=match) as error:
        run(kind(table, tmp_path), tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "b.hdf5").exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_objects_that_nobody_asks_for_are_left_out(save: Any, tmp_path: Path):
    infos = np.array([{"step": k} for k in range(N)], dtype=object)
    table = with_next(columns())
    save(tmp_path / "a.npz", **table, infos=infos)
    assert len(run(tmp_path / "a.npz", tmp_path)) == N
    folder = tmp_path / "folder"
    folder.mkdir()
    for key, values in {**table, "infos": infos}.items():
        np.save(folder / f"{key}.npy", values)
    assert len(run(folder, tmp_path)) == N


def test_objects_that_are_asked_for_are_named(tmp_path: Path):
    np.savez(tmp_path / "a.npz", **columns(), infos=np.array([{}] * N, dtype=object))
    for name in ("rew", "episode"):
        with pytest.raises(InputError, match="infos holds Python objects, which are not loaded"):
            run(tmp_path / "a.npz", tmp_path, f"{name}=infos")


def test_one_bad_row_costs_its_episode_only(tmp_path: Path):
    buffer = run(as_npz(columns(observations=INF), tmp_path), tmp_path, on_error="skip")
    assert len(buffer) == 8
    assert "rows 4 to 6" in read_provenance(tmp_path / "b.hdf5")["left_out"][0]


def test_missing_cells_and_text_in_tables(tmp_path: Path):
    src = as_csv(columns(), tmp_path)
    lines = src.read_text().splitlines()
    header, *rows = lines
    cut = [*rows[:5], "," + rows[5].split(",", 1)[1], *rows[6:]]
    src.write_text("\n".join([header, *cut]))
    with pytest.raises(InputError, match="rows 4 to 6: obs is NaN or infinite in row 5"):
        run(src, tmp_path)
    src.write_text("\n".join([header, *rows[:5], "oops," + rows[5].split(",", 1)[1]]))
    with pytest.raises(InputError, match="not numbers: 'oops' in row 5"):
        run(src, tmp_path)
    for text in ("", header, "\x00\x00", 'a,b\n"'):
        src.write_text(text)
        with pytest.raises(InputError) as error:
            run(src, tmp_path)
        assert "\n" not in str(error.value)
    src.write_text(header)
    with pytest.raises(InputError, match="expected rows in .*, got none below"):
        run(src, tmp_path)


@pytest.mark.parametrize("extra", [",", ",1.5", ",,"])
def test_values_without_a_column_name_do_not_shift_the_columns(extra: str, tmp_path: Path):
    src = as_csv(columns(note=np.zeros(N)), tmp_path)
    header, *rows = src.read_text().splitlines()
    src.write_text("\n".join([header, *(row + extra for row in rows)]))
    with pytest.raises(InputError, match=f"name for each column.*got {extra.count(',')} values"):
        run(src, tmp_path)
    assert not (tmp_path / "b.hdf5").exists()


def test_lists_of_unequal_length_in_parquet_matter_only_where_they_are_asked_for(tmp_path: Path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    src, made = tmp_path / "a.parquet", columns()
    lists = {key: values.tolist() for key, values in made.items()}
    lists["debug"] = [[1.0] * (row % 3) for row in range(N)]
    parquet.write_table(pa.table(lists), src)
    assert len(run(src, tmp_path)) == N - 2
    (tmp_path / "b.hdf5").unlink()
    lists["observations"][5] = [0.0]
    parquet.write_table(pa.table(lists), src)
    with pytest.raises(
        InputError, match=r"not numbers: of the shape \(3,\) in row 0, \(1,\) in row 5"
    ):
        run(src, tmp_path)
    assert not (tmp_path / "b.hdf5").exists()


def test_a_flipped_bit_in_a_parquet_file_with_checksums_is_not_trained_on(tmp_path: Path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    src, made = tmp_path / "a.parquet", columns()
    table = pa.table({key: values.tolist() for key, values in made.items()})
    parquet.write_table(
        table, src, write_page_checksum=True, compression="none", use_dictionary=False
    )
    data = bytearray(src.read_bytes())
    data[data.find(made["rewards"].tobytes()) + 5] ^= 1
    src.write_bytes(data)
    with pytest.raises(InputError, match="expected parquet in .*, got what cannot be read"):
        run(src, tmp_path)
    assert not (tmp_path / "b.hdf5").exists()


@pytest.mark.parametrize("kind", [as_npz, as_small_npz, as_npy, as_hdf5, as_pickle])
def test_damaged_files_are_refused_in_a_sentence(kind: Any, tmp_path: Path):
    src = kind(columns(), tmp_path)
    file = src / "observations.npy" if src.is_dir() else src
    data = file.read_bytes()
    for content in (b"", b"not one", data[:10], data[:100], data[: len(data) // 2]):
        file.write_bytes(content)
        with pytest.raises(InputError) as error:
            run(src, tmp_path)
        assert "\n" not in str(error.value)
    assert {path.name for path in tmp_path.iterdir()} == {src.name}


@pytest.mark.parametrize("kind", [as_npz, as_small_npz])
def test_a_flipped_bit_in_an_npz_is_not_trained_on(kind: Any, tmp_path: Path):
    src = kind(columns(), tmp_path)
    with zipfile.ZipFile(src) as archive:
        info = archive.getinfo("rewards.npy")
    data = bytearray(src.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.compress_size] ^= 1
    src.write_bytes(data)
    with pytest.raises(InputError, match="checksum|CRC|cannot be read") as error:
        run(src, tmp_path)
    assert "rewards" in str(error.value) and not (tmp_path / "b.hdf5").exists()


@pytest.mark.parametrize("kind", [as_npz, as_small_npz, as_npy, as_hdf5])
def test_mutated_files_are_read_or_refused(kind: Any, tmp_path: Path):
    rng = np.random.default_rng(1)
    src = kind(columns(), tmp_path)
    file = src / "observations.npy" if src.is_dir() else src
    data = file.read_bytes()
    for case in range(60):
        mutated = bytearray(data)
        area = len(data) if case % 2 else min(len(data), 600)
        for at in rng.integers(0, area, rng.integers(1, 4)):
            mutated[at] = rng.integers(256)
        file.write_bytes(bytes(mutated))
        try:
            run(src, tmp_path)
        except InputError as error:
            assert "\n" not in str(error)


def test_claims_larger_than_the_file_are_not_believed(tmp_path: Path):
    src = as_npy(columns(), tmp_path)
    file = src / "observations.npy"
    file.write_bytes(
        file.read_bytes().replace(b"(12, 3), }            ", b"(12000000000000, 3), }")
    )
    with pytest.raises(InputError, match="file that ends before"):
        run(src, tmp_path)
    with h5py.File(tmp_path / "a.h5", "w") as data:
        data.create_dataset("obs", (1 << 45,), "f8", chunks=(1 << 10,))
    with pytest.raises(InputError, match="fit in the file"):
        run(tmp_path / "a.h5", tmp_path)
    content = file.read_bytes()[:128]
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("obs.npy", content)
    with pytest.raises(InputError, match="got fewer"):
        run(tmp_path / "a.npz", tmp_path)


def test_paths_and_formats(tmp_path: Path):
    src = as_npz(columns(), tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.bin").write_bytes(src.read_bytes())
    for path, options, match in (
        (tmp_path / "no.npz", {}, "found nothing"),
        (tmp_path / "empty", {}, "found none"),
        (tmp_path / "a.bin", {}, "--format"),
        (tmp_path / "empty", {"format": "npz"}, "got a folder"),
        (src, {"format": "npy"}, "got a file"),
        (src, {"format": "hdf5"}, "foreign or damaged"),
        (src, {"stack_num": 0}, "at least 1"),
        (src, {"episode_length": 0}, "at least 1"),
    ):
        with pytest.raises(InputError, match=re.escape(match)) as error:
            run(path, tmp_path, **options)
        assert "\n" not in str(error.value)
    assert len(run(tmp_path / "a.bin", tmp_path, format="npz")) == 10
    single = columns(terminals=np.zeros(N, bool), timeouts=np.ones(N, bool))
    with pytest.raises(InputError, match="only episodes of one step"):
        run(as_npz(single, tmp_path), tmp_path)


@pytest.mark.skipif(not SAMPLES.exists(), reason="no sample files here")
def test_d4rl_files_are_arrays_too(tmp_path: Path):
    src = SAMPLES / "d4rl/hopper_medium-v2.hdf5"
    buffer = run(src, tmp_path)
    with h5py.File(src) as file:
        assert np.array_equal(buffer.obs, np.float32(file["observations"][()]))
        assert np.array_equal(buffer.obs_next, np.float32(file["next_observations"][()]))
        assert np.array_equal(buffer.terminated, file["terminals"][()].astype(bool).reshape(-1))
        assert buffer.truncated.sum() >= file["timeouts"][()].sum()


def test_a_large_table_is_not_read_row_by_row(tmp_path: Path):
    many = 200_000
    table = {
        "obs": np.zeros((many, 8), np.float32) + np.arange(many, dtype=np.float32)[:, None],
        "act": np.zeros((many, 2), np.float32),
        "rew": np.zeros(many),
        "terminated": np.arange(many) % 1000 == 999,
    }
    src = as_npy({**table, "obs_next": table["obs"]}, tmp_path)  # no row leads to another
    start = time.process_time()
    assert len(run(src, tmp_path)) == many
    (src / "obs_next.npy").unlink()
    assert len(run(src, tmp_path)) == many
    assert time.process_time() - start < 5
