"""``charrnn-fast eval``: the loss of a trained model on text files."""

from __future__ import annotations

import argparse

from ..corpus import Corpus
from ..model import CharLM
from . import show
from .parsing import Commands, add_threads
from .sample import add_weight_dtype


def add(commands: Commands) -> None:
    evaluate = commands.add("eval", run, "Measure a trained model's loss on text files.")
    evaluate.add_argument("model", metavar="FILE")
    evaluate.add_argument("text", nargs="+", metavar="TEXT", help="UTF-8 files")
    add_weight_dtype(evaluate)
    add_threads(evaluate)


def run(arguments: argparse.Namespace) -> int:
    model = CharLM.load(arguments.model)
    corpus = Corpus.from_files(*arguments.text, vocabulary=model.vocabulary)
    loss = model._read_as(arguments.weight_dtype)._evaluate(corpus._ids)
    print(f"{show.losses(loss, model.vocabulary)} over {len(corpus):,} {model.vocabulary.kind}")
    return 0
