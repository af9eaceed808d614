"""D4RL: every generation against plain loops over the rows of the file."""

from __future__ import annotations

import http.server
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tianshou_ext.data.convert import d4rl
from tianshou_ext.data.convert.d4rl import convert
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

SAMPLES = Path(__file__).parents[3].parent / "shared/data/formats"
D4RL = SAMPLES / "d4rl"
needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="needs the shared samples")
KEYS = ("obs", "act", "rew", "terminated", "truncated", "obs_next")

# Sample, its time limit where it has no timeouts, whether terminals end an episode.
FILES = {
    "hopper_medium-v0": (25, True),
    "hopper_medium-v1": (None, True),
    "hopper_medium-v2": (None, True),
    "antmaze-medium-play-v2": (None, False),
    "maze2d-umaze-v1": (None, True),
    "door-human-v1": (None, True),
    "kitchen-mixed-v0": (0, True),
}


def raw(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        data = {key: file[key][()] for key in file if isinstance(file[key], h5py.Dataset)}
    data["rewards"] = data["rewards"].reshape(-1)
    data["terminals"] = data["terminals"].reshape(-1).astype(bool)
    return data


def expected(data: dict[str, Any], limit: int | None, terminals_end: bool = True) -> dict[str, Any]:
    """Read a file step by step: one list of steps an episode, then its end."""
    episodes: list[list[dict[str, Any]]] = [[]]
    count = len(data["rewards"])
    for i in range(count):
        terminated = bool(data["terminals"][i])
        if "timeouts" in data:
            timeout = bool(data["timeouts"][i])
        else:
            timeout = bool(limit) and len(episodes[-1]) == limit - 1 and not terminated
        step = {
            "obs": data["observations"][i],
            "act": data["actions"][i],
            "rew": data["rewards"][i],
            "terminated": terminated,
            "truncated": timeout,
            "obs_next": None,
        }
        if "next_observations" in data:
            step["obs_next"] = data["next_observations"][i]
        if episodes[-1] and episodes[-1][-1]["obs_next"] is None:
            episodes[-1][-1]["obs_next"] = step["obs"]
        episodes[-1].append(step)
        if timeout or (terminated and terminals_end):
            episodes.append([])
    steps = []
    for episode in episodes:
        if episode and episode[-1]["obs_next"] is None:
            if episode[-1]["terminated"]:
                episode[-1]["obs_next"] = episode[-1]["obs"]
            else:
                episode.pop()
        if episode and not episode[-1]["terminated"]:
            episode[-1]["truncated"] = True
        steps += episode
    return {key: np.array([step[key] for step in steps]) for key in KEYS}


def d4rls_own(data: dict[str, Any], limit: int | None) -> tuple[dict[str, Any], list[int]]:
    """Loop as d4rl's qlearning_dataset does, its counter's quirk included."""
    rows, counter = [], 0
    for i in range(len(data["rewards"]) - 1):
        last = data["timeouts"][i] if "timeouts" in data else counter == limit - 1
        if last:
            counter = 0
            continue
        if data["terminals"][i]:
            counter = 0
        rows.append(i)
        counter += 1
    successors = [i + 1 for i in rows]
    columns = {
        "obs": data["observations"][rows].astype(np.float32),
        "obs_next": data["observations"][successors].astype(np.float32),
        "act": data["actions"][rows].astype(np.float32),
        "rew": data["rewards"][rows].astype(np.float32),
        "terminated": data["terminals"][rows],
    }
    return columns, rows


def assert_holds(path: Path, columns: dict[str, Any]) -> None:
    for buffer in (load_buffer(path), ReplayBuffer.load_hdf5(str(path))):
        assert len(buffer) == buffer.maxsize == len(columns["rew"])
        for key, values in columns.items():
            assert np.array_equal(buffer._meta[key], values), key
        assert buffer.obs.dtype == buffer.rew.dtype == np.float32


def synthetic(count: int = 300, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return arrays in D4RL's layout, episodes of up to 20 steps, some ended by terminals."""
    rng = np.random.default_rng(seed)
    data = {
        "observations": rng.normal(size=(count, 3)).astype(np.float32),
        "actions": rng.normal(size=(count, 2)).astype(np.float32),
        "rewards": rng.normal(size=count).astype(np.float32),
        "terminals": rng.random(count) < 0.06,
    }
    timeouts, steps = np.zeros(count, bool), 0
    for i in range(count):
        steps += 1
        timeouts[i] = steps == 20 and not data["terminals"][i]
        steps = 0 if timeouts[i] or data["terminals"][i] else steps
    return {**data, "timeouts": timeouts, **changes}


def write(path: Path, data: dict[str, Any]) -> Path:
    with h5py.File(path, "w") as file:
        for key, values in data.items():
            if values is not None:
                file[key] = values
        file["metadata/algorithm"] = np.bytes_("SAC")
    return path


@needs_samples
@pytest.mark.parametrize("name", FILES)
def test_the_samples(name: str, tmp_path: Path):
    limit, terminals_end = FILES[name]
    path, dst = D4RL / f"{name}.hdf5", tmp_path / "b.hdf5"
    report = convert(path, dst, max_episode_steps=limit, progress=False)
    columns = expected(raw(path), limit, terminals_end)
    assert_holds(dst, columns)
    assert report.rows == len(columns["rew"]) and not report.faults
    recorded = read_provenance(dst)
    assert recorded["dataset"] == name.replace("_", "-")
    assert recorded["ordered"] and recorded["inputs"]["files"] == 1
    assert "metadata" not in str(recorded) and len(recorded["reference_scores"]) == 2


@needs_samples
@pytest.mark.parametrize("name", FILES)
def test_the_samples_as_d4rl_reads_them(name: str, tmp_path: Path):
    path, dst = D4RL / f"{name}.hdf5", tmp_path / "b.hdf5"
    limit = 280 if name.startswith("kitchen") else FILES[name][0]
    given = None if name.startswith("kitchen") else limit
    convert(path, dst, qlearning=True, max_episode_steps=given, progress=False)
    columns, rows = d4rls_own(raw(path), limit)
    assert_holds(dst, columns)
    assert_ends_where_the_next_row_is_another(dst, rows)


def assert_ends_where_the_next_row_is_another(dst: Path, rows: list[int]) -> None:
    buffer = load_buffer(dst)
    gaps = np.append(np.diff(rows) != 1, True)
    assert (buffer.truncated | buffer.terminated)[gaps].all()
    assert not (buffer.truncated & buffer.terminated).any()


@needs_samples
def test_v1_and_v2_hold_the_same_steps(tmp_path: Path):
    for name in ("v1", "v2"):
        convert(D4RL / f"hopper_medium-{name}.hdf5", tmp_path / name, progress=False)
    old, new = load_buffer(tmp_path / "v1"), load_buffer(tmp_path / "v2")
    assert len(new) == 200  # v1 loses its 6 timeouts and the unfinished last row
    assert len(old) == 193
    where = [int(np.flatnonzero((new.obs == obs).all(1))[0]) for obs in old.obs]
    assert np.array_equal(old.obs_next[~old.terminated], new.obs_next[where][~old.terminated])
    assert new.truncated[-1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["v0", "v1", "v2", "goals"])
@pytest.mark.parametrize("qlearning", [False, True])
def test_made_up_files(kind: str, qlearning: bool, seed: int, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(d4rl, "BLOCK_BYTES", 700)  # many blocks
    data = synthetic(seed=seed)
    rng = np.random.default_rng(seed)
    if kind == "v0":
        del data["timeouts"]
    if kind == "v2":
        data["next_observations"] = rng.normal(size=(300, 3)).astype(np.float32)
        data["timeouts"] |= data["terminals"] & (rng.random(300) < 0.3)  # both flags
    if kind == "goals":
        data["terminals"] = (rng.random(300) < 0.4).astype(np.float32)
        data["terminals"][::7] = 1
        data["rewards"] = data["terminals"].copy()
    path = write(tmp_path / ("antmaze.hdf5" if kind == "goals" else "a.hdf5"), data)
    steps = 20 if kind == "v0" else None
    convert(path, tmp_path / "b", qlearning=qlearning, max_episode_steps=steps, progress=False)
    data["terminals"] = data["terminals"].astype(bool)
    if qlearning:
        columns, rows = d4rls_own(data, 20)
        assert_ends_where_the_next_row_is_another(tmp_path / "b", rows)
    else:
        columns = expected(data, 20, kind != "goals")
    assert_holds(tmp_path / "b", columns)


def test_the_counter_of_d4rl_cuts_one_step_early_after_a_terminal(tmp_path: Path):
    data = synthetic(60, timeouts=None)
    data["terminals"][:] = False
    data["terminals"][4] = True
    path = write(tmp_path / "a.hdf5", data)
    convert(path, tmp_path / "b", qlearning=True, max_episode_steps=10, progress=False)
    kept = [i for i in range(59) if i not in (13, 23, 33, 43, 53)]
    buffer = load_buffer(tmp_path / "b")
    assert np.array_equal(buffer.obs, data["observations"][kept])
    crossing = kept.index(14)  # the true tenth step: what follows is another episode
    assert buffer.truncated[crossing]


def test_goal_rows_are_done_but_lead_on(tmp_path: Path):
    data = synthetic(40)
    data["terminals"] = np.zeros(40, np.float32)
    data["terminals"][[10, 11, 12, 25]] = 1
    data["timeouts"] = np.arange(40) % 20 == 19
    path = write(tmp_path / "data.hdf5", data)
    with h5py.File(path, "a") as file:
        file["infos/goal"] = np.zeros((40, 2))
    report = convert(path, tmp_path / "b", progress=False)
    buffer = load_buffer(tmp_path / "b")
    assert len(buffer) == 38 and report.terminated == 4 and report.truncated == 2
    assert np.array_equal(buffer.obs_next[:19], data["observations"][1:20])
    assert buffer.done[[10, 11, 12, 18, 24, 37]].all() and buffer.done.sum() == 6
    assert any("4 terminals inside" in note for note in report.notes)
    # chosen are whole trajectories, not what lies between two terminals
    convert(path, tmp_path / "b", episodes="1:2", progress=False)
    assert np.array_equal(load_buffer(tmp_path / "b").obs, data["observations"][20:39])


def test_an_episode_of_one_cut_step_disappears(tmp_path: Path):
    timeouts = np.array([0, 1, 1, 0, 0], bool)
    data = synthetic(5, timeouts=timeouts, terminals=np.zeros(5, bool))
    report = convert(write(tmp_path / "a.hdf5", data), tmp_path / "b", progress=False)
    buffer = load_buffer(tmp_path / "b")
    assert np.array_equal(buffer.obs, data["observations"][[0, 3]]) and buffer.truncated.all()
    assert any("1 episodes had no others" in note for note in report.notes)


def test_columns_of_other_shapes_and_types(tmp_path: Path):
    data = synthetic(50)
    flat = expected(data, None)
    data["rewards"] = data["rewards"].astype(np.float64)[:, None]
    data["terminals"] = data["terminals"].astype(np.float32)[:, None]
    data["observations"] = data["observations"].astype(np.float64)
    convert(write(tmp_path / "a.hdf5", data), tmp_path / "b", progress=False)
    assert_holds(tmp_path / "b", flat)
    data["actions"] = np.arange(50, dtype=np.int32)
    convert(write(tmp_path / "a.hdf5", data), tmp_path / "b", progress=False)
    assert load_buffer(tmp_path / "b").act.dtype == np.int64


@pytest.mark.parametrize("options", [{"fraction": 0.3}, {"episodes": "3:9"}])
def test_a_part_is_whole_episodes(options: Any, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(d4rl, "BLOCK_BYTES", 400)
    data = synthetic(600)
    data["next_observations"] = np.random.default_rng(1).normal(size=(600, 3)).astype(np.float32)
    path = write(tmp_path / "a.hdf5", data)
    convert(path, tmp_path / "all", progress=False)
    convert(path, tmp_path / "part", progress=False, **options)
    whole, part = load_buffer(tmp_path / "all"), load_buffer(tmp_path / "part")
    edges = np.append(0, np.flatnonzero(whole.done) + 1)
    starts = {whole.obs[a].tobytes(): (a, b) for a, b in itertools.pairwise(edges)}
    place = 0
    while place < len(part):
        first, stop = starts[part.obs[place].tobytes()]
        size = stop - first
        for key in KEYS:
            assert np.array_equal(
                part._meta[key][place : place + size], whole._meta[key][first:stop]
            )
        place += size
    count = len(edges) - 1
    assert part.done.sum() == (6 if "episodes" in options else int(count * 0.3 + 1e-9))


def test_the_time_limit_comes_from_name_or_option(tmp_path: Path):
    data = synthetic(2100, timeouts=None, terminals=np.zeros(2100, bool))
    report = convert(write(tmp_path / "hopper_mixed.hdf5", data), tmp_path / "b", progress=False)
    assert (report.rows, report.episodes) == (2100 - 3, 3)
    assert read_provenance(tmp_path / "b")["max_episode_steps"] == 1000
    assert read_provenance(tmp_path / "b")["dataset"] == "hopper-medium-replay-v0"
    path = write(tmp_path / "other.hdf5", data)
    with pytest.raises(InputError, match="max-episode-steps"):
        convert(path, tmp_path / "c", progress=False)
    with pytest.raises(InputError, match="0 or more"):
        convert(path, tmp_path / "c", max_episode_steps=-1, progress=False)
    assert convert(path, tmp_path / "c", max_episode_steps=0, progress=False).episodes == 1


# Faults


def break_file(path: Path, how: str) -> None:
    data = synthetic(60)
    if how == "missing":
        del data["rewards"]
    elif how == "unequal":
        data["actions"] = data["actions"][:-1]
    elif how == "text":
        data["actions"] = np.array([b"x"] * 60)
    elif how == "objects":
        data["actions"] = None
    elif how == "group":
        data["observations"] = None
    elif how == "scalar":
        data["rewards"] = 3.0
    elif how == "wide":
        data["rewards"] = np.ones((60, 2))
    elif how == "flags":
        data["terminals"] = np.full(60, np.nan)
    elif how == "none":
        data = {key: values[:0] for key, values in data.items()}
    elif how == "all timeouts":
        data |= {"terminals": np.zeros(60), "timeouts": np.ones(60)}
        data.pop("next_observations", None)
    elif how == "next":
        data["next_observations"] = np.zeros((60, 4))
    write(path, data)
    with h5py.File(path, "a") as file:
        if how == "group":
            file["observations/x"] = 1
        if how == "empty rows":
            for key in ("observations", "next_observations"):
                file.pop(key, None)
            file["observations"] = np.zeros((60, 0), np.float32)
        if how == "negative action":
            del file["actions"]
            file["actions"] = np.full(60, -1)
        if how == "objects":
            kind = h5py.vlen_dtype(np.float32)
            file.create_dataset("actions", (60,), kind)
        if how == "huge":
            del file["observations"]
            file.create_dataset("observations", (60, 10**12), np.float32, chunks=(1, 1024))
    if how == "short":
        path.write_bytes(path.read_bytes()[:-700])
    elif how == "foreign":
        path.write_bytes(b"no HDF5 at all")
    elif how == "empty":
        path.write_bytes(b"")


BAD = (
    *("missing", "unequal", "text", "objects", "group", "scalar", "wide", "flags", "none"),
    *("next", "huge", "short", "foreign", "empty", "empty rows", "negative action"),
    "all timeouts",
)


@pytest.mark.parametrize("how", BAD)
def test_a_bad_file_is_refused_in_one_sentence(how: str, tmp_path: Path):
    path = tmp_path / "a.hdf5"
    break_file(path, how)
    with pytest.raises(InputError) as caught:
        convert(path, tmp_path / "b.hdf5", progress=False)
    text = str(caught.value)
    assert text.startswith("expected") and str(path) in text and "\n" not in text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("src", "match"),
    [
        ("nowhere/x.hdf5", "found none"),
        ("hoper-medium-v2", "hopper-medium-v2"),
        ("Hopper-v4", "got the task"),
        (".", "got the folder"),
    ],
)
def test_a_source_that_is_none(src: str, match: str, tmp_path: Path):
    with pytest.raises(InputError, match=match):
        convert(src, tmp_path / "b.hdf5", progress=False)


@pytest.mark.parametrize("key", ["observations", "actions", "rewards"])
def test_unsound_numbers_stop_or_are_left_out_by_the_episode(key: str, tmp_path: Path):
    data = synthetic(300)
    starts = np.append(0, np.flatnonzero(data["timeouts"] | data["terminals"]) + 1)
    data[key][starts[4] + 1] = np.nan
    path = write(tmp_path / "a.hdf5", data)
    with pytest.raises(InputError, match=f"NaN or infinite in row {starts[4] + 1}"):
        convert(path, tmp_path / "b", progress=False)
    report = convert(path, tmp_path / "b", on_error="skip", progress=False)
    assert len(report.faults) == 1 and str(starts[4]) in report.faults[0].record
    kept = np.r_[: starts[4], starts[5] : 300]
    whole = expected({k: v[kept] for k, v in data.items()}, None)
    assert_holds(tmp_path / "b", whole)


def test_a_reward_beyond_float32_is_refused_without_a_warning_of_numpy(
    tmp_path: Path, recwarn: Any
):
    data = synthetic(60)
    data["rewards"] = np.where(np.arange(60) == 3, 1e300, 0.0)
    path = write(tmp_path / "a.hdf5", data)
    with pytest.raises(InputError, match="rew is NaN or infinite in row 3"):
        convert(path, tmp_path / "b", progress=False)
    assert not recwarn.list


def test_a_damaged_chunk_costs_its_episodes(tmp_path: Path):
    data = synthetic(300)
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        for key, values in data.items():
            chunks = (50, *values.shape[1:])
            file.create_dataset(key, data=values, chunks=chunks, compression="gzip", shuffle=True)
        chunk = file["actions"].id.get_chunk_info(2)
    octets = bytearray(path.read_bytes())
    octets[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(octets)
    with pytest.raises(InputError, match="cannot be read"):
        convert(path, tmp_path / "b", progress=False)
    report = convert(path, tmp_path / "b", on_error="skip", progress=False)
    buffer = load_buffer(tmp_path / "b")
    assert report.faults and not np.isin(buffer.obs[:, 0], data["observations"][100:150, 0]).any()
    assert np.isin(data["observations"][:60, 0], buffer.obs[:, 0]).sum() > 50


# Downloads


class Server(http.server.BaseHTTPRequestHandler):
    """Serves ``content`` with ranges; breaks off after ``cut`` bytes if that is set."""

    content = b""
    cut: int | None = None
    asked: list[str | None]

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append(f"{self.path} {wanted}")
        start = int(wanted.split("=")[1].rstrip("-")) if wanted else 0
        if start >= len(self.content):
            self.send_error(416)
            return
        body = self.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            total = len(self.content)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.end_headers()
        self.wfile.write(body if self.cut is None else body[: self.cut])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: Any, tmp_path: Path) -> Iterator[type[Server]]:
    write(tmp_path / "source.hdf5", synthetic(300))
    Server.content, Server.cut, Server.asked = (tmp_path / "source.hdf5").read_bytes(), None, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr(d4rl, "DATASETS", f"http://127.0.0.1:{running.server_port}/datasets/")
        monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield Server
        running.shutdown()


def test_an_id_is_downloaded_once_and_goes_on_after_a_break(server: type[Server], tmp_path: Path):
    file = tmp_path / "cache/hopper_medium-v2.hdf5"
    server.cut = 1000
    with pytest.raises(InputError, match="by hand") as caught:
        convert("hopper-medium-v2", tmp_path / "b", progress=False)
    assert str(file) in str(caught.value) and not file.exists()
    server.cut = None
    convert("hopper-medium-v2", tmp_path / "b", progress=False)
    place = "/datasets/offline_rl/gym_mujoco_v2/hopper_medium-v2.hdf5"
    assert server.asked == [f"{place} None", f"{place} bytes=1000-"]
    assert file.read_bytes() == server.content
    assert_holds(tmp_path / "b", expected(synthetic(300), None))
    convert("hopper-medium-v2", tmp_path / "b", progress=False)
    assert len(server.asked) == 2
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_left_over_that_is_too_long_is_fetched_anew(server: type[Server], tmp_path: Path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/hopper_medium-v2.hdf5.partial").write_bytes(bytes(len(server.content) + 5))
    convert("hopper-medium-v2", tmp_path / "b", progress=False)
    assert (tmp_path / "cache/hopper_medium-v2.hdf5").read_bytes() == server.content


def test_without_a_network_the_place_of_the_file_is_named(monkeypatch: Any, tmp_path: Path):
    monkeypatch.setattr(d4rl, "DATASETS", "http://127.0.0.1:9/datasets/")
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="hopper_medium-v2.hdf5") as caught:
        convert("hopper-medium-v2", tmp_path / "b", progress=False)
    assert "\n" not in str(caught.value) and "by hand" in str(caught.value)
