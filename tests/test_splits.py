"""Texts divided for training, validation and test: what reads which part, in Python and the
command.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from charrnn_fast import CharLM, Corpus, Dynamic, Trainer, Vocabulary
from charrnn_fast.cli import main
from charrnn_fast.storage import checkpoint, configuration
from test_cli import refused

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20  # 880 characters
SMALL = ["--hidden-size", "4", "--num-layers", "1", "--batch-size", "6", "--seq-len", "20"]
SMALL += ["--sample-length", "0"]

Capture = pytest.CaptureFixture[str]


def decoded(corpus: Corpus) -> list[str]:
    parts = (corpus.train, corpus.validation, corpus.test)
    return [corpus.vocabulary.decode(part) for part in parts if part is not None]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text(TEXT)
    (tmp_path / "other").write_text(TEXT[200:500])
    (tmp_path / "last").write_text(TEXT[300:420])
    return tmp_path


def nats(capsys: Capture, *arguments: str) -> float:
    """What ``charrnn-fast eval`` measures."""
    assert main(["eval", *arguments, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    loss: float = json.loads(lines[0])["nats_per_character"]
    return loss


# ---- Corpus ----


@pytest.mark.parametrize(
    ("split", "ends"),
    [
        ((0.8, 0.1, 0.1), (16, 18)),
        ((0.5, 0.25, 0.25), (10, 15)),
        ((1 / 3, 1 / 3, 1 / 3), (6, 13)),
        ([0.7, 0.3], (14, 20)),
        ((0.9, 0.1), (18, 20)),
        (None, (18, 20)),
    ],
)
def test_shares_are_contiguous(tmp_path: Path, split: Any, ends: tuple[int, int]) -> None:
    text = "abcdefghijklmnopqrst"
    path = tmp_path / "text"
    path.write_text(text)
    expected = [text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] :]]
    in_bytes = Vocabulary.from_bytes()
    for corpus in (
        Corpus.from_text(text, split=split),
        Corpus.from_files(path, split=split),
        Corpus.from_files(path, split=split, vocabulary=in_bytes),
    ):
        assert decoded(corpus) == [part for part in expected if part]
        assert len(corpus.vocabulary) in (20, 256)  # also those of the test part alone
        assert (corpus.test is None) == (ends[1] == 20)


def test_shares_count_as_they_are_written() -> None:
    """In binary 0.29 of 100 is 28.999..., and 0.7 + 0.2 is below 0.9."""
    corpus = Corpus(np.zeros(100, np.uint8), Vocabulary.from_text("ab"), split=(0.29, 0.71))
    assert len(corpus.train) == 29
    corpus = Corpus(np.zeros(10, np.uint8), Vocabulary.from_text("ab"), split=(0.7, 0.2, 0.1))
    assert (len(corpus.train), len(corpus.validation)) == (7, 2)


def test_parts_may_be_texts_of_their_own(tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("text", "validation", "test")}
    for name, path in paths.items():
        path.write_text({"text": "abcabcabca", "validation": "bca", "test": "ccb"}[name])
    whole, others = "abcabcabca", {"validation": "bca", "test": "ccb"}
    for given, parts in (
        (["validation"], [whole, "bca"]),
        (["test"], [whole[:9], "a", "ccb"]),
        (["validation", "test"], [whole, "bca", "ccb"]),
    ):
        for corpus in (
            Corpus.from_text(whole, **{name: others[name] for name in given}),  # type: ignore[arg-type]
            Corpus.from_files(paths["text"], **{name: paths[name] for name in given}),  # type: ignore[arg-type]
        ):
            assert decoded(corpus) == parts
            assert len(corpus) == 10
    corpus = Corpus.from_text(whole, test="cc", split=(0.5, 0.5))
    assert decoded(corpus) == ["abcab", "cabca", "cc"]
    several = Corpus.from_files(paths["text"], validation=[paths["validation"], paths["test"]])
    assert decoded(several) == [whole, "bcaccb"]


def test_the_vocabulary_sees_no_text_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abab" * 5)
    (tmp_path / "other").write_text("abc")
    with pytest.raises(ValueError, match=r"other has the character 'c' .* position 2"):
        Corpus.from_files(tmp_path / "text", test=tmp_path / "other")
    with pytest.raises(ValueError, match=r"validation has the character 'c' .* position 2"):
        Corpus.from_text("abab", validation="abc")
    corpus = Corpus.from_text("ababab_", test="abc", min_count=2)
    assert decoded(corpus)[-1] == "ab\ufffd"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": (0.8, 0.1)}, r"split must add up to 1, got 0.8,0.1, which adds up to 0.9"),
        ({"split": (0.8, 0.2, 0.0)}, r"split must be finite, above 0, below 1, got 0.0"),
        ({"split": (1.0,)}, r"split must be 2 or 3 shares, for training, .*, got 1"),
        ({"split": (0.2,) * 5}, r"split must be 2 or 3 shares, .*, got 0.2,0.2,0.2,0.2,0.2"),
        ({"split": "0.8"}, r"split must be 2 or 3 shares, got '0.8'"),
        ({"split": (0.8, 0.1, 0.1), "test": "ab"}, r"must be 2 shares, .*, got 0.8,0.1,0.1"),
        ({"split": (0.9, 0.1), "validation": "ab"}, r"split must be left out with validation, got"),
        ({"validation": ""}, r"validation must have 1 character or more, got none"),
        ({"test": b"ab"}, r"test must be a str or None, got bytes"),
    ],
)
def test_impossible_splits_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Corpus.from_text("abababab", **options)


def test_a_file_is_of_one_part(folder: Path) -> None:
    (folder / "texts").mkdir()
    for name in ("text", "other", "last"):
        shutil.copy(name, folder / "texts" / name)
    corpus = Corpus.from_files("texts", validation="texts/other", test=["texts/last"])
    assert decoded(corpus) == [TEXT, TEXT[200:500], TEXT[300:420]]
    corpus = Corpus.from_files("texts/*", validation="texts/other")
    assert decoded(corpus) == [TEXT[300:420] + TEXT, TEXT[200:500]]
    (folder / "link").symlink_to("text")
    for one, named in (
        ("text", {"test": "link"}),
        ("other", {"validation": "text", "test": "text"}),
    ):
        with pytest.raises(ValueError, match=r"is named for \w+ and for test; the parts"):
            Corpus.from_files(one, **named)  # type: ignore[arg-type]
    impossible: list[tuple[list[str], dict[str, Any], str]] = [
        (["text", "texts"], {"validation": "texts"}, "all files of texts are for validation; na"),
        (
            ["texts/*"],
            {"validation": ["texts/text", "texts/last"], "test": "texts/other"},
            r"all files of texts/\* are for validation and test; name others for training",
        ),
        (["none*"], {"validation": "texts"}, r"none\* matches no file"),
        (["text"], {"validation": []}, "validation must name one file or more, got none"),
        (["text"], {"test": ()}, "test must name one file or more, got none"),
    ]
    for paths, parts, message in impossible:
        with pytest.raises(ValueError, match=message):
            Corpus.from_files(*paths, **parts)
    with pytest.raises(ValueError, match="standard input is named twice"):
        Corpus.from_files("-", test="-")


def test_documents_begin_in_each_part() -> None:
    text = "ab.b.ba.a" * 3 + "ab"
    corpus = Corpus.from_text(text, document_mark=".", split=(0.5, 0.25, 0.25))
    starts = [p for p in range(1, 29) if text[p - 1] == "."]
    for begin, end, found in (
        (14, 21, corpus.validation_starts(0, 7)),
        (21, 29, corpus.test_starts(0, 8)),
    ):
        assert found.tolist() == [p - begin for p in starts if begin <= p < end]
    other = Corpus.from_text(text, document_mark=".", validation="a.b.ab", test="abab")
    assert other.validation_starts(0, 6).tolist() == [2, 4]
    assert other.test_starts(0, 4).tolist() == []  # one document
    assert other.starts_within(0, 29).tolist() == starts


def test_files_of_a_part_are_documents(tmp_path: Path) -> None:
    for name, text in (("a", "abc"), ("b", "ab"), ("c", "cba")):
        (tmp_path / name).write_text(text)
    one, *two = (tmp_path / name for name in "abc")
    corpus = Corpus.from_files(one, validation=two, document_mark="")
    assert corpus.validation_starts(0, 5).tolist() == [2]
    assert pickle.loads(pickle.dumps(corpus)).identity() == corpus.identity()


def test_corpora_that_are_divided_otherwise_are_told_apart() -> None:
    made = [
        Corpus.from_text(TEXT),
        Corpus.from_text(TEXT, split=(0.8, 0.2)),
        Corpus.from_text(TEXT, split=(0.8, 0.1, 0.1)),
        Corpus.from_text(TEXT, validation=TEXT[:90]),
        Corpus.from_text(TEXT, validation=TEXT[1:91]),
        Corpus.from_text(TEXT, test=TEXT[:90]),
    ]
    identities = [json.dumps(corpus.identity()) for corpus in made]
    assert len(set(identities)) == len(made)
    assert len({corpus.fingerprint for corpus in made}) == 1
    usual = Corpus.from_text(TEXT, split=(0.9, 0.1)).identity()
    assert usual == made[0].identity()
    assert set(usual) == {"length", "fingerprint", "document_mark", "file_starts"}  # as ever
    for corpus, identity in zip(made, identities, strict=True):
        again = pickle.loads(pickle.dumps(corpus))
        assert json.dumps(again.identity()) == identity
        assert decoded(again) == decoded(corpus)


# ---- training ----


def trainer_of(corpus: Corpus, **options: Any) -> Trainer:
    model = CharLM(corpus.vocabulary, 4, 1, seed=1)
    return Trainer(model, corpus, batch_size=6, seq_len=20, **options)


def test_training_reads_no_test_part(tmp_path: Path) -> None:
    """Weights, losses and samples are those with any other test part."""
    other = TEXT[:792] + "\n".join(reversed(TEXT[792:].split("\n")))
    assert sorted(other) == sorted(TEXT) and other != TEXT  # so that the vocabulary is the same
    found = []
    for text in (TEXT, other):
        trainer = trainer_of(Corpus.from_text(text, split=(0.8, 0.1, 0.1)), random_offset=True)
        trainer.fit(epochs=3, progress=False)
        weights = {name: w.tobytes() for name, w in trainer.model.rnn.parameters().items()}
        found.append((trainer.history, weights))
    assert found[0] == found[1]
    assert len(trainer.corpus.train) == 704  # type: ignore[union-attr]
    assert trainer.history[-1].validation_loss == trainer.model.evaluate(TEXT[704:792])
    assert trainer.test_loss() == trainer.model.evaluate(other[792:])


def test_a_corpus_without_a_test_part_has_no_test_loss() -> None:
    with pytest.raises(ValueError, match="the corpus must have a test part: give it a split"):
        trainer_of(Corpus.from_text(TEXT)).test_loss()


def test_parts_that_are_too_short_are_refused() -> None:
    for options, message in (
        ({"split": (0.98, 0.015, 0.005)}, "its test part, the last 0.5 % of 200 characters"),
        ({"split": (0.98, 0.005, 0.015)}, "its validation part, 0.5 % of 200 characters, must"),
        ({"validation": "a"}, "the text for validation must have 2 characters or more, got 1"),
        ({"test": "a"}, "the text for test must have 2 characters or more, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer_of(Corpus.from_text("abcd" * 50, **options))


def test_resuming_with_another_split_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    split = Corpus.from_text(TEXT, split=(0.8, 0.1, 0.1))
    trainer_of(split, checkpoint_path=path).fit(steps=1, progress=False)
    assert Trainer.resume(path, Corpus.from_text(TEXT, split=[0.8, 0.1, 0.1])).num_steps == 1
    for options, got in (
        ({}, "split 0.9,0.1"),
        ({"split": (0.7, 0.1, 0.2)}, "split 0.7,0.1,0.2"),
        ({"validation": TEXT[:90]}, "validation"),
    ):
        with pytest.raises(ValueError, match=rf"was trained, by split 0.8,0.1,0.1, got {got};"):
            Trainer.resume(path, Corpus.from_text(TEXT, **options))
    own = Corpus.from_text(TEXT, validation=TEXT[:90], test=TEXT[9:60])
    trainer_of(own, checkpoint_path=path).fit(steps=1, progress=False)
    with pytest.raises(ValueError, match=r"by validation and test, got split 0.9,0.1 and test;"):
        Trainer.resume(path, Corpus.from_text(TEXT, test=TEXT[9:60]))
    with pytest.raises(ValueError, match=r"the text for test must be the one .*, 51 .*, got 52 "):
        Trainer.resume(path, Corpus.from_text(TEXT, validation=TEXT[:90], test=TEXT[9:61]))


@pytest.mark.parametrize("files", [False, True])
def test_all_of_a_large_test_part_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: bool
) -> None:
    """Of other large texts some blocks are read. One character is another one, between those."""
    for name, number in (("_DIGEST_BLOCK", 4), ("_DIGEST_BLOCKS", 8)):
        monkeypatch.setattr(f"charrnn_fast.text.corpus.{name}", number)

    def corpus(name: str, changed: int | None, text: str = TEXT) -> Corpus:
        """Of the text, whose parts are those of a split, or which is the part of this name."""
        if changed is not None:
            text = text[:changed] + "q" + text[changed + 1 :]
        if name == "split":
            given: dict[str, Any] = {"split": (0.5, 0.25, 0.25)}
        else:
            given, text = {name: text}, TEXT
        if not files:
            return Corpus.from_text(text, **given)
        (tmp_path / "text").write_text(text)
        if name != "split":
            (tmp_path / "own").write_text(given[name])
            given = {name: tmp_path / "own"}
        return Corpus.from_files(tmp_path / "text", **given)

    path = tmp_path / "m"
    for name, message in (
        ("split", "must have the test part of the one that .*m was trained on, got another"),
        ("validation", "the text for validation must be the one .*, 880 .*, got 880 "),
        ("test", "the text for test must be the one .*, 880 .*, got 880 "),
    ):
        trainer_of(corpus(name, None), checkpoint_path=path).fit(steps=1, progress=False)
        assert Trainer.resume(path, corpus(name, None)).num_steps == 1
        # 880 / 8: 4 of 110 characters are read
        assert TEXT[726] != "q"
        with pytest.raises(ValueError, match=message):
            Trainer.resume(path, corpus(name, 726))
        # A checkpoint of an older version has neither digest, and resumes.
        tensors, config = checkpoint.read(path)
        text = config["training"]["corpus"]
        if name == "split":
            del text["test_part"]
        else:
            del text[name]["whole"]
        checkpoint.write(path, tensors, config)
        assert Trainer.resume(path, corpus(name, 726)).num_steps == 1


def test_checkpoints_without_a_split_are_those_of_older_versions(tmp_path: Path) -> None:
    trainer_of(Corpus.from_text(TEXT)).save(tmp_path / "model")
    _, config = checkpoint.read(tmp_path / "model")
    text = config["training"]["corpus"]
    assert set(text) == {"length", "fingerprint", "document_mark", "file_starts"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": [0.8, 0.1]}, "split must be 2 or 3 shares that add up to 1, got"),
        (
            {"split": [0.5, 0.5], "validation": "it"},
            "split must be absent where training.corpus.va",
        ),
        ({"split": [0.8, 0.1, 0.1], "test": "it"}, "split must be 2 shares that add up to 1, got"),
        ({"test": {"length": 3}}, "training.corpus.test.fingerprint is missing"),
        ({"document_mark": "a", "file_starts": "0" * 64, "test": "it"}, "corpus.test.file_starts"),
        ({"share": 1}, "training.corpus.share is unknown to this version"),
    ],
)
def test_wrong_splits_in_a_file_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "model"
    trainer_of(Corpus.from_text(TEXT)).save(path)
    tensors, config = checkpoint.read(path)
    text = config["training"]["corpus"]
    own = {"length": 3, "fingerprint": "0" * 64, "file_starts": None}
    text |= {key: own if value == "it" else value for key, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        configuration.check(config)
    checkpoint.write(path, tensors, config)
    with pytest.raises(cf.CheckpointError, match=message):
        Trainer.resume(path)


# ---- the command ----


@pytest.mark.parametrize("kind", [[], ["--bytes"]])
def test_the_test_part_is_evaluated_at_the_end(
    folder: Path, capsys: Capture, kind: list[str]
) -> None:
    train = ["train", "text", "-o", "m.safetensors", "--split", "0.8,0.1,0.1", *SMALL, *kind]
    assert main([*train, "--epochs", "2", "--final-test"]) == 0
    shown = capsys.readouterr().out
    assert (
        "880 %s: 704 to train on, 88 for validation, the last 88 for the test\n"
        % ("bytes" if kind else "characters")
        in shown
    )
    loss = CharLM.load("m.safetensors").evaluate(TEXT[792:])
    unit = "byte" if kind else "character"
    assert f"test loss: {loss:.4f} nats per {unit} ({loss / np.log(2):.4f} bits), after" in shown
    assert nats(capsys, "m.safetensors", "--test") == loss
    assert nats(capsys, "m.best.safetensors", "--test") == loss  # the last was the best
    assert main(["eval", "m.safetensors", "--test"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["test", "88", f"{loss:.4f}"]
    # resumed as it was, and again at its end
    assert main(["train", "-o", "m.safetensors", "--resume", "--epochs", "3"]) == 0
    assert "test loss: " in capsys.readouterr().out
    assert main(["train", "-o", "m.safetensors", "--resume"]) == 0
    out = capsys.readouterr().out
    assert "nothing left to train" in out and "test loss: " in out


def test_texts_of_their_own_are_remembered(folder: Path, capsys: Capture) -> None:
    train = ["train", "text", "--validation", "other", "--test", "last", "-o", "m.safetensors"]
    assert main([*train, "--epochs", "1", *SMALL]) == 0
    out = capsys.readouterr().out
    assert "880 to train on, another 300 for validation, another 120 for the test\n" in out
    model = CharLM.load("m.safetensors")
    assert nats(capsys, "m.safetensors", "--test") == model.evaluate(TEXT[300:420])
    assert main(["train", "-o", "m.safetensors", "--resume", "--epochs", "2"]) == 0
    capsys.readouterr()
    resume = ["train", "-o", "m.safetensors", "--resume", "--epochs", "3"]
    error = refused([*resume, "--split", "0.8,0.2"], capsys)
    assert "was trained, by --validation and --test, got --split 0.8,0.2 and --test; with" in error
    assert error.endswith("leave out --split, --validation and --test to go on\n")
    error = refused([*resume, "--test", "other", "--validation", "last"], capsys)
    assert "the text for --validation must be the one with which m.safetensors was tr" in error
    (folder / "last").write_text(TEXT[301:421])
    command = "--test FILE -o m.safetensors --resume\n"
    error = refused(resume, capsys)
    assert f"; read from last; if the right one is elsewhere: charrnn-fast train {command}" in error
    error = refused(["eval", "m.safetensors", "--test"], capsys)
    assert error.endswith("elsewhere: charrnn-fast eval m.safetensors --test TEXT\n")


def test_a_test_text_that_has_moved_is_named_anew(folder: Path, capsys: Capture) -> None:
    train = ["train", "text", "--split", "0.8,0.2", "--test", "last", "-o", "m.safetensors"]
    assert main([*train, "--epochs", "1", *SMALL]) == 0
    (folder / "moved").mkdir()
    shutil.move("last", "moved/renamed")
    capsys.readouterr()
    resume = ["train", "-o", "m.safetensors", "--resume", "--epochs", "2"]
    command = "charrnn-fast train --test FILE -o m.safetensors --resume\n"
    for more in ([], ["text"]):
        error = refused([*resume[:1], *more, *resume[1:]], capsys)
        assert error.endswith(f"name it where it is now: {command}")
        assert "last is not there, the text for --test with which m.safetensors was tr" in error
    assert main([*resume, "--test", "moved/renamed"]) == 0
    assert "704 to train on, the last 176 for validation, another 120 for the test" in (
        capsys.readouterr().out
    )
    # Three shares have no room for a text of the test, and the other way round.
    error = refused([*resume, "--split", "0.8,0.1,0.1"], capsys)
    assert "by --split 0.8,0.2 and --test, got --split 0.8,0.1,0.1; " in error
    train = ["train", "text", "--split", "0.8,0.1,0.1", "-o", "n.safetensors"]
    assert main([*train, "--epochs", "1", *SMALL]) == 0
    capsys.readouterr()
    resume[2] = "n.safetensors"
    error = refused([*resume, "--test", "moved/renamed"], capsys)
    assert "by --split 0.8,0.1,0.1, got --split 0.9,0.1 and --test; " in error


def test_no_pattern_means_what_the_training_wrote(folder: Path, capsys: Capture) -> None:
    test = decoded(Corpus.from_files("*", split=(0.8, 0.1, 0.1)))[2]
    train = ["train", "*", "--split", "0.8,0.1,0.1", "-o", "m.safetensors", "--keep-every", "10"]
    assert main([*train, *SMALL, "--epochs", "3"]) == 0
    capsys.readouterr()
    for file in ("m.safetensors", "m.best.safetensors", "m.step-00000010.safetensors"):
        assert nats(capsys, file, "--test") == CharLM.load(file).evaluate(test)
    assert main(["train", "-o", "m.safetensors", "--resume", "--epochs", "4"]) == 0
    capsys.readouterr()
    error = refused(
        ["train", "text", "m.step-00000010.safetensors", *train[2:], "--resume"], capsys
    )
    assert "m.step-00000010.safetensors is a text to train on; the training would" in error


def test_the_best_weights_are_tested(folder: Path, capsys: Capture) -> None:
    train = ["train", "text", "-o", "m.safetensors", "--split", "0.8,0.1,0.1", *SMALL]
    train += ["--learning-rate", "5", "--evaluate-every", "1", "--steps", "6", "--final-test"]
    assert main(train) == 0
    out = capsys.readouterr().out
    trainer = Trainer.resume("m.safetensors")
    assert trainer.best is not None and trainer.best.step < 6  # at this rate it gets worse
    loss = CharLM.load("m.best.safetensors").evaluate(TEXT[792:])
    assert f"test loss: {loss:.4f} nats" in out and f"after {trainer.best.step} steps" in out


def test_no_other_weights_are_tested(folder: Path, capsys: Capture) -> None:
    """After going back to a kept checkpoint the best one is of a part that was given up."""
    train = ["train", "text", "-o", "m", "--split", "0.8,0.1,0.1", *SMALL, "--evaluate-every", "1"]
    assert main([*train, "--learning-rate", "5e-3", "--keep-every", "2", "--steps", "6"]) == 0
    assert Trainer.resume("m.best").num_steps == 6
    given_up = Path("m.best").read_bytes()
    for step in (2, 4):
        shutil.copy(f"m.step-0000000{step}", "m")
    resume = ["train", "-o", "m", "--resume"]
    # at this rate it gets worse, and the best one is that it goes back to
    assert main([*resume, "--learning-rate", "9", "--steps", "5", "--final-test"]) == 0
    out, err = capsys.readouterr()
    loss = CharLM.load("m.step-00000004").evaluate(TEXT[792:])
    assert f"test loss: {loss:.4f} nats" in out and "after 4 steps" in out
    assert Path("m.best").read_bytes() == Path("m.step-00000004").read_bytes()
    # that of an earlier step: from the kept one
    Path("m.best").write_bytes(given_up)
    assert main(resume) == 0
    assert f"test loss: {loss:.4f} nats" in capsys.readouterr().out
    assert main([*resume, "--steps", "6"]) == 0
    assert f"test loss: {loss:.4f} nats" in capsys.readouterr().out
    assert Path("m.best").read_bytes() == Path("m.step-00000004").read_bytes()
    # nowhere
    Path("m.step-00000004").unlink()
    Path("m.best").write_bytes(given_up)
    for more, told in (([], []), (["--steps", "7"], ["; --final-test needs it, or a new best"])):
        assert main([*resume, *more]) == 0
        out, err = capsys.readouterr()
        assert "test loss" not in out
        gone = "m.best, the checkpoint of the best evaluation (step 4), is gone"
        for message in [*told, "; charrnn-fast eval m --test measures the last weights"]:
            assert gone + message in err
        assert ("m.best is removed: it is not" in err) == bool(more)
    assert not Path("m.best").exists()
    assert main([*resume, "--steps", "8"]) == 0  # missing
    assert "test loss" not in capsys.readouterr().out


def test_a_text_that_has_moved_is_found_again(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "one/data").mkdir(parents=True)
    (folder / "one/runs").mkdir()
    shutil.move("text", "one/data/text")
    monkeypatch.chdir(folder / "one")
    train = ["train", "data/text", "-o", "runs/m.safetensors", "--split", "0.8,0.1,0.1", *SMALL]
    assert main([*train, "--epochs", "1", "--log", "data/log.jsonl"]) == 0
    monkeypatch.chdir(folder)
    shutil.move("one", "two")  # with all that lies in it
    capsys.readouterr()
    loss = nats(capsys, "two/runs/m.safetensors", "--test")
    assert loss == CharLM.load("two/runs/m.safetensors").evaluate(TEXT[792:])
    assert main(["train", "-o", "two/runs/m.safetensors", "--resume", "--epochs", "2"]) == 0
    # logs are looked for beside the checkpoint alone; there this one is begun
    assert '"step": 10' not in Path("two/data/log.jsonl").read_text()
    assert '"step": 10' in Path("two/runs/log.jsonl").read_text()
    assert not Path("data").exists()
    shutil.move("two/data/text", "two/runs/text")  # beside the model
    capsys.readouterr()
    nats(capsys, "two/runs/m.safetensors", "--test")
    resume = ["train", "-o", "two/runs/m.safetensors", "--resume"]
    assert main([*resume, "--epochs", "3"]) == 0
    shutil.move("two/runs/text", "elsewhere")
    capsys.readouterr()
    error = refused(["eval", "two/runs/m.safetensors", "--test"], capsys)
    assert "data/text is not there, the text that two/runs/m.safetensors was trained on;" in error
    assert "charrnn-fast eval two/runs/m.safetensors --test TEXT\n" in error
    nats(capsys, "two/runs/m.safetensors", "--test", "elsewhere")
    Path("elsewhere").write_text(TEXT[1:] + "t")
    error = refused(["eval", "two/runs/m.safetensors", "--test", "elsewhere"], capsys)
    assert "the corpus must be the one that two/runs/m.safetensors was trained on" in error
    assert "; if the right one is elsewhere: charrnn-fast eval two/runs/m.safetensors" in error
    Path("two/runs/text").write_text(TEXT[1:] + "t")
    for command in (["eval", "two/runs/m.safetensors", "--test"], [*resume, "--epochs", "4"]):
        error = refused(command, capsys)
        assert re.search(r"; read from \S+/two/runs/text; if the right one is elsewhere: ", error)
    assert error.endswith(": charrnn-fast train TEXT -o two/runs/m.safetensors --resume\n")


def test_patterns_are_not_searched_for_above_the_model(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "**" would search the whole disk."""
    (folder / "runs").mkdir()
    train = ["train", "text*", "-o", "runs/m.safetensors", "--split", "0.8,0.1,0.1", *SMALL]
    assert main([*train, "--epochs", "1"]) == 0
    (folder / "away").mkdir()
    monkeypatch.chdir(folder / "away")
    capsys.readouterr()
    error = refused(["eval", "../runs/m.safetensors", "--test"], capsys)
    assert "text* matches no file" in error
    error = refused(["train", "-o", "../runs/m.safetensors", "--resume"], capsys)
    assert "text* matches no file" in error
    shutil.move("../text", "../runs/text")
    nats(capsys, "../runs/m.safetensors", "--test")


def test_statistics_for_the_test_are_read_as_the_training(folder: Path, capsys: Capture) -> None:
    Path("text").write_text(TEXT, encoding="utf-16")
    train = ["train", "text", "--split", "0.8,0.1,0.1", "-o", "m", "--encoding", "utf-16"]
    assert main([*train, *SMALL, "--epochs", "1"]) == 0
    capsys.readouterr()
    dynamic = Dynamic(0.01, 0.1, statistics=TEXT)
    flags = ["--dynamic", "0.01,0.1", "--dynamic-statistics", "text"]
    loss = nats(capsys, "m", "--test", *flags)
    assert loss == CharLM.load("m").evaluate(TEXT[792:], dynamic=dynamic)


def test_the_log_of_another_training_stays(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of a moved training is not looked for above its folder, nor is any other taken."""
    (folder / "p").mkdir()
    train = ["train", "text", *SMALL, "--log", "train.jsonl"]
    assert main([*train, "-o", "other.safetensors", "--steps", "30"]) == 0
    monkeypatch.chdir(folder / "p")
    shutil.copy("../text", "text")
    assert main([*train, "-o", "m.safetensors", "--steps", "4"]) == 0
    (folder / "q").mkdir()
    for name in ("m.safetensors", "text"):
        shutil.copy(name, folder / "q" / name)
    monkeypatch.chdir(folder / "q")
    logs = [folder / "train.jsonl", folder / "p/train.jsonl"]
    before = [file.read_bytes() for file in logs]
    resume = ["train", "--resume", "--steps", "6", "-o"]
    assert main([*resume, "m.safetensors"]) == 0
    assert [file.read_bytes() for file in logs] == before
    entries = [json.loads(line) for line in Path("train.jsonl").read_text().splitlines()]
    assert [entry["type"] for entry in entries[:2]] == ["start", "resume"]
    # it goes on with that one, from elsewhere as well, where its name is another's log
    monkeypatch.chdir(folder)
    assert main(["train", "--resume", "--steps", "8", "-o", "q/m.safetensors"]) == 0
    assert [file.read_bytes() for file in logs] == before
    assert '"step": 8' in Path("q/train.jsonl").read_text()
    # another one's has the name beside it: then its usual name, then none
    shutil.copy("train.jsonl", "q/train.jsonl")
    assert main(["train", "--resume", "--steps", "9", "-o", "q/m.safetensors"]) == 0
    assert Path("q/train.jsonl").read_bytes() == before[0]
    assert '"step": 9' in Path("q/m.jsonl").read_text()
    shutil.copy("train.jsonl", "q/m.jsonl")
    assert main(["train", "--resume", "--steps", "10", "-o", "q/m.safetensors"]) == 2
    error = capsys.readouterr().err
    assert "q/m.jsonl is not the log of the training in q/m.safetensors; --log names" in error
    assert Path("q/m.jsonl").read_bytes() == before[0]


def test_a_python_training_is_tested_on_a_named_text(folder: Path, capsys: Capture) -> None:
    corpus = Corpus.from_files("text", split=(0.8, 0.1, 0.1), document_mark="\n")
    trainer_of(corpus, checkpoint_path="m").fit(steps=2, progress=False)
    assert "m does not name its text; name it: charrnn-fast eval m --test TEXT" in refused(
        ["eval", "m", "--test"], capsys
    )
    assert nats(capsys, "m", "--test", "text") == Trainer.resume("m", corpus).test_loss()
    own = Corpus.from_files("text", test="last", document_mark="\n")
    trainer_of(own, checkpoint_path="m").fit(steps=2, progress=False)
    assert nats(capsys, "m", "--test", "last") == Trainer.resume("m", own).test_loss()
    error = refused(["eval", "m", "--test", "other"], capsys)
    assert "the text for --test must be the one with which m was trained, 120 chara" in error


def test_the_demonstration_may_be_split(
    folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charrnn_fast.text.demo.text", lambda: TEXT)
    train = ["train", "--demo", "--split", "0.8,0.1,0.1", "-o", "m", "--steps", "1", *SMALL]
    assert main(train) == 0
    capsys.readouterr()
    assert nats(capsys, "m", "--test") == CharLM.load("m").evaluate(TEXT[792:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "text", "-o", "n", "--split", "0.8,0.1"],
            "--split must add up to 1, got 0.8,0.",
        ),
        (["train", "text", "-o", "n", "--split", "0.8,x"], "--split: invalid list of numbers"),
        (["train", "text", "-o", "n", "--split", "0.8,1.2"], "--split: must be finite, above 0, b"),
        (
            ["train", "text", "-o", "n", "--split", "0.8,0.2", "--validation", "other"],
            "--split must be left out with --validation, got 0.8,0.2",
        ),
        (["train", "text", "-o", "n", "--test", "text"], "text is named for text and for --test;"),
        (["train", "c", "-o", "n", "--validation", "c"], "all files of c are for --validation; na"),
        (["train", "text", "-o", "n", "--test", "gone"], "gone: No such file"),
        (
            ["train", "text", "-o", "n", "--final-test", *SMALL],
            "--final-test must have a test part: --sp",
        ),
        (
            ["train", "absent", "-o", "n", "--final-test"],
            "--final-test must have a test part: --sp",
        ),
        (
            ["train", "--demo", "--split", "0.8,0.1,0.1", "--final-test"],
            "--final-test measures the best checkpoint, which is beside the one that -o names; -o",
        ),
        (["train", "--demo", "--keep-every", "9"], "--keep-every keeps checkpoints beside the one"),
        (["train", "--demo", "--test", "other"], "--demo brings its own text; leave out either "),
        (["train", "text", "-o", "n", "--test", "m"], "text is empty: m"),
        (["eval", "plain", "--test"], "plain was trained without a test part: train --split 0.8"),
        (["eval", "alone", "--test"], "alone holds no training on a text, and so no test part"),
        (["eval", "plain", "--test", "--document-mark", "a"], "leave out --document-mark"),
        (["train", "text", "-o", "n", "--validation-split", "0.1"], "--split takes other shares"),
        (["train", "text", "-o", "n", "--val-data", "x"], "did you mean --validation x?"),
    ],
)
def test_what_is_refused(folder: Path, capsys: Capture, arguments: list[str], message: str) -> None:
    Path("m").touch()
    Path("c").mkdir()
    shutil.copy("text", "c/text")
    trainer_of(Corpus.from_text(TEXT)).save("plain")
    CharLM(Vocabulary.from_text("ab"), 2, 1).save("alone")
    assert message in refused(arguments, capsys)
    assert not Path("n").exists()
