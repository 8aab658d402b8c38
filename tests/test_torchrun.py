"""Training by several processes under torchrun: weights of one process up to rounding, masks
included; exact resuming; errors, signals and kills, of which all processes hear; two hosts."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import charrnn_fast as cf
import shared_trainings
import two_hosts
from cases import Array
from charrnn_fast import distributed
from charrnn_fast.cli import main
from charrnn_fast.cli.train_files import check_readers
from charrnn_fast.storage import configuration
from charrnn_fast.text.documents import cut
from charrnn_fast.training.update import Chunk, Numbers
from shared_trainings import ADAM_EPS, BATCH, HIDDEN, SEQ_LEN, STEPS, TRAININGS
from tolerances import assert_close, assert_same_bits, of_adam, shared_out

TESTS = Path(__file__).parent
NEEDS = "PyTorch is not installed: pip install 'charrnn_fast[torch]'"
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Done(NamedTuple):
    """A process that has ended."""

    status: int
    output: str
    error: str


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]), **more}


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def run_processes(commands: Sequence[Sequence[str]], folder: Path, **more: str) -> list[Done]:
    """Runs Python's commands as the processes of one training, as torchrun starts them."""
    pytest.importorskip("torch", reason=NEEDS)
    port, size = free_port(), str(len(commands))
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env=environment(
                RANK=str(rank),
                WORLD_SIZE=size,
                LOCAL_WORLD_SIZE=size,
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                OMP_NUM_THREADS="1",  # as torchrun sets it
                **more,
            ),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank, command in enumerate(commands)
    ]
    try:
        ends = [process.communicate(timeout=60) for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return [Done(p.returncode, *end) for p, end in zip(running, ends, strict=True)]


# ---- the same training --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Array]]:
    """The results of two processes, of three that go on with their trainings too, and of one that
    does.
    """
    folders = {size: tmp_path_factory.mktemp(f"processes-{size}") for size in (1, 2, 3)}
    found = {}
    for size, others in ((2, ""), (3, str(folders[2]))):
        program = [str(TESTS / "shared_trainings.py"), str(folders[size]), others]
        for done in run_processes([program] * size, folders[size]):
            assert done == (0, "", "")
        found[size] = dict(np.load(folders[size] / "results.npz"))
    found[1] = shared_trainings.run(None, folders[1], folders[2])
    return found


def results(found: dict[str, Array], name: str, kind: str) -> dict[str, Array]:
    prefix = f"{name}/{kind}/"
    chosen = {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}
    assert {"updates", "history", "decoder.weight"} <= set(chosen)
    return chosen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "kind"),
    [(2, "at once"), (3, "at once"), (3, "split anew"), (1, "split anew")],
)
@pytest.mark.parametrize("name", TRAININGS)
def test_several_processes_train_as_one(
    trained: dict[int, dict[str, Array]], name: str, size: int, kind: str
) -> None:
    """Up to the order of sums over the batch: losses, norms, evaluations and weights."""
    tolerance = shared_out("float64", terms=SEQ_LEN * BATCH * HIDDEN, steps=SEQ_LEN, updates=STEPS)
    expected = results(trained[1], name, "at once")
    for key, value in results(trained[size], name, kind).items():
        allowed = tolerance
        if name == "adam" and key not in ("updates", "history"):
            allowed += of_adam(
                tolerance,
                learning_rate=TRAININGS[name].trainer["learning_rate"],
                eps=ADAM_EPS,
            )
        assert_close(key, value, expected[key][-len(value) :], allowed)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", TRAININGS)
def test_resuming_by_as_many_processes_is_exact(
    trained: dict[int, dict[str, Array]], name: str, size: int
) -> None:
    expected = results(trained[size], name, "at once")
    for key, value in results(trained[size], name, "resumed").items():
        if key == "updates":
            assert len(value) == STEPS // 2
        assert_same_bits(key, value, expected[key][-len(value) :])


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
def test_rows_have_the_numbers_that_one_process_gives_them(micro_batches: int) -> None:
    """With documents: the kernels number the rows of `cut`, from micro-batch to micro-batch."""
    rng = np.random.default_rng(2)
    for begins in (rng.random((6, 8)) < 0.3, np.zeros((6, 8), np.bool_)):
        tokens = np.arange(48, dtype=np.int32).reshape(6, 8)
        chunk = Chunk(tokens, tokens, begins)
        expected: dict[int, int] = {}  # of a row, by its first token
        for streams in np.array_split(np.arange(8), micro_batches):
            firsts = cut(tokens[:, streams], tokens[:, streams], begins[:, streams]).inputs[0]
            expected |= {first: len(expected) + i for i, first in enumerate(firsts.tolist())}
        numbers = Numbers(chunk, micro_batches)
        for part in (slice(0, 8), slice(0, 3), slice(3, 4), slice(4, 8)):
            firsts = cut(tokens[:, part], tokens[:, part], begins[:, part]).inputs[0]
            assert numbers.of(part).tolist() == [expected[first] for first in firsts.tolist()]


# ---- one process alone --------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "2", "RANK": "0"}])
def test_without_torchrun_there_is_one_process(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    """The variables of torchrun count only where all are there. PyTorch is not imported."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if given.get("WORLD_SIZE") == "1":
        given = {**dict.fromkeys(VARIABLES, "0"), **given}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "torch", None)
    threads = cf.get_num_threads()
    with distributed.joined() as group:
        assert (group.rank, group.size) == (0, 1)
        assert repr(group) == "<Group: process 0 of 1>"
        assert group.sum(1.5, 2) == [1.5, 2.0]
        assert group.gather("a") == ["a"]
        assert group.on_first(lambda: 3) == 3
        group.check_equal({"text": "a"})
        assert group.share(7) == slice(0, 7)
        assert pickle.loads(pickle.dumps(group)).size == 1
    assert cf.get_num_threads() == threads
    with pytest.raises(KeyError, match="a"), distributed.joined():
        raise KeyError("a")


def test_torchrun_without_pytorch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("CHARRNN_NUM_THREADS", "1")
    monkeypatch.setitem(sys.modules, "torch", None)
    message = r"needs PyTorch, which is not installed: pip install 'charrnn_fast\[torch\]'"
    with pytest.raises(ModuleNotFoundError, match=message), distributed.joined():
        pass
    monkeypatch.setenv("WORLD_SIZE", "many")
    with (
        pytest.raises(ValueError, match="WORLD_SIZE must be an integer >= 1, got 'many'"),
        distributed.joined(),
    ):
        pass


def test_a_trainer_takes_a_group() -> None:
    model = cf.CharLM(cf.Vocabulary.from_text("abc"), hidden_size=3)
    wrong: Any = "two"
    with pytest.raises(TypeError, match="group must be a Group or None, got"):
        cf.Trainer(model, group=wrong)
    trainer = cf.Trainer(model, group=distributed.Group())
    assert copy.deepcopy(trainer).step([[0, 1]], [[1, 2]]) > 0


def test_streams_are_shared_out_in_order() -> None:
    for count, size in ((7, 3), (8, 4), (3, 3), (2, 3)):
        shares = []
        for rank in range(size):
            group = distributed.Group()
            group.rank, group.size = rank, size
            shares += [list(range(count))[group.share(count)]]
        assert shares == [part.tolist() for part in np.array_split(np.arange(count), size)]


# ---- errors -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of `shared_failures.py`, and what each of the three processes got."""
    folder = tmp_path_factory.mktemp("failures")
    program = [str(TESTS / "shared_failures.py"), str(folder)]
    done = run_processes([program] * 3, folder)
    assert [one.status for one in done] == [0, 9, 0], done
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


def ended(rank: int, error: str) -> list[str]:
    return ["EndedError", f"process {rank} has failed: {error}"]


@pytest.mark.slow
def test_what_processes_exchange(heard: tuple[Path, list[dict[str, Any]]]) -> None:
    for rank, found in enumerate(heard[1]):
        assert found["values"] == [
            [3.0, pytest.approx(0.3)],
            ["process 0", "process 1", "process 2"],
            [0, "first"],
            (0, 3, 5)[rank],
            "the same in all",
            f"<Group: process {rank} of 3>",
        ]
        assert found["trained"] == [6, 6, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "rank", "kind", "message"),
    [
        ("sum", 2, "ValueError", "bad"),
        ("gather", 2, "ValueError", "bad"),
        ("on_first", 2, "ValueError", "bad"),
        ("check_equal", 2, "ValueError", "bad"),
        ("work", 0, "OSError", "no space"),
        (
            "facts",
            0,
            "ValueError",
            "seed must be the same in all processes, got 0 in process 0 and 1 in process 2",
        ),
        ("equal errors", 0, "ValueError", "in all"),
        (
            "pickle",
            0,
            "TypeError",
            "a Group belongs to its process, and cannot be copied or pickled",
        ),
        (
            "batch",
            0,
            "ValueError",
            "batch_size must be at least the number of processes, 3, got 2",
        ),
        (
            "settings",
            0,
            "ValueError",
            "learning_rate must be the same in all processes, got 0.1 in process 0 and 0.2 in "
            "process 2",
        ),
        (
            "files",
            0,
            "ValueError",
            "checkpoint_path must be the same in all processes, got None in process 0 and a file "
            "in process 1",
        ),
        ("updated", 1, "ValueError", "bad"),
        ("last updated", 2, "ValueError", "bad"),
        ("no path", 1, "ValueError", "bad"),
        (
            "full disk",
            0,
            "OSError",
            "[Errno 28] no space; {folder}/full disk.safetensors holds step 4: 'log'",
        ),
        ("evaluated", 0, "ValueError", "bad"),
        ("started", 1, "ValueError", "bad"),
        ("ended", 0, "ValueError", "bad"),
        (
            "apart",
            0,
            "RuntimeError",
            "after step 3 the weights or the learning rate of process 2 differ from those of "
            "process 0; no checkpoint has been written yet",
        ),
    ],
)
def test_all_processes_hear_of_an_error(
    heard: tuple[Path, list[dict[str, Any]]], case: str, rank: int, kind: str, message: str
) -> None:
    """One raises it; of equal errors that is the first."""
    folder, found = heard
    message = message.format(folder=folder)
    for other in range(3):
        expected = [kind, message] if other == rank else ended(rank, f"{kind}: {message}")
        assert found[other][case] == expected


@pytest.mark.slow
def test_errors_of_several_processes(heard: tuple[Path, list[dict[str, Any]]]) -> None:
    found = heard[1]
    expected = [ended(1, "ValueError: 1"), ["ValueError", "1"], ["ValueError", "2"]]
    assert [one["two errors"] for one in found] == expected
    kind, message = found[0]["diverged"]
    assert kind == "FloatingPointError"
    assert message.startswith("training has diverged: ")
    for one in found[1:]:
        assert one["diverged"] == ended(0, f"{kind}: {message}")
    for rank in (0, 2):
        kind, message = found[rank]["killed"]
        assert kind == "LostError"
        assert message.startswith(f"process {rank} of 3 has lost another one")


@pytest.mark.slow
def test_one_process_stops_all(heard: tuple[Path, list[dict[str, Any]]]) -> None:
    """One update after it has asked for it, or at once from an evaluation."""
    for found in heard[1]:
        assert found["stop"] == [2, 2, 1]
        assert found["stop at an evaluation"] == [3, 3, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "step"), [("signal", 2), ("in an evaluation", 3)])
def test_a_signal_to_one_process_interrupts_all(
    heard: tuple[Path, list[dict[str, Any]]], case: str, step: int
) -> None:
    """After the same update; an evaluation is due when it is resumed."""
    assert [found[case] for found in heard[1]] == [["KeyboardInterrupt", ""]] * 3
    training = configuration.read(heard[0] / f"{case}.safetensors")[1]["training"]
    assert training["num_steps"] == step
    assert training["evaluation_due"] == (case == "in an evaluation")
    assert training["history"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "step"),
    [
        ("trained", 6),
        ("updated", 2),
        ("last updated", 6),
        ("full disk", 4),
        ("evaluated", 3),
        ("ended", 6),
        ("stop", 2),
    ],
)
def test_all_save_before_an_error(
    heard: tuple[Path, list[dict[str, Any]]], case: str, step: int
) -> None:
    _, config = configuration.read(heard[0] / f"{case}.safetensors")
    assert config["training"]["num_steps"] == step


@pytest.mark.slow
@pytest.mark.parametrize("case", ["started", "diverged", "apart", "files"])
def test_nothing_is_saved_after_some_errors(
    heard: tuple[Path, list[dict[str, Any]]], case: str
) -> None:
    assert not (heard[0] / f"{case}.safetensors").exists()


# ---- the command --------------------------------------------------------------------------------

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
NAME = "model.safetensors"
SETTINGS = [
    *("--hidden-size", "48", "--num-layers", "1", "--batch-size", "9", "--seq-len", "20"),
    *("--dropout", "0", "--recurrent-dropout", "0.1", "--sample-length", "0"),
    *("--evaluate-every", "300", "--evaluate-length", "500"),
]
LONG = [*SETTINGS, "--steps", "600", "--checkpoint-every", "25"]


def train(*options: str) -> list[str]:
    return ["-m", "charrnn_fast", "train", "text.txt", "-o", NAME, *options]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_text(tmp_path)
    return tmp_path


def write_text(folder: Path) -> None:
    (folder / "text.txt").write_text(shared_trainings.text() * 5)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint of two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_text(folder)
    first, second = run_processes([train(*LONG)] * 2, folder)
    assert first.status == second.status == 0, (first, second)
    return (folder / NAME).read_bytes()


@contextmanager
def torchrun(folder: Path, *arguments: str, processes: int = 2, **more: str) -> Iterator[Any]:
    """torchrun with `processes`, killed at the end if it still runs; more: its environment."""
    pytest.importorskip("torch", reason=NEEDS)
    running = subprocess.Popen(
        [*TORCHRUN, str(processes), *arguments],
        cwd=folder,
        env=environment(**more),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.terminate()  # it ends its processes
            running.communicate(timeout=60)


def step_of(path: Path) -> int:
    """The step of a checkpoint that a training may be replacing; 0 if there is none."""
    if not path.exists():
        return 0
    return int(configuration.read(path)[1]["training"]["num_steps"])


def wait_for(path: Path, step: int, running: Any) -> int:
    """Waits until a training has saved a step, while it runs; returns that or a later one."""
    for _ in range(6000):
        if (reached := step_of(path)) >= step:
            return reached
        assert running.poll() is None, running.communicate()
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached")


def process_of(rank: int, mark: str) -> int:
    """The process with this rank and the variable MARK."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            if {f"RANK={rank}".encode(), f"MARK={mark}".encode()} <= set(variables):
                return int(folder.name)
    raise AssertionError(f"process {rank} is not there")


@pytest.mark.slow
def test_one_line_begins_and_goes_on(folder: Path, undisturbed: bytes) -> None:
    """`--resume auto` under torchrun: process 0 alone prints, and two parts are one whole."""
    line = train("--resume", "auto", *LONG)
    with torchrun(folder, *line, "--steps", "20") as running:
        output, error = running.communicate(timeout=120)
        assert running.returncode == 0, error
    for text in ("20 steps, 0.2", "on 2 processes of ", "step 20  epoch", f"saved to {NAME}"):
        assert output.count(text) == 1
    assert (folder / "model.jsonl").read_text().count('"type": "evaluation"') == 1
    first, second = run_processes([line] * 2, folder)
    assert (first.status, first.error) == (0, "")
    assert "length      600 steps" in first.output and "20 steps are done" in first.output
    assert second == (0, "", "")
    resumed, _ = configuration.read(folder / NAME)
    (folder / NAME).write_bytes(undisturbed)
    for name, tensor in configuration.read(folder / NAME)[0].items():
        assert_same_bits(name, resumed[name], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_restarted_from_the_last_checkpoint(
    folder: Path, undisturbed: bytes, rank: int
) -> None:
    """The result has the bits of a training that nothing disturbed."""
    restarting = ["--max-restarts", "1", *train("--resume", "auto", *LONG)]
    with torchrun(folder, *restarting, MARK=str(folder)) as running:
        wait_for(folder / NAME, 50, running)
        os.kill(process_of(rank, str(folder)), signal.SIGKILL)
        output, error = running.communicate(timeout=120)
    assert running.returncode == 0, error
    assert output.count("length      600 steps") == 2
    assert "steps are done" in output
    assert (folder / NAME).read_bytes() == undisturbed
    log = (folder / "model.jsonl").read_text().splitlines()
    steps = [json.loads(line).get("step", 0) for line in log]
    assert steps == sorted(steps)


@pytest.mark.slow
def test_ctrl_c_ends_all_with_a_checkpoint(folder: Path, undisturbed: bytes) -> None:
    line = train("--resume", "auto", *LONG)
    with torchrun(folder, *line) as running:
        saved = wait_for(folder / NAME, 50, running)
        running.send_signal(signal.SIGINT)
        output, error = running.communicate(timeout=120)
    assert running.returncode != 0
    found = re.findall(r"interrupted after step (\d+)\nto go on: charrnn-fast train", output)
    assert len(found) == 1, (output, error)
    assert "charrnn-fast: error" not in error
    assert saved <= step_of(folder / NAME) == int(found[0]) < 600
    for done in run_processes([line] * 2, folder):
        assert done.status == 0, done.error
    assert (folder / NAME).read_bytes() == undisturbed


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all(folder: Path) -> None:
    with torchrun(folder, *train(*LONG), MARK=str(folder)) as running:
        wait_for(folder / NAME, 50, running)
        os.kill(process_of(1, str(folder)), signal.SIGTERM)
        output, _ = running.communicate(timeout=120)
    step = step_of(folder / NAME)
    assert f"interrupted after step {step}\n" in output
    assert output.count("interrupted") == 1


def lines_of(done: Sequence[Done]) -> list[str]:
    return [line for one in done for line in one.error.splitlines() if line.strip()]


@pytest.mark.slow
def test_an_error_of_one_process_is_printed_once(folder: Path) -> None:
    """Each case: what the processes are given, their statuses, and the only line."""
    (folder / "other.txt").write_text("abcdef" * 100)
    line = train(*SETTINGS, "--steps", "2", "--overwrite")
    other = [word.replace("text.txt", "other.txt") for word in line]
    missing = [word.replace("text.txt", "missing.txt") for word in line]
    cases: list[tuple[list[list[str]], list[int], str]] = [
        ([line, missing], [1, 2], "missing.txt: No such file or directory"),
        ([line, other], [2, 1], "text must be the same in all processes, got 15000 characters (f"),
    ]
    for commands, statuses, message in cases:
        done = run_processes(commands, folder)
        assert [one.status for one in done] == statuses, done
        printed = lines_of(done)
        assert len(printed) == 1, printed
        assert printed[0].startswith(f"charrnn-fast: error: {message}")
        assert done[1].output == ""


@pytest.mark.parametrize(
    ("asked", "variable", "expected"), [(None, "", 2), (3, "5", 3), (None, "5", 5)]
)
@pytest.mark.usefixtures("threads")
def test_processes_share_the_cores_of_their_host(
    monkeypatch: pytest.MonkeyPatch, asked: int | None, variable: str, expected: int
) -> None:
    """Unless they are told otherwise. Threads are set before anything is imported."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "2")
    monkeypatch.delenv("CHARRNN_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("CHARRNN_NUM_THREADS", variable)
    monkeypatch.setitem(sys.modules, "torch", None)
    cf.set_num_threads(int(variable or "4"))  # as it is at the start
    with pytest.raises(ModuleNotFoundError), distributed.joined(threads=asked):
        pass
    assert cf.get_num_threads() == expected


def test_several_processes_read_files_alone(tmp_path: Path) -> None:
    """Each reads the text: what can be read only once is refused."""
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    file.write_text("text")
    alone, one_of_two = distributed.Group(), distributed.Group()
    one_of_two.size = 2
    for text, name in (("-", "standard input"), (str(pipe), str(pipe))):
        check_readers([text], alone)
        message = f"text must be files, which each of the 2 processes reads, got {name}"
        with pytest.raises(ValueError, match=re.escape(message)):
            check_readers([str(file), text], one_of_two)
    check_readers([str(file), str(tmp_path / "missing")], one_of_two)  # which others tell


def test_resume_auto_needs_no_torchrun(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    line = [*train("--resume", "auto", *SETTINGS)[2:], "--evaluate-every", "2", "--steps"]
    assert main([*line, "2"]) == 0
    assert main([*line, "4"]) == 0
    assert main([*line, "4"]) == 0  # nothing is left to train
    resumed = (folder / NAME).read_bytes()
    once = [word for word in line if word not in ("--resume", "auto")]
    assert main([*once, "4", "--overwrite"]) == 0
    assert (folder / NAME).read_bytes() == resumed
    # What begins a training is left out where one goes on.
    (folder / NAME).rename(folder / "origin.safetensors")
    fine = ["train", "text.txt", "-o", "fine.safetensors", "--init-from", "origin.safetensors"]
    fine += ["--resume", "auto", "--batch-size", "9", "--seq-len", "20", "--sample-length", "0"]
    assert main([*fine, "--steps", "2"]) == 0
    assert main([*fine, "--steps", "3"]) == 0
    assert step_of(folder / "fine.safetensors") == 3


def test_a_text_may_follow_resume(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the word auto belongs to it."""
    monkeypatch.chdir(folder)
    options = [*SETTINGS, "--steps"]
    (folder / "auto").write_text("ab" * 500)
    assert main(["train", "text.txt", "auto", "-o", NAME, *options, "1"]) == 0
    assert main(["train", "-o", NAME, *options, "2", "--resume", "text.txt", "auto"]) == 0
    assert (
        main(["train", "./auto", "-o", "auto.safetensors", "--resume", "auto", *options, "1"]) == 0
    )
    assert step_of(folder / NAME) == 2


def test_what_resume_auto_refuses(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    line = train("--resume=auto", *SETTINGS, "--steps", "1")[2:]
    (folder / NAME).write_bytes(b"something else")
    for arguments, message in (
        (line, f"{NAME} is no charrnn_fast checkpoint"),
        ([*line, "--overwrite"], "argument --overwrite: not allowed with argument --resume"),
        (["train", "text.txt", "--resume", "auto"], "-o is missing"),
    ):
        try:
            status = main(arguments)
        except SystemExit as stop:
            status = int(str(stop.code))
        assert status == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_hosts_train_as_two_processes_of_one(tmp_path: Path, undisturbed: bytes) -> None:
    """Over a slow link, and with the checkpoint on the first host alone: the same bits."""
    reason = two_hosts.why_not()
    if reason:
        pytest.skip(reason)
    folders = [tmp_path / "first", tmp_path / "second"]
    for one in folders:
        one.mkdir()
        write_text(one)
    for done in run_processes([train(*LONG, "--steps", "300")] * 2, folders[0]):
        assert done.status == 0, done.error
    line = ["--nproc-per-node", "1", *train("--resume", "auto", *LONG)]
    with two_hosts.two_hosts("200mbit", 0.001) as hosts:
        arguments = ["--nnodes", "2", "--master-addr", hosts.addresses[0], "--master-port", "7500"]
        running = [
            subprocess.Popen(
                hosts.command(
                    host,
                    *(sys.executable, "-m", "torch.distributed.run"),
                    *(*arguments, "--node-rank", str(host), *line),
                ),
                cwd=folders[host],
                env=environment(GLOO_SOCKET_IFNAME=hosts.interface),
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for host in (0, 1)
        ]
        try:
            ends = [process.communicate(timeout=120) for process in running]
        finally:
            for process in running:
                if process.poll() is None:
                    process.terminate()
                    process.communicate()
    assert [process.returncode for process in running] == [0, 0], ends
    assert "300 steps are done" in ends[0][0]
    assert ends[1][0] == ""
    assert (folders[0] / NAME).read_bytes() == undisturbed
    assert sorted(path.name for path in folders[1].iterdir()) == ["text.txt"]


# ---- the document -------------------------------------------------------------------------------


def document(language: str) -> list[str]:
    text = (TESTS.parent / "docs" / "torchrun.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_program_of_the_document(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one process."""
    monkeypatch.chdir(folder)
    (folder / "text.txt").rename(folder / "input.txt")
    (program,) = document("python")
    exec(program, {})
    assert step_of(folder / "trained.safetensors") == 20


@pytest.mark.slow
def test_the_program_of_the_document_by_two_processes(folder: Path) -> None:
    (folder / "text.txt").rename(folder / "input.txt")
    (program,) = document("python")
    (folder / "program.py").write_text(program)
    for done in run_processes([["program.py"]] * 2, folder):
        assert (done.status, done.error) == (0, "")
    assert step_of(folder / "trained.safetensors") == 20


@pytest.mark.slow
def test_the_command_of_the_document(folder: Path) -> None:
    """With a smaller network and fewer steps."""
    pytest.importorskip("torch", reason=NEEDS)
    (folder / "text.txt").rename(folder / "input.txt")
    _, line, *_ = document("sh")
    for name, module in (("torchrun", "torch.distributed.run"), ("charrnn-fast", "charrnn_fast")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        script.chmod(0o755)
    assert "--steps 200" in line
    done = subprocess.run(
        line.replace("--steps 200", "--steps 20 --hidden-size 16"),
        shell=True,
        cwd=folder,
        env=environment(PATH=f"{folder}{os.pathsep}{os.environ['PATH']}"),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "20 steps, " in done.stdout
    assert step_of(folder / NAME) == 20
