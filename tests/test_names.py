"""Suggestions for other programs' names of our settings and for misspelt ones."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

import charrnn_fast as cf
from charrnn_fast import _names
from charrnn_fast.cli import _parser, main, options
from charrnn_fast.cli.parsing import Parser

Capture = pytest.CaptureFixture[str]

# Their flags for training, but for those that are ours too, with the setting that is suggested.
# None: a sentence says what to do.
TRAIN: dict[str, dict[str, str | None]] = {
    "char-rnn": {
        "data_dir": "text",
        "rnn_size": "hidden_size",
        "model": "cell",
        "learning_rate_decay": "lr_decay",
        "learning_rate_decay_after": "lr_decay_after",
        "decay_rate": None,
        "seq_length": "seq_len",
        "max_epochs": "epochs",
        "grad_clip": "clip_norm",
        "train_frac": None,
        "val_frac": None,
        "print_every": None,
        "eval_val_every": "evaluate_every",
        "checkpoint_dir": "output",
        "savefile": "output",
        "accurate_gpu_timing": None,
        "gpuid": None,
        "opencl": None,
    },
    "torch-rnn": {
        "input_txt": "text",
        "input_h5": None,
        "input_json": None,
        "output_h5": None,
        "test_frac": None,
        "quiet": None,
        "reset_iterations": None,
        "model_type": "cell",
        "wordvec_size": None,
        "lr_decay_every": None,
        "lr_decay_factor": "lr_decay",
        "batchnorm": None,
        "checkpoint_name": "output",
        "speed_benchmark": None,
        "memory_benchmark": None,
        "gpu": None,
        "gpu_backend": None,
    },
    "word_language_model": {
        "data": "text",
        "emsize": None,
        "nhid": "hidden_size",
        "nlayers": "num_layers",
        "lr": "learning_rate",
        "clip": "clip_norm",
        "bptt": "seq_len",
        "tied": None,
        "cuda": None,
        "mps": None,
        "log_interval": "log_every",
        "save": "output",
        "nhead": None,
        "wdrop": "weight_drop",
        "dropouti": "input_dropout",
        "wdecay": None,
    },
    "nanoGPT": {
        "out_dir": "output",
        "eval_interval": "evaluate_every",
        "dataset": "text",
        "gradient_accumulation_steps": "micro_batches",
        "block_size": "seq_len",
        "n_layer": "num_layers",
        "n_head": None,
        "n_embd": "hidden_size",
        "max_iters": "steps",
        "weight_decay": None,
        "beta1": None,
        "warmup_iters": None,
        "lr_decay_iters": None,
        "min_lr": None,
        "device": "device",
        "compile": None,
    },
    "Keras and others": {
        "units": "hidden_size",
        "hidden_dim": "hidden_size",
        "n_layers": "num_layers",
        "num_epochs": "epochs",
        "n_epochs": "epochs",
        "chunk_len": "seq_len",
        "clipnorm": "clip_norm",
        "dropout_keep": None,
        "output_keep_prob": None,
        "validation_split": None,
        "verbose": None,
        "early_stopping": "patience",
        "save_every": "checkpoint_every",
    },
}

SAMPLE: dict[str, str | None] = {
    "primetext": "prime",
    "start_text": "prime",
    "start": "prime",
    "prompt": "prime",
    "checkpoint": "model",
    "model_path": "model",
    "max_new_tokens": "length",
    "words": "length",
    "predict_len": "length",
    "n": "length",
    "num_return_sequences": "num_samples",
    "sample": None,
    "do_sample": None,
    "gpuid": None,
    "verbose": None,
}


def words(command: str) -> list[str]:
    """The settings of a command, as on the command line."""
    actions = _parser().commands[command]._actions
    flags = [flag for a in actions for flag in a.option_strings or [a.dest]]
    return [flag.lstrip("-").replace("-", "_") for flag in flags]


def refused(capsys: Capture, *arguments: str) -> str:
    """What is told of arguments that are refused, without what stands in every such line."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    beginning, end = "charrnn-fast: error: ", f" (see charrnn-fast {arguments[0]} --help)\n"
    assert error.startswith(beginning) and error.endswith(end)
    return error[len(beginning) : -len(end)]


@pytest.mark.parametrize("program", TRAIN)
def test_their_names_lead_to_ours(program: str) -> None:
    known = words("train")
    for name, ours in TRAIN[program].items():
        for spelt in (name, name.upper(), name.replace("_", "-"), name.replace("_", "")):
            assert _names.meant(spelt, known) == ours, spelt
            assert (ours is None) <= (_names.remark(spelt) is not None), spelt


def test_their_names_of_sampling_lead_to_ours() -> None:
    known = words("sample")
    assert {name: _names.meant(name, known) for name in SAMPLE} == SAMPLE
    assert all(_names.remark(name) for name, ours in SAMPLE.items() if ours is None)


def test_the_table_has_no_name_that_leads_nowhere() -> None:
    """Each of ours is one of a command or a function; no name is there twice for the same."""
    functions: list[Callable[..., Any]] = [cf.RNN, cf.CharLM, cf.Trainer, cf.CharLM.sample]
    functions += [cf.optim.Adam, cf.Corpus.from_files]
    known = {name for function in functions for name in inspect.signature(function).parameters}
    for command in _parser().commands:
        known.update(words(command))
    assert set(_names._SAME) <= known
    for table in (_names._SETTINGS, _names._REMARKS):
        for name, ours in table.items():
            assert len(set(ours)) == len(ours), name
    assert set(_names._SETTINGS) & set(_names._REMARKS) == {"vocab"}  # in Python alone
    for sentence in _names._OTHERWISE:
        assert "{" not in sentence.format_map(_names._Called())


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("hiden_size", "hidden_size"),
        ("hiddensize", "hidden_size"),
        ("HiddenSize", "hidden_size"),
        ("epcohs", "epochs"),
        ("learning_rte", "learning_rate"),
        ("drpout", "dropout"),
        ("seeds", "seed"),
        # nothing of ours is meant
        ("size", None),
        ("rnn", None),
        ("loss", None),
        ("foo", None),
        ("proxy", None),
        ("memory", None),
        ("output_format", None),
        ("plot_every", None),
        ("x", None),
    ],
)
def test_what_is_suggested_is_near(name: str, ours: str | None) -> None:
    assert _names.meant(name, words("train")) == ours
    assert _names.remark(name) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train t -o m --rnn-size 512", "there is no --rnn-size: did you mean --hidden-size 512?"),
        ("train t -o m -rnn_size 512", "there is no -rnn_size: did you mean --hidden-size 512?"),
        ("train t -o m --rnn_size=512", "there is no --rnn_size: did you mean --hidden-size 512?"),
        ("train t -o m --lr 0.1", "there is no --lr: did you mean --learning-rate 0.1?"),
        ("train t -o m --lr", "there is no --lr: did you mean --learning-rate?"),
        ("train t -o m --gpu 0", "there is no --gpu: --device takes cpu or cuda"),
        # flags that begin with an o, which argparse reads as -o with a file
        ("train t -opencl 0", "there is no -opencl: --device takes cpu or cuda"),
        ("train t -optimizer sgd", "there is no -optimizer: did you mean --optimizer sgd?"),
        ("train t -output m", "there is no -output: did you mean --output m?"),
        # with an h, -h
        ("train t -hidden_size 128", "there is no -hidden_size: did you mean --hidden-size 128?"),
        ("train -help", "there is no -help: did you mean --help?"),
        (
            "train t -o m --hidden_size 3",
            "there is no --hidden_size: did you mean --hidden-size 3?",
        ),
        ("train t -o m --hiden-size 3", "there is no --hiden-size: did you mean --hidden-size 3?"),
        ("train t -o m --model GRU", "there is no --model: did you mean --cell gru?"),
        ("train -data_dir d/t", "there is no -data_dir: d/t stands without a flag"),
        ("train t --variatonal 1", "there is no --variatonal: did you mean --variational?"),
        ("train t -o m --foo 3", "there is no --foo"),
        (
            "train -data_dir d -rnn_size 9 -dropout 0.5 -gpuid -1",
            "there is no -data_dir: d stands without a flag; no -rnn_size: did you mean "
            "--hidden-size 9?; no -dropout: did you mean --dropout 0.5?; no -gpuid: --device takes "
            "cpu or cuda",
        ),
        # argparse would take it for --sample-length
        (
            "train t -o m --sample 1",
            "there is no --sample: 1 is how it works, and temperature 0 takes the most probable "
            "character",
        ),
        (
            "sample m -sample 0",
            "there is no -sample: 1 is how it works, and --temperature 0 takes the most probable "
            "character",
        ),
        ("sample m -start_text ab", "there is no -start_text: did you mean --prime ab?"),
        ("sample m --nostream", "there is no --nostream: did you mean --no-stream?"),
        ("sample --checkpoint m.t7", "there is no --checkpoint: m.t7 stands without a flag"),
        # a value, and no flag
        (
            "sample m --prime -x",
            "--prime must have a value; write --prime=-x for one that begins with a hyphen",
        ),
        (
            "sample m --prime The king",
            "king is more than charrnn-fast sample takes; what has blanks stands in quotes",
        ),
        ("bench --gpu", "there is no --gpu: --device takes cpu or cuda"),
        ("info m --device cuda", "there is no --device: leave it out, it runs on the CPU"),
    ],
)
def test_a_flag_that_is_none_is_told(arguments: str, message: str, capsys: Capture) -> None:
    assert refused(capsys, *arguments.split()) == message


def test_a_flag_before_the_command_is_told(capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main(["--epochs", "3", "train", "t"])
    assert capsys.readouterr().err == (
        "charrnn-fast: error: --epochs must stand behind the command: charrnn-fast train ... "
        "--epochs (see charrnn-fast --help)\n"
    )


def test_what_argparse_reads_as_meant_stays() -> None:
    """Beginnings of flags, values that stand at them, negative numbers, what is behind --."""
    parser: Parser = _parser()
    for line in (
        "train t -om --hidden 8 --batch 5 --learning 1 --clip 5 --no-such",
        "train t -om --hidden=8 --epoch 5",
        "train -o m -- -rnn_size",
        "sample m --prime=-x --length -1",
    ):
        arguments = [argument for argument in line.split() if argument != "--no-such"]
        parser.check(arguments)
    parsed = parser.parse_args(["train", "t", "-om", "--hidden", "8", "--batch", "5"])
    assert (parsed.output, parsed.hidden_size, parsed.batch_size) == ("m", 8, 5)
    parser.check(["sample", "m", "--prime", "- an item"])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("rnn_size", "--set: there is no setting 'rnn_size'; did you mean 'hidden_size'?"),
        ("hiden_size", "--set: there is no setting 'hiden_size'; did you mean 'hidden_size'?"),
        ("hidden-size", "--set: there is no setting 'hidden-size'; did you mean 'hidden_size'?"),
        ("gpu", "--set: there is no setting 'gpu'; device takes cpu or cuda"),
        (
            "batchnorm",
            "--set: there is no setting 'batchnorm'; there is layer_norm, which normalizes each "
            "step by itself",
        ),
        ("foo", "--set: there is no setting 'foo'; see charrnn-fast train --help"),
    ],
)
def test_a_setting_that_is_none_is_told(key: str, message: str) -> None:
    arguments = _parser().parse_args(["train", "--set", f"{key}=1"])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        options.given(arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda model: cf.RNN(2, 3, n_layers=2),  # type: ignore[call-arg]
            "RNN.__init__() got an unexpected keyword argument 'n_layers'; did you mean "
            "'num_layers'?",
        ),
        (
            lambda model: cf.RNN(2, 3, batch_first=True),  # type: ignore[call-arg]
            "RNN.__init__() got an unexpected keyword argument 'batch_first'; arrays are "
            "[T, B, ...], time first; swap the first two axes",
        ),
        (
            lambda model: cf.RNN(2, units=3),  # type: ignore[call-arg]
            "RNN.__init__() got an unexpected keyword argument 'units'; did you mean "
            "'hidden_size'?",
        ),
        (
            lambda model: cf.RNN(2, 3, foo=3),  # type: ignore[call-arg]
            "RNN.__init__() got an unexpected keyword argument 'foo'",
        ),
        (
            lambda model: cf.CharLM(model.vocabulary, rnn_size=9),  # type: ignore[call-arg]
            "CharLM.__init__() got an unexpected keyword argument 'rnn_size'; did you mean "
            "'hidden_size'?",
        ),
        (
            lambda model: cf.Trainer(model, None, lr=1),  # type: ignore[call-arg]
            "Trainer.__init__() got an unexpected keyword argument 'lr'; did you mean "
            "'learning_rate'?",
        ),
        (
            lambda model: cf.Trainer(model, None).fit(num_epochs=1),  # type: ignore[call-arg]
            "Trainer.fit() got an unexpected keyword argument 'num_epochs'; did you mean 'epochs'?",
        ),
        (
            lambda model: cf.optim.Adam(model.rnn, learning_rate=1),  # type: ignore[call-arg]
            "Adam.__init__() got an unexpected keyword argument 'learning_rate'; did you mean "
            "'lr'?",
        ),
        (
            lambda model: model.sample(3, prompt="a"),
            "CharLM.sample() got an unexpected keyword argument 'prompt'; did you mean 'prime'?",
        ),
        (
            lambda model: cf.Corpus.from_text("ab", vocab=None),  # type: ignore[call-arg]
            "Corpus.from_text() got an unexpected keyword argument 'vocab'; did you mean "
            "'vocabulary'?",
        ),
    ],
)
def test_a_keyword_that_is_none_is_told(call: Callable[[Any], Any], message: str) -> None:
    model = cf.CharLM(cf.Vocabulary.from_text("ab"), 3, 1)
    with pytest.raises(TypeError) as error:
        call(model)
    assert str(error.value) == message


def test_functions_that_suggest_look_as_they_are() -> None:
    assert list(inspect.signature(cf.RNN).parameters)[:3] == [
        "input_size",
        "hidden_size",
        "output_size",
    ]
    assert cf.CharLM.sample.__name__ == "sample"
    assert str(cf.CharLM.sample.__doc__).startswith("prime and a continuation")
