"""What is fuzzed: reading a checkpoint, going on with it, saving it.

`one_input` takes the bytes of a file, as they are and, where they are JSON enough, with the
checksum that they need. The result is a training that goes on and is saved, or one of the errors
that files have; whatever else is raised is a finding.

    PYTHONPATH=tests python -m fuzz.target

writes the corpus as it was begun.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from charrnn_fast import CharLM, CheckpointError, Corpus, Trainer
from charrnn_fast.storage import checkpoint, schema

CORPUS = Path(__file__).parent / "corpus"
TEXT = "abba\n" * 30
LARGEST = 1 << 16  # bytes of an input: more find no more, and take longer
# Of files that are whole: of another text or training than the one that they are tried with, of
# weights so large that what they compute is not finite, or of as many steps as can be counted.
_OTHERS = (
    "without its training",
    "optimizer object",
    "the corpus",
    "document_mark must be",
    "the weights are damaged",
    "the most that a checkpoint can count",
)
_KEY = "charrnn_fast"

_folder = tempfile.TemporaryDirectory(prefix="charrnn_fast-fuzz-")
_path, _again = (os.path.join(_folder.name, name) for name in ("model", "again"))
_corpora = (Corpus.from_text(TEXT), Corpus.from_text(TEXT, document_mark="\n"))


def one_input(data: bytes) -> None:
    for file in (data, *_sealed(data)):
        with open(_path, "wb") as opened:
            opened.write(file)
        _go_on()


def _go_on() -> None:
    try:
        model = CharLM.load(_path)
        model.sample(2, seed=1)
        marked = checkpoint.read(_path)[1].get("training", {}).get("corpus") or {}
        corpus = _corpora[marked.get("document_mark") is not None]
        trainer = Trainer.resume(_path, corpus)
        trainer.fit(steps=1, progress=False)
        trainer.save(_again)
    except (CheckpointError, MemoryError):
        return
    except FloatingPointError as error:
        if "has diverged" in str(error) or "no longer finite" in str(error):
            return
        raise
    except ValueError as error:
        if any(words in str(error) for words in _OTHERS):
            return
        raise
    assert Trainer.resume(_again, corpus).num_steps == trainer.num_steps


def _sealed(data: bytes) -> Iterator[bytes]:
    """data with another checksum, the right one, if it is a checkpoint but for that."""
    parts = _parts(data)
    if parts is not None:
        yield _joined(data, *parts)


def _parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The header, and our entry of its metadata; None where it has none."""
    size = int.from_bytes(data[:8], "little")
    try:
        outer = schema.loads(data[8 : 8 + size].decode())
        header = schema.loads(outer["__metadata__"][_KEY])
        if isinstance(header["config"], dict):
            return outer, header
    except (ValueError, LookupError, TypeError):
        pass
    return None


def _joined(data: bytes, outer: dict[str, Any], header: dict[str, Any]) -> bytes:
    """A file with another header, and the checksum that goes with it."""
    body = data[8 + int.from_bytes(data[:8], "little") :]
    file = _file(outer, header, body)
    try:
        tensors = safetensors.numpy.load(file)
        header = {**header, "sha256": checkpoint._digest(tensors, header["config"])}
    except (safetensors.SafetensorError, LookupError, ValueError, TypeError):
        return file
    return _file(outer, header, body)


def _file(outer: dict[str, Any], header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps({**outer, "__metadata__": {_KEY: json.dumps(header)}}).encode()
    return len(text).to_bytes(8, "little") + text + body


# ---- a mutation that keeps the file one of JSON and tensors ----

_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    7,
    2**31,
    2**62,
    2**64,
    0.5,
    1.0,
    -0.0,
    1e308,
    "",
    "x",
    "7",
    "lstm",
    "gru",
    "adam",
    "sgd",
    "float64",
    "tf32",
    "bfloat16",
    "int8",
    [],
    [1, 2.0],
    {},
    {"x": 1},
)


def mutated(data: bytes, seed: int) -> bytes | None:
    """data with a value of its JSON replaced, left out, or put at another key."""
    parts = _parts(data)
    if parts is None:
        return None
    outer, header = parts
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 2, 3))):
        table = rng.choice((header["config"], header["config"], outer))
        places = [place for place in _places(table) if place[1] != "__metadata__"]
        if not places:
            break
        holder, key = rng.choice(places)
        what = rng.randrange(6)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[rng.choice(("later", *map(str, holder)))] = holder.pop(key)
        elif what == 2 and type(holder[key]) in (int, float):
            holder[key] += rng.choice((-1, 1, 0.5, 1000))
        elif what == 3:
            other, its_key = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[its_key]))
        else:
            # a copy: later changes must not reach the list of values
            holder[key] = json.loads(json.dumps(rng.choice(_VALUES)))
    return _joined(data, outer, header)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each list or object within a value, with each of its keys."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def seeds() -> Iterator[tuple[str, bytes]]:
    """The corpus as it was begun: small models and trainings of every kind."""
    options: dict[str, dict[str, Any]] = {
        "rnn": {"cell": "rnn", "nonlinearity": "relu", "bias": "single"},
        "gru": {"cell": "gru", "layer_norm": True, "input_dropout": 0.1},
        "lstm": {"num_layers": 2, "dropout": 0.5, "zoneout": (0.1, 0.2), "variational": True},
        "peephole": {"cell": "peephole_lstm", "bias": False, "forget_bias": None},
        "coupled": {"cell": "coupled_lstm", "dtype": "float64", "init": "uniform"},
        "projected": {"hidden_size": 2, "proj_size": 1, "weight_drop": 0.2},
        "bfloat16": {"compute_dtype": "bfloat16"},
        "averaged": {"cell": "rnn"},
    }
    trainings: dict[str, dict[str, Any]] = {
        "rnn": {"optimizer": "sgd", "reduction": "sum", "clip_norm": None},
        "gru": {"optimizer": "rmsprop", "random_offset": True, "patience": 3},
        "lstm": {"optimizer": "adagrad", "micro_batches": 2, "evaluate_every": 2},
        "peephole": {"optimizer": "adamw", "clip_value": 1.0, "evaluate_length": 5},
        "coupled": {"optimizer": "adam", "checkpoint_every": 3, "sample_length": 5},
        "averaged": {"average": "ema:0.9"},
    }
    for name, keywords in options.items():
        model = CharLM(_corpora[0].vocabulary, **{"hidden_size": 1, "num_layers": 1, **keywords})
        yield f"{name}-model", _saved(model)
        for kept, steps in (("begun", 0), ("middle", 3)):
            corpus = _corpora[name in ("gru", "lstm")]
            trainer = Trainer(model, corpus, 2, 5, **trainings.get(name, {}))
            trainer.configuration = {"charrnn_fast": {"seq_len": 5, "text": ["a"]}}
            trainer.fit(steps=steps, progress=False)
            yield f"{name}-{kept}", _saved(trainer)
    for dtype in ("bfloat16", "int8"):
        model = CharLM(_corpora[0].vocabulary, 2, 2, "gru", seed=1)
        yield f"{dtype}-weights", _saved(model, weight_dtype=dtype)
        for name, tensor, value in (
            ("infinite", "rnn.weight_hh_l0", 0x7F80 if dtype == "bfloat16" else -128),
            ("scales", "decoder.weight.scales", 1 / 3),
            ("zero", "decoder.weight.scales", 0),
        ):
            tensors, config = checkpoint.read(_path)
            if tensor in tensors:
                tensors[tensor] = tensors[tensor].copy()
                tensors[tensor][1] = value
                yield f"{dtype}-{name}", checkpoint._packed(_path, tensors, config)
    yield "unknown", _saved(CharLM(Corpus.from_text("aab\n" * 9, min_count=10).vocabulary, 1, 1))
    whole = _saved(CharLM(_corpora[0].vocabulary, 1, 1))
    yield "newer", whole.replace(b'\\"format\\": 1', b'\\"format\\": 2')
    yield "cut", whole[:-3]
    yield "foreign", safetensors.numpy.save({"a": np.zeros(2, np.float32)}, {"format": "pt"})
    yield "nested", (40).to_bytes(8, "little") + b"[" * 40


def _saved(model: CharLM | Trainer, **how: Any) -> bytes:
    with open(_path, "wb"):
        pass
    model.save(_path, **how)
    return Path(_path).read_bytes()


if __name__ == "__main__":
    for name, data in seeds():
        (CORPUS / name).write_bytes(data)
