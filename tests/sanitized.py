"""Runs pytest with the module built under the address and undefined-behaviour sanitizers.

    python tests/sanitized.py [arguments of pytest]

An out-of-bounds access, a use after free or undefined behaviour, in the module or in NumPy on its
behalf, is a failed test, and its place is printed at the end. Without arguments, runs the whole
suite except tests marked `unsanitized` or `exhaustive`. Needs the installed package, CMake, Ninja,
pybind11 and GCC (or `CXX`). Memory that the interpreter keeps at its end is not a leak, so this
does not look for leaks; the preset `asan` does in the C++ tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pybind11

from charrnn_fast import _core

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "asan-python"
SITE = BUILD / "site"
REPORT = BUILD / "report"  # the sanitizers', with a dot and the process behind it
PRESET = "asan-python"

# An installed package that is editable comes by an importer of its own, before any path.
SITECUSTOMIZE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "ScikitBuildRedirectingFinder"]
"""


def instruction_set() -> str:
    """The one to build for, as a full build takes long: one whose partial loads are plain copies.

    Those of AVX-512 are single instructions, into which the sanitizers do not look. The installed
    module may lack x86-64-v3, but every machine with a later set has it.
    """
    best = _core.available_isas()[0]
    chosen = "x86-64-v3" if best.startswith("x86-64-v4") else best
    return chosen.replace("-", "_")


def build() -> None:
    settings = {
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "CHARRNN_ISAS": instruction_set(),
    }
    options = [f"-D{name}={value}" for name, value in settings.items()]
    subprocess.check_call(["cmake", "--preset", PRESET, *options], cwd=ROOT)
    command = ["cmake", "--build", "--preset", PRESET, "--target", "_core"]
    subprocess.check_call(command, cwd=ROOT)


def make_site() -> None:
    """A folder to import from: the package's files as they are, and the module just built."""
    package = SITE / "charrnn_fast"
    package.mkdir(parents=True, exist_ok=True)
    for link in package.iterdir():
        link.unlink()
    for file in (ROOT / "python" / "charrnn_fast").iterdir():
        if file.suffix != ".so" and file.name != "__pycache__":
            (package / file.name).symlink_to(file)
    (module,) = BUILD.glob("_core*.so")
    (package / module.name).symlink_to(module)
    (SITE / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="ascii")


def libraries() -> list[str]:
    """Those that have to be there before Python is: the sanitizer's, and C++'s, which throws."""
    compiler = os.environ.get("CXX", "c++")
    found = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        output = subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        if os.path.isabs(output):
            found.append(os.path.realpath(output))
    if len(found) < 3:
        sys.exit(f"{compiler} has no libasan.so, libubsan.so and libstdc++.so, but {found}")
    return found


def check_watching(environment: dict[str, str]) -> None:
    """That the module is the sanitized one, and that a read past the end of an array is found."""
    check = "import charrnn_fast._core as core; print(core.__file__)"
    used = subprocess.check_output([sys.executable, "-c", check], env=environment, text=True)
    if not used.startswith(str(SITE)):
        sys.exit(f"imported {used.strip()}, which is not the sanitized module in {SITE}")
    read = "import ctypes, numpy; ctypes.string_at(numpy.zeros(4, 'u1').ctypes.data, 64)"
    if subprocess.run([sys.executable, "-c", read], env=environment, check=False).returncode == 0:
        sys.exit("a read past the end of an array was not found: the sanitizer does not watch")


def remove_reports() -> None:
    for report in BUILD.glob(f"{REPORT.name}.*"):
        report.unlink()


def main() -> int:
    build()
    make_site()
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(libraries()),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")])),
        "PYTHONMALLOC": "malloc",  # or the small arrays of Python's own pools were not watched
        # Into files: pytest keeps the standard error of a test to itself, and would end with it.
        "ASAN_OPTIONS": f"detect_leaks=0:detect_stack_use_after_return=0:log_path={REPORT}",
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={REPORT}",
    }
    remove_reports()
    check_watching(environment)
    remove_reports()
    # What the sanitizers find ends a process of pytest-xdist, which names the test that it ran.
    options = ["-m", "not unsanitized and not exhaustive"]
    command = [sys.executable, "-m", "pytest", *options, *sys.argv[1:]]
    status = subprocess.call(command, cwd=ROOT, env=environment)
    for report in sorted(BUILD.glob(f"{REPORT.name}.*")):
        print(report.read_text(errors="replace"), file=sys.stderr)
        status = status or 1
    return status


if __name__ == "__main__":
    sys.exit(main())
