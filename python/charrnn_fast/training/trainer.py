"""Training a language model on a corpus: stateful truncated backpropagation through time."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _core, _devices, optim
from .._checks import (
    LARGEST_SEED,
    MOST_STEPS,
    StrPath,
    array_like,
    called,
    in_range,
    instance,
    integer,
    real,
    tokens,
    warn,
)
from .._names import suggesting
from .._objects import Settled
from ..language.model import CharLM
from ..storage import checkpoint, configuration
from ..text.chunks import Chunks
from ..text.corpus import OWN_PARTS, Corpus, shown_split
from . import averaging, interrupts
from .averaging import Average
from .callbacks import Callback, Evaluation, Update
from .clock import Stopwatch
from .distributed import Agreement, EndedError, Group, HeldError
from .progress import Progress
from .resume import (
    REGULARIZATION,
    Stored,
    best_path,
    check_checkpoints,
    check_vocabulary,
    errors_name,
    found_best,
    kept_path,
    kept_paths,
    locked,
    locked_file,
    read_stored,
    restore_average,
    restore_optimizer,
    restored_state,
    tensors_of,
    tensors_of_average,
)
from .schedules import Decay, Schedule, to_config
from .update import MASKS, OFFSETS, Chunk, Rule, Shared, make_optimizer, random_number, update

_AGREED_PERIOD = 0.1  # seconds between exchanges while process 0 evaluates


class Trainer(Settled):
    """Trains a model on chunks of [seq_len, batch_size] characters.

    The training part is cut into batch_size contiguous streams, read in parallel. The hidden state
    is carried from chunk to chunk and reset at each epoch; gradients stay within a chunk (Williams
    and Peng, 1990; Mikolov et al., 2010).

    `history` has an `Evaluation` for each validation; callbacks see every update.

    A deep copy, by `copy` or `pickle`, has its own model, optimizer, callbacks and corpus, and
    continues with the same bits. It shares the checkpoint_path, so the two cannot `fit` at the same
    time. A pickle can be loaded only by the version that wrote it: for storage, use `save`.
    """

    model: CharLM
    corpus: Corpus | None
    optimizer: optim.Optimizer
    configuration: dict[str, Any]
    """The caller's own JSON values, stored in checkpoints; empty at first."""
    history: list[Evaluation]
    seconds: float
    """Time of the updates of the last `fit`, without evaluations and saving."""

    _settable = frozenset(("configuration", "history", "seconds"))
    _advice = {  # noqa: RUF012
        "": "settings are given to Trainer(...), or, to change them for a resumed training, to "
        "Trainer.resume(...)",
        "learning_rate": "it follows from optimizer.lr and the schedule, which may be set",
        "num_steps": "it is counted; to continue from a checkpoint, use Trainer.resume",
    }
    _format = _core.build_info()["version"]  # pickles hold private attributes
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
        keep_every: int | None = None,
        average: str | None = None,
        mask_seed: int = 0,
        callbacks: Sequence[Callback] = (),
        group: Group | None = None,
        device: str | None = None,
        compute_dtype: str | None = None,
    ) -> None:
        """Sets up training; corpus None allows only `step`. batch_size and seq_len are for `fit`.

        optimizer: "sgd", "rmsprop", "adagrad", "adam" or "adamw", or an object of
        `charrnn_fast.optim` made for ``model.rnn``. An object's settings are not in checkpoints, so
        `resume` is refused. learning_rate None: 2e-3, or the object's own. schedule, of
        `charrnn_fast.schedules`, changes the learning rate over the training; None: ``Decay()``.
        clip_norm bounds the norm of the gradient, then clip_value each element; None or inf: no
        bound. reduction: the loss is the "mean" or the "sum" over a chunk's characters.

        random_offset: each epoch starts at a random place of the training part, drawn from
        mask_seed, and wraps around at the end, so that the text is cut differently each time.

        micro_batches: the number of micro-batches whose gradients an update accumulates. Memory
        shrinks by about this factor; the gradient is that of the whole batch, up to rounding.

        `fit` evaluates every evaluate_every steps (None: at each epoch's end) and at its own end,
        and shows sample_length characters drawn from the model. evaluate_length: number of
        characters to use, from the beginning of the validation part; None: all. patience: early
        stopping after this many evaluations in a row without a new best; None: no early stopping.

        A checkpoint is written to checkpoint_path at each evaluation and every checkpoint_every
        steps. The one of the best evaluation is kept beside it, see `best_path`. Those of every
        keep_every steps are kept as well, under names with their steps (`kept_path`), each as large
        as any; `fit` warns if the disk has no room for all. A new training removes those of the one
        that it replaces.

        average: "ema:0.999" or "tail:0.2", the average of the weights over the updates of `fit`
        (`charrnn_fast.training.averaging` has the formulas). Evaluations, samples, plateaus and
        early stopping use it, see `averaged`, and a checkpoint loads as it; the weights that train
        are ``trainer.model``. tail is a share of the updates that are done and asked for when `fit`
        begins; before them there is no average. Checkpoints have both, the average in float64 too.

        mask_seed: seed of the dropout masks and random offsets. The network's mask_seed in update
        n, counted from 0, is the first two words of ``philox(mask_seed, n)``, the low one first.

        callbacks: told of each event, see `charrnn_fast.callbacks`.

        The training runs on the device of the model, and computes in its compute_dtype: give
        ``CharLM(..., device="cuda")``, or ``CharLM.load(path, device="cuda")``. device,
        compute_dtype: only checked to be those of the model; None: not checked. `resume` takes any,
        and loads the model so.

        group: processes that share out the streams, as `charrnn_fast.distributed.joined` yields
        them. Each makes an equal trainer (`fit` checks it) and calls `fit`, `step` and `save`
        together with the others. Every update is that of one process, masks included, up to the
        order of the sums. Process 0 evaluates, shows and saves. Each process tells its own
        callbacks, and `stop` takes effect one update later. After an error in one process no other
        can go on.

        Raises ValueError if the corpus has another vocabulary than the model or is too short for
        one chunk, OSError if checkpoint_path cannot be written or is not a checkpoint, and
        MemoryError, before allocating, if the device has less memory than the training needs.
        """
        instance("model", model, CharLM, "a CharLM")
        if model.weight_dtype is not None:
            raise ValueError(
                f"{called('model')} must have all bits of its weights to be trained, got one that "
                f"holds {model.weight_dtype} weights alone: take the one that it was exported from"
            )
        instance("corpus", corpus, (Corpus, type(None)), "a Corpus or None")
        if device is not None and not _devices.are_one(device, model.device):
            raise ValueError(
                f"{called('device')} must be {model.device!r}, that of the model, got {device!r}: "
                f"give CharLM(...) or CharLM.load(...) another device"
            )
        if compute_dtype not in (None, model.rnn.compute_dtype):
            raise ValueError(
                f"{called('compute_dtype')} must be {model.rnn.compute_dtype!r}, that of the "
                f"model, got {compute_dtype!r}: give CharLM(...) or CharLM.load(...) another one"
            )
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
        self._keep_every = _optional("keep_every", keep_every, 1)
        if keep_every is not None and checkpoint_path is None:
            raise ValueError(
                f"{called('keep_every')} keeps checkpoints beside {called('checkpoint_path')}, "
                f"which is missing"
            )
        self._average = None if average is None else Average(average)
        self._mask_seed = integer("mask_seed", mask_seed, 0, LARGEST_SEED)
        for i, callback in enumerate(callbacks):
            instance(f"callbacks[{i}]", callback, Callback, "a Callback")
        self._callbacks = tuple(callbacks)
        instance("group", group, (Group, type(None)), "a Group or None")
        self._group = Group() if group is None else group
        self._check_streams("batch_size", self._batch_size)
        self._chunks = None if corpus is None else self._cut(corpus)
        if checkpoint_path is not None and self._group.rank == 0:
            check_checkpoints(checkpoint_path, keeps=keep_every is not None)
        self._check_memory(optimizer)
        self.optimizer = make_optimizer(optimizer, model, learning_rate)
        self._optimizer_name = optimizer if isinstance(optimizer, str) else None
        self.configuration = {}
        self.seconds = 0.0
        self._num_steps = 0
        self._begun = (0, 0.0)  # the step and the epoch since which the batch size is what it is
        self._replaces = True  # whether this training is a new one that has not been saved yet
        self._losses = (0, 0.0)  # count and sum since the last evaluation
        self._stopping = False
        self._agreement: Agreement | None = None  # of several processes, while they fit
        self._evaluation_due = False
        self._state: NDArray[Any] | None = None  # of this process's streams
        self._carried = 0  # the streams of all processes that it belongs to
        self._saved_step: int | None = None
        self._resumed_from: str | None = None

    @classmethod
    def resume(cls, path: StrPath, corpus: Corpus | None = None, **changes: Any) -> Trainer:
        """The trainer of a checkpoint; `fit` then continues bit for bit as if never stopped.

        changes: keywords of the constructor that replace those of the checkpoint. Paths are not
        stored: pass checkpoint_path to keep saving. Nor is the device: without device="cuda" the
        training continues on the CPU, whichever it began on. compute_dtype is stored. Where one of
        them changes, the promise of equal bits ends, as it does with another instruction set of the
        CPU.

        The model's regularization may change too: dropout and the other rates, variational,
        zoneout. With another batch_size the streams begin anew, at the start of the text; a warning
        says that their position and the carried states are lost. The weights, the optimizer's state
        and the count of epochs go on.

        Raises `CheckpointError` if the file is damaged. Raises ValueError if it holds no training,
        if corpus is not the one of the training, and for another seq_len or optimizer, which would
        not fit the stored position and state.
        """
        stored = read_stored(path, corpus, changes, changes.get("group") or Group())
        settings = dict(stored.settings)
        with errors_name(path, changes):
            lr = settings.pop("learning_rate")  # may be 0, unlike the argument
            others = {name: v for name, v in changes.items() if name not in REGULARIZATION}
            unused = None  # kept as a setting of the training, which does not save for now
            if others.get("checkpoint_path") is None and "keep_every" not in others:
                unused = settings.pop("keep_every", None)
            trainer = cls(stored.model, corpus, **{**settings, **others})
            trainer._keep_every = trainer._keep_every or unused
            if "learning_rate" not in changes:
                trainer.optimizer.lr = lr
            trainer._restore(stored)
            trainer._note_saved(path)
            trainer._resumed_from = os.path.abspath(path)
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
        self.optimizer = make_optimizer(optimizer, model, None)
        self.configuration, self.history = saved["configuration"], saved["history"]
        self.seconds = saved["seconds"]
        self._batch_size, self._seq_len = saved["batch_size"], saved["seq_len"]
        self._chunks = None if corpus is None else self._cut(corpus)

    @property
    def device(self) -> str:
        """Where the training runs: the device of the model."""
        return self.model.device

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
        """The streams of a micro-batch of this process."""
        ours = self._group.share(self._batch_size)
        streams: int = ours.stop - ours.start
        return -(-streams // self._micro_batches)

    @property
    def memory(self) -> int:
        """Bytes that `fit` needs in this process besides the text: model, gradients, optimizer and
        workspace.
        """
        network: Any = self.model.rnn.core
        optimizer: Any = self.optimizer.core
        needed = network.memory(self._seq_len, self._rows) + optimizer.held_memory
        return int(needed + self._average_memory)

    @property
    def _average_memory(self) -> int:
        """Bytes of host memory, with the model of averaged weights."""
        if self._average is None:
            return 0
        parameters = self.model.rnn.parameters()
        return averaging.memory(parameters) + sum(p.nbytes for p in parameters.values())

    @property
    def patience(self) -> int | None:
        """Early stopping: evaluations in a row without a new best; None: off."""
        return self._patience

    @property
    def checkpoint_path(self) -> str | None:
        """Where `fit` saves; None: nowhere."""
        return self._checkpoint_path

    @property
    def saved_step(self) -> int | None:
        """The step of the checkpoint at `checkpoint_path`; None: none yet."""
        return self._saved_step

    @property
    def evaluation_due(self) -> bool:
        """Whether an interrupt postponed an evaluation; the next `fit` begins with it."""
        return self._evaluation_due

    @property
    def best(self) -> Evaluation | None:
        """The entry of `history` with the lowest validation loss, the first of equals."""
        return min(self.history, key=lambda entry: entry.validation_loss, default=None)

    @property
    def schedule(self) -> Schedule:
        """How the learning rate changes; may be set."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        instance("schedule", schedule, Schedule, "of charrnn_fast.schedules")
        self._schedule = schedule
        self._count_drops()

    def _count_drops(self) -> None:
        """Counts how often the schedule has lowered the learning rate so far."""
        self._drops = self._schedule.drops([entry.validation_loss for entry in self.history])

    @property
    def epoch(self) -> float:
        """The passes over the training part that `fit` has done."""
        return self.epoch_at(self.num_steps)

    def epoch_at(self, step: int) -> float:
        """The passes over the training part after so many updates of `fit`; 0 without a corpus."""
        return self._epoch_at(step)

    def _epoch_at(self, step: float) -> float:
        begun, epoch = self._begun
        return epoch + (step - begun) / self.steps_per_epoch if self.steps_per_epoch else 0.0

    def step_at(self, epochs: int) -> int:
        """The updates of `fit` after so many passes over the training part."""
        begun, epoch = self._begun
        if not begun:
            return epochs * self.steps_per_epoch
        # Whole steps, but for what the quotient that epoch was may be off.
        return begun + max(0, math.ceil((epochs - epoch) * self.steps_per_epoch - 1e-6))

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next update: the optimizer's times the schedule's factor.

        Without a corpus there are no epochs, and it is the optimizer's own.
        """
        lr = real("optimizer.lr", self.optimizer.lr, least=0)
        if not self.steps_per_epoch:
            return lr
        middle = self._epoch_at(self._num_steps + 0.5)
        return min(lr * self.schedule.factor(middle, self._drops), sys.float_info.max)

    def averaged(self) -> CharLM:
        """The model that is evaluated: a copy with the average of the weights, rounded to its
        dtype; `model` itself without an average, or before its first update.
        """
        average = self._average
        if average is None or not average.count:
            return self.model
        model = copy.deepcopy(self.model)
        model.rnn.load_parameters(
            {name: mean.astype(model.rnn.dtype) for name, mean in average.values.items()}
        )
        return model

    def reset(self) -> None:
        """Sets the hidden state that is carried between updates to zero."""
        self._state = None

    def step(self, inputs: ArrayLike, targets: ArrayLike) -> float:
        """One manual update on ids [T, B]; returns the loss before it, in nats.

        Targets of -1 are ignored. The hidden state is carried from call to call. It is zero at
        first, after `reset`, and when B changes. Each process of a group takes all B streams.
        Raises FloatingPointError if the loss or the gradient is not finite; weights and state are
        then unchanged.
        """
        x, y = self._tokens("inputs", inputs, 0), self._tokens("targets", targets, -1)
        self._check_streams("the batch of inputs", x.shape[1])
        if x.shape != y.shape:
            raise ValueError(
                f"targets must have the shape of inputs, {list(x.shape)}, got {list(y.shape)}"
            )
        return self._update(Chunk(x, y), self.learning_rate)[0]

    @suggesting
    def fit(
        self, *, epochs: int | None = None, steps: int | None = None, progress: bool = True
    ) -> None:
        """Trains for this many more epochs or steps (updates).

        progress: shows a bar on a terminal (elsewhere a line every ten seconds), the evaluations,
        and text drawn from the model.

        The first Ctrl-C (or SIGTERM, SIGHUP) takes effect after the current update: `fit` writes a
        checkpoint and raises KeyboardInterrupt. An evaluation that was due or interrupted is done
        on resuming.

        Raises FloatingPointError if the loss, the gradient or a weight is no longer finite; the
        last checkpoint is kept. Raises BlockingIOError if another training, of any process, saves
        to the same files. Raises OSError if a checkpoint or a callback's output cannot be written,
        after a last checkpoint if possible: the error names the saved step, and `fit` may be called
        again. Other errors of callbacks are raised after a checkpoint, too.
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
        first = self._group.rank == 0
        shown = (Progress(),) if progress and first else ()
        with locked(self._checkpoint_path if first else None):
            self._check_equal(last)
            self._fit(corpus, chunks, last, self._callbacks, shown)

    def _fit(
        self,
        corpus: Corpus,
        chunks: Chunks,
        last: int,
        callbacks: Sequence[Callback],
        shown: Sequence[Callback],
    ) -> None:
        """Trains up to the step last; shown: callbacks as in `_look`."""
        self._stopping, self.seconds = self.is_stale(), 0.0
        begun, everyone = self._num_steps, (*callbacks, *shown)
        self._check_room(last)
        try:
            self._keep_best()  # before an average that was evaluated begins anew
            if self._average is not None:
                self._average.plan(last, self._num_steps)
            with (
                self._watched(everyone, last - self._num_steps),
                interrupts.deferred() as received,
                self._agreeing(received, everyone) as interrupted,
            ):
                if self._evaluation_due:  # an interrupt postponed it
                    self._look(corpus, callbacks, shown, interrupted)
                while self._num_steps < last and not self._stopping and not interrupted():
                    update = self._next_update(chunks)
                    self._evaluation_due = self._is_look_due(chunks) or self._num_steps == last
                    try:
                        self._tell(everyone, "updated", update)
                    except BaseException as error:  # keeps the updates up to here
                        if self._agreement is not None and isinstance(error, Exception):
                            self._agreement.failure = error  # until all can save
                        else:
                            if not isinstance(error, OSError):  # which the handler below treats
                                self._save(everyone)
                            raise
                    if self._evaluation_due or self._stopping:
                        self._look(corpus, callbacks, shown, interrupted)
                    elif (
                        interrupted()
                        or self._due(self._checkpoint_every)
                        or self._due(self._keep_every)
                    ):
                        self._save(everyone)
                self._agree()
                if self._stopping and self._losses[0] and not interrupted():
                    # stop() was not called from an update
                    self._look(corpus, callbacks, shown, interrupted)
                if interrupted():
                    raise KeyboardInterrupt
        except OSError as error:  # such as a full disk, or a closed pipe for the progress
            unsaved = self._num_steps > begun and self._saved_step != self._num_steps
            if unsaved and self._group.size == 1:  # several have saved, or cannot
                with suppress(OSError, FloatingPointError):  # the first error says what is saved
                    self._save(())
            _add_to_message(error, self._last_checkpoint())
            raise

    @contextmanager
    def _watched(self, callbacks: Sequence[Callback], steps: int) -> Iterator[None]:
        """Tells callbacks that `fit` begins and, whatever happens, that it ends.

        The first error is raised, with later ones as its notes.
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

    @contextmanager
    def _agreeing(
        self, received: Callable[[], bool], callbacks: Sequence[Callback]
    ) -> Iterator[Callable[[], bool]]:
        """Yields whether training is interrupted, on which several processes agree.

        If one of them holds an error, all save before it raises it.
        """
        if self._group.size == 1:
            yield received
            return
        self._agreement = agreement = Agreement(self._group, received)
        try:
            yield agreement.interrupted
        except HeldError:
            try:
                self._save(callbacks)
            except (OSError, FloatingPointError, EndedError):
                if agreement.failure is None:
                    raise
            if agreement.failure is not None:
                raise agreement.failure from None
            self._group.sum()  # raises `EndedError`: the other process tells its error now
            raise
        finally:
            self._agreement = None

    def _agree(self, *values: float) -> list[float]:
        """The sums of values over the processes, which agree on whether to stop."""
        if self._agreement is None:
            return self._group.sum(*values)
        sums = self._agreement.sum(*values)
        self._stopping = self._stopping or self._agreement.stopping
        return sums

    def stop(self) -> None:
        """Ends `fit` after the current update, with an evaluation and a checkpoint.

        For callbacks and other threads; it does not affect a later `fit`. One process of a group
        stops all, after the next update.
        """
        if self._agreement is None:
            self._stopping = True
        else:
            self._agreement.asked_to_stop = True

    def save(self, path: StrPath) -> None:
        """Writes a checkpoint: the model, the optimizer, the carried state and the position.

        Raises FloatingPointError if a weight is not finite, and OSError if path cannot be written
        or holds a file that is not a checkpoint. That file then stays unchanged. Of several
        processes, process 0 writes the state of all.
        """
        self._save_to(path, lock=False)

    def _save_to(self, path: StrPath, *, lock: bool) -> None:
        """As `save`; lock: raises BlockingIOError if a running training saves to path."""
        state = self._whole_state()

        def write() -> None:
            with locked_file(path) if lock else nullcontext():
                self._write(path, state)

        self._group.on_first(write)

    def _write(self, path: StrPath, state: NDArray[Any] | None) -> None:
        tensors, config = self.averaged().to_checkpoint()
        tensors |= tensors_of(self.model, self.optimizer, state)
        averaged = 0 if self._average is None else self._average.count
        if self._average is not None and averaged:
            tensors |= tensors_of_average(self.model, self._average)
        config["training"] = {
            "settings": self.settings(),
            "configuration": self.configuration,
            "num_steps": self._num_steps,
            "has_state": state is not None,
            "losses": list(self._losses),
            "evaluation_due": self._evaluation_due,
            "optimizer_steps": self.optimizer.core.num_steps,
            "history": [list(entry) for entry in self.history],
            "corpus": None if self.corpus is None else self.corpus.identity(),
        }
        if averaged:
            config["training"]["averaged"] = averaged
        step, epoch = self._begun
        if step:
            config["training"]["batches_from"] = {"step": step, "epoch": epoch}
        try:
            configuration.write(path, tensors, config)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"after step {self._num_steps} {error}{self._last_checkpoint()}"
            ) from None

    def _whole_state(self) -> NDArray[Any] | None:
        """The carried state of the streams of all processes.

        Raises RuntimeError if their weights differ, as where a callback has changed one's trainer.
        """
        if self._group.size == 1:
            return self._state
        states, state = self.model.rnn.states, self._state
        parts = None if state is None else states.parts(state)
        shares = self._group.gather((parts, self._fingerprint()))
        apart = [rank for rank, (_, weights) in enumerate(shares) if weights != shares[0][1]]
        if apart:
            raise RuntimeError(
                f"after step {self._num_steps} the weights or the learning rate of process "
                f"{apart[0]} differ from those of process 0{self._last_checkpoint()}"
            )
        if parts is None:
            return None
        shared = zip(*(its_parts for its_parts, _ in shares), strict=True)
        return states.joined([np.concatenate(part, axis=1) for part in shared])

    def _fingerprint(self) -> str:
        """Of the weights and the learning rate."""
        digest = hashlib.sha256(repr(self.learning_rate).encode())
        for parameter in self.model.rnn.parameters().values():
            digest.update(np.ascontiguousarray(parameter).data)
        return digest.hexdigest()

    def _check_equal(self, last: int) -> None:
        """ValueError unless all processes have begun the same training, up to the step last."""
        if self._group.size == 1:
            return
        info, settings = _core.build_info(), {**self.settings(), **self.model.settings()}
        self._group.check_equal(
            {
                "version": info["version"],
                "instruction set (CHARRNN_ISA)": info["isa"],  # others round otherwise
                "device": _devices.kind(self.device),
                **({} if self.corpus is None else _facts(self.corpus)),
                **settings,
                "checkpoint_path": None if self._checkpoint_path is None else "a file",
                "steps": last,
                "steps done": self._num_steps,
                "weights": self._fingerprint(),
            }
        )

    def _check_streams(self, name: str, count: int) -> None:
        if count < self._group.size:
            raise ValueError(
                f"{called(name)} must be at least the number of processes, {self._group.size}, "
                f"got {count}"
            )

    def _check_memory(self, optimizer: str | optim.Optimizer) -> None:
        """MemoryError if the device has less memory than `fit` needs; allocates nothing."""
        device = _devices.find(self.device)
        free = device.free_memory()
        if free is None:
            return
        network: Any = self.model.rnn.core
        needed = network.memory(self._seq_len, self._rows) - network.held_memory
        if isinstance(optimizer, str) and optimizer in optim.KINDS:
            needed += optim.memory(optimizer, self.model.rnn)
        if device.is_host:
            needed += self._average_memory
        if needed > free:
            raise MemoryError(
                f"training takes {needed / 1e9:,.3g} GB more, and {free / 1e9:,.3g} GB are free"
                f"{device.where}; try a smaller {called('batch_size')} or {called('seq_len')}, "
                f"more {called('micro_batches')}, or a smaller model"
            )

    def _cut(self, corpus: Corpus) -> Chunks:
        check_vocabulary(self.model, corpus)
        unit = corpus.vocabulary.unit
        chunks = Chunks(corpus.train, self._batch_size, self._seq_len, unit)
        for name, ids in (("validation", corpus.validation), ("test", corpus.test)):
            if ids is None or len(ids) >= 2:
                continue
            if corpus.own_identity(name) is not None:
                raise ValueError(f"the text for {called(name)} must have 2 {unit}s or more, got 1")
            share = corpus.split[1 if name == "validation" else 2]
            which = "the last " * (corpus.test is None or name == "test")
            raise ValueError(
                f"the text is too short: its {name} part, {which}{100 * share:.6g} % of "
                f"{len(corpus)} {unit}s, must have two or more"
            )
        return chunks

    def _tokens(self, name: str, ids: ArrayLike, lowest: int) -> NDArray[np.int32]:
        given = array_like(name, ids)
        if given.ndim != 2 or not given.size:
            raise ValueError(f"{name} must have the shape [T, B], got {list(given.shape)}")
        if given.dtype.kind not in "iu":
            raise TypeError(f"{name} must be integers, got dtype {given.dtype}")
        end = len(self.model.vocabulary)
        ids = tokens(name, given, lowest, end)
        if self._micro_batches > 1:  # the kernels would number a part's streams by themselves
            in_range(name, ids, lowest, end)
        return ids

    def _next_update(self, chunks: Chunks) -> Update:
        """The next update of `fit`."""
        watch = Stopwatch()
        index, rate = (self._num_steps - self._begun[0]) % len(chunks), self.learning_rate
        if index == 0:
            self.reset()
        documents = None if self.corpus is None else self.corpus.documents
        if documents is None:
            chunk = Chunk(*chunks.read(index, self._offset()))
        else:
            chunk = Chunk(*chunks.read_documents(index, documents, self._offset()))
        loss, norm = self._update(chunk, rate)
        if self._reduction == "sum":
            loss /= self.symbols_per_step
        self._num_steps += 1
        if self._average is not None:
            self._average.update(self._num_steps, self.model.rnn.parameters())
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

    def _update(self, chunk: Chunk, rate: float) -> tuple[float, float]:
        """One update; returns the loss before it and the norm of its gradient."""
        batch, rnn = chunk.inputs.shape[1], self.model.rnn
        updates = self.optimizer.core.num_steps
        if max(self._num_steps, updates) >= MOST_STEPS:
            raise ValueError(f"{MOST_STEPS:,} steps are done, the most that a checkpoint can count")
        state, ours = self._state, self._group.share(batch)
        if state is None or self._carried != batch:
            state = rnn.states.zeros(ours.stop - ours.start)
        seed = random_number(self._mask_seed, updates, MASKS) if rnn.has_masks else None
        rule = Rule(self.optimizer, rate, self._clip_norm, self._clip_value, self._reduction)
        shared = None if self._group.size == 1 else Shared(ours, self._add_up)
        try:
            loss, norm, state = update(rnn, chunk, state, rule, self._micro_batches, seed, shared)
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
        self._state, self._carried = state, batch
        return loss, norm

    def _add_up(self, gradient: NDArray[Any], loss: float, count: int) -> tuple[float, int]:
        loss, total = self._agree(loss, count)
        self._group.add_up(gradient)
        return loss, int(total)

    def _offset(self) -> int:
        """Where in the training part the epoch of the next update begins."""
        if not self._random_offset or self.corpus is None:
            return 0
        begun, before = self._begun
        epoch = math.ceil(before) + (self._num_steps - begun) // self.steps_per_epoch
        return random_number(self._mask_seed, epoch, OFFSETS) % len(self.corpus.train)

    def _look(
        self,
        corpus: Corpus,
        callbacks: Sequence[Callback],
        shown: Sequence[Callback],
        interrupted: Callable[[], bool],
    ) -> None:
        """An evaluation (still due if interrupted) and a checkpoint.

        shown: callbacks that are told after the checkpoint, since showing may wait for a reader.
        """
        self._evaluation_due = True
        model = self.averaged()
        evaluation = self._evaluate(corpus, model, interrupted)
        sample = ""
        try:
            if evaluation is not None and (callbacks or shown):
                sample = model.sample(self._sample_length, seed=self._num_steps)
                self._tell(callbacks, "evaluated", evaluation, sample)
        finally:  # also after a callback's error
            self._save((*callbacks, *shown))
        if evaluation is not None:
            self._tell(shown, "evaluated", evaluation, sample)
        self._agree()

    def _tell(self, callbacks: Sequence[Callback], event: str, *arguments: object) -> None:
        """Tells all of them, even if one raises; then raises the first error."""
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

    def _evaluate(
        self, corpus: Corpus, model: CharLM, interrupted: Callable[[], bool]
    ) -> Evaluation | None:
        """Adds an entry to the history and returns it; None if interrupted."""
        loss = self._validation_loss(corpus, model, interrupted)
        if loss is None:
            return None
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
        self._stopping = self._stopping or self.is_stale()
        return evaluation

    def _validation_loss(
        self, corpus: Corpus, model: CharLM, interrupted: Callable[[], bool]
    ) -> float | None:
        """Nats per character, which process 0 computes for all; None if interrupted."""
        if self._group.rank:
            while not interrupted():
                done, loss = self._agree(0.0, 0.0)
                if done:
                    return loss
            return None
        predicted, nats = 0, 0.0
        pieces = model.losses(corpus.validation, self._evaluate_length, corpus.validation_starts)
        watch = Stopwatch()
        for count, piece in pieces:
            if self._group.size > 1 and watch.seconds > _AGREED_PERIOD:
                self._agree(0.0, 0.0)
                watch = Stopwatch()
            if interrupted():
                return None
            predicted += count
            nats += piece
        return self._agree(1.0, nats / predicted)[1]

    def test_loss(self) -> float:
        """The loss of the test part, in nats per character: one stream from the zero state.

        For the end, when all has been chosen by the validation loss. For the weights of another
        evaluation, as the best, make a trainer from their checkpoint. Of several processes, process
        0 computes it for all. Raises ValueError if the corpus has no test part.
        """
        corpus = self.corpus
        if corpus is None or corpus.test is None:
            raise ValueError(
                "the corpus must have a test part: give it a split with three shares, as "
                "(0.8, 0.1, 0.1), or a text for test"
            )
        ids, model = corpus.test, self.averaged()
        return self._group.on_first(lambda: model.evaluate_ids(ids, corpus.test_starts))

    def is_stale(self) -> bool:
        """Whether the last `patience` evaluations brought no new best one: early stopping."""
        best = self.best
        if self._patience is None or best is None:
            return False
        return len(self.history) - self.history.index(best) > self._patience

    def _due(self, every: int | None) -> bool:
        return every is not None and self._num_steps % every == 0

    def _is_look_due(self, chunks: Chunks) -> bool:
        """Whether an evaluation is due after an update."""
        if self._evaluate_every is not None:
            return self._due(self._evaluate_every)
        return (self._num_steps - self._begun[0]) % len(chunks) == 0

    def _check_room(self, last: int) -> None:
        """Warns if the disk has too little room for the checkpoints to keep up to a step."""
        path, every = self._checkpoint_path, self._keep_every
        if path is None or every is None or self._group.rank:
            return
        count = last // every - self._num_steps // every
        parameters = self.model.rnn.parameters().values()
        copies = 1 + len(self.optimizer.core.slot_names) + (self._average is not None)
        needed = count * copies * sum(p.nbytes for p in parameters)
        if self._average is not None:
            needed += count * 8 * sum(p.size for p in parameters)
        folder = os.path.dirname(os.path.realpath(path))
        free = shutil.disk_usage(folder).free
        if needed > free:
            warn(
                f"{count:,} checkpoints to be kept take {needed / 1e9:,.3g} GB, and "
                f"{free / 1e9:,.3g} GB are free in {folder}; a larger {called('keep_every')} keeps "
                f"fewer"
            )

    def _save(self, callbacks: Sequence[Callback]) -> None:
        if self._checkpoint_path is None:
            return
        best, last = best_path(self._checkpoint_path), self._checkpoint_path
        evaluation = self.best
        # The last one at the end: a training that is killed before it and resumed from the one
        # before reaches the others again.
        paths = [last]
        if self._due(self._keep_every) and self._num_steps:
            paths.insert(0, kept_path(last, self._num_steps))
        if evaluation is not None and evaluation.step == self._num_steps:
            paths.insert(0, best)
        replaced = []
        if self._replaces and self._keep_every and self._group.rank == 0:
            replaced = [path for path in kept_paths(last).values() if path not in paths]
        for path in paths:
            self._save_to(path, lock=path not in (best, last))  # `fit` locks these
        for path in replaced:  # only now that the new training is saved
            with locked_file(path):
                checkpoint.remove(path)
        self._replaces = False
        if evaluation is None and self._group.rank == 0:
            checkpoint.remove(best)  # any file there is of the training replaced
        self._saved_step = self._num_steps
        for path in paths:
            self._tell(callbacks, "saved", path)

    def _keep_best(self) -> None:
        """Writes the best checkpoint if it is missing, as beside a copied one, or is another's, as
        of a part of the training that was given up.
        """
        path, best = self._checkpoint_path, self.best
        if path is None or best is None:
            return
        places = [path, *filter(None, [self._resumed_from])]
        found = self._group.on_first(
            lambda: next(filter(None, (found_best(place, best) for place in places)), None)
        )
        if found is not None:
            self._group.on_first(lambda: _copy(found, best_path(path)))
        elif best.step == self._num_steps:
            self.save(best_path(path))
        else:
            self._group.on_first(lambda: _remove_best(path, best))

    def _note_saved(self, path: StrPath) -> None:
        """Notes that the checkpoint at path has the current step."""
        last = self._checkpoint_path
        if last is not None and os.path.realpath(path) == os.path.realpath(last):
            self._saved_step = self._num_steps

    def _last_checkpoint(self) -> str:
        """The end of an error's message: which step is saved."""
        path, step = self._checkpoint_path, self._saved_step
        if path is None:
            return ""
        if step is None:
            return "; no checkpoint has been written yet"
        if self._group.rank == 0 and not os.path.exists(path):
            return f"; {path} held step {step}, and is gone"
        return f"; {path} holds step {step}"

    def settings(self) -> dict[str, Any]:
        """The constructor's keywords for a trainer like this one, as JSON values."""
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
            **({} if self._keep_every is None else {"keep_every": self._keep_every}),
            **({} if self._average is None else {"average": self._average.setting}),
        }

    def _restore(self, stored: Stored) -> None:
        training = stored.training
        self.configuration = training["configuration"]
        restore_optimizer(stored, self.optimizer)
        self._num_steps, self._replaces = training["num_steps"], False
        self._restore_place(stored)
        self._restore_average(stored)
        count, total = training["losses"]
        self._losses = (count, total)
        self._evaluation_due = training["evaluation_due"]
        self.history = [Evaluation(*entry) for entry in training["history"]]
        self._count_drops()

    def _restore_place(self, stored: Stored) -> None:
        """Goes on in the text, with the carried state; from its start for another batch size."""
        training, before = stored.training, stored.settings["batch_size"]
        if "batches_from" in training:
            self._begun = (training["batches_from"]["step"], training["batches_from"]["epoch"])
        if before == self._batch_size:
            self._share_out(restored_state(stored))
            return
        corpus, (step, epoch) = self.corpus, self._begun
        if corpus is None or not self._num_steps:
            return
        chunks = Chunks(corpus.train, before, self._seq_len, corpus.vocabulary.unit)
        epoch += (self._num_steps - step) / len(chunks)
        self._begun = (self._num_steps, epoch)
        if self._group.rank == 0:
            warn(
                f"{called('batch_size')} changes from {before} to {self._batch_size} after step "
                f"{self._num_steps:,}: the streams begin anew at the start of the text, and the "
                f"states that they carried are lost; {epoch:.4g} epochs are done"
            )

    def _restore_average(self, stored: Stored) -> None:
        before = stored.settings.get("average")
        now = None if self._average is None else self._average.setting
        if self._average is not None and before == now and "averaged" in stored.training:
            restore_average(stored, self._average)
        elif before != now and self._group.rank == 0 and (self._num_steps or before):
            told = "ends" if now is None else f"begins, by {now}"
            lost = f"; that by {before} is lost" if "averaged" in stored.training else ""
            warn(
                f"{called('average')} changes: after step {self._num_steps:,} an average of the "
                f"weights {told}{lost}"
            )

    def _share_out(self, state: NDArray[Any] | None) -> None:
        """Carries this process's part of the state of all streams on."""
        states = self.model.rnn.states
        self._carried = 0 if state is None else states.batch(state)
        if state is None or self._group.size == 1 or self._carried < self._group.size:
            self._state = state if self._group.size == 1 else None
            return
        ours = self._group.share(self._carried)
        self._state = states.joined([part[:, ours] for part in states.parts(state)])


def _facts(corpus: Corpus) -> dict[str, object]:
    """What identifies a text, by the names in messages."""
    vocabulary, facts = corpus.vocabulary, corpus.identity()
    symbols = hashlib.sha256(vocabulary.symbols.tobytes()).hexdigest()
    return {
        "text": f"{len(corpus)} {vocabulary.unit}s (fingerprint {corpus.fingerprint[:12]})",
        "vocabulary": f"{len(vocabulary)} {vocabulary.unit}s (fingerprint {symbols[:12]})",
        "document_mark": facts["document_mark"],
        "places where files begin": facts["file_starts"],
        "split": shown_split(corpus.split),
        **{name: corpus.own_identity(name) for name in OWN_PARTS},
    }


def _copy(path: str, to: str) -> None:
    """Copies a checkpoint."""
    if path != to:
        checkpoint.write(to, *checkpoint.read(path))


def _remove_best(path: str, best: Evaluation) -> None:
    """Removes another best checkpoint where that of the best evaluation is gone."""
    file = best_path(path)
    if os.path.exists(file):
        checkpoint.remove(file)
        warn(
            f"{file} is removed: it is not the checkpoint of the best evaluation, after step "
            f"{best.step:,}, which is gone"
        )


def _bound(name: str, value: float | None) -> float:
    return math.inf if value is None or value == math.inf else real(name, value, above=0)


def _optional(name: str, value: int | None, least: int) -> int | None:
    return None if value is None else integer(name, value, least)


def _add_to_message(error: OSError, words: str) -> None:
    if error.strerror is None:
        error.args = (f"{error}{words}",)
    else:
        error.strerror += words
