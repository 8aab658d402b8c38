"""``charrnn-fast view``: a page that shows what a model's cells do on a text."""

from __future__ import annotations

import argparse
import os

from ..language.model import CharLM
from ..storage import atomic_file
from ..storage.input_files import shown
from ..text.corpus import Corpus
from ..text.files import UTF8
from ..view import GENERATOR, page_of_ids
from . import show
from .parsing import (
    Commands,
    add_device,
    add_texts,
    add_threads,
    file_option,
    integer_option,
    output_option,
)

_HEAD = 1024  # bytes of a page, among which its generator is named


def add(commands: Commands) -> None:
    view = commands.add("view", run, "Look inside a trained model: a page of a text and its cells.")
    view.add_argument("model", type=file_option, metavar="MODEL", help="saved by train")
    add_texts(view)
    view.add_argument(
        "-o",
        "--output",
        type=output_option(".html"),
        default="view.html",
        metavar="PAGE",
        help="save the page here, replacing an older one (default: view.html)",
    )
    view.add_argument(
        "--start",
        type=integer_option(0),
        default=0,
        metavar="N",
        help="skip the first N characters (default: 0)",
    )
    view.add_argument(
        "--length",
        type=integer_option(2),
        default=5000,
        metavar="N",
        help="show N characters (default: 5000)",
    )
    view.add_argument(
        "--layers",
        type=_layers,
        metavar="L[,L]",
        help="layers to show, from 0 (default: all)",
    )
    add_device(view)
    add_threads(view)


def run(arguments: argparse.Namespace) -> int:
    # Before any work: fails if no page can be written or another file would be lost.
    kind = atomic_file.Kind("page of charrnn-fast view", _is_page)
    atomic_file.check(arguments.output, kind)
    model = CharLM.load(
        arguments.model, device=arguments.device, compute_dtype=arguments.compute_dtype
    )
    vocabulary = model.vocabulary
    corpus = Corpus.from_files(
        *arguments.text, vocabulary=vocabulary, encoding=arguments.encoding or UTF8
    )
    start, end = arguments.start, min(arguments.start + arguments.length, len(corpus))
    if end - start < 2:
        raise ValueError(
            f"the text has {len(corpus):,} {vocabulary.kind}, of which --start {start} leaves "
            f"{max(end - start, 0)}: to look inside takes two or more"
        )
    part = f"{len(corpus):,} {vocabulary.kind}"
    if end - start < len(corpus):
        part = f"{vocabulary.kind} {start + 1:,} to {end:,} of {len(corpus):,}"
        print(f"text        {part}; --start and --length choose others")
    names = ", ".join(os.path.basename(shown(path)) for path in arguments.text)
    model_name = os.path.basename(arguments.model)
    about = {
        "model": f"{model_name}, {show.model_line(model)}",
        "text": f"{names}, {part}",
    }
    title = f"{model_name} reads {names}"
    data = page_of_ids(model, corpus.ids[start:end], arguments.layers, title, about).encode()
    atomic_file.replace(arguments.output, [data], kind)
    print(f"saved to {arguments.output} ({show.size(len(data))})")
    return 0


def _layers(text: str) -> list[int]:
    return [integer_option(0)(part) for part in text.split(",")]


_layers.__name__ = "list of layers"  # argparse: "invalid list of layers value"


def _is_page(path: str) -> bool:
    with open(path, "rb") as file:
        return f'<meta name="generator" content="{GENERATOR}'.encode() in file.read(_HEAD)
