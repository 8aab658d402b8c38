"""Two networks stacked by hand: the output of one is the input of the other.

    y1 = rnn1.step(x)
    y = rnn2.step(y1)

"Except neither of these RNNs know or care - it's all just vectors coming in and going out, and some
gradients flowing through each module during backpropagation" (A. Karpathy, The Unreasonable
Effectiveness of Recurrent Neural Networks, 2015). The two are trained through both, each by an
optimizer of its own, on the text of this file, next to one network of two layers that starts from
the same weights. What they compute is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import charrnn_fast as cf

Array = NDArray[Any]

HIDDEN_SIZE, SEQ_LEN, BATCH, UPDATES = 64, 32, 16, 150


class Figures(NamedTuple):
    losses: list[tuple[float, float]]  # nats per character at each update: stacked, two layers
    largest_difference: float  # between all weights of the two at the end
    steps_agree: bool  # whether rnn2.step(rnn1.step(x)) gives the two layers' output, bit for bit


def two_layers(rnn1: cf.RNN, rnn2: cf.RNN) -> dict[str, Array]:
    """The weights of both as those of one network of two layers."""
    upper = {name.replace("_l0", "_l1"): value for name, value in rnn2.parameters().items()}
    return {**rnn1.parameters(), **upper}


def main() -> Figures:
    text = Path(__file__).read_text(encoding="utf-8")
    vocabulary = cf.Vocabulary.from_text(text)
    tokens, size = vocabulary.encode(text), len(vocabulary)

    rnn1 = cf.RNN(size, HIDDEN_SIZE, cell="gru", seed=1)
    rnn2 = cf.RNN(HIDDEN_SIZE, HIDDEN_SIZE, size, cell="gru", seed=2)
    both = cf.RNN(size, HIDDEN_SIZE, size, cell="gru", num_layers=2)
    both.load_parameters(two_layers(rnn1, rnn2))
    adam1, adam2, adam = (cf.optim.Adam(rnn, lr=5e-3) for rnn in (rnn1, rnn2, both))

    rng, losses = np.random.default_rng(0), []
    for update in range(UPDATES):
        starts = rng.integers(0, len(tokens) - SEQ_LEN, BATCH)
        chunk = tokens[starts + np.arange(SEQ_LEN + 1)[:, np.newaxis]]  # [T + 1, B]
        x, targets = chunk[:-1], chunk[1:]

        y1, _ = rnn1.forward(x)
        y, _ = rnn2.forward(y1)
        loss, dy = cf.cross_entropy(y, targets)
        dy1: Any  # None only where the input is tokens
        dy1, _, grads2 = rnn2.backward(dy)
        _, _, grads1 = rnn1.backward(dy1)
        adam1.step(grads1)
        adam2.step(grads2)

        y, _ = both.forward(x)
        expected, dy = cf.cross_entropy(y, targets)
        _, _, grads = both.backward(dy)
        adam.step(grads)

        losses.append((loss, expected))
        if update % 25 == 0 or update == UPDATES - 1:
            print(f"update {update:3}: two networks {loss:.6f}, two layers {expected:.6f} nats")

    weights = both.parameters()
    largest_difference = max(
        float(np.abs(value - weights[name]).max()) for name, value in two_layers(rnn1, rnn2).items()
    )
    steps_agree = True
    for token in tokens[:100]:
        y1_step = rnn1.step(token)
        y_step = rnn2.step(y1_step)
        steps_agree &= y_step.tobytes() == both.step(token).tobytes()
    print(f"largest difference of any weight after {UPDATES} updates: {largest_difference:g}")
    print(f"step by step, their outputs are the same bits: {steps_agree}")
    return Figures(losses, largest_difference, steps_agree)


if __name__ == "__main__":
    main()
