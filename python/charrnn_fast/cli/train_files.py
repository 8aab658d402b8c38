"""Checks, before any work, of the files that ``charrnn-fast train`` reads and writes."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..storage import atomic_file, checkpoint
from ..storage.input_files import STANDARD_INPUT, shown
from ..text.corpus import OWN_PARTS, find_parts
from ..training import log
from ..training.distributed import Group
from ..training.resume import best_path, check_checkpoints, kept_paths, locked
from . import options
from .parsing import AUTO
from .texts import Files, check_again, found_again, if_another, outputs_of


@contextmanager
def checked_output(arguments: argparse.Namespace, group: Group, demo: bool) -> Iterator[None]:
    """Locks the output until the training begins and locks it itself; decides what "auto" is.

    Refuses, before any work, an output that would make the training fail later. Process 0 does so
    for all.
    """
    output: str | None = arguments.output
    if arguments.extend_vocabulary and not arguments.init_from:
        raise ValueError("--extend-vocabulary extends that of --init-from FILE, which is missing")
    if output is None:
        if arguments.resume:
            raise ValueError("--resume goes on with the file that -o names; -o is missing")
        if not demo:
            raise ValueError("-o is missing: the file that the model is saved to")
        yield
        return
    auto = arguments.resume == AUTO
    if arguments.resume and arguments.init_from and not auto:
        raise ValueError("--resume goes on with a training, --init-from begins one; give one")
    with ExitStack() as held:
        if group.rank == 0:
            _check_output(arguments, output)
            held.enter_context(locked(output))
            if not (arguments.resume or arguments.overwrite) and _is_there(output):
                raise ValueError(
                    f"{output} exists: --resume goes on with it, --overwrite starts anew"
                )
        if auto:
            arguments.resume = group.on_first(lambda: _is_there(output))
        if arguments.resume:
            arguments.init_from = None
        yield


def _check_output(arguments: argparse.Namespace, output: str) -> None:
    if arguments.resume not in (False, AUTO) and not os.path.exists(output):
        raise ValueError(f"{output} does not exist: nothing to resume")
    if arguments.resume and os.path.isfile(output) and _is_there(output):
        checkpoint.check_beginning(output)  # else the error would call it a file of another kind
    check_checkpoints(output)


def _is_there(path: str) -> bool:
    return os.path.exists(path) and os.path.getsize(path) > 0


def check_needed(arguments: argparse.Namespace, values: options.Values) -> None:
    """Refuses settings of a training that need another one, which is missing."""
    if values.get("keep_every") and arguments.output is None:
        raise ValueError(
            "--keep-every keeps checkpoints beside the one that -o names; -o is missing"
        )
    if not values.get("final_test"):
        return
    if not values.get("test") and len(values.get("split") or ()) < 3:
        raise ValueError(
            "--final-test must have a test part: --split 0.8,0.1,0.1 keeps one, --test FILE names "
            "one"
        )
    if arguments.output is None:
        raise ValueError(
            "--final-test measures the best checkpoint, which is beside the one that -o names; -o "
            "is missing"
        )


def check_logs(arguments: argparse.Namespace, values: options.Values, log_path: str | None) -> None:
    """Refuses, before any work, logs and a best checkpoint that would overwrite something."""
    output: str | None = arguments.output
    best = None if output is None else best_path(output)
    for name, path in (("-o", output), ("the best checkpoint", best)):
        if path and log_path and os.path.realpath(path) == os.path.realpath(log_path):
            raise ValueError(f"{log_path} would be the log and {name}; --log names another file")
    folder = values.get("tensorboard")
    if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"--tensorboard must be a folder, got the file {folder}")
    if folder is not None:
        log.check_folder(folder)
    if log_path:
        log.check_writable(log_path)
    kept = list(kept_paths(output).values()) if output and values.get("keep_every") else []
    if arguments.init_from and not arguments.resume:
        _check_stays(arguments.init_from, kept)
    if arguments.resume or arguments.overwrite:
        return
    lost = [path for path in (best,) if path and _is_there(path)]
    if log_path and log.is_worth_keeping(log_path):
        lost.append(log_path)
    for path in [*lost, *kept]:
        raise ValueError(
            f"{path} exists, of another training; --overwrite replaces it, another -o keeps it"
        )


def _check_stays(init_from: str, replaced: Sequence[str]) -> None:
    for path in filter(os.path.exists, replaced):
        if os.path.realpath(path) == os.path.realpath(init_from):
            raise ValueError(
                f"--init-from {init_from} is a kept checkpoint of the training that -o replaces, "
                f"and would be removed; copy it, or name another -o"
            )


def files_of(
    arguments: argparse.Namespace,
    values: options.Values,
    given: options.Values,
    log_path: str | None,
) -> Files:
    """The files to train on; ValueError if an output file is one of them."""
    own = {part: values[part] for part in OWN_PARTS if values.get(part)}
    named = {"text": values.get("text") or [], **own}
    if values.get("demo"):
        for part, paths in named.items():
            if paths:
                what = "the files" if part == "text" else f"--{part}"
                raise ValueError(f"--demo brings its own text; leave out either --demo or {what}")
        return Files([], {})
    if not named["text"]:
        raise ValueError("no text to train on: name one or more files, or use --demo")
    output: str | None = arguments.output
    if log_path and atomic_file.is_standard_error(log_path):
        log_path = None
    written = {"-o": output, "the log": log_path, "--tensorboard": values.get("tensorboard")}
    everything = [path for paths in named.values() for path in paths]
    for name, path in written.items():
        for folder in filter(os.path.isdir, everything if path else ()):
            if path and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
                raise ValueError(
                    f"{path} lies in {folder}, a folder to train on, and would be read as a text "
                    f"the next time; {name} takes another place, or a pattern names the texts"
                )
    if arguments.resume:
        assert output is not None
        for part, paths in named.items():
            if not given.get(part):
                named[part] = found_again(paths, output)
                check_again(named[part], output, _command(part, output))
    ours = outputs_of(output, log_path)
    try:
        own = {part: paths for part, paths in named.items() if part != "text"}
        text, others = find_parts(named["text"], own, ours)
    except FileNotFoundError as error:
        if arguments.resume and output is not None:
            stored = {part: paths for part, paths in named.items() if not given.get(part)}
            _tell_of_lost(error, stored, output)
        raise
    advice = {}
    if arguments.resume and output is not None:
        advice = {
            part: if_another(found, _command(part, output))
            for part, found in (("text", text), *others.items())
            if not given.get(part)
        }
    files = Files(text, others, advice)
    there = [file for file in files.all if os.path.exists(file)]
    for path in filter(os.path.exists, ours):
        if any(os.path.samefile(path, file) for file in there):
            raise ValueError(f"{path} is a text to train on; the training would overwrite it")
    return files


def _command(part: str, output: str) -> str:
    """The command that resumes with the text of a part given anew."""
    text = "TEXT" if part == "text" else f"--{part} FILE"
    return f"charrnn-fast train {text} -o {shlex.quote(output)} --resume"


def _tell_of_lost(
    error: FileNotFoundError, stored: Mapping[str, Sequence[str]], output: str
) -> None:
    """ValueError that says how to resume, if the text of a part that the checkpoint names is the
    one that is not there. stored: the paths of these parts.
    """
    for part, paths in stored.items():
        if error.filename in paths:
            what = "the text that" if part == "text" else f"the text for --{part} with which"
            raise ValueError(
                f"{error.filename} is not there, {what} {output} was trained"
                f"{' on' * (part == 'text')}; name it where it is now: {_command(part, output)}"
            ) from None


def check_readers(files: Sequence[str], group: Group) -> None:
    """ValueError if several processes would read what can be read only once."""
    for file in files:
        only_once = file == STANDARD_INPUT or (os.path.exists(file) and not os.path.isfile(file))
        if group.size > 1 and only_once:
            raise ValueError(
                f"text must be files, which each of the {group.size} processes reads, got "
                f"{shown(file)}"
            )
