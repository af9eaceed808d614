"""TensorFlow Datasets' RLDS folders, without TensorFlow.

``<name>/<config>/<version>/`` holds ``features.json``, ``dataset_info.json`` and TFRecord shards,
one tf.train.Example an episode, its steps flattened to ``steps/<path>``. Sources: TensorFlow
Datasets' ``core/example_serializer.py``, ``core/features``, ``core/proto`` and RLDS's README.
"""

from __future__ import annotations

import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from tianshou_ext.data.convert.common import Fault, Options, Report
from tianshou_ext.data.convert.png import decode_grey
from tianshou_ext.data.convert.records import Example, convert_records, feature
from tianshou_ext.data.convert.rlu_control import concatenated, nested
from tianshou_ext.errors import InputError

__all__ = ["convert"]

Array = np.ndarray[Any, Any]
Shape = tuple[int | None, ...]

DTYPES = {
    **{name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "int8", "int16", "int32")},
    **{name: np.dtype(name) for name in ("int64", "float16", "float32", "float64", "bool")},
}
ENCODINGS = ("none", "bytes", "zlib")
MOST_DIMENSIONS, LARGEST_VALUE = 16, 1 << 31  # dimensions and numbers of one value of a step
LONGEST_STEP = 1 << 24  # bytes that one value of unknown shape may inflate to


def convert(
    src: str | Path,
    dst: str | Path,
    /,
    *,
    split: str = "train",
    flatten: bool = True,
    **options: Unpack[Options],
) -> Report:
    """Convert an RLDS dataset as TensorFlow Datasets stores it.

    Grey images (H, W, 1) or (H, W), if they are the whole observation, become one frame a row
    (``stack_num`` 4); everything else is stored with ``obs_next``.

    :param src: the version's folder, with features.json and the shards; or one above it, if that
        leads to one version only.
    :param dst: the HDF5 file to make.
    :param split: which split.
    :param flatten: an observation or action of several parts becomes one float32 vector, in
        alphabetical order, images left out; otherwise a nested Batch.
    :param options: those of every converter.
    :raises InputError: if the source is missing, damaged or of another format.
    """
    folder = _version(Path(src))
    steps = _steps(folder)
    info = _json(folder / "dataset_info.json")
    files, faults = _shards(folder, split, info)
    obs, obs_out = _leaves(steps, "observation", flatten)
    act, act_out = _leaves(steps, "action", flatten)
    rewards, _ = _leaves(steps, "reward", flatten)
    if len(rewards) > 1:
        names = ", ".join(leaf.path for leaf in rewards)
        raise InputError(f"expected one reward a step in {folder}/features.json, got {names}")
    reader = _Episodes(obs, act, rewards[0], flatten)
    left_out = [*obs_out, *act_out]
    notes = []
    if left_out:
        notes.append(f"left out: {', '.join(left_out)}; see --no-flatten for images")
    return convert_records(
        files,
        dst,
        reader,
        source="tfds",
        options=options,
        stack_num=4 if reader.one_frame else 1,
        faults=faults,
        notes=notes,
        provenance={
            "dataset": str(info.get("name", folder.parent.name)),
            "config": str(info.get("configName", "")),
            "dataset_version": str(info.get("version", folder.name)),
            "split": split,
            # In the order of concatenation.
            "obs": [[leaf.path, leaf.dtype, leaf.shape] for leaf in obs],
            "act": [[leaf.path, leaf.dtype, leaf.shape] for leaf in act],
            "flatten": flatten,
            "ordered": True,
        },
    )


@dataclass(frozen=True)
class _Leaf:
    """One value of a step, as features.json declares it."""

    path: str
    kind: str
    """tensor, image, or anything else, which is not read."""
    shape: Shape = ()
    dtype: str = ""
    encoding: str = "none"

    def read(self, example: Example, count: int) -> Array:
        """Return its values (T, ...) of T steps."""
        name = f"steps/{self.path}"
        if self.kind == "image":
            return self._stacked(map(self._image, self._values(example, name, count)))
        dtype = DTYPES[self.dtype]
        if self.encoding == "none":
            kind = "float" if dtype.kind == "f" else "int"
            values = feature(example, name, kind)  # type: ignore[arg-type]
            size = count * math.prod(n for n in self.shape if n is not None)
            unknown = len(values) // size if None in self.shape and size else 1
            if len(values) != size * unknown:
                raise InputError(
                    f"{len(values)} numbers in {name}, expected {count} steps of {self.shape}"
                )
            shape = [count, *(unknown if n is None else n for n in self.shape)]
            return np.asarray(values).reshape(shape).astype(dtype)
        return self._stacked(self._decoded(v, dtype) for v in self._values(example, name, count))

    def _stacked(self, values: Iterable[Array]) -> Array:
        rows = list(values)
        if len({row.shape for row in rows}) != 1:
            raise InputError(f"values of unequal shape in {self.path}")
        return np.stack(rows)

    def _values(self, example: Example, name: str, count: int) -> list[bytes]:
        values: list[bytes] = feature(example, name, "bytes")
        if len(values) != count:
            raise InputError(f"{len(values)} values in {name}, expected {count}")
        return values

    def _decoded(self, data: bytes, dtype: np.dtype[Any]) -> Array:
        known = dtype.itemsize * math.prod(n for n in self.shape if n is not None)
        if self.encoding == "zlib":
            inflate = zlib.decompressobj()
            most = LONGEST_STEP if None in self.shape else known + 1
            try:
                data = inflate.decompress(data, most)
            except zlib.error as error:
                raise InputError(f"a value of {self.path} cannot be inflated ({error})") from error
            if not inflate.eof and len(data) < most:
                raise InputError(f"a value of {self.path} is cut off")
        unknown = len(data) // known if None in self.shape and known else 1
        if len(data) != known * unknown:
            raise InputError(
                f"{len(data)} bytes in a value of {self.path}, expected {self.dtype} {self.shape}"
            )
        shape = [unknown if n is None else n for n in self.shape]
        return np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)

    def _image(self, data: bytes) -> Array:
        height, width, channels = self.shape
        if channels == 1 and height and width and data.startswith(b"\x89PNG"):
            image = np.empty((height, width), np.uint8)
            decode_grey(data, image)
            return image[..., None]
        return _pillow(data, self.shape, self.path)


def _pillow(data: bytes, shape: Shape, path: str) -> Array:
    """Decode an image of any format to (H, W, C) uint8, if it is of that shape."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"expected the package Pillow for the images {path}, found none; "
            'pip install "tianshou_ext[cli]"'
        ) from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            channels = len(image.getbands()) if image.mode in ("L", "RGB", "RGBA") else 0
            found = (image.height, image.width, channels)
            if any(n is not None and n != m for n, m in zip(shape, found, strict=True)):
                raise InputError(
                    f"an image of {path} is {found} in the mode {image.mode}, expected {shape}"
                )
            return np.asarray(image, dtype=np.uint8).reshape(found)
    except InputError:
        raise
    except Exception as error:  # of damaged images, decoders raise many kinds
        raise InputError(
            f"an image of {path} cannot be decoded ({' '.join(str(error).split())})"
        ) from error


@dataclass(frozen=True)
class _Episodes:
    """Reads one episode: T steps, of which the last brings only the observation."""

    obs: tuple[_Leaf, ...]
    act: tuple[_Leaf, ...]
    rew: _Leaf
    flatten: bool

    @property
    def one_frame(self) -> bool:
        """Whether the observation is one grey uint8 image, which is then stored once a row."""
        leaf, *others = self.obs
        grey = len(leaf.shape) == 2 or (len(leaf.shape) == 3 and leaf.shape[2] == 1)
        alone = not others and (self.flatten or "/" not in leaf.path)
        return alone and leaf.dtype == "uint8" and grey

    def _flags(self, example: Example) -> tuple[int, bool]:
        """Return the number of steps and whether the last one is terminal."""
        is_last = feature(example, "steps/is_last", "int")
        is_terminal = feature(example, "steps/is_terminal", "int")
        count = len(is_last)
        if len(is_terminal) != count:
            raise InputError(f"{count} steps of is_last, but {len(is_terminal)} of is_terminal")
        if count < 2:
            raise InputError(f"an episode of {count} steps has no transition")
        if not is_last[-1] or is_last[:-1].any():
            raise InputError("expected is_last at the last step of an episode and only there")
        if "steps/is_first" in example:
            is_first = feature(example, "steps/is_first", "int")
            if len(is_first) != count or is_first[1:].any():
                raise InputError("expected is_first at the first step of an episode and only there")
        # rlu_rwrl sets is_terminal one step early, at the step whose action ended the episode.
        if is_terminal[:-2].any():
            raise InputError("is_terminal is set, but the episode goes on")
        return count, bool(is_terminal[-2:].any())

    def rows(self, example: Example) -> int:
        count, terminal = self._flags(example)
        return count if self.one_frame and not terminal else count - 1

    def columns(self, example: Example) -> dict[str, Any]:
        count, terminal = self._flags(example)
        rows = self.rows(example)
        obs = self._joined(self.obs, example, count)
        act = self._joined(self.act, example, count)
        rew = self.rew.read(example, count).astype(np.float32)
        if rew.size != count:
            raise InputError(f"rewards of the shape {rew.shape}, expected one a step")
        rew = rew.reshape(count)
        last = np.arange(rows) == rows - 1
        if rows == count:  # the extra row: the values of the last step are dummies
            act, rew = _map(act, _zero_last), _zero_last(rew)
        columns = {
            "obs": _map(obs, lambda values: values[:rows]),
            "act": _map(act, lambda values: values[:rows]),
            "rew": rew[:rows],
            "terminated": last & terminal,
            "truncated": last & (not terminal),
        }
        if self.one_frame:
            columns["obs"] = columns["obs"].reshape(rows, *obs.shape[1:3])  # (T, H, W)
        else:
            columns["obs_next"] = _map(obs, lambda values: values[1:])
        return columns

    def _joined(self, leaves: tuple[_Leaf, ...], example: Example, count: int) -> Any:
        parts = {leaf.path: _usual(leaf.read(example, count)) for leaf in leaves}
        if len(parts) == 1 and (self.flatten or "/" not in leaves[0].path):
            values = parts[leaves[0].path]
            is_act = leaves[0].path.split("/")[0] == "action"
            return values.astype(np.int64) if is_act and values.dtype.kind in "iub" else values
        # The first word is "observation" or "action".
        parts = {path.split("/", 1)[1]: values for path, values in parts.items()}
        return concatenated(parts) if self.flatten else nested(parts)


def _usual(values: Array) -> Array:
    """Return any float as float32."""
    return values.astype(np.float32) if values.dtype.kind == "f" else values


def _zero_last(values: Array) -> Array:
    values = values.copy()
    values[-1] = 0
    return values


def _map(values: Any, function: Any) -> Any:
    if isinstance(values, Mapping):
        return {key: _map(inner, function) for key, inner in values.items()}
    return function(values)


def _version(src: Path) -> Path:
    """Return the folder with features.json, at ``src`` or the only one below."""
    if not src.is_dir():
        found = "a file" if src.is_file() else "none"
        raise InputError(f"expected the folder of a TFDS dataset at {src}, found {found}")
    for pattern in ("features.json", "*/features.json", "*/*/features.json"):
        folders = sorted(path.parent for path in src.glob(pattern))
        if len(folders) == 1:
            return folders[0]
        if folders:
            names = ", ".join(str(folder.relative_to(src)) for folder in folders[:6])
            raise InputError(f"expected one dataset version in {src}, found {names}; give one")
    raise InputError(
        f"expected features.json in {src}, found none; give the version's folder, such as 1.0.0"
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise InputError(
            f"expected {path.name} in {path.parent}, found none; fetch the whole folder"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"expected JSON in {path}, got something else ({' '.join(str(error).split())}); "
            "fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object in {path}, got a {type(value).__name__}")
    return value


def _shards(
    folder: Path, split: str, info: Mapping[str, Any]
) -> tuple[dict[Path, int | None], list[Fault]]:
    """Return the split's files with their numbers of episodes, and what is missing."""
    if (kind := info.get("fileFormat", "tfrecord")) != "tfrecord":
        raise InputError(f"expected shards in tfrecord in {folder}, got {kind}; prepare it anew")
    listed = info.get("splits")
    listed = listed if isinstance(listed, list) else []
    splits = {str(item.get("name")): item for item in listed if isinstance(item, dict)}
    if split not in splits:
        raise InputError(f"expected one of the splits {sorted(splits)} in {folder}, got {split!r}")
    try:
        lengths = [int(n) for n in splits[split].get("shardLengths", [])]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"expected whole numbers as shardLengths in {folder}/dataset_info.json, got others"
        ) from error
    pattern = re.compile(rf".*-{re.escape(split)}\.tfrecord-(\d{{5,}})-of-(\d{{5,}})")
    found = sorted(
        (int(match[1]), int(match[2]), path)
        for path in folder.iterdir()
        if (match := pattern.fullmatch(path.name))
    )
    numbers = [number for number, _, _ in found]
    totals = {total for _, total, _ in found}
    if (
        len(set(numbers)) != len(found)
        or len(totals) > 1
        or max(numbers, default=0) >= max(totals, default=1)
    ):
        names = ", ".join(path.name for _, _, path in found[:6])
        raise InputError(f"expected the shards of one dataset in {folder}, got {names}")
    if not found:
        raise InputError(
            f"expected shards named *-{split}.tfrecord-00000-of-0000n in {folder}, found none"
        )
    total, faults = found[0][1], []
    if lengths and len(lengths) != total:
        reason = f"expected {len(lengths)} shards of {split} by dataset_info.json, got {total}"
        faults.append(Fault(str(folder), "", reason))
        lengths = []
    missing = [number for number in range(total) if number not in numbers]
    if missing:
        reason = (
            f"{len(missing)} of {total} shards of {split} are missing, the first is {missing[0]}"
        )
        faults.append(Fault(str(folder), "", reason))
    known = {path: lengths[number] if number < len(lengths) else None for number, _, path in found}
    return known, faults


def _steps(folder: Path) -> dict[str, Any]:
    """Return the declared features of a step by name."""
    path = folder / "features.json"
    declared = _json(path)
    try:
        kind, content = _declared(declared)
        kind, content = _declared(content["steps"]) if kind == "dict" else (kind, content)
        kind, content = _declared(content["feature"]) if kind == "sequence" else (kind, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"expected the features of an RLDS dataset in {path}, got no steps there; "
            "is it another kind of dataset?"
        ) from error
    required = ("observation", "action", "reward", "is_last", "is_terminal")
    absent = [key for key in required if kind != "dict" or key not in content]
    if absent:
        names = sorted(content) if kind == "dict" else kind
        raise InputError(f"expected steps with {', '.join(absent)} in {path}, got {names}")
    return dict(content)


def _declared(node: Mapping[str, Any]) -> tuple[str, Any]:
    """Return a declared feature's kind and content, of a file of any age.

    Kinds: dict, sequence, tensor, image; others are named as in the file.
    """
    if "type" in node:  # before TFDS 4.6
        name, content = str(node["type"]), node["content"]
        content = json.loads(content) if isinstance(content, str) else content
    else:
        name = str(node["pythonClassName"])
        keys = [key for key in node if key not in ("pythonClassName", "description")]
        content = node[keys[0]] if keys else {}
        if keys == ["jsonFeature"]:
            content = json.loads(content["json"])
    name = name.rsplit(".", 1)[-1]
    if name == "FeaturesDict":
        features = content.get("features", content)
        if not isinstance(features, Mapping):
            raise TypeError(f"features that are a {type(features).__name__}")
        return "dict", features
    kinds = {"Dataset": "sequence", "Sequence": "sequence", "Image": "image"}
    return kinds.get(name, "tensor" if "dtype" in content and name != "Video" else name), content


def _leaves(
    steps: Mapping[str, Any], name: str, flatten: bool
) -> tuple[tuple[_Leaf, ...], list[str]]:
    """Return the leaves to read below ``name``, in alphabetical order, and the others' paths."""
    leaves: list[_Leaf] = []
    others: list[str] = []
    try:
        for leaf in _walk(steps[name], name):
            readable = leaf.kind == "tensor" or (leaf.kind == "image" and leaf.dtype == "uint8")
            # Images may have more unknown dimensions than one, tensors then bring their shape.
            readable &= (
                len(leaf.shape) == 3 if leaf.kind == "image" else leaf.shape.count(None) <= 1
            )
            if readable and leaf.dtype in DTYPES and leaf.encoding in ENCODINGS:
                leaves.append(leaf)
            else:
                others.append(leaf.path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"expected the shape and number type of every part of {name} in features.json, "
            f"got {' '.join(str(error).split())}"
        ) from error
    leaves.sort(key=lambda leaf: leaf.path)
    if flatten and len(leaves) > 1:
        others += [leaf.path for leaf in leaves if _is_image(leaf)]
        leaves = [leaf for leaf in leaves if not _is_image(leaf)]
    if not leaves:
        raise InputError(f"expected numbers in {name}, got only {others}; try --no-flatten")
    return tuple(leaves), others


def _walk(node: Mapping[str, Any], path: str) -> list[_Leaf]:
    kind, content = _declared(node)
    if kind == "dict":
        return [leaf for key in content for leaf in _walk(content[key], f"{path}/{key}")]
    if kind not in ("tensor", "image"):
        return [_Leaf(path, kind)]
    shape = content.get("shape", [])
    sizes = shape.get("dimensions", []) if isinstance(shape, Mapping) else shape
    dimensions = tuple(None if n is None or int(n) < 0 else int(n) for n in sizes)
    if len(dimensions) > MOST_DIMENSIONS or math.prod(n for n in dimensions if n) > LARGEST_VALUE:
        raise ValueError(f"an impossible shape for {path}")
    return [
        _Leaf(
            path,
            kind,
            dimensions,
            str(content.get("dtype", "uint8")),
            str(content.get("encoding", "none") or "none").lower(),
        )
    ]


def _is_image(leaf: _Leaf) -> bool:
    return leaf.kind == "image" or (leaf.dtype == "uint8" and len(leaf.shape) > 1)
