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
    assert code != 0 and "CHARRNN_CUDA=ON takes nvcc of CUDA 12.1 or later" in said, said
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


PROJECT = """
cmake_minimum_required(VERSION 3.20)
project(uses_cuda LANGUAGES C CXX)
find_package(charrnn_fast CONFIG REQUIRED COMPONENTS core c cuda)
add_executable(in_cpp in_cpp.cpp)
target_link_libraries(in_cpp PRIVATE charrnn_fast::core charrnn_fast::cuda)
add_executable(in_c in_c.c)
target_link_libraries(in_c PRIVATE charrnn_fast::c)
"""
IN_CPP = """
#include <cstdio>
#include <stdexcept>
#include "charrnn_fast/cuda.hpp"
#include "charrnn_fast/model.hpp"

int main() {
  const charrnn_fast::CudaCards cards = charrnn_fast::cuda_cards();
  try {
    charrnn_fast::NetworkShape shape{"gru", 5, 6, 4};
    charrnn_fast::Model<float> model(shape, charrnn_fast::cuda_device());
    const charrnn_fast::CudaStreamScope scope(charrnn_fast::cuda_stream());
    std::printf("%s", model.network().device().name);
  } catch (const std::runtime_error& error) {
    std::printf("%s", error.what());
    return cards.why_not == error.what() ? 0 : 1;
  }
}
"""
IN_C = """
#include <stdio.h>
#include "charrnn_fast/charrnn_fast.h"

int main(void) {
  const charrnn_status status = charrnn_device_status("cuda");
  printf("%s", status == CHARRNN_OK ? "cuda" : charrnn_last_error());
  return status != CHARRNN_OK && status != CHARRNN_NO_DEVICE;
}
"""


@needs_nvcc
def test_nvcc_compiles_the_package(tmp_path: Path) -> None:
    """Without warnings, for every cell and optimizer; it answers without a card, in Python, C++ and
    C.
    """
    options = (
        "-DCHARRNN_PYTHON=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11_folder()}",
        "-DCHARRNN_ISAS=x86_64_v3",
        "-DCHARRNN_MODULE_FLAGS=-O0",  # the other module, which is not loaded here
        "-DCMAKE_CUDA_ARCHITECTURES=80-real;90a-real;80-virtual",
        "-DCMAKE_CUDA_FLAGS=-Werror all-warnings -Xptxas -v",
    )
    build, prefix, program = tmp_path / "build", tmp_path / "prefix", tmp_path / "program"
    code, said = configure(build, "ON", *options)
    assert code == 0, said
    code, said = run("cmake", "--build", str(build), "--parallel", "2", "--verbose")
    assert code == 0, said
    frames = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill", said
    )
    spilled = {name: int(frame) for name, frame, spill in frames if spill != "0"}
    # Those that keep weights in registers may spill what other values take.
    assert len(frames) > 600 and all("persistent" in name for name in spilled), spilled
    assert max(spilled.values(), default=0) <= MOST_SPILLED, spilled
    code, said = run("cmake", "--install", str(build), "--prefix", str(prefix))
    assert code == 0, said
    package = prefix / "charrnn_fast"
    code, in_python = run(sys.executable, "-c", MODULE, str(package))
    assert code == 0, in_python

    program.mkdir()
    for name, text in (("CMakeLists.txt", PROJECT), ("in_cpp.cpp", IN_CPP), ("in_c.c", IN_C)):
        (program / name).write_text(text)
    found = f"-DCMAKE_PREFIX_PATH={package}"
    code, said = run("cmake", "-S", str(program), "-B", str(program / "build"), found)
    assert code == 0, said
    code, said = run("cmake", "--build", str(program / "build"))
    assert code == 0, said
    code, in_cpp = run(str(program / "build" / "in_cpp"))
    assert code == 0, in_cpp
    code, in_c = run(str(program / "build" / "in_c"))
    assert code == 0 and in_c == in_cpp, in_c
    assert in_cpp == "cuda" or in_cpp in in_python


def pybind11_folder() -> str:
    pybind11 = pytest.importorskip("pybind11")
    return str(pybind11.get_cmake_dir())
