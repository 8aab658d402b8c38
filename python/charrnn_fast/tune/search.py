"""The trials of a search, one after another, with Optuna's choice of their settings.

The study is a file of lines to which Optuna appends (its journal). A trial trains by `Trainer`,
with a checkpoint beside the study; what ends before the trial does, an interrupt, a kill or the
budget, leaves both, and the next search goes on with that trial, bit for bit.

The sampler is TPE (Bergstra et al., 2011). Its random numbers follow from the seed and the number
of the trial alone, so a search that was interrupted chooses as one that was not. A trial ends early
by the rule of the median (Golovin et al., 2017, section 3.2.2), see `is_hopeless`.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .._checks import StrPath, brief
from ..storage import atomic_file, checkpoint
from ..training.callbacks import Callback, Evaluation, Update
from ..training.clock import Stopwatch
from ..training.progress import bar
from ..training.resume import best_path
from ..training.trainer import Trainer
from .space import EVALUATIONS, Settings, Space

if TYPE_CHECKING:
    import optuna
    from tqdm import tqdm

_STUDY = "charrnn-fast tune"
_FIRST_LINE = b'{"op_code"'
_PEERS = 4  # finished trials that a trial is compared with, at least
_MARGIN = 1.02  # times their median, since those that are as good may change places yet
_SPARED = 1  # evaluations of a trial before it is compared
_RANDOM = 6  # trials before the sampler learns from them
_LINE_PERIOD = 60.0  # seconds: elsewhere than on a terminal a long trial is told now and then
_SEEDS = 1_000_003  # a prime: the seeds of two searches' trials do not coincide

FINISHED, HOPELESS, DIVERGED, UNFINISHED = "finished", "hopeless", "diverged", "unfinished"
TOO_LARGE = "too large for the memory"
GUESSING = "no better than guessing"
_REPEAT = "repeat"  # of the settings of another trial, whose result it has without training
_MOST_REPEATS = 10  # in a row: there is nothing new to try
_SPENT = "the budget is spent; --resume with a larger --budget goes on with this trial"


class Tried(NamedTuple):
    """A trial as the study has it."""

    number: int
    settings: Settings
    parameters: int
    epochs: float
    """That it would have if nothing ended it."""
    curve: list[list[float]]
    """[epoch, validation loss in nats per symbol] of each evaluation."""
    seconds: float
    ended: str
    """FINISHED, by its epochs or its patience; HOPELESS; DIVERGED; GUESSING, uniformly; TOO_LARGE;
    UNFINISHED.
    """

    @property
    def best(self) -> tuple[float, float]:
        """The lowest validation loss and its epoch; inf if there is none."""
        return min(((loss, epoch) for epoch, loss in self.curve), default=(math.inf, 0.0))


class Maker:
    """What makes the trainers of trials; the command implements it."""

    def new(self, settings: Settings, path: str, watch: Callback) -> tuple[Trainer, int]:
        """The trainer of a trial that saves to path, and its updates."""
        raise NotImplementedError

    def again(self, settings: Settings, path: str, watch: Callback) -> tuple[Trainer, int]:
        """The trainer of the checkpoint at path, of a trial, and the trial's updates."""
        raise NotImplementedError


class SpentError(Exception):
    """The budget is spent. Raised by a callback, so that a checkpoint is written."""


def is_hopeless(epochs: float, losses: Sequence[float], others: Sequence[Tried]) -> bool:
    """Whether a trial's best validation loss so far is clearly above the median of the others'.

    losses: those of its evaluations so far. Trials are compared at equal shares of their own
    schedules, for the learning rate falls with the share, and only with finished ones of as many
    epochs or fewer: a trial that has read more of the text by then, and is still behind, will not
    catch up. One that has read less might.
    """
    done = len(losses)
    if done <= _SPARED or done >= EVALUATIONS:
        return False
    peers = [
        min(loss for _, loss in other.curve[:done])
        for other in others
        if other.ended == FINISHED and other.epochs <= epochs and len(other.curve) >= done
    ]
    return len(peers) >= _PEERS and min(losses) > _MARGIN * statistics.median(peers)


class Study:
    """Optuna's study in a file: what was tried, and what to try next."""

    def __init__(self, path: StrPath) -> None:
        """Opens the study at path, or begins it; nothing else may have it open. What a kill or a
        full disk left of a line at its end is removed, for Optuna would append to it. Raises
        ImportError, which names the extra, if Optuna is not installed, and ValueError if the file
        is no study.
        """
        self._optuna = imported()
        with suppress(FileNotFoundError):
            os.unlink(f"{os.fspath(path)}.lock")  # of a killed search: Optuna would wait for it
        _end_at_a_line(path)
        backend = self._optuna.storages.journal.JournalFileBackend(os.fspath(path))
        backend.append_logs = partial(_append, backend.append_logs, path)
        try:
            self._storage = self._optuna.storages.JournalStorage(backend)
            self._study: optuna.Study = self._optuna.create_study(
                storage=self._storage, study_name=_STUDY, load_if_exists=True
            )
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise ValueError(
                f"{os.fspath(path)} is damaged and cannot be read as a study: {error!r}; "
                f"--overwrite begins a new search"
            ) from None

    @property
    def facts(self) -> dict[str, Any]:
        """What `begin` stored; empty for a new study."""
        return dict(self._study.user_attrs.get("facts", {}))

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Stores JSON values that are the same for all trials."""
        self._study.set_user_attr("facts", dict(facts))

    @property
    def tried(self) -> list[Tried]:
        """The trials that have begun, in their order."""
        found = []
        for trial in self._study.get_trials(deepcopy=False):
            about = trial.user_attrs
            if "settings" not in about or about.get("ended") == _REPEAT:
                continue  # a trial that waits, was just chosen, or came before
            found.append(
                Tried(
                    trial.number,
                    about["settings"],
                    about.get("parameters", 0),
                    about.get("epochs", 0.0),
                    about.get("progress", {}).get("curve", []),
                    about.get("progress", {}).get("seconds", 0.0),
                    about.get("ended", UNFINISHED),
                )
            )
        return found

    def next(self, space: Space, seed: int) -> tuple[optuna.trial.Trial, Settings, bool]:
        """The trial to do, its settings, and whether it has begun before."""
        states = self._optuna.trial.TrialState
        running = next(iter(self._study.get_trials(states=(states.RUNNING,))), None)
        if running is not None:
            study_id = self._storage.get_study_id_from_name(_STUDY)
            trial = self._optuna.trial.Trial(
                self._study,
                self._storage.get_trial_id_from_study_id_trial_number(study_id, running.number),
            )
            # Killed between the choice of the trial and its settings: the rest is chosen now.
            self._seed(seed, running.number)
            settings = running.user_attrs.get("settings")
            if settings is None:
                settings = space.settings(trial)
                trial.set_user_attr("settings", settings)
            return trial, settings, "parameters" in running.user_attrs
        trials = self._study.get_trials(deepcopy=False)
        begun = sum(trial.state != states.WAITING for trial in trials)
        first = space.first()
        if begun < len(first) and begun == len(trials):
            self._study.enqueue_trial(first[begun])
        self._seed(seed, begun)
        trial = self._study.ask()
        settings = space.settings(trial)
        trial.set_user_attr("settings", settings)
        return trial, settings, False

    def _seed(self, seed: int, number: int) -> None:
        own = (seed * _SEEDS + number) % 2**32
        sampler = self._optuna.samplers.TPESampler(seed=own, n_startup_trials=_RANDOM)
        self._study.sampler = sampler

    def end(
        self,
        trial: optuna.trial.Trial,
        ended: str,
        curve: Sequence[Sequence[float]],
        *,
        repeats: bool = False,
    ) -> None:
        """Ends a trial. The sampler takes one that is not finished for worse than all that are, and
        one that is not even hopeless for the worst. repeats: it has the settings of another, and
        its result.
        """
        trial.set_user_attr("ended", _REPEAT if repeats else ended)
        best = min((loss for _, loss in curve), default=math.inf)
        if ended == FINISHED:
            self._study.tell(trial, best)
            return
        if ended == HOPELESS:
            trial.report(best, len(curve))
        self._study.tell(trial, state=self._optuna.trial.TrialState.PRUNED)


def imported() -> Any:
    """Optuna, without its own messages; ImportError names the extra."""
    try:
        import optuna  # of the extra, and slow to import
    except ModuleNotFoundError as error:
        raise ImportError(
            f"tune needs Optuna, and {error.name} is not installed: "
            "pip install 'charrnn_fast[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _append(append: Callable[[Any], None], path: StrPath, lines: Any) -> None:
    """Appends lines to a study; an error names it."""
    try:
        append(lines)
    except OSError as error:
        raise atomic_file.of_path(error, path) from error


def _end_at_a_line(path: StrPath) -> None:
    """Cuts a file after its last whole line."""
    with suppress(FileNotFoundError), open(path, "r+b") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def is_study(path: str) -> bool:
    """Whether a file is a study of `Study`."""
    with open(path, "rb") as file:
        return file.read(len(_FIRST_LINE)) == _FIRST_LINE


class Search:
    """Trials, one after another, until the budget is spent."""

    def __init__(
        self,
        study: Study,
        space: Space,
        maker: Maker,
        checkpoint: str,
        *,
        budget: float,
        trials: int | None,
        seed: int,
        tell: Callable[[str], None],
    ) -> None:
        """checkpoint: the file of the trial that runs. budget: seconds of all trials, those of
        earlier searches included. trials: at most so many, or None. tell: prints a line.
        """
        self.study, self._space, self._maker, self._checkpoint = study, space, maker, checkpoint
        self._budget, self._trials, self._seed, self.tell = budget, trials, seed, tell
        self._repeats = 0

    def left(self, now: float = 0.0) -> float:
        """Seconds of the budget after the trials that have ended and now seconds of another."""
        spent = sum(one.seconds for one in self.study.tried if one.ended != UNFINISHED)
        return self._budget - spent - now

    def run(self, after: Callable[[], None]) -> None:
        """Tries until the budget, or the number of trials, does not allow another one.

        after: called after each trial. Raises KeyboardInterrupt on Ctrl-C, with the trial saved.
        """
        while not (ending := self._ending()):
            result = self._try()
            if result is None:
                return
            after()  # before the line: its reader may have gone
            if result:
                self.tell(result)
        self.tell(ending)

    def _ending(self) -> str:
        """Why there is no other trial; empty: there is one."""
        tried = self.study.tried
        unfinished = [one.seconds for one in tried if one.ended == UNFINISHED]
        if unfinished:
            return "" if self.left(unfinished[0]) > 0 else _SPENT
        if self._trials is not None and len(tried) >= self._trials:
            return (
                f"{len(tried)} of {self._trials} trials are done; --resume with more --trials "
                f"goes on"
            )
        left = self.left()
        if left > self._space.limit / 2:
            return ""
        return (
            f"{duration(max(left, 0))} of the budget are left, too little for another trial; "
            f"--resume with a larger --budget goes on"
        )

    def _try(self) -> str | None:
        """Does a trial and returns its result as a line, empty if it repeats another; None: the
        budget has ended it, or there is nothing new to try.
        """
        space = replace(self._space, limit=min(self._space.limit, self.left()))
        trial, settings, begun = self.study.next(space, self._seed)
        # Without the trial itself, which a kill may have ended in part.
        others = [
            one
            for one in self.study.tried
            if one.ended != UNFINISHED and one.number != trial.number
        ]
        twin = next((one for one in others if one.settings == settings), None)
        if twin is not None and not begun:
            self.study.end(trial, twin.ended, twin.curve, repeats=True)
            self._repeats += 1
            if self._repeats < _MOST_REPEATS:
                return ""
            self.tell("the search ends: what it chooses has been tried")
            return None
        self._repeats = 0
        before: float = trial.user_attrs.get("progress", {}).get("seconds", 0.0)
        watch = _Watch(self, trial, others, before)
        try:
            trainer, steps = self._trainer(settings, watch, begun=begun)
        except MemoryError:
            return self._end(trial, TOO_LARGE, watch)
        if not begun:
            trial.set_user_attr("epochs", trainer.epoch_at(steps))
            trial.set_user_attr("parameters", trainer.model.num_parameters)
        self.tell(self._beginning(trial.number, settings, trainer, steps))
        with watch.shown(trainer, steps):
            try:
                trainer.fit(steps=steps - trainer.num_steps, progress=False)
            except FloatingPointError:
                return self._end(trial, DIVERGED, watch)
            except MemoryError:
                return self._end(trial, TOO_LARGE, watch)
            except SpentError:
                self.tell(_SPENT)
                return None
        best = min(entry.validation_loss for entry in trainer.history)
        if best >= math.log(len(trainer.model.vocabulary)):
            return self._end(trial, GUESSING, watch)
        return self._end(trial, HOPELESS if watch.hopeless else FINISHED, watch)

    def _trainer(self, settings: Settings, watch: _Watch, *, begun: bool) -> tuple[Trainer, int]:
        if begun and os.path.exists(self._checkpoint):
            trainer, steps = self._maker.again(settings, self._checkpoint, watch)
            return trainer, max(steps, trainer.num_steps)
        self.remove_checkpoint()
        return self._maker.new(settings, self._checkpoint, watch)

    def _end(self, trial: optuna.trial.Trial, ended: str, watch: _Watch) -> str:
        progress = {"curve": [], **trial.user_attrs.get("progress", {})}
        progress["seconds"] = round(watch.seconds, 3)
        trial.set_user_attr("progress", progress)
        self.study.end(trial, ended, progress["curve"])
        self.remove_checkpoint()
        tried = self.study.tried
        return self._result(tried[-1], winner(tried))

    def remove_checkpoint(self) -> None:
        """Removes the files of a trial that has ended."""
        for path in (self._checkpoint, best_path(self._checkpoint)):
            checkpoint.remove(path)

    def _beginning(self, number: int, settings: Settings, trainer: Trainer, steps: int) -> str:
        shown = in_words(self._space.held, settings)
        done = f", {trainer.num_steps:,} of {steps:,} steps are done" if trainer.num_steps else ""
        return f"trial {number}: {shown}{done}"

    def _result(self, one: Tried, best: Tried | None) -> str:
        loss, epoch = one.best
        told = f"{brief(loss, 4)} at epoch {epoch:.3g}" if one.curve else "no evaluation"
        early = "" if one.ended == FINISHED else f", {one.ended}"
        so_far = "" if best is None else f"; best {brief(best.best[0], 4)}, trial {best.number}"
        left = f"{duration(max(self.left(), 0))} left"
        return f"    {told}{early}; {duration(one.seconds)}{so_far}; {left}"


def winner(tried: Sequence[Tried]) -> Tried | None:
    """The finished trial with the lowest validation loss, the first of equals; None: none is
    finished.
    """
    finished = (one for one in tried if one.ended == FINISHED and one.curve)
    return min(finished, key=lambda one: one.best[0], default=None)


def dropout_of(held: Mapping[str, Any], own: Mapping[str, Any]) -> float:
    """The dropout of a trial: the rate that was chosen for it or, if that is held, the larger of
    those between layers and of the output. own: its settings besides those that are held.
    """
    for name in ("output_dropout", "dropout"):
        if name in own:
            return float(own[name])
    return max(held.get("dropout") or 0.0, held.get("output_dropout") or 0.0)


def in_words(held: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """The settings of a trial, for a line; held and own as in `dropout_of`."""
    settings, rate = {**held, **own}, dropout_of(held, own)
    shape = f"{settings.get('num_layers', '')}x{settings.get('hidden_size', '')}"
    unit = "epoch" if settings.get("epochs") else "step"
    number = settings.get(f"{unit}s")
    return (
        f"{shape}, dropout {rate:g}, learning rate {settings['learning_rate']:g}, "
        f"{number} {unit}{'s' * (number != 1)}"
    )


def duration(seconds: float) -> str:
    """Like "12 s", "3 min 2 s", "1 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


class _Watch(Callback):
    """Notes what a trial does in the study, ends it early, and shows a bar on a terminal."""

    hopeless = False

    def __init__(
        self, search: Search, trial: optuna.trial.Trial, others: Sequence[Tried], seconds: float
    ) -> None:
        """seconds: of the trial in earlier searches."""
        self._search, self._trial, self._others = search, trial, others
        self._before, self._stopwatch = seconds, Stopwatch()
        self._left = search.left(seconds)  # when the stopwatch starts
        self._bar: tqdm[Any] | None = None
        self._silence = Stopwatch()

    @property
    def seconds(self) -> float:
        """Of the trial so far, in all searches."""
        return self._before + self._stopwatch.seconds

    @contextmanager
    def shown(self, trainer: Trainer, steps: int) -> Iterator[None]:
        """A bar on a terminal meanwhile."""
        self._bar = bar(total=steps, initial=trainer.num_steps, unit="step")
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()

    def updated(self, trainer: Trainer, update: Update) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {brief(update.loss, 3)}", refresh=False)
            self._bar.update(update.step - self._bar.n)
        if self._stopwatch.seconds > self._left:
            raise SpentError

    def started(self, trainer: Trainer, steps: int) -> None:
        self._end_hopeless(trainer)  # a kill may have come before the study had it

    def evaluated(self, trainer: Trainer, evaluation: Evaluation, sample: str) -> None:
        self._note(trainer)
        self._end_hopeless(trainer)
        if self._bar is None and self._silence.seconds > _LINE_PERIOD:
            self._silence = Stopwatch()
            loss, epoch = brief(evaluation.validation_loss, 4), evaluation.epoch
            last = self._trial.user_attrs["epochs"]
            self._search.tell(f"    {loss} at epoch {epoch:.3g} of {last:.3g}")

    def ended(self, trainer: Trainer) -> None:
        self._note(trainer)

    def _end_hopeless(self, trainer: Trainer) -> None:
        losses = [entry.validation_loss for entry in trainer.history]
        if is_hopeless(self._trial.user_attrs["epochs"], losses, self._others):
            self.hopeless = True
            trainer.stop()

    def _note(self, trainer: Trainer) -> None:
        """Stores, in one line of the study, how far the trial is."""
        curve = [[entry.epoch, entry.validation_loss] for entry in trainer.history]
        progress = {"curve": curve, "seconds": round(self.seconds, 3)}
        self._trial.set_user_attr("progress", progress)
