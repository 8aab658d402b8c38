"""Vocabularies: the symbols of a text, characters or bytes, and their ids, the model's tokens."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._checks import array_like, called, instance, integer, real
from .._objects import Settled

_Text = TypeVar("_Text", str, bytes, str | bytes)

Kind = Literal["characters", "bytes"]

UNICODE_SIZE = 0x110000  # code points
_BLOCK = 1 << 22  # characters counted at a time
_REPLACEMENT = 0xFFFD  # U+FFFD REPLACEMENT CHARACTER, Unicode's unknown character


class Unknown(NamedTuple):
    """What the unknown symbol stood for in the text that the vocabulary was made from."""

    characters: int  # distinct ones
    share: float  # of the text


class _Codec(NamedTuple):
    """How a text becomes an array with one element per symbol, and back."""

    dtype: np.dtype[Any]
    encoding: str
    encode_errors: str
    decode_errors: str


_CODECS: dict[Kind, _Codec] = {
    # surrogatepass: a str may hold lone surrogates, which a round trip must keep.
    "characters": _Codec(np.dtype("<u4"), "utf-32-le", "surrogatepass", "surrogatepass"),
    "bytes": _Codec(np.dtype("u1"), "utf-8", "strict", "replace"),
}


class Vocabulary(Settled):
    """Distinct symbols with the ids 0 to ``len(vocabulary) - 1``; immutable.

    Make one with `from_text` (characters) or `from_bytes` (the 256 bytes of UTF-8). Two
    vocabularies are equal if they give every symbol the same id.

    A vocabulary of characters may have an unknown symbol, U+FFFD. Its id stands for every character
    without an id of its own. A U+FFFD in a text is thus unknown too, and encoding a decoded text
    gives its ids back.
    """

    kind: Kind
    unknown: Unknown | None
    """What the unknown symbol stood for; None: there is no unknown symbol."""

    _advice = {"": "a vocabulary is immutable; make another one"}  # noqa: RUF012
    _covered = frozenset(("_codec", "_symbols", "_unknown_id", "_ids"))

    def __init__(
        self, symbols: ArrayLike, kind: Kind = "characters", unknown: Unknown | None = None
    ) -> None:
        """symbols [V]: distinct code points, or the bytes 0 to 255; an index is an id.

        With unknown, U+FFFD must be among the code points: it is the unknown symbol.
        """
        if kind not in _CODECS:
            raise ValueError(f"kind must be one of {', '.join(_CODECS)}, got {kind!r}")
        values = _integers(symbols, "symbols")
        if values.ndim != 1 or not values.size:
            raise ValueError(f"symbols must have the shape [V], V >= 1, got {list(values.shape)}")
        if values.min() < 0 or values.max() >= UNICODE_SIZE:
            raise ValueError(
                f"symbols must lie in 0 to {UNICODE_SIZE - 1}, got {values.min()} to {values.max()}"
            )
        if np.unique(values).size != values.size:
            raise ValueError("symbols must be distinct")
        if kind == "bytes" and not np.array_equal(values, np.arange(256)):
            raise ValueError("symbols of the kind 'bytes' must be 0 to 255 in this order")
        if unknown is not None:
            if kind == "bytes" or _REPLACEMENT not in values:
                raise ValueError(
                    "an unknown symbol takes the kind 'characters' and U+FFFD in symbols"
                )
            integer("unknown.characters", unknown.characters, 0, UNICODE_SIZE)
            real("unknown.share", unknown.share, least=0, most=1)
        self.kind = kind
        self.unknown = unknown
        self._codec = _CODECS[kind]
        self._symbols: NDArray[Any] = values.astype(self._codec.dtype)
        self._symbols.flags.writeable = False
        self._unknown_id = -1 if unknown is None else int(np.argmax(values == _REPLACEMENT))
        # One element beyond the largest symbol: all larger ones are clipped to that.
        self._ids = np.full(int(values.max()) + 2, self._unknown_id, np.int32)
        self._ids[values] = np.arange(values.size, dtype=np.int32)

    @classmethod
    def from_text(cls, text: str, min_count: int = 1) -> Vocabulary:
        """The distinct characters of a text, sorted by code point.

        min_count above 1: only those that occur at least so often, and the unknown symbol for the
        rest and for unknown characters of other texts.
        """
        return cls.from_text_keeping(text, integer("min_count", min_count, 1), "")

    @classmethod
    def from_text_keeping(cls, text: str, min_count: int, kept: str) -> Vocabulary:
        """As `from_text`, but the characters of kept are included even if they are rare."""
        instance("text", text, str, "a str")
        counts = np.zeros(UNICODE_SIZE, np.int64)
        for start in range(0, len(text), _BLOCK):
            here = np.bincount(code_points(text[start : start + _BLOCK]))
            counts[: here.size] += here
        return cls.from_counts(counts, min_count, kept)

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64], min_count: int, kept: str) -> Vocabulary:
        """As `from_text_keeping`, for a text in which code point i occurs counts[i] times."""
        points = np.flatnonzero(counts)
        if not points.size:
            raise ValueError("text must have 1 character or more, got none")
        if min_count == 1:
            return cls(points)
        counts = counts[points]
        if counts.max() < min_count:
            raise ValueError(
                f"{called('min_count')} must be at most {counts.max()}, the count of the most "
                f"frequent character, {chr(points[counts.argmax()])!r}, got {min_count}"
            )
        own = (counts >= min_count) | np.isin(points, code_points(kept))
        own &= points != _REPLACEMENT
        unknown = Unknown(int(np.sum(~own)), float(counts[~own].sum() / counts.sum()))
        return cls(np.union1d(points[own], [_REPLACEMENT]), unknown=unknown)

    @classmethod
    def from_bytes(cls) -> Vocabulary:
        """The 256 bytes, one symbol each: for any text, language or binary file."""
        return cls(np.arange(256), "bytes")

    def encode(self, text: str | bytes) -> NDArray[np.int32]:
        """The ids of a text, [N]. A byte vocabulary takes bytes, or encodes a str as UTF-8.

        Raises ValueError with the first character that is not in the vocabulary and its position,
        unless there is an unknown symbol.
        """
        return self.encode_part(text, "text", 0)

    def decode(self, ids: ArrayLike) -> str:
        """The text of ids [N]. Bytes that are not valid UTF-8 become U+FFFD."""
        return self.units(ids).decode(self._codec.encoding, self._codec.decode_errors)

    def one_hot(self, ids: ArrayLike, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """One-hot vectors [..., V] for ids [...]."""
        tokens = self._checked(ids)
        try:
            vectors = np.zeros((*tokens.shape, len(self)), dtype)
        except MemoryError as error:
            raise MemoryError(
                f"{error}; try fewer ids at a time, or give a network the ids, which stand for "
                f"one-hot vectors"
            ) from None
        np.put_along_axis(vectors, tokens[..., None], 1, axis=-1)
        return vectors

    def __len__(self) -> int:
        """V, the number of symbols."""
        return int(self._symbols.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return (
            self.kind == other.kind
            and self._unknown_id == other._unknown_id
            and np.array_equal(self._symbols, other._symbols)
        )

    def __hash__(self) -> int:
        return hash((self.kind, self._unknown_id, self._symbols.tobytes()))

    def __repr__(self) -> str:
        if self.kind == "bytes":
            return "Vocabulary.from_bytes()"
        return f"<Vocabulary of {self.describe()}>"

    def _pickled(self) -> dict[str, Any]:
        return {"symbols": self._symbols, "kind": self.kind, "unknown": self.unknown}

    def _unpickle(self, saved: dict[str, Any]) -> None:
        Vocabulary.__init__(self, saved["symbols"], saved["kind"], saved["unknown"])

    def to_config(self) -> dict[str, Any]:
        """Its part of a checkpoint's configuration; the symbols are a tensor."""
        if self.unknown is None:
            return {"vocabulary": self.kind}
        return {"vocabulary": self.kind, "unknown": self.unknown._asdict()}

    @classmethod
    def from_config(cls, symbols: ArrayLike, config: Mapping[str, Any]) -> Vocabulary:
        """The inverse of `to_config`, given the symbols."""
        unknown = config.get("unknown")
        return cls(symbols, config["vocabulary"], None if unknown is None else Unknown(**unknown))

    @property
    def symbols(self) -> NDArray[Any]:
        """[V] code points, or the bytes 0 to 255, read-only; an index is an id."""
        return self._symbols

    @property
    def unknown_id(self) -> int:
        """The id of the unknown symbol; -1: there is none."""
        return self._unknown_id

    @property
    def unit(self) -> str:
        """What one symbol is called in messages."""
        return "character" if self.kind == "characters" else "byte"

    def describe(self) -> str:
        """The size, the first symbols and the unknown ones, on one line."""
        if self.kind == "bytes":
            return "the 256 bytes"
        shown = f"{len(self)} characters: {self.shown()}"
        if self.unknown is None:
            return shown
        return (
            f"{shown}; U+FFFD stands for all others: {self.unknown.characters} in the text, "
            f"{100 * self.unknown.share:.3g} % of it"
        )

    def shown(self, most: int = 100) -> str:
        """The first symbols, as a quoted string on one line."""
        shown = repr(self.decode(np.arange(min(len(self), most))))
        return shown if len(self) <= most else f"{shown} and {len(self) - most} more"

    def id_of(self, symbol: int) -> int:
        """The id of a code point or byte; -1 if it has none of its own."""
        found = int(self._ids[min(symbol, self._ids.size - 1)])
        return found if found >= 0 and self._symbols[found] == symbol else -1

    def ids_of(self, symbols: NDArray[Any]) -> NDArray[np.int32]:
        """The ids of code points or bytes; negative for one without an id or unknown symbol."""
        ids: NDArray[np.int32] = self._ids.take(symbols, mode="clip")
        return ids

    def extended(self, text: str) -> Vocabulary:
        """A vocabulary with the characters of text, too: ids stay, those of new ones follow by code
        point.

        An unknown symbol stays what it is. Raises ValueError for the 256 bytes, which have all.
        """
        instance("text", text, str, "a str")
        return self.extended_by(code_points(text))

    def extended_by(self, points: NDArray[Any]) -> Vocabulary:
        """As `extended`, for code points [N]."""
        if self.kind == "bytes":
            raise ValueError("the 256 bytes are all that there are: nothing is left to add")
        new = np.setdiff1d(points, self._symbols)
        return Vocabulary(np.concatenate([self._symbols, new]), unknown=self.unknown)

    def without_unknown(self, text: _Text) -> tuple[_Text, int]:
        """text without the characters that cannot be encoded, and their number."""
        if self.kind == "bytes" or self._unknown_id >= 0 or not isinstance(text, str):
            return text, 0
        points = code_points(text)
        kept = points[self.ids_of(points) >= 0]
        codec = self._codec
        left = kept.tobytes().decode(codec.encoding, codec.decode_errors)
        return left, len(text) - len(left)

    def encode_known(
        self, text: str | bytes, source: str, offset: int
    ) -> tuple[NDArray[np.int32], int]:
        """As `encode_part`, without the characters that cannot be encoded, and their number."""
        known, left_out = self.without_unknown(text)
        return self.encode_part(known, source, offset), left_out

    def encode_part(self, text: str | bytes, source: str, offset: int) -> NDArray[np.int32]:
        """As `encode`; errors name `source`, in which `text` begins at position `offset`."""
        if isinstance(text, bytes) and self.kind == "bytes":
            data = text
        elif isinstance(text, str):
            try:
                data = text.encode(self._codec.encoding, self._codec.encode_errors)
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"{source} has {_character(ord(text[error.start]))} at position "
                    f"{offset + error.start}, a lone surrogate, which has no UTF-8 bytes"
                ) from None
        else:
            takes = "a str" if self.kind == "characters" else "a str or bytes"
            raise TypeError(f"{source} must be {takes}, got {type(text).__name__}")
        symbols = np.frombuffer(data, self._codec.dtype)
        ids = self.ids_of(symbols)
        if ids.size and ids.min() < 0:
            at = int(np.argmin(ids))
            raise ValueError(
                f"{source} has {_character(int(symbols[at]))} at position {offset + at}, which is "
                f"not among the vocabulary's {len(self)} {self.kind} ({self.shown()})"
            )
        return ids

    def units(self, ids: ArrayLike) -> bytes:
        """The bytes of ids [N] in the codec's encoding."""
        tokens = self._checked(ids)
        if tokens.ndim != 1:
            raise ValueError(f"ids must have the shape [N], got {list(tokens.shape)}")
        data: bytes = self._symbols[tokens].tobytes()
        return data

    def _checked(self, ids: ArrayLike) -> NDArray[Any]:
        tokens = _integers(ids, "ids")
        if tokens.size and (tokens.min() < 0 or tokens.max() >= len(self)):
            wrong = tokens[(tokens < 0) | (tokens >= len(self))].flat[0]
            raise ValueError(f"ids must lie in 0 to {len(self) - 1}, got {wrong}")
        return tokens


class StreamDecoder:
    """Decodes ids that arrive in pieces, without splitting a character of several bytes."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        codec = _CODECS[vocabulary.kind]
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder(codec.encoding)(codec.decode_errors)

    def decode(self, ids: ArrayLike, *, final: bool = False) -> str:
        """The text that ids [N] complete; the pieces join to the text of `Vocabulary.decode`."""
        return self._decoder.decode(self._vocabulary.units(ids), final)


def code_points(text: str) -> NDArray[np.uint32]:
    """[N]: the code point of each character."""
    codec = _CODECS["characters"]
    return np.frombuffer(text.encode(codec.encoding, codec.encode_errors), codec.dtype)


def _integers(values: ArrayLike, name: str) -> NDArray[Any]:
    """A checked copy, which no other thread can change."""
    array = np.array(array_like(name, values))
    if array.size == 0:
        return array.astype(np.int32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    return array


def _character(symbol: int) -> str:
    return f"the character {chr(symbol)!r} (U+{symbol:04X})"
