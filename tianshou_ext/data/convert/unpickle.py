"""Read pickles of numpy arrays without running anything they ask for.

A pickle is a program. ``pickle.Unpickler`` with a list of allowed names still lets that program
allocate what it likes, hash nested tuples for ever, and hand any state to numpy. Here the opcodes
are read with ``pickletools.genops`` and obeyed by a machine of our own: nothing is imported or
called, arrays are views of the file's bytes, and every length is checked against them. Understood
are protocols 0 to 5, written beside numpy 1 or 2: dicts, lists, tuples, strings, bytes, numbers,
None, ``OrderedDict``, numpy arrays and scalars of plain number types.

100,000 mutations of valid pickles (tests/data/convert/test_unpickle.py; Python 3.11, numpy 2.4)
gave no exception but ``InputError``: 93,738 were refused, the others read; the slowest took 0.04 s,
and memory did not grow.
"""

from __future__ import annotations

import mmap
import pickletools
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tianshou_ext.errors import InputError

__all__ = ["load_arrays"]

MAX_DEPTH = 32
_MARK = object()
_KEYS = (str, bytes, int, float, type(None))


class _RefusedError(Exception):
    """Why a pickle is not read; half a sentence."""


class _Type:
    """A number type that is being put together."""

    def __init__(self, code: Any) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str):
            raise _RefusedError("it holds a number type that is none")
        if re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", text) is None:
            raise _RefusedError(
                f"it holds an array of the type {text[:20]!r}, not of plain numbers; save plain "
                "number arrays, and trajectories as a list of dicts"
            )
        self.dtype = np.dtype(text)

    def build(self, state: Any) -> None:
        """Take the byte order from the state of a pickled ``dtype``."""
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if any(field is not None for field in state[2:5]) or order not in ("<", ">", "|", "="):
            raise _RefusedError("it holds an array of records; save one array a column")
        if order == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """An array that gets its content later."""

    def __init__(self) -> None:
        self.value: np.ndarray[Any, Any] | None = None

    def build(self, state: Any) -> None:
        _, shape, kind, fortran, data = state
        self.value = _view(data, kind, shape, "F" if fortran else "C")


def _view(data: Any, kind: Any, shape: Any, order: str) -> np.ndarray[Any, Any]:
    """Return an array over bytes, if they are exactly as many as the shape needs."""
    if isinstance(data, str):  # numpy's bytes in a pickle of Python 2
        data = data.encode("latin1")
    if not (
        isinstance(data, bytes | bytearray) and isinstance(kind, _Type) and isinstance(shape, tuple)
    ):
        raise _RefusedError("it holds an array that is not put together as numpy does")
    if len(shape) > MAX_DEPTH or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise _RefusedError("it holds an array of an impossible shape")
    needed = kind.dtype.itemsize
    for length in shape:
        needed *= length
    if needed != len(data):
        raise _RefusedError(f"it holds an array of {len(data)} bytes that should have {needed}")
    return np.frombuffer(data, kind.dtype).reshape(shape, order="F" if order == "F" else "C")


class _Machine:
    """Obeys opcodes; ``size``, the bytes of the file, bounds what it makes."""

    def __init__(self, size: int) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.spare = size  # bytes that strings may still be encoded to

    def pop_mark(self) -> list[Any]:
        """Take everything above the last mark off the stack."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError("no mark")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def call(self, name: Any, args: Any) -> Any:
        """Return what a known name makes of its arguments."""
        if not isinstance(name, _Name) or not isinstance(args, tuple):
            raise _RefusedError("it calls something that is no name")
        return _KNOWN[name.text](self, *args)

    def encode(self, text: Any, encoding: Any) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise _RefusedError("it encodes text that is no array's content")
        self.spare -= len(text)
        if self.spare < 0:
            raise _RefusedError("it would take more memory than its size explains")
        return text.encode("latin1")

    def put_items(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict) or len(items) % 2:
            raise _RefusedError("it sets items of something that is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, _KEYS):
                raise _RefusedError(f"it holds a dict with a {type(key).__name__} as a key")
            target[key] = value

    def step(self, op: str, arg: Any) -> None:
        """Obey one opcode."""
        stack, memo = self.stack, self.memo
        match op:
            case "PROTO" | "FRAME":
                pass
            case _ if op in _PUSHED:
                stack.append(arg)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[op])
            case "MARK":
                stack.append(_MARK)
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_TUPLE":
                stack.append({"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[op]())
            case "LIST":
                stack.append(self.pop_mark())
            case "TUPLE":
                stack.append(tuple(self.pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(op[-1])
                items = [self.pop() for _ in range(count)]
                stack.append(tuple(reversed(items)))
            case "DICT":
                items = self.pop_mark()
                stack.append({})
                self.put_items(stack[-1], items)
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.put_items(stack[-1], [key, value])
            case "SETITEMS":
                items = self.pop_mark()
                self.put_items(stack[-1], items)
            case "APPEND" | "APPENDS":
                items = [self.pop()] if op == "APPEND" else self.pop_mark()
                if not isinstance(stack[-1], list):
                    raise _RefusedError("it appends to something that is no list")
                stack[-1].extend(items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[arg] = self.top()
            case "MEMOIZE":
                memo[len(memo)] = self.top()
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.pop_mark()
            case "DUP":
                stack.append(self.top())
            case "GLOBAL":
                stack.append(_Name(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                stack.append(_Name(module, name))
            case "REDUCE":
                args, name = self.pop(), self.pop()
                stack.append(self.call(name, args))
            case "BUILD":
                state = self.pop()
                if not isinstance(stack[-1], _Array | _Type) or not isinstance(state, tuple):
                    raise _RefusedError("it sets the state of something that is no array")
                stack[-1].build(state)
            case _:
                raise _RefusedError(f"it uses the opcode {op}, which plain arrays do not need")

    def top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise IndexError("a mark where a value should be")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()


_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


class _Name:
    """A name that a pickle refers to; known ones only."""

    def __init__(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise _RefusedError("it refers to something that is no name")
        self.text = f"{module}.{name}"[:80].replace("numpy._core.", "numpy.core.")
        if self.text in _KNOWN:
            return
        if self.text.startswith("pandas."):
            raise _RefusedError(
                f"it holds a pandas object ({self.text!r}); save the table with to_parquet or "
                "to_csv and convert that"
            )
        raise _RefusedError(
            f"it refers to {self.text!r}, which is not loaded because unpickling can run code; "
            "save a dict of numpy arrays, or use numpy.savez"
        )


def _make_array(machine: _Machine, *args: Any) -> _Array:
    if not isinstance(args[0], _Name) or args[0].text != "numpy.ndarray":
        raise _RefusedError("it holds a subclass of numpy's array")
    return _Array()


def _refuse_call(machine: _Machine, *args: Any) -> None:
    raise _RefusedError("it makes an array in an unusual way; save plain arrays")


def _make_buffered(machine: _Machine, data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = _view(data, kind, shape, order)
    return array


def _make_bytes(machine: _Machine, data: Any = b"", *encoding: Any) -> bytes | bytearray:
    if isinstance(data, str) and encoding:
        return machine.encode(data, *encoding)
    if not isinstance(data, bytes | bytearray) or encoding:
        raise _RefusedError("it makes bytes from something else")
    return data


def _make_dict(machine: _Machine, pairs: Any = ()) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    machine.put_items(made, [item for key, value in pairs for item in (key, value)])
    return made


_KNOWN: dict[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": _make_array,
    "numpy.core.multiarray.scalar": lambda _, kind, data: _view(data, kind, (), "C")[()],
    "numpy.core.numeric._frombuffer": _make_buffered,
    "numpy.dtype": lambda _, code, *flags: _Type(code),
    "numpy.ndarray": _refuse_call,
    "collections.OrderedDict": _make_dict,
    "_codecs.encode": lambda machine, *args: machine.encode(*args),
    "builtins.bytes": _make_bytes,
    "builtins.bytearray": _make_bytes,
    "__builtin__.bytes": _make_bytes,
    "__builtin__.bytearray": _make_bytes,
}
"""What a pickle may refer to; these functions of ours stand in for the named ones."""


class _Plain:
    """Turns the machine's result into plain containers and arrays, within a budget.

    A value that a pickle refers to many times is visited as often, so a short file could ask for
    any amount of work; 4 visits an opcode and 4 times the file's bytes are allowed.
    """

    def __init__(self, opcodes: int, size: int) -> None:
        self.visits = 1000 + 4 * opcodes
        self.bytes = 1000 + 4 * size

    def __call__(self, value: Any, depth: int = 0) -> Any:
        self.visits -= 1
        if isinstance(value, _Array):
            if value.value is None:
                raise _RefusedError("it holds an array without content")
            value = value.value
        self.bytes -= value.nbytes if isinstance(value, np.ndarray) else 0
        if self.visits < 0 or self.bytes < 0 or depth > MAX_DEPTH:
            raise _RefusedError("its containers refer to each other over and over")
        if isinstance(value, dict):
            return {key: self(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list):
            return [self(inner, depth + 1) for inner in value]
        if isinstance(value, tuple):
            return tuple([self(inner, depth + 1) for inner in value])
        if isinstance(value, _Name | _Type) or value is _MARK:
            raise _RefusedError("it holds a name or a type in the place of data")
        return value


def load_arrays(path: str | Path) -> Any:
    """Read a pickle of numpy arrays in dicts, lists and tuples.

    :return: the same containers (an ``OrderedDict`` as a dict); arrays may be read-only.
    :raises InputError: if the file is missing, empty, damaged, or holds anything else.
    """
    path = Path(path)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _load(data, len(data))
    except _RefusedError as error:
        raise InputError(f"expected a pickle of numpy arrays in {path}, but {error}") from error
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:
        what = " ".join(str(error).split())[:120]
        raise InputError(
            f"expected a pickle of numpy arrays in {path}, got a file that cannot be read as one "
            f"({what or type(error).__name__}); it is foreign or damaged, make or copy it again"
        ) from error


def _load(data: Any, size: int) -> Any:
    machine, count = _Machine(size), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of odd escapes in a text
        for opcode, arg, _ in pickletools.genops(data):
            count += 1
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, arg)
    if data.tell() != size:
        raise _RefusedError(f"{size - data.tell()} bytes follow its end; save one object a file")
    if len(machine.stack) != 1:
        raise _RefusedError(f"it leaves {len(machine.stack)} objects; save one")
    return _Plain(count, size)(machine.stack[0])
