"""``charrnn-fast train``: from text files to a checkpoint."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext, suppress

from ..storage import streams
from ..training.distributed import Group, joined
from . import options
from .parsing import (
    INTERRUPTED,
    Commands,
    ResumeAction,
    add_threads,
    file_option,
    output_option,
    path_option,
)
from .texts import default_log, log_again
from .train_files import check_logs, check_needed, check_readers, checked_output, files_of
from .train_report import check_best, conclude, describe, ending, final_test, interrupted
from .train_setup import corpus_of, origin_of, resumed, trainer_of


def add(commands: Commands) -> None:
    train = commands.add("train", run, "Train a model on text files.")
    train.add_argument(
        "text",
        type=path_option,
        nargs="*",
        metavar="TEXT",
        help="files, folders and patterns such as '**/*.txt'; - for standard input",
    )
    train.add_argument(
        "-o",
        "--output",
        type=output_option(".safetensors"),
        metavar="FILE",
        help="save the model here",
    )
    train.add_argument(
        "--init-from",
        type=file_option,
        metavar="FILE",
        help="fine-tune: begin with the weights and vocabulary of a trained model",
    )
    train.add_argument(
        "--extend-vocabulary",
        action="store_true",
        help="with --init-from: add the text's characters to its vocabulary",
    )
    existing = train.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume",
        action=ResumeAction,
        help="resume the training saved in -o FILE; auto: begin it if there is none",
    )
    existing.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the model in -o FILE, at the first checkpoint; with --keep-every also the "
        "MODEL.step-*.safetensors beside it",
    )
    train.set_defaults(text_of_resume=[])
    add_threads(train)
    options.add(train)


def run(arguments: argparse.Namespace) -> int:
    arguments.text = [*arguments.text_of_resume, *arguments.text]
    # Read once: a file may be a pipe. Several processes tell an error together.
    given: options.Values = {}
    failure: Exception | None = None
    try:
        given = options.given(arguments)
    except (OSError, ValueError) as error:
        failure = error
    device = given.get(options.DEVICE.name, options.DEVICE.default)
    with (
        joined(device, threads=arguments.threads) as group,
        streams.silent() if group.rank else nullcontext(),
    ):
        if failure is not None:
            raise failure
        return _run(arguments, given, group)


def _run(arguments: argparse.Namespace, given: options.Values, group: Group) -> int:
    """One process's part of the command; process 0 alone writes and prints."""
    with checked_output(arguments, group, demo=bool(given.get("demo"))):
        origin = origin_of(arguments, given, group)
        values = resumed(origin, given) if arguments.resume and origin else given
        if arguments.resume and origin and values.get("log") and not given.get("log"):
            values["log"] = log_again(values["log"], origin)
        check_needed(arguments, values)
        log_path = values.get("log") or (arguments.output and default_log(arguments.output))
        files = files_of(arguments, values, given, log_path)
        check_readers(files.all, group)
        if group.rank == 0:
            check_logs(arguments, values, log_path)
        corpus = corpus_of(arguments, files, values, origin)
        trainer, steps = trainer_of(arguments, corpus, values, given, origin, log_path, group)
        begun = trainer.num_steps
        streams.output(sys.stdout).goes_on = True  # the model matters more than the printed lines
        extends = arguments.extend_vocabulary and not arguments.resume
        known = origin.model.vocabulary if extends and origin else None
        # The demonstration is short on purpose; a trained model needs less than a new one.
        advised = origin is None and not values.get("demo")
        describe(trainer, corpus, len(files.text), steps, group.size, known, advised=advised)
    if not trainer.evaluation_due and (begun >= steps or trainer.is_stale()):
        print(f"nothing left to train: {ending(trainer, steps)}")
        if values.get("final_test") and group.rank == 0:
            final_test(arguments, trainer)
        return 0
    if values.get("final_test") and group.rank == 0:
        check_best(arguments, trainer)
    try:
        trainer.fit(steps=max(steps - begun, 0))
    except KeyboardInterrupt:
        with suppress(BrokenPipeError):  # the same Ctrl-C may have ended the reader
            interrupted(arguments, trainer, begun)
        return INTERRUPTED
    if trainer.num_steps < steps:
        print(f"\n{ending(trainer, steps)}")
    if group.rank:
        return 0
    plain = set(given) == {"demo"}
    return conclude(
        arguments,
        trainer,
        demonstration=bool(values.get("demo")),
        plain=plain,
        tested=bool(values.get("final_test")),
    )
