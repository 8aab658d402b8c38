"""The machine of a measurement: its facts, its FMA peak and its read bandwidth."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from .errors import BenchError


def facts() -> dict[str, Any]:
    """The processor, the build and the versions; the commit where this runs from a checkout."""
    info = _core.build_info()
    return {
        "processor": _processor(),
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "isa": info["isa"],
        "compiler": info.get("compiler"),
        "charrnn_fast": info["version"],
        "commit": _commit(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def cores() -> int:
    """The number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Peak(NamedTuple):
    """rate: FLOP/s or bytes/s; free: the share of its cores' time that the measurement got."""

    rate: float
    free: float


def fma_peak(threads: int, seconds: float) -> Peak:
    """FLOP/s of this many threads at once, in registers."""
    return _together(threads, lambda: _core.fma_peak("float32", seconds))


def read_bandwidth(size: float, threads: int, seconds: float) -> Peak:
    """Bytes/s of this many threads, each repeatedly reading its share of `size` bytes."""
    share = max(64, int(size) // threads)
    return _together(threads, lambda: _core.read_bandwidth(share, seconds))


def _together(threads: int, measure: Callable[[], float]) -> Peak:
    def timed(_: int = 0) -> Peak:
        cpu, start = time.thread_time(), time.perf_counter()
        rate = measure()
        seconds = time.perf_counter() - start
        if seconds <= 0:
            raise BenchError("the clock stands still: nothing can be timed")
        return Peak(rate, (time.thread_time() - cpu) / seconds)

    if threads == 1:
        return timed()
    with ThreadPoolExecutor(threads) as pool:
        peaks = list(pool.map(timed, range(threads)))
    return Peak(sum(peak.rate for peak in peaks), sum(peak.free for peak in peaks) / threads)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """The commit of the checkout that holds this file, with "+changes" if it is modified."""
    here = Path(__file__)

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(here.parent), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError:  # no git
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", here.name) is None:
        return None  # installed, perhaps inside somebody else's checkout
    commit = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changed else commit
