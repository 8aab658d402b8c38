"""Every instruction set of this machine, each by CHARRNN_ISA in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from cases import UNITS, Case, run
from charrnn_fast import _core, build_info
from tolerances import assert_close, network

TESTS = Path(__file__).parent
ISAS = _core.available_isas()
CORE_TESTS = (
    "test_gradients.py",
    "test_parity_numpy.py",
    "test_bits.py",
    "test_math.py",
    "test_losses.py",
    "test_masks.py",
    "test_feature_bits.py",
)


def _python(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CHARRNN_ISA": isa}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=TESTS, capture_output=True, text=True)


def test_the_best_set_is_in_use_unless_told_otherwise() -> None:
    expected = os.environ.get("CHARRNN_ISA") or ISAS[0]
    assert build_info()["isa"] == expected
    assert len(ISAS) == len(set(ISAS)) > 0


@pytest.mark.parametrize("isa", ISAS)
def test_override(isa: str) -> None:
    done = _python(isa, "-c", "import charrnn_fast as cf; print(cf.build_info()['isa'])")
    assert (done.stdout, done.stderr) == (f"{isa}\n", "")


def test_an_unknown_set_is_refused_at_first_use() -> None:
    done = _python("x86-64-v9", "-c", "from charrnn_fast import RNN")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    for part in ("CHARRNN_ISA", "x86-64-v9", *ISAS):
        assert part in last


# the set in use has the whole suite
@pytest.mark.slow
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != build_info()["isa"]])
def test_core_tests_pass(isa: str) -> None:
    options = ("-q", "-x", "-p", "no:cacheprovider", "--hypothesis-profile=quick", "-n0")
    every = ("-m", "not exhaustive")
    done = _python(isa, "-m", "pytest", *options, *every, *CORE_TESTS)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


RUN = """
import json, sys
from cases import Case, run
case = Case(**json.loads(sys.argv[1]))
print(json.dumps({name: value.tolist() for name, value in run(case.network(), case).items()}))
"""


@pytest.mark.parametrize("unit", UNITS)
def test_sets_agree_within_tolerance(unit: str) -> None:
    """The same weights and results everywhere: a checkpoint means the same on another machine."""
    case = Case(unit, 2, seq_len=8, batch=5, input_size=9, hidden_size=21, output_size=7)
    expected = run(case.network(), case)
    tolerance = 2 * network(case.dtype, terms=case.terms, steps=case.steps)
    for isa in ISAS:
        done = _python(isa, "-c", RUN, json.dumps(asdict(case)))
        assert done.returncode == 0, done.stderr
        for name, value in json.loads(done.stdout).items():
            assert_close(f"{name} by {isa}", np.array(value), expected[name], tolerance)
