"""Input files other than checkpoints and logs: devices, pipes, standard input, large and deep
files, byte order marks."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from charrnn_fast import CharLM, Corpus, Trainer, Vocabulary
from charrnn_fast.bench.errors import BenchError
from charrnn_fast.bench.results import Run
from charrnn_fast.cli import main
from charrnn_fast.storage import checkpoint, input_files
from marks import slow_but

TEXT = "the quick brown fox jumps over the lazy dog\n" * 40
MARK = b"\xef\xbb\xbf"
SMALL = ["--hidden-size", "8", "--num-layers", "1", "--batch-size", "4", "--seq-len", "16"]
SMALL += ["--steps", "6", "--sample-length", "0"]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs pipes and devices")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    CharLM(Vocabulary.from_text(TEXT), 8, 1, seed=1).save(path)
    return str(path)


@pytest.fixture
def zero(tmp_path: Path) -> Path:
    """A device without end of our own."""
    path = tmp_path / "zero"
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
        path.open("rb").close()
    except OSError as error:
        pytest.skip(f"a device takes permissions: {error}")
    return path


@contextmanager
def pipe(path: Path, data: bytes) -> Iterator[str]:
    """A named pipe that somebody writes data to, once."""
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_bytes, args=(data,))
    thread.start()
    yield str(path)
    thread.join(20)
    assert not thread.is_alive()


def run(*arguments: object, data: bytes | None = b"", closed: bool = False) -> tuple[int, str, str]:
    """The command in a process of its own: exit status, output, error."""
    command = [sys.executable, "-m", "charrnn_fast", *map(str, arguments)]
    if closed:
        command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(list(map(str, arguments))) == 2
    error = capsys.readouterr().err
    assert error.startswith("charrnn-fast: error: ") and error.count("\n") == 1
    return error


# ---- devices, and files that are too large ----


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "{text}", "-o", "{out}", "--config", "{zero}"],
        ["train", "{zero}", "-o", "{out}"],
        ["train", "{text}", "-o", "{out}", "--init-from", "{zero}"],
        ["sample", "{zero}"],
        ["sample", "{model}", "--prime-file", "{zero}"],
        ["info", "{zero}"],
        ["eval", "{model}", "{zero}"],
        ["view", "{model}", "{zero}", "-o", "{out}"],
        ["plot", "{zero}", "-o", "{out}.png"],
        ["bench", "--text", "{zero}", "--quick", "train"],
        ["bench", "--compare", "{zero}", "--quick"],
    ],
)
def test_a_device_is_not_read(
    tmp_path: Path,
    zero: Path,
    model: str,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    text = tmp_path / "text"
    text.write_text(TEXT)
    names = {"zero": zero, "model": model, "text": text, "out": tmp_path / "out"}
    error = refused(capsys, *(argument.format(**names) for argument in arguments))
    assert f"{zero} is a device, not a file" in error or f"{zero} is no result" in error


def test_the_null_device_is_an_empty_file(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sample", model, "--prime-file", os.devnull, "--seed", "1", "--length", "5"]
    assert main(arguments) == 0
    assert len(capsys.readouterr().out) == 6


def test_files_that_are_read_whole_have_a_largest_size(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"#" * 1_000_001)
    error = refused(capsys, "train", "x", "-o", tmp_path / "out", "--config", path)
    assert f"{path} has more than 1,000,000 bytes, too many for settings" in error
    monkeypatch.setattr("charrnn_fast.cli.sample._LONGEST_PRIME", 99)
    error = refused(capsys, "sample", model, "--prime-file", path)
    assert f"{path} has more than 99 bytes, too many for a prime" in error
    monkeypatch.setattr("charrnn_fast.cli.score._LONGEST", 99)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a" * 200)))
    error = refused(capsys, "score", model)
    assert "standard input has a line of more than 99 bytes" in error


def test_reading_takes_no_more_memory_than_there_is_to_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    for most, expected in ((2, b"ab"), (2**62, b"abc")):
        with (tmp_path / "file").open("rb") as file:
            assert input_files.read_at_most(file, most) == expected
    with pipe(tmp_path / "pipe", b"x" * 200_000) as path, open(path, "rb") as file:
        assert input_files.read_at_most(file, 100_000) == b"x" * 100_000
        assert len(input_files.read_at_most(file, 2**62)) == 100_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 100_000, "is no TOML file: it is too deep"),
        ("text = " + "{a = " * 30_000, "is no TOML file: it is too deep"),
        ("seq_len = " + "9" * 5000, "is no TOML file: Exceeds the limit"),
        (
            "seq_len = 0x" + "f" * 5000,
            "seq_len: must be a valid integer, got an integer of 20000 bi",
        ),
        ("seq_len = nan", "seq_len: must be a valid integer, got nan"),
        ("learning_rate = nan", "learning_rate: must be finite, above 0, got nan"),
        ("seq_len = 1979-05-27", "seq_len: must be a valid integer, got datetime.date"),
        ("cell = 1979-05-27", "cell: must be one of rnn, gru"),
        ("log = 1979-05-27", "log: must be .* got datetime.date"),
        ("cell = ['lstm']", "cell: must be one of rnn, gru, .* got ['lstm']"),
        ("zoneout = [[0.1]]", "zoneout: must be a valid number, or two, got [[0.1]]"),
        ("zoneout = ['0.1', true]", "zoneout: must be a valid number, or two"),
        ("layer_norm = 1", "layer_norm: must be true or false, got 1"),
        ("text = [[1]]", "text: must be paths, got [[1]]"),
        ("[dropout]\nx = 1", "dropout: must be a valid number, got {'x': 1}"),
    ],
)
def test_settings_of_other_types_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    error = refused(capsys, "train", "x", "-o", tmp_path / "out", "--config", path)
    for part in message.split(" .* "):
        assert part in error
    assert len(error) < 1000


# ---- byte order marks ----


def test_a_byte_order_mark_is_no_part_of_any_text(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(data: bytes) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main(["score", model, "--json"]) == 0
        return capsys.readouterr().out

    assert score(MARK + b"the dog\nfox\n") == score(b"the dog\nfox\n")
    prime, config, text = (tmp_path / name for name in ("prime", "config", "text"))
    prime.write_bytes(MARK + b"the ")
    arguments = ["--length", "5", "--seed", "1"]
    assert main(["sample", model, "--prime-file", str(prime), *arguments]) == 0
    marked = capsys.readouterr().out
    assert main(["sample", model, "--prime", "the ", *arguments]) == 0
    assert marked == capsys.readouterr().out
    prime.write_bytes(MARK + b"the \xff")
    assert "prime: invalid UTF-8 at byte 7 (0xff: " in refused(
        capsys, "sample", model, "--prime-file", prime
    )
    config.write_bytes(MARK + b"hidden_size = 4\nnum_layers = 1\nsteps = 1\nseq_len = 8\n")
    text.write_bytes(MARK + TEXT.encode())
    out = tmp_path / "out"
    assert main(["train", str(text), "-o", str(out), "--config", str(config)]) == 0
    assert CharLM.load(out).vocabulary == Vocabulary.from_text(TEXT)


def test_bytes_keep_their_mark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bytes"
    model = CharLM(Vocabulary.from_bytes(), 4, 1, seed=1)
    model.save(path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(MARK + b"a\n")))
    assert main(["score", str(path)]) == 0
    expected = model.score(["\N{ZERO WIDTH NO-BREAK SPACE}a\n"])[0]
    assert capsys.readouterr().out == f"{expected:.6f}\n"


# ---- pipes and the standard input ----


def test_a_pipe_is_a_text(tmp_path: Path) -> None:
    data = TEXT.encode()
    file = tmp_path / "file"
    file.write_bytes(MARK + data)
    for name, vocabulary in (("characters", None), ("bytes", Vocabulary.from_bytes())):
        expected = Corpus.from_files(file, vocabulary=vocabulary)
        with pipe(tmp_path / name, MARK + data) as path:
            corpus = Corpus.from_files(path, vocabulary=vocabulary)
        assert corpus.fingerprint == expected.fingerprint
        with pipe(tmp_path / f"{name} after a file", data) as path:
            both = Corpus.from_files(file, path, vocabulary=vocabulary, document_mark="")
        assert both.starts_within(0, len(both)).tolist() == [len(expected)]
    with (
        pipe(tmp_path / "wrong", b"ab\xff") as path,
        pytest.raises(ValueError, match=r"wrong: invalid UTF-8 at byte 2 "),
    ):
        Corpus.from_files(path)
    with pipe(tmp_path / "empty", b"") as path, pytest.raises(ValueError, match="text is empty: "):
        Corpus.from_files(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is named twice, and can be read once only"):
        Corpus.from_files(tmp_path / "pipe", file, tmp_path / "pipe")


def test_training_on_the_standard_input_is_training_on_its_text(tmp_path: Path) -> None:
    file, data = tmp_path / "file", TEXT.encode()
    file.write_bytes(data)
    settings = [*SMALL, "--encoding", "ascii", "--document-mark", r"\n"]
    outs = [tmp_path / "of-file", tmp_path / "of-input", tmp_path / "of-pipe"]
    assert main(["train", str(file), "-o", str(outs[0]), *settings]) == 0
    assert run("train", "-", "-o", outs[1], *settings, data=data)[0] == 0
    with pipe(tmp_path / "pipe", data) as path:
        assert main(["train", path, "-o", str(outs[2]), *settings]) == 0
    trained = [checkpoint.read(out) for out in outs]
    names = [
        config["training"]["configuration"]["charrnn-fast train"]["text"] for _, config in trained
    ]
    assert names == [[str(file)], ["-"], [path]]
    for tensors, config in trained:
        assert config["training"]["corpus"] == trained[0][1]["training"]["corpus"]
        assert {n: t.tobytes() for n, t in tensors.items()} == {
            n: t.tobytes() for n, t in trained[0][0].items()
        }


def test_a_text_that_could_be_read_once_has_to_be_given_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "out", TEXT.encode()
    assert run("train", "-", "-o", out, *SMALL, data=data)[0] == 0
    again = ["train", "-o", out, "--resume", "--steps", "8"]
    error = refused(capsys, *again)
    assert f"{out} was trained on a text from standard input, which could be read once" in error
    assert f"give it again: charrnn-fast train TEXT -o {out} --resume" in error
    status, _, error = run("train", "-", *again[1:], data=data[:-44])
    assert status == 2 and ", got 1716 (fingerprint " in error
    status, output, _ = run("train", "-", *again[1:], data=data)
    assert status == 0 and "6 steps are done" in output
    assert Trainer.resume(out).num_steps == 8
    with pipe(tmp_path / "pipe", data) as path:
        assert main(["train", path, "-o", str(out), "--overwrite", *SMALL]) == 0
    capsys.readouterr()
    assert f"was trained on a text from {path}, which could be" in refused(capsys, *again)
    os.unlink(path)
    assert f"{path} is not there" in refused(capsys, *again)


@pytest.mark.parametrize(
    "command",
    slow_but(
        ["train - -o {out}"], ["train - -o {out}", "eval {model} -", "view {model} - -o {out}"]
    ),
)
def test_a_standard_input_that_is_empty_closed_or_named_twice(
    tmp_path: Path, model: str, command: str
) -> None:
    given = [part.format(out=tmp_path / "out", model=model) for part in command.split()]
    at = given.index("-")
    assert run(*given) == (2, "", "charrnn-fast: error: the text is empty: standard input\n")
    status, output, error = run(*given, closed=True, data=None)
    assert (status, output) == (2, "")
    assert error == "charrnn-fast: error: the standard input is closed\n"
    twice = "charrnn-fast: error: standard input is named twice, and can be read once only\n"
    assert run(*given[:at], "-", *given[at:]) == (2, "", twice)
    assert not (tmp_path / "out").exists()


def test_eval_and_view_read_pipes_once(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file, data = tmp_path / "file", TEXT.encode()
    file.write_bytes(data)
    assert main(["eval", model, str(file), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out.splitlines()[0])
    with pipe(tmp_path / "pipe", data) as path:
        assert main(["eval", model, path, str(file), "--json"]) == 0
    of_pipe, of_file, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert of_file == expected
    assert of_pipe == {**expected, "file": path}
    status, output, _ = run("eval", model, "-", "--json", data=data)
    assert status == 0
    assert json.loads(output.splitlines()[0]) == {**expected, "file": "-"}
    status, output, _ = run("view", model, "-", "-o", tmp_path / "page.html", data=data)
    assert status == 0
    assert "standard input" in (tmp_path / "page.html").read_text()


def test_a_checkpoint_may_come_through_a_pipe(tmp_path: Path, model: str) -> None:
    data = Path(model).read_bytes()
    with pipe(tmp_path / "pipe", data) as path:
        assert CharLM.load(path).vocabulary == CharLM.load(model).vocabulary
    with (
        pipe(tmp_path / "more", data + b"x") as path,
        pytest.raises(checkpoint.CheckpointError, match="more is damaged"),
    ):
        CharLM.load(path)


# ---- results of benchmarks ----


def spread() -> dict[str, Any]:
    return {"median": 1.0, "q1": 1.0, "q3": 1.0, "min": 1.0, "max": 1.0, "count": 1}


def a_run() -> dict[str, Any]:
    row = {
        "suite": "gemm",
        "case": "1,2,3",
        "threads": 1,
        "unit": "product",
        "seconds": spread(),
        "cores": 1.0,
        "characters_per_second": None,
        "flops": 1.0,
        "intensity": 1.0,
        "weight_bytes": 1,
        "limit": "fma",
        "peak": 1.0,
        "share": spread(),
        "efficiency": spread(),
        "free": 1.0,
        "peers": {
            "numpy": {"seconds": spread(), "ratio": spread(), "cores": 1.0, "preparation": 0.0}
        },
        "notes": [],
        "target": None,
        "reached": {},
    }
    facts: dict[str, Any] = {"machine": {}, "settings": {}, "peers": {}, "unavailable": {}}
    return {"format": 1, **facts, "peaks": {}, "rows": [row]}


def test_a_result_of_a_benchmark_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(a_run()))
    assert Run.read(path).rows[0].peers["numpy"].cores == 1.0
    run = Run.read(path)
    run.write(path)
    assert Run.read(path) == run
    wrong: Any
    for wrong in (None, "1", True, -1, 10**400, [], {"x": 1}):
        for key in a_run()["rows"][0]:
            right: list[tuple[str, Any]] = [
                ("target", None),
                ("target", -1),
                ("characters_per_second", None),
            ]
            right += [("notes", []), *((name, "1") for name in ("suite", "case", "unit"))]
            if (key, wrong) in right and type(wrong) is not bool:
                continue
            changed = a_run()
            changed["rows"][0][key] = wrong
            path.write_text(json.dumps(changed))
            with pytest.raises(BenchError, match=rf"run.json is no result .*rows\.0\.{key}"):
                Run.read(path)
    for text, message in (
        ("[" * 100_000, "more than 32 deep"),
        ('{"format": true}', "no result of a benchmark of format 1"),
        ('{"format": 1, "rows": NaN}', "NaN is no JSON"),
        ("[]", "no result of a benchmark of format 1"),
    ):
        path.write_text(text)
        with pytest.raises(BenchError, match=message):
            Run.read(path)
