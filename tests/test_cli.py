"""The command tianshou-ext: help, exit codes, one sentence for a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tianshou_ext import cli
from tianshou_ext.data.writer import BufferWriter

pytest.importorskip("tyro")

TARGETS = {
    **{(name,): target for name, target in cli.COMMANDS.items() if isinstance(target, str)},
    **{
        (group, name): target
        for group, targets in cli.COMMANDS.items()
        if isinstance(targets, dict)
        for name, target in targets.items()
    },
}


def run(*args: object) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(arg) for arg in args])
    return int(left.value.code or 0)


def small(path: Path, rew: float = 1.0) -> Path:
    ends = np.arange(20) % 10 == 9
    obs = np.random.default_rng(0).normal(size=(21, 2)).astype(np.float32)
    with BufferWriter(path, 20) as writer:
        writer.append(
            obs=obs[:-1],
            obs_next=obs[1:],
            act=np.zeros((20, 1), np.float32),
            rew=np.arange(1, 21) * rew,
            terminated=ends,
            truncated=np.zeros(20, bool),
        )
    return path


@pytest.mark.parametrize("words", TARGETS, ids=" ".join)
def test_every_command_has_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    assert run(*words, "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: tianshou-ext {' '.join(words)}")
    assert ":param" not in shown and ":raises" not in shown


@pytest.mark.parametrize("words", [(), ("convert",), ("report",)], ids=" ".join)
def test_help_lists_the_commands(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    level = cli.COMMANDS
    for word in words:
        level = level[word]  # type: ignore[assignment]
    assert run(*words, "--help") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in level)


@pytest.mark.parametrize("words", [("nonsense",), ("merge", "--no-such-option")], ids=" ".join)
def test_a_wrong_word_leaves_with_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    assert run(*words) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ("inspect", "none.hdf5"),
        ("merge", "none.hdf5", "none.hdf5", "--out", "x"),
        ("split", "none.hdf5"),
        ("subsample", "none.hdf5", "--top", "0.1", "--out", "x"),
        ("relabel", "none.hdf5", "--reward-scale", "2", "--out", "x"),
    ],
    ids=lambda args: args[0],
)
def test_a_missing_file_is_one_line_and_2(
    args: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    assert run(*args) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith("error: expected") and "none.hdf5" in shown.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [w for w in TARGETS if w[0] == "convert"], ids=" ".join)
def test_a_missing_source_is_one_line_and_2(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(*words, tmp_path / "none", tmp_path / "out.hdf5") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: expected") and shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_exit_codes_of_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("inspect", small(tmp_path / "good.hdf5")) == 0
    assert run("inspect", small(tmp_path / "bad.hdf5", np.nan), "--no-progress") == 1
    shown = capsys.readouterr()
    assert "error: 20 rewards are NaN" in shown.out
    (tmp_path / "none.hdf5").write_bytes(b"")
    assert run("inspect", tmp_path / "none.hdf5") == 2


def test_json_parses(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for rew, code in ((1.0, 0), (np.inf, 1)):
        assert run("inspect", small(tmp_path / "b.hdf5", rew), "--json") == code
        report = json.loads(capsys.readouterr().out)
        assert report["rows"] == 20 and report["exit_code"] == code
        assert {"severity", "what", "advice"} == set(report["findings"][0])


def test_a_report_on_runs_needs_no_further_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_folder = tmp_path / "log" / "Hopper-v4" / "bc" / "0"
    run_folder.mkdir(parents=True)
    rows = ["0,0,1,0,10,0,{}", "1,100,5,0,10,1,{}"]
    head = "epoch,step,return_mean,return_std,episodes,seconds,metrics"
    (run_folder / "progress.csv").write_text("\n".join([head, *rows]))
    shown = []
    for words in (["report"], ["report", "runs"]):
        assert run(*words, tmp_path / "log") == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "| bc |" in shown[0]
    assert run("report", "--json-out", tmp_path / "table.json", tmp_path / "log") == 0
    assert (tmp_path / "table.json").exists()
    assert run("report", tmp_path / "none") == 2
    assert "expected runs with tests under" in capsys.readouterr().err


def test_a_report_on_the_cellworld_without_runs_is_one_line_and_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("report", "cellworld", tmp_path) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: expected runs on the cellworld") and shown.count("\n") == 1


def test_edits_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one, two, out = small(tmp_path / "a.hdf5"), small(tmp_path / "b.hdf5"), tmp_path / "c.hdf5"
    assert run("merge", one, two, "--out", out, "--compression", "gzip") == 0
    assert "40 rows, 4 episodes" in capsys.readouterr().out
    assert run("split", out, "--at", "0.5", "--no-shuffle", "--no-progress") == 0
    assert (tmp_path / "c_train.hdf5").exists() and (tmp_path / "c_test.hdf5").exists()
    assert run("subsample", out, "--top", "0.25", "--out", tmp_path / "d.hdf5") == 0
    scaled = ("--reward-scale", "0.5", "--reward-shift", "-1", "--reward-clip", "-1", "5")
    assert run("relabel", out, *scaled, "--out", tmp_path / "e.hdf5") == 0
    assert run("subsample", out, "--out", tmp_path / "f.hdf5") == 2
    assert "exactly one of" in capsys.readouterr().err


def test_python_m_is_the_same_command(tmp_path):
    command = [sys.executable, "-m", "tianshou_ext", "inspect", str(tmp_path / "absent.hdf5")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2 and "absent.hdf5" in ended.stderr


def test_a_polite_kill_leaves_no_half_written_file(tmp_path: Path):
    before = signal.getsignal(signal.SIGTERM)
    row = {"obs": [[0.0]], "obs_next": [[0.0]], "act": [0], "rew": [0.0]}
    path = tmp_path / "b.hdf5"
    with pytest.raises(SystemExit) as caught, cli.one_sentence(), BufferWriter(path, 2) as writer:
        writer.append(**row, terminated=[True], truncated=[False])
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before
