"""One to one: an image in, a digit out, with no recurrence in time.

"Vanilla mode of processing without RNN, from fixed-sized input to fixed-sized output (e.g. image
classification)" (A. Karpathy, The Unreasonable Effectiveness of Recurrent Neural Networks, 2015):
the first of the article's five shapes. It is a sequence of one step. h is zero before it, so W_hh
multiplies zeros. What is left is a multilayer perceptron:

    h = tanh(W_xh x + b_h);  y = W_hy h + b_y

It reads digits of 7 x 5 pixels anywhere in an image of 12 x 12, under noise. Where a pixel lies
tells little about the digit, so a linear classifier of the same images stays far behind.

    python examples/one_to_one.py [--plot PICTURE]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import charrnn_fast as cf

Array = NDArray[Any]

GLYPHS = """
.###. ..#.. .###. .###. ...#. ##### ..##. ##### .###. .###.
#...# .##.. #...# #...# ..##. #.... .#... ....# #...# #...#
#..## ..#.. ....# ....# .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ..##. #..#. ....# ####. ..#.. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# ..#.. #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# ..#.. #...# ...#.
.###. .###. ##### .###. ...#. .###. .###. ..#.. .###. .##..
"""
ROWS = [line.split() for line in GLYPHS.split("\n")[1:-1]]
DIGITS = np.array([[list(row) for row in glyph] for glyph in zip(*ROWS, strict=True)]) == "#"

SIZE, NOISE = 12, 0.2
HIDDEN_SIZE, BATCH, UPDATES, UNSEEN = 256, 128, 3000, 4000
LEARNING_RATE = 4e-3
LEAST_ACCURACY = 0.95


class Figures(NamedTuple):
    """Shares of the unseen images that are classified correctly, and the gradient of W_hh."""

    accuracy: float
    linear: float  # by a linear classifier
    majority: float  # by always naming the most frequent digit
    largest_recurrent_gradient: float  # of any element of W_hh in the last update


def draw_digits(rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Images [B, SIZE * SIZE] and their digits [B]."""
    _, height, width = DIGITS.shape
    labels = rng.integers(0, 10, count)
    tops = rng.integers(0, SIZE - height + 1, count)
    lefts = rng.integers(0, SIZE - width + 1, count)
    images = NOISE * rng.standard_normal((count, SIZE, SIZE), np.float32)
    for image, label, top, left in zip(images, labels, tops, lefts, strict=True):
        image[top : top + height, left : left + width] += DIGITS[label]
    return images.reshape(count, -1), labels


def predict(rnn: cf.RNN, images: Array) -> Array:
    """The digits [B] of images [B, I]."""
    y, _ = rnn.forward(images[np.newaxis], keep=False)  # [T = 1, B, O]
    digits: Array = y[0].argmax(axis=-1)
    return digits


def picture(path: str) -> Path:
    """The argument of --plot, refused before any work starts."""
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("takes matplotlib: pip install 'charrnn_fast[plot]'")
    if not Path(path).parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(path).parent}")
    if Path(path).suffix not in (".pdf", ".png", ".svg"):
        raise argparse.ArgumentTypeError(f"pictures end in .pdf, .png or .svg, got {path}")
    return Path(path)


def plot(images: Array, labels: Array, found: Array, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    chosen = [*range(30), *np.flatnonzero(found != labels)[:10]]
    for axes, i in zip(figure.subplots(4, 10).flat, chosen, strict=False):
        axes.imshow(images[i].reshape(SIZE, SIZE), cmap="gray_r", vmin=-0.5, vmax=1.5)
        axes.set_axis_off()
        if found[i] == labels[i]:
            axes.set_title(found[i], fontsize=10)
        else:
            axes.set_title(f"{found[i]}, not {labels[i]}", fontsize=10, color="C3")
    figure.suptitle("One to one: unseen images and the digits found; last row, the first mistakes")
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> Figures:
    parser = argparse.ArgumentParser(description="one to one: digits in images")
    parser.add_argument("--plot", type=picture, metavar="PICTURE", help="takes matplotlib")
    path: Path | None = parser.parse_args(argv).plot

    rng = np.random.default_rng(0)
    rnn = cf.RNN(SIZE * SIZE, HIDDEN_SIZE, 10)
    adam = cf.optim.Adam(rnn)
    weight, bias = np.zeros((10, SIZE * SIZE), np.float32), np.zeros(10, np.float32)
    for update in range(UPDATES):
        images, labels = draw_digits(rng, BATCH)
        remaining = 1 - update / UPDATES
        adam.lr = LEARNING_RATE * remaining
        y, _ = rnn.forward(images[np.newaxis])
        loss, dy = cf.cross_entropy(y, labels[np.newaxis])
        _, _, grads = rnn.backward(dy)
        adam.step(grads)

        linear_loss, dlogits = cf.cross_entropy(images @ weight.T + bias, labels)
        weight -= 0.3 * remaining * dlogits.T @ images
        bias -= 0.3 * remaining * dlogits.sum(axis=0)
        if update % 500 == 0 or update == UPDATES - 1:
            print(f"update {update:4}: network {loss:.4f}, linear {linear_loss:.4f} nats")

    images, labels = draw_digits(rng, UNSEEN)
    found = predict(rnn, images)
    figures = Figures(
        accuracy=float((found == labels).mean()),
        linear=float(((images @ weight.T + bias).argmax(axis=-1) == labels).mean()),
        majority=float(np.bincount(labels).max() / UNSEEN),
        largest_recurrent_gradient=float(np.abs(grads["weight_hh_l0"]).max()),
    )
    print(
        f"of {UNSEEN} unseen images, named rightly: network {figures.accuracy:.1%}, linear "
        f"classifier {figures.linear:.1%}, most frequent digit {figures.majority:.1%}\n"
        f"largest gradient of any recurrent weight: {figures.largest_recurrent_gradient:g}"
    )
    if path:
        plot(images, labels, found, path)
        print(f"the images: {path}")
    return figures


if __name__ == "__main__":
    accuracy = main().accuracy
    if accuracy < LEAST_ACCURACY:
        sys.exit(f"the network named {accuracy:.1%} rightly, it has to be {LEAST_ACCURACY:.0%}")
