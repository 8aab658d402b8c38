"""Devices for the tests: the emulated one, and any device in place of the CPU.

``pytest --device emulated tests/test_operators.py`` runs tests of the CPU on the CUDA kernels, by
the emulator (tests/cuda); ``--device cuda`` on a GPU.
"""

from __future__ import annotations

import fcntl
import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import charrnn_fast as cf
from charrnn_fast import _devices, device_array

FOLDER = Path(__file__).parent / "cuda"
BUILT = Path(__file__).parents[1] / "build" / "emulated"
NAME = "emulated"
MODULE = "emulated_device"


def build(*targets: str, sanitizer: str = "") -> Path:
    """Builds targets of tests/cuda, by default all; returns the folder.

    It is the same for all processes and runs: what has not changed is there already.
    """
    folder = BUILT / (sanitizer or "plain")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _build(folder, targets, sanitizer)
    return folder


def _build(folder: Path, targets: tuple[str, ...], sanitizer: str) -> None:
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [
        f"-DCUDA_EMULATOR_SANITIZE={sanitizer}",
        f"-DCMAKE_PREFIX_PATH={cf.get_cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-Ucharrnn_fast_DIR",  # of an earlier run, with another installation
    ]
    chosen = ["--target", *targets] if targets else []
    for command in (
        ["cmake", *generator, "-S", str(FOLDER), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--parallel", "2", *chosen],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def register(folder: Path) -> ModuleType:
    """Makes the device of a module in a folder known as "emulated"; returns the module."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    module = importlib.import_module(MODULE)
    _devices.register(NAME, module.device(0))
    device_array.register(NAME, module)
    return module


def in_place_of_the_cpu(name: str) -> None:
    """Puts every network that asks for the CPU, as by default, on another device."""
    find = _devices.find

    def found(asked: object) -> _devices.Device:
        return find(name if asked == _devices.CPU.name else asked)

    setattr(_devices, "find", found)  # noqa: B010 - mypy takes no other function
