"""The modules for PyTorch beside torch.nn's, on one device: results first, then times.

    python benchmarks/gpu/torch_on_card.py cuda [SECONDS]    # cpu: a rehearsal, of other kernels

Prints a line of JSON for each case. Errors are relative to float64 on the CPU. On a GPU it also
shares arrays by DLPack, both ways, and captures a call in a CUDA graph. Exit status 1: a result is
wrong.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import charrnn_fast as cf
import charrnn_fast.torch as cft

# A sum of H products in float32, T steps after one another; torch.nn with its own kernels has
# errors of the same size.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
CASES: list[tuple[str, dict[str, Any], tuple[int, int, int, int]]] = [
    ("LSTM", {"num_layers": 2}, (50, 50, 64, 128)),
    ("GRU", {"bidirectional": True}, (20, 16, 33, 100)),
    ("RNN", {}, (20, 16, 33, 100)),
    ("LSTM", {"proj_size": 24}, (20, 16, 33, 64)),
]


def gradients(module: Any, x: Any) -> list[Any]:
    """y and all gradients of the sum of its squares."""
    x = x.detach().requires_grad_()
    y, _ = module(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


def error(found: list[Any], wanted: list[Any]) -> float:
    """The largest relative error of an array, in the norm of its maximum."""
    return max(
        float((a.cpu().double() - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(found, wanted, strict=True)
    )


def milliseconds(run: Callable[[], object], seconds: float, device: str) -> list[float]:
    """Median and fastest of the repeats that fit."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        run()
    wait()
    times: list[float] = []
    until = time.perf_counter() + seconds
    while not times or time.perf_counter() < until:
        begin = time.perf_counter()
        run()
        wait()
        times.append(1e3 * (time.perf_counter() - begin))
    return [statistics.median(times), min(times)]


def compare(device: str, seconds: float) -> bool:
    right = True
    for mode, options, sizes in CASES:
        steps, batch, inputs, hidden = (4, 3, 5, 32) if device == "cpu" else sizes
        for dtype in ("float32", "float64"):
            torch.manual_seed(1)
            kind = getattr(torch, dtype)
            theirs = getattr(torch.nn, mode)(inputs, hidden, dtype=kind, **options)
            exact = getattr(torch.nn, mode)(inputs, hidden, dtype=torch.float64, **options)
            exact.load_state_dict({k: v.double() for k, v in theirs.state_dict().items()})
            x = torch.randn(steps, batch, inputs, dtype=kind)
            wanted = gradients(exact, x.double())
            ours = getattr(cft, mode)(inputs, hidden, dtype=kind, **options)
            ours.load_state_dict(theirs.state_dict())
            x, ours, theirs = x.to(device), ours.to(device), theirs.to(device)
            row: dict[str, Any] = {"case": mode, **options, "dtype": dtype, "device": device}
            row["T, B, I, H"] = [steps, batch, inputs, hidden]
            row["error"] = error(gradients(ours, x), wanted)
            row["torch_error"] = error(gradients(theirs, x), wanted)
            row["right"] = row["error"] <= TOLERANCE[dtype]
            right = right and row["right"]
            for name, module in (("ms", ours), ("torch_ms", theirs)):

                def run(module: Any = module, x: Any = x) -> object:
                    return gradients(module, x)

                row[name] = milliseconds(run, seconds, device)
            print(json.dumps(row), flush=True)
    return right


def share(device: str) -> bool:
    """Arrays of PyTorch in RNN's calls and back, on a stream of PyTorch's."""
    rnn = cf.RNN(33, 64, 5, cell="lstm", device=device, seed=1)
    x = torch.randn(7, 3, 33)
    wanted = torch.from_numpy(rnn.forward(x.numpy())[0])
    right = True
    for number in range(20):
        with torch.cuda.stream(torch.cuda.Stream()):
            given = x.to(device, non_blocking=True) * 2 / 2
            y, _ = rnn.forward(given)
            del given
            found = torch.from_dlpack(y) + 0
        torch.cuda.synchronize()
        right = right and torch.equal(found.cpu(), wanted)
        if not right:
            print(json.dumps({"case": "dlpack", "round": number, "right": False}), flush=True)
            return False
    print(json.dumps({"case": "dlpack", "rounds": 20, "right": True}), flush=True)
    return True


def capture(device: str) -> bool:
    """A call without gradients in a CUDA graph, replayed for other inputs."""
    module = cft.GRU(33, 64).to(device).eval()
    x = torch.randn(7, 3, 33, device=device)
    with torch.no_grad():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            module(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, _ = module(x)
        other = torch.randn_like(x)
        wanted, _ = module(other)
        x.copy_(other)
        graph.replay()
    right = bool(torch.equal(y, wanted))
    print(json.dumps({"case": "graph", "right": right}), flush=True)
    return right


def main(device: str = "cuda", seconds: str = "0.3") -> int:
    right = compare(device, float(seconds))
    if device == "cuda":
        right = share(device) and capture(device) and right
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
