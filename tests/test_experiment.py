"""What the examples of all domains share."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from tianshou_ext.experiment import link_best, render_mode


@pytest.mark.parametrize("answers", [True, False])
def test_a_display_that_does_not_answer_is_none(answers, monkeypatch):
    """MuJoCo's viewer aborted the process there, as in a shell of a session that has ended."""
    monkeypatch.setenv("DISPLAY", ":77")
    viewer = types.SimpleNamespace(init=lambda: answers, get_primary_monitor=lambda: object())
    monkeypatch.setitem(sys.modules, "glfw", viewer)
    assert render_mode() == ("human" if answers else "rgb_array")


def test_the_newest_runs_best_policy_is_linked(tmp_path: Path):
    for seed in ("0", "1"):
        (tmp_path / seed).mkdir()
        (tmp_path / seed / "policy.pth").write_text(seed)
        link_best(tmp_path / seed)
        assert (tmp_path / "policy.pth").read_text() == seed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "policy.pth"]
