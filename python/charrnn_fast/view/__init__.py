"""A look inside a language model: an HTML page of a text, coloured by the model's cells.

After A. Karpathy, The Unreasonable Effectiveness of Recurrent Neural Networks (2015), and Karpathy,
Johnson and Fei-Fei, Visualizing and Understanding Recurrent Networks (2015).

reading    what the model computes while it reads
features   what cells may follow, and which do
errors     which characters the loss comes from
oracles    what simpler models would have known of a model's errors
glyphs     how characters and bytes are shown
page.*     the page: HTML, CSS and JavaScript, put together here
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._checks import brief, called, instance, integer
from ..language.model import CharLM
from ..runtime import build_info
from ..storage.file_array import Ids
from ..text.files import in_blocks
from ..text.vocabulary import Vocabulary
from .errors import Errors, by_kind
from .features import Ranking, rank
from .glyphs import Shown, show
from .oracles import Division, Removed, divide_errors
from .reading import MOST_GATED, Reading, Saturation, is_bounded, quantity, read, saturation

__all__ = ["divide_errors", "page"]

GENERATOR = "charrnn-fast view"
"""The beginning of each page's `generator`."""

_MOST_ACTIVATIONS = 50_000_000  # bytes of a page; browsers become slow before they fail
_LEVELS = 127  # of an activation, on either side of 0


def page(
    model: CharLM,
    text: str | bytes,
    *,
    layers: Iterable[int] | None = None,
    title: str = "A look inside",
    about: Mapping[str, str] | None = None,
    training_text: str | bytes | None = None,
) -> str:
    """A self-contained HTML page that shows a text as the model's cells see it.

    Each character is coloured by one cell after the model has read it: tanh(c) of the LSTMs, else
    h. Below it are the five likeliest next characters with their probabilities. A table ranks the
    cells that follow quotes, brackets, indentation and the like, by correlation (`features`). Plots
    show how often each gate is nearly open or closed (`reading.saturation`), and a table which
    characters the loss comes from (`errors`). The model starts from the zero state.

    text: at least two characters, or bytes for a byte vocabulary. layers: the layers to show, from
    0, as in weight_ih_l0; None: all. title and about (lines of label and value) head the page.
    training_text: what the model was trained on. With it the page divides the model's errors by
    what simpler models would have known (`divide_errors`).

    Raises ValueError for a character that is not in the vocabulary, and if text and layers make
    more than 50 million activations, of 4/3 bytes each. Raises FloatingPointError if the model's
    weights are not finite.
    """
    instance("model", model, CharLM, "a CharLM")
    instance("title", title, str, "a str")
    instance("about", about, (Mapping, type(None)), "a mapping of str to str")
    ids, training = model.vocabulary.encode(text), None
    if training_text is not None:
        training = model.vocabulary.encode_part(training_text, called("training_text"), 0)
        if not len(training):
            unit = model.vocabulary.unit
            raise ValueError(f"{called('training_text')} must have 1 {unit} or more, got none")
    return page_of_ids(model, ids, layers, title, about or {}, training)


def page_of_ids(
    model: CharLM,
    ids: NDArray[Any],
    layers: Iterable[int] | None,
    title: str,
    about: Mapping[str, str],
    training: Ids | None = None,
) -> str:
    """As `page`, for ids [N] of any integer type. training: the ids of the training text."""
    rnn, vocabulary = model.rnn, model.vocabulary
    chosen = _layers(layers, rnn.num_layers)
    if len(ids) < 2:
        raise ValueError(
            f"text must have 2 {vocabulary.unit}s or more, got {len(ids)}: the first is given, "
            f"the others are predicted"
        )
    count = len(ids) * len(chosen) * rnn.hidden_size
    if count > _MOST_ACTIVATIONS:
        raise ValueError(
            f"a page must have at most {_MOST_ACTIVATIONS:,} activations, got {count:,} of "
            f"{len(ids):,} {vocabulary.kind} with {len(chosen)} layer(s) of {rnn.hidden_size} "
            f"cells; take a shorter {called('length')} or fewer {called('layers')}"
        )
    ids = np.ascontiguousarray(ids, np.int32)
    seen = read(model, ids, chosen)
    cells = seen.activations.reshape(-1, len(ids))
    plain = _plain(model, ids)
    rankings, constant = rank(cells, plain)
    levels, scales = _quantised(cells)
    shown = show(vocabulary, ids, seen.guesses)
    nats = float(seen.losses.mean())
    facts = {
        "unit": vocabulary.unit,
        "layers": chosen,
        "cells": rnn.hidden_size,
        "guesses": seen.guesses.shape[1],
        "quantity": quantity(rnn),
        "bounded": is_bounded(rnn),
        "scales": [float(f"{scale:.4g}") for scale in scales],
        "glyphs": shown.table,
        "newline": shown.newline,
        "features": [_described(ranking) for ranking in rankings],
        "constant": [feature.name for feature in constant],
        "gates": [[_plotted(gate) for gate in gates] for gates in saturation(model, ids, chosen)],
        "gated": min(len(ids), MOST_GATED),
        "errors": [
            _told(errors, float(seen.losses.sum())) for errors in by_kind(seen.losses, plain)
        ],
    }
    arrays = _arrays(seen, shown, ids, levels)
    if training is not None:
        texts = (_whole(vocabulary, part) for part in (ids, training))
        division = divide_errors(np.exp(-seen.losses), *texts)
        facts["division"] = _divided(division)
        arrays["oracles"] = division.oracles
    bits = nats / math.log(2)
    header = {
        **(about or {"model": repr(model)[1:-1].removeprefix("CharLM: ")}),
        "loss": f"{brief(nats, 4)} nats per {vocabulary.unit} ({brief(bits, 4)} bits)",
    }
    return _assemble(title, header, facts, arrays)


def _layers(layers: Iterable[int] | None, count: int) -> list[int]:
    if layers is None:
        return list(range(count))
    chosen = [integer(f"layers[{i}]", layer, 0, count - 1) for i, layer in enumerate(layers)]
    if not chosen:
        raise ValueError(f"{called('layers')} must have one or more of 0 to {count - 1}, got none")
    return sorted(set(chosen))


def _plain(model: CharLM, ids: NDArray[np.int32]) -> str:
    """The text, one character per id: a byte above 127 counts as a small letter."""
    if model.vocabulary.kind == "characters":
        return model.vocabulary.decode(ids)
    return np.where(ids < 0x80, ids, ord("ä")).astype(np.uint8).tobytes().decode("latin-1")


def _whole(vocabulary: Vocabulary, ids: Ids) -> str | bytes:
    """The text of ids; of a vocabulary of bytes, these."""
    blocks = (ids[first:last] for first, last in in_blocks(0, len(ids)))
    if vocabulary.kind == "bytes":
        return b"".join(map(vocabulary.units, blocks))
    return "".join(map(vocabulary.decode, blocks))


def _quantised(cells: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Activations [C, N] as levels [C, N] from -127 to 127; level 127 means scales [C]."""
    scales = np.abs(cells).max(1)
    steps = np.where(scales > 0, scales, 1) / _LEVELS
    return np.rint(cells / steps[:, None]).astype(np.int8), scales


def _described(ranking: Ranking) -> dict[str, Any]:
    return {
        "name": ranking.feature.name,
        "about": ranking.feature.about,
        "memory": ranking.feature.takes_memory,
        "chance": round(ranking.chance, 3),
        "best": ranking.best(),
        "r": [round(float(r), 3) for r in ranking.correlations],
    }


def _plotted(gate: Saturation) -> dict[str, Any]:
    left, right = ([round(float(share), 3) for share in side] for side in gate[1:])
    return {"gate": gate.gate, "left": left, "right": right}


def _told(errors: Errors, loss: float) -> dict[str, Any]:
    return {
        "name": errors.kind.name,
        "about": errors.kind.about,
        "count": errors.number,
        "nats": round(errors.loss / errors.number, 3),
        "share": round(errors.loss / loss, 4) if loss > 0 else 0,
    }


def _divided(division: Division) -> dict[str, Any]:
    return {
        "predicted": division.predicted,
        "errors": division.errors,
        "contained": division.contained,
        "removed": [_removed(removed) for removed in division.removed],
    }


def _removed(removed: Removed) -> dict[str, Any]:
    oracle = removed.oracle
    return {
        "name": oracle.name,
        "about": oracle.about,
        "count": removed.number,
        "remaining": removed.remaining,
        "step": oracle.step,
        "steps": [list(pair) for pair in zip(oracle.steps, removed.steps, strict=True)],
    }


def _arrays(
    seen: Reading, shown: Shown, ids: NDArray[np.int32], levels: NDArray[np.int8]
) -> dict[str, NDArray[Any]]:
    """The page's typed arrays, by the names that it uses."""
    index = np.min_scalar_type(len(shown.table) - 1)
    came = seen.guesses[:-1] == ids[1:, None]
    return {
        "text": shown.text.astype(index),
        "guesses": shown.guesses.astype(index),
        "shares": np.rint(seen.shares * 65535).astype("<u2"),
        # which guess came true, 255: none
        "came": np.where(came.any(1), came.argmax(1), 255).astype(np.uint8),
        "losses": seen.losses.astype("<f4"),
        "levels": levels,
    }


def _assemble(
    title: str, header: Mapping[str, str], facts: Mapping[str, Any], arrays: dict[str, NDArray[Any]]
) -> str:
    style, script = _source("page.css"), _source("page.js")
    parts = {
        "policy": f"default-src 'none'; script-src '{_sha256(script)}'; "
        f"style-src '{_sha256(style)}'; base-uri 'none'; form-action 'none'",
        "generator": f"{GENERATOR} {build_info()['version']}",
        "title": _escaped(title),
        "header": "".join(
            f"<dt>{_escaped(label)}</dt><dd>{_escaped(value)}</dd>"
            for label, value in header.items()
        ),
        "style": style,
        "facts": _json(facts),
        "arrays": "\n".join(
            f'<script type="text/plain" id="data-{name}" data-type="{_javascript_name(array)}">'
            f"{base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()}</script>"
            for name, array in arrays.items()
        ),
        "script": script,
    }
    # One pass: inserted text is not searched again.
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _source("page.html"))


def _source(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _sha256(source: str) -> str:
    """A script's or style's hash for the Content-Security-Policy."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _escaped(text: str) -> str:
    """Text as HTML, without control characters, direction overrides and lone surrogates, as of a
    file name that is not UTF-8."""
    unwanted = r"[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    return html.escape(re.sub(unwanted, "\ufffd", text))


def _json(value: Any) -> str:
    """JSON that cannot end its script element and means nothing else in HTML."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _javascript_name(array: NDArray[Any]) -> str:
    """JavaScript's typed array for an array's dtype."""
    kind = {"i": "Int", "u": "Uint", "f": "Float"}[array.dtype.kind]
    return f"{kind}{8 * array.dtype.itemsize}Array"
