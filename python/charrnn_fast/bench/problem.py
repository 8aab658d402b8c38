"""The arrays of a case: made once, the same for every side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..rnn import RNN
from ..text.vocabulary import Vocabulary
from .cases import AnyCase, Case, Product
from .errors import BenchError

Array = NDArray[Any]
Outputs = dict[str, Array]

LEARNING_RATE, CLIP_NORM = 2e-3, 5.0
CHECKED_STEPS = 3  # training steps, or characters of a text, that are compared


@dataclass(frozen=True)
class Text:
    """A text as ids; the last tenth is for validation."""

    name: str
    ids: Array  # [N], the smallest integer type
    vocab_size: int

    @classmethod
    def of(cls, name: str, text: str) -> Text:
        if not text:
            raise BenchError(f"{name}: the text is empty")
        vocabulary = Vocabulary.from_text(text)
        ids = vocabulary.encode(text)
        return cls(name, ids.astype(np.min_scalar_type(len(vocabulary))), len(vocabulary))

    @property
    def training(self) -> Array:
        return self.ids[: len(self.ids) * 9 // 10]

    @property
    def validation(self) -> Array:
        return self.ids[len(self.ids) * 9 // 10 :]


@dataclass(frozen=True)
class Problem:
    """parameters: float32, by PyTorch's names and in its shapes; arrays: what the suite needs.

    train ids [N]; time-to-loss ids [N], validation [M]; forward tokens [T, B]; backward tokens
    [T, B], dy [T, B, H]; sample tokens [n, B]; step x [T, B, I]; gemm a [M, K], b [K, N].
    """

    case: AnyCase
    parameters: dict[str, Array]
    arrays: dict[str, Array]

    @property
    def network(self) -> Case:
        assert isinstance(self.case, Case)
        return self.case


def make(case: AnyCase, text: Text | None) -> Problem:
    """The problem of a case; BenchError if the text is too short for it."""
    rng = np.random.default_rng(0)
    if isinstance(case, Product):
        a = rng.uniform(-1, 1, (case.rows, case.depth)).astype(np.float32)
        b = rng.uniform(-1, 1, (case.depth, case.cols)).astype(np.float32)
        return Problem(case, {}, {"a": a, "b": b})
    if text is not None and not case.input_size:
        case = replace(case, input_size=text.vocab_size)
    T, B, V = case.seq_len, case.batch, case.input_size
    rnn = network_of(case)
    arrays: dict[str, Array] = {}
    if case.suite == "step":
        arrays["x"] = rng.uniform(-1, 1, (T, B, V)).astype(np.float32)
    elif case.suite == "sample":
        arrays["tokens"] = np.resize(np.arange(V, dtype=np.int32), (CHECKED_STEPS, B))
    else:
        assert text is not None
        ids = text.training
        if len(ids) <= B * T:
            raise BenchError(
                f"{text.name} must have more than {B * T} characters to train on for case "
                f"{case.label}, got {len(ids)}"
            )
        if case.suite in ("train", "time-to-loss"):
            arrays["ids"] = ids
        else:
            arrays["tokens"] = next(batches(ids, B, T))[0]
        if case.suite == "time-to-loss":
            arrays["validation"] = text.validation[:20_001]
        if case.suite == "backward":
            arrays["dy"] = rng.standard_normal((T, B, case.hidden_size)).astype(np.float32)
    return Problem(case, {n: np.array(p) for n, p in rnn.parameters().items()}, arrays)


def network_of(case: Case, device: str = "cpu", compute_dtype: str = "float32") -> RNN:
    """The kernels' network of a case; without a decoder where only layers are measured."""
    layers_only = case.suite in ("forward", "backward", "step")
    return RNN(
        case.input_size,
        case.hidden_size,
        None if layers_only else case.input_size,
        cell=case.cell,
        num_layers=case.num_layers,
        device=device,
        compute_dtype=compute_dtype,
    )


def batches(ids: Array, batch: int, seq_len: int) -> Iterator[tuple[Array, Array]]:
    """Inputs and targets, int32 [T, B] each, of B contiguous streams of the text, endlessly."""
    length = (len(ids) - 1) // batch
    pieces = ids[: batch * length + 1]
    inputs = pieces[:-1].reshape(batch, length).T.astype(np.int32, order="C")
    targets = pieces[1:].reshape(batch, length).T.astype(np.int32, order="C")
    while True:
        for t in range(0, length - seq_len + 1, seq_len):
            yield inputs[t : t + seq_len], targets[t : t + seq_len]


def validation_batch(ids: Array, streams: int = 50) -> tuple[Array, Array]:
    """The validation text as one batch, inputs and targets [T, streams]."""
    length = (len(ids) - 1) // streams
    return next(batches(ids, streams, length))
