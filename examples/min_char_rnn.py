"""min-char-rnn's own setting, by NumPy and by the kernels: one learning curve, two times.

A vanilla RNN of 100 hidden units with one bias reads a text 25 characters at a time and carries its
hidden state. Losses are summed, gradients clipped to +-5 by value, and Adagrad takes steps of 0.1.
`charrnn_fast.reference` and the kernels start from the same weights, read the same characters and
take turns; each is timed by itself. The example prints both smoothed losses as they fall and a
sample of the trained network, and draws the two curves on top of each other.

The setting is chaotic. Adagrad's first steps move every weight by 0.1, ten times its size, and each
of them magnifies a difference in the last bit of one weight some fifty times. So the losses agree
to all digits at first. After some ten updates (float64: two hundred) they are those of two runs of
one experiment. A third curve shows how far apart such runs are: the kernels again, with a single
weight that is one bit off.

    python examples/min_char_rnn.py [TEXT] [--iterations N] [--plot PICTURE]

A. Karpathy, min-char-rnn (gist.github.com/karpathy/d4dee566867f8291f086), 2015.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import charrnn_fast as cf
from charrnn_fast import reference
from charrnn_fast.text import demo

Array = NDArray[Any]
Update = Callable[[Array, Array, bool], float]

HIDDEN_SIZE, SEQ_LEN, LEARNING_RATE, CLIP_VALUE = 100, 25, 0.1, 5.0
# min-char-rnn divides by sqrt(sum + 1e-8), the optimizers by sqrt(sum) + eps: the same least value
EPS = 1e-4
BLOCK = 500  # updates by one way before it is the next one's turn
WAYS = ("NumPy", "kernels", "one bit off")


class Curve(NamedTuple):
    """One way of computing: its losses (nats per 25 characters), [iterations], and its time."""

    losses: Array
    smoothed: Array
    seconds: float


def initial_weights(size: int, dtype: str) -> dict[str, Array]:
    """min-char-rnn's: normal with a deviation of 0.01, biases zero."""
    rng = np.random.default_rng(0)
    shapes = {
        "weight_ih_l0": (HIDDEN_SIZE, size),
        "weight_hh_l0": (HIDDEN_SIZE, HIDDEN_SIZE),
        "decoder.weight": (size, HIDDEN_SIZE),
    }
    weights = {name: 0.01 * rng.standard_normal(shape) for name, shape in shapes.items()}
    weights |= {"bias_ih_l0": np.zeros(HIDDEN_SIZE), "decoder.bias": np.zeros(size)}
    return {name: value.astype(dtype) for name, value in weights.items()}


def by_reference(weights: dict[str, Array]) -> Update:
    parameters = {name: value.copy() for name, value in weights.items()}
    optimizer = reference.Adagrad(parameters, lr=LEARNING_RATE, eps=EPS)
    state: Any = None

    def update(inputs: Array, targets: Array, fresh: bool) -> float:
        nonlocal state
        y, state, cache = reference.forward(parameters, inputs, None if fresh else state)
        loss, dy = reference.cross_entropy(y, targets, "sum")
        _, _, grads = reference.backward(parameters, cache, dy)
        reference.clip_grad_value(grads, CLIP_VALUE)
        optimizer.step(grads)
        return loss

    return update


def by_kernels(weights: dict[str, Array], vocabulary: cf.Vocabulary) -> tuple[cf.CharLM, Update]:
    dtype = weights["weight_hh_l0"].dtype.name
    model = cf.CharLM(vocabulary, HIDDEN_SIZE, 1, "rnn", dtype=dtype, bias="single")
    model.rnn.load_parameters(weights)
    trainer = cf.Trainer(
        model,
        optimizer=cf.optim.Adagrad(model, lr=LEARNING_RATE, eps=EPS),
        clip_norm=None,
        clip_value=CLIP_VALUE,
        reduction="sum",
    )

    def update(inputs: Array, targets: Array, fresh: bool) -> float:
        if fresh:
            trainer.reset()
        return trainer.step(inputs, targets)

    return model, update


def chunks(tokens: Array, iterations: int) -> Iterator[tuple[Array, Array, bool]]:
    """Inputs and targets [T, B = 1] of each update, and whether the text starts anew."""
    per_pass = (len(tokens) - 2) // SEQ_LEN
    for iteration in range(iterations):
        begin = iteration % per_pass * SEQ_LEN
        chunk = tokens[begin : begin + SEQ_LEN + 1, np.newaxis]
        yield chunk[:-1], chunk[1:], begin == 0


def train(tokens: Array, size: int, updates: Sequence[Update], iterations: int) -> list[Curve]:
    """Every way on the same chunks, by turns of BLOCK updates."""
    losses, smoothed = np.empty((2, len(updates), iterations))
    smooth, seconds = np.full(len(updates), np.log(size) * SEQ_LEN), np.zeros(len(updates))
    remaining = chunks(tokens, iterations)
    for first in range(0, iterations, BLOCK):
        block = list(itertools.islice(remaining, BLOCK))
        for way, update in enumerate(updates):
            begin = time.perf_counter()
            losses[way, first : first + BLOCK] = [update(*chunk) for chunk in block]
            seconds[way] += time.perf_counter() - begin
        for iteration in range(first, first + len(block)):
            smooth = smoothed[:, iteration] = 0.999 * smooth + 0.001 * losses[:, iteration]
        shown = ", ".join(f"{name} {loss:.6f}" for name, loss in zip(WAYS, smooth, strict=True))
        print(f"iter {first + len(block):6}, loss: {shown}")
    return [Curve(*curve) for curve in zip(losses, smoothed, seconds.tolist(), strict=True)]


def unfit(path: Path) -> str | None:
    """Why a picture cannot be written to path, checked before the training."""
    from matplotlib.backend_bases import FigureCanvasBase

    endings = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.is_dir():
        return f"{path} is a folder"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}"
    if path.suffix[1:].lower() not in ("", *endings):  # matplotlib makes "" a .png
        return f"pictures end in {', '.join(endings)}, got {path}"
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        return f"{path} cannot be written"
    return None


def draw(curves: list[Curve], path: Path) -> None:
    from matplotlib.figure import Figure

    numpy, kernels, one_bit_off = curves
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    label = f"NumPy reference, {numpy.seconds:.1f} s"
    axes.plot(numpy.smoothed, label=label, color="C1", linewidth=4, alpha=0.5)
    label = f"kernels, {kernels.seconds:.1f} s"
    axes.plot(kernels.smoothed, label=label, color="C0", linewidth=1.2)
    label = "kernels, one weight one bit off"
    axes.plot(one_bit_off.smoothed, label=label, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlabel(f"update (of {SEQ_LEN} characters)")
    axes.set_ylabel(f"smoothed loss (nats per {SEQ_LEN} characters)")
    times = numpy.seconds / kernels.seconds
    axes.set_title(f"min-char-rnn: the same learning curve, {times:.0f} times as fast")
    axes.legend()
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> list[Curve]:
    """Returns the three curves: the NumPy reference, the kernels, the kernels with one bit off."""
    parser = argparse.ArgumentParser(description="min-char-rnn by NumPy and by the kernels")
    parser.add_argument(
        "text", nargs="?", type=Path, help="a text file (default: Python's standard library)"
    )
    parser.add_argument("--iterations", type=int, default=10_000, metavar="N")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--plot", type=Path, default=Path("min_char_rnn.png"), metavar="PICTURE")
    parser.add_argument("--no-plot", action="store_true", help="do without matplotlib")
    given = parser.parse_args(argv)
    if given.iterations < 1:
        parser.error(f"--iterations must be 1 or more, got {given.iterations}")
    if not given.no_plot and find_spec("matplotlib") is None:
        parser.error(
            "the picture takes matplotlib: pip install 'charrnn_fast[plot]', or give --no-plot"
        )
    if not given.no_plot and (complaint := unfit(given.plot)):
        parser.error(f"--plot: {complaint}")
    try:
        text = demo.text() if given.text is None else given.text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"TEXT cannot be read: {error}")
    if len(text) < SEQ_LEN + 2:
        parser.error(f"TEXT must have {SEQ_LEN + 2} characters or more, got {len(text)}")
    if len(set(text)) < 2:
        parser.error(f"TEXT must have two different characters or more, got {text[0]!r} only")
    vocabulary = cf.Vocabulary.from_text(text)
    size = len(vocabulary)
    print(f"data has {len(text)} characters, {size} unique.")

    weights = initial_weights(size, given.dtype)
    off = {name: value.copy() for name, value in weights.items()}
    off["decoder.weight"].flat[0] = np.nextafter(weights["decoder.weight"].flat[0], np.inf)
    model, update = by_kernels(weights, vocabulary)
    updates = (by_reference(weights), update, by_kernels(off, vocabulary)[1])
    curves = train(vocabulary.encode(text), size, updates, given.iterations)

    print(f"----\n{model.sample(200, seed=0)}\n----")
    numpy, kernels, _ = curves
    for name, curve in zip(WAYS, curves[:2], strict=False):
        each = 1e3 * curve.seconds / given.iterations
        print(f"{name:8}{curve.seconds:8.2f} s, {each:.3f} ms per update")
    print(f"the kernels are {numpy.seconds / kernels.seconds:.1f} times as fast")
    if not given.no_plot:
        draw(curves, given.plot)
        print(f"the curves: {given.plot}")
    return curves


if __name__ == "__main__":
    main()
