"""Many to one: a sentence in, its sentiment out.

"Sequence input (e.g. sentiment analysis where a given sentence is classified as expressing positive
or negative sentiment)" (A. Karpathy, The Unreasonable Effectiveness of Recurrent Neural Networks,
2015): the third of the article's five shapes. The sentences come from a small grammar in which the
order of the words decides. "hardly" and "i doubt that" turn a clause into its opposite; of clauses
joined by "but" and "although" one counts. The baseline, logistic regression on a bag of words, does
not see the order and learns little.

An LSTM reads word by word; sentences of different lengths share a batch (`lengths`). The loss is
that of y at each sentence's last word; all other targets are -1. Dropout is on in the updates only.
The y at the other words is untrained: the picture shows how the prediction changes on the way.

    python examples/many_to_one.py [--plot PICTURE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import charrnn_fast as cf

Array = NDArray[Any]
Sentence = tuple[str, ...]  # its words

# True marks what turns the sentiment of its clause.
OPENINGS = (
    *(("", False),) * 8,
    ("i think that", False),
    ("everybody knows that", False),
    ("i doubt that", True),
    ("nobody thinks that", True),
)
SUBJECTS = ("the film", "the plot", "the music", "the acting", "the ending", "every scene")
NEGATIONS = (
    *(("", False),) * 12,
    ("not", True),
    ("never", True),
    ("hardly", True),
    ("anything but", True),
)
DEGREES = ("", "", "very", "really", "quite", "so")
ADJECTIVES = (
    *((word, True) for word in ("good", "great", "moving", "funny", "clever", "brilliant")),
    *((word, False) for word in ("bad", "dull", "awful", "boring", "silly", "clumsy")),
)
# How clauses are joined, and which of them counts.
FORMS = (
    ("{0}", 0),
    ("{0} but {1}", 1),
    ("although {0} , {1}", 1),
    ("{0} , although {1}", 0),
    ("although {0} , {1} but {2}", 2),
    ("{0} but {1} , although {2}", 1),
)

HIDDEN_SIZE, BATCH, EPOCHS, SEEN, UNSEEN = 64, 50, 20, 2000, 2000
LEARNING_RATE = 4e-3
LEAST_ACCURACY = 0.95
SHOWN = (
    "the film was very good",
    "the film was not very good",
    "although the plot was really silly , the acting was brilliant",
    "the music was great but i doubt that the ending was anything but dull",
)


class Figures(NamedTuple):
    """Shares of the unseen sentences that are classified correctly."""

    accuracy: float
    bag_of_words: float  # by logistic regression on the counts of words
    majority: float  # by the more frequent class


def clause(rng: Random) -> tuple[str, bool]:
    """Its text and whether it is positive."""
    opening, doubted = rng.choice(OPENINGS)
    negation, negated = rng.choice(NEGATIONS)
    adjective, positive = rng.choice(ADJECTIVES)
    text = f"{opening} {rng.choice(SUBJECTS)} was {negation} {rng.choice(DEGREES)} {adjective}"
    return text, positive ^ negated ^ doubted


def draw_sentences(rng: Random, count: int) -> tuple[list[Sentence], Array]:
    """Different sentences and their classes [count]: 1 positive, 0 negative."""
    found: dict[Sentence, bool] = {}
    while len(found) < count:
        form, decisive = rng.choice(FORMS)
        clauses = [clause(rng) for _ in range(3)]
        sentence = tuple(form.format(*(text for text, _ in clauses)).split())
        found[sentence] = clauses[decisive][1]
    # short sentences come up early, and would all be at the beginning
    sentences = rng.sample(list(found), count)
    return sentences, np.array([found[sentence] for sentence in sentences], np.int64)


def encode(sentences: Sequence[Sentence], ids: dict[str, int]) -> tuple[Array, Array]:
    """Tokens [T, B], 0 past the ends, and lengths [B]."""
    lengths = np.array([len(sentence) for sentence in sentences])
    tokens = np.zeros((lengths.max(), len(sentences)), np.int64)
    for b, sentence in enumerate(sentences):
        tokens[: lengths[b], b] = [ids[word] for word in sentence]
    return tokens, lengths


def train(rnn: cf.RNN, tokens: Array, lengths: Array, classes: Array) -> None:
    """EPOCHS passes over tokens [T, B], lengths [B] and classes [B], BATCH sentences at a time."""
    targets = np.full(tokens.shape, -1)
    targets[lengths - 1, np.arange(len(lengths))] = classes
    adam, rng = cf.optim.Adam(rnn), np.random.default_rng(0)
    for epoch in range(EPOCHS):
        adam.lr = LEARNING_RATE * (1 - epoch / EPOCHS)
        losses: list[float] = []
        for rows in rng.permutation(len(lengths)).reshape(-1, BATCH):
            mask_seed = epoch * len(lengths) + len(losses)  # another one for each update
            x = np.ascontiguousarray(tokens[:, rows])
            y, _ = rnn.forward(x, lengths=lengths[rows], mask_seed=mask_seed)  # [T, B, O = 2]
            loss, dy = cf.cross_entropy(y, np.ascontiguousarray(targets[:, rows]))
            _, _, grads = rnn.backward(dy)
            cf.clip_grad_norm(grads, 1.0)
            adam.step(grads)
            losses.append(loss)
        print(f"epoch {epoch + 1:2}: {np.mean(losses):.4f} nats")


def predict(rnn: cf.RNN, tokens: Array, lengths: Array) -> Array:
    """The classes [B] predicted at the last words."""
    y, _ = rnn.forward(tokens, lengths=lengths, keep=False)
    classes: Array = y[lengths - 1, np.arange(len(lengths))].argmax(axis=-1)
    return classes


def probabilities(rnn: cf.RNN, sentence: Sentence, ids: dict[str, int]) -> Array:
    """The probability of the positive class after each word, [T]."""
    rnn.reset()
    y = np.stack([rnn.step(ids[word]) for word in sentence])
    p: Array = 1 / (1 + np.exp(y[:, 0] - y[:, 1]))
    return p


def by_bag_of_words(counts: Array, classes: Array, unseen: Array) -> Array:
    """Logistic regression on counts [B, V] by gradient descent; the classes of the unseen ones."""
    weight, bias = np.zeros(counts.shape[1]), 0.0
    for _ in range(1000):
        _, dlogits = cf.binary_cross_entropy(counts @ weight + bias, classes.astype(np.float64))
        weight -= 0.1 * dlogits @ counts
        bias -= 0.1 * dlogits.sum()
    found: Array = unseen @ weight + bias > 0
    return found


def count_words(tokens: Array, lengths: Array, size: int) -> Array:
    """Bags of words [B, V] of tokens [T, B]."""
    return np.stack(
        [np.bincount(tokens[:n, b], minlength=size) for b, n in enumerate(lengths)]
    ).astype(np.float64)


def picture(path: str) -> Path:
    """The argument of --plot, refused before any work starts."""
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("takes matplotlib: pip install 'charrnn_fast[plot]'")
    if not Path(path).parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(path).parent}")
    if Path(path).suffix not in (".pdf", ".png", ".svg"):
        raise argparse.ArgumentTypeError(f"pictures end in .pdf, .png or .svg, got {path}")
    return Path(path)


def plot(shown: dict[Sentence, Array], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8.5), layout="constrained")
    for axes, (sentence, p) in zip(figure.subplots(len(shown)), shown.items(), strict=True):
        axes.bar(range(len(p)), p - 0.5, bottom=0.5, color=np.where(p > 0.5, "C0", "C3"))
        axes.axhline(0.5, color="black", linewidth=0.8)
        axes.set_xticks(range(len(p)), sentence, rotation=20)
        axes.set_ylim(0, 1)
        axes.set_ylabel("positive")
    figure.suptitle("Many to one: the probability of the positive class after each word")
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> Figures:
    parser = argparse.ArgumentParser(description="many to one: the sentiment of sentences")
    parser.add_argument("--plot", type=picture, metavar="PICTURE", help="takes matplotlib")
    path: Path | None = parser.parse_args(argv).plot

    sentences, classes = draw_sentences(Random(0), SEEN + UNSEEN)
    words = sorted({word for sentence in sentences for word in sentence})
    ids = {word: i for i, word in enumerate(words)}
    tokens, lengths = encode(sentences[:SEEN], ids)
    unseen, unseen_lengths = encode(sentences[SEEN:], ids)
    classes, unseen_classes = classes[:SEEN], classes[SEEN:]

    rnn = cf.RNN(len(words), HIDDEN_SIZE, 2, cell="lstm", output_dropout=0.2)
    train(rnn, tokens, lengths, classes)
    found = predict(rnn, unseen, unseen_lengths)
    by_bags = by_bag_of_words(
        count_words(tokens, lengths, len(words)),
        classes,
        count_words(unseen, unseen_lengths, len(words)),
    )
    figures = Figures(
        accuracy=float((found == unseen_classes).mean()),
        bag_of_words=float((by_bags == unseen_classes).mean()),
        majority=float(np.bincount(unseen_classes).max() / UNSEEN),
    )
    shown = {tuple(text.split()): probabilities(rnn, tuple(text.split()), ids) for text in SHOWN}
    for sentence, p in shown.items():
        print(f"{p[-1]:6.1%} positive: {' '.join(sentence)}")
    print(
        f"of {UNSEEN} unseen sentences, classified rightly: network {figures.accuracy:.1%}, bag "
        f"of words {figures.bag_of_words:.1%}, more frequent class {figures.majority:.1%}"
    )
    if path:
        plot(shown, path)
        print(f"the verdicts: {path}")
    return figures


if __name__ == "__main__":
    accuracy = main().accuracy
    if accuracy < LEAST_ACCURACY:
        sys.exit(f"the network got {accuracy:.1%} right, it has to be {LEAST_ACCURACY:.0%}")
