"""Models and texts for the tests of pages."""

from __future__ import annotations

from typing import Any

import numpy as np

import charrnn_fast as cf

TEXT = """def f(a, b):  # "quoted"
\tx = [a['it'], {b: "two words"}]

    return x  // 2
It's the END of 17 lines.
"""

# What could end a script, begin a tag, or turn the page around; each is shown as characters.
HOSTILE = (
    "</script><script>window.ran=1</script>\n"
    '<img src=x onerror="window.ran=2"><!-- &amp;&lt; ]]> -->\u2028\u2029'
    "'`${window.ran=3}{{facts}}\n"
    "astral \U0001f600\U0001d518 wide 漢字 combining e\u0301\u0327 \u0301 right to left שלום مرحبا "
    "\u202eabc\u202c \u200f nul \0 escape \x1b delete \x7f next line \x85 form \x0c "
    "no break \u00a0 mark \ufeff joiner \u200d\r\nCRLF\r\n\ttab surrogate \ud800 private \ue000 "
    "unassigned \u0378\n"
)

NETWORKS: list[dict[str, Any]] = [
    {"cell": "rnn"},
    {"cell": "rnn", "nonlinearity": "relu"},
    {"cell": "gru"},
    {"cell": "lstm"},
    {"cell": "lstm", "proj_size": 3, "layer_norm": True},
    {"cell": "peephole_lstm", "dtype": "float64"},
    {"cell": "coupled_lstm", "proj_size": 5, "zoneout": (0, 0.1)},
]


def lively(text: str | None, **options: Any) -> cf.CharLM:
    """An untrained model of a text's characters (None: of bytes) whose cells move about."""
    vocabulary = cf.Vocabulary.from_bytes() if text is None else cf.Vocabulary.from_text(text)
    settings: dict[str, Any] = {"hidden_size": 8, "num_layers": 2, "seed": 3, "forget_bias": None}
    model = cf.CharLM(vocabulary, **{**settings, **options})
    # A relu's activations would explode.
    factor = 1 if options.get("nonlinearity") == "relu" else 3
    weights = {name: np.array(w * factor, w.dtype) for name, w in model.rnn.parameters().items()}
    model.rnn.load_parameters(weights)
    return model
