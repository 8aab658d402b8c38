"""``charrnn-fast export``: a trained model in a format of other programs, or its weights alone."""

from __future__ import annotations

import argparse
import os

from ..language.model import CharLM
from ..storage import atomic_file, checkpoint, configuration
from . import show
from .parsing import Commands, file_option, output_option
from .sample import add_weight_dtype


def add(commands: Commands) -> None:
    export = commands.add(
        "export", run, "Write a trained model for other programs, or in fewer bytes for sampling."
    )
    export.add_argument("model", type=file_option, metavar="MODEL", help="saved by train")
    export.add_argument(
        "out",
        type=_output,
        metavar="OUT",
        help="file to write, replacing an older export; its ending names the format: .onnx, or "
        ".safetensors for the weights alone, as sample, eval and score take them",
    )
    export.add_argument(
        "--form",
        choices=["sequence", "step"],
        help="what a call of the exported ONNX graph computes (default: sequence)",
    )
    export.add_argument(
        "--lengths",
        action="store_true",
        help="add an input with the length of each sequence of a batch to an ONNX graph",
    )
    add_weight_dtype(export, "of .safetensors: bfloat16: half the size; int8: a quarter")


def run(arguments: argparse.Namespace) -> int:
    if os.path.splitext(arguments.out)[1].lower() == ".safetensors":
        return _weights(arguments)
    if arguments.weight_dtype is not None:
        raise ValueError("--weight-dtype is for exports to .safetensors: leave it out")
    return _onnx(arguments)


def _weights(arguments: argparse.Namespace) -> int:
    for name in ("form", "lengths"):
        if getattr(arguments, name):
            raise ValueError(f"--{name} is for exports to .onnx: leave it out")
    # Before any work, as below.
    checkpoint.check_writable(arguments.out)
    _check_no_training(arguments.model, arguments.out)
    model = CharLM.load(arguments.model)
    model.save(arguments.out, weight_dtype=arguments.weight_dtype)
    dtype = arguments.weight_dtype or model.weight_dtype or model.settings()["dtype"]
    print(f"model       {show.model_line(model)}")
    print(f"weights     {dtype}")
    print(f"saved to {arguments.out} ({show.size(os.path.getsize(arguments.out))})")
    return 0


def _check_no_training(model: str, out: str) -> None:
    """ValueError if out is the model itself or a training's checkpoint, which would be lost."""
    if not os.path.exists(out) or not os.path.getsize(out):
        return
    if os.path.exists(model) and os.path.samefile(model, out):
        raise ValueError(f"OUT must be another file than MODEL, got {out!r} for both")
    if "training" in configuration.read(out)[1]:
        raise ValueError(f"OUT must not be the checkpoint of a training, got {out!r}")


def _onnx(arguments: argparse.Namespace) -> int:
    from ..onnx import exporter  # an extra

    # Before any work: fails if no file can be written or another one would be lost.
    atomic_file.check(arguments.out, exporter.KIND)
    model = CharLM.load(arguments.model)
    call = {"form": arguments.form or "sequence", "lengths": arguments.lengths}
    exporter.export(model, arguments.out, **call)
    inputs, outputs = exporter.signature(model, **call)
    print(f"model       {show.model_line(model)}")
    print(f"inputs      {', '.join(map(str, inputs))}")
    print(f"outputs     {', '.join(map(str, outputs))}")
    print(f"saved to {arguments.out} ({show.size(os.path.getsize(arguments.out))})")
    return 0


_FORMATS = (".onnx", ".safetensors")


def _output(text: str) -> str:
    path = output_option(*_FORMATS)(text)
    if os.path.splitext(path)[1].lower() not in _FORMATS:
        raise argparse.ArgumentTypeError(f"must end in {' or '.join(_FORMATS)}, got {text!r}")
    return path


_output.__name__ = "name of a file"
