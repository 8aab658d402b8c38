"""``--dynamic`` of eval and sample: a copy of the model learns from the text as it reads."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .._checks import real
from ..language.dynamic import SEGMENT, Adapting, Dynamic, Squares
from ..language.model import CharLM
from ..text.corpus import Corpus
from ..text.files import UTF8
from .parsing import Parser, integer_option, path_option


def add_dynamic(parser: Parser, what: str) -> None:
    """what: what a copy of the model learns from."""
    parser.add_argument(
        "--dynamic",
        type=_rates_option,
        metavar="LR,DECAY",
        help=f"dynamic evaluation: learn from {what} with this learning rate, and decay to the "
        f"trained weights (0 to 1)",
    )
    parser.add_argument(
        "--dynamic-segment",
        type=integer_option(1),
        metavar="N",
        help=f"characters between two updates (default: {SEGMENT})",
    )
    parser.add_argument(
        "--dynamic-statistics",
        type=path_option,
        metavar="TEXT",
        help="text, best of the training, whose gradients scale the updates (default: not scaled)",
    )


def _rates_option(text: str) -> tuple[float, float]:
    rate, _, decay = text.partition(",")
    numbers = float(rate), float(decay or 0)
    try:
        real("the learning rate", numbers[0], least=0)
        real("the decay", numbers[1], least=0, most=1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return numbers


_rates_option.__name__ = "learning rate, or two numbers"


Learning = Callable[[], tuple[CharLM, Adapting]]
"""Makes a copy of the model, and what adapts it as it reads: for each text a fresh one."""


def check_dynamic(arguments: argparse.Namespace) -> None:
    """ValueError, before any file is read, for flags that do not go together."""
    if arguments.dynamic is None:
        for flag in ("segment", "statistics"):
            if getattr(arguments, f"dynamic_{flag}") is not None:
                raise ValueError(f"--dynamic-{flag} needs --dynamic LR,DECAY")
    elif arguments.weight_dtype is not None:
        raise ValueError(
            "--dynamic and --weight-dtype exclude each other: rounded weights do not learn"
        )


def learning_of(
    arguments: argparse.Namespace, model: CharLM, encoding: str = UTF8, *, allow_unknown: bool
) -> Learning | None:
    """None: it shall not learn. encoding, allow_unknown: how the text of the statistics is read."""
    if arguments.dynamic is None:
        return None
    rate, decay = arguments.dynamic
    dynamic = Dynamic(rate, decay, segment=arguments.dynamic_segment or SEGMENT)
    squares = None
    model.check_learns()
    if arguments.dynamic_statistics is not None:
        corpus = Corpus.from_files(
            arguments.dynamic_statistics,
            vocabulary=model.vocabulary,
            encoding=encoding,
            allow_unknown=allow_unknown,
        )
        squares = Squares(model.rnn, corpus.ids, dynamic.segment)
    return lambda: model.adapting(dynamic, squares)
