"""Compiles the CUDA kernels for every architecture; prints their registers and spills.

    python benchmarks/gpu/registers.py [ARCHITECTURE...]     sm_80 sm_86 ... unless named

Takes nvcc, in PATH or named by CUDACXX, and no card. Any warning is an error. The output is
Markdown, as the table of docs/gpu.md. Ends with 1 if a kernel does not compile, or spills beyond
MOST_SPILLED.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
# Bytes of local memory that a thread may spill to, else 0: of kernels that keep a layer's weights
# in registers. Loads from there count more than once where they are in several places.
MOST_SPILLED = {"persistent": 96}
SOURCES = sorted((ROOT / "cuda").glob("*.cu"))

# What ptxas says of one kernel.
ENTRY = re.compile(
    r"Compiling entry function '(?P<symbol>\w+)'.*?"
    r"(?P<frame>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Kernel:
    """One kernel of one architecture. spilled, frame: bytes of a thread."""

    def __init__(self, name: str, registers: int, spilled: int, frame: int) -> None:
        self.name, self.registers, self.spilled, self.frame = name, registers, spilled, frame
        most = max((limit for part, limit in MOST_SPILLED.items() if part in name), default=0)
        self.spills_too_much = spilled > 0 and (most == 0 or frame > most)


def kernels_in(said: str) -> list[Kernel]:
    """What `ptxas -v` reported."""
    found = [match.groupdict() for match in ENTRY.finditer(said)]
    names = _demangled([entry["symbol"] for entry in found])
    return [
        Kernel(
            name,
            int(entry["registers"]),
            max(int(entry["stores"]), int(entry["loads"])),
            int(entry["frame"]),
        )
        for name, entry in zip(names, found, strict=True)
    ]


def _demangled(symbols: list[str]) -> list[str]:
    """Names of functions with their number type: "gemm_kernel, float"."""
    done = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    names = []
    for line in done.stdout.splitlines():
        name = re.search(r"(\w+)<", line)
        arguments = line.split(">(")[0]  # of the template
        kind = "float64" if re.search(r"\bdouble\b", arguments) else "float32"
        names.append(f"{name[1] if name else line}, {kind}")
    return names


def compiled(nvcc: str, architecture: str) -> list[Kernel]:
    """Raises SystemExit with nvcc's words if it does not compile."""
    flags = ["-std=c++17", f"-arch={architecture}", "-fmad=false", "-Werror", "all-warnings"]
    flags += ["-Xptxas", "-v", *(f"-I{ROOT / name}" for name in ("cuda", "cpp/src", "cpp/include"))]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:

        def said(source: Path) -> str:
            command = [nvcc, *flags, "-c", str(source), "-o", str(Path(folder) / source.stem)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                sys.exit(f"{architecture}: {source.name} does not compile:\n{done.stderr}")
            return done.stdout + done.stderr

        return [kernel for text in pool.map(said, SOURCES) for kernel in kernels_in(text)]


def _range(numbers: list[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def table(by_architecture: dict[str, list[Kernel]]) -> str:
    """Registers of a thread, least and most, by kernel and architecture."""
    rows: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for architecture, kernels in by_architecture.items():
        for kernel in kernels:
            rows[kernel.name][architecture].append(kernel.registers)
    lines = [
        f"| kernel | number | {' | '.join(by_architecture)} |",
        "| --- | --- |" + " --- |" * len(by_architecture),
    ]
    for name in sorted(rows):
        counts = {len(found) for found in rows[name].values()}
        cells = [_range(rows[name][a]) if a in rows[name] else "-" for a in by_architecture]
        lines.append(f"| {name} | {max(counts)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(*architectures: str) -> int:
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if nvcc is None:
        print("nvcc is missing: add the toolkit's bin to PATH, or set CUDACXX", file=sys.stderr)
        return 2
    found: dict[str, list[Kernel]] = {}
    for architecture in architectures or ARCHITECTURES:
        found[architecture] = compiled(nvcc, architecture)
        print(f"{architecture}: {len(found[architecture])} kernels", file=sys.stderr, flush=True)
    print(table(found))
    spilled = [
        (architecture, kernel)
        for architecture, kernels in found.items()
        for kernel in kernels
        if kernel.spilled
    ]
    frames = [k.frame for kernels in found.values() for k in kernels if k.frame and not k.spilled]
    print(f"\n{len(spilled)} kernels spill.", end=" ")
    print(f"{len(frames)} have arrays in local memory, of {_range(frames) if frames else 0} bytes.")
    for architecture, kernel in spilled:
        print(f"{architecture}: {kernel.name} spills {kernel.spilled} bytes", file=sys.stderr)
    too_much = any(kernel.spills_too_much for _, kernel in spilled)
    return 1 if too_much or not all(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
