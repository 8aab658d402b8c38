"""compute_dtype where it is given, kept, shown and refused; `test_rounded` has the numbers."""

from __future__ import annotations

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from charrnn_fast import _core, registry
from charrnn_fast.cli import main
from charrnn_fast.storage import checkpoint

pytestmark = pytest.mark.host("what it refuses is the CPU's")

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
SMALL = ["--hidden-size", "6", "--num-layers", "1", "--batch-size", "4", "--seq-len", "10"]
ON_THE_CPU = r"must be 'float32' or 'bfloat16' on cpu, got 'tf32'"


@pytest.fixture
def corpus() -> cf.Corpus:
    return cf.Corpus.from_text(TEXT)


@pytest.fixture
def model(corpus: cf.Corpus) -> cf.CharLM:
    return cf.CharLM(corpus.vocabulary, 6, 1, compute_dtype="bfloat16", seed=1)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def tf32_file(model: cf.CharLM, path: Path) -> Path:
    """A model that a GPU has trained."""
    tensors, config = model.to_checkpoint()
    config["model"] = {**config["model"], "compute_dtype": "tf32"}
    checkpoint.write(path, tensors, config)
    return path


def test_the_names() -> None:
    assert registry.COMPUTE_DTYPES == ("float32", "tf32", "bfloat16")
    assert _core.compute_dtypes_on(None) == ("float32", "bfloat16")


# ---- networks ----


def test_a_network_keeps_it() -> None:
    assert cf.RNN(3, 4).compute_dtype == "float32"
    rnn = cf.RNN(3, 4, compute_dtype="bfloat16")
    assert rnn.compute_dtype == "bfloat16"
    assert repr(rnn) == (
        "RNN(3, 4, cell='rnn', num_layers=1, dtype='float32', compute_dtype='bfloat16')"
    )
    for other in (copy.deepcopy(rnn), copy.copy(rnn), pickle.loads(pickle.dumps(rnn))):
        assert repr(other) == repr(rnn)
    with pytest.raises(AttributeError, match="compute_dtype cannot be changed"):
        rnn.compute_dtype = "float32"


def test_pickles_without_it_stay_as_they_were() -> None:
    """Older versions read them."""
    saved = cf.RNN(3, 4)._pickled()["options"]
    assert "compute_dtype" not in saved and "device" not in saved
    assert cf.RNN(3, 4, compute_dtype="bfloat16")._pickled()["options"]["compute_dtype"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute_dtype": "float16"}, "must be one of 'float32', 'tf32', 'bfloat16', got 'float"),
        ({"compute_dtype": None}, "must be one of 'float32', 'tf32', 'bfloat16', got None"),
        ({"compute_dtype": "tf32"}, ON_THE_CPU),
        (
            {"compute_dtype": "bfloat16", "dtype": "float64"},
            "must be 'float32', without rounding, with dtype='float64', got 'bfloat16'",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    corpus: cf.Corpus, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^compute_dtype {message}"):
        cf.RNN(3, 4, **options)
    with pytest.raises(ValueError, match=f"^compute_dtype {message}"):
        cf.CharLM(corpus.vocabulary, **options)


@pytest.mark.parametrize("make", ["Model", "Network"])
def test_the_kernels_refuse_it_too(make: str) -> None:
    shape = ("gru", 3, 4, 0, 1, "double")
    for bits, compute_dtype, message in (
        (32, "half", "compute_dtype must be one of 'float32', 'tf32', 'bfloat16', got 'half'"),
        (32, "tf32", "compute_dtype on cpu must be 'float32' or 'bfloat16', got 'tf32'"),
        (64, "bfloat16", "compute_dtype of a float64 network must be 'float32', got 'bfloat16'"),
        (64, "tf32", "compute_dtype of a float64 network must be 'float32', got 'tf32'"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(_core, f"{make}Float{bits}")(*shape, compute_dtype=compute_dtype)
    assert getattr(_core, f"{make}Float64")(*shape, compute_dtype="float32")


# ---- models and their files ----


def test_a_model_keeps_it(model: cf.CharLM) -> None:
    assert model.rnn.compute_dtype == model.settings()["compute_dtype"] == "bfloat16"
    assert repr(model).endswith(" parameters, bfloat16>")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.settings() == model.settings() and repr(other) == repr(model)


def test_a_file_has_it_where_it_is_not_float32(
    tmp_path: Path, corpus: cf.Corpus, model: cf.CharLM
) -> None:
    path, plain = tmp_path / "model", cf.CharLM(corpus.vocabulary, 6, 1, seed=1)
    plain.save(path)
    assert "compute_dtype" not in checkpoint.read(path)[1]["model"]
    assert cf.CharLM.load(path).settings()["compute_dtype"] == "float32"
    rounded = cf.CharLM.load(path, compute_dtype="bfloat16")
    assert rounded.rnn.compute_dtype == "bfloat16"
    rounded.save(path)
    assert checkpoint.read(path)[1]["model"]["compute_dtype"] == "bfloat16"
    assert cf.CharLM.load(path).settings() == model.settings()
    cf.CharLM.load(path, compute_dtype="float32").save(path)
    assert checkpoint.read(path)[1] == plain.to_checkpoint()[1]


def test_files_are_refused_by_name(tmp_path: Path, corpus: cf.Corpus, model: cf.CharLM) -> None:
    path = tf32_file(model, tmp_path / "tf32")
    message = "tf32 computes in 'tf32', which cpu cannot: load it with compute_dtype 'float32' or"
    with pytest.raises(cf.CheckpointError, match=message):
        cf.CharLM.load(path)
    for compute_dtype in ("float32", "bfloat16"):
        loaded = cf.CharLM.load(path, compute_dtype=compute_dtype)
        assert loaded.rnn.compute_dtype == compute_dtype
    with pytest.raises(ValueError, match=f"compute_dtype {ON_THE_CPU}"):
        cf.CharLM.load(tmp_path / "none", compute_dtype="tf32")  # before the file is read
    wide = tmp_path / "float64"
    cf.CharLM(corpus.vocabulary, 6, 1, dtype="float64").save(wide)
    with pytest.raises(ValueError, match="without rounding, with dtype='float64', got 'bfloat16'"):
        cf.CharLM.load(wide, compute_dtype="bfloat16")
    tensors, config = checkpoint.read(wide)
    for name, message in (
        ("bfloat16", "does not hold the model that it describes: compute_dtype must be 'float32'"),
        ("half", 'model.compute_dtype must be one of "float32", "tf32", "bfloat16", got \'half\''),
    ):
        config["model"]["compute_dtype"] = name
        checkpoint.write(wide, tensors, config)
        with pytest.raises(cf.CheckpointError, match=message):
            cf.CharLM.load(wide)


def test_cpp_reads_it_too(tmp_path: Path, model: cf.CharLM) -> None:
    path = tmp_path / "model"
    model.save(path)
    options = _core.TextOptions(40)
    for compute_dtype in (None, "float32", "bfloat16"):
        loaded = _core.LanguageModel.load(str(path), compute_dtype)
        wanted = cf.CharLM.load(path, compute_dtype=compute_dtype).sample(40, seed=3)
        assert loaded.sample(options, [3]) == [wanted.encode()]
    data = tf32_file(model, tmp_path / "tf32").read_bytes()
    with pytest.raises(_core.CheckpointError, match="computes in 'tf32', which the CPU cannot"):
        _core.LanguageModel.from_memory(data)
    assert _core.LanguageModel.from_memory(data, "float32")
    with pytest.raises(ValueError, match="compute_dtype on cpu must be"):
        _core.LanguageModel.from_memory(data, "tf32")


# ---- trainings ----


def test_a_training_resumes_in_it(tmp_path: Path, corpus: cf.Corpus, model: cf.CharLM) -> None:
    path = tmp_path / "model"
    trainer = cf.Trainer(model, corpus, 4, 10, checkpoint_path=path, compute_dtype="bfloat16")
    trainer.fit(steps=3, progress=False)
    again = cf.Trainer.resume(path, corpus)
    assert again.model.rnn.compute_dtype == "bfloat16"
    for one in (trainer, again):
        one.fit(steps=2, progress=False)
    for name, parameter in trainer.model.rnn.parameters().items():
        np.testing.assert_array_equal(again.model.rnn.parameters()[name], parameter)
    other = cf.Trainer.resume(path, corpus, compute_dtype="float32")
    assert other.model.rnn.compute_dtype == "float32" and other.num_steps == 5
    with pytest.raises(ValueError, match="compute_dtype must be 'bfloat16', that of the model"):
        cf.Trainer(model, corpus, 4, 10, compute_dtype="float32")


# ---- commands ----


def test_commands_take_it(
    tmp_path: Path,
    text: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "m.safetensors"
    train = ["train", str(text), "-o", str(path), "--steps", "3", *SMALL]
    assert main([*train, "--compute-dtype", "bfloat16"]) == 0
    assert ", float32, products in bfloat16: " in capsys.readouterr().out
    stored = checkpoint.read(path)[1]
    assert stored["model"]["compute_dtype"] == "bfloat16"
    settings = stored["training"]["configuration"]["charrnn-fast train"]
    assert settings["compute_dtype"] == "bfloat16"
    assert main(["info", str(path)]) == 0
    assert ", products in bfloat16: " in capsys.readouterr().out
    assert main(["info", str(path), "--config"]) == 0
    assert 'compute_dtype = "bfloat16"\n' in capsys.readouterr().out
    resume = ["train", "-o", str(path), "--resume", "--steps"]
    assert main([*resume, "5"]) == 0
    assert checkpoint.read(path)[1]["model"]["compute_dtype"] == "bfloat16"
    assert main([*resume, "6", "--compute-dtype", "float32"]) == 0
    stored = checkpoint.read(path)[1]
    assert "compute_dtype" not in stored["model"]
    assert "compute_dtype" not in stored["training"]["configuration"]["charrnn-fast train"]
    capsys.readouterr()
    for command in (
        ["sample", str(path), "--length", "5", "--seed", "1"],
        ["eval", str(path), str(text)],
        ["score", str(path)],
        ["view", str(path), str(text), "-o", str(tmp_path / "page.html")],
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"the fox\n")))
        assert main([*command, "--compute-dtype", "bfloat16"]) == 0
        assert capsys.readouterr().out


def test_commands_refuse_by_the_flag(
    tmp_path: Path, text: Path, model: cf.CharLM, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.safetensors"
    train = ["train", str(text), "-o", str(path), "--steps", "3", *SMALL]
    assert main([*train, "--compute-dtype", "tf32"]) == 2
    assert f"--compute-dtype {ON_THE_CPU}" in capsys.readouterr().err
    assert not path.exists()
    tf32_file(model, path)
    assert main(["sample", str(path)]) == 2
    assert "load it with --compute-dtype 'float32' or 'bfloat16'" in capsys.readouterr().err
    assert main(["info", str(path)]) == 0
    assert ", float32, products in tf32: " in capsys.readouterr().out
    sample = ["sample", str(path), "--length", "9", "--json", "--seed", "1"]
    assert main([*sample, "--compute-dtype", "float32"]) == 0
    drawn = json.loads(capsys.readouterr().out)["text"]
    assert drawn == cf.CharLM.load(path, compute_dtype="float32").sample(9, seed=1)


def test_what_begins_with_its_weights_computes_as_it_did(tmp_path: Path, text: Path) -> None:
    path, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    train = ["train", str(text), "--steps", "2", *SMALL]
    assert main([*train, "-o", str(path), "--compute-dtype", "bfloat16"]) == 0
    assert main([*train, "-o", str(other), "--init-from", str(path)]) == 0
    assert cf.CharLM.load(other).rnn.compute_dtype == "bfloat16"
    again = [*train, "-o", str(other), "--overwrite", "--init-from", str(path)]
    assert main([*again, "--compute-dtype", "float32"]) == 0
    assert cf.CharLM.load(other).rnn.compute_dtype == "float32"
