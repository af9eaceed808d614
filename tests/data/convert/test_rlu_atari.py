"""RL Unplugged's Atari transitions: every row as an independent reading has it."""

from __future__ import annotations

import gzip
import http.server
import importlib.util
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_rlu import example, mutate, png, transition, write_shard

from tianshou_ext.data import download
from tianshou_ext.data.convert import rlu_atari
from tianshou_ext.data.convert.png import grey_rows, unfilter
from tianshou_ext.data.convert.rlu_atari import convert
from tianshou_ext.data.convert.rlu_atari_plain import frames_of, shares_frames, transitions
from tianshou_ext.data.convert.tfrecord import parse_example, read_records
from tianshou_ext.data.hdf5 import load_buffer, read_provenance
from tianshou_ext.errors import InputError
from tianshou_ext.tianshou_api import ReplayBuffer

ROOT = Path(__file__).parents[3]
SAMPLES = ROOT.parent / "shared/data/formats/rlu_atari"
CASES = int(os.environ.get("TIANSHOU_EXT_FUZZ", "500"))
NAME = "run_1-00000-of-00100"
needs_samples = pytest.mark.skipif(not SAMPLES.exists(), reason="needs the sample files")


def made(count: int, seed: int = 0) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Return records, and the columns that should come of them."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (count, 5, 1, 84), np.uint8).repeat(84, 2)
    columns = {
        "obs": frames[:, :4],
        "obs_next": frames[:, 1:],
        "act": rng.integers(0, 18, count),
        "rew": rng.normal(size=count).astype(np.float32) * 3,
        "terminated": np.arange(count) % 7 == 3,
    }
    records = [
        transition(
            rng,
            frames[k],
            a_t=columns["act"][k : k + 1],
            r_t=columns["rew"][k : k + 1],
            d_t=np.array([not columns["terminated"][k]], np.float32),
        )
        for k in range(count)
    ]
    return records, columns


def check(path: Path, columns: dict[str, np.ndarray]) -> None:
    for buffer in (
        load_buffer(path),
        load_buffer(path, mapped=False),
        ReplayBuffer.load_hdf5(path),
    ):
        assert len(buffer) == len(columns["act"])
        for key, values in columns.items():
            found = buffer._meta[key]
            assert np.array_equal(found, values) and found.dtype == values.dtype, key
        assert np.array_equal(buffer.truncated, ~columns["terminated"])
        assert buffer.done.all()
        rows = np.arange(len(buffer))
        assert np.array_equal(buffer.next(rows), rows) and np.array_equal(buffer.prev(rows), rows)


@pytest.fixture(params=["compiled", "one by one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode in compiled code, which small shards otherwise do without, or not."""
    least = 0 if request.param == "compiled" else 1 << 62
    monkeypatch.setattr(rlu_atari, "COMPILED_BYTES", least)


def quiet(*args: Any, **options: Any) -> rlu_atari.Report:
    return convert(*args, progress=False, **options)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_every_row(zipped: bool, compression: Any, tmp_path: Path):
    records, columns = made(20)
    write_shard(tmp_path / "Pong" / NAME, records, zipped)
    report = quiet(tmp_path / "Pong" / NAME, tmp_path / "b.hdf5", compression=compression)
    assert (report.rows, report.terminated, report.truncated) == (20, 3, 17)
    check(tmp_path / "b.hdf5", columns)
    recorded = read_provenance(tmp_path / "b.hdf5")
    assert recorded["task"] == "Pong" and recorded["ordered"] is False
    assert recorded["shards"] == [NAME] and recorded["inputs"]["files"] == 1
    assert sum("WARNING" in note for note in report.notes) == 0
    assert sum("--clip-rewards" in note for note in report.notes) == 1


def test_blocks_jobs_and_shards_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    records, columns = made(23)
    write_shard(tmp_path / "Pong" / "run_1-00000-of-00100", records[:9])
    write_shard(tmp_path / "Pong" / "run_1-00001-of-00100", records[9:])
    (tmp_path / "Pong" / "notes.txt").write_text("no shard")
    monkeypatch.setattr(rlu_atari, "ROWS", 4)
    for jobs in (1, 2):
        quiet(tmp_path / "Pong", tmp_path / "b.hdf5", jobs=jobs)
        check(tmp_path / "b.hdf5", columns)


@pytest.mark.usefixtures("way")
@needs_samples
@pytest.mark.parametrize("name", ["Asterix/run_1-00000-of-00100", "Pong/run_2-00017-of-00100"])
def test_sample_as_another_decoder_reads_it(name: str, tmp_path: Path):
    cv2 = pytest.importorskip("cv2")
    found = [parse_example(record) for record in read_records(SAMPLES / name)]

    def frames(key: str) -> np.ndarray:
        flat = [cv2.imdecode(np.frombuffer(i, np.uint8), -1) for row in found for i in row[key]]
        return np.stack(flat).reshape(-1, 4, 84, 84)

    report = quiet(SAMPLES / name, tmp_path / "b.hdf5")
    discount = np.concatenate([row["d_t"] for row in found])
    check(
        tmp_path / "b.hdf5",
        {
            "obs": frames("o_t"),
            "obs_next": frames("o_tp1"),
            "act": np.concatenate([row["a_t"] for row in found]),
            "rew": np.concatenate([row["r_t"] for row in found]),
            "terminated": discount == 0,
        },
    )
    assert any("WARNING" in note for note in report.notes) == ("Pong" in name)


@pytest.mark.reference
@needs_samples
def test_sample_as_tensorflow_reads_it(tmp_path: Path):
    pytest.importorskip("tensorflow")
    shard = SAMPLES / "Asterix" / NAME
    quiet(shard, tmp_path / "ours.hdf5")
    quiet(shard, tmp_path / "theirs.hdf5", reader="tensorflow")
    ours, theirs = load_buffer(tmp_path / "ours.hdf5"), load_buffer(tmp_path / "theirs.hdf5")
    for key in ("obs", "obs_next", "act", "rew", "terminated", "truncated", "done"):
        assert np.array_equal(ours._meta[key], theirs._meta[key])
        assert ours._meta[key].dtype == theirs._meta[key].dtype


def test_no_tensorflow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_shard(tmp_path / NAME, made(1)[0])
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError, match=r'pip install "tianshou_ext\[rlu\]"'):
        quiet(tmp_path / NAME, tmp_path / "b.hdf5", reader="tensorflow")


def test_compiled_code_takes_no_record_that_is_refused_otherwise():
    """What it takes is the same; TIANSHOU_EXT_FUZZ=100000 runs more cases."""
    rng = np.random.default_rng(5)
    whole = [example(record) for record in made(4)[0]]
    taken = 0
    for case in range(CASES):
        record = mutate(rng, whole[case % 4]) if case > 3 else whole[case]
        if case % 2:  # flip a bit of what is not a pixel
            at = [k for k in range(len(record)) if record[k : k + 4] in (b"a_t\x12", b"r_t\x12")]
            damaged = bytearray(record)
            if at and case > 3:
                place = at[case % len(at)] + int(rng.integers(12))
                damaged[min(place, len(record) - 1)] ^= 1 << int(rng.integers(8))
            record = bytes(damaged)
        data = b"before" + record + b"after"
        found = transitions(data, np.array([[6, 6 + len(record)]]), 18)
        if found is None:
            assert case > 3
            continue
        taken += 1
        images, action, reward, discount = rlu_atari._transition(parse_example(record))
        assert [data[start:stop] for start, stop in found.images[0]] == images
        assert (action, reward, discount) == (
            found.actions[0],
            found.rewards[0],
            found.discounts[0],
        )
        assert shares_frames(data, found) == (images[1:4] == images[4:7])
        frames = frames_of(data, found, shared=False)
        if frames is not None:
            pixels = [np.frombuffer(grey_rows(image, 84, 84), np.uint8) for image in images]
            out = np.empty((8, 84, 84), np.uint8)
            unfilter(np.concatenate(pixels).tobytes(), out)
            assert np.array_equal(frames[0], out)
    assert CASES / 100 < taken < CASES


def test_a_shard_joined_from_several_is_reported_once(tmp_path: Path):
    folder = tmp_path / "Pong"
    one = write_shard(folder / NAME, made(3)[0])
    (folder / NAME).write_bytes(one + one)
    shutil.copy(folder / NAME, folder / NAME.replace("00000", "00001"))
    report = quiet(folder, f"{tmp_path}/out/")
    assert report.rows == 12
    joined = [note for note in report.notes if "several gzip members" in note]
    assert len(joined) == 2 and joined[0].startswith(f"WARNING: {NAME}")
    assert len(report.notes) == len(set(report.notes))


@pytest.mark.parametrize("name", [b"o_t\0", b"o_t_", b"a_t__", b"o_tp1x"])
def test_compiled_code_tells_names_apart_that_begin_alike(name):
    record = made(1)[0][0]
    record[name.decode()] = record["r_t"]
    data = example(record)
    bounds = np.array([[0, len(data)]])
    assert transitions(data, bounds, 18) is not None
    old = name[:5] if len(name) > 5 else name[:3]
    record.pop(old.decode())
    data = example(record)
    assert transitions(data, np.array([[0, len(data)]]), 18) is None


@pytest.mark.usefixtures("way")
def test_frames_that_are_not_shared_are_stored_in_full(tmp_path: Path):
    records, columns = made(5)
    other = np.full((4, 84, 84), 9, np.uint8)
    records[2]["o_tp1"] = [png(frame) for frame in other]
    columns["obs_next"] = columns["obs_next"].copy()
    columns["obs_next"][2] = other
    write_shard(tmp_path / NAME, records)
    report = quiet(tmp_path / NAME, tmp_path / "b.hdf5")
    check(tmp_path / "b.hdf5", columns)
    assert any("in full" in note for note in report.notes)


def test_options(tmp_path: Path):
    records, columns = made(40)
    write_shard(tmp_path / NAME, records)
    quiet(tmp_path / NAME, tmp_path / "b.hdf5", fraction=0.25, clip_rewards=True)
    columns["rew"] = columns["rew"].clip(-1, 1)
    check(tmp_path / "b.hdf5", {key: values[3::4] for key, values in columns.items()})
    with pytest.raises(InputError, match="shuffled and belong to no episode; use --fraction"):
        quiet(tmp_path / NAME, tmp_path / "c.hdf5", episodes="3")


def test_one_file_a_shard_keeps_those_that_are_there(tmp_path: Path):
    records, columns = made(12)
    names = [f"run_1-{k:05d}-of-00100" for k in range(3)]
    for k, name in enumerate(names):
        write_shard(tmp_path / "Pong" / name, records[4 * k : 4 * k + 4])
    out = tmp_path / "out"
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="expected a folder to write to, got the file .*file"):
        quiet(tmp_path / "Pong", f"{tmp_path}/file/")
    quiet(tmp_path / "Pong" / names[1], f"{out}/")
    before = (out / f"{names[1]}.hdf5").stat().st_mtime_ns
    report = quiet(tmp_path / "Pong", out, jobs=2)
    assert report.rows == 8 and "1 of 3 files were there already" in report.notes[0]
    assert (out / f"{names[1]}.hdf5").stat().st_mtime_ns == before
    assert sorted(path.name for path in out.iterdir()) == [f"{name}.hdf5" for name in names]
    for k, name in enumerate(names):
        part = {key: values[4 * k : 4 * k + 4] for key, values in columns.items()}
        check(out / f"{name}.hdf5", part)


def test_a_folder_without_a_sound_shard_is_no_success(tmp_path: Path):
    for k in range(2):
        shard = tmp_path / "Pong" / f"run_1-{k:05d}-of-00100"
        write_shard(shard, made(1)[0])
        shard.write_bytes(b"")
    with pytest.raises(InputError, match="got none; the first fault is .*00000-of-00100.* no rec"):
        quiet(tmp_path / "Pong", f"{tmp_path}/out/", on_error="skip")
    assert list((tmp_path / "out").iterdir()) == []


GREY = png(np.zeros((84, 84), np.uint8))
BAD = {
    "bad PNG": {"o_t": [GREY, GREY[:50], GREY, GREY]},
    "RGB": {"o_tp1": [GREY, GREY, GREY, png(np.zeros((84, 84), np.uint8), colour=2)]},
    "wrong size": {"o_t": [png(np.zeros((80, 80), np.uint8))] * 4},
    "three frames": {"o_t": [GREY] * 3},
    "no frames": {"o_tp1": []},
    "frames are numbers": {"o_t": np.zeros(4, np.int64)},
    "float action": {"a_t": np.zeros(1, np.float32)},
    "two actions": {"a_t": np.zeros(2, np.int64)},
    "negative action": {"a_t": np.array([-1])},
    "large action": {"a_t": np.array([18])},
    "integer reward": {"r_t": np.zeros(1, np.int64)},
    "NaN reward": {"r_t": np.array([np.nan], np.float32)},
    "infinite reward": {"r_t": np.array([np.inf], np.float32)},
    "NaN discount": {"d_t": np.array([np.nan], np.float32)},
    "no discount": {"d_t": np.empty(0, np.float32)},
}
REASONS = {
    "bad PNG": "a PNG that is cut off",
    "RGB": "a PNG of RGB where grey is expected",
    "wrong size": "80x80 where 84x84",
    "three frames": "o_t with 3 bytes where 4 bytes",
    "float action": "a_t with 1 float32 where 1 int64",
}


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("case", list(BAD))
def test_a_bad_record_stops_or_is_left_out(case: str, tmp_path: Path):
    records, columns = made(6)
    records[4] |= BAD[case]
    write_shard(tmp_path / NAME, records)
    with pytest.raises(InputError, match=f"{NAME}, record 4: .*{REASONS.get(case, '')}") as caught:
        quiet(tmp_path / NAME, tmp_path / "b.hdf5")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    report = quiet(tmp_path / NAME, tmp_path / "b.hdf5", on_error="skip")
    assert [fault.record for fault in report.faults] == ["record 4"]
    check(tmp_path / "b.hdf5", {key: np.delete(v, 4, 0) for key, v in columns.items()})


@pytest.mark.usefixtures("way")
def test_misnamed_and_missing_features(tmp_path: Path):
    records, _ = made(2)
    for record in records:
        record["observation"] = record.pop("o_t")
    write_shard(tmp_path / NAME, records)
    with pytest.raises(InputError, match="record 0: no feature o_t, but .*observation"):
        quiet(tmp_path / NAME, tmp_path / "b.hdf5")
    with pytest.raises(InputError, match="got none; the first fault is .*no feature o_t"):
        quiet(tmp_path / NAME, tmp_path / "b.hdf5", on_error="skip")


@pytest.mark.usefixtures("way")
def test_a_broken_file_gives_the_records_before(tmp_path: Path):
    records, columns = made(6)
    data = write_shard(tmp_path / NAME, records)
    plain = gzip.decompress(data)
    half = len(plain) // 2
    cases = [
        ("truncated gzip", data[: len(data) // 2], range(1, 6)),
        ("truncated gzip", data[:-8], [6]),
        ("damaged gzip", data[:-8] + bytes(8), [6]),
        ("wrong checksum", gzip.compress(plain[:half] + b"12345" + plain[half + 5 :]), range(1, 6)),
        ("ends", plain[:half], range(1, 6)),
    ]
    for reason, damaged, rows in cases:
        (tmp_path / NAME).write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{NAME}, record \d: .*{reason}"):
            quiet(tmp_path / NAME, tmp_path / "b.hdf5")
        report = quiet(tmp_path / NAME, tmp_path / "b.hdf5", on_error="skip")
        assert len(report.faults) == 1 and reason in report.faults[0].reason
        assert report.rows in rows
        check(tmp_path / "b.hdf5", {key: v[: report.rows] for key, v in columns.items()})


def test_what_is_no_shard(tmp_path: Path):
    for content, reason in (
        (b"", "holds no records"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "no TFRecord"),
    ):
        (tmp_path / NAME).write_bytes(content)
        for on_error in ("stop", "skip"):
            with pytest.raises(InputError, match=reason):
                quiet(tmp_path / NAME, tmp_path / "b.hdf5", on_error=on_error)
    with pytest.raises(InputError, match="found none"):
        quiet(tmp_path / "missing", tmp_path / "b.hdf5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected shards like run_1-00000-of-00100"):
        quiet(tmp_path / "empty", tmp_path / "b.hdf5")
    write_shard(tmp_path / "Pong" / "run_1-00001-of-00100", made(3)[0])
    (tmp_path / "Pong" / NAME).write_bytes(b"")
    report = quiet(tmp_path / "Pong", tmp_path / "b.hdf5", on_error="skip")
    assert report.rows == 3 and "holds no records" in str(report.faults)
    report = quiet(tmp_path / "Pong", f"{tmp_path}/each/", on_error="skip")
    assert report.rows == 3 and "holds no records" in str(report.faults)


def load_tool() -> Any:
    path = ROOT / "tools/convert_rl_unplugged.py"
    spec = importlib.util.spec_from_file_location("convert_rl_unplugged", path)
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool  # dataclasses look there
    spec.loader.exec_module(tool)
    return tool


class Bucket(http.server.BaseHTTPRequestHandler):
    files: dict[str, bytes]
    asked: list[str | None]
    short: int
    ranges: bool
    length: tuple[str, str] | None = None

    def do_GET(self):
        data, wanted = self.files.get(self.path), self.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted[6:-1]) if wanted and self.ranges else 0
        if data is None:
            return self.send_error(404)
        if self.length is not None:
            self.send_response(200)
            self.send_header(*self.length)
            self.end_headers()
            return self.wfile.write(data)
        if start >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self.wfile.write(data[start : len(data) - self.short])
        return None

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def bucket() -> Iterator[Any]:
    state = type("B", (Bucket,), {"files": {}, "asked": [], "short": 0, "ranges": True})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), state)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_short_download_is_refused_and_resumed(ranges: bool, bucket: Any, tmp_path: Path):
    fetch = download.fetch
    data = np.random.default_rng(0).bytes(300_000)
    bucket.files["/x"], bucket.short, bucket.ranges = data, 100_000, ranges
    target, partial = tmp_path / "x", tmp_path / "x.partial"
    with pytest.raises(InputError, match="expected 300000 bytes .* got 200000; run this again"):
        fetch(f"{bucket.url}/x", target, progress=False)
    assert partial.read_bytes() == data[:200_000] and not target.exists()
    bucket.short = 0
    fetch(f"{bucket.url}/x", target, progress=False)
    assert target.read_bytes() == data and not partial.exists()
    assert bucket.asked == [None, "bytes=200000-"]


def test_a_partial_file_that_is_whole_or_too_long(bucket: Any, tmp_path: Path):
    fetch = download.fetch
    bucket.files["/x"] = b"12345"
    (tmp_path / "x.partial").write_bytes(b"12345")
    fetch(f"{bucket.url}/x", tmp_path / "x", progress=False)
    assert (tmp_path / "x").read_bytes() == b"12345"
    (tmp_path / "x.partial").write_bytes(b"1234567")
    fetch(f"{bucket.url}/x", tmp_path / "x", progress=False)  # anew
    assert (tmp_path / "x").read_bytes() == b"12345"
    assert not (tmp_path / "x.partial").exists()
    with pytest.raises(InputError, match="HTTP 404 .*check what was asked for"):
        fetch(f"{bucket.url}/y", tmp_path / "y", progress=False)
    with pytest.raises(InputError, match="run this again to go on"):
        fetch("http://127.0.0.1:1/x", tmp_path / "y", progress=False)
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    "header", [("X", "y"), ("Content-Length", "some"), ("Content-Length", "-1")]
)
def test_a_download_of_unknown_length_is_refused(header: Any, bucket: Any, tmp_path: Path):
    bucket.files["/x"], bucket.length = b"12345", header
    said = header[1] if header[0] == "Content-Length" else "none"
    with pytest.raises(InputError, match=f"expected the length of .*, got '{said}'; fetch"):
        download.fetch(f"{bucket.url}/x", tmp_path / "x", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", [{"fraction": 0.0}, {"jobs": 0}])
def test_the_tool_refuses_options_before_it_fetches(option: Any, bucket: Any, tmp_path: Path):
    tool = load_tool()
    folders = {"dataset_dir": tmp_path / "datasets", "buffer_dir": tmp_path / "buffers"}
    with pytest.raises(InputError, match="expected a fraction|at least one job"):
        tool.main(tool.Args(task="Pong", url=bucket.url, progress=False, **folders, **option))
    assert not bucket.asked and not list(tmp_path.iterdir())


def test_the_tool_fetches_converts_and_goes_on(bucket: Any, tmp_path: Path, capsys: Any):
    tool = load_tool()
    records, columns = made(6)
    for k in range(2):
        path = tmp_path / "bucket" / f"run_2-{k:05d}-of-00100"
        bucket.files[f"/Pong/{path.name}"] = write_shard(path, records[3 * k : 3 * k + 3])
    args = tool.Args(
        task="Pong",
        run_id=2,
        shard_id="0-1",
        dataset_dir=tmp_path / "datasets",
        buffer_dir=tmp_path / "buffers",
        progress=False,
        url=bucket.url,
    )
    assert [report.rows for report in tool.main(args)] == [3, 3]
    made_files = sorted(p.relative_to(tmp_path) for p in tmp_path.glob("[db]*s/*/*"))
    assert [str(path) for path in made_files] == [
        "buffers/Pong/run_2-00000-of-00100.hdf5",
        "buffers/Pong/run_2-00001-of-00100.hdf5",
        "datasets/Pong/run_2-00000-of-00100",
        "datasets/Pong/run_2-00001-of-00100",
    ]
    check(tmp_path / made_files[1], {key: values[3:] for key, values in columns.items()})
    (tmp_path / made_files[0]).unlink()
    assert len(tool.main(args)) == 1 and len(bucket.asked) == 2
    assert "there already, kept" in capsys.readouterr().out


def test_shard_ids():
    ids = load_tool().shard_ids
    assert ids("1", 100) == [1] and ids("0-9", 100) == list(range(10))
    assert ids("0,3,5-7,3", 100) == [0, 3, 5, 6, 7]
    for text in ("", "a", "3-1", "100", "1,", "-1", "1-2-3"):
        with pytest.raises(InputError, match="expected --shard-id like"):
            ids(text, 100)


def test_the_tool_leaves_with_2_on_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    pytest.importorskip("tyro")
    tool = load_tool()
    monkeypatch.setattr(sys, "argv", ["convert", "--task", "Pong", "--run-id", "6"])
    with pytest.raises(SystemExit) as left:
        tool.launch(tool.main, tool.Args)
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: expected a --task like") and said.count("\n") == 1
