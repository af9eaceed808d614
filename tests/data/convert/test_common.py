"""What every converter relies on: faults stop or are reported, nothing half-written remains."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tianshou_ext.data.convert.common import (
    Block,
    Fault,
    Settings,
    chosen_episodes,
    fingerprint,
    ordered_map,
    write_blocks,
)
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.errors import InputError

QUIET = {"progress": False}


def columns(count: int = 3, value: float = 0.0) -> dict[str, Any]:
    obs = np.full((count, 2), value, np.float32)
    ends = {"terminated": np.arange(count) == count - 1, "truncated": np.zeros(count, bool)}
    return {
        "obs": obs,
        "obs_next": obs + 1,
        "act": np.zeros(count, int),
        "rew": obs[:, 0] * 3,
        **ends,
    }


def block(number: int = 0, **changes: Any) -> Block:
    return Block({**columns(value=number), **changes}, "log.npz", f"episode {number}")


def write(blocks: Any, path: Path, size: int = 9, inputs: Any = (), **settings: Any) -> Any:
    return write_blocks(
        blocks,
        path,
        source="test",
        inputs=inputs,
        size=size,
        settings=Settings(**QUIET, **settings),
        notes=["n"],
    )


BAD = {
    "NaN reward": (
        {"rew": np.array([0, np.nan, 0], np.float32)},
        "rew is NaN or infinite in row 1",
    ),
    "Inf obs": (
        {"obs": np.array([[0, 0], [0, np.inf], [0, 0]])},
        "obs is NaN or infinite in row 1",
    ),
    "NaN in a dict": (
        {"obs": {"a": np.array([0, 0, np.nan])}},
        "obs/a is NaN or infinite in row 2",
    ),
    "unequal lengths": ({"act": np.zeros(2, int)}, "unequal length"),
    "objects": ({"act": np.array([None] * 3)}, "act holds object, not numbers"),
    "strings": ({"rew": np.array(["1"] * 3)}, "not numbers"),
    "rewards in two dimensions": ({"rew": np.zeros((3, 2))}, r"shape \(3, 2\)"),
    "no numbers": ({"obs": np.zeros((3, 0), np.float32)}, "obs holds no numbers"),
    "negative action": ({"act": np.array([0, 0, -1])}, "act is negative in row 2"),
    "no end": ({"terminated": np.zeros(3, bool)}, "ends no episode"),
    "empty": (columns(0), "no rows"),
    "another shape": (
        {"act": np.zeros((3, 2), int)},
        r"expected act \[\] of int64 as in the first block, got act \[2\] of int64",
    ),
    "another type": (
        {"act": np.zeros(3, np.float32)},
        r"expected act \[\] of int64 as in the first block, got act \[\] of float32",
    ),
    "another part": (
        {"obs": {"a": np.arange(3.0), "b": np.arange(3.0)}},
        r"expected obs \[2\] of float32 as in the first block, got no obs",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_fault_stops_the_conversion_or_is_left_out_and_reported(kind: str, tmp_path: Path):
    changes, message = BAD[kind]
    path = tmp_path / "b.hdf5"
    blocks = [block(0), block(1, **changes), block(2)]
    with pytest.raises(InputError, match=message) as caught:
        write(blocks, path)
    assert "log.npz, episode 1" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    report = write(blocks, path, on_error="skip")
    assert [fault.record for fault in report.faults] == ["episode 1"]
    assert (report.rows, report.episodes, report.terminated, report.truncated) == (6, 2, 2, 0)
    buffer = load_buffer(path)
    assert buffer.rew.tolist() == [0, 0, 0, 6, 6, 6]
    assert read_provenance(path)["left_out"] == [str(report.faults[0])]
    assert "left out: log.npz, episode 1" in str(report)


def test_a_block_that_could_not_be_read_is_a_fault_too(tmp_path: Path):
    blocks = [Fault("a.tfrecord", "record 3", "wrong checksum"), block(0)]
    with pytest.raises(InputError, match="a.tfrecord, record 3: wrong checksum; repair"):
        write(blocks, tmp_path / "b.hdf5")
    assert write(blocks, tmp_path / "b.hdf5", on_error="skip").rows == 3


def test_a_fault_is_named_by_the_row_of_the_source(tmp_path: Path):
    bad = replace(block(1, rew=np.float32([0, np.inf, 0])), numbers=np.array([7, 9, 11]))
    with pytest.raises(InputError, match="rew is NaN or infinite in row 9"):
        write([bad], tmp_path / "b.hdf5")


def test_a_part_of_an_observation_may_be_empty(tmp_path: Path):
    obs = {"a": np.zeros((3, 2)), "b": np.zeros((3, 0))}
    assert write([block(obs=obs, obs_next=obs)], tmp_path / "b.hdf5").rows == 3


def test_data_without_a_single_terminal_are_reported(tmp_path: Path):
    ends = {"terminated": np.zeros(3, bool), "truncated": np.arange(3) == 2}
    notes = write([block(**ends)], tmp_path / "b.hdf5").notes
    assert any("no row is terminated" in note for note in notes)
    assert read_provenance(tmp_path / "b.hdf5")["notes"] == notes
    assert write([block()], tmp_path / "b.hdf5").notes == ["n"]


def die(item: int) -> int:
    os._exit(item)


def test_a_killed_process_is_one_sentence():
    with pytest.raises(OSError, match="expected 2 processes .* one was killed"):
        list(ordered_map(die, [1], 2))


WORK = """
import sys, time
from tianshou_ext.data.convert.common import ordered_map
if __name__ == "__main__":
    print("started", flush=True)
    list(ordered_map(time.sleep, [0.2] * 500, 2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_no_process_outlives_a_killed_conversion(tmp_path: Path):
    (tmp_path / "work.py").write_text(WORK)
    mark = f"TIANSHOU_EXT_TEST={tmp_path}".encode()
    env = {**os.environ, "TIANSHOU_EXT_TEST": str(tmp_path)}

    def alive() -> int:
        count = 0
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                count += mark in environ.read_bytes()
        return count

    def wait_for(least: int, most: int) -> None:
        end = time.monotonic() + 60
        while not least <= alive() <= most:
            assert time.monotonic() < end, f"{alive()} processes"
            time.sleep(0.1)

    main = subprocess.Popen([sys.executable, tmp_path / "work.py"], env=env)
    try:
        wait_for(4, 99)  # the command, the server of its workers, and those
    finally:
        main.kill()
        main.wait()
    wait_for(0, 0)


def test_nothing_sound_is_an_error_even_when_faults_are_skipped(tmp_path: Path):
    with pytest.raises(InputError, match="got none; the first fault is log.npz, episode 0"):
        write([block(0, **columns(0))], tmp_path / "b.hdf5", on_error="skip")
    with pytest.raises(InputError, match="got none"):
        write([], tmp_path / "b.hdf5", size=0)
    assert not list(tmp_path.iterdir())


def test_rewards_are_clipped_only_when_asked(tmp_path: Path):
    for clip, wanted in ((False, 6.0), (True, 1.0)):
        write([block(2)], tmp_path / "b.hdf5", clip_rewards=clip)
        assert set(load_buffer(tmp_path / "b.hdf5").rew) == {wanted}
        assert read_provenance(tmp_path / "b.hdf5")["options"]["clip_rewards"] == clip


def test_rows_with_both_ends_are_kept_and_noted(tmp_path: Path):
    both = {"truncated": np.array([False, False, True])}
    report = write([block(0, **both)], tmp_path / "b.hdf5")
    assert any("both terminated and truncated" in note for note in report.notes)
    buffer = load_buffer(tmp_path / "b.hdf5")
    assert buffer.terminated[2] and buffer.truncated[2]


def test_a_disk_without_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50))
    with pytest.raises(OSError, match="GB of room"):
        write([block(0)], tmp_path / "b.hdf5")
    assert not list(tmp_path.iterdir())
    assert write([block(0)], tmp_path / "b.hdf5", compression="gzip").rows == 3


def test_no_source_is_written_over(tmp_path: Path):
    path = tmp_path / "mine.hdf5"
    path.write_bytes(b"the only copy")
    link = tmp_path / "link.hdf5"
    link.symlink_to(path)
    for dst, words in (
        (path, "another file to write"),
        (link, "another file"),
        (tmp_path, "folder"),
    ):
        with pytest.raises(InputError, match=f"^expected .*{words}"):
            write([block(0)], dst, inputs=[path])
    assert path.read_bytes() == b"the only copy" and link.is_symlink()
    assert write([block(0)], tmp_path / "b.hdf5", inputs=[path]).rows == 3
    assert read_provenance(tmp_path / "b.hdf5")["inputs"]["bytes"] == 13


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({}, [*range(10)]),
        ({"episodes": "3"}, [0, 1, 2]),
        ({"episodes": "2:5"}, [2, 3, 4]),
        ({"episodes": "7:"}, [7, 8, 9]),
        ({"episodes": ":2"}, [0, 1]),
        ({"episodes": "99"}, [*range(10)]),
        ({"fraction": 0.5}, [1, 3, 5, 7, 9]),
        ({"fraction": 0.2}, [4, 9]),
        ({"fraction": 0.5, "episodes": "4"}, [1, 3]),
    ],
)
def test_chosen_episodes(asked: Any, wanted: list[int]):
    assert chosen_episodes(10, Settings(**asked)).tolist() == wanted


@pytest.mark.parametrize("fraction", [0.1, 0.3, 1 / 3, 0.7, 0.99])
def test_a_fraction_is_that_share(fraction: float):
    assert len(chosen_episodes(1000, Settings(fraction=fraction))) == int(1000 * fraction + 1e-6)


@pytest.mark.parametrize("asked", ["x", "1:2:3", "-1", "5:5", "0", "20:30", ""])
def test_episodes_that_are_none_are_refused(asked: str):
    with pytest.raises(InputError, match="episode"):
        chosen_episodes(10, Settings(episodes=asked))


@pytest.mark.parametrize(
    "asked",
    [{"fraction": 0.0}, {"fraction": 1.5}, {"jobs": 0}, {"on_error": "go"}, {"compression": "xz"}],
)
def test_settings_out_of_range_are_refused(asked: Any):
    with pytest.raises(InputError, match="expected"):
        Settings(**asked)


def square(number: int) -> int:
    return number * number


def fail(number: int) -> int:
    raise InputError(f"expected nothing, got {number}")


@pytest.mark.parametrize("jobs", [1, 2])
def test_ordered_map_keeps_the_order_and_passes_errors_on(jobs: int):
    assert [*ordered_map(square, range(9), jobs)] == [n * n for n in range(9)]
    with pytest.raises(InputError, match="got 0"):
        list(ordered_map(fail, range(9), jobs))


def test_a_fingerprint_changes_with_any_file(tmp_path: Path):
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(b"12")
    first = fingerprint(paths)
    assert (first["files"], first["bytes"]) == (2, 4)
    paths[1].write_bytes(b"13")
    assert fingerprint(paths)["sha256"] != first["sha256"]
