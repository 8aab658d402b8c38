"""Shared parts of the kernel tests: networks of every kind, inputs, and ways to run them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

import charrnn_fast as cf
from charrnn_fast import reference
from tolerances import network

Array = NDArray[Any]
State = Any  # an array, or a tuple of two

UNITS = ("rnn_tanh", "rnn_relu", "gru", "lstm")
BIASES: tuple[bool | str, ...] = (True, "single", False)
# 1, primes, and one short of, equal to and one past every vector width (2 to 16 lanes) and tile
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 23, 31, 32, 33, 47, 48, 49, 63, 64, 65)


@dataclass(frozen=True)
class Case:
    """A network and what it is run on; every array is drawn from `seed`, in [-1, 1)."""

    unit: str = "rnn_tanh"
    num_layers: int = 1
    bias: bool | str = True
    dtype: str = "float32"
    seq_len: int = 5
    batch: int = 3
    input_size: int = 4
    hidden_size: int = 6
    output_size: int | None = None
    tokens: bool = False
    seed: int = 0
    compute_dtype: str = "float32"

    @property
    def kind(self) -> dict[str, Any]:
        """The keywords that choose the cell."""
        cell, _, nonlinearity = self.unit.partition("_")
        return {"cell": cell, "nonlinearity": nonlinearity or "tanh"}

    @property
    def num_states(self) -> int:
        return 2 if self.unit == "lstm" else 1

    @property
    def steps(self) -> int:
        """How many steps a value runs through, in time and in depth."""
        return self.seq_len + self.num_layers

    @property
    def terms(self) -> int:
        """The length of the longest sum: over inputs and hidden units, or time and batch."""
        return max(
            self.input_size + self.hidden_size, self.seq_len * self.batch, self.output_size or 0
        )

    def network(self, **options: Any) -> cf.RNN:
        return cf.RNN(
            self.input_size,
            self.hidden_size,
            self.output_size,
            num_layers=self.num_layers,
            bias=self.bias,
            dtype=self.dtype,
            seed=self.seed,
            compute_dtype=self.compute_dtype,
            **self.kind,
            **options,
        )

    def parameters(self, **options: Any) -> dict[str, Array]:
        return reference.init_parameters(
            self.input_size,
            self.hidden_size,
            self.output_size,
            cell=self.kind["cell"],
            num_layers=self.num_layers,
            bias=self.bias,
            dtype=self.dtype,
            seed=self.seed,
            **options,
        )

    def x(self) -> Array:
        if self.tokens:
            rng = np.random.default_rng((self.seed, 1))
            return rng.integers(0, self.input_size, (self.seq_len, self.batch))
        return self._draw(1, self.seq_len, self.batch, self.input_size)

    def dy(self) -> Array:
        return self._draw(2, self.seq_len, self.batch, self.output_size or self.hidden_size)

    def targets(self) -> Array:
        """Tokens of the decoder's output, one in six of them -1."""
        rng = np.random.default_rng((self.seed, 3))
        shape = (self.seq_len, self.batch)
        targets = rng.integers(0, self.output_size or self.hidden_size, shape)
        return np.where(rng.random(shape) < 1 / 6, -1, targets)

    def state(self) -> State:
        return self._state(4)

    def dstate(self) -> State:
        return self._state(5)

    def _state(self, stream: int) -> State:
        shape = (self.num_layers, self.batch, self.hidden_size)
        if self.num_states == 1:
            return self._draw(stream, *shape)
        return self._draw(stream, *shape), self._draw(stream + 100, *shape)

    def _draw(self, stream: int, *shape: int) -> Array:
        rng = np.random.default_rng((self.seed, stream))
        return rng.uniform(-1, 1, shape).astype(self.dtype)

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)


def cases(min_seq_len: int = 0, max_seq_len: int = 12) -> st.SearchStrategy[Case]:
    """Networks of all kinds and awkward sizes."""
    return st.builds(
        Case,
        unit=st.sampled_from(UNITS),
        num_layers=st.integers(1, 3),
        bias=st.sampled_from(BIASES),
        dtype=st.sampled_from(("float32", "float64")),
        seq_len=st.integers(min_seq_len, max_seq_len),
        batch=st.one_of(st.integers(1, 9), st.sampled_from((15, 16, 17, 31, 33))),
        input_size=st.sampled_from(SIZES),
        hidden_size=st.sampled_from(SIZES),
        output_size=st.one_of(st.none(), st.sampled_from(SIZES)),
        tokens=st.booleans(),
        seed=st.integers(0, 2**16),
    )


def parts(state: State) -> tuple[Array, ...]:
    """h, or h and c."""
    return state if isinstance(state, tuple) else (state,)


def rows(state: State, chosen: Any) -> State:
    """The state of some rows of the batch."""
    taken = tuple(np.ascontiguousarray(s[:, chosen]) for s in parts(state))
    return taken if isinstance(state, tuple) else taken[0]


def wide(value: Any) -> Any:
    """The same numbers in float64: an array, a tuple or a dict of them; tokens stay as they are."""
    if isinstance(value, dict):
        return {name: wide(v) for name, v in value.items()}
    if isinstance(value, tuple):
        return tuple(wide(v) for v in value)
    return value.astype("float64") if np.issubdtype(value.dtype, np.floating) else value


def named(
    y: Array, state: State, dx: Array | None, dstate: State, grads: dict[str, Array]
) -> Iterator[tuple[str, Array]]:
    """All results of one forward and backward, each with its name."""
    yield "y", y
    yield from zip(("h_n", "c_n"), parts(state), strict=False)
    if dx is not None:
        yield "dx", dx
    yield from zip(("dh_0", "dc_0"), parts(dstate), strict=False)
    for name, grad in grads.items():
        yield f"d {name}", grad


def run(net: cf.RNN, case: Case) -> dict[str, Array]:
    """One forward and backward by the kernels."""
    y, state = net.forward(case.x(), case.state())
    dx, dstate, grads = net.backward(case.dy(), case.dstate())
    return dict(named(y, state, dx, dstate, grads))


def run_reference(parameters: dict[str, Array], case: Case) -> dict[str, Array]:
    """The same by the NumPy reference, in float64."""
    exact = wide(parameters)
    y, state, cache = reference.forward(exact, wide(case.x()), wide(case.state()), **case.kind)
    return dict(
        named(y, state, *reference.backward(exact, cache, wide(case.dy()), wide(case.dstate())))
    )


def smallest_preactivation(parameters: dict[str, Array], case: Case) -> float:
    """How near a relu network comes to a kink, where neither rounding nor differences are small."""
    if case.unit != "rnn_relu" or not case.seq_len:
        return np.inf
    exact, smallest = wide(parameters), np.inf
    cache = reference.forward(exact, wide(case.x()), wide(case.state()), **case.kind)[2]
    for k, layer in enumerate(cache.layers):
        W_xh, W_hh = exact[f"weight_ih_l{k}"], exact[f"weight_hh_l{k}"]
        biases = (exact.get(f"bias_{part}_l{k}", 0) for part in ("ih", "hh"))
        gx = W_xh.T[layer.x] if layer.x.ndim == 2 else layer.x @ W_xh.T
        gh = np.stack([h for (h,) in layer.states[:-1]]) @ W_hh.T
        smallest = min(smallest, float(np.abs(gx + gh + sum(biases)).min()))
    return smallest


def off_kinks(case: Case) -> bool:
    """No unit of a relu network is so near its kink that rounding may put it on the other side."""
    tolerance = network(case.dtype, terms=case.terms, steps=case.steps)
    return smallest_preactivation(dict(case.network().parameters()), case) > tolerance


def moved_off_kinks(case: Case) -> Case:
    """The same case with the first seed that is off its kinks."""
    return next(moved for n in range(100) if off_kinks(moved := case.but(seed=n)))
