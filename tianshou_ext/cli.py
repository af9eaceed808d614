"""What the commands share: arguments from a dataclass, and one sentence for bad input."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from tianshou_ext.errors import InputError

TArgs = TypeVar("TArgs")


def launch(main: Callable[[TArgs], Any], args_class: type[TArgs]) -> None:
    """Parse the command line into ``args_class`` and run ``main``; leave with 2 on bad input."""
    try:
        import tyro
    except ImportError:
        print(
            "error: expected the tyro package for the command line, found none; "
            'pip install "tianshou_ext[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    try:
        main(tyro.cli(args_class, description=sys.modules["__main__"].__doc__))
    except (InputError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None
