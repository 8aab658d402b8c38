"""The C++ library by itself, built without Python: its own tests, on every instruction set; the
symbols that its object files export; its headers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from charrnn_fast import _core

ROOT = Path(__file__).parent.parent

pytestmark = [
    pytest.mark.unsanitized("builds programs of its own, as the preset asan does"),
]


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    options = (
        "-DCHARRNN_PYTHON=OFF",
        "-DCHARRNN_TESTS=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    run("cmake", *generator, "-S", ROOT, "-B", folder, *options)
    run("cmake", "--build", folder, "--parallel", str(os.cpu_count() or 1))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("isa", _core.available_isas())
@pytest.mark.parametrize(
    "program",
    [
        "allocations",
        "bounds",
        "cells",
        "device",
        "executors",
        "kernels",
        "stream",
        "threads",
        "training",
    ],
)
def test_programs(build: Path, program: str, isa: str) -> None:
    """Each of tests/cpp, on every instruction set; its source says what it is about."""
    output = run(build / "tests" / "cpp" / f"test_{program}", CHARRNN_ISA=isa)
    assert f"instruction set {isa}" in output
    assert re.search(r"[1-9]\d* checks, 0 failures", output), output


@pytest.mark.slow
def test_python_on_a_device(build: Path) -> None:
    """Networks, models and trainers on a device that another module gives."""
    program = ROOT / "tests" / "device_results.py"
    output = run(sys.executable, program, build / "tests" / "cpp")
    assert re.search(r"[1-9]\d* results, 0 different", output), output


def test_a_device_is_a_capsule() -> None:
    with pytest.raises(TypeError, match=r"device must be None or a capsule called .*, got int"):
        _core.ModelFloat32("gru", 2, 3, 0, 1, "none", device=3)


@pytest.mark.slow
def test_kernel_objects_export_one_table_each(build: Path) -> None:
    """Also those for instruction sets that this machine does not run."""
    output = run("ctest", "--test-dir", build, "-R", "^exports_", "--output-on-failure")
    found = re.search(r"100% tests passed.* (\d+)\s*$", output, re.MULTILINE)
    assert found and int(found[1]) >= 2 * len(_core.available_isas()), output


@pytest.mark.slow
def test_public_headers_need_nothing_else(tmp_path: Path) -> None:
    """Each header of the C++ API compiles by itself: no Python, no pybind11, no CUDA."""
    headers = sorted((ROOT / "cpp" / "include").rglob("*.hpp"))
    assert headers
    source = tmp_path / "header.cpp"
    compiler = os.environ.get("CXX", "c++")
    for header in headers:
        source.write_text(f'#include "{header}"\n')
        include = f"-I{ROOT / 'cpp' / 'include'}"
        run(compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", include, source)
        assert not re.search(r"#include\s*[<\"](Python|pybind11|cuda)", header.read_text()), header


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_cells_compile_as_device_code(tmp_path: Path) -> None:
    output = run(
        "nvcc",
        "-std=c++20",
        "-arch=sm_80",
        "-Xptxas=-v",
        f"-I{ROOT / 'cpp' / 'include'}",
        f"-I{ROOT / 'cuda'}",
        "-c",
        ROOT / "cuda" / "kernels" / "pointwise.cu",
        "-o",
        tmp_path / "pointwise.o",
    )
    spills = re.findall(r"(\d+) bytes spill stores", output)
    # each cell, forward and backward, in two precisions
    assert len(spills) == 4 * len(_core.cells)
    assert set(spills) == {"0"}
