"""The reader of pickles: what it reads, what it refuses, and that no damage gets past it."""

from __future__ import annotations

import collections
import os
import pickle
import random
import resource
import shutil
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tianshou_ext.data.convert.unpickle import load_arrays
from tianshou_ext.errors import InputError

RNG = np.random.default_rng(0)
CASES = int(os.environ.get("TIANSHOU_EXT_FUZZ", "2000"))


def trajectories() -> list[dict[str, Any]]:
    """As the Decision Transformer's data files hold them."""
    return [
        {
            "observations": RNG.normal(size=(n, 3)).astype(np.float32),
            "actions": RNG.normal(size=(n, 2)),
            "rewards": np.arange(n, dtype=">f8"),
            "terminals": np.arange(n) == n - 1,
        }
        for n in (4, 3)
    ]


def anything() -> dict[str, Any]:
    return {
        "nested": collections.OrderedDict(a=(1, 2.5, None), b=[True, "text", b"bytes"]),
        "columns": np.asfortranarray(RNG.integers(0, 9, (3, 4))),
        "scalar": np.float32(1.5),
        "flag": np.bool_(True),
        "empty": np.zeros((0, 3), np.uint8),
        "one": np.array(7, np.int16),
        "big": 1 << 70,
        3: bytearray(b"xy"),
        "half": np.arange(3, dtype=np.float16)[::-1],
    }


def same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(two) and all(map(same, one, two))
    if isinstance(one, np.ndarray | np.generic):
        return one.dtype == two.dtype and one.shape == two.shape and bool(np.all(one == two))
    return bool(one == two)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("make", [trajectories, anything])
def test_reads_what_pickle_reads(make: Any, protocol: int, tmp_path: Path):
    value = make()
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    assert same(value, load_arrays(tmp_path / "a.pkl"))


@pytest.mark.parametrize(
    "old, new", [(b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")]
)
def test_reads_files_of_both_numpy_lines(old: bytes, new: bytes, tmp_path: Path):
    value = trajectories()
    data = pickle.dumps(value, 2).replace(old, new)  # protocol 2: names end in line feeds
    (tmp_path / "a.pkl").write_bytes(data)
    assert same(value, load_arrays(tmp_path / "a.pkl"))


def test_reads_what_python_2_wrote(tmp_path: Path):
    data = (
        b"\x80\x02}q\x00U\x07rewardsq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\n"
        b"q\x03K\x00\x85q\x04U\x01bq\x05\x87q\x06Rq\x07(K\x01K\x02\x85q\x08cnumpy\ndtype\nq\tU\x02f4"
        b"q\nK\x00K\x01\x87q\x0bRq\x0c(K\x03U\x01<q\rNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq"
        b"\x0eb\x89U\x08\x00\x00\x80?\x00\x00\x00\xc0q\x0ftq\x10bs."
    )
    (tmp_path / "a.pkl").write_bytes(data)
    assert load_arrays(tmp_path / "a.pkl")["rewards"].tolist() == [1.0, -2.0]


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/tianshou_ext_was_here",)


def refused() -> dict[str, Any]:
    pandas = pytest.importorskip("pandas")
    return {
        "posix.system|nt.system": Evil(),
        "pandas": {"table": pandas.DataFrame({"x": [1]})},
        "'O8'": np.array([{"a": 1}], dtype=object),
        "'U3'": np.array(["abc"]),
        "'V12'": np.zeros(2, dtype=[("x", "f4"), ("y", "f8")]),
        "'c16'": np.zeros(2, complex),
        "datetime": {"when": __import__("datetime").date(2020, 1, 1)},
        "a tuple as a key": {(1, 2): 3},
        "EMPTY_SET": {1, 2},
        "numpy.ma": np.ma.masked_array([1, 2], [0, 1]),
    }


def test_refuses_everything_else_in_a_sentence(tmp_path: Path):
    for match, value in refused().items():
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, 4))
        with pytest.raises(InputError, match=match) as error:
            load_arrays(tmp_path / "a.pkl")
        assert "\n" not in str(error.value)
    assert not Path("/tmp/tianshou_ext_was_here").exists()


def laughs(count: int) -> bytes:
    """A tuple of two of a tuple of two of ...: few bytes, 2**count visits."""
    return (
        b"\x80\x04)"
        + b"\x94"
        + b"".join(b"h" + bytes([k]) + b"h" + bytes([k]) + b"\x86\x94" for k in range(count))
        + b"."
    )


BOMBS = {
    "length of bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x00abc.",
    "length of text": b"\x80\x04\x8d\xff\xff\xff\xff\x00\x00\x00\x00abc.",
    "length of a bytearray": b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00abc.",
    "length of a number": b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
    "place in the memo": b"\x80\x02]r\xff\xff\xff\x7f}q\xff.",
    "digits": b"L" + b"9" * 100_000 + b"L\n.",
    "tuples of tuples": laughs(100),
    "tuples of tuples as a key": laughs(100)[:-1] + b"}hcK\x01s.",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "depth": b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".",
    "one array many times": pickle.dumps([np.zeros(100_000, np.uint8)] * 10_000, 4),
    "shape": pickle.dumps(np.zeros(3, np.float32), 2).replace(
        b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"
    ),
    "negative shape": pickle.dumps(np.zeros(3, np.float32), 2).replace(
        b"K\x03\x85", b"J\xff\xff\xff\xff\x85"
    ),
    "empty": b"",
    "no pickle": b"hello world",
    "cut": pickle.dumps(trajectories(), 4)[:-20],
    "two in one": pickle.dumps(1) + pickle.dumps(2),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_short_file_takes_no_memory_and_no_time(kind: str, tmp_path: Path):
    (tmp_path / "a.pkl").write_bytes(BOMBS[kind])
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(InputError) as error:
        load_arrays(tmp_path / "a.pkl")
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert time.perf_counter() - start < 5
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()


def mutate(data: bytes, chance: random.Random, others: list[bytes]) -> bytes:
    """Return ``data`` with one to six bytes, spans or numbers changed."""
    buffer = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        at = chance.randrange(len(buffer) + 1)
        span = chance.randrange(1, 12)
        kind = chance.randrange(7)
        if kind == 0 and at < len(buffer):
            buffer[at] = chance.randrange(256)
        elif kind == 1 and at < len(buffer):
            buffer[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del buffer[at : at + span]
        elif kind == 3:
            buffer[at:at] = chance.randbytes(span)
        elif kind == 4:
            buffer[at : at + 4] = chance.choice((b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0" * 4))
        elif kind == 5:  # a piece of another pickle
            other = chance.choice(others)
            start = chance.randrange(len(other))
            buffer[at:at] = other[start : start + span * 4]
        else:  # an opcode: calls, builds, memo, marks
            buffer[at:at] = bytes([chance.choice(b"Rb(0125h}]al.tsuo\x81\x85\x86\x87\x93\x94c2")])
    return bytes(buffer) or b"."


def test_mutated_pickles_are_read_or_refused_in_a_sentence():
    """100,000 cases: TIANSHOU_EXT_FUZZ=100000."""
    chance = random.Random(0)
    seeds = [pickle.dumps(make(), p) for make in (trajectories, anything) for p in range(6)]
    seeds.append(pickle.dumps(Evil(), 2))
    memory = Path("/dev/shm")  # many files, quickly
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    path, refusals, slowest = folder / "a.pkl", 0, 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(CASES):
        data = mutate(chance.choice(seeds), chance, seeds)
        path.write_bytes(data)
        start = time.perf_counter()
        try:
            load_arrays(path)
        except InputError as error:
            refusals += 1
            assert "\n" not in str(error), (case, data)
        except BaseException as error:
            raise AssertionError((case, data)) from error
        slowest = max(slowest, time.perf_counter() - start)
    shutil.rmtree(folder)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{CASES} cases, {refusals} refused, slowest {slowest:.3f} s, memory +{grown:.0f} MiB")
    assert not Path("/tmp/tianshou_ext_was_here").exists()
    assert CASES / 2 < refusals < CASES  # some mutations only change numbers
    assert grown < 50
    assert slowest < 2
