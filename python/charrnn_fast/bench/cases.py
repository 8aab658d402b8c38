"""What is measured: the suites, their cases, and what each case costs at least.

Times are per unit of a suite: a training step, a pass over a sequence, a character, a step of a
layer, a product. FLOP counts a multiply-add of matrix products as two, and backward as twice
forward. Layer 0 of a character model is a gather and counts as nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..registry import CELL_NAMES, gates
from .errors import BenchError

FLOAT = 4  # bytes


@dataclass(frozen=True)
class Suite:
    name: str
    about: str
    unit: str  # what a time is per
    scale: float  # units of time shown per second: 1e3 for ms
    reads_text: bool = True  # the vocabulary is the text's

    @property
    def time_unit(self) -> str:
        return {1e3: "ms", 1e6: "us"}[self.scale]


SUITES = {
    suite.name: suite
    for suite in (
        Suite("train", "whole training steps, embedding to optimizer", "training step", 1e3),
        Suite("forward", "the layers over a sequence, for inference", "pass", 1e3),
        Suite("backward", "backpropagation through the layers alone", "pass", 1e3),
        Suite("sample", "drawing text; B streams side by side", "character", 1e6),
        Suite("step", "one step of one layer after another, dense input", "step", 1e6, False),
        Suite("gemm", "matrix products, packing included", "product", 1e6, False),
        Suite("time-to-loss", "training to a validation loss", "training step", 1e3),
    )
}


@dataclass(frozen=True)
class Case:
    """A network and the size of its work: B streams of T characters or steps, H units, L layers.

    T is the length of a call for `sample` and `step`. input_size 0: the text's vocabulary.
    """

    suite: str
    cell: str
    batch: int
    seq_len: int
    hidden_size: int
    num_layers: int
    input_size: int = 0

    @property
    def label(self) -> str:
        sizes = (self.batch, self.seq_len, self.hidden_size, self.num_layers)
        return ",".join([self.cell, *map(str, sizes)])

    @property
    def recurrent_weights(self) -> int:
        """Of all matrices of the layers except layer 0's, of which a token selects a column."""
        return (2 * self.num_layers - 1) * gates(self.cell) * self.hidden_size**2

    @property
    def weights(self) -> int:
        """Elements of the matrices that every step of a stream multiplies by."""
        if self.suite == "step":
            return self.recurrent_weights + gates(self.cell) * self.hidden_size * self.input_size
        if self.suite in ("forward", "backward"):
            return self.recurrent_weights
        return self.recurrent_weights + self.hidden_size * self.input_size

    @property
    def characters(self) -> int | None:
        """Of all streams together, in a unit."""
        return {"sample": 1, "step": self.batch}.get(self.suite, self.batch * self.seq_len)

    @property
    def flop(self) -> float:
        """Of a unit."""
        characters = self.characters or 0
        passes = {"train": 3, "time-to-loss": 3, "backward": 2}.get(self.suite, 1)
        return 2.0 * passes * characters * self.weights

    @property
    def weight_bytes(self) -> int:
        return FLOAT * self.weights

    @property
    def bytes_read(self) -> float | None:
        """Bytes of weights per unit, if reading them can be the limit; else None."""
        if self.suite == "sample":
            return self.weight_bytes / self.batch
        return float(self.weight_bytes) if self.suite == "step" else None

    @property
    def intensity(self) -> float:
        """FLOP per byte of weights, each read once per time step for all streams."""
        return 2 * self.batch / FLOAT


@dataclass(frozen=True)
class Product:
    """[M, K] @ [K, N]."""

    rows: int
    depth: int
    cols: int
    suite: str = "gemm"
    input_size: int = 0

    @property
    def label(self) -> str:
        return f"{self.rows},{self.depth},{self.cols}"

    @property
    def characters(self) -> int | None:
        return None

    @property
    def flop(self) -> float:
        return 2.0 * self.rows * self.depth * self.cols

    @property
    def elements(self) -> int:
        M, K, N = self.rows, self.depth, self.cols
        return M * K + K * N + M * N

    @property
    def weight_bytes(self) -> int:
        return FLOAT * self.depth * self.cols

    @property
    def bytes_read(self) -> float | None:
        return None

    @property
    def intensity(self) -> float:
        """FLOP per byte of the three matrices."""
        return self.flop / (FLOAT * self.elements)


AnyCase = Case | Product
Shape = tuple[str, int, int, int, int] | tuple[int, int, int]

_NETWORKS: tuple[Shape, ...] = (
    ("rnn", 1, 25, 100, 1),
    ("lstm", 1, 25, 128, 1),
    ("rnn", 32, 50, 128, 1),
    ("lstm", 50, 50, 128, 2),
    ("gru", 50, 50, 128, 2),
    ("lstm", 50, 50, 256, 1),
    ("lstm", 64, 50, 512, 1),
    ("gru", 64, 50, 512, 1),
    ("rnn", 64, 50, 512, 1),
    ("lstm", 64, 50, 1024, 1),
)
_SAMPLED = (("rnn", 100, 1), ("lstm", 128, 2), ("lstm", 512, 1), ("lstm", 512, 3), ("gru", 1024, 1))
_STREAMS = (4, 16, 256)  # beside 1 and 64, of lstm 1x512
_STEPS = 200  # of a layer in one call

_DEFAULTS: dict[str, tuple[Shape, ...]] = {
    "train": _NETWORKS,
    "forward": _NETWORKS,
    "backward": _NETWORKS,
    "sample": (
        *((cell, 1, 100, H, L) for cell, H, L in _SAMPLED),
        *((cell, 64, 20, H, L) for cell, H, L in _SAMPLED),
        *(("lstm", streams, 20, 512, 1) for streams in _STREAMS),
    ),
    "step": (
        ("lstm", 1, _STEPS, 32, 1),
        ("rnn", 1, _STEPS, 100, 1),
        ("lstm", 1, _STEPS, 128, 1),
        ("lstm", 1, _STEPS, 512, 1),
        ("gru", 1, _STEPS, 1024, 1),
    ),
    "gemm": (
        (1, 512, 2048),
        (50, 128, 512),
        (64, 512, 2048),
        (2500, 128, 512),
        (3200, 512, 2048),
        (2048, 3200, 512),
    ),
    "time-to-loss": (("lstm", 50, 50, 128, 2),),
}
_QUICK: dict[str, tuple[Shape, ...]] = {
    "train": (("rnn", 1, 25, 100, 1), ("lstm", 50, 50, 128, 2)),
    "forward": (("lstm", 50, 50, 128, 2),),
    "backward": (("lstm", 50, 50, 128, 2),),
    "sample": (("lstm", 1, 100, 128, 2), ("lstm", 1, 50, 512, 1), ("lstm", 64, 10, 512, 1)),
    "step": (("lstm", 1, _STEPS, 32, 1), ("lstm", 1, _STEPS, 128, 1)),
    "gemm": ((64, 512, 2048), (2500, 128, 512)),
    "time-to-loss": (("rnn", 32, 25, 128, 1),),
}


def footprint(size: int) -> str:
    """A readable number of bytes, a power of two."""
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def parse(text: str) -> Shape:
    """lstm,50,50,128,2 (cell, B, T, H, L) or 64,512,2048 (M, K, N of a product)."""
    parts = text.split(",")
    numbers = [int(part) for part in parts if part.isdecimal() and int(part) > 0]
    if len(parts) == len(numbers) == 3:
        M, K, N = numbers
        return M, K, N
    if len(parts) == 5 and len(numbers) == 4 and parts[0] in CELL_NAMES:
        B, T, H, L = numbers
        return parts[0], B, T, H, L
    raise BenchError(
        f"case must be a cell of {', '.join(CELL_NAMES)} with B, T, H and L, as "
        f"lstm,50,50,128,2, or M, K and N of a product, as 64,512,2048, got {text!r}"
    )


def select(suites: list[str], shapes: list[Shape] | None, quick: bool) -> list[AnyCase]:
    """The cases of these suites in order; their own, or of `shapes` those that fit each suite."""
    for shape in shapes or ():
        if not any(_fits(suite, shape) for suite in suites):
            label = ",".join(map(str, shape))
            raise BenchError(f"case must fit one of {', '.join(suites)}, got {label}")
    defaults = _QUICK if quick else _DEFAULTS
    return [
        _case(suite, shape)
        for suite in suites
        for shape in (defaults[suite] if shapes is None else shapes)
        if _fits(suite, shape)
    ]


def _fits(suite: str, shape: Shape) -> bool:
    return (suite == "gemm") == (len(shape) == 3)


def _case(suite: str, shape: Shape) -> AnyCase:
    if len(shape) == 3:
        return Product(*shape)
    # The field's small step example has 8 inputs; all other cases have those of a text.
    features = (8 if shape[3] == 32 else 65) if suite == "step" else 0
    return Case(suite, *shape, input_size=features)
