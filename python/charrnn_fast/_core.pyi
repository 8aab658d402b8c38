"""The compiled kernels. Everything here is private; `charrnn_fast` is the public API.

Shapes: T seq_len, B batch, I input_size, H hidden_size, L num_layers (twice that if bidirectional),
S num_states (rnn and gru 1: h; the LSTMs 2: h, c), O output_size (without a decoder the width of
the top layer's h). With a projection a state is flat: all h, then all c.
Arrays are C-contiguous and of the network's dtype; tokens and targets are int32.
Wrong dtypes raise TypeError, wrong shapes and values ValueError, before any work.
"""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

_F = TypeVar("_F", np.float32, np.float64)
Tokens = NDArray[np.int32]
Floats = NDArray[Any]

# The kernels' choices; charrnn_fast.registry explains the entries.
cells: tuple[dict[str, Any], ...]
optimizers: tuple[dict[str, Any], ...]
dropout_rates: tuple[str, ...]
compute_dtypes: tuple[str, ...]

def compute_dtypes_on(device: object | None) -> tuple[str, ...]: ...  # device: as of _Model
def build_info() -> dict[str, Any]: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def set_executor(name: str) -> None: ...
def get_executor() -> str: ...
def available_isas() -> list[str]: ...
def pool_self_test(rounds: int) -> int:
    """Runs rounds of barriers on all threads; returns the sum of their team sizes."""

def pool_teams() -> int:
    """How often work was shared by more than one thread."""

def openmp_teams() -> int:
    """How often these were threads of OpenMP."""

def set_sharing_limits(operations_per_thread: float, operations_per_barrier: float) -> None:
    """The least work per thread and per barrier (1e6, 1e5); 0, 0: always share. For tests."""

def cgroup_quota(root: str = "") -> float:
    """CPU quota of the control groups, in processors; inf: no limit."""

class _Model(Generic[_F]):
    """A stack of recurrent layers and, if output_size > 0, a linear decoder."""

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        output_size: int,  # 0: no decoder
        num_layers: int,
        bias: str,  # "double" | "single" | "none"
        bidirectional: bool = False,
        proj_size: int = 0,  # 0: no projection
        layer_norm: bool = False,
        regularization: dict[str, float] = ...,  # input_dropout, dropout, output_dropout,
        # recurrent_dropout, variational, weight_drop, zoneout_h, zoneout_c
        device: object | None = None,  # a capsule (cpp/include/charrnn_fast/device.hpp); None: CPU
        nonlinearity: str = "tanh",
        compute_dtype: str = "float32",  # of compute_dtypes
    ) -> None: ...
    @property
    def num_states(self) -> int: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def version(self) -> int: ...  # raised by every change of a parameter
    @property
    def kept(self) -> tuple[int, int, int]:
        """The forward that `backward` differentiates: its number, T, B; number 0: there is none.

        Forwards with keep are numbered from 1.
        """

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]: ...
    def parameter(self, name: str) -> NDArray[_F]: ...  # read-only view, PyTorch's orientation
    def set_parameter(self, name: str, value: Floats) -> None: ...
    def state_shape(self, batch: int) -> tuple[int, ...]: ...
    def forward(
        self,
        x: Floats | Tokens,
        state: Floats | None,
        keep: bool,
        lengths: NDArray[np.int64] | None = None,  # [B], 0 to T
        mask_seed: int | None = None,  # seed of the regularization masks; None: no masks
    ) -> tuple[NDArray[_F], NDArray[_F]]:
        """x [T, B, I] or tokens [T, B], state [S, L, B, H] -> y [T, B, O], state_n [S, L, B, H].

        keep: saves what `backward` needs.
        """

    # With arrays of the device, by their addresses (0: none); tokens are NumPy's.
    def forward_on_device(
        self,
        seq_len: int,
        batch: int,
        x: int,
        tokens: Tokens | None,
        state_0: int,
        keep: bool,
        lengths: NDArray[np.int64] | None,
        mask_seed: int | None,
        y: int,
        state_n: int,
    ) -> int: ...
    def backward_on_device(
        self, id: int, dy: int, dstate: int, dx: int, gradients: int
    ) -> None: ...
    def step_on_device(
        self, batch: int, x: int, tokens: Tokens | None, state: int, y: int
    ) -> None: ...
    @property
    def parameter_elements(self) -> int: ...
    @property
    def kept_tokens(self) -> bool: ...  # whether the forward that backward follows had tokens
    def gradient_places(self) -> dict[str, tuple[int, int, int, bool]]:
        """-> of each parameter: offset in the gradients, rows, cols (0: a vector), transposed."""

    def forward_kept(
        self,
        x: Floats | Tokens,
        state: Floats | None,
        keep: bool,
        lengths: NDArray[np.int64] | None = None,
        mask_seed: int | None = None,
    ) -> tuple[NDArray[_F], NDArray[_F], int]:
        """As `forward`, plus its number in `kept`; 0 without keep."""

    def backward(
        self, dy: Floats | None, dstate: Floats | None, id: int = 0
    ) -> tuple[NDArray[_F] | None, NDArray[_F], dict[str, NDArray[_F]]]:
        """-> dx [T, B, I] (None for tokens), dstate_0 [S, L, B, H], gradients by name (new arrays).

        RuntimeError if id is given and differs from that of `kept`: another thread may change it.
        """

    def read(self, x: Floats | Tokens, state: Floats, weights: str = "") -> None:
        """`forward` for its state only, updated in place: x [T, B, I] or tokens [T, B].

        weights as in `sample`.
        """

    def check_weights(self, weights: str) -> None:
        """ValueError if `sample` cannot draw with these weights."""

    def end_drawing(self) -> None:
        """A network that also trains gives back large packed weights that drawing made."""

    def step(self, x: Floats | Tokens, state: Floats) -> NDArray[_F]:
        """x [B, I] or tokens [B]; state [S, L, B, H] is updated in place -> y [B, O]."""

    def step_plain(self, x: Floats, state: Floats, /) -> NDArray[_F] | None:
        """`step` for x [I] or [B, I] without conversion; otherwise None, with nothing done."""

    def train_step(
        self,
        inputs: Tokens,
        targets: Tokens,
        state: Floats,
        optimizer: _Optimizer[_F],
        learning_rate: float,
        clip_norm: float,  # inf: none
        clip_value: float,  # inf: none
        reduction: str,  # "mean" | "sum"
        mask_seed: int | None = None,
        lengths: NDArray[np.int64] | None = None,  # [B], 0 to T
    ) -> tuple[float, float]:
        """One update on tokens [T, B]; state [S, L, B, H] is updated in place.

        Targets in padding are not read; the last state is each row's own.
        -> loss (nats; over the targets that are not -1), norm of the gradient before clipping.
        If either is not finite, parameters and state do not change.
        """

    def accumulate(
        self,
        inputs: Tokens,
        targets: Tokens,
        state: Floats,
        mask_seed: int | None = None,
        lengths: NDArray[np.int64] | None = None,
        streams: NDArray[np.int64] | None = None,  # [B], 0 to 2**32 - 1
    ) -> tuple[float, int, NDArray[_F]]:
        """Accumulates the gradient of a micro-batch, tokens [T, B], for `update`.

        streams: numbers for the masks; None: numbered across micro-batches. mask_seed must be the
        same for all: the masks are then those of the whole batch. A change of the parameters,
        train_step and clear_gradients drop the accumulated gradients.
        -> sum of the losses in nats, count of targets that are not -1, the new state, which
        replaces the caller's `state` once the update is finite.
        """

    def update(
        self,
        optimizer: _Optimizer[_F],
        learning_rate: float,
        clip_norm: float,
        clip_value: float,
        reduction: str,  # "mean" (over the targets of all micro-batches) | "sum"
    ) -> tuple[float, float]:
        """The update from all micro-batches -> loss, norm, as of one train_step; clears them.

        If either is not finite, the parameters do not change. ValueError if nothing has been
        accumulated.
        """

    def clear_gradients(self) -> None:
        """Drops the accumulated gradients."""

    def accumulated(self) -> tuple[NDArray[_F], float, int]:
        """What is accumulated: the gradient of the sum of losses, that sum in nats, the count of
        targets. ValueError if nothing is.

        The gradient is a view of the network's own memory, flat, with gaps of zeros; on a device
        other than the CPU a copy. Processes that share out a batch add it up in place, and the rest
        by `set_accumulated`, before `update`. No other thread may train meanwhile.
        """

    def set_accumulated(
        self, loss_sum: float, count: int, gradients: NDArray[_F] | None = None
    ) -> None:
        """Replaces the sum of losses and the count, and by the array of `accumulated` the gradient.

        gradients: None leaves it; the CPU's is the network's own memory. ValueError if nothing is
        accumulated.
        """

    def evaluate(
        self,
        inputs: Tokens,
        targets: Tokens,
        state: Floats,
        lengths: NDArray[np.int64] | None = None,
    ) -> tuple[float, int]:
        """-> sum of the losses in nats, count of targets that are not -1; updates state."""

    def stream_losses(
        self,
        inputs: Tokens,
        targets: Tokens,
        state: Floats,
        lengths: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float64]:
        """`evaluate` per stream: -> the sums of the losses [B] in nats."""

    def memory(
        self,
        seq_len: int,
        batch: int,
        training: bool = True,
        lengths: NDArray[np.int64] | None = None,
    ) -> int:
        """Bytes that a new network like this holds after one train_step (or evaluate) of such a
        batch, with masks but without the optimizer. Does not allocate them."""

    @property
    def held_memory(self) -> int: ...  # bytes that it holds now
    def sample(
        self,
        length: int,
        tokens: Tokens,  # [B] the first tokens fed
        state: Floats,  # [S, L, B, H] updated in place
        seeds: NDArray[np.uint64],  # [B]
        position: int,  # the random counter of the first draw
        temperature: float,  # 0: greedy
        top_k: int,  # 0: all
        top_p: float,  # 1: all
        # "bfloat16" or "int8": of all matrices but layer 0's input weights; float32 only
        weights: str = "",
        repetition_penalty: float = 1.0,  # 1: none
        recent: Tokens | None = None,  # [window, B] before the first draw, -1: none; updated
    ) -> Tokens:
        """-> drawn tokens [length, B]."""

    def sample_streams(
        self,
        length: int,
        tokens: Tokens,  # [B]
        state: Floats,  # [S, L, B, H] updated in place
        seeds: NDArray[np.uint64],  # [B]
        positions: NDArray[np.uint64],  # [B]
        temperatures: NDArray[np.float64],  # [B]
        top_k: NDArray[np.int64],  # [B]
        top_p: NDArray[np.float64],  # [B]
        weights: str = "",
        penalties: NDArray[np.float64] | None = None,  # [B]; None: none
        windows: NDArray[np.int64] | None = None,  # [B]
        recent: Tokens | None = None,  # [the largest window, B], as for `sample`
    ) -> Tokens:
        """As `sample`, for streams that differ in position and options."""

    def next(self, tokens: Tokens, state: Floats, weights: str = "") -> NDArray[_F]:
        """Feeds tokens [B] -> log-probabilities of the next, [B, V], in nats; updates state.

        weights as in `sample`.
        """

class ModelFloat32(_Model[np.float32]): ...
class ModelFloat64(_Model[np.float64]): ...

class _Network(Generic[_F]):
    """The same stack of layers on the caller's memory, for adapters to other frameworks.

    It holds nothing but its shape: any threads may call it at once, and each call packs the weights
    that it is given. All results have the bits of a Model, for any number of threads.

    Arrays are given by their addresses (`array.ctypes.data`, `tensor.data_ptr()`): C-contiguous, of
    the network's dtype, on the CPU, and kept alive by the caller. Nothing past their ends is
    accessed. Their sizes cannot be checked; null and misaligned addresses, negative sizes and wrong
    counts raise ValueError before any work. Tokens and targets are int32 and checked, offsets and
    streams int64. Of what has no elements, the address may be 0.

    parameters, gradients: one array for each entry of `parameter_shapes`, in that order, with its
    shape. States are one array each, see `state_shapes`. y and h are the top layer's h
    [N, hidden_width]. Unlike in C++, gradients are overwritten.

    N is T * B. Or, for sequences of different lengths, the rows are those that `sorted_rows` names
    (PyTorch's PackedSequence), and `offsets` [T + 1] says where each step begins: N = offsets[T].
    `streams` [B] are stream numbers for the masks, by default 0 to B - 1. Backward needs the x,
    tokens, offsets, streams and mask_seed of its forward.

    packed: addresses of copies by `pack`, for weights that do not change: for forward those of
    "forward" and of "forward_dense" or "forward_tokens", for backward those of "backward" and of
    "backward_dense" (without dx 0). Not with weight drop, which changes the weights in each call.

    On another device, which `device` names by a capsule, arrays are in its memory, offsets and
    streams on the CPU; there are no tokens and no decoder calls. A call computes in a `workspace`
    of the caller, address and elements. It returns how many elements it needs. If there are fewer
    it does nothing else, so call it once without to ask. Calls only queue their work.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        output_size: int,  # 0: no decoder
        num_layers: int,
        bias: str,  # "double" | "single" | "none"
        bidirectional: bool = False,
        proj_size: int = 0,
        layer_norm: bool = False,
        regularization: dict[str, float] = ...,  # as of _Model
        nonlinearity: str = "tanh",
        device: object = None,
        compute_dtype: str = "float32",
    ) -> None: ...
    @property
    def num_states(self) -> int: ...
    @property
    def hidden_width(self) -> int: ...  # of the top layer's h, both directions
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]: ...
    def state_shapes(self, batch: int) -> tuple[tuple[int, int, int], ...]:
        """-> the shape of each state, [L, B, width]: h, then (LSTMs) c."""

    def tape_size(
        self, tokens: bool = False, ragged: bool = False, masked: bool = False
    ) -> tuple[int, int, int]:
        """-> a, b, c: a tape has a * N + b * B + c elements.

        ragged: with offsets; masked: with a mask_seed.
        """

    def new_tape(self, elements: int) -> NDArray[_F]:
        """-> [elements], not initialized.

        Its memory comes from a free list of the process, and returns there when the last array that
        refers to it is gone: fresh memory would fault page by page. The list holds at most 32
        blocks and 256 MB (`set_free_list_limit`).
        """

    def forward(
        self,
        parameters: Sequence[int],
        x: int,  # [N, I], or tokens [N]
        seq_len: int,
        batch: int,
        state_0: Sequence[int] | None,  # each, or all, may be missing (0): zeros
        y: int,
        state_n: Sequence[int] | None,  # each, or all, may be missing
        tape: int = 0,  # receives what backward needs; 0: there will be no backward
        *,
        tokens: bool = False,
        offsets: int = 0,
        streams: int = 0,
        mask_seed: int | None = None,  # seed of the regularization masks; None: no masks
        packed: tuple[int, int] | None = None,
        workspace: tuple[int, int] | None = None,
    ) -> int:
        """-> 0 on the CPU. Equal calls write equal bytes to the whole tape."""

    def backward(
        self,
        parameters: Sequence[int],
        x: int,
        seq_len: int,
        batch: int,
        tape: int,  # is only read: any number of backwards may follow a forward
        dy: int,  # 0: zeros
        dstate_n: Sequence[int] | None,  # each, or all, may be missing: zeros
        dx: int,  # 0: not wanted; must be 0 for tokens
        dstate_0: Sequence[int] | None,  # each, or all, may be missing
        gradients: Sequence[int],  # the decoder's are not written
        *,
        tokens: bool = False,
        offsets: int = 0,
        streams: int = 0,
        mask_seed: int | None = None,
        packed: tuple[int, int] | None = None,
        workspace: tuple[int, int] | None = None,
    ) -> int: ...
    def decode(self, parameters: Sequence[int], h: int, rows: int, y: int, packed: int = 0) -> None:
        """y [N, O] = h @ decoder.weight^T + decoder.bias; packed: "decoder"."""

    def decode_backward(
        self,
        parameters: Sequence[int],
        h: int,
        dy: int,  # [N, O]
        rows: int,
        dh: int,
        gradients: Sequence[int],  # only the decoder's are written
    ) -> None: ...
    def head(
        self,
        parameters: Sequence[int],
        h: int,
        targets: int,  # [N], -1 is ignored
        rows: int,
        scale: float,  # of the gradients: 1 for the sum of the losses
        losses: int,  # [N], in nats
        dh: int = 0,  # 0, with no gradients: losses only
        gradients: Sequence[int] | None = None,  # only the decoder's are written
    ) -> None:
        """Decoder, softmax cross-entropy and their backward; all logits are never in memory."""

    def packed_elements(self, packing: str) -> int: ...
    def pack(self, packing: str, parameters: Sequence[int], packed: int) -> None:
        """packing: forward, forward_dense, forward_tokens, backward, backward_dense or decoder."""

class NetworkFloat32(_Network[np.float32]): ...
class NetworkFloat64(_Network[np.float64]): ...

def sorted_rows(
    lengths: NDArray[np.int64], seq_len: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """lengths [B], each 0 to T -> order [B], offsets [T + 1], rows [N], as networks take them.

    Stream r of the network is the caller's stream order[r]: longest first, equal lengths in their
    order. Row n of the network is row rows[n] of the caller's [T * B, ...].
    """

def jax_handlers() -> dict[str, Any]:
    """Capsules of handlers by the names of their targets; only of builds with CHARRNN_JAX=ON."""

def free_list_bytes() -> int:
    """Bytes of the free memory that `new_tape` and the calls of networks keep for each other."""

def set_free_list_limit(bytes: int) -> int:
    """The most that it may be; 0 keeps nothing. Frees what exceeds it; -> the limit before."""

class _Optimizer(Generic[_F]):
    def __init__(self, rule: str, model: _Model[_F], hyper: dict[str, float]) -> None:
        """hyper: sgd momentum, dampening, nesterov, weight_decay; rmsprop alpha, eps, momentum,
        centered, weight_decay; adagrad lr_decay, eps, initial_accumulator_value, weight_decay;
        adam, adamw beta1, beta2, eps, weight_decay."""

    @property
    def num_steps(self) -> int: ...
    @num_steps.setter
    def num_steps(self, n: int) -> None: ...
    @property
    def slot_names(self) -> tuple[str, ...]: ...  # adam: "exp_avg", "exp_avg_sq"
    def slot(self, slot: str, name: str) -> NDArray[_F]: ...  # read-only view, as `parameter`
    def set_slot(self, slot: str, name: str, value: Floats) -> None: ...
    def step(self, gradients: dict[str, Floats], learning_rate: float) -> None: ...
    def step_on_device(self, gradients: int, learning_rate: float) -> None: ...
    @staticmethod
    def memory(rule: str, model: Any, hyper: dict[str, float]) -> int:
        """Bytes of an optimizer made with these arguments."""

    @property
    def held_memory(self) -> int: ...  # bytes that it holds now

class OptimizerFloat32(_Optimizer[np.float32]): ...
class OptimizerFloat64(_Optimizer[np.float64]): ...

def cross_entropy(
    logits: Floats, targets: Tokens, reduction: str, weights: Floats | None
) -> tuple[float, Floats]:
    """logits [N, V], N targets (-1: ignored), weights [N] -> loss in nats, dlogits [N, V].

    targets may have any shape, by which messages index a wrong one."""

def read_rows(
    file: int,  # a descriptor
    begin: int,
    end: int,  # the bytes of the file that rows are read from
    starts: NDArray[np.int64],  # [B] bytes after begin, 0 to end - begin - 1
    rows: NDArray[Any],  # [B, N], read into
) -> bool:
    """Reads row b from byte starts[b] on, wrapping around at the end.

    False if the file ends too early. OSError if it cannot be read.
    """

def binary_cross_entropy(
    logits: Floats, targets: Floats, reduction: str, weights: Floats | None
) -> tuple[float, Floats]:
    """logits, targets in [0, 1] and weights of one shape -> loss in nats, dlogits."""

def mean_square(
    y: Floats, targets: Floats, reduction: str, weights: Floats | None
) -> tuple[float, Floats]:
    """y, targets and weights of one shape -> loss, dy."""

def sum_of_squares(x: Floats) -> float: ...
def scale(x: Floats, factor: float) -> None: ...
def clip_value(x: Floats, limit: float) -> None: ...
def clip_factor(norm: float, limit: float) -> float:
    """min(1, limit / (norm + 1e-6))"""

def sample_tokens(
    logits: Floats,  # [B, V]
    seeds: NDArray[np.uint64],
    position: int,
    temperature: float,
    top_k: int,
    top_p: float,
    repetition_penalty: float = 1.0,
    recent: Tokens | None = None,  # [window, B], -1: none
) -> Tokens:
    """One draw per row, as `sample` does at each token."""

def mask(
    seed: int,
    site: int,
    rate: float,
    time: int,
    streams: NDArray[np.int64],  # [N], their low 32 bits count
    cols: int,
    dtype: str,  # "float32" | "float64"
) -> Floats:
    """A dropout mask [N, cols]: 0 with probability `rate`, else 1 / (1 - rate).

    Element (n, unit) is 0 where word unit % 64 // 16 of Philox4x32-10 with the key `seed` and the
    counter (unit // 64 * 16 + unit % 16, streams[n], time, site) is less than floor(rate * 2**32).
    """

def philox(seed: int, position: int, lane: int) -> tuple[int, int, int, int]:
    """Philox4x32-10 of key `seed` and counter (position, lane): four 32-bit words."""

def apply_math(function: str, x: Floats) -> Floats:
    """exp, sigmoid, tanh or softplus of every element, by the kernels' code (for tests)."""

def math_ulp_bound(function: str) -> float:
    """The largest error in ulp that math.hpp states for float32."""

def math_max_ulp(function: str, first: int, count: int, stride: int) -> tuple[float, float]:
    """Largest error in ulp against long double over float32 bit patterns
    first, first + stride, ... (count of them) and the argument where it occurs."""

def gemm(a: Floats, b: Floats) -> Floats:
    """[M, K] @ [K, N] by the packed GEMM (for tests and benchmarks)."""

def fma_peak(dtype: str, seconds: float) -> float:
    """FLOP/s of independent FMAs on one thread, with the instruction set in use."""

def read_bandwidth(bytes: int, seconds: float) -> float:
    """Bytes per second of one thread that repeatedly reads a buffer of this size."""

def time_steps(model: _Model[_F], x: Floats, state: Floats, count: int) -> float:
    """Seconds per step: `step` on x [B, I] called `count` times from C++; updates state."""

# ---- C++'s own reading of checkpoints and its language model (for tests) ----

class CheckpointError(ValueError): ...

def read_safetensors(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """The dtype (NumPy's name), shape and data of each tensor; ValueError for a damaged file."""

class TextOptions:
    """What is drawn, as in ``cpp/include/charrnn_fast/language_model.hpp``."""

    def __init__(
        self,
        length: int,
        prime: bytes = b"",
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: list[bytes] = ...,
        weights: str = "",
        repetition_penalty: float = 1.0,
        repetition_window: int = 64,
    ) -> None: ...

class LanguageModel:
    """C++'s LanguageModel; texts are UTF-8, lone surrogates included."""

    @staticmethod
    def load(path: str, compute_dtype: str | None = None) -> LanguageModel: ...
    @staticmethod
    def from_memory(checkpoint: bytes, compute_dtype: str | None = None) -> LanguageModel: ...
    def sample(self, options: TextOptions, seeds: list[int]) -> list[bytes]: ...
    def stream(self, options: TextOptions, seed: int) -> list[bytes]: ...
    def beam_search(self, options: TextOptions, beam: int) -> tuple[bytes, float]: ...
    def next_probabilities(self, prime: bytes, weights: str = "") -> list[float]: ...
    def evaluate(self, text: bytes, weights: str = "") -> float: ...
    def score(self, texts: list[bytes], weights: str = "") -> list[float]: ...
    def parameters(self) -> dict[str, Floats]: ...
