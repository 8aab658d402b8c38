"""The page of `charrnn-fast serve` in a browser: texts, colours, choices, keys, a phone's width.

Needs Chromium (Debian's package chromium), and skips without it; `.ci/run` installs it and lets
nothing skip.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import chromium
from charrnn_fast import CharLM
from chromium import Chromium
from pages import HOSTILE, TEXT, lively

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("starlette", reason="Starlette is not installed")

from charrnn_fast.language.batch import Batch, Stream
from charrnn_fast.serve.fields import Limits
from serving import PATIENCE, Server, serving

PROGRAM = chromium.find()
TOKEN = "0123456789abcdef"
LIGHT, DARK = (255, 255, 255), (0x14, 0x17, 0x1B)

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


@pytest.fixture(scope="module")
def model() -> CharLM:
    return lively(TEXT)


@pytest.fixture(scope="module")
def server(model: CharLM) -> Iterator[Server]:
    with serving(model) as started:
        yield started


@pytest.fixture
def show(running: Chromium) -> Iterator[Show]:
    """Opens the page of a server; at the end it must have complained of nothing."""
    ports = []

    def opened(server: Server, width: int = 1200, scheme: str = "light") -> Chromium:
        ports.append(server.port)
        running.resize(width, 844)
        running.prefer(scheme)
        running.open(f"http://localhost:{server.port}/")
        wait(running, "model !== null")
        return running

    yield opened
    told = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert [event for event in running.events if event["method"] in told] == []
    sent = [e["params"] for e in running.events if e["method"] == "Network.requestWillBeSent"]
    urls = {params["request"]["url"] for params in sent}
    for url in urls:
        assert url.startswith((f"http://localhost:{ports[-1]}/", "data:,")), url


def wait(browser: Chromium, expression: str) -> None:
    end = time.monotonic() + PATIENCE
    while not browser.evaluate(expression):
        told = browser.evaluate("document.getElementById('status').textContent")
        assert time.monotonic() < end, f"{expression}; the page says {told!r}"
        time.sleep(0.01)


def put(browser: Chromium, **values: object) -> None:
    for name, value in values.items():
        browser.evaluate(f"$({json.dumps(name)}).value = {json.dumps(str(value))}")


def drawn(browser: Chromium, length: int) -> str:
    """The page's text, once so many characters are drawn."""
    wait(browser, f"drawing === null && drawn.length === {length}")
    text: str = browser.evaluate("$('text').textContent")
    return text


def draw(browser: Chromium, length: int, **values: object) -> str:
    put(browser, length=length, **values)
    browser.click("#draw")
    return drawn(browser, length)


def choices(browser: Chromium) -> list[list[str]]:
    """What is shown of each alternative: its look, its name and its share."""
    found: list[list[str]] = browser.evaluate(
        "[...document.querySelectorAll('.choice')]"
        ".map(c => [...c.children].map(p => p.textContent))"
    )
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.5, "top_k": 4}, {"top_p": 0.7, "prime": 'def f("it"):\n\t'}],
    ids=str,
)
def test_the_text_is_the_models(
    model: CharLM, server: Server, show: Show, options: dict[str, Any]
) -> None:
    browser = show(server)
    seed = 2**63 + 5  # more than JavaScript's numbers hold
    text = draw(browser, 150, seed=seed, **options)
    assert text == model.sample(150, seed=seed, **options)
    status = browser.evaluate("$('status').textContent")
    assert status.startswith("150 characters drawn") and status.endswith(f"seed {seed}")


def test_characters_are_shaded_by_their_probability(server: Server, show: Show) -> None:
    browser = show(server)
    draw(browser, 80, seed=4)
    (text,) = server.sample(length=80, seed=4, alternatives=1)
    colours = browser.evaluate("spans.map(s => getComputedStyle(s).backgroundColor)")
    assert len(colours) == 80
    for colour, symbol in zip(colours, text["symbols"], strict=True):
        numbers = [float(x) for x in re.findall(r"[\d.]+", colour)]
        assert numbers[:3] == [214, 158, 20]
        assert (numbers[3:] or [1.0])[0] == pytest.approx(symbol["probability"], abs=0.006)


def test_a_text_appears_as_it_is_drawn(
    server: Server, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Batch.draw

    streams: set[Stream] = set()

    def slowly(batch: Batch, steps: int) -> Any:
        streams.update(batch.streams)
        time.sleep(0.05)
        return draw(batch, min(steps, 10))

    monkeypatch.setattr(Batch, "draw", slowly)
    browser = show(server)
    put(browser, length=10_000, seed=1)
    browser.click("#draw")
    wait(browser, "drawn.length > 0")
    assert browser.evaluate("drawing !== null && drawn.length < 10000")
    assert browser.evaluate("$('stop').disabled") is False
    browser.click("#stop")
    wait(browser, "drawing === null")
    count = browser.evaluate("drawn.length")
    assert browser.evaluate("$('status').textContent") == f"stopped after {count}; seed 1"
    assert browser.evaluate("$('said').textContent") == f"stopped after {count}; seed 1"
    server.wait_for((0, 0))
    (stream,) = streams
    assert stream.drawn < 10_000


def test_another_character_can_be_chosen(model: CharLM, server: Server, show: Show) -> None:
    browser = show(server)
    text = draw(browser, 60, prime="def f", seed=9)
    told = server.sample(length=60, prime="def f", seed=9, alternatives=8)[0]["symbols"][20]
    browser.click(".char[data-n='20']")
    shown = choices(browser)
    looks = {"\t": "→", "\n": "↵", " ": "·"}
    for row, (symbol, share) in zip(shown, told["alternatives"], strict=False):
        assert row[0] == looks.get(chr(symbol), chr(symbol))
        assert float(row[2].rstrip("% ")) == pytest.approx(100 * share, abs=0.06)
    came = browser.evaluate("document.querySelector('.choice.came .shown').textContent")
    assert came == looks.get(text[25], text[25])
    assert browser.evaluate("document.activeElement.classList.contains('came')")
    other = next(i for i, (symbol, _) in enumerate(told["alternatives"]) if chr(symbol) != text[25])
    chosen = chr(told["alternatives"][other][0])
    browser.evaluate(f"document.querySelectorAll('.choice')[{other}].click()")
    start = text[:25] + chosen
    assert drawn(browser, 121) == model.sample(100, start, seed=9)
    # and again, in what was drawn then
    text = browser.evaluate("$('text').textContent")
    browser.click(".char[data-n='40']")
    browser.evaluate("document.querySelector('.choice').click()")
    assert drawn(browser, 141)[:45] == text[:45]
    # What the fields do not allow leaves the text as it is.
    put(browser, seed="x")
    browser.click(".char[data-n='40']")
    browser.evaluate("document.querySelector('.choice').click()")
    assert browser.evaluate("drawing === null && drawn.length") == 141
    assert "seed must be an integer" in browser.evaluate("$('status').textContent")


def test_any_number_is_a_temperature(model: CharLM, server: Server, show: Show) -> None:
    text = draw(show(server), 30, temperature=0.733, top_p=0.9517, seed=1)
    assert text == model.sample(30, temperature=0.733, top_p=0.9517, seed=1)


def test_escape_closes_the_choices_alone(
    server: Server, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Batch.draw

    def slowly(batch: Batch, steps: int) -> Any:
        time.sleep(0.05)
        return draw(batch, min(steps, 10))

    monkeypatch.setattr(Batch, "draw", slowly)
    browser = show(server)
    put(browser, length=10_000, seed=1)
    browser.click("#draw")
    for focus in ("$('choices').querySelector('button').focus()", "$('seed').focus()"):
        wait(browser, "drawn.length > 5")
        browser.evaluate("openChoices(3)")
        browser.evaluate(focus)
        browser.press("Escape")
        assert browser.evaluate("$('choices').hidden && drawing !== null")
    browser.press("Escape")
    wait(browser, "drawing === null")


def test_it_works_by_keyboard(model: CharLM, server: Server, show: Show) -> None:
    browser = show(server)
    put(browser, length=70, seed=2, prime="return")
    browser.evaluate("$('seed').focus()")
    browser.press("Enter")
    text = drawn(browser, 70)
    assert text == model.sample(70, "return", seed=2)
    for _ in range(9):  # the buttons, then the text's first character
        browser.press("Tab")
        if browser.evaluate("document.activeElement.className") == "char":
            break
    focused = "Number(document.activeElement.dataset.n)"
    assert browser.evaluate(focused) == 0
    for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 69)):
        browser.press(key)
        assert browser.evaluate(focused) == place
    browser.press("ArrowUp")
    line = browser.evaluate(focused)
    assert line < 69
    browser.press("ArrowDown")
    assert browser.evaluate(focused) > line
    browser.press("Home")
    browser.press("ArrowRight")
    browser.press("Enter")
    assert browser.evaluate("!$('choices').hidden")
    browser.press("Escape")
    assert browser.evaluate("$('choices').hidden") and browser.evaluate(focused) == 1
    browser.press("Enter")
    browser.press("ArrowDown")
    name = browser.evaluate("document.activeElement.ariaLabel")
    if ", which was drawn" in name:
        browser.press("ArrowDown")
    look = browser.evaluate("document.activeElement.firstChild.textContent")
    chosen = {"→": "\t", "↵": "\n", "·": " "}.get(look, look)
    browser.press("Enter")
    start = text[:7] + chosen
    assert drawn(browser, 102) == model.sample(100, start, seed=2)
    assert browser.evaluate(focused) == 1


@pytest.mark.parametrize(("scheme", "page"), [("light", LIGHT), ("dark", DARK)])
@pytest.mark.parametrize("width", [390, 1200])
def test_widths_and_schemes(
    server: Server, show: Show, width: int, scheme: str, page: tuple[int, ...]
) -> None:
    browser = show(server, width, scheme)
    draw(browser, 300, seed=3)
    background = "getComputedStyle(document.documentElement).backgroundColor"
    numbers = re.findall(r"\d+", browser.evaluate(background))
    assert tuple(map(int, numbers)) == page
    browser.click(".char[data-n='100']")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    boxes = browser.evaluate(
        "[...document.querySelectorAll('input, textarea, button, .char, #choices')]"
        ".filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect())"
        ".map(b => [b.left, b.right])"
    )
    assert len(boxes) > 300
    assert all(0 <= left <= right <= width for left, right in boxes)
    heights = browser.evaluate(
        "[...document.querySelectorAll('#buttons button, .choice')].map(e => e.offsetHeight)"
    )
    assert min(heights) >= (40 if width == 390 else 24)  # to be hit by a finger, by a mouse


def test_a_hostile_text_does_nothing(show: Show) -> None:
    model = lively(HOSTILE)
    with serving(model) as server:
        browser = show(server)
        prime = "</script><script>window.ran=1</script><img src=x onerror=window.ran=2>"
        text = draw(browser, 400, prime=prime, seed=1, temperature=3)
        assert text.startswith(prime)
        assert browser.evaluate("typeof window.ran") == "undefined"
        assert browser.evaluate("document.querySelectorAll('main img, main script').length") == 0
        expected = server.sample(length=400, prime=prime, seed=1, temperature=3)[0]["text"]
        assert text.replace("d800", "\ud800") == expected
        browser.click(".char[data-n='30']")
        assert len(choices(browser)) >= 8


def test_a_model_of_bytes(show: Show) -> None:
    model = lively(None)
    with serving(model) as server:
        browser = show(server)
        text = draw(browser, 40, prime="é", seed=1)
        (told,) = server.sample(length=40, prime="é", seed=1, alternatives=8)
        looks = [
            chr(symbol["symbol"]) if symbol["symbol"] < 0x80 else f"{symbol['symbol']:02x}"
            for symbol in told["symbols"]
        ]
        whole = re.compile("|".join(f"{c.encode().hex()}" for c in "é")).sub("é", "".join(looks))
        assert text == f"é{whole}"
        browser.click(".char[data-n='10']")
        browser.evaluate("document.querySelector('.choice').click()")
        drawn(browser, 111)
        assert browser.evaluate("drawn[10].symbol") == told["symbols"][10]["alternatives"][0][0]
        # A character's bytes are one, where its last one stands.
        browser.evaluate(
            "append([0xe6, 0xbc, 0xa2].map(symbol => ({symbol, probability: 1, alternatives: []})))"
        )
        last = "spans.slice(-3).map(s => s.textContent)"
        assert browser.evaluate(last) == ["", "", "漢"]
        browser.evaluate("move(spans.length - 3)")
        assert browser.evaluate("document.activeElement.textContent") == "漢"
        # Without its last one they are bytes again, and with it a character.
        browser.evaluate("cut(spans.length - 1)")
        assert browser.evaluate(last)[1:] == ["e6", "bc"]
        browser.evaluate("append([{symbol: 0xa2, probability: 1, alternatives: []}])")
        assert browser.evaluate(last) == ["", "", "漢"]
        browser.evaluate("cut(spans.length)")
        assert browser.evaluate(last) == ["", "", "漢"]
        browser.evaluate(
            "append([0xef, 0xbb, 0xbf].map(symbol => ({symbol, probability: 1, alternatives: []})))"
        )
        assert browser.evaluate(last) == ["", "", "\ufeff"]
        browser.evaluate("append([{symbol: 0, probability: 1, alternatives: []}])")
        assert browser.evaluate("spans.at(-1).getBoundingClientRect().width") > 3


def test_errors_are_shown(model: CharLM, running: Chromium) -> None:
    with serving(model, Limits(length=50, texts=1, waiting=0), token=TOKEN.encode()) as server:
        running.resize(1200, 844)
        running.open(f"http://localhost:{server.port}/")
        wait(running, "$('status').classList.contains('error')")
        assert "the server takes a token" in running.evaluate("$('status').textContent")
        assert running.evaluate("$('token-label').checkVisibility()")
        put(running, token=TOKEN, length=20, seed=1)
        running.click("#draw")
        assert drawn(running, 20) == model.sample(20, seed=1)
        put(running, prime="%")
        running.click("#draw")
        wait(running, "$('status').classList.contains('error')")
        assert "prime has the character '%'" in running.evaluate("$('status').textContent")
        put(running, prime="", seed="x")
        running.click("#draw")
        assert "seed must be an integer" in running.evaluate("$('status').textContent")
        put(running, seed="", length=51)  # which the browser itself refuses
        running.click("#draw")
        assert running.evaluate("$('length').validity.rangeOverflow")
