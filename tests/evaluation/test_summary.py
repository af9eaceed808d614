"""What stands in a table of results is the mean of the last tests, over seeds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.scores import normalized_score
from tianshou_ext.evaluation.summary import LAST, interquartile_mean, report


def write_run(folder: Path, returns: list[float], **about: object) -> None:
    folder.mkdir(parents=True)
    lines = ["epoch,step,return_mean,return_std,episodes,seconds,metrics"]
    lines += [f"{k},{100 * k},{value},1.0,5,{k},{{}}" for k, value in enumerate(returns)]
    (folder / "progress.csv").write_text("\n".join(lines) + "\n")
    if about:
        (folder / "run.json").write_text(json.dumps(about))


def facts(seed: int, label: str = "iql") -> dict[str, object]:
    return {"task": "Hopper-v4", "dataset": "medium", "label": label, "seed": seed}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Return a folder of three seeds of IQL, whose last ten tests are 1000, 2000, 3000."""
    for seed in range(3):
        returns = [0.0, 9999.0, *[1000.0 * (seed + 1)] * LAST]
        write_run(tmp_path / "iql" / str(seed), returns, **facts(seed))
    return tmp_path


def test_scores_are_means_of_the_last_tests_and_not_the_best(runs: Path):
    (group,) = report([runs]).groups
    expected = normalized_score("Hopper-v4", [1000.0, 2000.0, 3000.0])
    assert group.scores == pytest.approx(expected.tolist())
    assert group.seeds == [0, 1, 2]
    assert group.iqm == pytest.approx(expected[1])
    assert group.interval == pytest.approx((expected[0], expected[2]))
    assert group.best == pytest.approx([float(normalized_score("Hopper-v4", 9999.0))] * 3)


def test_methods_make_rows_of_their_own_and_the_test_before_training_does_not_count(runs: Path):
    write_run(runs / "bc" / "0", [5000.0, 100.0], **facts(0, "bc"))
    write_run(runs / "bc" / "1", [5000.0], **facts(1, "bc"))
    summary = report([runs])
    assert [group.facts["label"] for group in summary.groups] == ["bc", "iql"]
    assert summary.groups[0].scores == pytest.approx([float(normalized_score("Hopper-v4", 100))])
    lines = str(summary).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_runs_that_went_online_are_rows_of_their_own(runs: Path):
    """They would else be taken for further seeds of runs with as many gradient steps."""
    folder = runs / "iql" / "0_online"
    write_run(folder, [0.0, 1000.0, 1000.0, 3000.0], **facts(0))
    lines = (folder / "progress.csv").read_text().splitlines()
    steps = ["env_step", 0, 0, 0, 500]
    lines = [f"{line},{step}" for line, step in zip(lines, steps, strict=True)]
    lines[-1] = lines[-1].replace("3,300,", f"3,{100 * (LAST + 1)},", 1)
    (folder / "progress.csv").write_text("\n".join(lines) + "\n")
    summary = report([runs])
    assert [group.seeds for group in summary.groups] == [[0, 1, 2], [0]]
    assert summary.groups[1].scores == pytest.approx([float(normalized_score("Hopper-v4", 3000))])
    assert "| iql | 1,100 | 500 | 0 |" in str(summary)


def test_runs_with_other_settings_are_rows_of_their_own_that_name_them(tmp_path: Path):
    """They were taken for further seeds of one method."""
    for alpha in (2.5, 100.0):
        config = {"alpha": alpha, "lr": 3e-4}
        write_run(tmp_path / str(alpha), [0.0, 10 * alpha], **facts(0, "td3_bc"), config=config)
    summary = report([tmp_path])
    assert [group.seeds for group in summary.groups] == [[0], [0]]
    assert [group.special for group in summary.groups] == [{"alpha": 100.0}, {"alpha": 2.5}]
    assert "| td3_bc (alpha 100.0) |" in str(summary)
    assert "lr" not in str(summary)


def test_ways_of_mixing_make_rows_of_their_own(tmp_path: Path):
    for kind in ("append", "balanced"):
        online = {"max_epoch": 3, "seed": 0, "warm_up_steps": 0}
        about = {**facts(0), "mixing": {"kind": kind}, "online": online}
        write_run(tmp_path / kind, [0.0, 1.0], **about)
    groups = report([tmp_path]).groups
    assert [group.special for group in groups] == [{"kind": "append"}, {"kind": "balanced"}]


def test_runs_that_name_no_seed_go_by_their_folders(tmp_path: Path):
    for name in ("0", "1", "other"):
        write_run(tmp_path / "Pendulum-v1" / name, [0.0, 1.0], method="td3_bc", config={"lr": 1.0})
    (group,) = report([tmp_path]).groups
    assert group.seeds == [0, 1, "other"]


def test_a_seed_that_is_there_twice_is_refused(runs: Path):
    write_run(runs / "again", [0.0, 9999.0, *[1000.0] * LAST], **facts(1))
    with pytest.raises(InputError, match=r"got seed 1 of the same .* in .*again and .*iql/1; give"):
        report([runs])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("run.json", "{"),
        ("progress.csv", "a,b\n1,2\n3,4\n"),
        ("progress.csv", "epoch,step,return_mean\n0,0,1.0\n1,1\n"),
    ],
)
def test_what_is_no_run_is_left_out_and_named(file, text, runs: Path):
    write_run(runs / "odd", [0.0, 1.0], **facts(7))
    (runs / "odd" / file).write_text(text)
    summary = report([runs])
    assert [group.seeds for group in summary.groups] == [[0, 1, 2]]
    assert f"left out: {runs / 'odd'}, which is no run or a damaged one" in str(summary)
    with pytest.raises(InputError, match="found none .*odd, which is no run"):
        report([runs / "odd"])


def test_a_task_without_reference_scores_has_returns(tmp_path: Path):
    write_run(tmp_path / "Pendulum-v1" / "0", [-1000.0, -200.0, -300.0])
    summary = report([tmp_path])
    assert summary.groups[0].scores == [-250.0]
    assert "Pendulum-v1" in str(summary)
    assert "(returns)" in str(summary)


def test_a_single_seed_needs_no_rliable(tmp_path: Path, monkeypatch):
    write_run(tmp_path / "0", [0.0, 100.0], **facts(0))
    monkeypatch.setitem(sys.modules, "rliable", None)
    assert report([tmp_path]).groups[0].iqm == pytest.approx(
        float(normalized_score("Hopper-v4", 100))
    )
    write_run(tmp_path / "1", [0.0, 100.0], **facts(1))
    with pytest.raises(InputError, match=r"expected the rliable package .*tianshou_ext\[report\]"):
        report([tmp_path])


def test_numbers_can_be_kept(runs: Path):
    report([runs], json_out=runs / "table.json")
    (group,) = json.loads((runs / "table.json").read_text())
    assert group["seeds"] == [0, 1, 2]


def test_folders_without_runs_give_one_sentence(tmp_path: Path):
    with pytest.raises(InputError, match="expected runs with tests under .*, found none"):
        report([tmp_path])


def test_the_interquartile_mean_leaves_out_the_outer_quarters():
    iqm, (low, high) = interquartile_mean([1.0, 2, 3, 4, 5, 6, 7, 100])
    assert iqm == 4.5
    assert low < 4.5 < high
    assert interquartile_mean([7.0]) == (7.0, (7.0, 7.0))


def test_intervals_are_the_same_each_time_and_leave_the_global_generator_alone():
    np.random.seed(5)
    first = interquartile_mean(range(9))
    drawn = np.random.rand()
    assert interquartile_mean(range(9)) == first
    np.random.seed(5)
    assert np.random.rand() == drawn
