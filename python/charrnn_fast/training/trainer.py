"""Training a language model on a corpus: stateful truncated backpropagation through time."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core, optim
from .._checks import (
    LARGEST_SEED,
    MOST_STEPS,
    StrPath,
    array_like,
    available_memory,
    called,
    instance,
    integer,
    real,
)
from .._names import suggesting
from .._objects import Settled
from ..language.model import STATES, CharLM, _tensor_name
from ..rnn import RNN, _tokens
from ..storage import atomic_file, checkpoint, configuration
from ..text.corpus import Corpus, _Chunks
from ..text.documents import cut
from .callbacks import Callback, Evaluation, Update
from .clock import Stopwatch
from .progress import Progress
from .schedules import Decay, Schedule, from_config, to_config

_OFFSETS = 1  # words of the random counter: the site of the epochs' offsets; the masks' is 0
_IN_USE = "a training that goes on saves to this file"


class _Rows:
    """The rows that the kernels get for streams of a chunk, and the states in and out.

    Without documents these are the streams, with their states (which the kernels change in place).
    """

    def __init__(
        self,
        rnn: RNN,
        inputs: NDArray[np.int32],
        targets: NDArray[np.int32],
        state: NDArray[Any],
        starts: Sequence[NDArray[np.int64]] | None,
    ) -> None:
        self._rnn, self._parts = rnn, None
        self.inputs, self.targets, self.state = inputs, targets, state
        self.lengths: NDArray[np.int64] | None = None
        if starts is not None and any(len(begins) for begins in starts):
            self._parts = parts = cut(inputs, targets, starts)
            self.inputs, self.targets, self.lengths = parts.inputs, parts.targets, parts.lengths
            self.state = rnn._joined_state(parts.first_state(rnn._state_parts(state)))

    def carried(self, state: NDArray[Any]) -> NDArray[Any]:
        """The states of the streams, from those of the rows."""
        if self._parts is None:
            return state
        return self._rnn._joined_state(self._parts.last_state(self._rnn._state_parts(state)))


class Trainer(Settled):
    """Trains a model on chunks of [seq_len, batch_size] characters.

    The training part is cut into batch_size contiguous pieces, read side by side; the hidden state
    is carried from chunk to chunk and starts at zero at each epoch, the gradient stays within a
    chunk (Williams and Peng, 1990; Mikolov et al., 2010).

    `history` has an `Evaluation` for each look at the validation part; callbacks see every update.

    A deep copy, by `copy` or `pickle`, has a model, an optimizer, callbacks and a corpus of its own
    and goes on with the same bits. It has the same checkpoint_path too: two of them cannot `fit` at
    the same time. A pickle is read by the version that wrote it; `save` writes what is to be kept.
    """

    model: CharLM
    corpus: Corpus | None
    optimizer: optim.Optimizer
    configuration: dict[str, Any]
    """JSON values that a checkpoint keeps for whoever trains; empty at first."""
    history: list[Evaluation]
    seconds: float
    """Time that the updates of the last `fit` have taken, without evaluations and saving."""

    _settable = frozenset(("configuration", "history", "seconds"))
    _advice = {  # noqa: RUF012
        "": "the settings of a training are given to Trainer(...), or to Trainer.resume(...), "
        "which goes on with others from a checkpoint",
        "learning_rate": "it follows from optimizer.lr and the schedule, which may be set",
        "num_steps": "it is counted; Trainer.resume goes on from a checkpoint",
    }
    _format = _core.build_info()["version"]  # private attributes and all: of this version alone
    _covered = frozenset(("_chunks",))

    @suggesting
    def __init__(
        self,
        model: CharLM,
        corpus: Corpus | None = None,
        batch_size: int = 50,
        seq_len: int = 50,
        optimizer: str | optim.Optimizer = "adam",
        learning_rate: float | None = None,
        clip_norm: float | None = 5.0,
        clip_value: float | None = None,
        *,
        reduction: str = "mean",
        schedule: Schedule | None = None,
        random_offset: bool = False,
        micro_batches: int = 1,
        evaluate_every: int | None = None,
        evaluate_length: int | None = None,
        patience: int | None = None,
        sample_length: int = 200,
        checkpoint_path: StrPath | None = None,
        checkpoint_every: int | None = None,
        mask_seed: int = 0,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """corpus None permits `step` only; batch_size and seq_len are those of `fit`.

        optimizer: sgd, rmsprop, adagrad, adam or adamw, or an object of `charrnn_fast.optim` made
        for ``model.rnn``; with an object, whose settings a checkpoint does not hold, `resume` is
        refused. learning_rate None: 2e-3, or the object's own; the schedule, of
        `charrnn_fast.schedules`, changes it as the training goes on; None: ``Decay()``. clip_norm
        bounds the gradient's norm, then clip_value its elements; None or inf: no bound. reduction:
        the loss is the "mean" over a chunk's characters or their "sum".

        random_offset: each epoch begins at another place of the training part, drawn from
        mask_seed, and reads it around its end, so that the same text is cut differently each time.

        micro_batches: an update computes its gradient in so many parts of the batch, one after the
        other, in about as much less memory. The sum is that of the whole batch, but for rounding.

        `fit` evaluates every evaluate_every steps, or, None, at each epoch's end, and at its own
        end, and shows sample_length characters drawn from the model. evaluate_length: how many
        characters of the validation part are looked at, from its beginning; None: all. After
        patience evaluations in a row without a new best one, `fit` ends; None: it does not.

        A checkpoint is written to checkpoint_path at each evaluation and every checkpoint_every
        steps; the one of the best evaluation is kept beside it, see `best_path`.

        mask_seed: of the random numbers of training. What a model with dropout, weight_drop or
        zoneout leaves out in update n, counted from 0, has the first two words of
        ``philox(mask_seed, n)``, the low one first, as the network's mask_seed.

        callbacks are told what happens, see `charrnn_fast.callbacks`.

        Raises ValueError where the corpus has another vocabulary than the model or is too short
        for one chunk, OSError where checkpoint_path cannot be written, or is something else than a
        checkpoint, and MemoryError, before it is taken, where the machine has less memory than the
        training takes.
        """
        instance("model", model, CharLM, "a CharLM")
        instance("corpus", corpus, (Corpus, type(None)), "a Corpus or None")
        self.model = model
        self.corpus = corpus
        self._batch_size = integer("batch_size", batch_size, 1)
        self._seq_len = integer("seq_len", seq_len, 1)
        self._clip_norm = _bound("clip_norm", clip_norm)
        self._clip_value = _bound("clip_value", clip_value)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        self._reduction = reduction
        instance("schedule", schedule, (Schedule, type(None)), "of charrnn_fast.schedules or None")
        self.history = []
        self.schedule = Decay() if schedule is None else schedule
        self._random_offset = bool(random_offset)
        self._micro_batches = integer("micro_batches", micro_batches, 1, self._batch_size)
        self._evaluate_every = _optional("evaluate_every", evaluate_every, 1)
        self._evaluate_length = _optional("evaluate_length", evaluate_length, 2)
        self._patience = _optional("patience", patience, 1)
        self._sample_length = integer("sample_length", sample_length, 0)
        self._checkpoint_path = None if checkpoint_path is None else os.fspath(checkpoint_path)
        self._checkpoint_every = _optional("checkpoint_every", checkpoint_every, 1)
        self._mask_seed = integer("mask_seed", mask_seed, 0, LARGEST_SEED)
        for i, callback in enumerate(callbacks):
            instance(f"callbacks[{i}]", callback, Callback, "a Callback")
        self._callbacks = tuple(callbacks)
        self._chunks = None if corpus is None else self._cut(corpus)
        if checkpoint_path is not None:
            check_checkpoints(checkpoint_path)
        self._check_memory(optimizer)
        self.optimizer = _make_optimizer(optimizer, model, learning_rate)
        self._optimizer_name = optimizer if isinstance(optimizer, str) else None
        self.configuration = {}
        self.seconds = 0.0
        self._num_steps = 0
        self._losses = (0, 0.0)  # number and sum since the last evaluation
        self._stopping = False
        self._evaluation_due = False
        self._state: NDArray[Any] | None = None
        self._saved_step: int | None = None

    @classmethod
    def resume(cls, path: StrPath, corpus: Corpus | None = None, **changes: Any) -> Trainer:
        """The trainer of a checkpoint; `fit` goes on as if it had never stopped, bit for bit.

        changes: keywords of the constructor that replace those of the checkpoint. Paths are not
        stored: give checkpoint_path to go on saving.

        Raises `CheckpointError` where the file is damaged, and ValueError where it holds no
        training, where the corpus is not the one it was trained on, and for another batch_size,
        seq_len or optimizer, with which its position and state would have no meaning.
        """
        name = os.fspath(path)
        tensors, config = configuration.read(path)
        model = CharLM._from_checkpoint(path, tensors, config)
        if "training" not in config:
            raise ValueError(
                f"{name} holds a model without its training; to begin one from its weights, use "
                f"Trainer(CharLM.load({name!r}), corpus)"
            )
        training = config["training"]
        settings = {
            **training["settings"],
            "schedule": from_config(training["settings"]["schedule"]),
        }
        if settings["optimizer"] is None:
            raise ValueError(
                f"{name} was trained with an optimizer object, whose settings it does not hold; "
                f"name the optimizer, as in Trainer(..., optimizer='adam'), to resume later"
            )
        for key in ("batch_size", "seq_len", "optimizer"):
            if changes.get(key, settings[key]) != settings[key]:
                raise ValueError(
                    f"{called(key)} is {changes[key]!r}, but {name} was trained with "
                    f"{settings[key]!r}"
                )
        text = training["corpus"]
        if corpus is not None and text is not None:
            _check_vocabulary(model, corpus)
            ours = _identity(corpus)
            length, fingerprint = text["length"], text["fingerprint"]
            if ours["document_mark"] != text["document_mark"]:
                raise ValueError(
                    f"{called('document_mark')} is {ours['document_mark']!r}, but {name} was "
                    f"trained with {text['document_mark']!r}"
                )
            if (length, fingerprint) != (len(corpus), corpus._fingerprint):
                unit = corpus.vocabulary._unit
                raise ValueError(
                    f"the corpus has {len(corpus)} {unit}s (fingerprint "
                    f"{corpus._fingerprint[:12]}), but {name} was trained on {length} "
                    f"(fingerprint {fingerprint[:12]}); to train its weights on another text, "
                    f"use Trainer(CharLM.load({name!r}), corpus), or train --init-from"
                )
            if ours != text:
                raise ValueError(
                    f"the corpus is the text that {name} was trained on, but its files begin at "
                    f"other places, and with a {called('document_mark')} each is a document"
                )
        try:
            lr = settings.pop("learning_rate")  # may be 0, unlike the argument
            trainer = cls(model, corpus, **{**settings, **changes})
            if "learning_rate" not in changes:
                trainer.optimizer.lr = lr
            trainer._restore(tensors, training)
            trainer._note_saved(path)
        except MemoryError as error:
            raise MemoryError(f"{name}: {error}") from None
        except checkpoint.CheckpointError as error:
            raise checkpoint.CheckpointError(f"{name}: {error}") from None
        except (TypeError, ValueError) as error:
            if changes:  # they may be what is wrong
                raise
            raise checkpoint.CheckpointError(
                f"{name} does not hold the training that it describes: {error}"
            ) from error
        return trainer

    def __repr__(self) -> str:
        text = "no corpus" if self.corpus is None else f"{len(self.corpus):,} symbols"
        return (
            f"<Trainer of {self.model!r} on {text}: batch_size={self._batch_size}, "
            f"seq_len={self._seq_len}, {type(self.optimizer).__name__}, lr={self.optimizer.lr!r}, "
            f"{self._num_steps:,} steps done>"
        )

    def _pickled(self) -> dict[str, Any]:
        names = ("model", "corpus", "optimizer", "configuration", "history", "seconds")
        return {
            **{name: getattr(self, name) for name in names},
            "batch_size": self._batch_size,
            "seq_len": self._seq_len,
        }

    def _unpickle(self, saved: dict[str, Any]) -> None:
        model, corpus, optimizer = saved["model"], saved["corpus"], saved["optimizer"]
        instance("model", model, CharLM, "a CharLM")
        instance("corpus", corpus, (Corpus, type(None)), "a Corpus or None")
        self.model, self.corpus = model, corpus
        self.optimizer = _make_optimizer(optimizer, model, None)
        self.configuration, self.history = saved["configuration"], saved["history"]
        self.seconds = saved["seconds"]
        self._batch_size, self._seq_len = saved["batch_size"], saved["seq_len"]
        self._chunks = None if corpus is None else self._cut(corpus)

    @property
    def batch_size(self) -> int:
        """B, the streams that an update of `fit` reads."""
        return self._batch_size

    @property
    def seq_len(self) -> int:
        """T, the characters (or bytes) of each stream that an update of `fit` reads."""
        return self._seq_len

    @property
    def num_steps(self) -> int:
        """The number of updates that `fit` has done."""
        return self._num_steps

    @property
    def steps_per_epoch(self) -> int:
        """The updates in one pass over the training part; 0 without a corpus."""
        return 0 if self._chunks is None else len(self._chunks)

    @property
    def symbols_per_step(self) -> int:
        """The characters (or bytes) that an update of `fit` reads."""
        return self._batch_size * self._seq_len

    @property
    def _rows(self) -> int:
        """The streams whose gradient is computed at a time."""
        return -(-self._batch_size // self._micro_batches)

    @property
    def memory(self) -> int:
        """The bytes that `fit` needs beside the text: model, gradients, optimizer and workspace."""
        network: Any = self.model.rnn._core
        optimizer: Any = self.optimizer._core
        return int(network.memory(self._seq_len, self._rows) + optimizer.held_memory)

    @property
    def best(self) -> Evaluation | None:
        """The entry of `history` with the lowest validation loss, the first of equals."""
        return min(self.history, key=lambda entry: entry.validation_loss, default=None)

    @property
    def schedule(self) -> Schedule:
        """How the learning rate changes; another one may take its place."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        instance("schedule", schedule, Schedule, "of charrnn_fast.schedules")
        self._schedule = schedule
        self._count_drops()

    def _count_drops(self) -> None:
        """By the schedule, of the learning rate, so far."""
        self._drops = self._schedule.drops([entry.validation_loss for entry in self.history])

    @property
    def epoch(self) -> float:
        """The passes over the training part that `fit` has done."""
        return self.num_steps / self.steps_per_epoch if self.steps_per_epoch else 0.0

    @property
    def learning_rate(self) -> float:
        """Of the next update: the optimizer's, as the schedule changes it.

        Without a corpus there are no epochs, and the optimizer's own is taken.
        """
        lr = real("optimizer.lr", self.optimizer.lr, least=0)
        if not self.steps_per_epoch:
            return lr
        middle = (self._num_steps + 0.5) / self.steps_per_epoch
        return min(lr * self.schedule.factor(middle, self._drops), sys.float_info.max)

    def reset(self) -> None:
        """Sets the hidden state that is carried from update to update to zero."""
        self._state = None

    def step(self, inputs: ArrayLike, targets: ArrayLike) -> float:
        """One update by hand on ids [T, B]; returns the loss before it, in nats.

        Targets of -1 are ignored. The hidden state is carried from call to call, and starts at
        zero: at first, after `reset`, and where B changes. Raises FloatingPointError, with weights
        and state as they were, where the loss or the gradient is not finite.
        """
        x, y = self._tokens("inputs", inputs, 0), self._tokens("targets", targets, -1)
        if x.shape != y.shape:
            raise ValueError(
                f"targets must have the shape of inputs, {list(x.shape)}, got {list(y.shape)}"
            )
        return self._update(x, y)[0]

    @suggesting
    def fit(
        self, *, epochs: int | None = None, steps: int | None = None, progress: bool = True
    ) -> None:
        """Trains for so many more epochs or steps (updates), from where it stands.

        progress: a bar on a terminal (a line every ten seconds elsewhere), the evaluations, and
        texts drawn from the model.

        The first Ctrl-C (or SIGTERM, SIGHUP) takes effect after the update at hand: a checkpoint is
        written, then KeyboardInterrupt raised. An evaluation that was due, or at which the training
        was, is done when it goes on. Raises FloatingPointError where the loss, the gradient or a
        weight is no longer finite; the last checkpoint stays as it is. Raises BlockingIOError where
        another training, of any process, saves to the same files, and OSError where a checkpoint or
        what a callback writes cannot be written, after a checkpoint, if that can be; the error says
        which step is saved, and `fit` may go on. Any other error of a callback is raised after a
        checkpoint, too.
        """
        corpus, chunks = self.corpus, self._chunks
        if corpus is None or chunks is None:
            raise ValueError("corpus is None, which permits step() only; fit() needs a corpus")
        if (epochs is None) == (steps is None):
            raise ValueError(f"give either epochs or steps, got epochs={epochs}, steps={steps}")
        if epochs is not None:
            steps = integer("epochs", epochs, 0) * len(chunks)
        last = self._num_steps + integer("steps", steps, 0, 2**63 - 1)
        configuration.check_own(self.configuration)  # not only when it is saved
        shown = (Progress(),) if progress else ()
        with locked(self._checkpoint_path):
            self._fit(corpus, chunks, last, self._callbacks, shown)

    def _fit(
        self,
        corpus: Corpus,
        chunks: _Chunks,
        last: int,
        callbacks: Sequence[Callback],
        shown: Sequence[Callback],
    ) -> None:
        """Trains up to the step last; shown: callbacks as `_look` takes them."""
        self._stopping, self.seconds = self._is_stale(), 0.0
        begun, everyone = self._num_steps, (*callbacks, *shown)
        try:
            self._keep_best()
            with (
                self._watched(everyone, last - self._num_steps),
                _deferred_interrupt() as interrupted,
            ):
                if self._evaluation_due:  # it was put off by an interrupt
                    self._look(corpus, callbacks, shown, interrupted)
                while self._num_steps < last and not self._stopping and not interrupted():
                    update = self._next_update(chunks)
                    every = self._evaluate_every or len(chunks)
                    self._evaluation_due = self._due(every) or self._num_steps == last
                    try:
                        self._tell(everyone, "updated", update)
                    except BaseException as error:  # the updates up to here are not lost by it
                        if not isinstance(error, OSError):  # of which the handler below takes care
                            self._save(everyone)
                        raise
                    if self._evaluation_due or self._stopping:
                        self._look(corpus, callbacks, shown, interrupted)
                    elif interrupted() or self._due(self._checkpoint_every):
                        self._save(everyone)
                if self._stopping and self._losses[0] and not interrupted():
                    # stopped from elsewhere than an update
                    self._look(corpus, callbacks, shown, interrupted)
                if interrupted():
                    raise KeyboardInterrupt
        except OSError as error:  # a disk is full, say, or nobody reads the progress any more
            if self._num_steps > begun and self._saved_step != self._num_steps:
                with suppress(OSError, FloatingPointError):  # the error at hand says what is saved
                    self._save(())
            _add_to_message(error, self._last_checkpoint())
            raise

    @contextmanager
    def _watched(self, callbacks: Sequence[Callback], steps: int) -> Iterator[None]:
        """Tells callbacks that `fit` begins, and, whatever happens, that it ends.

        The first error is raised; it takes note of those that come after it.
        """

        def end(callback: Callback, _: object, error: BaseException | None, __: object) -> None:
            try:
                callback.ended(self)
            except Exception as another:
                if error is None:
                    raise
                error.add_note(f"then {type(callback).__name__}.ended raised {another!r}")

        with ExitStack() as stack:
            for callback in callbacks:
                callback.started(self, steps)
                stack.push(partial(end, callback))
            yield

    def stop(self) -> None:
        """Lets `fit` end after the update at hand, with an evaluation and a checkpoint.

        For callbacks, and for other threads; a `fit` that comes later is not held up by it.
        """
        self._stopping = True

    def save(self, path: StrPath) -> None:
        """Writes a checkpoint: the model, the optimizer, the carried state and the position.

        Raises FloatingPointError where a weight is not finite, and OSError where path cannot be
        written or holds a file that is no checkpoint; a file there then stays as it is.
        """
        tensors, config = self.model._checkpoint()
        optimizer: Any = self.optimizer._core
        for slot in optimizer.slot_names:
            for name in self.model.rnn.parameters():
                tensors[_slot_name(slot, name)] = optimizer.slot(slot, name)
        if self._state is not None:
            parts = self.model.rnn._state_parts(self._state)
            tensors |= {f"state.{name}": s for name, s in zip(STATES, parts, strict=False)}
        config["training"] = {
            "settings": self._settings(),
            "configuration": self.configuration,
            "num_steps": self._num_steps,
            "has_state": self._state is not None,
            "losses": list(self._losses),
            "evaluation_due": self._evaluation_due,
            "optimizer_steps": optimizer.num_steps,
            "history": [list(entry) for entry in self.history],
            "corpus": None if self.corpus is None else _identity(self.corpus),
        }
        try:
            configuration.write(path, tensors, config)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"after step {self._num_steps} {error}{self._last_checkpoint()}"
            ) from None

    def _check_memory(self, optimizer: str | optim.Optimizer) -> None:
        """MemoryError where the machine has less than `fit` will need; it is not allocated yet."""
        free = available_memory()
        if free is None:
            return
        network: Any = self.model.rnn._core
        needed = network.memory(self._seq_len, self._rows) - network.held_memory
        if isinstance(optimizer, str) and optimizer in optim.KINDS:
            needed += optim.memory(optimizer, self.model.rnn)
        if needed > free:
            raise MemoryError(
                f"training takes {needed / 1e9:,.3g} GB more, and {free / 1e9:,.3g} GB are free; "
                f"try a smaller {called('batch_size')} or {called('seq_len')}, more "
                f"{called('micro_batches')}, or a smaller model"
            )

    def _cut(self, corpus: Corpus) -> _Chunks:
        _check_vocabulary(self.model, corpus)
        unit = corpus.vocabulary._unit
        chunks = _Chunks(corpus.train, self._batch_size, self._seq_len, unit)
        if len(corpus.validation) < 2:
            raise ValueError(
                f"the text is too short: its validation part, the last 10 % of {len(corpus)} "
                f"{unit}s, must have two or more"
            )
        return chunks

    def _tokens(self, name: str, ids: ArrayLike, lowest: int) -> NDArray[np.int32]:
        given = array_like(name, ids)
        if given.ndim != 2 or not given.size:
            raise ValueError(f"{name} must have the shape [T, B], got {list(given.shape)}")
        if given.dtype.kind not in "iu":
            raise TypeError(f"{name} must be integers, got dtype {given.dtype}")
        return _tokens(name, given, lowest, len(self.model.vocabulary))

    def _next_update(self, chunks: _Chunks) -> Update:
        """The next update of `fit`."""
        watch = Stopwatch()
        index, rate = self._num_steps % len(chunks), self.learning_rate
        if index == 0:
            self.reset()
        offset, starts = self._offset(), None
        inputs, targets = chunks.read(index, offset)
        if self.corpus is not None and self.corpus._has_documents:
            starts = chunks.documents(index, self.corpus, offset)
        loss, norm = self._update(inputs, targets, starts)
        if self._reduction == "sum":
            loss /= self.symbols_per_step
        self._num_steps += 1
        count, total = self._losses
        self._losses = (count + 1, total + loss)
        if not math.isfinite(self._losses[1]):
            raise FloatingPointError(
                f"training has diverged: at step {self._num_steps} the sum of the losses exceeds "
                f"the largest number{self._last_checkpoint()}. Try a smaller "
                f"{called('learning_rate')}"
            )
        self.seconds += watch.seconds
        return Update(self._num_steps, self.epoch, loss, norm, rate, self.symbols_per_step)

    def _update(
        self,
        inputs: NDArray[np.int32],
        targets: NDArray[np.int32],
        starts: Sequence[NDArray[np.int64]] | None = None,
    ) -> tuple[float, float]:
        """One update; returns the loss before it and the norm of its gradient.

        starts: of each stream the steps whose input begins a document.
        """
        batch, rnn = inputs.shape[1], self.model.rnn
        optimizer: Any = self.optimizer._core
        if max(self._num_steps, optimizer.num_steps) >= MOST_STEPS:
            raise ValueError(f"{MOST_STEPS:,} steps are done, the most that a checkpoint can count")
        if self._state is None or rnn._batch(self._state) != batch:
            self._state = rnn._kernel_zeros(batch)
        try:
            loss, norm, state = self._computed(inputs, targets, self._state, starts)
        except MemoryError as error:
            raise MemoryError(
                f"{error}; try a smaller {called('batch_size')} or {called('seq_len')}, or more "
                f"{called('micro_batches')}"
            ) from None
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise FloatingPointError(
                f"training has diverged: at step {self._num_steps + 1} the loss is {loss:.4g} and "
                f"the norm of the gradient {norm:.4g}; the weights are those before this step"
                f"{self._last_checkpoint()}. Try a smaller {called('learning_rate')}"
            )
        self._state = state
        return loss, norm

    def _computed(
        self,
        inputs: NDArray[np.int32],
        targets: NDArray[np.int32],
        state: NDArray[Any],
        starts: Sequence[NDArray[np.int64]] | None,
    ) -> tuple[float, float, NDArray[Any]]:
        """The loss, the norm and the new state of an update, done unless one is not finite."""
        rnn, batch = self.model.rnn, inputs.shape[1]
        network: Any = rnn._core
        rule = (self.optimizer._core, self.learning_rate, self._clip_norm, self._clip_value)
        seed = self._next_mask_seed() if rnn._has_masks else None
        parts = min(self._micro_batches, batch)
        if parts == 1:
            chunk = _Rows(rnn, inputs, targets, state, starts)
            loss, norm = network.train_step(
                chunk.inputs,
                chunk.targets,
                chunk.state,
                *rule,
                self._reduction,
                seed,
                chunk.lengths,
            )
            return float(loss), float(norm), chunk.carried(chunk.state)
        states = []
        network.clear_gradients()
        for streams in np.array_split(np.arange(batch), parts):
            group = slice(streams[0], streams[-1] + 1)
            chunk = _Rows(
                rnn,
                np.ascontiguousarray(inputs[:, group]),
                np.ascontiguousarray(targets[:, group]),
                rnn._joined_state([part[:, group] for part in rnn._state_parts(state)]),
                None if starts is None else starts[group],
            )
            *_, new = network.accumulate(
                chunk.inputs, chunk.targets, chunk.state, seed, chunk.lengths
            )
            states.append(rnn._state_parts(chunk.carried(new)))
        loss, norm = network.update(*rule, self._reduction)
        joined = [np.concatenate(part, axis=1) for part in zip(*states, strict=True)]
        return float(loss), float(norm), rnn._joined_state(joined)

    def _next_mask_seed(self) -> int:
        optimizer: Any = self.optimizer._core
        low, high, *_ = _core.philox(self._mask_seed, optimizer.num_steps, 0)
        return low | high << 32

    def _offset(self) -> int:
        """Where in the training part the epoch of the next update begins."""
        if not self._random_offset or self.corpus is None:
            return 0
        epoch = self._num_steps // self.steps_per_epoch
        low, high, *_ = _core.philox(self._mask_seed, epoch, _OFFSETS)
        return int((low | high << 32) % len(self.corpus.train))

    def _look(
        self,
        corpus: Corpus,
        callbacks: Sequence[Callback],
        shown: Sequence[Callback],
        interrupted: Callable[[], bool],
    ) -> None:
        """An evaluation, which is due where it is interrupted, and a checkpoint.

        shown: callbacks that are told once the checkpoint is written: what shows the training may
        wait for its reader.
        """
        self._evaluation_due = True
        evaluation = self._evaluate(corpus, interrupted)
        sample = ""
        try:
            if evaluation is not None and (callbacks or shown):
                sample = self.model.sample(self._sample_length, seed=self._num_steps)
                self._tell(callbacks, "evaluated", evaluation, sample)
        finally:  # an error of a callback does not lose it
            self._save((*callbacks, *shown))
        if evaluation is not None:
            self._tell(shown, "evaluated", evaluation, sample)

    def _tell(self, callbacks: Sequence[Callback], event: str, *arguments: object) -> None:
        """Tells all of them, also where one raises; then raises the first error."""
        errors: list[BaseException] = []
        for callback in callbacks:
            try:
                getattr(callback, event)(self, *arguments)
            except BaseException as error:  # raised below
                errors.append(error)
        if errors:
            for other in errors[1:]:
                errors[0].add_note(f"another callback raised {other!r}")
            raise errors[0]

    def _evaluate(self, corpus: Corpus, interrupted: Callable[[], bool]) -> Evaluation | None:
        """Adds an entry to the history and returns it; None where interrupted."""
        predicted, nats = 0, 0.0
        pieces = self.model._losses(
            corpus.validation, self._evaluate_length, corpus._validation_starts
        )
        for count, piece in pieces:
            if interrupted():
                return None
            predicted += count
            nats += piece
        loss = nats / predicted
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"training has diverged: after step {self._num_steps} the validation loss is "
                f"{loss}{self._last_checkpoint()}. Try a smaller {called('learning_rate')}"
            )
        count, total = self._losses
        self._losses = (0, 0.0)
        train_loss = total / count if count else math.nan
        evaluation = Evaluation(self._num_steps, self.epoch, train_loss, loss, math.nan)
        self.history.append(evaluation)
        self._count_drops()
        evaluation = evaluation._replace(learning_rate=self.learning_rate)
        self.history[-1] = evaluation
        self._evaluation_due = False
        self._stopping = self._stopping or self._is_stale()
        return evaluation

    def _is_stale(self) -> bool:
        """Whether the last `patience` evaluations have brought no new best one."""
        best = self.best
        if self._patience is None or best is None:
            return False
        return len(self.history) - self.history.index(best) > self._patience

    def _due(self, every: int | None) -> bool:
        return every is not None and self._num_steps % every == 0

    def _save(self, callbacks: Sequence[Callback]) -> None:
        if self._checkpoint_path is None:
            return
        best, last = best_path(self._checkpoint_path), self._checkpoint_path
        evaluation = self.best
        # The best one first: a training that is killed between the two, and resumed from the
        # last one, comes past the best one again.
        is_best = evaluation is not None and evaluation.step == self._num_steps
        paths = (best, last) if is_best else (last,)
        for path in paths:
            self.save(path)
        if evaluation is None:  # what is there is another training's, which this one replaces
            checkpoint.remove(best)
        self._saved_step = self._num_steps
        for path in paths:
            self._tell(callbacks, "saved", path)

    def _keep_best(self) -> None:
        """Writes the best checkpoint where it is missing, as beside one that was copied."""
        path, best = self._checkpoint_path, self.best
        if path is None or best is None or best.step != self._num_steps:
            return
        if not os.path.exists(best_path(path)):
            self.save(best_path(path))

    def _note_saved(self, path: StrPath) -> None:
        """The checkpoint at path is one of the step at hand."""
        last = self._checkpoint_path
        if last is not None and os.path.realpath(path) == os.path.realpath(last):
            self._saved_step = self._num_steps

    def _last_checkpoint(self) -> str:
        """What an error's message ends with: which step is saved."""
        path, step = self._checkpoint_path, self._saved_step
        if path is None:
            return ""
        if step is None:
            return "; no checkpoint has been written yet"
        if not os.path.exists(path):
            return f"; {path} held step {step}, and is gone"
        return f"; {path} holds step {step}"

    def _settings(self) -> dict[str, Any]:
        """The keywords that make a trainer like this one, as JSON values."""
        return {
            "batch_size": self._batch_size,
            "seq_len": self._seq_len,
            "optimizer": self._optimizer_name,
            "learning_rate": real("optimizer.lr", self.optimizer.lr, least=0),
            "clip_norm": self._clip_norm if math.isfinite(self._clip_norm) else None,
            "clip_value": self._clip_value if math.isfinite(self._clip_value) else None,
            "reduction": self._reduction,
            "schedule": to_config(self.schedule),
            "random_offset": self._random_offset,
            "micro_batches": self._micro_batches,
            "evaluate_every": self._evaluate_every,
            "evaluate_length": self._evaluate_length,
            "patience": self._patience,
            "sample_length": self._sample_length,
            "checkpoint_every": self._checkpoint_every,
            "mask_seed": self._mask_seed,
        }

    def _restore(self, tensors: checkpoint.Tensors, training: dict[str, Any]) -> None:
        self.configuration = training["configuration"]
        optimizer: Any = self.optimizer._core
        optimizer.num_steps = training["optimizer_steps"]
        names = {
            _slot_name(slot, name): (slot, name)
            for slot in optimizer.slot_names
            for name in self.model.rnn.parameters()
        }
        there = {name for name in tensors if name.startswith("optimizer.")}
        for name in sorted(names.keys() ^ there):
            state = "is missing" if name in names else "is none of its optimizer's"
            raise checkpoint.CheckpointError(f"the tensor {name!r} {state}")
        for tensor, (slot, name) in names.items():
            optimizer.set_slot(slot, name, tensors[tensor])
        if training["has_state"]:
            parts = [tensors[f"state.{name}"] for name in STATES if f"state.{name}" in tensors]
            self._state = self.model.rnn._joined_state(parts)
        self._num_steps = training["num_steps"]
        count, total = training["losses"]
        self._losses = (count, total)
        self._evaluation_due = training["evaluation_due"]
        self.history = [Evaluation(*entry) for entry in training["history"]]
        self._count_drops()


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C, SIGTERM and SIGHUP (a terminal that closes) only make the function it yields return
    True; a second one acts as ever.

    Leaves alone a handler that the program has set, and threads, which get no signals.
    """
    received = False
    usual: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
    }
    if hasattr(signal, "SIGHUP"):  # not on Windows
        usual[signal.SIGHUP] = signal.SIG_DFL
    in_main_thread = threading.current_thread() is threading.main_thread()
    ours = [n for n, handler in usual.items() if in_main_thread and signal.getsignal(n) is handler]

    def restore() -> None:
        for number in ours:
            signal.signal(number, usual[number])

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        restore()

    for number in ours:
        signal.signal(number, receive)
    try:
        yield lambda: received
    finally:
        restore()


def best_path(path: StrPath) -> str:
    """Where the checkpoint of the best evaluation is kept: model.best.safetensors beside
    model.safetensors.
    """
    root, extension = os.path.splitext(os.fspath(path))
    return f"{root}.best{extension}"


def _add_to_message(error: OSError, words: str) -> None:
    if error.strerror is None:
        error.args = (f"{error}{words}",)
    else:
        error.strerror += words


def check_checkpoints(path: StrPath) -> None:
    """Raises OSError or ValueError if the checkpoints of a training cannot, or should not, be
    written: to path and to `best_path` of it. Changes nothing.
    """
    best = best_path(path)
    for file in (path, best):
        checkpoint.check_writable(file)
    if os.path.realpath(path) == os.path.realpath(best):
        raise ValueError(
            f"{best}, for the best checkpoint, is a link to {os.fspath(path)}; it must be a file "
            f"of its own"
        )


@contextmanager
def locked(path: StrPath | None) -> Iterator[None]:
    """Keeps path and `best_path` of it for one training; None: nothing.

    Raises BlockingIOError where a training that goes on saves to one of them.
    """
    with ExitStack() as held:
        for file in () if path is None else (path, best_path(path)):
            held.enter_context(closing(atomic_file.Lock(file, _IN_USE)))
        yield


def _make_optimizer(
    optimizer: str | optim.Optimizer, model: CharLM, learning_rate: float | None
) -> optim.Optimizer:
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
        raise ValueError("optimizer was made for another network than model.rnn")
    if learning_rate is not None:
        optimizer.lr = real("learning_rate", learning_rate, above=0)
    return optimizer


def _check_vocabulary(model: CharLM, corpus: Corpus) -> None:
    ours, theirs = model.vocabulary, corpus.vocabulary
    if ours != theirs:
        raise ValueError(
            f"the corpus has another vocabulary, {theirs!r}, than the model, {ours!r}; read the "
            f"corpus with vocabulary=model.vocabulary"
        )


def _bound(name: str, value: float | None) -> float:
    return math.inf if value is None or value == math.inf else real(name, value, above=0)


def _optional(name: str, value: int | None, least: int) -> int | None:
    return None if value is None else integer(name, value, least)


def _identity(corpus: Corpus) -> dict[str, Any]:
    """Tells whether a training is continued on the text it was begun on."""
    return {
        "length": len(corpus),
        "fingerprint": corpus._fingerprint,
        "document_mark": corpus._document_mark,
        "file_starts": corpus._file_starts_digest,
    }


def _slot_name(slot: str, parameter: str) -> str:
    """The name of an optimizer's tensor in a checkpoint."""
    return f"optimizer.{slot}.{_tensor_name(parameter)}"
