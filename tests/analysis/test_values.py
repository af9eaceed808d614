"""What a policy thinks of states: probabilities that add up, and values where there are some."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tianshou_ext.analysis.values import thoughts
from tianshou_ext.errors import InputError
from tianshou_ext.policy import METHODS

DISCRETE = [name for name, method in METHODS.items() if method.actions != "continuous"]
OBS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities_add_up_and_the_action_is_the_tests(name: str, make_policy):
    policy = make_policy(name)
    mind = thoughts(policy, OBS)
    assert mind.log_prob.shape == (7, 4)
    assert np.exp(mind.log_prob).sum(1) == pytest.approx(np.ones(7), abs=1e-5)
    with torch.no_grad():
        expected, _ = policy.act(policy.normalize(OBS), True)
    assert mind.act.tolist() == expected.tolist()
    assert (mind.q is None) == (mind.v is None)
    if mind.q is not None:
        assert mind.q.shape == (7, 4) and mind.v.shape == (7,)
        assert mind.q_of(mind.act) == pytest.approx(mind.q[np.arange(7), mind.act])


def test_methods_with_values_have_them(make_policy):
    with_values = {name for name in DISCRETE if thoughts(make_policy(name), OBS).q is not None}
    assert with_values == {"discrete_cql", "discrete_bcq", "discrete_crr", "discrete_iql"}


def test_likelihood_under_cql_is_its_conservative_term(make_policy):
    policy = make_policy("discrete_cql")
    act = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    mind = thoughts(policy, OBS)
    with torch.no_grad():
        quantiles, _ = policy.model(policy.normalize(OBS))
        _, conservative, _ = policy.losses(quantiles, act, quantiles[:, 0])
    assert -mind.log_prob[np.arange(7), act].mean() == pytest.approx(float(conservative), abs=1e-5)
    assert mind.v == pytest.approx(mind.q.max(1))


def test_many_states_are_the_same_as_one_by_one(make_policy, monkeypatch):
    policy = make_policy("discrete_iql")
    whole = thoughts(policy, OBS)
    monkeypatch.setattr("tianshou_ext.analysis.values.BLOCK", 2)
    parts = thoughts(policy, OBS)
    for name in ("act", "log_prob", "q", "v"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), abs=1e-6)


def test_what_has_no_probabilities_or_values_gets_one_sentence(make_policy):
    with pytest.raises(InputError, match="discrete actions"):
        thoughts(make_policy("td3_bc", actions="continuous"), OBS)
    with pytest.raises(InputError, match="expected observations"):
        thoughts(make_policy("bc"), OBS[:0])
    with pytest.raises(InputError, match="expected a method with values"):
        thoughts(make_policy("bc"), OBS).q_of([0] * 7)


@pytest.mark.parametrize("name", ["bc", "discrete_iql", "discrete_crr"])
def test_of_a_policy_that_draws_it_is_the_likeliest(name: str, make_policy):
    policy = make_policy(name, sample_actions=True)
    mind = thoughts(policy, np.repeat(OBS, 30, axis=0))
    assert np.array_equal(mind.act, mind.log_prob.argmax(1))
