"""Data sets of our own: levels, ends of episodes, reproducibility, the packaged policies."""

import csv
import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("safetensors")

from safetensors.torch import save_file

from tianshou_ext.data import behaviour
from tianshou_ext.data.behaviour import (
    LEVELS,
    NumpyActor,
    chooser,
    collect,
    find_behaviour,
    level_file,
    play_episodes,
)
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.envs.mujoco import make_mujoco_env
from tianshou_ext.errors import InputError
from tianshou_ext.nn.actor_critic import GaussianActor
from tianshou_ext.tianshou_api import ReplayBuffer
from tianshou_ext.trainer import PROGRESS_COLUMNS

BOUNDS = (-5.0, 2.0)
PACKAGED = sorted(path.parent.name for path in behaviour.FOLDER.glob("*/manifest.json"))


def write_actor(path, seed, sizes=(11, 3)):
    """Write the weights of a small actor in half precision."""
    torch.manual_seed(seed)
    actor = GaussianActor((sizes[0],), sizes[1], (8, 8), log_std_bounds=BOUNDS)
    weights = {key: value.half().contiguous() for key, value in actor.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path)
    actor.load_state_dict({key: value.float() for key, value in weights.items()})
    return actor


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """Package three untrained policies for the hopper, and keep the cache out of the home."""
    folder = tmp_path / "behaviour" / "hopper"
    names = ("00000100", "00000200", "00000300")
    for k, name in enumerate(names):
        write_actor(folder / f"{name}.safetensors", k)
    manifest = {
        "task": "Hopper-v4",
        "log_std_bounds": BOUNDS,
        "levels": {
            "medium": [names[1]],
            "medium-replay": ["random", *names[:2]],
            "medium-expert": [names[1], names[2]],
            "expert": [names[2]],
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(behaviour, "FOLDER", tmp_path / "behaviour")
    monkeypatch.setenv("TIANSHOU_EXT_CACHE", str(tmp_path / "cache"))
    return folder


def collected(path, **options):
    """Collect a small data set and return its columns."""
    collect(out=path, progress=False, **options)
    return load_buffer(path)._meta


def test_the_actor_in_numpy_is_the_one_in_torch(tmp_path):
    actor = write_actor(tmp_path / "a.safetensors", 3)
    weights = {key: value.numpy() for key, value in actor.state_dict().items()}
    fast = NumpyActor(weights, BOUNDS)
    assert fast.sizes == (11, 3)
    obs, noise = torch.randn(20, 11), torch.randn(20, 3)
    (mean, std), _ = actor(obs)
    expected = torch.tanh(mean + std * noise).detach().numpy()
    got = [fast(o, n) for o, n in zip(obs.numpy(), noise.numpy(), strict=True)]
    assert np.allclose(got, expected, atol=1e-3)  # activations are rounded


def test_actions_do_not_depend_on_the_order_of_sums(tmp_path):
    """Which differs between processors, and would lead to other data on each."""
    weights = {
        key: 4.0 * value.half().numpy()
        for key, value in write_actor(tmp_path / "a.safetensors", 3, (40, 3)).state_dict().items()
    }
    rng = np.random.default_rng(0)
    order = rng.permutation(40)
    first = next(key for key in weights if weights[key].shape[1:] == (40,))
    other = NumpyActor({**weights, first: weights[first][:, order]}, BOUNDS)
    actor = NumpyActor(weights, BOUNDS)
    for _ in range(200):
        obs, noise = 10.0 * rng.normal(size=40).astype(np.float32), rng.normal(size=3)
        assert np.array_equal(actor(obs, noise), other(obs[order], noise))


@pytest.mark.parametrize("level", LEVELS)
def test_same_seed_same_bytes(level, packaged, tmp_path):
    one, two, other = (tmp_path / f"{name}.hdf5" for name in ("one", "two", "other"))
    first = collected(one, level=level, steps=120, seed=1)
    collected(two, level=level, steps=120, seed=1)
    assert one.read_bytes() == two.read_bytes()
    assert not np.array_equal(collected(other, level=level, steps=120, seed=2).obs, first.obs)


def test_rows_are_those_of_the_environment(packaged, tmp_path):
    data = collected(tmp_path / "d.hdf5", level="medium", steps=200, seed=4)
    env = make_mujoco_env("Hopper-v4")
    seed = int(np.random.default_rng([4, 0]).integers(2**31))
    obs, _ = env.reset(seed=seed)
    for row in range(200):
        assert np.array_equal(data.obs[row], obs.astype(np.float32))
        obs, rew, terminated, truncated, _ = env.step(data.act[row])
        assert data.rew[row] == np.float32(rew)
        assert np.array_equal(data.obs_next[row], obs.astype(np.float32))
        assert bool(data.terminated[row]) == terminated
        assert bool(data.truncated[row]) == (truncated or (row == 199 and not terminated))
        if terminated or truncated:
            obs, _ = env.reset()
    assert data.terminated.any() and np.abs(data.act).max() <= 1.0


def test_a_time_limit_and_the_last_step_truncate(tmp_path):
    path = tmp_path / "d.hdf5"
    data = collected(path, task="HalfCheetah-v4", level="random", steps=2050)
    assert np.flatnonzero(data.truncated).tolist() == [999, 1999, 2049]
    assert not data.terminated.any() and data.done.sum() == 3
    assert not np.array_equal(data.obs_next[999], data.obs[1000])
    assert np.array_equal(data.obs_next[998], data.obs[999])
    about = read_provenance(path)
    assert about["episodes"] == 2
    returns = [data.rew[:1000].sum(), data.rew[1000:2000].sum()]
    assert about["score_mean"] == pytest.approx(np.mean(returns), rel=1e-4)
    assert len(ReplayBuffer.load_hdf5(str(path))) == 2050


def test_policies_contribute_equal_shares(packaged, tmp_path):
    path = tmp_path / "d.hdf5"
    collected(path, level="medium-replay", steps=100, seed=3)
    about = read_provenance(path)
    assert about["policies"] == ["random", "00000100", "00000200"]
    assert "stand in for the replay buffer" in about["notes"][0]
    # A policy's part starts with an episode of its own, after one that is cut.
    assert set(np.flatnonzero(load_buffer(path).done)) >= {32, 65, 99}
    assert {"task", "level", "seed", "behaviour", "versions", "action_space"} <= set(about)


def test_actions_are_kept_in_the_policys_range(tmp_path):
    data = collected(tmp_path / "d.hdf5", task="Pendulum-v1", level="random", steps=50)
    env = make_mujoco_env("Pendulum-v1")
    env.reset(seed=int(np.random.default_rng([0, 0]).integers(2**31)))
    assert np.abs(data.act).max() <= 1.0
    for row in range(5):
        obs, *_ = env.step(2.0 * data.act[row])
        assert np.allclose(obs, data.obs_next[row], atol=1e-6)


def test_the_cache_is_filled_once_and_anew_for_other_policies(packaged, capsys):
    path = level_file("Hopper-v4", "expert", 50, show_progress=False)
    assert "collecting 50 steps of Hopper-v4 expert" in capsys.readouterr().out
    stamp = path.stat().st_mtime_ns
    assert level_file("Hopper-v4", "expert", 50, show_progress=False) == path
    assert path.stat().st_mtime_ns == stamp and capsys.readouterr().out == ""
    manifest = json.loads((packaged / "manifest.json").read_text())
    (packaged / "manifest.json").write_text(json.dumps({**manifest, "steps": 1}))
    assert level_file("Hopper-v4", "expert", 50, show_progress=False) != path


def test_the_command_says_what_it_made(packaged, tmp_path):
    said = collect(task="Hopper-v2", level="expert", steps=60, progress=False)
    assert "60 steps" in said and "return" in said and "score" in said
    assert str(tmp_path / "cache" / "mujoco") in said
    assert "return of none" in collect(
        task="HalfCheetah-v4", level="random", steps=9, out=tmp_path / "d.hdf5", progress=False
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"level": "best"}, r"expected a level that Hopper-v4 has \(random, medium, .*got 'best'"),
        ({"task": "Ant-v4", "level": "medium"}, r"that Ant-v4 has \(random\), got 'medium'"),
        ({"task": "Hoper-v4"}, "expected a task that is installed"),
        ({"task": "CartPole-v1", "level": "random"}, "expected a Box action space"),
        ({"seed": -1}, "expected a seed of at least 0, got -1"),
        ({"level": "medium-replay", "steps": 2}, "at least a step for each of the 3 policies"),
    ],
)
def test_bad_input_gets_one_sentence(options, sentence, packaged, tmp_path):
    with pytest.raises(InputError, match=sentence) as error:
        collect(out=tmp_path / "d.hdf5", progress=False, **{"steps": 50, **options})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "d.hdf5").exists()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "manifest.json").write_text("{"), "expected a manifest"),
        (lambda f: (f / "00000300.safetensors").unlink(), "expected the weights"),
        (lambda f: (f / "00000300.safetensors").write_bytes(b"x" * 9), "expected the weights"),
        (
            lambda f: write_actor(f / "00000300.safetensors", 0, (17, 6)),
            "expected an environment of 17 observed numbers and 6 actions",
        ),
    ],
)
def test_damaged_packages_get_one_sentence(damage, sentence, packaged, tmp_path):
    damage(packaged)
    with pytest.raises(InputError, match=sentence) as error:
        collect(level="expert", steps=50, out=tmp_path / "d.hdf5", progress=False)
    assert "\n" not in str(error.value)


def test_packing_a_run(tmp_path):
    run = tmp_path / "run"
    returns = {0: 5.0, 100: 20.0, 200: 35.0, 300: 60.0, 400: 90.0}
    for step in list(returns)[1:]:
        write_actor(run / "snapshots" / f"{step:08d}.safetensors", step)
    with (run / "progress.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(PROGRESS_COLUMNS)
        rows = enumerate(returns.items())
        writer.writerows([k, step, mean, 0, 5, 0, step, "{}"] for k, (step, mean) in rows)
    config = {"lr": 3e-4, "hidden_sizes": [8, 8]}
    about = {"config": config, "seed": 0, "batch_size": 256, "versions": {}}
    (run / "run.json").write_text(json.dumps(about))
    tool = Path(__file__).parents[2] / "tools" / "pack_behaviour.py"
    spec = importlib.util.spec_from_file_location("pack_behaviour", tool)
    pack = importlib.util.module_from_spec(spec)
    sys.modules["pack_behaviour"] = pack
    spec.loader.exec_module(pack)
    out = tmp_path / "out"
    args = pack.Args("Hopper-v4", str(run), "abc", str(out), None, 3, 2, 2)
    pack.main(args)
    manifest = json.loads((out / "hopper" / "manifest.json").read_text())
    levels = manifest["levels"]
    assert levels["expert"] == ["00000400"] and manifest["commit"] == "abc"
    assert levels["medium"][0] in ("00000100", "00000200")
    assert levels["medium-expert"] == [*levels["medium"], "00000400"]
    assert levels["medium-replay"][0] == "random"
    assert levels["medium-replay"][-1:] == levels["medium"]
    used = {name for level in levels.values() for name in level}
    assert set(manifest["snapshots"]) == used
    assert {path.stem for path in (out / "hopper").glob("*.safetensors")} == used - {"random"}
    assert all(one["episodes"] == 2 for one in manifest["snapshots"].values())

    pack.main(dataclasses.replace(args, expert=300))
    facts = json.loads((out / "hopper" / "manifest.json").read_text())
    assert facts["levels"]["expert"] == ["00000300"] and facts["steps"] == 300
    with pytest.raises(InputError, match="up to 300 steps; train longer or change --expert"):
        pack.main(dataclasses.replace(args, expert=350))


@pytest.mark.parametrize("name", PACKAGED or ["none"])
def test_packaged_policies_do_what_their_manifest_says(name):
    if not PACKAGED:
        pytest.skip("no behaviour policies are packaged")
    facts = json.loads((behaviour.FOLDER / name / "manifest.json").read_text())
    found = find_behaviour(facts["task"])
    assert tuple(found.levels) == LEVELS
    files = {path.stem for path in (behaviour.FOLDER / name).glob("*.safetensors")}
    used = {one for level in found.levels.values() for one in level}
    assert files == used - {"random"} and set(facts["snapshots"]) == used
    scores = {one: facts["snapshots"][one]["return_mean"] for one in used}
    medium, expert = found.levels["medium"][0], found.levels["expert"][0]
    assert scores["random"] < scores[medium] < scores[expert]
    env = make_mujoco_env(facts["task"])
    rng = np.random.default_rng(0)
    for snapshot in (medium, expert):
        returns = play_episodes(env, chooser(found, snapshot, env, rng), 3, rng)
        assert np.mean(returns) > 0.5 * scores[snapshot]
