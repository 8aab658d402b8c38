"""The C++ library in installations by pip: where it is, and projects that are built against it."""

from __future__ import annotations

import io
import os
import platform
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import charrnn_fast as cf
from charrnn_fast import _core
from charrnn_fast.cli import main
from installed import (
    ROOT,
    Environment,
    build_and_check,
    check_printed,
    run,
    run_here,
    write_project,
)

pytestmark = pytest.mark.unsanitized("its library is not installed")

PROJECT = """
[build-system]
requires = ["scikit-build-core", "charrnn_fast"]
build-backend = "scikit_build_core.build"

[project]
name = "stranger"
version = "1.0"

[tool.scikit-build]
search.site-packages = false  # by the entry point cmake.prefix alone
"""
SCRIPTS = "\ninstall(TARGETS layer train DESTINATION ${SKBUILD_SCRIPTS_DIR})\n"


def test_the_folders_of_headers_and_cmake(capsys: pytest.CaptureFixture[str]) -> None:
    assert Path(cf.get_include(), "charrnn_fast", "network.hpp").is_file()
    assert Path(cf.get_cmake_dir(), "charrnn_fast-config.cmake").is_file()
    with pytest.raises(SystemExit) as stop:
        main(["--cmakedir"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"{cf.get_cmake_dir()}\n"


def test_without_the_library_an_error_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a folder into which only the module was copied."""
    monkeypatch.setattr(_core, "__file__", str(tmp_path / "_core.so"))
    for find in (cf.get_include, cf.get_cmake_dir):
        with pytest.raises(FileNotFoundError, match="install charrnn_fast with pip"):
            find()
    assert main(["--cmakedir"]) == 2
    assert capsys.readouterr().err == (
        f"charrnn-fast: error: {tmp_path}/lib/cmake/charrnn_fast: "
        "the C++ library is not there; install charrnn_fast with pip\n"
    )


def test_the_version_is_the_projects() -> None:
    line = f'version = "{cf.__version__}"'
    assert line in (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    header = Path(cf.get_include(), "charrnn_fast", "version.hpp").read_text(encoding="utf-8")
    assert f'#define CHARRNN_VERSION "{cf.__version__}"\n' in header


def test_a_wheel_is_below_7_megabytes() -> None:
    """The files of this installation, packed as in a wheel with all instruction sets.

    An editable installation lacks some sets. Each of their kernels counts as the mean of those for
    its number type that are there, in the three files that hold them: an estimate, so its bound is
    wider.
    """
    archive = io.BytesIO()
    native = Path(_core.__file__ or "").parent
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        for folder in {native, Path(cf.__file__).parent}:
            for file in folder.rglob("*"):
                if file.is_file() and "__pycache__" not in file.parts:
                    wheel.write(file, file.relative_to(folder))
    assert any(name.endswith("libcharrnn_fast.a") for name in wheel.namelist())
    # x86-64-v4-bf16 has no kernels for double.
    every = {"f": 4, "d": 3} if platform.machine() == "x86_64" else {"f": 1, "d": 1}
    size, missing = float(len(archive.getvalue())), 0
    kernels = list(_kernel_objects(native / "lib" / "libcharrnn_fast.a"))
    assert len(kernels) >= 2 * len(_core.available_isas()) - 1
    for number_type, count in every.items():
        sizes = [size for found, size in kernels if found == number_type]
        missing += count - len(sizes)
        size += 3 * (count - len(sizes)) * sum(sizes) / len(sizes)
    assert size < (7.5e6 if missing else 7e6)


def _kernel_objects(archive: Path) -> Iterator[tuple[str, int]]:
    """Of an archive's objects of the kernels: the number type, f or d, and the compressed size."""
    data, at = archive.read_bytes(), len(b"!<arch>\n")
    while at < len(data):
        name, size = data[at : at + 16], int(data[at + 48 : at + 58])
        if name.startswith(b"kernels.cpp.o/"):
            member = data[at + 60 : at + 60 + size]
            yield "d" if b"7kernelsEd\0" in member else "f", len(zlib.compress(member))
        at += 60 + size + size % 2


@pytest.fixture(params=["regular", "editable"])
def environment(request: pytest.FixtureRequest) -> Environment:
    made: Environment = request.getfixturevalue(request.param)
    return made


@pytest.mark.slow
def test_a_project_finds_the_package(environment: Environment) -> None:
    folder = environment.root / "project"
    folder.mkdir()
    cmake_dir = environment.python("-m", "charrnn_fast", "--cmakedir").strip()
    assert cmake_dir.startswith(str(environment.root))
    build_and_check(folder, cmake_dir)


@pytest.mark.slow
def test_a_compiler_finds_the_headers(environment: Environment) -> None:
    folder = environment.root / "compiled"
    folder.mkdir()
    write_project(folder)
    show = "import charrnn_fast as cf; print(cf.get_include())"
    include = environment.python("-c", show).strip()
    library = Path(include).parent / "lib" / "libcharrnn_fast.a"
    compiler = os.environ.get("CXX", "c++")
    strict = ("-std=c++17", "-Wall", "-Wextra", "-pedantic", "-Werror")
    source, program = folder / "layer.cpp", folder / "layer"
    run(compiler, *strict, f"-I{include}", source, library, "-pthread", "-o", program)
    check_printed("layer", run_here(program))


@pytest.mark.slow
def test_a_python_package_builds_upon_it(environment: Environment) -> None:
    """By scikit-build-core, which finds it without any path."""
    folder = environment.root / "package"
    folder.mkdir()
    write_project(folder)
    (folder / "pyproject.toml").write_text(PROJECT, encoding="utf-8")
    with (folder / "CMakeLists.txt").open("a", encoding="utf-8") as file:
        file.write(SCRIPTS)
    environment.install("scikit-build-core")
    environment.install("--no-build-isolation", folder)
    for program in ("train", "layer"):
        check_printed(program, run_here(environment.root / "bin" / program))


@pytest.mark.slow
def test_the_example_writes_the_text_that_python_writes(environment: Environment) -> None:
    folder = environment.root / "example"
    shutil.copytree(ROOT / "examples" / "embed_cpp", folder)
    build = folder / "build"
    command = ("-m", "charrnn_fast")
    prefix = environment.python(*command, "--cmakedir").strip()
    run("cmake", "-S", folder, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", build)
    text = folder / "text.txt"
    text.write_text("zwölf boxkämpfer jagen viktor über den deich\n" * 40, encoding="utf-8")
    model = folder / "m.safetensors"
    sizes = ("--hidden-size", "16", "--batch-size", "4", "--seq-len", "20", "--steps", "30")
    environment.python(*command, "train", text, "-o", model, *sizes)
    for seed, temperature, prime in (("1", "1", ""), ("18446744073709551615", "0.7", "über ")):
        options = ("--length", "200", "--seed", seed, "--temperature", temperature)
        expected = environment.python(*command, "sample", model, *options, "--prime", prime)
        assert run(build / "write_text", model, "200", seed, temperature, prime) == expected
