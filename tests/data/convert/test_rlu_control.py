"""RL Unplugged control: every layout against plain loops over Protocol Buffers' reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rlu_atari_episodes import SAMPLES, both, needs_samples, read_reference, write_records
from tianshou.data import Batch

from tianshou_ext.data.convert.rlu_control import convert
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.errors import InputError

RLU = SAMPLES / "rlu_control"
FILES = {
    "sarsa": RLU / "dm_control_suite/cartpole_swingup/train-00000-of-00100",
    "windows": RLU / "dm_locomotion/humanoid_walls/seq40/train-00000-of-00100",
    "episodes": RLU / "dm_control_suite_episodes/cartpole_swingup/train-00000-of-00100",
    "rwrl": SAMPLES / "rlu_rwrl/combined_challenge_none/cartpole/swingup"
    "/offline_rl_challenge_1_percent/episodes.tfrecord-00000-of-00100",
}
# How many rows later than its observation a value is: action, reward, discount.
LATE = {"sarsa": (0, 0, 0), "windows": (0, 0, 0), "episodes": (0, 1, 1), "rwrl": (1, 1, 1)}


def expected_rows(path: Path, layout: str) -> dict[str, Any]:
    late_act, late_rew, late_discount = LATE[layout]
    rows: dict[str, list[Any]] = {
        key: [] for key in ("obs", "act", "rew", "terminated", "truncated", "obs_next")
    }
    for steps in read_reference(path):
        count = len(steps["reward"])
        parts = [
            np.array(steps[key]).reshape(count, -1)
            for key in sorted(steps)
            if key.startswith("observation") and "camera" not in key
        ]
        act = steps["action"].reshape(count, -1)
        for t in range(count - 1):
            rows["obs"].append(np.concatenate([part[t] for part in parts]))
            rows["obs_next"].append(np.concatenate([part[t + 1] for part in parts]))
            rows["act"].append(act[t + late_act])
            rows["rew"].append(steps["reward"][t + late_rew])
            rows["terminated"].append(steps["discount"][t + late_discount] == 0)
            rows["truncated"].append(t == count - 2 and not rows["terminated"][-1])
    return {key: np.array(values) for key, values in rows.items()}


def assert_equal(path: Path, rows: dict[str, Any]) -> None:
    for buffer in both(path):
        for key, values in rows.items():
            assert np.array_equal(buffer._meta[key], values), key
        for key in ("obs", "obs_next", "act"):
            assert buffer._meta[key].dtype == np.float32
        assert (buffer.stack_num, buffer._save_obs_next) == (1, True)


@needs_samples
@pytest.mark.parametrize("layout", FILES)
def test_the_samples_are_recognised_and_read(layout: str, tmp_path: Path):
    report = convert(FILES[layout], tmp_path / "b.hdf5", progress=False)
    assert_equal(tmp_path / "b.hdf5", expected_rows(FILES[layout], layout))
    recorded = read_provenance(tmp_path / "b.hdf5")
    assert recorded["layout"] == layout
    assert recorded["ordered"] == (layout != "sarsa")
    if layout == "windows":
        assert recorded["obs_widths"] == {"walker/body_height": 1, "walker/joints_pos": 56}
        assert any("overlap" in note for note in report.notes)
        assert any("egocentric_camera" in note for note in report.notes)
    else:
        assert recorded["obs_widths"] == {"position": 3, "velocity": 2}


@needs_samples
def test_no_flatten_keeps_all_parts_and_images(tmp_path: Path):
    convert(FILES["windows"], tmp_path / "b.hdf5", flatten=False, progress=False)
    steps = list(read_reference(FILES["windows"]))
    images = [
        np.frombuffer(image, np.uint8).reshape(64, 64, 3)
        for one in steps
        for image in one["observation/walker/egocentric_camera"][1:]
    ]
    heights = np.concatenate([one["observation/walker/body_height"][:-1] for one in steps])
    for buffer in both(tmp_path / "b.hdf5"):
        assert isinstance(buffer.obs, Batch)
        assert np.array_equal(buffer.obs_next.walker.egocentric_camera, images)
        assert np.array_equal(buffer.obs.walker.body_height, heights[:, None])
        assert buffer.obs.walker.joints_pos.shape == (len(images), 56)


def rows(count: int, separator: str = "/", ends: float = 1, **changes: Any) -> dict[str, Any]:
    """Return a record; its numbers tell the row they are of."""
    numbers = np.arange(count, dtype=float)
    discount = np.ones(count)
    discount[-1] = ends
    return {
        f"observation{separator}b": numbers,
        f"observation{separator}a": np.stack([numbers, -numbers], axis=1),
        "action": np.stack([numbers + 0.25, numbers + 0.5], axis=1),
        "reward": numbers + 0.125,
        "discount": discount,
    } | changes


def converted(records: list[Any], tmp_path: Path, name: str = "x", **options: Any) -> Any:
    path = write_records(tmp_path / "in" / name, records)
    convert(path, tmp_path / "b.hdf5", progress=False, **options)
    return load_buffer(tmp_path / "b.hdf5"), path


@pytest.mark.parametrize(
    ("layout", "separator", "act", "rew"),
    [("windows", "/", 0, 0), ("episodes", "/", 0, 1), ("rwrl", ":", 1, 1)],
)
def test_each_layout_puts_action_and_reward_where_they_belong(
    layout: Any, separator: str, act: int, rew: int, tmp_path: Path
):
    record = rows(4, separator, ends=0.0)
    buffer, path = converted([record, record], tmp_path, layout=layout)
    assert np.array_equal(buffer.obs[:3], [[0, 0, 0], [1, -1, 1], [2, -2, 2]])  # a, then b
    assert np.array_equal(buffer.obs_next[:3], [[1, -1, 1], [2, -2, 2], [3, -3, 3]])
    assert np.array_equal(buffer.act[:3, 0], np.arange(3) + act + 0.25)
    assert np.array_equal(buffer.rew[:3], np.arange(3) + rew + 0.125)
    ends = [False, False, True] * 2
    assert np.array_equal(buffer.terminated, np.logical_and(ends, layout != "windows"))
    assert np.array_equal(buffer.truncated, np.logical_and(ends, layout == "windows"))
    assert_equal(tmp_path / "b.hdf5", expected_rows(path, layout))


def test_single_transitions_are_each_an_end(tmp_path: Path):
    records = [rows(2), rows(2, discount=np.array([0.0, 1.0])), rows(2)]
    buffer, path = converted(records, tmp_path)
    assert np.array_equal(buffer.terminated, [False, True, False])
    assert np.array_equal(buffer.truncated, [True, False, True])
    assert [int(buffer.next(k)) for k in range(3)] == [0, 1, 2]
    assert_equal(tmp_path / "b.hdf5", expected_rows(path, "sarsa"))


@pytest.mark.parametrize(
    ("record", "folder", "layout"),
    [
        (rows(2), "seq2", "sarsa"),
        (rows(2), "seq40", "windows"),
        (rows(3), "any", "windows"),
        (rows(41), "any", "episodes"),
        (rows(3), "dm_control_suite_episodes", "episodes"),
        (rows(3, episode_id=[1], timestamp=[2]), "any", "episodes"),
        (rows(3, ":"), "any", "rwrl"),
    ],
)
def test_layouts_are_told_from_keys_length_and_path(
    record: Any, folder: str, layout: str, tmp_path: Path
):
    converted([record], tmp_path, f"{folder}/x")
    assert read_provenance(tmp_path / "b.hdf5")["layout"] == layout


def without(record: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: values for name, values in record.items() if name != key}


FAULTS: dict[str, tuple[Any, str]] = {
    "no action": (without(rows(4), "action"), "no feature action"),
    "no part": (without(rows(4), "observation/b"), r"observations \['a'\], expected \['a', 'b'\]"),
    "renamed": (without(rows(4), "reward") | {"rewards": np.ones(4)}, "no feature reward"),
    "unequal": (rows(4, discount=np.ones(3)), "4 rewards, but 3 discounts"),
    "width": (rows(4, action=np.ones(12)), "expected 4 rows of 2 numbers in action, got 12"),
    "obs": (rows(4, **{"observation/a": np.ones(7)}), "expected 4 rows of 2 numbers"),
    "type": (rows(4, reward=np.arange(4)), "holds int, expected float"),
    "bytes": (rows(4, action=[b"x"] * 8), "holds bytes, expected float"),
    "NaN reward": (rows(4, reward=[0, 1, np.inf, 0.0]), "NaN or infinite in row 2"),
    "NaN obs": (rows(4, **{"observation/b": [0, 1, np.nan, 0.0]}), "NaN or infinite"),
    "NaN discount": (rows(4, discount=[1, np.nan, 1, 1.0]), "the discount is nan in row 1"),
    "discount": (rows(4, discount=[1, 1, -1, 1.0]), "the discount is -1 in row 2"),
    "goes on": (rows(4, discount=[1, 0.0, 1, 1]), "discount is 0 in row 1"),
    "crossing": (rows(4, step_type=[1, 2, 0, 1.0]), "an episode begins within"),
    "step types": (rows(4, step_type=[1, 1.0]), "2 step types"),
    "one row": (rows(1), "1 rows have no transition"),
    "no rows": ({key: [] for key in rows(4)}, "0 rows have no transition"),
}


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_record_is_named_and_can_be_left_out(name: str, place: int, tmp_path: Path):
    bad, reason = FAULTS[name]
    records = [rows(4), rows(4)]
    records.insert(place, bad)
    path = write_records(tmp_path / "in" / "x", records)
    with pytest.raises(InputError, match=f"x, record {place}: .*{reason}") as info:
        convert(path, tmp_path / "b.hdf5", progress=False)
    assert "\n" not in str(info.value)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "in"]
    report = convert(path, tmp_path / "b.hdf5", on_error="skip", progress=False)
    assert (report.rows, len(report.faults)) == (6, 1)
    write_records(path, [rows(4), rows(4)])
    assert_equal(tmp_path / "b.hdf5", expected_rows(path, "windows"))


def test_images_of_another_size_are_faults_if_kept(tmp_path: Path):
    image = bytes(64 * 64 * 3)
    records = [rows(3, **{"observation/camera": [image] * n}) for n in (3, 3, 2)]
    records[1]["observation/camera"] = [image, image, image[:-1]]
    path = write_records(tmp_path / "in" / "x", records)
    assert convert(path, tmp_path / "b.hdf5", progress=False).rows == 6
    report = convert(path, tmp_path / "b.hdf5", flatten=False, on_error="skip", progress=False)
    assert [fault.record for fault in report.faults] == ["record 1", "record 2"]


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([{"a": [b"x"]}], "observation/... or observation:..."),
        ([without(rows(3), "reward")], "no feature reward"),
        (
            [
                without(without(rows(2), "observation/a"), "observation/b")
                | {"observation/c": [b""]}
            ],
            "--no-flatten",
        ),
        ([b"\x01\x02"], "tf.train.Example"),
    ],
)
def test_files_of_something_else_are_refused(records: Any, reason: str, tmp_path: Path):
    path = write_records(tmp_path / "in" / "x", records)
    with pytest.raises(InputError, match=reason) as info:
        convert(path, tmp_path / "b.hdf5", progress=False)
    assert "\n" not in str(info.value)
    assert not (tmp_path / "b.hdf5").exists()


def test_a_wrong_forced_layout_is_refused(tmp_path: Path):
    path = write_records(tmp_path / "in" / "x", [rows(4)])
    with pytest.raises(InputError, match="4 rows, expected 2; try --layout windows"):
        convert(path, tmp_path / "b.hdf5", layout="sarsa", progress=False)
    with pytest.raises(InputError, match="expected layout"):
        convert(path, tmp_path / "b.hdf5", layout="seq40", progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("jobs", [1, 2])
def test_many_single_transitions_keep_their_order(jobs: int, tmp_path: Path):
    records = [rows(2, reward=np.array([k, 0.0])) for k in range(1500)]
    buffer, _ = converted(records, tmp_path, jobs=jobs, fraction=0.5)
    assert np.array_equal(buffer.rew, np.arange(1, 1500, 2))
    assert buffer.truncated.all()
