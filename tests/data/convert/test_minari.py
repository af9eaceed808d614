"""Minari datasets against an independent reading, gymnasium's flatten and the minari package."""

from __future__ import annotations

import io
import json
import pickle
import sys
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.spaces.utils import flatten as gymnasium_flatten
from tianshou.data import Batch

from tianshou_ext.data.convert.minari import convert
from tianshou_ext.data.convert.minari_episodes import read_episode
from tianshou_ext.data.convert.minari_files import open_dataset
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.errors import InputError
from tianshou_ext.policy import BCPolicy
from tianshou_ext.tianshou_api import ReplayBuffer

SAMPLES = Path(__file__).parents[3].parent / "shared/data/formats"
needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="no sample files here")
RNG = np.random.default_rng(0)

HDF5_IDS = [
    "sample/cartpole/random-v0",
    "sample/cartpole/timelimit-v0",
    "sample/hopper/random-v0",
    "sample/pointmaze/umaze-v0",
    "sample/toy/dict-v0",
    "sample/toy/img-jpeg-v0",
    "sample/toy/img-raw-v0",
]
FLAT = {"type": "Box", "dtype": "float64", "shape": [3], "low": [-1, -2, -3], "high": [1, 2, 3]}
TWO = {"type": "Discrete", "dtype": "int64", "start": 0, "n": 2}


def episode(steps: int, **changes: Any) -> dict[str, Any]:
    made = {
        "observations": RNG.normal(size=(steps + 1, 3)),
        "actions": RNG.integers(0, 2, steps),
        "rewards": RNG.normal(size=steps),
        "terminations": np.arange(steps) == steps - 1,
        "truncations": np.zeros(steps, bool),
    } | changes
    return {key: values for key, values in made.items() if values is not None}


def store(group: Any, key: str, values: Any) -> None:
    if isinstance(values, dict | tuple):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for name, part in items:
            store(
                group.require_group(key), f"_index_{name}" if isinstance(name, int) else name, part
            )
    else:
        group[key] = values


def write(
    root: Path, episodes: list[dict[str, Any]], obs: Any = FLAT, act: Any = TWO, **metadata: Any
) -> Path:
    """Write a dataset as Minari 0.5 does."""
    data = root / "data"
    data.mkdir(parents=True, exist_ok=True)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number, columns in enumerate(episodes):
            for key, values in columns.items():
                store(file.require_group(f"episode_{number}"), key, values)
    about = {
        "data_format": "hdf5",
        "dataset_id": "a/b-v0",
        "observation_space": json.dumps(obs),
        "action_space": json.dumps(act),
        **metadata,
    }
    about = {key: value for key, value in about.items() if value is not None}
    (data / "metadata.json").write_text(json.dumps(about))
    return root


def both(path: Path) -> list[ReplayBuffer]:
    return [load_buffer(path), ReplayBuffer.load_hdf5(str(path))]


def run(src: str | Path, tmp_path: Path, **options: Any) -> ReplayBuffer:
    convert(str(src), tmp_path / "b.hdf5", progress=False, **options)
    return load_buffer(tmp_path / "b.hdf5")


def equal(one: Any, two: Any) -> bool:
    if isinstance(one, dict | Batch):
        names = {*one.keys()}
        return names == {*two.keys()} and all(equal(one[key], two[key]) for key in names)
    return one.shape == two.shape and np.array_equal(one, two)


def arrays(values: Any, path: str = "") -> dict[str, Any]:
    """Return nested arrays by path."""
    if not isinstance(values, dict | Batch):
        return {path: values}
    return {
        k: v for key in {*values.keys()} for k, v in arrays(values[key], f"{path}/{key}").items()
    }


def at(row: int, values: Any) -> Any:
    """Return one row of nested arrays."""
    if isinstance(values, dict):
        return {key: at(row, part) for key, part in values.items()}
    return values[row]


def of_space(said: dict[str, Any]) -> spaces.Space:
    """As minari.serialization does it."""
    match said["type"]:
        case "Dict":
            return spaces.Dict({key: of_space(part) for key, part in said["subspaces"].items()})
        case "Tuple":
            return spaces.Tuple([of_space(part) for part in said["subspaces"]])
        case "Box":
            low, high = (np.array(said[key], said["dtype"]) for key in ("low", "high"))
            return spaces.Box(low, high, tuple(said["shape"]), said["dtype"])
        case "Discrete":
            return spaces.Discrete(said["n"], start=said["start"])
        case "MultiDiscrete":
            return spaces.MultiDiscrete(said["nvec"])
        case "Text":
            return spaces.Text(said["max_length"], charset=said["charset"])
        case _:
            return spaces.MultiBinary(said["n"])


def read_plainly(item: Any, space: dict[str, Any]) -> Any:
    """Read what HDF5 holds, in the straightforward way."""
    if isinstance(item, h5py.Group):
        parts = space["subspaces"]
        return {key: read_plainly(item[key], parts[key]) for key in item}
    values = item[()]
    if values.dtype == object or (space["type"] == "Box" and values.ndim < len(space["shape"]) + 1):
        from PIL import Image

        return np.stack([np.array(Image.open(io.BytesIO(v.tobytes()))) for v in values])
    return values.astype(np.float32) if values.dtype == np.float64 else values


@needs_samples
@pytest.mark.parametrize("name", HDF5_IDS)
def test_holds_what_the_file_holds(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(SAMPLES / "minari"))
    run(name, tmp_path)
    folder = SAMPLES / "minari" / name / "data"
    about = json.loads((folder / "metadata.json").read_text())
    obs_space, act_space = (json.loads(about[f"{k}_space"]) for k in ("observation", "action"))
    for buffer in both(tmp_path / "b.hdf5"):
        row = 0
        with h5py.File(folder / "main_data.hdf5") as file:
            for number in range(len(file)):
                group = file[f"episode_{number}"]
                steps = len(group["rewards"])
                here = slice(row, row + steps)
                obs = read_plainly(group["observations"], obs_space)
                obs = Batch(obs) if isinstance(obs, dict) else obs
                assert equal(buffer.obs[here], obs[:-1])
                assert equal(buffer.obs_next[here], obs[1:])
                act = group["actions"][()] - act_space.get("start", 0) * np.int64(1)
                assert np.array_equal(buffer.act[here], act)
                assert np.array_equal(buffer.rew[here], np.float32(group["rewards"][()]))
                assert np.array_equal(buffer.terminated[here], group["terminations"][()])
                truncated = group["truncations"][()]
                truncated[-1] |= not group["terminations"][-1]
                assert np.array_equal(buffer.truncated[here], truncated)
                row += steps
        assert len(buffer) == row == about["total_steps"]
    assert read_provenance(tmp_path / "b.hdf5")["dataset"] == name


@needs_samples
@pytest.mark.parametrize("name", HDF5_IDS)
def test_flattens_as_gymnasium_does(name: str, tmp_path: Path):
    folder = SAMPLES / "minari" / name
    about = json.loads((folder / "data/metadata.json").read_text())
    space = of_space(json.loads(about["observation_space"]))
    nested, flat = run(folder, tmp_path).obs, run(folder, tmp_path, flatten=True).obs
    assert flat.shape == (len(nested), spaces.utils.flatdim(space))
    for row in (0, 3, len(nested) - 1):
        one = nested[row].to_dict() if isinstance(nested, Batch) else nested[row]
        assert np.array_equal(flat[row], gymnasium_flatten(space, one).astype(flat.dtype))


@pytest.mark.parametrize(
    "name", [*HDF5_IDS, "sample/cartpole/random-arrow-v0", "sample/pointmaze/umaze-arrow-v0"]
)
@needs_samples
def test_holds_what_the_minari_package_reads(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = pytest.importorskip("minari", "0.5")
    if not hasattr(spaces.MultiDiscrete([2]), "start"):
        pytest.skip("minari 0.5 needs a newer gymnasium")
    if "arrow" in name:
        pytest.importorskip("pyarrow", exc_type=ImportError)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(SAMPLES / "minari"))
    dataset = package.load_dataset(name)
    buffer, row = run(name, tmp_path), 0
    flat = run(name, tmp_path, flatten=True)
    for one in dataset.iterate_episodes():
        here = slice(row, row + len(one.rewards))
        read = arrays(one.observations)
        for stored, rows in ((buffer.obs, slice(-1)), (buffer.obs_next, slice(1, None))):
            ours = arrays(stored)
            assert {*ours} == {*read}
            for path, values in read.items():
                assert np.array_equal(ours[path][here], values[rows].astype(ours[path].dtype))
        first = gymnasium_flatten(dataset.observation_space, at(0, one.observations))
        assert np.array_equal(flat.obs[row], first.astype(flat.obs.dtype))
        start = getattr(dataset.action_space, "start", 0)
        assert np.array_equal(buffer.act[here], one.actions - start)
        assert np.array_equal(buffer.rew[here], one.rewards.astype(np.float32))
        assert np.array_equal(buffer.terminated[here], one.terminations)
        row += len(one.rewards)
    assert len(buffer) == row


@needs_samples
def test_old_metadata_in_the_hdf5_file(tmp_path: Path):
    folder = SAMPLES / "minari_043/cartpole-random-v0"
    for src in (folder, folder / "data", folder / "data/main_data.hdf5"):
        buffer = run(src, tmp_path)
        assert len(buffer) == 58
    about = read_provenance(tmp_path / "b.hdf5")
    assert (about["dataset"], about["task"]) == ("cartpole-random-v0", "CartPole-v1")
    assert about["action_space"]["n"] == 2 and about["notes"][-1].startswith("1 rows are both")


def test_episodes_go_by_number(tmp_path: Path):
    write(tmp_path / "d", [episode(2, rewards=np.full(2, k)) for k in range(12)])
    assert run(tmp_path / "d", tmp_path).rew.tolist() == sorted([*range(12)] * 2)
    assert run(tmp_path / "d", tmp_path, episodes="9:11").rew.tolist() == [9, 9, 10, 10]


def test_an_episode_can_be_read_in_another_process(tmp_path: Path):
    source = open_dataset(write(tmp_path / "d", [episode(3)]))
    read = pickle.loads(pickle.dumps(partial(read_episode, source, True)))
    assert isinstance(read(0)[0], dict) and read(0)[1] == []


def test_ends(tmp_path: Path):
    one = np.array([False, False, True])
    none = np.zeros(3, bool)
    episodes = [
        episode(3),
        episode(3, terminations=none, truncations=one),
        episode(3, terminations=none),
        episode(3, truncations=one),
        episode(3, observations=RNG.normal(size=(3, 3)), terminations=none, truncations=one),
        episode(3, observations=RNG.normal(size=(3, 3))),
    ]
    buffer = run(write(tmp_path / "d", episodes), tmp_path)
    ends = [0, 0, 1]
    assert buffer.terminated.tolist() == [*ends, 0, 0, 0, 0, 0, 0, *ends, 0, 0, *ends]
    assert buffer.truncated.tolist() == [0, 0, 0, *ends, *ends, *ends, 0, 1, 0, 0, 0]
    assert np.array_equal(buffer.obs_next[12:14], np.float32(episodes[4]["observations"][1:]))
    assert np.array_equal(buffer.obs_next[16], buffer.obs[16])
    notes = read_provenance(tmp_path / "b.hdf5")["notes"]
    for part in ("end without a flag", "lack their last", "after their terminal", "are both"):
        assert sum(part in note for note in notes) == 1


def test_discrete_actions_count_from_zero(tmp_path: Path):
    episodes = [episode(4, actions=np.array([3, 4, 5, 3]))]
    root = write(tmp_path / "d", episodes, act={"type": "Discrete", "start": 3, "n": 3})
    buffer = run(root, tmp_path)
    assert buffer.act.tolist() == [0, 1, 2, 0] and buffer.act.dtype == np.int64
    about = read_provenance(tmp_path / "b.hdf5")
    assert about["action_start"] == 3 and "from 3" in about["notes"][0]
    with pytest.raises(InputError, match="episode 0: actions holds values outside"):
        run(write(tmp_path / "d", episodes, act={"type": "Discrete", "start": 2, "n": 3}), tmp_path)


def test_actions_are_scaled_from_their_bounds(tmp_path: Path):
    """Humanoid's lie within 0.4: learned as they are, a policy would do 0.4 of what was done."""
    box = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-0.4, 0.0], "high": [0.4, 3.0]}
    stored = np.float32([[0.4, 0.0], [-0.4, 3.0], [0.2, 1.5]])
    root = write(tmp_path / "d", [episode(3, actions=stored)], act=box)
    scaled = run(root, tmp_path).act
    assert np.allclose(scaled, [[1, -1], [-1, 1], [0.5, 0]], atol=1e-6)
    space = spaces.Box(np.float32([-0.4, 0.0]), np.float32([0.4, 3.0]))
    policy = BCPolicy.build(spaces.Box(-1.0, 1.0, (3,)), space, obs_norm="none")
    assert np.allclose(policy.map_action(scaled), stored, atol=1e-6)
    about = read_provenance(tmp_path / "b.hdf5")
    assert about["actions_scaled"] and "actions within -0.4 to 3 are scaled" in about["notes"][0]
    with pytest.raises(
        InputError, match=r"episode 0: actions from -0.5 to 3, outside their bounds"
    ):
        stored[1, 0] = -0.5
        run(write(tmp_path / "e", [episode(3, actions=stored)], act=box), tmp_path)
    for bounds in ({"low": -1, "high": 1}, {"low": None, "high": None}, {"low": 0, "high": "Inf"}):
        plain = box | {k: float(v) if isinstance(v, str) else v for k, v in bounds.items()}
        kept = run(write(tmp_path / "f", [episode(3, actions=stored)], act=plain), tmp_path).act
        assert np.array_equal(kept, stored)
        assert not read_provenance(tmp_path / "b.hdf5")["actions_scaled"]


def test_tuples_are_kept_by_number_or_flattened(tmp_path: Path):
    space = {"type": "Tuple", "subspaces": [FLAT, {"type": "Discrete", "n": 4, "start": 1}]}
    obs = (RNG.normal(size=(6, 3)), RNG.integers(1, 5, 6))
    box = FLAT | {"shape": [2], "low": -1, "high": 1, "dtype": "float32"}
    act = {"type": "Dict", "subspaces": {"turn": box, "go": box | {"shape": [1]}}}
    steer = {"turn": np.float32(RNG.normal(size=(5, 2))), "go": np.ones((5, 1), np.float32)}
    root = write(tmp_path / "d", [episode(5, observations=obs, actions=steer)], space, act)
    run(root, tmp_path)
    for buffer in both(tmp_path / "b.hdf5"):
        assert np.array_equal(buffer.obs["0"], np.float32(obs[0][:-1]))
        assert np.array_equal(buffer.obs_next["1"], obs[1][1:])
        assert np.array_equal(buffer.act, np.hstack([steer["go"], steer["turn"]]))
    about = read_provenance(tmp_path / "b.hdf5")
    assert about["action_order"] == [["go", 1], ["turn", 2]]
    flat = run(root, tmp_path, flatten=True).obs
    expected = [gymnasium_flatten(of_space(space), (obs[0][k], obs[1][k])) for k in range(5)]
    assert np.array_equal(flat, np.float32(expected))
    # Actions of more than one kind are kept apart, unless one vector is asked for.
    act["subspaces"]["go"] = {"type": "Discrete", "n": 3, "start": 5}
    steer["go"] = np.array([5, 7, 6, 5, 5])
    root = write(tmp_path / "e", [episode(5, observations=obs, actions=steer)], space, act)
    run(root, tmp_path)
    for buffer in both(tmp_path / "b.hdf5"):
        assert np.array_equal(buffer.act["turn"], steer["turn"])
        assert buffer.act["go"].tolist() == [0, 2, 1, 0, 0]
    one_hot = np.eye(3)[steer["go"] - 5]
    flat = run(root, tmp_path, flatten=True).act
    assert np.array_equal(flat, np.hstack([one_hot, steer["turn"]]).astype(np.float32))
    with pytest.raises(InputError, match="numbers in .*'Text'"):
        text = {"type": "Text", "max_length": 3, "charset": "ab"}
        run(write(tmp_path / "f", [episode(5)], act=text), tmp_path)


@needs_samples
def test_tuples_of_different_kinds_in_a_file_by_minari(tmp_path: Path):
    folder = SAMPLES / "minari/sample/toy/tuple-v0"
    said = json.loads(json.loads((folder / "data/metadata.json").read_text())["action_space"])
    run(folder, tmp_path)
    for buffer in both(tmp_path / "b.hdf5"):
        row = 0
        with h5py.File(folder / "data/main_data.hdf5") as file:
            for number in range(len(file)):
                group = file[f"episode_{number}"]
                here = slice(row, row + len(group["rewards"]))
                for k, part in enumerate(said["subspaces"]):
                    act = group[f"actions/_index_{k}"][()]
                    stored = buffer.act[str(k)][here]
                    assert np.array_equal(stored, (act - part.get("start", 0)).astype(stored.dtype))
                for key, observations in group["observations"].items():
                    stored = buffer.obs[key.removeprefix("_index_")][here]
                    assert np.array_equal(stored, observations[:-1].astype(stored.dtype))
                row = here.stop
        assert row == len(buffer)


def test_several_discrete_or_binary_actions_stay_whole_numbers(tmp_path: Path):
    many = {"type": "MultiDiscrete", "nvec": [2, 3], "start": [0, 1], "dtype": "int64"}
    act = np.array([[0, 1], [1, 3], [0, 2]])
    buffer = run(write(tmp_path / "d", [episode(3, actions=act)], act=many), tmp_path)
    assert buffer.act.tolist() == [[0, 0], [1, 2], [0, 1]] and buffer.act.dtype == np.int64
    bits = np.array([[0, 1], [1, 1], [0, 0]], np.int8)
    root = write(tmp_path / "d", [episode(3, actions=bits)], act={"type": "MultiBinary", "n": 2})
    assert np.array_equal(run(root, tmp_path).act, bits)


def test_texts_become_gymnasiums_codes(tmp_path: Path):
    text = {"type": "Text", "max_length": 6, "min_length": 0, "charset": " abcd"}
    space = {"type": "Dict", "subspaces": {"z": FLAT, "mission": text}}
    obs = {"z": RNG.normal(size=(3, 3)), "mission": ["ab", "c d", ""]}
    root = write(tmp_path / "d", [episode(2, observations=obs)], space)
    flat = run(root, tmp_path, flatten=True).obs
    one = {"z": obs["z"][1], "mission": "c d"}
    assert np.array_equal(flat[1], np.float32(gymnasium_flatten(of_space(space), one)))
    assert run(root, tmp_path).obs.mission.shape == (2, 6)
    obs["mission"] = ["ab", "x", ""]
    root = write(tmp_path / "d", [episode(2, observations=obs)], space)
    with pytest.raises(InputError, match="text outside its space in row 1"):
        run(root, tmp_path)


@pytest.mark.parametrize("says", [True, None])
def test_images_stored_as_jpeg_or_as_they_are(says: Any, tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    space = {"type": "Box", "dtype": "uint8", "shape": [40, 36], "low": 0, "high": 255}
    frames = RNG.integers(0, 256, (4, 40, 36), dtype=np.uint8)
    frames[0] = 7  # compresses to another length
    coded, decoded = [], []
    for frame in frames:
        file = io.BytesIO()
        image.fromarray(frame).save(file, format="JPEG")
        coded.append(np.frombuffer(file.getvalue(), np.uint8))
        decoded.append(np.array(image.open(file)))
    ragged = np.empty(4, object)
    ragged[:] = coded
    equal_long = np.stack([coded[0]] * 4)
    for stored, expected in ((frames, frames), (ragged, decoded), (equal_long, [decoded[0]] * 4)):
        root = write(tmp_path / "d", [episode(3)], space, jpeg_encoding=says)
        with h5py.File(root / "data/main_data.hdf5", "a") as file:
            group = file["episode_0"]
            del group["observations"]
            kind = h5py.vlen_dtype(np.uint8) if stored is ragged else np.uint8
            group.create_dataset("observations", data=stored, dtype=kind)
        assert np.array_equal(run(root, tmp_path).obs, expected[:3])
        notes = read_provenance(tmp_path / "b.hdf5")["notes"]
        assert any("JPEG" in note for note in notes) == (stored is not frames)
    root = write(tmp_path / "d", [episode(3, observations=equal_long)], space | {"shape": [40, 40]})
    with pytest.raises(InputError, match="image of 40x36x1"):
        run(root, tmp_path)


@pytest.mark.parametrize("fault", ["no JPEG", "cut off", "65000x65000", "10000x10000"])
def test_a_damaged_image_costs_its_episode(fault: str, tmp_path: Path, recwarn: Any):
    image = pytest.importorskip("PIL.Image")
    space = {"type": "Box", "dtype": "uint8", "shape": [40, 36], "low": 0, "high": 255}
    file = io.BytesIO()
    image.fromarray(np.full((40, 36), 7, np.uint8)).save(file, format="JPEG")
    coded = np.stack([np.frombuffer(file.getvalue(), np.uint8)] * 4)
    damaged = coded.copy()
    if fault == "no JPEG":
        damaged[2] = 0
    elif fault == "cut off":
        damaged[2, len(coded[2]) // 3 :] = 0
    else:  # what the image says of its size
        place = file.getvalue().find(b"\xff\xc0") + 5
        sides = np.array([int(side) for side in fault.split("x")], ">u2")
        damaged[2, place : place + 4] = np.frombuffer(sides.tobytes(), np.uint8)
    pair = [episode(3, observations=coded), episode(3, observations=damaged)]
    root = write(tmp_path / "d", pair, space)
    match = "an image of 10000x10000x1 in row 2" if fault[0] == "1" else "no sound JPEG .*in row 2"
    with pytest.raises(InputError, match=f"episode 1: .*{match}"):
        run(root, tmp_path)
    assert len(run(root, tmp_path, on_error="skip")) == 3
    assert not recwarn.list


def test_without_spaces_the_data_say_what_they_are(tmp_path: Path):
    root = write(tmp_path / "d", [episode(3)])
    (root / "data/metadata.json").unlink()
    buffer = run(root, tmp_path)
    assert buffer.act.dtype == np.int64 and buffer.obs.shape == (3, 3)
    assert "no spaces" in read_provenance(tmp_path / "b.hdf5")["notes"][0]


def test_counts_that_differ_from_the_metadata_are_noted(tmp_path: Path):
    root = write(tmp_path / "d", [episode(3)], total_steps=4, total_episodes=1)
    run(root, tmp_path)
    notes = read_provenance(tmp_path / "b.hdf5")["notes"]
    assert notes == ["the metadata say total_steps 4, the data hold 3"]


NAN = RNG.normal(size=(4, 3))
NAN[2, 1] = np.nan
FAULTS: dict[str, dict[str, Any]] = {
    "lacks 'rewards'": {"rewards": None},
    "lacks 'observations'": {"observations": None},
    "unequal length": {"actions": np.zeros(2, int)},
    "and .6. observations": {"observations": np.zeros((6, 3))},
    "NaN or infinite in row 2": {"observations": NAN},
    "rew is NaN": {"rewards": np.array([0, np.inf, 0])},
    "infinite in row 0": {"observations": np.full((4, 3), 1e300)},
    "shape .4,. a step": {"observations": np.zeros((4, 4))},
    "actions holds float64, its Discrete": {"actions": np.zeros(3)},
    "observations holds .S3": {"observations": np.full((4, 3), b"abc")},
    "actions holds object": {"actions": ["a", "b", "c"]},
    "something else than 0 and 1": {"terminations": np.array([0, 0, 2])},
    "expected .T,.": {"rewards": np.zeros((3, 2))},
    "no steps": episode(0),
    "is no array with a row": {"rewards": 3.0},
    "is an array|is no array": {"observations": {"x": np.zeros(4)}},
}


@pytest.mark.parametrize("match", FAULTS)
def test_a_faulty_episode_stops_or_is_left_out(match: str, tmp_path: Path):
    root = write(tmp_path / "d", [episode(3), episode(3, **FAULTS[match]), episode(2)])
    with pytest.raises(InputError, match=match) as error:
        run(root, tmp_path)
    assert "episode 1" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "b.hdf5").exists()
    assert len(run(root, tmp_path, on_error="skip")) == 5
    root = write(tmp_path / "d", [episode(3, **FAULTS[match])])
    with pytest.raises(InputError, match=match):
        run(root, tmp_path, on_error="skip")


def test_mutated_files_are_read_or_refused(tmp_path: Path):
    rng = np.random.default_rng(1)
    root = write(tmp_path / "d", [episode(3), episode(2)])
    file = root / "data/main_data.hdf5"
    data = file.read_bytes()
    for _ in range(100):
        mutated = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 9)):
            mutated[at] = rng.integers(256)
        file.write_bytes(bytes(mutated))
        try:
            run(root, tmp_path)
        except InputError as error:
            assert "\n" not in str(error)


def test_a_claim_larger_than_the_file_is_not_believed(tmp_path: Path):
    root = write(tmp_path / "d", [episode(3)])
    with h5py.File(root / "data/main_data.hdf5", "a") as file:
        del file["episode_0/observations"]
        file["episode_0"].create_dataset("observations", (1 << 40, 3), "f8", chunks=(1 << 10, 3))
    with pytest.raises(InputError, match="more than its file can hold"):
        run(root, tmp_path)


def test_files_that_are_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    monkeypatch.setitem(sys.modules, "minari", None)  # as if it were not installed
    root = write(tmp_path / "store/a/b-v0", [episode(3)])
    assert len(run("a/b-v0", tmp_path)) == 3
    data = (root / "data/main_data.hdf5").read_bytes()
    for content in (b"", b"hello" * 100, data[: len(data) // 2]):
        (root / "data/main_data.hdf5").write_bytes(content)
        with pytest.raises(InputError, match="foreign or truncated"):
            run("a/b-v0", tmp_path)
    about = root / "data/metadata.json"
    for text, match in (
        ("{", "JSON"),
        ("[]", "JSON object"),
        ('{"data_format": "x"}', "hdf5, arrow or parquet"),
        ('{"data_format": "arrow"}', "expected episodes"),
    ):
        about.write_text(text)
        with pytest.raises(InputError, match=match):
            run(root, tmp_path)
    (tmp_path / "empty").mkdir()
    for src, match in (
        ("a/c-v0", "MINARI_DATASETS_PATH"),
        ("nothing here", "neither a path nor an id"),
        (str(tmp_path / "empty"), "found neither"),
    ):
        with pytest.raises(InputError, match=match) as error:
            run(src, tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "space",
    [
        {"type": "Graph"},
        {"type": "Box", "dtype": "O", "shape": [3]},
        {"type": "Dict", "subspaces": {}},
        {"type": "Box", "dtype": "float32"},
        {"type": "Discrete", "n": 10**30},
        {"type": "Discrete", "n": 3, "start": 10**30},
        {"type": "MultiDiscrete", "nvec": [10**30, 2]},
        {"type": "MultiBinary", "n": None},
        [],
        "}",
    ],
)
def test_a_space_that_no_array_can_hold(space: Any, tmp_path: Path):
    root = write(tmp_path / "d", [episode(3)], observation_space=json.dumps(space))
    if space == []:
        assert len(run(root, tmp_path)) == 3  # none said: taken from the data
        return
    with pytest.raises(InputError, match="observation_space"):
        run(root, tmp_path)


@needs_samples
def test_arrow_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        run(SAMPLES / "minari/sample/cartpole/random-arrow-v0", tmp_path)


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_columnar_files(kind: str, tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow", exc_type=ImportError)
    dataset = pytest.importorskip("pyarrow.dataset")
    root, episodes = tmp_path / "d", [episode(steps) for steps in (3, 2)]
    space = {"type": "Tuple", "subspaces": [FLAT, TWO]}
    write(root, episodes, space, {"type": "Discrete", "start": 1, "n": 2}, data_format=kind)
    (root / "data/main_data.hdf5").unlink()
    for number, columns in enumerate(episodes):
        steps, box = len(columns["rewards"]), columns["observations"]
        boxes = pyarrow.FixedSizeListArray.from_arrays(box.reshape(-1), 3)
        obs = pyarrow.StructArray.from_arrays([boxes, pyarrow.array([1] * len(box))], ["0", "1"])
        padded = {k: np.append(v, 0) for k, v in columns.items() if k != "observations"}
        padded["actions"][:-1] += 1
        flags = {k: padded[k].astype(bool) for k in ("terminations", "truncations")}
        table = pyarrow.table({**padded, **flags, "observations": obs})
        dataset.write_dataset(table, root / f"data/{number}", format=kind)
        (root / f"data/{number}/metadata.json").write_text(json.dumps({"total_steps": steps}))
    about = root / "data/1/metadata.json"
    for said, reason in (('{"total_steps": 9}', "says 9 steps, .* hold 2"), ("{}", "is missing")):
        about.write_text(said)
        with pytest.raises(InputError, match=f"episode 1: its metadata.json {reason}"):
            run(root, tmp_path)
    about.write_text('{"total_steps": 2}')
    buffer = run(root, tmp_path)
    stacked = np.concatenate([columns["observations"][:-1] for columns in episodes])
    assert np.array_equal(buffer.obs["0"], np.float32(stacked))
    assert np.array_equal(buffer.act, np.concatenate([e["actions"] for e in episodes]))
    assert buffer.terminated.tolist() == [0, 0, 1, 0, 1]
    next((root / "data/1").glob("part*")).write_bytes(b"no table")
    with pytest.raises(InputError, match="episode 1: it cannot be read"):
        run(root, tmp_path)
