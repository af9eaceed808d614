"""Data sets by name: levels, D4RL, Minari and files, each converted once."""

import json

import h5py
import numpy as np
import pytest

pytest.importorskip("mujoco")

from tianshou_ext.data.datasets import dataset_file
from tianshou_ext.data.hdf5 import PROVENANCE, load_buffer, read_provenance
from tianshou_ext.errors import InputError


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Keep cache and downloads out of the user's home."""
    for name in ("TIANSHOU_EXT_CACHE", "D4RL_DATASET_DIR", "MINARI_DATASETS_PATH"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


def write_d4rl(path, rows=60):
    """Write a file in D4RL's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["observations"] = rng.normal(size=(rows, 11)).astype(np.float32)
        file["next_observations"] = rng.normal(size=(rows, 11)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (rows, 3)).astype(np.float32)
        file["rewards"] = np.ones(rows, np.float32)
        file["terminals"] = np.arange(rows) % 20 == 19
        file["timeouts"] = np.zeros(rows, bool)
    return path


def write_minari(folder):
    """Write a dataset in Minari's layout."""
    folder.mkdir(parents=True)
    with h5py.File(folder / "main_data.hdf5", "w") as file:
        episode = file.create_group("episode_0")
        episode["observations"] = np.zeros((6, 11), np.float32)
        episode["actions"] = np.zeros((5, 3), np.float32)
        episode["rewards"] = np.ones(5)
        episode["terminations"] = np.arange(5) == 4
        episode["truncations"] = np.zeros(5, bool)
    return folder


def made(dataset):
    return dataset_file(str(dataset), "Hopper-v4", 50, show_progress=False)


def test_a_level_is_made(tmp_path):
    path = made("random")
    assert path.is_relative_to(tmp_path) and len(load_buffer(path)) == 50


def test_a_buffer_is_taken_as_it_is():
    path = made("random")
    assert made(path) == path


def test_d4rl_by_id_and_by_file(tmp_path):
    source = write_d4rl(tmp_path / "d4rl_dataset_dir" / "hopper_medium-v2.hdf5")
    by_id, by_file = made("hopper-medium-v2"), made(source)
    assert read_provenance(by_id)["dataset"] == "hopper-medium-v2"
    assert by_id != by_file and len(load_buffer(by_file)) == 60
    stamp = by_file.stat().st_mtime_ns
    assert made(source) == by_file and by_file.stat().st_mtime_ns == stamp
    write_d4rl(source, rows=40)
    assert len(load_buffer(made(source))) == 40


def test_minari_by_id_folder_and_file(tmp_path):
    folder = write_minari(tmp_path / "minari_datasets_path/mujoco/hopper/medium-v0/data")
    for dataset in ("mujoco/hopper/medium-v0", folder.parent, folder / "main_data.hdf5"):
        assert len(load_buffer(made(dataset))) == 5


@pytest.mark.parametrize(
    ("space", "anew"),
    [
        ({"type": "Box", "shape": [3], "dtype": "float32", "low": -0.4, "high": 0.4}, True),
        ({"type": "Box", "shape": [3], "dtype": "float32", "low": -1.0, "high": 1.0}, False),
        ({"type": "Discrete", "shape": [], "n": None, "start": 0}, False),
    ],
)
def test_a_minari_file_made_before_actions_were_scaled_is_made_anew(space, anew, tmp_path):
    write_minari(tmp_path / "minari_datasets_path/mujoco/hopper/medium-v0/data")
    path = made("mujoco/hopper/medium-v0")
    with h5py.File(path, "r+") as file:
        about = json.loads(file.attrs[PROVENANCE])
        del about["actions_scaled"]
        file.attrs[PROVENANCE] = json.dumps(about | {"action_space": space})
    made("mujoco/hopper/medium-v0")
    assert ("actions_scaled" in read_provenance(path)) is anew


def test_what_is_none_of_these_gets_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"expected a data set, got 'hopper', which is no level"):
        made("hopper")
    with pytest.raises(InputError, match="expected a data set, got .*absent.hdf5"):
        made(tmp_path / "absent.hdf5")
    foreign = tmp_path / "foreign.hdf5"
    foreign.write_bytes(b"no HDF5")
    assert made(foreign) == foreign
    with pytest.raises(InputError, match="expected an HDF5 file"):
        load_buffer(foreign)
