"""What the commands' arguments are made of: argparse with one-line errors, numbers in bounds."""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Sequence
from typing import IO, NoReturn, TypeVar

from .._checks import LARGEST, integer, real
from ..text_files import UTF8, check_encoding

_T = TypeVar("_T")

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.?)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "\\": "\\"}

# What the command returns besides 0.
FAILED = 1  # the training diverged, or the demonstration missed its bound
USER_ERROR = 2  # the arguments or the files were wrong
INTERRUPTED = 130  # as a shell reports SIGINT


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"charrnn-fast: error: {message} (see {self.prog} --help)\n")

    def flags(self) -> dict[str, str]:
        """The long flag of each setting."""
        return {a.dest: a.option_strings[-1] for a in self._actions if a.option_strings}

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Ends with an error about arguments that are none of this command's."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, 1)
        hint = f", did you mean {near[0]}?" if near else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


class Commands:
    """The commands' parsers; each command's module adds its own."""

    def __init__(self, parser: Parser) -> None:
        self._commands = parser.add_subparsers(required=True, metavar="command")

    def add(self, name: str, run: Callable[[argparse.Namespace], int], about: str) -> Parser:
        """A command: run takes the parsed options and returns the exit status."""
        sub: Parser = self._commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run, parser=sub, threads=None)
        return sub


def standard_input() -> IO[bytes]:
    if sys.stdin is None:  # which a shell does by <&-
        raise ValueError("the standard input is closed")
    return sys.stdin.buffer


def add_texts(parser: Parser) -> None:
    parser.add_argument(
        "text", nargs="+", metavar="TEXT", help="files, folders and patterns such as '**/*.txt'"
    )
    parser.add_argument(
        "--encoding",
        type=encoding_option,
        default=UTF8,
        metavar="NAME",
        help="of the files: a name that Python knows (default: utf-8)",
    )


def add_threads(parser: Parser) -> None:
    parser.add_argument(
        "--threads", type=integer_option(1, 4096), metavar="N", help="default: all cores"
    )


def integer_option(minimum: int, maximum: int = LARGEST) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text)
        return _checked(lambda: integer("", value, minimum, maximum))

    convert.__name__ = "integer"  # argparse: "invalid integer value"
    return convert


def number_option(**bounds: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = float(text)
        return _checked(lambda: real("", value, **bounds))

    convert.__name__ = "number"
    return convert


def numbers_option(**bounds: float) -> Callable[[str], list[float]]:
    """Numbers with commas between them."""
    number = number_option(**bounds)

    def convert(text: str) -> list[float]:
        return [number(part) for part in text.split(",")]

    convert.__name__ = "list of numbers"
    return convert


def bound_option(text: str) -> float:
    """A number above 0, or "inf"."""
    return math.inf if text == "inf" else number_option(above=0)(text)


def zoneout_option(text: str) -> float | list[float]:
    parts = text.strip("[]").split(",")  # as TOML writes them, too
    rates = [number_option(least=0, below=1)(part) for part in parts]
    if len(rates) > 2:
        raise argparse.ArgumentTypeError(f"takes one rate or two, got {text!r}")
    return rates[0] if len(rates) == 1 else rates


zoneout_option.__name__ = "number, or two"


def encoding_option(text: str) -> str:
    return _checked(lambda: check_encoding(text))


def mark_option(text: str) -> str:
    """text with its escapes, as `unescaped` takes it."""
    _checked(lambda: unescaped(text))
    return text


def unescaped(text: str) -> str:
    r"""text with ``\n``, ``\x1e`` and the like replaced by what they stand for."""
    return _ESCAPE.sub(_character, text)


def _character(escape: re.Match[str]) -> str:
    name = escape[1]
    if len(name) > 1:
        return chr(int(name[1:], 16))
    if name not in _ESCAPED:
        raise ValueError(rf"takes the escapes \n \r \t \f \\ \xNN \uNNNN, got {escape[0]}")
    return _ESCAPED[name]


def _checked(check: Callable[[], _T]) -> _T:
    """What a check returns; argparse puts the option's name before its message."""
    try:
        return check()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).strip()) from None
