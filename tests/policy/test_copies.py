"""A policy that was copied or pickled learns on as the original, and neither touches the other."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from contract import SETTINGS, same, update

from tianshou_ext.checkpoint import policy_state
from tianshou_ext.tianshou_api import LINE


def saved_whole(policy):
    file = io.BytesIO()
    torch.save(policy, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "copied": copy.deepcopy,
    "pickled": lambda policy: pickle.loads(pickle.dumps(policy)),
    "saved": saved_whole,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.obs == "vector"], ids=str)
def test_a_copy_learns_on_as_the_original(setting, way, make_policy, make_buffer):
    policy, buffer = make_policy(*setting.kinds), make_buffer(*setting.kinds[1:])
    update(policy, buffer, times=2)
    before = copy.deepcopy(policy.state_dict())
    other = WAYS[way](policy)
    global_state = torch.get_rng_state()
    update(other, buffer, times=3)
    assert same(policy.state_dict(), before)
    torch.set_rng_state(global_state)
    update(policy, buffer, times=3)
    assert same(policy_state(other), policy_state(policy))


def test_a_copy_does_not_hold_the_data_set(make_policy, discrete_buffer):
    policy = make_policy("bc")
    update(policy, discrete_buffer)
    assert policy.staged is not None
    assert copy.deepcopy(policy).staged is None


@pytest.mark.skipif(LINE < 2, reason="Tianshou 2.x asks an inner policy to act")
def test_the_inner_policy_of_a_copy_asks_the_copy(make_policy):
    other = copy.deepcopy(make_policy("bc"))
    assert other.policy._owner[0] is other
