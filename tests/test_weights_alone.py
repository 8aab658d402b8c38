"""Files that hold weights in fewer bits alone: `CharLM.save(weight_dtype=)` and `export`."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from charrnn_fast import CharLM, CheckpointError, Corpus, Trainer, Vocabulary, _core
from charrnn_fast.__main__ import main
from charrnn_fast.storage import checkpoint, configuration
from tolerances import assert_same_bits

TEXT = "the quick brown fox jumps over the lazy dog\n"
DTYPES = ("bfloat16", "int8")
SHAPES: dict[str, dict[str, Any]] = {
    "lstm": {"num_layers": 2, "proj_size": 5},
    "gru": {"cell": "gru", "layer_norm": True},
    "peephole_lstm": {"cell": "peephole_lstm", "bias": False},
}


def make(**options: Any) -> CharLM:
    return CharLM(Vocabulary.from_text(TEXT), 40, **{"num_layers": 1, "seed": 3, **options})


def saved(model: CharLM, folder: Path, dtype: str) -> Path:
    path = folder / dtype
    model.save(path, weight_dtype=dtype)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_bits_as_the_full_model(tmp_path: Path, shape: str, dtype: str) -> None:
    model = make(**SHAPES[shape])
    path = saved(model, tmp_path, dtype)
    small = CharLM.load(path)
    assert small.weight_dtype == dtype and model.weight_dtype is None
    for name, p in model.read_as(dtype).rnn.parameters().items():
        assert_same_bits(name, small.rnn.parameters()[name], p)
    wanted = model.sample(200, "the ", seed=1, weight_dtype=dtype)
    score = model.score([TEXT, "fox"], weight_dtype=dtype)
    for asked in (None, dtype):
        assert small.sample(200, "the ", seed=1, weight_dtype=asked) == wanted
        assert "".join(small.stream(200, "the ", seed=1, weight_dtype=asked)) == wanted
        assert small.evaluate(TEXT, weight_dtype=asked) == model.evaluate(TEXT, weight_dtype=dtype)
        assert_same_bits("scores", small.score([TEXT, "fox"], weight_dtype=asked), score)
    ours = _core.LanguageModel.load(str(path))
    for asked in ("", dtype):
        assert ours.sample(_core.TextOptions(200, b"the ", weights=asked), [1]) == [wanted.encode()]
        assert ours.evaluate(TEXT.encode(), asked) == small.evaluate(TEXT)
        assert ours.score([TEXT.encode(), b"fox"], asked) == score.tolist()
    # Once more, and through a pickle: still the same file.
    for again in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert again.weight_dtype == dtype
        again.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 0.5), ("int8", 0.25)])
def test_sizes(tmp_path: Path, dtype: str, share: float) -> None:
    """Of the matrices; layer 0's input weights and the biases stay as they are."""
    model = CharLM(Vocabulary.from_text(TEXT), 300, 1, seed=3)
    model.save(tmp_path / "full")
    p = model.rnn.parameters()
    small = p["weight_hh_l0"].size + p["decoder.weight"].size
    less = 4 * (1 - share) * small - 4 * 1300
    sizes = [path.stat().st_size for path in (tmp_path / "full", saved(model, tmp_path, dtype))]
    assert less < sizes[0] - sizes[1] < 4 * (1 - share) * small + 1000


def test_names_of_int8(tmp_path: Path) -> None:
    model = make()
    tensors = safetensors.numpy.load_file(saved(model, tmp_path, "int8"))
    integers, scales = tensors["rnn.weight_hh_l0"], tensors["rnn.weight_hh_l0.scales"]
    assert integers.dtype == np.int8 and integers.shape == (160, 40)
    assert scales.dtype == np.float32 and scales.shape == (160,)
    wanted = model.rnn.parameters()["weight_hh_l0"]
    assert np.abs(integers * scales[:, None] - wanted).max() <= scales.max() * 0.503
    assert tensors["rnn.weight_ih_l0"].dtype == np.float32
    assert not any(name.startswith("optimizer.") for name in tensors)


def test_refusals(tmp_path: Path) -> None:
    model = make()
    path = saved(model, tmp_path, "int8")
    small = CharLM.load(path)
    words = "weight_dtype of a model that holds int8 weights alone must be 'int8', got "
    for dtype in ("bfloat16", "float32"):
        for call in (
            lambda d=dtype: small.sample(3, weight_dtype=d),
            lambda d=dtype: small.stream(3, weight_dtype=d),
            lambda d=dtype: small.evaluate(TEXT, weight_dtype=d),
            lambda d=dtype: small.score([TEXT], weight_dtype=d),
            lambda d=dtype: small.save(tmp_path / "no", weight_dtype=d),
        ):
            with pytest.raises(ValueError, match=f"{words}'{dtype}'"):
                call()
    assert not (tmp_path / "no").exists()
    ours = _core.LanguageModel.load(str(path))
    with pytest.raises(ValueError, match="weights of a model that holds int8 weights alone must"):
        ours.sample(_core.TextOptions(3, weights="bfloat16"), [1])
    words = "compute_dtype of a model that holds int8 weights alone must be 'float32', got 'bfloat"
    with pytest.raises(ValueError, match=words):
        CharLM.load(path, compute_dtype="bfloat16")
    with pytest.raises(ValueError, match=words):
        _core.LanguageModel.load(str(path), "bfloat16")
    assert CharLM.load(path, compute_dtype="float32").evaluate(TEXT) == small.evaluate(TEXT)
    with pytest.raises(ValueError, match="must have all bits of its weights to be trained"):
        Trainer(small, Corpus.from_text(TEXT * 20), 2, 5)
    with pytest.raises(ValueError, match="without its training"):
        Trainer.resume(path)
    with pytest.raises(ValueError, match="weight_dtype of a float64 model must be 'float64'"):
        make(dtype="float64").save(tmp_path / "no", weight_dtype="int8")
    with pytest.raises(ValueError, match="weight_dtype of a model with compute_dtype 'bfloat16'"):
        make(compute_dtype="bfloat16").save(tmp_path / "no", weight_dtype="int8")


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_not_finite_replace_no_file(tmp_path: Path, dtype: str) -> None:
    model = make()
    path = saved(model, tmp_path, dtype)
    before = path.read_bytes()
    largest = np.finfo(np.float32).max  # which bfloat16 rounds to infinity
    for bad in (np.nan, np.inf, -np.inf, *([largest] if dtype == "bfloat16" else [])):
        weights = {name: p.copy() for name, p in make().rnn.parameters().items()}
        weights["weight_hh_l0"][3, 1] = bad
        model.rnn.load_parameters(weights)
        with pytest.raises(FloatingPointError, match=f"weight_hh_l0 is not finite as {dtype}; no"):
            model.save(path, weight_dtype=dtype)
        assert np.isnan(model.evaluate(TEXT, weight_dtype=dtype))
    assert path.read_bytes() == before


def _spoiled(
    path: Path, tensor: str, change: Any, config: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors, stored = checkpoint.read(path)
    tensors = dict(tensors)
    value = change(tensors.pop(tensor).copy()) if tensor else None
    if value is not None:
        tensors[tensor] = value
    return tensors, {**stored, **(config or {})}


def _put(index: Any, value: Any) -> Any:
    def change(array: Any) -> Any:
        array[index] = value
        return array

    return change


HH, SCALES = "rnn.weight_hh_l0", "rnn.weight_hh_l0.scales"


@pytest.mark.parametrize(
    ("dtype", "tensor", "change", "words"),
    [
        ("int8", SCALES, lambda x: None, f"the tensor '{SCALES}' is missing"),
        ("int8", HH, lambda x: x.astype(np.float32), "must be int8 of the shape [160, 40], got fl"),
        ("int8", SCALES, lambda x: x[:-1], "must be float32 of the shape [160], got float32 of [1"),
        ("int8", SCALES, lambda x: x.astype(np.float64), "must be float32 of the shape [160], got"),
        ("int8", SCALES, _put(3, -0.5), "must have floats of 16 significant bits, at least 0"),
        ("int8", SCALES, _put(3, 0.1), "must have floats of 16 significant bits, at least 0"),
        ("int8", SCALES, _put(3, 0), "must reach 127 or -127 in each row, and be 0 where the sca"),
        ("int8", SCALES, _put(3, 2.0**127), "is not finite, times its scales"),
        ("int8", HH, _put(3, 1), "must reach 127 or -127 in each row, and be 0 where the scale is"),
        ("int8", HH, _put((3, 1), -128), "must reach 127 or -127 in each row, and be 0 where the"),
        ("int8", HH, lambda x: x[:, :-1].copy(), "must be int8 of the shape [160, 40], got int8"),
        ("bfloat16", HH, _put((3, 1), 0x7F80), "is not finite"),
        ("bfloat16", HH, _put((3, 1), 0xFFFF), "is not finite"),
        ("bfloat16", HH, lambda x: x.astype(np.float32), "must be uint16 of the shape [160, 40]"),
    ],
)
def test_damaged_files(tmp_path: Path, dtype: str, tensor: str, change: Any, words: str) -> None:
    """Of the right checksum: both readers say what is wrong."""
    path = saved(make(), tmp_path, dtype)
    tensors, config = _spoiled(path, tensor, change)
    checkpoint.write(path, tensors, config)
    with pytest.raises(CheckpointError) as error:
        CharLM.load(path)
    assert words in str(error.value)
    with pytest.raises(_core.CheckpointError) as other:
        _core.LanguageModel.load(str(path))
    assert words.replace("'", '"') in str(other.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scales_that_are_not_finite(tmp_path: Path, value: float) -> None:
    path = saved(make(), tmp_path, "int8")
    tensors, config = _spoiled(path, SCALES, _put(3, value))
    with pytest.raises(FloatingPointError, match="no longer finite"):
        checkpoint.write(path, tensors, config)
    header = {"format": 1, "sha256": checkpoint._digest(tensors, config), "config": config}
    path.write_bytes(safetensors.numpy.save(tensors, {"charrnn_fast": json.dumps(header)}))
    for load, kind in ((CharLM.load, CheckpointError), (load_there, _core.CheckpointError)):
        with pytest.raises(kind, match=r"the tensor .rnn.weight_hh_l0.scales. is not finite"):
            load(path)


def load_there(path: Path) -> Any:
    return _core.LanguageModel.load(str(path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_dtype": "int4"}, "weight_dtype must be one of"),
        ({"weight_dtype": "float32"}, "weight_dtype must be one of"),
        ({"weight_dtype": None}, "weight_dtype must be one of"),
        ({"training": {}}, "training"),
    ],
)
def test_wrong_configurations(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = saved(make(), tmp_path, "int8")
    tensors, config = _spoiled(path, "", None, change)
    checkpoint.write(path, tensors, config)
    with pytest.raises(CheckpointError, match=words):
        CharLM.load(path)
    with pytest.raises(_core.CheckpointError):
        load_there(path)
    with pytest.raises((ValueError, TypeError), match=words):
        configuration.write(path, tensors, config)


# ---- the command ----


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make()
    full, out = str(tmp_path / "m.safetensors"), str(tmp_path / "out.safetensors")
    model.save(full)
    for dtype in ("float32", "bfloat16", "int8"):
        report = output(capsys, "export", full, out, "--weight-dtype", dtype)
        assert f"weights     {dtype}" in report and f"saved to {out} (" in report
        arguments = ("sample", "--length", "50", "--seed", "1")
        text = output(capsys, *arguments, full, "--weight-dtype", dtype)
        assert output(capsys, *arguments, out) == text
        assert ("weights in" in output(capsys, "info", out)) == (dtype != "float32")
    texts = tmp_path / "text"
    texts.write_text(TEXT)
    assert output(capsys, "eval", out, str(texts)) == output(
        capsys, "eval", full, str(texts), "--weight-dtype", "int8"
    )


def test_export_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = Corpus.from_text(TEXT * 20)
    trained, out = tmp_path / "t.safetensors", str(tmp_path / "out.safetensors")
    trainer = Trainer(CharLM(corpus.vocabulary, 6, 1), corpus, 2, 5)
    trainer.fit(steps=1, progress=False)
    trainer.save(trained)
    before = trained.read_bytes()
    other = tmp_path / "m.safetensors"
    trainer.model.save(other)
    for arguments, words in (
        ((str(other), str(other)), "OUT must be another file than MODEL"),
        ((str(other), str(trained)), "OUT must not be the checkpoint of a training"),
        ((str(other), out, "--lengths"), "--lengths is for exports to .onnx"),
        ((str(other), out, "--form", "step"), "--form is for exports to .onnx"),
        (
            (str(other), out, "--weight-dtype", "float64"),
            "--weight-dtype of a float32 model must be 'float32' or 'bfloat16' or 'int8'",
        ),
        (
            (str(other), str(tmp_path / "out.onnx"), "--weight-dtype", "int8"),
            "--weight-dtype is for exports to .safetensors",
        ),
        ((str(other), str(tmp_path / "out.txt")), "must end in .onnx or .safetensors"),
    ):
        try:
            status = main(["export", *arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        assert status != 0
        assert words in capsys.readouterr().err
    assert trained.read_bytes() == before
    assert not Path(out).exists()
    # Of a training's checkpoint too: without the optimizer.
    assert main(["export", str(trained), out]) == 0
    assert "training" not in checkpoint.read(out)[1]
