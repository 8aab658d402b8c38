"""What shapes a training: one table for flags, TOML files, ``--set`` and checkpoints.

A value comes from the flag, else from ``--set``, else from the file of ``--config``, else, with
``--resume``, from the checkpoint, else from the defaults below. The same words everywhere:
``--seq-len 50`` is ``seq_len = 50``.
"""

from __future__ import annotations

import argparse
import json
import math
import tomllib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .. import _names, registry
from .._checks import LARGEST_SEED, calling
from ..storage import input_files, schema
from ..storage.checkpoint import CheckpointError
from .parsing import (
    Parser,
    bound_option,
    encoding_option,
    file_option,
    folder_option,
    integer_option,
    mark_option,
    number_option,
    output_option,
    zoneout_option,
)

Values = dict[str, Any]

_CONFIG_LIMIT = 1_000_000  # bytes
_KEY = "charrnn-fast train"  # in a checkpoint's configuration


@dataclass(frozen=True)
class Option:
    """A setting of a training: of its text, of the model, or of how the model is trained."""

    name: str  # as in the Python API; the flag has hyphens
    default: Any
    parse: Callable[[str], Any] | None  # None: a switch
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    def convert(self, value: Any, source: str) -> Any:
        """A value of a TOML file or of ``--set``; ValueError names source."""
        try:
            return self._converted(value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{source}: {self.name}: {error}") from None

    def _converted(self, value: Any) -> Any:
        if self is PATHS:
            paths = value if isinstance(value, list) else [value]
            if not paths or not all(path and isinstance(path, str) for path in paths):
                raise argparse.ArgumentTypeError(f"takes paths, got {schema.shown(value)}")
            return paths
        if self.parse is None:
            if type(value) not in (bool, str) or value not in (True, False, "true", "false"):
                raise argparse.ArgumentTypeError(f"takes true or false, got {schema.shown(value)}")
            return value in (True, "true")
        if self.choices and value not in self.choices:
            raise argparse.ArgumentTypeError(
                f"takes {', '.join(self.choices)}, got {schema.shown(value)}"
            )
        with suppress(ValueError):
            if type(value) in (str, int, float):
                return self.parse(str(value))
            if type(value) is list and all(type(element) in (int, float) for element in value):
                return self.parse(",".join(map(str, value)))
        kind = "text" if self.parse is str else f"a valid {self.parse.__name__}"
        raise argparse.ArgumentTypeError(f"takes {kind}, got {schema.shown(value)}")


_count, _share = integer_option(1), number_option(least=0, below=1)

PATHS = Option("text", None, str, "files, folders and patterns")  # what stands without a flag

TEXT = (
    Option(
        "demo",
        False,
        None,
        "train on the source of Python's standard library for about a minute",
    ),
    Option("bytes", False, None, "model the 256 bytes instead of the characters"),
    Option("encoding", "utf-8", encoding_option, "of the files: a name that Python knows", "NAME"),
    Option("min_count", 1, _count, "characters that occur less often become one, U+FFFD", "N"),
    Option("document_mark", None, mark_option, "what ends a document: '<|end|>', '\\n\\n'", "TEXT"),
)

SHAPE = (
    Option(
        "cell",
        "lstm",
        str,
        "the recurrent unit",
        choices=registry.CELL_NAMES,
    ),
    Option("hidden_size", 128, _count, "units in each layer", "H"),
    Option("num_layers", 2, _count, "layers", "L"),
    Option("proj_size", 0, integer_option(0), "features that an LSTM's h is projected to", "P"),
    Option("layer_norm", False, None, "normalise the gates' sums"),
)

MODEL = (
    *SHAPE,
    Option("seed", 0, integer_option(0, LARGEST_SEED), "of the initial weights", "N"),
    Option(
        "init",
        "lecun_tokens",
        str,
        "how they are drawn; uniform: as PyTorch does",
        choices=("lecun_tokens", "uniform"),
    ),
    Option("dropout", 0.0, _share, "left out of what the layers above the first read", "P"),
    Option("input_dropout", 0.0, _share, "left out of what the first layer reads: characters", "P"),
    Option("output_dropout", 0.0, _share, "left out of what the top layer gives", "P"),
    Option("recurrent_dropout", 0.0, _share, "left out of a layer's h of the step before", "P"),
    Option("variational", False, None, "leave out the same at all steps between two updates"),
    Option("weight_drop", 0.0, _share, "left out of the recurrent weights", "P"),
    Option("zoneout", 0.0, zoneout_option, "units that keep their h (and an LSTM's c)", "P[,P]"),
)

TRAINING = (
    Option("batch_size", 50, _count, "pieces of the text that are read side by side", "B"),
    Option("seq_len", 50, _count, "characters between two updates", "T"),
    Option(
        "optimizer",
        "adam",
        str,
        "the rule of the updates",
        choices=tuple(registry.OPTIMIZERS),
    ),
    Option("learning_rate", 2e-3, number_option(above=0), "of the optimizer", "LR"),
    Option("clip_norm", 5.0, bound_option, "bound of the gradient's norm; inf: none", "X"),
    Option("micro_batches", 1, _count, "parts of the batch that are computed in turn", "N"),
    Option("random_offset", False, None, "begin each epoch at another place of the text"),
    Option(
        "mask_seed",
        0,
        integer_option(0, LARGEST_SEED),
        "of what is left out, and of the random offsets",
        "N",
    ),
)

SCHEDULE = (
    Option(
        "schedule",
        "decay",
        str,
        "how the learning rate changes",
        choices=("constant", "decay", "cosine", "linear", "plateau"),
    ),
    Option("warmup", 0.0, number_option(least=0), "epochs over which it rises at first", "EPOCHS"),
    Option("lr_decay", None, number_option(above=0), "decay, plateau: its factor", "X"),
    Option("lr_decay_after", 10, _count, "decay: epochs before the first", "N"),
    Option("lr_patience", 3, _count, "plateau: evaluations without a new best before it", "N"),
    Option("final_lr", 0.0, number_option(least=0, most=1), "cosine, linear: its last share", "X"),
)

RUN = (
    Option("epochs", None, _count, "passes in all (default: 20)", "N"),
    Option("steps", None, _count, "updates in all, instead of --epochs", "N"),
    Option("evaluate_every", None, _count, "default: at each epoch's end", "STEPS"),
    Option("evaluate_length", None, integer_option(2), "held-out characters looked at", "N"),
    Option("patience", None, _count, "end after so many evaluations without a new best", "N"),
    Option("sample_length", 200, integer_option(0), "of the text at each evaluation", "N"),
    Option("checkpoint_every", None, _count, "save this often, too", "STEPS"),
    Option("log_every", 100, _count, "updates that a line of the log sums up", "STEPS"),
)

LOGS = (
    Option(
        "log",
        None,
        output_option(".jsonl"),
        "of JSON lines, for charrnn-fast plot (default: MODEL.jsonl beside the model); may be "
        "/dev/stderr",
        "FILE",
    ),
    Option("tensorboard", None, folder_option, "one for TensorBoard, too", "FOLDER"),
)

ALL = (PATHS, *TEXT, *MODEL, *TRAINING, *SCHEDULE, *RUN, *LOGS)
NAMES = tuple(option.name for option in ALL)


def add(parser: Parser) -> None:
    """Adds the flags. None has a default in the parser: `given` must tell what was asked for."""
    for title, options in (
        ("text", TEXT),
        ("model", MODEL),
        ("training", TRAINING),
        ("learning rate", SCHEDULE),
        ("length", RUN),
        ("logs", LOGS),
    ):
        group = parser.add_argument_group(title)
        for option in options:
            about = option.help
            if option.default is not None and option.parse is not None:
                about = f"{about} (default: {option.default})"
            if option.parse is None:
                group.add_argument(option.flag, action="store_const", const=True, help=about)
            else:
                group.add_argument(
                    option.flag,
                    type=option.parse,
                    metavar=option.metavar,
                    choices=option.choices or None,
                    help=about,
                )
    parser.add_argument(
        "--config",
        type=file_option,
        metavar="FILE.toml",
        help="read settings from a TOML file: seq_len = 50",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="KEY=VALUE",
        help="replace a setting of the file",
    )


def given(arguments: argparse.Namespace) -> Values:
    """What the file of ``--config``, ``--set`` and flags ask for, each before the one after."""
    values: Values = {}
    if arguments.config is not None:
        name = input_files.shown(arguments.config)
        values = override(values, _converted(_read_toml(arguments.config, name), name), name)
    pairs = {}
    for text in arguments.settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, got {text!r}")
        pairs[name.strip()] = value.strip()
    values = override(values, _converted(pairs, "--set"), "--set")
    flags = {name: getattr(arguments, name) for name in NAMES}
    asked = {name: value for name, value in flags.items() if value not in (None, [])}
    return override(values, asked, "the command line")


def _read_toml(path: str, name: str) -> dict[str, Any]:
    text = input_files.decoded(input_files.read_whole(path, _CONFIG_LIMIT, "settings"), name)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{name} is no TOML file: it is too deep") from None
    except ValueError as error:  # of TOML, or of a number with thousands of digits
        raise ValueError(f"{name} is no TOML file: {error}") from None


def override(values: Mapping[str, Any], stronger: Mapping[str, Any], source: str) -> Values:
    """values, replaced by those that source gives; epochs and steps exclude each other."""
    result = {**values, **stronger}
    if stronger.get("epochs") and stronger.get("steps"):
        raise ValueError(f"{source} gives both epochs and steps; give one of them")
    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if stronger.get(one):
            result[other] = None
    return result


def stored(values: Values) -> dict[str, Any]:
    """What a checkpoint's configuration holds of settings, as `restored` takes it."""
    # JSON has no infinity.
    return {_KEY: {n: "inf" if value == math.inf else value for n, value in values.items()}}


def restored(configuration: Mapping[str, Any], source: str) -> Values:
    """The settings that the checkpoint source holds; none, if the command has not made it."""
    table = configuration.get(_KEY, {})
    name = f"training.configuration.{_KEY}"
    if not isinstance(table, dict):
        raise CheckpointError(f"{source}: {name} must be an object, got {schema.shown(table)}")
    try:
        return _converted({n: v for n, v in table.items() if v is not None}, f"{source}: {name}")
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def to_toml(values: Mapping[str, Any]) -> str:
    """Settings as a file for ``--config``, one in each line. Those of the logs are left out: they
    are of one training alone.

    Raises ValueError for what TOML cannot hold, as the name of a file that is no UTF-8.
    """
    logs = [option.name for option in LOGS]
    shown = {n: value for n, value in values.items() if value is not None and n not in logs}
    return "".join(f"{name} = {_toml(name, value)}\n" for name, value in shown.items())


def _toml(name: str, value: Any) -> str:
    # JSON writes booleans, numbers, lists and strings as TOML does, all but infinity and U+007F.
    text = "inf" if value == math.inf else json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"TOML cannot hold the setting {name}, {text}") from None
    return text.replace("\x7f", "\\u007f")


def _converted(table: Mapping[str, Any], source: str) -> Values:
    by_name = {option.name: option for option in ALL}
    for name, value in table.items():
        if name not in by_name:
            if isinstance(value, dict):
                raise ValueError(f"{source}: there are no sections; leave out the line [{name}]")
            ours = _names.meant(name, by_name)
            with calling({}):  # the words of a file
                remark = _names.remark(name) or "see charrnn-fast train --help"
            hint = remark if ours is None else f"did you mean {ours!r}?"
            raise ValueError(f"{source}: there is no setting {name!r}; {hint}")
    return {name: by_name[name].convert(value, source) for name, value in table.items()}


def pick(options: Iterable[Option], values: Mapping[str, Any]) -> Values:
    """The values of some options, or their defaults."""
    return {option.name: values.get(option.name, option.default) for option in options}
