"""Characters that a vocabulary lacks: refused, left out and counted, or added to it."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charrnn_fast import CharLM, Corpus, Trainer, Vocabulary
from charrnn_fast.cli import main
from charrnn_fast.text import files as text_files
from test_cli import refused

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
SMALL = ["--hidden-size", "4", "--num-layers", "1", "--batch-size", "6", "--seq-len", "20"]
SMALL += ["--sample-length", "0"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a model of TEXT's 28 characters, and a text with five others, three of them distinct."""
    monkeypatch.chdir(tmp_path)
    model = CharLM(Vocabulary.from_text(TEXT), 4, 1, seed=1)
    Trainer(model, Corpus.from_text(TEXT), 6, 20, checkpoint_path="m").fit(steps=2, progress=False)
    Path("new").write_text("über é😀 the lazy é dog é\n" + TEXT)
    return tmp_path


# ---- vocabularies and corpora ----


def test_an_extended_vocabulary_keeps_its_ids() -> None:
    old = Vocabulary.from_text("fab")
    new = old.extended("cafe\U0001f600g")
    assert new.decode(np.arange(len(new))) == "abfceg\U0001f600"
    assert old.extended("aff") == old
    rare = Vocabulary.from_text("aabbc", min_count=2)
    more = rare.extended("xc\ufffd")  # the unknown symbol stands for all others, as before
    assert more.unknown_id == rare.unknown_id
    assert more.decode(np.arange(len(more))) == "ab\ufffdcx"
    assert more.unknown == rare.unknown
    with pytest.raises(ValueError, match="the 256 bytes are all that there are"):
        Vocabulary.from_bytes().extended("a")


def test_what_is_left_out() -> None:
    vocabulary = Vocabulary.from_text("ab\ud800")
    assert vocabulary.without_unknown("a\U0001f600bc\ud800\udfff") == ("ab\ud800", 3)
    assert vocabulary.without_unknown("") == ("", 0)
    assert Vocabulary.from_bytes().without_unknown("cé") == ("cé", 0)
    assert Vocabulary.from_text("aab", min_count=2).without_unknown("abc") == ("abc", 0)


@pytest.mark.parametrize("block", [1, 3, 1 << 22])
def test_unknown_characters_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(text_files, "BLOCK", block)
    texts = ["é.ab😀c", "ü", "xba.a"]
    paths = [tmp_path / str(i) for i in range(3)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    vocabulary = Vocabulary.from_text("ab.")
    kept = [".ab", "", "ba.a"]
    corpus = Corpus.from_files(*paths, vocabulary=vocabulary, allow_unknown=True, document_mark=".")
    assert vocabulary.decode(corpus.ids) == "".join(kept)
    assert corpus.num_unknown() == corpus.num_left_out == 5
    assert corpus.starts_within(0, 7).tolist() == [1, 3, 6]  # of what is left
    same = Corpus.from_text("".join(texts), vocabulary, allow_unknown=True, document_mark=".")
    assert (same.fingerprint, same.num_left_out) == (corpus.fingerprint, 5)
    again = pickle.loads(pickle.dumps(corpus))
    assert (again.num_unknown(), again.identity()) == (5, corpus.identity())
    own = Corpus.from_text("abab", validation="abé", test="ücb", allow_unknown=True)
    assert (own.num_left_out, len(own.validation)) == (3, 2)
    first, last = Corpus.of_each_file(
        [str(paths[0]), str(paths[2])], vocabulary, allow_unknown=True
    )
    assert (first.num_left_out, last.num_left_out) == (3, 1)
    with pytest.raises(ValueError, match="none of the text's 1 characters is in the vocabulary: "):
        Corpus.from_files(paths[1], vocabulary=vocabulary, allow_unknown=True)
    with pytest.raises(ValueError, match="1 character or more, got 2 that the vocabulary lacks"):
        Corpus.from_text("éü", vocabulary, allow_unknown=True)


@pytest.mark.parametrize("size", [3, 300])
def test_a_corpus_extends_a_vocabulary(tmp_path: Path, size: int) -> None:
    text = "".join(map(chr, range(200, 200 + size))) + "ba" * 9
    path = tmp_path / "text"
    path.write_text(text)
    old = Vocabulary.from_text("zab")
    corpus = Corpus.from_files(path, vocabulary=old, extend_vocabulary=True)
    assert corpus.vocabulary == old.extended(text)
    assert corpus.vocabulary.decode(corpus.ids) == text
    assert corpus.ids.dtype == (np.uint8 if size == 3 else np.uint16)
    same = Corpus.from_text(text, old, extend_vocabulary=True)
    assert same.fingerprint == corpus.fingerprint
    for vocabulary, got in ((None, "none"), (Vocabulary.from_bytes(), "the 256 bytes")):
        with pytest.raises(ValueError, match=f"vocabulary of characters, .*, got {got}"):
            Corpus.from_text(text, vocabulary, extend_vocabulary=True)
    with pytest.raises(ValueError, match="min_count must be 1 with a given vocabulary"):
        Corpus.from_text(text, old, extend_vocabulary=True, min_count=2)


# ---- models ----


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "rnn"},
        {"cell": "gru", "num_layers": 3, "bias": False},
        {"cell": "lstm", "init": "uniform", "dtype": "float64"},
        {"cell": "lstm", "proj_size": 3, "layer_norm": True, "dropout": 0.2},
        {"cell": "peephole_lstm", "bias": "single", "zoneout": 0.1, "weight_drop": 0.2},
        {"cell": "coupled_lstm", "num_layers": 1, "forget_bias": None},
    ],
    ids=str,
)
def test_old_characters_have_their_logits(options: dict[str, Any]) -> None:
    model = CharLM(Vocabulary.from_text(TEXT), 6, **{"num_layers": 2, **options}, seed=3)
    corpus = Corpus.from_text(TEXT)
    Trainer(model, corpus, 6, 20, learning_rate=0.05).fit(steps=5, progress=False)
    size = len(model.vocabulary)
    vocabulary = model.vocabulary.extended("éü😀")
    extended = model.extended(vocabulary, seed=9)
    tokens = np.asarray(corpus.train[:30].astype(np.int32)).reshape(10, 3)
    old, _ = model.rnn.forward(tokens)
    new, _ = extended.rnn.forward(tokens)
    assert new[..., :size].tobytes() == old.tobytes()
    settings = model.settings()
    assert extended.settings() == {**settings, "seed": 9}
    drawn = CharLM(vocabulary, **{**settings, "seed": 9}).rnn.parameters()
    weights = extended.rnn.parameters()
    assert (weights["weight_ih_l0"][:, size:] == drawn["weight_ih_l0"][:, size:]).all()
    assert (weights["decoder.weight"][size:] == drawn["decoder.weight"][size:]).all()
    if "decoder.bias" in weights:
        assert (weights["decoder.bias"][size:] == weights["decoder.bias"][:size].min()).all()
    assert model.extended(vocabulary).settings() == settings


def test_other_vocabularies_are_no_extension() -> None:
    model = CharLM(Vocabulary.from_text("abc"), 4, 1)
    for text in ("ab", "bcdy"):
        with pytest.raises(ValueError, match=r"must extend that of the model, <.* got <.*; make"):
            model.extended(Vocabulary.from_text(text))


def test_an_extended_model_learns_the_new_characters() -> None:
    model = CharLM(Vocabulary.from_text("ab"), 8, 1, "gru", seed=1)
    corpus = Corpus.from_text("abé" * 300, model.vocabulary, extend_vocabulary=True)
    model = model.extended(corpus.vocabulary)
    trainer = Trainer(model, corpus, 6, 20, learning_rate=0.05)
    trainer.fit(steps=40, progress=False)
    assert model.sample(6, prime="ab", temperature=0) == "abéabéab"


def test_unknown_characters_of_calls() -> None:
    model = CharLM(Vocabulary.from_text(TEXT), 4, 1, seed=1)
    with pytest.raises(ValueError, match="prime has the character 'é'"):
        model.sample(5, prime="thé", seed=1)
    expected = model.sample(5, prime="the ", seed=1)
    with pytest.warns(UserWarning, match=r"prime has 2 characters .* lacks; they are left out"):
        assert model.sample(5, prime="ü\U0001f600the ", seed=1, allow_unknown=True) == expected
    with pytest.warns(UserWarning, match=r"prime has 1 character .* lacks; it is left out"):
        pieces = model.stream(5, prime="thée ", seed=1, allow_unknown=True)
    assert "".join(pieces) == expected
    with pytest.warns(UserWarning, match=r"text has 1 character "):
        assert model.evaluate("the É fox", allow_unknown=True) == model.evaluate("the  fox")
    scores = model.score(["the", "thé", ""], allow_unknown=True)
    assert scores[0] == model.score(["the"])[0]
    assert (scores[1], scores[2]) == (-math.inf, 0)
    assert model.sample(5, prime="the ", seed=1, allow_unknown=True) == expected  # nothing to tell
    model.score([], allow_unknown=True)


# ---- the command ----


def test_sample_leaves_out_and_tells(folder: Path, capsys: Capture) -> None:
    sample = ["sample", "m", "--length", "9", "--seed", "1"]
    assert main([*sample, "--prime", "the "]) == 0
    expected = capsys.readouterr().out
    Path("prime").write_text("éthe ")
    for prime, name in ((["--prime", "éthe "], "--prime"), (["--prime-file", "prime"], "prime")):
        assert main([*sample, *prime, "--allow-unknown"]) == 0
        out, error = capsys.readouterr()
        assert out == expected
        assert f"{name} has 1 character that the vocabulary lacks; it is left out\n" in error
        assert f"{name} has the character 'é'" in refused([*sample, *prime], capsys)


def test_eval_leaves_out_and_counts(folder: Path, capsys: Capture) -> None:
    assert "new has the character 'ü'" in refused(["eval", "m", "new"], capsys)
    Path("known").write_text("ber  the lazy  dog \n" + TEXT)
    assert main(["eval", "m", "new", "known", "--allow-unknown", "--json"]) == 0
    new, known, total = map(json.loads, capsys.readouterr().out.splitlines())
    assert new["nats"] == known["nats"]
    assert (new["unknown"], known["unknown"], total["unknown"]) == (5, 0, 5)
    assert new["characters"] == known["characters"] + 5
    assert new["predicted"] == known["predicted"]
    assert main(["eval", "m", "new", "--allow-unknown"]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("  5 unknown")
    Path("short").write_text("éa")
    error = refused(["eval", "m", "short", "--allow-unknown"], capsys)
    assert "short must have 2 characters or more that are known, got 1" in error


def test_fine_tuning_leaves_out_and_counts(folder: Path, capsys: Capture) -> None:
    train = ["train", "new", "-o", "n", "--init-from", "m", *SMALL, "--split", "0.8,0.1,0.1"]
    assert "new has the character 'ü'" in refused([*train, "--steps", "2"], capsys)
    assert main([*train, "--steps", "2", "--allow-unknown"]) == 0
    out = capsys.readouterr().out
    assert "left out    5 characters, which the vocabulary lacks\n" in out
    assert CharLM.load("n").vocabulary == CharLM.load("m").vocabulary
    assert main(["train", "-o", "n", "--resume", "--steps", "3"]) == 0  # it remembers
    assert main(["eval", "n", "--test"]) == 0


def test_texts_of_their_own_may_have_unknown_characters(folder: Path, capsys: Capture) -> None:
    Path("text").write_text(TEXT)
    train = ["train", "text", "--validation", "new", "--test", "new2", "-o", "n", *SMALL]
    Path("new2").write_text("éthe fox")
    assert "new has the character 'ü'" in refused([*train, "--steps", "2"], capsys)
    assert main([*train, "--steps", "2", "--allow-unknown"]) == 0
    assert "left out    6 characters, which the vocabulary lacks\n" in capsys.readouterr().out
    assert main(["eval", "n", "--test", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["characters"], record["unknown"], record["predicted"]) == (8, 1, 6)


@pytest.mark.parametrize("more", [[], ["--seed", "7", "--dropout", "0.1"]])
def test_fine_tuning_extends_the_vocabulary(folder: Path, capsys: Capture, more: list[str]) -> None:
    train = ["train", "new", "-o", "n", "--init-from", "m", "--extend-vocabulary", *SMALL, *more]
    assert main([*train, "--learning-rate", "1e-30", "--steps", "1"]) == 0
    out = capsys.readouterr().out
    assert "vocabulary  31 characters: " in out
    assert "new         3 characters: 'éü😀'\n" in out
    old, new = CharLM.load("m"), CharLM.load("n")
    expected = old.extended(old.vocabulary.extended("éü😀"), seed=7 if more else None)
    assert new.vocabulary == expected.vocabulary
    for name, weight in expected.rnn.parameters().items():
        np.testing.assert_allclose(new.rnn.parameters()[name], weight, atol=1e-20)
    trainer = Trainer.resume("n")
    assert trainer.num_steps == 1  # the optimizer begins anew
    assert main(["train", "-o", "n", "--resume", "--steps", "2"]) == 0
    again = ["train", "new", "-o", "k", "--init-from", "n", "--extend-vocabulary", *SMALL]
    capsys.readouterr()
    assert main([*again, "--steps", "1"]) == 0
    assert "new         0 characters\n" in capsys.readouterr().out


def test_what_extend_vocabulary_refuses(folder: Path, capsys: Capture) -> None:
    train = ["train", "new", "-o", "n", *SMALL, "--steps", "1", "--extend-vocabulary"]
    assert "--extend-vocabulary extends that of --init-from FILE, which" in refused(train, capsys)
    CharLM(Vocabulary.from_bytes(), 4, 1).save("bytes")
    error = refused([*train, "--init-from", "bytes"], capsys)
    assert (
        "--extend-vocabulary must have a vocabulary of characters, which it extends, got" in error
    )
    error = refused([*train, "--init-from", "m", "--min-count", "2"], capsys)
    assert "--min-count must be 1 with a given vocabulary" in error
