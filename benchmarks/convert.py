"""Speed and memory of the converters, on made-up logs in the real formats.

Every conversion runs in a process of its own; what counts is rows per second and CPU time a row,
start to end (the first look, decoding, writing, waiting for the disk; not imports and compilation),
and the peak of resident memory. What is compared takes turns, and the best of ``--rounds`` stands
for each. Where TensorFlow can be imported, ``rlu`` also times the way of
Tianshou's published script: eager TensorFlow, record by record, then gzip level 4.

    python benchmarks/convert.py rlu --games MsPacman Asterix Breakout Pong --rows 8000
    python benchmarks/convert.py d4rl dqn-replay --rows 1000000
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import tyro

from tianshou_ext.cli import launch
from tianshou_ext.data.convert.checksums import crc32c, masked

# A hypervisor may have taken memory back that no file has used for seconds; the first touch of it
# then costs ten times what it does else. So a file is written and removed before the time counts.
WARM = """
import os
def warm_memory(path, megabytes):
    with open(path, "wb") as file:
        for _ in range(megabytes):
            file.write(bytes(1 << 20))
        os.fsync(file.fileno())
    os.remove(path)
"""
WORKER = f"""{WARM}
import json, sys, time
from tianshou_ext.cli import COMMANDS, _load
name, warm, src, dst, options = sys.argv[1:]
convert = _load(COMMANDS["convert"][name])
convert(warm, dst + ".warm", progress=False)  # loads compiled code
os.remove(dst + ".warm")
warm_memory(dst + ".warm", 1200)
cpu, start = time.process_time(), time.perf_counter()
report = convert(src, dst, progress=False, **json.loads(options))
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
with open("/proc/self/status") as file:  # ru_maxrss would count the parent's memory too
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1e3
print(json.dumps(dict(rows=report.rows, seconds=seconds, cpu=cpu, mb=peak)))
"""
# The way of examples/offline/convert_rl_unplugged_atari.py: each record parsed and decoded by
# eager calls, all rows kept in memory, then written with gzip level 4.
TENSORFLOW = """
import json, sys, time
import h5py, numpy as np, tensorflow as tf
from tianshou.data import Batch
src, dst = sys.argv[1:]
scalar = lambda kind: tf.io.FixedLenFeature([], kind)
images = tf.io.FixedLenFeature([4], tf.string)
spec = {"o_t": images, "o_tp1": images, "a_t": scalar(tf.int64), "a_tp1": scalar(tf.int64),
        "r_t": scalar(tf.float32), "d_t": scalar(tf.float32), "episode_id": scalar(tf.int64),
        "episode_return": scalar(tf.float32)}
def decode(pngs):
    return tf.squeeze(tf.stack([tf.image.decode_png(pngs[k], channels=1) for k in range(4)]))
cpu, start = time.process_time(), time.perf_counter()
columns = {key: [] for key in ("observations", "actions", "rewards", "terminals",
                               "next_observations")}
for record in tf.data.TFRecordDataset(src, compression_type="GZIP"):
    data = tf.io.parse_single_example(record, spec)
    obs, obs_next = decode(data["o_t"]), decode(data["o_tp1"])
    row = Batch(obs=obs.numpy(), act=tf.cast(data["a_t"], tf.int32).numpy(),
                rew=data["r_t"].numpy(), done=1 - data["d_t"].numpy(), obs_next=obs_next.numpy())
    for values, value in zip(columns.values(), (row.obs, row.act, row.rew, row.done, row.obs_next)):
        values.append(value)
with h5py.File(dst, "w") as file:
    for key, values in columns.items():
        file.create_dataset(key, data=np.stack(values), compression="gzip", compression_opts=4)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
with open("/proc/self/status") as file:  # ru_maxrss would count the parent's memory too
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1e3
print(json.dumps({"rows": len(values), "seconds": seconds, "cpu": cpu, "mb": peak}))
"""

# Reading the frames in blocks, and writing them to a file as our writer does: synced at the end.
GUNZIP = f"""{WARM}
import gzip, json, sys, time
src, dst, rows = sys.argv[1:]
warm_memory(src + ".warm", 1200)
cpu, start = time.process_time(), time.perf_counter()
with gzip.open(src) as file, open(dst, "wb") as out:
    while block := file.read(1 << 23):
        out.write(block)
    if dst != "/dev/null":
        out.flush()
        os.fsync(out.fileno())
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
print(json.dumps(dict(rows=int(rows), seconds=seconds, cpu=cpu, mb=0)))
"""


@dataclass
class Args:
    """Measure the converters."""

    measure: tyro.conf.Positional[tuple[Literal["rlu", "d4rl", "dqn-replay"], ...]] = ("rlu",)
    """What to measure."""
    rows: int = 5_000
    """Rows of a made-up log."""
    games: tuple[str, ...] = ("MsPacman",)
    """Atari games whose frames (of random play) fill it."""
    jobs: tuple[int, ...] = (1, 2)
    """Numbers of processes to try."""
    rounds: int = 5
    """Times that each is run."""
    folder: Path = Path("/tmp")
    """Where the files go, and are removed from; 35 kB a row."""


def run(worker: str, *args: object) -> dict[str, float]:
    """Run a worker in a new process and return what it measured."""
    command = [sys.executable, "-c", worker, *map(str, args)]
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(command, capture_output=True, text=True, env=quiet)
    if result.returncode:
        raise RuntimeError(f"expected figures from a worker, got\n{result.stderr}")
    return dict(json.loads(result.stdout.splitlines()[-1]))


def compare(contestants: dict[str, tuple[object, ...]], rounds: int) -> None:
    """Run workers in turns; print the best of each, and how often the first one's time that is."""
    times: dict[str, list[dict[str, float]]] = {label: [] for label in contestants}
    for _ in range(rounds):
        for label, (worker, *args) in contestants.items():
            times[label].append(run(str(worker), *args))
    first = None
    for label, runs in times.items():
        rows, peak = runs[0]["rows"], max(one["mb"] for one in runs)
        clock, cpu = (sorted(one[key] / rows * 1e6 for one in runs) for key in ("seconds", "cpu"))
        first = first or (clock[0], cpu[0])
        print(
            f"{label:24} {1e6 / clock[0]:8,.0f} rows/s (least {1e6 / clock[-1]:,.0f});"
            f" {cpu[0]:6,.1f} us of CPU time a row (most {cpu[-1]:,.1f}); {peak:,.0f} MB peak;"
            f" x {clock[0] / first[0]:.2f} by the clock, x {cpu[0] / first[1]:.2f} of CPU time",
            flush=True,
        )


def rlu(args: Args, folder: Path) -> None:
    """Measure a shard of RL Unplugged's Atari transitions, from PNGs to a buffer."""
    for game in args.games:
        shard = folder / "run_1-00000-of-00100"
        examples = list(transitions(game, args.rows))
        write_shard(shard, [examples[k] for k in np.random.default_rng(0).permutation(args.rows)])
        size = sum(len(image) for example in examples for image in example["o_t"])
        print(f"{game}: {args.rows} records, {size / 4 / args.rows:.0f} bytes a PNG")
        convert = (WORKER, "rlu-atari", shard, shard, folder / "b")
        contestants: dict[str, tuple[object, ...]] = {
            f"ours, {jobs} job(s)": (*convert, json.dumps({"jobs": jobs})) for jobs in args.jobs
        }
        contestants["ours, 1 job, gzip"] = (*convert, json.dumps({"compression": "gzip"}))
        compare(contestants, args.rounds)
        if importlib.util.find_spec("tensorflow"):
            script = (TENSORFLOW, shard, folder / "b")
            compare(
                {"ours, 1 job": (*convert, "{}"), "eager TensorFlow, gzip 4": script},
                min(args.rounds, 3),
            )
        else:
            print("eager TensorFlow: not installed")


def transitions(game: str, count: int) -> Iterator[dict[str, list[bytes | int | float]]]:
    """Play at random and yield records as RL Unplugged's, in order."""
    from PIL import Image

    from tianshou_ext.envs.atari import AtariEnv

    def png(frame: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG")
        return file.getvalue()

    env = AtariEnv(f"ALE/{game}-v5", seed=0)
    env.action_space.seed(0)
    episode, obs = 0, env.reset()[0]
    images = [png(frame) for frame in obs]
    for _ in range(count):
        action = int(env.action_space.sample())
        obs, reward, terminated, truncated, _ = env.step(action)
        images_next = [*images[1:], png(obs[-1])]
        yield {
            "o_t": list(images),
            "o_tp1": list(images_next),
            "a_t": [action],
            "a_tp1": [0],
            "r_t": [float(reward)],
            "d_t": [float(not terminated)],
            "episode_id": [episode],
            "episode_return": [0.0],
        }
        images = images_next
        if terminated or truncated:
            episode, obs = episode + 1, env.reset()[0]
            images = [png(frame) for frame in obs]


def write_shard(path: Path, examples: list[dict[str, list[bytes | int | float]]]) -> None:
    """Write a gzip TFRecord of ``tf.train.Example``, as TensorFlow does."""

    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out, value = out + bytes([value & 127 | 128]), value >> 7
        return out + bytes([value])

    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2]) + varint(len(data)) + data

    def feature(values: list[bytes | int | float]) -> bytes:
        first = values[0]
        if isinstance(first, bytes):
            return field(1, b"".join(field(1, value) for value in values))
        if isinstance(first, float):
            return field(2, field(1, struct.pack(f"<{len(values)}f", *values)))
        return field(3, field(1, b"".join(varint(value) for value in values)))

    with gzip.open(path, "wb", 6) as file:
        for example in examples:
            entries = [field(1, k.encode()) + field(2, feature(v)) for k, v in example.items()]
            record = field(1, b"".join(field(1, entry) for entry in entries))
            length = struct.pack("<Q", len(record))
            crcs = [struct.pack("<I", masked(crc32c(part))) for part in (length, record)]
            file.write(length + crcs[0] + record + crcs[1])


def d4rl(args: Args, folder: Path) -> None:
    """Measure a D4RL file of the size of hopper-medium-v2, without compression: no reading cost."""
    rng = np.random.default_rng(0)
    count = max(args.rows, 100_000)
    for name, rows in (("hopper-medium-v2.hdf5", count), ("hopper-medium-v1.hdf5", 2_000)):
        obs = rng.normal(size=(rows + 1, 11)).astype(np.float32)
        ends = np.arange(1, rows + 1) % 1000 == 0
        with h5py.File(folder / name, "w") as file:
            file["observations"], file["next_observations"] = obs[:-1], obs[1:]
            file["actions"] = rng.uniform(-1, 1, (rows, 3)).astype(np.float32)
            file["rewards"] = rng.normal(size=rows).astype(np.float32)
            file["terminals"], file["timeouts"] = np.zeros(rows, bool), ends
    src, small = folder / "hopper-medium-v2.hdf5", folder / "hopper-medium-v1.hdf5"
    start = time.perf_counter()
    with h5py.File(src) as file:
        for dataset in file.values():
            dataset[()]
    print(f"D4RL: {count:,} rows, reading alone {time.perf_counter() - start:.2f} s")
    convert = (WORKER, "d4rl", small, src, folder / "b")
    contestants = {"ours": (*convert, "{}"), "ours, --qlearning": (*convert, '{"qlearning": true}')}
    compare(contestants, args.rounds)


def dqn_replay(args: Args, folder: Path) -> None:
    """Measure one log of DQN Replay, frames of random play, beside gunzip alone."""
    from tianshou_ext.envs.atari import AtariEnv

    game, count = args.games[0], max(args.rows, 1_000)
    env = AtariEnv(f"ALE/{game}-v5", seed=0)
    env.action_space.seed(0)
    env.reset()
    frames = np.zeros((count, 84, 84), np.uint8)
    terminal = np.zeros(count, np.uint8)
    k = 3  # rows of zeros precede an episode
    while k < count:
        obs, _, terminated, _, _ = env.step(int(env.action_space.sample()))
        frames[k], terminal[k] = obs[-1], terminated
        k += 4 if terminated else 1
        if terminated:
            env.reset()

    def write(logs: Path, rows: int) -> None:
        logs.mkdir(parents=True)
        zeros = np.zeros(rows)
        for name, values in (
            ("$store$_observation", frames[:rows]),
            ("$store$_action", zeros.astype(np.int32)),
            ("$store$_reward", zeros.astype(np.float32)),
            ("$store$_terminal", terminal[:rows]),
            ("add_count", np.array(rows - 1)),
            ("invalid_range", np.zeros(5, int)),
        ):
            with gzip.open(logs / f"{name}_ckpt.0.gz", "wb", 6) as file:
                np.save(file, values)

    write(folder / "large/replay_logs", count)
    write(folder / "small/replay_logs", 200)
    print(f"DQN Replay, {game}: {count:,} rows")
    logs = folder / "large/replay_logs/$store$_observation_ckpt.0.gz"
    convert = (WORKER, "dqn-replay", folder / "small", folder / "large", folder / "b", "{}")
    contestants = {
        "gunzip alone": (GUNZIP, logs, "/dev/null", count),
        "gunzip to a synced file": (GUNZIP, logs, folder / "g", count),
        "ours": convert,
    }
    compare(contestants, args.rounds)


MEASUREMENTS: dict[str, Callable[[Args, Path], None]] = {
    "rlu": rlu,
    "d4rl": d4rl,
    "dqn-replay": dqn_replay,
}


def main(args: Args) -> None:
    """Measure what was asked for, each in a folder of its own."""
    for name in args.measure:
        folder = Path(tempfile.mkdtemp(prefix="convert-", dir=args.folder))
        try:
            MEASUREMENTS[name](args, folder)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    launch(main, Args)
