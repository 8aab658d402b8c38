"""Runs the commands of documents and updates their output there.

    python docs/run.py docs/training.md

Commands are the lines that begin with ``$ `` in fenced blocks of ``console``. What follows in the
block is their output, including standard error. All commands of a document run in one new folder,
one after another, each by ``bash``. A command that fails ends the run, unless it ends in
``  # fails``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path

from charrnn_fast.storage import atomic_file

DOCS = os.path.dirname(os.path.abspath(__file__))
FAILS = "  # fails"


def output(command: str, folder: str) -> str:
    """What a command prints; $DOCS is the folder of this file, for pictures."""
    environment = {**os.environ, "COLUMNS": "100", "PYTHONUNBUFFERED": "1", "DOCS": DOCS}
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
    return done.stdout.replace(DOCS, "docs").replace(folder, ".")


def run(document: Path) -> None:
    """Replaces the outputs in a document."""
    with tempfile.TemporaryDirectory(prefix="document-") as folder:

        def block(found: re.Match[str]) -> str:
            lines = []
            for line in found[1].splitlines():
                if line.startswith("$ "):
                    print(line, flush=True)
                    lines += [line, output(line[2:], folder).rstrip("\n")]
            return "```console\n" + "\n".join(line for line in lines if line) + "\n```"

        text = re.sub(r"```console\n(.*?)\n```", block, document.read_text(), flags=re.DOTALL)
    atomic_file.replace(document, [text.encode()])


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the commands of documents.")
    parser.add_argument("documents", nargs="+", type=Path)
    for document in parser.parse_args().documents:
        run(document)


if __name__ == "__main__":
    main()
