"""The command ``charrnn-fast``: `main`, and a module for each command."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .. import _devices
from .._checks import calling, telling
from ..runtime import build_info, get_cmake_dir, get_num_threads, set_num_threads
from ..storage import streams
from ..training.distributed import EndedError, LostError
from . import bench, evaluate, export, info, plot, sample, score, serve, train, tune, view
from .parsing import FAILED, INTERRUPTED, USER_ERROR, Commands, Parser
from .show import complain, warn

_PATH_ERRORS = {
    errno.EISDIR: "this is a folder, not a file; name a file in it",
    errno.ENOTDIR: "a part of this path is a file, not a folder",
}
_BROKEN_PIPE = 141  # exit status, as a shell reports SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    0: done; 1: the training diverged, or the demonstration missed its bound; 2: wrong arguments or
    files, or standard output cannot be written, with a one-line error; 130: interrupted; 141: the
    reader of standard output has gone.
    """
    with streams.standard() as output:
        try:
            status: int = _ended(_status(argv, output), output)
            return status
        except SystemExit as stop:  # argparse leaves this way
            stop.code = _ended(stop.code, output)
            raise


def _ended(status: Any, output: streams.Output) -> Any:
    """The exit status of a command; it differs from the command's own if its output failed."""
    failure = output.close()
    if failure is None:
        return status
    if isinstance(failure, BrokenPipeError):
        return status or _BROKEN_PIPE
    told = complain(f"standard output: {failure.strerror or failure}", USER_ERROR)
    return status or told


def _status(argv: Sequence[str] | None, output: streams.Output) -> int:
    """Runs the command and prints its error, unless it is one of standard output."""
    try:
        get_num_threads()  # raises for a CHARRNN_NUM_THREADS that is not a number
        parser = _parser()
        parser.check(sys.argv[1:] if argv is None else argv)
        arguments, more = parser.parse_known_args(argv)
        if more:
            arguments.parser.refuse(more)
        if arguments.threads is not None:
            set_num_threads(arguments.threads)
        run: Callable[..., int] = arguments.run
        with calling(arguments.parser.flags()), telling(warn):
            return run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except EndedError:  # which another process tells
        return FAILED
    except LostError as error:
        return complain(str(error), FAILED)
    except FloatingPointError as error:
        return complain(str(error), FAILED)
    except OSError as error:
        if error is output.failure:
            return 0  # `_ended` prints it
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return complain(f"{name}{_in_words(error)}", USER_ERROR)
    except ImportError as error:  # of an extra, which it names
        if _was_interrupted(error):
            return INTERRUPTED
        return complain(str(error), USER_ERROR)
    except _devices.UnavailableError as error:
        return complain(str(error), USER_ERROR)
    except MemoryError as error:
        message = str(error) or "out of memory; try a smaller model or batch size"
        return complain(message, USER_ERROR)
    except (ValueError, OverflowError) as error:
        return complain(str(error), USER_ERROR)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C interrupted an import: a compiled module turns it into an ImportError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _in_words(error: OSError) -> str:
    """An error's message; it adds what to do where the system's message about a path does not."""
    words = str(error.strerror or error)
    if error.errno is None or words != os.strerror(error.errno):
        return words
    return _PATH_ERRORS.get(error.errno, words)


class _ShowCMakeDir(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(get_cmake_dir())
        parser.exit()


def _parser() -> Parser:
    parser = Parser(
        prog="charrnn-fast",
        description="Character-level language models with recurrent networks, fast on a CPU.",
    )
    version = f"charrnn-fast {build_info()['version']}"
    parser.add_argument("--version", action="version", version=version)
    about = "show the folder of the CMake package for C++ and exit"
    parser.add_argument("--cmakedir", action=_ShowCMakeDir, nargs=0, help=about)
    commands = Commands(parser)
    for command in (train, tune, sample, evaluate, score, serve, info, view, export, plot, bench):
        command.add(commands)
    return parser
