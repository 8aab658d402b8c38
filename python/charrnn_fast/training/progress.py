"""The progress display of a training: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import math
import sys
from collections import deque
from textwrap import indent
from typing import TYPE_CHECKING, Any, TextIO

from .._checks import brief, called
from ..storage import streams
from .callbacks import Callback, Evaluation, Trainer, Update
from .clock import Stopwatch, speed

if TYPE_CHECKING:
    from tqdm import tqdm

_AVERAGED = 100  # updates in the loss that is shown
_FAR = 3  # times the loss of uniform guessing: only divergence gets there
_LINE_PERIOD, _BAR_PERIOD = 10.0, 0.1  # seconds


class Progress(Callback):
    """Shows loss, speed and time left, each evaluation, and text drawn from the model."""

    def started(self, trainer: Trainer, steps: int) -> None:
        self._total = steps * trainer.symbols_per_step
        self._unit = trainer.model.vocabulary.unit
        self._bar = bar(total=self._total, unit=self._unit[:4], unit_scale=True)
        self._period = _LINE_PERIOD if self._bar is None else _BAR_PERIOD
        self._size = len(trainer.model.vocabulary)
        self._warned = False
        self._losses: deque[float] = deque(maxlen=_AVERAGED)
        self._done = 0  # symbols
        self._watch = Stopwatch()  # since something was shown
        self._evaluated = (0, 0.0)  # symbols and seconds of training at the last evaluation

    def updated(self, trainer: Trainer, update: Update) -> None:
        self._done += update.symbols
        self._losses.append(update.loss)
        if update.loss > _FAR * math.log(self._size) and not self._warned:
            self._warned = True
            self._warn(update)
        if self._watch.seconds < self._period:
            return
        self._watch = Stopwatch()
        loss = sum(self._losses) / len(self._losses)
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {brief(loss, 3)}", refresh=False)
            self._bar.update(self._done - self._bar.n)
            return
        rate = speed(self._done, trainer.seconds)
        left = "" if rate is None else f"  {(self._total - self._done) / rate:,.0f} s left"
        self._print(
            f"{self._done / self._total:4.0%}  loss {brief(loss, 3)} nats/{self._unit}"
            f"{self._speed(rate)}{left}"
        )

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, sample: str) -> None:
        done, seconds = self._done - self._evaluated[0], trainer.seconds - self._evaluated[1]
        self._evaluated = (self._done, trainer.seconds)
        rate = self._speed(speed(done, seconds)) if done else ""
        nats = evaluation.validation_loss
        self._print(
            f"step {evaluation.step:,}  epoch {evaluation.epoch:.2f}  "
            f"training {brief(evaluation.train_loss, 4)}  validation {brief(nats, 4)} "
            f"nats/{self._unit} ({brief(nats / math.log(2), 3)} bits){rate}"
        )
        if sample:
            # Always escaped: a file of progress may be shown on a terminal later.
            self._print(indent(streams.visible(sample), "    | ", lambda line: True))

    def ended(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.close()

    def _warn(self, update: Update) -> None:
        uniform = math.log(self._size)
        say(
            f"charrnn-fast: warning: at step {update.step:,} the loss is {brief(update.loss, 4)} "
            f"nats/{self._unit}, far above ln {self._size} = {uniform:.4f}, that of uniform "
            f"guessing; try a smaller {called('learning_rate')}",
            self._bar,
            sys.stderr,
        )

    def _speed(self, rate: float | None) -> str:
        return "" if rate is None else f"  {rate:,.0f} {self._unit}s/s"

    def _print(self, text: str) -> None:
        say(text, self._bar, sys.stdout)


def bar(**options: Any) -> tqdm[Any] | None:
    """A bar on standard error if that is a terminal; options: tqdm's."""
    terminal = streams.output(sys.stderr, optional=True)
    if not terminal.isatty():
        return None
    from tqdm import tqdm  # slow to import, and only wanted on a terminal

    return tqdm(file=terminal.obeyed(), leave=False, **options)


def say(text: str, above: tqdm[Any] | None, stream: TextIO | None) -> None:
    """Prints lines, above a bar if there is one."""
    if above is not None:
        above.clear()
    print(text, file=streams.output(stream, optional=stream is sys.stderr), flush=True)
    if above is not None:
        above.refresh()
