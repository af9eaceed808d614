"""Walker episodes: both layouts against a plain loop."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tianshou_ext.data.convert.walker import convert
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

SAMPLES = Path(__file__).parents[3].parent / "shared/data/formats"
needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="needs the shared samples")


def collected(steps: int = 9, seed: int = 0) -> tuple[dict[str, Any], list[tuple[Any, ...]]]:
    """Return an episode as it is collected, and its transitions."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Any:
        return rng.normal(size=shape).astype(np.float32)

    obs = draw(24)
    rows = [(obs, np.zeros(6, np.float32), np.float32(0))]
    transitions = []
    for _ in range(steps):
        act, rew, obs_next = draw(6), draw(1)[0], draw(24)
        transitions.append((obs, act, rew, obs_next))
        rows.append((obs_next, act, rew))
        obs = obs_next
    observation, action, reward = (np.array(column) for column in zip(*rows, strict=True))
    data = {
        "observation": observation,
        "action": action,
        "reward": reward[:, None],
        "discount": np.ones((steps + 1, 1), np.float32),
        "physics": draw(steps + 1, 18),
    }
    return data, transitions


def shifted(data: dict[str, Any]) -> dict[str, Any]:
    moved = dict(data)
    for key in ("action", "reward"):
        moved[key] = np.concatenate([data[key][1:], np.zeros((1, data[key].shape[1]))])
    return moved


def save(folder: Path, number: int, data: dict[str, Any], steps: int | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"episode_{number:06d}_{steps or len(data['observation']) - 1}.npz"
    np.savez_compressed(path, **data)
    return path


def assert_holds(path: Path, episodes: list[list[tuple[Any, ...]]]) -> None:
    steps = [step for episode in episodes for step in episode]
    last = np.concatenate([np.arange(len(e)) == len(e) - 1 for e in episodes])
    for buffer in (load_buffer(path), ReplayBuffer.load_hdf5(str(path))):
        for k, key in enumerate(("obs", "act", "rew", "obs_next")):
            assert np.array_equal(buffer._meta[key], np.array([step[k] for step in steps])), key
            assert buffer._meta[key].dtype == np.float32
        assert not buffer.terminated.any() and np.array_equal(buffer.truncated, last)


@pytest.mark.parametrize("jobs", [1, 2])
def test_both_layouts_give_the_transitions_that_were_played(jobs: int, tmp_path: Path):
    folder = tmp_path / "walker_walk-td3-medium" / "data"
    first, second, third = (collected(9 + k, k) for k in range(3))
    save(folder, 999999, first[0])
    save(folder, 1000000, shifted(second[0]))  # sorts before the other by name
    save(folder, 5, third[0])
    report = convert(folder, tmp_path / "b", jobs=jobs, progress=False)
    assert_holds(tmp_path / "b", [third[1], first[1], second[1]])
    assert (report.rows, report.episodes, report.truncated) == (30, 3, 3)
    recorded = read_provenance(tmp_path / "b")
    assert recorded["layouts"] == {"raw": 2, "shifted": 1}
    assert recorded["dataset"] == "walker_walk-td3-medium"
    convert(folder, tmp_path / "b", episodes="1:2", progress=False)
    assert_holds(tmp_path / "b", [first[1]])


@needs_samples
@pytest.mark.parametrize("task", ["walk", "run"])
def test_the_samples(task: str, tmp_path: Path):
    raw = SAMPLES / "walker_npz" / f"walker_{task}-td3-medium"
    episodes = []
    for path in sorted((raw / "data").iterdir()):
        rows = np.load(path)
        obs, act, rew = rows["observation"], rows["action"], rows["reward"][:, 0]
        episodes.append([(obs[t - 1], act[t], rew[t], obs[t]) for t in range(1, len(obs))])
    for src in (raw, raw / "data", SAMPLES / "walker_npz_shifted" / raw.name):
        convert(src, tmp_path / "b", progress=False)
        assert_holds(tmp_path / "b", episodes)
    assert read_provenance(tmp_path / "b")["layouts"] == {"shifted": 3}


@needs_samples
def test_the_samples_of_both_tasks_with_the_tasks_bit(tmp_path: Path):
    report = convert(SAMPLES / "walker_npz", tmp_path / "b", task_bit=True, progress=False)
    buffer = load_buffer(tmp_path / "b")
    assert buffer.obs.shape == buffer.obs_next.shape == (360, 25)
    assert np.array_equal(buffer.obs[:, -1], np.repeat([1.0, 0.0], 180))  # run, walk
    assert np.array_equal(buffer.obs_next[:, -1], buffer.obs[:, -1])
    assert any("walk 0, run 1" in note for note in report.notes)
    report = convert(SAMPLES / "walker_npz", tmp_path / "b", progress=False)
    assert load_buffer(tmp_path / "b").obs.shape == (360, 24)
    assert any("--task-bit" in note for note in report.notes)


def test_a_zero_discount_is_a_true_end(tmp_path: Path):
    data, _ = collected()
    data["discount"][4] = data["discount"][9] = 0
    save(tmp_path / "a", 1, data)
    convert(tmp_path / "a", tmp_path / "b", progress=False)
    buffer = load_buffer(tmp_path / "b")
    assert np.flatnonzero(buffer.terminated).tolist() == [3, 8] and not buffer.truncated.any()


def test_the_bit_needs_a_name(tmp_path: Path):
    save(tmp_path / "mine" / "data", 1, collected()[0])
    with pytest.raises(InputError, match="walker_walk or walker_run"):
        convert(tmp_path / "mine", tmp_path / "b", task_bit=True, progress=False)


class Trap:
    """Fails when it is unpickled."""

    def __reduce__(self) -> Any:
        return (eval, ("1/0",))


def damage(path: Path, data: dict[str, Any], how: str) -> None:
    if how == "both zero":
        data["action"][-1] = 0
    elif how == "neither zero":
        data["action"][0] = 1
    elif how == "missing":
        del data["reward"]
    elif how == "unequal":
        data["action"] = data["action"][:-1]
    elif how == "shape":
        data["reward"] = np.ones((10, 2), np.float32)
    elif how == "integers":
        data["observation"] = data["observation"].astype(int)
    elif how == "text":
        data["discount"] = np.array([["x"]] * 10)
    elif how == "objects":
        data["action"] = np.array([[Trap()]] * 10, dtype=object)
    elif how == "nan":
        data["reward"][3] = np.nan
    elif how == "discount":
        data["discount"][3] = 2
    elif how == "inf":
        data["observation"][3, 1] = np.inf
    elif how == "width":
        data["observation"] = data["observation"][:, :20]
    elif how == "steps":
        data = {key: values[:-2] for key, values in data.items()}
        data["action"][0] = 0
    elif how == "no step":
        data = {key: values[:0] for key, values in data.items()}
    np.savez_compressed(path, **data)
    if how == "short":
        path.write_bytes(path.read_bytes()[:-300])
    elif how == "bits":
        octets = bytearray(path.read_bytes())
        octets[200:260] = bytes(60)
        path.write_bytes(octets)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "foreign":
        path.write_bytes(b"no npz" * 9)
    elif how == "huge":
        header = io.BytesIO()
        shape = {"descr": "<f4", "fortran_order": False, "shape": (10**11, 24)}
        np.lib.format.write_array_header_1_0(header, shape)
        with zipfile.ZipFile(path, "w") as archive:
            for key in ("observation", "action", "reward", "discount"):
                archive.writestr(f"{key}.npy", header.getvalue())


HOW = (
    *("both zero", "neither zero", "missing", "unequal", "shape", "integers", "text", "objects"),
    *(
        "nan",
        "inf",
        "discount",
        "width",
        "steps",
        "no step",
        "short",
        "bits",
        "empty",
        "foreign",
        "huge",
    ),
)


@pytest.mark.parametrize("how", HOW)
def test_a_bad_file_stops_or_is_left_out(how: str, tmp_path: Path):
    folder = tmp_path / "walker_run"
    first, second, third = (collected(9, k) for k in range(3))
    save(folder, 1, first[0])
    bad = save(folder, 2, second[0])
    save(folder, 3, third[0])
    damage(bad, second[0], how)
    with pytest.raises(InputError) as caught:
        convert(folder, tmp_path / "b", progress=False)
    text = str(caught.value)
    assert text.startswith("expected") and str(bad) in text and "\n" not in text
    if how == "nan":
        assert "reward is NaN or infinite in row 3" in text
    assert list(tmp_path.iterdir()) == [folder]
    report = convert(folder, tmp_path / "b", on_error="skip", progress=False)
    assert [fault.file for fault in report.faults] == [str(bad)]
    assert_holds(tmp_path / "b", [first[1], third[1]])


def test_a_source_that_is_none(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder", "missing"):
        with pytest.raises(InputError, match=f"expected .*{name}"):
            convert(tmp_path / name, tmp_path / "b", progress=False)
