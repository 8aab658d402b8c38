"""The calls of a network on arrays of its GPU: they queue their work, the host waits for nothing.

Letters as in `RNN`, whose forward, backward and step these are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._checks import token_array
from .device_array import DeviceArray, is_of_a_gpu
from .states import State, StateLayout

Array = NDArray[Any]


class DeviceCalls:
    """The calls of one network."""

    def __init__(
        self,
        core: Any,
        states: StateLayout,
        *,
        input_size: int,
        output_size: int,
        dtype: np.dtype[Any],
        device: str,
    ) -> None:
        """core: the compiled network; output_size: of y."""
        self._core, self._states = core, states
        self._input_size, self._output_size = input_size, output_size
        self._dtype, self._device = dtype, device

    # ---- the calls ------------------------------------------------------------------------

    def forward(
        self,
        x: DeviceArray | Array,
        state: State,
        keep: bool,
        lengths: Array | None,
        mask_seed: int | None,
    ) -> tuple[DeviceArray, DeviceArray, int]:
        """x: from `input`. -> y, the last state in the kernels' form, the forward's number."""
        seq_len, batch = x.shape[:2]
        first = None if state is None else self.state("state", state, batch)
        y = self._new((seq_len, batch, self._output_size))
        last = self._new(self._core.state_shape(batch))
        number = self._core.forward_on_device(
            seq_len,
            batch,
            x.address if isinstance(x, DeviceArray) else 0,
            None if isinstance(x, DeviceArray) else x,
            0 if first is None else first.address,
            keep,
            lengths,
            mask_seed,
            y.address,
            last.address,
        )
        if isinstance(x, DeviceArray):
            x.kept_until_read()
        return y, last, number

    def backward(
        self, number: int, steps: int, batch: int, dy: DeviceArray | None, dstate: DeviceArray
    ) -> tuple[DeviceArray | None, State, dict[str, DeviceArray]]:
        """dstate: from `state`, is overwritten. -> dx, the first state's gradient, the weights'."""
        flat = self._new((self._core.parameter_elements,))
        dx = None if self._core.kept_tokens else self._new((steps, batch, self._input_size))
        self._core.backward_on_device(
            number,
            0 if dy is None else dy.address,
            dstate.address,
            0 if dx is None else dx.address,
            flat.address,
        )
        if dy is not None:
            dy.kept_until_read()
        return dx, self._states.public(dstate), self._gradients_of(flat)

    def step(self, x: Any, carried: Array | DeviceArray | None) -> tuple[DeviceArray, DeviceArray]:
        """carried: the state before, in the kernels' form; None: zeros. -> y, the state after."""
        there = self._array("x", x)
        single = there.ndim == (there.dtype.kind == "f")
        if single:
            there = there.view(0, (1, *there.shape))
        given = self.input(there, "B")
        batch = given.shape[0]
        if batch == 0:
            raise ValueError("x must have a batch of 1 or more, got 0")
        if carried is None:
            state = self._new(self._core.state_shape(batch))
            state.set_zero()
        elif (before := self._states.batch(carried)) != batch:
            raise ValueError(
                f"x must have the carried state's batch of {before}, got {batch}; call reset() "
                f"first to start anew"
            )
        elif isinstance(carried, DeviceArray):
            state = carried
        else:
            state = DeviceArray.from_numpy(carried, self._device)
        y = self._new((self._output_size,) if single else (batch, self._output_size))
        if isinstance(given, DeviceArray):
            self._core.step_on_device(batch, given.address, None, state.address, y.address)
            given.kept_until_read()
        else:
            self._core.step_on_device(batch, 0, given, state.address, y.address)
        return y, state

    def gradients(self, grads: Mapping[str, Any]) -> DeviceArray:
        """A flat array with the gradients of all parameters, by name.

        Some weights are stored as [columns, rows]. For these only what `backward` returned will do:
        arrays of other libraries are row-major.
        """
        given = {
            name: self.floats(f"grads[{name!r}]", grads[name], shape, "of the parameter")
            for name, shape in self._core.parameter_shapes().items()
        }
        flat = self._new((self._core.parameter_elements,))
        places = self._gradients_of(flat)
        for name, to in places.items():
            if to.size and given[name].strides != to.strides:
                raise ValueError(
                    f"grads[{name!r}] must be stored as backward returns it, with strides "
                    f"{to.strides} (bytes), got {given[name].strides}: change that array in place"
                )
        flat.set_zero()
        for name, to in places.items():
            given[name].copy_to(to)
            given[name].kept_until_read()
        return flat

    # ---- arrays in ------------------------------------------------------------------------

    def input(self, x: Any, letters: str) -> DeviceArray | Array:
        """x [*letters, I], or tokens, which come to the host to be checked."""
        found = self._array("x", x)
        if found.dtype.kind in "iu":
            return token_array("x", found.numpy(), letters, self._input_size)
        if found.dtype != self._dtype:
            raise TypeError(
                f"x must have dtype {self._dtype} or be integer tokens, got {found.dtype}"
            )
        if found.ndim != len(letters) + 1 or found.shape[-1] != self._input_size:
            shown = ", ".join(letters)
            raise ValueError(f"x must have shape [{shown}, {self._input_size}], got {found.shape}")
        return found

    def floats(self, name: str, x: Any, shape: tuple[int, ...], letters: str) -> DeviceArray:
        """x of the network's dtype and this shape, which is what the letters say."""
        found = self._array(name, x)
        if found.dtype != self._dtype:
            raise TypeError(f"{name} must have dtype {self._dtype}, got {found.dtype}")
        if found.shape != shape:
            raise ValueError(f"{name} must have the shape {letters} = {shape}, got {found.shape}")
        return found

    def state(self, name: str, state: State, batch: int) -> DeviceArray:
        """A new array with a caller's state in the kernels' form; zeros for None."""
        shapes = self._states.shapes(batch)
        made = self._new(self._core.state_shape(batch))
        if state is None:
            made.set_zero()
            return made
        if len(shapes) == 2 and not (isinstance(state, (tuple, list)) and len(state) == 2):
            raise TypeError(f"{name} must be a tuple (h, c), got {type(state).__name__}")
        parts = state if len(shapes) == 2 else (state,)
        names = (f"{name}[0] (h)", f"{name}[1] (c)") if len(shapes) == 2 else (name,)
        found = [
            self.floats(part_name, part, shape, "[L*D, B, H]")
            for part_name, part, shape in zip(names, parts, shapes, strict=True)
        ]
        for part, to in zip(found, self._states.parts_of(made, batch), strict=True):
            part.copy_to(to)
            part.kept_until_read()
        return made

    def _array(self, name: str, x: Any) -> DeviceArray:
        if self._device == "cpu":
            raise TypeError(
                f"{name} must be a NumPy array for a network on the CPU, got {type(x).__name__} of "
                f"a GPU: copy it to the host, or build the network with device='cuda'"
            )
        if not is_of_a_gpu(x):
            raise TypeError(
                f"{name} must be on {self._device} as the other arrays of the call are, got "
                f"{type(x).__name__}: pass DeviceArray.from_numpy({name}, {self._device!r})"
            )
        try:
            return DeviceArray.from_dlpack(x, self._device)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None

    def _gradients_of(self, flat: DeviceArray) -> dict[str, DeviceArray]:
        """The parameters' places in a flat array."""
        return {
            name: flat.view(offset, (rows, cols) if cols else (rows,), transposed=transposed)
            for name, (offset, rows, cols, transposed) in self._core.gradient_places().items()
        }

    def _new(self, shape: Sequence[int]) -> DeviceArray:
        return DeviceArray.empty(shape, self._dtype, self._device)
