"""Arrays in the memory of a GPU, which other libraries share without copies."""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from . import _devices
from ._checks import array, integer

_CUDA = 2  # DLPack's number
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLPack's of the kinds of dtypes
_KINDS = {code: kind for kind, code in _CODES.items()}
_MOST_IN_FLIGHT = 256


class _Card:
    """The functions of charrnn_fast._cuda (cuda/module.cpp), for a device by its name."""

    def __init__(self, name: str, module: Any) -> None:
        self.name, self.module, self.ordinal = name, module, int(module.ordinal())
        self._lock = threading.Lock()
        self._in_flight: deque[tuple[object, object]] = deque()

    def keep_until_done(self, objects: object) -> None:
        """Keeps what queued work reads, as its owner may use the memory anew."""
        with self._lock:
            self._in_flight.append((self.module.mark(), objects))
            if len(self._in_flight) > _MOST_IN_FLIGHT:
                self.module.synchronize()
            while self._in_flight and self.module.reached(self._in_flight[0][0]):
                self._in_flight.popleft()


_cards: dict[str, _Card] = {}
_lock = threading.Lock()


def register(name: str, module: Any) -> None:
    """Makes arrays of another module's device known by its name, for tests."""
    _cards[name] = _Card(name, module)


def _card(name: object) -> _Card:
    """The GPU of this name; errors as those of `_devices.find`."""
    device = _devices.find(name)
    if device.is_host:
        raise ValueError("device must be a GPU, got 'cpu': its arrays are NumPy's")
    kind = _devices.kind(device.name)  # a process uses one GPU
    with _lock:
        if (card := _cards.get(kind)) is None:
            card = _cards[kind] = _Card(device.name, import_module("._cuda", __package__))
    return card


def is_of_a_gpu(x: object) -> bool:
    """Whether x is a DeviceArray, or another library's array in the memory of a GPU."""
    if isinstance(x, DeviceArray):
        return True
    if isinstance(x, (np.ndarray, np.generic, int, float, list, tuple)) or x is None:
        return False
    if hasattr(x, "__cuda_array_interface__"):
        return True
    place = getattr(x, "__dlpack_device__", None)
    return place is not None and place()[0] == _CUDA


class DeviceArray:
    """An array in the memory of a GPU.

    `from_numpy` and `numpy` copy from and to the host. DLPack and `__cuda_array_interface__` share
    the memory with other libraries, both ways: ``torch.from_dlpack(y)``, ``cupy.asarray(y)``,
    ``DeviceArray.from_dlpack(x)``. Their streams wait for each other where it matters; the host
    waits in `numpy` alone. Like NumPy's arrays these may be changed by whoever shares them.

    Work on these arrays is queued to a stream of charrnn_fast's own.
    """

    __slots__ = ("_address", "_card", "_owner", "_read_only", "dtype", "shape", "strides")
    __array_priority__ = 100

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In bytes, as NumPy's."""

    def __init__(self) -> None:
        raise TypeError("DeviceArrays are made by DeviceArray.from_numpy and .from_dlpack")

    # ---- made -----------------------------------------------------------------------------

    @classmethod
    def from_numpy(cls, x: NDArray[Any], device: str = "cuda") -> DeviceArray:
        """A copy of a NumPy array (numbers or bool, of any layout), in row-major order.

        Raises RuntimeError if the device cannot be used, ValueError for a name that means none.
        """
        x = np.asarray(array("x", x), order="C")
        if x.dtype.kind not in _CODES or not x.dtype.isnative:
            raise TypeError(f"x must be of native numbers or bool, got {x.dtype}")
        made = cls.empty(x.shape, x.dtype, device)
        if x.nbytes:
            _card(device).module.upload(x.reshape(-1).view(np.uint8), made.address)
        return made

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: Any, device: str = "cuda") -> DeviceArray:
        """A new array, whose elements may be anything."""
        card = _card(device)
        shape, dtype = tuple(shape), np.dtype(dtype)
        owner, address = card.module.allocate(math.prod(shape) * dtype.itemsize)
        return cls._made(card, owner, address, shape, dtype)

    @classmethod
    def from_dlpack(cls, x: Any, device: str = "cuda") -> DeviceArray:
        """The array of another library, not copied: by DLPack or `__cuda_array_interface__`.

        x must be on this device and in row-major order. Its stream is waited for by ours, not by
        the host. Raises TypeError for what is no such array, ValueError for another device or
        layout, BufferError if the other library refuses.
        """
        card = _card(device)
        if isinstance(x, DeviceArray):
            if _card(x.device) is not card:
                raise ValueError(f"x must be on {card.name!r}, got an array on {x.device!r}")
            return x
        if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
            made = cls._by_dlpack(card, x)
        elif hasattr(x, "__cuda_array_interface__"):
            made = cls._by_interface(card, x)
        else:
            raise TypeError(
                f"x must have DLPack or __cuda_array_interface__, got {type(x).__name__}"
            )
        if made.size and made.strides != _row_major(made.shape, made.dtype.itemsize):
            raise ValueError(
                f"x must be in row-major order, got strides {made.strides} (bytes) for shape "
                f"{made.shape}; copy it first, as by x.contiguous()"
            )
        if made.address % made.dtype.itemsize:
            raise ValueError(f"x must be aligned to its elements, got address {made.address:#x}")
        return made

    @classmethod
    def _by_dlpack(cls, card: _Card, x: Any) -> DeviceArray:
        place = tuple(map(int, x.__dlpack_device__()))
        if place != (_CUDA, card.ordinal):
            raise ValueError(
                f"x must be on {card.name!r}, to DLPack ({_CUDA}, {card.ordinal}), got {place}"
            )
        stream = card.module.stream()
        try:
            capsule = x.__dlpack__(stream=stream, max_version=(1, 0))
        except TypeError:  # of an older version
            capsule = x.__dlpack__(stream=stream)
        owner, address, shape, strides, element, _, read_only = card.module.from_dlpack(capsule)
        code, bits, lanes = element
        if code not in _KINDS or lanes != 1 or bits not in (8, 16, 32, 64):
            raise TypeError(f"x must be of NumPy's numbers, got DLPack's type {element}")
        dtype = np.dtype(f"{_KINDS[code]}{bits // 8}")
        if strides is not None:
            strides = [stride * dtype.itemsize for stride in strides]
        return cls._made(card, owner, address, shape, dtype, strides, read_only)

    @classmethod
    def _by_interface(cls, card: _Card, x: Any) -> DeviceArray:
        said = x.__cuda_array_interface__
        if said.get("mask") is not None:
            raise ValueError("x must have no mask")
        address, read_only = said["data"]
        dtype = np.dtype(said["typestr"])
        if dtype.kind not in _CODES or not dtype.isnative:
            raise TypeError(f"x must be of native numbers or bool, got {dtype}")
        if (stream := said.get("stream")) is not None:
            card.module.wait_in_stream(card.module.stream(), stream)
        shape, strides = said["shape"], said.get("strides")
        return cls._made(card, x, address or 0, shape, dtype, strides, read_only)

    @classmethod
    def _made(
        cls,
        card: _Card,
        owner: object,
        address: int,
        shape: Iterable[int],
        dtype: np.dtype[Any],
        strides: Iterable[int] | None = None,
        read_only: bool = False,
    ) -> DeviceArray:
        """strides None: in row-major order."""
        made = object.__new__(cls)
        made._settle(card, owner, address, tuple(shape), dtype, strides, read_only)
        return made

    def _settle(
        self,
        card: _Card,
        owner: object,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        strides: Iterable[int] | None,
        read_only: bool,
    ) -> None:
        self._card, self._owner, self._address, self._read_only = card, owner, address, read_only
        self.shape, self.dtype = shape, dtype
        row_major = _row_major(shape, dtype.itemsize)
        self.strides = row_major if strides is None else tuple(strides)

    def view(self, offset: int, shape: Sequence[int], *, transposed: bool = False) -> DeviceArray:
        """A part of a row-major array from an element on, in another shape.

        transposed: of a matrix that is stored as [columns, rows].
        """
        size = self.dtype.itemsize
        strides = (size, shape[0] * size) if transposed else None
        at = self._address + offset * size
        return DeviceArray._made(self._card, self._owner, at, shape, self.dtype, strides)

    # ---- about it -------------------------------------------------------------------------

    @property
    def device(self) -> str:
        """ "cuda" or "cuda:N"."""
        return self._card.name

    @property
    def address(self) -> int:
        """Of its first element, in the device's memory."""
        return self._address

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without dimensions has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype.name}, device={self.device!r})"

    # ---- out ------------------------------------------------------------------------------

    def numpy(self) -> NDArray[Any]:
        """A copy as a NumPy array; waits until the device has computed it."""
        order = sorted(range(self.ndim), key=lambda axis: -self.strides[axis])  # as it is stored
        stored: NDArray[Any] = np.empty([self.shape[axis] for axis in order], self.dtype)
        if stored.nbytes:
            self._card.module.download(self._address, stored.reshape(-1).view(np.uint8))
        return stored.transpose(np.argsort(order))

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            "a DeviceArray does not become a NumPy array by itself: copy it by its method numpy()"
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CUDA, self._card.ordinal)

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """The memory as a DLPack capsule, not copied.

        stream: that on which the caller will use it, which waits for what is queued here; None or
        1 is CUDA's default stream, 2 the thread's default, -1: nobody waits.
        """
        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError(f"dl_device must be {self.__dlpack_device__()}, got {dl_device}")
        if copy:
            raise BufferError("copy must be None or False, got True: DeviceArrays are shared")
        if stream is not None:
            stream = integer("stream", stream, -1, 2**64)
            if stream == 0:
                raise ValueError(f"stream must be -1, 1, 2 or a cudaStream_t, got {stream}")
        module = self._card.module
        module.share(self._owner)
        if stream != -1:
            module.wait_in_stream(1 if stream is None else stream, module.stream())
        versioned = max_version is not None and max_version[0] >= 1
        if self._read_only and not versioned:
            raise BufferError("a read-only array needs max_version=(1, 0) or later")
        size = self.dtype.itemsize
        return module.to_dlpack(
            self._owner,
            self._address,
            self.shape,
            tuple(stride // size for stride in self.strides),
            (_CODES[self.dtype.kind], 8 * size),
            self._card.ordinal,
            versioned,
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        module = self._card.module
        module.share(self._owner)
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "strides": None if self._is_row_major else self.strides,
            "data": (self._address, self._read_only),
            "stream": module.stream(),
        }

    @property
    def _is_row_major(self) -> bool:
        return self.strides == _row_major(self.shape, self.dtype.itemsize)

    # ---- for the networks -----------------------------------------------------------------

    def copy_to(self, to: DeviceArray) -> None:
        """Copies its elements, in the order of its memory, to the start of another array."""
        self._card.module.copy(self._address, self.nbytes, to.address)

    def set_zero(self) -> None:
        self._card.module.zero(self._address, self.nbytes)

    def kept_until_read(self) -> None:
        """Keeps the memory, if another library's, until the work that is queued now is done."""
        self._card.keep_until_done(self._owner)


def _row_major(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    behind = itertools.accumulate(reversed(shape), lambda a, b: a * b, initial=1)
    return tuple(itemsize * n for n in list(behind)[-2::-1]) if shape else ()
