"""The average of a training's weights over its updates, which often generalizes better.

``ema:D``, after update n, is sum_k D^(n - k) w_k / sum_k D^(n - k), k = 1..n, of the weights w_k
after update k: an exponential moving average without the bias of its beginning, as in Kingma and
Ba, 2015. ``tail:S`` is the mean of the weights after each of the last updates, a share S of all
that are planned (Polyak and Juditsky, 1992). Averages are kept in float64: an update may change one
by less than float32 tells apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._checks import called, real

_KINDS = {"ema": {"above": 0.0, "below": 1.0}, "tail": {"above": 0.0, "most": 1.0}}


class Average:
    """The average so far."""

    def __init__(self, setting: str) -> None:
        """setting: like "ema:0.999" or "tail:0.2"."""
        self.setting = checked_setting(setting)
        self._kind, _, value = self.setting.partition(":")
        self._value, self._share = float(value), Fraction(value)
        self._begin = 0  # tail: the update after which it begins
        self.count = 0
        """The updates that it is of."""
        self.values: dict[str, NDArray[np.float64]] = {}
        """By the parameters' names, in float64; empty before the first update."""

    def plan(self, last: int, done: int) -> None:
        """Prepares for updates up to number last, of which some are done.

        A tail that began before the last ones of the new plan begins anew.
        """
        if self._kind == "ema":
            return
        self._begin = last - math.ceil(self._share * last)
        if done - self.count < self._begin:
            self.restart()

    def restart(self) -> None:
        """Forgets all updates."""
        self.count, self.values = 0, {}

    def update(self, number: int, parameters: Mapping[str, NDArray[Any]]) -> None:
        """Adds the parameters after the update of a number, counted from 1."""
        if number <= self._begin:
            return
        self.count += 1
        if self.count == 1:
            self.values = {name: p.astype(np.float64, "C") for name, p in parameters.items()}
            return
        rate = 1 / self.count
        if self._kind == "ema":
            rate = (1 - self._value) / (1 - self._value**self.count)
        for name, mean in self.values.items():
            change = np.subtract(parameters[name], mean)
            change *= rate
            mean += change

    def restore(self, count: int, values: Mapping[str, NDArray[np.float64]]) -> None:
        """Goes on where count and values were stored."""
        self.count = count
        self.values = {name: value.copy() for name, value in values.items()}


def checked_setting(setting: object) -> str:
    """The setting, written in one way; ValueError or TypeError for what is none."""
    takes = f"{called('average')} must be ema:DECAY or tail:SHARE, as ema:0.999 or tail:0.2"
    if not isinstance(setting, str):
        raise TypeError(f"{takes}, got {setting!r}")
    kind, _, value = setting.partition(":")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if kind not in _KINDS or math.isnan(number):
        raise ValueError(f"{takes}, got {setting!r}")
    return f"{kind}:{real(f'average {kind}', number, **_KINDS[kind])!r}"


def memory(parameters: Mapping[str, NDArray[Any]]) -> int:
    """Bytes that an average takes while it is updated."""
    sizes = [8 * p.size for p in parameters.values()]
    return sum(sizes) + max(sizes)
