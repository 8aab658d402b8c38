"""The modules for PyTorch on a device, as far as that shows without a card.

The tensors are the CPU's, their networks those of the emulated device, whose kernels may access any
memory: so what is shown is that addresses, the workspace and PyTorch's stream go where they belong,
and that results are the CPU's bits. What a card alone shows is in docs/torch.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import charrnn_fast as cf
import devices
import tolerances
from charrnn_fast import _devices

torch = pytest.importorskip("torch")
operators = pytest.importorskip("charrnn_fast.torch.operators")
cft = pytest.importorskip("charrnn_fast.torch")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.unsanitized("loads a module that is built without sanitizers"),
    pytest.mark.host("names the device"),
]


class Emulated(operators.Card):  # type: ignore[misc, name-defined]
    """The emulated device, with a stream of "PyTorch"."""

    def __init__(self, module: Any) -> None:
        super().__init__(_devices.find(devices.NAME).capsule, module, torch.device("cpu"))
        self.module, self.its_stream = module, module.new_stream()
        self.allocated: list[int] = []
        self.kept: list[Any] = []

    def stream(self) -> int:
        return int(self.its_stream)

    def empty(self, elements: int, dtype: Any) -> Any:
        self.allocated.append(elements)
        self.kept.append(torch.full((elements,), float("nan"), dtype=dtype))
        return self.kept[-1]

    def run(self, call: Any, dtype: Any) -> None:
        """The work is done at once, for the CPU's tensors know no streams."""
        with self.finished():
            super().run(call, dtype)

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Runs what is queued before the workspace goes; nothing may be queued elsewhere."""
        self.kept.clear()
        yield
        assert self.module.queued(self.its_stream) > 0
        assert self.module.queued(self.module.stream()) == 0
        before = self.module.set_stream(self.its_stream)
        self.module.synchronize()
        self.module.set_stream(before)


@pytest.fixture
def card(emulator: Path) -> Emulated:
    module: ModuleType = devices.register(emulator)
    module.synchronize()
    return Emulated(module)


MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {"num_layers": 2, "dtype": torch.float64}),
    "projected": ("LSTM", {"proj_size": 3, "weight_drop": 0.2}),
    "gru": ("GRU", {"bidirectional": True, "dropout": 0.3, "num_layers": 2}),
    "rnn": ("RNN", {"bias": False, "layer_norm": True}),
}


def same(found: Any, wanted: Any) -> None:
    """The bits of the instruction set that adds up as the kernels do; others round otherwise."""
    if cf.build_info()["isa"] == "x86-64-v3":
        assert torch.equal(found, wanted)
    else:
        found, wanted = found.detach().numpy(), wanted.detach().numpy()
        tolerance = tolerances.network(found.dtype, terms=12 * 12, steps=8)
        tolerances.assert_close("a result", found, wanted, tolerance)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_calls_are_the_cpus(
    card: Emulated, name: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode, options = MODULES[name]
    torch.manual_seed(1)
    module = getattr(cft, mode)(5, 6, **options)
    dtype = options.get("dtype", torch.float32)
    x = torch.randn(4, 3, 5, dtype=dtype, requires_grad=True)
    states = [torch.randn(shape, dtype=dtype) for shape in _state_shapes(module)]
    first = tuple(states) if mode == "LSTM" else states[0]

    def run() -> list[Any]:
        given: Any = x
        if packed:
            given = torch.nn.utils.rnn.pack_padded_sequence(x, [2, 4, 1], enforce_sorted=False)
        torch.manual_seed(2)  # of the masks
        y, last = module(given, first)
        y = y.data if packed else y
        outputs = [y, *(last if isinstance(last, tuple) else (last,))]
        return [*outputs, *torch.autograd.grad(outputs, [x, *module.parameters()], outputs)]

    # The operators' way: plain calls are the CPU's alone.
    monkeypatch.setattr(operators, "is_plain", lambda: False)
    wanted = run()
    monkeypatch.setattr(operators, "card_for", lambda tensor: card)
    found = run()
    assert len(card.allocated) == 3, "a tape, and a workspace for each call"
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        same(a, b)


def _state_shapes(module: Any) -> list[tuple[int, int, int]]:
    core = operators.network(module._network)
    return [(layers, 3, width) for layers, _, width in core.state_shapes]


def test_frozen(card: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed weights are made on the device, too."""
    module = cft.GRU(5, 6)
    x = torch.randn(4, 3, 5)
    with torch.no_grad():
        wanted = module(x)
        monkeypatch.setattr(operators, "is_plain", lambda: False)
        monkeypatch.setattr(operators, "card_for", lambda tensor: card)
        with card.finished():
            module.freeze()
        found = module(x)
    for a, b in zip(found, wanted, strict=True):
        same(a, b)


def test_a_workspace_that_is_too_small_is_not_used(card: Emulated) -> None:
    core = operators.network(cft.GRU(5, 6)._network).on(card, torch.float32)
    parameters = [torch.randn(shape) for shape in core.parameter_shapes().values()]
    x, y = torch.randn(4, 3, 5), torch.zeros(4, 3, 6)
    arguments = ([p.data_ptr() for p in parameters], x.data_ptr(), 4, 3, None, y.data_ptr(), None)
    needed = core.forward(*arguments)
    assert needed > 0
    workspace = torch.empty(needed)
    assert core.forward(*arguments, workspace=(workspace.data_ptr(), needed - 1)) == needed
    assert card.module.queued(card.module.stream()) == 0
    with pytest.raises(ValueError, match="workspace must be the address of an array, got 0"):
        core.forward(*arguments, workspace=(0, needed))
    with pytest.raises(ValueError, match="x of a network on a device must be dense, got tokens"):
        core.forward(*arguments, tokens=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card() -> None:
    with pytest.raises(RuntimeError, match=r"device 'cuda:0' cannot be used: .*; or use 'cpu'"):
        cft.LSTM(5, 6, device="cuda")
