"""The planner-greedy example: it runs, resumes, writes its table and plot, refuses bad input."""

import csv
import importlib
import os
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("cellworld_gym")
pytest.importorskip("tyro")
pytest.importorskip("matplotlib")

from tianshou_ext.envs.cellworld_cache import world_files
from tianshou_ext.errors import InputError

EXAMPLES = Path(__file__).parents[2] / "examples" / "cellworld"
CACHE = Path(os.environ.get("CELLWORLD_CACHE", "."))
pytestmark = pytest.mark.skipif(
    not (CACHE / world_files("21_05")[0]).exists(),
    reason="needs the files of world 21_05 in the folder CELLWORLD_CACHE",
)


@pytest.fixture(autouse=True)
def _folders(monkeypatch, tmp_path_factory):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    cache = tmp_path_factory.getbasetemp() / "planner_greedy_cache"
    monkeypatch.setenv("TIANSHOU_EXT_CACHE", str(cache))


def run(folder: Path, **options):
    module = importlib.import_module("cellworld_planner_greedy")
    args = {"smoke": True, "episodes": 0, "device": "cpu", "logdir": str(folder), **options}
    return module.main(module.Args(**args))


@pytest.mark.parametrize(
    ("agent", "options"),
    [
        ("bc", {"store": "planner", "mixture": "episode"}),
        ("cql", {"start": "random", "mixing": "balanced", "num_envs": 2}),
        ("iql", {"schedule": "performance", "unit": "episodes", "duration": 3.0, "episodes": 1}),
    ],
)
def test_a_run_leaves_a_table_a_plot_and_an_agent_of_its_own(agent, options, tmp_path, capsys):
    rows = run(tmp_path, agent=agent, **options)
    assert [row["env_step"] for row in rows] == [0, 0, 20, 40]
    (folder,) = tmp_path.glob("*/*/0")
    with (folder / "survival.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["env_step"]) for row in table] == [0, 0, 20, 40]
    assert all(0.0 <= float(row["survived"]) <= 1.0 for row in table)
    assert float(table[1]["planner_rate"]) == 1.0
    acted = float(table[-1]["planner_steps"]) + float(table[-1]["agent_steps"])
    assert acted == 40
    assert (folder / "survival.png").stat().st_size > 5000
    assert (folder / "agent" / "checkpoint.pt").exists()
    assert "the agent alone survives" in capsys.readouterr().out


def test_runs_are_compared_in_one_picture_and_named_by_what_differs(tmp_path):
    module = importlib.import_module("cellworld_planner_greedy")
    for kind in ("linear", "exponential"):
        run(tmp_path / kind, agent="bc", schedule=kind)
    folders = tuple(map(str, sorted(tmp_path.glob("*/*/*/0"))))
    assert module.names(folders) == ["exponential", "linear"]
    assert module.names(folders[:1]) == [folders[0]]
    assert module.main(module.Args(compare=folders, logdir=str(tmp_path))) == []
    assert (tmp_path / "comparison.png").stat().st_size > 5000
    with pytest.raises(InputError, match=r"expected a run that has ended in absent, found no"):
        module.main(module.Args(compare=("absent",), logdir=str(tmp_path)))


def test_a_finished_run_is_not_played_again(tmp_path, capsys):
    first = run(tmp_path, agent="bc")
    (folder,) = tmp_path.glob("*/*/0")
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    assert run(tmp_path, agent="bc") == first
    assert (folder / "checkpoint.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"smoke": False, "duration": 1e6}, "a schedule that ends within the 20,000 steps"),
        ({"unit": "episodes"}, "expected --duration, in episodes, with --unit episodes"),
        ({"rate_start": 0.1, "rate_end": 0.5}, "expected end of the schedule in"),
        ({"num_envs": 0}, "expected --num-envs of at least 1"),
        ({"smoke": False, "test_num": 0}, "expected --test-num of at least 1"),
    ],
)
def test_arguments_that_cannot_be_give_one_sentence(options, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        run(tmp_path, **options)


def test_every_argument_is_explained():
    source = (EXAMPLES / "cellworld_planner_greedy.py").read_text()
    module = importlib.import_module("cellworld_planner_greedy")
    for field in fields(module.Args):
        _, after = source.split(f"    {field.name}: ", 1)
        assert after.splitlines()[1].strip().startswith('"""'), field.name
