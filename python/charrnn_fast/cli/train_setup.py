"""Builds what ``charrnn-fast train`` trains, from its settings: model, text and trainer."""

from __future__ import annotations

import argparse

from .._checks import calling
from ..language.model import CharLM
from ..storage import configuration
from ..text import demo
from ..text.corpus import Corpus
from ..text.vocabulary import Vocabulary
from ..training.callbacks import Callback
from ..training.distributed import Group
from ..training.log import JsonLog, TensorBoardLog
from ..training.resume import check_corpus
from ..training.schedules import Constant, Cosine, Decay, Linear, Plateau, Schedule
from ..training.trainer import Trainer
from . import options
from .texts import Files, Origin, read_corpus

EPOCHS = 20
"""Of a training that names neither epochs nor steps."""

# Schedules' settings have other names than their flags.
_OF_SCHEDULES = {
    "warmup": "--warmup",
    "epochs": "--epochs",
    "decay": "--lr-decay",
    "after": "--lr-decay-after",
    "patience": "--lr-patience",
    "final": "--final-lr",
}


# What a setting of the text stands for, so that one of a checkpoint gives way. The training then
# checks that it is divided as before. Three shares of a split have no room for a test text.
_INSTEAD = {
    "text": ["demo"],
    "demo": ["text", "validation", "test"],
    "split": ["validation"],
    "validation": ["split"],
}
_TEST_SHARES = 3


def resumed(origin: Origin, given: options.Values) -> options.Values:
    """The settings of a resumed training."""
    values = options.override(origin.values, given, "")
    for one, others in _INSTEAD.items():
        for other in others if given.get(one) else ():
            if other not in given:
                values.pop(other, None)
    if len(values.get("split") or ()) == _TEST_SHARES:
        for one, other in (("split", "test"), ("test", "split")):
            if given.get(one) and other not in given:
                values.pop(other, None)
    return values


def origin_of(arguments: argparse.Namespace, given: options.Values, group: Group) -> Origin | None:
    """The checkpoint that a training resumes or starts from; None: there is none. Process 0 reads
    it for all.

    Raises ValueError if its shape differs from the given settings.
    """
    path = arguments.output if arguments.resume else arguments.init_from
    if path is None:
        return None
    tensors, config = group.on_first(lambda: configuration.read(path))
    model = CharLM.from_checkpoint(path, tensors, config, compute_dtype="float32")
    compute_dtype = config["model"].get("compute_dtype", "float32")
    training = config.get("training", {})
    values = options.restored(training.get("configuration", {}), path)
    # Regularization may change, and for another text more.
    fixed = options.NETWORK if arguments.resume else options.SHAPE
    for option in fixed:
        asked, stored = given.get(option.name), model.settings()[option.name]
        if asked not in (None, stored):
            raise ValueError(
                f"{option.flag} must be {stored}, with which {path} was trained, got {asked}"
            )
    min_count = values.get("min_count", 1)
    if arguments.resume and given.get("min_count", min_count) != min_count:
        raise ValueError(
            f"--min-count must be {min_count}, with which {path} was trained, got "
            f"{given['min_count']}"
        )
    if given.get("bytes") and model.vocabulary.kind != "bytes":
        raise ValueError(f"--bytes is given, but {path} was trained on characters")
    return Origin(path, model, compute_dtype, values, training)


def corpus_of(
    arguments: argparse.Namespace, files: Files, values: options.Values, origin: Origin | None
) -> Corpus:
    """The text to train on, read by its settings."""
    vocabulary = None
    if origin is not None:
        vocabulary = origin.model.vocabulary
    elif values.get("bytes"):
        vocabulary = Vocabulary.from_bytes()
    # The vocabulary of a resumed training was made with the min_count that it began with.
    min_count = 1 if arguments.resume else values.get("min_count", 1)
    extend = arguments.extend_vocabulary and not arguments.resume
    corpus = read_corpus(files, values, vocabulary, min_count, extend_vocabulary=extend)
    known = origin.training.get("corpus") if arguments.resume and origin else None
    if origin is not None and known is not None:
        check_corpus(origin.path, corpus, known, files.advice)
    return corpus


def trainer_of(
    arguments: argparse.Namespace,
    corpus: Corpus,
    values: options.Values,
    given: options.Values,
    origin: Origin | None,
    log_path: str | None,
    group: Group,
) -> tuple[Trainer, int]:
    """The trainer, new or resumed, and the step at which it ends."""
    asked = given if arguments.resume else options.pick(options.TRAINING, values)
    training = {o.name: asked[o.name] for o in options.TRAINING if o.name in asked}
    # A training that Python began has no settings of the command: its own configuration stays.
    foreign = arguments.resume and origin is not None and not origin.values
    run = options.pick(options.RUN, values)
    epochs, steps, log_every = run.pop("epochs"), run.pop("steps"), run.pop("log_every")
    run.pop("final_test")
    if foreign:
        run = {name: value for name, value in run.items() if name in given}
    settings = {
        **run,
        **training,
        "checkpoint_path": arguments.output,
        "group": group,
        "device": group.device,
    }
    if group.rank == 0:
        settings["callbacks"] = _callbacks(log_path, values.get("tensorboard"), log_every)
    if arguments.resume:
        settings["compute_dtype"] = given.get("compute_dtype")
        rates = (option.name for option in options.REGULARIZATION)
        settings |= {name: given[name] for name in rates if name in given}
        trainer = Trainer.resume(arguments.output, corpus, **settings)
    else:
        model = model_of(corpus.vocabulary, values, origin, group.device)
        trainer = Trainer(model, corpus, **settings)
    if steps is None and epochs is None and values.get("demo"):
        steps = demo.STEPS
    if steps is None:
        steps = trainer.step_at(epochs or EPOCHS)
    scheduled = any(option.name in given for option in options.SCHEDULE)
    if trainer.num_steps < steps and (scheduled or not foreign):
        trainer.schedule = schedule_of(values, trainer.epoch_at(steps))
    if not foreign:
        settings = options.pick(options.ALL, values)
        of_model = {
            o.name: trainer.model.settings()[o.name] for o in (*options.MODEL, options.COMPUTE)
        }
        settings |= {**of_model, "bytes": corpus.vocabulary.kind == "bytes"}
        trainer.configuration |= options.stored(settings)
    return trainer, steps


def model_of(
    vocabulary: Vocabulary, values: options.Values, origin: Origin | None, device: str
) -> CharLM:
    """The new model of a training, by its settings; with the weights of origin, if there is one."""
    of_model = (*options.MODEL, options.COMPUTE)
    if origin is None:
        return CharLM(vocabulary, **options.pick(of_model, values), device=device)
    stored = {**origin.model.settings(), "compute_dtype": origin.compute_dtype}
    asked = {o.name: values[o.name] for o in of_model if o.name in values}
    model = CharLM(vocabulary, **{**stored, **asked}, device=device)
    model.rnn.load_parameters(origin.model.weights_for(model))
    return model


def _callbacks(log_path: str | None, tensorboard: str | None, log_every: int) -> list[Callback]:
    callbacks: list[Callback] = []
    if log_path is not None:
        callbacks.append(JsonLog(log_path, log_every))
    if tensorboard is not None:
        callbacks.append(TensorBoardLog(tensorboard))
    return callbacks


def schedule_of(given: options.Values, epochs: float) -> Schedule:
    """The schedule of a training of so many epochs, by its settings."""
    values = options.pick(options.SCHEDULE, given)
    with calling(_OF_SCHEDULES):
        return _schedule(values, epochs)


def _schedule(values: options.Values, epochs: float) -> Schedule:
    kind, warmup, decay = values["schedule"], values["warmup"], values["lr_decay"]
    if kind == "decay":
        decay = Decay().decay if decay is None else decay
        return Decay(warmup=warmup, decay=decay, after=values["lr_decay_after"])
    if kind == "plateau":
        decay = Plateau().decay if decay is None else decay
        return Plateau(warmup=warmup, decay=decay, patience=values["lr_patience"])
    if kind in ("cosine", "linear"):
        falling = Cosine if kind == "cosine" else Linear
        return falling(warmup=warmup, epochs=epochs, final=values["final_lr"])
    return Constant(warmup=warmup)
