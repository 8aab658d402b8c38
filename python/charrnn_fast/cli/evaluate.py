"""``charrnn-fast eval``: the loss of a trained model on text files."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass

from .._checks import brief
from ..language.model import CharLM
from ..storage import configuration
from ..storage.input_files import shown
from ..text import files as text_files
from ..text.corpus import Corpus, count_of
from ..text.files import UTF8, find_files
from ..text.vocabulary import Vocabulary
from . import show
from .dynamic import Learning, add_dynamic, check_dynamic, learning_of
from .parsing import (
    Commands,
    InsteadAction,
    add_device,
    add_texts,
    add_threads,
    file_option,
    mark_option,
    unescaped,
)
from .sample import add_weight_dtype
from .texts import test_of

_TOTAL = "total"
_TEST = "test"


def add(commands: Commands) -> None:
    evaluate = commands.add("eval", run, "Measure a trained model's loss on text files.")
    evaluate.add_argument("model", type=file_option, metavar="MODEL", help="saved by train")
    texts = add_texts(evaluate)
    evaluate.add_argument(
        "--test",
        action=InsteadAction,
        of=texts,
        help="the test part of the training, once all is chosen; TEXT: where its text is now",
    )
    evaluate.add_argument(
        "--document-mark",
        type=mark_option,
        metavar="TEXT",
        help="end of a document, as for train: each begins with an empty memory",
    )
    evaluate.add_argument(
        "--allow-unknown",
        action="store_true",
        help="leave out and count characters that the vocabulary lacks (default: an error)",
    )
    evaluate.add_argument(
        "--json", action="store_true", help="print JSON: a line for each file, one for all"
    )
    add_dynamic(evaluate, "each file while it is measured")
    add_weight_dtype(evaluate)
    add_device(evaluate)
    add_threads(evaluate)


@dataclass(frozen=True)
class _Loss:
    """Of one text or several: numbers of all, unknown and predicted characters; nats."""

    characters: int
    unknown: int
    predicted: int
    nats: float

    def __add__(self, other: _Loss) -> _Loss:
        return _Loss(
            self.characters + other.characters,
            self.unknown + other.unknown,
            self.predicted + other.predicted,
            self.nats + other.nats,
        )

    @property
    def mean(self) -> float:
        """Nats per predicted character."""
        return self.nats / self.predicted

    @property
    def bits(self) -> float:
        """Per predicted character."""
        return self.mean / math.log(2)

    @property
    def perplexity(self) -> float:
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf


def run(arguments: argparse.Namespace) -> int:
    check_dynamic(arguments)
    if arguments.test:
        return _run_test(arguments)
    stored = CharLM.load(
        arguments.model, device=arguments.device, compute_dtype=arguments.compute_dtype
    )
    paths = find_files(arguments.text)
    text_files.check(paths)
    # Reads all files, each once, before evaluating the first.
    encoding = arguments.encoding or UTF8
    corpora = Corpus.of_each_file(
        paths, stored.vocabulary, encoding, allow_unknown=arguments.allow_unknown
    )
    corpora = [
        _checked(path, corpus, arguments.document_mark)
        for path, corpus in zip(paths, corpora, strict=True)
    ]
    learning = learning_of(arguments, stored, encoding, allow_unknown=arguments.allow_unknown)
    model = stored.read_as(arguments.weight_dtype)
    write = _writer(arguments, paths, model.vocabulary)
    total = _Loss(0, 0, 0, 0.0)
    for path, corpus in zip(paths, corpora, strict=True):
        loss = _measured(model, corpus, learning)
        write(path, loss)
        total += loss
    if arguments.json or len(paths) > 1:
        write(None, total)
    return 0


def _run_test(arguments: argparse.Namespace) -> int:
    """Evaluates the test part of the training in a checkpoint."""
    if arguments.document_mark is not None:
        raise ValueError("--test reads the text as the training did: leave out --document-mark")
    tensors, config = configuration.read(arguments.model)
    stored = CharLM.from_checkpoint(
        arguments.model, tensors, config, arguments.device, arguments.compute_dtype
    )
    text = test_of(
        arguments.model,
        config,
        stored,
        arguments.text or [],
        arguments.encoding,
        allow_unknown=arguments.allow_unknown,
    )
    learning = learning_of(arguments, stored, text.encoding, allow_unknown=text.allow_unknown)
    model = stored.read_as(arguments.weight_dtype)
    write = _writer(arguments, [_TEST], model.vocabulary)
    predicted = len(text.ids) - 1
    adapting = None if learning is None else learning()[1]
    nats = model.evaluate_ids(text.ids, text.starts_within, adapting) * predicted
    unknown = count_of(text.ids, model.vocabulary.unknown_id) + text.left_out
    write(_TEST, _Loss(len(text.ids) + text.left_out, unknown, predicted, nats))
    return 0


def _checked(path: str, corpus: Corpus, mark: str | None) -> Corpus:
    """The corpus of a file, with documents if there is a mark; ValueError names the file."""
    if len(corpus) < 2:
        raise ValueError(
            f"{shown(path)} must have 2 {corpus.vocabulary.unit}s or more"
            f"{' that are known' if corpus.num_left_out else ''}, got 1: the first is given, the "
            f"others are predicted"
        )
    if mark is None:
        return corpus
    try:
        return Corpus(
            corpus.ids,
            corpus.vocabulary,
            document_mark=unescaped(mark),
            left_out=corpus.num_left_out,
        )
    except ValueError as error:
        raise ValueError(f"{shown(path)}: {error}") from None


def _measured(model: CharLM, corpus: Corpus, learning: Learning | None) -> _Loss:
    """Of one text: one stream from the zero state; its first character is not predicted.

    learning: for a copy that learns from the text as it reads.
    """
    predicted = len(corpus) - 1
    adapting = None if learning is None else learning()[1]
    nats = model.evaluate_ids(corpus.ids, corpus.starts_within, adapting) * predicted
    return _Loss(len(corpus) + corpus.num_left_out, corpus.num_unknown(), predicted, nats)


_Writer = Callable[[str | None, _Loss], None]
"""Writes the line of a file or, for None, that of all files."""


def _writer(arguments: argparse.Namespace, paths: list[str], vocabulary: Vocabulary) -> _Writer:
    if arguments.json:
        return _json_writer()
    counted = vocabulary.unknown is not None or arguments.allow_unknown
    return _table_writer(paths, vocabulary, counted=counted)


def _json_writer() -> _Writer:
    def write(path: str | None, loss: _Loss) -> None:
        record = {
            "file": path,
            "characters": loss.characters,
            "unknown": loss.unknown,
            "predicted": loss.predicted,
            "nats": show.json_number(loss.nats),
            "nats_per_character": show.json_number(loss.mean),
            "bits_per_character": show.json_number(loss.bits),
            "perplexity": show.json_number(loss.perplexity),
        }
        print(json.dumps(record), flush=True)

    return write


def _table_writer(paths: list[str], vocabulary: Vocabulary, *, counted: bool) -> _Writer:
    """counted: whether unknown characters are shown."""
    unit = {"characters": "char", "bytes": "byte"}[vocabulary.kind]
    width = max(map(len, (*paths, _TOTAL)))
    print(
        f"{'file':{width}}  {vocabulary.kind:>13}  {f'nats/{unit}':>9}  {f'bits/{unit}':>9}  "
        f"{'perplexity':>10}"
    )

    def write(path: str | None, loss: _Loss) -> None:
        unknown = f"  {loss.unknown:,} unknown" if counted else ""
        print(
            f"{_TOTAL if path is None else path:{width}}  {loss.characters:13,}  "
            f"{brief(loss.mean, 4):>9}  {brief(loss.bits, 4):>9}  "
            f"{brief(loss.perplexity, 4, 10):>10}{unknown}",
            flush=True,
        )

    return write
