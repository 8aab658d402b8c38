"""A baseline of n-grams: KenLM's modified Kneser-Ney on characters, beside a network's loss.

    python benchmarks/ngram.py TEXT --min-count 2 --kenlm kenlm/build/bin

The text is divided and encoded as ``charrnn-fast train --split 0.8,0.1,0.1`` does it. KenLM's
programs lmplz and query are called: lmplz estimates from the training part, for each of --orders;
the order with the lowest validation loss is measured on the test part. Losses are in nats per
character (or byte) of all but a part's first, as those of ``charrnn-fast eval``. A character that
is not in the training part costs its share of the unknown word's: the probability is divided evenly
among all characters of the vocabulary that the training part lacks.

Heafield et al., "Scalable Modified Kneser-Ney Language Model Estimation", 2013. How to build the
programs: benchmarks/README.md. Orders above 6 need ``-DKENLM_MAX_ORDER=20``.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from charrnn_fast import Corpus, Vocabulary

SPLIT = (0.8, 0.1, 0.1)
Ids = NDArray[np.integer]
_UNKNOWN = 0  # query's id of the unknown word


class NgramError(Exception):
    """A wrong argument, or a program of KenLM that failed."""


def words(ids: Ids) -> bytes:
    """The ids as one line of words for KenLM."""
    return " ".join(map(str, ids)).encode() + b"\n"


def estimate(train: Ids, order: int, lmplz: Path, folder: Path) -> Path:
    """The n-gram model of the training part, in ARPA's format."""
    model = folder / f"{order}.arpa"
    command = [str(lmplz), "-o", str(order), "--discount_fallback", "-S", "1G", "-T", str(folder)]
    _call([*command, "--arpa", str(model)], words(train))
    return model


def loss(ids: Ids, model: Path, query: Path, unseen: int) -> float:
    """Nats per character of ids but the first. unseen: vocabulary's size without train's."""
    found = _call([str(query), "-n", "-v", "word", str(model)], words(ids)).split(b"\t")
    return total(found, len(ids), unseen) / (len(ids) - 1)


def total(found: Iterable[bytes], count: int, unseen: int) -> float:
    """Nats of count words but the first, from what query prints: ``word=id length log10`` each."""
    nats = []
    for entry in found:
        word, _, rest = entry.strip().partition(b"=")
        fields = rest.split()
        if not word.isdigit() or len(fields) != 3:
            continue  # what follows the words: their sum and the number of unknown ones
        share = math.log(unseen) if int(fields[0]) == _UNKNOWN else 0.0
        nats.append(share - float(fields[2]) * math.log(10))
    if len(nats) != count:
        raise NgramError(f"query must print {count} probabilities, got {len(nats)}")
    return math.fsum(nats[1:])


def _call(command: list[str], data: bytes) -> bytes:
    try:
        done = subprocess.run(command, input=data, capture_output=True, check=False)
    except OSError as error:
        raise NgramError(f"--kenlm must be the folder of lmplz and query: {error}") from error
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise NgramError(f"{command[0]} failed with {done.returncode}: {' '.join(last)}")
    return done.stdout


def measure(corpus: Corpus, orders: list[int], kenlm: Path, folder: Path) -> str:
    """Markdown: the validation loss of each order, and the test loss of the best one."""
    assert corpus.test is not None
    train, validation = np.asarray(corpus.train), np.asarray(corpus.validation)
    unseen = len(corpus.vocabulary) - len(np.unique(train))
    lines = ["| order | validation |", "| --- | --- |"]
    losses: dict[int, float] = {}
    for order in orders:
        model = estimate(train, order, kenlm / "lmplz", folder)
        losses[order] = loss(validation, model, kenlm / "query", unseen)
        lines.append(f"| {order} | {losses[order]:.4f} |")
        best = min(losses, key=losses.__getitem__)
        for other in losses.keys() - {best}:  # gigabytes, of high orders
            (folder / f"{other}.arpa").unlink(missing_ok=True)
    test = np.asarray(corpus.test)
    figure = loss(test, folder / f"{best}.arpa", kenlm / "query", unseen)
    missing = int(np.isin(test, np.unique(train), invert=True).sum())
    unit = corpus.vocabulary.unit
    lines += [
        "",
        f"Test, order {best}: {figure:.4f} nats per {unit}. "
        f"{missing} of its {len(test):,} {unit}s are not in the training part.",
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="A baseline of n-grams, by KenLM.")
    parser.add_argument("text")
    parser.add_argument("--orders", type=int, nargs="+", default=[3, 4, 5, 6])
    parser.add_argument("--bytes", action="store_true", help="model bytes, as train --bytes does")
    parser.add_argument("--min-count", type=int, default=1, help="as train has it")
    parser.add_argument("--kenlm", type=Path, required=True, help="folder of lmplz and query")
    options = parser.parse_args(arguments)
    if min(options.orders) < 2:
        parser.error(f"--orders must be 2 or more, got {min(options.orders)}")
    try:
        corpus = Corpus.from_files(
            options.text,
            vocabulary=Vocabulary.from_bytes() if options.bytes else None,
            min_count=options.min_count,
            split=SPLIT,
        )
        with tempfile.TemporaryDirectory() as folder:
            print(measure(corpus, options.orders, options.kenlm, Path(folder)))
    except (NgramError, OSError, ValueError) as error:
        sys.exit(f"ngram.py: error: {error}")


if __name__ == "__main__":
    main()
