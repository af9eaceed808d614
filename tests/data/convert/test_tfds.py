"""TFDS folders: against Protocol Buffers' reading, and TFDS itself if it is there."""

from __future__ import annotations

import io
import itertools
import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_rlu_atari_episodes import (
    SAMPLES,
    both,
    needs_samples,
    png,
    read_reference,
    unpng,
    write_records,
)

from tianshou_ext.data.convert.tfds import convert
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.data.replay import Replay
from tianshou_ext.errors import InputError

RNG = np.random.default_rng(0)
CLASSES = "tensorflow_datasets.core.features"


def tensor(dtype: str, *shape: int, encoding: str = "none") -> dict[str, Any]:
    content = {"dtype": dtype, "encoding": encoding, "shape": {"dimensions": [*map(str, shape)]}}
    return {"pythonClassName": f"{CLASSES}.tensor_feature.Tensor", "tensor": content}


def image(*shape: int) -> dict[str, Any]:
    content = {"dtype": "uint8", "encodingFormat": "png", "shape": {"dimensions": [*shape]}}
    return {"pythonClassName": f"{CLASSES}.image_feature.Image", "image": content}


TEXT = {"pythonClassName": f"{CLASSES}.text_feature.Text", "text": {}}


def several(**features: Any) -> dict[str, Any]:
    name = f"{CLASSES}.features_dict.FeaturesDict"
    return {"pythonClassName": name, "featuresDict": {"features": features}}


FLAGS = {key: tensor("bool") for key in ("is_first", "is_last", "is_terminal")}
PLAIN = {"action": tensor("int64"), "reward": tensor("float32"), **FLAGS}


def make(
    folder: Path,
    steps: dict[str, Any],
    shards: list[list[Any]],
    lengths: list[int] | None = None,
    split: str = "train",
) -> Path:
    """Write a dataset as TFDS lays it out."""
    name = f"{CLASSES}.dataset_feature.Dataset"
    sequence = {"pythonClassName": name, "sequence": {"feature": several(**steps), "length": "-1"}}
    lengths = [len(records) for records in shards] if lengths is None else lengths
    info = {
        "name": "toy",
        "version": "1.0.0",
        "fileFormat": "tfrecord",
        "splits": [{"name": split, "shardLengths": [*map(str, lengths)]}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features.json").write_text(json.dumps(several(steps=sequence, id=tensor("int64"))))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for k, records in enumerate(shards):
        shard = folder / f"toy-{split}.tfrecord-{k:05d}-of-{len(shards):05d}"
        write_records(shard, records, zipped=False)
    return folder


def flags(count: int, terminal: bool) -> dict[str, Any]:
    first, last = np.arange(count) == 0, np.arange(count) == count - 1
    return {
        "steps/is_first": first,
        "steps/is_last": last,
        "steps/is_terminal": last & terminal,
        "steps/action": np.arange(count) + 1,
        "steps/reward": np.arange(count) + 0.5,
        "id": [7],
    }


def vector(count: int = 4, terminal: bool = False, **changes: Any) -> dict[str, Any]:
    """Return an episode whose observation is one vector (T, 2)."""
    obs = np.stack([np.arange(count), -np.arange(count)], axis=1).astype(float)
    changes = {f"steps/{key}": values for key, values in changes.items()}
    return {"steps/observation": obs, **flags(count, terminal)} | changes


VECTOR = {"observation": tensor("float32", 2), **PLAIN}


@needs_samples
def test_the_control_sample_is_read_as_protocol_buffers_reads_it(tmp_path: Path):
    folder = SAMPLES / "tfds/rlu_control_like/1.0.0"
    report = convert(folder.parent, tmp_path / "b.hdf5", progress=False)
    rows: dict[str, list[Any]] = {key: [] for key in ("obs", "act", "rew", "truncated", "obs_next")}
    for steps in read_reference(next(folder.glob("*tfrecord*"))):
        parts = [
            [np.frombuffer(zlib.decompress(v), "<f4") for v in steps[f"steps/observation/{name}"]]
            for name in ("position", "velocity")
        ]
        obs = [np.concatenate(both_parts) for both_parts in zip(*parts, strict=True)]
        for t in range(len(obs) - 1):
            rows["obs"].append(obs[t])
            rows["obs_next"].append(obs[t + 1])
            rows["act"].append([steps["steps/action"][t]])
            rows["rew"].append(steps["steps/reward"][t])
            rows["truncated"].append(t == len(obs) - 2)
    for buffer in both(tmp_path / "b.hdf5"):
        for key, values in rows.items():
            assert np.array_equal(buffer._meta[key], np.array(values)), key
        assert not buffer.terminated.any()
    assert (report.rows, report.episodes) == (80, 4)
    assert [note.partition(",")[0] for note in report.notes] == ["no row is terminated"]
    recorded = read_provenance(tmp_path / "b.hdf5")
    assert [leaf[0] for leaf in recorded["obs"]] == ["observation/position", "observation/velocity"]
    assert (recorded["dataset"], recorded["dataset_version"]) == ("rlu_control_like", "1.0.0")


@needs_samples
def test_the_atari_sample_becomes_one_frame_a_row(tmp_path: Path):
    folder = SAMPLES / "tfds/rlu_atari_like/1.0.0"
    convert(folder, tmp_path / "b.hdf5", progress=False)
    obs, act, rew, truncated = [], [], [], []
    for steps in read_reference(next(folder.glob("*tfrecord*"))):
        count = len(steps["steps/action"])
        last = np.arange(count) == count - 1
        obs += [unpng(data) for data in steps["steps/observation"]]
        act += [*np.where(last, 0, steps["steps/action"])]
        rew += [*np.where(last, 0, steps["steps/reward"])]
        truncated += [*last]
    for buffer in both(tmp_path / "b.hdf5"):
        assert np.array_equal(buffer.obs, obs)
        assert np.array_equal(buffer.act, act) and buffer.act.dtype == np.int64
        assert np.array_equal(buffer.rew, rew)
        assert np.array_equal(buffer.truncated, truncated)
        assert (buffer.stack_num, buffer._save_obs_next) == (4, False)


@pytest.mark.reference
@needs_samples
@pytest.mark.parametrize("name", ["rlu_control_like", "rlu_atari_like"])
def test_tfds_itself_reads_the_same(name: str, tmp_path: Path):
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = SAMPLES / f"tfds/{name}/1.0.0"
    convert(folder, tmp_path / "b.hdf5", progress=False)
    replay = Replay(load_buffer(tmp_path / "b.hdf5"))
    batch = replay.gather(replay.rows)
    k = 0
    for one in tfds.builder_from_directory(str(folder)).as_dataset(split="train"):
        steps = [*tfds.as_numpy(one["steps"])]
        for step, after in itertools.pairwise(steps):
            for key, value in (("obs", step), ("obs_next", after)):
                seen = getattr(batch, key)[k].numpy()
                value = value["observation"]
                if isinstance(value, dict):
                    assert np.array_equal(seen, [*value["position"], *value["velocity"]])
                else:
                    assert np.array_equal(seen[-1], value[..., 0])
            assert batch.rew[k] == step["reward"]
            assert batch.act[k].numpy() == step["action"]
            assert batch.terminated[k] == after["is_terminal"]
            k += 1
    assert k == len(batch)


def test_ends_follow_is_terminal(tmp_path: Path):
    early = vector(4, is_terminal=[0, 0, 1, 0])  # as rlu_rwrl has it
    folder = make(tmp_path / "toy/1.0.0", VECTOR, [[vector(3, True), vector(3)], [early]])
    report = convert(folder, tmp_path / "b.hdf5", progress=False)
    for buffer in both(tmp_path / "b.hdf5"):
        assert np.array_equal(buffer.terminated, [0, 1, 0, 0, 0, 0, 1])
        assert np.array_equal(buffer.truncated, [0, 0, 0, 1, 0, 0, 0])
        assert np.array_equal(buffer.obs[:, 0], [0, 1, 0, 1, 0, 1, 2])
        assert np.array_equal(buffer.obs_next[:, 1], [-1, -2, -1, -2, -1, -2, -3])
        assert np.array_equal(buffer.act, [1, 2, 1, 2, 1, 2, 3])  # the last step's is a dummy
        assert np.array_equal(buffer.rew, [0.5, 1.5, 0.5, 1.5, 0.5, 1.5, 2.5])
    assert (report.rows, report.terminated, report.truncated) == (7, 2, 1)


def test_terminal_frames_need_no_row(tmp_path: Path):
    frames = RNG.integers(0, 256, (4, 30, 20), dtype=np.uint8)
    records = [
        flags(4, terminal) | {"steps/observation/view": [png(frame) for frame in frames]}
        for terminal in (True, False)
    ]
    steps = {"observation": several(view=image(30, 20, 1), text=TEXT), **PLAIN}
    folder = make(tmp_path / "toy", steps, [records])
    report = convert(folder, tmp_path / "b.hdf5", progress=False)
    buffer = load_buffer(tmp_path / "b.hdf5")
    assert np.array_equal(buffer.obs, [*frames[:3], *frames])
    assert np.array_equal(buffer.truncated, [0, 0, 0, 0, 0, 0, 1])
    assert np.array_equal(buffer.terminated, [0, 0, 1, 0, 0, 0, 0])
    assert np.array_equal(buffer.act, [1, 2, 3, 1, 2, 3, 0])
    assert np.array_equal(buffer.rew, [0.5, 1.5, 2.5, 0.5, 1.5, 2.5, 0])
    assert report.notes == ["left out: observation/text; see --no-flatten for images"]
    convert(folder, tmp_path / "c.hdf5", flatten=False, progress=False)
    buffer = load_buffer(tmp_path / "c.hdf5")
    assert np.array_equal(buffer.obs.view[..., 0], [*frames[:3], *frames[:3]])
    assert np.array_equal(buffer.obs_next.view[..., 0], [*frames[1:], *frames[1:]])


def jpeg(frame: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    pytest.importorskip("PIL.Image").fromarray(frame).save(out, "JPEG")
    return out.getvalue()


@pytest.mark.parametrize("encode", [png, jpeg])
@pytest.mark.parametrize("sizes", [(16, 24, 3), (-1, -1, 3)])
def test_colour_images_are_stored_with_their_successors(encode: Any, sizes: Any, tmp_path: Path):
    frames = RNG.integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    data = [encode(frame) for frame in frames]
    record = flags(3, False) | {"steps/observation": data}
    folder = make(tmp_path / "toy", {"observation": image(*sizes), **PLAIN}, [[record]])
    convert(folder, tmp_path / "b.hdf5", progress=False)
    buffer, seen = load_buffer(tmp_path / "b.hdf5"), [unpng(one) for one in data]
    assert np.array_equal(buffer.obs, seen[:2]) and np.array_equal(buffer.obs_next, seen[1:])
    assert (buffer.stack_num, buffer.obs.dtype) == (1, np.uint8)


@pytest.mark.parametrize("encoding", ["none", "bytes", "zlib"])
@pytest.mark.parametrize(
    ("dtype", "shape", "sizes"),
    [
        ("float32", (3,), (3,)),
        ("float64", (2, 2), (2, 2)),
        ("float32", (), ()),
        ("int32", (3,), (-1,)),
        ("bool", (2,), (2,)),
        ("uint8", (5,), (5,)),
        ("int64", (2, 3), (-1, 3)),
    ],
)
def test_every_number_type_shape_and_encoding(
    encoding: str, dtype: str, shape: Any, sizes: Any, tmp_path: Path
):
    obs = RNG.normal(0, 50, (4, *shape)) > 0 if dtype == "bool" else RNG.normal(90, 9, (4, *shape))
    obs = obs.astype(dtype)
    values: Any = obs
    if encoding != "none":
        values = [one.tobytes() for one in obs]
        values = [zlib.compress(one) for one in values] if encoding == "zlib" else values
    steps = {"observation": tensor(dtype, *sizes, encoding=encoding), **PLAIN}
    record = flags(4, False) | {"steps/observation": values}
    convert(make(tmp_path / "toy", steps, [[record]]), tmp_path / "b.hdf5", progress=False)
    kept = obs.astype(np.float32) if obs.dtype.kind == "f" else obs
    for buffer in both(tmp_path / "b.hdf5"):
        assert buffer.obs.dtype == kept.dtype
        assert np.array_equal(buffer.obs, kept[:3]) and np.array_equal(buffer.obs_next, kept[1:])


def test_parts_are_joined_in_alphabetical_order_or_kept_apart(tmp_path: Path):
    obs = several(
        z=tensor("float32"), a=several(n=tensor("int64", 2), m=tensor("float64", 1)), t=TEXT
    )
    steps = PLAIN | {
        "observation": obs,
        "action": several(b=tensor("float32", 2), a=tensor("bool")),
    }
    record = flags(3, False) | {
        "steps/observation/z": np.array([1.0, 2, 3]),
        "steps/observation/a/n": np.arange(6),
        "steps/observation/a/m": np.array([7.0, 8, 9]),
        "steps/action/a": np.array([1, 0, 1]),
        "steps/action/b": np.arange(6) / 2,
    }
    folder = make(tmp_path / "toy", steps, [[record]])
    convert(folder, tmp_path / "b.hdf5", progress=False)
    buffer = load_buffer(tmp_path / "b.hdf5")
    assert np.array_equal(buffer.obs, [[7, 0, 1, 1], [8, 2, 3, 2]])  # a/m, a/n, z
    assert np.array_equal(buffer.act, [[1, 0, 0.5], [0, 1, 1.5]])
    convert(folder, tmp_path / "c.hdf5", flatten=False, progress=False)
    for buffer in both(tmp_path / "c.hdf5"):
        assert np.array_equal(buffer.obs.a.n, [[0, 1], [2, 3]])
        assert np.array_equal(buffer.obs_next.z, [2, 3])
        assert np.array_equal(buffer.act.a, [True, False])


def test_declarations_of_older_versions_are_read(tmp_path: Path):
    folder = make(tmp_path / "toy", VECTOR, [[vector()]])

    def old(name: str, content: Any) -> dict[str, Any]:
        return {"type": f"{CLASSES}.{name}", "content": content}

    steps = {
        "observation": old("tensor_feature.Tensor", {"shape": [2], "dtype": "float32"}),
        "action": old("tensor_feature.Tensor", {"shape": [], "dtype": "int64"}),
        "reward": old(
            "scalar.Scalar", json.dumps({"shape": {"dimensions": []}, "dtype": "float32"})
        ),
        **{key: old("tensor_feature.Tensor", {"shape": [], "dtype": "bool"}) for key in FLAGS},
    }
    inner = old("features_dict.FeaturesDict", steps)
    dataset = {"json": json.dumps({"feature": inner, "length": None})}
    for outer in (
        old(
            "features_dict.FeaturesDict",
            {"steps": old("dataset_feature.Dataset", {"feature": inner})},
        ),
        several(
            steps={"pythonClassName": f"{CLASSES}.dataset_feature.Dataset", "jsonFeature": dataset}
        ),
    ):
        (folder / "features.json").write_text(json.dumps(outer))
        convert(folder, tmp_path / "b.hdf5", progress=False)
        assert np.array_equal(load_buffer(tmp_path / "b.hdf5").obs[:, 0], [0, 1, 2])


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no is_last": (vector(is_last=[0, 0, 0, 0]), "is_last at the last step"),
    "is_last early": (vector(is_last=[0, 1, 0, 1]), "is_last at the last step"),
    "is_last gone": ({k: v for k, v in vector().items() if "is_last" not in k}, "no feature"),
    "is_first late": (vector(is_first=[1, 0, 1, 0]), "is_first at the first step"),
    "goes on": (vector(is_terminal=[0, 1, 0, 1]), "the episode goes on"),
    "flags": (vector(is_terminal=[0, 1]), "4 steps of is_last, but 2"),
    "one step": (vector(1), "1 steps has no transition"),
    "no step": ({k: [] for k in vector()}, "0 steps has no transition"),
    "rewards": (vector(reward=np.ones(3)), "3 numbers in steps/reward"),
    "NaN": (vector(reward=[1, np.nan, 1, 1.0]), "NaN or infinite in row 1"),
    "obs NaN": (vector(observation=[0, np.nan] * 4), "NaN or infinite"),
    "width": (vector(observation=np.ones(9)), "9 numbers in steps/observation"),
    "kind": (vector(observation=[b"x"] * 4), "holds bytes, expected float"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_episode_is_named_and_can_be_left_out(name: str, tmp_path: Path):
    bad, reason = FAULTS[name]
    folder = make(tmp_path / "toy", VECTOR, [[vector(), bad, vector()]])
    with pytest.raises(InputError, match=f"of-00001, record 1: .*{reason}") as info:
        convert(folder, tmp_path / "b.hdf5", progress=False)
    assert "\n" not in str(info.value)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    report = convert(folder, tmp_path / "b.hdf5", on_error="skip", progress=False)
    assert (report.rows, len(report.faults)) == (6, 1)
    assert np.array_equal(load_buffer(tmp_path / "b.hdf5").obs[:, 0], [0, 1, 2] * 2)


ENCODED_FAULTS = {
    "cut off": (zlib.compress(bytes(8))[:-3], "cut off"),
    "not zlib": (b"nothing", "cannot be inflated"),
    "too short": (zlib.compress(bytes(4)), "4 bytes in a value"),
    "too long": (zlib.compress(bytes(1 << 22)), "9 bytes in a value"),  # not inflated further
}


@pytest.mark.parametrize("name", ENCODED_FAULTS)
def test_damaged_encoded_values_are_faults(name: str, tmp_path: Path):
    bad, reason = ENCODED_FAULTS[name]
    good = zlib.compress(bytes(8))
    steps = VECTOR | {"observation": tensor("float32", 2, encoding="zlib")}
    records = [vector(3, observation=[good, one, good]) for one in (good, bad)]
    with pytest.raises(InputError, match=f"record 1: .*{reason}"):
        convert(make(tmp_path / "toy", steps, [records]), tmp_path / "b.hdf5", progress=False)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"nothing", "cannot be decoded"),
        (png(np.zeros((8, 8, 3), np.uint8))[:-30], "cannot be decoded"),
        (png(np.zeros((8, 9, 3), np.uint8)), r"is \(8, 9, 3\)"),
        (png(np.zeros((8, 8), np.uint8)), "mode L"),
    ],
)
def test_wrong_images_are_faults(data: bytes, reason: str, tmp_path: Path):
    record = vector(3, observation=[data] * 3)
    folder = make(tmp_path / "toy", {"observation": image(8, 8, 3), **PLAIN}, [[record]])
    with pytest.raises(InputError, match=f"record 0: .*{reason}"):
        convert(folder, tmp_path / "b.hdf5", progress=False)


def test_images_of_changing_size_are_faults(tmp_path: Path):
    records = [
        vector(3, observation=[png(np.zeros((size, 8, 3), np.uint8)) for size in sizes])
        for sizes in ((8, 8, 8), (9, 9, 9), (8, 9, 8))
    ]
    folder = make(tmp_path / "toy", {"observation": image(-1, -1, 3), **PLAIN}, [records])
    report = convert(folder, tmp_path / "b.hdf5", on_error="skip", progress=False)
    assert [fault.record for fault in report.faults] == ["record 1", "record 2"]
    words = r"of-00001, record 1: expected obs \[8, 8, 3\] of uint8 as in the first block, got obs"
    with pytest.raises(InputError, match=words) as info:
        convert(folder, tmp_path / "b.hdf5", progress=False)
    assert "\n" not in str(info.value)


def test_missing_shards_and_wrong_lengths_are_refused_or_named(tmp_path: Path):
    shards = [[vector()], [vector(), vector()], [vector()]]
    folder = make(tmp_path / "toy", VECTOR, shards, lengths=[1, 3, 1])
    with pytest.raises(InputError, match="expected 3 records, got 2"):
        convert(folder, tmp_path / "b.hdf5", progress=False)
    (folder / "toy-train.tfrecord-00002-of-00003").unlink()
    with pytest.raises(InputError, match="1 of 3 shards of train are missing, the first is 2"):
        convert(folder, tmp_path / "b.hdf5", progress=False)
    report = convert(folder, tmp_path / "b.hdf5", on_error="skip", progress=False)
    assert (report.rows, len(report.faults)) == (9, 2)
    make(folder, VECTOR, shards, lengths=[2, 2])
    with pytest.raises(InputError, match="expected 2 shards of train by dataset_info.json, got 3"):
        convert(folder, tmp_path / "b.hdf5", progress=False)
    shutil.copy(
        folder / "toy-train.tfrecord-00000-of-00003", folder / "toy-train.tfrecord-00000-of-00009"
    )
    with pytest.raises(InputError, match="shards of one dataset"):
        convert(folder, tmp_path / "b.hdf5", progress=False)


def test_a_truncated_shard_is_refused(tmp_path: Path):
    folder = make(tmp_path / "toy", VECTOR, [[vector(), vector()]])
    shard = next(folder.glob("*tfrecord*"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(InputError, match="00001, record 1: got a file that ends"):
        convert(folder, tmp_path / "b.hdf5", progress=False)
    shard.write_bytes(b"")
    with pytest.raises(InputError, match="record 0: got a file that holds no records"):
        convert(folder, tmp_path / "b.hdf5", progress=False)


def test_folders_that_are_none_of_tfds_are_refused(tmp_path: Path):
    folder = make(tmp_path / "toy/1.0.0", VECTOR, [[vector()]])

    def refused(reason: str, src: Path = folder, **options: Any) -> None:
        with pytest.raises(InputError, match=reason) as info:
            convert(src, tmp_path / "b.hdf5", progress=False, **options)
        assert "\n" not in str(info.value)
        assert not (tmp_path / "b.hdf5").exists()

    listed_steps = json.loads((folder / "features.json").read_text())
    sequence = listed_steps["featuresDict"]["features"]["steps"]["sequence"]
    sequence["feature"]["featuresDict"]["features"] = ["action", {}]
    refused("found none", tmp_path / "nowhere")
    refused("found a file", folder / "features.json")
    refused("one of the splits .'train'.", split="test")
    for name, text, reason in (
        ("features.json", "{", "expected JSON"),
        ("features.json", "[]", "expected a JSON object"),
        ("features.json", "{}", "no steps there"),
        ("features.json", json.dumps(several(label=tensor("int64"))), "no steps there"),
        ("features.json", "[" * 100000, "expected JSON"),
        ("features.json", json.dumps(listed_steps), "no steps there"),
        ("dataset_info.json", "", "expected JSON"),
        ("dataset_info.json", '{"splits": 3}', "splits"),
        ("dataset_info.json", '{"fileFormat": "array_record"}', "got array_record"),
        (
            "dataset_info.json",
            '{"splits": [{"name": "train", "shardLengths": ["x"]}]}',
            "whole num",
        ),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(text)
        refused(reason)
        (folder / name).write_text(before)
    make(folder, {k: v for k, v in VECTOR.items() if k != "is_last"}, [[vector()]])
    refused("steps with is_last")
    make(folder, VECTOR | {"reward": several(a=tensor("float32"), b=tensor("float32"))}, [[]])
    refused("expected one reward a step in .*features.json, got reward/a, reward/b")
    make(folder, VECTOR | {"observation": TEXT}, [[vector()]])
    refused("expected numbers in observation")
    make(
        folder, VECTOR | {"observation": several(a=image(8, 8, 3), b=image(8, 8, 3))}, [[vector()]]
    )
    refused("try --no-flatten")
    for huge in (image(1 << 40, 12, 1), tensor("float32", *[1] * 401)):
        make(folder, VECTOR | {"observation": huge}, [[]])
        refused("features.json, got an impossible shape for observation")
    shutil.copytree(folder, tmp_path / "toy/2.0.0")
    refused("expected one dataset version", tmp_path / "toy")
    (folder / "dataset_info.json").unlink()
    refused("expected dataset_info.json")
    (folder / "features.json").unlink()
    refused("expected features.json")
