"""``charrnn-fast export``: a trained model in a format of other programs."""

from __future__ import annotations

import argparse
import os

from ..language.model import CharLM
from ..storage import atomic_file
from . import show
from .parsing import Commands, file_option, output_option


def add(commands: Commands) -> None:
    export = commands.add("export", run, "Write a trained model in a format of other programs.")
    export.add_argument("model", type=file_option, metavar="MODEL", help="saved by train")
    export.add_argument(
        "out",
        type=_output,
        metavar="OUT",
        help="file to write, replacing an older export; its ending names the format: .onnx",
    )
    export.add_argument(
        "--form",
        choices=["sequence", "step"],
        default="sequence",
        help="what a call of the exported graph computes (default: sequence)",
    )
    export.add_argument(
        "--lengths",
        action="store_true",
        help="add an input with the length of each sequence of a batch",
    )


def run(arguments: argparse.Namespace) -> int:
    from ..onnx import exporter  # an extra

    # Before any work: fails if no file can be written or another one would be lost.
    atomic_file.check(arguments.out, exporter.KIND)
    model = CharLM.load(arguments.model)
    call = {"form": arguments.form, "lengths": arguments.lengths}
    exporter.export(model, arguments.out, **call)
    inputs, outputs = exporter.signature(model, **call)
    print(f"model       {show.model_line(model)}")
    print(f"inputs      {', '.join(map(str, inputs))}")
    print(f"outputs     {', '.join(map(str, outputs))}")
    print(f"saved to {arguments.out} ({show.size(os.path.getsize(arguments.out))})")
    return 0


_FORMATS = (".onnx",)


def _output(text: str) -> str:
    path = output_option(*_FORMATS)(text)
    if os.path.splitext(path)[1].lower() not in _FORMATS:
        raise argparse.ArgumentTypeError(f"must end in {' or '.join(_FORMATS)}, got {text!r}")
    return path


_output.__name__ = "name of a file"
