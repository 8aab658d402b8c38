"""ONNX: exported networks and models under ONNX Runtime, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
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

from onnx.reference import ReferenceEvaluator  # noqa: E402

from charrnn_fast.onnx import export, exporter, importer, load, to_model  # noqa: E402
from charrnn_fast.onnx.nodes import FORMS  # noqa: E402
from charrnn_fast.onnx.steps import CELLS  # noqa: E402

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
def test_another_program_that_runs_onnx(unit: str) -> None:
    """ONNX's own evaluator, in NumPy; of its recurrent operators it lacks lengths and relu."""
    base = FeatureCase(unit, num_layers=2, output_size=3, mask_seed=None)
    cases = [base.but(layer_norm=True), base.but(dtype="float64", tokens=True, ragged=True)]
    if unit != "rnn_relu":
        cases += [base, base.but(bidirectional=True), base.but(tokens=True)]
    for case in cases:
        rnn = network(case)
        model = to_model(rnn, tokens=case.tokens, lengths=case.ragged)
        evaluator = ReferenceEvaluator(model)
        lengths = [case.lengths()] if case.ragged else []
        given = [case.x(), *lengths, *parts(case.state())]
        found = evaluator.run(None, dict(zip(evaluator.input_names, given, strict=True)))
        for f, e in zip(found, expected_results(case, rnn), strict=True):
            assert_close("result", f, e, case.tolerance)


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
    form = FORMS[key]
    rows = list(form.rows)
    wrong = [form._replace(rows=(rows[1], rows[0], *rows[2:]))]
    if unit == "coupled_lstm":
        wrong.append(form._replace(rows=tuple((gate, 1) for gate, _ in rows)))
    if form.peepholes:
        wrong.append(form._replace(peepholes=(0, 1, 2)))
    for other in wrong:
        monkeypatch.setitem(FORMS, key, other)
        found, expected = runtime_results(case, to_model(rnn)), expected_results(case, rnn)
        assert error(found[0], expected[0]) > 100 * case.tolerance


def test_every_cell_is_there() -> None:
    assert list(CELLS) == list(registry.CELLS)
    assert FORMS.keys() <= CELLS.keys()


def test_a_cell_that_is_no_node_is_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    case = FeatureCase("gru", num_layers=2, mask_seed=None)
    rnn = network(case)
    monkeypatch.delitem(FORMS, ("gru", "tanh"))
    model = to_model(rnn)
    assert "Scan" in operators(model) and "GRU" not in operators(model)
    found, expected = runtime_results(case, model), expected_results(case, rnn)
    assert_close("y", found[0], expected[0], case.tolerance)


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


def test_rounded_operands_are_refused() -> None:
    rnn = cf.RNN(3, 4, compute_dtype="bfloat16")
    with pytest.raises(ValueError, match="compute_dtype of an export must be 'float32', got 'bfl"):
        to_model(rnn)


def test_a_cell_without_a_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(CELLS, ("gru", "tanh"))
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
        assert message.startswith(f"argument OUT: must end in .onnx or .safetensors, got '{name}'")
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


# ---- files of others ----------------------------------------------------------------------------

KEPT = Path(__file__).parent / "kept" / "onnx"


def test_loading_an_export_gives_its_weights() -> None:
    """Bit for bit, for every cell that is a node; and the same file again."""
    for unit in ALL_UNITS:
        base = FeatureCase(unit, num_layers=3, output_size=3, mask_seed=None)
        bidirectional = base.but(bidirectional=True, tokens=True, output_size=None)
        for case in (base, bidirectional, base.but(bias="single"), base.but(bias=False)):
            rnn = network(case)
            for ragged in (False, True):
                model = to_model(rnn, tokens=case.tokens, lengths=ragged)
                loaded = load(model.SerializeToString())
                assert repr(loaded) == repr(rnn)
                for name, value in rnn.parameters(copy=True).items():
                    assert_same_bits(name, loaded.parameters(copy=True)[name], value)
                assert to_model(loaded, tokens=case.tokens, lengths=ragged) == model


def test_loading_a_model_by_its_path(model: cf.CharLM, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for form in ("sequence", "step"):
        export(model, path, form=form)
        loaded = load(path)
        assert repr(loaded) == repr(model.rnn)
        for name, value in model.rnn.parameters(copy=True).items():
            assert_same_bits(name, loaded.parameters(copy=True)[name], value)
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=0
    )
    assert repr(load(path)) == repr(model.rnn)
    with pytest.raises(ValueError, match="is in another file: load the model by its path"):
        load(path.read_bytes())
    (tmp_path / "weights").unlink()
    with pytest.raises(ValueError, match=r"model\.onnx: its external data cannot be read"):
        load(path)


def _node_cases() -> dict[str, Any]:
    """ONNX's own tests of the recurrent operators, without making those of all others."""
    from onnx.backend.test.case import node
    from onnx.backend.test.case.node import gru, lstm, rnn

    assert {gru.GRU, lstm.LSTM, rnn.RNN}  # importing them has made their cases
    names = ("test_lstm", "test_gru", "test_rnn", "test_simple_rnn")
    return {c.name: c for c in node._NodeTestCases if c.name.startswith(names)}


NODE_CASES = _node_cases()


def test_all_node_cases_are_here() -> None:
    assert len(NODE_CASES) >= 18


@pytest.mark.parametrize("name", NODE_CASES)
def test_onnxs_own_tests(name: str) -> None:
    """Equal, or refused with the reason. Their weights are inputs, here made constants."""
    case, stored = NODE_CASES[name], onnx.ModelProto()
    stored.CopyFrom(case.model)
    (node,) = stored.graph.node
    ((values, results),) = case.data_sets
    given = dict(zip([v.name for v in stored.graph.input], values, strict=True))
    expected = dict(zip([v.name for v in stored.graph.output], results, strict=True))
    inputs = dict(zip(importer.INPUTS, node.input, strict=False))
    inputs = {role: given[name] for role, name in inputs.items() if name}
    for index, role in enumerate(importer.INPUTS):
        if role in ("W", "R", "B", "P") and role in inputs:
            constant = onnx.numpy_helper.from_array(inputs[role], node.input[index])
            stored.graph.initializer.append(constant)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    reason = None
    if attributes.get("direction") == b"reverse":
        reason = "direction must be 'forward' or 'bidirectional', got 'reverse'"
    elif node.op_type == "GRU" and not attributes.get("linear_before_reset"):
        reason = "linear_before_reset must be 1, got 0"
    if reason is not None:
        with pytest.raises(ValueError, match=reason):
            load(stored)
        return
    rnn = load(stored)

    def turned(value: Array) -> Array:
        is_batch_first = attributes.get("layout", 0)
        return np.ascontiguousarray(value.swapaxes(0, 1)) if is_batch_first else value

    x = turned(inputs["X"])
    first = tuple(turned(inputs[r]) for r in ("initial_h", "initial_c") if r in inputs)
    state = None if not first else first if len(first) == 2 else first[0]
    y, last = rnn.forward(x, state, lengths=inputs.get("sequence_lens"))
    T, B = x.shape[:2]
    by_direction = y.reshape(T, B, -1, rnn.hidden_size)  # [T, B, D, H]
    if attributes.get("layout", 0):
        by_direction = by_direction.swapaxes(0, 1)
    else:
        by_direction = by_direction.swapaxes(1, 2)
    found = [by_direction, *map(turned, parts(last))]
    size = FeatureCase(seq_len=T, batch=B, input_size=x.shape[2], hidden_size=rnn.hidden_size)
    checked = 0
    for output, value in zip(node.output, found, strict=False):
        if output:
            assert_close(output, value, expected[output], size.tolerance)
            checked += 1
    assert checked == len(expected)


@pytest.mark.parametrize(
    ("name", "cell", "num_layers", "bidirectional"),
    [
        ("keras_lstm", "lstm", 2, False),
        ("keras_bidirectional", "lstm", 2, True),
        ("keras2_gru", "gru", 2, False),
        ("keras2_bidirectional_gru", "gru", 1, True),
    ],
)
def test_a_file_of_keras(name: str, cell: str, num_layers: int, bidirectional: bool) -> None:
    """Written by tf2onnx, with the y of Keras: `kept/onnx/write_keras.py`."""
    rnn, stored = load(KEPT / f"{name}.onnx"), np.load(KEPT / f"{name}.npz")
    assert (rnn.cell, rnn.num_layers, rnn.bidirectional) == (cell, num_layers, bidirectional)
    assert (rnn.output_size, rnn.bias) == (5, "single" if cell == "lstm" else True)
    y, _ = rnn.forward(np.ascontiguousarray(stored["x"].swapaxes(0, 1)))
    case = FeatureCase(cell, num_layers=num_layers, seq_len=6, hidden_size=4, output_size=5)
    assert_close("y", y.swapaxes(0, 1), stored["y"], case.tolerance)


def test_layers_of_several_sizes_are_several_networks() -> None:
    path, stored = KEPT / "keras_narrowing.onnx", np.load(KEPT / "keras_narrowing.npz")
    names = [n.name for n in onnx.load(path).graph.node if n.op_type == "LSTM"]
    with pytest.raises(ValueError, match=f"node must name one of 2 networks, .* '{names[0]}'; '"):
        load(path)
    lower, upper = (load(path, name) for name in names)
    assert (lower.hidden_size, upper.hidden_size, upper.output_size) == (4, 3, None)
    y, _ = lower.forward(np.ascontiguousarray(stored["x"].swapaxes(0, 1)))
    y, _ = upper.forward(y)
    case = FeatureCase("lstm", num_layers=2, seq_len=6, hidden_size=4)
    assert_close("y", y[-1], stored["y"], case.tolerance)
    with pytest.raises(ValueError, match=f"node must be one of '{names[0]}', .*, got 'lstm'"):
        load(path, "lstm")


def test_what_keras_writes_as_a_loop_is_refused() -> None:
    with pytest.raises(ValueError, match="no LSTM, GRU or RNN node; its Loop nodes are not read"):
        load(KEPT / "keras_gru.onnx")


class _Wrapped:
    """Builds modules of PyTorch, which may not be installed."""

    def __init__(self, kind: str, linear: bool, options: dict[str, Any]) -> None:
        import torch

        class Net(torch.nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.layers = getattr(torch.nn, kind)(3, 4, **options)
                width = 4 * (1 + self.layers.bidirectional)
                self.linear = torch.nn.Linear(width, 5) if linear else torch.nn.Identity()

            def forward(self, x: Any) -> Any:
                y, last = self.layers(x)
                return self.linear(y), last

        torch.manual_seed(0)
        self.net = Net().eval()


PYTORCH: list[tuple[str, bool, dict[str, Any]]] = [
    ("LSTM", True, {"num_layers": 2, "bidirectional": True}),
    ("LSTM", False, {"bias": False}),
    ("GRU", True, {"num_layers": 2, "batch_first": True}),
    ("GRU", False, {"bidirectional": True}),
    ("RNN", True, {"num_layers": 3}),
    ("RNN", False, {"nonlinearity": "relu", "bidirectional": True, "num_layers": 2}),
]


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize(("kind", "linear", "options"), PYTORCH)
def test_a_file_of_pytorch(
    kind: str, linear: bool, options: dict[str, Any], dynamo: bool, tmp_path: Path
) -> None:
    """By both of its exporters; the weights keep their bits."""
    torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    if dynamo:
        pytest.importorskip(
            "onnxscript", reason="onnxscript is not installed: pip install onnxscript"
        )
    net, path = _Wrapped(kind, linear, options).net, tmp_path / "torch.onnx"
    x = torch.randn(
        2 if options.get("batch_first") else 6, 6 if options.get("batch_first") else 2, 3
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about itself
        torch.onnx.export(net, (x,), path, dynamo=dynamo, verbose=False)
    if dynamo and kind == "RNN":  # which this exporter unrolls
        with pytest.raises(ValueError, match="there is no LSTM, GRU or RNN node"):
            load(path)
        return
    rnn = load(path)
    theirs = {
        name.removeprefix("layers.").replace("linear.", "decoder."): value.numpy()
        for name, value in net.state_dict().items()
    }
    assert rnn.parameters().keys() == theirs.keys()
    for name, value in rnn.parameters(copy=True).items():
        assert_same_bits(name, value, theirs[name])
    with torch.no_grad():
        y, last = net(x)
    steps_first = options.get("batch_first", False)
    mine = np.ascontiguousarray(x.numpy().swapaxes(0, 1)) if steps_first else x.numpy()
    found, state = rnn.forward(mine)
    if steps_first:
        found = found.swapaxes(0, 1)
    layers = options.get("num_layers", 1)
    case = FeatureCase(kind.lower(), num_layers=layers, seq_len=6, hidden_size=4, output_size=5)
    assert_close("y", found, y, case.tolerance)
    for mine_last, its_last in zip(parts(state), parts(last), strict=True):
        assert_close("state", mine_last, its_last, case.tolerance)


# ---- what is refused ----------------------------------------------------------------------------


def single(operator: str = "LSTM", **changes: Any) -> Any:
    """A model of one node, of 2 inputs and 3 units, with other attributes or constants."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Array:
        return rng.uniform(-1, 1, shape).astype("float32")

    constants: dict[str, Array | None] = {
        "W": drawn(1, gates * 3, 2),
        "R": drawn(1, gates * 3, 3),
        "B": drawn(1, gates * 6),
    }
    attributes: dict[str, Any] = {"hidden_size": 3}
    if operator == "GRU":
        attributes["linear_before_reset"] = 1
    for name, value in changes.items():
        (constants if name in importer.INPUTS else attributes)[name] = value
    names = [role if role in constants or role == "X" else "" for role in importer.INPUTS]
    node = onnx.helper.make_node(operator, names, ["Y"], "the_node", **attributes)
    inputs = [r for r, value in constants.items() if value is None]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [info(name, onnx.TensorProto.FLOAT, None) for name in ("X", *inputs)],
        [info("Y", onnx.TensorProto.FLOAT, None)],
        [
            onnx.numpy_helper.from_array(value, name)
            for name, value in constants.items()
            if value is not None
        ],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_a_single_node(operator: str) -> None:
    rnn = load(single(operator), "the_node")
    assert (rnn.input_size, rnn.hidden_size, rnn.cell) == (2, 3, operator.lower())
    for defaults in ({"clip": None}, {"activations": None}):
        assert repr(load(single(operator, **defaults))) == repr(rnn)
    names = {"LSTM": ["sigmoid", "TANH", "Tanh"], "GRU": ["Sigmoid", "tanh"], "RNN": ["TanH"]}
    assert repr(load(single(operator, activations=names[operator]))) == repr(rnn)
    assert repr(load(single(operator, layout=1))) == repr(rnn)


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_states_and_lengths_may_be_inputs_or_trivial(operator: str) -> None:
    rnn = load(single(operator))
    for changes in (
        {"initial_h": None},
        {"initial_h": np.zeros((1, 2, 3), "float32")},
        {"sequence_lens": None},
        {"sequence_lens": np.array([5, 5], np.int32)},
    ):
        assert repr(load(single(operator, **changes))) == repr(rnn)


ONE = np.ones((1, 2, 3), "float32")


@pytest.mark.parametrize(
    ("operator", "changes", "message"),
    [
        ("GRU", {"linear_before_reset": 0}, "linear_before_reset must be 1, got 0: its reset gate"),
        ("LSTM", {"clip": 3.0}, "clip must be left out, got 3.0"),
        (
            "LSTM",
            {"direction": "reverse"},
            "direction must be 'forward' or 'bidirectional', got 'r",
        ),
        ("LSTM", {"direction": "both"}, "direction must be .*, got 'both'"),
        ("LSTM", {"layout": 2}, "layout must be 0 or 1, got 2"),
        (
            "LSTM",
            {"activations": ["Sigmoid", "Tanh", "Relu"]},
            "activations must be Sigmoid, Tanh, Tanh, got Sigmoid, Tanh, Relu",
        ),
        ("GRU", {"activations": ["HardSigmoid", "Tanh"]}, "activations must be Sigmoid, Tanh, got"),
        ("RNN", {"activations": ["Affine"]}, "activations must be Tanh or Relu, got Affine"),
        (
            "LSTM",
            {"input_forget": 1, "P": np.ones((1, 9), "float32")},
            r"input_forget must be 0 with peepholes \(P\), got 1",
        ),
        ("LSTM", {"output_sequence": 1}, "there must be no attribute 'output_sequence'"),
        ("LSTM", {"hidden_size": "3"}, "hidden_size must be an integer, got b'3'"),
        ("LSTM", {"hidden_size": 4}, r"W must have shape \[1, 16, 2\], got \[1, 12, 2\]"),
        ("LSTM", {"W": None}, "W must be a constant of the file, got the computed 'W'"),
        ("LSTM", {"B": None}, "B must be a constant of the file"),
        ("LSTM", {"R": ONE}, r"R must have shape \[1, 12, 3\], got \[1, 2, 3\]"),
        ("LSTM", {"R": ONE[0]}, r"R must have 3 axes, got \[2, 3\]"),
        ("LSTM", {"B": ONE}, r"B must have shape \[1, 24\], got \[1, 2, 3\]"),
        ("LSTM", {"P": ONE}, r"P must have shape \[1, 9\], got \[1, 2, 3\]"),
        ("LSTM", {"W": np.ones((1, 12, 0), "float32")}, "W and R must have elements, got sizes 0"),
        (
            "LSTM",
            {"W": np.ones((1, 12, 2), "float16")},
            "all weights must be .*, got float16 for W",
        ),
        (
            "LSTM",
            {"W": np.ones((1, 12, 2))},
            "all weights must be float32, or float64, got float32",
        ),
        ("LSTM", {"W": np.ones((1, 12, 2), "int64")}, "all weights must be .*, got int64 for W"),
        ("LSTM", {"initial_h": ONE}, "initial_h must be 0 or come from an input of the graph"),
        ("LSTM", {"initial_c": ONE}, "initial_c must be 0 or come from an input of the graph"),
        (
            "RNN",
            {"sequence_lens": np.array([3, 5], np.int32)},
            r"sequence_lens must come from an input of the graph, got the constant \[3, 5\]",
        ),
    ],
)
def test_a_node_that_no_network_is(operator: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^the model: {operator} 'the_node': {message}"):
        load(single(operator, **changes))


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        (3, TypeError, "source must be a path, bytes or a model, got int"),
        (b"", ValueError, "the model: this is no ONNX model"),
        (b"text\n" * 9, ValueError, "the model: this is no ONNX model, or a damaged one"),
        (Path(__file__), ValueError, r"test_onnx\.py: this is no ONNX model, or a damaged one"),
        ("/dev/zero", ValueError, "/dev/zero is a device, not a file"),
        ("none.onnx", FileNotFoundError, "none.onnx"),
    ],
)
def test_what_is_no_model(source: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        load(source)


def test_a_node_is_named_by_a_string() -> None:
    wrong: Any = 0
    with pytest.raises(TypeError, match="node must be the name of a node, got int"):
        load(single(), wrong)


def test_a_state_that_is_made_of_constants_is_refused() -> None:
    """As a learned initial state that is expanded to the batch."""
    for value, is_refused in ((0.0, False), (0.5, True)):
        stored = single(initial_h=None)
        graph, helper = stored.graph, onnx.helper
        graph.initializer.append(
            onnx.numpy_helper.from_array(np.full((1, 1, 3), value, "float32"), "learned")
        )
        del graph.input[1]
        for number, node in enumerate(
            [
                helper.make_node("Shape", ["X"], ["shape"]),
                helper.make_node("Expand", ["learned", "shape"], ["initial_h"]),
            ]
        ):
            graph.node.insert(number, node)
        if is_refused:
            with pytest.raises(ValueError, match="initial_h must be 0 or come from an input"):
                load(stored)
        else:
            load(stored)


def test_damaged_files_raise_one_kind_of_error(model: cf.CharLM) -> None:
    """Whichever bits are wrong, and wherever the file ends."""
    whole = bytearray(to_model(cf.RNN(3, 4, 2, cell="gru", num_layers=2)).SerializeToString())
    rng = np.random.default_rng(0)
    outcomes = {True: 0, False: 0}
    for number in range(600):
        data = whole.copy()
        if number % 3 == 0:
            data = data[: rng.integers(len(data))]
        for place in rng.integers(len(data), size=number % 4) if data else ():
            data[place] = rng.integers(256)
        try:
            load(bytes(data))
        except ValueError:
            outcomes[False] += 1
        else:
            outcomes[True] += 1
    assert min(outcomes.values()) > 50


def test_constants_take_no_more_memory_than_the_file_is_worth() -> None:
    """A chain that doubles a constant 60 times is not computed."""
    stored, helper = single(W=None), onnx.helper
    nodes_before = [
        helper.make_node("Concat", [f"w{i}", f"w{i}"], [f"w{i + 1}"], axis=0) for i in range(60)
    ]
    graph = stored.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 64), "float32"), "w0"))
    nodes_before.append(helper.make_node("Identity", ["w60"], ["W"]))
    del graph.input[1]
    for number, node in enumerate(nodes_before):
        graph.node.insert(number, node)
    with pytest.raises(ValueError, match="W must be a constant of the file, got the computed 'W'"):
        load(stored)


# ---- the document -------------------------------------------------------------------------------


@pytest.mark.slow  # imports PyTorch
def test_the_document(model: cf.CharLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command writes the file that its blocks of Python, one program, begin with."""
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    document = (Path(__file__).parents[1] / "docs" / "onnx.md").read_text(encoding="utf-8")
    model.save(tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^charrnn-fast (.*)$", document, re.MULTILINE)
    assert main(command.split()) == 0
    blocks = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    made: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about itself
        exec("\n".join(blocks), made)
    assert made["text"].startswith("the ") and len(made["text"]) == 105
    assert repr(made["lstm"]) == "RNN(40, 64, cell='lstm', num_layers=2, dtype='float32')"
    feeds = {"x": made["x"], "lengths": np.array([31, 7, 50]), "h_0": made["h_0"]}
    found = made["session"].run(None, feeds)[0]
    case = FeatureCase("gru", num_layers=2, bidirectional=True, seq_len=50, hidden_size=64)
    assert_close("y", found, made["expected"], case.tolerance)
