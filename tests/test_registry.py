"""Cells, optimizers and rates: declared once, the same everywhere; and an added cell."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

from charrnn_fast import RNN, CharLM, _core, optim, registry
from charrnn_fast.cli import options
from charrnn_fast.reference import cells as reference_cells
from charrnn_fast.reference import optim as reference_optim
from installed import Environment

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", registry.OPTIMIZERS)
def test_an_optimizers_keywords_and_defaults_are_the_declared_ones(name: str) -> None:
    """They are written twice, for type checkers and help: here, that they say the same."""
    declared: dict[str, Any] = dict(registry.OPTIMIZERS[name].options)
    if "beta1" in declared:
        declared["betas"] = (declared.pop("beta1"), declared.pop("beta2"))
    for kind in (optim.KINDS[name], getattr(reference_optim, optim.KINDS[name].__name__)):
        parameters = inspect.signature(kind.__init__).parameters.values()
        given = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
        assert given == declared


def test_every_optimizer_has_a_class() -> None:
    assert set(optim.KINDS) == set(registry.OPTIMIZERS)


@pytest.mark.parametrize("rate", registry.DROPOUT_RATES)
def test_a_rate_is_an_option_wherever_networks_are_made(rate: str) -> None:
    for kind in (RNN, CharLM):
        assert inspect.signature(kind).parameters[rate].default == 0
    assert rate in options.NAMES


def test_the_reference_has_the_same_cells() -> None:
    assert list(reference_cells.CELLS) == list(registry.CELLS)
    for key, cell in registry.CELLS.items():
        twin = reference_cells.CELLS[key]
        assert (twin.num_gates, twin.num_states) == (len(cell.gates), cell.num_states)
        assert ("" if twin.weights is None else twin.weights[0]) == cell.unit_weights


def test_a_forget_gate_is_one_of_the_gates() -> None:
    for cell in registry.CELLS.values():
        assert (cell.forget_gate is None) == ("f" not in cell.gates)
        assert cell.forget_gate is None or cell.gates[cell.forget_gate] == "f"


# ---- a cell more -----------------------------------------------------------------------------

# Run in the package that has the cell: what it prints is compared here.
PROGRAM = """
import sys

sys.path.insert(0, sys.argv[1])  # the tests' helpers
import numpy as np
import tolerances

import charrnn_fast as cf
from charrnn_fast import optim, reference, registry

assert registry.CELLS["leaky_rnn", "tanh"].gates == "n"
rng = np.random.default_rng(0)
x, dy = rng.standard_normal((7, 3, 4)), rng.standard_normal((7, 3, 6))
rnn = cf.RNN(4, 5, 6, cell="leaky_rnn", num_layers=2, dtype="float64")
assert "weight_rate_l1" in rnn.parameters()
y, state = rnn.forward(x)
dx, dstate, gradients = rnn.backward(dy)
parameters = rnn.parameters(copy=True)
its_y, its_state, cache = reference.forward(parameters, x, cell="leaky_rnn")
its = reference.backward(parameters, cache, dy)
bound = tolerances.network(rnn.dtype, terms=5, steps=7 * 2)
tolerances.assert_close("y", y, its_y, bound)
for name, gradient in its[-1].items():
    tolerances.assert_close(name, gradients[name], gradient, bound)
optim.Adam(rnn).step(gradients)
print(sorted(rnn.parameters()))
"""


@pytest.mark.slow
@pytest.mark.unsanitized("builds a package of its own")
def test_a_cell_is_added_by_its_struct_its_entry_and_its_twin(
    regular: Environment, tmp_path: Path
) -> None:
    """`regular` has the package with the cell."""

    def run(*arguments: str) -> str:
        return regular.python(*arguments, cwd=tmp_path)

    assert "leaky_rnn" not in {cell["name"] for cell in _core.cells}  # not this process's
    assert "weight_rate_l0" in run("-c", PROGRAM, str(ROOT / "tests"))

    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    command = ("-m", "charrnn_fast")
    assert "leaky_rnn" in run(*command, "train", "--help")
    train = (*command, "train", "text.txt", "-o", "m.safetensors", "--cell", "leaky_rnn")
    sizes = ("--hidden-size", "24", "--num-layers", "2", "--batch-size", "4", "--seq-len", "20")
    run(*train, *sizes, "--learning-rate", "0.01", "--epochs", "20")
    log = (tmp_path / "m.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [e["validation_loss"] for e in map(json.loads, log) if e["type"] == "evaluation"]
    assert losses[-1] < losses[0] / 2
    assert "leaky_rnn, 2 layers of 24" in run(*command, "info", "m.safetensors")
    assert len(run(*command, "sample", "m.safetensors", "--length", "50")) >= 50
    run(*command, "view", "m.safetensors", "text.txt", "-o", "page.html")
    assert (tmp_path / "page.html").stat().st_size > 0
    run(
        *command,
        "bench",
        "train",
        "--cases",
        "leaky_rnn,2,5,8,1",
        "--threads",
        "1",
        "--peers",
        "--quick",
    )
