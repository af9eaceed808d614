"""Small grey PNGs: right pixels, and no damage that goes unnoticed."""

from __future__ import annotations

import io
import os
import resource
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from make_rlu import chunk, mutate, png

from tianshou_ext.data.convert.png import PngError, decode_grey, decode_greys, decode_plain
from tianshou_ext.data.convert.tfrecord import parse_example, read_records

SAMPLES = Path(__file__).parents[3].parent / "shared/data/formats"
RNG = np.random.default_rng(0)
CASES = int(os.environ.get("TIANSHOU_EXT_FUZZ", "2000"))
SMOOTH = (np.add.outer(np.arange(84) ** 2, np.arange(84) * 3) % 256).astype(np.uint8)
NOISE = RNG.integers(0, 256, (84, 84), np.uint8)
MAGIC = b"\x89PNG\r\n\x1a\n"


def decoded(data: bytes, height: int = 84, width: int = 84) -> np.ndarray:
    out = np.empty((height, width), np.uint8)
    decode_grey(data, out)
    return out


@pytest.mark.parametrize("filters", [0, 1, 2, 3, 4, np.arange(84) % 5, np.arange(84)[::-1] % 5])
@pytest.mark.parametrize("frame", [NOISE, SMOOTH, NOISE // 255 * 255], ids=["noise", "smooth", "2"])
def test_all_filters(frame: np.ndarray, filters):
    assert np.array_equal(decoded(png(frame, filters=filters)), frame)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 84), (100, 3)])
def test_all_sizes(shape: tuple[int, int]):
    frame = RNG.integers(0, 256, shape, np.uint8)
    for filters in range(5):
        assert np.array_equal(decoded(png(frame, filters=filters), *shape), frame)


def test_many_at_once_into_a_view():
    frames = RNG.integers(0, 256, (10, 84, 84), np.uint8)
    out = np.zeros((10, 2, 84, 84), np.uint8)
    decode_greys([png(frame, filters=4) for frame in frames], out[:, 1])
    assert np.array_equal(out[:, 1], frames) and not out[:, 0].any()


def test_as_another_decoder():
    cv2 = pytest.importorskip("cv2")
    image = pytest.importorskip("PIL.Image")
    walk = np.cumsum(RNG.integers(-3, 4, (50, 84, 84)), 2).astype(np.uint8)
    for frame in (*walk, SMOOTH, NOISE):
        file = io.BytesIO()
        image.fromarray(frame).save(file, "PNG")
        assert np.array_equal(decoded(file.getvalue()), frame)
        data = cv2.imencode(".png", frame)[1].tobytes()
        assert np.array_equal(decoded(data), frame)


@pytest.mark.skipif(not SAMPLES.exists(), reason="needs the sample files")
def test_pngs_of_tensorflow():
    cv2 = pytest.importorskip("cv2")
    for record in read_records(SAMPLES / "rlu_atari/Asterix/run_1-00000-of-00100"):
        for data in parse_example(record)["o_t"]:
            theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(decoded(data), theirs)


def test_parts_that_may_be_ignored():
    data = png(SMOOTH)
    head, tail = data[:33], data[33:]
    assert np.array_equal(decoded(head + chunk(b"tEXt", b"hello") + tail + b"after"), SMOOTH)
    contents = zlib.decompress(tail[8:-16])
    zipped = zlib.compress(contents, 0)
    parts = [chunk(b"IDAT", zipped[k : k + 100]) for k in range(0, len(zipped), 100)]
    many = head + b"".join([*parts, chunk(b"IDAT", b""), chunk(b"IEND", b"")])
    assert np.array_equal(decoded(many), SMOOTH)


def with_contents(contents: bytes) -> bytes:
    return png(SMOOTH)[:33] + chunk(b"IDAT", contents) + chunk(b"IEND", b"")


ROWS = bytes(84 * 85)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no PNG"),
        (b"\xff\xd8\xff\xe0 JPEG", "no PNG"),
        (MAGIC, "cut off"),
        (png(SMOOTH)[:-1], "cut off"),
        (png(SMOOTH)[:-12], "cut off"),
        (png(SMOOTH)[:500], "cut off"),
        (png(SMOOTH, colour=2), "RGB where grey is expected"),
        (png(SMOOTH, colour=3), "palette where grey is expected"),
        (png(SMOOTH, colour=4), "grey with alpha where grey is expected"),
        (png(SMOOTH, colour=6), "RGBA where grey is expected"),
        (png(SMOOTH, colour=9), "unknown colours"),
        (png(SMOOTH, depth=16), "16 bits where 8 are expected"),
        (png(SMOOTH, depth=1), "1 bits"),
        (png(SMOOTH, interlace=1), "interlaced"),
        (png(SMOOTH[:, :83]), "84x83 where 84x84"),
        (png(SMOOTH, filters=5), "row filter"),
        (MAGIC + png(SMOOTH)[33:], "one header"),
        (png(SMOOTH)[:33] + png(SMOOTH)[8:], "one header"),
        (MAGIC + chunk(b"IHDR", b"abc") + png(SMOOTH)[33:], "header of another length"),
        (png(SMOOTH)[:33] + chunk(b"PLTE", b"abc") + png(SMOOTH)[33:], "the part 'PLTE'"),
        (png(SMOOTH)[:60] + b"\0\0" + png(SMOOTH)[62:], "wrong checksum"),
        (png(SMOOTH)[:29] + bytes(4) + png(SMOOTH)[33:], "wrong checksum"),
        (with_contents(b""), "not 7140 bytes"),
        (with_contents(b"abc"), "damaged contents"),
        (with_contents(zlib.compress(ROWS)[:-1]), "not 7140 bytes"),
        (with_contents(zlib.compress(ROWS)[:-4] + b"abcd"), "damaged contents"),
        (with_contents(zlib.compress(ROWS[:-1])), "not 7140 bytes"),
        (with_contents(zlib.compress(ROWS + b"\0")), "not 7140 bytes"),
    ],
)
def test_other_and_damaged_pngs_are_refused(data: bytes, reason: str):
    with pytest.raises(PngError, match=reason) as caught:
        decoded(data)
    assert "\n" not in str(caught.value)


def test_a_bomb_is_not_inflated():
    bomb = with_contents(zlib.compress(bytes(1 << 28), 9))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PngError, match="not 7140 bytes"):
        decoded(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    huge = MAGIC + chunk(b"IHDR", b"\x7f\xff\xff\xff" * 2 + b"\x08\0\0\0\0") + png(SMOOTH)[33:]
    with pytest.raises(PngError, match="2147483647x2147483647 where 84x84"):
        decoded(huge)


def plainly(images: list[bytes], out: np.ndarray) -> bool:
    """Decode images that stand in one array, with something around them."""
    places = np.cumsum([3, *(len(data) for data in images)])
    octets = np.frombuffer(b"abc" + b"".join(images) + b"defghijk", np.uint8)
    return decode_plain(octets, np.stack([places[:-1], places[1:]], 1), out)


@pytest.mark.parametrize("level", [1, 6, 9, "fixed codes", "codes only", "runs only"])
@pytest.mark.parametrize("shape", [(84, 84), (1, 300), (200, 201), (7, 1)])
def test_compiled_code_decodes_the_same_pixels(shape: tuple[int, int], level: int | str):
    strategies = {
        "fixed codes": zlib.Z_FIXED,
        "codes only": zlib.Z_HUFFMAN_ONLY,
        "runs only": zlib.Z_RLE,
    }
    rng = np.random.default_rng(3)
    walk = np.cumsum(rng.integers(-1, 2, (5, *shape)), 2).astype(np.uint8)
    skewed = rng.geometric(0.4, (2, *shape)).astype(np.uint8)  # codes of up to 15 bits
    frames = np.concatenate([walk, skewed, np.zeros((1, *shape), np.uint8)])
    images = []
    mixed = np.arange(shape[0]) // 3 % 5
    for frame, filters in zip(frames, [0, 1, 2, 3, 4, mixed, 0, 4], strict=True):
        data = png(frame, filters=filters)
        rows = zlib.decompress(data[41:-16])
        packer = zlib.compressobj(
            level if isinstance(level, int) else 6,
            strategy=strategies.get(level, zlib.Z_DEFAULT_STRATEGY),
        )
        images.append(data[:33] + chunk(b"IDAT", packer.compress(rows) + packer.flush()))
        images[-1] += chunk(b"IEND", b"")
    out = np.empty_like(frames)
    assert plainly(images, out)
    assert np.array_equal(out, frames)


def deflated(bits: str) -> bytes:
    """Return a PNG of 84x84 zeros, but for the contents: a deflate stream, first bit first."""
    bits += "0" * (-len(bits) % 8)
    packed = bytes(int(bits[k : k + 8][::-1], 2) for k in range(0, len(bits), 8))
    return with_contents(b"\x78\x9c" + packed + zlib.adler32(ROWS).to_bytes(4, "big"))


def number(value: int, bits: int) -> str:
    return f"{value:0{bits}b}"[::-1]


def zeros_by(lengths: dict[int, int], distances: list[int], body: str) -> bytes:
    """Return a PNG whose one block has these lengths of the codes, each written with 4 bits."""
    order = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15]
    head = "1" + number(2, 2) + number(29, 5) + number(len(distances) - 1, 5) + number(15, 4)
    head += "".join(number(0 if code > 15 else 4, 3) for code in order)
    values = [lengths.get(symbol, 0) for symbol in range(286)] + distances
    return deflated(head + "".join(f"{value:04b}" for value in values) + body)


SOME = {0: 1, 256: 2, 285: 2}  # zero: 0, end: 10, copy 258: 11
BODY = "0" + "110" * 27 + "0" * (84 * 85 - 1 - 27 * 258) + "10"
ZERO, COPIES = "00110000", "1100010100000" * 27  # by the fixed codes; 286 and 287 stand for nothing
FIXED = "110" + ZERO + "{}" + COPIES + ZERO * (84 * 85 - 1 - 27 * 258) + "0" * 7


@pytest.mark.parametrize(
    ("data", "sound"),
    [
        (zeros_by(SOME, [1], BODY), True),
        (zeros_by(SOME, [1, 1], BODY), True),
        (zeros_by(SOME, [1], BODY.replace("110", "111", 1)), False),  # no such distance
        (zeros_by(SOME, [0, 0, 1], BODY), False),  # before the start
        (zeros_by(SOME, [2], BODY), False),  # fewer codes than there should be
        (zeros_by(SOME, [1, 1, 1], BODY), False),  # more
        (zeros_by({0: 1, 285: 1}, [1], BODY), False),  # no end
        (zeros_by(SOME | {9: 2}, [1], BODY), False),
        (zeros_by(SOME, [1] + [0] * 30, BODY), False),  # more distances than there are
        (zeros_by(SOME, [1], BODY[:-3]), False),
        (zeros_by(SOME, [1], "0" + BODY), False),
        (zeros_by(SOME, [1], BODY[:-2]), False),
        (deflated(FIXED.format("")), True),
        (deflated(FIXED.format("11000110")), False),
        (deflated(FIXED.format("11000111")), False),
    ],
)
def test_compiled_code_takes_the_codes_that_zlib_takes(data: bytes, sound: bool):
    out = np.empty((1, 84, 84), np.uint8)
    assert plainly([data], out) == sound
    if sound:
        assert not out.any() and not decoded(data).any()
    else:
        with pytest.raises(PngError):
            decoded(data)


def damaged(rng: np.random.Generator, case: int, image: bytes, level: int = 1) -> bytes:
    """Return an image with a mutation: anywhere, in its deflated contents, or in its rows."""
    contents = image[41:-16]
    match case % 3:
        case 0:
            return mutate(rng, image)
        case 1:  # with right checksums of the parts
            return with_contents(mutate(rng, contents))
        case _:
            return with_contents(zlib.compress(mutate(rng, zlib.decompress(contents)), level))


def test_compiled_code_takes_no_damage():
    """What it takes is what zlib makes of it; nothing is written outside, nothing hangs.

    TIANSHOU_EXT_FUZZ=100000 runs more cases.
    """
    rng = np.random.default_rng(4)
    frames = [SMOOTH, NOISE // 128, (NOISE // 250) * SMOOTH]
    whole = [png(frame, filters=k) for frame in frames for k in (0, 4)]
    around = np.full((3, 84, 84), 7, np.uint8)
    taken = 0
    for case in range(CASES):
        which = case // 3 % len(whole)
        data = damaged(rng, case, whole[which], level=1 + case % 9)
        if plainly([data], around[1:2]):
            taken += 1
            assert np.array_equal(around[1], decoded(data))
        assert (around[0] == 7).all() and (around[2] == 7).all()
    assert CASES / 100 < taken < CASES / 2


def test_no_damage_does_worse_than_an_error():
    """Damaged PNGs raise a PngError or nothing, soon, in little memory.

    TIANSHOU_EXT_FUZZ=100000 runs more cases. They took 101 s on one core of a machine with other
    work, 0.11 s the longest (the machine's load), 0 MB more than before; 88,574 were refused.
    """
    rng = np.random.default_rng(2)
    whole = [png(SMOOTH, filters=np.arange(84) % 5), png(NOISE), png(NOISE // 128, filters=4)]
    out = np.empty((84, 84), np.uint8)
    decode_grey(whole[0], out)  # loads the compiled code
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    longest, refused = 0.0, 0
    for case in range(CASES):
        which = case // 3 % 3
        data = damaged(rng, case, whole[which])
        start = time.perf_counter()
        try:
            decode_grey(data, out)
        except PngError:
            refused += 1
        longest = max(longest, time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    print(f"{CASES} cases, {refused} refused, longest {longest:.2f} s, {grown:.0f} MB more")
    assert refused > CASES / 3 and longest < 5 and grown < 100
