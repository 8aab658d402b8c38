"""One update of a network on a chunk: document rows, micro-batches, random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _core, optim
from .._checks import called, real
from ..language.model import CharLM
from ..rnn import RNN
from ..text.documents import cut

MASKS, OFFSETS = 0, 1
"""Uses of a training's random numbers: a word of their counter."""


class Chunk(NamedTuple):
    """What B streams read in an update, and where documents begin."""

    inputs: NDArray[np.int32]  # [T, B]
    targets: NDArray[np.int32]  # [T, B], -1: nothing to predict
    begins: NDArray[np.bool_] | None = None
    """[T, B]: whether an input begins a document; None: no documents."""


class Rule(NamedTuple):
    """How a gradient becomes an update."""

    optimizer: optim.Optimizer
    learning_rate: float
    clip_norm: float  # inf: no bound
    clip_value: float  # inf: no bound
    reduction: str  # "mean" | "sum"


class Shared(NamedTuple):
    """How an update is shared out to processes."""

    streams: slice  # this process's
    add_up: Callable[[NDArray[Any], float, int], tuple[float, int]]
    """Sums over the processes: the flat gradient in place, the loss and the count of targets."""


def update(
    rnn: RNN,
    chunk: Chunk,
    state: NDArray[Any],
    rule: Rule,
    micro_batches: int = 1,
    mask_seed: int | None = None,
    shared: Shared | None = None,
) -> tuple[float, float, NDArray[Any]]:
    """One update of rnn's weights, skipped if its loss or gradient norm is not finite.

    state: of the streams, in the kernels' form; may be changed in place. micro_batches:
    micro-batches whose gradients are accumulated one after the other. mask_seed: as in
    `RNN.forward`. shared: then chunk is that of all processes, state that of this one's streams,
    and the update that of one process, masks included, up to the order of the sums. Returns the
    loss, the norm of the gradient before clipping, and the new state.
    """
    network: Any = rnn.core
    settings = (rule.optimizer.core, rule.learning_rate, rule.clip_norm, rule.clip_value)
    batch = chunk.inputs.shape[1]
    if shared is None and min(micro_batches, batch) == 1:
        rows = _Rows(rnn, chunk, state)
        loss, norm = network.train_step(
            rows.inputs,
            rows.targets,
            rows.state,
            *settings,
            rule.reduction,
            mask_seed,
            rows.lengths,
        )
        return float(loss), float(norm), rows.carried(rows.state)
    states = []
    numbers = None
    if shared is not None and mask_seed is not None:
        numbers = Numbers(chunk, micro_batches)
    network.clear_gradients()
    ours = slice(0, batch) if shared is None else shared.streams
    for group in _parts(ours, micro_batches):
        part = Chunk(
            np.ascontiguousarray(chunk.inputs[:, group]),
            np.ascontiguousarray(chunk.targets[:, group]),
            None if chunk.begins is None else chunk.begins[:, group],
        )
        within = slice(group.start - ours.start, group.stop - ours.start)
        its_state = rnn.states.joined([one[:, within] for one in rnn.states.parts(state)])
        rows = _Rows(rnn, part, its_state)
        streams = None if numbers is None else numbers.of(group)
        *_, new = network.accumulate(
            rows.inputs, rows.targets, rows.state, mask_seed, rows.lengths, streams
        )
        states.append(rnn.states.parts(rows.carried(new)))
    if shared is not None:
        gradient, *losses = network.accumulated()
        network.set_accumulated(*shared.add_up(gradient, *losses), gradient)
    loss, norm = network.update(*settings, rule.reduction)
    joined = [np.concatenate(part, axis=1) for part in zip(*states, strict=True)]
    return float(loss), float(norm), rnn.states.joined(joined)


def _parts(streams: slice, micro_batches: int) -> list[slice]:
    """The streams of each micro-batch."""
    numbers = np.arange(streams.start, streams.stop)
    split = np.array_split(numbers, min(micro_batches, len(numbers)))
    return [slice(int(part[0]), int(part[-1]) + 1) for part in split]


class Numbers:
    """The numbers that one process would give the rows of all streams, for their masks.

    As the kernels do: from micro-batch to micro-batch, and in each as `cut` orders the rows, the
    first pieces of its streams and then the others.
    """

    def __init__(self, chunk: Chunk, micro_batches: int) -> None:
        batch = chunk.inputs.shape[1]
        others = np.zeros(batch, np.int64)  # the pieces of each stream after its first
        if chunk.begins is not None:
            others = chunk.begins[1:].sum(axis=0, dtype=np.int64)
        self._ends = np.concatenate([[0], np.cumsum(others)])  # of the streams in self._others
        first: list[NDArray[np.int64]] = []
        other: list[NDArray[np.int64]] = []
        rows = 0
        for group in _parts(slice(0, batch), micro_batches):
            for numbers, count in (
                (first, group.stop - group.start),
                (other, self._ends[group.stop] - self._ends[group.start]),
            ):
                numbers.append(np.arange(rows, rows + count, dtype=np.int64))
                rows += count
        self._first, self._others = np.concatenate(first), np.concatenate(other)

    def of(self, streams: slice) -> NDArray[np.int64]:
        """The numbers of some streams' rows, in the order of `cut`."""
        others = self._others[self._ends[streams.start] : self._ends[streams.stop]]
        return np.concatenate([self._first[streams], others])


class _Rows:
    """The kernels' rows for the streams of a chunk, and their states.

    Without documents the rows are the streams, whose states the kernels change in place.
    """

    def __init__(self, rnn: RNN, chunk: Chunk, state: NDArray[Any]) -> None:
        self._states, self._parts = rnn.states, None
        self.inputs, self.targets, self.state = chunk.inputs, chunk.targets, state
        self.lengths: NDArray[np.int64] | None = None
        if chunk.begins is not None and chunk.begins.any():
            self._parts = parts = cut(chunk.inputs, chunk.targets, chunk.begins)
            self.inputs, self.targets, self.lengths = parts.inputs, parts.targets, parts.lengths
            self.state = rnn.states.joined(parts.first_state(rnn.states.parts(state)))

    def carried(self, state: NDArray[Any]) -> NDArray[Any]:
        """The states of the streams, from those of the rows."""
        if self._parts is None:
            return state
        return self._states.joined(self._parts.last_state(self._states.parts(state)))


def random_number(seed: int, position: int, use: int) -> int:
    """64 random bits: the first two words of ``philox(seed, position, use)``, the low one first."""
    low, high, *_ = _core.philox(seed, position, use)
    return low | high << 32


def make_optimizer(
    optimizer: str | optim.Optimizer, model: CharLM, learning_rate: float | None
) -> optim.Optimizer:
    """An optimizer for model from a name or an object, with the learning rate if one is given.

    Raises ValueError and TypeError as `Trainer` does.
    """
    if isinstance(optimizer, str):
        if optimizer not in optim.KINDS:
            raise ValueError(
                f"{called('optimizer')} must be one of {', '.join(optim.KINDS)}, got {optimizer!r}"
            )
        lr = 2e-3 if learning_rate is None else real("learning_rate", learning_rate, above=0)
        return optim.KINDS[optimizer](model.rnn, lr=lr)
    if not isinstance(optimizer, optim.Optimizer):
        raise TypeError(f"optimizer must be a name or of charrnn_fast.optim, got {optimizer!r}")
    if optimizer.rnn is not model.rnn:
        raise ValueError(
            f"optimizer must be one of model.rnn, {model.rnn!r}, got one of another network, "
            f"{optimizer.rnn!r}"
        )
    if learning_rate is not None:
        optimizer.lr = real("learning_rate", learning_rate, above=0)
    return optimizer
