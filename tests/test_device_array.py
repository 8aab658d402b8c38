"""DeviceArray: arrays in a card's memory, shared with other libraries and their streams.

The card is the emulated one (tests/cuda), so work runs only when somebody waits for it, and a
stream that does not wait for another reads memory that nothing has written.
"""

from __future__ import annotations

import gc
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
import devices
from charrnn_fast import DeviceArray

pytestmark = [
    pytest.mark.slow,
    pytest.mark.unsanitized("loads a module that is built without sanitizers"),
    pytest.mark.host("names the device"),
]

EMULATED = devices.NAME
INPUTS, H, OUTPUTS = 5, 6, 4


@pytest.fixture(scope="module")
def module(emulator: Path) -> ModuleType:
    return devices.register(emulator)


class Foreign:
    """Another library's array, which that library fills on a stream of its own."""

    def __init__(self, module: Any, x: Any, *, waits: bool = True) -> None:
        self.module, self.x, self.waits = module, np.asarray(x, order="C"), waits
        self.own = module.new_stream()
        before = module.set_stream(self.own)
        self.owner, self.address = module.allocate(x.nbytes)
        module.upload(self.x.reshape(-1).view(np.uint8), self.address)
        module.set_stream(before)

    def order(self, stream: int) -> None:
        if self.waits:
            self.module.wait_in_stream(stream, self.own)


class ByDlpack(Foreign):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, *, stream: int, max_version: Any = None) -> object:
        self.order(stream)
        size = self.x.itemsize
        code = {"i": 0, "u": 1, "f": 2}[self.x.dtype.kind]
        strides = [stride // size for stride in self.x.strides]
        return self.module.to_dlpack(
            self.owner, self.address, self.x.shape, strides, (code, 8 * size), 0, bool(max_version)
        )


class ByOldDlpack(ByDlpack):
    def __dlpack__(self, *, stream: int) -> object:  # type: ignore[override]
        return super().__dlpack__(stream=stream)


class ByInterface(Foreign):
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.x.shape,
            "typestr": self.x.dtype.str,
            "data": (self.address, False),
            "stream": self.own if self.waits else None,
        }


FOREIGN = [ByDlpack, ByOldDlpack, ByInterface]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "uint8", "bool", "f2"])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (2, 3, 4)], ids=str)
def test_to_the_card_and_back(module: ModuleType, dtype: str, shape: tuple[int, ...]) -> None:
    x = np.arange(math.prod(shape)).reshape(shape).astype(dtype)
    there = DeviceArray.from_numpy(x, EMULATED)
    assert (there.shape, there.dtype, there.nbytes) == (x.shape, x.dtype, x.nbytes)
    assert (there.ndim, there.size, there.device) == (x.ndim, x.size, EMULATED)
    back = there.numpy()
    assert back.dtype == x.dtype and back.shape == x.shape and np.array_equal(back, x)
    assert repr(there) == f"DeviceArray(shape={shape}, dtype={x.dtype.name}, device='emulated')"
    assert DeviceArray.from_numpy(x.T, EMULATED).numpy().tobytes() == x.T.tobytes()


@pytest.mark.parametrize("kind", FOREIGN)
def test_an_array_of_another_library(module: ModuleType, kind: type[Foreign]) -> None:
    for x in (np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(4)):
        foreign = kind(module, x)
        taken = DeviceArray.from_dlpack(foreign, EMULATED)
        assert taken.address == foreign.address, "shared, not copied"
        del foreign
        assert np.array_equal(taken.numpy(), x)
    module.set_order(0)
    ones = np.ones((1, 1, INPUTS), np.float32)
    rnn = cf.RNN(INPUTS, 2, cell="rnn", device=EMULATED)
    unordered: Any = kind(module, ones, waits=False)
    y, _ = rnn.forward(unordered)
    assert not np.array_equal(y.numpy(), rnn.forward(ones)[0]), "the wait makes it right"


def test_another_library_takes_one(module: ModuleType) -> None:
    x = np.arange(6, dtype=np.float64).reshape(2, 3)
    for version in (None, (0, 8), (1, 0), (2, 0)):
        there = DeviceArray.from_numpy(x, EMULATED)
        stream, found = module.new_stream(), np.zeros_like(x)
        assert there.__dlpack_device__() == (2, 0)
        capsule = there.__dlpack__(stream=stream, max_version=version)
        del there
        owner, address, shape, strides, element, place, read_only = module.from_dlpack(capsule)
        assert (shape, strides, element) == ([2, 3], [3, 1], (2, 64, 1))
        assert place == (2, 0) and read_only is False
        with pytest.raises(BufferError, match="must be unused"):
            module.from_dlpack(capsule)
        before = module.set_stream(stream)
        module.download(address, found.reshape(-1).view(np.uint8))
        assert module.set_stream(before) == stream
        assert np.array_equal(found, x)
        del owner, capsule
    # who says that it orders for itself is not waited for
    there = DeviceArray.from_numpy(x, EMULATED)
    interface = there.__cuda_array_interface__
    assert interface["data"] == (there.address, False) and interface["strides"] is None
    assert (interface["typestr"], interface["shape"]) == ("<f8", (2, 3))
    assert interface["stream"] == module.stream()
    assert module.queued(module.stream()) > 0
    there.__dlpack__(stream=-1)
    there.__dlpack__()  # to the default stream, which waits
    assert module.queued(module.stream()) > 0, "nobody has waited on the host"
    for stream, message in ((0, "-1, 1, 2 or a cudaStream_t, got 0"), (-2, "in -1 to .*, got -2")):
        with pytest.raises(ValueError, match=f"stream must be {message}"):
            there.__dlpack__(stream=stream)
    with pytest.raises(BufferError, match="dl_device must be"):
        there.__dlpack__(dl_device=(1, 0))
    with pytest.raises(BufferError, match="copy must be"):
        there.__dlpack__(copy=True)


def test_its_memory_comes_back(module: ModuleType) -> None:
    module.synchronize()
    gc.collect()
    free, _ = module.memory(0)
    x = np.zeros((64, 1000), np.float32)
    kept = [DeviceArray.from_numpy(x, EMULATED) for _ in range(3)]
    addresses = {array.address for array in kept}
    capsule = kept[0].__dlpack__(stream=1)
    del kept
    again = [DeviceArray.empty(x.shape, x.dtype, EMULATED) for _ in range(2)]
    assert {array.address for array in again} < addresses, "reused"
    for array in again:
        array.__cuda_array_interface__  # noqa: B018 - others see it: it is not reused
    del array, again, capsule
    gc.collect()
    assert module.memory(0)[0] == free


NETWORKS: dict[str, dict[str, Any]] = {
    "lstm": {"cell": "lstm", "num_layers": 2},
    "projected": {"cell": "lstm", "proj_size": 3, "dtype": "float64"},
    "gru": {"cell": "gru", "bidirectional": True, "dropout": 0.3, "num_layers": 2},
    "rnn": {"cell": "rnn", "output_size": None},
}


def parts(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def moved(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(moved, value))
    return None if value is None else DeviceArray.from_numpy(value, EMULATED)


def same(found: Any, wanted: Any) -> None:
    assert isinstance(found, DeviceArray)
    found = found.numpy()
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    assert np.ascontiguousarray(found).tobytes() == np.ascontiguousarray(wanted).tobytes()


@pytest.mark.parametrize("rule", ["SGD", "Adam"])
@pytest.mark.parametrize("name", NETWORKS)
def test_updates_from_gradients_of_the_card(module: ModuleType, name: str, rule: str) -> None:
    """The bits of the same updates from NumPy's arrays; the host waits for nothing."""
    options = {"output_size": OUTPUTS, **NETWORKS[name]}
    there, here = (cf.RNN(INPUTS, H, **options, device=EMULATED) for _ in range(2))
    optimizers = [getattr(cf.optim, rule)(rnn, lr=0.1) for rnn in (there, here)]
    x = np.linspace(-1, 1, 3 * 2 * INPUTS, dtype=there.dtype).reshape(3, 2, INPUTS)
    masks: dict[str, Any] = {"mask_seed": 1} if there.dropout else {}
    for _ in range(3):
        y, _ = there.forward(DeviceArray.from_numpy(x, EMULATED), **masks)
        y_here, _ = here.forward(x, **masks)
        gradients = there.backward(y)[2]
        bias = "bias_hh_l0"
        of_another = ByDlpack(module, gradients[bias].numpy())
        optimizers[0].step(gradients | {bias: of_another})
        assert module.queued(module.stream()) > 0
        optimizers[1].step(here.backward(y_here)[2])
        assert all(isinstance(gradient, DeviceArray) for gradient in gradients.values())
        for key, value in here.parameters().items():
            assert there.parameters()[key].tobytes() == value.tobytes(), key


def test_gradients_of_the_card_that_no_optimizer_takes(module: ModuleType) -> None:
    rnn = cf.RNN(INPUTS, H, OUTPUTS, cell="lstm", device=EMULATED)
    optimizer = cf.optim.Adam(rnn)
    y, _ = rnn.forward(DeviceArray.from_numpy(np.ones((3, 2, INPUTS), "f4"), EMULATED))
    gradients = rnn.backward(y)[2]
    before = rnn.parameters(copy=True)
    name = "weight_ih_l0"
    shape = gradients[name].shape

    def refused(error: type[Exception], message: str, value: Any, of: Any = optimizer) -> None:
        with pytest.raises(error, match=message):
            of.step(gradients | {name: value})

    refused(TypeError, "weight_ih_l0'.* must be on emulated", np.zeros(shape, "f4"))
    row_major = DeviceArray.from_numpy(np.zeros(shape, "f4"), EMULATED)
    refused(ValueError, "must be stored as backward returns it", row_major)
    refused(ValueError, "must have the shape", DeviceArray.from_numpy(np.zeros(3, "f4"), EMULATED))
    refused(TypeError, "dtype", DeviceArray.from_numpy(np.zeros(shape), EMULATED))
    on_cpu = cf.optim.Adam(cf.RNN(INPUTS, H, OUTPUTS, cell="lstm"))
    refused(TypeError, "must be a NumPy array for a network on the CPU", gradients[name], on_cpu)
    for key, value in rnn.parameters().items():
        assert np.array_equal(value, before[key])


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_on_arrays_of_the_card(module: ModuleType, name: str, ragged: bool) -> None:
    """The bits of the same calls on NumPy's arrays; the host waits for nothing."""
    rnn = cf.RNN(
        INPUTS, H, **{"output_size": OUTPUTS, "seed": 1, **NETWORKS[name]}, device=EMULATED
    )
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, 3, INPUTS)).astype(rnn.dtype)
    options: dict[str, Any] = {"lengths": [2, 4, 0]} if ragged else {}
    if rnn.dropout:
        options["mask_seed"] = 7
    _, state = rnn.forward(x, **options)
    y, last = rnn.forward(x, state, **options)
    dy = rng.standard_normal(y.shape).astype(rnn.dtype)
    dx, dstate, gradients = rnn.backward(dy, state)
    module.synchronize()
    y_there, last_there = rnn.forward(moved(x), moved(state), **options)
    found = rnn.backward(moved(dy), moved(state))
    assert module.queued(module.stream()) > 0
    same(y_there, y)
    for there, here in zip(parts(last_there), parts(last), strict=True):
        same(there, here)
    same(found[0], dx)
    for there, here in zip(parts(found[1]), parts(dstate), strict=True):
        same(there, here)
    assert found[2].keys() == gradients.keys()
    for key, here in gradients.items():
        same(found[2][key], here)


def test_tokens_and_nothing_else(module: ModuleType) -> None:
    rnn = cf.RNN(INPUTS, H, OUTPUTS, seed=1, device=EMULATED)
    tokens = np.array([[1, 2], [0, 4], [3, 3]], np.int32)
    y, last = rnn.forward(tokens)
    dx, dstate, gradients = rnn.backward(None, last)
    y_there, _ = rnn.forward(moved(tokens))
    same(y_there, y)
    found = rnn.backward(None, moved(last))
    assert dx is None and found[0] is None
    for there, here in zip(parts(found[1]), parts(dstate), strict=True):
        same(there, here)
    for key, here in gradients.items():
        same(found[2][key], here)
    with pytest.raises(ValueError, match=r"x\[1, 0\] must be in 0 to 4, got 5"):
        rnn.forward(moved(np.array([[1, 2], [5, 4]])))


def test_steps(module: ModuleType) -> None:
    """Arrays of the host and of the card in turns carry one state."""
    wanted, rnn = (
        cf.RNN(INPUTS, H, OUTPUTS, seed=1, cell="lstm", device=EMULATED) for _ in range(2)
    )
    rng = np.random.default_rng(3)
    for number in range(5):
        x = rng.standard_normal((2, INPUTS)).astype(np.float32)
        y = wanted.step(x)
        if number % 2:
            assert np.array_equal(rnn.step(x), y)
        else:
            same(rnn.step(moved(x)), y)
        if number == 2:
            for there, here in zip(rnn.state, wanted.state, strict=True):
                assert np.array_equal(there, here)
    with pytest.raises(ValueError, match=r"the carried state's batch of 2, got 3"):
        rnn.step(moved(np.zeros((3, INPUTS), np.float32)))
    rnn.reset()
    wanted.reset()
    same(rnn.step(moved(x[0])), wanted.step(x[0]))
    same(rnn.step(moved(np.array(2))), wanted.step(2))
    same(rnn.step(moved(np.array([3]))), wanted.step(np.array([3])))


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_network_on_another_librarys_array(module: ModuleType, kind: type[Foreign]) -> None:
    rnn = cf.RNN(INPUTS, H, OUTPUTS, seed=1, device=EMULATED)
    x = np.random.default_rng(2).standard_normal((4, 3, INPUTS)).astype(np.float32)
    y, _ = rnn.forward(x)
    for order in range(4):
        module.set_order(order)
        given: Any = kind(module, x)
        found, _ = rnn.forward(given)
        del given  # freed now: the work keeps it
        same(found, y)
    module.set_order(0)


def test_wrong_arrays(module: ModuleType) -> None:
    rnn = cf.RNN(INPUTS, H, OUTPUTS, device=EMULATED)
    x = np.zeros((4, 3, INPUTS), np.float32)
    there = moved(x)
    on_host = cf.RNN(INPUTS, H, OUTPUTS)
    with pytest.raises(TypeError, match="x must be a NumPy array for a network on the CPU, got De"):
        on_host.forward(there)
    with pytest.raises(TypeError, match="x must have dtype float32 or be integer tokens, got floa"):
        rnn.forward(moved(x.astype(np.float64)))
    with pytest.raises(ValueError, match=r"x must have shape \[T, B, 5\], got \(4, 3, 6\)"):
        rnn.forward(moved(np.zeros((4, 3, INPUTS + 1), np.float32)))
    with pytest.raises(ValueError, match="a batch of 1 or more, got 0"):
        rnn.forward(moved(x[:, :0]))
    state = np.zeros((1, 3, H), np.float32)
    with pytest.raises(
        TypeError, match=r"state must be on emulated as the other arrays .* got nda"
    ):
        rnn.forward(there, state)
    with pytest.raises(ValueError, match=r"state must have the shape .* got \(1, 2, 6\)"):
        rnn.forward(there, moved(state[:, :2].copy()))
    rnn.forward(there)
    with pytest.raises(ValueError, match=r"dy must have the shape of y, \[T, B, O\] = \(4, 3, 4\)"):
        rnn.backward(there)
    with pytest.raises(TypeError, match="dstate must be on emulated"):
        rnn.backward(moved(np.zeros((4, 3, OUTPUTS), np.float32)), state)
    with pytest.raises(TypeError, match="does not become a NumPy array by itself"):
        np.asarray(there)
    with pytest.raises(ValueError, match="device must be a GPU, got 'cpu'"):
        DeviceArray.from_numpy(x, "cpu")
    with pytest.raises(TypeError, match="x must be a NumPy array, got list"):
        DeviceArray.from_numpy([1.0], EMULATED)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="x must be of native numbers or bool, got complex64"):
        DeviceArray.from_numpy(x.astype(np.complex64), EMULATED)
    with pytest.raises(TypeError, match="x must have DLPack or __cuda_array_interface__, got int"):
        DeviceArray.from_dlpack(3, EMULATED)
    with pytest.raises(
        ValueError, match=r"x must be on 'emulated', to DLPack \(2, 0\), got \(1, 0"
    ):
        DeviceArray.from_dlpack(x, EMULATED)
    with pytest.raises(ValueError, match=r"x must be in row-major order, got strides \(4, 8\)"):
        DeviceArray.from_dlpack(ByDlpackTransposed(module, x), EMULATED)
    with pytest.raises(TypeError, match="are made by DeviceArray"):
        DeviceArray()


class ByDlpackTransposed(ByDlpack):
    def __dlpack__(self, *, stream: int, max_version: Any = None) -> object:
        self.order(stream)
        return self.module.to_dlpack(self.owner, self.address, (2, 3), (1, 2), (2, 32), 0, True)
