"""TFRecord and tf.train.Example: what is read, and that no damage goes unnoticed."""

from __future__ import annotations

import contextlib
import gzip
import os
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from make_rlu import entry, example, feature, field, framed, masked_crc, mutate, varint

from tianshou_ext.data.convert.checksums import crc32c, masked
from tianshou_ext.data.convert.tfrecord import RecordError, parse_example, read_records
from tianshou_ext.errors import InputError

SAMPLES = Path(__file__).parents[3].parent / "shared/data/formats"
RECORDS = [b"first", b"", bytes(range(256)) * 9, b"last"]
PLAIN = b"".join(map(framed, RECORDS))
CASES = int(os.environ.get("TIANSHOU_EXT_FUZZ", "2000"))


def zipped(data: bytes, level: int = 9) -> bytes:
    """Compress without the time, which would give a case another name in each test process."""
    return gzip.compress(data, level, mtime=0)


def read(path: Path, data: bytes) -> tuple[list[bytes], RecordError | None]:
    path.write_bytes(data)
    records = []
    try:
        for record in read_records(path):
            records.append(record)  # noqa: PERF402 (what came before the error counts)
    except RecordError as error:
        return records, error
    return records, None


def test_crc32c():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720
    assert crc32c(bytes(32)) == 0x8A9136AA
    for size in range(20):
        data = bytes(range(size))
        assert struct.pack("<I", masked(crc32c(data))) == masked_crc(data)


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        zipped(PLAIN),
        zipped(PLAIN[:1000]) + zipped(b"") + zipped(PLAIN[1000:]),
        zipped(PLAIN[:7]) + bytes(100_000) + zipped(PLAIN[7:]) + bytes(3),
    ],
    ids=["plain", "gzip", "three members", "padding"],
)
def test_records_come_as_they_were_written(data: bytes, tmp_path: Path):
    assert read(tmp_path / "f", data) == (RECORDS, None)


def test_records_longer_than_what_is_read_at_once(tmp_path: Path):
    rng = np.random.default_rng(0)
    records = [rng.bytes(3 << 20), bytes(5 << 20), rng.bytes(10)]
    plain = b"".join(
        struct.pack("<Q", len(r)) + masked_crc(struct.pack("<Q", len(r))) + r + bytes(4)
        for r in records
    )
    for data in (plain, zipped(plain, 1)):
        (tmp_path / "f").write_bytes(data)
        assert list(read_records(tmp_path / "f", check_crc=False)) == records


ZIPPED = zipped(PLAIN)
LENGTH = struct.pack("<Q", 2**60)
HUGE = LENGTH + masked_crc(LENGTH)


@pytest.mark.parametrize(
    ("data", "good", "reason"),
    [
        (b"", 0, "holds no records"),
        (zipped(b""), 0, "holds no records"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), 0, "no TFRecord"),
        (zipped(b"\x93NUMPY" + bytes(100)), 0, "no TFRecord"),
        (b"abc", 0, "header"),
        (PLAIN[:-1], 3, "ends 7 bytes into 8"),
        (PLAIN[:-4], 3, "ends 4 bytes into 8"),
        (PLAIN + b"1234", 4, "header"),
        (PLAIN + HUGE, 4, "1152921504606846976 bytes"),
        (zipped(PLAIN + HUGE), 4, "1152921504606846976 bytes"),
        (PLAIN + bytes(12), 4, "checksum of the record's length"),
        (PLAIN[:60] + bytes([PLAIN[60] ^ 1]) + PLAIN[61:], 2, "record with a wrong checksum"),
        (ZIPPED[:-8], 4, "truncated gzip"),
        (ZIPPED[:-1], 4, "truncated gzip"),
        (ZIPPED[:15], 0, "truncated gzip"),
        (ZIPPED[:-5] + b"\0" + ZIPPED[-4:], 4, "damaged gzip"),
        (ZIPPED[:-1] + b"\7", 4, "damaged gzip"),
        (ZIPPED + b"x", 4, "something else after"),
        (ZIPPED + b"\x1f\x8b" + bytes([7] * 20), 4, "damaged gzip"),
    ],
)
def test_damage_is_told_after_the_records_before_it(
    data: bytes, good: int, reason: str, tmp_path: Path
):
    records, error = read(tmp_path / "f", data)
    assert records == RECORDS[:good]
    assert error is not None and reason in error.reason and "\n" not in str(error)
    assert str(tmp_path / "f") in str(error)
    assert error.record == (good if good or "header" in reason or "gzip" in reason else None)


def test_only_the_data_may_go_unchecked(tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(PLAIN[:60] + bytes([PLAIN[60] ^ 1]) + PLAIN[61:])
    assert len(list(read_records(path, check_crc=False))) == 4
    path.write_bytes(bytes([PLAIN[0] ^ 1]) + PLAIN[1:])
    with pytest.raises(RecordError):
        list(read_records(path, check_crc=False))


def test_a_record_that_is_too_long_is_not_inflated(tmp_path: Path):
    length = struct.pack("<Q", 2000)
    data = framed(b"ok") + length + masked_crc(length) + bytes(2004)
    (tmp_path / "f").write_bytes(zipped(data))
    with pytest.raises(RecordError, match="2000 bytes, more than the 1999"):
        list(read_records(tmp_path / "f", max_bytes=1999))


def test_no_file(tmp_path: Path):
    with pytest.raises(InputError, match="found none"):
        next(read_records(tmp_path / "none"))
    with pytest.raises(InputError, match="found a folder"):
        next(read_records(tmp_path))


NUMBERS = np.array([0, 1, -1, 127, 128, 2**63 - 1, -(2**63), 300])
FEATURES = {
    "bytes": [b"", b"one", bytes(300)],
    "floats": np.array([1.5, -2, np.inf, 0], np.float32),
    "numbers": NUMBERS,
    "none": [],
    "small/\u00e4": np.array([7]),
}


def same(found: dict, expected: dict) -> bool:
    return found.keys() == expected.keys() and all(
        isinstance(found[key], list) and found[key] == value
        if isinstance(value, list)
        else found[key].dtype == value.dtype and np.array_equal(found[key], value, equal_nan=True)
        for key, value in expected.items()
    )


def test_examples():
    assert same(parse_example(example(FEATURES)), FEATURES)
    assert parse_example(b"") == {}
    many = {f"f{k}": [bytes([k])] * k for k in range(100)}  # more than the first guess
    assert same(parse_example(example(many)), many)


def test_numbers_that_are_not_packed():
    for key in ("floats", "numbers"):
        record = field(1, entry(key, feature(FEATURES[key], packed=False)))
        assert same(parse_example(record), {key: FEATURES[key]})
    mixed = field(3, b"\x08" + varint(-3) + field(1, varint(4) + varint(500)) + b"\x08\x05")
    assert same(parse_example(field(1, entry("x", mixed))), {"x": np.array([-3, 4, 500, 5])})


def test_repeated_parts_are_merged():
    one, two = (feature(np.array([k])) for k in (1, 2))
    twice = field(1, entry("x", one) + entry("y", one) + entry("x", two))
    assert same(parse_example(twice), {"x": np.array([2]), "y": np.array([1])})
    assert same(
        parse_example(field(1, entry("x", one)) + field(1, entry("y", two))),
        {"x": np.array([1]), "y": np.array([2])},
    )
    assert same(parse_example(field(1, entry("x", one + two))), {"x": np.array([1, 2])})
    other_kind = feature([b"z"]) + one
    assert same(parse_example(field(1, entry("x", other_kind))), {"x": np.array([1])})
    value_first = field(1, field(1, field(2, two) + field(1, b"x")))
    assert same(parse_example(value_first), {"x": np.array([2])})


def test_unknown_fields_are_skipped():
    unknown = field(9, b"abc") + b"\x50\x96\x01" + b"\x5d1234" + b"\x6112345678"
    inner = unknown + entry("x", unknown + feature(np.array([4])) + unknown)
    assert same(parse_example(unknown + field(1, inner)), {"x": np.array([4])})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"\x0a", "longer"),
        (b"\x0a\x05abc", "longer"),
        (b"\x0a" + varint(2**63), "longer"),
        (b"\x0a" + varint(2**64 - 1) + b"abc", "longer"),
        (b"\xff" * 20, "10 bytes"),
        (b"\x0b\x0c", "wire type"),
        (b"\x02\x00", "proper number"),
        (b"\x0d123", "longer"),
        (field(1, field(1, b"\x0a\x09x")), "longer"),
        (field(1, entry("x", field(2, field(1, b"12345")))), "5 bytes"),
        (field(1, entry("x", field(3, field(1, b"\x80")))), "longer"),
        (field(1, entry("x", field(3, field(1, b"\x80" * 10 + b"\1")))), "10 bytes"),
        (field(1, field(1, field(1, b"\xff") + field(2, feature([b"y"])))), "UTF-8"),
        (bytes(7), "proper number"),
    ],
)
def test_hostile_bytes_are_refused(record: bytes, reason: str):
    with pytest.raises(RecordError, match=reason):
        parse_example(record)


def random_example(rng: np.random.Generator) -> dict:
    kinds = [
        lambda n: [rng.bytes(int(rng.integers(200))) for _ in range(n)],
        lambda n: rng.normal(size=n).astype(np.float32),
        lambda n: rng.integers(-(2**63), 2**63, n) >> rng.integers(0, 64, n),
    ]
    return {f"k{k}": kinds[rng.integers(3)](int(rng.integers(1, 9))) for k in range(6)}


def as_tensorflow_reads(record: bytes) -> dict:
    tf = pytest.importorskip("tensorflow")
    found = {}
    for key, value in tf.train.Example.FromString(record).features.feature.items():
        kind = value.WhichOneof("kind")
        values = list(getattr(value, kind).value) if kind else []
        dtypes = {"float_list": np.float32, "int64_list": np.int64}
        found[key] = np.array(values, dtypes[kind]) if kind in dtypes else values
    return found


@pytest.mark.reference
@pytest.mark.skipif(not SAMPLES.exists(), reason="needs the sample files")
def test_every_sample_as_tensorflow_reads_it():
    tf = pytest.importorskip("tensorflow")
    paths = [path for path in SAMPLES.rglob("*-of-*") if path.is_file()]
    assert len(paths) == 9
    for path in paths:
        compression = "GZIP" if path.read_bytes()[:2] == b"\x1f\x8b" else ""
        theirs = [r.numpy() for r in tf.data.TFRecordDataset(str(path), compression)]
        ours = list(read_records(path))
        assert ours == theirs and ours
        for record in ours:
            assert same(parse_example(record), as_tensorflow_reads(record))


@pytest.mark.reference
def test_examples_as_tensorflow_reads_them(tmp_path: Path):
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(1000):
        record = example(random_example(rng))
        assert same(parse_example(record), as_tensorflow_reads(record))
        record = mutate(rng, record)
        with contextlib.suppress(RecordError):
            ours = parse_example(record)
            expected = as_tensorflow_reads(record)  # without entries that have unknown fields
            assert same({key: ours.get(key) for key in expected}, expected)
            accepted += 1
    assert accepted > 100
    with tf.io.TFRecordWriter(str(tmp_path / "f"), "GZIP") as writer:
        for record in RECORDS:
            writer.write(record)
    assert list(read_records(tmp_path / "f")) == RECORDS


@pytest.mark.skipif(not SAMPLES.exists(), reason="needs the sample files")
@pytest.mark.parametrize(
    ("name", "count"), [("Asterix/run_1-00000-of-00100", 111), ("Pong/run_2-00017-of-00100", 170)]
)
def test_files_of_tensorflow(name: str, count: int):
    records = list(read_records(SAMPLES / "rlu_atari" / name))
    assert len(records) == count
    for record in records:
        found = parse_example(record)
        assert len(found["o_t"]) == len(found["o_tp1"]) == 4
        assert found["a_t"].dtype == np.int64 and found["d_t"].dtype == np.float32
        assert len(found) == 8


def test_no_damage_does_worse_than_an_error(tmp_path: Path):
    """Damaged files and records raise a RecordError or nothing, soon, in little memory.

    TIANSHOU_EXT_FUZZ=100000 runs more cases. They took 360 s on one core of a machine with other
    work, 0.29 s the longest (the machine's load), 3 MB more than before; 84,923 were refused.
    """
    rng = np.random.default_rng(1)
    examples = [example(random_example(rng)) for _ in range(3)]
    plain = b"".join(map(framed, examples))
    files = [plain, zipped(plain), zipped(plain[:500]) + zipped(plain[500:])]
    path = tmp_path / "f"
    longest, refused = 0.0, 0
    for data in files:  # loads the compiled code
        assert len(read(path, data)[0]) == 3
    parse_example(examples[0])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(CASES):
        start = time.perf_counter()
        if case % 2:
            records, error = read(path, mutate(rng, files[case // 2 % 3]))
            refused += error is not None
        else:
            records = [mutate(rng, examples[case // 2 % 3])]
            if case % 4:  # a length that is a lie with the right checksum
                length = struct.pack("<Q", int(rng.integers(2**63)) >> int(rng.integers(63)))
                data = framed(b"x") + length + masked_crc(length) + examples[0]
                read(path, data if case % 8 > 4 else zipped(data, 1))
        for record in records:
            try:
                parse_example(record)
            except RecordError:
                refused += 1
        longest = max(longest, time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    print(f"{CASES} cases, {refused} refused, longest {longest:.2f} s, {grown:.0f} MB more")
    assert refused > CASES / 3 and longest < 5 and grown < 100
