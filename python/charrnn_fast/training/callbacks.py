"""Callbacks: their base class, and the events of training that they are told of.

``Trainer(model, corpus, callbacks=[Mine()])``, where ``Mine`` overrides the events that it wants. A
callback may call ``trainer.stop()``. What it changes in the trainer stays changed. If a callback
raises, the others still get the event and a checkpoint is written before `fit` raises the error.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

Trainer: TypeAlias = Any
"""`charrnn_fast.Trainer`, which this lower module cannot import. Callbacks can."""


class Update(NamedTuple):
    """One update of `Trainer.fit`; losses in nats per character (or byte)."""

    step: int  # updates done, including this one
    epoch: float  # passes over the training part done
    loss: float  # before the update
    gradient_norm: float  # before clipping
    learning_rate: float
    symbols: int  # characters (or bytes) that it read


class Evaluation(NamedTuple):
    """One entry of `Trainer.history`; losses in nats per character (or byte)."""

    step: int  # updates done
    epoch: float  # passes over the training part done
    train_loss: float  # mean over the updates since the previous entry
    validation_loss: float  # over the validation part, in one stream from the zero state
    learning_rate: float  # of the next update


class Callback:
    """Told of each event of `Trainer.fit`, in the training thread; here all methods do nothing."""

    def started(self, trainer: Trainer, steps: int) -> None:
        """`fit` begins; steps: the updates that it will do."""

    def updated(self, trainer: Trainer, update: Update) -> None:
        """An update is done."""

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, sample: str) -> None:
        """An evaluation is done; sample: a text drawn from the model."""

    def saved(self, trainer: Trainer, path: str) -> None:
        """A checkpoint was written to path."""

    def ended(self, trainer: Trainer) -> None:
        """`fit` ends: finished, interrupted or by an error."""
