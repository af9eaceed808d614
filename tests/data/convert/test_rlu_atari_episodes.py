"""RL Unplugged Atari episodes: against Protocol Buffers and Pillow, and bad input."""

from __future__ import annotations

import functools
import gzip
import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tianshou.data import Batch

from tianshou_ext.data.convert.checksums import crc32c, masked
from tianshou_ext.data.convert.rlu_atari_episodes import convert
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.data.replay import Replay
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

SAMPLES = Path(__file__).parents[3].parent / "shared/data/formats"
SHARD = SAMPLES / "rlu_atari_episodes_ordered/Pong/run_1-00000-of-00050"
needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="needs the sample files")


@functools.cache
def example_class() -> Any:
    """Return Protocol Buffers' own class for tf.train.Example."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, int, str], within: Any = file) -> Any:
        is_file = within is file
        made = (within.message_type if is_file else within.nested_type).add(name=name)
        for key, number, kind, label, of in fields:
            made.field.add(name=key, number=number, type=kind, label=label, type_name=of or None)
        return made

    for name, kind in (("Bytes", 12), ("Float", 2), ("Int64", 3)):
        message(name, ("value", 1, kind, 3, ""))
    made = message(
        "Feature", *((k, n, 11, 1, f".t.{k}") for n, k in enumerate(("Bytes", "Float", "Int64"), 1))
    )
    made.oneof_decl.add(name="kind")
    for field in made.field:
        field.oneof_index = 0
    features = message("Features", ("feature", 1, 11, 3, ".t.Features.FeatureEntry"))
    entry = message(
        "FeatureEntry", ("key", 1, 9, 1, ""), ("value", 2, 11, 1, ".t.Feature"), within=features
    )
    entry.options.map_entry = True
    message("Example", ("features", 1, 11, 1, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def serialized(features: dict[str, Any]) -> bytes:
    """Return a tf.train.Example with bytes, floats or integers."""
    made = example_class()()
    for key, values in features.items():
        feature = made.features.feature[key]
        if len(values) and isinstance(values[0], bytes):
            feature.Bytes.value.extend(values)
        elif np.asarray(values).dtype.kind == "f":
            feature.Float.value.extend(np.asarray(values, float).ravel().tolist())
        else:
            feature.Int64.value.extend(np.asarray(values, int).ravel().tolist())
    return bytes(made.SerializeToString())


def write_records(path: Path, records: Sequence[Any], zipped: bool = True) -> Path:
    parts = []
    for record in records:
        data = record if isinstance(record, bytes) else serialized(record)
        length = struct.pack("<Q", len(data))
        crcs = (struct.pack("<I", masked(crc32c(part))) for part in (length, data))
        parts += [length, next(crcs), data, next(crcs)]
    whole = b"".join(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(whole) if zipped else whole)
    return path


def read_reference(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the features of each record, read by Protocol Buffers."""
    data = path.read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    made, at = example_class(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        message = made.FromString(data[at + 12 : at + 12 + length])
        at += 16 + length
        features = {}
        for key, feature in message.features.feature.items():
            if feature.WhichOneof("kind") is None:
                continue
            values = list(getattr(feature, feature.WhichOneof("kind")).value)
            is_float = feature.WhichOneof("kind") == "Float"
            features[key] = np.float32(values) if is_float else values
        yield features


def both(path: Path) -> list[ReplayBuffer]:
    return [load_buffer(path), ReplayBuffer.load_hdf5(str(path))]


def png(frame: np.ndarray[Any, Any]) -> bytes:
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    image.fromarray(frame).save(out, "PNG")
    return out.getvalue()


def unpng(data: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(pytest.importorskip("PIL.Image").open(io.BytesIO(data)))


def episode(steps: int, terminal: bool, seed: int = 0, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    discounts = np.ones(steps)
    discounts[-1] = 0.0 if terminal else 1.0
    frames = rng.integers(0, 256, (steps, 84, 84), dtype=np.uint8)
    rewards = rng.normal(0, 3, steps)
    return {
        "observations": [png(frame) for frame in frames],
        "actions": rng.integers(0, 18, steps),
        "unclipped_rewards": rewards,
        "clipped_rewards": np.clip(rewards, -1, 1),
        "discounts": discounts,
        "checkpoint_idx": [0],
        "episode_idx": [seed],
        "episode_return": rewards.sum(keepdims=True),
        "clipped_episode_return": rewards.sum(keepdims=True),
    } | changes


def expected_rows(path: Path, rewards: str = "unclipped") -> dict[str, list[Any]]:
    """Return the rows of the buffer, in plain loops."""
    rows: dict[str, list[Any]] = {k: [] for k in ("obs", "act", "rew", "terminated", "truncated")}
    for steps in read_reference(path):
        count, terminal = len(steps["actions"]), steps["discounts"][-1] == 0
        for t in range(count - 1 if terminal else count):
            is_extra, ends = t == count - 1, t == count - 2
            rows["obs"].append(unpng(steps["observations"][t]))
            rows["act"].append(0 if is_extra else steps["actions"][t])
            rows["rew"].append(0 if is_extra else steps[f"{rewards}_rewards"][t])
            rows["terminated"].append(terminal and ends)
            rows["truncated"].append(is_extra)
    return rows


def assert_equal(path: Path, rows: dict[str, list[Any]]) -> None:
    for buffer in both(path):
        for key, values in rows.items():
            assert np.array_equal(buffer._meta[key], np.array(values)), key
        assert np.array_equal(buffer.done, buffer.terminated | buffer.truncated)


@needs_samples
@pytest.mark.parametrize("rewards", ["unclipped", "clipped"])
def test_the_sample_is_read_as_protocol_buffers_reads_it(rewards: Any, tmp_path: Path):
    report = convert(SHARD, tmp_path / "b.hdf5", rewards=rewards, progress=False)
    assert_equal(tmp_path / "b.hdf5", expected_rows(SHARD, rewards))
    buffer = load_buffer(tmp_path / "b.hdf5")
    assert buffer.obs.dtype == np.uint8 and buffer.obs.shape[1:] == (84, 84)
    assert (buffer.stack_num, buffer._save_obs_next, buffer.act.dtype) == (4, False, np.int64)
    assert (report.rows, report.episodes, report.truncated) == (151 + 151 + 121, 3, 3)
    first, second = report.notes
    assert first == "1 of 50 shards are there" and second.startswith("no row is terminated")
    recorded = read_provenance(tmp_path / "b.hdf5")
    assert (recorded["game"], recorded["ordered"], recorded["rewards"]) == ("Pong", True, rewards)
    assert recorded["inputs"]["bytes"] == SHARD.stat().st_size


def test_ends_follow_the_last_discount(tmp_path: Path):
    path = write_records(tmp_path / "a" / "x", [episode(6, True), episode(4, False, 1)])
    report = convert(path, tmp_path / "b.hdf5", progress=False)
    assert_equal(tmp_path / "b.hdf5", expected_rows(path))
    assert (report.rows, report.terminated, report.truncated) == (5 + 4, 1, 1)
    # The row with the final observation is never sampled, the one before it leads there.
    replay = Replay(load_buffer(tmp_path / "b.hdf5"))
    assert replay.rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    batch = replay.gather(replay.rows)
    frames = [unpng(data) for steps in read_reference(path) for data in steps["observations"]]
    assert np.array_equal(batch.obs_next[-1, -1], frames[-1])
    assert batch.terminated.tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    assert isinstance(ReplayBuffer.load_hdf5(str(tmp_path / "b.hdf5"))[0], Batch)


@pytest.mark.parametrize("jobs", [1, 2])
def test_shards_are_read_in_order_and_episodes_chosen(jobs: int, tmp_path: Path):
    for shard in (1, 0):
        records = [episode(3, k % 2 == 0, 10 * shard + k) for k in range(4)]
        write_records(tmp_path / "Pong" / f"run_1-0000{shard}-of-00002", records)
    (tmp_path / "Pong" / "run_1-00002-of-00002.part").write_bytes(b"unfinished download")
    report = convert(
        tmp_path / "Pong", tmp_path / "b.hdf5", episodes="3:6", jobs=jobs, progress=False
    )
    first, second = (tmp_path / "Pong" / f"run_1-0000{k}-of-00002" for k in (0, 1))
    # A shard has 2 + 3 + 2 + 3 rows.
    after = expected_rows(second)
    rows = {key: [*values[7:], *after[key][:5]] for key, values in expected_rows(first).items()}
    assert_equal(tmp_path / "b.hdf5", rows)
    assert (report.rows, report.episodes, report.notes) == (8, 3, [])


FAULTS: dict[str, tuple[Any, str]] = {
    "missing key": ("actions", "no feature actions"),
    "no rewards": ({"unclipped_rewards": np.ones(2)}, "unequal lengths"),
    "wrong kind": ({"actions": np.ones(5)}, "holds float, expected int"),
    "NaN reward": ({"unclipped_rewards": [1, np.nan, 1, 1, 1.0]}, "NaN or infinite in row 1"),
    "NaN discount": ({"discounts": [1, 1, 1, 1, np.nan]}, "the discount is nan in row 4"),
    "early end": ({"discounts": [1, 0, 1, 1, 1.0]}, "goes on"),
    "negative action": ({"actions": [1, -1, 0, 0, 0]}, "step 1, got the action -1"),
    "action of no game": ({"actions": [1, 0, 18, 0, 0]}, "step 2, got the action 18"),
    "discount": ({"discounts": [1, 1, 2, 1, 0.0]}, "the discount is 2 in row 2"),
    "no PNG": ({"observations": [b"x"] * 5}, "step 0, got bytes that are no PNG"),
    "no PNG at the end": (
        {"observations": [*episode(4, True)["observations"], b"x"]},
        "step 4, got bytes that are no PNG",
    ),
    "no example": (b"\xff\xff\xff", "tf.train.Example"),
    "one step": (episode, "1 steps has no transition"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_episode_is_named_and_can_be_left_out(name: str, tmp_path: Path):
    change, reason = FAULTS[name]
    bad: Any = episode(5, True)
    if callable(change):
        bad = change(1, True)
    elif isinstance(change, str):
        del bad[change]
    elif isinstance(change, bytes):
        bad = change
    else:
        bad |= change
    good = episode(4, True, 3)
    path = write_records(tmp_path / "a" / "x", [good, bad, good])
    with pytest.raises(InputError, match=f"x, record 1: .*{reason}.*--on-error skip") as info:
        convert(path, tmp_path / "b.hdf5", progress=False)
    assert "\n" not in str(info.value)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a"]
    report = convert(path, tmp_path / "b.hdf5", on_error="skip", progress=False)
    assert (report.rows, len(report.faults)) == (6, 1)
    write_records(path, [good, good])
    assert_equal(tmp_path / "b.hdf5", expected_rows(path))


def test_damaged_files_are_refused_or_read_up_to_the_damage(tmp_path: Path):
    path = write_records(tmp_path / "a" / "x", [episode(4, True, k) for k in range(3)], False)
    whole = path.read_bytes()
    for data, record in ((whole[:-5], 2), (whole[:9], 0), (b"", 0), (b"nothing at all" * 9, 0)):
        path.write_bytes(data)
        with pytest.raises(InputError, match=f"x, record {record}: got"):
            convert(path, tmp_path / "b.hdf5", progress=False)
        if record:
            report = convert(path, tmp_path / "b.hdf5", on_error="skip", progress=False)
            assert (report.rows, len(report.faults)) == (6, 1)
            (tmp_path / "b.hdf5").unlink()
        else:
            with pytest.raises(InputError, match="first fault"):
                convert(path, tmp_path / "b.hdf5", on_error="skip", progress=False)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a"]


def test_wrong_places_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for src, reason in ((tmp_path / "none", "found none"), (tmp_path / "empty", "00000-of-00100")):
        with pytest.raises(InputError, match=reason):
            convert(src, tmp_path / "b.hdf5", progress=False)
    with pytest.raises(InputError, match="unclipped or clipped"):
        convert(tmp_path, tmp_path / "b.hdf5", rewards="both", progress=False)  # type: ignore[arg-type]
