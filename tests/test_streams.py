"""The standard streams: missing, broken, terminals; and interrupts while the command starts."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from pathlib import Path
from subprocess import PIPE
from typing import Any

import numpy as np
import pytest

from charrnn_fast import CharLM, Corpus, Trainer, Vocabulary
from charrnn_fast.callbacks import Callback, Evaluation, Update
from charrnn_fast.cli import main
from charrnn_fast.log import JsonLog
from charrnn_fast.storage import checkpoint, streams
from charrnn_fast.training import log, progress
from charrnn_fast.training.resume import best_path

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
SMALL = ["--hidden-size", "8", "--num-layers", "1", "--batch-size", "6", "--seq-len", "20"]
EPOCH = 6  # updates
COMMAND = [sys.executable, "-m", "charrnn_fast"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}

needs_posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX descriptors and signals")

# What a terminal obeys, or what reorders or hides the rest of a line.
HOSTILE = "\x00\x07\x08\r\x0b\x1b\x7f\x85\x90\x9b\x9d\u200e\u202e\u2028\u2066\U000e0041"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    CharLM(Vocabulary.from_text(TEXT), 8, 1, seed=1).save(path)
    return path


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    corpus = Corpus.from_text(TEXT)
    model = CharLM(corpus.vocabulary, 8, 1, seed=1)
    return Trainer(
        model, corpus, 6, 20, checkpoint_path=folder / "m", callbacks=callbacks, **options
    )


def weights(path: Path) -> bytes:
    tensors = CharLM.load(path).rnn.parameters()
    return b"".join(tensors[name].tobytes() for name in sorted(tensors))


# ---- Missing ----

RUN = """
import json, sys
from charrnn_fast.__main__ import main
statuses = []
for arguments in json.loads(sys.argv[1]):
    try:
        statuses.append(main(arguments))
    except SystemExit as stop:
        statuses.append(stop.code)
with open(sys.argv[2], "w") as file:
    json.dump(statuses, file)
"""


@pytest.mark.slow
@needs_posix
def test_a_stream_that_is_closed_is_silent(tmp_path: Path, text: Path, model: Path) -> None:
    """Every command does its work, and nothing that it writes goes anywhere else."""
    shutil.copy(model, tmp_path / "m")
    bench = ["bench", "gemm", "--quick", "--cases", "4,4,4", "--threads", "1", "--blocks", "1"]
    commands: list[tuple[list[str], int]] = [
        (["train", str(text), "-o", "out/a", "--epochs", "1", *SMALL], 0),
        (["train", str(text), "-o", "out/a", "--resume", "--epochs", "2"], 0),
        (["sample", "m", "--seed", "3", "--length", "40"], 0),
        (["eval", "m", str(text)], 0),
        (["info", "m"], 0),
        (["view", "m", str(text), "-o", "out/page.html"], 0),
        (["plot", "out/a.jsonl", "-o", "out/curves.svg"], 0),
        ([*bench, "--peers", "--json", "out/bench.json"], 0),
        (["--help"], 0),
        (["sample", "--help"], 0),
        (["--version"], 0),
        (["info", "missing"], 2),
        (["sample", "m", "--bad"], 2),
        (["score", "m"], 0),
    ]
    arguments = json.dumps([command for command, _ in commands])

    def run(closed: str) -> tuple[list[int], str, str, dict[str, bytes]]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", RUN]
        done = subprocess.run(
            [*shell, arguments, "statuses"],
            input="the\n",
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=ENVIRONMENT,
        )
        assert done.returncode == 0, done.stderr
        statuses = json.loads((tmp_path / "statuses").read_text())
        files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        return statuses, done.stdout, done.stderr, files

    expected = [status for _, status in commands]
    statuses, out, error, files = run("")
    assert statuses == expected
    assert "validation loss" in out and "missing: No such file" in error
    fixed = {"a", "a.best", "page.html"}  # the others have times in them
    assert fixed | {"a.jsonl", "curves.svg", "bench.json"} == set(files)
    for closed in (">&-", "2>&-", "<&-", "<&- >&- 2>&-"):
        without_input = [*expected[:-1], 2] if "<&-" in closed else expected
        statuses, its_out, its_error, its_files = run(closed)
        assert statuses == without_input, closed
        assert bool(its_out) == (">&-" not in closed.split())
        assert bool(its_error) == ("2>&-" not in closed)
        assert "Traceback" not in its_error
        assert ("the standard input is closed" in its_error) == (closed == "<&-")
        assert {n: its_files[n] for n in fixed} == {n: files[n] for n in fixed}
        assert set(its_files) == set(files)
        for name in ("a.jsonl", "bench.json", "curves.svg"):
            assert b"error" not in its_files[name] and b"validation loss" not in its_files[name]
        for line in its_files["a.jsonl"].splitlines():
            json.loads(line)


SETTLE = """
import os, sys
from charrnn_fast.storage import streams
streams.settle()
file = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
null = os.stat(os.devnull)
same = [os.path.samestat(os.fstat(descriptor), null) for descriptor in range(3)]
os.write(file, repr((file > 2, *same)).encode())
"""


@needs_posix
@pytest.mark.parametrize(
    ("closed", "expected"),
    [("<&- >&- 2>&-", (True, True, True)), ("2>&-", (False, False, True))],
)
def test_no_file_takes_the_number_of_a_closed_stream(
    tmp_path: Path, closed: str, expected: tuple[bool, ...]
) -> None:
    """What the system writes to the standard error, as it aborts, would go into the file."""
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", SETTLE]
    subprocess.run([*shell, tmp_path / "file"], stdin=PIPE, stdout=PIPE, env=ENVIRONMENT)
    assert (tmp_path / "file").read_text() == repr((True, *expected))


def test_a_training_in_python_needs_no_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    trainer(tmp_path).fit(epochs=1)
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stdout", closed)
    monkeypatch.setattr("sys.stderr", object())  # as a program may put there
    trainer(tmp_path).fit(epochs=1)
    assert Trainer.resume(tmp_path / "m").num_steps == EPOCH


# ---- Broken ----


class Breaking(io.StringIO):
    """Fails once what is written holds a text; "": from the beginning."""

    def __init__(self, error: int, after: str = "") -> None:
        super().__init__()
        self.error, self.after = OSError(error, os.strerror(error)), after

    def write(self, text: str) -> int:
        count = super().write(text)
        if text.endswith("\n"):
            self.flush()
        return count

    def flush(self) -> None:
        if self.after in self.getvalue():
            raise self.error


COMMANDS = {
    "train": ["train", "{text}", "-o", "{folder}/new", "--steps", "4", *SMALL],
    "sample": ["sample", "{model}", "--seed", "1", "--stream"],
    "sample-texts": ["sample", "{model}", "--num-samples", "3", "--json"],
    "eval": ["eval", "{model}", "{text}"],
    "info": ["info", "{model}"],
    "score": ["score", "{model}"],
    "view": ["view", "{model}", "{text}", "-o", "{folder}/page.html"],
    "help": ["--help"],
    "version": ["--version"],
}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EPIPE])
@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_that_fails_is_told_once(
    tmp_path: Path,
    text: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    number: int,
) -> None:
    """EPIPE is no error: whoever reads has seen enough."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    monkeypatch.setattr("sys.stdout", Breaking(number))
    arguments = [a.format(text=text, model=model, folder=tmp_path) for a in COMMANDS[command]]
    try:
        status: object = main(arguments)
    except SystemExit as stop:  # argparse leaves this way
        status = stop.code
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("seed ")]
    if number == errno.EPIPE:
        assert (status, told) == (141, [])
    else:
        assert status == 2
        message = f"charrnn-fast: error: standard output: {os.strerror(number)}"
        assert [line for line in told if "warning" not in line] == [message]
    written = {"train": "new", "view": "page.html"}.get(command)
    if written is not None and (command, number) != ("train", errno.EPIPE):
        assert (tmp_path / written).exists()


@pytest.mark.parametrize("arguments", [["info", "{model}"], ["info", "missing"], ["--bad"]])
def test_a_broken_standard_error_changes_nothing(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.setattr("sys.stderr", Breaking(errno.ENOSPC))
    given = [a.format(model=model) for a in arguments]
    try:
        status: object = main(given)
    except SystemExit as stop:
        status = stop.code
    out = capsys.readouterr().out
    assert (status, bool(out)) == ((0, True) if "{model}" in arguments else (2, False))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EPIPE])
@pytest.mark.parametrize("after", ["length   ", "step 6 ", "step 12 ", "saved to"])
def test_a_training_outlives_its_output(
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    after: str,
    number: int,
) -> None:
    """It goes on to its end; where its reader has gone, it ends, and every epoch is saved."""
    train = ["train", str(text), "--epochs", "3", *SMALL]
    assert main([*train, "-o", str(tmp_path / "whole")]) == 0
    capsys.readouterr()
    out = Breaking(number, after)
    monkeypatch.setattr("sys.stdout", out)
    status = main([*train, "-o", str(tmp_path / "new")])
    assert out.getvalue().count(after) == 1
    gone = number == errno.EPIPE
    told = "" if gone else f"charrnn-fast: error: standard output: {os.strerror(number)}\n"
    assert (status, capsys.readouterr().err) == (141 if gone else 2, told)
    if gone and after == "length   ":
        assert not (tmp_path / "new").exists()  # nothing was trained
        return
    steps = {"step 6 ": 6, "step 12 ": 12}.get(after, 18) if gone else 18
    resumed = Trainer.resume(tmp_path / "new")
    assert [entry.step for entry in resumed.history] == list(range(6, steps + 1, 6))
    assert resumed.num_steps == steps
    monkeypatch.undo()
    if gone and steps < 18:
        assert main(["train", "-o", str(tmp_path / "new"), "--resume"]) == 0
    assert weights(tmp_path / "new") == weights(tmp_path / "whole")
    evaluations = [
        [entry["validation_loss"] for entry in log.read(path) if entry["type"] == "evaluation"]
        for path in (tmp_path / "new.jsonl", tmp_path / "whole.jsonl")
    ]
    assert evaluations[0] == evaluations[1]


@needs_posix
def test_a_training_whose_reader_leaves_keeps_its_epoch(tmp_path: Path, text: Path) -> None:
    """As `charrnn-fast train ... | head -n 6`, with real pipes."""
    path = tmp_path / "new"
    command = [*COMMAND, "train", str(text), "-o", str(path), *SMALL, "--epochs", "1000000"]
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        while not process.stdout.readline().startswith(b"length "):
            pass
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 141
    resumed = Trainer.resume(path)
    assert resumed.num_steps >= EPOCH
    assert resumed.history


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_the_output(tmp_path: Path, text: Path) -> None:
    command = [*COMMAND, "train", str(text), "-o", str(tmp_path / "new"), *SMALL, "--epochs", "2"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=PIPE, text=True, env=BUFFERED)
    message = "charrnn-fast: error: standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, message)
    assert Trainer.resume(tmp_path / "new").num_steps == 2 * EPOCH


@needs_posix
def test_a_terminal_that_vanishes_does_not_end_a_training(tmp_path: Path, text: Path) -> None:
    """As of a job that its shell has disowned: its terminal is no more, and it got no SIGHUP."""
    import pty

    mine, its = pty.openpty()
    path = tmp_path / "new"
    command = [*COMMAND, "train", str(text), "-o", str(path), *SMALL, "--epochs", "1000000"]

    def evaluations() -> int:
        return (tmp_path / "new.jsonl").read_text().count('"evaluation"')

    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        output = b""
        while b"step 6 " not in output:
            output += os.read(mine, 1000)
        os.close(mine)
        before = evaluations()
        while evaluations() < before + 3:  # each of which is printed
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()
        assert process.wait(60) == 130
    assert len(Trainer.resume(path).history) >= before + 3


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("event", ["updated", "evaluated", "saved"])
def test_a_callback_that_fails_loses_nothing(
    tmp_path: Path, event: str, kind: type[BaseException]
) -> None:
    """A checkpoint is written, the callbacks behind it are told, and the training goes on."""

    class Failing(Callback):
        def updated(self, trainer: Trainer, update: Update) -> None:
            if event == "updated" and update.step == EPOCH:
                raise kind("failed")

        def evaluated(self, trainer: Trainer, evaluation: Evaluation, sample: str) -> None:
            if event == "evaluated":
                raise kind("failed")

        def saved(self, trainer: Trainer, path: str) -> None:
            if event == "saved":
                raise kind("failed")

    (tmp_path / "straight").mkdir()
    straight = trainer(tmp_path / "straight", JsonLog(tmp_path / "whole.jsonl"))
    straight.fit(epochs=2, progress=False)
    path = tmp_path / "m"
    failing = trainer(tmp_path, Failing(), JsonLog(tmp_path / "log.jsonl"))
    with pytest.raises(kind, match="failed"):
        failing.fit(epochs=2, progress=False)
    resumed = Trainer.resume(
        path,
        Corpus.from_text(TEXT),
        checkpoint_path=path,
        callbacks=[JsonLog(tmp_path / "log.jsonl")],
    )
    assert resumed.num_steps == EPOCH
    assert len(resumed.history) == (0 if event == "updated" else 1)
    assert os.path.exists(best_path(path)) == (event != "updated")
    resumed.fit(steps=EPOCH, progress=False)
    assert resumed.history == straight.history
    assert weights(path) == weights(tmp_path / "straight" / "m")
    ours, theirs = (
        [entry for entry in log.read(tmp_path / name) if entry["type"] == "evaluation"]
        for name in ("log.jsonl", "whole.jsonl")
    )
    assert ours == theirs


def test_the_first_of_several_errors_is_raised(tmp_path: Path) -> None:
    class Failing(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def updated(self, trainer: Trainer, update: Update) -> None:
            raise RuntimeError(self.name)

    with pytest.raises(RuntimeError, match="one") as caught:
        trainer(tmp_path, Failing("one"), Failing("two")).fit(epochs=1, progress=False)
    assert caught.value.__notes__ == ["another callback raised RuntimeError('two')"]


def test_a_checkpoint_comes_before_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads may take a while: a full pipe, or Ctrl-S."""
    seen = []

    class Reader(io.StringIO):
        def write(self, text: str) -> int:
            if text.startswith("step "):
                training = checkpoint.read(tmp_path / "m")[1]["training"]
                seen.append((training["num_steps"], len(training["history"])))
            return super().write(text)

    monkeypatch.setattr("sys.stdout", Reader())
    trainer(tmp_path).fit(epochs=2)
    assert seen == [(EPOCH, 1), (2 * EPOCH, 2)]


def test_an_interrupt_is_one_though_its_output_breaks(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C ends all of a pipeline: the reader may be gone first."""
    update = Trainer._next_update

    def interrupted(self: Trainer, *arguments: Any) -> Update:
        if self.num_steps == 2:
            signal.raise_signal(signal.SIGINT)
        return update(self, *arguments)

    monkeypatch.setattr(Trainer, "_next_update", interrupted)
    for number in (errno.EPIPE, errno.EIO):
        monkeypatch.setattr("sys.stdout", Breaking(number, "interrupted after"))
        train = ["train", str(text), "-o", str(tmp_path / "new"), "--overwrite", *SMALL]
        assert main(train) == 130
        assert Trainer.resume(tmp_path / "new").num_steps == 3


@needs_posix
def test_slow_neighbours_in_a_pipe_are_waited_for(tmp_path: Path, model: Path) -> None:
    """Where another program has left the pipes in the mode of not waiting."""
    incoming, outgoing = os.pipe(), os.pipe()
    for end in (incoming[0], outgoing[1]):
        os.set_blocking(end, False)
    lines = b"the lazy dog\n" * 20_000  # whose scores are more than a pipe holds
    with (
        open(incoming[1], "wb") as write,
        open(outgoing[0], "rb") as read,
        subprocess.Popen(
            [*COMMAND, "score", str(model)], stdin=incoming[0], stdout=outgoing[1], stderr=PIPE
        ) as process,
    ):
        os.close(incoming[0])
        os.close(outgoing[1])
        write.write(lines[:13])
        write.flush()
        first = read.readline()

        def send() -> None:
            write.write(lines[13:])
            write.close()

        sender = threading.Thread(target=send)
        sender.start()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)  # the pipe is full, and nobody reads it
        assert read.read() == first * 19_999
        sender.join()
        assert process.stderr is not None
        assert (process.wait(60), process.stderr.read()) == (0, b"")


# ---- Terminals ----


def test_what_a_terminal_obeys_is_shown() -> None:
    reordering = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    marks = "\u061c\u200e\u200f"
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        shown = streams.visible(character)
        category = unicodedata.category(character)
        if character in "\n\t":
            assert shown == character
        elif (
            category in ("Cc", "Cs", "Zl", "Zp")
            or character in marks
            or unicodedata.bidirectional(character) in reordering
        ):
            assert shown != character
        elif category not in ("Cf", "Cn"):
            assert shown == character
        if shown != character:
            assert shown.isascii() and shown.isprintable() and shown.startswith("\\")
            assert shown.encode().decode("unicode_escape") == character
    assert streams.visible(HOSTILE + "a\ud800") == (
        r"\x00\x07\x08\r\x0b\x1b\x7f\x85\x90\x9b\x9d\u200e\u202e\u2028\u2066\U000e0041a\ud800"
    )
    # scripts and emoji need the joiners; they, and what marks a place, command nothing
    plain = "a\n\tb\\ é\xa0\xad 字 \u200b\u200c\u200d\u2060\ufeff 👩‍👩‍👧 e\u0301 \U00010ffd"
    assert streams.visible(plain) == plain


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_terminals_get_escapes() -> None:
    for stream, expected in ((Terminal(), "\\x1b]0;t\\x07\n"), (io.StringIO(), "\x1b]0;t\x07\n")):
        print("\x1b]0;t\x07", file=streams.Output(stream))
        assert stream.getvalue() == expected


@pytest.mark.parametrize("handler", ["strict", "surrogateescape", "replace"])
def test_what_the_output_has_no_bytes_for_is_replaced(handler: str) -> None:
    data = io.BytesIO()
    stream = io.TextIOWrapper(data, "ascii", handler)
    print("a\xe9\ud800字", file=streams.Output(stream), flush=True)
    assert data.getvalue() == b"a???\n"


def through_terminal(
    command: list[str], columns: int = 200, stdin: bytes = b""
) -> tuple[int, bytes]:
    """The status of a command, and what it writes to a terminal that is its output and error."""
    import fcntl
    import pty
    import struct
    import termios

    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    attributes = termios.tcgetattr(its)
    attributes[1] &= ~termios.OPOST  # newlines stay as they are written
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(its, termios.TCSANOW, attributes)
    output = b""
    with subprocess.Popen(command, stdin=its, stdout=its, stderr=its) as process:
        os.close(its)
        os.write(mine, stdin)
        try:
            while data := os.read(mine, 1 << 16):
                output += data
        except OSError:  # so Linux tells that the other side is closed
            pass
        status = process.wait(60)
    os.close(mine)
    return status, output


@needs_posix
def test_drawn_text_cannot_command_the_terminal(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_text(HOSTILE + "\n[0;mab\u0301é字👩\u200d")
    model = CharLM(vocabulary, 8, 1, seed=1)
    rng = np.random.default_rng(5)
    parameters = model.rnn.parameters().items()
    model.rnn.load_parameters({n: rng.normal(size=w.shape).astype("f4") for n, w in parameters})
    path = tmp_path / "m"
    model.save(path)
    prime = HOSTILE.replace("\x00", "") + "a\u0301"  # no argument holds a NUL
    sample = [*COMMAND, "sample", str(path), "--seed", "1", "--length", "300", "--prime", prime]
    piped = subprocess.run(sample, stdout=PIPE).stdout
    assert piped.decode() == model.sample(300, prime=prime, seed=1) + "\n"
    assert set(HOSTILE) - {"\x00"} <= set(piped.decode())
    shown = streams.visible(piped.decode()).encode()
    assert through_terminal(sample) == (0, shown)  # character by character
    assert through_terminal([*sample, "--no-stream"]) == (0, shown)


@needs_posix
def test_names_and_errors_cannot_command_the_terminal(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\x1b]0;title\x07\xff\xc2\x9b31m"
    status, output = through_terminal([*COMMAND, "info", os.fsdecode(name)])
    assert status == 2
    assert output.endswith(rb"\x1b]0;title\x07\udcff\x9b31m: No such file or directory" + b"\n")
    status, output = through_terminal([*COMMAND, "info", "m", "--\x1b[2J\u202e"])
    assert status == 2
    assert rb" --\x1b[2J\u202e (see" in output
    assert not set(output.decode()) & set(HOSTILE)


@needs_posix
def test_a_bar_goes_on_above_hostile_texts(tmp_path: Path) -> None:
    """The bar's own control characters are obeyed: carriage returns, cursor movements."""
    text = tmp_path / "\x1b[31mtext"
    text.write_text((HOSTILE.replace("\r", "") + "the lazy dog\n") * 300)
    train = [*COMMAND, "train", str(text), "-o", str(tmp_path / "m\x07"), *SMALL]
    options = ["--steps", "600", "--evaluate-every", "200", "--checkpoint-every", "200"]
    status, output = through_terminal([*train, *options])
    assert status == 0
    shown = output.decode()
    assert "char/s" in shown and "\r" in shown
    assert set(shown) & set(HOSTILE) <= set("\r\x1b")
    assert "\x1b" not in shown.replace("\x1b[A", "")
    lines = [line.rpartition("\r")[2] for line in shown.split("\n")]
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["200", "400", "600"]
    assert any(line.startswith("    | ") and "\\x1b" in line for line in lines)
    assert any(line.startswith("saved to ") and line.count(r"m\x07 (") for line in lines)


def test_the_bar_of_a_script_is_on_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Python, without the command line's streams."""
    out, error = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", error)
    bar = progress.bar(total=10, unit="char")
    assert bar is not None
    progress.say("a\x1bb", bar, sys.stdout)
    bar.update(10)
    bar.close()
    assert out.getvalue() == "a\\x1bb\n"
    assert "\r" in error.getvalue() and "\\r" not in error.getvalue()


@needs_posix
def test_whoever_is_to_type_is_told(model: Path) -> None:
    status, output = through_terminal([*COMMAND, "score", str(model)], stdin=b"the\n\x04")
    told, score = output.decode().splitlines()
    assert (status, told) == (0, "reading what is typed; Ctrl-D at the beginning of a line ends it")
    assert float(score) == pytest.approx(CharLM.load(model).score(["the\n"])[0], abs=1e-6)


def test_a_standard_input_that_cannot_be_read_is_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Unreadable(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(Unreadable()))
    assert main(["score", str(model)]) == 2
    assert capsys.readouterr().err == (
        f"charrnn-fast: error: standard input: {os.strerror(errno.EIO)}\n"
    )


# ---- Interrupts ----

# Sends a signal when a module is looked for; "exit": when the process ends.
START = """
import atexit, os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.{number})

sys.meta_path.insert(0, Finder())
if {name!r} == "exit":
    atexit.register(os.kill, os.getpid(), signal.{number})
from charrnn_fast.__main__ import main
sys.exit(main(["--version"]))
"""


@needs_posix
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("charrnn_fast.storage.streams", "SIGINT"),
        ("charrnn_fast.cli", "SIGINT"),
        ("numpy", "SIGINT"),
        ("safetensors.numpy", "SIGINT"),
        ("charrnn_fast._core", "SIGINT"),
        ("charrnn_fast.view", "SIGINT"),
        ("exit", "SIGINT"),
        ("numpy", "SIGTERM"),
        ("numpy", "SIGHUP"),
    ],
)
def test_an_interrupt_of_the_start_is_quiet(name: str, number: str) -> None:
    program = START.format(name=name, number=number)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (-getattr(signal, number), b"")


@needs_posix
def test_an_ignored_interrupt_stays_ignored() -> None:
    """As of what a shell without job control starts in the background."""
    program = START.format(name="numpy", number="SIGINT")
    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", program]
    done = subprocess.run(shell, capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("explicit", [True, False])
def test_an_interrupt_of_a_late_import_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], explicit: bool
) -> None:
    """A compiled module that is interrupted while it loads raises ImportError."""

    def load(*arguments: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            if explicit:
                raise ImportError("initialization failed") from error
            raise ImportError("initialization failed")  # noqa: B904

    monkeypatch.setattr("charrnn_fast.training.plot.curves", load)
    assert main(["plot", "a.jsonl", "-o", "a.png"]) == 130
    assert capsys.readouterr() == ("", "")
