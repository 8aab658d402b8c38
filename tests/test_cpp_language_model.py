"""C++'s checkpoints and LanguageModel, compared with Python's and with the safetensors package."""

from __future__ import annotations

import json
import os
import random
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from charrnn_fast import CharLM, CheckpointError, Corpus, Vocabulary, _core
from charrnn_fast.storage import checkpoint, schema
from fuzz import target

KEPT = sorted((Path(__file__).parent / "kept").glob("*.safetensors"))
CORPUS = sorted(target.CORPUS.iterdir())
TEXT = "the cat sat on the mat.\nthe dog sat on the log.\nßüé→ 𝄞\n"


def utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def written(model: CharLM, tmp_path: Path) -> bytes:
    path = tmp_path / "model"
    model.save(path)
    return path.read_bytes()


# ---- the format ----


def agreed(data: bytes) -> bool:
    """Whether C++ accepts a safetensors file, which must be as the package and its JSON say."""
    size = int.from_bytes(data[:8], "little")
    try:
        wanted = safetensors.numpy.load(data)
        outer = schema.loads(data[8 : 8 + size].decode(), 3, 100_000 + len(data) // 64)
        entries = [value for key, value in outer.items() if key != "__metadata__"]
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry["dtype"], str):
                raise ValueError("serde takes an entry in other forms too")
    except (safetensors.SafetensorError, LookupError, ValueError, TypeError):
        with pytest.raises(ValueError, match=r"must|data_offsets|unknown"):
            _core.read_safetensors(data)
        return False
    found = _core.read_safetensors(data)
    assert list(found) == sorted(wanted)
    for name, tensor in wanted.items():
        assert found[name] == (str(tensor.dtype), list(tensor.shape), tensor.tobytes())
    return True


def file_of(header: str | bytes, data: bytes = b"\0" * 4) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return len(text).to_bytes(8, "little") + text + data


ONE = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    "header",
    [
        "{%s}",
        " \t\r\n{%s} \n",
        '{%s,"b":{"dtype":"U8","shape":[0,7],"data_offsets":[0,0]}}',
        '{%s,"b":{"dtype":"U8","shape":[0],"data_offsets":[4,4]}}',
        '{"a":{"shape":[],"x":[1.5],"data_offsets":[0,4],"dtype":"I32"}}',
        '{"\\u0061\\ud834\\udd1e":{"dtype":"F32","shape":[1,1,1],"data_offsets":[0,4]}}',
        '{%s,"__metadata__":null}',
        '{%s,"__metadata__":{"x":"\\n\\u0000"}}',
        '{"ß":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}',
    ],
)
def test_headers_that_are_accepted(header: str) -> None:
    assert agreed(file_of(header.replace("%s", ONE)))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "[]",
        "{}",
        "{%s",
        "{%s}x",
        "{%s,}",
        "\ufeff{%s}",
        "{%s,%s}",
        '{%s,"\\u0061":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        '{"a":["F32",[1],[0,4]]}',
        '{"a":{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[01],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}}',
        '{"a":{"dtype":"F32","shape":[1]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1e999}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":NaN}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":[[1]]}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":"\\ud834"}}',
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":"\n"}}',
        '{%s,"b":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}',
        '{%s,"b":{"dtype":"F32","shape":[18446744073709551615,2,0],"data_offsets":[0,0]}}',
        '{%s,"b":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,0]}}',
        '{%s,"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        '{%s,"__metadata__":{"x":1}}',
        '{%s,"__metadata__":{"x":"1","x":"1"}}',
        '{%s,"__metadata__":{},"__metadata__":{}}',
        '{"a":{"dtype":"F32","shape":[' + ",".join("1" * 65) + '],"data_offsets":[0,4]}}',
    ],
)
def test_headers_that_are_refused(header: str) -> None:
    assert not agreed(file_of(header.replace("%s", ONE)))


def test_invalid_utf8_and_lengths() -> None:
    assert not agreed(file_of(b'{"\xff":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'))
    whole = file_of("{" + ONE + "}")
    assert agreed(whole)
    for data in (whole[:-1], whole + b"\0", whole[:7], b"", b"\xff" * 8 + whole[8:]):
        assert not agreed(data)


def example() -> bytes:
    rng = np.random.default_rng(0)
    arrays = {
        name: (rng.integers(0, 2, shape) if name != "bool" else rng.random(shape) < 0.5).astype(
            name
        )
        for name, shape in {
            **dict.fromkeys(("float16", "float32", "float64", "int8", "uint64", "bool"), (2, 3)),
            "complex64": (),
            "int16": (0, 5),
        }.items()
    }
    return safetensors.numpy.save(arrays, {"a": "b", "ß": "\n"})


def changed(data: bytes, rng: random.Random) -> bytes:
    """data with a few bytes changed, inserted, left out or repeated, most in the header's text."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        end = min(len(found), 8 + int.from_bytes(data[:8], "little"))
        at = rng.randrange(8 if rng.random() < 0.9 else 0, max(9, end))
        kind = rng.randrange(5)
        if kind == 0:
            found[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            found[at : at + rng.randrange(1, 9)] = b""
        elif kind == 2:
            other = rng.randrange(8, max(9, end))
            found[at:at] = found[other : other + rng.randrange(1, 40)]
        elif kind == 3:
            found[at:at] = rng.choice(
                (b'"', b"\\", b"[", b"]", b"{", b"}", b",", b"0", b"-", b"e9")
            )
        else:
            found[at : at + 1] = rng.choice(b"0123456789").to_bytes(1, "little")
    if rng.random() < 0.7:  # a length that fits again
        length = len(found) - len(data) + int.from_bytes(data[:8], "little")
        found[:8] = max(0, length).to_bytes(8, "little")
    return bytes(found)


def test_changed_files() -> None:
    rng, whole = random.Random(0), example()
    assert agreed(whole)
    results = [agreed(changed(whole, rng)) for _ in range(4000)]
    assert 100 < sum(results) < 3900


# ---- checkpoints ----


def agreed_model(data: bytes, path: Path) -> str:
    """What both readers say of a checkpoint: "model", "damaged", or "training"."""
    path.write_bytes(data)
    load: Any = _core.LanguageModel
    models, errors = [], 0
    for read, source in ((load.from_memory, data), (load.load, str(path))):
        try:
            models.append(read(source))
        except (_core.CheckpointError, MemoryError):
            errors += 1
    try:
        wanted = CharLM.load(path)
    except CheckpointError as error:
        if errors:
            assert errors == 2
            return "damaged"
        # C++ looks at no more of the training.
        return "training" if "training" in str(error) else f"refused by Python alone: {error}"
    assert not errors
    model = models[0]
    found = model.parameters()
    assert found.keys() == wanted.rnn.parameters().keys()
    for name, parameter in wanted.rnn.parameters().items():
        assert found[name].dtype == parameter.dtype
        assert found[name].tobytes() == parameter.tobytes(), name
    try:
        text = wanted.sample(20, seed=1)
    except ValueError:  # of weights so large that the logits are not finite
        with pytest.raises(ValueError, match="the weights are damaged"):
            model.sample(_core.TextOptions(20), [1])
    else:
        assert text_of(model.sample(_core.TextOptions(20), [1])[0]) == text
    return "model"


@pytest.mark.parametrize("path", [*KEPT, *CORPUS], ids=lambda path: path.name)
def test_kept_checkpoints(path: Path, tmp_path: Path) -> None:
    found = agreed_model(path.read_bytes(), tmp_path / "file")
    assert found == "model" or path in CORPUS


def changed_checkpoints(count: int, path: Path) -> dict[str, int]:
    rng = random.Random(1)
    wholes = [path.read_bytes() for path in CORPUS]
    found = dict.fromkeys(("model", "damaged", "training"), 0)
    for number in range(count):
        whole = rng.choice(wholes)
        data = target.mutated(whole, number) if number % 2 else changed(whole, rng)
        if data is None:
            continue
        for file in (data, *target._sealed(data)):
            found[agreed_model(file, path)] += 1
    return found


def test_changed_checkpoints(tmp_path: Path) -> None:
    assert min(changed_checkpoints(300, tmp_path / "file").values()) > 5


@pytest.mark.slow
def test_many_changed_checkpoints(tmp_path: Path) -> None:
    assert min(changed_checkpoints(5000, tmp_path / "file").values()) > 100


_TEXTS = st.text(st.characters(exclude_categories=()))
_NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers()
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
    max_leaves=12,
)


def sealed(path: Path, configuration: Any) -> bytes:
    """The kept checkpoint with another configuration of the program that trains."""
    tensors, config = checkpoint.read(KEPT[0])
    config["training"]["configuration"] = configuration
    checkpoint.write(path, tensors, config)
    return path.read_bytes()


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(_TEXTS, _JSON, max_size=5))
def test_the_checksum_of_any_configuration(tmp_path_factory: Any, configuration: Any) -> None:
    """It is of what json.dumps writes, which C++ writes likewise."""
    path = tmp_path_factory.getbasetemp() / f"any-{os.getpid()}"
    path.unlink(missing_ok=True)
    _core.LanguageModel.from_memory(sealed(path, configuration))


def test_the_checksum_of_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**64, 20_000, np.uint64).view(np.float64)
    numbers = [float(x) for x in bits[np.isfinite(bits)]]
    numbers += [10.0**n for n in range(-320, 309)] + [2.0**n for n in range(-1074, 1024)]
    numbers += [0.1 * n for n in range(1000)] + [5e-324, 1.7976931348623157e308, -0.0, 123456.0]
    _core.LanguageModel.from_memory(sealed(tmp_path / "numbers", {"x": numbers}))


@pytest.mark.parametrize(
    "number",
    [
        "-0",
        "1e-400",
        "0." + "0" * 400 + "1",
        "-1E-999999999999999999999",
        "1" + "0" * 400 + "e-300",
    ],
)
def test_the_checksum_of_other_spellings(tmp_path: Path, number: str) -> None:
    data = sealed(tmp_path / "numbers", {"x": 1.25})
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    entry = header["__metadata__"]["charrnn_fast"]
    assert entry.count(": 1.25}") == 1
    entry = entry.replace(": 1.25}", f": {number}}}")
    tensors, config = safetensors.numpy.load(data), json.loads(entry)["config"]
    entry = entry.replace(json.loads(entry)["sha256"], checkpoint._digest(tensors, config))
    header["__metadata__"]["charrnn_fast"] = entry
    text = json.dumps(header).encode()
    file = len(text).to_bytes(8, "little") + text + data[8 + size :]
    assert agreed_model(file, tmp_path / "file") == "model"


def test_limits(tmp_path: Path) -> None:
    """Of the header's length, and of the values and the depth of its JSON."""
    path = tmp_path / "file"
    for text in (b"[" * 1000, b'{"a":' * 1000, b"[[]," * 200_000, b'"",' * 200_000):
        assert not agreed(file_of(text))
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(_core.CheckpointError, match="longer than one may be"):
        _core.LanguageModel.load(str(path))
    for number, configuration in enumerate(({"x": [""] * 23_000}, {"x": [0] * 100_000})):
        data = sealed(tmp_path / str(number), configuration)
        assert agreed_model(data, path) == "model"


def test_a_pipe_and_a_device(tmp_path: Path) -> None:
    pipe, data = tmp_path / "pipe", KEPT[0].read_bytes()
    os.mkfifo(pipe)
    for sent, fits in ((data, True), (data + b"\0", False), (data[:-1], False), (data[:5], False)):
        writer = threading.Thread(target=_write, args=(pipe, sent))
        writer.start()
        try:
            if fits:
                _core.LanguageModel.load(str(pipe))
            else:
                with pytest.raises(_core.CheckpointError):
                    _core.LanguageModel.load(str(pipe))
        finally:
            writer.join()
    with pytest.raises(_core.CheckpointError, match="is a device, not a file"):
        _core.LanguageModel.load("/dev/zero")
    with pytest.raises(RuntimeError, match="No such file or directory"):
        _core.LanguageModel.load(str(tmp_path / "none"))
    with pytest.raises(RuntimeError, match="Is a directory"):
        _core.LanguageModel.load(str(tmp_path))


def _write(path: Path, data: bytes) -> None:
    with suppress(BrokenPipeError):
        path.write_bytes(data)


def test_messages(tmp_path: Path) -> None:
    whole = KEPT[0].read_bytes()
    newer = (target.CORPUS / "newer").read_bytes()
    for data, words in (
        (b"", r"is no charrnn_fast checkpoint, or its beginning is damaged \(0 bytes\)"),
        (b"a text, not a checkpoint", r"is no charrnn_fast checkpoint"),
        (whole[:-1], "is damaged: its data have"),
        (whole[:-1] + bytes([whole[-1] ^ 1]), "is damaged: its checksum does not fit its data"),
        (newer, "is of the checkpoint format 2, and this version of charrnn_fast reads formats"),
    ):
        with pytest.raises(_core.CheckpointError, match=words):
            _core.LanguageModel.from_memory(data)


# ---- text ----


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[CharLM, Any]]:
    """Of every kind, in Python and in C++. Weights as drawn: their text is varied."""
    characters = Vocabulary.from_text(TEXT)
    unknown = Corpus.from_text("aab\n" * 9 + "c", min_count=5).vocabulary
    surrogates = Vocabulary([0xD834, 0xDD1E, 0x61, 0x1D11E, 0xFFFF])
    made = {
        "lstm": CharLM(characters, 24, 2, "lstm", seed=3),
        "gru": CharLM(characters, 17, 1, "gru", seed=4, layer_norm=True),
        "projected": CharLM(characters, 16, 2, "peephole_lstm", proj_size=7, zoneout=(0, 0.1)),
        "float64": CharLM(characters, 16, 1, "rnn", dtype="float64", nonlinearity="relu"),
        "bytes": CharLM(Vocabulary.from_bytes(), 16, 1, "lstm", bias="single", input_dropout=0.3),
        "unknown": CharLM(unknown, 8, 1, "coupled_lstm"),
        "surrogates": CharLM(surrogates, 8, 1, "gru", bias=False),
    }
    folder = tmp_path_factory.mktemp("models")
    return {
        name: (model, _core.LanguageModel.from_memory(written(model, folder)))
        for name, model in made.items()
    }


KINDS = ("lstm", "gru", "projected", "float64", "bytes", "unknown", "surrogates")
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.3},
    "likeliest": {"temperature": 0.0},
    "top_k": {"top_k": 3},
    "all of top_k": {"top_k": 10_000},
    "top_p": {"top_p": 0.6, "temperature": 1.5},
    "stop": {"stop": ["a"]},
    "long stops": {"stop": ["aa", "a\uffffa", "\ufffd\ufffd\ufffd", "\ufffd\ufffd"]},
    "bfloat16": {"weights": "bfloat16"},
    "int8": {"weights": "int8"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_texts(models: Any, kind: str, options: dict[str, Any]) -> None:
    model, ours = models[kind]
    options = dict(options)
    weights, seeds = options.pop("weights", ""), [0, 7, 2**64 - 1, 7]
    if weights and kind == "float64":
        words = f"weights of a float64 model must be full, got {weights}"
        with pytest.raises(ValueError, match=words):
            ours.sample(_core.TextOptions(5, weights=weights), seeds)
        return
    if kind != "bytes" and "stop" in options:
        known = set(model.vocabulary.decode(range(len(model.vocabulary))))
        has_unknown = model.vocabulary.unknown is not None
        options["stop"] = [s for s in options["stop"] if has_unknown or set(s) <= known]
    dtype = weights or None
    for prime in ("", "a") if kind != "bytes" else ("", "aß𝄞", "\ufffd"):
        wanted = model.sample(150, prime, seeds=seeds, weight_dtype=dtype, **options)
        request = _core.TextOptions(
            150,
            utf8(prime),
            options.get("temperature", 1.0),
            options.get("top_k", 0),
            options.get("top_p", 1.0),
            [utf8(stop) for stop in options.get("stop", ())],
            weights,
        )
        assert [text_of(text) for text in ours.sample(request, seeds)] == wanted
        assert text_of(ours.sample(request, [7])[0]) == wanted[1]
        pieces = list(model.stream(150, prime, seed=7, weight_dtype=dtype, **options))
        assert [text_of(piece) for piece in ours.stream(request, 7)] == pieces


def test_long_texts(models: Any) -> None:
    """More symbols than are drawn at once, more seeds than are, a prime longer than a block."""
    model, ours = models["gru"]
    prime, seeds = TEXT * 40, list(range(70))
    wanted = model.sample(1500, prime, seeds=seeds[:3], stop=["𝄞é𝄞"])
    found = ours.sample(_core.TextOptions(1500, utf8(prime), stop=[utf8("𝄞é𝄞")]), seeds[:3])
    assert [text_of(text) for text in found] == wanted
    wanted = model.sample(90, seeds=seeds, stop=["t", "s"])
    found = ours.sample(_core.TextOptions(90, stop=[b"t", b"s"]), seeds)
    assert [text_of(text) for text in found] == wanted
    assert ours.sample(_core.TextOptions(0, b"the"), [1, 2]) == [b"the", b"the"]
    assert ours.sample(_core.TextOptions(5), []) == []


@given(st.binary(max_size=12))
@settings(deadline=None)
def test_bytes_as_text(models: Any, data: bytes) -> None:
    """Those that are not UTF-8 become U+FFFD, as in Python."""
    model, ours = models["bytes"]
    wanted = list(model.stream(0, data))
    assert [text_of(piece) for piece in ours.stream(_core.TextOptions(0, data), 1)] == wanted
    assert text_of(ours.sample(_core.TextOptions(3, data), [1])[0]) == model.sample(3, data, seed=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["", "bfloat16", "int8"])
def test_losses(models: Any, kind: str, weights: str) -> None:
    model, ours = models[kind]
    if weights and kind == "float64":
        return
    dtype = weights or None
    symbols = model.vocabulary.decode(
        range(97 if kind == "bytes" else 0, min(120, len(model.vocabulary)))
    )
    rng = random.Random(0)
    texts = ["".join(rng.choices(symbols, k=n)) for n in (0, 1, 5, 5, 0, 1500, 70, 2100)]
    encoded = [utf8(text) for text in texts]
    assert ours.evaluate(encoded[-1], weights) == model.evaluate(texts[-1], weight_dtype=dtype)
    assert ours.score(encoded, weights) == model.score(texts, weight_dtype=dtype).tolist()
    assert ours.score([], weights) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"length": -1}, "length must be >= 0, got -1"),
        ({"temperature": -1.0}, "temperature must be finite, at least 0, got -1"),
        ({"top_k": -1}, "top_k must be >= 1, or 0 for all, got -1"),
        ({"top_p": 0.0}, "top_p must be above 0, at most 1, got 0"),
        (
            {"prime": b"the~"},
            r"prime has the character '~' \(U\+007E\) at position 3, which is not",
        ),
        ({"prime": b"the\xff"}, "prime must be valid UTF-8, got invalid bytes behind 3 characters"),
        ({"prime": b"the\xc3"}, "prime must be valid UTF-8"),
        ({"stop": [b"t", b""]}, r"stop\[1\] must have one character or more, got none"),
        ({"stop": [b"t", b"\xc3"]}, r"stop\[1\] must be valid UTF-8"),
        ({"stop": [b"t", b"\n~"]}, r"stop\[1\] has the character '~' \(U\+007E\) at position 1"),
    ],
)
def test_wrong_options(models: Any, options: dict[str, Any], words: str) -> None:
    request = _core.TextOptions(**{"length": 5, **options})
    with pytest.raises(ValueError, match=words):
        models["lstm"][1].sample(request, [])
    with pytest.raises(ValueError, match=words):
        models["lstm"][1].stream(request, 1)


def test_wrong_texts(models: Any) -> None:
    with pytest.raises(ValueError, match="text must have two symbols or more, got 1"):
        models["lstm"][1].evaluate(b"t")
    with pytest.raises(ValueError, match=r"texts\[1\] has the character '~'"):
        models["lstm"][1].score([b"t", b"~"])
