"""Dynamic evaluation: a model that learns from a text while it predicts it.

Krause, Kahembwe, Murray and Renals, "Dynamic evaluation of neural sequence models", ICML 2018,
arXiv 1709.07432, section 5. The update itself is a kernel (``optimizers.hpp``).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _core
from .._checks import called, integer, real
from ..losses import cross_entropy
from ..rnn import RNN
from ..storage.file_array import Ids

SEGMENT = 20
_MOST_SQUARES = 100_000  # characters of a text of statistics that are read


@dataclass(frozen=True)
class Dynamic:
    """How a model is adapted to the text that it has predicted.

    After each `segment` of characters, whose loss is counted before, every weight p moves:
    ``p += -learning_rate g / (sqrt(MS) + eps) + decay R (p_trained - p)``, g the gradient of the
    segment's mean loss. MS is the mean of g^2 over segments of the text `statistics`, best a part
    of the training text, of which the first 100,000 characters are read; R is sqrt(MS) over its
    mean over all weights, and decay R at most 1 (RMS with an RMS global prior). Without statistics
    sqrt(MS) + eps and R are 1: gradient descent with decay to the trained weights, which takes
    learning rates some hundred times as large.

    Raises ValueError for a learning_rate below 0, a decay outside 0 to 1, a segment below 1 and an
    eps that is not above 0.
    """

    learning_rate: float
    decay: float = 0.0
    segment: int = SEGMENT
    statistics: str | None = None
    eps: float = 1e-5

    def __post_init__(self) -> None:
        real("learning_rate", self.learning_rate, least=0)
        real("decay", self.decay, least=0, most=1)
        integer("segment", self.segment, 1)
        real("eps", self.eps, above=0)
        if self.statistics is not None and not isinstance(self.statistics, str):
            raise TypeError(
                f"{called('statistics')} must be a str, got {type(self.statistics).__name__}"
            )


class Adapting:
    """A network that is adapted as it reads."""

    def __init__(self, rnn: RNN, dynamic: Dynamic, squares: Squares | None = None) -> None:
        """rnn: with its trained weights; it is changed. squares: of the statistics, if any."""
        self._rnn, self._dynamic = rnn, dynamic
        double = rnn.dtype == np.float64
        make: Any = _core.OptimizerFloat64 if double else _core.OptimizerFloat32
        self._optimizer = make("dynamic_evaluation", rnn.core, {})
        for name, p in rnn.parameters().items():
            scale, norm = np.ones(p.shape), np.ones(p.shape)
            if squares is not None:
                root = np.sqrt(squares.means[name])
                scale, norm = 1 / (root + dynamic.eps), root / squares.mean_root
            slots = {
                "scale": scale,
                "decay": np.minimum(dynamic.decay * norm, 1),
                "anchor": np.asarray(p),
            }
            for slot, value in slots.items():
                self._optimizer.set_slot(slot, name, np.asarray(value, rnn.dtype, order="C"))

    def losses(
        self,
        ids: Ids,
        length: int | None = None,
        starts_within: Callable[[int, int], NDArray[np.int64]] | None = None,
    ) -> Iterator[tuple[int, float]]:
        """As `CharLM.losses`, segment by segment. The weights stay as adapted between documents."""
        length = len(ids) if length is None else min(length, len(ids))
        network: Any = self._rnn.core
        rate = float(self._dynamic.learning_rate)
        for start, block, fresh in _segments(ids, length, self._dynamic.segment, starts_within):
            if fresh:
                state = self._rnn.states.zeros(1)
            loss, norm = network.train_step(
                block[:-1], block[1:], state, self._optimizer, rate, math.inf, math.inf, "mean"
            )
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise FloatingPointError(
                    f"the adapted model diverged at position {start}: its loss is {loss}, its "
                    f"gradient's norm {norm}; try a smaller learning rate"
                )
            yield len(block) - 1, loss * (len(block) - 1)


class Squares:
    """The mean squares of the gradients of a network over the segments of a text."""

    def __init__(self, rnn: RNN, ids: Ids, segment: int) -> None:
        """The state is carried along. Raises ValueError for fewer than two ids."""
        if len(ids) < 2:
            raise ValueError(f"{called('statistics')} must have 2 symbols or more, got {len(ids)}")
        rnn = copy.deepcopy(rnn)  # whose last forward may belong to the caller
        self.means = {name: np.zeros(p.shape) for name, p in rnn.parameters().items()}
        """Of each parameter, float64."""
        state: Any = None
        length, count = min(len(ids), _MOST_SQUARES), 0
        for _, block, _ in _segments(ids, length, segment, None):
            y, state = rnn.forward(block[:-1], state)
            _, dlogits = cross_entropy(y[:, 0].copy(), block[1:, 0])
            _, _, gradients = rnn.backward(dlogits[:, None])
            count += 1
            for name, gradient in gradients.items():
                self.means[name] += gradient.astype(np.float64) ** 2
        for mean in self.means.values():
            mean /= count
        roots = sum(float(np.sqrt(mean).sum()) for mean in self.means.values())
        self.mean_root = roots / sum(mean.size for mean in self.means.values()) or 1.0
        """The mean of their square roots over all parameters."""


def _segments(
    ids: Ids,
    length: int,
    segment: int,
    starts_within: Callable[[int, int], NDArray[np.int64]] | None,
) -> Iterator[tuple[int, NDArray[np.int32], bool]]:
    """Pieces of segment + 1 ids or fewer, which overlap by one: where each begins, its ids [T, 1],
    and whether a text or a document begins there. None goes beyond the end of a document."""
    start, fresh = 0, True
    while start < length - 1:
        end = min(start + segment, length - 1)
        if starts_within is not None:
            later = starts_within(start + 1, end)
            end = int(later[0]) if len(later) else end
        yield start, ids[start : end + 1].astype(np.int32)[:, None], fresh
        start = end
        fresh = starts_within is not None and bool(len(starts_within(start, start + 1)))
