"""The continuous-control examples: each runs, resumes, takes presets, refuses in one sentence."""

import dataclasses
import importlib
import json
import sys
import typing
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("tyro")

from tianshou_ext.cli import launch
from tianshou_ext.data.behaviour import LEVELS
from tianshou_ext.data.writer import BufferWriter
from tianshou_ext.errors import InputError
from tianshou_ext.policy import METHODS

EXAMPLES = Path(__file__).parents[2] / "examples" / "mujoco"
NOT_OFFLINE = ("mujoco_common", "mujoco_finetune")
NAMES = sorted(p.stem for p in EXAMPLES.glob("mujoco_*.py") if p.stem not in NOT_OFFLINE)
OTHER_LEVELS = (
    *("human", "cloned", "expert", "umaze", "umaze-diverse"),
    *("medium-play", "medium-diverse", "large-play", "large-diverse"),
)
D4RL = sorted(p.stem for p in EXAMPLES.glob("d4rl_*.py"))


@pytest.fixture(autouse=True)
def example_folder(monkeypatch, tmp_path_factory):
    """Make the examples importable and keep the cache out of the user's home."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    cache = tmp_path_factory.getbasetemp() / "mujoco_cache"
    monkeypatch.setenv("TIANSHOU_EXT_CACHE", str(cache))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def run(name, tmp_path, **options):
    """Run an example's main in this process."""
    module = importlib.import_module(name)
    defaults = {"smoke": True, "device": "cpu", "logdir": str(tmp_path / "log")}
    if not name.startswith("d4rl"):
        defaults["dataset"] = "random"
    return module.main(module.Args(**{**defaults, **options}))


def folders(tmp_path, task="Hopper-v4"):
    """Return the folders of all runs."""
    return sorted(path.parent for path in (tmp_path / "log" / task).rglob("run.json"))


@pytest.mark.parametrize("name", NAMES)
def test_smoke_leaves_checkpoint_csv_and_plot(name, tmp_path, capsys):
    rows = run(name, tmp_path, task="Hopper-v2")
    (folder,) = folders(tmp_path)
    assert folder.name == "0" and folder.parent.name == "random_300"
    assert [row["step"] for row in rows] == [0, 3]
    for file in ("checkpoint.pt", "policy.pth", "progress.csv", "curve.png"):
        assert (folder / file).stat().st_size > 0
    assert list(folder.glob("events.*"))
    said = capsys.readouterr().out.splitlines()
    assert "Hopper-v2 stands for Hopper-v4, which runs on the mujoco package" in said
    assert any(line.startswith("data: 300 steps from") and "(score" in line for line in said)
    assert f"behaviour {said[-1].split('behaviour ')[1]}" in said[-1] and str(folder) in said[-1]
    assert said[-1].count("(score") == 3
    # The same command again goes on with the run, which is finished.
    assert run(name, tmp_path) == rows


@pytest.mark.parametrize(
    ("name", "updates"),
    [
        ("mujoco_finetune", 20),
        ("mujoco_iql", 20),
        ("mujoco_cal_ql", 20),
        ("mujoco_adaptive_bc", 200),
    ],
)
def test_going_online_leaves_one_run_and_says_what_it_did(name, updates, tmp_path, capsys):
    rows = run(name, tmp_path, online_steps=100)
    assert [(row["step"], row["env_step"]) for row in rows] == [(0, 0), (3, 0), (3 + updates, 20)]
    (folder,) = folders(tmp_path)
    assert folder.name == "0_online"
    for file in ("checkpoint.pt", "policy.pth", "progress.csv", "curve.png"):
        assert (folder / file).stat().st_size > 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "on Hopper-v4: offline " in said and "regret " in said
    assert run(name, tmp_path, online_steps=100) == rows


def test_online_options_reach_the_run(tmp_path):
    options = {"mixing": "balanced", "offline_share": 0.3, "warm_up_steps": 5}
    run("mujoco_td3_bc", tmp_path, online_steps=1, optimistic_candidates=3, **options)
    (folder,) = folders(tmp_path)
    about = json.loads((folder / "run.json").read_text())
    assert about["mixing"]["kind"] == "balanced" and about["mixing"]["offline_share"] == 0.3
    assert about["online"]["warm_up_steps"] == 5


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("adaptive_bc", {"return_low": -20.272305, "return_high": 3234.3}),
        ("bcq", {"batch_size": 100}),
        ("rebrac", {"batch_size": 1024}),
    ],
)
def test_fine_tuning_has_the_settings_of_the_methods_own_script(
    method, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr("mujoco_common.apply_smoke", lambda args: {"max_episode_steps": 20})
    small = {"dataset_steps": 300, "epoch": 1, "update_per_epoch": 1, "test_num": 1}
    online = {"online_steps": 10, "online_steps_per_epoch": 10, "hidden_sizes": (8,)}
    options = {**small, **online, "smoke": False, "preset": False}
    run("mujoco_finetune", tmp_path, method=method, **options)
    (folder,) = folders(tmp_path)
    about = json.loads((folder / "run.json").read_text())
    found = {**about["config"], "batch_size": about["batch_size"]}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("cal_ql", {"offline_share": 0.1}, {"kind": "balanced", "offline_share": 0.1}),
        ("adaptive_bc", {"mixing": "append"}, {"kind": "append", "data_share": 0.05}),
        ("td3_bc", {"mixing": "balanced"}, {"kind": "balanced", "offline_share": 0.5}),
    ],
)
def test_flags_of_mixing_change_the_methods_own_way_and_nothing_else(
    method, given, expected, tmp_path
):
    run("mujoco_finetune", tmp_path, method=method, **given)
    about = json.loads((folders(tmp_path)[0] / "run.json").read_text())
    assert {name: about["mixing"][name] for name in expected} == expected


def test_a_finished_transformer_is_asked_for_another_return(tmp_path, capsys):
    rows = run("mujoco_dt", tmp_path, target_return=(60.0, 50.0))
    assert run("mujoco_dt", tmp_path, target_return=(44.0, 33.0)) == rows
    assert "44" in capsys.readouterr().out
    run("mujoco_bc", tmp_path)
    other = next(path for path in folders(tmp_path) if "bc" in path.parts)
    with pytest.raises(InputError, match="the folder of a Decision Transformer's run"):
        run("mujoco_dt", tmp_path, play=str(other))


def test_a_run_that_is_online_only_may_warm_up(tmp_path, monkeypatch, capsys):
    """It crashed when all was done: no test of it comes before its first environment step."""
    monkeypatch.setattr("mujoco_common.apply_smoke", lambda args: {"max_episode_steps": 20})
    options = {"epoch": 0, "online_steps": 40, "online_steps_per_epoch": 20, "warm_up_steps": 10}
    small = {"dataset_steps": 300, "batch_size": 8, "test_num": 1, "smoke": False}
    rows = run("mujoco_td3_bc", tmp_path, **options, **small)
    assert [(row["step"], row["env_step"]) for row in rows] == [(0, 10), (20, 30), (40, 50)]
    assert "on Hopper-v4: offline " in capsys.readouterr().out
    assert (folders(tmp_path)[0] / "curve.png").exists()


@pytest.mark.parametrize("name", ["mujoco_bc", "mujoco_dt"])
def test_what_only_clones_is_refused_online(name, tmp_path):
    with pytest.raises(InputError, match="expected a method that gets better by acting"):
        run(name, tmp_path, online_steps=100, dataset="absent")


def test_online_steps_are_whole_epochs(tmp_path):
    with pytest.raises(InputError, match="whole epochs of 5000, got 7000; change"):
        run("mujoco_iql", tmp_path, smoke=False, dataset_steps=300, online_steps=7000)


@pytest.mark.parametrize("name", D4RL)
def test_tianshous_flags(name, tmp_path, monkeypatch):
    folder = tmp_path / "d4rl"
    monkeypatch.setenv("D4RL_DATASET_DIR", str(folder))
    write_d4rl(folder / "hopper_medium-v2.hdf5")
    options = {"task": "Hopper-v2", "expert_data_task": "hopper-medium-v2", "norm_obs": 0}
    rows = run(name, tmp_path, lr=0.0025, **options)
    assert [row["step"] for row in rows] == [0, 3]
    assert folders(tmp_path)[0].parent.name == "hopper-medium-v2"
    config = json.loads((folders(tmp_path)[0] / "run.json").read_text())["config"]
    assert config["lr"] == config.get("critic_lr", 0.0025) == 0.0025


def test_all_flags_of_tianshous_examples_are_taken(tmp_path, monkeypatch, capsys):
    """Those that choose its loggers, and those that its scripts do not use, change nothing."""
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "d4rl"))
    write_d4rl(tmp_path / "d4rl" / "hopper_medium-v2.hdf5")
    module = importlib.import_module("d4rl_cql")
    given = "--task Hopper-v2 --expert-data-task hopper-medium-v2 --buffer-size 1000 --alpha 0.2"
    given += " --auto-alpha --alpha-lr=1e-4 --n-step 3 --calibrated True --logger wandb --render 0"
    given += " --with-lagrange True --hidden-sizes 8 8 --num_test_envs 1 --epoch_num_steps 2"
    argv = [*given.split(), "--epoch", "1", "--logdir", str(tmp_path / "log"), "--batch-size", "8"]
    monkeypatch.setattr("sys.argv", ["d4rl_cql.py", *argv])
    launch(module.main, module.Args, tianshou_flags=True)
    unused = "without a use here: --buffer-size, --alpha, --auto-alpha, --alpha-lr, --n-step, --cal"
    assert unused in capsys.readouterr().out
    about = json.loads((folders(tmp_path)[0] / "run.json").read_text())
    assert about["config"]["lagrange_threshold"] == 10.0
    assert (about["update_per_epoch"], about["episode_per_test"]) == (2, 1)


def write_d4rl(path, rows=60):
    """Write a file in D4RL's layout for the hopper."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for key in ("observations", "next_observations"):
            file[key] = rng.normal(size=(rows, 11)).astype(np.float32)
        file["actions"] = rng.uniform(-1, 1, (rows, 3)).astype(np.float32)
        file["rewards"] = np.ones(rows, np.float32)
        file["terminals"] = np.arange(rows) % 20 == 19
        file["timeouts"] = np.zeros(rows, bool)


def write_buffer(path, *, obs=11, act=3, scale=1.0, rew=1.0, provenance=None):
    rng = np.random.default_rng(0)
    with BufferWriter(path, 20, provenance=provenance or {}) as writer:
        writer.append(
            obs=np.zeros((20, obs), np.float32),
            obs_next=np.zeros((20, obs), np.float32),
            act=(scale * rng.uniform(-1, 1, (20, act))).astype(np.float32),
            rew=np.full(20, rew, np.float32),
            terminated=np.arange(20) % 10 == 9,
            truncated=np.zeros(20, bool),
        )
    return str(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"obs": 17}, r"expected observations of shape \(11,\), got \(17,\)"),
        ({"act": 6}, r"expected actions of shape \(3,\), got \(6,\)"),
        ({"scale": 5.0}, r"expected actions in \[-1, 1\]"),
        ({"rew": np.nan}, "NaN or infinity in 20 of 20 rows"),
    ],
)
def test_data_that_do_not_fit_the_task(content, sentence, tmp_path):
    path = write_buffer(tmp_path / "data.hdf5", **content)
    with pytest.raises(InputError, match=sentence) as error:
        run("mujoco_bc", tmp_path, dataset=path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("about", [{"task": "Walker2d-v4"}, {"dataset": "walker2d-medium-v2"}])
def test_data_of_another_robot_of_the_same_shape_are_refused(about, tmp_path):
    path = write_buffer(tmp_path / "data.hdf5", obs=17, act=6, provenance=about)
    with pytest.raises(InputError, match=r"expected data of HalfCheetah-v4, got .*of (W|w)alker2d"):
        run("mujoco_bc", tmp_path, dataset=path, task="HalfCheetah-v4")
    run("mujoco_bc", tmp_path, dataset=path, task="Walker2d-v4")


def test_a_number_for_an_option_of_a_converter_tells_where_to_pass_it(tmp_path):
    write_d4rl(tmp_path / "hopper.hdf5")
    with h5py.File(tmp_path / "hopper.hdf5", "a") as file:
        file["observations"][3] = np.nan
    with pytest.raises(InputError, match=r"--on-error skip .*tianshou-ext convert d4rl .*hopper"):
        run("mujoco_bc", tmp_path, dataset=str(tmp_path / "hopper.hdf5"))


def test_a_run_does_not_go_on_with_other_batches_or_epochs_or_without_its_schedule(tmp_path):
    run("mujoco_iql", tmp_path)
    for name, value in (("batch_size", 9), ("update_per_epoch", 4)):
        with pytest.raises(InputError, match=f"{name} was ., is {value}"):
            run_more("mujoco_iql", tmp_path, **{name: value})
    with pytest.raises(InputError, match="go on with a learning-rate schedule, as it began"):
        run_more("mujoco_iql", tmp_path, lr_decay=False)
    assert run_more("mujoco_iql", tmp_path)[-1]["step"] == 6


def run_more(name, tmp_path, **options):
    """Go on with a smoke run for an epoch more."""
    made = {"dataset_steps": 300, "batch_size": 8, "test_num": 1, "update_per_epoch": 3}
    return run(name, tmp_path, **{**made, "smoke": False, "epoch": 2, "preset": False, **options})


def test_where_a_run_is_it_is_said_that_other_weights_are_not_taken(tmp_path, capsys):
    run("mujoco_bc", tmp_path)
    other = next((tmp_path / "log").rglob("0/policy.pth"))
    capsys.readouterr()
    run("mujoco_bc", tmp_path, resume_path=str(other))
    assert "from its own checkpoint, not from --resume-path" in capsys.readouterr().out


def test_whole_numbered_actions_of_a_vector_are_learned_from(tmp_path):
    rng = np.random.default_rng(0)
    write_d4rl(tmp_path / "hopper.hdf5")
    with h5py.File(tmp_path / "hopper.hdf5", "a") as file:
        del file["actions"]
        file["actions"] = rng.integers(-1, 2, (60, 3)).astype(np.int8)
    run("mujoco_edac", tmp_path, dataset=str(tmp_path / "hopper.hdf5"))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dataset": ""}, "expected a data set, got ''"),
        ({"mixing": "append", "warm_up_steps": 5}, "--online-steps with --warm-up-steps, --mixing"),
        ({"online_steps": -20}, "expected --online-steps and --epoch of at least 0, got -20"),
        ({"online_steps": 20, "offline_share": 0.1}, "--mixing balanced with --offline-share"),
        ({"task": "Hoper-v4"}, "expected a task that is installed, got 'Hoper-v4'"),
        ({"task": "Ant-v4", "dataset": "medium"}, r"expected a level that Ant-v4 has \(random\)"),
        ({"task": "CartPole-v1"}, "expected a Box action space"),
        ({"dataset": "hopper"}, "expected a data set, got 'hopper'"),
        ({"dataset": "absent.hdf5"}, "expected a data set, got 'absent.hdf5'"),
        ({"resume_path": "absent.pth"}, "expected a checkpoint at absent.pth"),
        ({"device": "cuda:99"}, "expected a device"),
        ({"threads": -1}, "expected threads of at least 1, got -1"),
        ({"epoch": 0, "dataset": "absent"}, "expected --epoch of at least 1, got 0"),
        ({"batch_size": 0}, "expected --batch-size of at least 1, got 0"),
        ({"seed": -1}, "expected a seed of at least 0, got -1"),
        ({"watch": True, "smoke": False}, "expected --resume-path"),
        ({"gamma": 1.5}, r"expected gamma in \[0, 1\], got 1.5"),
    ],
)
def test_bad_input_gets_one_sentence(options, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence) as error:
        run("mujoco_td3_bc", tmp_path, **options)
    assert "\n" not in str(error.value)


def test_a_context_longer_than_the_tasks_episodes_is_refused(tmp_path):
    with pytest.raises(InputError, match="at most the 1000 steps after which Hopper-v4"):
        run("mujoco_dt", tmp_path, context_len=1001, max_ep_len=2000, dataset="absent")


def test_any_task_with_bounded_actions(tmp_path, capsys):
    run("mujoco_bc", tmp_path, task="Pendulum-v1")
    assert "(score" not in capsys.readouterr().out
    assert len(folders(tmp_path, "Pendulum-v1")) == 1


def test_other_settings_do_not_continue_a_run(tmp_path):
    run("mujoco_bc", tmp_path)
    with pytest.raises(InputError, match=r"lr was .*, is 0.5"):
        run("mujoco_bc", tmp_path, lr=0.5)
    with pytest.raises(InputError, match="expected a folder without a run"):
        run("mujoco_bc", tmp_path, resume="never")


def test_watch_writes_a_video_or_says_why_not(tmp_path, capsys):
    try:
        run("mujoco_bc", tmp_path, watch=True)
    except InputError as error:
        assert str(error).startswith("expected a display, or a driver that renders without one")
        pytest.skip("nothing can be rendered here")
    assert "score" in capsys.readouterr().out
    assert list((tmp_path / "log").rglob("watch.mp4"))


def test_every_preset_names_known_fields():
    presets = importlib.import_module("presets")
    seen = set()
    for row in presets.PRESETS:
        if presets.SAME_CONFIG.get(row.method, row.method) in METHODS:
            presets.check_row(row)
        assert row.source and row.settings
        assert row.robot in ("*", *presets.ROBOTS)
        levels = (*LEVELS, "full-replay") if row.robot in presets.RUNNERS else OTHER_LEVELS
        assert row.level in ("*", *levels)
        assert (row.method, row.robot, row.level) not in seen
        seen.add((row.method, row.robot, row.level))


@pytest.mark.parametrize("name", NAMES)
def test_a_default_of_an_example_hides_no_preset(name):
    presets = importlib.import_module("presets")
    args = importlib.import_module(name).Args()
    for row in presets.PRESETS:
        if row.method == name.removeprefix("mujoco_"):
            for key, value in row.settings.items():
                assert getattr(args, key, None) in (None, value), (
                    f"{name} sets {key} by default, so that a user cannot ask for that value "
                    f"where the preset is {value}: make it None"
                )


def test_presets_by_level_and_by_d4rl_id():
    presets = importlib.import_module("presets")
    settings, sources = presets.preset_for("rebrac", "Hopper-v4", "medium-replay")
    assert settings["actor_bc_coef"] == 0.05 and settings["critic_bc_coef"] == 0.5
    assert settings["batch_size"] == 1024 and len(sources) == 1 and "2305.09836" in sources[0]
    other = presets.preset_for("rebrac", "Walker2d-v4", "hopper-medium-replay-v2")
    assert other == (settings, sources)
    plain, _ = presets.preset_for("rebrac", "Hopper-v4", "data.hdf5")
    assert set(plain) == {"lr", "batch_size"}
    assert presets.preset_for("nothing", "Hopper-v4", "medium") == ({}, [])


@pytest.mark.parametrize(
    ("task", "dataset", "expected"),
    [
        ("AntMaze_UMaze-v4", "antmaze-umaze-diverse-v2", (0.003, 0.001, 256, 0.999, "times_100")),
        ("AntMaze_UMaze-v4", "D4RL/antmaze/umaze-v1", (0.003, 0.002, 256, 0.999, "times_100")),
        ("AntMaze_UMaze-v4", "ant.hdf5", (None, None, 256, 0.999, "times_100")),
        ("AdroitHandPen-v1", "D4RL/pen/cloned-v2", (0.05, 0.5, 256, None, None)),
        ("AdroitHandDoor-v1", "door-human-v1", (0.1, 0.1, 256, None, None)),
        ("Hopper-v4", "mujoco/hopper/medium-v0", (0.01, 0.01, 1024, None, None)),
        ("Mine-v0", "mine.hdf5", (None, None, 1024, None, None)),
        ("HopperMaze-v0", "medium", (None, None, 1024, None, None)),
        ("my_module:AntMaze_UMaze-v4", "a.hdf5", (None, None, 256, 0.999, "times_100")),
    ],
)
def test_presets_of_mazes_and_hands_by_every_name_of_their_data(task, dataset, expected):
    settings, _ = importlib.import_module("presets").preset_for("rebrac", task, dataset)
    names = ("actor_bc_coef", "critic_bc_coef", "batch_size", "gamma", "reward_norm")
    assert tuple(settings.get(name) for name in names) == expected


def test_ensembles_of_every_level_have_their_papers_sizes():
    preset_for = importlib.import_module("presets").preset_for
    sizes = {
        (robot, level): tuple(
            preset_for(method, f"{robot}-v4", level)[0]["num_critics"]
            for method in ("sac_n", "edac")
        )
        for robot in ("HalfCheetah", "Hopper", "Walker2d")
        for level in LEVELS
    }
    hopper = {"random": 500, "medium": 500, "expert": 500}
    assert sizes == {
        **{("HalfCheetah", level): (10, 10) for level in LEVELS},
        **{("Hopper", level): (hopper.get(level, 200), 50) for level in LEVELS},
        **{("Walker2d", level): (100 if level == "expert" else 20, 10) for level in LEVELS},
    }


def test_a_presets_threshold_can_be_set_aside():
    common = importlib.import_module("mujoco_common")
    about = {"task": "AntMaze_UMaze-v4", "dataset": "antmaze-umaze-v2"}
    for name, threshold in (("cql", 5.0), ("cal_ql", 4.0)):
        args = importlib.import_module(f"mujoco_{name}").Args(**about, with_lagrange=False)
        options = common.resolve_options(args, name, name, {})
        config = METHODS[name].config_class(
            **{k: v for k, v in options.items() if k not in ("batch_size",)}
        )
        assert config.lagrange_threshold == threshold and not config.uses_lagrange


@pytest.mark.parametrize("name", NAMES)
def test_switches_of_presets_are_given_as_any_other(name, monkeypatch):
    module = importlib.import_module(name)
    hints = typing.get_type_hints(module.Args)
    switches = [field for field, hint in hints.items() if hint == (bool | None)]
    for switch in switches:
        flag = switch.replace("_", "-")
        for words, expected in [
            ([f"--{flag}"], True),
            ([f"--no-{flag}"], False),
            ([f"--{flag}", "False"], False),
            ([], None),
        ]:
            monkeypatch.setattr("sys.argv", ["script.py", *words, "--seed", "3"])
            seen = []
            launch(seen.append, module.Args)
            assert (getattr(seen[0], switch), seen[0].seed) == (expected, 3)


def test_iql_learns_from_mazes_and_hands_with_its_papers_settings():
    preset_for = importlib.import_module("presets").preset_for
    maze, _ = preset_for("iql", "AntMaze_Large-v4", "D4RL/antmaze/large-play-v1")
    hand, _ = preset_for("iql", "AdroitHandRelocate-v1", "relocate-expert-v1")
    kitchen, _ = preset_for("iql", "FrankaKitchen-v1", "D4RL/kitchen/mixed-v2")
    names = ("expectile", "inv_temperature", "reward_norm", "dropout")
    assert [maze.get(name) for name in names] == [0.9, 10.0, "minus_one", None]
    assert [hand.get(name) for name in names] == [0.7, 0.5, "none", 0.1]
    assert [kitchen.get(name) for name in names] == [0.7, 0.5, "none", 0.1]


def test_a_preset_is_said_and_flags_go_before_it(tmp_path, monkeypatch, capsys):
    common = importlib.import_module("mujoco_common")
    presets = importlib.import_module("presets")
    row = presets.Preset("td3_bc", "*", "*", {"alpha": 7.0, "tau": 0.5, "batch_size": 9}, "me")
    monkeypatch.setattr(presets, "PRESETS", [row])
    monkeypatch.setattr(common, "PRESETS", [row])

    @dataclasses.dataclass
    class Args(common.OfflineArgs):
        alpha: float | None = None
        tau: float = 0.005

    def resolve(**options):
        return common.resolve_options(Args(**options), "td3_bc", "td3_bc", {"lr": 0.1, "tau": 0.2})

    assert resolve() == {"alpha": 7.0, "tau": 0.5, "batch_size": 9, "lr": 0.1}
    said = capsys.readouterr().out
    assert said == "preset: alpha 7.0, tau 0.5, batch_size 9 (me); --no-preset leaves them out\n"
    chosen = resolve(alpha=1.0, batch_size=3)
    assert chosen == {"alpha": 1.0, "tau": 0.5, "batch_size": 3, "lr": 0.1}
    assert "alpha" not in capsys.readouterr().out
    assert resolve(preset=False) == {"tau": 0.005, "lr": 0.1}
    assert capsys.readouterr().out == ""


def test_flags_that_would_be_faster_are_named(tmp_path, monkeypatch, capsys):
    common = importlib.import_module("mujoco_common")

    def said(name, has_units):
        monkeypatch.setattr(common, "has_bf16_units", lambda device: has_units)
        monkeypatch.setattr(common, "check_compiler", lambda device: None)
        run(name, tmp_path / f"{name}{has_units}")
        lines = capsys.readouterr().out.splitlines()
        return [line.split(" makes")[0] for line in lines if line.startswith("hint: ")]

    assert said("mujoco_bc", True) == ["hint: --compile --precision bf16"]
    assert said("mujoco_bc", False) == []
    assert said("mujoco_dt", True) == ["hint: --precision bf16"]  # compiling gains nothing there


def test_a_preset_with_an_unknown_field_gets_one_sentence(monkeypatch):
    presets = importlib.import_module("presets")
    row = presets.Preset("td3_bc", "*", "*", {"alhpa": 7.0}, "me")
    monkeypatch.setattr(presets, "PRESETS", [row])
    with pytest.raises(InputError, match=r"expected a preset of td3_bc .*alpha.*got alhpa"):
        presets.preset_for("td3_bc", "Hopper-v4", "medium")


def test_the_command_line(tmp_path, monkeypatch, capsys):
    module = importlib.import_module("mujoco_td3_bc")
    monkeypatch.chdir(tmp_path)

    def command(*flags):
        monkeypatch.setattr(sys, "argv", ["mujoco_td3_bc.py", *flags])
        with pytest.raises(SystemExit) as left:
            launch(module.main, module.Args)
        return left.value.code or 0, capsys.readouterr()

    code, shown = command("--help")
    assert code == 0
    for flag in ("--dataset", "--no-preset", "--obs-norm", "--watch", "--on-divergence", "--alpha"):
        assert flag in shown.out
    code, shown = command("--task", "Nothing-v4")
    assert code == 2 and shown.err.startswith("error: expected a task that is installed")
    assert shown.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_threads_are_the_users(tmp_path):
    before = torch.get_num_threads()
    run("mujoco_bc", tmp_path, threads=1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
