"""The tables of the report on the cellworld, and what their columns mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "LIKENESS",
    "QUALITY",
    "SEEDS",
    "VALUES",
    "likeness_table",
    "quality_table",
    "seeds_table",
    "softmax_note",
    "values_table",
]

Table = tuple[list[str], list[list[str]]]

QUALITY = (
    "Episodes of the authors' environment (exact), or of the same with faster arithmetic (fast); "
    "mean and 95 % bootstrap interval. "
    "Survived: the goal was reached without a capture. Return: -1 a capture, 1 for the goal, "
    "unless the run chose other rewards. A step is 0.25 s."
)
SEEDS = "Mean and standard deviation of the runs' own means, one for each seed."
LIKENESS = (
    "On mouse episodes that no policy was trained on, in nats; 0 is a perfect copy. Marginal KL: "
    "how often each action is taken, mouse against the policy's likeliest action, and against its "
    "probabilities; 0.5 is added to each count. Conditional: mean of -log pi(a | s) over what the "
    "mouse did, with an interval over episodes. Occupancy: steps in each cell, mouse against "
    "episodes of the policy. 'other mouse episodes' is the least one can expect: the held-out "
    "episodes against those trained on (conditional: against their frequencies, whatever the "
    "state). CQL's pi is the softmax of its Q, which is what its conservative term trains."
)
VALUES = (
    "Q and V over the held-out mouse states, and V less the discounted return that really "
    "followed. Along its own episodes a right V is 0 off: above, the policy is too sure of itself, "
    "below, it is pessimistic. Along mouse paths (episodes that reach the goal) more than 0 may be "
    "right, if the policy is better than the mouse. If pessimism were why cloning wins, V would "
    "lie below what the policy's own episodes bring."
)


def softmax_note(num_actions: int) -> str:
    """Say why the older formula does not tell policies apart."""
    bound = (math.e - 1) / (num_actions - 1 + math.e)
    return (
        "Softmax KL is the older project's formula: a softmax over the two probability vectors, "
        "then KL. It cannot tell policies apart. A softmax of numbers between 0 and 1 is nearly "
        f"uniform whatever they are, so with {num_actions} actions two policies that never do the "
        f"same thing are {bound:.4f} nats apart, and all others less. It is shown to compare with "
        "that project's numbers only."
    )


def quality_table(figures: Mapping[str, Any]) -> Table:
    """Return header and rows of the scores."""
    names = ("return", "survived", "reached_goal", "captures", "length")
    rows = [
        [label, *(_spread(policy["rollouts"][name]) for name in names)]
        for label, policy in figures["policies"].items()
    ]
    count = next(iter(figures["policies"].values()))["rollouts"]["episodes"]
    where = "fast" if figures["env"]["fast"] else "exact"
    header = [f"{count} episodes, {where}", "return", "survived", "goal", "captures", "steps"]
    return header, rows


def seeds_table(figures: Mapping[str, Any]) -> Table | None:
    """Return header and rows of what runs score that differ in their seed only; None without."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for label, policy in figures["policies"].items():
        if "seed" in policy:
            name = label.removesuffix(f" seed {policy['seed']}")
            groups.setdefault(name, []).append(policy)
    if all(len(group) < 2 for group in groups.values()):
        return None
    scores = ("return", "survived", "reached_goal", "captures")
    header = ["over seeds", "seeds", "return", "survived", "goal", "captures"]
    header += ["conditional -log pi", "occupancy KL"]
    rows = []
    for name, group in groups.items():
        columns = [[policy["rollouts"][score][0] for policy in group] for score in scores]
        apart = [policy["divergence"] for policy in group]
        columns += [[one["nll"][0] for one in apart if "nll" in one]]
        columns += [[one["occupancy_kl"] for one in apart]]
        told = [f"{np.mean(c):.2f} ± {np.std(c):.2f}" if c else "-" for c in columns]
        rows.append([name, ", ".join(str(policy["seed"]) for policy in group), *told])
    return header, rows


def likeness_table(figures: Mapping[str, Any]) -> Table:
    """Return header and rows of the divergences."""
    header = [
        "nats",
        "marginal KL",
        "by probability",
        "conditional -log pi",
        "same action",
        "occupancy KL",
        "softmax KL",
    ]
    names = ("marginal_kl", "marginal_kl_probable", "nll", "accuracy", "occupancy_kl", "softmax_kl")
    known = {label: policy["divergence"] for label, policy in figures["policies"].items()}
    known |= {label: figures["mouse"][label] for label in ("other mouse episodes", "uniform")}
    rows = [
        [label, *(_told(name, numbers.get(name)) for name in names)]
        for label, numbers in known.items()
    ]
    return header, rows


def values_table(figures: Mapping[str, Any]) -> Table | None:
    """Return header and rows of Q and V; None if no policy has any."""
    policies = {k: p["values"] for k, p in figures["policies"].items() if "values" in p}
    if not policies:
        return None
    others = [*next(iter(policies.values()))["q_of"]]  # the same for each
    header = [
        "held-out states",
        "Q of the mouse's action",
        "V",
        "Q of a random action",
        *(f"Q of {name}'s action" for name in others),
        "V less return, own episodes",
        "V less return, mouse paths",
        "Q less return, mouse paths",
    ]
    rows = []
    for label, values in policies.items():
        own, mouse = values.get("along_own", {}), values.get("along_mouse", {})
        rows.append(
            [
                label,
                *(f"{values[name]:.2f}" for name in ("q_mouse", "v", "q_uniform")),
                *(
                    f"{values['q_of'][name]:.2f}" if name in values["q_of"] else ""
                    for name in others
                ),
                _spread(own.get("v_less_return")),
                _spread(mouse.get("v_less_return")),
                _spread(mouse.get("q_less_return")),
            ]
        )
    return header, rows


def _spread(numbers: Sequence[float] | None) -> str:
    if numbers is None:
        return "-"
    mean, low, high = numbers
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _told(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "nll":
        return _spread(value)
    return f"{value:.2e}" if name == "softmax_kl" else f"{value:.3f}"
