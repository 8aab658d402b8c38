"""The examples of one to many and many to many: each runs, and its figures hold."""

from __future__ import annotations

import importlib.util
import itertools
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf

pytestmark = pytest.mark.unsanitized("trains for long, by calls that other tests make")

EXAMPLES = Path(__file__).parents[1] / "examples"


def _example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_one_to_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Less than a third of the updates: most drawings are described, by far not all."""
    picture = tmp_path / "drawings.png"
    figures = _example("one_to_many").main(picture, updates=600)
    assert figures.exact > 0.5 and figures.baseline < 0.15
    assert figures.losses[0] == pytest.approx(np.log(21), abs=0.2)  # it knows nothing yet
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "unseen drawings" in capsys.readouterr().out


@pytest.mark.exhaustive
def test_one_to_many_in_full() -> None:
    example = _example("one_to_many")
    figures = example.main()
    assert figures.exact >= example.BOUND
    assert figures.baseline < 0.15


def test_drawings_are_what_their_descriptions_say() -> None:
    example = _example("one_to_many")
    example.NOISE = 0
    x, texts = example.drawings(np.random.default_rng(1), 500)
    assert x.shape == (1, 500, example.SIZE**2) and x.dtype == np.float32
    bitmaps = x.reshape(500, example.SIZE, example.SIZE)
    assert bitmaps.min() == 0 and bitmaps.max() == 1
    assert len({bitmap.tobytes() for bitmap in bitmaps}) == 500
    third = example.SIZE / 3
    for bitmap, text in zip(bitmaps, texts, strict=True):
        rows, columns = np.nonzero(bitmap > 0.5)
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert abs(height - width) <= 2
        assert ("large" in text) == (height > 12)
        row, column = (rows.min() + rows.max() + 1) / 2, (columns.min() + columns.max() + 1) / 2
        if "left" in text or "right" in text:
            assert ("left" in text) == (column < 1.5 * third)
        if "upper" in text or "lower" in text:
            assert ("upper" in text) == (row < 1.5 * third)
        blank = bitmap[round(row - 0.5), round(column - 0.5)] < 0.5
        assert blank == ("hollow" in text), text


@pytest.mark.slow
def test_many_to_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example, picture = _example("many_to_many"), tmp_path / "curve.png"
    figures = example.main(picture)
    assert min(figures.greedy, figures.beam) >= example.BOUND
    assert figures.baseline < 0.3
    assert figures.losses[0] == pytest.approx(np.log(12), abs=0.2)  # it knows nothing yet
    assert figures.curve[-1] == (example.UPDATES, figures.greedy, figures.beam)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "by beam search" in capsys.readouterr().out


def test_dates_are_written() -> None:
    example = _example("many_to_many")
    texts = [example.written(date(2003, 3, 22), form) for form in example.FORMS]
    assert texts == [
        "Saturday, 22nd of March 2003",
        "Sat, 22 Mar 2003",
        "Saturday, the twenty-second of March, 2003",
        "the twenty-second of March, 2003",
        "March the twenty-second, '03",
        "March 22, 2003",
        "Mar 22 '03",
        "22nd March 2003",
        "22. 3. 2003",
        "22.3.03",
        "3/22/03",
        "3/22/2003",
    ]
    suffixes = [example.written(date(1987, 1, day), "{day}{suffix}") for day in range(1, 32)]
    assert suffixes[:4] == ["1st", "2nd", "3rd", "4th"]
    assert suffixes[10:13] == ["11th", "12th", "13th"] and suffixes[30] == "31st"
    assert [len(example.ORDINALS), example.ORDINALS[30]] == [31, "thirty-first"]
    assert [example.by_numbers(text) for text in ("3/22/03", "22nd March 1987")] == [
        "2003-03-22",
        "1987-01-22",
    ]


def test_beam_search_finds_the_most_probable() -> None:
    """Of all texts, as many beams as there are find the best; one beam is greedy."""
    example = _example("many_to_many")
    translator = example.Translator(
        cf.Vocabulary.from_text("abc\n"), cf.Vocabulary.from_text("01\n")
    )
    weights = translator.decoder.parameters()
    translator.decoder.load_parameters({name: 4 * value for name, value in weights.items()})
    texts, longest = ["abc", "c", "ba"], 3
    candidates = ["".join(text) for n in range(4) for text in itertools.product("01", repeat=n)]

    def log_probabilities(text: str, tokens: Any) -> Any:
        """[T, B = 1, V] of what may follow each of the tokens [T, 1]."""
        x, lengths = example.encode(translator.source, [text])
        _, state = translator.encoder.forward(x, lengths=lengths)
        y, _ = translator.decoder.forward(tokens, state)
        return example.log_softmax(y)

    def log_probability(text: str, candidate: str) -> float:
        tokens, _ = example.encode(translator.target, ["\n" + (candidate + "\n")[:longest]])
        steps = log_probabilities(text, tokens[:-1])
        return float(np.take_along_axis(steps, tokens[1:, :, np.newaxis], axis=2).sum())

    best = [max(candidates, key=lambda c: log_probability(text, c)) for text in texts]
    assert translator.translate(texts, 27, longest) == best

    for text, translation in zip(texts, translator.translate(texts, 1, longest), strict=True):
        tokens, _ = example.encode(translator.target, ["\n" + (translation + "\n")[:longest]])
        steps = log_probabilities(text, tokens[:-1])
        np.testing.assert_array_equal(steps.argmax(axis=2), tokens[1:])
