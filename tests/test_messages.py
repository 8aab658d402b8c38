"""What messages say: the arguments by their names or flags, what is wrong, what to do."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import charrnn_fast as cf
from charrnn_fast import checkpoint
from charrnn_fast._checks import called, calling
from charrnn_fast.cli import _parser, main, options
from charrnn_fast.cli.parsing import Parser

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
COMMANDS = ("train", "sample", "eval", "score", "info", "view", "plot")

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
    needed = {"plot": ["-o", "b"], "eval": ["b"], "view": ["b"], "bench": []}.get(command, [])
    first = [] if command == "bench" else ["a"]
    parser: Parser = _parser().parse_args([command, *first, *needed]).parser
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
    files = [*package.glob("*.py"), *package.glob("cli/*.py"), *package.glob("view/*.py")]
    found = []
    for path in files:
        if path.name == "reference.py":  # which the command line does not use
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Raise) or node.exc is None:
                continue
            texts = [part for part in ast.walk(node.exc) if isinstance(part, ast.JoinedStr)]
            parts = [part for text in texts for part in text.values]
            parts += node.exc.args if isinstance(node.exc, ast.Call) else []
            for part in parts:
                if isinstance(part, ast.Constant) and names.search(str(part.value)):
                    found.append(f"{path.name}:{part.lineno}: {part.value!r}")
    assert len(files) > 30
    assert found == []


def flags_with_values() -> list[tuple[str, str]]:
    """The flags of each command that take a value which can be wrong."""
    return [
        (command, action.option_strings[-1])
        for command in COMMANDS
        for action in parser_of(command)._actions
        if action.option_strings and (action.choices or action.type not in (None, str))
    ]


@pytest.mark.parametrize(("command", "flag"), flags_with_values())
def test_a_wrong_value_is_told_with_its_flag(command: str, flag: str, capsys: Capture) -> None:
    """A path has its own tests; all else refuses this value."""
    error = refused(capsys, command, "a", flag, "\\q\x01")
    assert error.startswith(f"argument {'-o/' * (flag == '--output')}{flag}: ")
    assert "\\q" in error


@pytest.mark.parametrize(
    "option",
    [option for option in options.ALL if option.choices or option.parse is not str],
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
            "RNN(28, 100000000, 28, cell='lstm', num_layers=2, dtype='float32') would have 1.2e+17 "
            "weights, at most 2**40 are taken; try a smaller --hidden-size",
        ),
        (["--num-layers", "10001"], "--num-layers must be in 1 to 10000, got 10001"),
        (
            ["--proj-size", "9", "--hidden-size", "8"],
            "--proj-size must be less than --hidden-size=8, got 9",
        ),
        (
            ["--zoneout", "0.1,0.1", "--cell", "gru"],
            "the second rate of --zoneout is for the c of LSTMs, got 0.1 with --cell='gru'",
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
            "the text is too short: its training part has 792 characters, and one chunk of "
            "--batch-size=100 streams by --seq-len=20 takes 2001; use a smaller --batch-size or "
            "--seq-len, or more text",
        ),
        (
            ["--bytes", "--encoding", "latin-1"],
            "--encoding is 'latin-1', but with the byte vocabulary nothing is decoded; leave out "
            "one of them",
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


def test_what_a_file_holds_is_called_by_its_name(
    folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    """And not by a flag that nobody gave."""
    tensors, config = checkpoint.read(folder / "model")
    config["model"]["dropout"] = 2.0
    checkpoint.write(tmp_path / "model", tensors, config)
    error = refused(capsys, "train", "-o", str(tmp_path / "model"), "--resume")
    assert "dropout must be finite, at least 0, below 1, got 2.0" in error
    assert "--dropout" not in error
