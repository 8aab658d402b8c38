"""Runs the commands of documents and updates their output there.

    python docs/run.py docs/training.md
    python docs/run.py --check

Commands are the lines that begin with ``$ `` in fenced blocks of ``console``. What follows in the
block is their output, including standard error. All commands of a document run in one new folder,
one after another, each by ``bash``. A command that fails ends the run, unless it ends in
``  # fails``. Fenced blocks with a name after their language, as in `` ```cpp train.cpp``, are
files of that folder.

``--check`` changes no document. It prints what would change as a unified diff and then exits with
1. Without names it checks all documents but examples.md and view.md, whose models take long to
train. Rates, memory estimates and other output that varies between runs are not compared. The
digits hold for one instruction set and one version of Python, whose manual and library are the
texts; on another machine nothing is checked, and a line says so.
"""

from __future__ import annotations

import argparse
import difflib
import os
import platform
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from charrnn_fast import _core
from charrnn_fast.storage import atomic_file

DOCS = os.path.dirname(os.path.abspath(__file__))
FAILS = "  # fails"

# The output of the documents comes from these.
ISA, PYTHON, THREADS = "x86-64-v3", "3.11.7", 2
# Their models train for half an hour, and view.md needs a browser.
LEFT_OUT = ("examples.md", "view.md")
# Checked first: with the others behind them, and beside them, the check ends soonest.
LONGEST = ("tutorial.md", "sampling.md")
# What varies between runs: rates, memory, and the lines of progress between two evaluations.
VARIES = re.compile(
    r"[\d,]+(?= characters/s)|(?<=memory      ).*(?= beside the text)|(?<=holds step )\d+"
    r'|(?<="symbols_per_second": )[\d.]+|^ *\d+%  loss .* left\n',
    re.MULTILINE,
)


def output(command: str, folder: str, docs: str) -> str:
    """What a command prints; $DOCS is the folder docs, for pictures, $EXAMPLES the examples'."""
    examples = os.path.join(os.path.dirname(DOCS), "examples")
    ours = {"COLUMNS": "100", "PYTHONUNBUFFERED": "1", "DOCS": docs, "EXAMPLES": examples}
    environment = {**os.environ, **ours}
    done = subprocess.run(
        ["bash", "-c", command.removesuffix(FAILS)],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if (done.returncode != 0) != command.endswith(FAILS):
        raise SystemExit(f"{command}\n{done.stdout}ended with status {done.returncode}")
    return done.stdout.replace(docs, "docs").replace(folder, ".")


def write_files(document: Path, folder: Path) -> None:
    """Writes the files that a document contains."""
    text = document.read_text(encoding="utf-8")
    for name, content in re.findall(r"^```\w+ (\S+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        (folder / name).write_text(content, encoding="utf-8")


def run(document: Path, docs: str) -> str:
    """The text of a document with the outputs replaced."""
    with tempfile.TemporaryDirectory(prefix="document-") as folder:
        write_files(document, Path(folder))

        def block(found: re.Match[str]) -> str:
            lines = []
            for line in found[1].splitlines():
                if line.startswith("$ "):
                    print(line, flush=True)
                    lines += [line, output(line[2:], folder, docs).rstrip("\n")]
            return "```console\n" + "\n".join(line for line in lines if line) + "\n```"

        text = document.read_text(encoding="utf-8")
        return re.sub(r"```console\n(.*?)\n```", block, text, flags=re.DOTALL)


def difference(document: Path) -> str:
    """A unified diff of what a document says and what its commands print now; "": none."""
    with tempfile.TemporaryDirectory(prefix="docs-") as docs:
        os.mkdir(os.path.join(docs, "images"))
        old, new = (
            VARIES.sub("", text).splitlines(keepends=True)
            for text in (document.read_text(encoding="utf-8"), run(document, docs))
        )
    return "".join(difflib.unified_diff(old, new, str(document), "now"))


def check(documents: list[Path]) -> int:
    if ISA not in _core.available_isas() or platform.python_version() != PYTHON:
        print(f"nothing is checked: the documents need {ISA} and Python {PYTHON}")
        return 0
    os.environ |= {"CHARRNN_ISA": ISA, "CHARRNN_NUM_THREADS": str(THREADS)}
    documents = documents or sorted(
        (path for path in Path(DOCS).glob("*.md") if path.name not in LEFT_OUT),
        key=lambda path: (path.name not in LONGEST, path.name),
    )
    # Two at once: what one does without threads, such as starting Python, leaves room for another.
    with ThreadPoolExecutor(2) as pool:
        found = "".join(pool.map(difference, documents))
    sys.stdout.write(found)
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the commands of documents.")
    parser.add_argument("documents", nargs="*", type=Path, metavar="DOCUMENT")
    parser.add_argument("--check", action="store_true", help="print what would change, as a diff")
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.documents)
    if not arguments.documents:
        parser.error("name one or more documents, or --check them all")
    for document in arguments.documents:
        atomic_file.replace(document, [run(document, DOCS).encode()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
