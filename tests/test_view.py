"""`charrnn_fast.view`: the page's contents, and the command's output, files and errors.

How a browser shows the page is tested in test_view_browser.py.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import charrnn_fast as cf
from charrnn_fast.cli import main
from charrnn_fast.view import _json, divide_errors, page
from charrnn_fast.view.errors import KINDS, by_kind
from charrnn_fast.view.features import FEATURES, rank
from charrnn_fast.view.glyphs import of_byte, of_character, show
from charrnn_fast.view.reading import is_bounded, quantity, read, saturation
from pages import HOSTILE, NETWORKS, TEXT, lively

# ---- what the model computes ----


@pytest.mark.parametrize("options", NETWORKS, ids=str)
def test_activations_are_the_states_of_single_steps(options: dict[str, Any]) -> None:
    model = lively(TEXT, **options)
    ids = model.vocabulary.encode(TEXT)
    seen = read(model, ids, [1, 0])
    state: Any = None
    for n, token in enumerate(ids):
        logits, state = model.rnn.forward(np.array([[token]], np.int32), state, keep=False)
        cells = np.tanh(state[1]) if isinstance(state, tuple) else state
        np.testing.assert_allclose(seen.activations[:, :, n], cells[[1, 0], 0], rtol=1e-6)
        shares = np.exp(logits[0, 0].astype(np.float64))
        shares /= shares.sum()
        np.testing.assert_allclose(seen.shares[n], np.sort(shares)[::-1][:5], rtol=1e-5)
        np.testing.assert_array_equal(shares[seen.guesses[n]], np.sort(shares)[::-1][:5])
        if n + 1 < len(ids):
            assert seen.losses[n] == pytest.approx(-np.log(shares[ids[n + 1]]), rel=1e-5)
    assert seen.activations.dtype == np.float32
    assert seen.losses.mean() == pytest.approx(model.evaluate(TEXT), rel=1e-5)


def test_tanh_c_is_shown_of_lstms_and_h_of_the_others() -> None:
    shown = {cell: quantity(cf.RNN(2, 2, cell=cell)) for cell in ("rnn", "gru")}
    assert shown == {"rnn": "h", "gru": "h"}
    for cell in ("lstm", "peephole_lstm", "coupled_lstm"):
        assert quantity(cf.RNN(2, 2, cell=cell)) == "tanh(c)"
    assert is_bounded(cf.RNN(2, 2)) and not is_bounded(cf.RNN(2, 2, nonlinearity="relu"))


@pytest.mark.parametrize(("cell", "letters"), [("lstm", "ifo"), ("gru", "rz"), ("rnn", "")])
def test_saturation_counts_how_often_gates_are_open_and_closed(cell: str, letters: str) -> None:
    """Of both layers, from the weights and the states of single steps."""
    model = lively(TEXT, cell=cell)
    ids, weights = model.vocabulary.encode(TEXT), model.rnn.parameters()
    gates = model.rnn.kind.gates
    values = np.empty((2, len(ids), len(gates), 8))
    state: Any = None
    hidden = np.zeros((2, 8))
    for n, token in enumerate(ids):
        before = hidden
        _, state = model.rnn.forward(np.array([[token]], np.int32), state, keep=False)
        hidden = (state[0] if isinstance(state, tuple) else state)[:, 0].astype(np.float64)
        read_by = np.eye(len(model.vocabulary))[token], hidden[0]
        for layer in range(2):
            W_ih, W_hh, b_ih, b_hh = (
                weights.get(f"{name}_l{layer}", np.zeros(1)).astype(np.float64)
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            sums = W_ih @ read_by[layer] + b_ih + W_hh @ before[layer] + b_hh
            values[layer, n] = 1 / (1 + np.exp(-sums.reshape(len(gates), 8)))
    found = saturation(model, ids, [1, 0])
    for layer, its in zip([1, 0], found, strict=True):
        assert "".join(gate.gate for gate in its) == letters
        for gate, left, right in its:
            expected = values[layer, :, gates.index(gate)]
            np.testing.assert_allclose(left, (expected < 0.1).mean(0))
            np.testing.assert_allclose(right, (expected > 0.9).mean(0))
    if letters:
        assert any(
            (gate.left > 0).any() and (gate.right > 0).any() for its in found for gate in its
        )


def test_losses_are_told_by_the_kind_of_character() -> None:
    text = 'Ab  7.\n\t"c_1"'
    losses = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048.0])
    found = {errors.kind.name: (errors.number, errors.loss) for errors in by_kind(losses, text)}
    assert found == {
        "in a word": (2, 1 + 512),  # b, _
        "blank": (2, 2 + 4),
        "digit": (2, 8 + 1024),
        "other sign": (1, 16),
        "line end": (1, 32),
        "start of a line": (1, 64),
        "quote or bracket": (2, 128 + 2048),
        "start of a word": (1, 256),
    }
    assert [errors.kind.name for errors in by_kind(losses, text)][:2] == [
        "quote or bracket",
        "digit",
    ]
    for kind in KINDS[:-1]:
        assert kind.name in found


def test_blocks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(TEXT)
    ids = model.vocabulary.encode(TEXT)
    whole = read(model, ids, [0])
    monkeypatch.setattr("charrnn_fast.view.reading._LOGITS_AT_ONCE", 7 * len(model.vocabulary))
    for one, other in zip(whole, read(model, ids, [0]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_state_that_step_carries_stays() -> None:
    model = lively(TEXT)
    model.rnn.step(1)
    before = model.rnn.state
    page(model, TEXT)
    np.testing.assert_array_equal(model.rnn.state, before)


def test_a_model_of_two_symbols_has_two_guesses() -> None:
    model = lively("ab")
    seen = read(model, model.vocabulary.encode("abba"), [0])
    assert seen.guesses.shape == (4, 2)
    np.testing.assert_allclose(seen.shares.sum(1), 1)
    assert facts(page(model, "abba"))["guesses"] == 2


# ---- features ----


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ('inside "…"', 'a "b" c', "0011000"),
        ('inside "…"', '"a\\"b"c', "1111100"),
        ('inside "…"', "a “b” c", "0011000"),
        ("inside '…'", "it's 'a' b", "0000011000"),
        ("inside '…'", "'a\nb", "1100"),
        ("inside '…'", "'a\\'b'c", "1111100"),
        ("inside (…)", "a(b(c)d)e", "011111100"),
        ("inside (…)", ")a(b", "0011"),
        ("inside […]", "a[b](c]", "0110000"),
        ("inside {…}", "{a}b", "1100"),
        ("comment #", "a # b\nc", "0011100"),
        ("comment #", "a:#fff", "000000"),
        ("comment //", "a/ // b\nc", "000011100"),
        ("comment //", "http://a", "00000000"),
        ("comment //", "//a", "011"),
        ("position in the line", "ab\ncd\n\ne", "12012001"),
        ("indentation", "  a b\n\tc\n", "122220110"),
        ("newline", "a\n\nb", "0110"),
        ("in a word", "a_1 é-", "111010"),
        ("position in the word", "ab c\nd", "120101"),
        ("capital", "aBÉ1", "0110"),
        ("digit", "a1 2", "0101"),
    ],
)
def test_features_are_what_their_names_say(name: str, text: str, expected: str) -> None:
    (feature,) = (feature for feature in FEATURES if feature.name == name)
    assert "".join(str(int(value)) for value in feature.measure(text)) == expected


def test_every_feature_is_tested() -> None:
    (mark,) = test_features_are_what_their_names_say.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in mark.args[1]} == {feature.name for feature in FEATURES}


# Not periodic: what returns at equal distances would fit its moved copies as well as itself.
QUOTES = " ".join(f'{"word " * (n * n % 7)}"{"yes " * (n * n % 5)}"' for n in range(40))


def test_ranks_find_the_cell_that_follows() -> None:
    random = np.random.default_rng(1)
    cells = random.uniform(-1, 1, (40, len(QUOTES))).astype(np.float32)
    (quotes,) = (f for f in FEATURES if f.name == 'inside "…"')
    inside = np.array(list(quotes.measure(QUOTES)), np.float32)
    cells[17] = 0.3 - 0.5 * inside + 0.05 * cells[17]
    cells[5] = 0.8  # never changes
    rankings, constant = rank(cells, QUOTES)
    found = {ranking.feature.name: ranking for ranking in rankings}
    ranking = found['inside "…"']
    assert ranking.best()[0] == 17
    assert ranking.correlations[17] == pytest.approx(np.corrcoef(cells[17], inside)[0, 1], abs=1e-5)
    assert ranking.correlations[17] < -0.98
    assert ranking.correlations[5] == 0
    assert not any(5 in ranking.best() for ranking in rankings)
    assert {feature.name for feature in constant} >= {"inside (…)", "newline", "digit"}
    assert not {feature.name for feature in constant} & set(found)


def test_chance_is_what_moved_features_reach() -> None:
    random = np.random.default_rng(2)
    cells = random.uniform(-1, 1, (5, 400)).astype(np.float32)
    text = QUOTES[:400]
    (ranking,) = (r for r in rank(cells, text)[0] if r.feature.name == "in a word")
    values = np.array(list(ranking.feature.measure(text)))
    moved = [np.roll(values, i * 400 // 21) for i in range(1, 21)]
    expected = max(abs(np.corrcoef(cell, m)[0, 1]) for cell in cells for m in moved)
    assert ranking.chance == pytest.approx(expected, abs=1e-5)


def test_a_slow_feature_has_a_high_chance_level() -> None:
    """Among slow cells one always fits a feature that changes twice, and it proves nothing."""
    text = "a" * 300 + '"' + "a" * 300 + '"' + "a" * 300
    steps = np.linspace(0, 2 * np.pi, len(text), dtype=np.float32)
    cells = np.stack([np.cos(steps + phase) for phase in np.arange(8)])
    (ranking,) = (r for r in rank(cells, text)[0] if r.feature.name == 'inside "…"')
    assert np.abs(ranking.correlations).max() > 0.7
    assert ranking.chance > 0.7


def test_two_characters_prove_nothing() -> None:
    rankings, _ = rank(np.array([[-1, 1]], np.float32), "a\n")
    assert rankings
    assert all(ranking.best() == [] for ranking in rankings)


# ---- glyphs ----


@pytest.mark.parametrize(
    ("character", "shown", "look", "name"),
    [
        ("a", "a", "plain", "U+0061 LATIN SMALL LETTER A"),
        (" ", "·", "faint", "U+0020 SPACE"),
        ("\t", "→", "faint", "U+0009 TAB"),
        ("\n", "↵", "faint", "U+000A LINE FEED"),
        ("\r", "0d", "hex", "U+000D CARRIAGE RETURN"),
        ("\0", "00", "hex", "U+0000 NULL"),
        ("\x01", "01", "hex", "U+0001 control character"),
        ("\x85", "85", "hex", "U+0085 control character"),
        ("\u00a0", "⍽", "faint", "U+00A0 NO-BREAK SPACE"),
        ("\u0301", "◌\u0301", "plain", "U+0301 COMBINING ACUTE ACCENT"),
        ("\u200f", "▯", "faint", "U+200F RIGHT-TO-LEFT MARK"),
        ("\u202e", "▯", "faint", "U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("\u2028", "▯", "faint", "U+2028 LINE SEPARATOR"),
        ("\ud800", "▯", "faint", "U+D800 lone surrogate"),
        ("\ue000", "▯", "faint", "U+E000 private use"),
        ("\u0378", "▯", "faint", "U+0378 unassigned"),
        ("漢", "漢", "wide", "U+6F22 CJK UNIFIED IDEOGRAPH-6F22"),
        ("😀", "😀", "wide", "U+1F600 GRINNING FACE"),
    ],
)
def test_every_character_can_be_seen(character: str, shown: str, look: str, name: str) -> None:
    assert of_character(character) == (shown, name, look)


def test_bytes_are_shown_in_hex_and_their_character_on_the_last() -> None:
    data = "aü€\n".encode() + b"\xff\xe2\x82"
    vocabulary = cf.Vocabulary.from_bytes()
    ids = vocabulary.encode(data)
    shown = show(vocabulary, ids, ids[:, None].astype(np.int64))
    glyphs = [shown.table[i] for i in shown.text]
    assert [glyph.shown for glyph in glyphs] == [
        *("a", "c3", "ü", "e2", "82", "€", "↵"),
        *("ff", "e2", "82"),  # no character, and the first two bytes of one that is cut
    ]
    assert glyphs[2].name == "U+00FC LATIN SMALL LETTER U WITH DIAERESIS, with its last byte 0xbc"
    assert shown.table[shown.newline].shown == "↵"
    # a guess is always one byte
    assert [shown.table[i] for i in shown.guesses[:, 0]] == [of_byte(byte) for byte in data]


def test_a_text_without_lines_has_no_newline() -> None:
    vocabulary = cf.Vocabulary.from_text("ab↵")
    ids = vocabulary.encode("ab↵")
    assert show(vocabulary, ids, ids[:, None].astype(np.int64)).newline == -1


# ---- the page ----


class Parsed(HTMLParser):
    """The tags of a page with their attributes, its scripts by id, and its texts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.contents: dict[str, str] = {}
        self.comments: list[str] = []
        self._open = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        self.contents[self._open] = self.contents.get(self._open, "") + data


def facts(source: str) -> Any:
    return json.loads(Parsed(source).contents["facts"])


def array(source: str, name: str) -> NDArray[Any]:
    """An array of a page as its script reads it."""
    parsed = Parsed(source)
    (kind,) = (a["data-type"] for _, a in parsed.tags if a.get("id") == f"data-{name}")
    dtypes = {"Int8Array": "i1", "Uint8Array": "u1", "Uint16Array": "<u2", "Float32Array": "<f4"}
    assert kind is not None
    return np.frombuffer(base64.b64decode(parsed.contents[f"data-{name}"]), dtypes[kind])


def test_the_page_holds_what_the_model_computed() -> None:
    model = lively(TEXT)
    ids = model.vocabulary.encode(TEXT)
    source = page(model, TEXT)
    held, seen = facts(source), read(model, ids, [0, 1])
    cells = seen.activations.reshape(16, len(TEXT))
    scales = np.array(held["scales"])
    np.testing.assert_allclose(scales, np.abs(cells).max(1), rtol=1e-3)
    levels = array(source, "levels").reshape(16, len(TEXT))
    assert (np.abs(levels).max(1) == 127).all()
    error = np.abs(levels / 127 * scales[:, None] - cells)
    assert (error <= scales[:, None] * (0.5 / 127 + 1e-3)).all()
    shown = [glyph[0] for glyph in held["glyphs"]]
    visible = TEXT.translate({ord(" "): "·", ord("\n"): "↵", ord("\t"): "→"})
    assert "".join(shown[i] for i in array(source, "text")) == visible
    shares = array(source, "shares").reshape(len(TEXT), 5)
    np.testing.assert_allclose(shares / 65535, seen.shares, atol=0.6 / 65535)
    np.testing.assert_allclose(array(source, "losses"), seen.losses, rtol=1e-6)
    came = array(source, "came")
    for n, k in enumerate(came):
        hit = [*seen.guesses[n], -1].index(ids[n + 1]) if ids[n + 1] in seen.guesses[n] else 255
        assert k == hit
    assert (held["layers"], held["cells"], held["quantity"]) == ([0, 1], 8, "tanh(c)")
    loss = model.evaluate(TEXT)
    assert f"<dd>{loss:.4f} nats per character ({loss / np.log(2):.4f} bits)</dd>" in source


def test_the_page_divides_the_errors_where_it_has_the_training_text() -> None:
    model = lively(TEXT)
    training_text = TEXT[60:] + TEXT[:50] * 3
    seen = read(model, model.vocabulary.encode(TEXT), [0])
    division = divide_errors(np.exp(-seen.losses), TEXT, training_text)
    source = page(model, TEXT, training_text=training_text)
    held = facts(source)["division"]
    assert held["predicted"] == len(TEXT) - 1
    assert held["errors"] == division.errors > 0
    assert held["contained"] is False
    assert [entry["name"] for entry in held["removed"]] == [r.oracle.name for r in division.removed]
    for entry, removed in zip(held["removed"], division.removed, strict=True):
        assert (entry["count"], entry["remaining"]) == (removed.number, removed.remaining)
        assert [tuple(pair) for pair in entry["steps"]] == list(
            zip(removed.oracle.steps, removed.steps, strict=True)
        )
    np.testing.assert_array_equal(array(source, "oracles"), division.oracles)
    assert facts(page(model, TEXT, training_text=TEXT))["division"]["contained"] is True
    without = page(model, TEXT)
    assert "division" not in facts(without)
    assert 'id="data-oracles"' not in without


def test_errors_of_bytes_are_divided_by_bytes() -> None:
    """Letters above 127 stay what they are, though they are all shown as letters."""
    model = lively(None)
    text, training_text = "für tür für".encode(), "tor für\n".encode() * 6
    seen = read(model, model.vocabulary.encode(text), [0])
    source = page(model, text, training_text=training_text)
    expected = divide_errors(np.exp(-seen.losses), text, training_text)
    np.testing.assert_array_equal(array(source, "oracles"), expected.oracles)
    assert page(model, text.decode(), training_text=training_text.decode()) == source


def test_an_unknown_symbol_stands_for_both_texts_rare_characters() -> None:
    vocabulary = cf.Vocabulary.from_text("ababab q", min_count=2)
    model = cf.CharLM(vocabulary, 4, 1)
    given = [page(model, text, training_text=training) for text, training in (("aQb", "a!b"),)]
    assert given == [page(model, "a\ufffdb", training_text="a\ufffdb")]
    assert facts(given[0])["division"]["contained"] is True


def test_some_layers_are_shown_alone() -> None:
    model = lively(TEXT, num_layers=3)
    source = page(model, TEXT, layers=[2, 1, 2])
    held = facts(source)
    assert held["layers"] == [1, 2]
    seen = read(model, model.vocabulary.encode(TEXT), [1, 2])
    np.testing.assert_allclose(held["scales"], np.abs(seen.activations).max(2).ravel(), rtol=1e-3)


def test_a_page_is_the_same_every_time() -> None:
    assert page(lively(TEXT), TEXT) == page(lively(TEXT), TEXT)


def test_the_page_loads_nothing_and_runs_its_own_script_alone() -> None:
    source = page(lively(TEXT), TEXT)
    parsed = Parsed(source)
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert not {"src", "href", "style", "onclick", "onload"} & set(attributes), tag
    assert "://" not in source
    (policy,) = (
        a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    script = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    style = re.findall(r"<style>(.*?)</style>", source, re.DOTALL)
    assert len(script) == len(style) == 1
    hashes = [base64.b64encode(hashlib.sha256(s[0].encode()).digest()) for s in (script, style)]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{hashes[0].decode()}'; "
        f"style-src 'sha256-{hashes[1].decode()}'; base-uri 'none'; form-action 'none'"
    )
    assert "innerHTML" not in source and "eval(" not in source


def test_a_hostile_text_changes_no_tag() -> None:
    harmless, hostile = "a" * len(HOSTILE), HOSTILE
    model = lively(HOSTILE + "a")
    about = {"text": "a"}
    before = Parsed(page(model, harmless, title="a", about=about))
    source = page(model, hostile, title=HOSTILE, about={HOSTILE: HOSTILE})
    after = Parsed(source)
    assert [tag for tag, _ in after.tags] == [tag for tag, _ in before.tags]
    assert after.comments == []
    assert "window.ran" in after.contents["title"]
    shown = [glyph[0] for glyph in facts(source)["glyphs"]]
    assert "".join(shown[i] for i in array(source, "text")).startswith("</script><script>window.")
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", source)
    assert after.contents["facts"].isascii()


def test_json_cannot_end_its_script() -> None:
    value = ["</script><!-- ]]> &amp; \u2028\ud800", 1.5]
    assert not re.search("[<>&\u2028\ud800]", _json(value))
    assert json.loads(_json(value)) == value


def test_what_is_put_in_is_not_filled_again() -> None:
    model = lively("a{script}")
    source = page(model, "a{{script}}", title="{{facts}}{{nothing}}")
    assert "<h1>{{facts}}{{nothing}}</h1>" in source
    assert source.count("</script>") == page(model, "aa").count("</script>")


def test_wrong_arguments_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(TEXT)
    with pytest.raises(TypeError, match="model must be a CharLM, got RNN"):
        page(model.rnn, TEXT)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="text must be a str, got bytes"):
        page(model, b"the")
    with pytest.raises(ValueError, match=r"text has the character 'Q' \(U\+0051\) at position 1"):
        page(model, "tQ")
    for text in ("", "t"):
        with pytest.raises(
            ValueError, match=f"text must have 2 characters or more, got {len(text)}"
        ):
            page(model, text)
    with pytest.raises(ValueError, match=r"layers\[1\] must be in 0 to 1, got 2"):
        page(model, TEXT, layers=[0, 2])
    with pytest.raises(ValueError, match="layers must have one or more of 0 to 1, got none"):
        page(model, TEXT, layers=[])
    with pytest.raises(TypeError, match="title must be a str, got int"):
        page(model, TEXT, title=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="about must be a mapping of str to str, got list"):
        page(model, TEXT, about=["a"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"training_text has the character 'Q' \(U\+0051\) at pos"):
        page(model, TEXT, training_text="tQ")
    with pytest.raises(ValueError, match="training_text must have 1 character or more, got none"):
        page(model, TEXT, training_text="")
    with pytest.raises(TypeError, match="training_text must be a str, got bytes"):
        page(model, TEXT, training_text=b"the")
    monkeypatch.setattr("charrnn_fast.view._MOST_ACTIVATIONS", 1000)
    with pytest.raises(ValueError, match=r"at most 1,000 activations, got .* 2 layer\(s\) of 8 ce"):
        page(model, TEXT)


def test_weights_that_are_not_finite_are_told() -> None:
    model = lively(TEXT)
    weights = {name: np.array(w) for name, w in model.rnn.parameters().items()}
    weights["weight_hh_l0"][0, 0] = np.nan
    model.rnn.load_parameters(weights)
    with pytest.raises(FloatingPointError, match="activations are no longer finite on this text"):
        page(model, TEXT)


# ---- the command ----


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    lively(TEXT).save(path)
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "t<&>.txt"
    path.write_text(TEXT)
    return path


def test_view_writes_a_page(
    tmp_path: Path, model: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["view", str(model), str(text), "-o", str(out)]) == 0
    size = f"{out.stat().st_size / 1000:.3g} kB"
    assert capsys.readouterr() == (f"saved to {out} ({size})\n", "")
    source = out.read_text(encoding="utf-8")
    loaded = cf.CharLM.load(model)
    for line in (
        "<title>m.safetensors reads t&lt;&amp;&gt;.txt</title>",
        "<dt>model</dt><dd>m.safetensors, lstm, 2 layers of 8, float32: "
        f"{loaded.num_parameters:,} parameters</dd>",
        f"<dt>text</dt><dd>t&lt;&amp;&gt;.txt, {len(TEXT)} characters</dd>",
        f'<meta name="generator" content="charrnn-fast view {cf.__version__}">',
    ):
        assert line in source
    assert sorted(p.name for p in tmp_path.iterdir()) == [model.name, "page.html", text.name]


def test_view_tells_what_it_cuts(
    tmp_path: Path, model: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    view = ["view", str(model), str(text), str(text), "-o", str(out)]
    assert main([*view, "--start", "3", "--length", "20", "--layers", "1"]) == 0
    told = f"characters 4 to 23 of {2 * len(TEXT)}"
    assert f"text        {told}; --start and --length choose others\n" in capsys.readouterr().out
    source = out.read_text(encoding="utf-8")
    assert f"<dd>t&lt;&amp;&gt;.txt, t&lt;&amp;&gt;.txt, {told}</dd>" in source
    held = facts(source)
    assert held["layers"] == [1]
    shown = "".join(held["glyphs"][i][0] for i in array(source, "text"))
    assert shown == TEXT[3:23].replace(" ", "·").replace("\n", "↵").replace("\t", "→")
    loss = cf.CharLM.load(model).evaluate(TEXT[3:23])
    assert f"{loss:.4f} nats" in source


def test_view_takes_the_training_part_of_the_models_own_text(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another text, and where the validation has a text of its own, all is for training."""
    own, out, size = tmp_path / "own.safetensors", tmp_path / "page.html", len(TEXT)
    other = tmp_path / "other.txt"
    other.write_text(TEXT[:-1] + " ")
    small = ["--hidden-size", "4", "--num-layers", "1", "--steps", "1", "--seq-len", "8"]
    train = ["train", str(text), "-o", str(own), "--overwrite", *small, "--batch-size", "2"]
    view = ["view", str(own), str(other), "-o", str(out), "--training-text"]
    model: Any = None

    def check(said: str, training_text: str) -> None:
        assert capsys.readouterr().out.startswith(f"trained on  {said}\nsaved to")
        (line,) = re.findall(
            "<dt>trained on</dt><dd>(.*?)</dd>", source := out.read_text(encoding="utf-8")
        )
        assert line.endswith(f", {said}")
        seen = read(model, model.vocabulary.encode(other.read_text()), [0])
        division = divide_errors(np.exp(-seen.losses), other.read_text(), training_text)
        np.testing.assert_array_equal(array(source, "oracles"), division.oracles)

    for more, share in (([], 0.9), (["--split", "0.5,0.25,0.25"], 0.5)):
        assert main([*train, *more]) == 0
        model = cf.CharLM.load(own)
        capsys.readouterr()
        first = int(size * share)
        assert main([*view, str(text)]) == 0
        check(f"the first {first} of {size} characters, its training part", TEXT[:first])
        assert main([*view, str(other)]) == 0
        check(f"{size} characters", other.read_text())
    assert main([*view, str(text), str(other)]) == 0
    check(f"{2 * size} characters", TEXT + other.read_text())
    assert main([*train, "--validation", str(other)]) == 0
    model = cf.CharLM.load(own)
    capsys.readouterr()
    assert main([*view, str(text)]) == 0
    check(f"{size} characters", TEXT)


def test_view_leaves_out_what_the_training_left_out(
    tmp_path: Path, model: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, own, out = tmp_path / "more.txt", tmp_path / "own", tmp_path / "page.html"
    more.write_text(TEXT + "QQ" + TEXT)
    options = ["--steps", "1", "--seq-len", "8", "--batch-size", "2", "--allow-unknown"]
    train = ["train", str(more), "-o", str(own), "--init-from", str(model), *options]
    assert main(train) == 0
    capsys.readouterr()
    assert main(["view", str(own), str(text), "--training-text", str(more), "-o", str(out)]) == 0
    size = 2 * len(TEXT)
    told = f"the first {int(size * 0.9)} of {size} characters, its training part"
    assert f"trained on  {told}\n" in capsys.readouterr().out


def test_view_replaces_pages_and_nothing_else(
    tmp_path: Path, model: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    view = ["view", str(model), str(text), "-o"]
    out.touch()
    assert main([*view, str(out)]) == 0
    first = out.read_bytes()
    assert main([*view, str(out), "--length", "9"]) == 0
    assert out.read_bytes() != first
    capsys.readouterr()
    other = tmp_path / "other.html"
    other.write_text("<!doctype html><title>mine</title>")
    for path in (other, text, model):
        before = path.read_bytes()
        assert main([*view, str(path)]) == 2
        assert capsys.readouterr().err == (
            f"charrnn-fast: error: {path}: this file is no page of charrnn-fast view; it is not "
            "overwritten\n"
        )
        assert path.read_bytes() == before


def test_a_link_stays_a_link(tmp_path: Path, model: Path, text: Path) -> None:
    (tmp_path / "folder").mkdir()
    link, page_file = tmp_path / "link.html", tmp_path / "folder" / "page.html"
    link.symlink_to(page_file)
    assert main(["view", str(model), str(text), "-o", str(link)]) == 0
    assert link.is_symlink() and page_file.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_failed_write_leaves_the_old_page(
    tmp_path: Path,
    model: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "page.html"
    view = ["view", str(model), str(text), "-o", str(out)]
    assert main(view) == 0
    before, names = out.read_bytes(), sorted(tmp_path.iterdir())

    def full(old: str, new: str) -> None:
        raise OSError(28, "No space left on device", old)

    monkeypatch.setattr("os.replace", full)
    assert main([*view, "--length", "9"]) == 2
    assert capsys.readouterr().err == f"charrnn-fast: error: {out}: No space left on device\n"
    assert out.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}"], "required: TEXT"),
        (["{model}", "{text}", "--length", "1"], "--length: must be >= 2, got 1"),
        (["{model}", "{text}", "--start", "-1"], "--start: must be >= 0, got -1"),
        (["{model}", "{text}", "--start", "9999"], "of which --start 9999 leaves 0: to look in"),
        (["{model}", "{text}", "--layers", "x"], "--layers: invalid list of layers value: 'x'"),
        (["{model}", "{text}", "--layers", "0,2"], "--layers must be in 0 to 1, got 2"),
        (["{model}", "{text}", "--layers", "-1"], "--layers: "),
        (["{model}", "{folder}/no"], "no: No such file or directory"),
        (["{folder}/no", "{text}"], "no: No such file or directory"),
        (["{text}", "{text}"], ".txt is no charrnn_fast checkpoint"),
        (["{model}", "{empty}"], "the text is empty: {empty}"),
        (["{model}", "{one}"], "the text has 1 characters, of which --start 0 leaves 1"),
        (["{model}", "{other}"], "other has the character 'Q' (U+0051) at position 2"),
        (["{model}", "{text}", "--training-text"], "--training-text: expected at least one argum"),
        (["{model}", "{text}", "--training-text", ""], "--training-text: must be the name of a f"),
        (["{model}", "{text}", "--training-text", "{folder}/no"], "no: No such file or directory"),
        (["{model}", "{text}", "--training-text", "{empty}"], "the text is empty: {empty}"),
        (["{model}", "{text}", "--training-text", "{other}"], "other has the character 'Q'"),
        (["{model}", "-", "--training-text", "-"], "standard input is named twice"),
        # the output is looked at before anything is read
        (["{folder}/no", "{text}", "-o", "{folder}"], "this is a folder, not a file"),
        (["{folder}/no", "{text}", "-o", "{folder}/a/b"], "its folder does not exist"),
        (["{folder}/no", "{text}", "-o", "{text}"], "it is not overwritten"),
        (["{folder}/no", "{text}", "-o", "/proc/x"], "/proc/x: "),
    ],
)
def test_errors_are_one_clear_line(
    tmp_path: Path,
    model: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    contents = {"empty": "", "one": "t", "other": "thQ"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    names = {name: tmp_path / name for name in contents}
    names |= {"model": model, "text": text, "folder": tmp_path}
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    try:
        status: object = main(["view", *(a.format(**names) for a in arguments)])
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("charrnn-fast: error: ") and error.count("\n") == 1
    assert message.format(**names) in error
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_byte_model_looks_into_any_file(tmp_path: Path) -> None:
    data, path, out = tmp_path / "data", tmp_path / "m", tmp_path / "page.html"
    data.write_bytes(b"\xff\xfe\0a\xc3\xbc\r\n" * 3)
    lively(None).save(path)
    assert main(["view", str(path), str(data), "-o", str(out)]) == 0
    source = out.read_text(encoding="utf-8")
    shown = [facts(source)["glyphs"][i][0] for i in array(source, "text")]
    assert shown == ["ff", "fe", "00", "a", "c3", "ü", "0d", "↵"] * 3


def test_a_files_name_need_not_be_text(tmp_path: Path, model: Path) -> None:
    name = b"t\xff.txt"
    path = Path(bytes(tmp_path).decode()) / name.decode("utf-8", "surrogateescape")
    path.write_text(TEXT)
    out = tmp_path / "page.html"
    assert main(["view", str(model), str(path), "-o", str(out)]) == 0
    assert "reads t\ufffd.txt</title>" in out.read_text(encoding="utf-8")


def test_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["view", "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: charrnn-fast view")
