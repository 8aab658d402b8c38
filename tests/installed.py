"""The package as others install it, and projects of theirs that use its C++ library.

Projects and environments lie outside of the repository. A build takes minutes, so one serves all
tests that need one: of a copy of the package that has a cell more (tests/cpp/leaky_rnn.hpp), with
kernels for one instruction set, compiled in a third of the time.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "cpp.md"

# What an environment of another installation must not see of this one.
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CHARRNN_ISA", "CMAKE_PREFIX_PATH")


def run(
    *command: str | Path, cwd: Path | None = None, variables: Mapping[str, str] | None = None
) -> str:
    """What a program prints; it must succeed. variables: of its environment, in addition."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**kept, **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}"
    return done.stdout


# ---- the document's project ------------------------------------------------------------------


def write_project(folder: Path) -> None:
    """The build file and the programs of the document about C++."""
    spec = importlib.util.spec_from_file_location("docs_run", ROOT / "docs" / "run.py")
    assert spec is not None and spec.loader is not None
    docs_run: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs_run)
    docs_run.write_files(DOCUMENT, folder)


def documented(program: str) -> str:
    """What a program prints there, on x86-64-v3."""
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(rf"^\$ build/{program}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def check_printed(program: str, printed: str) -> None:
    """The same as in the document; on other instruction sets, of the same form."""
    from charrnn_fast import _core

    if "x86-64-v3" in _core.available_isas():
        assert printed == documented(program)
    else:
        number = re.compile(r"-?\d+\.\d+")
        assert number.sub("#", printed) == number.sub("#", documented(program))


def build_and_check(folder: Path, prefix: str | Path, *options: str) -> None:
    """Builds the document's project against an installation, and checks what it prints."""
    write_project(folder)
    run("cmake", "-S", folder, "-B", folder / "build", f"-DCMAKE_PREFIX_PATH={prefix}", *options)
    run("cmake", "--build", folder / "build")
    for program in ("train", "layer"):
        check_printed(program, run_here(folder / "build" / program))


def run_here(program: Path) -> str:
    """What a program with the kernels prints, on the document's instruction set if it runs here."""
    from charrnn_fast import _core

    isa = "x86-64-v3"
    return run(program, variables={"CHARRNN_ISA": isa} if isa in _core.available_isas() else {})


# ---- wheels and environments -----------------------------------------------------------------

_TWIN = """
def _leaky(gx: Array, gh: Array, prev: States) -> tuple[States, States]:
    h, p = prev
    n, rate = np.tanh(gx + gh), sigmoid(p[0])
    return (h + rate * (n - h),), (n,)


def _leaky_backward(saved: States, prev: States, dnext: States) -> tuple[Array, Array, States]:
    (n,), (h, p), (dh,) = saved, prev, dnext
    rate = sigmoid(p[0])
    dg = dh * rate * (1 - n * n)
    dp = (dh * (n - h) * rate * (1 - rate)).sum(0)[None]
    return dg, dg, (dh * (1 - rate), dp)


CELLS["leaky_rnn", "tanh"] = Cell(1, 1, _leaky, _leaky_backward, weights=("rate", 1))
"""

_BUILD = """
import sys
from scikit_build_core import build

kind, folder, *settings = sys.argv[1:]
options = dict(setting.split("=", 1) for setting in settings)
getattr(build, kind)(folder, options)
"""


class Environment(NamedTuple):
    """A new virtual environment in which the package is installed."""

    root: Path

    def python(self, *arguments: str | Path, cwd: Path | None = None) -> str:
        return run(self.root / "bin" / "python", *arguments, cwd=cwd or self.root)

    def install(self, *arguments: str | Path) -> None:
        self.python("-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments)


def copy_with_a_cell_more(root: Path) -> None:
    """The package's sources, whose cells are one more: its struct, its entry and its twin."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    for name in ("cpp", "cmake", "python"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    header = (ROOT / "tests" / "cpp" / "leaky_rnn.hpp").read_text(encoding="utf-8")
    struct = header[header.index("// h' = h") : header.rindex("}  // namespace")]
    cells = root / "cpp" / "include" / "charrnn_fast" / "cells.hpp"
    text = cells.read_text(encoding="utf-8")
    for before, after in (
        (
            "template <class C>\nconstexpr CellInfo",
            struct + "template <class C>\nconstexpr CellInfo",
        ),
        ("CoupledLstm>;", "CoupledLstm, LeakyRnn>;"),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    cells.write_text(text, encoding="utf-8")
    with (root / "python" / "charrnn_fast" / "reference" / "cells.py").open("a") as twin:
        twin.write(_TWIN)


@pytest.fixture(scope="session")
def outside() -> Iterator[Path]:
    """A folder outside of the repository, which goes at the end."""
    with tempfile.TemporaryDirectory(prefix="installed-") as folder:
        yield Path(folder).resolve()


@pytest.fixture(scope="session")
def wheels(outside: Path) -> Path:
    """A folder of two folders of one wheel: `regular`, and the `editable` one of `pip install -e`.

    They are built by pip's own calls of the build backend.
    """
    import sanitized

    sources = outside / "sources"
    copy_with_a_cell_more(sources)
    settings = (
        "build-dir=build",
        f"cmake.define.CHARRNN_ISAS={sanitized.instruction_set()}",
        "cmake.define.CHARRNN_KERNEL_FLAGS=-O1",
        "cmake.define.CHARRNN_MODULE_FLAGS=-O1",
    )
    for kind in ("regular", "editable"):
        hook = "build_wheel" if kind == "regular" else "build_editable"
        folder = outside / "wheels" / kind
        folder.mkdir(parents=True)
        run(sys.executable, "-c", _BUILD, hook, folder, *settings, cwd=sources)
    return outside / "wheels"


def _environment(root: Path, wheels: Path) -> Environment:
    run(sys.executable, "-m", "venv", root)
    made = Environment(root)
    (wheel,) = wheels.glob("*.whl")
    made.install(wheel)
    return made


@pytest.fixture(scope="session")
def regular(outside: Path, wheels: Path) -> Environment:
    return _environment(outside / "regular", wheels / "regular")


@pytest.fixture(scope="session")
def editable(outside: Path, wheels: Path) -> Environment:
    return _environment(outside / "editable", wheels / "editable")
