"""Compiled gradient steps give what eager ones give."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from contract import SETTINGS, update

from tianshou_ext.errors import InputError

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU"
)
VECTORS = [s for s in SETTINGS if s.obs == "vector"]
FAST = [s for s in VECTORS if s.name == "bc" and s.actions == "continuous"]


def same_as_eager(setting, make_policy, make_buffer) -> None:
    eager, compiled = make_policy(*setting.kinds), make_policy(*setting.kinds)
    compiled.compile_step()
    buffer = make_buffer(*setting.kinds[1:])
    for step, (a, b) in enumerate(
        zip(update(eager, buffer, times=6), update(compiled, buffer, times=6), strict=True)
    ):
        assert a.keys() == b.keys()
        for key in a:
            assert np.isclose(a[key], b[key], rtol=1e-3, atol=1e-5), (step, key, a[key], b[key])


@needs_compiler
@pytest.mark.parametrize("setting", FAST, ids=str)
def test_compiled_steps_learn_the_same(setting, make_policy, make_buffer):
    same_as_eager(setting, make_policy, make_buffer)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("setting", [s for s in VECTORS if s not in FAST], ids=str)
def test_compiled_steps_learn_the_same_for_every_method(setting, make_policy, make_buffer):
    same_as_eager(setting, make_policy, make_buffer)


def test_without_a_compiler_there_is_one_sentence(make_policy, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"expected a C\+\+ compiler .* found none"):
        make_policy("bc").compile_step()
