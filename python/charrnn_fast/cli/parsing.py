"""Parsing arguments: argparse with one-line errors, bounded numbers."""

from __future__ import annotations

import argparse
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from .. import _names, registry
from .._checks import LARGEST, calling, integer, real
from ..text.files import UTF8, check_encoding
from ..training.averaging import checked_setting

_T = TypeVar("_T")

_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")  # as in argparse

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.?)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "\\": "\\"}

_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?)"
_DURATION = re.compile(f"(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?")
_LONGEST = 1e9  # seconds

AUTO = "auto"  # the value of --resume that begins a training or goes on with it

NONE = "none"  # the value of --average that ends one

# Exit statuses besides 0.
FAILED = 1  # the training diverged, or the demonstration missed its bound
USER_ERROR = 2  # the arguments or the files were wrong
INTERRUPTED = 130  # as a shell reports SIGINT


class Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.color = False  # Python 3.14 colours the help, and `streams` would show the codes

    def error(self, message: str) -> NoReturn:
        self.exit(USER_ERROR, f"charrnn-fast: error: {message} (see {self.prog} --help)\n")

    commands: Mapping[str, Parser] = {}  # by their names, of the parser in front of them

    def check(self, arguments: Sequence[str]) -> None:
        """Exits with an error for flags that the command does not have."""
        at = next((i for i, argument in enumerate(arguments) if argument in self.commands), 0)
        known = self.flags().values()
        for flag in (a for a in arguments[:at] if _is_flag(a) and a not in known):
            self.error(
                f"{flag} must stand behind the command: charrnn-fast {arguments[at]} ... {flag}"
            )
        if at < len(arguments) and arguments[at] in self.commands:
            self.commands[arguments[at]].refuse_unknown(arguments[at + 1 :])

    def flags(self) -> dict[str, str]:
        """The long flag of each setting."""
        return {
            action.dest: next(flag for flag in action.option_strings if flag.startswith("--"))
            for action in self._actions
            if action.option_strings
        }

    def refuse_unknown(self, arguments: Sequence[str]) -> None:
        """Exits with an error for flags that are not this command's.

        argparse alone would take "-opencl" for "-o pencl", and "--sample" for a longer flag with
        this beginning.
        """
        known = {flag: action for action in self._actions for flag in action.option_strings}
        wrong = []
        before: argparse.Action | None = None  # the action that a value may belong to
        for i, argument in enumerate(arguments):
            if argument == "--":
                break
            name, equals, _ = argument.partition("=")
            if name in known:
                before = None if equals else known[name]
            elif not _is_flag(argument):
                before = None
            elif not self._reads(name, known):
                if before is not None and before.nargs is None:
                    flag = arguments[i - 1]
                    self.error(
                        f"{flag} must have a value; write {flag}={shlex.quote(argument)} for one "
                        f"that begins with a hyphen"
                    )
                wrong.append(f"no {name}{self._advice(arguments[i:])}")
                before = None
        if wrong:
            self.error(f"there is {'; '.join(wrong)}")

    def refuse(self, more: Sequence[str]) -> NoReturn:
        """Exits with an error about arguments after the last that the command takes."""
        self.error(
            f"{shlex.join(more)} is more than {self.prog} takes; what has blanks stands in quotes"
        )

    def _reads(self, name: str, known: Mapping[str, argparse.Action]) -> bool:
        """Whether argparse reads an unknown flag as the user probably meant it."""
        words = [_word(flag) for flag in known if flag.startswith("--")]
        if not name.startswith("--"):
            is_word = _names.is_foreign(name) or _names.meant(name, words) is not None
            return name[:2] in known and not is_word
        longer = [flag for flag in known if flag.startswith(name)]
        if not _names.is_foreign(name):
            return bool(longer)
        return len(longer) == 1 and _names.meant(name, words) == _word(longer[0])

    def _advice(self, arguments: Sequence[str]) -> str:
        """Advice for an unknown flag, the first of these arguments."""
        name, equals, value = arguments[0].partition("=")
        if not equals and len(arguments) > 1 and not _is_flag(arguments[1]):
            value = arguments[1]
        by_word = {
            _word(flag): action
            for action in self._actions
            for flag in action.option_strings or [action.dest]
        }
        ours = _names.meant(name, by_word)
        if ours is None:
            with calling(self.flags()):
                remark = _names.remark(name)
            return "" if remark is None else f": {remark}"
        action = by_word[ours]
        if not action.option_strings:
            return f": {value or 'its value'} stands without a flag"
        flag = f"--{ours.replace('_', '-')}"
        if action.nargs == 0 or not value:
            return f": did you mean {flag}?"
        choices = [str(choice) for choice in action.choices or ()]
        value = value.lower() if value.lower() in choices else value
        return f": did you mean {flag} {shlex.quote(value)}?"


def _word(flag: str) -> str:
    """The name of a flag's setting."""
    return flag.lstrip("-").replace("-", "_")


def _is_flag(argument: str) -> bool:
    """Whether argparse takes an argument that is not our flag for a flag, not for a value."""
    hyphen = len(argument) > 1 and argument[0] == "-"
    return hyphen and " " not in argument and not _NEGATIVE.fullmatch(argument)


class Commands:
    """The parsers of all commands; each command's module adds its own."""

    def __init__(self, parser: Parser) -> None:
        self._commands = parser.add_subparsers(required=True, metavar="command")
        parser.commands = self._commands.choices

    def add(self, name: str, run: Callable[[argparse.Namespace], int], about: str) -> Parser:
        """Adds a command: run takes the parsed options and returns the exit status."""
        sub: Parser = self._commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run, parser=sub, threads=None)
        return sub


def add_texts(parser: Parser) -> argparse.Action:
    """Returns the argument of the texts. The encoding is None if it is not given."""
    texts = parser.add_argument(
        "text",
        type=path_option,
        nargs="+",
        metavar="TEXT",
        help="files, folders and patterns such as '**/*.txt'; - for standard input",
    )
    parser.add_argument(
        "--encoding",
        type=encoding_option,
        metavar="NAME",
        help="encoding of the files, as Python names it (default: utf-8)",
    )
    return texts


def add_threads(parser: Parser) -> None:
    parser.add_argument(
        "--threads", type=integer_option(1, 4096), metavar="N", help="default: all cores"
    )


def add_device(parser: Parser) -> None:
    parser.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="cpu, cuda or, for GPU N, cuda:N (default: cpu)",
    )
    parser.add_argument(
        "--compute-dtype",
        choices=registry.COMPUTE_DTYPES,
        help="number format of the products' operands (default: the model's own)",
    )


class InsteadAction(argparse.Action):
    """A switch that makes another argument optional."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, help: str, of: argparse.Action
    ) -> None:
        super().__init__(option_strings, dest, nargs=0, default=False, help=help)
        self._of = of

    def __call__(self, parser: Any, namespace: argparse.Namespace, *_: Any) -> None:
        setattr(namespace, self.dest, True)
        self._of.required = False


class ResumeAction(argparse.Action):
    """``--resume`` and ``--resume auto``: True or `AUTO`. Any other word behind it is a TEXT."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs="?", default=False, metavar=AUTO, help=help)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        setattr(namespace, self.dest, AUTO if values == AUTO else True)
        if values not in (None, AUTO):
            namespace.text_of_resume = [path_option(values)]


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
    """Numbers separated by commas."""
    number = number_option(**bounds)

    def convert(text: str) -> list[float]:
        return [number(part) for part in text.split(",")]

    convert.__name__ = "list of numbers"
    return convert


def duration_option(text: str) -> float:
    """Seconds of a time such as "90s", "60m" and "1h30m"."""
    match = _DURATION.fullmatch(text)
    seconds = sum(
        float(number) * unit
        for number, unit in zip(match.groups() if match else (), (3600, 60, 1), strict=False)
        if number
    )
    if not 0 < seconds < _LONGEST:
        raise argparse.ArgumentTypeError(f"must be a time such as 90s, 60m or 1h30m, got {text!r}")
    return seconds


def average_option(text: str) -> str:
    if text == NONE:
        return NONE
    with calling({"average": ""}):
        return _checked(lambda: checked_setting(text))


average_option.__name__ = "average"


def bound_option(text: str) -> float:
    """A number above 0, or "inf"."""
    return math.inf if text == "inf" else number_option(above=0)(text)


def zoneout_option(text: str) -> float | list[float]:
    parts = text.strip("[]").split(",")  # with or without TOML's brackets
    rates = [number_option(least=0, below=1)(part) for part in parts]
    if len(rates) > 2:
        raise argparse.ArgumentTypeError(f"must be one rate or two, got {text!r}")
    return rates[0] if len(rates) == 1 else rates


zoneout_option.__name__ = "number, or two"


def encoding_option(text: str) -> str:
    return _checked(lambda: check_encoding(text))


def file_option(text: str) -> str:
    """The name of a file, existing or not; "-" is allowed."""
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a file, got ''")
    if os.path.basename(text) in ("", os.curdir, os.pardir):
        raise argparse.ArgumentTypeError(
            f"must be a file, got {text!r}, which names a folder; name a file in it"
        )
    return text


def output_option(*endings: str) -> Callable[[str], str]:
    """The name of an output file, which must be more than one of these extensions."""

    def convert(text: str) -> str:
        name = os.path.basename(file_option(text))
        if name in endings:
            raise argparse.ArgumentTypeError(
                f"must have a name before {name}, got {text!r}, which would be a hidden file"
            )
        return text

    convert.__name__ = "name of a file"
    return convert


def folder_option(text: str) -> str:
    """The name of a folder, existing or not."""
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a folder, got ''")
    return text


folder_option.__name__ = "name of a folder"


def path_option(text: str) -> str:
    """The name of a file or folder, or a pattern."""
    if not text:
        raise argparse.ArgumentTypeError("must be the name of a file or folder, got ''")
    return text


def text_option(text: str, otherwise: str = "") -> str:
    """An argument with its escapes replaced. otherwise: advice about other bytes."""
    return _checked(lambda: unescaped(text, otherwise))


def stop_option(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("must be one character or more, got ''")
    return text_option(text)


def mark_option(text: str) -> str:
    """text with its escapes, as `unescaped` takes it."""
    _checked(lambda: unescaped(text))
    return text


def unescaped(text: str, otherwise: str = "") -> str:
    r"""text with ``\n``, ``\x1e`` and the like replaced by their characters.

    Raises ValueError for other escapes, and for bytes of an argument that are not characters.
    """
    at = next((i for i, c in enumerate(text) if "\udc80" <= c <= "\udcff"), None)
    if at is not None:  # a surrogate, as Python represents such bytes
        encoding = sys.getfilesystemencoding()
        before = len(text[:at].encode(encoding, "surrogateescape"))
        if encoding != UTF8:
            otherwise = "set a locale with UTF-8, such as LC_ALL=C.UTF-8"
        raise ValueError(
            f"must be text in this locale's encoding, {encoding}, got the byte "
            f"0x{ord(text[at]) - 0xDC00:02x} at position {before}; \\xNN and \\uNNNN stand for "
            f"characters" + (f", {otherwise}" if otherwise else "")
        )
    return _ESCAPE.sub(_character, text)


def _character(escape: re.Match[str]) -> str:
    name = escape[1]
    if len(name) > 1:
        character = chr(int(name[1:], 16))
        if "\ud800" <= character <= "\udfff":
            raise ValueError(f"{escape[0]} stands for half a character; type the character itself")
        return character
    if name not in _ESCAPED:
        raise ValueError(
            rf"must have no escapes but \n \r \t \f \\ \xNN \uNNNN, got {escape[0]}; "
            r"write \\ for a backslash"
        )
    return _ESCAPED[name]


def _checked(check: Callable[[], _T]) -> _T:
    """The result of a check; argparse puts the option's name before its message."""
    try:
        return check()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).strip()) from None
