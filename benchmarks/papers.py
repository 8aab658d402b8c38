"""Trainings beside the figures of a paper: the rows of benchmarks/papers.toml, one after another.

    python benchmarks/papers.py warpeace.txt --runs build/papers

Each row is ``charrnn-fast train`` with the settings of that file, in a process of its own. Once it
has ended, the test part is measured, with the weights of the lowest validation loss, and the row
goes to --json and --markdown, its log to the folder --logs. Rows that --json holds are skipped, and
an interrupted one is resumed from its last checkpoint in --runs. So the command goes on where it
was stopped, on another day or machine, too. ``--rows`` trains these alone. ``--count N`` ends after
N rows. A row that --json holds is trained again once it has been removed from there.

The text's line ends become those of the paper's copy, in --runs. Losses are in nats per byte of it.
The minutes are the processor's, evaluations included, so that pauses and other work on the machine
do not count; after a kill they are not known.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from trained import CURVE, curve, identity

from charrnn_fast.bench.machine import facts
from charrnn_fast.registry import CELL_NAMES, COMPUTE_DTYPES
from charrnn_fast.storage import atomic_file
from charrnn_fast.training import log
from charrnn_fast.training.resume import best_path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
LINE_ENDS = {"lf": b"\n", "crlf": b"\r\n"}
# What decides a row's figures beside the settings of papers.toml.
_CHOSEN = ("seed", "compute_dtype")


class PapersError(Exception):
    """A wrong argument or file; nothing of a row has been trained with it."""


class Row(NamedTuple):
    """A network of the paper's table. theirs: its test loss in nats per byte, None: not known."""

    cell: str
    num_layers: int
    hidden_size: int
    theirs: float | None = None

    @property
    def name(self) -> str:
        return f"{self.cell}-{self.num_layers}x{self.hidden_size}"


class Plan(NamedTuple):
    """papers.toml: what is compared, the text's line ends, the settings, the rows by name."""

    paper: dict[str, Any]
    text: dict[str, Any]
    settings: dict[str, Any]
    by_size: dict[str, dict[str, Any]]
    by_cell: dict[str, dict[str, Any]]
    by_row: dict[str, dict[str, Any]]
    rows: dict[str, Row]

    def settings_of(self, row: Row, seed: int, compute_dtype: str) -> dict[str, Any]:
        """The settings of `charrnn-fast train` for a row."""
        return {
            **self.settings,
            **self.by_size[str(row.hidden_size)],
            **self.by_cell.get(row.cell, {}),
            **self.by_row.get(row.name, {}),
            "cell": row.cell,
            "num_layers": row.num_layers,
            "hidden_size": row.hidden_size,
            "seed": seed,
            "mask_seed": seed,
            "compute_dtype": compute_dtype,
        }


def read_plan(path: Path) -> Plan:
    """The plan in a TOML file; PapersError if it is not one."""
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise PapersError(f"{path} must be a TOML file: {error}") from error
    keys = ("paper", "text", "settings", "hidden_size", "cell", "row", "rows")
    if set(content) != set(keys) or not all(isinstance(value, dict) for value in content.values()):
        raise PapersError(f"{path} must have the tables {', '.join(keys)}, got {sorted(content)}")
    if content["text"].get("line_ends") not in LINE_ENDS:
        raise PapersError(
            f"{path}: line_ends must be one of {', '.join(LINE_ENDS)}, "
            f"got {content['text'].get('line_ends')!r}"
        )
    rows = {name: _row(name, theirs, path) for name, theirs in content["rows"].items()}
    for row in rows.values():
        if str(row.hidden_size) not in content["hidden_size"]:
            raise PapersError(f"{path}: {row.name} needs the table hidden_size.{row.hidden_size}")
    for name in content["row"]:
        if name not in rows:
            raise PapersError(f"{path}: row.{name} must be of a row of the table rows")
    tables = {key: content[key] for key in ("paper", "text", "settings")}
    by = {f"by_{key}": content[key] for key in ("cell", "row")}
    return Plan(**tables, by_size=content["hidden_size"], **by, rows=rows)


def _row(name: str, theirs: object, path: Path) -> Row:
    cell, _, size = name.partition("-")
    layers, _, hidden = size.partition("x")
    if cell not in CELL_NAMES or not (layers.isdecimal() and hidden.isdecimal()):
        raise PapersError(f"{path}: a row must be CELL-LAYERSxUNITS, as lstm-2x128, got {name!r}")
    if theirs != "" and not (isinstance(theirs, float) and theirs > 0):
        raise PapersError(f'{path}: {name} must be a loss above 0 or "", got {theirs!r}')
    return Row(cell, int(layers), int(hidden), theirs if isinstance(theirs, float) else None)


def wanted(plan: Plan, names: Iterable[str] | None) -> list[Row]:
    """The rows of these names, in the plan's order; PapersError for one that it lacks."""
    if names is None:
        return list(plan.rows.values())
    unknown = [name for name in names if name not in plan.rows]
    if unknown:
        raise PapersError(f"--rows must be of {', '.join(plan.rows)}, got {', '.join(unknown)}")
    return [row for name, row in plan.rows.items() if name in set(names)]


def prepared(text: Path, line_ends: str, runs: Path) -> Path:
    """The text with these line ends, in the folder of the runs.

    PapersError if text has other line ends than LF, or if runs has another text.
    """
    try:
        data = text.read_bytes()
    except OSError as error:
        raise PapersError(f"TEXT must be a readable file: {error}") from error
    if b"\r" in data:
        raise PapersError(f"{text} must have line ends of LF alone, got CR; remove them first")
    data = data.replace(b"\n", LINE_ENDS[line_ends])
    path = runs / "text.txt"
    if path.exists() and path.read_bytes() != data:
        raise PapersError(f"--runs must be a folder for this text, got {runs} with another one")
    if not path.exists():
        runs.mkdir(parents=True, exist_ok=True)
        atomic_file.replace(path, [data])
    return path


def kept(path: Path, plan: Plan, text: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """The finished rows in a JSON file, by name; PapersError if of another text or settings."""
    if not path.exists():
        return {}
    content = json.loads(path.read_bytes())
    if content["text"] != text:
        raise PapersError(f"{path} must be of the text given, got one of {content['text']}")
    finished: dict[str, Any] = content["rows"]
    for name, entry in finished.items():
        row = plan.rows.get(name)
        if row is None or entry["settings"] != plan.settings_of(row, **chosen):
            raise PapersError(
                f"{path} must have rows of the settings given, got {name} of other ones; name "
                "another --json, or remove the row from this one to train it again"
            )
    return finished


def train(row: Row, settings: dict[str, Any], text: Path, threads: int) -> Path:
    """Trains a row beside the text, or resumes its training; returns the checkpoint.

    PapersError if its training began with other settings.
    """
    model = text.parent / f"{row.name}.safetensors"
    config = model.with_suffix(".toml")
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items()]
    content = "".join(lines).encode()
    if model.exists() and config.exists() and config.read_bytes() != content:
        raise PapersError(
            f"{config} must have the settings of {row.name}, got other ones; name another --runs, "
            f"or remove {model} to begin again"
        )
    atomic_file.replace(config, [content])
    # text: a relative name, so that a checkpoint says nothing about the machine's folders
    command = [sys.executable, "-m", "charrnn_fast", "train", text.name, "-o", model.name]
    command += ["--config", config.name, "--resume", "auto", "--threads", str(threads)]
    print(f"$ {shlex.join(command)}", flush=True)
    before = _minutes(model) if model.exists() else 0.0
    _times(model).unlink(missing_ok=True)  # missing if this process is killed
    start = _processor_seconds()
    try:
        subprocess.run(command, check=True, cwd=text.parent)
    finally:
        if before is not None:
            spent = {"minutes": before + (_processor_seconds() - start) / 60}
            atomic_file.replace(_times(model), [json.dumps(spent).encode()])
    return model


def _times(model: Path) -> Path:
    """The file with the minutes that the training of this checkpoint has taken."""
    return model.with_suffix(".times.json")


def _minutes(model: Path) -> float | None:
    """The processor's minutes of this training; None: not known."""
    path = _times(model)
    return float(json.loads(path.read_bytes())["minutes"]) if path.exists() else None


def _processor_seconds() -> float:
    """Of all ended processes that this one has started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_loss(model: Path, text: Path, threads: int) -> float:
    """Nats per byte of the test part, with the weights of the lowest validation loss."""
    best = Path(best_path(model))
    command = [sys.executable, "-m", "charrnn_fast", "eval", best.name, text.name, "--test"]
    command += ["--json", "--threads", str(threads)]
    done = subprocess.run(command, check=True, cwd=text.parent, stdout=subprocess.PIPE)
    return float(json.loads(done.stdout)["nats_per_character"])


def summary(
    entries: list[dict[str, Any]],
    settings: dict[str, Any],
    test: float,
    minutes: float | None,
    machine: dict[str, Any],
    threads: int,
) -> dict[str, Any]:
    """A finished row: its settings, the machine, the curve and the losses in nats per byte."""
    points = curve(entries)
    best = min(points, key=lambda point: point[CURVE.index("validation_loss")])
    return {
        "settings": settings,
        "parameters": entries[0]["model"]["num_parameters"],
        "validation": best[CURVE.index("validation_loss")],
        "best_epoch": best[CURVE.index("epoch")],
        "test": test,
        "minutes": minutes,
        "threads": threads,
        "machine": machine,
        "curve_columns": CURVE,
        "curve": points,
    }


def table(plan: Plan, finished: dict[str, Any], text: dict[str, Any]) -> str:
    """Markdown: a line for each row of the plan that is finished, in its order."""
    theirs = f", theirs {plan.text['bytes']:,}" if "bytes" in plan.text else ""
    lines = [
        f"{plan.paper['what']}. Losses in nats per byte; the text has {text['bytes']:,} bytes"
        f"{theirs}.",
        "",
        "| network | parameters | validation | test | theirs | epochs | CPU minutes | seed "
        "| products | machine | commit |",
        "| --- " * 11 + "|",
    ]
    for name, row in plan.rows.items():
        if name in finished:
            lines.append(_line(row, finished[name]))
    missing = sum(name not in finished for name in plan.rows)
    lines += [
        "",
        f"Their best network has {plan.paper['best']}, their n-gram model {plan.paper['ngram']}. "
        f"Rows left to train: {missing}.",
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row, entry: dict[str, Any]) -> str:
    machine, settings = entry["machine"], entry["settings"]
    time = "" if entry["minutes"] is None else f"{entry['minutes']:.1f}"
    cells = [
        f"{row.cell} {row.num_layers}x{row.hidden_size}",
        f"{entry['parameters']:,}",
        f"{entry['validation']:.4f}",
        f"{entry['test']:.4f}",
        "" if row.theirs is None else f"{row.theirs:g}",
        f"{entry['best_epoch']:g} of {entry['curve'][-1][CURVE.index('epoch')]:g}",
        time,
        str(settings["seed"]),
        settings["compute_dtype"],
        f"{machine['processor']}, {machine['isa']}",
        _short(machine["commit"] or ""),
    ]
    return "| " + " | ".join(cells) + " |"


def _short(commit: str) -> str:
    name, plus, changes = commit.partition("+")
    return f"{name[:7]}{plus}{changes}"


def write(options: argparse.Namespace, plan: Plan, finished: dict[str, Any], about: Any) -> None:
    """The JSON file and the table."""
    ordered = {name: finished[name] for name in plan.rows if name in finished}
    content = json.dumps({"text": about, "rows": ordered}, indent=1) + "\n"
    atomic_file.replace(options.json, [content.encode()])
    atomic_file.replace(options.markdown, [table(plan, finished, about).encode()])


def run(options: argparse.Namespace) -> None:
    """Trains the rows; PapersError before the first one for wrong arguments."""
    plan = read_plan(options.plan)
    rows = wanted(plan, options.rows)
    options.logs.mkdir(parents=True, exist_ok=True)
    for path in (options.json, options.markdown):
        atomic_file.check(path)
    text = prepared(options.text, plan.text["line_ends"], options.runs)
    about = identity(text.read_bytes())
    chosen = {name: getattr(options, name) for name in _CHOSEN}
    finished = kept(options.json, plan, about, chosen)
    left = options.count
    for row in rows:
        if row.name in finished:
            print(f"{row.name}: finished, test {finished[row.name]['test']:.4f}", flush=True)
            continue
        if left == 0:
            break
        left = None if left is None else left - 1
        settings = plan.settings_of(row, **chosen)
        machine = facts()  # before, since a checkout may change while a long training runs
        model = train(row, settings, text, options.threads)
        test = test_loss(model, text, options.threads)
        entries = list(log.read(model.with_suffix(".jsonl")))
        finished[row.name] = summary(
            entries, settings, test, _minutes(model), machine, options.threads
        )
        shutil.copyfile(model.with_suffix(".jsonl"), options.logs / f"{row.name}.jsonl")
        write(options, plan, finished, about)
        print(f"{row.name}: test {test:.4f} nats per byte", flush=True)
    print(f"\n{table(plan, finished, about)}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trainings beside the figures of a paper.")
    parser.add_argument("text", type=Path, help="the text, with line ends of LF")
    parser.add_argument("--runs", type=Path, default=Path("build/papers"), help="checkpoints, logs")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="lstm-2x128 ... (default: all)")
    parser.add_argument("--count", type=int, metavar="N", help="end after N rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compute-dtype", choices=COMPUTE_DTYPES, default="bfloat16")
    parser.add_argument("--plan", type=Path, default=HERE / "papers.toml", metavar="FILE.toml")
    parser.add_argument("--json", type=Path, default=RESULTS / "papers.json")
    parser.add_argument("--markdown", type=Path, default=RESULTS / "papers.md")
    parser.add_argument("--logs", type=Path, default=RESULTS / "papers")
    options = parser.parse_args(arguments)
    if options.count is not None and options.count < 1:
        parser.error(f"--count must be 1 or more, got {options.count}")
    try:
        run(options)
    except PapersError as error:
        parser.error(str(error))
    except subprocess.CalledProcessError as error:  # which has said why
        sys.exit(error.returncode if error.returncode > 0 else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
