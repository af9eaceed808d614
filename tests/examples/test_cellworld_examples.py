"""The cellworld examples: each trains on a mouse, resumes, refuses bad input, writes its report."""

import gzip
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("cellworld_gym")
pytest.importorskip("tyro")
pytest.importorskip("matplotlib")

from tianshou_ext.analysis.cellworld import report
from tianshou_ext.analysis.cellworld_tables import seeds_table
from tianshou_ext.analysis.rollouts import Player, play
from tianshou_ext.data.hdf5 import load_buffer
from tianshou_ext.data.writer import BufferWriter
from tianshou_ext.errors import InputError

EXAMPLES = Path(__file__).parents[2] / "examples" / "cellworld"
CACHE = Path(os.environ.get("CELLWORLD_CACHE", "."))
RECORDING = next(iter(sorted((CACHE / "mouse").glob("PEEK_*RT8*"))), CACHE / "mouse")

pytestmark = pytest.mark.skipif(
    not (CACHE / "paths" / "hexagonal.21_05.astar").exists() or not (CACHE / "mouse").is_dir(),
    reason="needs CELLWORLD_CACHE: a folder with cellworld's files and, in mouse/, recordings",
)


@pytest.fixture(autouse=True)
def example_folder(monkeypatch, tmp_path_factory):
    """Make the examples importable and keep the cache out of the user's home."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    cache = tmp_path_factory.getbasetemp() / "mouse_cache"
    monkeypatch.setenv("TIANSHOU_EXT_CACHE", str(cache))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a small converted file: 6 episodes of made-up steps, two pieces each."""
    path = tmp_path_factory.mktemp("data") / "mouse.hdf5"
    rng = np.random.default_rng(0)
    rows, last = 120, np.arange(120) % 10 == 9
    # Every number varies, so that normalised ones of the environment are not enormous.
    obs = rng.uniform(-1.0, 1.0, (rows + 1, 11)).astype(np.float32)
    obs[:, :2] = rng.uniform(0.3, 0.7, (rows + 1, 2))
    obs_next = obs[1:].copy()
    obs_next[:, 8] = np.arange(rows) % 7 == 0  # captures
    obs_next[:, 10] = last & (np.arange(rows) // 10 % 2 == 1)  # every other piece: the goal
    ends = obs_next[:, 10] == 1
    with BufferWriter(path, rows) as writer:
        writer.append(
            obs=obs[:-1],
            obs_next=obs_next,
            act=rng.integers(0, 295, rows),
            rew=np.zeros(rows, np.float32),
            terminated=ends,
            truncated=last & ~ends,
            info={
                "file": np.zeros(rows, np.int64),
                "episode": np.arange(rows) // 20,
                "copy": (np.arange(rows) % 20 == 3).astype(np.int64),
            },
        )
    return path


def run(name, tmp_path, data, **options):
    """Run an example's main in this process."""
    module = importlib.import_module(f"cellworld_{name}")
    defaults = {"smoke": True, "device": "cpu", "logdir": str(tmp_path / "log"), "episodes": 0}
    return module.main(module.Args(**{**defaults, "dataset": str(data), **options}))


def folder_of(name, tmp_path):
    return tmp_path / "log" / "cellworld_21_05" / name / "0"


@pytest.mark.parametrize("name", ["bc", "cql", "iql"])
def test_smoke_leaves_a_run_that_can_be_gone_on_with(name, tmp_path, data):
    rows = run(name, tmp_path, data)
    folder = folder_of(name, tmp_path)
    assert [row["step"] for row in rows] == [0, 3]
    for file in ("checkpoint.pt", "policy.pth", "progress.csv", "curve.png", "held_out.hdf5"):
        assert (folder / file).stat().st_size > 0
    assert run(name, tmp_path, data) == rows


def test_the_report_of_three_methods(tmp_path, data, capsys):
    for name in ("bc", "cql", "iql"):
        run(name, tmp_path, data)
    capsys.readouterr()
    out = tmp_path / "report"
    found = report([tmp_path / "log"], episodes=2, fast=True, out=out, progress=False)
    shown = str(found)
    for name in ("bc", "cql", "iql", "goal", "other mouse episodes", "uniform"):
        assert f"| {name} |" in shown
    figures = json.loads((tmp_path / "report" / "report.json").read_text())
    assert figures["seeds"] == [0, 1] and figures["env"]["fast"]
    assert set(figures["policies"]) == {"bc", "cql", "iql", "goal"}
    values = {name for name, policy in figures["policies"].items() if "values" in policy}
    assert values == {"cql", "iql"}
    goal = figures["policies"]["goal"]["rollouts"]
    assert goal["reached_goal"] == [1.0, 1.0, 1.0] and goal["length"][0] < 10
    pictures = {path.stem for path in (tmp_path / "report").glob("*.png")}
    maps = {"paths", "occupancy", "field", "field_robot", "values", "calibration", "value_map"}
    assert pictures == maps
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(maps) and "http" not in page
    assert "cannot tell policies apart" in page


def test_runs_on_made_data_are_compared_with_the_same_mice(tmp_path, data, monkeypatch, capsys):
    monkeypatch.setenv("TIANSHOU_EXT_CACHE", str(tmp_path / "cache"))
    run("bc", tmp_path, data)
    rows = run("bc", tmp_path, "mixed", mouse=str(data))
    assert [row["step"] for row in rows] == [0, 3]
    (made,) = (tmp_path / "cache" / "cellworld_data").glob("cellworld_mixed_20_*.hdf5")
    assert "data: 20 transitions to train on, of " in capsys.readouterr().out
    run("cql", tmp_path, made, mouse=str(data))  # the file itself is known for what it is
    assert folder_of("cql_mixed", tmp_path).is_dir()
    found = report([tmp_path / "log"], episodes=1, fast=True, out=tmp_path / "r", progress=False)
    policies = found.figures["policies"]
    assert {"bc", "bc_mixed", "cql_mixed"} < set(policies)
    assert policies["bc_mixed"]["dataset"] == "mixed"
    held_out = [load_buffer(folder_of(n, tmp_path) / "held_out.hdf5") for n in ("bc", "bc_mixed")]
    assert np.array_equal(held_out[0].obs, held_out[1].obs) and len(held_out[0])


def test_seeds_of_a_method_are_also_reported_as_one(tmp_path, data):
    for seed in (0, 3):
        run("bc", tmp_path, data, seed=seed)
    run("iql", tmp_path, data)
    found = report([tmp_path / "log"], episodes=2, fast=True, out=tmp_path / "r", progress=False)
    header, rows = seeds_table(found.figures)
    assert [row[:2] for row in rows] == [["bc", "0, 3"], ["iql", "0"]]
    nll = [found.figures["policies"][f"bc seed {seed}"]["divergence"]["nll"][0] for seed in (0, 3)]
    spread = f"{sum(nll) / 2:.2f} ± {abs(nll[0] - nll[1]) / 2:.2f}"
    assert rows[0][header.index("conditional -log pi")] == spread
    assert "| bc | 0, 3 |" in str(found)
    assert "Over seeds" in (tmp_path / "r" / "report.html").read_text()


def test_a_report_at_the_end_and_again_faster_from_the_command_line(tmp_path, data, capsys):
    from tianshou_ext import cli

    run("bc", tmp_path, data, episodes=1)
    assert "conditional -log pi" in capsys.readouterr().out
    folder = folder_of("bc", tmp_path)
    first = json.loads((folder / "report" / "report.json").read_text())
    with pytest.raises(SystemExit) as left:
        words = ["report", "cellworld", str(folder), "--episodes", "1", "--no-progress", "--fast"]
        cli.main([*words, "--out", str(tmp_path / "again")])
    assert not left.value.code
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert (first["env"].pop("fast"), again["env"].pop("fast")) == (False, True)
    assert again == first


def test_drawn_actions_repeat_from_the_seed_and_are_not_the_likeliest(tmp_path, data):
    run("bc", tmp_path, data, sample_actions=False)
    env, folder = json.dumps({"max_steps": 15, "fast": True}), str(folder_of("bc", tmp_path))
    drawn = Player("run", env, folder, sampled=True)
    one, other = (play(drawn, [seed, 1], progress=False) for seed in (0, 2))
    assert np.array_equal(one[1].act, other[1].act)
    assert not np.array_equal(one[0].act, one[1].act)
    (likeliest,) = play(Player("run", env, folder), [1], progress=False)
    assert not np.array_equal(likeliest.act, one[1].act)
    run("bc", tmp_path / "drawing", data)  # by default
    folder = str(folder_of("bc", tmp_path / "drawing"))
    for sampled in (False, True):
        (again,) = play(Player("run", env, folder, sampled=sampled), [1], progress=False)
        assert np.array_equal(again.act, one[1].act)


@pytest.mark.slow
def test_episodes_do_not_depend_on_the_number_of_processes(tmp_path, data):
    run("iql", tmp_path, data)
    env = json.dumps({"max_steps": 15, "fast": True})
    player = Player("run", env, str(folder_of("iql", tmp_path)), sampled=True)
    alone = play(player, [3, 4], progress=False)
    beside = play(player, [4, 3], jobs=2, progress=False)[::-1]
    for one, other in zip(alone, beside, strict=True):
        assert one.seed == other.seed and np.array_equal(one.obs, other.obs)
        assert np.array_equal(one.act, other.act)
    assert not np.array_equal(alone[0].act, alone[1].act)


def test_held_out_episodes_are_whole_and_never_trained_on(tmp_path, data):
    from cellworld_common import split_episodes

    buffer = load_buffer(data)
    training, testing = split_episodes(buffer, 0.34, 0)
    seen = {row.tobytes() for row in np.asarray(training.obs)}
    held = {row.tobytes() for row in np.asarray(testing.obs)}
    assert not seen & held
    # Two of six recorded episodes, of two pieces each, less their copied rows.
    assert len(held) == 2 * 19 and len(seen) == 4 * 20
    assert int(np.asarray(testing.done).sum()) == 4
    kept = load_buffer(folder_after(tmp_path, data) / "held_out.hdf5")
    assert {row.tobytes() for row in np.asarray(kept.obs)} == held


def folder_after(tmp_path, data):
    run("bc", tmp_path, data, held_out=0.34)
    return folder_of("bc", tmp_path)


def test_rewards_are_those_asked_for(tmp_path, data):
    from cellworld_common import OfflineArgs, rewards

    buffer = load_buffer(data)
    rew = rewards(buffer, OfflineArgs(reward_captured=-100.0, reward_success=10.0))
    captured, finished = buffer.obs_next[:, 8] == 1, buffer.obs_next[:, 10] == 1
    assert np.array_equal(rew, -100.0 * captured + 10.0 * finished)
    assert set(rew) >= {0.0, -100.0, 10.0}


def test_recordings_are_converted_once(tmp_path, capsys):
    options = {"dataset": str(RECORDING), "held_out": 0.5}
    with pytest.raises(InputError, match="two episodes or more"):
        run("bc", tmp_path, **{"data": RECORDING, **options})
    assert "1 episodes" in capsys.readouterr().out or RECORDING.is_dir()
    with pytest.raises(InputError, match="two episodes or more"):
        run("bc", tmp_path, **{"data": RECORDING, **options})
    assert "from cellworld in" not in capsys.readouterr().out


def test_without_recordings_public_ones_are_fetched_once(tmp_path, monkeypatch):
    import cellworld_common

    folder = tmp_path / "worlds"
    folder.mkdir()
    for part in CACHE.iterdir():
        if part.is_dir() and part.name != "mouse":
            (folder / part.name).symlink_to(part)
    monkeypatch.setenv("CELLWORLD_CACHE", str(folder))
    asked = []

    def fetch(url, path):
        asked.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        (local,) = (CACHE / "mouse").glob(f"{path.name}*")
        content = local.read_bytes()
        path.write_bytes(gzip.decompress(content) if local.suffix == ".gz" else content)

    monkeypatch.setattr(cellworld_common, "fetch", fetch)
    monkeypatch.setenv("TIANSHOU_EXT_CACHE", str(tmp_path / "cache"))
    rows = run("bc", tmp_path, "mouse")
    assert len(rows) == 2 and len(asked) == 3
    run("bc", tmp_path, "mouse")
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"dataset": "absent"},
            "expected mouse, mixed, .*, recordings or a converted file as --dataset",
        ),
        ({"dataset": "mixed", "actions": "gateways"}, "expected BotEvade and cells with --dataset"),
        (
            {"dataset": "mixed", "mouse": "absent"},
            "expected mouse, recordings or a converted file as --mouse, .* nothing at absent",
        ),
        ({"dataset": "absent.hdf5"}, "expected a buffer file at absent.hdf5"),
        ({"world": "99_99"}, "expected"),
        ({"held_out": 0.0}, "expected a held-out share between 0 and 1"),
        ({"episodes": -1}, "expected 0 episodes or more"),
        ({"resume_path": "absent.pth"}, "expected a checkpoint at absent.pth"),
        ({"watch": True, "smoke": False}, "expected --resume-path"),
        ({"gamma": 1.5}, r"expected gamma in \[0, 1\], got 1.5"),
    ],
)
def test_bad_input_gets_one_sentence(options, sentence, tmp_path, data):
    with pytest.raises(InputError, match=sentence) as error:
        run("cql", tmp_path, data, **options)
    assert "\n" not in str(error.value)


def test_data_of_other_actions_is_refused(tmp_path, data):
    with pytest.raises(InputError, match="expected actions from 0 to 34|numbers from 0 to 34"):
        run("bc", tmp_path, data, actions="gateways")


def test_runs_that_held_out_other_episodes_are_not_compared(tmp_path, data):
    run("bc", tmp_path, data)
    run("iql", tmp_path, data, split_seed=1)
    with pytest.raises(InputError, match="the same episodes held out"):
        report([tmp_path / "log"], episodes=1, progress=False)
    with pytest.raises(InputError, match="expected an episode and a job"):
        report([tmp_path / "log"], episodes=0)


def test_watching_writes_a_video(tmp_path, data):
    pytest.importorskip("cv2")
    run("bc", tmp_path, data, watch=True)
    assert (folder_of("bc", tmp_path) / "watch.mp4").stat().st_size > 0


def test_the_command_line(tmp_path):
    line = [sys.executable, str(EXAMPLES / "cellworld_cql.py")]
    shown = subprocess.run([*line, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0
    for flag in ("--dataset", "--min-q-weight", "--reward-captured", "--held-out", "--episodes"):
        assert flag in shown.stdout
