"""Devices other than the CPU, as Python sees them: their names, errors, files, copies, commands.

The emulated device (tests/cuda) stands for a GPU. Its kernels add up as the CPU's set x86-64-v3, so
that results are compared bit by bit there. Elsewhere the CPU's own tests run on it, against NumPy.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
import devices
import shared_trainings
from cases import Array, wide
from charrnn_fast import _devices
from charrnn_fast.cli import main
from charrnn_fast.training import distributed
from charrnn_fast.training.distributed import joined
from features import ByKernels, FeatureCase, combinations, run, single_features
from shared_trainings import BATCH, HIDDEN, SEQ_LEN, STEPS
from test_rounded import assert_rounds_as_the_reference
from test_torchrun import run_processes
from tolerances import NEARLY_CONSTANT, assert_close, error, shared_out

TWIN = "x86-64-v3"
fused = pytest.mark.skipif(
    cf.build_info()["isa"] != TWIN, reason=f"the kernels in use are not those of {TWIN}"
)
unsanitized = pytest.mark.unsanitized("builds a module of its own")
EMULATED = devices.NAME
TEXT = "the quick brown fox jumps over the lazy dog\n" * 20


# ---- names, without any device ------------------------------------------------------------------

CARDS: list[dict[str, Any]] = [
    {
        "ordinal": 0,
        "name": "One",
        "capability": (9, 0),
        "memory": 8 << 30,
        "multiprocessors": 132,
    },
    {"ordinal": 1, "name": "Two", "capability": (7, 5), "memory": 4 << 30, "multiprocessors": 40},
]
PROBED: dict[str, Any] = {
    "reason": None,
    "driver": (13, 0),
    "runtime": (13, 0),
    "architectures": ["sm_80", "sm_90a", "compute_120"],
    "devices": CARDS,
}


@pytest.fixture
def no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not used a GPU."""
    monkeypatch.setattr(_devices, "_card", None)


def probing(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Replaces the compiled module by one that finds this."""
    found = SimpleNamespace(
        probe=lambda: {**PROBED, **changes},
        memory=lambda ordinal: (3 << 30, 8 << 30),
        device=lambda ordinal: f"capsule {ordinal}",
    )
    monkeypatch.setitem(sys.modules, "charrnn_fast._cuda", found)


@pytest.mark.parametrize(
    ("changes", "ordinal", "message"),
    [
        ({}, 0, None),
        ({"reason": "the driver does not start"}, 0, "the driver does not start"),
        ({"reason": "no driver", "driver": None, "runtime": None}, 0, "no driver"),
        (
            {"driver": (11, 8)},
            0,
            "the NVIDIA driver is too old: it has CUDA 11.8, and this build needs 13.0; update the "
            "driver",
        ),
        ({"driver": (13, 0), "runtime": (13, 2)}, 0, None),
        ({"devices": []}, 0, "there is no GPU, or CUDA_VISIBLE_DEVICES hides it"),
        ({}, 2, "there is no GPU 2, only 0 (One), 1 (Two)"),
        (
            {},
            1,
            "GPU 1, Two, has compute capability 7.5, and this build is for sm_80, sm_90a, "
            "compute_120: build it again for this GPU",
        ),
        ({"architectures": ["sm_75"]}, 1, None),
        ({"architectures": ["sm_70"]}, 1, None),
        ({"architectures": ["compute_61"]}, 1, None),
        (
            {
                "architectures": ["sm_75a"],
                "devices": CARDS[:1],
            },
            0,
            "GPU 0, One, has compute capability 9.0, and this build is for sm_75a: build it again "
            "for this GPU",
        ),
    ],
)
def test_why_a_gpu_cannot_be_used(
    changes: dict[str, Any], ordinal: int, message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    probing(monkeypatch, **changes)
    assert cf.cuda.why_not(ordinal) == message
    assert cf.cuda.is_available(ordinal) == (message is None)


def test_gpus_and_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    probing(monkeypatch)
    assert [card.name for card in cf.cuda.devices()] == ["One", "Two"]
    assert cf.cuda.devices()[0] == cf.cuda.Card(0, "One", (9, 0), 8 << 30, 132)
    assert cf.cuda.memory() == (3 << 30, 8 << 30)
    with pytest.raises(RuntimeError, match=r"device 'cuda:1' cannot be used: GPU 1, Two, has"):
        cf.cuda.memory(1)
    with pytest.raises(ValueError, match="ordinal must be in 0 to 1023, got -1"):
        cf.cuda.why_not(-1)


@pytest.mark.usefixtures("no_card")
def test_a_build_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "charrnn_fast._cuda", None)
    reason = cf.cuda.why_not()
    assert reason is not None and "has no CUDA kernels: install it from its sources" in reason
    assert not cf.cuda.is_available() and cf.cuda.devices() == []
    for make in (
        lambda: cf.RNN(3, 4, device="cuda"),
        lambda: cf.CharLM(cf.Vocabulary.from_text("ab"), device="cuda:1"),
        lambda: cf.CharLM.load("no such file", device="cuda"),
        lambda: cf.Trainer.resume("no such file", device="cuda"),
        lambda: joined("cuda").__enter__(),
    ):
        with pytest.raises(
            RuntimeError, match=r"^device 'cuda(:1)?' cannot be used: this build of"
        ):
            make()


def test_a_module_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(name: str) -> None:
        raise ImportError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("charrnn_fast.cuda.import_module", failing)
    expected = "its module cannot be loaded: libcuda.so.1: cannot open shared object file"
    assert cf.cuda.why_not() == expected


@pytest.mark.usefixtures("no_card")
def test_a_process_uses_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    twins = [{**card, "capability": (9, 0)} for card in CARDS]
    probing(monkeypatch, devices=twins)
    first = _devices.find("cuda:1")
    assert (first.name, first.capsule, first.is_host) == ("cuda:1", "capsule 1", False)
    assert first.free_memory() == 3 << 30
    assert _devices.find("cuda").capsule == "capsule 1"
    assert _devices.are_one("cuda", "cuda:1") and not _devices.are_one("cuda", "cpu")
    message = "device must be 'cuda:1', which this process uses: a process can use one GPU, got"
    with pytest.raises(RuntimeError, match=message):
        cf.RNN(3, 4, device="cuda:0")
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match=r"forked process .* start processes by .*'spawn'"):
        _devices.find("cuda")


@pytest.mark.usefixtures("no_card")
def test_processes_have_the_gpus_of_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "charrnn_fast._cuda", None)
    for name, value in (("RANK", 3), ("WORLD_SIZE", 4), ("LOCAL_RANK", 1), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(RuntimeError, match="device 'cuda:1' cannot be used"), joined("cuda"):
        pass


def test_gradients_are_summed_on_the_gpu() -> None:
    """As far as it can be told without NCCL: what is copied there, summed there, copied back."""
    moved = []

    class Tensor:
        def __init__(self, array: Array) -> None:
            self.array = array

        def to(self, device: str) -> Tensor:
            moved.append(device)
            return Tensor(self.array.copy())

        def copy_(self, other: Tensor) -> None:
            self.array[...] = other.array

    engine = SimpleNamespace(
        get_rank=lambda group: 0,
        get_world_size=lambda group: 2,
        all_reduce=lambda tensor, group: tensor.array.__imul__(2),
    )
    torch = SimpleNamespace(from_numpy=Tensor, distributed=engine)
    group = distributed._TorchGroup(torch, None, "cuda:1")
    assert group.sum(3.0, 4.0) == [6.0, 8.0] and not moved
    gradient = np.ones(3, "f4")
    group.add_up(gradient)
    assert gradient.tolist() == [2, 2, 2] and moved == ["cuda:1"]


@pytest.mark.usefixtures("no_card")
def test_what_a_gpu_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    probing(monkeypatch)
    message = (
        r"RNN\(.*device='cuda'\) has .* weights and takes 3\.36 GB, and 3\.22 GB are free on cuda"
    )
    with pytest.raises(MemoryError, match=message):
        cf.RNN(4, 29_000, device="cuda")


@pytest.mark.parametrize("name", ["gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "cuda:99999", ""])
def test_names_that_mean_no_device(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"^device must be 'cpu', 'cuda', 'cuda:N' for GPU N.*, got"
    ):
        cf.RNN(3, 4, device=name)


def test_the_cpu_by_its_name() -> None:
    rnn = cf.RNN(3, 4, device="cpu")
    assert rnn.device == "cpu" and "device" not in repr(rnn)
    assert "device" not in rnn._pickled()["options"], "as in earlier versions"
    model = cf.CharLM(cf.Vocabulary.from_text("ab"), 4)
    assert model.device == cf.Trainer(model, device="cpu").device == "cpu"
    with pytest.raises(AttributeError, match="device cannot be changed"):
        rnn.device = "cuda"


@pytest.mark.parametrize(
    "command",
    [
        "train t.txt -o m.safetensors --device gpu",
        "train t.txt -o m.safetensors --set device=gpu",
        "sample m.safetensors --device gpu",
        "eval m.safetensors t.txt --device gpu",
        "score m.safetensors --device gpu",
        "view m.safetensors t.txt --device gpu",
        "bench --device gpu",
    ],
)
def test_commands_refuse_a_device_before_any_work(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of files that do not exist."""
    assert main(command.split()) == 2
    message = capsys.readouterr().err
    assert message.startswith("charrnn-fast: error: --device must be 'cpu', 'cuda', 'cuda:N' ")
    assert message.endswith("got 'gpu'\n")


# ---- on the emulated device ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def emulated(emulator: Path) -> str:
    devices.register(emulator)
    return EMULATED


def model_on(device: str, **options: Any) -> cf.CharLM:
    vocabulary = cf.Vocabulary.from_text(TEXT)
    return cf.CharLM(vocabulary, 8, 2, seed=1, device=device, **options)


def trainer_on(device: str, compute_dtype: str = "float32", **options: Any) -> cf.Trainer:
    rates = {"dropout": 0.2, "recurrent_dropout": 0.1, "weight_drop": 0.1}
    model = model_on(device, compute_dtype=compute_dtype, **rates)
    return cf.Trainer(model, cf.Corpus.from_text(TEXT), 3, 10, evaluate_length=60, **options)


def on_emulated(case: FeatureCase, parameters: dict[str, Array]) -> ByKernels:
    return ByKernels(case, parameters, EMULATED)


def by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def bytes_of(parameters: dict[str, Array]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in parameters.items()}


@pytest.mark.slow
@unsanitized
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_option_against_the_reference(dtype: str) -> None:
    """All cases of features.py, to the tolerances of the CPU's kernels."""
    largest, count = 0.0, 0
    for case in (*single_features(), *combinations()):
        case = case.but(dtype=dtype)
        parameters = case.parameters()
        found = run(parameters, case, on_emulated)
        expected = run(wide(parameters), case.but(dtype="float64"))
        assert list(found) == list(expected)
        for name, value in expected.items():
            assert found[name].dtype == dtype
            tolerance = case.tolerance * (NEARLY_CONSTANT if case.layer_norm else 1)
            share = error(found[name], value) / tolerance
            assert share <= 1, f"{case}: {name}"
            largest, count = max(largest, share), count + 1
    assert count > 1000 and largest > 0
    print(f"{dtype}: {count} arrays, the largest error is {largest:.3f} of its tolerance")


@pytest.mark.slow
@unsanitized
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("compute_dtype", ["bfloat16", "tf32"])
def test_products_round_as_the_reference(compute_dtype: str) -> None:
    for case in single_features():
        assert_rounds_as_the_reference(case.but(compute_dtype=compute_dtype), on_emulated)


# Files of the CPU's tests, and which of them run: as many as take some seconds there.
SUITES = {
    "operators": "not learns_soon",
    "states": "",
    "parity_numpy": "hidden_size or learning_by_hand or wrong_weight",
    "optim": "",
    "training": "gru and not threads",
    "trainer": "resumed_exactly or by_name or clipping or carries or ignored or nan or saved_with",
    "model": "",
    "copies": "network",
    "sampler": "gru and not softmax and not stop_string and not 33 and not int8",
    "scorer": "not alone_and_in_company and not int8",
    "feature_bits": "not threads and not wide and not company",
    "rounded": "language_model",
}


@pytest.mark.slow
@unsanitized
@pytest.mark.parametrize("name", SUITES)
def test_the_tests_of_the_cpu(emulator: Path, name: str) -> None:
    """All networks are on the device, whatever the tests ask for.

    What stays on the host, like cross_entropy of NumPy's arrays, runs under x86-64-v3 where it is
    there: sums along a row have as many chains as vectors have lanes, and the device has v3's.
    """
    v3 = "x86-64-v3"
    host = {"CHARRNN_ISA": v3} if v3 in cf.build_info()["runnable_isas"] else {}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"),
            *("--device", EMULATED, "--emulated", emulator, "-k", SUITES[name]),
            Path(__file__).with_name(f"test_{name}.py"),
        ],
        env=os.environ | host,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    assert " passed" in done.stdout, done.stdout


@pytest.mark.slow
@unsanitized
@pytest.mark.usefixtures("no_card")
def test_the_emulated_card_by_the_names_of_gpus(
    emulator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "charrnn_fast._cuda", devices.register(emulator))
    assert cf.cuda.is_available() and cf.cuda.why_not(1) is not None
    (card,) = cf.cuda.devices()
    free, total = cf.cuda.memory()  # other tests of this process may hold some
    assert 0 < free <= total == card.memory
    rnn = cf.RNN(3, 4, device="cuda")
    assert (rnn.device, rnn.step(0).shape) == ("cuda", (4,))
    assert copy.copy(rnn).device == "cuda" and "device='cuda'" in repr(rnn)
    with pytest.raises(RuntimeError, match="must be 'cuda:0', which this process uses"):
        cf.RNN(3, 4, device="cuda:1")


@pytest.mark.slow
@unsanitized
def test_a_plan_says_how_layers_run(emulated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "charrnn_fast._cuda", sys.modules[devices.MODULE])
    rnn = cf.RNN(5, 9, cell="lstm", num_layers=2, proj_size=3, device=emulated)
    x = np.zeros((4, 3, 5), "f4")
    said = cf.cuda.plan(rnn, batch=3, seq_len=4).describe()
    assert [line.split(" (")[0] for line in said.splitlines()] == [
        f"layer {layer}, {way}: T4" for layer in range(2) for way in ("forward", "backward")
    ]
    assert said.count("(it has a projection)") == 4

    model = model_on(emulated)
    plan = cf.cuda.plan(model, 50, 25)
    assert str(plan).count(": T1 (a block holds the weights), 1 launch of 50 x ") == 4
    assert repr(plan) == "<Plan of 2 layers>" and cf.cuda.tier() is None
    cf.cuda.set_tier("T4")
    try:
        assert cf.cuda.tier() == "T4"
        assert str(cf.cuda.plan(model, 50, 25)).count(": T4 (it is forced)") == 4
        cf.cuda.set_tier("T1")
        for call in (lambda: cf.cuda.plan(rnn, 3, 4), lambda: rnn.forward(x)):
            with pytest.raises(ValueError, match=r"cannot run the forward pass .*a projection"):
                call()
    finally:
        cf.cuda.set_tier(None)
    rnn.forward(x)
    with pytest.raises(ValueError, match="tier must be T1, T2, T3 or T4, got T5"):
        cf.cuda.set_tier("T5")
    with pytest.raises(ValueError, match="batch must be >= 1"):
        cf.cuda.plan(rnn, 0, 4)


def test_plans_are_of_networks_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "charrnn_fast._cuda", None)
    with pytest.raises(ValueError, match="network must be on a GPU, got one on the CPU"):
        cf.cuda.plan(cf.RNN(3, 4), 1, 5)
    with pytest.raises(TypeError, match="network must be an RNN or a CharLM, got str"):
        cf.cuda.plan("rnn", 1, 5)
    with pytest.raises(TypeError, match="name must be a str or None, got int"):
        cf.cuda.set_tier(1)  # type: ignore[arg-type]
    for call in (lambda: cf.cuda.set_tier("T1"), cf.cuda.tier):
        with pytest.raises(RuntimeError, match="this build of charrnn_fast has no CUDA kernels"):
            call()


@pytest.mark.slow
@unsanitized
def test_parameters_are_copies(emulated: str) -> None:
    rnn = cf.RNN(3, 4, device=emulated)
    assert rnn.device == EMULATED and f"device={EMULATED!r}" in repr(rnn)
    before = rnn.parameters()["weight_hh_l0"]
    assert not before.flags.writeable and not rnn.W_hh.flags.writeable
    kept = before.copy()
    rnn.W_hh = np.zeros((4, 4), "f4")
    np.testing.assert_array_equal(before, kept)
    assert not rnn.W_hh.any() and not rnn.parameters()["weight_hh_l0"].any()


@pytest.mark.slow
@unsanitized
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, by_pickle])
def test_copies_stay_on_their_device(emulated: str, copied: Any) -> None:
    trainer = trainer_on(emulated)
    trainer.fit(steps=2, progress=False)
    other = copied(trainer)
    assert other.device == other.model.device == other.optimizer.rnn.device == EMULATED
    for one in (trainer, other):
        one.fit(steps=1, progress=False)
    assert bytes_of(trainer.model.rnn.parameters()) == bytes_of(other.model.rnn.parameters())


@pytest.mark.slow
@unsanitized
def test_a_pickle_where_the_device_is_missing(
    emulated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = pickle.dumps(cf.RNN(3, 4, device=emulated))
    monkeypatch.delitem(_devices._registered, EMULATED)
    with pytest.raises(ValueError, match=r"device must be 'cpu', .*, got 'emulated'"):
        pickle.loads(saved)


@pytest.mark.slow
@unsanitized
def test_what_a_trainer_refuses(emulated: str, tmp_path: Path) -> None:
    model = model_on("cpu")
    message = r"device must be 'cpu', that of the model, got 'emulated': give CharLM\(\.\.\.\) or"
    with pytest.raises(ValueError, match=message):
        cf.Trainer(model, device=emulated)
    assert cf.Trainer(model_on(emulated), device=emulated).device == EMULATED
    optimizer = cf.optim.Adam(model_on("cpu").rnn)
    with pytest.raises(ValueError, match=r"optimizer must be one of model\.rnn"):
        cf.Trainer(model_on(emulated), optimizer=optimizer)


@fused
@pytest.mark.slow
@unsanitized
@pytest.mark.parametrize(
    ("order", "compute_dtype"),
    [
        (("cpu", EMULATED, "cpu"), "float32"),
        ((EMULATED, "cpu", EMULATED), "float32"),
        ((EMULATED, "cpu", EMULATED), "bfloat16"),
    ],
    ids=str,
)
def test_a_training_moves_between_devices(
    order: tuple[str, ...], compute_dtype: str, emulated: str, tmp_path: Path
) -> None:
    """Its checkpoints hold no device, and are those of a training that stayed."""
    path = tmp_path / "m.safetensors"
    trainer = trainer_on(order[0], compute_dtype, checkpoint_path=path)
    trainer.fit(steps=3, progress=False)
    for device in order[1:]:
        trainer = cf.Trainer.resume(path, trainer.corpus, checkpoint_path=path, device=device)
        assert trainer.device == trainer.model.device == device
        trainer.fit(steps=3, progress=False)
    stayed = trainer_on(order[1], compute_dtype, checkpoint_path=tmp_path / "stayed.safetensors")
    for _ in order:
        stayed.fit(steps=3, progress=False)
    assert path.read_bytes() == (tmp_path / "stayed.safetensors").read_bytes()
    assert EMULATED.encode() not in path.read_bytes()
    for device in ("cpu", emulated):
        model = cf.CharLM.load(path, device=device)
        assert model.device == device
        assert bytes_of(model.rnn.parameters()) == bytes_of(trainer.model.rnn.parameters())


@pytest.mark.slow
@unsanitized
def test_a_training_resumed_elsewhere_is_near(emulated: str, tmp_path: Path) -> None:
    """With every instruction set of the CPU, whose sums other devices may round differently."""
    path = tmp_path / "m.safetensors"
    trainer = trainer_on("cpu", checkpoint_path=path)
    trainer.fit(steps=3, progress=False)
    moved = cf.Trainer.resume(path, trainer.corpus, device=emulated)
    for one in (trainer, moved):
        one.fit(steps=3, progress=False)
    for name, value in trainer.model.rnn.parameters().items():
        np.testing.assert_allclose(moved.model.rnn.parameters()[name], value, atol=1e-4)


@fused
@pytest.mark.slow
@unsanitized
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_the_same_text(emulated: str, compute_dtype: str, tmp_path: Path) -> None:
    trainer = trainer_on("cpu", compute_dtype)
    trainer.fit(steps=20, progress=False)
    trainer.model.save(tmp_path / "m.safetensors")
    model = cf.CharLM.load(tmp_path / "m.safetensors", device=emulated)
    for options in ({}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}, {"temperature": 0}):
        texts = [m.sample(150, "the ", seeds=range(5), **options) for m in (model, trainer.model)]
        assert texts[0] == texts[1]
    assert len(set(model.sample(50, seeds=range(5)))) == 5
    assert "".join(model.stream(50, seed=3)) == trainer.model.sample(50, seed=3)
    halved = [m.sample(50, seed=3, weight_dtype="bfloat16") for m in (model, trainer.model)]
    assert halved[0] == halved[1]


@pytest.mark.slow
@unsanitized
def test_out_of_memory_names_the_device(emulated: str) -> None:
    """The emulated card has 64 GB, of which a single buffer would take more."""
    trainer = cf.Trainer(
        cf.CharLM(cf.Vocabulary.from_text("abcd"), 1100, 1, "rnn", device=emulated)
    )
    small, large = np.zeros((2, 2), "i1"), np.zeros((4096, 4096), "i1")
    message = r"out of memory on emulated: 73\.8 GB more were asked for; try a smaller batch_size"
    with pytest.raises(MemoryError, match=message):
        trainer.step(large, large)
    assert trainer.step(small, small) > 0


@pytest.mark.slow
@unsanitized
def test_processes_share_out_a_training(emulator: Path, tmp_path: Path) -> None:
    """On devices whose gradients are copied to the host, where gloo sums them."""
    names = ("lstm", "documents in parts")
    program = [str(Path(shared_trainings.__file__)), str(tmp_path), "", str(emulator), *names]
    for done in run_processes([program] * 2, tmp_path):
        assert done == (0, "", "")
    found = np.load(tmp_path / "results.npz")
    expected = shared_trainings.run(None, tmp_path, None, names)
    terms = SEQ_LEN * BATCH * HIDDEN
    tolerance = shared_out("float64", terms=terms, steps=SEQ_LEN, updates=STEPS)
    assert len(expected) == len(found.files) > 40
    for name, value in expected.items():
        assert_close(name, found[name], value, tolerance)


# ---- commands -----------------------------------------------------------------------------------


def output(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@fused
@pytest.mark.slow
@unsanitized
def test_commands_on_both_devices(
    emulated: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What they write and print is the same; a training goes on on the other device."""
    text, config = tmp_path / "t.txt", tmp_path / "run.toml"
    text.write_text(TEXT)
    sizes = ("--hidden-size", 8, "--batch-size", 3, "--seq-len", 10, "--sample-length", 20)
    models = {}
    for device in ("cpu", emulated):
        config.write_text(f'device = "{device}"\n')
        models[device] = path = tmp_path / f"{device}.safetensors"
        said = output(capsys, "train", text, "-o", path, *sizes, "--steps", 4, "--config", config)
        assert (f"on {EMULATED}" in said) == (device == EMULATED)
    assert models["cpu"].read_bytes() == models[EMULATED].read_bytes()
    output(capsys, "train", "-o", models["cpu"], "--resume", "--steps", 6, "--device", emulated)
    output(capsys, "train", "-o", models[EMULATED], "--resume", "--steps", 6)
    assert models["cpu"].read_bytes() == models[EMULATED].read_bytes()
    model = models["cpu"]
    tuned = [tmp_path / f"tuned-{device}.safetensors" for device in ("cpu", emulated)]
    for path, device in zip(tuned, ("cpu", emulated), strict=True):
        output(capsys, "train", text, "-o", path, "--init-from", model, *sizes[2:], "--steps", 2,
               "--device", device)  # fmt: skip
    assert tuned[0].read_bytes() == tuned[1].read_bytes()

    def both(*command: object) -> list[str]:
        said = []
        for device in ("cpu", emulated):
            lines = io.TextIOWrapper(io.BytesIO(b"the dog\nthe fox\n"))
            monkeypatch.setattr(sys, "stdin", lines)
            said.append(output(capsys, *command, "--device", device))
        assert said[0] and said[0] == said[1]
        return said

    both("sample", model, "--length", 50, "--seed", 3, "--num-samples", 2)
    both("eval", model, text)
    both("eval", model, text, "--weight-dtype", "bfloat16")
    both("score", model)
    pages = []
    for device in ("cpu", emulated):
        page = tmp_path / f"{device}.html"
        output(capsys, "view", model, text, "-o", page, "--length", 60, "--device", device)
        pages.append(page.read_text())
    assert pages[0] == pages[1]


@pytest.mark.slow
@unsanitized
def test_bench_times_the_device_beside_the_cpu(
    emulated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few tiny cases of each suite."""
    text, result = tmp_path / "t.txt", tmp_path / "r.json"
    text.write_text(TEXT)
    said = output(
        capsys, "bench", "train", "forward", "backward", "sample", "step", "gemm", "--quick",
        "--device", emulated, "--peers", "--blocks", 3, "--threads", 1, "--text", text,
        "--json", result, "--cases", "gru,2,3,8,1", "4,5,6",
    )  # fmt: skip
    assert f"kernels on {EMULATED}" in said and f"- device: {EMULATED}" in said
    rows = {row["suite"]: row for row in json.loads(result.read_text())["rows"]}
    assert len(rows) == 6
    for suite, row in rows.items():
        side = row["peers"].get(f"kernels on {EMULATED}")
        assert (side is None) == (suite == "gemm")
        assert side is None or side["seconds"]["median"] > 0
    assert main(["bench", "--device", "cpu"]) == 2
    assert "--device must be another than cpu" in capsys.readouterr().err
