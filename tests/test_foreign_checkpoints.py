"""A checkpoint that lacks something, or is of other optimizers, gets one sentence and is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tianshou_ext.checkpoint import load_checkpoint, load_policy, policy_state
from tianshou_ext.errors import InputError


def write(path: Path, state: dict[str, Any]) -> bytes:
    torch.save(state, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "missing", ["method", "config", "policy", "optimizers", "generators", "num_updates", "run"]
)
def test_what_is_missing_is_named(missing, make_policy, tmp_path: Path):
    state = {**policy_state(make_policy("bc")), "run": {}}
    del state[missing]
    before = write(tmp_path / "a.pt", state)
    for load in (load_policy, load_checkpoint):
        with pytest.raises(InputError, match=f"got one without {missing}; it is foreign"):
            load(make_policy("bc"), tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == before


def test_another_format_without_its_versions_is_one_sentence(make_policy, tmp_path: Path):
    write(tmp_path / "a.pt", {"format": 7})
    with pytest.raises(InputError, match="of format 1 at .*, got format 7"):
        load_checkpoint(make_policy("bc"), tmp_path / "a.pt")


def test_other_optimizers_are_refused(make_policy, tmp_path: Path):
    state = {**policy_state(make_policy("bc")), "run": {}}
    state["optimizers"] = {"other": state["optimizers"]["actor"]}
    write(tmp_path / "a.pt", state)
    with pytest.raises(InputError, match="expected the optimizers actor at"):
        load_checkpoint(make_policy("bc"), tmp_path / "a.pt")
