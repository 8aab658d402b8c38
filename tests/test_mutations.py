"""Damaged checkpoints: one error type, no crash, and no memory beyond what the file can need."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from charrnn_fast import CharLM, Corpus, Trainer, checkpoint
from charrnn_fast.checkpoint import CheckpointError

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
INTERPRETER = 1 << 17  # bytes: Python's own objects, as an error's traceback


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "model"
    corpus = Corpus.from_text(TEXT)
    model = CharLM(corpus.vocabulary, 6, 1, "gru", seed=1)
    Trainer(model, corpus, 6, 20, checkpoint_path=path).fit(steps=7, progress=False)
    return path.read_bytes()


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 10, 1000])):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flipped_in_the_header(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    size = int.from_bytes(data[:8], "little")
    for _ in range(rng.choice([1, 1, 1, 2, 10])):
        changed[rng.randrange(8 + size)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def exchanged(data: bytes, rng: random.Random) -> bytes:
    """Two blocks change places."""
    size = rng.randrange(1, 200)
    one, other = sorted(rng.sample(range(len(data) - size), 2))
    changed = bytearray(data)
    changed[one : one + size] = data[other : other + size]
    changed[other : other + size] = data[one : one + size]
    return bytes(changed)


def lengthened(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.randrange(1, 100)) + data[at:]


def with_a_key_twice(data: bytes, rng: random.Random) -> bytes:
    """In the outer object, or in that of one tensor, with the same or another value."""
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].decode()
    entries = json.loads(header)
    name = rng.choice(list(entries))
    value = entries[rng.choice(list(entries))]
    if rng.random() < 0.5:
        header = f"{{{json.dumps(name)}:{json.dumps(value)},{header.strip()[1:]}"
    else:
        inner = json.dumps(entries[name])
        key = rng.choice(list(entries[name]))
        twice = f"{{{json.dumps(key)}:{json.dumps(entries[name][key])},{inner[1:]}"
        parts = (
            f"{json.dumps(n)}:{twice if n == name else json.dumps(e)}" for n, e in entries.items()
        )
        header = f"{{{','.join(parts)}}}"
    return with_header(data, header)


def with_other_numbers(data: bytes, rng: random.Random) -> bytes:
    """A tensor's offsets or shape, the checksum or another entry, replaced by a wild value."""
    size = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + size])
    name = rng.choice([name for name in entries if name != "__metadata__"])
    key = rng.choice(list(entries[name]))
    wild: tuple[Any, ...] = (
        -1,
        0,
        1,
        2**31,
        2**63,
        2**64,
        10**400,
        1.5,
        None,
        "F32",
        [],
        {},
        [2**62, 4],
        [0, 2**40],
    )
    entries[name][key] = rng.choice(wild)
    return with_header(data, json.dumps(entries))


def with_header(data: bytes, header: str) -> bytes:
    size = int.from_bytes(data[:8], "little")
    return len(header).to_bytes(8, "little") + header.encode() + data[8 + size :]


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    truncated,
    flipped,
    flipped_in_the_header,
    exchanged,
    lengthened,
    with_a_key_twice,
    with_other_numbers,
)


def contents(path: Path) -> tuple[Any, Any]:
    tensors, config = checkpoint.read(path)
    return {name: (t.dtype, t.shape, t.tobytes()) for name, t in tensors.items()}, config


def refusal(path: Path) -> str | None:
    """The message of the one type of error with which a checkpoint is refused, if it is.

    One that is whole may describe a training for which this machine has not the memory.
    """
    try:
        Trainer.resume(path)
    except (CheckpointError, MemoryError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_damaged_file_is_one_error(
    tmp_path: Path, good: bytes, mutate: Callable[[bytes, random.Random], bytes]
) -> None:
    """1,500 of each kind, 10,500 in all."""
    path = tmp_path / "model"
    path.write_bytes(good)
    whole = contents(path)
    rng = random.Random(mutate.__name__)
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(1500):
            data = mutate(good, rng)
            if data == good:
                continue
            path.write_bytes(data)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            message = refusal(path)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before <= 2 * len(data) + INTERPRETER
            if message is None:  # the meaning is as it was, as of "\u00E9" for "\u00e9"
                assert contents(path) == whole
            else:
                assert str(path) in message
                refused += 1
    finally:
        tracemalloc.stop()
    assert refused >= 1400


def test_a_large_file_is_read_within_twice_its_size(tmp_path: Path) -> None:
    path = tmp_path / "model"
    checkpoint.write(path, {"weight": np.arange(2_000_000, dtype=np.float32)}, {})
    data = bytearray(path.read_bytes())
    for at in (len(data) - 1, len(data) // 2):
        data[at] ^= 1
        path.write_bytes(data)
        tracemalloc.start()
        try:
            with pytest.raises(CheckpointError, match="its checksum does not fit its data"):
                checkpoint.read(path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak <= 2 * len(data) + INTERPRETER


WILD: list[Any] = [None, -1, 0, 10**9, 1.5, "x", [], {}, ["x"], True]


def settings(config: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every object of a configuration that has a key, and the key."""
    for key, value in config.items():
        yield config, key
        if isinstance(value, dict):
            yield from settings(value)


def test_a_wrong_configuration_with_a_right_checksum_is_the_same_error(
    tmp_path: Path, good: bytes
) -> None:
    """As of a file made by another program: its numbers do not fit its tensors."""
    path = tmp_path / "model"
    path.write_bytes(good)
    tensors, config = checkpoint.read(path)
    tensors = {name: np.array(tensor) for name, tensor in tensors.items()}
    places = len(list(settings(config)))
    assert places > 40
    refused = 0
    for place in range(places):
        for wild in WILD:
            changed = json.loads(json.dumps(config))
            holder, key = list(settings(changed))[place]
            if (key, wild) == ("optimizer", None):  # means another thing: it was an object
                continue
            holder[key] = wild
            checkpoint.write(path, tensors, changed)
            tracemalloc.start()
            message = refusal(path)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak <= 2 * len(good) + INTERPRETER, (key, wild, message)
            if message is not None:
                assert str(path) in message
                refused += 1
    assert refused > 5 * places


def test_missing_and_misshapen_tensors_are_the_same_error(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "model"
    path.write_bytes(good)
    tensors, config = checkpoint.read(path)
    for name, tensor in tensors.items():
        others = [None, tensor[..., :-1], tensor.reshape(-1, 1, 1), tensor.astype(np.float64)]
        for other in others:
            changed = {**tensors, name: other}
            checkpoint.write(path, {n: t for n, t in changed.items() if t is not None}, config)
            assert refusal(path) is not None, (name, other)
    assert safetensors.numpy.load(good).keys() == tensors.keys()
