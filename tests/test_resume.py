"""A run that was killed goes on and ends with the same bits as one that was not."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import resume_worker
import torch
from resume_worker import EPOCHS, UPDATES_PER_EPOCH

from tianshou_ext.checkpoint import load_checkpoint, save_checkpoint
from tianshou_ext.errors import InputError
from tianshou_ext.files import atomic_write
from tianshou_ext.policy import METHODS
from tianshou_ext.trainer import CHECKPOINT, offline_trainer

TOTAL = EPOCHS * UPDATES_PER_EPOCH
SETTINGS = [(name, "vector") for name in METHODS]
SETTINGS.append(("discrete_cql", "pixel"))


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """Return a context whose processes start from a fresh one that has imported everything."""
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        # One that another test has started has imported other things.
        forkserver._forkserver._stop()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["resume_worker"])
        forkserver.ensure_running()
        yield context


def run(processes: Any, *args: Any) -> int:
    """Run the worker to its end and return its exit code."""
    process = processes.Process(target=resume_worker.train, args=args)
    process.start()
    process.join(60)
    return process.exitcode


def kill_after(processes: Any, steps: int, *args: Any) -> bool:
    """Start the worker and kill it a moment after it has taken that many gradient steps.

    :return: whether it was killed, and had not ended by itself on a busy machine.
    """
    count = processes.Value("i", 0)
    process = processes.Process(target=resume_worker.train, args=(*args, count))
    process.start()
    while count.value < steps and process.is_alive():
        time.sleep(0.0005)
    time.sleep(random.random() * 0.006)  # a step and its pause take as long
    process.kill()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


def state_of(folder: Path) -> dict[str, Any]:
    """Return all that a run's checkpoint holds but its wall time."""
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    assert state["num_updates"] == TOTAL
    del state["run"]
    return state


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Return the places in which two states differ, tensors by a bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [d for k in range(len(a)) for d in differences(a[k], b[k], f"{where}/{k}")]
    same = torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    return [] if same else [where]


@pytest.mark.parametrize(("name", "obs"), SETTINGS, ids=["-".join(s) for s in SETTINGS])
def test_killed_and_resumed_is_never_killed(name, obs, processes, tmp_path: Path):
    """Killed before the first checkpoint (7 steps), and twice at random after it."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(processes, name, obs, str(whole)) == 0
    random.seed(os.urandom(8))
    moments = [3, *sorted(random.sample(range(8, TOTAL - 10), 2))]
    killed = [kill_after(processes, steps, name, obs, str(broken)) for steps in moments]
    assert any(killed)
    assert run(processes, name, obs, str(broken)) == 0
    assert differences(state_of(whole), state_of(broken)) == [], f"killed after {moments}"


@pytest.mark.parametrize("save", [1, 2, 5])
def test_killed_while_it_writes_a_checkpoint(save, processes, tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    setting = ("discrete_iql", "vector")
    assert run(processes, *setting, str(whole)) == 0
    assert run(processes, *setting, str(broken), None, save) == -signal.SIGKILL
    assert [*broken.glob("*.partial")], "it was not killed in the middle"
    assert (broken / CHECKPOINT).exists() is (save > 1)
    assert run(processes, *setting, str(broken)) == 0
    assert differences(state_of(whole), state_of(broken)) == []
    assert [*broken.glob("*.partial")] == []


# ---- What cannot be resumed is refused in one sentence, and stays as it is. ----------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short run of CQL."""
    folder = tmp_path_factory.mktemp("finished")
    start(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def start(folder: Path, name: str = "discrete_cql", resume: Any = "auto", **options: Any) -> Any:
    policy, buffer = resume_worker.make(name, "vector")
    if options:
        spaces = (policy.observation_space, policy.action_space)
        chosen = {**resume_worker.small_options(name), **options}
        policy = METHODS[name].policy_class.build(*spaces, seed=1, **chosen)
    counts = {"max_epoch": 2, "update_per_epoch": 5, "batch_size": 4}
    quiet = {"show_progress": False, "verbose": False}
    offline_trainer(policy, buffer, **counts, **quiet, logdir=folder, resume=resume)
    return policy


def rewrite(folder: Path, **changed: Any) -> None:
    state = torch.load(folder / CHECKPOINT, weights_only=True)
    torch.save({**state, **changed}, folder / CHECKPOINT)


def expect_one_sentence(folder: Path, sentence: str, *args: Any, **options: Any) -> None:
    before = (folder / CHECKPOINT).read_bytes()
    with pytest.raises(InputError, match=sentence) as caught:
        start(folder, *args, **options)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert str(folder) in str(caught.value)
    assert (folder / CHECKPOINT).read_bytes() == before


def test_checkpoint_of_another_method(folder):
    expect_one_sentence(folder, "expected a checkpoint of bc at .* got one of discrete_cql", "bc")


def test_checkpoint_of_another_config(folder):
    sentence = r"settings of the run .*min_q_weight was 10.0, is 3.0.*another --logdir"
    expect_one_sentence(folder, sentence, min_q_weight=3.0)


def test_checkpoint_of_other_sizes(folder):
    expect_one_sentence(folder, r"hidden_sizes was .*8.*, is .*9", hidden_sizes=(9,))


def test_checkpoint_of_another_format(folder):
    rewrite(folder, format=99)
    expect_one_sentence(folder, "expected a checkpoint of format 1 at .* got format 99")


def test_checkpoint_of_another_task(folder):
    policy, _ = resume_worker.make("discrete_cql", "pixel")
    with pytest.raises(InputError, match="expected weights of this policy's networks") as caught:
        load_checkpoint(policy, folder / CHECKPOINT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_checkpoint(folder, share):
    whole = (folder / CHECKPOINT).read_bytes()
    (folder / CHECKPOINT).write_bytes(whole[: int(share * len(whole))])
    expect_one_sentence(folder, "expected a checkpoint of tensors .* foreign or truncated")


def test_foreign_file(folder):
    (folder / CHECKPOINT).write_text("step,loss\n1,0.5\n")
    expect_one_sentence(folder, "foreign or truncated")


def test_bare_weights(folder):
    policy, _ = resume_worker.make("discrete_cql", "vector")
    torch.save(policy.state_dict(), folder / CHECKPOINT)
    expect_one_sentence(folder, "expected a complete checkpoint at .* got bare weights")


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_code_in_a_checkpoint_is_not_run(folder):
    trap = folder / "sprung"
    torch.save({"format": 1, "method": Trap(trap)}, folder / CHECKPOINT)
    expect_one_sentence(folder, "expected a checkpoint of tensors and plain values")
    assert not trap.exists()
    torch.load(folder / CHECKPOINT, weights_only=False)  # the trap is a real one
    assert trap.exists()


def test_never_refuses_a_folder_with_a_run(folder):
    expect_one_sentence(folder, "expected a folder without a run", resume="never")


# ---- A full disk --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed"),
    ],
    ids=["OSError", "RuntimeError"],
)
def test_full_disk_keeps_the_last_checkpoint(error, folder, monkeypatch):
    policy, _ = resume_worker.make("discrete_cql", "vector")
    load_checkpoint(policy, folder / CHECKPOINT)
    before = (folder / CHECKPOINT).read_bytes()

    def fail(state: Any, path: Any) -> None:
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="expected to write .*make room") as caught:
        save_checkpoint(policy, folder / CHECKPOINT)
    assert "\n" not in str(caught.value)
    assert (folder / CHECKPOINT).read_bytes() == before
    assert [*folder.glob("*.partial")] == []


def test_interrupt_while_writing_keeps_the_last_file(tmp_path: Path):
    (tmp_path / "a").write_text("old")

    def interrupted(partial: Path) -> None:
        partial.write_text("ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a", interrupted)
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
