"""The article's first example: a network of three hidden units learns to spell "hello".

The vocabulary is "helo" and each character is a one-hot vector of four numbers. Reading h, e, l, l,
the network should be confident that e, l, l, o come next. The step is the article's to the letter
(`bias=False`):

    h = tanh(W_hh h + W_xh x);  y = W_hy h

The softmax of y is the confidence in each character. "l" comes twice, and is followed by "l" once
and by "o" once. The input alone cannot tell which; the hidden state can.

A. Karpathy, The Unreasonable Effectiveness of Recurrent Neural Networks, 2015.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import charrnn_fast as cf

Array = NDArray[Any]

WORD = "hello"
VOCABULARY = cf.Vocabulary.from_text("helo")
TOKENS = VOCABULARY.encode(WORD)
INPUTS = VOCABULARY.one_hot(TOKENS[:-1])  # [T, V], T and V both 4
TARGETS = TOKENS[1:]  # [T]


class Figures(NamedTuple):
    """Confidences [T, V] at the three stages, and what the trained network predicts."""

    before: Array
    nudged: Array
    trained: Array
    predicted: str  # character by character
    forgetful: str  # the same with the hidden state set to zero before each character
    same_bits: bool  # whether tokens give exactly what one-hot vectors give


def softmax(y: Array) -> Array:
    exp = np.exp(y - y.max(axis=-1, keepdims=True))
    p: Array = exp / exp.sum(axis=-1, keepdims=True)
    return p


def confidences(rnn: cf.RNN) -> Array:
    """[T, V]: the word's characters step by step, from a hidden state of zero."""
    rnn.reset()
    return softmax(np.stack([rnn.step(x) for x in INPUTS]))


def update(rnn: cf.RNN, optimizer: cf.optim.Optimizer) -> None:
    """Backpropagation through the four steps, and a nudge to every weight."""
    y, _ = rnn.forward(INPUTS[:, np.newaxis])  # [T, B, V] with a batch of one
    _, dy = cf.cross_entropy(y, TARGETS[:, np.newaxis])
    _, _, grads = rnn.backward(dy)
    optimizer.step(grads)


def table(title: str, p: Array) -> None:
    """One line per position: its input, and the confidence in each next character."""
    print(f"\n{title}\n  input" + "".join(f"{c:>9}" for c in VOCABULARY.decode(range(4))))
    for position, (token, target) in enumerate(zip(TOKENS, TARGETS, strict=False)):
        cells = (f"{v:8.3f}{'*' if k == target else ' '}" for k, v in enumerate(p[position]))
        print(f"  {VOCABULARY.decode([token]):>5}{''.join(cells)}")


def main() -> Figures:
    rnn = cf.RNN(4, 3, 4, bias=False)
    print(f"Next characters of {WORD!r}; * marks the correct one.")
    before = confidences(rnn)
    table("before training", before)

    update(rnn, cf.optim.SGD(rnn, lr=0.1))
    nudged = confidences(rnn)
    table("after one small update: every correct character's confidence is higher", nudged)

    adam = cf.optim.Adam(rnn, lr=0.1)
    for _ in range(100):
        update(rnn, adam)
    trained = confidences(rnn)
    predicted = VOCABULARY.decode(trained.argmax(axis=-1))
    table(f"after 100 more: it predicts {', '.join(predicted)}", trained)

    forgotten = []
    for x in INPUTS:
        rnn.reset()
        forgotten.append(rnn.step(x).argmax())
    forgetful = VOCABULARY.decode(forgotten)
    print(
        f"\nAfter the first 'l' comes {predicted[2]!r}, after the second {predicted[3]!r}: the "
        f"recurrence decides.\nWith the hidden state erased before each character, both are "
        f"followed by {forgetful[2]!r}."
    )

    by_vector, _ = rnn.forward(INPUTS[:, np.newaxis])
    by_token, _ = rnn.forward(TOKENS[:-1, np.newaxis])
    same_bits = by_vector.tobytes() == by_token.tobytes()
    print(f"One-hot vectors and tokens give the same bits: {same_bits}")
    return Figures(before, nudged, trained, predicted, forgetful, same_bits)


if __name__ == "__main__":
    main()
