"""The command `charrnn-fast bench`: everything is checked before anything is timed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .. import _devices
from ..rnn import check_compute_dtype
from ..storage import atomic_file, input_files
from ..text import demo
from . import compare, machine, plots, report
from .cases import SUITES, Shape, parse, select
from .errors import BenchError
from .host import check_one_process, one_process_peers
from .problem import Text
from .results import Run
from .runner import DEFAULT_PEERS, PEERS, QUICK, Runner, Settings

_LONGEST_TEXT = 1_000_000_000  # bytes


@dataclass(frozen=True)
class Options:
    """The command line's options; None: the default."""

    suites: list[str]
    quick: bool = False
    cases: list[str] | None = None
    threads: list[int] | None = None
    peers: list[str] | None = None
    one_process: bool = False
    device: str | None = None
    compute_dtype: str | None = None
    blocks: int | None = None
    text: str | None = None
    json: str | None = None
    markdown: str | None = None
    plots: str | None = None
    compare: str | None = None


def run(options: Options) -> int:
    """Runs the benchmarks and returns the exit status; BenchError if they cannot run."""
    suites = _chosen("suite", options.suites or list(SUITES), tuple(SUITES))
    # `--peers` without a name: none
    default = DEFAULT_PEERS if options.compute_dtype in (None, "float32") else PEERS
    if options.one_process:
        default = one_process_peers(default)
    named = default if options.peers is None else options.peers
    peers = _chosen("peer", list(named), PEERS)
    settings = _settings(options)
    if options.one_process:
        check_one_process(peers, settings.threads)
    shapes: list[Shape] | None = None
    if options.cases is not None:
        shapes = [parse(case) for case in options.cases]
    cases = select(suites, shapes, options.quick)
    device = None if options.device is None else _devices.find(options.device)
    if device is not None and device.is_host:
        raise BenchError("--device must be another than cpu, which is timed anyway")
    compute_dtype = options.compute_dtype or "float32"
    check_compute_dtype(compute_dtype, np.dtype(np.float32), _devices.CPU)
    base = None if options.compare is None else Run.read(Path(options.compare))
    for path in (options.json, options.markdown):
        if path is not None:
            atomic_file.check(path)
    if options.plots is not None:
        _check_pictures(Path(options.plots), suites)
    if options.plots is not None and find_spec("matplotlib") is None:
        raise BenchError(
            "--plots needs matplotlib, which is not installed: pip install 'charrnn_fast[plot]'"
        )
    text = _text(options.text) if any(SUITES[suite].reads_text for suite in suites) else None

    runner = Runner(
        cases, peers, settings, text, device, compute_dtype, one_process=options.one_process
    )
    try:
        runner.run()
    finally:  # keeps what an interrupted run has measured
        if runner.result.rows:
            _write(runner.result, options, base)
    return 0


def _settings(options: Options) -> Settings:
    settings = QUICK if options.quick else Settings()
    if options.threads is None:
        threads = tuple(n for n in settings.threads if n <= machine.cores())
    else:
        threads = tuple(dict.fromkeys(options.threads))
    blocks = settings.blocks if options.blocks is None else options.blocks
    return replace(settings, threads=threads, blocks=blocks)


def _chosen(what: str, names: list[str], known: tuple[str, ...]) -> list[str]:
    for name in names:
        if name not in known:
            raise BenchError(f"{what} must be one of {', '.join(known)}, got {name!r}")
    return [name for name in known if name in names]


def _check_pictures(folder: Path, suites: Iterable[str]) -> None:
    if not folder.exists():
        atomic_file.check(folder)  # if a file can be made there, so can a folder
        return
    if not folder.is_dir():
        raise BenchError(f"--plots: {folder} is a file, not a folder")
    for path in plots.paths(suites, folder):
        atomic_file.check(path)


def _text(path: str | None) -> Text:
    if path is None:
        return Text.of("the source of Python's standard library", demo.text())
    data = input_files.read_whole(path, _LONGEST_TEXT, "a text to measure with")
    name = input_files.shown(path)
    return Text.of(os.path.basename(name), input_files.decoded(data, name))


def _write(result: Run, options: Options, base: Run | None) -> None:
    document = report.markdown(result)
    if base is not None:
        name = os.path.basename(options.compare or "")
        document += "\n" + compare.markdown(result, base, name)
    try:
        if options.json is not None:
            result.write(Path(options.json))
        if options.markdown is not None:
            atomic_file.replace(options.markdown, [document.encode()])
    finally:  # files first, so that they are written even if the terminal is closed
        print(document, end="", flush=True)
    if options.plots is not None:
        for path in plots.write(result, Path(options.plots)):
            print(f"wrote {path}", file=sys.stderr)
