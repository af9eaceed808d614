"""What going online did to a policy: the dip, how long it took to recover, the regret."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tianshou_ext.errors import InputError


@dataclass(frozen=True)
class Finetuning:
    """Of one run through both phases; returns are means over test episodes."""

    start: float
    """Return of the last test before the first gradient step online."""
    end: float
    """Return of the last test."""
    best: float
    """Highest return of a test online."""
    dip: float
    """How far the lowest test online lies below ``start``, at least 0."""
    dip_step: int
    """Environment steps until then; 0 without a dip."""
    recovered_step: int | None
    """Environment steps until a test after the dip reached ``start`` again; None if none did."""
    regret: float | None
    """Mean of 1 - score / 100 over the tests online: what an expert would have got more, in the
    manner of Cal-QL's cumulative regret (arXiv 2303.05479, section 6), where a score is a rate of
    success. None without scores."""

    def __str__(self) -> str:
        recovered = "no dip"
        if self.dip > 0:
            after = self.recovered_step
            recovered = f"dip {self.dip:.1f} at {self.dip_step:,} steps, " + (
                f"recovered after {after:,}" if after is not None else "not recovered"
            )
        regret = "" if self.regret is None else f", regret {self.regret:.3f}"
        return f"offline {self.start:.1f}, online {self.end:.1f}; {recovered}{regret}"


def summarize_finetuning(
    rows: Sequence[Mapping[str, float]], score: Callable[[float], float] | None = None
) -> Finetuning:
    """Summarise a run of ``offline_to_online_trainer``.

    :param rows: what it returned, or ``read_progress``.
    :param score: from a return to a normalised score, 100 being an expert's.
    :raises InputError: if there is no test before, or none after, the first gradient step online.
    """
    # Without an offline phase, a warm-up comes before the first test, which learning follows.
    first = sum(1 for row in rows if not row["env_step"]) or 1
    before = [row["return_mean"] for row in rows[:first]]
    online = [(int(row["env_step"]), row["return_mean"]) for row in rows[first:]]
    if not before or not online:
        raise InputError(
            "expected tests before and after learning online, got "
            f"{len(before)} and {len(online)}; pass test_envs, and train for an epoch online"
        )
    start, returns = before[-1], [one for _, one in online]
    lowest_step, lowest = min(online, key=lambda test: test[1])
    dips = lowest < start
    regrets = [] if score is None else [1 - score(one) / 100 for one in returns]
    after = [step for step, one in online if step >= lowest_step and one >= start]
    return Finetuning(
        start=start,
        end=returns[-1],
        best=max(returns),
        dip=max(0.0, start - lowest),
        dip_step=lowest_step if dips else 0,
        recovered_step=(after[0] if after else None) if dips else 0,
        regret=sum(regrets) / len(regrets) if regrets else None,
    )
