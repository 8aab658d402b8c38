"""``charrnn-fast bench``: the kernels' speed, compared with peers."""

from __future__ import annotations

import argparse
from dataclasses import fields

from .. import registry
from .parsing import Commands, file_option, folder_option, integer_option, output_option


def add(commands: Commands) -> None:
    bench = commands.add("bench", run, "Measure the kernels beside their peers.")
    bench.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        help="train, forward, backward, sample, step, gemm, time-to-loss (default: all)",
    )
    bench.add_argument("--quick", action="store_true", help="few and short: under two minutes")
    bench.add_argument(
        "--cases",
        nargs="+",
        metavar="CASE",
        help="cell,B,T,H,L as lstm,50,50,128,2 (sample: B streams, T characters a call), for gemm "
        "M,K,N",
    )
    bench.add_argument(
        "--threads",
        dest="threads_list",
        nargs="+",
        type=integer_option(1, 4096),
        metavar="N",
        help="default: 1 2",
    )
    bench.add_argument(
        "--peers",
        nargs="*",
        metavar="PEER",
        help="numpy, torch, torch.compile, torch.bfloat16, jax, onnxruntime (default: all that are "
        "installed; torch.bfloat16 with --compute-dtype)",
    )
    bench.add_argument(
        "--one-process",
        action="store_true",
        help="load the peers beside the kernels, as an application does; all but numpy, with one "
        "number of --threads (default: in a process of their own)",
    )
    bench.add_argument(
        "--device",
        metavar="NAME",
        help="time the kernels there too, beside the CPU's: cuda or, for GPU N, cuda:N",
    )
    bench.add_argument(
        "--compute-dtype",
        choices=registry.COMPUTE_DTYPES,
        help="time the kernels with such operands of products too, and PyTorch's autocast",
    )
    bench.add_argument(
        "--blocks",
        type=integer_option(1),
        metavar="N",
        help="turns of each side (default: 11, quick 5)",
    )
    bench.add_argument(
        "--text",
        type=file_option,
        metavar="FILE",
        help="UTF-8 (default: the source of Python's standard library)",
    )
    bench.add_argument(
        "--json",
        type=output_option(".json"),
        metavar="FILE",
        help="write rows and the machine's facts there",
    )
    bench.add_argument(
        "--markdown", type=output_option(".md"), metavar="FILE", help="write the tables there too"
    )
    bench.add_argument(
        "--plots", type=folder_option, metavar="FOLDER", help="draw a roofline and bar charts there"
    )
    bench.add_argument(
        "--compare",
        type=file_option,
        metavar="OLD.json",
        help="tell what has changed since that run's --json",
    )


def run(arguments: argparse.Namespace) -> int:
    from ..bench import command  # slow to import, and used only here

    names = [field.name for field in fields(command.Options)]
    given = {name: getattr(arguments, name) for name in names if name != "threads"}
    return command.run(command.Options(**given, threads=arguments.threads_list))
