"""Dynamic evaluation (Krause, Kahembwe, Murray and Renals, ICML 2018, arXiv 1709.07432)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arrays import Array, Parameters
from .losses import cross_entropy
from .network import backward, forward


def mean_squares(parameters: Parameters, ids: Array, segment: int, **kind: Any) -> Parameters:
    """MS_g: the mean over segments of ids [N] of the squared gradient of each one's mean loss."""
    sums = {name: np.zeros_like(p) for name, p in parameters.items()}
    state, starts = None, range(0, len(ids) - 1, segment)
    for start in starts:
        _, grads, state = _segment(parameters, ids[start : start + segment + 1], state, kind)
        for name, g in grads.items():
            sums[name] += g * g
    return {name: total / len(starts) for name, total in sums.items()}


def dynamic_evaluation(
    parameters: Parameters,
    ids: Array,
    learning_rate: float,
    decay: float,
    segment: int,
    squares: Parameters | None = None,
    eps: float = 1e-5,
    **kind: Any,
) -> tuple[float, Parameters]:
    """The mean loss of ids [N] in nats, and the adapted parameters; `parameters` stay.

    After each segment p += -learning_rate g / (sqrt(MS_g) + eps) + d (p_g - p), with
    d = min(decay RMS_norm, 1),
    p_g the parameters given, RMS_norm = sqrt(MS_g) / its mean over all parameters (section 5).
    squares: MS_g; None: sqrt(MS_g) + eps and RMS_norm are 1.
    """
    trained, adapted = parameters, {name: p.copy() for name, p in parameters.items()}
    scale = decays = dict.fromkeys(parameters, np.ones(()))
    if squares is not None:
        roots = {name: np.sqrt(square) for name, square in squares.items()}
        mean = np.concatenate([root.ravel() for root in roots.values()]).mean()
        scale = {name: 1 / (root + eps) for name, root in roots.items()}
        decays = {name: root / mean for name, root in roots.items()}
    total, state = 0.0, None
    for start in range(0, len(ids) - 1, segment):
        part = ids[start : start + segment + 1]
        loss, grads, state = _segment(adapted, part, state, kind)
        total += loss * (len(part) - 1)
        for name, p in adapted.items():
            pull = np.minimum(decay * decays[name], 1) * (trained[name] - p)
            p += pull - learning_rate * grads[name] * scale[name]
    return total / (len(ids) - 1), adapted


def _segment(parameters: Parameters, ids: Array, state: Any, kind: dict[str, Any]) -> Any:
    """The mean loss of a segment, its gradients, and the state behind it."""
    y, state, cache = forward(parameters, ids[:-1, None], state, **kind)
    loss, dy = cross_entropy(y, ids[1:, None])
    return loss, backward(parameters, cache, dy)[2], state
