"""``charrnn-fast score``: the log-probability of each line of standard input."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from .._checks import brief
from ..language.model import CharLM
from ..storage.input_files import standard_input, without_mark
from ..text.vocabulary import Vocabulary
from . import show
from .parsing import Commands, add_device, add_threads, file_option
from .sample import add_weight_dtype

_LONGEST = 100_000_000  # bytes of a line
_BLOCK = 1 << 16  # bytes read at once, as a pipe holds

_Ids = NDArray[np.int32]


def add(commands: Commands) -> None:
    score = commands.add(
        "score", run, "Write the log-probability of each line of the standard input, in nats."
    )
    score.add_argument("model", type=file_option, metavar="MODEL", help="saved by train")
    score.add_argument("--mean", action="store_true", help="mean per character")
    score.add_argument("--bits", action="store_true", help="in bits, not nats")
    score.add_argument(
        "--json", action="store_true", help="print JSON: the line and all its scores"
    )
    score.add_argument(
        "--no-newline",
        action="store_true",
        help="score the characters alone (default: with the newline that ends the line)",
    )
    score.add_argument(
        "--allow-unknown",
        action="store_true",
        help="-inf for a line with unknown characters (default: an error)",
    )
    add_weight_dtype(score)
    add_device(score)
    add_threads(score)


def run(arguments: argparse.Namespace) -> int:
    if arguments.json and (arguments.mean or arguments.bits):
        given = "--mean" if arguments.mean else "--bits"
        raise ValueError(f"--json writes sums, means and bits alike: leave out {given}")
    model = CharLM.load(
        arguments.model, device=arguments.device, compute_dtype=arguments.compute_dtype
    ).read_as(arguments.weight_dtype)
    ending = b"" if arguments.no_newline else b"\n"
    if ending and model.vocabulary.id_of(ord("\n")) < 0:
        raise ValueError(
            f"the vocabulary of {arguments.model} has no newline, so that no line can end: give "
            f"--no-newline"
        )
    shown = _format(arguments)
    number = 0
    for lines in _arriving(standard_input()):
        if not number and model.vocabulary.kind == "characters":
            lines[0] = without_mark(lines[0])
        ids, error = _encoded(lines, number, ending, model.vocabulary, arguments.allow_unknown)
        for line, text, nats in zip(lines, ids, _scores(model, ids), strict=False):
            number += 1
            print(shown(number, line, None if text is None else len(text), nats))
        sys.stdout.flush()
        if error is not None:
            raise error
    return 0


def _arriving(file: IO[bytes]) -> Iterator[list[bytes]]:
    """The lines of a file, without newlines, in batches of those that have arrived.

    A writer that waits for each score thus gets it, and many lines written at once are one batch.
    """
    rest = bytearray()  # the beginning of a line
    while data := _read(file):
        *ended, last = data.split(b"\n")
        if ended:
            yield [bytes(rest) + ended[0], *ended[1:]]
            rest.clear()
        rest += last
        if len(rest) > _LONGEST:
            raise ValueError(f"standard input has a line of more than {_LONGEST:,} bytes")
    if rest:
        yield [bytes(rest)]


def _read(file: IO[bytes]) -> bytes:
    """The bytes that have arrived, as soon as there are any; empty at the end."""
    try:
        return file.read1(_BLOCK)  # type: ignore[attr-defined, no-any-return]
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard input") from error


def _encoded(
    lines: list[bytes], before: int, ending: bytes, vocabulary: Vocabulary, allow_unknown: bool
) -> tuple[list[_Ids | None], ValueError | None]:
    """The ids of the lines; None for one with a character that is not in the vocabulary.

    Unless such lines are allowed, the ids up to the first of them, and its error. before: the
    number of earlier lines.
    """
    ids: list[_Ids | None] = []
    for number, line in enumerate(lines, before + 1):
        try:
            ids.append(_ids(line + ending, vocabulary))
        except ValueError as error:
            if not allow_unknown:
                return ids, ValueError(f"standard input, line {number}, {error}")
            ids.append(None)
    return ids, None


def _ids(line: bytes, vocabulary: Vocabulary) -> _Ids:
    """ValueError names the column, counted from 1."""
    if vocabulary.kind == "bytes":
        return vocabulary.encode_part(line, "the line", 0)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start + 1}: invalid UTF-8 (0x{line[error.start]:02x}: {error.reason})"
        ) from None
    try:
        return vocabulary.encode_part(text, "the line", 0)
    except ValueError:
        column = next(i for i, c in enumerate(text) if vocabulary.id_of(ord(c)) < 0)
        raise ValueError(
            f"column {column + 1}: the character {text[column]!r} (U+{ord(text[column]):04X}) is "
            f"not among the vocabulary's {len(vocabulary)} ({vocabulary.shown()})"
        ) from None


def _scores(model: CharLM, ids: list[_Ids | None]) -> list[float]:
    """Nats; a line that the vocabulary cannot spell has probability 0."""
    scores = iter(model.score_ids([text for text in ids if text is not None]).tolist())
    return [-math.inf if text is None else next(scores) for text in ids]


_Format = Callable[[int, bytes, int | None, float], str]
"""The output for a line, from its number, itself, its number of predicted characters (None if the
vocabulary cannot spell it) and its nats."""


def _format(arguments: argparse.Namespace) -> _Format:
    if arguments.json:
        return _json
    unit = math.log(2) if arguments.bits else 1.0

    def plain(number: int, line: bytes, characters: int | None, nats: float) -> str:
        return brief((_mean(nats, characters) if arguments.mean else nats) / unit, 6, 20)

    return plain


def _json(number: int, line: bytes, characters: int | None, nats: float) -> str:
    mean = _mean(nats, characters)
    values = {
        "nats": nats,
        "bits": nats / math.log(2),
        "nats_per_character": mean,
        "bits_per_character": mean / math.log(2),
    }
    numbers = {name: show.json_number(value) for name, value in values.items()}
    text = line.decode("utf-8", "replace")
    return json.dumps({"line": number, "characters": characters, **numbers, "text": text})


def _mean(nats: float, characters: int | None) -> float:
    """nan for no characters, -inf for a line that the vocabulary cannot spell."""
    if characters is None:
        return nats
    return nats / characters if characters else math.nan
