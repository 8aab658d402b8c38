"""Learning-rate schedules against their formulas."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from charrnn_fast.training.schedules import (
    Constant,
    Cosine,
    Decay,
    Linear,
    Plateau,
    Schedule,
    from_config,
    to_config,
)

ALL: tuple[Schedule, ...] = (
    Constant(warmup=0.25),
    Decay(decay=0.5, after=3),
    Cosine(epochs=7, warmup=1, final=0.1),
    Linear(epochs=7.5),
    Plateau(decay=0.2, patience=2),
)


def test_factors() -> None:
    assert [Constant().factor(e) for e in (0.0, 3.5, 100.0)] == [1, 1, 1]
    assert [Decay(decay=0.5, after=2).factor(e) for e in (1.99, 2.0, 2.5, 3.0)] == [
        1,
        0.5,
        0.5,
        0.25,
    ]
    cosine = Cosine(epochs=11, warmup=1, final=0.2)
    assert [cosine.factor(e) for e in (0.25, 1.0, 6.0, 11.0, 40.0)] == pytest.approx(
        [0.25, 1, 0.6, 0.2, 0.2]
    )
    assert cosine.factor(3.5) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert [Linear(epochs=4).factor(e) for e in (0.0, 1.0, 3.0, 4.0)] == [1, 0.75, 0.25, 0]


def test_a_plateau_counts_evaluations_without_a_new_best() -> None:
    plateau = Plateau(decay=0.5, patience=2)
    losses = [3.0, 2.0, 2.0, 2.1, 1.9, 2.0, 1.95, 1.9, 1.9]
    drops = [plateau.drops(losses[:n]) for n in range(len(losses) + 1)]
    assert drops == [0, 0, 0, 0, 1, 1, 1, 2, 2, 3]
    assert plateau.factor(5.0, 3) == 0.125
    assert all(schedule.drops(losses) == 0 for schedule in ALL[:-1])


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: schedule.name)
def test_a_schedule_survives_a_checkpoint(schedule: Schedule) -> None:
    assert from_config(to_config(schedule)) == schedule
    with pytest.raises(FrozenInstanceError):
        schedule.warmup = 3.0  # type: ignore[misc]


def test_in_words() -> None:
    assert [schedule.describe() for schedule in ALL] == [
        "rising over 0.25 epochs",
        "x0.5 per epoch from epoch 3",
        "rising over 1 epochs, cosine to x0.1 at epoch 7",
        "linear to 0 at epoch 7.5",
        "x0.2 after 2 evaluations without a new best",
    ]
    assert Constant().describe() == Decay(decay=1.0).describe() == ""


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "steps"}, "schedule must be one of constant, decay, .* got 'steps'"),
        ({}, "schedule must be one of .* got None"),
        ({"name": "linear", "decay": 0.5}, "linear does not take"),
        ({"name": "cosine", "warmup": 20}, "warmup must be below epochs=20, got 20"),
        ({"name": "cosine", "final": 1.5}, "final must be .* at most 1, got 1.5"),
        ({"name": "cosine", "epochs": 0}, "epochs must be finite, above 0, got 0"),
        ({"name": "decay", "decay": 0}, "decay must be finite, above 0, got 0"),
        ({"name": "decay", "after": 0}, "after must be >= 1, got 0"),
        ({"name": "plateau", "patience": 0}, "patience must be >= 1, got 0"),
        ({"name": "constant", "warmup": -1}, "warmup must be finite, at least 0, got -1"),
    ],
)
def test_what_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_config(config)


def test_numbers_of_numpy_are_stored() -> None:
    numbers: dict[str, Any] = {
        "warmup": np.float32(0.5),
        "decay": np.float64(0.5),
        "after": np.int8(3),
    }
    schedule = Decay(**numbers)
    stored = {"name": "decay", "warmup": 0.5, "decay": 0.5, "after": 3}
    assert json.loads(json.dumps(to_config(schedule))) == stored
