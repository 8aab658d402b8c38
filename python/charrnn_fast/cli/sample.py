"""``charrnn-fast sample``: text from a trained model."""

from __future__ import annotations

import argparse
import sys

from .._checks import LARGEST_SEED
from ..model import CharLM
from .parsing import Commands, Parser, add_threads, integer_option, number_option


def add(commands: Commands) -> None:
    sample = commands.add("sample", run, "Write text with a trained model.")
    sample.add_argument("model", metavar="FILE")
    sample.add_argument(
        "--length",
        type=integer_option(0),
        default=500,
        metavar="N",
        help="characters (default: 500)",
    )
    sample.add_argument("--prime", default="", metavar="TEXT", help="how the text begins")
    sample.add_argument(
        "--temperature",
        type=number_option(least=0),
        default=1.0,
        metavar="T",
        help="below 1 safer, above 1 wilder, 0 the most probable (default: 1)",
    )
    sample.add_argument(
        "--top-k", type=integer_option(1), metavar="K", help="draw from the K most probable only"
    )
    sample.add_argument(
        "--top-p",
        type=number_option(above=0, most=1),
        metavar="P",
        help="draw from the most probable with P together",
    )
    sample.add_argument(
        "--seed",
        type=integer_option(0, LARGEST_SEED),
        metavar="N",
        help="default: a fresh one, told on stderr",
    )
    add_weight_dtype(sample)
    add_threads(sample)


def add_weight_dtype(parser: Parser) -> None:
    parser.add_argument(
        "--weight-dtype",
        choices=["float32", "float64", "bfloat16"],
        help="bfloat16: weights at half the memory (default: the model's own type)",
    )


def run(arguments: argparse.Namespace) -> int:
    model = CharLM.load(arguments.model)
    pieces = model.stream(
        arguments.length,
        arguments.prime,
        arguments.temperature,
        arguments.top_k,
        arguments.top_p,
        arguments.seed,
        weight_dtype=arguments.weight_dtype,
    )
    if arguments.seed is None:
        print(f"seed {model.last_seed}", file=sys.stderr)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0
