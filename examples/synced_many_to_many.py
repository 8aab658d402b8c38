"""Synced many to many: the frames of a video in, a label for every frame out.

"Synced sequence input and output (e.g. video classification where we wish to label each frame of
the video)" (A. Karpathy, The Unreasonable Effectiveness of Recurrent Neural Networks, 2015): the
fifth of the article's five shapes. A blurred dot moves over a grid that wraps around at its edges,
one pixel a frame, and changes its direction at random. Noise covers it, and some frames miss it
altogether. The label of a frame is where the dot goes next: left, right, up, down, or nowhere. In a
clip's last frame it is where the dot would go.

No single frame shows that: the same network trained on single frames (T = 1) is no better than
guessing. A frame and the next one show it, so the network is bidirectional and reads each clip from
both ends.

    python examples/synced_many_to_many.py [--plot PICTURE]
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

LABELS = ("left", "right", "up", "down", "rest")
MOVES = np.array([(0, -1), (0, 1), (-1, 0), (1, 0), (0, 0)])  # rows, columns
GRID, BLUR, NOISE, MISSED, CHANGES = 12, 1.2, 0.15, 0.05, 0.15
HIDDEN_SIZE, FRAMES, BATCH, UPDATES, UNSEEN = 64, 24, 32, 600, 500
LEARNING_RATE = 5e-3
LEAST_ACCURACY = 0.90


class Figures(NamedTuple):
    """Shares of the frames of unseen clips that are labelled correctly."""

    accuracy: float
    single_frames: float  # by the same network, trained and run on single frames
    majority: float  # by the most frequent label


def film(rng: np.random.Generator, batch: int) -> tuple[Array, Array]:
    """Frames [T, B, GRID * GRID] and their labels [T, B]."""
    shape = (FRAMES, batch)
    labels = rng.integers(0, len(LABELS), shape)
    changes = rng.random(shape) < CHANGES
    for t in range(1, FRAMES):
        labels[t] = np.where(changes[t], labels[t], labels[t - 1])
    moves = MOVES[labels]  # [T, B, 2]
    positions = rng.integers(0, GRID, (batch, 2)) + np.cumsum(moves, axis=0) - moves

    # [T, B, 2, GRID]: how far each row and each column is from the dot, the shorter way round
    distances = np.abs(np.arange(GRID) - positions[..., np.newaxis] % GRID)
    profiles = np.exp(-0.5 * (np.minimum(distances, GRID - distances) / BLUR) ** 2)
    profiles[rng.random(shape) < MISSED] = 0
    frames = profiles[:, :, 0, :, np.newaxis] * profiles[:, :, 1, np.newaxis, :]
    frames += NOISE * rng.standard_normal(frames.shape)
    return frames.reshape(*shape, -1).astype(np.float32), labels


def single(frames: Array) -> Array:
    """Each frame or label of [T, B, ...] as a clip of its own, [1, T * B, ...]."""
    return frames.reshape(1, -1, *frames.shape[2:])


def update(rnn: cf.RNN, adam: cf.optim.Adam, frames: Array, labels: Array) -> float:
    """One step on frames [T, B, I] and labels [T, B]; returns the loss before it."""
    y, _ = rnn.forward(frames)  # [T, B, O]
    loss, dy = cf.cross_entropy(y, labels)
    _, _, grads = rnn.backward(dy)
    cf.clip_grad_norm(grads, 1.0)
    adam.step(grads)
    return loss


def predict(rnn: cf.RNN, frames: Array) -> Array:
    """The labels [T, B] of frames [T, B, I]."""
    y, _ = rnn.forward(frames, keep=False)
    labels: Array = y.argmax(axis=-1)
    return labels


def picture(path: str) -> Path:
    """The argument of --plot, refused before any work starts."""
    if find_spec("matplotlib") is None:
        raise argparse.ArgumentTypeError("takes matplotlib: pip install 'charrnn_fast[plot]'")
    if not Path(path).parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(path).parent}")
    if Path(path).suffix not in (".pdf", ".png", ".svg"):
        raise argparse.ArgumentTypeError(f"pictures end in .pdf, .png or .svg, got {path}")
    return Path(path)


def plot(frames: Array, labels: Array, found: Array, path: Path) -> None:
    from matplotlib.figure import Figure

    clips, shown = 4, 12
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    for clip, row in enumerate(figure.subplots(clips, shown)):
        for t, axes in enumerate(row):
            axes.imshow(frames[t, clip].reshape(GRID, GRID), cmap="gray_r", vmin=-0.3, vmax=1.2)
            label, answer = LABELS[labels[t, clip]], LABELS[found[t, clip]]
            color = "black" if answer == label else "C3"
            axes.set_title(f"{label}\n{answer}", color=color, fontsize=9)
            axes.set_xticks([])
            axes.set_yticks([])
    figure.suptitle("Synced many to many: frames of unseen clips, true labels above found ones")
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str] | None = None) -> Figures:
    parser = argparse.ArgumentParser(description="synced many to many: a label for every frame")
    parser.add_argument("--plot", type=picture, metavar="PICTURE", help="takes matplotlib")
    path: Path | None = parser.parse_args(argv).plot

    rng = np.random.default_rng(0)
    clips_rnn, frames_rnn = (
        cf.RNN(GRID * GRID, HIDDEN_SIZE, len(LABELS), cell="gru", bidirectional=True)
        for _ in range(2)
    )
    clips_adam, frames_adam = (cf.optim.Adam(rnn) for rnn in (clips_rnn, frames_rnn))
    for i in range(UPDATES):
        frames, labels = film(rng, BATCH)
        clips_adam.lr = frames_adam.lr = LEARNING_RATE * (1 - i / UPDATES)
        loss = update(clips_rnn, clips_adam, frames, labels)
        single_loss = update(frames_rnn, frames_adam, single(frames), single(labels))
        if i % 100 == 0 or i == UPDATES - 1:
            print(f"update {i:4}: clips {loss:.4f}, single frames {single_loss:.4f} nats")

    frames, labels = film(rng, UNSEEN)
    found = predict(clips_rnn, frames)
    figures = Figures(
        accuracy=float((found == labels).mean()),
        single_frames=float((predict(frames_rnn, single(frames)) == single(labels)).mean()),
        majority=float(np.bincount(labels.flat).max() / labels.size),
    )
    print(
        f"of {labels.size} frames of unseen clips, labelled rightly: in clips "
        f"{figures.accuracy:.1%}, by themselves {figures.single_frames:.1%}, all by the most "
        f"frequent label {figures.majority:.1%}"
    )
    if path:
        plot(frames, labels, found, path)
        print(f"the clips: {path}")
    return figures


if __name__ == "__main__":
    accuracy = main().accuracy
    if accuracy < LEAST_ACCURACY:
        sys.exit(f"the network labelled {accuracy:.1%} rightly, it has to be {LEAST_ACCURACY:.0%}")
