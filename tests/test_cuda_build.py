"""CHARRNN_CUDA: whether the CUDA kernels are built, for which cards, and what the build says.

Nothing here needs a card. nvcc compiles the library and the Python module where it is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.unsanitized("builds programs of its own"),
    pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed"),
]

ROOT = Path(__file__).parents[1]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")


def run(*command: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    # CMake breaks lines of messages
    return done.returncode, re.sub(r"\s+", " ", done.stdout + done.stderr)


def configure(folder: Path, cuda: str, *options: str, **environment: str) -> tuple[int, str]:
    options = ("-DCHARRNN_PYTHON=OFF", f"-DCHARRNN_CUDA={cuda}", *options)
    return run("cmake", "-S", str(ROOT), "-B", str(folder), *options, **environment)


@pytest.fixture
def smi(tmp_path: Path) -> str:
    """As on a machine with a card."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 8.0\n")
    program.chmod(0o755)
    return f"-DCHARRNN_NVIDIA_SMI={program}"


def test_auto_without_a_card(tmp_path: Path) -> None:
    code, said = configure(tmp_path, "AUTO", "-DCHARRNN_NVIDIA_SMI=false")
    assert code == 0 and "for the CPU alone: nvidia-smi finds no card" in said, said


def test_auto_without_nvcc(tmp_path: Path, smi: str) -> None:
    code, said = configure(tmp_path, "AUTO", smi, CUDACXX="/nowhere/nvcc")
    assert code == 0 and "for the CPU alone: there is a card, but no nvcc" in said, said


@needs_nvcc
def test_auto_with_a_card_that_does_not_work(tmp_path: Path, smi: str) -> None:
    trial = "int main() { return 1; }"
    code, said = configure(tmp_path, "AUTO", smi, f"-DCHARRNN_CUDA_TRIAL={trial}")
    assert code == 0 and "for the CPU alone: a program by nvcc does not run on the card" in said
    code, said = configure(tmp_path, "AUTO", smi, "-DCHARRNN_CUDA_TRIAL=int main() {")
    assert code == 0 and "for the CPU alone: nvcc does not compile for the card" in said


@needs_nvcc
def test_auto_with_a_card_builds_for_it(tmp_path: Path, smi: str) -> None:
    code, said = configure(tmp_path, "AUTO", smi, "-DCHARRNN_CUDA_TRIAL=int main() {}")
    assert code == 0 and "CUDA kernels for 80-real, by " in said, said


def test_what_is_asked_for_and_missing(tmp_path: Path) -> None:
    code, said = configure(tmp_path, "ON", CUDACXX="/nowhere/nvcc")
    assert code != 0 and "CHARRNN_CUDA=ON takes nvcc of CUDA 12.0 or later" in said, said
    python = f"-DPython_EXECUTABLE={sys.executable}"
    code, said = configure(tmp_path, "PIP", python)
    assert code != 0 and f"CHARRNN_CUDA=PIP takes nvcc of {sys.executable}, which has none" in said
    code, said = configure(tmp_path, "yes")
    assert code != 0 and "CHARRNN_CUDA must be AUTO, ON, PIP or OFF, got YES" in said, said


MOST_SPILLED = 96  # bytes of a thread: see docs/gpu.md

MODULE = """
import sys
sys.path.insert(0, sys.argv[1])
import _cuda
found = _cuda.probe()
print(found)
assert found["architectures"] == ["sm_80", "sm_90a", "compute_80"], found
assert found["runtime"] >= (12, 0)
if not found["devices"]:
    assert found["reason"], found
    for ask in (_cuda.device, _cuda.memory):
        try:
            ask(0)
        except RuntimeError as error:
            assert str(error) == found["reason"]
        else:
            raise AssertionError("there is no card")
if found["driver"] is None:
    assert found["reason"] == "there is no NVIDIA driver (libcuda.so.1)"
"""


@needs_nvcc
def test_nvcc_compiles_the_module(tmp_path: Path) -> None:
    """Without warnings, for every cell and optimizer; it answers without a card."""
    options = (
        "-DCHARRNN_PYTHON=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DCHARRNN_ISAS=x86_64_v3",
        "-DCMAKE_CUDA_ARCHITECTURES=80-real;90a-real;80-virtual",
        "-DCMAKE_CUDA_FLAGS=-Werror all-warnings -Xptxas -v",
    )
    code, said = configure(tmp_path, "ON", *options)
    assert code == 0, said
    code, said = run("cmake", "--build", str(tmp_path), "--target", "_cuda", "--verbose")
    assert code == 0, said
    frames = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill", said
    )
    spilled = {name: int(frame) for name, frame, spill in frames if spill != "0"}
    # Those that keep weights in registers may spill what other values take.
    assert len(frames) > 600 and all("persistent" in name for name in spilled), spilled
    assert max(spilled.values(), default=0) <= MOST_SPILLED, spilled
    code, said = run(sys.executable, "-c", MODULE, str(tmp_path))
    assert code == 0, said
