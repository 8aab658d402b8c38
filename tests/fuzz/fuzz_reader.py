"""Builds and runs the fuzzer of C++'s checkpoint reader; takes clang (Debian's package).

    python tests/fuzz/fuzz_reader.py -runs=10000000 FOUND tests/fuzz/corpus

tries ten million files, under the address and undefined-behaviour sanitizers, from the kept corpus.
What reaches new code is put into the folder FOUND. Options are libFuzzer's. A finding ends it with
a file ``crash-...``, which ``python tests/fuzz/fuzz_reader.py crash-...`` tries again; what was
found and mended goes into the corpus.

The reader is compiled with the sanitizers and with coverage; the kernels are those of the installed
package's archive.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import charrnn_fast

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "fuzz" / "reader"
LARGEST = 1 << 16  # bytes of an input: more find no more, and take longer
FLAGS = (
    "-std=c++20",
    "-O1",
    "-g1",
    "-fsanitize=fuzzer-no-link,address,undefined",
    "-fno-sanitize-recover=all",
    f"-I{ROOT / 'cpp' / 'include'}",
    f"-I{ROOT / 'cpp' / 'src'}",
)


def sources() -> list[Path]:
    folders = ("language", "storage", "text")
    found = [file for folder in folders for file in (ROOT / "cpp" / "src" / folder).glob("*.cpp")]
    return [Path(__file__).with_suffix(".cpp"), *sorted(found)]


def build() -> Path:
    """The program, made again."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    include = Path(charrnn_fast.get_include())
    compiler = os.environ.get("CLANGXX", "clang++")

    def compiled(source: Path) -> Path:
        made = FOLDER / f"{source.stem}.o"
        flags = (*FLAGS, f"-I{include}")
        subprocess.run([compiler, *flags, "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources()))
    program = FOLDER / "fuzz_reader"
    archive = include.parent / "lib" / "libcharrnn_fast.a"
    link = "-fsanitize=fuzzer,address,undefined"
    subprocess.run([compiler, link, *objects, archive, "-pthread", "-o", program], check=True)
    return program


def main() -> None:
    program = build()
    os.execv(program, [str(program), f"-max_len={LARGEST}", *sys.argv[1:]])


if __name__ == "__main__":
    main()
