"""CharLM: its contents, evaluation, saving and loading."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from charrnn_fast import CharLM, Vocabulary
from charrnn_fast.storage import checkpoint
from charrnn_fast.storage.checkpoint import CheckpointError

TEXT = "the quick brown fox jumps over the lazy dog\n"


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.from_text(TEXT)


def test_the_network_reads_and_predicts_ids(vocabulary: Vocabulary) -> None:
    model = CharLM(vocabulary, 8, 3, "gru", dtype="float64")
    parameters = model.rnn.parameters()
    assert parameters["weight_ih_l0"].shape == (24, 28)
    assert parameters["weight_hh_l2"].shape == (24, 8)
    assert parameters["decoder.weight"].shape == (28, 8)
    assert parameters["decoder.bias"].dtype == np.float64
    assert model.num_parameters == sum(p.size for p in parameters.values())
    assert "gru, 3 x 8, 28 characters" in repr(model)


def test_the_default_is_char_rnns(vocabulary: Vocabulary) -> None:
    model = CharLM(Vocabulary.from_text("".join(map(chr, range(65)))))
    assert model.num_parameters == 240_321
    bias = model.rnn.parameters()["bias_ih_l1"] + model.rnn.parameters()["bias_hh_l1"]
    forget = bias[128:256]
    # The forget gate's bias is 1, beside what the initial weights draw.
    assert abs(float(forget.mean()) - 1) < 2 * 128**-0.5
    assert abs(float(np.delete(bias, np.s_[128:256]).mean())) < 128**-0.5


def test_weights_come_from_the_seed(vocabulary: Vocabulary) -> None:
    first, again = CharLM(vocabulary, 8, seed=4), CharLM(vocabulary, 8, seed=4)
    other = CharLM(vocabulary, 8, seed=5)
    for name, weights in first.rnn.parameters().items():
        np.testing.assert_array_equal(weights, again.rnn.parameters()[name])
    assert not np.array_equal(
        first.rnn.parameters()["weight_hh_l0"], other.rnn.parameters()["weight_hh_l0"]
    )


@pytest.mark.parametrize("symbol", ["a", "\n", "é"])
def test_one_symbol_is_refused(symbol: str) -> None:
    with pytest.raises(
        ValueError, match=r"vocabulary must have 2 characters or more, got .* alone"
    ):
        CharLM(Vocabulary.from_text(symbol * 5))


def test_wrong_arguments_are_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(TypeError, match="vocabulary must be a Vocabulary, got str"):
        CharLM(TEXT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cell"):
        CharLM(vocabulary, cell="transformer")
    with pytest.raises(TypeError, match="dtype must be 'float32' or 'float64', got None"):
        CharLM(vocabulary, dtype=None)  # type: ignore[arg-type]


def test_a_language_model_reads_forward_on_the_cpu(vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="bidirectional must be False: a language model cannot"):
        CharLM(vocabulary, 4, bidirectional=True)
    with pytest.raises(ValueError, match=r"device must be 'cpu', 'cuda', 'cuda:N' .*, got 'gpu'"):
        CharLM(vocabulary, 4, device="gpu")


OPTIONS: dict[str, Any] = {
    "layer_norm": True,
    "dropout": 0.2,
    "input_dropout": 0.1,
    "output_dropout": 0.3,
    "recurrent_dropout": 0.25,
    "variational": True,
    "weight_drop": 0.15,
}


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm", "peephole_lstm", "coupled_lstm"])
def test_every_option_survives_a_checkpoint(
    cell: str, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    others: list[dict[str, Any]] = [{"zoneout": 0.1}]
    if cell.endswith("lstm"):
        others.append({"proj_size": 3})
    for more in others:
        model = CharLM(vocabulary, 7, cell=cell, **OPTIONS, **more)
        model.save(tmp_path / "m.safetensors")
        again = CharLM.load(tmp_path / "m.safetensors")
        assert again.settings() == model.settings()
        assert again.evaluate(TEXT) == model.evaluate(TEXT)
        assert again.sample(30, seed=3) == model.sample(30, seed=3)
        texts = model.sample(20, seeds=[1, 2, 3])
        assert texts == [model.sample(20, seed=n) for n in (1, 2, 3)]
        if cell != "rnn":
            assert model.sample(20, seed=1, weight_dtype="bfloat16")


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_evaluate_is_the_mean_over_all_but_the_first_character(
    vocabulary: Vocabulary, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CharLM(vocabulary, 8, cell=cell, dtype="float64", seed=1)
    text = TEXT * 3
    ids = vocabulary.encode(text)
    logits, _ = model.rnn.forward(ids[:-1, None])
    expected, _ = cf.cross_entropy(logits[:, 0], ids[1:])
    assert model.evaluate(text) == pytest.approx(expected, rel=1e-12)
    # The state is carried from block to block.
    monkeypatch.setattr("charrnn_fast.language.model._EVALUATION_BLOCK", 7)
    assert model.evaluate(text) == pytest.approx(expected, rel=1e-12)
    assert model.evaluate("th") == pytest.approx(model.evaluate("th"), rel=0)


def test_evaluate_needs_something_to_predict(vocabulary: Vocabulary) -> None:
    model = CharLM(vocabulary, 8)
    for text in ("", "a"):
        with pytest.raises(
            ValueError, match=f"text must have 2 characters or more, got {len(text)}"
        ):
            model.evaluate(text)
    with pytest.raises(ValueError, match=r"text has the character 'Q' .* position 1"):
        model.evaluate("aQ")


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_saved_model_is_the_same_model(tmp_path: Path, cell: str, dtype: str) -> None:
    path = tmp_path / "model.safetensors"
    vocabulary = Vocabulary.from_text("a\ud800\U0010ffff\n")
    model = CharLM(vocabulary, 7, 2, cell, seed=2, dtype=dtype, bias="single")
    model.save(path)
    loaded = CharLM.load(str(path))
    assert loaded.vocabulary == vocabulary
    assert loaded.settings() == model.settings()
    assert loaded.rnn.parameters().keys() == model.rnn.parameters().keys()
    for name, weights in model.rnn.parameters().items():
        assert loaded.rnn.parameters()[name].dtype == weights.dtype
        np.testing.assert_array_equal(loaded.rnn.parameters()[name], weights)
    assert loaded.sample(50, seed=1) == model.sample(50, seed=1)
    assert loaded.evaluate("aaa\n") == model.evaluate("aaa\n")
    again = tmp_path / "again"
    loaded.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_a_byte_model_keeps_its_vocabulary(tmp_path: Path) -> None:
    CharLM(Vocabulary.from_bytes(), 4, 1).save(tmp_path / "model")
    assert CharLM.load(tmp_path / "model").vocabulary == Vocabulary.from_bytes()


def test_tensors_have_pytorchs_names(tmp_path: Path, vocabulary: Vocabulary) -> None:
    CharLM(vocabulary, 4, 1).save(tmp_path / "model")
    tensors, _ = checkpoint.read(tmp_path / "model")
    assert sorted(tensors) == [
        "decoder.bias",
        "decoder.weight",
        "rnn.bias_hh_l0",
        "rnn.bias_ih_l0",
        "rnn.weight_hh_l0",
        "rnn.weight_ih_l0",
        "vocabulary",
    ]
    assert tensors["rnn.weight_ih_l0"].shape == (16, len(vocabulary))
    assert "".join(map(chr, tensors["vocabulary"])) == "".join(sorted(set(TEXT)))


def test_contents_that_do_not_fit_are_refused(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may be whole and still describe another model than the one that it holds."""
    path = tmp_path / "model"
    CharLM(vocabulary, 4, 1).save(path)
    tensors, config = checkpoint.read(path)
    bad = [
        (
            {**tensors, "decoder.bias": np.zeros(3, np.float32)},
            config,
            "the tensor 'decoder.bias' must be float32 of the shape [28], got float32 of [3]",
        ),
        (
            {**tensors, "decoder.bias": np.zeros(28)},
            config,
            "the tensor 'decoder.bias' must be float32 of the shape [28], got float64 of [28]",
        ),
        (
            {k: v for k, v in tensors.items() if k != "rnn.weight_hh_l0"},
            config,
            "the tensor 'rnn.weight_hh_l0' is missing",
        ),
        ({**tensors, "more": np.zeros(3)}, config, "the tensor 'more' is unknown to this version"),
        ({**tensors, "decoder.bias": np.full(28, np.inf, np.float32)}, config, "is not finite"),
        ({**tensors, "vocabulary": np.array([7, 7], np.int32)}, config, "must be distinct"),
        (
            {**tensors, "vocabulary": np.arange(28)},
            config,
            "'vocabulary' must be int32 of the shap",
        ),
        (tensors, {**config, "vocabulary": "words"}, 'vocabulary must be one of "characters"'),
        (
            tensors,
            {**config, "model": {**config["model"], "hidden_size": 5}},
            "the tensor 'decoder.weight' has 112 elements, too few for model.hidden_size 5",
        ),
        (
            tensors,
            {**config, "model": {**config["model"], "unknown": 5}},
            "model.unknown is unknown to this version",
        ),
        (tensors, {}, "vocabulary is missing"),
    ]
    for broken_tensors, broken_config, message in bad:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_is_finite", lambda tensor: True)
            checkpoint.write(path, broken_tensors, broken_config)
        with pytest.raises(CheckpointError, match=re.escape(message)):
            CharLM.load(path)


def test_saving_to_an_unwritable_path_is_an_os_error(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        CharLM(vocabulary, 4, 1).save(tmp_path / "file" / "model")
    with pytest.raises(FileNotFoundError):
        CharLM(vocabulary, 4, 1).save(tmp_path / "missing" / "model")
    with pytest.raises(IsADirectoryError) as raised:
        CharLM(vocabulary, 4, 1).save(tmp_path)
    assert raised.value.filename == str(tmp_path)


def test_saving_keeps_what_is_good(tmp_path: Path, vocabulary: Vocabulary) -> None:
    model, path, text = CharLM(vocabulary, 4, 1), tmp_path / "model", tmp_path / "text"
    text.write_text(TEXT)
    with pytest.raises(FileExistsError, match="no checkpoint; it is not overwritten"):
        model.save(text)
    assert text.read_text() == TEXT
    model.save(path)
    before = path.read_bytes()
    weights = {name: np.array(w) for name, w in model.rnn.parameters().items()}
    weights["weight_hh_l0"][0, 0] = np.nan
    model.rnn.load_parameters(weights)
    with pytest.raises(FloatingPointError, match=r"rnn.weight_hh_l0 is no longer finite"):
        model.save(path)
    assert path.read_bytes() == before
