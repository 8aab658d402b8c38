"""Training by several processes under torchrun: weights of one process up to rounding, masks
included; exact resuming; errors, signals and kills, of which all processes hear; two hosts."""

from __future__ import annotations

import copy
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import charrnn_fast as cf
import shared_trainings
from cases import Array
from charrnn_fast import distributed
from charrnn_fast.text.documents import cut
from charrnn_fast.training.update import Chunk, Numbers
from shared_trainings import ADAM_EPS, BATCH, HIDDEN, SEQ_LEN, STEPS, TRAININGS
from tolerances import assert_close, assert_same_bits, of_adam, shared_out

TESTS = Path(__file__).parent
KINDS = ("at once", "resumed", "split anew")
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
    pytest.importorskip("torch", reason="PyTorch is not installed")
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
        ends = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
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
