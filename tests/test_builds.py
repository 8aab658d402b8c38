"""benchmarks/builds.py: two builds in turns. No times."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unsanitized("measures time")

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "builds.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, timeout=300
    )


def test_a_build_beside_itself_has_the_same_results() -> None:
    done = run(sys.executable, "--repeats", "1", "--only", "^(fit|step).*rnn")
    assert done.returncode == 0, done.stderr
    _, _, *rows = done.stdout.splitlines()
    assert [row.split(":")[0] for row in rows] == [
        "| step (cell, B, T, H, L)",
        "| fit (cell, B, T, H, L)",
    ]
    assert all(row.endswith(" | the same |") for row in rows)


def test_wrong_arguments() -> None:
    for arguments in ((), (sys.executable, "--repeats", "0")):
        done = run(*arguments)
        assert done.returncode == 2
        assert "give the Python of the other installation, and 1 or more" in done.stderr
    done = run("/bin/true", "--repeats", "1", "--only", "rnn")
    assert done.returncode == 1
    assert "ended at step" in done.stderr
