"""What inspect reports of sound files, and that it finds every kind of fault it looks for."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tianshou.data import Batch, ReplayBuffer, VectorReplayBuffer

from tianshou_ext.data import blocks
from tianshou_ext.data.blocks import BufferFile
from tianshou_ext.data.defects import DEFECTS, known_defects
from tianshou_ext.data.edit import merge, subsample
from tianshou_ext.data.hdf5 import load_buffer
from tianshou_ext.data.inspect import Inspection, inspect
from tianshou_ext.data.writer import BufferWriter, flat_columns
from tianshou_ext.errors import InputError

EPISODES, LENGTH = 12, 25
ROWS = EPISODES * LENGTH


@pytest.fixture(autouse=True, params=[7, 1 << 16])
def block_rows(request: Any, monkeypatch: Any) -> None:
    """Let every test cross the borders of blocks, too."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", request.param)


def walks(seed: int = 0) -> dict[str, Any]:
    """Random walks, half of them terminated, half truncated."""
    rng = np.random.default_rng(seed)
    path = np.cumsum(rng.normal(size=(EPISODES, LENGTH + 1, 3)), 1).astype(np.float32)
    last = np.arange(ROWS) % LENGTH == LENGTH - 1
    even = (np.arange(ROWS) // LENGTH) % 2 == 0
    return {
        "obs": path[:, :-1].reshape(ROWS, 3),
        "obs_next": path[:, 1:].reshape(ROWS, 3),
        "act": rng.uniform(-0.9, 0.9, (ROWS, 2)).astype(np.float32),
        "rew": rng.normal(size=ROWS).astype(np.float32),
        "terminated": last & even,
        "truncated": last & ~even,
    }


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    with BufferWriter(path, len(columns["rew"]), **options) as writer:
        writer.append(**columns)
    return path


def look(path: Path, **options: Any) -> Inspection:
    return inspect(path, progress=False, **options)


def found(inspection: Inspection, severity: str) -> str:
    return " | ".join(str(f) for f in inspection.findings if f.severity == severity)


def test_a_sound_file_has_no_findings_and_the_right_figures(tmp_path: Path):
    columns = walks()
    result = look(write(tmp_path / "b.hdf5", columns, provenance={"ordered": True}))
    assert result.exit_code == 0 and result.findings == []
    figures = result.figures
    returns = columns["rew"].reshape(EPISODES, LENGTH).sum(1)
    assert (figures["rows"], figures["transitions"], figures["episodes"]) == (ROWS, ROWS, EPISODES)
    assert (figures["terminated"], figures["truncated"]) == (EPISODES // 2, EPISODES // 2)
    assert figures["return"]["mean"] == pytest.approx(returns.mean(), rel=1e-5)
    assert figures["return"]["std"] == pytest.approx(returns.std(), rel=1e-5)
    assert figures["return"]["quantiles"]["25"] == pytest.approx(np.quantile(returns, 0.25))
    assert sum(figures["return"]["histogram"]["counts"]) == EPISODES
    assert figures["length"]["min"] == figures["length"]["max"] == LENGTH
    assert figures["reward"]["nonzero"] == 1
    assert np.allclose(figures["action"]["act"]["min"], columns["act"].min(0))
    assert np.allclose(figures["observation"]["obs"]["max"], columns["obs"].max(0))
    assert figures["obs_next"]["compared"] == ROWS - EPISODES and figures["looked_at"] == ROWS
    assert figures["repeats"] == {"pairs": ROWS - EPISODES, "equal": 0, "share": 0}
    text = str(result)
    assert "nothing wrong found" in text and "█" in text and "12 episodes" in text


def changed(key: str, where: Any, value: Any) -> Any:
    def change(columns: dict[str, Any]) -> None:
        columns[key][where] = value

    return change


def jump(columns: dict[str, Any]) -> None:
    """Forget one end of an episode."""
    columns["terminated"][LENGTH - 1] = False
    columns["obs_next"][LENGTH - 1] = columns["obs"][LENGTH] = 500


def two_terminals_a_row(columns: dict[str, Any]) -> None:
    columns["terminated"][::LENGTH] = True


def only_truncated(columns: dict[str, Any]) -> None:
    columns["truncated"] |= columns["terminated"]
    columns["terminated"][:] = False


def looping_ends(columns: dict[str, Any]) -> None:
    cut = columns["truncated"]
    columns["obs_next"][cut] = columns["obs"][cut]


def standing_still(columns: dict[str, Any]) -> None:
    columns["obs"][:200] = columns["obs_next"][:200] = 1


FAULTS = {
    "nan_obs": (changed("obs", 70, np.nan), "error", r"obs is NaN or infinite in 1 rows \(row 70"),
    "nan_obs_next": (changed("obs_next", LENGTH - 1, np.inf), "error", r"obs_next is NaN"),
    "inf_reward": (changed("rew", [3, 4], np.inf), "error", r"2 rewards are .* \(rows 3, 4\)"),
    "nan_action": (changed("act", (9, 1), np.nan), "error", r"act is NaN .* \(row 9\)"),
    "many_differ": (changed("obs_next", slice(0, 20), 0), "error", "obs_next differs .*rows 0, 1"),
    "one_differs": (changed("obs_next", 31, 0), "warning", r"obs_next differs .*\(row 31\)"),
    "both_flags": (
        changed("truncated", LENGTH - 1, True),
        "warning",
        r"both terminated and truncated \(row 24\)",
    ),
    "no_terminal": (only_truncated, "warning", "no row is terminated"),
    "open_end": (changed("truncated", -1, False), "warning", "last episode is unfinished: row 299"),
    "constant_reward": (changed("rew", slice(None), 0), "warning", "every reward is 0"),
    "large_action": (changed("act", (5, 0), 2), "warning", r"leaves \[-1, 1\]"),
    "dead_action": (changed("act", (slice(None), 1), 0), "warning", "1 dimensions of act never"),
    "dead_obs": (changed("obs", slice(None), 0), "error", "obs never changes"),
    "jump": (jump, "warning", r"obs jumps after 2 rows, most after rows 2[45], 2[45]"),
    "repeats": (standing_still, "warning", "of consecutive rows have equal obs"),
    "terminals_in_runs": (two_terminals_a_row, "warning", "a single terminated transition"),
    "looping_ends": (looping_ends, "warning", "6 of 6 truncated rows have their own obs"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str, tmp_path: Path):
    change, severity, message = FAULTS[name]
    columns = walks()
    change(columns)
    result = look(write(tmp_path / "b.hdf5", columns))
    assert re.search(message, found(result, severity)), str(result)
    assert result.exit_code == (severity == "error")
    json.loads(str(look(tmp_path / "b.hdf5", json=True)))


def test_infinite_bounds_of_a_space_are_no_hindrance_to_json(tmp_path: Path):
    space = {"type": "Box", "low": float("-inf"), "high": [1.0, float("inf")]}
    path = write(tmp_path / "b.hdf5", walks(), provenance={"observation_space": space})
    report = json.loads(str(look(path, json=True)), parse_constant=pytest.fail)
    assert report["provenance"]["observation_space"]["high"] == [1.0, "inf"]


@pytest.mark.parametrize(
    "odd",
    [
        {"notes": [{}], "made_from": [3]},
        {"made_from": [{"provenance": 3}]},
        {"made_from": [{"provenance": {"made_from": 3}}]},
    ],
)
def test_an_odd_provenance_is_no_hindrance(odd: dict[str, Any], tmp_path: Path):
    path = write(tmp_path / "b.hdf5", walks(), provenance=odd)
    assert str(look(path)).startswith(str(path))
    merge([path, path], out=tmp_path / "c.hdf5", progress=False)
    assert str(look(tmp_path / "c.hdf5"))


def test_the_columns_of_info_are_listed(tmp_path: Path):
    path = write(tmp_path / "b.hdf5", {**walks(), "info": {"at": {"x": np.zeros((ROWS, 2))}}})
    with h5py.File(path, "a") as file:
        file["_meta/info/gone"] = h5py.SoftLink("/nowhere")
    report = look(path)
    assert report.figures["info"] == {"info/at/x": {"shape": [2], "dtype": "float64"}}
    assert "info        info/at/x (2,) float64, info/gone (no numbers)" in str(report)


def test_infinite_rewards_are_found_without_a_warning_of_numpy(tmp_path: Path, recwarn: Any):
    rewards = np.where(np.arange(ROWS) % 2, np.inf, -np.inf)
    path = write(tmp_path / "b.hdf5", {**walks(), "rew": rewards})
    assert "rewards are NaN or infinite" in found(look(path), "error")
    assert not [str(one.message) for one in recwarn]


def edit(path: Path, key: str, values: Any) -> None:
    with h5py.File(path, "r+") as file:
        file[f"_meta/{key}"][...] = values


def test_rows_that_end_without_being_done_are_an_error(tmp_path: Path):
    path = write(tmp_path / "b.hdf5", walks())
    edit(path, "done", walks()["terminated"])
    result = look(path)
    assert "6 rows end an episode but are not done (rows 49, " in found(result, "error")
    edit(path, "done", True)
    assert "neither terminated nor truncated" in found(look(path), "warning")


def test_empty_and_unsampleable_buffers_are_errors(tmp_path: Path):
    path = tmp_path / "empty.hdf5"
    ReplayBuffer(5).save_hdf5(str(path))
    assert "empty" in found(look(path), "error") and look(path).exit_code == 1
    json.loads(str(look(path, json=True)))
    columns = walks()
    del columns["obs_next"]
    columns["terminated"][:], columns["truncated"][:] = False, True
    path = write(tmp_path / "b.hdf5", columns, save_obs_next=False)
    assert "no row can be sampled" in found(look(path), "error")


def test_shuffled_rows_are_not_chained(tmp_path: Path):
    columns, order = walks(), np.random.default_rng(1).permutation(ROWS)
    columns = {key: values[order] for key, values in columns.items()}
    path = write(tmp_path / "unsaid.hdf5", columns)
    assert "rows are shuffled" in found(look(path), "error")
    path = write(tmp_path / "unmarked.hdf5", columns, provenance={"ordered": False})
    assert "shuffled, but 2" in found(look(path), "error")
    columns["truncated"] = ~columns["terminated"]
    for provenance in ({}, {"ordered": False}):
        result = look(write(tmp_path / "marked.hdf5", columns, provenance=provenance))
        assert result.exit_code == 0 and "shuffled transitions" in found(result, "note")
        assert result.figures["episodes"] is None and result.figures["obs_next"]["compared"] == 0


def test_discrete_actions_are_counted(tmp_path: Path):
    columns = walks()
    columns["act"] = np.arange(ROWS) % 3 * 2
    result = look(write(tmp_path / "b.hdf5", columns))
    assert result.figures["action"]["act"]["counts"] == {"0": 100, "2": 100, "4": 100}
    assert "only 3 actions occur, never 1, 3" in found(result, "note")
    columns["act"] -= 1
    assert "negative actions" in found(look(write(tmp_path / "b.hdf5", columns)), "error")


def frames_file(path: Path, **options: Any) -> Path:
    """Four truncated episodes with their final observation as an extra row."""
    rng, rows = np.random.default_rng(0), 4 * 300
    truncated = np.arange(rows) % 300 == 299
    columns = {
        "obs": rng.integers(0, 256, (rows, 70, 70), dtype=np.uint8),
        "act": rng.integers(0, 4, rows),
        "rew": np.where(truncated, 0, 1),
        "terminated": np.zeros(rows, bool),
        "truncated": truncated,
    }
    return write(path, columns, stack_num=4, save_obs_next=False, **options)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_of_frames_a_part_is_looked_at(compression: Any, tmp_path: Path):
    path = frames_file(tmp_path / "b.hdf5", compression=compression)
    result = look(path, frames=512)
    figures = result.figures
    assert (figures["looked_at"], figures["rows"], figures["transitions"]) == (512, 1200, 1196)
    assert figures["length"]["max"] == figures["return"]["max"] == 299
    assert "512 of 1,200 rows" in str(result) and result.exit_code == 0
    assert look(path, frames=0).figures["looked_at"] == 1200
    with pytest.raises(InputError, match="frames of 0"):
        look(path, frames=-1)


def test_shared_frames_and_nested_observations_are_read(tmp_path: Path):
    columns = walks()
    obs, obs_next = columns.pop("obs"), columns.pop("obs_next")
    nested = [{"x": one, "deep": {"y": one[:, 0]}} for one in (obs, obs_next)]
    path = write(tmp_path / "n.hdf5", {**columns, "obs": nested[0], "obs_next": nested[1]})
    result = look(path)
    assert result.findings == [] and set(result.figures["observation"]) == {
        f"{key}/{leaf}" for key in ("obs", "obs_next") for leaf in ("x", "deep/y")
    }
    frames = np.stack([np.arange(k, ROWS + k) % 251 for k in range(5)], 1).astype(np.uint8)
    columns |= {"frames": frames[..., None, None] * np.ones((4, 4), np.uint8)}
    path = write(tmp_path / "s.hdf5", columns, shared_frames=True)
    result = look(path)
    assert result.exit_code == 0 and result.figures["obs_next"]["compared"] == ROWS - EPISODES
    columns["frames"] = columns["frames"][::-1]
    result = look(write(tmp_path / "s.hdf5", columns, shared_frames=True))
    assert "obs_next differs" in found(result, "error")


def test_a_missed_reset_is_found_though_no_dimension_goes_far(tmp_path: Path):
    """Twelve joints swing; a reset puts all of them at rest at once."""
    rng, steps = np.random.default_rng(0), np.arange(60)
    phases = rng.uniform(0, 2 * np.pi, (20, 1, 12))
    swing = np.sin(0.2 * steps[None, :, None] + phases) + 0.01 * rng.normal(size=(20, 60, 12))
    obs = swing.reshape(-1, 12).astype(np.float32)
    last = np.arange(len(obs)) % 60 == 59
    missed = np.isin(np.arange(len(obs)), [59, 60 * 7 - 1])
    columns = {
        "obs": obs,
        "act": np.zeros((len(obs), 1), np.float32),
        "rew": np.arange(len(obs)),
        "terminated": last & ~missed,
        "truncated": np.zeros(len(obs), bool),
    }
    result = look(write(tmp_path / "b.hdf5", columns, save_obs_next=False))
    assert sorted(result.figures["jumps"]["rows"]) == [59, 419]
    columns["terminated"] = last
    result = look(write(tmp_path / "b.hdf5", columns, save_obs_next=False))
    assert result.figures["jumps"]["count"] == 0


def test_known_defects_are_named(tmp_path: Path):
    for source, severity in (("arrays", "warning"), ("d4rl", "note")):  # d4rl's converter cuts them
        provenance = {"source": source, "dataset": "hopper-medium-v0"}
        result = look(write(tmp_path / "b.hdf5", walks(), provenance=provenance))
        assert "no timeouts are stored" in found(result, severity) and result.exit_code == 0
    parent = {"file": "hopper-medium-v0.hdf5", "provenance": {}}
    path = write(tmp_path / "c.hdf5", walks(), provenance={"made_from": [parent]})
    assert "no timeouts are stored" in found(look(path), "warning")
    assert look(write(tmp_path / "maze2d-umaze-v1.hdf5", walks())).findings[0].severity == "note"


@pytest.mark.parametrize(
    ("converters", "severity"),
    [(("d4rl",), "note"), (("arrays",), "warning"), (("d4rl", "arrays"), "warning")],
)
def test_an_edited_file_is_as_repaired_as_those_it_was_made_from(
    converters: Any, severity: str, tmp_path: Path
):
    paths = [tmp_path / f"{k}.hdf5" for k in range(len(converters))]
    for path, source in zip(paths, converters, strict=True):
        write(path, walks(), provenance={"source": source, "dataset": "hopper-medium-v0"})
    if len(paths) > 1:
        merge(paths, out=tmp_path / "all.hdf5", progress=False)
    last = tmp_path / "all.hdf5" if len(paths) > 1 else paths[0]
    for k in range(2):
        subsample(last, out=tmp_path / f"part{k}.hdf5", episodes=4, progress=False)
        last = tmp_path / f"part{k}.hdf5"
    words = "known, repaired" if severity == "note" else "known"
    assert f"{words}: D4RL gym-mujoco v0" in found(look(last), severity)


def test_a_file_with_a_repaired_one_and_one_without_the_defect_is_repaired(tmp_path: Path):
    paths = [tmp_path / "a.hdf5", tmp_path / "b.hdf5"]
    write(paths[0], walks(), provenance={"source": "d4rl", "dataset": "hopper-medium-v0"})
    write(paths[1], walks(), provenance={"source": "arrays", "dataset": "mine"})
    merge(paths, out=tmp_path / "c.hdf5", progress=False)
    assert "known, repaired: D4RL gym-mujoco v0" in found(look(tmp_path / "c.hdf5"), "note")


def test_defects_are_found_by_name_and_only_there():
    def first_words(name: str) -> set[str]:
        return {" ".join(defect.what.split()[:2]) for defect in known_defects(name)}

    assert first_words("antmaze-large-play-v0") == {"D4RL antmaze", "D4RL antmaze:"}
    assert len(known_defects("antmaze-large-play-v2")) == 1
    assert first_words("D4RL/antmaze/umaze-v0") == {"Minari antmaze-umaze-v0:"}
    assert first_words("hopper_mixed") == {"D4RL replay"}
    assert first_words("rlu-atari Asterix run_1") == {"RL Unplugged"}
    assert first_words("door-human-v1") == {"D4RL adroit"}
    for name in ("hopper-medium-v2", "bullet-ant-medium-v0", "Pong", "door-human-longhorizon-v0"):
        assert not known_defects(name), name
    assert all(defect.advice and not defect.what.endswith(".") for defect in DEFECTS)


def test_a_picture_is_made(tmp_path: Path):
    pytest.importorskip("matplotlib")
    path = write(tmp_path / "b.hdf5", walks())
    look(path, plot=tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    look(frames_file(tmp_path / "f.hdf5"), plot=tmp_path / "f.png", frames=256)
    for name, start in (("new/p.pdf", b"%PDF"), ("p.SVG", b"<?xm")):  # new: the folder is made
        path = path.rename(tmp_path / f"{start[-1]}_$\\x$.hdf5")  # no formula
        look(path, plot=tmp_path / name)
        assert (tmp_path / name).read_bytes()[:4] == start


@pytest.mark.parametrize("name", ["p.bmp", "p", "b.hdf5", "b.hdf5/p.png", "folder.png"])
def test_a_picture_that_cannot_be_written_is_one_sentence(name: str, tmp_path: Path):
    pytest.importorskip("matplotlib")
    path = write(tmp_path / "b.hdf5", walks())
    (tmp_path / "folder.png").mkdir()
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"^expected .*{name}") as error:
        look(path, plot=tmp_path / name)
    assert "\n" not in str(error.value) and str(error.value).count("expected") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.hdf5", "folder.png"]
    assert path.read_bytes() == before and not list((tmp_path / "folder.png").iterdir())


def ring(size: int, steps: int) -> ReplayBuffer:
    buffer = ReplayBuffer(size)
    for k in range(steps):
        buffer.add(step(k))
    return buffer


def step(k: int) -> Batch:
    return Batch(
        obs=np.array([k, 1.0]),
        act=k % 3,
        rew=float(k),
        terminated=k % 5 == 4,
        truncated=False,
        obs_next=np.array([k + 1, 1.0]),
        info={},
    )


@pytest.mark.parametrize("steps", [9, 16, 23, 32, 40])
def test_tianshous_own_rings_are_unrolled(steps: int, tmp_path: Path):
    path = tmp_path / "b.hdf5"
    ring(16, steps).save_hdf5(str(path))
    with BufferFile(path) as source:
        kept = np.arange(max(0, steps - 16), steps)
        assert np.array_equal(source.rew, kept) and source.rows == len(kept)
        assert np.array_equal(source.read(0, source.rows)["obs"][:, 0], kept)
        assert np.array_equal(source.read(2, 7, "act")["act"], kept[2:7] % 3)
        assert source.open_ends.sum() == (steps % 5 != 0)
    assert look(path).exit_code == 0


def test_parts_of_a_vector_buffer_follow_one_another(tmp_path: Path):
    buffer = VectorReplayBuffer(30, 3)
    for k in range(17):  # the second part gets rows from the start, the first overflows
        buffer.add(Batch.stack([step(100 + k), step(k)]), buffer_ids=[0, 2] if k % 2 else [0, 1])
    path = tmp_path / "b.hdf5"
    buffer.save_hdf5(str(path))
    with BufferFile(path) as source:
        first, second, third = np.arange(107, 117), np.arange(0, 17, 2), np.arange(1, 17, 2)
        assert np.array_equal(source.rew, np.concatenate([first, second, third]))
        assert np.nonzero(source.open_ends)[0].tolist() == [9, 18, 26]
        assert np.array_equal(source.read(0, 27)["obs"][:, 0], source.rew)
    assert "unfinished: rows 9, 18, 26" in found(look(path), "warning")


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_blocks_hold_what_load_buffer_reads(compression: Any, tmp_path: Path):
    path = write(tmp_path / "b.hdf5", walks(), compression=compression)
    buffer = load_buffer(path)
    with BufferFile(path) as source:
        parts = [flat_columns(source.read(start, stop)) for start, stop in source.blocks()]
        for key in ("obs", "obs_next", "act"):
            assert np.array_equal(
                np.concatenate([part[key] for part in parts]), getattr(buffer, key)
            )
        assert np.array_equal(source.terminated, buffer.terminated)


def test_little_of_a_large_file_is_in_memory(tmp_path: Path, block_rows: None):
    path = tmp_path / "b.hdf5"
    with BufferWriter(path, 20_000, stack_num=4, save_obs_next=False) as writer:
        for k in range(40):
            rows = np.zeros(500, bool)
            obs = np.full((500, 70, 70), k, np.uint8)
            act = np.zeros(500, np.int64)
            ends = np.arange(500) == 499
            writer.append(obs=obs, act=act, rew=act + 1, terminated=ends, truncated=rows)
    tracemalloc.start()
    result = look(path, frames=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.figures["looked_at"] == 20_000 and path.stat().st_size > 95e6
    assert peak < 80e6


def garbage(path: Path) -> None:
    path.write_bytes(b"no HDF5 at all" * 99)


def zero(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    write(path, walks())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def d4rl(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((3, 2))


def without(key: str) -> Any:
    def make(path: Path) -> None:
        write(path, walks())
        with h5py.File(path, "r+") as file:
            del file[f"_meta/{key}"]

    return make


def unequal(path: Path) -> None:
    without("act")(path)
    with h5py.File(path, "r+") as file:
        file["_meta/act"] = np.zeros(3)
        file["_meta/act"].attrs["__data_type__"] = "ndarray"


def pickled(path: Path) -> None:
    write(path, walks())
    with h5py.File(path, "r+") as file:
        file["_meta/obs"].attrs["__data_type__"] = "pickled_ndarray"


def overfull(path: Path) -> None:
    write(path, walks())
    with h5py.File(path, "r+") as file:
        file.attrs["_size"] = 10_000


def broken_link(path: Path) -> None:
    write(path, walks())
    with h5py.File(path, "a") as file:
        del file["_meta/obs"]
        file["_meta/obs"] = h5py.SoftLink("/nowhere")


def half_a_flag(path: Path) -> None:
    write(path, walks())
    with h5py.File(path, "a") as file:
        del file["_meta/terminated"]
        file["_meta/terminated"] = np.full(ROWS, 0.5)
        file["_meta/terminated"].attrs["__data_type__"] = "ndarray"


def bad_json(path: Path) -> None:
    write(path, walks())
    with h5py.File(path, "r+") as file:
        file.attrs["tianshou_ext"] = "{"


@pytest.mark.parametrize(
    "make",
    [
        garbage, zero, half, d4rl, without("rew"), without("obs"), without("done"), unequal,
        pickled, overfull, bad_json, broken_link, half_a_flag,
        Path.mkdir, lambda path: None,
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_one_sentence(make: Any, tmp_path: Path):
    path = tmp_path / "b.hdf5"
    make(path)
    with pytest.raises(InputError, match=r"^expected .*b\.hdf5.*;") as error:
        look(path)
    assert "\n" not in str(error.value)
