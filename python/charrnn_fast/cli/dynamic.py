"""``--dynamic`` of eval and sample: a copy of the model learns from the text as it reads."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from .._checks import real
from ..language.dynamic import SEGMENT, Adapting, Dynamic, Squares
from ..language.model import CharLM
from ..text import files as text_files
from ..text.corpus import Corpus
from ..text.files import UTF8, find_files
from .parsing import Parser, file_option, integer_option


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
        type=file_option,
        metavar="FILE",
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


def learning_of(arguments: argparse.Namespace, model: CharLM) -> Learning | None:
    """None: it shall not learn."""
    if arguments.dynamic is None:
        for flag in ("segment", "statistics"):
            if getattr(arguments, f"dynamic_{flag}") is not None:
                raise ValueError(f"--dynamic-{flag} must stand with --dynamic LR,DECAY")
        return None
    if arguments.weight_dtype is not None:
        raise ValueError(
            "--dynamic and --weight-dtype exclude each other: rounded weights do not learn"
        )
    rate, decay = arguments.dynamic
    dynamic = Dynamic(rate, decay, segment=arguments.dynamic_segment or SEGMENT)
    squares = None
    model.check_learns()
    if arguments.dynamic_statistics is not None:
        paths = find_files([arguments.dynamic_statistics])
        text_files.check(paths)
        (corpus,) = Corpus.of_each_file(paths, model.vocabulary, UTF8)
        squares = Squares(model.rnn, corpus.ids, dynamic.segment)
    return lambda: model.adapting(dynamic, squares)
