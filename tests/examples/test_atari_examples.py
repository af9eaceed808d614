"""The Atari examples: each runs, resumes, refuses bad input in one sentence, and can be watched."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ale_py")
pytest.importorskip("cv2")
pytest.importorskip("tyro")

from tianshou_ext.data.hdf5 import load_buffer
from tianshou_ext.data.writer import BufferWriter
from tianshou_ext.errors import InputError

EXAMPLES = Path(__file__).parents[2] / "examples" / "atari"
OFFLINE = ("il", "bcq", "cql", "crr", "iql", "dt")


@pytest.fixture(autouse=True)
def example_folder(monkeypatch, tmp_path, tmp_path_factory):
    """Make the examples importable and keep the cache out of the user's home."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    cache = tmp_path_factory.getbasetemp() / "atari_cache"
    monkeypatch.setenv("TIANSHOU_EXT_CACHE", str(cache))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


def run(name, tmp_path, **options):
    """Run an example's main in this process."""
    module = importlib.import_module(f"atari_{name}")
    defaults = {"smoke": True, "device": "cpu", "logdir": str(tmp_path / "log")}
    return module.main(module.Args(**{**defaults, **options}))


@pytest.mark.parametrize("name", OFFLINE)
def test_smoke_leaves_checkpoint_csv_and_plot(name, tmp_path):
    rows = run(name, tmp_path)
    folder = tmp_path / "log" / "PongNoFrameskip-v4" / name / "1626"
    assert [row["step"] for row in rows] == [0, 3]
    for file in ("checkpoint.pt", "policy.pth", "progress.csv", "run.json", "curve.png"):
        assert (folder / file).stat().st_size > 0
    assert list(folder.glob("events.*"))
    assert (folder.parent / "policy.pth").resolve() == (folder / "policy.pth").resolve()
    # The same command again goes on with the run, which is finished.
    assert run(name, tmp_path) == rows


def test_the_readme_of_tianshou_expert_log_then_offline(tmp_path):
    run("qrdqn", tmp_path, seed=0)
    expert = tmp_path / "log" / "PongNoFrameskip-v4" / "qrdqn" / "policy.pth"
    data = tmp_path / "expert.hdf5"
    run(
        "qrdqn",
        tmp_path,
        watch=True,
        resume_path=str(expert),
        eps_test=0.2,
        save_buffer_name=str(data),
    )
    assert len(load_buffer(data)) == 300
    rows = run("cql", tmp_path, load_buffer_name=str(data))
    assert len(rows) == 2


def test_watch_without_a_display_writes_a_video(tmp_path, capsys):
    import cv2

    run("il", tmp_path)
    best = tmp_path / "log" / "PongNoFrameskip-v4" / "il" / "policy.pth"
    run("il", tmp_path, watch=True, resume_path=str(best))
    video = cv2.VideoCapture(str(best.parent / "1626" / "watch.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) > 10
    assert "score" in capsys.readouterr().out


def test_other_stacks_of_frames_have_a_data_set_of_their_own(tmp_path):
    for stack in (4, 3):
        run("il", tmp_path / str(stack), frames_stack=stack)


def test_rl_unplugged_keys(tmp_path):
    import h5py

    path = tmp_path / "rlu.hdf5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for key in ("observations", "next_observations"):
            file[key] = rng.integers(0, 256, (40, 4, 84, 84), dtype=np.uint8)
        file["actions"] = rng.integers(0, 6, 40)
        file["rewards"] = np.zeros(40, np.float32)
        file["terminals"] = np.arange(40) == 39
    rows = run("bcq", tmp_path, load_buffer_name=str(path), buffer_from_rl_unplugged=True)
    assert len(rows) == 2


def write_buffer(path, *, act=0, rew=0.0, shape=(84, 84)):
    with BufferWriter(path, 20, stack_num=4, save_obs_next=False) as writer:
        writer.append(
            obs=np.zeros((20, *shape), np.uint8),
            act=np.full(20, act),
            rew=np.full(20, rew, np.float32),
            terminated=np.arange(20) == 19,
            truncated=np.zeros(20, bool),
        )
    return str(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"act": 17}, "expected actions from 0 to 5, got 17 to 17"),
        ({"rew": np.nan}, "NaN or infinity in 20 of 20 rows"),
        ({"shape": (42, 42)}, r"expected observations of shape \(4, 84, 84\), got \(4, 42, 42\)"),
    ],
)
def test_a_buffer_that_does_not_fit_the_task(content, sentence, tmp_path):
    path = write_buffer(tmp_path / "data.hdf5", **content)
    with pytest.raises(InputError, match=sentence):
        run("cql", tmp_path, load_buffer_name=path)
    assert len(load_buffer(path)) == 20


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"task": "PongNoFrameskp-v4"}, "expected an Atari id"),
        ({"task": "SeaquestNoFrameskip-v4"}, "three ways"),
        ({"load_buffer_name": "absent.hdf5"}, "expected a buffer file at absent.hdf5"),
        ({"resume_path": "absent.pth"}, "expected a checkpoint at absent.pth"),
        ({"device": "cuda:99"}, "expected a device"),
        ({"device": "no"}, "expected a device"),
        ({"device": "meta"}, "expected a device"),
        ({"threads": 0}, "expected threads of at least 1, got 0"),
        ({"seed": -1}, "expected a seed of at least 0, got -1"),
        ({"eps": 1.5}, r"expected a share of random actions in \[0, 1\], got 1.5"),
        ({"eps_test": -0.1}, r"expected a share of random actions in \[0, 1\], got -0.1"),
        ({"watch": True, "smoke": False}, "expected --resume-path"),
        ({"gamma": 1.5}, r"expected gamma in \[0, 1\], got 1.5"),
    ],
)
def test_bad_input_gets_one_sentence(options, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence) as error:
        run("cql", tmp_path, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("cql", "epoch"),
        ("cql", "buffer_size"),
        ("cql", "test_num"),
        ("qrdqn", "buffer_size"),
        ("qrdqn", "step_per_collect"),
    ],
)
def test_a_count_below_one_is_refused_before_anything_is_logged(name, count, tmp_path):
    said = f"expected --{count.replace('_', '-')} of at least 1, got 0"
    with pytest.raises(InputError, match=said):
        run(name, tmp_path, smoke=False, **{count: 0})
    assert not (tmp_path / "log").exists()


def test_games_that_do_not_fit_into_a_collection_are_refused(tmp_path):
    """Every test fell between two epochs, and the untrained network was kept as the best."""
    with pytest.raises(InputError, match="whole rounds of 8 environments, got 10; change"):
        run("qrdqn", tmp_path, smoke=False, training_num=8)
    assert not (tmp_path / "log").exists()


def test_a_checkpoint_of_another_method_is_refused_and_kept(tmp_path):
    run("il", tmp_path)
    other = tmp_path / "log" / "PongNoFrameskip-v4" / "il" / "1626" / "checkpoint.pt"
    before = other.read_bytes()
    with pytest.raises(InputError, match=r"checkpoint of discrete_cql .*, got one of bc"):
        run("cql", tmp_path, resume_path=str(other))
    assert other.read_bytes() == before


def test_other_settings_do_not_continue_a_run(tmp_path):
    run("cql", tmp_path)
    with pytest.raises(InputError, match=r"gamma was 0.99, is 0.9"):
        run("cql", tmp_path, gamma=0.9)
    with pytest.raises(InputError, match="expected a folder without a run"):
        run("cql", tmp_path, resume="never")


def test_the_command_line(tmp_path):
    def command(*flags):
        line = [sys.executable, str(EXAMPLES / "atari_cql.py"), *flags]
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)

    shown = command("--help")
    assert shown.returncode == 0
    for flag in ("--load-buffer-name", "--min-q-weight", "--frames-stack", "--watch", "--eps-test"):
        assert flag in shown.stdout
    bad = command("--task", "Nothing-v4", "--device", "cpu")
    assert bad.returncode == 2
    assert bad.stderr.splitlines()[-1].startswith("error: expected an Atari id")
    assert "Traceback" not in bad.stderr
    assert not (tmp_path / "log").exists()


def test_threads_are_the_users(tmp_path):
    before = torch.get_num_threads()
    run("il", tmp_path, threads=1)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
