"""Sampling and evaluation from the command line: sample, eval and score."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from charrnn_fast import CharLM, Dynamic, Vocabulary
from charrnn_fast.cli import main
from charrnn_fast.cli.columns import side_by_side

TEXT = "the quick brown fox jumps over the lazy dog\n"
COMMAND = [sys.executable, "-m", "charrnn_fast"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def model(folder: Path) -> CharLM:
    return made(CharLM(Vocabulary.from_text(TEXT), 12, 2, seed=3), folder / "m.safetensors")


@pytest.fixture(scope="module")
def byte_model(folder: Path) -> CharLM:
    return made(CharLM(Vocabulary.from_bytes(), 12, 1, seed=3), folder / "bytes.safetensors")


@pytest.fixture
def path(folder: Path, model: CharLM) -> str:
    return str(folder / "m.safetensors")


@pytest.fixture
def byte_path(folder: Path, byte_model: CharLM) -> str:
    return str(folder / "bytes.safetensors")


def made(model: CharLM, path: Path) -> CharLM:
    """A model with weights far from zero, so that its choices differ, and its checkpoint."""
    rng = np.random.default_rng(5)
    weights = model.rnn.parameters().items()
    model.rnn.load_parameters({n: rng.normal(size=w.shape).astype(w.dtype) for n, w in weights})
    model.save(path)
    return model


def output(capsys: Capture, *arguments: str) -> str:
    """What a command that ends well writes to stdout; it writes nothing to stderr."""
    status = main(arguments)
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out


def refused(capsys: Capture, *arguments: str) -> str:
    """The one line on stderr with which a user's error ends; nothing else is written."""
    try:
        status: object = main(arguments)
    except SystemExit as stop:  # argparse leaves this way
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("charrnn-fast: error: ")
    assert err.count("\n") == 1
    return err


def give(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """data as the standard input."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


class Screen(io.StringIO):
    """A standard output that keeps what each flush brings to light."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal
        self.shown: list[str] = []

    def isatty(self) -> bool:
        return self.terminal

    def flush(self) -> None:
        if piece := self.getvalue()[len("".join(self.shown)) :]:
            self.shown.append(piece)


@pytest.mark.parametrize("command", ["sample", "eval", "score"])
def test_the_documentation_has_every_option_and_no_other(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    flag = re.compile(r"--[a-z][a-z-]*")
    options = set(flag.findall(capsys.readouterr().out)) - {"--help"}
    page = (Path(__file__).parents[1] / "docs" / "sampling.md").read_text()
    section = page.split(f"\n## {command}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \|", section, re.MULTILINE)
    assert set(flag.findall(" ".join(rows))) == options


# ---- sample: streamed or not ----


@pytest.mark.parametrize(
    ("terminal", "flags", "streamed"),
    [
        (True, [], True),
        (False, [], False),
        (False, ["--stream"], True),
        (True, ["--no-stream"], False),
    ],
)
def test_a_terminal_sees_each_character_as_it_is_drawn(
    model: CharLM,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    flags: list[str],
    streamed: bool,
) -> None:
    screen = Screen(terminal)
    monkeypatch.setattr("sys.stdout", screen)
    arguments = ["sample", path, "--length", "40", "--prime", "the ", "--seed", "7", *flags]
    assert main(arguments) == 0
    text = model.sample(40, "the ", seed=7)
    expected = ["the ", *text[4:], "\n"] if streamed else ["the ", text[4:], "\n"]
    assert screen.shown == expected


def test_a_long_text_is_written_while_it_is_drawn(
    model: CharLM, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen(False)
    monkeypatch.setattr("sys.stdout", screen)
    assert main(["sample", path, "--length", "2500", "--seed", "7"]) == 0
    assert [len(piece) for piece in screen.shown] == [1024, 1024, 452, 1]
    assert "".join(screen.shown) == model.sample(2500, seed=7) + "\n"


def test_a_stream_of_bytes_is_one_of_characters(
    byte_model: CharLM, byte_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that writes "é" for ever, two bytes each."""
    parameters = {n: np.zeros_like(w) for n, w in byte_model.rnn.parameters().items()}
    parameters["weight_ih_l0"][2 * 12, 0xC3] = 9  # the gate g: what byte was read last
    parameters["bias_ih_l0"][[0, 36]] = 9  # the gates i and o are open
    parameters["bias_ih_l0"][12] = -9  # f is closed
    parameters["decoder.weight"][[0xC3, 0xA9], 0] = -200, 200
    parameters["decoder.bias"][:] = -99
    parameters["decoder.bias"][[0xC3, 0xA9]] = 50, 0
    writer = CharLM(Vocabulary.from_bytes(), 12, 1)
    writer.rnn.load_parameters(parameters)
    file = Path(byte_path).with_name("writer.safetensors")
    writer.save(file)
    screen = Screen(False)
    monkeypatch.setattr("sys.stdout", screen)
    assert main(["sample", str(file), "--length", "7", "--seed", "1", "--stream"]) == 0
    assert screen.shown == ["é", "é", "é", "\ufffd", "\n"]  # the last has one byte of two


@pytest.mark.parametrize("flags", [[], ["--stream"], ["--stop", "o"], ["--stream", "--stop", "o"]])
def test_one_newline_ends_a_text(
    model: CharLM, path: str, capsys: Capture, flags: list[str]
) -> None:
    """Also one that ends with a newline itself, and one of no character."""
    stop = "o" if "--stop" in flags else None
    for prime in ("", "fox\n"):
        for length in (0, 30):
            options = ["--length", str(length), "--seed", "7", "--prime", prime, *flags]
            text = model.sample(length, prime, seed=7, stop=stop)
            assert output(capsys, "sample", path, *options) == f"{text}\n"


def test_a_file_holds_the_text_and_a_newline(byte_path: str, tmp_path: Path) -> None:
    options = ["--length", "300", "--seed", "7"]
    with open(tmp_path / "out", "wb") as out:
        subprocess.run([*COMMAND, "sample", byte_path, *options], stdout=out, check=True)
    text = CharLM.load(byte_path).sample(300, seed=7)
    assert not text.isascii()
    assert (tmp_path / "out").read_bytes() == f"{text}\n".encode()


# ---- sample: several, stop strings, temperatures, primes ----


def test_several_texts_stand_under_their_seeds(model: CharLM, path: str, capsys: Capture) -> None:
    arguments = ["sample", path, "--length", "30", "--num-samples", "3", "--seed", "5"]
    texts = model.sample(30, seeds=[5, 6, 7])
    expected = "\n".join(f"==> seed {5 + i} <==\n{text}\n" for i, text in enumerate(texts))
    assert output(capsys, *arguments) == expected
    assert output(capsys, *arguments, "--stream") == expected
    lines = output(capsys, *arguments, "--json").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"seed": 5 + i, "text": text} for i, text in enumerate(texts)
    ]


def test_more_texts_than_are_drawn_together(
    model: CharLM, path: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn_fast.language.sampler._STREAMS", 4)
    arguments = ["--length", "9", "--num-samples", "10", "--seed", "0", "--json"]
    lines = output(capsys, "sample", path, *arguments).splitlines()
    assert [json.loads(line)["text"] for line in lines] == model.sample(9, seeds=range(10))


def test_fresh_seeds_are_told(model: CharLM, path: str, capsys: Capture) -> None:
    out = output(capsys, "sample", path, "--length", "9", "--num-samples", "2", "--json")
    first, second = map(json.loads, out.splitlines())
    assert second["seed"] == first["seed"] + 1
    assert [first["text"], second["text"]] == model.sample(9, seeds=[first["seed"], second["seed"]])
    assert main(["sample", path, "--length", "5", "--temperatures", "0.5,1"]) == 0
    name, seed = capsys.readouterr().err.split()
    assert (name, seed.isdigit()) == ("seed", True)


def test_stop_strings_end_the_text(model: CharLM, path: str, capsys: Capture) -> None:
    arguments = ["sample", path, "--prime", "the ", "--stop", "e", "--stop", "qo", "--length", "99"]
    expected = model.sample(99, "the ", seeds=[3, 4], stop=["e", "qo"])
    for flags in ([], ["--stream"]):
        alone = [output(capsys, *arguments, "--seed", seed, *flags) for seed in "34"]
        assert alone == [text + "\n" for text in expected]
    lines = output(capsys, *arguments, "--seed", "3", "--num-samples", "2", "--json").splitlines()
    assert [json.loads(line)["text"] for line in lines] == expected


def test_escapes_stand_for_characters(model: CharLM, path: str, capsys: Capture) -> None:
    """In a prime and in stop strings, as in a document's mark."""
    arguments = ["sample", path, "--length", "99", "--seed", "3"]
    out = output(capsys, *arguments, "--prime", r"the\n\x61\u0062", "--stop", r"\n")
    assert out == model.sample(99, "the\nab", seed=3, stop="\n") + "\n"
    raw = output(capsys, *arguments, "--prime", "the\nab", "--stop", "\n")
    assert raw == out
    for option in ("--prime", "--stop"):
        error = refused(capsys, *arguments, option, r"a\\n")
        assert f"{option} has the character '\\\\' (U+005C) at position 1" in error


def test_a_penalty_and_a_window(model: CharLM, path: str, capsys: Capture) -> None:
    arguments = ["sample", path, "--length", "80", "--seed", "3", "--repetition-penalty", "1.5"]
    text = model.sample(80, seed=3, repetition_penalty=1.5)
    assert output(capsys, *arguments) == f"{text}\n"
    short = model.sample(80, seed=3, repetition_penalty=1.5, repetition_window=3)
    assert output(capsys, *arguments, "--repetition-window", "3") == f"{short}\n"
    assert text != short
    assert "must be finite, at least 1, got 0.5" in refused(capsys, *arguments[:-1], "0.5")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_person_sees_how_far_many_texts_are(
    model: CharLM, path: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    arguments = ["sample", path, "--length", "40", "--seed", "5", "--stop", "e", "--num-samples"]
    assert main([*arguments, "70"]) == 0
    texts = model.sample(40, seeds=range(5, 75), stop="e")
    assert capsys.readouterr().out == "\n".join(
        f"==> seed {5 + i} <==\n{text}\n" for i, text in enumerate(texts)
    )
    assert "/2.80k" in screen.getvalue(), "70 texts of 40 characters"
    screen.truncate(0)
    assert main([*arguments, "1"]) == 0
    assert screen.getvalue() == "", "one text has no bar"


def test_how_far_counts_the_characters_of_ended_texts(model: CharLM) -> None:
    from charrnn_fast.language.sampler import draw_texts

    for stop in (None, "e", ["q", "x"]):
        request = model.request(200, "", 1.0, None, None, stop, None)
        counts: list[int] = []
        list(draw_texts(model.rnn, model.vocabulary, request, range(70), counts.append))
        assert sum(counts) == 200 * 70
        assert min(counts) > 0


# ---- sample: beam search, choices ----


def test_the_likeliest_text(model: CharLM, path: str, capsys: Capture) -> None:
    arguments = ["sample", path, "--length", "20", "--prime", "the ", "--beam", "6"]
    for stops in ([], ["g", "qu"]):
        text, nats = model.beam_search(20, "the ", 6, stop=stops)
        flags = [flag for stop in stops for flag in ("--stop", stop)]
        assert main([*arguments, *flags]) == 0
        assert capsys.readouterr() == (f"{text}\n", f"log-probability {nats:.4f} nats\n")
        out = output(capsys, *arguments, *flags, "--json")
        assert json.loads(out) == {"log_probability": nats, "text": text}


@pytest.mark.parametrize(
    ("mode", "flags"),
    [
        ("--beam=3", ["--temperature", "0.5"]),
        ("--beam=3", ["--top-k", "2"]),
        ("--beam=3", ["--top-p", "0.5"]),
        ("--beam=3", ["--repetition-penalty", "2"]),
        ("--beam=3", ["--repetition-window", "5"]),
        ("--beam=3", ["--seed", "1"]),
        ("--beam=3", ["--num-samples", "2"]),
        ("--beam=3", ["--stream"]),
        ("--beam=3", ["--choices"]),
        ("--choices", ["--json"]),
        ("--choices", ["--stop", "e"]),
        ("--choices", ["--temperatures", "0.5,1"]),
        ("--choices", ["--num-samples", "2"]),
        ("--choices", ["--prime-file", "-"]),
    ],
)
def test_modes_refuse_what_has_no_part_in_them(
    capsys: Capture, mode: str, flags: list[str]
) -> None:
    """Before the model is read: there is none."""
    error = refused(capsys, "sample", "missing.safetensors", mode, *flags)
    assert f"{mode.split('=')[0]} " in error
    assert f"does not take {flags[0]}" in error


def chosen(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, lines: str, *arguments: str, seed: int = 3
) -> tuple[str, str]:
    give(monkeypatch, lines.encode())
    assert main(["sample", *arguments, "--choices", "--seed", str(seed)]) == 0
    out, err = capsys.readouterr()
    return out, err


def test_choices(
    model: CharLM, path: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [path, "--prime", "the ", "--temperature", "0.7"]
    out, err = chosen(capsys, monkeypatch, "", *arguments)
    assert out == "the \n"
    shares = model.next_probabilities("the ", temperature=0.7)
    order = np.argsort(-shares, kind="stable")[:10]
    rows = re.findall(r"^ ?(\d+) ('.*?')  *([\d.]+)% ?(#*)$", err, re.MULTILINE)
    assert [(int(n), name, share, len(bar)) for n, name, share, bar in rows] == [
        (
            n,
            ascii(model.vocabulary.decode([i])),
            f"{100 * shares[i]:.2f}",
            round(40 * shares[i]),
        )
        for n, i in enumerate(order.tolist(), 1)
    ]
    # Drawn alone: the text of sample. Back and drawn again: the same.
    drawn = model.sample(12, "the ", temperature=0.7, seed=3)
    for lines in ("d12\nq\n", "\n" * 12, "d5\nb3\n\nd9\n", "=ox\nb2\nd12\nb\nd\nq\n"):
        assert chosen(capsys, monkeypatch, lines, *arguments)[0] == f"{drawn}\n"
    likeliest = model.vocabulary.decode(
        [
            int(order[0]),
        ]
    )
    second = model.vocabulary.decode([int(order[1])])
    assert chosen(capsys, monkeypatch, "1\n", *arguments)[0] == f"the {likeliest}\n"
    assert chosen(capsys, monkeypatch, "2\n=fox\n", *arguments)[0] == f"the {second}fox\n"
    # What says nothing changes nothing, and says why.
    out, err = chosen(capsys, monkeypatch, "0\n11\nx\n=Q\nb-\nb5\n", *arguments)
    assert out == "the \n"
    assert err.count("no '") == 4
    assert "the text has the character 'Q' (U+0051) at position 0" in err
    # It ends with the length, and takes no more.
    out, err = chosen(capsys, monkeypatch, "=quick\n=qui\nd\nq\n", *arguments, "--length", "4")
    assert out.startswith("the qui")
    assert len(out) == len("the qui?\n")
    assert "the text must have 4 characters or fewer" in err


def test_an_interrupt_keeps_the_chosen_text(
    model: CharLM, path: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Keyboard:
        lines = iter(["=quick\n", "d3\n"])

        def readline(self) -> str:
            for line in self.lines:
                return line
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Keyboard())
    assert main(["sample", path, "--prime", "the ", "--choices"]) == 130
    out, err = capsys.readouterr()
    first, _, rest = err.partition("\n")
    assert first.startswith("seed ")  # with which the text can be drawn again
    assert rest.startswith("number: take that character")
    monkeypatch.undo()
    seed = int(first.removeprefix("seed "))
    again, err = chosen(capsys, monkeypatch, "=quick\nd3\n", path, "--prime", "the ", seed=seed)
    assert out == again
    assert len(out) == len("the quick???\n")
    assert "seed" not in err


def test_choices_of_bytes(byte_path: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = chosen(capsys, monkeypatch, "=é\n=a\n", byte_path)
    assert out == "éa\n"
    assert len(re.findall(r"^[ \d]\d 0x[0-9a-f]{2} ", err, re.MULTILINE)) == 30


def test_temperatures_stand_side_by_side(
    model: CharLM, path: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    arguments = ["sample", path, "--temperatures", "0.5,1", "--seed", "2", "--length", "100"]
    texts = [model.sample(100, temperature=t, seed=2) for t in (0.5, 1)]
    out = output(capsys, *arguments)
    titles = ["temperature 0.5", "temperature 1"]
    assert out.splitlines() == list(side_by_side(titles, texts, 60))
    twice = output(capsys, *arguments, "--num-samples", "2")
    assert twice.startswith(f"==> seed 2 <==\n{out}\n==> seed 3 <==\n")
    lines = output(capsys, *arguments, "--json", "--num-samples", "2").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"temperature": t, "seed": seed, "text": model.sample(100, temperature=t, seed=seed)}
        for seed in (2, 3)
        for t in (0.5, 1.0)
    ]


def test_a_prime_may_come_from_a_file(
    model: CharLM,
    path: str,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prime = tmp_path / "prime"
    prime.write_bytes(b"the dog\njumps\n")
    expected = model.sample(20, "the dog\njumps\n", seed=1) + "\n"
    arguments = ["sample", path, "--length", "20", "--seed", "1", "--prime-file"]
    assert output(capsys, *arguments, str(prime)) == expected
    give(monkeypatch, prime.read_bytes())
    assert output(capsys, *arguments, "-") == expected


def test_a_prime_of_a_byte_model_may_hold_anything(
    byte_model: CharLM, byte_path: str, tmp_path: Path, capsys: Capture
) -> None:
    prime = tmp_path / "prime"
    prime.write_bytes(b"a\xffb\xc3")
    arguments = ["--prime-file", str(prime), "--length", "0", "--seed", "1"]
    assert output(capsys, "sample", byte_path, *arguments) == "a\ufffdb\ufffd\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prime", "a", "--prime-file", "b"], "--prime-file: not allowed with argument --prime"),
        (["--prime-file", "{folder}/none"], "none: No such file or directory"),
        (["--prime-file", "{folder}"], ": this is a folder, not a file; name a file in it"),
        (["--prime-file", "{latin}"], "latin: invalid UTF-8 at byte 2 (0xfc: invalid start byte)"),
        (["--prime-file", "{other}"], "other has the character 'Q' (U+0051) at position 2"),
        (["--temperature", "1", "--temperatures", "1,2"], "not allowed with argument"),
        (["--temperatures", "1,x"], "--temperatures: invalid list of numbers value: '1,x'"),
        (["--temperatures", "1,-1"], "--temperatures: must be finite, at least 0, got -1.0"),
        (["--temperatures", ""], "--temperatures: invalid list of numbers value: ''"),
        (["--num-samples", "0"], "--num-samples: must be >= 1, got 0"),
        (
            ["--num-samples", "2", "--seed", str(2**64 - 1)],
            "--seed must be at most 18446744073709551614 with --num-samples 2, got",
        ),
        (
            ["--prime", "a\\q"],
            r"--prime: must have no escapes but \n \r \t \f \\ \xNN \uNNNN, got \q; write \\",
        ),
        (["--stop", "a\\"], r"--stop: must have no escapes but \n \r \t \f \\ \xNN \uNNNN, got \;"),
        (["--stop", r"\uD800"], r"--stop: \uD800 stands for half a character; type the character"),
        (["--stream", "--json"], "--stream writes characters, --json whole texts"),
        (["--stream", "--temperatures", "1"], "--stream writes characters, --temperatures whole"),
        (["--repetition-window", "5"], "--repetition-window needs a --repetition-penalty above 1"),
        (["--stop", ""], "--stop: must be one character or more, got ''"),
        (["--stop", "a", "--stop", "Q"], "--stop has the character 'Q' (U+0051) at position 0"),
        (
            ["--weight-dtype", "float64"],
            "--weight-dtype of a float32 model must be 'float32' or 'bfloat16' or 'int8'",
        ),
    ],
)
def test_sample_refuses(
    path: str, tmp_path: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    (tmp_path / "latin").write_bytes(b"an\xfc")
    (tmp_path / "other").write_text("anQ")
    names = {"folder": tmp_path, "latin": tmp_path / "latin", "other": tmp_path / "other"}
    given = [argument.format(**names) for argument in arguments]
    assert message in refused(capsys, "sample", path, *given)


def test_the_largest_seeds_are_taken(model: CharLM, path: str, capsys: Capture) -> None:
    arguments = ["--num-samples", "2", "--seed", str(2**64 - 2), "--length", "5", "--json"]
    lines = output(capsys, "sample", path, *arguments).splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [2**64 - 2, 2**64 - 1]


# ---- columns ----


def test_columns_keep_to_the_width_and_lose_no_character() -> None:
    texts = [TEXT * 2, "x" * 100 + "\n\n    return  self", "", "日本語のテキスト。" * 9, "é" * 40]
    titles = [f"title {i}" for i in range(len(texts))]
    for width in (2, 5, 16, 35, 54, 80, 200):
        lines = list(side_by_side(titles, texts, width))
        wide = "日本語のテキスト。"
        assert all(len(line) + sum(c in wide for c in line) <= max(2, width) for line in lines)
        shown = sorted("".join(lines).replace(" ", "").replace("|", "").replace("-", ""))
        assert shown == sorted("".join([*titles, *texts]).replace(" ", "").replace("\n", ""))


def test_columns_break_at_spaces_and_stand_below_each_other_where_there_is_no_room() -> None:
    lines = list(side_by_side(["a", "b", "c"], ["one two three", "    indented\n", "x\ty\x1b"], 40))
    assert lines == [
        "a                  | b",
        "------------------ | ------------------",
        "one two three      |     indented",
        "                   |",
        "",
        "c",
        "------------------",
        "x   y\ufffd",
    ]
    assert list(side_by_side(["t"], ["one two threefour five"], 9))[2:] == [
        "one two",
        "threefour",
        "five",
    ]
    assert list(side_by_side(["t"], ["        longer"], 10))[2:] == ["        lo", "nger"]


# ---- eval ----


def test_eval_measures_each_file_as_a_stream_of_its_own(
    model: CharLM, path: str, tmp_path: Path, capsys: Capture
) -> None:
    contents = {"first": TEXT * 3, "second": "fox", "third": "a" * 2000}
    files = [tmp_path / name for name in contents]
    for file, content in zip(files, contents.values(), strict=True):
        file.write_text(content)
    losses = [model.evaluate(content) for content in contents.values()]
    predicted = [len(content) - 1 for content in contents.values()]
    nats = [loss * n for loss, n in zip(losses, predicted, strict=True)]
    out = output(capsys, "eval", path, *map(str, files), "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["file"] for record in records] == [*map(str, files), None]
    assert [record["predicted"] for record in records] == [*predicted, sum(predicted)]
    assert [r["characters"] for r in records] == [*(n + 1 for n in predicted), sum(predicted) + 3]
    assert [r["nats"] for r in records] == pytest.approx([*nats, sum(nats)])
    means = [*losses, sum(nats) / sum(predicted)]
    assert [r["nats_per_character"] for r in records] == pytest.approx(means)
    assert [r["bits_per_character"] for r in records] == pytest.approx(np.divide(means, np.log(2)))
    assert [r["perplexity"] for r in records] == pytest.approx(np.exp(means))
    table = output(capsys, "eval", path, *map(str, files)).splitlines()
    assert table[0].split() == ["file", "characters", "nats/char", "bits/char", "perplexity"]
    for line, record in zip(table[1:], records, strict=True):
        assert line.split() == [
            record["file"] or "total",
            f"{record['characters']:,}",
            f"{record['nats_per_character']:.4f}",
            f"{record['bits_per_character']:.4f}",
            f"{record['perplexity']:.4f}",
        ]
    assert len({len(line) for line in table}) == 1
    one = output(capsys, "eval", path, str(files[0])).splitlines()
    assert [line.split() for line in one] == [line.split() for line in table[:2]]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_eval_reads_weights_as_asked(
    model: CharLM, path: str, tmp_path: Path, capsys: Capture, dtype: str
) -> None:
    (tmp_path / "text").write_text(TEXT)
    arguments = ["eval", path, str(tmp_path / "text"), "--json", "--weight-dtype", dtype]
    record = json.loads(output(capsys, *arguments).splitlines()[0])
    expected = model.evaluate(TEXT, weight_dtype=dtype)
    assert record["nats_per_character"] == pytest.approx(expected)
    assert expected != model.evaluate(TEXT)


def test_eval_learns_from_each_file_afresh(
    model: CharLM, path: str, tmp_path: Path, capsys: Capture
) -> None:
    texts = {"a": TEXT * 4, "b": "a lazy fox\n" * 9}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    files = [str(tmp_path / name) for name in texts]
    statistics = tmp_path / "training"
    statistics.write_text("over the brown dog\n" * 5)
    for flags, dynamic in (
        (["--dynamic", "0.05"], Dynamic(0.05)),
        (["--dynamic", "0.05,0.1", "--dynamic-segment", "7"], Dynamic(0.05, 0.1, 7)),
        (
            ["--dynamic", "1e-3,0.02", "--dynamic-statistics", str(statistics)],
            Dynamic(1e-3, 0.02, statistics=statistics.read_text()),
        ),
    ):
        out = output(capsys, "eval", path, *files, "--json", *flags)
        losses = [json.loads(line)["nats_per_character"] for line in out.splitlines()[:2]]
        assert losses == [model.evaluate(text, dynamic=dynamic) for text in texts.values()]
        assert losses != [model.evaluate(text) for text in texts.values()]
    assert output(capsys, "eval", path, *files, "--json", *flags) == out
    # Documents, as without learning, from the zero state.
    mark = ["--document-mark", r"\n"]
    still = output(capsys, "eval", path, *files, "--json", *mark, "--dynamic", "0")
    plain = output(capsys, "eval", path, *files, "--json", *mark)
    for one, other in zip(still.splitlines(), plain.splitlines(), strict=True):
        assert json.loads(one)["nats"] == pytest.approx(json.loads(other)["nats"], rel=1e-5)


def test_statistics_are_read_as_the_texts(
    model: CharLM, path: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text, known = "the fox\n" * 9, "over the brown dog\n" * 5
    Path("text").write_text(text, encoding="utf-16")
    Path("folder").mkdir()
    for name, part in (("a", known[:40]), ("b", known[40:])):
        Path("folder", name).write_text(f"{part}É", encoding="utf-16")
    dynamic = Dynamic(1e-3, 0.02, statistics=known)
    flags = ["--dynamic", "1e-3,0.02", "--dynamic-statistics", "folder"]
    evaluate = ["eval", path, "text", "--encoding", "utf-16", "--json", *flags]
    assert "the character 'É' (U+00C9) at position 40" in refused(capsys, *evaluate)
    out = output(capsys, *evaluate, "--allow-unknown")
    loss = json.loads(out.splitlines()[0])["nats_per_character"]
    assert loss == model.evaluate(text, dynamic=dynamic)
    Path("known").write_text(f"{known}É")
    prime = TEXT * 3
    sample = ["sample", path, "--prime", prime, "--seed", "3", "--length", "30", *flags[:-1]]
    assert "the character 'É'" in refused(capsys, *sample, "known")
    adapted = model.adapted(prime, dynamic)
    drawn = output(capsys, *sample, "known", "--allow-unknown")
    assert drawn == f"{adapted.sample(30, prime, seed=3)}\n"


def test_sample_learns_from_the_prime(model: CharLM, path: str, capsys: Capture) -> None:
    prime = TEXT * 3
    arguments = ["sample", path, "--prime", prime, "--length", "30", "--seed", "3"]
    adapted = model.adapted(prime, Dynamic(0.1, 0.01))
    text = adapted.sample(30, prime, seed=3)
    assert output(capsys, *arguments, "--dynamic", "0.1,0.01") == f"{text}\n"
    assert text != model.sample(30, prime, seed=3)
    likeliest, _ = adapted.beam_search(30, prime, 3)
    arguments = [*arguments[:-2], "--beam", "3", "--dynamic", "0.1,0.01"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{likeliest}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "a", "--dynamic", "0.1,2"], "the decay must be finite, at least 0, at most 1"),
        (["eval", "a", "--dynamic", "-1"], "the learning rate must be finite, at least 0, got -1"),
        (["eval", "a", "--dynamic", "0.1,0.1,1"], "argument --dynamic: invalid learning rate"),
        (["eval", "a", "--dynamic-segment", "3"], "--dynamic-segment needs --dynamic LR,DE"),
        (
            ["eval", "a", "--dynamic", "1", "--weight-dtype", "int8"],
            "--dynamic and --weight-dtype exclude each other",
        ),
        (["sample", "--dynamic", "0.1", "--prime", "a"], "--prime of 2 characters or more"),
        (
            ["sample", "--dynamic", "0.1", "--dynamic-statistics", "gone"],
            "--prime of 2 characters or more",
        ),
        # Before any text is read: there is none.
        (["eval", "gone", "--dynamic-statistics", "b"], "--dynamic-statistics needs --dynamic LR"),
        (["eval", "--test", "--dynamic-segment", "3"], "--dynamic-segment needs --dynamic LR"),
        (["sample", "--prime-file", "gone", "--dynamic-segment", "3"], "segment needs --dynamic"),
        (
            ["eval", "gone", "--dynamic", "1", "--weight-dtype", "int8"],
            "--dynamic and --weight-dtype exclude each other",
        ),
    ],
)
def test_dynamic_refuses(
    path: str, model: CharLM, tmp_path: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    (tmp_path / "a").write_text(TEXT)
    command, *others = (str(tmp_path / "a") if part == "a" else part for part in arguments)
    if command == "sample":
        others = arguments[1:]
    assert message in refused(capsys, command, path, *others)


def test_eval_that_diverges_fails(
    path: str, model: CharLM, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "a").write_text(TEXT * 9)
    assert main(["eval", path, str(tmp_path / "a"), "--json", "--dynamic", "3e38"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(r"diverged at position \d+: .* try a smaller learning rate\n$", err)


def test_eval_of_bytes(byte_model: CharLM, byte_path: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "text").write_text("dé")
    lines = output(capsys, "eval", byte_path, str(tmp_path / "text")).splitlines()
    assert lines[0].split() == ["file", "bytes", "nats/byte", "bits/byte", "perplexity"]
    assert lines[1].split()[1:3] == ["3", f"{byte_model.evaluate('dé'):.4f}"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("other", b"the Q", "other has the character 'Q' (U+0051) at position 4"),
        ("empty", b"", "the text is empty: "),
        ("one", b"a", "one must have 2 characters or more, got 1"),
        ("latin", b"a\xfc", "latin: invalid UTF-8 at byte 1"),
    ],
)
def test_eval_looks_at_every_file_before_it_measures_one(
    path: str, tmp_path: Path, capsys: Capture, name: str, content: bytes, message: str
) -> None:
    (tmp_path / "good").write_text(TEXT)
    (tmp_path / name).write_bytes(content)
    error = refused(capsys, "eval", path, str(tmp_path / "good"), str(tmp_path / name))
    assert message in error
    assert str(tmp_path / name) in error


# ---- score ----

LINES = ["the fox", "", "lazy dog", "q" * 3000, "the fox"]
INPUT = "\n".join(LINES).encode() + b"\n"


def scores(capsys: Capture, *arguments: str) -> list[str]:
    return output(capsys, "score", *arguments).splitlines()


def test_score_gives_each_line_its_log_probability(
    model: CharLM, path: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wholes = model.score([line + "\n" for line in LINES])
    lengths = np.array([len(line) + 1 for line in LINES])
    for flags, expected in (
        ([], wholes),
        (["--mean"], wholes / lengths),
        (["--bits"], wholes / math.log(2)),
        (["--mean", "--bits"], wholes / lengths / math.log(2)),
        (["--no-newline"], model.score(LINES)),
    ):
        give(monkeypatch, INPUT)
        assert scores(capsys, path, *flags) == [f"{score:.6f}" for score in expected]
    give(monkeypatch, INPUT[:-1])  # the last line need not be ended
    assert scores(capsys, path) == [f"{score:.6f}" for score in wholes]
    give(monkeypatch, b"")
    assert scores(capsys, path) == []


def test_score_as_json_has_it_all(
    model: CharLM, path: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, INPUT)
    records = [json.loads(line) for line in scores(capsys, path, "--json")]
    wholes = model.score([line + "\n" for line in LINES]).tolist()
    for number, (line, nats, record) in enumerate(zip(LINES, wholes, records, strict=True), 1):
        n = len(line) + 1
        assert record == {
            "line": number,
            "characters": n,
            "nats": nats,
            "bits": nats / math.log(2),
            "nats_per_character": nats / n,
            "bits_per_character": nats / n / math.log(2),
            "text": line,
        }


def test_a_line_of_nothing_has_no_mean(
    path: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    give(monkeypatch, b"\n")
    assert scores(capsys, path, "--no-newline", "--mean") == ["nan"]
    give(monkeypatch, b"\n")
    (line,) = scores(capsys, path, "--no-newline", "--json")
    assert (json.loads(line)["nats"], json.loads(line)["nats_per_character"]) == (0, None)


def test_lines_end_at_newlines_alone(
    byte_model: CharLM, byte_path: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = "a\r\u2028\x0bb\x00\né".encode() + b"\xff"
    give(monkeypatch, data)
    first, second = data.split(b"\n")
    ids = [byte_model.vocabulary.encode(line + b"\n") for line in (first, second)]
    expected = [f"{score:.6f}" for score in byte_model.score_ids(ids)]
    assert scores(capsys, byte_path) == expected


@pytest.mark.parametrize("block", [1, 5, 64])
def test_how_lines_arrive_does_not_show(
    path: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    give(monkeypatch, INPUT)
    expected = scores(capsys, path, "--json")
    monkeypatch.setattr("charrnn_fast.cli.score._BLOCK", block)
    give(monkeypatch, INPUT)
    assert scores(capsys, path, "--json") == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"lazy Q dog", "standard input, line 3, column 6: the character 'Q' (U+0051) is not "),
        (b"an\xfc", "standard input, line 3, byte 3: invalid UTF-8 (0xfc: invalid start byte)"),
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 16])
def test_a_line_that_cannot_be_spelled(
    model: CharLM,
    path: str,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    line: bytes,
    message: str,
    block: int,
) -> None:
    """An error, once the lines before it have their scores; or the probability 0."""
    monkeypatch.setattr("charrnn_fast.cli.score._BLOCK", block)
    data = b"the\nfox\n" + line + b"\ndog\n"
    give(monkeypatch, data)
    assert main(["score", path]) == 2
    out, err = capsys.readouterr()
    the, fox, dog = (f"{score:.6f}" for score in model.score(["the\n", "fox\n", "dog\n"]))
    assert out.split() == [the, fox]
    assert message in err
    assert err.count("\n") == 1
    for flags in ([], ["--mean"]):
        give(monkeypatch, data)
        assert scores(capsys, path, "--allow-unknown", *flags)[2] == "-inf"
    give(monkeypatch, data)
    assert scores(capsys, path, "--allow-unknown") == [the, fox, "-inf", dog]
    give(monkeypatch, data)
    record = json.loads(scores(capsys, path, "--allow-unknown", "--json")[2])
    assert (record["characters"], record["nats"]) == (None, None)


def test_score_refuses_what_makes_no_sense(
    path: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "leave out --mean" in refused(capsys, "score", path, "--json", "--mean")
    assert "leave out --bits" in refused(capsys, "score", path, "--json", "--bits")
    other = CharLM(Vocabulary.from_text("helo"), 5, seed=1)
    other.save(tmp_path / "other")
    error = refused(capsys, "score", str(tmp_path / "other"))
    assert "has no newline, so that no line can end: give --no-newline" in error
    give(monkeypatch, b"hello\n")
    expected = f"{other.score(['hello'])[0]:.6f}"
    assert scores(capsys, str(tmp_path / "other"), "--no-newline") == [expected]


@pytest.mark.parametrize("arguments", [["score"], ["sample", "--prime-file", "-"]])
def test_a_closed_standard_input_is_told(
    path: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert "the standard input is closed" in refused(capsys, *arguments, path)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
def test_score_answers_each_line_before_the_next_is_written(model: CharLM, path: str) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([*COMMAND, "score", path], stdin=pipe, stdout=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in ("the fox", "", "lazy dog"):
            process.stdin.write(line[:2].encode())
            process.stdin.flush()
            process.stdin.write(line[2:].encode() + b"\n")
            process.stdin.flush()
            assert float(process.stdout.readline()) == round(model.score([line + "\n"])[0], 6)
        process.stdin.close()
        assert process.stdout.read() == b""
        assert process.wait(60) == 0
