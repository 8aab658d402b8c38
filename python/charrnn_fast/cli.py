"""The command ``charrnn-fast``: train, sample, eval, info and bench."""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

from . import build_info, checkpoint, demo, get_num_threads, set_num_threads
from ._checks import LARGEST, LARGEST_SEED, integer, real
from .corpus import Corpus
from .model import CharLM
from .rnn import _zoneout
from .trainer import Evaluation, Trainer
from .vocabulary import Vocabulary

_T = TypeVar("_T")

_USER_ERROR = 2
_FAILED = 1
_INTERRUPTED = 130  # as a shell reports SIGINT
_BROKEN_PIPE = 141  # and SIGPIPE

# Options of `train` that shape the model and its training. They have no defaults in the parser,
# so that --resume can tell what was asked for from what was left open.
_MODEL_DEFAULTS: dict[str, Any] = {
    "cell": "lstm",
    "hidden_size": 128,
    "num_layers": 2,
    "seed": 0,
    "proj_size": 0,
    "layer_norm": False,
    "dropout": 0.0,
    "input_dropout": 0.0,
    "output_dropout": 0.0,
    "recurrent_dropout": 0.0,
    "variational": False,
    "weight_drop": 0.0,
    "zoneout": 0.0,
}
_TRAINER_DEFAULTS: dict[str, Any] = {
    "batch_size": 50,
    "seq_len": 50,
    "optimizer": "adam",
    "learning_rate": 2e-3,
    "lr_decay": 0.97,
    "lr_decay_after": 10,
    "clip_norm": 5.0,
    "mask_seed": 0,
}
_RATES = ("dropout", "input_dropout", "output_dropout", "recurrent_dropout", "weight_drop")
_EPOCHS = 20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status.

    0: done; 1: the training diverged, or the demonstration missed its bound; 2: the arguments or
    the files were wrong, told in one line; 130: interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may draw what a terminal cannot show
    try:
        get_num_threads()  # complains of a CHARRNN_NUM_THREADS that is no number
        options = _parser().parse_args(argv)
        if options.threads is not None:
            set_num_threads(options.threads)
        run: Callable[[argparse.Namespace], int] = options.run
        status = run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever read the output has gone; what is left in the buffer must not fail at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except FloatingPointError as error:
        return _complain(_with_flags(str(error)), _FAILED)
    except OSError as error:
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return _complain(f"{name}{error.strerror or error}", _USER_ERROR)
    except MemoryError:
        return _complain("out of memory; try a smaller model or batch size", _USER_ERROR)
    except (ValueError, OverflowError) as error:
        return _complain(_with_flags(str(error)), _USER_ERROR)


def _train(options: argparse.Namespace) -> int:
    _check_paths(options)
    vocabulary = Vocabulary.from_bytes() if options.bytes else None
    if options.resume:
        vocabulary = _stored_model(options).vocabulary
    if options.demo:
        corpus = Corpus.from_text(demo.text(), vocabulary)
    else:
        corpus = Corpus.from_files(*options.text, vocabulary=vocabulary)
    trainer = _resumed(options, corpus) if options.resume else _new(options, corpus)

    steps = options.steps
    if steps is None and options.epochs is None and options.demo:
        steps = demo.STEPS
    if steps is None:
        steps = (options.epochs or _EPOCHS) * trainer.steps_per_epoch
    _describe(trainer, corpus, steps)
    if trainer.num_steps >= steps:
        print(f"nothing left to train: {trainer.num_steps:,} steps are done")
        return 0
    try:
        trainer.fit(steps=steps - trainer.num_steps)
    except KeyboardInterrupt:
        print(f"\ninterrupted after step {trainer.num_steps:,}")
        if options.output and os.path.exists(options.output):
            print(f"to go on from {options.output}: the same command with --resume")
        return _INTERRUPTED
    return _conclude(options, trainer)


def _conclude(options: argparse.Namespace, trainer: Trainer) -> int:
    """Says what came of the training, and what to do with it."""
    model = trainer.model
    loss = trainer.history[-1].validation_loss
    print(f"\nheld-out loss: {_losses(loss, model.vocabulary)}")
    if options.demo:
        print(f"\n{model.sample(400, prime='def ', temperature=0.7, seed=1)}\n")
    if options.output:
        size = os.path.getsize(options.output)
        print(f"saved to {options.output} ({_bytes(size)})")
        print(f"next: charrnn-fast sample {shlex.quote(options.output)}")
    elif options.demo:
        print("next: charrnn-fast train your-text.txt -o your-model.safetensors")
    uniform = math.log(len(model.vocabulary))
    if loss > uniform:
        print(
            f"charrnn-fast: warning: the held-out loss is above ln {len(model.vocabulary)} = "
            f"{uniform:.4f}, that of uniform guessing; try a smaller --learning-rate",
            file=sys.stderr,
        )
    if not _is_plain_demo(options):
        return 0
    if loss < demo.BOUND:
        print(f"the demonstration worked: {loss:.3f} is below its bound of {demo.BOUND}")
        return 0
    return _complain(
        f"the demonstration failed: its held-out loss must be below {demo.BOUND} nats per "
        f"character, and is {loss:.4f}",
        _FAILED,
    )


def _sample(options: argparse.Namespace) -> int:
    model = CharLM.load(options.model)
    pieces = model.stream(
        options.length,
        options.prime,
        options.temperature,
        options.top_k,
        options.top_p,
        options.seed,
        weight_dtype=options.weight_dtype,
    )
    if options.seed is None:
        print(f"seed {model.last_seed}", file=sys.stderr)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0


def _eval(options: argparse.Namespace) -> int:
    model = CharLM.load(options.model)
    corpus = Corpus.from_files(*options.text, vocabulary=model.vocabulary)
    loss = model._read_as(options.weight_dtype)._evaluate(corpus._ids)
    print(f"{_losses(loss, model.vocabulary)} over {len(corpus):,} {model.vocabulary.kind}")
    return 0


def _info(options: argparse.Namespace) -> int:
    tensors, config = checkpoint.read(options.model)
    model = CharLM._from_checkpoint(options.model, tensors, config)
    print(f"file        {options.model}, {_bytes(os.path.getsize(options.model))}")
    print(f"model       {_model_line(model)}")
    print(f"vocabulary  {_vocabulary_line(model.vocabulary)}")
    if "training" not in config:
        print("training    none stored: the model alone")
        return 0
    training = config["training"]
    print(f"training    {_training_line(training['settings'])}")
    print(f"trained     {len(tensors['losses']):,} steps")
    if training["history"]:
        last = Evaluation(*training["history"][-1])
        print(
            f"losses      at step {last.step:,} (epoch {last.epoch:.2f}): training "
            f"{last.train_loss:.4f}, held out {_losses(last.validation_loss, model.vocabulary)}"
        )
    return 0


def _bench(options: argparse.Namespace) -> int:
    from .bench import command  # imports much that nothing else needs

    names = [field.name for field in fields(command.Options)]
    given = {name: getattr(options, name) for name in names if name != "threads"}
    return command.run(command.Options(**given, threads=options.threads_list))


def _check_paths(options: argparse.Namespace) -> None:
    """Refuses, before any work, paths with which the training could not end well."""
    if options.demo and options.text:
        raise ValueError("--demo brings its own text; leave out either --demo or the files")
    if not options.demo and not options.text:
        raise ValueError("no text to train on: name one or more files, or use --demo")
    if options.output is None:
        if options.resume:
            raise ValueError("--resume goes on with the file that -o names; -o is missing")
        if not options.demo:
            raise ValueError("-o is missing: the file that the model is saved to")
        return
    for text in options.text:
        if os.path.exists(options.output) and os.path.samefile(options.output, text):
            raise ValueError(f"{options.output} is a text to train on; -o would overwrite it")
    if options.resume and not os.path.exists(options.output):
        raise ValueError(f"{options.output} does not exist: nothing to resume")
    checkpoint.check_writable(options.output)
    if options.resume or options.overwrite or not os.path.exists(options.output):
        return
    if os.path.getsize(options.output):
        raise ValueError(
            f"{options.output} exists: --resume goes on with it, --overwrite starts anew"
        )


def _new(options: argparse.Namespace, corpus: Corpus) -> Trainer:
    model = CharLM(corpus.vocabulary, **_chosen(options, _MODEL_DEFAULTS))
    return Trainer(
        model,
        corpus,
        **_chosen(options, _TRAINER_DEFAULTS),
        checkpoint_path=options.output,
        checkpoint_every=options.checkpoint_every,
    )


def _stored_model(options: argparse.Namespace) -> CharLM:
    """The model to go on with; options that ask for another one are refused."""
    model = CharLM.load(options.output)
    for name in _MODEL_DEFAULTS:
        asked, stored = getattr(options, name), model._config[name]
        if name == "zoneout" and isinstance(asked, float):
            asked = list(_zoneout(asked, model.rnn.cell, model.rnn.proj_size))
        if asked not in (None, stored):
            raise ValueError(
                f"{_flag(name)} is {asked}, but {options.output} was trained with {stored}"
            )
    if options.bytes and model.vocabulary.kind != "bytes":
        raise ValueError(f"--bytes is given, but {options.output} was trained on characters")
    return model


def _resumed(options: argparse.Namespace, corpus: Corpus) -> Trainer:
    names = (*_TRAINER_DEFAULTS, "checkpoint_every")
    changes = {name: getattr(options, name) for name in names}
    return Trainer.resume(
        options.output,
        corpus,
        checkpoint_path=options.output,
        **{name: value for name, value in changes.items() if value is not None},
    )


def _chosen(options: argparse.Namespace, defaults: dict[str, Any]) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in defaults}
    return {name: defaults[name] if value is None else value for name, value in given.items()}


def _is_plain_demo(options: argparse.Namespace) -> bool:
    """Whether the demonstration runs as it is, so that its bound holds."""
    shaping = (*_MODEL_DEFAULTS, *_TRAINER_DEFAULTS, "epochs", "steps")
    return options.demo and not options.bytes and all(getattr(options, n) is None for n in shaping)


def _describe(trainer: Trainer, corpus: Corpus, steps: int) -> None:
    """What is trained, on what and for how long, before it begins."""
    print(
        f"text        {len(corpus):,} {corpus.vocabulary.kind}: {len(corpus.train):,} to train on, "
        f"the last {len(corpus.validation):,} held out"
    )
    print(f"vocabulary  {_vocabulary_line(corpus.vocabulary)}")
    print(f"model       {_model_line(trainer.model)}")
    print(f"training    {_training_line(trainer._settings())}")
    epochs = steps / trainer.steps_per_epoch
    print(
        f"length      {steps:,} steps, {epochs:.4g} epochs, on {get_num_threads()} threads"
        + (f"; {trainer.num_steps:,} steps are done" if trainer.num_steps else ""),
        flush=True,
    )


def _model_line(model: CharLM) -> str:
    config = model._config
    layers = f"{config['num_layers']} layer{'s' * (config['num_layers'] > 1)}"
    shape = f"{config['cell']}, {layers} of {config['hidden_size']}"
    if config["proj_size"]:
        shape += f" projected to {config['proj_size']}"
    if config["layer_norm"]:
        shape += ", normalised"
    left_out = [f"{name.replace('_', ' ')} {config[name]:g}" for name in _RATES if config[name]]
    if any(config["zoneout"]):
        left_out.append("zoneout " + ", ".join(f"{rate:g}" for rate in config["zoneout"]))
    if left_out and config["variational"]:
        left_out.append("variational")
    noise = f"; in training {', '.join(left_out)}" if left_out else ""
    return f"{shape}, {config['dtype']}: {model.num_parameters:,} parameters{noise}"


def _vocabulary_line(vocabulary: Vocabulary) -> str:
    if vocabulary.kind == "bytes":
        return "the 256 bytes"
    return f"{len(vocabulary)} characters: {vocabulary._shown()}"


def _training_line(settings: dict[str, Any]) -> str:
    decay, clip_norm = settings["lr_decay"], settings["clip_norm"]
    rate = f"learning rate {settings['learning_rate']:.3g}"
    if decay != 1:
        rate += f" (x{decay:.6g} per epoch from epoch {settings['lr_decay_after']})"
    return (
        f"{settings['optimizer'] or 'optimizer object'}, {rate}, "
        f"{'no clipping' if clip_norm is None else f'gradient norm clipped to {clip_norm:.6g}'}; "
        f"batch size {settings['batch_size']}, sequence length {settings['seq_len']}"
    )


def _losses(nats: float, vocabulary: Vocabulary) -> str:
    return f"{nats:.4f} nats per {vocabulary._unit} ({nats / math.log(2):.4f} bits)"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} GB"


def _complain(message: str, status: int) -> int:
    # One line, whatever a file's name or a message holds.
    print(f"charrnn-fast: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _with_flags(message: str) -> str:
    """A message about arguments, as one about options; names within a path stay."""
    names = "|".join(
        n for n in (*_MODEL_DEFAULTS, *_TRAINER_DEFAULTS, "top_k", "top_p") if "_" in n
    )
    return re.sub(rf"(?<![\w/.-])({names})(?![\w/-]|\.\w)", lambda m: _flag(m[0]), message)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(_USER_ERROR, f"charrnn-fast: error: {message} (see {self.prog} --help)\n")


def _integer(minimum: int, maximum: int = LARGEST) -> Callable[[str], int]:
    def convert(text: str) -> int:
        value = int(text)
        return _checked(lambda: integer("", value, minimum, maximum))

    convert.__name__ = "integer"  # argparse: "invalid integer value"
    return convert


def _number(**bounds: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = float(text)
        return _checked(lambda: real("", value, **bounds))

    convert.__name__ = "number"
    return convert


def _zoneout_rates(text: str) -> float | list[float]:
    rates = [_number(least=0, below=1)(part) for part in text.split(",")]
    if len(rates) > 2:
        raise argparse.ArgumentTypeError(f"takes one rate or two, got {text!r}")
    return rates[0] if len(rates) == 1 else rates


def _norm(text: str) -> float:
    return math.inf if text == "inf" else _number(above=0)(text)


def _checked(check: Callable[[], _T]) -> _T:
    """What a check returns; argparse puts the option's name before its message."""
    try:
        return check()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).strip()) from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="charrnn-fast",
        description="Character-level language models with recurrent networks, fast on a CPU.",
    )
    version = f"charrnn-fast {build_info()['version']}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], about: str, threads: bool = True
    ) -> _Parser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run, threads=None)
        if threads:
            sub.add_argument(
                "--threads", type=_integer(1, 4096), metavar="N", help="default: all cores"
            )
        return sub

    train = command("train", _train, "Train a model on text files.")
    train.add_argument(
        "text", nargs="*", metavar="TEXT", help="UTF-8 files, read one after another"
    )
    train.add_argument("-o", "--output", metavar="FILE", help="where the model is saved")
    train.add_argument(
        "--demo",
        action="store_true",
        help="train on the source of Python's standard library for about a minute",
    )
    train.add_argument(
        "--cell",
        choices=("rnn", "gru", "lstm", "peephole_lstm", "coupled_lstm"),
        help="default: lstm",
    )
    for flag, name, about in (
        ("--hidden-size", "H", "units in each layer (default: 128)"),
        ("--num-layers", "L", "layers (default: 2)"),
        ("--batch-size", "B", "pieces of the text that are read side by side (default: 50)"),
        ("--seq-len", "T", "characters between two updates (default: 50)"),
    ):
        train.add_argument(flag, type=_integer(1), metavar=name, help=about)
    length = train.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=_integer(1), metavar="N", help=f"passes in all (default: {_EPOCHS})"
    )
    length.add_argument("--steps", type=_integer(1), metavar="N", help="updates in all")
    train.add_argument(
        "--optimizer",
        choices=("sgd", "rmsprop", "adagrad", "adam", "adamw"),
        help="default: adam",
    )
    train.add_argument(
        "--learning-rate", type=_number(above=0), metavar="LR", help="default: 0.002"
    )
    train.add_argument(
        "--lr-decay",
        type=_number(above=0),
        metavar="X",
        help="factor of the learning rate after each epoch (default: 0.97; 1: none)",
    )
    train.add_argument(
        "--lr-decay-after",
        type=_integer(1),
        metavar="N",
        help="epochs before it first applies (default: 10)",
    )
    train.add_argument(
        "--clip-norm",
        type=_norm,
        metavar="X",
        help="bound of the gradient's norm (default: 5; inf: none)",
    )
    train.add_argument(
        "--seed",
        type=_integer(0, LARGEST_SEED),
        metavar="N",
        help="of the initial weights (default: 0)",
    )
    train.add_argument(
        "--proj-size",
        type=_integer(0),
        metavar="P",
        help="features that an LSTM's h is projected to (default: 0, none)",
    )
    train.add_argument(
        "--layer-norm", action="store_const", const=True, help="normalise the gates' sums"
    )
    for flag, about in (
        ("--dropout", "of what the layers above the first read"),
        ("--input-dropout", "of what the first layer reads: whole characters"),
        ("--output-dropout", "of what the top layer gives"),
        ("--recurrent-dropout", "of a layer's own h of the step before"),
        ("--weight-drop", "of the recurrent weights"),
    ):
        train.add_argument(
            flag,
            type=_number(least=0, below=1),
            metavar="P",
            help=f"share left out in training, {about} (default: 0)",
        )
    train.add_argument(
        "--variational",
        action="store_const",
        const=True,
        help="leave out the same at all steps between two updates",
    )
    train.add_argument(
        "--zoneout",
        type=_zoneout_rates,
        metavar="P[,P]",
        help="share of the units that keep their value in training, of h and of an LSTM's c "
        "(default: 0)",
    )
    train.add_argument(
        "--mask-seed",
        type=_integer(0, LARGEST_SEED),
        metavar="N",
        help="of what is left out (default: 0)",
    )
    train.add_argument(
        "--bytes", action="store_true", help="model the 256 bytes instead of the characters"
    )
    train.add_argument(
        "--checkpoint-every",
        type=_integer(1),
        metavar="STEPS",
        help="save this often, too (default: after each epoch)",
    )
    existing = train.add_mutually_exclusive_group()
    existing.add_argument(
        "--resume", action="store_true", help="go on with the training that -o FILE holds"
    )
    existing.add_argument(
        "--overwrite", action="store_true", help="start anew where -o FILE holds a model"
    )

    sample = command("sample", _sample, "Write text with a trained model.")
    sample.add_argument("model", metavar="FILE")
    sample.add_argument(
        "--length", type=_integer(0), default=500, metavar="N", help="characters (default: 500)"
    )
    sample.add_argument("--prime", default="", metavar="TEXT", help="how the text begins")
    sample.add_argument(
        "--temperature",
        type=_number(least=0),
        default=1.0,
        metavar="T",
        help="below 1 safer, above 1 wilder, 0 the most probable (default: 1)",
    )
    sample.add_argument(
        "--top-k", type=_integer(1), metavar="K", help="draw from the K most probable only"
    )
    sample.add_argument(
        "--top-p",
        type=_number(above=0, most=1),
        metavar="P",
        help="draw from the most probable with P together",
    )
    sample.add_argument(
        "--seed",
        type=_integer(0, LARGEST_SEED),
        metavar="N",
        help="default: a fresh one, told on stderr",
    )

    evaluate = command("eval", _eval, "Measure a trained model's loss on text files.")
    evaluate.add_argument("model", metavar="FILE")
    evaluate.add_argument("text", nargs="+", metavar="TEXT", help="UTF-8 files")
    for reader in (sample, evaluate):
        reader.add_argument(
            "--weight-dtype",
            choices=["float32", "float64", "bfloat16"],
            help="bfloat16: weights at half the memory (default: the model's own type)",
        )

    info = command("info", _info, "Tell what a checkpoint holds.")
    info.add_argument("model", metavar="FILE")

    bench = command("bench", _bench, "Measure the kernels beside their peers.", threads=False)
    bench.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        help="train, forward, backward, sample, step, gemm, time-to-loss (default: all)",
    )
    bench.add_argument("--quick", action="store_true", help="few and short: under two minutes")
    bench.add_argument(
        "--cases",
        nargs="+",
        metavar="CASE",
        help="cell,B,T,H,L as lstm,50,50,128,2 (sample: B streams, T characters a call), for gemm "
        "M,K,N",
    )
    bench.add_argument(
        "--threads",
        dest="threads_list",
        nargs="+",
        type=_integer(1, 4096),
        metavar="N",
        help="default: 1 2",
    )
    bench.add_argument(
        "--peers",
        nargs="*",
        metavar="PEER",
        help="numpy, torch, torch.compile, jax, onnxruntime (default: all that are installed)",
    )
    bench.add_argument(
        "--blocks", type=_integer(1), metavar="N", help="turns of each side (default: 11, quick 5)"
    )
    bench.add_argument(
        "--text", metavar="FILE", help="UTF-8 (default: the source of Python's standard library)"
    )
    bench.add_argument("--json", metavar="FILE", help="write rows and the machine's facts there")
    bench.add_argument("--markdown", metavar="FILE", help="write the tables there too")
    bench.add_argument("--plots", metavar="FOLDER", help="draw a roofline and bar charts there")
    bench.add_argument(
        "--compare", metavar="OLD.json", help="tell what has changed since that run's --json"
    )
    return parser
