"""The pages of `charrnn_fast.view` in a browser: colours, keys, hostile texts.

Needs Chromium (Debian's package chromium), and skips without it; `.ci/run` installs it and lets
nothing skip.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

import chromium
from charrnn_fast import CharLM
from charrnn_fast.view import divide_errors, page
from charrnn_fast.view.errors import by_kind
from charrnn_fast.view.oracles import NO_ERROR, ORACLES
from charrnn_fast.view.reading import read, saturation
from chromium import Chromium
from pages import HOSTILE, NETWORKS, TEXT, lively

PROGRAM = chromium.find()
LIGHT = {"page": "#ffffff", "positive": "#4a98d9", "negative": "#e8704a"}
DARK = {"page": "#14171b", "positive": "#1b65a5", "negative": "#ad3f1c"}

MINUS = "\N{MINUS SIGN}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium on the PATH: apt-get install chromium"),
    pytest.mark.unsanitized("runs a browser, which does not bear a preloaded library"),
]

Show = Callable[..., Chromium]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert PROGRAM is not None
    with Chromium(PROGRAM, tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def show(running: Chromium, tmp_path: Path) -> Iterator[Show]:
    """Opens the page of a model and a text; at the end it must have complained of nothing."""
    file = tmp_path / "a page.html"

    def opened(
        model: CharLM,
        text: str | bytes = TEXT,
        address: str = "",
        size: tuple[int, int] = (1400, 900),
        **options: Any,
    ) -> Chromium:
        file.write_text(page(model, text, **options), encoding="utf-8")
        running.resize(*size)
        running.prefer("light")
        running.open(file.as_uri() + address)
        return running

    yield opened
    assert complaints(running) == []
    assert requests(running) == [file.as_uri()], "the page loads nothing else"


def complaints(browser: Chromium) -> list[Any]:
    """Errors, warnings and whatever else the browser or the page has put on the console."""
    told = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    return [event for event in browser.events if event["method"] in told]


def requests(browser: Chromium) -> list[str]:
    sent = [e["params"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    return [params["request"]["url"] for params in sent]


def chosen(browser: Chromium) -> tuple[int, int]:
    """The layer's index and the cell, as the controls show them."""
    value = "Number(document.getElementById('{}').value)"
    layer, cell, slider = (browser.evaluate(value.format(i)) for i in ("layer", "cell", "slider"))
    assert cell == slider
    return int(layer), int(cell)


def colours(browser: Chromium) -> dict[int, list[int]]:
    """Red, green and blue behind the characters that are in the document, by position."""
    found = browser.evaluate(
        "[...document.querySelectorAll('.char')].map(c => "
        "[Number(c.dataset.n), getComputedStyle(c.firstChild).backgroundColor])"
    )
    return {n: [int(x) for x in re.findall(r"\d+", colour)] for n, colour in found}


def check_colours(
    browser: Chromium, values: Any, scheme: dict[str, str] = LIGHT, limit: float = 1
) -> None:
    """The colours are those of values [N], which reach the full colour at limit."""
    rgb = {name: np.array(list(bytes.fromhex(code[1:]))) for name, code in scheme.items()}
    found = colours(browser)
    assert found
    for n, colour in found.items():
        end = rgb["positive"] if values[n] >= 0 else rgb["negative"]
        expected = rgb["page"] + (end - rgb["page"]) * abs(values[n]) / limit
        # half a level of 127, of a channel that changes by up to 200, and rounding
        np.testing.assert_allclose(colour, expected, atol=1.5)


def activations(model: CharLM, text: str = TEXT) -> Any:
    """[L, H, N]"""
    layers = list(range(model.rnn.num_layers))
    return read(model, model.vocabulary.encode(text), layers).activations


# ---- cells ----


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_colours_are_the_activations(options: dict[str, Any], show: Show) -> None:
    model = lively(TEXT, **options)
    browser, values = show(model, address="#layer=1&cell=3"), activations(model)
    assert chosen(browser) == (1, 3)
    assert len(colours(browser)) == len(TEXT)
    relu = options.get("nonlinearity") == "relu"
    largest = np.abs(values).max(2)
    check_colours(browser, values[1, 3], limit=largest[1, 3] if relu else 1)
    browser.press("0")
    assert chosen(browser) == (0, 3)
    check_colours(browser, values[0, 3], limit=largest[0, 3] if relu else 1)
    low, high, name = (
        browser.evaluate(f"document.getElementById('{i}').textContent")
        for i in ("low", "high", "quantity")
    )
    assert name == ("tanh(c)" if "lstm" in options["cell"] else "h")
    assert (low, high) == (("0", f"+{largest[0, 3]:.2f}") if relu else (f"{MINUS}1.00", "+1.00"))


def test_the_slider_chooses_the_cell(show: Show) -> None:
    model = lively(TEXT)
    browser, values = show(model, address="#layer=0&cell=0"), activations(model)
    before = colours(browser)
    check_colours(browser, values[0, 0])
    browser.click("#slider")  # in its middle
    layer, cell = chosen(browser)
    assert layer == 0 and cell in (3, 4)
    check_colours(browser, values[0, cell])
    assert colours(browser) != before
    browser.press("ArrowRight")  # with the slider in focus: once, not twice
    assert chosen(browser) == (0, cell + 1)


def test_keys_choose_cells_and_layers(show: Show) -> None:
    model = lively(TEXT, num_layers=3)
    browser, values = show(model, address="#layer=0&cell=3"), activations(model)
    browser.press("ArrowRight")
    assert chosen(browser) == (0, 4)
    check_colours(browser, values[0, 4])
    browser.press("ArrowLeft")
    browser.press("ArrowLeft")
    assert chosen(browser) == (0, 2)
    browser.press("2")
    assert chosen(browser) == (2, 2)
    check_colours(browser, values[2, 2])
    browser.press("ArrowRight", shift=True)
    assert chosen(browser) == (2, 7)  # the last
    browser.press("ArrowLeft", shift=True)
    assert chosen(browser) == (2, 0)
    browser.press("9")  # there is no such layer
    assert chosen(browser) == (2, 0)


def test_buttons_and_fields_choose_cells(show: Show) -> None:
    browser = show(lively(TEXT), address="#layer=0&cell=3")
    browser.click("#next")
    assert chosen(browser) == (0, 4)
    browser.click("#previous")
    browser.click("#previous")
    assert chosen(browser) == (0, 2)
    for typed, cell in (("5", 5), ("99", 7), ("-3", 0), ("", 0)):
        browser.evaluate(
            f"cell.value = '{typed}'; cell.dispatchEvent(new Event('change', {{bubbles: true}}))"
        )
        assert chosen(browser) == (0, cell)
    browser.evaluate("layer.value = '1'; layer.dispatchEvent(new Event('change'))")
    assert chosen(browser) == (1, 0)


def test_keys_in_fields_are_the_fields_own(show: Show) -> None:
    browser = show(lively(TEXT), address="#layer=0&cell=3")
    browser.evaluate("cell.focus()")
    browser.press("ArrowLeft")
    browser.press("1")
    assert browser.evaluate("layer.value") == "0"
    assert browser.evaluate("slider.value") == "3"


def test_full_contrast_reaches_to_the_cells_largest(show: Show) -> None:
    model = lively(TEXT)
    values = activations(model)
    layer, cell = divmod(int(np.abs(values).max(2).argmin()), 8)
    largest = np.abs(values[layer, cell]).max()
    assert largest < 0.9
    browser = show(model, address=f"#layer={layer}&cell={cell}")
    browser.press("c")
    check_colours(browser, values[layer, cell], limit=largest)
    assert browser.evaluate("high.textContent") == f"+{largest:.2f}"
    browser.click("#contrast")
    check_colours(browser, values[layer, cell])


def test_some_layers_keep_their_numbers(show: Show) -> None:
    model = lively(TEXT, num_layers=3)
    browser, values = show(model, layers=[1, 2], address="#layer=2&cell=1"), activations(model)
    assert browser.evaluate("[...layer.options].map(o => o.text)") == ["1", "2"]
    check_colours(browser, values[2, 1])
    browser.press("1")
    check_colours(browser, values[1, 1])
    browser.press("0")
    check_colours(browser, values[1, 1])


def test_the_address_leads_to_a_cell(show: Show) -> None:
    browser = show(lively(TEXT), address="#layer=1&cell=5&guesses=off&contrast=full")
    assert chosen(browser) == (1, 5)
    assert browser.evaluate("guessing.value") == "0"
    assert browser.evaluate("contrast.checked")
    browser.press("ArrowRight")
    browser.evaluate("new Promise(done => setTimeout(done, 400))")
    assert browser.evaluate("location.hash") == "#layer=1&cell=6&guesses=off&contrast=full"
    browser.evaluate("location.hash = '#layer=0&cell=99'")
    browser.settle()
    assert chosen(browser) == (0, 7)


def test_the_page_says_why_it_opens_on_its_cell(show: Show) -> None:
    browser, why = show(lively(TEXT)), "document.getElementById('why').textContent"
    layer, cell = chosen(browser)
    assert browser.evaluate(why).startswith(f"Cell {layer}·{cell} ")
    assert "so the page opened on" in browser.evaluate(why)
    browser.press("ArrowRight" if cell < 7 else "ArrowLeft")
    layer, cell = chosen(browser)
    said = browser.evaluate(why)
    assert said.startswith(f"Cell {layer}·{cell} follows ") and "opened" not in said


def test_gates_are_plotted_and_lead_to_their_cells(show: Show) -> None:
    model = lively(TEXT, cell="lstm")
    browser = show(model, address="#layer=0&cell=3")
    found = saturation(model, model.vocabulary.encode(TEXT), [0, 1])
    points = (
        "[...document.querySelectorAll('#gates figure')].map(f => [f.textContent, "
        "[...f.querySelectorAll('circle')].map(c => ['data-cell', 'cx', 'cy'].map(a => "
        "Number(c.getAttribute(a))))])"
    )
    for layer, gates in enumerate(found):
        browser.press(str(layer))
        plotted = browser.evaluate(points)
        assert [name for name, _ in plotted] == ["i gate", "f gate", "o gate"]
        for gate, (_, drawn) in zip(gates, plotted, strict=True):
            for cell, x, y in drawn:
                assert x == pytest.approx(100 * gate.right[cell], abs=0.051)
                assert y == pytest.approx(100 - 100 * gate.left[cell], abs=0.051)
            assert sorted(int(cell) for cell, _, _ in drawn) == list(range(8))
            assert drawn[-1][0] == chosen(browser)[1]  # above the others
    other = "document.querySelector('#gates circle:not(.chosen)')"
    cell = browser.evaluate(f"Number({other}.dataset.cell)")
    browser.evaluate(f"{other}.dispatchEvent(new MouseEvent('click', {{bubbles: true}}))")
    assert chosen(browser) == (1, cell)


def test_a_cell_without_gates_has_no_plots(show: Show) -> None:
    browser = show(lively(TEXT, cell="rnn"))
    assert browser.evaluate("document.getElementById('saturation').hidden")


def test_errors_are_told_by_kind(show: Show) -> None:
    model = lively(TEXT)
    browser = show(model)
    seen = read(model, model.vocabulary.encode(TEXT), [0])
    table = browser.evaluate(
        "[...document.querySelectorAll('#errors tr')].map(r => "
        "[...r.children].map(c => c.textContent))"
    )
    kinds = by_kind(seen.losses, TEXT)
    assert [line[0] for line in table] == [errors.kind.name for errors in kinds]
    assert [int(line[4]) for line in table] == [errors.number for errors in kinds]
    for line, errors in zip(table, kinds, strict=True):
        share = 100 * errors.loss / seen.losses.sum()
        assert float(line[2].removesuffix(" %")) == pytest.approx(share, abs=0.06)


def expecting(model: CharLM, character: str, logit: float) -> CharLM:
    """The model, with so much more for a character."""
    weights = {name: np.array(w) for name, w in model.rnn.parameters().items()}
    weights["decoder.bias"][model.vocabulary.encode(character)] += logit
    model.rnn.load_parameters(weights)
    return model


def marked(browser: Chromium) -> list[int]:
    """The characters with a frame that is the ink's colour."""
    found: list[int] = browser.evaluate(
        "[...document.querySelectorAll('.char')].filter(c => "
        "getComputedStyle(c.firstChild).outlineStyle === 'solid').map(c => Number(c.dataset.n))"
    )
    return found


def test_errors_are_divided_and_lead_to_the_text(show: Show) -> None:
    model = expecting(lively(TEXT), " ", 8)
    training_text = TEXT[60:] + TEXT[:50] * 3
    browser = show(model, training_text=training_text, address="#layer=1&cell=2")
    seen = read(model, model.vocabulary.encode(TEXT), [0])
    division = divide_errors(np.exp(-seen.losses), TEXT, training_text)
    head, *table = browser.evaluate(
        "[...document.querySelectorAll('#oracles tr:not(.steps)')].map(r => "
        "[...r.children].map(c => c.textContent))"
    )
    assert head == ["removed by", "errors", "share", "left"]
    assert table == [
        [oracle.name, f"{n}", f"{100 * n / division.errors:.1f} %", f"{left}"]
        for oracle, n, left, _ in division.removed
    ]
    told = browser.evaluate("[...document.querySelectorAll('.steps')].map(r => r.textContent)")
    assert told == [
        f"{oracle.step}: "
        + ", ".join(f"{step} ({n})" for step, n in zip(oracle.steps, steps, strict=True) if n)
        for oracle, _, _, steps in division.removed
        if any(steps)
    ]
    predicted, errors = len(TEXT) - 1, division.errors
    share = f"{100 * errors / predicted:.1f} %"
    missed = browser.evaluate("document.getElementById('missed').textContent")
    assert missed == f"{errors} of {predicted} characters ({share})"
    assert browser.evaluate("document.getElementById('contained').hidden")
    assert browser.evaluate("document.getElementById('untold').hidden")
    # the picture: parts as wide as their shares, in the colours of the table
    parts = browser.evaluate(
        "[...document.querySelectorAll('.stack span')].map(s => [s.getBoundingClientRect().width, "
        "getComputedStyle(s).backgroundColor, s.title])"
    )
    counts = [removed.number for removed in division.removed if removed.number]
    width = sum(part[0] for part in parts)
    for (own, _, _), count in zip(parts, counts, strict=True):
        assert own / width == pytest.approx(count / errors, abs=0.01)
    swatches = browser.evaluate(
        "[...document.querySelectorAll('.swatch')].map(s => getComputedStyle(s).backgroundColor)"
    )
    assert len(set(swatches)) == len(swatches)
    assert [part[1] for part in parts] == [
        colour for colour, removed in zip(swatches, division.removed, strict=True) if removed.number
    ]
    said = browser.evaluate("document.querySelector('.stack').getAttribute('aria-label')")
    assert said == f"Shares of the errors: {', '.join(part[2] for part in parts)}"
    # a click marks, another one marks others, and one on the same again none
    assert marked(browser) == []
    present = [i for i, removed in enumerate(division.removed) if removed.number][:2]
    for i in present:
        browser.click(f"[data-oracle='{i}']")
        expected = (np.flatnonzero(division.oracles == i) + 1).tolist()
        assert marked(browser) == expected
        pressed = browser.evaluate(
            "[...document.querySelectorAll('#oracles button')].map(b => b.ariaPressed)"
        )
        assert pressed == ["true" if k == i else "false" for k in range(len(ORACLES))]
    n = expected[0]
    black = "map.getContext('2d').getImageData({}, {}, 1, 1).data.slice(0, 3).join()"
    row = TEXT.count("\n", 0, n)
    column = n - (TEXT.rfind("\n", 0, n) + 1)
    assert browser.evaluate("starts.length - 1") == TEXT.count("\n")  # a line is a row
    assert browser.evaluate(black.format(column, row)) == "27,31,36"
    browser.point(f".char[data-n='{n}']")
    given = 100 * np.exp(-seen.losses[n - 1])
    told = f"an error ({given:.2f} %): {ORACLES[present[1]].name}"
    assert told in browser.evaluate("tip.innerText")
    right = int(np.flatnonzero(division.oracles == NO_ERROR)[0]) + 1
    browser.point(f".char[data-n='{right}']")
    assert "an error" not in browser.evaluate("tip.innerText")
    browser.evaluate("new Promise(done => setTimeout(done, 400))")
    assert browser.evaluate("location.hash").endswith(f"&errors={present[1]}")
    browser.evaluate(f"document.querySelector('[data-oracle=\"{present[1]}\"]').focus()")
    browser.press("Enter")
    assert marked(browser) == []


def test_an_address_leads_to_errors(show: Show) -> None:
    model, text = lively(TEXT), TEXT * 60
    browser = show(model, text, training_text=TEXT[:40], address="#layer=0&cell=1&errors=2")
    codes = browser.evaluate("[...oracles]")
    first = marked(browser)
    assert first and all(codes[n - 1] == 2 for n in first)
    browser.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    browser.settle()
    last = marked(browser)  # rows that come into sight are marked, too
    assert last and all(codes[n - 1] == 2 for n in last) and last[-1] > first[-1]
    for wrong in ("8", "-1", "x", ""):
        browser.evaluate(f"location.hash = '#layer=0&cell=1&errors={wrong}'")
        browser.settle()
        assert marked(browser) == []


def test_without_a_training_text_the_page_says_how_to_divide_the_errors(show: Show) -> None:
    browser = show(lively(TEXT), address="#layer=0&cell=1&errors=2")
    assert browser.evaluate("document.getElementById('oracles').hidden")
    hint = "document.getElementById('untold')"
    assert not browser.evaluate(f"{hint}.hidden")
    assert "--training-text FILE" in browser.evaluate(f"{hint}.innerText")
    assert marked(browser) == []


def test_a_model_without_errors_has_no_table_of_them(show: Show) -> None:
    browser = show(expecting(lively("ab", num_layers=1), "a", 40), "baaa", training_text="ab")
    missed = browser.evaluate("document.getElementById('missed').textContent")
    assert missed == "0 of 3 characters (0.0 %)"
    assert browser.evaluate("document.querySelector('#oracles table').hidden")
    assert browser.evaluate("document.querySelector('.stack').hidden")


def test_the_errors_fit_on_a_phone(show: Show) -> None:
    browser = show(lively(TEXT), training_text=TEXT, size=(360, 780))
    browser.evaluate("document.getElementById('oracles').open = true")
    assert browser.evaluate("document.documentElement.scrollWidth") == 360
    edges = browser.evaluate(
        "[...document.querySelectorAll('#oracles td, #oracles th, .stack, #oracles button')]"
        ".map(e => e.getBoundingClientRect().right)"
    )
    assert len(edges) > 30 and max(edges) <= 360
    contained = "document.getElementById('contained')"
    assert not browser.evaluate(f"{contained}.hidden")
    assert "contains this text" in browser.evaluate(f"{contained}.innerText")


@pytest.mark.parametrize("address", ["#layer=7&cell=1", "#layer=0&cell=x", "#<img src=x>", "#%"])
def test_a_wrong_address_is_none(address: str, show: Show) -> None:
    model = lively(TEXT)
    assert chosen(show(model, address=address)) == chosen(show(model))


def test_the_colours_are_dark_where_the_user_likes_it_dark(show: Show) -> None:
    model = lively(TEXT)
    browser, values = show(model, address="#layer=0&cell=2"), activations(model)
    browser.prefer("dark")
    check_colours(browser, values[0, 2], DARK)
    body = browser.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert body == "rgb(20, 23, 27)"
    browser.prefer("light")
    check_colours(browser, values[0, 2], LIGHT)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_text_can_be_read_on_every_colour(scheme: dict[str, str], show: Show) -> None:
    """A contrast of 4.5 or more (WCAG 2.2, 1.4.3) at both ends and in the middle."""

    def luminance(colour: str) -> float:
        channels = np.array(list(bytes.fromhex(colour[1:]))) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return float(linear @ [0.2126, 0.7152, 0.0722])

    browser = show(lively(TEXT))
    browser.prefer("dark" if scheme is DARK else "light")
    read_style = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
    for name, colour in scheme.items():
        assert browser.evaluate(read_style.format(name)) == colour
        light, dark = sorted(
            (luminance(colour), luminance(browser.evaluate(read_style.format("ink")))), reverse=True
        )
        assert (light + 0.05) / (dark + 0.05) >= 4.5


# ---- guesses and what stands at a character ----


def guesses_at(browser: Chromium, n: int) -> list[tuple[str, str, bool]]:
    """Text, share and whether it came true, of the guesses under character n."""
    found = browser.evaluate(
        f"[...document.querySelectorAll('.char[data-n=\"{n}\"] .guess')].map(g => "
        "[g.textContent, g.style.getPropertyValue('--share'), g.classList.contains('came')])"
    )
    return [tuple(entry) for entry in found]


def visible(text: str) -> str:
    return text.translate({ord(" "): "·", ord("\n"): "↵", ord("\t"): "→"})


def test_guesses_stand_under_the_characters(show: Show) -> None:
    model = lively(TEXT)
    browser = show(model)
    seen = read(model, model.vocabulary.encode(TEXT), [0])
    shares = np.rint(seen.shares * 65535) / 65535  # as the page holds them
    for n in range(len(TEXT)):
        guesses = model.vocabulary.decode(seen.guesses[n])
        came = [guess == TEXT[n + 1 : n + 2] for guess in guesses]
        shown = [f"{share:.3f}" for share in shares[n]]
        assert guesses_at(browser, n) == list(zip(visible(guesses), shown, came, strict=True))
    browser.press("g")
    assert guesses_at(browser, 5) == []
    assert len(colours(browser)) == len(TEXT)
    browser.press("g")
    assert len(guesses_at(browser, 5)) == 5
    choose = "guessing.value = '3'; guessing.dispatchEvent(new Event('change'))"
    browser.evaluate(choose)
    assert guesses_at(browser, 5) == [
        (guess, f"{share:.3f}", model.vocabulary.decode([i]) == TEXT[6])
        for i, guess, share in zip(
            seen.guesses[5][:3],
            visible(model.vocabulary.decode(seen.guesses[5][:3])),
            shares[5],
            strict=False,
        )
    ]


@pytest.mark.parametrize(("height", "guesses"), [(1200, 5), (740, 3), (520, 1), (300, 0)])
def test_a_page_opens_with_more_than_six_rows_in_sight(
    height: int, guesses: int, show: Show
) -> None:
    text = TEXT * 20
    browser = show(lively(text), text, size=(1000, height))
    assert browser.evaluate("guessing.value") == str(guesses)
    below = "innerHeight - document.getElementById('bar').offsetHeight"
    assert browser.evaluate(f"{below} > 6 * rowHeight") or guesses == 0


def test_short_lines_stand_side_by_side(show: Show) -> None:
    """Down the first stripe, then down the next one, then the block below."""
    text = "abcdefghij klm\n" * 200
    browser = show(lively(text), text, address="#guesses=off", size=(1600, 700))
    places = browser.evaluate(
        "[...document.querySelectorAll('.row')].map(r => "
        "[Number(r.firstChild.dataset.n), parseFloat(r.style.left), parseFloat(r.style.top)])"
    )
    assert [n for n, _, _ in places] == sorted(n for n, _, _ in places)
    lefts = sorted({left for _, left, _ in places})
    assert len(lefts) >= 3
    (first, *_), height = places, places[1][2]
    assert first == [0, 0, 0] and height > 0
    for (n, left, top), (after, its_left, its_top) in pairwise(places):
        assert after == n + 15  # a line is a row
        down = its_left == left and its_top == pytest.approx(top + height)
        assert down or its_left == lefts[(lefts.index(left) + 1) % len(lefts)]
    # a long line in ten stays whole
    browser.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    browser.settle()
    assert len(text) - 1 in colours(browser)


def test_long_lines_have_the_whole_width(show: Show) -> None:
    text = (TEXT.replace("\n", " ") * 3)[:180] + "\n"
    browser = show(lively(text), text * 8, size=(1600, 700))
    assert browser.evaluate("stripes") == 1


def test_rows_break_at_lines_and_at_the_edge(show: Show) -> None:
    text = TEXT + TEXT.replace("\n", " ")[:60] + "\n"
    browser = show(lively(text), text)
    rows = "[...document.querySelectorAll('.row')].map(r => [...r.children].map(c => " + (
        "c.firstChild.textContent).join(''))"
    )
    assert browser.evaluate(rows) == visible(text).replace("↵", "↵\n").split()
    browser.resize(390, 800)
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")  # puts all rows in
    narrow = browser.evaluate(rows)
    assert "".join(narrow) == visible(text)
    assert len(narrow) > len(text.splitlines())
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.char')].map(c => c.getBoundingClientRect().right)"
    )
    assert max(boxes) <= 390
    assert browser.evaluate("document.documentElement.scrollWidth") == 390


def test_pointing_tells_the_exact_numbers(show: Show) -> None:
    model = lively(TEXT)
    browser, n = show(model, address="#layer=1&cell=2"), TEXT.index("f(a")
    seen = read(model, model.vocabulary.encode(TEXT), [1])
    browser.point(f".char[data-n='{n}']")
    told = browser.evaluate("tip.innerText")
    cell = seen.activations[0, 2]
    found = re.search(r"cell 1·2: tanh\(c\) = (\S+)", told)
    assert found
    # rounded twice: to 127 steps of the cell's largest value, and to two decimals
    assert float(found[1].replace(MINUS, "-")) == pytest.approx(
        float(cell[n]), abs=float(abs(cell).max()) / 254 + 0.0051
    )
    for line in (
        "“f” U+0066 LATIN SMALL LETTER F",
        f"character {n + 1} of {len(TEXT)}, line 1, column {n + 1}",
        f"“(” came: {100 * np.exp(-seen.losses[n]):.2f} %, a loss of {seen.losses[n]:.3f} nats, "
        f"{seen.losses[n] / np.log(2):.3f} bits",
    ):
        assert line in told
    # in 65,535 steps, and to two decimals
    shown = [float(number) for number in re.findall(r"(\d+\.\d+) %\t", told)]
    assert shown == pytest.approx(100 * seen.shares[n], abs=0.5 * 100 / 65535 + 0.0051)
    browser.press("ArrowRight")
    assert "cell 1·3: tanh(c)" in browser.evaluate("tip.innerText")
    last = len(TEXT) - 1
    browser.point(f".char[data-n='{last}']")
    told = browser.evaluate("tip.innerText")
    assert "line 5, column" in told and "came" not in told
    box = browser.evaluate("JSON.stringify(tip.getBoundingClientRect())")
    assert json.loads(box)["top"] >= 0
    assert json.loads(box)["bottom"] <= 900
    browser.point("h1")
    assert browser.evaluate("tip.hidden")


# ---- what cells follow ----


def test_the_ranking_leads_to_its_cells(show: Show) -> None:
    text = " ".join(f'{"word " * (n * n % 7)}"{"yes " * (n * n % 5)}"' for n in range(40))
    model = lively(text)
    browser, values = show(model, text), activations(model, text)
    features = browser.evaluate("facts.features.map(f => [f.name, f.chance, f.best, f.r])")
    boxes = browser.evaluate(
        "[...document.querySelectorAll('.feature')].map(f => [f.querySelector('h2').firstChild"
        ".textContent, [...f.querySelectorAll('button')].map(b => b.textContent)])"
    )
    minus = str.maketrans("-", MINUS)
    assert boxes == [
        [name, [f"{c // 8}·{c % 8} {r[c]:+.2f}".translate(minus) for c in best]]
        for name, _, best, r in features
    ]
    at = next(i for i, (_, _, best, _) in enumerate(features) if len(best) > 1)
    best = features[at][2][1]
    browser.click(f".feature:nth-child({at + 1}) button:nth-child(2)")
    assert chosen(browser) == divmod(best, 8)
    check_colours(browser, values.reshape(16, -1)[best])
    pressed = f".feature:nth-child({at + 1}) [aria-pressed='true']"
    assert browser.evaluate(f'document.querySelector("{pressed}").textContent') == boxes[at][1][1]
    meters = browser.evaluate("[...document.querySelectorAll('.feature output')].map(o => o.value)")
    assert meters == [f"r {r[best]:+.2f}".translate(minus) for _, _, _, r in features]
    constant = browser.evaluate("constant.textContent")
    assert constant.startswith("The same all over this text: inside '…', inside (…), ")


# ---- long texts ----


def test_a_long_text_is_in_the_document_where_it_is_in_sight(show: Show) -> None:
    text = TEXT * 150
    model = lively(text)
    browser, values = show(model, text, address="#layer=0&cell=4"), activations(model, text)
    assert len(text) > 15_000
    assert len(colours(browser)) < 2000
    browser.press("g")
    assert len(colours(browser)) < 4000
    browser.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    browser.settle()
    found = colours(browser)
    assert len(text) - 1 in found and 0 not in found and len(found) < 4000
    check_colours(browser, values[0, 4])
    browser.press("ArrowRight")
    check_colours(browser, values[0, 5])
    for y in (6000, 5800):  # the document has the order of the text
        browser.evaluate(f"scrollTo(0, {y})")
        browser.settle()
        assert list(colours(browser)) == sorted(colours(browser))
    # guesses again, around the same place
    browser.evaluate("scrollTo(0, 5000)")
    browser.settle()
    in_sight = "Number(document.elementFromPoint(30, 200).closest('.char').dataset.n)"
    before = browser.evaluate(in_sight)
    browser.press("g")
    assert abs(browser.evaluate(in_sight) - before) < 3 * len(TEXT)
    check_colours(browser, values[0, 5])


def test_the_overview_shows_and_leads(show: Show) -> None:
    text = TEXT * 150
    model = lively(text)
    browser, values = show(model, text, address="#layer=0&cell=4"), activations(model, text)
    image = "map.getContext('2d').getImageData(0, 0, map.width, map.height).data"
    pixels = browser.evaluate(f"[...{image}]")
    width = browser.evaluate("map.width")
    for column, row in ((0, 0), (4, 3), (9, 700)):
        n = browser.evaluate(f"starts[{row}] + {column}")
        value, end = values[0, 4, n], LIGHT["positive" if values[0, 4, n] >= 0 else "negative"]
        expected = 255 + (np.array(list(bytes.fromhex(end[1:]))) - 255) * abs(value)
        found = pixels[4 * (row * width + column) :][:4]
        np.testing.assert_allclose(found[:3], expected, atol=1.5)
        assert found[3] == 255
    x, y, height = browser.evaluate(
        "(() => { const b = map.getBoundingClientRect(); return [b.x + 9, b.y, b.height] })()"
    )
    browser.press_mouse(x, y + 0.5 * height)
    middle = np.mean(list(colours(browser)))
    assert 0.4 < middle / len(text) < 0.6


def test_all_of_a_text_is_printed(show: Show) -> None:
    text = TEXT * 30
    browser = show(lively(text), text)
    assert len(colours(browser)) < len(text)
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(colours(browser)) == len(text)
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert len(colours(browser)) < len(text)


# ---- any text ----


def test_a_hostile_text_does_nothing(show: Show) -> None:
    browser = show(lively(HOSTILE), HOSTILE, title=HOSTILE, about={HOSTILE: HOSTILE})
    assert browser.evaluate("typeof window.ran") == "undefined"
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    shown = browser.evaluate("facts.glyphs.map(g => g[0])")
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")  # puts all rows in
    rows = browser.evaluate(
        "[...document.querySelectorAll('.char .glyph')].map(g => g.textContent)"
    )
    assert len(rows) == len(HOSTILE)
    assert set(rows) <= set(shown)
    assert "".join(rows).startswith("</script><script>window.ran=1</script>↵<img·src=x·onerror=")
    places = browser.evaluate(
        "[...document.querySelectorAll('.row')].map(r => [...r.children].map(c => "
        "c.getBoundingClientRect().left))"
    )
    for row in places:  # from left to right, one column after another, whatever the characters are
        np.testing.assert_allclose(np.diff(row), 0.64 * 16, atol=0.1)
    browser.point(f".char[data-n='{HOSTILE.index(chr(0x202E))}']")
    assert "U+202E RIGHT-TO-LEFT OVERRIDE" in browser.evaluate("tip.innerText")
    assert "</script><script>" in browser.evaluate("document.querySelector('h1').textContent")


def test_other_scripts_are_blocked(running: Chromium, tmp_path: Path) -> None:
    """Were something to get into the page after all, the policy would keep it from running."""
    file = tmp_path / "page.html"
    file.write_text(page(lively(TEXT), TEXT), encoding="utf-8")
    running.open(file.as_uri())
    assert complaints(running) == []
    running.evaluate(
        "const put = document.createElement('script'); put.textContent = 'window.ran = 1'; "
        "document.body.append(put)"
    )
    for tag in ("<img src=x onerror=ran=2>", "<b style=color:red>"):
        running.evaluate(f"document.body.insertAdjacentHTML('beforeend', '{tag}')")
    running.settle()
    assert running.evaluate("typeof window.ran") == "undefined"
    failed = [e["params"] for e in running.events if e["method"] == "Network.loadingFailed"]
    assert [failure.get("blockedReason") for failure in failed] == ["csp"]
    blocked = [event["params"]["entry"]["text"] for event in complaints(running)]
    for what in ("inline script", "image", "inline style"):
        assert any("Content Security Policy" in line and what in line for line in blocked), blocked


def test_bytes_are_shown_with_their_characters(show: Show) -> None:
    data = "Grüße, 漢字 😀\r\n".encode() + b"\xff\0"
    browser = show(lively(None), data)
    rows = browser.evaluate(
        "[...document.querySelectorAll('.char .glyph')].map(g => g.textContent)"
    )
    assert " ".join(rows) == ("G r c3 ü c3 ß e , · e6 bc 漢 e5 ad 字 · f0 9f 98 😀 0d ↵ ff 00")
    browser.point(".char[data-n='3']")
    told = browser.evaluate("tip.innerText")
    assert "U+00FC LATIN SMALL LETTER U WITH DIAERESIS, with its last byte 0xbc" in told
    assert f"byte 4 of {len(data)}" in told


def test_the_smallest_page_works(show: Show) -> None:
    browser = show(lively("ab", num_layers=1), "ab")
    assert len(colours(browser)) == 2
    assert chosen(browser) == (0, 0)
    browser.press("ArrowRight")
    assert chosen(browser) == (0, 1)
    assert len(guesses_at(browser, 0)) == 2


def test_a_screenshot_shows_the_colours(show: Show, tmp_path: Path) -> None:
    model = lively(TEXT)
    browser, values = show(model, address="#layer=0&cell=2"), activations(model)
    assert values[0, 2].max() > 0.5 and values[0, 2].min() < -0.3
    picture = browser.screenshot()
    assert picture.startswith(b"\x89PNG")
    pixels = imread(io.BytesIO(picture))[:, :1000, :3]
    red, blue = pixels[..., 0], pixels[..., 2]
    assert ((blue - red) > 0.2).mean() > 0.001
    assert ((red - blue) > 0.2).mean() > 0.001
