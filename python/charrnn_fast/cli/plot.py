"""``charrnn-fast plot``: learning curves of trainings, from their logs."""

from __future__ import annotations

import argparse
import os

from ..training import plot
from .parsing import Commands, file_option, output_option


def add(commands: Commands) -> None:
    command = commands.add("plot", run, "Draw the curves of trainings from their logs.")
    command.add_argument(
        "logs", type=file_option, nargs="+", metavar="RUN.jsonl", help="log written by train"
    )
    command.add_argument(
        "-o",
        "--output",
        type=output_option(".png", ".svg", ".pdf"),
        required=True,
        metavar="FILE",
        help="picture to write: .png, .svg or .pdf",
    )


def run(arguments: argparse.Namespace) -> int:
    for path in filter(os.path.exists, arguments.logs):
        if os.path.exists(arguments.output) and os.path.samefile(arguments.output, path):
            raise ValueError(f"{arguments.output} is a log to read; -o would overwrite it")
    plot.curves(arguments.logs, arguments.output)
    print(f"drawn to {arguments.output}")
    return 0
