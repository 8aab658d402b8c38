"""One to many: a drawing goes in once, its description comes out character by character.

    c, _ = encoder.forward(bitmap)               # y [T = 1, B, H] is the decoder's c [L = 1, B, H]
    y, _ = decoder.forward(characters, (h, c))   # h is zero
    _, (_, dc), _ = decoder.backward(dy)
    encoder.backward(dc)                         # what the decoder would rather have been told

This is the article's "one to many", image captioning, in a small world: circles, squares, triangles
and crosses, filled or hollow, small or large, anywhere on 24 x 24 noisy pixels. Sizes and places
are real numbers, so no drawing comes twice and every test drawing is unseen. The score is the share
of test drawings that are described right to the last character. The baseline always gives the most
frequent description of the training.

    python examples/one_to_many.py [--plot PICTURE]
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import charrnn_fast as cf

Array = NDArray[Any]

SIZE, NOISE = 24, 0.1  # pixels along a side, standard deviation of the noise on them
# A shape is what lies within a radius, by a distance of its own: y is downwards, x to the right.
SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "circle": np.hypot,
    "square": lambda y, x: np.maximum(abs(y), abs(x)),
    "triangle": lambda y, x: np.maximum(y, 2 * abs(x) - y),
    "cross": lambda y, x: np.maximum(np.maximum(abs(y), abs(x)), 3 * np.minimum(abs(y), abs(x))),
}
RADII = {"small": (4.5, 5.5), "large": (7.0, 9.0)}
FILLS = {"filled": -1.0, "hollow": 0.6}  # what lies within this part of the radius is blank
VERTICAL, HORIZONTAL = ("upper", "middle", "lower"), ("left", "centre", "right")
END = "\n"  # opens and ends a description

ENCODER_SIZE, DECODER_SIZE = 256, 64
BATCH, UPDATES, LEARNING_RATE, CLIP_NORM = 96, 2000, 4e-3, 1.0
TESTS = 1000
BOUND = 0.9  # the least share of exact descriptions


class Figures(NamedTuple):
    exact: float  # share of the test drawings that are described right to the last character
    baseline: float  # the same for the description that is the most frequent in training
    losses: list[float]  # nats per character at each update


def drawings(rng: np.random.Generator, count: int) -> tuple[Array, list[str]]:
    """Random bitmaps as the encoder's input [T = 1, B, I] float32, and their descriptions."""
    size, fill, shape = (rng.integers(0, len(names), count) for names in (RADII, FILLS, SHAPES))
    radius = rng.uniform(*np.array([*RADII.values()])[size].T)
    centre = rng.uniform(radius, SIZE - radius, (2, count))

    pixels = np.arange(SIZE) + 0.5
    rows, columns = (pixels - centre[..., np.newaxis]).astype(np.float32)  # [B, SIZE]
    y, x = rows[:, :, np.newaxis], columns[:, np.newaxis]
    distances = [distance(y, x) for distance in SHAPES.values()]
    outer = radius.astype(np.float32)[:, np.newaxis, np.newaxis]
    inner = np.array([*FILLS.values()], np.float32)[fill, np.newaxis, np.newaxis] * outer
    distance = np.choose(shape[:, np.newaxis, np.newaxis], distances)  # [B, SIZE, SIZE]
    # a pixel on an edge is grey
    bitmaps = np.clip(outer - distance + 0.5, 0, 1) - np.clip(inner - distance + 0.5, 0, 1)
    bitmaps += np.float32(NOISE) * rng.standard_normal(bitmaps.shape, np.float32)

    names = ([*RADII], [*FILLS], [*SHAPES], VERTICAL, HORIZONTAL)
    thirds = (centre * 3 / SIZE).astype(int)
    texts = [
        "a {} {} {} in the {} {}".format(*(words[i] for words, i in zip(names, each, strict=True)))
        for each in zip(size, fill, shape, *thirds, strict=True)
    ]
    return bitmaps.reshape(1, count, -1), texts


class Captioner:
    """The encoder's output for a drawing is the decoder's initial cell state c."""

    def __init__(self) -> None:
        everything = [*RADII, *FILLS, *SHAPES, *VERTICAL, *HORIZONTAL, "a in the ", END]
        self.vocabulary = cf.Vocabulary.from_text("".join(everything))
        size = len(self.vocabulary)
        # One step from a zero state: a layer of hidden units, and a linear one on top of it.
        self.encoder = cf.RNN(SIZE * SIZE, ENCODER_SIZE, DECODER_SIZE, nonlinearity="relu", seed=1)
        self.decoder = cf.RNN(size, DECODER_SIZE, size, cell="lstm", forget_bias=1.0, seed=2)
        self.optimizers = [cf.optim.Adam(rnn) for rnn in (self.encoder, self.decoder)]

    def encode(self, texts: Sequence[str]) -> tuple[Array, Array]:
        """Tokens [T + 1, B] of the texts between ENDs, and the lengths [B] in steps."""
        longest = max(map(len, texts)) + 2
        rows = [self.vocabulary.encode((END + text).ljust(longest, END)) for text in texts]
        return np.stack(rows, axis=1), np.array([len(text) + 1 for text in texts])

    def update(self, x: Array, texts: Sequence[str], learning_rate: float) -> float:
        """One update of both networks for drawings x [1, B, I]; returns nats per character."""
        tokens, lengths = self.encode(texts)
        steps = np.arange(len(tokens) - 1)[:, np.newaxis]
        targets = np.where(steps < lengths, tokens[1:], -1)  # -1 is ignored
        c, _ = self.encoder.forward(x)
        y, _ = self.decoder.forward(tokens[:-1], (np.zeros_like(c), c), lengths=lengths)
        loss, dy = cf.cross_entropy(y, targets)
        _, (_, dc), decoder_grads = self.decoder.backward(dy)
        _, _, encoder_grads = self.encoder.backward(dc)
        for optimizer, grads in zip(self.optimizers, (encoder_grads, decoder_grads), strict=True):
            cf.clip_grad_norm(grads, CLIP_NORM)
            optimizer.lr = learning_rate
            optimizer.step(grads)
        return loss

    def describe(self, x: Array, longest: int = 50) -> list[str]:
        """The most probable character at each step, for drawings x [1, B, I]."""
        c, _ = self.encoder.forward(x, keep=False)
        state = (np.zeros_like(c), c)
        tokens = [np.repeat(self.vocabulary.encode(END), x.shape[1])]
        for _ in range(longest):
            y, state = self.decoder.forward(tokens[-1][np.newaxis], state, keep=False)
            tokens.append(y[0].argmax(axis=1))
        rows = np.stack(tokens[1:], axis=1)
        return [self.vocabulary.decode(row).partition(END)[0] for row in rows]


def draw(bitmaps: Array, descriptions: Sequence[str], truths: Sequence[str], path: Path) -> None:
    """Bitmaps [N, SIZE, SIZE] with their descriptions, wrong ones in red."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    for axes, bitmap, description, truth in zip(
        figure.subplots(4, 5).flat, bitmaps, descriptions, truths, strict=False
    ):
        axes.imshow(bitmap, cmap="gray_r")
        axes.set_xticks([])
        axes.set_yticks([])
        color = "black" if description == truth else "red"
        axes.set_xlabel(description.replace(" in", "\nin"), color=color)
    figure.savefig(path, dpi=100)


def main(plot: Path | None = None, updates: int = UPDATES) -> Figures:
    rng = np.random.default_rng(0)
    captioner = Captioner()
    losses: list[float] = []
    seen: Counter[str] = Counter()
    for update in range(updates):
        x, texts = drawings(rng, BATCH)
        seen.update(texts)
        losses.append(captioner.update(x, texts, LEARNING_RATE * (1 - update / updates)))
        if (update + 1) % 200 == 0:
            print(f"update {update + 1:4}: {np.mean(losses[-200:]):.4f} nats per character")

    x, truths = drawings(rng, TESTS)
    descriptions = captioner.describe(x)
    [(most_frequent, _)] = seen.most_common(1)
    figures = Figures(
        exact=sum(map(str.__eq__, descriptions, truths)) / TESTS,
        baseline=truths.count(most_frequent) / TESTS,
        losses=losses,
    )
    print(f"{figures.exact:.1%} of {TESTS} unseen drawings are described exactly")
    print(f'{figures.baseline:.1%} by "{most_frequent}"')
    if plot is not None:
        draw(x.reshape(TESTS, SIZE, SIZE), descriptions, truths, plot)
        print(f"the drawings: {plot}")
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Drawings described character by character")
    parser.add_argument("--plot", type=Path, metavar="PICTURE", help="takes matplotlib")
    given = parser.parse_args()
    if given.plot and find_spec("matplotlib") is None:
        parser.error("--plot takes matplotlib: pip install 'charrnn_fast[plot]'")
    if given.plot and not given.plot.parent.is_dir():
        parser.error(f"--plot: there is no folder {given.plot.parent}")
    figures = main(given.plot)
    if figures.exact < BOUND:
        sys.exit(f"failed: {figures.exact:.1%} described exactly, it has to be {BOUND:.0%}")
