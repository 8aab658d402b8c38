"""``python -m charrnn_fast`` is the command ``charrnn-fast``."""

from __future__ import annotations

import signal
import sys

TYPE_CHECKING = False  # of typing, which takes a while to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command as a process of its own, or says in one line why it cannot be loaded.

    While it is loaded, and after it is done, Ctrl-C ends the process by the system's default: an
    exception in the middle of an import would print a traceback.
    """
    handler = _exchange(signal.default_int_handler, signal.SIG_DFL)
    from .storage import streams

    streams.settle()
    try:
        from . import cli
    except ImportError as error:  # such as an unknown instruction set in CHARRNN_ISA
        with streams.standard():
            message = " ".join(str(error).split())
            print(f"charrnn-fast: error: {message}", file=sys.stderr)
        return 2
    try:
        _exchange(signal.SIG_DFL, handler)
        return cli.main(argv)
    except KeyboardInterrupt:  # a second one
        return _INTERRUPTED
    finally:
        _exchange(signal.default_int_handler, signal.SIG_DFL)


def _exchange(usual: Any, handler: Any) -> Any:
    """Replaces the default handler of SIGINT, and no other; returns the old one."""
    before = signal.getsignal(signal.SIGINT)
    if before is usual:
        signal.signal(signal.SIGINT, handler)
    return before


if __name__ == "__main__":
    sys.exit(main())
