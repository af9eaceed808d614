"""Data sets that the planner plays: they repeat, say who acted, and end where they were cut."""

import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tianshou_ext.data.behaviour import collect
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.envs.cellworld_cache import world_files
from tianshou_ext.errors import InputError
from tianshou_ext.planning import PLANNER, RANDOM

if find_spec("cellworld_gym") is None:
    pytest.skip("needs the cellworld-gym package", allow_module_level=True)

CACHE = Path(os.environ.get("CELLWORLD_CACHE", "."))
needs_files = pytest.mark.skipif(
    not (CACHE / world_files("21_05")[0]).exists(),
    reason="needs the files of world 21_05 in the folder CELLWORLD_CACHE",
)


@pytest.fixture(autouse=True)
def _folders(monkeypatch, tmp_path):
    monkeypatch.setenv("TIANSHOU_EXT_CACHE", str(tmp_path / "cache"))


@needs_files
def test_the_same_command_gives_the_same_rows_and_another_seed_others(tmp_path: Path):
    rows = []
    for k, seed in enumerate((0, 0, 1)):
        path = tmp_path / f"{k}.hdf5"
        collect(task="cellworld", level="planner-noisy", steps=40, seed=seed, out=path)
        buffer = load_buffer(path)
        rows.append(np.column_stack([buffer.obs, buffer.act, buffer.rew, buffer.obs_next]))
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


@needs_files
def test_a_planners_level_comes_home_and_says_so(tmp_path: Path):
    path = tmp_path / "p.hdf5"
    line = collect(task="cellworld", level="planner", steps=80, out=path)
    buffer, about = load_buffer(path), read_provenance(path)
    assert about["episodes"] == buffer.terminated.sum() > 0
    assert about["survived"] == about["score_mean"] == 1.0
    assert f"{about['episodes']} whole episodes, of which 1.00 survived" in line
    assert (buffer.info.source == PLANNER).all()
    assert buffer.done[-1]
    follows = ~buffer.done[:-1]
    assert np.array_equal(buffer.obs[1:][follows], buffer.obs_next[:-1][follows])


@needs_files
def test_a_mixed_level_has_equal_parts_and_cuts_between_them(tmp_path: Path):
    path = tmp_path / "m.hdf5"
    collect(task="cellworld", level="mixed", steps=90, out=path)
    buffer = load_buffer(path)
    first, middle, last = np.split(buffer.info.source, 3)
    assert (first == RANDOM).all()
    assert set(middle) == {RANDOM, PLANNER}
    assert (last == PLANNER).all()
    assert buffer.done[[29, 59, 89]].all()
    assert not (buffer.terminated & buffer.truncated).any()


@needs_files
def test_a_level_is_made_once_and_kept(tmp_path: Path, capsys):
    line = collect(task="cellworld", level="random", steps=12, progress=False)
    path = Path(line.partition(":")[0])
    assert path.parent == tmp_path / "cache/cellworld_data"
    made = path.stat().st_mtime_ns
    assert collect(task="cellworld", level="random", steps=12, progress=False) == line
    assert path.stat().st_mtime_ns == made
    assert "no whole episode" in line


@needs_files
def test_a_world_without_obstacles_is_a_task_too(tmp_path: Path):
    collect(task="cellworld_00_00", level="planner", steps=10, out=tmp_path / "w.hdf5")
    assert len(load_buffer(tmp_path / "w.hdf5")) == 10


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"level": "expert"}, "expected a level of random, planner-noisy, .* got 'expert'"),
        ({"level": "mixed", "steps": 2}, "expected at least 3 steps for cellworld mixed, got 2"),
        ({"level": "planner", "steps": 0}, "expected at least 1 steps .* got 0"),
        ({"level": "planner", "task": "cellworlds"}, "expected cellworld or, .* got 'cellworlds'"),
    ],
)
def test_what_cannot_be_collected_gives_one_sentence(options, sentence, tmp_path: Path):
    with pytest.raises(InputError, match=sentence):
        collect(**{"task": "cellworld", "steps": 9, "out": tmp_path / "x.hdf5", **options})
