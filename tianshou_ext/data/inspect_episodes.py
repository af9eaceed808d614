"""What ``inspect`` finds in the flags, the episodes they make, and the rewards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tianshou_ext.data.blocks import BufferFile
from tianshou_ext.data.findings import Finding, some_rows, summary

__all__ = ["look_at_flags", "look_at_rewards"]


def look_at_flags(source: BufferFile, figures: dict[str, Any]) -> Iterator[Finding]:
    """Put the figures of flags and episodes into ``figures``, and yield what is wrong with them."""
    terminated, truncated, done = source.terminated, source.truncated, source.done
    figures["terminated"] = int(terminated.sum())
    figures["truncated"] = int(truncated.sum())
    figures["both_flags"] = int((terminated & truncated).sum())
    figures["unfinished"] = int(source.open_ends.sum())
    figures["episodes"] = None  # shuffled transitions have none
    if figures["transitions"] == 0:
        yield Finding(
            "error",
            "no row can be sampled: all are truncated, and what came next is not stored",
            "store obs_next, or the observation after each episode as one more row",
        )
    unmarked = np.nonzero((terminated | truncated) & ~done)[0]
    if len(unmarked):
        yield Finding(
            "error",
            f"{len(unmarked):,} rows end an episode but are not done ({some_rows(unmarked)}), so "
            "stacks and n-step rewards run over the border",
            "set done to terminated or truncated",
        )
    unexplained = np.nonzero(done & ~(terminated | truncated))[0]
    if len(unexplained):
        yield Finding(
            "warning",
            f"{len(unexplained):,} rows are done but neither terminated nor truncated "
            f"({some_rows(unexplained)})",
            "set the flag that is meant: a target bootstraps over them as over truncated rows",
        )
    if figures["both_flags"]:
        rows = np.nonzero(terminated & truncated)[0]
        yield Finding(
            "warning",
            f"{len(rows):,} rows are both terminated and truncated ({some_rows(rows)})",
            "check that these episodes truly ended there: a target does not bootstrap from them",
        )
    if not terminated.any():
        yield Finding(
            "warning",
            "no row is terminated",
            "right where episodes end by time only; else the terminals were lost, look at the "
            "source",
        )
    if figures["unfinished"]:
        rows = np.nonzero(source.open_ends)[0]
        yield Finding(
            "warning",
            f"the last episode is unfinished: {some_rows(rows)} ends the data without a flag",
            "mark it truncated (merge, split and subsample do)",
        )
    if not source.ordered:
        loose = np.nonzero(~source.ends)[0]
        if len(loose):
            yield Finding(
                "error",
                f"the rows are shuffled, but {len(loose):,} end no episode ({some_rows(loose)}), "
                "so stacks and n-step rewards chain rows that do not belong together",
                "mark every row terminated or truncated",
            )
        yield Finding(
            "note",
            "the rows are shuffled transitions: no episodes, returns, duplicates or jumps",
            "train with n_step 1; sets chosen by return need ordered data",
        )
        return
    lengths = source.lengths()
    figures["episodes"] = len(lengths)
    figures["return"] = summary(source.returns())
    figures["length"] = summary(lengths)
    short = int(((lengths == 1) & terminated[source.ends]).sum())
    if short > 0.05 * len(lengths) and len(lengths) > 1:
        yield Finding(
            "warning",
            f"{short:,} of {len(lengths):,} episodes are a single terminated transition",
            "check the flags: some logs mark every row at the goal as terminal",
        )


def look_at_rewards(source: BufferFile, figures: dict[str, Any]) -> Iterator[Finding]:
    """Put the figures of the rewards into ``figures``, and yield what is wrong with them."""
    rewards = np.asarray(source.rew, np.float64)
    bad = np.nonzero(~np.isfinite(rewards))[0]
    if len(bad):
        yield Finding(
            "error",
            f"{len(bad):,} rewards are NaN or infinite ({some_rows(bad)})",
            "repair the source and convert again",
        )
    rewards = rewards[source.transitions & np.isfinite(rewards)]
    figures["reward"] = summary(rewards)
    figures["reward"]["not_finite"] = len(bad)
    if len(rewards) == 0:
        return
    figures["reward"]["nonzero"] = float((rewards != 0).mean())
    if len(rewards) > 1 and rewards.min() == rewards.max():
        yield Finding(
            "warning",
            f"every reward is {rewards[0]:g}",
            "look at the source: nothing but an episode's length can be learned from these",
        )
