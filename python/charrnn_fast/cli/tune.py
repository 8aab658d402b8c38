"""``charrnn-fast tune``: searches for the settings with which a training fits a text."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ..runtime import build_info
from ..storage import atomic_file, checkpoint, streams
from ..storage.input_files import STANDARD_INPUT, is_stream, shown
from ..text.corpus import OWN_PARTS, Corpus, find_parts
from ..text.vocabulary import Vocabulary
from ..training.callbacks import Callback
from ..training.clock import Stopwatch
from ..training.resume import best_path, check_corpus
from ..training.trainer import Trainer
from ..tune import report, search
from ..tune.space import EVALUATIONS, PATIENCE, Settings, Space, Speed, Text
from . import options, show
from .parsing import (
    AUTO,
    INTERRUPTED,
    Commands,
    ResumeAction,
    add_threads,
    duration_option,
    integer_option,
    output_option,
    path_option,
)
from .texts import Files, read_corpus
from .train_report import text_line
from .train_setup import model_of, schedule_of

# What each trial has for itself, and what belongs to one training.
_NOT_TAKEN = tuple(
    option.name
    for option in (*options.RUN, *options.LOGS)
    if option.name not in ("epochs", "steps", "evaluate_length")
)
_BUDGET = 3600.0  # seconds
_TIMED, _TIMED_SYMBOLS = 5, 1000
_LEAST_TIME = 1e-12  # seconds, for clocks that stand still
_SMALL_SIZE = {"hidden_size": 32, "num_layers": 1}
_PLAIN_SIZE = {"hidden_size": 128, "num_layers": 2}
_PER_OCTAVE = 4  # the speed is rounded, so that most searches on a machine have equal bounds


class _Paths(NamedTuple):
    """The files of a search."""

    config: str
    study: str
    table: str
    picture: str
    checkpoint: str

    @classmethod
    def beside(cls, config: str) -> _Paths:
        stem = config.removesuffix(".toml")
        return cls(
            config, f"{stem}.study", f"{stem}.md", f"{stem}.png", f"{stem}.trial.safetensors"
        )


def add(commands: Commands) -> None:
    tune = commands.add(
        "tune",
        run,
        "Search for dropout, learning rate, width and epochs that fit a text, by the validation "
        "loss. Settings that are given are the same in all trials.",
    )
    tune.add_argument(
        "text",
        type=path_option,
        nargs="*",
        metavar="TEXT",
        help="files, folders and patterns such as '**/*.txt'",
    )
    tune.add_argument(
        "-o",
        "--output",
        type=output_option(".toml"),
        required=True,
        metavar="FILE.toml",
        help="the settings that won, for train --config; beside it are the table (.md), the "
        "picture (.png) and the study (.study)",
    )
    tune.add_argument(
        "--budget",
        type=duration_option,
        metavar="TIME",
        help="time of all trials, those before --resume included: 90s, 60m, 1h30m (default: 60m; "
        "with --resume, as before)",
    )
    tune.add_argument(
        "--trials", type=integer_option(1), metavar="N", help="end after N trials, if before"
    )
    existing = tune.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume",
        action=ResumeAction,
        help="go on with the search of -o FILE; auto: begin it if there is none",
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="begin anew, and replace the search of -o FILE"
    )
    tune.set_defaults(text_of_resume=[])
    add_threads(tune)
    options.add(tune, leave_out=_NOT_TAKEN)


def run(arguments: argparse.Namespace) -> int:
    search.imported()
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("tune draws with matplotlib: pip install 'charrnn_fast[tune]'")
    arguments.text = [*arguments.text_of_resume, *arguments.text]
    given = options.given(arguments)
    for name in _NOT_TAKEN:
        if given.get(name) is not None:
            raise ValueError(f"tune takes no {name}, which is of one training; leave it out")
    paths = _Paths.beside(arguments.output)
    files = _files(given, paths)
    lock = atomic_file.Lock(paths.study, "a running search writes to this study")
    try:
        _check_outputs(arguments, paths)
        return _search(arguments, given, paths, files)
    finally:
        lock.close()


def _files(given: options.Values, paths: _Paths) -> Files:
    """The files of the text; ValueError if one of them can be read only once, or is an output."""
    own = {part: given[part] for part in OWN_PARTS if given.get(part)}
    text = given.get("text") or []
    if given.get("demo"):
        if text or own:
            raise ValueError("--demo brings its own text; leave out either --demo or the files")
        return Files([], {})
    if not text:
        raise ValueError(
            "no text to train on: name one or more files, or use --demo; with --resume, name those "
            "of the search"
        )
    outputs = [*paths, best_path(paths.checkpoint)]
    files = Files(*find_parts(text, own, outputs))
    for file in files.all:
        if file == STANDARD_INPUT or is_stream(file):
            raise ValueError(
                f"text must be files, which --resume and train read again, got {shown(file)}"
            )
        for path in filter(os.path.exists, outputs):
            if os.path.samefile(path, file):
                raise ValueError(f"{path} is a text; the search would overwrite it")
    return files


def _check_outputs(arguments: argparse.Namespace, paths: _Paths) -> None:
    """Refuses, before any work, to overwrite anything but with --overwrite or --resume; decides
    what "auto" is.
    """
    for path in (paths.config, paths.study, paths.table, paths.picture):
        atomic_file.check(path)
        config = arguments.config
        if config is not None and os.path.exists(path) and os.path.samefile(path, config):
            raise ValueError(f"-o must be another file than --config, got {path} for both")
    there = os.path.exists(paths.study) and os.path.getsize(paths.study) > 0
    if arguments.resume == AUTO:
        arguments.resume = there
    if arguments.resume and not there:
        raise ValueError(f"{paths.study} does not exist: no search to resume")
    if there and not search.is_study(paths.study):
        raise ValueError(f"{paths.study} is no study of charrnn-fast tune; another -o keeps it")
    if not (arguments.resume or arguments.overwrite):
        for path in paths:
            if os.path.exists(path) and os.path.getsize(path) > 0:
                ways = (
                    "--resume goes on with its search, --overwrite starts anew"
                    if there
                    else "and is of no search; another -o keeps it, --overwrite replaces it"
                )
                raise ValueError(f"{path} exists{':' if there else ','} {ways}")
    for path in (paths.checkpoint, best_path(paths.checkpoint)):
        checkpoint.check_writable(path)


def _search(
    arguments: argparse.Namespace, given: options.Values, paths: _Paths, files: Files
) -> int:
    vocabulary = Vocabulary.from_bytes() if given.get("bytes") else None
    corpus = read_corpus(files, given, vocabulary, given.get("min_count", 1))
    makes = _Trials(corpus, given)
    known = search.Study(paths.study).facts if arguments.resume else {}
    facts = known or _facts(makes, arguments.budget or _BUDGET)
    _check_facts(paths.study, facts, makes)
    budget = arguments.budget or facts.get("allowed", facts["budget"])
    text = Text(len(corpus.train), makes.evaluated, len(corpus.vocabulary))
    space = Space.within(facts["budget"], text, makes.held, Speed(*facts["speed"]), makes.steps)
    if arguments.overwrite:
        for path in (paths.study, paths.config, paths.table, paths.picture):
            with suppress(FileNotFoundError):
                os.unlink(path)
    study = search.Study(paths.study)
    study.begin({**facts, "allowed": budget})
    streams.output(sys.stdout).goes_on = True  # the search matters more than the printed lines
    print(f"text        {text_line(corpus, len(files.text))}")
    print(f"search      {space.describe()}")
    if space.is_narrow:
        print(f"advice      wider models need a larger --budget, {space.cheaper}")
    trials = search.Search(
        study,
        space,
        makes,
        paths.checkpoint,
        budget=budget,
        trials=arguments.trials,
        seed=given.get("seed", 0),
        tell=lambda line: print(line, flush=True),
    )
    used = search.duration(budget - trials.left())
    before = f"; {used} are used" if study.tried else ""
    print(f"budget      {search.duration(budget)}{before}", flush=True)
    ours = _Outcome(paths, makes, study)
    try:
        trials.run(ours.write)
    except KeyboardInterrupt:
        print("\ninterrupted")
        ours.conclude()
        print(f"--resume goes on: charrnn-fast tune ... -o {shlex.quote(paths.config)} --resume")
        return INTERRUPTED
    ours.conclude()
    return 0


def _facts(makes: _Trials, budget: float) -> dict[str, Any]:
    """What holds for all trials of a new study."""
    return {
        "version": build_info()["version"],
        "held": makes.identity(),
        "corpus": makes.corpus.identity(),
        "vocabulary": makes.symbols,
        "budget": budget,
        "speed": list(makes.speed()),
    }


def _check_facts(path: str, facts: Mapping[str, Any], makes: _Trials) -> None:
    """ValueError unless the study at path is of this text and these settings."""
    advice = {"text": "--overwrite begins a new search"}
    check_corpus(path, makes.corpus, facts["corpus"], advice)
    if makes.symbols != facts["vocabulary"]:
        raise ValueError(
            f"the corpus must have the vocabulary of the search of {path}, got another one; "
            f"{advice['text']}"
        )
    ours, before = makes.identity(), facts["held"]
    for name in sorted({*ours, *before}):
        if ours.get(name) != before.get(name):
            flag = f"--{name.replace('_', '-')}"
            was = "left out" if before.get(name) is None else before[name]
            got = "none" if ours.get(name) is None else ours[name]
            raise ValueError(
                f"{flag} must be {was}, as in the search of {path}, got {got}; --overwrite begins "
                f"a new search"
            )


class _Trials(search.Maker):
    """Makes the trainers of a text's trials."""

    def __init__(self, corpus: Corpus, given: options.Values) -> None:
        self.corpus = corpus
        texts = {option.name for option in (options.PATHS, *options.TEXT)}
        self.held = {n: v for n, v in given.items() if n not in texts and v is not None}
        self._given = given
        self._device = given.get("device", options.DEVICE.default)
        trainer = self._trainer(_PLAIN_SIZE | self.held)
        self.steps = trainer.steps_per_epoch
        self._check_schedule(trainer)

    def _check_schedule(self, trainer: Trainer) -> None:
        """ValueError if the trials cannot have the schedule that is held."""
        values = {"schedule": "cosine", "warmup": 0, **self.held}
        epochs = values["warmup"] + 1
        if values.keys() & {"epochs", "steps"}:  # else they are more than the warm-up
            epochs = trainer.epoch_at(self._steps(values))
        schedule_of(values, epochs)

    def identity(self) -> dict[str, Any]:
        """What trials share, as JSON values, without the device."""
        kept = {name: value for name, value in self.held.items() if name != options.DEVICE.name}
        return {n: "inf" if value == math.inf else value for n, value in kept.items()}

    @property
    def symbols(self) -> list[int]:
        """The vocabulary, as JSON values."""
        return [int(symbol) for symbol in self.corpus.vocabulary.symbols]

    @property
    def evaluated(self) -> int:
        """The symbols of an evaluation."""
        most = self.held.get("evaluate_length") or len(self.corpus.validation)
        return min(most, len(self.corpus.validation))

    def new(self, settings: Settings, path: str, watch: Callback) -> tuple[Trainer, int]:
        values = {**self.held, **settings}
        steps = self._steps(values)
        trainer = self._trainer(
            values,
            checkpoint_path=path,
            evaluate_every=evaluate_every(steps),
            patience=PATIENCE,
            callbacks=[watch],
        )
        trainer.schedule = schedule_of(values, trainer.epoch_at(steps))
        return trainer, steps

    def again(self, settings: Settings, path: str, watch: Callback) -> tuple[Trainer, int]:
        trainer = Trainer.resume(
            path, self.corpus, checkpoint_path=path, callbacks=[watch], device=self._device
        )
        return trainer, self._steps({**self.held, **settings})

    def winning(self, one: search.Tried) -> options.Values:
        """The settings of a trial, for train."""
        steps = self._steps({**self.held, **one.settings})
        every = {"evaluate_every": evaluate_every(steps), "patience": PATIENCE}
        values = {**self._given, **one.settings, **every}
        values.pop(options.DEVICE.name, None)
        return {name: values[name] for name in options.NAMES if name in values}

    def speed(self) -> Speed:
        """Measured with a small model and one of the default size, but for what is held."""
        small, plain = (self._times(size | self.held) for size in (_SMALL_SIZE, _PLAIN_SIZE))
        training = _line((small[0], small[1]), (plain[0], plain[1]))
        evaluation = _line((small[0], small[2]), (plain[0], plain[2]))
        return Speed(training[0], evaluation[0], training[1], evaluation[1])

    def _times(self, values: options.Values) -> tuple[int, float, float]:
        """The parameters of a model, and its seconds per symbol in training and evaluation."""
        trainer = self._trainer(values)
        length, batch = trainer.seq_len, trainer.batch_size
        needed = length * batch
        ids = self.corpus.train[: needed + 1]
        x, y = (ids[at : at + needed].reshape(batch, length).T for at in (0, 1))
        part = self.corpus.validation[: min(_TIMED_SYMBOLS, self.evaluated)]
        trained = _median_time(lambda: trainer.step(x, y))
        evaluated = _median_time(lambda: trainer.model.evaluate_ids(part))
        return trainer.model.num_parameters, trained / needed, evaluated / len(part)

    def _steps(self, values: options.Values) -> int:
        return int(values.get("steps") or values["epochs"] * self.steps)

    def _trainer(self, values: options.Values, **settings: Any) -> Trainer:
        model = model_of(self.corpus.vocabulary, values, None, self._device)
        training = {o.name: values[o.name] for o in options.TRAINING if o.name in values}
        length = values.get("evaluate_length")
        return Trainer(
            model, self.corpus, **training, evaluate_length=length, sample_length=0, **settings
        )


def evaluate_every(steps: int) -> int:
    """The updates between the evaluations of a trial."""
    return -(-steps // EVALUATIONS)


def _median_time(work: Callable[[], object]) -> float:
    """Seconds; the median, since other programs may stop one of the times."""
    work()  # what comes once, such as memory
    times = []
    for _ in range(_TIMED):
        watch = Stopwatch()
        work()
        times.append(watch.seconds)
    return statistics.median(times)


def _line(small: tuple[int, float], plain: tuple[int, float]) -> tuple[float, float]:
    """The speed and the rest of `Speed`, from two models' parameters and seconds per symbol."""
    (few, short), (many, long) = small, plain
    least = max(long, _LEAST_TIME) / many / 2  # at most half of the time is the rest
    slope = max((long - short) / (many - few), least) if many > few else 2 * least
    return _rounded(1 / slope), _rounded(max(long - slope * many, 0.0))


def _rounded(number: float) -> float:
    if number == 0:
        return 0.0
    return float(2.0 ** (round(math.log2(number) * _PER_OCTAVE) / _PER_OCTAVE))


class _Outcome:
    """Writes and prints what a search found."""

    def __init__(self, paths: _Paths, makes: _Trials, study: search.Study) -> None:
        self._paths, self._makes, self._study = paths, makes, study
        self._unit = makes.corpus.vocabulary.unit

    def write(self) -> None:
        """The table and, once a trial is finished, the settings of the best."""
        tried = self._study.tried
        about = (
            f"Trials of `charrnn-fast tune` on {len(self._makes.corpus):,} {self._unit}s, "
            f"{search.duration(sum(one.seconds for one in tried))}."
        )
        held = options.to_toml(self._makes.held).strip().replace("\n", ", ")
        if held:
            about += f" In all of them: {held}."
        table = report.table(tried, self._all(), about, self._unit)
        atomic_file.replace(self._paths.table, [table.encode()])
        best = search.winner(tried)
        if best is not None:
            remark = (
                f"# The best of {show.count(len(tried), 'trial')} of charrnn-fast tune: validation "
                f"loss {best.best[0]:.4f} nats per {self._unit}.\n"
            )
            settings = options.to_toml(self._makes.winning(best))
            atomic_file.replace(self._paths.config, [(remark + settings).encode()])

    def _all(self) -> dict[str, Any]:
        return self._makes.held

    def conclude(self) -> None:
        """Writes all, with the picture, and prints the result."""
        tried = self._study.tried
        self.write()
        written = [self._paths.table]
        if report.is_drawable(tried):
            report.picture(tried, self._all(), self._paths.picture, self._unit)
            written.append(self._paths.picture)
        best = search.winner(tried)
        if best is None:
            print(f"no trial is finished, so there are no settings to write; see {written[0]}")
            return
        shown = search.in_words(self._makes.held, best.settings)
        print(f"\nthe best of {show.count(len(tried), 'trial')}: trial {best.number}, {shown}")
        print(f"validation loss: {show.losses(best.best[0], self._makes.corpus.vocabulary)}")
        print(f"written to {self._paths.config}, {', '.join(written)}")
        config = shlex.quote(self._paths.config)
        print(f"next: charrnn-fast train --config {config} -o model.safetensors")
