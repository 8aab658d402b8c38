"""What may watch a training: the base of all callbacks, and what they are told.

``Trainer(model, corpus, callbacks=[Mine()])``, where ``Mine`` overrides the events that it wants. A
callback may call ``trainer.stop()``; nothing that it does to the trainer's numbers is undone. Where
one raises, the others are told of the event too and a checkpoint is written before `fit` raises it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

Trainer: TypeAlias = Any
"""`charrnn_fast.Trainer`, whose module stands above this one. Callbacks may say so themselves."""


class Update(NamedTuple):
    """One update of `Trainer.fit`; losses in nats per character (or byte)."""

    step: int  # updates done, with this one
    epoch: float  # passes over the training part done
    loss: float  # of the weights before the update
    gradient_norm: float  # before it was clipped
    learning_rate: float
    symbols: int  # characters (or bytes) that it read


class Evaluation(NamedTuple):
    """One entry of `Trainer.history`; losses in nats per character (or byte)."""

    step: int  # updates done
    epoch: float  # passes over the training part done
    train_loss: float  # mean over the updates since the entry before
    validation_loss: float  # over the validation part, in one stream from the zero state
    learning_rate: float  # of the update that comes next


class Callback:
    """Told of each event of `Trainer.fit`, in the thread that trains; here all do nothing."""

    def started(self, trainer: Trainer, steps: int) -> None:
        """fit begins, to do so many updates."""

    def updated(self, trainer: Trainer, update: Update) -> None:
        """An update has been done."""

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, sample: str) -> None:
        """The validation part has been looked at; sample: a text drawn from the model."""

    def saved(self, trainer: Trainer, path: str) -> None:
        """A checkpoint has been written."""

    def ended(self, trainer: Trainer) -> None:
        """fit ends, be it done, interrupted or by an error."""
