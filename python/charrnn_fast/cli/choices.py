"""``charrnn-fast sample --choices``: a text of which each character is chosen or drawn."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..language.model import CharLM
from ..language.sampler import Request, drawing_from
from ..language.walk import Walk
from ..storage import streams
from ..text.vocabulary import StreamDecoder

_SHOWN = 10  # characters with bars
_BAR = 40  # columns of a share of 1
_TAIL = 60  # characters of the text above the bars
_HELP = (
    "number: take that character; =TEXT: take these; Enter: draw one; dN: draw N; bN: N back; "
    "q: end"
)


class Chosen(NamedTuple):
    """A text, and whether an interrupt (Ctrl-C) ended it."""

    text: str
    interrupted: bool


def choose(model: CharLM, request: Request, seed: int) -> Chosen:
    """The text that the standard input chooses, a command a line. Bars and questions: stderr."""
    with drawing_from(model.rnn):
        walk = Walk(model.rnn, request, seed)
        interrupted = False
        try:
            _ask(model, request, walk)
        except KeyboardInterrupt:
            interrupted = True
            _say("")
        return Chosen(_text(model, request, walk), interrupted)


def _ask(model: CharLM, request: Request, walk: Walk) -> None:
    """Does what is read, line by line, until the text ends."""
    listed: list[int] = []
    _say(_HELP)
    while len(walk.ids) < request.length:
        if not listed:
            shares = walk.shares()
            # Stable: of equal shares the lower id first, as when drawing.
            listed = np.argsort(-shares, kind="stable")[:_SHOWN].tolist()
            _show(model, request, walk, listed, shares[listed].tolist())
        print("> ", end="", file=_screen(), flush=True)
        line = sys.stdin.readline()
        if not line:
            _say("")
            break
        try:
            if not _obey(line.rstrip("\r\n"), model, walk, listed, request.length):
                break
            listed = []
        except ValueError as error:
            _say(f"{error}")


def _obey(line: str, model: CharLM, walk: Walk, listed: Sequence[int], length: int) -> bool:
    """Does what a line says; False: it ends the text. ValueError for one that says nothing."""
    command, rest = line[:1], line[1:]
    if line == "q":
        return False
    if command == "=" and rest:
        ids = model.vocabulary.encode_part(rest, "the text", 0).tolist()
        if len(walk.ids) + len(ids) > length:
            raise ValueError(f"the text must have {length - len(walk.ids)} characters or fewer")
        for symbol in ids:
            walk.take(symbol)
    elif command in ("", "d") and (not rest or rest.isdecimal()):
        for _ in range(min(int(rest or 1), length - len(walk.ids))):
            walk.take(walk.draw())
    elif command == "b" and (not rest or rest.isdecimal()):
        for _ in range(min(int(rest or 1), len(walk.ids))):
            walk.back()
    elif line.isdecimal() and 1 <= int(line) <= len(listed):
        walk.take(listed[int(line) - 1])
    else:
        raise ValueError(f"no {line!r} here. {_HELP}")
    return True


def _show(
    model: CharLM, request: Request, walk: Walk, listed: Sequence[int], shares: Sequence[float]
) -> None:
    text = _text(model, request, walk)
    _say(f"\n{streams.visible(text[-_TAIL:])}")
    names = [_name(model, symbol) for symbol in listed]
    width = max(map(len, names))
    for number, (name, share) in enumerate(zip(names, shares, strict=True), 1):
        _say(f"{number:2} {name:{width}} {share:7.2%} {'#' * round(share * _BAR)}".rstrip())


def _name(model: CharLM, symbol: int) -> str:
    """A character as its literal, a byte as a number of two digits."""
    value = int(model.vocabulary.symbols[symbol])
    if model.vocabulary.kind == "bytes":
        return f"0x{value:02x}" + (f" {chr(value)!r}" if 32 <= value < 127 else "")
    return ascii(model.vocabulary.decode([symbol]))


def _text(model: CharLM, request: Request, walk: Walk) -> str:
    decoder = StreamDecoder(model.vocabulary)
    return decoder.decode(request.prime) + decoder.decode(walk.ids, final=True)


def _screen() -> streams.Output:
    return streams.output(sys.stderr, optional=True)


def _say(line: str) -> None:
    print(line, file=_screen(), flush=True)
