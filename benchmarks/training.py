"""Training speed against PyTorch in one run: the same model, weights, text and batches.

    python benchmarks/training.py [TEXT] [--cases lstm,50,50,256,1 ...] [--threads 1 2]

Both sides run the whole training step (embedding, layers, decoder, softmax cross-entropy,
backward, clipping by norm, Adam) on consecutive chunks of the text, hidden state carried. Their
losses over the first chunks are compared before anything is timed. Then blocks of steps alternate,
A B A B, so that a machine whose speed drifts treats both alike; the ratio is the median over the
pairs. FLOP counts multiply-adds of matrix products as two, backward as twice forward; the peak is
measured in the same run, on as many threads, with fused multiply-adds that touch no memory.
Without PyTorch, the package's side runs alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import charrnn_fast as cf
from charrnn_fast import _core, demo

try:
    import torch
except ImportError:
    torch = None  # type: ignore[assignment]

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
Batch = tuple[NDArray[np.int32], NDArray[np.int32]]
Case = tuple[str, int, int, int, int]  # cell, batch, seq_len, hidden_size, num_layers
CASES: list[Case] = [
    ("rnn", 1, 25, 100, 1),
    ("lstm", 1, 25, 128, 1),
    ("rnn", 32, 50, 128, 1),
    ("lstm", 50, 50, 128, 2),
    ("gru", 50, 50, 128, 2),
    ("lstm", 50, 50, 256, 1),
    ("lstm", 64, 50, 512, 1),
    ("gru", 64, 50, 512, 1),
    ("rnn", 64, 50, 512, 1),
    ("lstm", 64, 50, 1024, 1),
]
LEARNING_RATE, CLIP_NORM = 2e-3, 5.0


def batches(ids: NDArray[Any], batch: int, seq_len: int) -> Iterator[Batch]:
    """Chunks [T, B] of B streams, each a contiguous piece of the text, over and over."""
    length = (len(ids) - 1) // batch
    pieces = ids[: batch * length + 1]
    inputs = pieces[:-1].reshape(batch, length).T.astype(np.int32, order="C")
    targets = pieces[1:].reshape(batch, length).T.astype(np.int32, order="C")
    while True:
        for t in range(0, length - seq_len + 1, seq_len):
            x, y = inputs[t : t + seq_len], targets[t : t + seq_len]
            yield x, y


def our_step(rnn: cf.RNN, data: Iterator[Batch], batch: int) -> Callable[[], float]:
    optimizer = cf.optim.Adam(rnn, lr=LEARNING_RATE)
    state = rnn.zero_state(batch)

    def step() -> float:
        x, y = next(data)
        loss: float = rnn._core.train_step(
            x, y, state, optimizer._core, LEARNING_RATE, CLIP_NORM, math.inf, "mean"
        )[0]
        return loss

    return step


def torch_step(rnn: cf.RNN, data: Iterator[Batch]) -> Callable[[], float]:
    cell = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[rnn.cell]
    layers = cell(rnn.input_size, rnn.hidden_size, rnn.num_layers)
    decoder = torch.nn.Linear(rnn.hidden_size, rnn.input_size)
    module = torch.nn.ModuleDict({"rnn": layers, "decoder": decoder})
    ours = {n: torch.tensor(np.array(p)) for n, p in rnn.parameters().items()}
    module.load_state_dict(
        {n if n.startswith("decoder") else f"rnn.{n}": p for n, p in ours.items()}
    )
    weights = list(module.parameters())
    optimizer = torch.optim.Adam(weights, lr=LEARNING_RATE)
    one_hot = torch.eye(rnn.input_size)
    state: Any = None

    def step() -> float:
        nonlocal state
        x, y = (torch.from_numpy(a).long() for a in next(data))
        optimizer.zero_grad(set_to_none=True)
        h, state = layers(torch.nn.functional.embedding(x, one_hot), state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        logits = decoder(h).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, y.flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, CLIP_NORM)
        optimizer.step()
        return float(loss.detach())

    return step


def time_block(step: Callable[[], float], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step()
    return (time.perf_counter() - start) / count


def fma_peak(threads: int) -> float:
    """FLOP/s of so many threads at once."""
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(lambda _: _core.fma_peak("float32", 0.2), range(threads)))


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def parse_case(text: str) -> Case:
    cell, *numbers = text.split(",")
    if cell not in GATES or len(numbers) != 4 or not all(n.isdecimal() for n in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not like lstm,50,50,128,2")
    batch, seq_len, hidden, layers = map(int, numbers)
    return cell, batch, seq_len, hidden, layers


def measure(
    case: tuple[str, int, int, int, int], threads: int, ids: Any, blocks: int
) -> dict[str, Any]:
    cell, batch, seq_len, hidden, layers = case
    vocab = int(ids.max()) + 1
    cf.set_num_threads(threads)
    rnn = cf.RNN(vocab, hidden, vocab, cell=cell, num_layers=layers)
    sides = [our_step(rnn, batches(ids, batch, seq_len), batch)]
    if torch is not None:
        torch.set_num_threads(threads)
        sides.append(torch_step(rnn, batches(ids, batch, seq_len)))
        for n in range(3):
            a, b = (side() for side in sides)
            if abs(a - b) > 1e-4 * abs(b):
                raise SystemExit(f"{case}: at step {n} the losses differ, {a} and {b}")
    # Blocks of about 0.3 s of each side.
    counts = [max(1, round(0.3 / time_block(side, 3))) for side in sides]
    peak = fma_peak(threads)
    times = [[time_block(s, n) for s, n in zip(sides, counts, strict=True)] for _ in range(blocks)]
    ours = statistics.median(t[0] for t in times)
    hh = GATES[cell] * hidden * hidden
    flop = 6 * batch * seq_len * (layers * hh + (layers - 1) * hh + hidden * vocab)
    row = {
        "cell": cell,
        "batch": batch,
        "seq_len": seq_len,
        "hidden_size": hidden,
        "num_layers": layers,
        "threads": threads,
        "ms": ours * 1e3,
        "best_ms": min(t[0] for t in times) * 1e3,
        "characters_per_second": batch * seq_len / ours,
        "gflops": flop / ours / 1e9,
        "share_of_peak": flop / ours / peak,
    }
    if torch is not None:
        row["torch_ms"] = statistics.median(t[1] for t in times) * 1e3
        row["ratio"] = statistics.median(t[1] / t[0] for t in times)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("text", nargs="?", type=Path, help="default: Python's standard library")
    parser.add_argument(
        "--cases",
        nargs="*",
        type=parse_case,
        default=CASES,
        help="as lstm,50,50,128,2: cell, B, T, H, L",
    )
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--blocks", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the rows and the machine's facts there")
    args = parser.parse_args()
    if args.text and not args.text.is_file():
        parser.error(f"{args.text} is no file")
    text = args.text.read_text(encoding="utf-8") if args.text else demo.text()
    ids = cf.Vocabulary.from_text(text).encode(text)
    machine = {
        **cf.build_info(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "numpy": np.__version__,
        "torch": None if torch is None else torch.__version__,
    }
    print(f"# {machine}")
    print("| cell, B, T, H, L | threads | ms | share of peak | chars/s | PyTorch ms | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    rows = []
    for case in args.cases:
        for threads in args.threads:
            row = measure(case, threads, ids, args.blocks)
            rows.append(row)
            peer = f"{row['torch_ms']:.2f} | {row['ratio']:.2f}" if torch is not None else "- | -"
            print(
                f"| {', '.join(map(str, case))} | {threads} | {row['ms']:.3f} | "
                f"{row['share_of_peak']:.0%} | {row['characters_per_second']:,.0f} | {peer} |",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
