"""One name in five places: registry, method file, test, example, page; and configs that hold."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

from tianshou_ext.errors import InputError
from tianshou_ext.policy import METHODS, get_method, method_name
from tianshou_ext.policy.config import TIANSHOU_NAMES, PolicyConfig, make_config

ROOT = Path(__file__).parents[1]

SHORT = {"decision_transformer": "dt"}
"""Methods whose examples have shorter names."""

every_method = pytest.mark.parametrize("name", list(METHODS))


@every_method
def test_a_method_has_its_file_test_page_and_example(name):
    paths = [
        f"tianshou_ext/policy/{name}.py",
        f"tests/policy/test_{name}.py",
        f"docs/methods/{name}.md",
    ]
    if METHODS[name].actions != "continuous":
        short = "il" if name == "bc" else name.removeprefix("discrete_")
        paths.append(f"examples/atari/atari_{SHORT.get(name, short)}.py")
    if METHODS[name].actions != "discrete":
        paths.append(f"examples/mujoco/mujoco_{SHORT.get(name, name)}.py")
    for path in paths:
        assert (ROOT / path).is_file(), f"{name} lacks {path}"


def test_every_method_file_is_registered_and_exported():
    files = {path.stem for path in (ROOT / "tianshou_ext/policy").glob("*.py")}
    shared = {
        "__init__",
        "actor_critic",
        "base",
        "checks",
        "compiled",
        "config",
        "in_context",
        "learner",
        "o3f",
        "planner_greedy",
        "registry",
        "staging",
    }
    assert files - shared == set(METHODS)
    package = importlib.import_module("tianshou_ext.policy")
    for method in METHODS.values():
        for made in (method.policy_class, method.config_class):
            assert getattr(package, made.__name__) is made
            assert made.__name__ in package.__all__
        assert method.policy_class.__module__ == f"tianshou_ext.policy.{method.name}"


@every_method
def test_defaults_are_valid_and_every_field_is_explained(name):
    config_class = METHODS[name].config_class
    config = config_class()
    config.validate()
    source = Path(importlib.import_module(config_class.__module__).__file__).read_text()
    own = set(config_class.__annotations__)
    for field in dataclasses.fields(config):
        if field.name in own:
            _, after = source.split(f"    {field.name}: ", 1)
            assert after.splitlines()[1].strip().startswith('"""'), f"{field.name} has no docstring"


@every_method
def test_registry_says_what_users_need(name, make_policy):
    method = get_method(name)
    assert method.name == name
    assert method.title
    assert method.paper
    assert method.actions in ("discrete", "continuous", "both")
    actions = "continuous" if method.actions == "continuous" else "discrete"
    assert method_name(make_policy(name, actions=actions)) == name


def test_unknown_method_gives_the_list():
    with pytest.raises(InputError, match=r"expected a method out of .*bc, .*discrete_cql.*'dqn'"):
        get_method("dqn")


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("bc", {"gamma": 1.1}, "expected gamma in .0, 1., got 1.1"),
        ("bc", {"n_step": 0}, "expected n_step at least 1, got 0"),
        ("bc", {"lr": 0.0}, "expected lr above 0, got 0.0"),
        ("bc", {"hidden_sizes": (8, 0)}, "expected hidden_sizes of widths of at least 1, got"),
        ("spot", {"vae_hidden_sizes": (-4,)}, "expected vae_hidden_sizes of widths of at least 1"),
        ("discrete_cql", {"min_q_weight": -1.0}, "expected min_q_weight at least 0, got -1.0"),
        ("discrete_cql", {"num_quantiles": 0}, "expected num_quantiles at least 1"),
        ("discrete_bcq", {"unlikely_action_threshold": 1.5}, "unlikely_action_threshold in"),
        ("discrete_bcq", {"target_update_freq": 0}, "target_update_freq at least 1"),
        ("discrete_crr", {"policy_improvement_mode": "best"}, "one of exp, binary, all, got best"),
        ("discrete_crr", {"beta": 0.0}, "expected beta above 0"),
        ("discrete_iql", {"expectile": 1.0}, "expected expectile in .0, 1., got 1.0"),
        ("discrete_iql", {"tau": 0.0}, "expected tau in .0, 1., got 0.0"),
        ("discrete_iql", {"obs_norm": "minmax"}, "obs_norm"),
    ],
)
def test_values_out_of_range_give_one_sentence(name, options, sentence, make_policy):
    with pytest.raises(InputError, match=sentence):
        make_policy(name, **options)


def test_unknown_options_give_the_known_ones():
    config_class = METHODS["discrete_cql"].config_class
    with pytest.raises(InputError, match=r"DiscreteCQLConfig .*min_q_weight.*got alpha, weight;"):
        make_config(config_class, None, {"weight": 1, "alpha": 2})


def test_a_config_of_another_method_is_refused_by_the_fields_that_are_not_known():
    given = METHODS["iql"].config_class(expectile=0.8)
    with pytest.raises(InputError, match=r"options of TD3BCConfig .*got dropout, expectile, inv"):
        make_config(METHODS["td3_bc"].config_class, given, {})


def test_tianshous_names_set_our_fields():
    given = {"discount_factor": 0.5, "estimation_step": 3}
    config = make_config(PolicyConfig, None, given)
    assert (config.gamma, config.n_step) == (0.5, 3)
    assert make_config(PolicyConfig, config, {"n_step_return_horizon": 2}).n_step == 2
    known = {field.name for field in dataclasses.fields(PolicyConfig)}
    assert set(TIANSHOU_NAMES.values()) <= known


def test_options_are_laid_over_a_config():
    config_class = METHODS["discrete_cql"].config_class
    config = make_config(config_class, config_class(num_quantiles=7), {"lr": 0.5})
    assert (config.num_quantiles, config.lr) == (7, 0.5)


@pytest.mark.parametrize(
    ("observation_space", "action_space"),
    [
        (Dict({"a": Box(0, 1, (2,))}), Discrete(2)),
        (Discrete(5), Discrete(2)),
        (Box(0, 1, (2,)), MultiDiscrete([2, 2])),
        (Box(0, 1, (2,)), Discrete(3, start=1)),
        (Box(0, 1, (2,)), Box(-np.inf, np.inf, (2,))),
        (Box(0, 1, (2,)), Box(-1, 1, (2, 3))),
        (Box(0, 1, (2,)), Box(-1, 1, ())),
    ],
    ids=[
        "dict observations",
        "discrete observations",
        "several actions",
        "from 1",
        "unbounded",
        "table",
        "one number",
    ],
)
def test_spaces_that_no_method_can_use_give_one_sentence(observation_space, action_space):
    with pytest.raises(
        InputError,
        match=r"expected (a Box|a Discrete or Box|actions (that|with bounds))",
    ):
        METHODS["bc"].policy_class.build(observation_space, action_space)


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.actions == "discrete"])
def test_discrete_methods_refuse_continuous_actions_when_they_are_built(name):
    with pytest.raises(InputError, match=r"expected .*Discrete"):
        METHODS[name].policy_class.build(Box(0, 1, (2,)), Box(-1, 1, (2,)))
