"""The C++ library by itself, built without Python: its own tests, on every instruction set; the
symbols that its object files export; its headers; what `cmake --install` puts where, as a stranger
uses it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import charrnn_fast as cf
from charrnn_fast import _core
from installed import ROOT, build_and_check, check_printed, run, run_here, write_project

ABI_VERSION = 1  # of C

pytestmark = [
    pytest.mark.unsanitized("builds programs of its own, as the preset asan does"),
]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    options = (
        "-DCHARRNN_PYTHON=OFF",
        "-DCHARRNN_TESTS=ON",
        "-DCHARRNN_ISAS=CHECKED",
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
    output = run(build / "tests" / "cpp" / f"test_{program}", variables={"CHARRNN_ISA": isa})
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


def tables_of_sets() -> set[str]:
    """The kernels of the sets that this machine runs. One set takes another's for double."""
    tables = {
        f"charrnn_fast::{isa.replace('-', '_')}::kernels({scalar})"
        for isa in _core.available_isas()
        for scalar in ("float", "double")
    }
    return tables - {"charrnn_fast::x86_64_v4_bf16::kernels(double)"}


@pytest.mark.slow
def test_kernel_objects_export_one_table_each(build: Path) -> None:
    """Also those for instruction sets that this machine does not run."""
    output = run("ctest", "--test-dir", build, "-R", "^exports_", "--output-on-failure")
    found = re.search(r"100% tests passed.* (\d+)\s*$", output, re.MULTILINE)
    assert found and int(found[1]) >= len(tables_of_sets()), output


HEADERS = sorted((ROOT / "cpp" / "include").rglob("*.h*"))


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_public_headers_need_c17_and_nothing_else(compiler: str, tmp_path: Path) -> None:
    """Each compiles by itself: no later standard, no extension, no folder but theirs."""
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    assert HEADERS
    source = tmp_path / "header.cpp"
    include = f"-I{ROOT / 'cpp' / 'include'}"
    strict = ("-std=c++17", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only")
    for header in HEADERS:
        source.write_text(f'#include "{header}"\n')
        run(compiler, *strict, include, source)


def test_public_headers_name_no_private_one() -> None:
    private = [
        file.relative_to(ROOT / "cpp" / "src").as_posix()
        for file in (ROOT / "cpp" / "src").rglob("*.h*")
    ]
    assert "errors.hpp" in private and "internal/cell_kernels.hpp" in private
    names = "|".join(re.escape(name.rpartition("/")[2]) for name in private)
    for header in HEADERS:
        text = header.read_text(encoding="utf-8")
        assert not re.search(r"#include\s*[<\"](Python|pybind11|cuda)", text), header
        assert not re.search(rf"(?<![\w./])([\w./]+/)?({names})\b", text), header


# ---- installed -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prefix(build: Path, outside: Path) -> Path:
    """Where the library is installed: not where it was installed first."""
    run("cmake", "--install", build, "--prefix", outside / "first")
    return (outside / "first").rename(outside / "moved")


@pytest.mark.slow
def test_what_is_installed(prefix: Path) -> None:
    files = {file.relative_to(prefix).as_posix() for file in prefix.rglob("*") if not file.is_dir()}
    ours = ROOT / "cpp"
    headers = {header.relative_to(ours).as_posix() for header in HEADERS}
    assert {name for name in files if name.startswith("include/")} == {
        *headers,
        "include/charrnn_fast/version.hpp",
    }
    package = "lib/cmake/charrnn_fast/charrnn_fast"
    assert {name for name in files if name.startswith("lib/")} == {
        "lib/libcharrnn_fast.a",
        "lib/libcharrnn_fast_c.so",
        f"lib/libcharrnn_fast_c.so.{ABI_VERSION}",
        "lib/pkgconfig/charrnn_fast.pc",
        "lib/pkgconfig/charrnn_fast_c.pc",
        *(f"{package}-{part}.cmake" for part in ("config", "config-version", "targets")),
        f"{package}-targets-release.cmake",
    }
    assert all(name.startswith(("include/", "lib/")) for name in files)


@pytest.mark.slow
def test_the_installed_archive_is_machine_code_for_any_machine(prefix: Path) -> None:
    """It has no intermediate code, debug information or path of where it was built. Its kernels
    export one table each, and only they have instructions of their sets."""
    archive = prefix / "lib" / "libcharrnn_fast.a"
    sections = run("objdump", "-h", archive)
    assert " .text" in sections
    assert not re.search(r" \.(gnu\.lto|llvmbc|debug)", sections)
    assert str(ROOT).encode() not in archive.read_bytes()

    exports = [
        [symbol.split(" ", 2)[2] for symbol in symbols.splitlines() if symbol]
        for name, symbols in _members(run("nm", "-C", "--defined-only", "--extern-only", archive))
        if name.startswith("kernels.")
    ]
    assert all(len(symbols) == 1 for symbols in exports)
    assert tables_of_sets() <= {symbols[0] for symbols in exports}

    if platform.machine() == "x86_64":
        wide = re.compile(r"\tv[a-z0-9]+ .*%[xyz]mm|%[yz]mm|%k[0-7]\b")
        code = run("objdump", "-d", "--no-show-raw-insn", archive)
        assert {name for name, text in _members(code) if wide.search(text)} == {"kernels.cpp.o"}


def _members(output: str) -> Iterator[tuple[str, str]]:
    """What nm or objdump print about each object of an archive, with its name."""
    parts = re.split(r"^(\S+\.o):.*$", output, flags=re.MULTILINE)
    return zip(parts[1::2], parts[2::2], strict=True)


@pytest.mark.slow
def test_a_project_finds_the_installed_library(prefix: Path) -> None:
    folder = prefix / "project"
    folder.mkdir()
    build_and_check(folder, prefix)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pkg-config") is None, reason="needs pkg-config")
def test_pkg_config_finds_the_installed_library(prefix: Path) -> None:
    folder = prefix / "by hand"
    folder.mkdir()
    write_project(folder)
    where = {"PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")}
    assert (
        run("pkg-config", "--modversion", "charrnn_fast", variables=where).strip() == cf.__version__
    )
    flags = run("pkg-config", "--cflags", "--libs", "charrnn_fast", variables=where).split()
    compiler = os.environ.get("CXX", "c++")
    program = folder / "layer"
    run(compiler, "-std=c++17", folder / "layer.cpp", *flags, "-o", program)
    check_printed("layer", run_here(program))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("CONFIG REQUIRED COMPONENTS core", ""),
        ("0.1 CONFIG REQUIRED", ""),
        ("CONFIG REQUIRED COMPONENTS core tpu", "this charrnn_fast has no component tpu"),
        ("9.9 CONFIG REQUIRED", 'compatible with requested version "9.9"'),
    ],
)
def test_what_find_package_wants(prefix: Path, wanted: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(wants LANGUAGES CXX)\n"
        f"find_package(charrnn_fast {wanted})\n"
    )
    options = ("-S", str(tmp_path), "-B", str(tmp_path / "build"), f"-DCMAKE_PREFIX_PATH={prefix}")
    done = subprocess.run(["cmake", *options], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (not message), done.stderr
    assert message in " ".join(done.stderr.split())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ninja") is None, reason="needs ninja, which lists its steps")
def test_a_project_has_the_sources_in_it(outside: Path) -> None:
    """The whole of the library is a folder of another project: it neither builds the Python module
    nor installs anything. Listed, not built: that takes minutes."""
    folder = outside / "with sources"
    folder.mkdir()
    write_project(folder)
    build_file = folder / "CMakeLists.txt"
    text = build_file.read_text(encoding="utf-8")
    (find,) = re.findall(r"^find_package.*$", text, re.MULTILINE)
    build_file.write_text(text.replace(find, f"add_subdirectory({ROOT} charrnn_fast)"))
    run("cmake", "-G", "Ninja", "-S", folder, "-B", folder / "build")
    steps = run("cmake", "--build", folder / "build", "--", "-n", "-v")
    assert re.search(r"-o layer .*charrnn_fast/libcharrnn_fast\.a", steps)
    assert "bindings" not in steps
    run("cmake", "--install", folder / "build", "--prefix", folder / "prefix")
    assert not list(folder.glob("prefix/**/*charrnn*"))
