"""The layers of charrnn_fast.jax beside jax.lax.scan, as a program calls them.

    python benchmarks/jax_layers.py --threads 1
    python benchmarks/jax_layers.py --threads 2

Both are compiled by jax.jit. Forward is without gradients; training is the gradient by all
parameters and by x. Inputs are as wide as the layers. scan has the input's part of the gates in one
product before it, and its weights as [inputs, outputs], as JAX's own libraries keep them; ours have
PyTorch's orientation. Results are compared first. The two take turns, and a ratio is the median
over pairs of adjacent turns: scan's time over ours.

The number of threads is XLA's too: the program binds itself to as many processors before JAX is
loaded.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from turns import measure

CELLS = ("RNN", "GRU", "LSTM")
SIZES = ((50, 50, 128), (64, 50, 512), (1, 25, 128))
AGREES = 1e-4  # more is a mistake, not rounding


def scanned(cell: str) -> Callable[[Any, Any], Any]:
    """y of parameters ([I, G*H] and [H, G*H], two biases) and x, by lax.scan."""
    import jax
    import jax.numpy as jnp

    sigmoid = jax.nn.sigmoid

    def rnn(state: Any, gx: Any, w: Any, b: Any) -> Any:
        return (jnp.tanh(gx + state[0] @ w + b),)

    def gru(state: Any, gx: Any, w: Any, b: Any) -> Any:
        (h,) = state
        (xr, xz, xn), (hr, hz, hn) = (jnp.split(g, 3, -1) for g in (gx, h @ w + b))
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        n = jnp.tanh(xn + r * hn)
        return ((1 - z) * n + z * h,)

    def lstm(state: Any, gx: Any, w: Any, b: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(gx + h @ w + b, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
        return sigmoid(o) * jnp.tanh(c), c

    step = {"RNN": rnn, "GRU": gru, "LSTM": lstm}[cell]

    def call(p: Any, x: Any) -> Any:
        gx = x @ p["weight_ih_l0"] + p["bias_ih_l0"]
        zeros = jnp.zeros((x.shape[1], p["weight_hh_l0"].shape[0]), x.dtype)

        def one(state: Any, gx: Any) -> Any:
            state = step(state, gx, p["weight_hh_l0"], p["bias_hh_l0"])
            return state, state[0]

        return jax.lax.scan(one, (zeros, zeros)[: 1 + (cell == "LSTM")], gx)[1]

    return call


def _wait(compiled: Any, given: Any) -> Any:
    import jax

    return jax.block_until_ready(compiled(*given))


def calls(
    cell: str, size: tuple[int, int, int], task: str
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """What a turn of scan does, and of ours."""
    import jax

    import charrnn_fast.jax as layers

    B, T, H = size
    net = getattr(layers, cell)(H, H)
    ours = net.init(jax.random.key(0))
    theirs = {n: p.T for n, p in ours.items()}
    x, dy = (jax.random.normal(jax.random.key(n), (T, B, H)) for n in (1, 2))
    made: list[Callable[[], Any]] = []

    def layer(p: Any, x: Any) -> Any:
        return net(p, x)[0]

    for f, p in ((scanned(cell), theirs), (layer, ours)):

        def weighted(p: Any, x: Any, dy: Any, f: Any = f) -> Any:
            return (f(p, x) * dy).sum()

        compiled = jax.jit(f if task == "forward" else jax.grad(weighted, (0, 1)))
        given = (p, x) if task == "forward" else (p, x, dy)
        made.append(partial(_wait, compiled, given))
    a, b = (jax.tree.map(np.asarray, call()) for call in made)
    if task == "training":
        a = ({n: g.T for n, g in a[0].items()}, a[1])
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        difference = float(np.abs(p - q).max() / max(1.0, np.abs(q).max()))
        if not difference < AGREES:
            raise SystemExit(f"{cell} {size} {task}: results differ by {difference:.3g}")
    return made[0], made[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each ratio (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of both (default: 1)")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    arguments = parser.parse_args()
    processors = sorted(os.sched_getaffinity(0))[: arguments.threads]
    if len(processors) < arguments.threads:
        parser.error(f"--threads must be at most {len(processors)}, got {arguments.threads}")
    os.sched_setaffinity(0, processors)
    import jax

    import charrnn_fast as cf
    from charrnn_fast.bench.machine import facts

    cf.set_num_threads(arguments.threads)
    machine = facts()
    print(
        f"{machine['processor']}, {machine['isa']}, JAX {jax.__version__}, commit "
        f"{machine['commit']}, threads {arguments.threads}"
    )
    print("cell, B, T, H: scan's time over ours (ms of ours), forward / training")
    for size in SIZES:
        for cell in arguments.cells:
            found = [
                measure(calls(cell, size, task), arguments.seconds)
                for task in ("forward", "training")
            ]
            shown = " / ".join(f"{times.ratio:.2f} ({times.ours:.3g})" for times in found)
            print(f"{cell}, {', '.join(map(str, size))}: {shown}", flush=True)


if __name__ == "__main__":
    main()
