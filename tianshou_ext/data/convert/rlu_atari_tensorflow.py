"""Read RL Unplugged's Atari shards with TensorFlow: slowly, to compare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.data.convert.png import PngError
from tianshou_ext.data.convert.rlu_atari_plain import SIDE
from tianshou_ext.data.convert.tfrecord import RecordError
from tianshou_ext.errors import InputError

__all__ = ["parse", "read", "rows_of"]


def _tensorflow() -> Any:
    try:
        import tensorflow
    except ImportError as error:
        raise InputError(
            "expected the package tensorflow for its reader, found none; "
            'pip install "tianshou_ext[rlu]", or leave out --reader'
        ) from error
    return tensorflow


def read(path: Path) -> Iterator[tuple[bytes, np.ndarray[Any, Any]]]:
    tf = _tensorflow()
    records = tf.data.TFRecordDataset(str(path), compression_type="GZIP")
    try:
        for record in records.as_numpy_iterator():
            yield record, np.array([[0, len(record)]])
    except tf.errors.OpError as error:
        raise RecordError(" ".join(str(error).split()), str(path)) from error


def parse(record: bytes) -> dict[str, Any]:
    tf = _tensorflow()
    try:
        example = tf.train.Example.FromString(record)
    except Exception as error:
        raise RecordError("bytes that are no tf.train.Example") from error
    dtypes = {"float_list": np.float32, "int64_list": np.int64}
    features = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else []
        features[name] = np.array(values, dtypes[kind]) if kind in dtypes else list(values)
    return features


def rows_of(image: bytes) -> bytes:
    tf = _tensorflow()
    try:
        pixels = tf.io.decode_png(image).numpy()  # (H, W, C)
    except tf.errors.OpError as error:
        raise PngError(" ".join(str(error).split())) from error
    if pixels.shape != (SIDE, SIDE, 1) or pixels.dtype != np.uint8:
        raise PngError(f"a PNG of shape {pixels.shape}")
    return np.pad(pixels[..., 0], ((0, 0), (1, 0))).tobytes()  # row filter 0: none
