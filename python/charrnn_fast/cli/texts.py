"""The texts that a training names: their files, where these are now, and the corpora of them."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..language.model import CharLM
from ..storage import atomic_file
from ..storage.file_array import Ids
from ..storage.input_files import STANDARD_INPUT, shown
from ..text import demo
from ..text.corpus import Corpus, find_parts, identity_of, read_part
from ..text.files import UTF8, names
from ..text.vocabulary import Vocabulary
from ..training import log
from ..training.resume import best_path, check_corpus, check_own_text, kept_paths, trained_path
from . import options
from .parsing import unescaped


class Origin(NamedTuple):
    """A checkpoint that a training resumes or starts from."""

    path: str
    model: CharLM  # for its weights: it computes in float32, which every machine can
    compute_dtype: str
    values: options.Values  # the settings that it was trained with
    training: Mapping[str, Any]  # as the checkpoint has it; empty without one


class Files(NamedTuple):
    """The files of a text, and of the parts that have texts of their own, by their names."""

    text: list[str]
    own: dict[str, list[str]]
    advice: Mapping[str, str] = {}
    """By the parts whose files the checkpoint names: what to do if they are another text."""

    @property
    def all(self) -> list[str]:
        return [*self.text, *(file for part in self.own.values() for file in part)]


def read_corpus(
    files: Files,
    values: options.Values,
    vocabulary: Vocabulary | None,
    min_count: int = 1,
    *,
    extend_vocabulary: bool = False,
) -> Corpus:
    """The corpus of files, or of the demonstration's text without any, by the settings of a
    training.
    """
    text = options.pick(options.TEXT, values)
    mark = text["document_mark"]
    settings: dict[str, Any] = {
        "vocabulary": vocabulary,
        "min_count": min_count,
        "document_mark": None if mark is None else unescaped(mark),
        "split": text["split"],
        "allow_unknown": text["allow_unknown"],
        "extend_vocabulary": extend_vocabulary,
    }
    if not text["demo"]:
        return Corpus.from_files(
            *files.text, encoding=text["encoding"], **{**settings, **files.own}
        )
    if text["encoding"] != UTF8:
        raise ValueError(
            f"--encoding must be {UTF8} with --demo, which brings its own text, got "
            f"{text['encoding']}"
        )
    return Corpus.from_text(demo.text(), **settings)


def found_again(paths: Sequence[str], model: str) -> list[str]:
    """Paths that the checkpoint model names, where they are now.

    A path that is gone is looked for in the folder of model and those above it, then by its last
    part beside model; a pattern in the folder of model alone. What is found may be another text:
    the training checks which one it is.
    """
    return [_found_again(path, model) for path in paths]


def log_again(path: str, origin: Origin) -> str:
    """The log that a checkpoint names, where it is now: as named, or beside the checkpoint.

    Only a log that fits the training is gone on with, since its lines after the checkpoint's step
    are removed. Else one is begun beside the checkpoint. Raises ValueError if another training's
    has all names there.
    """
    if atomic_file.is_standard_error(path):
        return path
    beside = _beside(path, origin.path)
    ours = (beside, default_log(origin.path))
    for name in (path, *ours):
        if log.is_of(name, origin.model, origin.training):
            return name
    for name in ours:
        if not os.path.lexists(name):
            return name
    raise ValueError(
        f"{beside} is not the log of the training in {origin.path}; --log names another file"
    )


def _beside(path: str, model: str) -> str:
    return os.path.join(os.path.dirname(model), os.path.basename(path))


def _found_again(path: str, model: str) -> str:
    if path == STANDARD_INPUT or _is_there(path):
        return path
    folder = beside = os.path.dirname(os.path.abspath(model))
    if not os.path.isabs(path):
        while True:
            if _is_there(os.path.join(folder, path)):
                return os.path.join(folder, path)
            # "**" would search all of a disk.
            if folder == os.path.dirname(folder) or glob.escape(path) != path:
                break
            folder = os.path.dirname(folder)
    last = os.path.join(beside, os.path.basename(os.path.normpath(path)))
    return last if _is_there(last) else path


def _is_there(path: str) -> bool:
    """Whether there is a file or a folder, or something that a pattern matches."""
    return os.path.lexists(path) or next(glob.iglob(path, recursive=True), None) is not None


class TestText(NamedTuple):
    """The ids of a test part, and where documents begin in it."""

    ids: Ids
    starts_within: Callable[[int, int], NDArray[np.int64]] | None
    left_out: int
    """How many unknown characters; 0 where it is not known in which part they were."""
    encoding: str = UTF8
    allow_unknown: bool = False
    """With which it was read."""


def test_of(
    path: str,
    config: Mapping[str, Any],
    model: CharLM,
    texts: Sequence[str],
    encoding: str | None,
    *,
    allow_unknown: bool,
) -> TestText:
    """The test part of the training in the checkpoint at path; no other text is evaluated.

    config: of the checkpoint. texts: where the text is now (that for the test, if it has one of its
    own); none: where the checkpoint says. encoding None: that of the training. Raises ValueError if
    there is no such part, and if the text is gone or is another one.
    """
    stored = config.get("training", {}).get("corpus")
    if stored is None:
        raise ValueError(f"{path} holds no training on a text, and so no test part: name a text")
    if "test" not in stored and len(stored.get("split", ())) < 3:
        raise ValueError(
            f"{path} was trained without a test part: train --split 0.8,0.1,0.1 keeps one, "
            f"train --test FILE names one"
        )
    values = options.restored(config["training"]["configuration"], path)
    own = "test" in stored
    command = f"charrnn-fast eval {shlex.quote(path)} --test TEXT"
    if not own and values.get("demo") and not texts:
        corpus = read_corpus(Files([], {}), values, model.vocabulary)
        check_corpus(path, corpus, stored)
        return _test_part(corpus)
    named = [*texts] or found_again(values.get("test" if own else "text", []), path)
    if not named:
        raise ValueError(f"{path} does not name its text; name it: {command}")
    if not texts:
        check_again(named, path, command)
    output, written_log = trained_path(path), values.get("log")
    written = outputs_of(output, default_log(output))
    if written_log and not atomic_file.is_standard_error(written_log):
        written += [written_log, _beside(written_log, path)]
    encoding = encoding or values.get("encoding", UTF8)
    allow_unknown = allow_unknown or values.get("allow_unknown", False)
    try:
        files, _ = find_parts(named, {}, written)
    except FileNotFoundError as error:
        if texts:
            raise
        raise ValueError(
            f"{error.filename} is not there, the text that {path} was trained on; name it where it "
            f"is now: {command}"
        ) from None
    if own:
        text, documents = read_part(
            files,
            model.vocabulary,
            encoding,
            stored["document_mark"],
            allow_unknown=allow_unknown,
        )
        ours = identity_of(text, documents)
        check_own_text(
            path, "test", ours, stored["test"], model.vocabulary.unit, if_another(files, command)
        )
        starts = None if documents is None else documents.starts_within
        return TestText(text.ids, starts, text.left_out, encoding, allow_unknown)
    corpus = Corpus.from_files(
        *files,
        vocabulary=model.vocabulary,
        encoding=encoding,
        document_mark=stored["document_mark"],
        split=stored["split"],
        allow_unknown=allow_unknown,
    )
    check_corpus(path, corpus, stored, {"text": if_another(files, command)})
    return _test_part(corpus)._replace(encoding=encoding, allow_unknown=allow_unknown)


def if_another(files: Sequence[str], command: str) -> str:
    """The end of an error about files that are another text. command: takes the right one."""
    return f"read from {names(files)}; if the right one is elsewhere: {command}"


def _test_part(corpus: Corpus) -> TestText:
    assert corpus.test is not None
    return TestText(corpus.test, corpus.test_starts, 0)


def outputs_of(output: str | None, log: str | None) -> list[str]:
    """The files that a training writes to output and log; no folder or pattern means them."""
    checkpoints = [output, best_path(output), *kept_paths(output).values()] if output else []
    return [*checkpoints, *([log] if log else [])]


def default_log(output: str) -> str:
    """model.jsonl beside model.safetensors."""
    return f"{output.removesuffix('.safetensors')}.jsonl"


def check_again(paths: Sequence[str], model: str, command: str) -> None:
    """ValueError if the text of a training could be read only once. command: what to do."""
    for path in paths:
        kept = os.path.isfile(path) or os.path.isdir(path) or not os.path.exists(path)
        if path == STANDARD_INPUT or not kept:
            raise ValueError(
                f"{model} was trained on a text from {shown(path)}, which could be read once "
                f"only; give it again: {command}"
            )
