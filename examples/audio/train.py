"""A guitar effect, learned by an LSTM from what goes in and what comes out.

The effect to learn is an overdrive whose bias follows how loud the signal has been: it has a memory
of some 10 ms, so that no function of the present sample describes it. The signal that it is learned
from is made here: chords of plucked strings (Karplus and Strong 1983). The network is one LSTM with
a decoder of one unit, as small as real time asks for, trained by the mean square of the error,
1,024 samples at a time. The measure is the error-to-signal ratio over strings that were not heard
in training: the energy of the error over that of the effect's output (Wright et al. 2019).

    python examples/audio/train.py FOLDER [--steps 2000]

It writes into FOLDER: model.txt, the weights; clean.wav, unheard strings; and expected.wav, what
this network makes of them. `effect.cpp`, beside this file, does the same from model.txt in real
time, block by block, and gives the same bits.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import charrnn_fast as cf

Array = NDArray[Any]

RATE = 22_050  # samples per second
HIDDEN_SIZE, BATCH, LENGTH = 20, 32, 1024
LEARNING_RATE = 5e-3
HEARD, UNHEARD = 24.0, 4.0  # seconds
FRETS = (0, 2, 3, 5, 7, 8, 10, 12)
OPEN_STRINGS = (82.4, 110.0, 146.8, 196.0, 246.9, 329.6)  # Hz


def pluck(frequency: float, samples: int, rng: np.random.Generator) -> Array:
    """A string: noise that runs around a loop of one period, averaged with its neighbour."""
    period = round(RATE / frequency)
    sound = np.zeros(samples + period)
    sound[:period] = rng.uniform(-1, 1, period)
    for begin in range(period, len(sound), period - 1):  # a loop of which all is known
        end = min(begin + period - 1, len(sound))
        before = sound[begin - period : end - period + 1]
        sound[begin:end] = 0.498 * (before[:-1] + before[1:])
    return sound[period:]


def chords(seconds: float, seed: int) -> Array:
    """Clean sound [samples], float32: a chord of one to six strings every half second."""
    rng = np.random.default_rng(seed)
    sound = np.zeros(int(seconds * RATE))
    for begin in range(0, len(sound), RATE // 2):
        strings = rng.permutation(OPEN_STRINGS)[: rng.integers(1, 7)]
        for string in strings:
            at = begin + int(rng.integers(0, RATE // 25))  # strummed
            samples = max(0, min(2 * RATE, len(sound) - at))
            pitch = string * 2 ** (rng.choice(FRETS) / 12)
            sound[at : at + samples] += rng.uniform(0.2, 1) * pluck(pitch, samples, rng)
    clean: Array = (sound / np.abs(sound).max()).astype(np.float32)
    return clean


def smoothed(x: Array, seconds: float) -> Array:
    """x through a filter of the first order with this time constant."""
    keep, y, last = np.exp(-1 / (seconds * RATE)), np.empty(len(x)), 0.0
    for t, value in enumerate(x.tolist()):
        last = keep * last + (1 - keep) * value
        y[t] = last
    return y


def overdrive(x: Array) -> Array:
    """The effect to learn, of [samples] float32: the loud sags, and is clipped unevenly."""
    tight = x - smoothed(x, 2e-3)  # without the lowest notes
    loud = smoothed(np.abs(tight), 1e-2)
    clipped = np.tanh(6 * tight / (1 + 4 * loud) + 1.5 * loud) - np.tanh(1.5 * loud)
    return smoothed(clipped, 4e-5).astype(np.float32)


def streams(x: Array) -> Array:
    """[samples] as BATCH streams that run side by side, [T, BATCH, 1]."""
    length = len(x) // BATCH
    return np.ascontiguousarray(x[: length * BATCH].reshape(BATCH, length, 1).swapaxes(0, 1))


def train(rnn: cf.RNN, clean: Array, wanted: Array, steps: int) -> None:
    """Updates from LENGTH samples of every stream at a time; states are carried on."""
    x, targets = streams(clean), streams(wanted)
    adam = cf.optim.Adam(rnn)
    state, at = None, 0
    for step in range(steps):
        if at + LENGTH > len(x):
            state, at = None, 0
        adam.lr = LEARNING_RATE * (1 - step / steps)
        now = slice(at, at + LENGTH)
        y, state = rnn.forward(x[now], state)
        loss, dy = cf.mean_square(y, targets[now])
        _, _, grads = rnn.backward(dy)
        cf.clip_grad_norm(grads, 1.0)
        adam.step(grads)
        at += LENGTH
        if (step + 1) % max(1, steps // 10) == 0:
            print(f"step {step + 1:5}: mean square error {loss:.2e}", flush=True)


def error_to_signal(y: Array, wanted: Array) -> float:
    return float(np.square(y - wanted).sum() / np.square(wanted).sum())


def write_model(path: Path, rnn: cf.RNN) -> None:
    """The network's sizes, then every parameter: a line of name and shape, a line of numbers.

    Nine digits tell every float32 from its neighbours.
    """
    lines = [f"lstm {rnn.input_size} {rnn.hidden_size} {rnn.output_size}"]
    for name, array in rnn.parameters().items():
        lines.append(" ".join([name, *map(str, array.shape)]))
        lines.append(" ".join(f"{x:.9g}" for x in array.ravel()))
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def write_wav(path: Path, sound: Array) -> None:
    """One channel of 32-bit floating point."""
    data = sound.astype("<f4").tobytes()
    form = struct.pack("<HHIIHH", 3, 1, RATE, RATE * 4, 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


def main(argv: Sequence[str] | None = None) -> float:
    """Returns the error-to-signal ratio."""
    parser = argparse.ArgumentParser(description="a guitar effect, learned by an LSTM")
    parser.add_argument("folder", type=Path, help="receives model.txt, clean.wav, expected.wav")
    parser.add_argument("--steps", type=int, default=2000, help="updates (default: 2000)")
    args = parser.parse_args(argv)
    if args.steps < 1:
        parser.error(f"--steps must be >= 1, got {args.steps}")
    if not args.folder.is_dir():
        parser.error(f"FOLDER must exist, got {args.folder}")

    heard, unheard = chords(HEARD, seed=1), chords(UNHEARD, seed=2)
    rnn = cf.RNN(1, HIDDEN_SIZE, 1, cell="lstm", seed=0)
    train(rnn, heard, overdrive(heard), args.steps)

    y, _ = rnn.forward(unheard[:, None, None], keep=False)  # one stream, [T, 1, 1]
    output = np.ascontiguousarray(y[:, 0, 0])
    wanted = overdrive(unheard)
    ratio, before = error_to_signal(output, wanted), error_to_signal(unheard, wanted)
    print(
        f"error-to-signal ratio on unheard strings: {ratio:.2%} (of the clean sound {before:.0%})"
    )
    write_model(args.folder / "model.txt", rnn)
    write_wav(args.folder / "clean.wav", unheard)
    write_wav(args.folder / "expected.wav", output)
    return ratio


if __name__ == "__main__":
    main()
