"""Drawing text from a network, token by token. The loop itself runs in the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._checks import called, integer, real
from .._devices import CPU
from ..rnn import RNN
from ..text.vocabulary import StreamDecoder, Vocabulary
from .small_weights import SMALL_DTYPES

BLOCK = 1024  # tokens drawn at once: bounds the memory, and lets an interrupt through
_STOP_BLOCK = 64  # with stop strings: tokens drawn beyond the text's end are wasted
_STREAMS = 64  # texts drawn together: more are hardly faster
_TOGETHER = 2**24  # characters of these texts, in memory until all are drawn
_PRIME_BLOCK = 1024  # steps of a prime fed at once, which lets an interrupt through
REPETITION_WINDOW = 64
LARGEST_WINDOW = 1_000_000  # characters

Stop = str | Sequence[str] | None


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from the softmax of the logits.

    temperature divides the logits; 0 takes the most probable token. top_k keeps the k most probable
    tokens, top_p the smallest set of them with this much probability (Holtzman et al., 2020); None
    keeps all. weight_dtype: None for the network's own, or one of SMALL_DTYPES, which lower the
    memory that a step reads.

    repetition_penalty: the logit of a token among the last repetition_window tokens of the text,
    prime included, is divided by it (Keskar et al., "CTRL", 2019, arXiv 1909.05858, section 4.1),
    or multiplied if negative, since dividing would raise it. This comes before all else. 1: none.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    weight_dtype: str | None = None
    repetition_penalty: float = 1.0
    repetition_window: int = REPETITION_WINDOW

    def __post_init__(self) -> None:
        real("temperature", self.temperature, least=0)
        if self.top_k is not None:
            integer("top_k", self.top_k, 1)
        if self.top_p is not None:
            real("top_p", self.top_p, above=0, most=1)
        real("repetition_penalty", self.repetition_penalty, least=1)
        integer("repetition_window", self.repetition_window, 1, LARGEST_WINDOW)


def check_weight_dtype(weight_dtype: str | None, rnn: RNN) -> None:
    """ValueError if the kernels cannot sample rnn with weights of this type."""
    own = rnn.dtype.name
    known = [own, *SMALL_DTYPES] if own == "float32" else [own]
    if weight_dtype is not None and weight_dtype not in known:
        raise ValueError(
            f"{called('weight_dtype')} of a {own} model must be "
            f"{' or '.join(map(repr, known))}, got {weight_dtype!r}"
        )
    if weight_dtype == "int8":
        where = f" on {rnn.device}" if rnn.device != CPU.name else ""
        if rnn.compute_dtype != "float32":
            where = f" of a model with {called('compute_dtype')} {rnn.compute_dtype!r}"
        if where:
            raise ValueError(
                f"{called('weight_dtype')}{where} must be 'float32' or 'bfloat16', got 'int8'"
            )
        network: Any = rnn.core
        network.check_weights(weight_dtype)


@dataclass(frozen=True)
class Request:
    """A text to draw.

    prime: the ids [N] that the text begins with. read: the ids, at least one, that the network
    reads before the first draw. length: the most tokens to draw. stops: the text ends before the
    first stop string.
    """

    prime: NDArray[np.int32]
    read: NDArray[np.int32]
    length: int
    sampling: Sampling
    stops: tuple[str, ...] = ()


def checked_stops(stop: Stop, vocabulary: Vocabulary) -> tuple[str, ...]:
    """The stop strings; ValueError for an empty one and for one that cannot occur."""
    if stop is None:
        return ()
    named = {"stop": stop} if isinstance(stop, str) else _numbered_stops(stop)
    for name, text in named.items():
        if not isinstance(text, str):
            raise TypeError(f"{called(name)} must be a str, got {type(text).__name__}")
        if not text:
            raise ValueError(f"{called(name)} must have one character or more, got none")
        vocabulary.encode_part(text, called(name), 0)
    return tuple(named.values())


def _numbered_stops(stop: Sequence[str]) -> dict[str, str]:
    if not isinstance(stop, Sequence) or isinstance(stop, (bytes, bytearray)):
        raise TypeError(f"stop must be a str or a sequence of them, got {type(stop).__name__}")
    return {f"stop[{i}]": text for i, text in enumerate(stop)}


def draw_pieces(
    rnn: RNN, vocabulary: Vocabulary, request: Request, seed: int, block: int
) -> Iterator[str]:
    """The text of one seed in non-empty pieces, one for every `block` tokens drawn."""
    text = DrawnText(vocabulary, request.stops)
    if piece := text.begin(request.prime):
        yield piece
    with drawing_from(rnn):
        drawing = _Drawing(rnn, read_prime(rnn, request), [seed], request)
        for position in range(0, request.length, block):
            tokens = drawing.draw(min(block, request.length - position))
            if piece := text.extend(tokens[:, 0]):
                yield piece
            if text.ended:
                return
    if piece := text.finish():
        yield piece


def draw_texts(
    rnn: RNN,
    vocabulary: Vocabulary,
    request: Request,
    seeds: Sequence[int],
    done: Callable[[int], object] = lambda tokens: None,
) -> Iterator[str]:
    """The text of each seed, in order. As many are drawn as one batch as the memory allows.

    done: is called with the number of tokens of every block; those of an ended text count too.
    """
    with drawing_from(rnn):
        first = read_prime(rnn, request)
        count = max(1, min(_STREAMS, _TOGETHER // max(1, request.length)))
        for begin in range(0, len(seeds), count):
            drawing = _Drawing(rnn, first, seeds[begin : begin + count], request)
            yield from _texts(drawing, vocabulary, request, done)


@contextmanager
def drawing_from(rnn: RNN) -> Iterator[None]:
    """At the end the network gives back the copies of its weights that drawing made."""
    network: Any = rnn.core
    try:
        yield
    finally:
        network.end_drawing()


def _texts(
    drawing: _Drawing, vocabulary: Vocabulary, request: Request, done: Callable[[int], object]
) -> list[str]:
    """The text of each stream of a drawing; a stream whose text has ended is drawn no further."""
    texts = [DrawnText(vocabulary, request.stops) for _ in range(drawing.count)]
    pieces = [[text.begin(request.prime)] for text in texts]
    going = list(range(drawing.count))
    block = _STOP_BLOCK if request.stops else BLOCK
    for position in range(0, request.length, block):
        tokens = drawing.draw(min(block, request.length - position))
        for stream, b in enumerate(going):
            pieces[b].append(texts[b].extend(tokens[:, stream]))
        kept = [stream for stream, b in enumerate(going) if not texts[b].ended]
        ended = len(going) - len(kept)
        done(len(tokens) * len(going) + ended * (request.length - position - len(tokens)))
        if not kept:
            break
        if len(kept) < len(going):
            drawing.keep(kept)
            going = [going[stream] for stream in kept]
    return ["".join([*pieces[b], text.finish()]) for b, text in enumerate(texts)]


class DrawnText:
    """The text of a stream of tokens, piece by piece, up to the first stop string.

    Stop strings are searched for in drawn text, not in the prime. A possible beginning of one is
    held back until it is decided, and so are the first bytes of a character.
    """

    def __init__(self, vocabulary: Vocabulary, stops: tuple[str, ...]) -> None:
        self._decoder = StreamDecoder(vocabulary)
        self._stops = stops
        self._held = ""
        self.ended = False
        """Whether a stop string was drawn."""

    def begin(self, prime: NDArray[np.int32]) -> str:
        return self._decoder.decode(prime)

    def extend(self, tokens: NDArray[np.int32]) -> str:
        text = self._cut(self._held + self._decoder.decode(tokens))
        held = 0 if self.ended else _beginning_of_stop(text, self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """The text held back, once drawing has ended."""
        if self.ended:
            return ""
        return self._cut(self._held + self._decoder.decode([], final=True))

    def _cut(self, text: str) -> str:
        """text up to the stop string that is completed first; if several are, the longest."""
        found = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        self.ended = bool(found)
        return text[: min(found)[1]] if found else text


def _beginning_of_stop(text: str, stops: tuple[str, ...]) -> int:
    """How many characters at the end of text may be the beginning of a stop string."""
    if not text:
        return 0
    longest = 0
    for stop in stops:
        # Only where the last character fits, which str.rfind finds, from the longest beginning on.
        n = min(len(stop) - 1, len(text))
        while (n := stop.rfind(text[-1], longest, n) + 1) and not text.endswith(stop[:n]):
            n -= 1
        longest = max(longest, n)
    return longest


@dataclass(frozen=True)
class Start:
    """Where drawing begins: the state of one row (kernels' layout) and the token to read next."""

    state: NDArray[Any]
    token: int


def read_prime(rnn: RNN, request: Request) -> Start:
    """Reads request.read from the zero state, except the last id: drawing reads that one."""
    network: Any = rnn.core
    state = rnn.states.zeros(1)
    tokens, weights = request.read, kernel_weights(request.sampling)
    for start in range(0, len(tokens) - 1, _PRIME_BLOCK):
        block = tokens[start : min(start + _PRIME_BLOCK, len(tokens) - 1), None]
        network.read(block, state, weights)
    return Start(state, int(tokens[-1]))


def kernel_weights(sampling: Sampling) -> str:
    """The kernels' name of the weights; "": the network's own."""
    return sampling.weight_dtype if sampling.weight_dtype in SMALL_DTYPES else ""


def recent(ids: NDArray[np.int32], sampling: Sampling) -> NDArray[np.int32]:
    """The last repetition_window of ids, -1 in front of them where there are fewer."""
    window = sampling.repetition_window
    last = ids[max(0, len(ids) - window) :]
    return np.concatenate([np.full(window - len(last), -1, np.int32), last.astype(np.int32)])


class _Drawing:
    """Streams of tokens, one per seed, from a common start.

    Draw n of a stream (counted from 0) depends only on its seed and n: not on other streams, and
    not on how many tokens are drawn per call. The kernels keep their packed weights between calls.
    """

    def __init__(self, rnn: RNN, start: Start, seeds: Sequence[int], request: Request) -> None:
        self._rnn = rnn
        self._sampling = sampling = request.sampling
        self._seeds = np.array(seeds, np.uint64)
        self._last = np.full(len(seeds), start.token, np.int32)
        self._position = 0
        self._recent: NDArray[np.int32] | None = None
        if sampling.repetition_penalty > 1:
            self._recent = np.repeat(recent(request.prime, sampling)[:, None], len(seeds), axis=1)
        self._state = start.state
        self._select(np.zeros(len(seeds), np.intp))

    @property
    def count(self) -> int:
        """B, the number of streams."""
        return len(self._seeds)

    def draw(self, steps: int) -> NDArray[np.int32]:
        """The next tokens [steps, B] of the streams."""
        network: Any = self._rnn.core
        sampling = self._sampling
        drawn: NDArray[np.int32] = network.sample(
            steps,
            self._last,
            self._state,
            self._seeds,
            self._position,
            float(sampling.temperature),
            min(sampling.top_k or 0, self._rnn.output_size or self._rnn.hidden_size),
            1.0 if sampling.top_p is None else float(sampling.top_p),
            kernel_weights(sampling),
            float(sampling.repetition_penalty),
            self._recent,
        )
        self._last = np.ascontiguousarray(drawn[-1])
        self._position += steps
        return drawn

    def keep(self, streams: Sequence[int]) -> None:
        """Keeps only these streams, in this order."""
        rows = np.array(streams, np.intp)
        self._seeds, self._last = self._seeds[rows], self._last[rows]
        if self._recent is not None:
            self._recent = np.ascontiguousarray(self._recent[:, rows])
        self._select(rows)

    def _select(self, rows: NDArray[np.intp]) -> None:
        parts = [part[:, rows] for part in self._rnn.states.parts(self._state)]
        self._state = self._rnn.states.joined(parts)
