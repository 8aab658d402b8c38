"""What benchmarks/gpu_check.sh found, as report.json and report.md in its folder.

    python benchmarks/gpu/report.py OUTDIR

A stage that has not run is said to be so.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

LOGS = ("build", "test", "python")


def rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text().splitlines()
    # the last one may be cut, where a stage's time has ended
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def collected(folder: Path) -> dict[str, Any]:
    said = {name: folder / f"{name}.log" for name in LOGS}
    card = folder / "card.txt"
    found: dict[str, Any] = {
        "card": card.read_text() if card.exists() else None,
        "rehearsed": not card.exists(),
        "stages": {
            name: path.read_text().splitlines()[-1:] for name, path in said.items() if path.exists()
        },
        "time": rows(folder / "time.jsonl"),
        "torch": rows(folder / "torch.jsonl"),
    }
    return found


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return " / ".join(map(_cell, value))
    return str(value)


def table(found: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in found for name in row))
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    lines += [f"| {' | '.join(_cell(row.get(name, '')) for name in names)} |" for row in found]
    return "\n".join(lines)


def markdown(found: dict[str, Any]) -> str:
    parts = ["# CUDA kernels on this machine"]
    if found["rehearsed"]:
        parts.append("**A rehearsal on the emulator: no card, tiny sizes, times mean nothing.**")
    else:
        names = re.findall(r"NVIDIA [A-Z][\w -]+?(?=\s{2}|\s+(?:On|Off)\b)", found["card"])
        parts.append(f"Card: {', '.join(dict.fromkeys(names)) or 'see card.txt'}")
    stages = [
        {"stage": name, "last line": " ".join(line)} for name, line in found["stages"].items()
    ]
    parts += ["## Stages", table(stages) if stages else "none has run"]
    for title, name in (
        ("Training, evaluation and texts beside the CPU", "time"),
        ("Modules for PyTorch beside torch.nn's", "torch"),
    ):
        parts += [f"## {title}", table(found[name]) if found[name] else "has not run"]
    return "\n\n".join(parts) + "\n"


def main(folder: str) -> int:
    found = collected(Path(folder))
    (Path(folder) / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    (Path(folder) / "report.md").write_text(markdown(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
