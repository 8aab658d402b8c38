"""ONNX: exported networks and models under ONNX Runtime, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charrnn_fast as cf
from cases import Array
from charrnn_fast import registry
from charrnn_fast.cli import main
from features import ALL_UNITS, LSTMS, FeatureCase, label
from tolerances import assert_close, assert_same_bits, error

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed: pip install onnx")
ort: Any = pytest.importorskip(
    "onnxruntime", reason="ONNX Runtime is not installed: pip install onnxruntime"
)

from charrnn_fast.onnx import export, exporter, nodes, steps, to_model  # noqa: E402

Capture = pytest.CaptureFixture[str]


class Session:
    """A model in ONNX Runtime, on one thread."""

    def __init__(self, model: Any) -> None:
        onnx.checker.check_model(model, full_check=True)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self._session = ort.InferenceSession(model.SerializeToString(), options)

    def inputs(self) -> list[tuple[str, str, list[Any]]]:
        return [(v.name, v.type, v.shape) for v in self._session.get_inputs()]

    def outputs(self) -> list[tuple[str, str, list[Any]]]:
        return [(v.name, v.type, v.shape) for v in self._session.get_outputs()]

    def __call__(self, *values: Any) -> list[Array]:
        names = [name for name, _, _ in self.inputs()]
        result: list[Array] = self._session.run(None, dict(zip(names, values, strict=True)))
        return result


def parts(state: Any) -> list[Array]:
    return list(state) if isinstance(state, tuple) else [state]


def network(case: FeatureCase) -> cf.RNN:
    rnn = case.network()
    rnn.load_parameters(case.parameters())
    return rnn


def operators(model: Any) -> set[str]:
    return {node.op_type for node in model.graph.node}


# ---- sequences, with every option ---------------------------------------------------------------


def _cases() -> Iterator[FeatureCase]:
    for unit in ALL_UNITS:
        base = FeatureCase(
            unit, num_layers=2, output_size=3, mask_seed=None, seq_len=7, hidden_size=9
        )
        for dtype in ("float32", "float64"):
            plain = base.but(dtype=dtype)
            yield plain
            yield plain.but(ragged=True, bidirectional=True, tokens=True)
        yield base.but(num_layers=1, output_size=None, seq_len=1, batch=1, hidden_size=1)
        yield base.but(bias="single", num_layers=3)
        yield base.but(bias=False, ragged=True)
        yield base.but(bidirectional=True, output_size=None, bias=False)
        yield base.but(tokens=True, ragged=True, output_size=None)
        yield base.but(seq_len=33, batch=17, input_size=31, hidden_size=64)
        rates = base.regularization
        zoneout = rates._replace(zoneout=(0.2, 0.4), dropout=0.5, recurrent_dropout=0.5)
        for ragged in (False, True):
            # as short as other tests of normalized layers, which pass errors on enlarged
            loop = base.but(ragged=ragged, bidirectional=ragged, seq_len=4, hidden_size=5)
            yield loop.but(layer_norm=True, tokens=ragged)
            yield loop.but(regularization=zoneout, bias="single")
            if unit in LSTMS:
                yield loop.but(proj_size=3)
                projected = rates._replace(zoneout=(0.0, 0.3))
                yield loop.but(
                    proj_size=3, layer_norm=True, regularization=projected, dtype="float64"
                )


def runtime_results(case: FeatureCase, model: Any) -> list[Array]:
    lengths = [case.lengths()] if case.ragged else []
    return Session(model)(case.x(), *lengths, *parts(case.state()))


def expected_results(case: FeatureCase, rnn: cf.RNN) -> list[Array]:
    y, last = rnn.forward(case.x(), case.state(), lengths=case.lengths(), keep=False)
    return [y, *parts(last)]


@pytest.mark.parametrize("case", list(_cases()), ids=label)
def test_a_sequence(case: FeatureCase) -> None:
    rnn = network(case)
    model = to_model(rnn, tokens=case.tokens, lengths=case.ragged)
    found, expected = runtime_results(case, model), expected_results(case, rnn)
    for name, f, e in zip(("y", "h_n", "c_n"), found, expected, strict=False):
        assert (f.dtype, f.shape) == (e.dtype, e.shape), name
        assert_close(name, f, e, case.tolerance)
    assert len(found) == len(expected)
    if case.ragged:
        padding = np.arange(case.seq_len)[:, None] >= np.asarray(case.lengths())
        assert not found[0][padding].any()
        for f, first in zip(found[1:], parts(case.state()), strict=True):
            assert_same_bits("the state of a row without steps", f[:, 2], first[:, 2])


@pytest.mark.parametrize("unit", ALL_UNITS)
def test_layers_are_nodes_where_onnx_has_them(unit: str) -> None:
    case = FeatureCase(unit, num_layers=3, output_size=3, bidirectional=True)
    model = to_model(case.network())
    kind = case.kind["cell"].split("_")[-1].upper()
    assert [n.op_type for n in model.graph.node].count(kind) == 3
    assert "Scan" not in operators(model)
    loops = [case.but(dtype="float64"), case.but(layer_norm=True)]
    loops.append(case.but(regularization=case.regularization._replace(zoneout=(0.1, 0))))
    for other in loops:
        assert "Scan" in operators(to_model(other.network()))
        assert kind not in operators(to_model(other.network()))


@pytest.mark.parametrize("unit", ["gru", *LSTMS])
def test_a_wrong_order_of_gates_exceeds_the_tolerance(
    unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = FeatureCase(unit, num_layers=2, mask_seed=None)
    rnn, key = network(case), (unit, "tanh")
    form = nodes.FORMS[key]
    rows = list(form.rows)
    wrong = [form._replace(rows=(rows[1], rows[0], *rows[2:]))]
    if unit == "coupled_lstm":
        wrong.append(form._replace(rows=tuple((gate, 1) for gate, _ in rows)))
    if form.peepholes:
        wrong.append(form._replace(peepholes=(0, 1, 2)))
    for other in wrong:
        monkeypatch.setitem(nodes.FORMS, key, other)
        found, expected = runtime_results(case, to_model(rnn)), expected_results(case, rnn)
        assert error(found[0], expected[0]) > 100 * case.tolerance


def test_every_cell_has_both_ways() -> None:
    assert list(nodes.FORMS) == list(registry.CELLS)
    assert list(steps.CELLS) == list(registry.CELLS)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sizes_of_a_call_are_its_own(dtype: str) -> None:
    """One graph runs any number of steps and rows; a state carries a stream on."""
    rnn = cf.RNN(4, 6, 5, cell="lstm", num_layers=2, dtype=dtype)
    session = Session(to_model(rnn))
    case = FeatureCase("lstm", num_layers=2, dtype=dtype, seq_len=12)
    rng = np.random.default_rng(0)
    for seq_len, rows in ((1, 1), (12, 3), (5, 8)):
        x = rng.uniform(-1, 1, (seq_len, rows, 4)).astype(dtype)
        state = parts(rnn.zero_state(rows))
        expected, _ = rnn.forward(x, keep=False)
        assert_close("y", session(x, *state)[0], expected, case.tolerance)
        pieces = []
        for t in range(0, seq_len, 5):
            y, *state = session(x[t : t + 5], *state)
            pieces.append(y)
        assert_close("y in pieces", np.concatenate(pieces), expected, case.tolerance)


# ---- steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("unit", ALL_UNITS)
def test_a_step(unit: str, tokens: bool) -> None:
    base = FeatureCase(unit, num_layers=2, output_size=3, mask_seed=None, tokens=tokens, seq_len=6)
    zoneout = base.regularization._replace(zoneout=(0.2, 0.4))
    cases = [base, base.but(output_size=None, bias=False), base.but(dtype="float64")]
    cases += [base.but(layer_norm=True), base.but(regularization=zoneout)]
    if unit in LSTMS:
        cases.append(base.but(proj_size=3))
    for case in cases:
        rnn = network(case)
        model = to_model(rnn, form="step", tokens=tokens)
        assert "Scan" not in operators(model)
        session, rnn.state = Session(model), case.state()
        state = parts(case.state())
        for x in case.x():
            y, *state = session(x, *state)
            assert_close("y", y, rnn.step(np.ascontiguousarray(x)), case.tolerance)
        for name, f, e in zip(("h", "c"), state, parts(rnn.state), strict=False):
            assert f.shape == e.shape
            assert_close(name, f, e, case.tolerance)


# ---- language models ----------------------------------------------------------------------------

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20


@pytest.fixture(scope="module")
def model() -> cf.CharLM:
    """A model that has learned a line."""
    corpus = cf.Corpus.from_text(TEXT)
    made = cf.CharLM(corpus.vocabulary, 32, 2, seed=1)
    cf.Trainer(made, corpus, 8, 20, learning_rate=0.01, sample_length=0).fit(
        steps=300, progress=False
    )
    return made


def stored_vocabulary(model: Any) -> dict[str, Any]:
    (entry,) = [e for e in model.metadata_props if e.key == "charrnn_fast.vocabulary"]
    stored: dict[str, Any] = json.loads(entry.value)
    return stored


def test_a_text_by_steps_is_the_models_own(model: cf.CharLM, tmp_path: Path) -> None:
    """Greedy, from the file alone; the model's first two letters are never equally probable."""
    path = tmp_path / "model.onnx"
    export(model, path, form="step")
    stored = onnx.load(path)
    session, symbols = Session(stored), stored_vocabulary(stored)["symbols"]
    ids = {chr(symbol): i for i, symbol in enumerate(symbols)}
    text, state = "the q", parts(model.rnn.zero_state(1))
    for letter in text:
        logits, *state = session(np.array([ids[letter]]), *state)
    for _ in range(200):
        best = int(logits[0].argmax())
        text += chr(symbols[best])
        logits, *state = session(np.array([best]), *state)
    assert text == model.sample(200, "the q", temperature=0)
    assert "jumps over" in text


def test_logits_of_a_sequence_are_the_models(model: cf.CharLM) -> None:
    ids = model.vocabulary.encode(TEXT[:100]).astype(np.int64)
    session = Session(to_model(model))
    logits = session(ids[:-1, None], *parts(model.rnn.zero_state(1)))[0]
    loss, _ = cf.cross_entropy(logits, ids[1:, None])
    case = FeatureCase("lstm", num_layers=2, seq_len=99, batch=1, hidden_size=32)
    largest = float(np.abs(logits).max())
    assert_close("loss", loss, model.evaluate(TEXT[:100]), case.tolerance * largest)
    y, _ = model.rnn.forward(ids[:-1, None], keep=False)
    assert_close("logits", logits, y, case.tolerance)


def test_inputs_and_outputs_have_the_documented_names(model: cf.CharLM) -> None:
    V = len(model.vocabulary)
    states = [("h", [2, "B", 32]), ("c", [2, "B", 32])]
    for form, rows in (("sequence", ["T", "B"]), ("step", ["B"])):
        session = Session(to_model(model, form=form))
        first = [(f"{name}_0", "tensor(float)", shape) for name, shape in states]
        last = [(f"{name}_n", "tensor(float)", shape) for name, shape in states]
        assert session.inputs() == [("tokens", "tensor(int64)", rows), *first]
        assert session.outputs() == [("logits", "tensor(float)", [*rows, V]), *last]
    rnn = cf.RNN(4, 6, cell="gru", bidirectional=True, dtype="float64")
    session = Session(to_model(rnn, lengths=True))
    state = ("tensor(double)", [2, "B", 6])
    assert session.inputs() == [
        ("x", "tensor(double)", ["T", "B", 4]),
        ("lengths", "tensor(int64)", ["B"]),
        ("h_0", *state),
    ]
    assert session.outputs() == [("y", "tensor(double)", ["T", "B", 12]), ("h_n", *state)]
    inputs, outputs = exporter.signature(rnn, lengths=True)
    assert str(inputs[0]) == "x [T, B, 4] float64"
    assert [v.name for v in (*inputs, *outputs)] == ["x", "lengths", "h_0", "y", "h_n"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_token_that_is_none_is_an_error(model: cf.CharLM, dtype: str) -> None:
    model = cf.CharLM(model.vocabulary, 8, 1, dtype=dtype)
    session = Session(to_model(model, form="step"))
    with pytest.raises(
        ort.capi.onnxruntime_pybind11_state.InvalidArgument, match="out of data bounds"
    ):
        session(np.array([len(model.vocabulary)]), *parts(model.rnn.zero_state(1)))


@pytest.mark.parametrize(
    "vocabulary",
    [
        cf.Vocabulary.from_bytes(),
        cf.Vocabulary.from_text("aé\ud800\U0001f600"),
        cf.Vocabulary.from_text("aaabbbcccd", min_count=2),
    ],
    ids=["bytes", "characters", "unknown"],
)
def test_the_vocabulary_is_in_the_metadata(vocabulary: cf.Vocabulary) -> None:
    stored = stored_vocabulary(to_model(cf.CharLM(vocabulary, 4, 1)))
    assert cf.Vocabulary.from_config(stored["symbols"], stored) == vocabulary
    assert stored["vocabulary"] == vocabulary.kind
    assert not to_model(cf.RNN(3, 4)).metadata_props


# ---- the file -----------------------------------------------------------------------------------


def test_an_export_has_the_same_bytes_each_time(model: cf.CharLM, tmp_path: Path) -> None:
    path, other = tmp_path / "a.onnx", tmp_path / "b.onnx"
    export(model, path)
    export(model, other)
    assert path.read_bytes() == other.read_bytes()
    stored = onnx.load(path)
    assert (stored.producer_name, stored.producer_version) == ("charrnn_fast", cf.__version__)
    assert (stored.ir_version, stored.opset_import[0].version) == (8, 17)
    assert "cell='lstm'" in stored.graph.doc_string


def test_an_export_replaces_exports_and_nothing_else(tmp_path: Path) -> None:
    path, rnn = tmp_path / "a.onnx", cf.RNN(3, 4)
    path.touch()
    export(rnn, path)
    before = path.read_bytes()
    export(rnn, path, form="step")
    assert path.read_bytes() != before
    stored = onnx.load(path)
    stored.producer_name = "pytorch"
    for data in (stored.SerializeToString(), b"\x08", b"text"):
        path.write_bytes(data)
        with pytest.raises(FileExistsError, match="no ONNX file of charrnn_fast"):
            export(rnn, path)
        assert path.read_bytes() == data
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        export(rnn, tmp_path / "none" / "a.onnx")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"model": "m"}, TypeError, "model must be an RNN or a CharLM, got str"),
        ({"form": "both"}, ValueError, "form must be 'sequence' or 'step', got 'both'"),
        ({"tokens": 1}, TypeError, "tokens must be True or False, got 1"),
        ({"lengths": [3]}, TypeError, r"lengths must be True or False, got \[3\]"),
        ({"form": "step", "lengths": True}, ValueError, "lengths must be False with form='step'"),
        (
            {"model": cf.RNN(3, 4, bidirectional=True), "form": "step"},
            ValueError,
            "form must be 'sequence' with a bidirectional network, which has no step",
        ),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, arguments: dict[str, Any], kind: type[Exception], message: str
) -> None:
    options = dict(arguments)
    given = options.pop("model", cf.RNN(3, 4))
    with pytest.raises(kind, match=message):
        to_model(given, **options)
    with pytest.raises(kind, match=message):
        export(given, tmp_path / "a.onnx", **options)
    assert not os.listdir(tmp_path)


def test_misspelt_options_are_told() -> None:
    wrong: Any = {"lenghts": True}
    with pytest.raises(TypeError, match="did you mean 'lengths'"):
        to_model(cf.RNN(3, 4), **wrong)


def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path) -> None:
    rnn = cf.RNN(3, 4)
    parameters = rnn.parameters(copy=True)
    parameters["weight_hh_l0"][1, 2] = np.inf
    rnn.load_parameters(parameters)
    with pytest.raises(FloatingPointError, match="weight_hh_l0 is no longer finite"):
        export(rnn, tmp_path / "a.onnx")


def test_more_than_a_file_can_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Protocol Buffers end at 2 GB; here, at the size of a small network."""
    rnn = cf.RNN(3, 4)
    size = 4 * sum(p.size for p in rnn.parameters().values())
    monkeypatch.setattr(exporter, "_LARGEST", size)
    to_model(rnn)
    monkeypatch.setattr(exporter, "_LARGEST", size - 1)
    with pytest.raises(ValueError, match=r"at most 2 GB, got .* GB of weights in RNN\(3, 4"):
        to_model(rnn)


def test_a_cell_without_a_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(nodes.FORMS, ("gru", "tanh"))
    with pytest.raises(ValueError, match=r"must be one of 'coupled_lstm', .*, got 'gru'"):
        to_model(cf.RNN(3, 4, cell="gru"))


def test_the_package_does_not_import_onnx() -> None:
    program = (
        "import sys, charrnn_fast as cf, charrnn_fast.cli\n"
        "for name in cf.__all__: getattr(cf, name)\n"
        "assert not {'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "sys.modules['onnx'] = None\n"
        "try: import charrnn_fast.onnx\n"
        "except ModuleNotFoundError as error: assert 'charrnn_fast[onnx]' in str(error), error\n"
        "else: raise SystemExit('imported')\n"
        "assert charrnn_fast.cli.main(['export', 'm', 'm.onnx']) == 2\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "charrnn-fast: error: charrnn_fast.onnx needs onnx, which is not installed: pip install "
        "'charrnn_fast[onnx]'\n"
    )


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def saved(model: cf.CharLM, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    model.save(path)
    return path


@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        ([], {}),
        (["--form", "step"], {"form": "step"}),
        (["--form", "sequence", "--lengths"], {"lengths": True}),
    ],
)
def test_the_command(
    model: cf.CharLM,
    saved: Path,
    capsys: Capture,
    options: list[str],
    keywords: dict[str, Any],
) -> None:
    path = saved.with_name("out.ONNX")
    assert main(["export", str(saved), str(path), *options]) == 0
    assert onnx.load(path) == to_model(model, **keywords)
    output, err = capsys.readouterr()
    rows = "[B]" if keywords.get("form") else "[T, B]"
    lengths = "lengths [B] int64, " if "lengths" in keywords else ""
    assert err == ""
    assert output == (
        f"model       lstm, 2 layers of 32, float32: {model.num_parameters:,} parameters\n"
        f"inputs      tokens {rows} int64, {lengths}h_0 [2, B, 32] float32, "
        f"c_0 [2, B, 32] float32\n"
        f"outputs     logits {rows[:-1]}, 28] float32, h_n [2, B, 32] float32, "
        f"c_n [2, B, 32] float32\n"
        f"saved to {path} ({os.path.getsize(path) / 1000:.3g} kB)\n"
    )


def refused(capsys: Capture, *arguments: str) -> str:
    """The one line on stderr with which a user's error ends, without its beginning."""
    try:
        status: object = main(arguments)
    except SystemExit as stop:  # argparse leaves this way
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    return err.removeprefix("charrnn-fast: error: ").rstrip("\n")


def test_what_the_command_refuses(saved: Path, capsys: Capture) -> None:
    folder, before = saved.parent, saved.read_bytes()
    out = str(folder / "m.onnx")
    for name in ("m.pb", "m", "m.onnx.gz"):
        message = refused(capsys, "export", str(saved), name)
        assert message.startswith(f"argument OUT: must end in .onnx, got '{name}'")
    assert "must have a name before .onnx" in refused(capsys, "export", str(saved), ".onnx")
    message = refused(capsys, "export", str(saved), out, "--form", "step", "--lengths")
    assert message.startswith("--lengths must be False with --form='step'")
    assert "no charrnn_fast checkpoint" in refused(capsys, "export", __file__, out)
    named = folder / "checkpoint.onnx"
    os.rename(saved, named)
    message = refused(capsys, "export", str(named), str(named))
    assert message.endswith("this file is no ONNX file of charrnn_fast; it is not overwritten")
    assert named.read_bytes() == before
    # before any work: no model is there
    message = refused(capsys, "export", "none", str(folder / "none" / "m.onnx"))
    assert message.endswith("its folder does not exist")
    assert os.listdir(folder) == [named.name]
