"""Functions that numba compiles, and how they read and write eight bytes at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba.extending import intrinsic

__all__ = ["compiled", "load_word", "store_word"]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile with numba; keep the result on disk where that is possible.

    What is kept does not notice changes of functions in other files that it calls: whoever edits
    one deletes the ``*.nbi`` and ``*.nbc`` in ``__pycache__``.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no folder that can be written
        return numba.njit(nogil=True)(function)


def _load(_: Any, octets: Any, at: Any) -> Any:
    """Return eight bytes of a uint8 array, little endian, as int64; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(_word_at(context, builder, signature, args), align=1)

    return numba.int64(octets, numba.int64), generate


def _store(_: Any, octets: Any, at: Any, word: Any) -> Any:
    """Write an int64 as eight bytes, little endian; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = _word_at(context, builder, signature, args)
        builder.store(args[2], place, align=1)
        return context.get_dummy_value()

    return numba.void(octets, numba.int64, numba.int64), generate


def _word_at(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    place = builder.gep(array.data, [args[1]])
    return builder.bitcast(place, ir.IntType(64).as_pointer())


load_word: Any = intrinsic(_load)
store_word: Any = intrinsic(_store)
