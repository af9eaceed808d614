"""The dip, the recovery and the regret of a run that goes online, by hand."""

from __future__ import annotations

import pytest

from tianshou_ext.errors import InputError
from tianshou_ext.evaluation.finetuning import summarize_finetuning


def rows(offline: list[float], online: list[float]) -> list[dict[str, float]]:
    before = [{"env_step": 0, "return_mean": one} for one in offline]
    return before + [
        {"env_step": 100 * (k + 1), "return_mean": one} for k, one in enumerate(online)
    ]


def test_a_dip_and_its_recovery():
    result = summarize_finetuning(rows([5, 50], [40, 20, 49, 50, 80]), lambda r: r)
    assert (result.start, result.end, result.best) == (50, 80, 80)
    assert (result.dip, result.dip_step, result.recovered_step) == (30, 200, 400)
    assert result.regret == pytest.approx(1 - (40 + 20 + 49 + 50 + 80) / 500)
    assert "dip 30.0 at 200 steps, recovered after 400" in str(result)


def test_a_dip_that_never_ends():
    result = summarize_finetuning(rows([50], [60, 10, 20]))
    assert (result.dip, result.recovered_step, result.regret) == (40, None, None)
    assert "not recovered" in str(result)


def test_no_dip():
    result = summarize_finetuning(rows([50], [50, 60]), lambda r: 100.0)
    assert (result.dip, result.dip_step, result.recovered_step, result.regret) == (0, 0, 0, 0)
    assert "no dip" in str(result)


@pytest.mark.parametrize("given", [([1], []), ([], [1])])
def test_a_run_without_one_of_the_phases_is_refused(given):
    with pytest.raises(InputError, match="expected tests before and after learning online"):
        summarize_finetuning(rows(*given))


def test_without_an_offline_phase_it_starts_where_it_begins_to_learn():
    """Such a run with a warm-up has no test before its first environment step."""
    first = {"env_step": 40, "return_mean": 30.0}
    result = summarize_finetuning([first, *rows([], [20, 35])])
    assert (result.start, result.dip, result.recovered_step) == (30, 10, 200)
