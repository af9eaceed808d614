"""The command ``tianshou-ext``, and what the example scripts share with it."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar, get_type_hints

from tianshou_ext.errors import InputError

TArgs = TypeVar("TArgs")

_CONVERT = "tianshou_ext.data.convert"
COMMANDS: dict[str, str | dict[str, str]] = {
    "collect": "tianshou_ext.data.behaviour:collect",
    "convert": {
        "arrays": f"{_CONVERT}.arrays:convert",
        "cellworld": f"{_CONVERT}.cellworld:convert",
        "d4rl": f"{_CONVERT}.d4rl:convert",
        "dqn-replay": f"{_CONVERT}.dqn_replay:convert",
        "minari": f"{_CONVERT}.minari:convert",
        "rlu-atari": f"{_CONVERT}.rlu_atari:convert",
        "rlu-atari-episodes": f"{_CONVERT}.rlu_atari_episodes:convert",
        "rlu-control": f"{_CONVERT}.rlu_control:convert",
        "tfds": f"{_CONVERT}.tfds:convert",
        "walker": f"{_CONVERT}.walker:convert",
    },
    "inspect": "tianshou_ext.data.inspect:inspect",
    "merge": "tianshou_ext.data.edit:merge",
    "split": "tianshou_ext.data.edit:split",
    "subsample": "tianshou_ext.data.edit:subsample",
    "relabel": "tianshou_ext.data.relabel:relabel",
    "report": {
        "cellworld": "tianshou_ext.analysis.cellworld:report",
        "runs": "tianshou_ext.evaluation.summary:report",
    },
}
"""Commands and sub-commands, and the functions behind them; one is imported when it is called."""

TIANSHOU_FLAGS: dict[str, str | None] = {
    "epoch_num_steps": "step_per_epoch",
    "num_test_envs": "test_num",
    **dict.fromkeys(("alpha", "auto_alpha", "alpha_lr", "calibrated", "n_step")),
    **dict.fromkeys(("buffer_size", "eval_freq", "exploration_noise", "start_timesteps")),
    **dict.fromkeys(("log_interval", "logger", "render", "resume_id", "wandb_project")),
    "scale_obs": None,
}
"""Flags of Tianshou's offline examples that are none of ours, and what they are here; None has no
use. Where an example of ours has one of these names, that counts."""

SWITCHED = ("True", "False", "None")
"""What tyro takes after a switch that may be left out."""

UNNAMED = {"report": "runs"}
"""The sub-command that is meant where none is named: ``report log`` is ``report runs log``."""


def _stop(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Let a polite kill end a command as Ctrl-C does: no half-written file, no process stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turn bad input into one sentence and exit code 2."""
    try:
        with _cleaning_up():
            yield
    except (InputError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on where it can", file=sys.stderr)
        raise SystemExit(130) from None


def _import_tyro() -> Any:
    try:
        import tyro
    except ImportError:
        print(
            "error: expected the tyro package for the command line, found none; "
            'pip install "tianshou_ext[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    return tyro


def launch(
    main: Callable[[TArgs], Any], args_class: type[TArgs], *, tianshou_flags: bool = False
) -> None:
    """Parse the command line into ``args_class`` and run ``main``; leave with 2 on bad input.

    :param tianshou_flags: take the flags of Tianshou's example of the same name too.
    """
    tyro = _import_tyro()
    argv = sys.argv[1:]
    with one_sentence():
        if tianshou_flags:
            argv = our_flags(argv, {field.name for field in fields(args_class)})  # type: ignore[arg-type]
        argv = with_values(argv, args_class)
        main(tyro.cli(args_class, description=sys.modules["__main__"].__doc__, args=argv))


def with_values(argv: Sequence[str], args_class: type[Any]) -> list[str]:
    """Let switches that a preset may set be given as any other: ``--x`` is yes, ``--no-x`` is no.

    They are ``bool | None``, for which tyro asks a value.
    """
    hints = get_type_hints(args_class)
    switches = {name for name, hint in hints.items() if hint == (bool | None)}
    given: list[str] = []
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        name = word.removeprefix("--").replace("-", "_")
        if word.startswith("--no-") and name.removeprefix("no_") in switches:
            given += [f"--{name.removeprefix('no_')}", "False"]
        elif word.startswith("--") and name in switches and following not in SWITCHED:
            given += [word, "True"]
        else:
            given.append(word)
    return given


def our_flags(argv: Sequence[str], known: Collection[str]) -> list[str]:
    """Rename flags of Tianshou's examples to ours, leave out those without a use, and say which.

    :param known: fields of our arguments.
    """
    ours: list[str] = []
    unused: list[str] = []
    skip = False
    for word in argv:
        flag, _, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if word.startswith("--"):
            foreign = name in TIANSHOU_FLAGS and name not in known
            our_name = TIANSHOU_FLAGS[name] if foreign else None
            skip = foreign and our_name is None
            if skip:
                unused.append(flag)
            if our_name in known:
                word = f"--{our_name}={value}" if value else f"--{our_name}"
        if not skip:
            ours.append(word)
    if unused:
        print(f"without a use here: {', '.join(unused)}")
    return ours


def _load(target: str) -> Callable[..., Any]:
    module, name = target.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``tianshou-ext``; what the command returns is printed.

    Exit code 0, or what the result's ``exit_code`` says, or 2 on bad input.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    tyro = _import_tyro()
    prog, level = "tianshou-ext", COMMANDS
    with one_sentence():
        while args and isinstance(level.get(args[0]), dict):
            group = args.pop(0)
            prog, level = f"{prog} {group}", level[group]  # type: ignore[assignment]
            if args and group in UNNAMED and args[0] not in (*level, "-h", "--help"):
                args.insert(0, UNNAMED[group])
        config = (tyro.conf.OmitArgPrefixes,)
        if args and args[0] in level:
            command = _load(str(level[args[0]]))
            prog = f"{prog} {args.pop(0)}"
            result = tyro.cli(command, prog=prog, args=args, config=config)
        else:  # help, or a word that is no command
            functions = {
                name: _load(target) if isinstance(target, str) else _group(name, target)
                for name, target in level.items()
            }
            result = tyro.extras.subcommand_cli_from_dict(
                functions, prog=prog, args=args, config=config
            )
        if result is not None:
            print(result)
    raise SystemExit(getattr(result, "exit_code", 0))


def _group(name: str, targets: dict[str, str]) -> Callable[[], None]:
    """Return a stand-in for a command with sub-commands, for the list of commands."""

    def group() -> None:
        raise InputError(f"expected one of {', '.join(targets)} after {name}")

    group.__doc__ = f"{name.capitalize()}, one of: {', '.join(targets)}."
    return group
