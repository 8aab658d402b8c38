"""The primitives of JAX that run the kernels: a sequence, its linear part and its backward.

Letters in shapes: T seq_len, B batch, I input_size, L num_layers, D directions, R width of h.

`forward` takes x [T, B, I], the initial states [L*D, B, ...], the parameters in the order of
`Network.shapes`, with `ragged` lengths [B] (int32) and with `masked` a seed of two words (uint32).
It gives y [T, B, D*R] and the last states, with `keep` a tape and marks for `backward` too. These
alone are calls of compiled code (`cpp/bindings/register_jax.cpp`). Differentiation makes of a
`forward` one with `keep` and a `tangent`, which is never computed, but transposed to `backward`.

Primitives, rather than `jax.custom_vjp`, let a vmap within a gradient become one larger batch,
whose parameters get one gradient: custom_vjp would ask for a gradient of each of its rows.

A network is named by the JSON of the arguments of `_core.NetworkFloat32`, so that a program that
was compiled or exported says by itself all that there is to know.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .. import _core

_MARK_WORDS = 4
_WORD = 4  # bytes of an element of a tape

for _target, _handler in _core.jax_handlers().items():
    jax.ffi.register_ffi_target(_target, _handler, platform="cpu")


class Network:
    """The shapes of the network of a name."""

    def __init__(self, name: str) -> None:
        core = _core.NetworkFloat32(**json.loads(name), output_size=0)
        self.hidden_width: int = core.hidden_width
        self.num_states: int = core.num_states
        self.shapes: dict[str, tuple[int, ...]] = core.parameter_shapes()
        self.state_shapes = core.state_shapes(1)
        self._core = core

    def tape_elements(self, T: Any, B: Any, folds: int, ragged: bool, masked: bool) -> Any:
        per_row, per_stream, constant = self._core.tape_size(ragged=ragged, masked=masked)
        return per_row * T * B + per_stream * B + constant * folds


@lru_cache(maxsize=1024)
def network(name: str) -> Network:
    """The network of a name."""
    return Network(name)


def network_name(**options: Any) -> str:
    """The name of a network: the arguments of `_core.NetworkFloat32`, as JSON."""
    return json.dumps(options, separators=(",", ":"))


class _Options(NamedTuple):
    """The parameters that all three primitives share."""

    network: str
    folds: int
    """Calls of B / folds rows each that became this one."""
    ragged: bool
    masked: bool
    differentiates_weights: bool
    """Of a forward with `keep` and of what follows it."""

    @property
    def of(self) -> Network:
        return network(self.network)

    @property
    def num_inputs(self) -> int:
        """x, states and parameters: what can be differentiated."""
        return 1 + self.of.num_states + len(self.of.shapes)

    @property
    def num_operands(self) -> int:
        return self.num_inputs + self.ragged + self.masked

    def batch_axes(self) -> list[int | None]:
        """The axis of B of each operand of a forward; None: it has none."""
        states, parameters = [1] * self.of.num_states, [None] * len(self.of.shapes)
        return [1, *states, *parameters, *[0] * self.ragged, *[None] * self.masked]

    def kept(self, x: Any) -> list[Any]:
        """Shapes and dtypes of tape and marks."""
        T, B, _ = x.shape
        elements = self.of.tape_elements(T, B, self.folds, self.ragged, self.masked)
        words = elements * (np.dtype(x.dtype).itemsize // _WORD)
        return [
            jax.ShapeDtypeStruct((words,), np.uint32),
            jax.ShapeDtypeStruct((self.folds, _MARK_WORDS), np.uint32),
        ]

    def results(self, x: Any) -> list[Any]:
        """Of y and the last states."""
        T, B, _ = x.shape
        shapes = [
            (T, B, self.of.hidden_width),
            *((layers, B, width) for layers, _, width in self.of.state_shapes),
        ]
        return [jax.ShapeDtypeStruct(shape, x.dtype) for shape in shapes]

    def attributes(self) -> dict[str, Any]:
        return {
            "network": self.network,
            "folds": np.int64(self.folds),
            "ragged": self.ragged,
            "masked": self.masked,
        }


def _forward_results(x: Any, options: _Options, keep: bool) -> list[Any]:
    return options.results(x) + (options.kept(x) if keep else [])


def _backward_results(x: Any, options: _Options, wants_dx: bool) -> list[Any]:
    shapes = [x.shape] * wants_dx
    shapes += [state.shape for state in options.results(x)[1:]]
    if options.differentiates_weights:
        shapes += options.of.shapes.values()
    return [jax.ShapeDtypeStruct(shape, x.dtype) for shape in shapes]


def _run_forward(*operands: Any, options: _Options, keep: bool) -> Any:
    results = _forward_results(operands[0], options, keep)
    call = jax.ffi.ffi_call("charrnn_fast_forward", results)
    return call(*operands, **options.attributes(), keep=keep)


def _run_backward(*operands: Any, options: _Options, wants_dx: bool) -> Any:
    results = _backward_results(operands[0], options, wants_dx)
    call = jax.ffi.ffi_call("charrnn_fast_backward", results)
    wanted = {"wants_dx": wants_dx, "wants_weights": options.differentiates_weights}
    return call(*operands, **options.attributes(), **wanted)


def _refuse_tangents(*_: Any, **__: Any) -> Any:
    raise NotImplementedError(
        "charrnn_fast.jax has no forward-mode derivatives (jax.jvp, jax.jacfwd, jax.linearize): "
        "use jax.grad, jax.vjp or jax.jacrev"
    )


def _refuse_second_derivatives(*_: Any, **__: Any) -> Any:
    raise NotImplementedError(
        "charrnn_fast.jax has no second derivatives: the gradients of RNN, LSTM and GRU cannot be "
        "differentiated again"
    )


def _primitive(name: str, run: Callable[..., Any], results: Callable[..., Any]) -> Any:
    """A primitive that `run` computes; results(x, **params): shapes and dtypes."""
    made = Primitive(f"charrnn_fast_{name}")
    made.multiple_results = True

    @lru_cache(maxsize=1024)
    def compiled(**params: Any) -> Any:
        return jax.jit(partial(made.bind, **params))

    made.def_impl(lambda *operands, **params: compiled(**params)(*operands))

    def abstract(x: Any, *_: Any, **params: Any) -> list[Any]:
        return [jax.core.ShapedArray(r.shape, r.dtype) for r in results(x, **params)]

    made.def_abstract_eval(abstract)
    mlir.register_lowering(made, mlir.lower_fun(run, multiple_results=True), platform="cpu")
    return made


_forward = _primitive("forward", _run_forward, _forward_results)
# After the operands of a forward: tape, marks, and the tangents of the inputs whose numbers `moved`
# has.
_tangent = _primitive("tangent", _refuse_tangents, lambda x, *, options, moved: options.results(x))
# After the operands of a forward: tape, marks, dy and the gradients of the last states. Results: dx
# if wanted, the gradients of the initial states, those of the parameters if wanted.
_backward = _primitive("backward", _run_backward, _backward_results)


def sequence(
    name: str, x: Any, states: Sequence[Any], parameters: Sequence[Any], lengths: Any, seed: Any
) -> list[Any]:
    """y and the last states; lengths or seed None: there are none."""
    options = _Options(name, 1, lengths is not None, seed is not None, False)
    more = [operand for operand in (lengths, seed) if operand is not None]
    return list(_forward.bind(x, *states, *parameters, *more, options=options, keep=False))


# ---- gradients ----------------------------------------------------------------------------------


def _forward_jvp(primals: Any, tangents: Any, *, options: _Options, keep: bool) -> Any:
    if keep:
        _refuse_second_derivatives()
    moved = tuple(n for n in range(options.num_inputs) if not isinstance(tangents[n], ad.Zero))
    first_weight = 1 + options.of.num_states
    options = options._replace(differentiates_weights=any(n >= first_weight for n in moved))
    *results, tape, marks = _forward.bind(*primals, options=options, keep=True)
    given = [tangents[n] for n in moved]
    return results, _tangent.bind(*primals, tape, marks, *given, options=options, moved=moved)


def _tangent_transpose(
    cotangents: Any, *operands: Any, options: _Options, moved: tuple[int, ...]
) -> list[Any]:
    saved = operands[: options.num_operands + 2]
    incoming = [
        jnp.zeros(c.aval.shape, c.aval.dtype) if isinstance(c, ad.Zero) else c for c in cotangents
    ]
    wants_dx = 0 in moved
    found = _backward.bind(*saved, *incoming, options=options, wants_dx=wants_dx)
    gradients = found if wants_dx else [None, *found]
    return [None] * len(saved) + [gradients[n] for n in moved]


ad.primitive_jvps[_forward] = _forward_jvp
ad.primitive_jvps[_tangent] = _refuse_second_derivatives
ad.primitive_jvps[_backward] = _refuse_second_derivatives
ad.primitive_transposes[_tangent] = _tangent_transpose


# ---- vmap ---------------------------------------------------------------------------------------


def _axis_size(operands: Sequence[Any], dims: Sequence[Any]) -> int:
    return next(int(a.shape[d]) for a, d in zip(operands, dims, strict=True) if d is not None)


def _folded(operand: Any, dim: Any, axis: int, size: int) -> Any:
    """An operand with the mapped axis, of that size, before `axis`, as one axis with it."""
    shape = list(operand.shape)
    if dim is None:
        operand = jnp.broadcast_to(
            jnp.expand_dims(operand, axis), [*shape[:axis], size, *shape[axis:]]
        )
    else:
        del shape[dim]
        operand = jnp.moveaxis(operand, dim, axis)
    shape[axis] *= size
    return operand.reshape(shape)


def _unfolded(result: Any, axis: int, size: int) -> Any:
    shape = list(result.shape)
    shape[axis : axis + 1] = [size, shape[axis] // size]
    return result.reshape(shape)


def _mapped(
    primitive: Any, operands: Sequence[Any], dims: Sequence[Any], **params: Any
) -> tuple[Any, Any]:
    """One call after another."""
    given = [jnp.moveaxis(a, d, 0) for a, d in zip(operands, dims, strict=True) if d is not None]

    def call(rows: list[Any]) -> Any:
        rest = iter(rows)
        each = [a if d is None else next(rest) for a, d in zip(operands, dims, strict=True)]
        return primitive.bind(*each, **params)

    results = jax.lax.map(call, given)
    return results, [0] * len(results)


def _in_one_call(
    primitive: Any,
    operands: Sequence[Any],
    dims: Sequence[Any],
    axes: Sequence[int | None],
    result_axes: Sequence[int],
    options: _Options,
    **params: Any,
) -> tuple[Any, Any]:
    """A call of a larger batch; axes: of the operands that have one of the batch."""
    size = _axis_size(operands, dims)
    given = [
        a if axis is None else _folded(a, d, axis, size)
        for a, d, axis in zip(operands, dims, axes, strict=True)
    ]
    options = options._replace(folds=size * options.folds)
    results = primitive.bind(*given, options=options, **params)
    pairs = zip(results, result_axes, strict=True)
    return [_unfolded(r, axis, size) for r, axis in pairs], result_axes


def _forward_batch(operands: Any, dims: Any, *, options: _Options, keep: bool) -> tuple[Any, Any]:
    axes = options.batch_axes()
    if options.differentiates_weights or _varies(dims, axes):
        return _mapped(_forward, operands, dims, options=options, keep=keep)
    result_axes = [1] * (1 + options.of.num_states) + [0, 0] * keep
    return _in_one_call(_forward, operands, dims, axes, result_axes, options, keep=keep)


def _backward_batch(
    operands: Any, dims: Any, *, options: _Options, wants_dx: bool
) -> tuple[Any, Any]:
    axes = [*options.batch_axes(), 0, 0, 1, *[1] * options.of.num_states]
    # each row has gradients of its own of weights that all share; a tape of all rows stays one
    tape = options.num_operands
    if options.differentiates_weights or _varies(dims, axes) or dims[tape] is None:
        return _mapped(_backward, operands, dims, options=options, wants_dx=wants_dx)
    result_axes = [1] * (wants_dx + options.of.num_states)
    return _in_one_call(_backward, operands, dims, axes, result_axes, options, wants_dx=wants_dx)


def _varies(dims: Sequence[Any], axes: Sequence[int | None]) -> bool:
    """Whether an operand without rows, a weight or a seed, differs from row to row."""
    return any(d is not None and axis is None for d, axis in zip(dims, axes, strict=True))


batching.primitive_batchers[_forward] = _forward_batch
batching.primitive_batchers[_backward] = _backward_batch
batching.primitive_batchers[_tangent] = partial(_mapped, _tangent)
