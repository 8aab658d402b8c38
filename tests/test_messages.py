"""Messages: they name the argument or flag, what is wrong and what to do."""

from __future__ import annotations

import ast
import io
import math
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from charrnn_fast._checks import brief, called, calling
from charrnn_fast.cli import _parser, main, options
from charrnn_fast.cli.parsing import Parser, file_option, folder_option, path_option
from charrnn_fast.storage import checkpoint

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
COMMANDS = ("train", "sample", "eval", "score", "serve", "info", "view", "export", "plot")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a text and a small model, which tests leave as they are."""
    folder = tmp_path_factory.mktemp("messages")
    (folder / "text").write_text(TEXT)
    corpus = cf.Corpus.from_text(TEXT)
    model = cf.CharLM(corpus.vocabulary, 8, 2)
    cf.Trainer(model, corpus, 6, 20).save(folder / "model")
    return folder


def parser_of(command: str) -> Parser:
    needed = {"plot": ["-o", "b"], "eval": ["b"], "view": ["b"], "export": ["b.onnx"]}
    first = [] if command == "bench" else ["a"]
    parser: Parser = _parser().parse_args([command, *first, *needed.get(command, [])]).parser
    return parser


def refused(capsys: Capture, *arguments: str) -> str:
    """The one line on stderr with which a user's error ends, without its beginning."""
    try:
        status: object = main(arguments)
    except SystemExit as stop:  # argparse leaves this way
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, ""), err
    assert err.count("\n") == 1
    return err.removeprefix("charrnn-fast: error: ").rstrip("\n")


# ---- the names of arguments ----


def test_messages_call_arguments_as_their_caller_does() -> None:
    assert called("stop[1]") == "stop[1]"
    with calling({"stop": "--stop"}):
        assert (called("stop"), called("stop[1]")) == ("--stop", "--stop")
        assert called("optimizer.lr") == "optimizer.lr"
        with calling({}):  # as for what a file holds
            assert called("stop") == "stop"
        assert called("stop") == "--stop"
    assert called("stop") == "stop"


def test_no_message_has_the_name_of_a_setting_that_the_command_line_calls_otherwise() -> None:
    """Whoever raises an error names the argument by `called`."""
    settings = {*options.NAMES, "top_k", "top_p", "weight_dtype"}
    # a key in a file has its path before it: training.settings.batch_size
    names = re.compile(rf"(?<![.\w])({'|'.join(name for name in settings if '_' in name)})\b")
    package = Path(cf.__file__).parent
    # which have no such settings
    others = [package / name for name in ("reference", "bench", "torch", "jax")]
    files = [p for p in package.rglob("*.py") if not any(map(p.is_relative_to, others))]
    found = []
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Raise) or node.exc is None:
                continue
            texts = [part for part in ast.walk(node.exc) if isinstance(part, ast.JoinedStr)]
            parts = [part for text in texts for part in text.values]
            parts += node.exc.args if isinstance(node.exc, ast.Call) else []
            for part in parts:
                if isinstance(part, ast.Constant) and names.search(str(part.value)):
                    found.append(f"{path.name}:{part.lineno}: {part.value!r}")
    assert len(files) > 50
    assert found == []


def takes_any(parse: Any) -> bool:
    """Whether it reads an option's value as whatever it is: the name of a file, say."""
    paths = (None, str, file_option, folder_option, path_option)
    return parse in paths or "output_option" in parse.__qualname__


def flags_with_values() -> list[tuple[str, str]]:
    """The flags of each command that take a value which can be wrong."""
    return [
        (command, action.option_strings[-1])
        for command in COMMANDS
        for action in parser_of(command)._actions
        if action.option_strings and (action.choices or not takes_any(action.type))
    ]


@pytest.mark.parametrize(("command", "flag"), flags_with_values())
def test_a_wrong_value_is_told_with_its_flag(command: str, flag: str, capsys: Capture) -> None:
    """A path has its own tests; all else refuses this value."""
    error = refused(capsys, command, "a", flag, "\\q\x01")
    assert error.startswith(f"argument {'-o/' * (flag == '--output')}{flag}: ")
    assert "\\q" in error


@pytest.mark.parametrize(
    "option",
    [option for option in options.ALL if option.choices or not takes_any(option.parse or bool)],
    ids=lambda option: str(option.name),
)
def test_a_wrong_setting_is_told_with_its_key(
    option: options.Option, folder: Path, capsys: Capture
) -> None:
    """Of a file, or of --set, where the name is the one in Python."""
    error = refused(capsys, "train", "a", "-o", "b", "--set", rf"{option.name}=\q\x01")
    assert error.startswith(f"--set: {option.name}: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--hidden-size", "100000000"],
            "a network must have at most 2**40 weights, got 1.2e+17 for RNN(28, 100000000, "
            "output_size=28, cell='lstm', num_layers=2, dtype='float32'); try a smaller "
            "--hidden-size",
        ),
        (["--num-layers", "10001"], "--num-layers must be in 1 to 10000, got 10001"),
        (
            ["--proj-size", "9", "--hidden-size", "8"],
            "--proj-size must be less than --hidden-size=8, got 9",
        ),
        (
            ["--zoneout", "0.1,0.1", "--cell", "gru"],
            "the second rate of --zoneout must be 0 with --cell='gru', got 0.1: it is for the c of "
            "LSTMs",
        ),
        (
            ["--zoneout", "0.1", "--proj-size", "3"],
            "h cannot be zoned out behind a projection: the first rate of --zoneout must be 0, got "
            "0.1",
        ),
        (["--micro-batches", "51"], "--micro-batches must be in 1 to 50, got 51"),
        (
            ["--schedule", "plateau", "--lr-decay", "2"],
            "--lr-decay must be finite, above 0, at most 1, got 2.0",
        ),
        (
            ["--schedule", "cosine", "--warmup", "30", "--epochs", "2"],
            "--warmup must be below --epochs=2, got 30",
        ),
        (
            ["--batch-size", "100"],
            "the text's training part must have 2001 characters or more, for a chunk of "
            "--batch-size=100 streams by --seq-len=20, got 792; use a smaller --batch-size or "
            "--seq-len, or more text",
        ),
        (
            ["--bytes", "--encoding", "latin-1"],
            "--encoding must be 'utf-8' with the byte vocabulary, which decodes nothing, got "
            "'latin-1'",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_told_with_their_flags(
    folder: Path, tmp_path: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    small = ["--hidden-size", "8", "--batch-size", "5", "--seq-len", "20"]
    if "--micro-batches" in arguments:
        small = ["--batch-size", "50", "--seq-len", "5"]
    train = ["train", str(folder / "text"), "-o", str(tmp_path / "new"), *small, *arguments]
    assert refused(capsys, *train) == message


def test_what_a_file_holds_is_called_by_its_name(tmp_path: Path, capsys: Capture) -> None:
    """And not by a flag that nobody gave."""
    corpus = cf.Corpus.from_text(TEXT)
    cf.Trainer(cf.CharLM(corpus.vocabulary, 8, 1, "gru"), corpus, 6, 20).save(tmp_path / "model")
    tensors, config = checkpoint.read(tmp_path / "model")
    config["model"]["zoneout"] = [0.0, 0.2]
    checkpoint.write(tmp_path / "model", tensors, config)
    error = refused(capsys, "train", "-o", str(tmp_path / "model"), "--resume")
    assert "second rate of zoneout must be 0 with cell='gru', got 0.2" in error


# ---- the names of files ----

NO_FILES = {
    "": "must be the name of a file, got ''",
    ".": "must be a file, got '.', which names a folder; name a file in it",
    "..": "must be a file, got '..', which names a folder; name a file in it",
    "new/": "must be a file, got 'new/', which names a folder; name a file in it",
    "new/..": "must be a file, got 'new/..', which names a folder; name a file in it",
    "text/": "must be a file, got 'text/', which names a folder; name a file in it",
}
FILES = [  # the flag that takes the file behind these arguments
    ("-o/--output", ["train", "text", "-o"]),
    ("--log", ["train", "text", "-o", "new", "--log"]),
    ("--init-from", ["train", "text", "-o", "new", "--init-from"]),
    ("--config", ["train", "text", "-o", "new", "--config"]),
    ("MODEL", ["sample"]),
    ("--prime-file", ["sample", "model", "--prime-file"]),
    ("MODEL", ["eval"]),
    ("MODEL", ["score"]),
    ("MODEL", ["info"]),
    ("MODEL", ["view"]),
    ("-o/--output", ["view", "model", "text", "-o"]),
    ("MODEL", ["export"]),
    ("OUT", ["export", "model"]),
    ("-o/--output", ["plot", "log.jsonl", "-o"]),
    ("RUN.jsonl", ["plot", "-o", "new.png"]),
    ("--text", ["bench", "--text"]),
    ("--json", ["bench", "--json"]),
    ("--markdown", ["bench", "--markdown"]),
    ("--compare", ["bench", "--compare"]),
]


@pytest.fixture
def inside(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a text, a model, a folder that is empty."""
    for name in ("text", "model"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "there").mkdir()
    (tmp_path / "log.jsonl").write_text('{"type": "start"}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def listing(folder: Path) -> dict[Path, bytes | None]:
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("name", NO_FILES)
@pytest.mark.parametrize(
    ("flag", "arguments"), FILES, ids=lambda value: value if isinstance(value, str) else value[0]
)
def test_a_name_that_is_no_files_is_told(
    inside: Path, capsys: Capture, flag: str, arguments: list[str], name: str
) -> None:
    before = listing(inside)
    end = f"(see charrnn-fast {arguments[0]} --help)"
    more = ["text"] if arguments in (["eval"], ["view"]) else []
    error = refused(capsys, *arguments, name, *more)
    assert error == f"argument {flag}: {NO_FILES[name]} {end}"
    assert listing(inside) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train text -o there", "there: this is a folder, not a file; name a file in it"),
        ("train text -o new --log there", "there: this is a folder, not a file; name a file in it"),
        ("train text -o text/new", "text/new: its folder is a file"),
        ("train text -o no/new", "no/new: its folder does not exist"),
        ("train text -o new --log text/log", "text/log: its folder is a file"),
        (
            "train text -o new --tensorboard model",
            "--tensorboard must be a folder, got the file model",
        ),
        ("train text -o new --init-from there", "there: this is a folder, not a file; name a file"),
        ("train text -o new --config there", "there: this is a folder, not a file; name a file in"),
        ("train text/new -o new", "text/new: a part of this path is a file, not a folder"),
        ("train text/ -o new", "text/: a part of this path is a file, not a folder"),
        ("sample there", "there: this is a folder, not a file; name a file in it"),
        ("sample text/model", "text/model: a part of this path is a file, not a folder"),
        ("sample model --prime-file there", "there: this is a folder, not a file; name a file in"),
        ("view model text -o there", "there: this is a folder, not a file; name a file in it"),
        ("view model text -o text/new", "text/new: its folder is a file"),
        ("plot there -o new.png", "there: this is a folder, not a file; name a file in it"),
        ("train text -o new --set log=a/", "--set: log: must be a file, got 'a/', which names a"),
        (
            "train text -o new --set tensorboard=",
            "--set: tensorboard: must be the name of a folder",
        ),
        (
            "train text -o .safetensors",
            "-o/--output: must have a name before .safetensors, got '.s",
        ),
        ("train text -o there/.safetensors", "must have a name before .safetensors, got 'there/.s"),
        ("train text -o new --log .jsonl", "--log: must have a name before .jsonl, got '.jsonl'"),
        ("view model text -o .html", "-o/--output: must have a name before .html, got '.html', w"),
        ("plot log.jsonl -o .png", "-o/--output: must have a name before .png, got '.png', which"),
        ("bench --json .json", "--json: must have a name before .json, got '.json', which would"),
    ],
)
def test_a_folder_for_a_file_and_a_file_for_a_folder_are_told(
    inside: Path, capsys: Capture, arguments: str, message: str
) -> None:
    before = listing(inside)
    assert message in refused(capsys, *arguments.split())
    assert listing(inside) == before


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["train", "", "-o", "new"], "TEXT"),
        (["eval", "model", ""], "TEXT"),
        (["train", "text", "-o", "new", "--tensorboard", ""], "--tensorboard"),
        (["bench", "--plots", ""], "--plots"),
    ],
)
def test_an_empty_name_is_told(
    inside: Path, capsys: Capture, arguments: list[str], flag: str
) -> None:
    assert f"argument {flag}: must be the name of a f" in refused(capsys, *arguments)


def test_python_refuses_the_names_of_folders_too(inside: Path) -> None:
    model = cf.CharLM.load("model")
    for name, message in (
        ("new/", "this names a folder, not a file; name a file in it"),
        ("there", "this is a folder, not a file; name a file in it"),
        (".", "this is a folder, not a file; name a file in it"),
        ("text/new", "its folder is a file"),
    ):
        with pytest.raises(OSError, match=message):
            model.save(name)
        with pytest.raises(OSError, match=message):
            cf.Trainer(model, cf.Corpus.from_text(TEXT), 6, 20, checkpoint_path=name)


# ---- bytes that are no text ----


@pytest.mark.parametrize(
    ("flag", "arguments"),
    [
        ("argument --prime", ["sample", "model", "--prime"]),
        ("argument --stop", ["sample", "model", "--stop"]),
        ("argument --document-mark", ["train", "text", "-o", "new", "--document-mark"]),
        ("argument --document-mark", ["eval", "model", "text", "--document-mark"]),
        ("--set: document_mark", ["train", "text", "-o", "new", "--set"]),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="needs arguments of bytes")
def test_bytes_that_are_no_text_are_told(
    inside: Path, capsys: Capture, flag: str, arguments: list[str]
) -> None:
    """As Python hands them over, and not as a character that the vocabulary lacks."""
    key = "document_mark=" if arguments[-1] == "--set" else ""
    bad = os.fsdecode(key.encode() + "ü".encode() + b"\xfe\xff")
    other = ", --prime-file reads others" if flag == "argument --prime" else ""
    assert refused(capsys, *arguments, bad).startswith(
        rf"{flag}: must be text in this locale's encoding, utf-8, got the byte 0xfe at position 2; "
        rf"\xNN and \uNNNN stand for characters{other}"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs a locale without UTF-8")
def test_text_in_a_locale_without_utf8_is_told(inside: Path) -> None:
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "charrnn_fast", "sample", "model", "--prime", "naïve"]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True)
    assert done.returncode == 2
    assert done.stderr.decode("ascii").startswith(
        "charrnn-fast: error: argument --prime: must be text in this locale's encoding, ascii, got "
        r"the byte 0xc3 at position 2; \xNN and \uNNNN stand for characters, set a locale with "
        "UTF-8, such as LC_ALL=C.UTF-8 (see "
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of bytes")
def test_names_of_files_may_be_any_bytes(inside: Path, capsys: Capture) -> None:
    name = os.fsdecode(b"m\xff")
    (inside / "model").rename(inside / name)
    assert main(["sample", name, "--length", "3", "--seed", "1"]) == 0
    assert capsys.readouterr().out == cf.CharLM.load(name).sample(3, seed=1) + "\n"


@pytest.mark.parametrize(
    "arguments", [["train", "bad", "-o", "new"], ["eval", "model", "bad"]], ids=lambda a: str(a[0])
)
def test_a_text_in_another_encoding_is_told_with_the_flag(
    inside: Path, capsys: Capture, arguments: list[str]
) -> None:
    (inside / "bad").write_bytes(b"na\xefve")
    message = (
        "bad: invalid UTF-8 at byte 2 (0xef: invalid continuation byte); name the encoding that "
        "the file is in ({}), or take a model of bytes, which reads any (train --bytes)"
    )
    assert refused(capsys, *arguments) == message.format("--encoding")
    with pytest.raises(ValueError, match=f"^{re.escape(message.format('encoding'))}$"):
        cf.Corpus.from_files("bad")


# ---- numbers ----


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0.0000"),
        (3.33219, "3.3322"),
        (9999.99994, "9999.9999"),
        (9999.99996, "1e+04"),
        (12345.6, "1.235e+04"),
        (8e31, "8e+31"),
        (1.7e308, "1.7e+308"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_a_number_of_many_digits_is_told_in_few(number: float, text: str) -> None:
    assert brief(number, 4) == text
    assert len(text) <= 9


def test_a_loss_far_above_uniform_guessing_is_told_at_once_and_once(
    inside: Path, capsys: Capture
) -> None:
    """During the training, with the flag that helps; losses are shortened."""
    small = ["--hidden-size", "8", "--num-layers", "1", "--batch-size", "6", "--seq-len", "20"]
    train = ["train", "text", "-o", "new", *small, "--steps", "14", "--sample-length", "0"]
    assert main([*train, "--learning-rate", "1e30", "--optimizer", "sgd"]) == 0
    out, err = capsys.readouterr()
    warnings = err.splitlines()
    assert re.fullmatch(
        r"charrnn-fast: warning: at step 2 the loss is \d\.?\d*e\+\d\d nats/character, far above "
        r"ln 28 = 3\.3322, that of uniform guessing; try a smaller --learning-rate",
        warnings[0],
    )
    assert len(warnings) == 2  # the other one is of the end
    assert main(["eval", "new", "text"]) == 0
    assert main(["info", "new"]) == 0
    out += capsys.readouterr().out
    assert not re.search(r"\d{13}", out.replace(",", ""))
    header, row = next(pair for pair in pairwise(out.splitlines()) if pair[0].startswith("file  "))
    assert [len(header), header.rindex("perplexity")] == [len(row), row.rindex("       inf")]


def test_a_loss_that_stays_low_is_not_warned_of(inside: Path, capsys: Capture) -> None:
    small = ["--hidden-size", "8", "--num-layers", "1", "--batch-size", "6", "--seq-len", "20"]
    assert main(["train", "text", "-o", "new", *small, "--epochs", "9"]) == 0
    assert capsys.readouterr().err == ""


def test_python_is_told_of_its_own_argument(capsys: Capture) -> None:
    corpus = cf.Corpus.from_text(TEXT)
    model = cf.CharLM(corpus.vocabulary, 8, 1)
    trainer = cf.Trainer(model, corpus, 6, 20, optimizer="sgd", learning_rate=1e30)
    trainer.fit(steps=4)
    assert capsys.readouterr().err.endswith("try a smaller learning_rate\n")
    trainer.fit(steps=4, progress=False)
    assert capsys.readouterr() == ("", "")


def test_scores_of_a_model_that_has_diverged_are_short(
    inside: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cf.CharLM.load("model")
    large = {n: w * np.float32(1e30) for n, w in model.rnn.parameters().items()}
    model.rnn.load_parameters(large)
    model.save("large")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the\n")))
    assert main(["score", "large"]) == 0
    assert re.fullmatch(r"-\d\.?\d*e\+\d\d\n", capsys.readouterr().out)
