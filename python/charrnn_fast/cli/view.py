"""``charrnn-fast view``: a page that shows what a model's cells do on a text."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any

from ..language.model import CharLM
from ..storage import atomic_file, configuration
from ..storage.file_array import Ids
from ..storage.input_files import shown
from ..text import files as text_files
from ..text.corpus import Corpus
from ..text.files import UTF8, find_files
from ..view import GENERATOR, page_of_ids
from . import options, show
from .parsing import (
    Commands,
    add_device,
    add_texts,
    add_threads,
    file_option,
    integer_option,
    output_option,
    path_option,
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
    view.add_argument(
        "--training-text",
        type=path_option,
        nargs="+",
        metavar="FILE",
        help="the text of the training: divides the errors by what simpler models would have known",
    )
    add_device(view)
    add_threads(view)


def run(arguments: argparse.Namespace) -> int:
    # Before any work: fails if no page can be written or another file would be lost.
    kind = atomic_file.Kind("page of charrnn-fast view", _is_page)
    atomic_file.check(arguments.output, kind)
    config, model = _loaded(arguments)
    vocabulary, encoding = model.vocabulary, arguments.encoding or UTF8
    files, training_files = find_files(arguments.text), find_files(arguments.training_text or [])
    text_files.check(files)
    if training_files:
        text_files.check(training_files)
        text_files.check([*files, *training_files])  # that no pipe is named for both
    corpus = Corpus.from_files(*files, vocabulary=vocabulary, encoding=encoding)
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
    names = _names(arguments.text)
    model_name = os.path.basename(arguments.model)
    about = {
        "model": f"{model_name}, {show.model_line(model)}",
        "text": f"{names}, {part}",
    }
    training = None
    if training_files:
        training, part = _training(arguments.model, config, model, training_files, encoding)
        print(f"trained on  {part}")
        about["trained on"] = f"{_names(arguments.training_text)}, {part}"
    title = f"{model_name} reads {names}"
    ids = corpus.ids[start:end]
    data = page_of_ids(model, ids, arguments.layers, title, about, training).encode()
    atomic_file.replace(arguments.output, [data], kind)
    print(f"saved to {arguments.output} ({show.size(len(data))})")
    return 0


def _loaded(arguments: argparse.Namespace) -> tuple[Mapping[str, Any], CharLM]:
    """The configuration of a checkpoint, and its model."""
    device, compute_dtype = arguments.device, arguments.compute_dtype
    if not arguments.training_text:
        return {}, CharLM.load(arguments.model, device=device, compute_dtype=compute_dtype)
    tensors, config = configuration.read(arguments.model)
    return config, CharLM.from_checkpoint(arguments.model, tensors, config, device, compute_dtype)


def _training(
    path: str, config: Mapping[str, Any], model: CharLM, files: list[str], encoding: str
) -> tuple[Ids, str]:
    """The ids of a training text, and how many these are, in words.

    Of the text that the checkpoint at path was trained on they are the training part alone: what
    is shown is often from the others. Characters that the training left out are left out again.
    """
    training = config.get("training", {})
    stored = training.get("corpus") or {}
    values = options.restored(training.get("configuration", {}), path)
    corpus = Corpus.from_files(
        *files,
        vocabulary=model.vocabulary,
        encoding=encoding,
        split=stored.get("split"),
        allow_unknown=values.get("allow_unknown", False),
    )
    kind = model.vocabulary.kind
    same = (len(corpus), corpus.fingerprint) == (stored.get("length"), stored.get("fingerprint"))
    if same and "validation" not in stored:
        part = f"the first {len(corpus.train):,} of {len(corpus):,} {kind}, its training part"
        return corpus.train, part
    return corpus.ids, f"{len(corpus):,} {kind}"


def _names(paths: list[str]) -> str:
    return ", ".join(os.path.basename(shown(path)) for path in paths)


def _layers(text: str) -> list[int]:
    return [integer_option(0)(part) for part in text.split(",")]


_layers.__name__ = "list of layers"  # argparse: "invalid list of layers value"


def _is_page(path: str) -> bool:
    with open(path, "rb") as file:
        return f'<meta name="generator" content="{GENERATOR}'.encode() in file.read(_HEAD)
