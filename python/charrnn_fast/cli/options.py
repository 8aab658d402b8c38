"""Options of a training: one table for flags, TOML files, ``--set`` and checkpoints.

A value comes from the flag, else from ``--set``, else from the file of ``--config``, else, with
``--resume``, from the checkpoint, else from the defaults below. Names are the same everywhere:
``--seq-len 50`` is ``seq_len = 50``.
"""

from __future__ import annotations

import argparse
import json
import math
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from .. import _names, registry
from .._checks import LARGEST_SEED, calling
from ..storage import input_files, schema
from ..storage.checkpoint import CheckpointError
from .parsing import (
    NONE,
    Parser,
    average_option,
    bound_option,
    encoding_option,
    file_option,
    folder_option,
    integer_option,
    mark_option,
    number_option,
    numbers_option,
    output_option,
    path_option,
    zoneout_option,
)

Values = dict[str, Any]

_CONFIG_LIMIT = 1_000_000  # bytes
_KEY = "charrnn-fast train"  # in a checkpoint's configuration


@dataclass(frozen=True)
class Option:
    """A setting of a training: of its text, its model, or the training itself."""

    name: str  # as in the Python API; the flag has hyphens
    default: Any
    parse: Callable[[str], Any] | None  # None: a switch
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    later: bool = False
    """Whether older versions do not know it: a checkpoint has it only where it is no default."""

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_paths(self) -> bool:
        """Whether it takes one path or more."""
        return self.parse is path_option

    def convert(self, value: Any, source: str) -> Any:
        """A value of a TOML file or of ``--set``; ValueError names source."""
        try:
            return self._converted(value)
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"{source}: {self.name}: {error}") from None

    def _converted(self, value: Any) -> Any:
        if self.is_paths:
            paths = value if isinstance(value, list) else [value]
            if not paths or not all(path and isinstance(path, str) for path in paths):
                raise argparse.ArgumentTypeError(f"must be paths, got {schema.shown(value)}")
            return paths
        if self.parse is None:
            if type(value) not in (bool, str) or value not in (True, False, "true", "false"):
                raise argparse.ArgumentTypeError(
                    f"must be true or false, got {schema.shown(value)}"
                )
            return value in (True, "true")
        if self.choices and value not in self.choices:
            raise argparse.ArgumentTypeError(
                f"must be one of {', '.join(self.choices)}, got {schema.shown(value)}"
            )
        with suppress(ValueError):
            if type(value) in (str, int, float):
                return self.parse(str(value))
            if type(value) is list and all(type(element) in (int, float) for element in value):
                return self.parse(",".join(map(str, value)))
        kind = "text" if self.parse is str else f"a valid {self.parse.__name__}"
        raise argparse.ArgumentTypeError(f"must be {kind}, got {schema.shown(value)}")


_count, _share = integer_option(1), number_option(least=0, below=1)

# The arguments without a flag.
PATHS = Option("text", None, path_option, "files, folders and patterns")

TEXT = (
    Option(
        "demo",
        False,
        None,
        "train on the source of Python's standard library for about a minute",
    ),
    Option("bytes", False, None, "model the 256 bytes instead of the characters"),
    Option(
        "encoding", "utf-8", encoding_option, "encoding of the files, as Python names it", "NAME"
    ),
    Option("min_count", 1, _count, "replace characters that occur less often by U+FFFD", "N"),
    Option("document_mark", None, mark_option, "end of a document: '<|end|>', '\\n\\n'", "TEXT"),
    Option(
        "split",
        None,
        numbers_option(above=0, below=1),
        "shares of the text for training, validation and, if there is a third, a test: "
        "0.8,0.1,0.1 (default: 0.9,0.1)",
        "SHARES",
        later=True,
    ),
    Option(
        "validation",
        None,
        path_option,
        "files for validation; all of the text is then for training",
        "FILE",
        later=True,
    ),
    Option("test", None, path_option, "files for a test at the end", "FILE", later=True),
    Option(
        "allow_unknown",
        False,
        None,
        "leave out and count characters that a given vocabulary lacks",
        later=True,
    ),
)

SHAPE = (
    Option(
        "cell",
        "lstm",
        str,
        "recurrent cell",
        choices=registry.CELL_NAMES,
    ),
    Option("hidden_size", 128, _count, "units in each layer", "H"),
    Option("num_layers", 2, _count, "recurrent layers", "L"),
    Option("proj_size", 0, integer_option(0), "projection size of an LSTM's h; 0: none", "P"),
    Option("layer_norm", False, None, "layer normalization of the gates"),
)

NETWORK = (
    *SHAPE,
    Option("seed", 0, integer_option(0, LARGEST_SEED), "seed of the initial weights", "N"),
    Option(
        "init",
        "lecun_tokens",
        str,
        "initialization; uniform: as PyTorch does",
        choices=("lecun_tokens", "uniform"),
    ),
)

REGULARIZATION = (
    Option("dropout", 0.0, _share, "dropout rate between layers", "P"),
    Option("input_dropout", 0.0, _share, "dropout rate of the input: whole characters", "P"),
    Option("output_dropout", 0.0, _share, "dropout rate of the top layer's output", "P"),
    Option("recurrent_dropout", 0.0, _share, "dropout rate of h on its way to the next step", "P"),
    Option("variational", False, None, "one dropout mask for all steps of an update"),
    Option("weight_drop", 0.0, _share, "dropout rate of the recurrent weights", "P"),
    Option("zoneout", 0.0, zoneout_option, "zoneout rate of h (and of an LSTM's c)", "P[,P]"),
)

MODEL = (*NETWORK, *REGULARIZATION)

TRAINING = (
    Option("batch_size", 50, _count, "sequences read in parallel", "B"),
    Option("seq_len", 50, _count, "characters per update (truncated BPTT)", "T"),
    Option(
        "optimizer",
        "adam",
        str,
        "optimizer",
        choices=tuple(registry.OPTIMIZERS),
    ),
    Option("learning_rate", 2e-3, number_option(above=0), "learning rate", "LR"),
    Option("clip_norm", 5.0, bound_option, "clip the gradient's norm; inf: never", "X"),
    Option("micro_batches", 1, _count, "micro-batches of a batch, to save memory", "N"),
    Option("random_offset", False, None, "begin each epoch at a random offset"),
    Option(
        "average",
        None,
        average_option,
        "average of the weights, which is evaluated and sampled from: ema:0.999, or tail:0.2, of "
        "the last fifth of the updates; none ends it",
        "KIND:X",
        later=True,
    ),
    Option(
        "mask_seed",
        0,
        integer_option(0, LARGEST_SEED),
        "seed of the dropout masks and random offsets",
        "N",
    ),
)

SCHEDULE = (
    Option(
        "schedule",
        "decay",
        str,
        "learning-rate schedule",
        choices=("constant", "decay", "cosine", "linear", "plateau"),
    ),
    Option("warmup", 0.0, number_option(least=0), "epochs of linear warmup", "EPOCHS"),
    Option("lr_decay", None, number_option(above=0), "decay, plateau: factor", "X"),
    Option("lr_decay_after", 10, _count, "decay: epochs before the first decay", "N"),
    Option("lr_patience", 3, _count, "plateau: evaluations without improvement", "N"),
    Option(
        "final_lr",
        0.0,
        number_option(least=0, most=1),
        "cosine, linear: final share of the learning rate",
        "X",
    ),
)

RUN = (
    Option("epochs", None, _count, "passes over the text (default: 20)", "N"),
    Option("steps", None, _count, "updates, instead of --epochs", "N"),
    Option(
        "evaluate_every",
        None,
        _count,
        "updates between evaluations (default: an epoch)",
        "STEPS",
    ),
    Option(
        "evaluate_length",
        None,
        integer_option(2),
        "validation characters that an evaluation reads (default: all)",
        "N",
    ),
    Option("patience", None, _count, "early stopping: evaluations without improvement", "N"),
    Option("sample_length", 200, integer_option(0), "characters sampled at each evaluation", "N"),
    Option("checkpoint_every", None, _count, "save between evaluations, too", "STEPS"),
    Option(
        "keep_every",
        None,
        _count,
        "keep a checkpoint of every STEPS updates, as MODEL.step-00000500.safetensors",
        "STEPS",
        later=True,
    ),
    Option("log_every", 100, _count, "updates per line of the log", "STEPS"),
    Option(
        "final_test",
        False,
        None,
        "at the end, print the loss of the test part, with the best weights",
        later=True,
    ),
)

LOGS = (
    Option(
        "log",
        None,
        output_option(".jsonl"),
        "write a log of JSON lines, for charrnn-fast plot (default: MODEL.jsonl); may be "
        "/dev/stderr",
        "FILE",
    ),
    Option("tensorboard", None, folder_option, "write a TensorBoard log, too", "FOLDER"),
)

# Of this machine, and thus in no checkpoint.
DEVICE = Option("device", "cpu", str, "where to train: cpu, cuda or, for GPU N, cuda:N", "NAME")

# A resumed training may have another.
COMPUTE = Option(
    "compute_dtype",
    "float32",
    str,
    "number format of the products' operands",
    choices=registry.COMPUTE_DTYPES,
    later=True,
)

ALL = (PATHS, *TEXT, *MODEL, *TRAINING, *SCHEDULE, *RUN, *LOGS, DEVICE, COMPUTE)
NAMES = tuple(option.name for option in ALL)


def add(parser: Parser, leave_out: Collection[str] = ()) -> None:
    """Adds the flags, without defaults in the parser: `given` must know what the user set.

    leave_out: names of settings that the command does not take.
    """
    for title, options in (
        ("text", TEXT),
        ("model", NETWORK),
        ("regularization", REGULARIZATION),
        ("training", TRAINING),
        ("learning rate", SCHEDULE),
        ("length and evaluation", RUN),
        ("logs", LOGS),
        ("device", (DEVICE, COMPUTE)),
    ):
        taken = [option for option in options if option.name not in leave_out]
        group = parser.add_argument_group(title) if taken else None
        for option in taken:
            assert group is not None
            about = option.help
            if option.default is not None and option.parse is not None:
                about = f"{about} (default: {option.default})"
            if option.parse is None:
                group.add_argument(option.flag, action="store_const", const=True, help=about)
            else:
                group.add_argument(
                    option.flag,
                    type=option.parse,
                    nargs="+" if option.is_paths else None,
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
    """The settings of the file of ``--config``, ``--set`` and flags; later sources win."""
    values: Values = {}
    if arguments.config is not None:
        name = input_files.shown(arguments.config)
        values = override(values, _converted(_read_toml(arguments.config, name), name), name)
    pairs = {}
    for text in arguments.settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set must be key=value, got {text!r}")
        pairs[name.strip()] = value.strip()
    values = override(values, _converted(pairs, "--set"), "--set")
    flags = {name: getattr(arguments, name, None) for name in NAMES}
    asked = {name: value for name, value in flags.items() if value not in (None, [])}
    values = override(values, asked, "the command line")
    if values.get("average") == NONE:  # which is not the same as no word on it
        values["average"] = None
    return values


def _read_toml(path: str, name: str) -> dict[str, Any]:
    text = input_files.decoded(input_files.read_whole(path, _CONFIG_LIMIT, "settings"), name)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{name} is no TOML file: it is too deep") from None
    except ValueError as error:  # bad TOML, or a number with thousands of digits
        raise ValueError(f"{name} is no TOML file: {error}") from None


def override(values: Mapping[str, Any], stronger: Mapping[str, Any], source: str) -> Values:
    """values, updated from source; epochs and steps exclude each other."""
    result = {**values, **stronger}
    if stronger.get("epochs") and stronger.get("steps"):
        raise ValueError(f"{source} gives both epochs and steps; give one of them")
    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if stronger.get(one):
            result[other] = None
    return result


def stored(values: Values) -> dict[str, Any]:
    """Settings, but for the device, as a checkpoint's configuration stores them; `restored` reads
    them.
    """
    # JSON has no infinity.
    kept = {n: "inf" if value == math.inf else value for n, value in values.items()}
    kept.pop(DEVICE.name, None)
    for option in ALL:
        if option.later and option.name in kept and kept[option.name] == option.default:
            del kept[option.name]
    return {_KEY: kept}


def restored(configuration: Mapping[str, Any], source: str) -> Values:
    """The settings in the checkpoint source; none if the command did not make it."""
    table = configuration.get(_KEY, {})
    name = f"training.configuration.{_KEY}"
    if not isinstance(table, dict):
        raise CheckpointError(f"{source}: {name} must be an object, got {schema.shown(table)}")
    try:
        return _converted({n: v for n, v in table.items() if v is not None}, f"{source}: {name}")
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def to_toml(values: Mapping[str, Any]) -> str:
    """Settings as a file for ``--config``, one per line, without those of the logs, which belong to
    one training.

    Raises ValueError for what TOML cannot hold, such as a file name that is not UTF-8.
    """
    logs = [option.name for option in LOGS]
    shown = {n: value for n, value in values.items() if value is not None and n not in logs}
    return "".join(f"{name} = {_toml(name, value)}\n" for name, value in shown.items())


def _toml(name: str, value: Any) -> str:
    # JSON writes booleans, numbers, lists and strings as TOML does, except infinity and U+007F.
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
            with calling({}):  # the names of a file
                remark = _names.remark(name) or "see charrnn-fast train --help"
            hint = remark if ours is None else f"did you mean {ours!r}?"
            raise ValueError(f"{source}: there is no setting {name!r}; {hint}")
    return {name: by_name[name].convert(value, source) for name, value in table.items()}


def pick(options: Iterable[Option], values: Mapping[str, Any]) -> Values:
    """The values of some options, else their defaults."""
    return {option.name: values.get(option.name, option.default) for option in options}
