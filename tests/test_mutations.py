"""Damaged checkpoints: one error type, no crash, and no more memory than the file may need."""

from __future__ import annotations

import json
import random
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from charrnn_fast import CharLM, Corpus, Trainer, optim
from charrnn_fast._checks import MOST_STEPS
from charrnn_fast.initial import INITS
from charrnn_fast.registry import CELL_NAMES
from charrnn_fast.rnn import _BIASES
from charrnn_fast.storage import checkpoint, configuration
from charrnn_fast.storage.checkpoint import CheckpointError
from charrnn_fast.training.schedules import _SCHEDULES, to_config

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


@pytest.mark.parametrize(
    "number",
    [
        100,
        pytest.param(400, marks=pytest.mark.slow),  # the fuzzers of .ci/run try 32,000 more
        pytest.param(1500, marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_a_damaged_file_is_one_error(
    tmp_path: Path, good: bytes, mutate: Callable[[bytes, random.Random], bytes], number: int
) -> None:
    """So many of each of seven kinds."""
    path = tmp_path / "model"
    path.write_bytes(good)
    whole = contents(path)
    rng = random.Random(mutate.__name__)
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(number):
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
    assert refused >= 0.93 * number


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


WILD: list[Any] = [
    None,
    -1,
    0,
    1,
    2.5,
    10**9,
    2**70,
    10**400,
    -0.0,
    1e308,
    -1.0,
    True,
    False,
    "",
    "x",
    "7",
    "\ud800",
    [],
    {},
    ["x"],
    [1, 2.0],
    {"x": None},
    [[[[1]]]],
]


def places(value: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Where every value within a JSON value is, as keys and indices."""
    if path:
        yield path
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], *path, key)


def replaced(config: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(config))
    holder: Any = changed
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return changed


OTHERS = (
    "optimizer object",
    "the corpus must be the one",
    "document_mark must be",
    "the corpus is the text",
)


class Sealed:
    """Files of the good one's tensors and any configuration, with the checksum that they need."""

    def __init__(self, good: bytes, folder: Path) -> None:
        self.path, self.again = folder / "model", folder / "again"
        self.corpus = Corpus.from_text(TEXT)
        self.path.write_bytes(good)
        self.tensors, self.config = checkpoint.read(self.path)

    def refusal(self, config: dict[str, Any]) -> str | None:
        """The message with which a configuration is refused; None where a training goes on with it.

        It may be a right one of another text than the corpus, or of a training that diverges.
        """
        try:
            self.go_on(config)
        except (CheckpointError, MemoryError) as error:
            return str(error)
        except FloatingPointError as error:  # a learning rate of 1e308
            if "training has diverged" in str(error):
                return None
            raise
        except ValueError as error:
            if any(words in str(error) for words in OTHERS):
                return None
            raise
        return None

    def go_on(self, config: dict[str, Any]) -> None:
        self.path.write_bytes(checkpoint._packed(self.path, self.tensors, config))
        CharLM.load(self.path).sample(3, seed=1)
        Trainer.resume(self.path).save(self.again)
        expected = replaced(config, ("training", "corpus"), None)
        assert checkpoint.read(self.again)[1] == expected
        trainer = Trainer.resume(self.path, self.corpus)
        trainer.fit(steps=1, progress=False)
        trainer.save(self.again)
        assert Trainer.resume(self.again, self.corpus).num_steps == trainer.num_steps


@pytest.mark.slow
def test_a_wrong_configuration_with_a_right_checksum_is_the_same_error(
    tmp_path: Path, good: bytes
) -> None:
    """As of a file made by another program. Every value, by every wild one: it is refused with its
    name, or the training goes on with it, and is saved."""
    sealed = Sealed(good, tmp_path)
    taken = refused = 0
    for place in places(sealed.config):
        for wild in WILD:
            message = sealed.refusal(replaced(sealed.config, place, wild))
            if message is None:
                taken += 1
                continue
            refused += 1
            assert message.startswith(str(sealed.path))
            assert any(str(part) in message for part in place), (place, wild, message)
    assert taken > 150
    assert refused > 1000


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_at_any_place_is_taken_or_the_same_error(
    tmp_path: Path, good: bytes, data: st.DataObject
) -> None:
    sealed = Sealed(good, tmp_path)
    place = data.draw(st.sampled_from(list(places(sealed.config))))
    sealed.refusal(replaced(sealed.config, place, data.draw(JSON)))


def test_missing_and_unknown_keys_are_named(tmp_path: Path, good: bytes) -> None:
    sealed = Sealed(good, tmp_path)
    for place in places(sealed.config):
        names = [str(part) for part in place]
        if "configuration" in names or not isinstance(place[-1], str):
            continue
        changed = json.loads(json.dumps(sealed.config))
        holder = changed
        for key in place[:-1]:
            holder = holder[key]
        holder["later"] = holder.pop(place[-1])
        message = sealed.refusal(changed)
        if place == ("training",):
            assert message == f"{sealed.path}: later is unknown to this version"
        else:
            assert message == f"{sealed.path}: {'.'.join(names)} is missing"


def test_a_rate_without_bounds_is_a_divergence(tmp_path: Path, good: bytes) -> None:
    """The factor of a schedule that rises, after very many epochs, exceeds the largest number."""
    sealed = Sealed(good, tmp_path)
    rising = {"name": "decay", "warmup": 0.0, "decay": 1e300, "after": 1}
    config = replaced(sealed.config, ("training", "settings", "schedule"), rising)
    config = replaced(config, ("training", "num_steps"), 2**61)
    with pytest.raises(FloatingPointError, match="training has diverged"):
        sealed.go_on(config)


@pytest.mark.parametrize("key", ["num_steps", "optimizer_steps"])
def test_steps_that_cannot_be_counted_are_not_done(tmp_path: Path, good: bytes, key: str) -> None:
    sealed = Sealed(good, tmp_path)
    for left in (1, 0):
        config = replaced(sealed.config, ("training", key), MOST_STEPS - left)
        sealed.path.write_bytes(checkpoint._packed(sealed.path, sealed.tensors, config))
        trainer = Trainer.resume(sealed.path, sealed.corpus)
        trainer.fit(steps=left, progress=False)
        before = trainer.model.rnn.parameters(copy=True)
        with pytest.raises(ValueError, match="are done, the most that a checkpoint can count"):
            trainer.fit(steps=1, progress=False)
        np.testing.assert_equal(trainer.model.rnn.parameters(), before)
        trainer.save(sealed.path)
        assert Trainer.resume(sealed.path, sealed.corpus).num_steps == trainer.num_steps


def test_a_sum_of_losses_without_bounds_is_a_divergence(tmp_path: Path, good: bytes) -> None:
    sealed = Sealed(good, tmp_path)
    most = sys.float_info.max
    trainer = Trainer.resume(sealed.path, sealed.corpus, evaluate_every=1000)
    trainer._losses = (7, most)
    trainer._update = lambda *_: (most, 1.0)  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match="training has diverged"):
        trainer.fit(steps=1, progress=False)


def test_the_schema_knows_what_the_code_knows(good: bytes, tmp_path: Path) -> None:
    """Cells, optimizers and schedules are written down in the code and in the schema."""
    sealed = Sealed(good, tmp_path)
    model: Any = sealed.config["model"]
    for cell in CELL_NAMES:
        configuration.check({**sealed.config, "model": {**model, "cell": cell}})
    for bias in _BIASES:
        configuration.check({**sealed.config, "model": {**model, "bias": bias}})
    for init in INITS:
        configuration.check({**sealed.config, "model": {**model, "init": init}})
    for optimizer in optim.KINDS:
        place = ("training", "settings", "optimizer")
        configuration.check(replaced(sealed.config, place, optimizer))
    for kind in _SCHEDULES.values():
        place = ("training", "settings", "schedule")
        configuration.check(replaced(sealed.config, place, to_config(kind())))


def test_missing_and_misshapen_tensors_are_the_same_error(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "model"
    path.write_bytes(good)
    tensors, config = checkpoint.read(path)
    for name, tensor in tensors.items():
        others = [None, tensor[..., :-1], tensor.reshape(-1, 1, 1), tensor.astype(np.float64)]
        for other in [*others, tensor.astype(np.int8), tensor[None]]:
            changed = {**tensors, name: other}
            checkpoint.write(path, {n: t for n, t in changed.items() if t is not None}, config)
            assert "the tensor '" in str(refusal(path)), (name, other)
    assert safetensors.numpy.load(good).keys() == tensors.keys()
