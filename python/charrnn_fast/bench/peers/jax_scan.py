"""JAX: lax.scan over time under jit; the input's part of the gates is one product before the scan.

The check compiles it for the shapes of each problem, before any timing. Matrices are stored as in
JAX's own libraries, [inputs, outputs]; with PyTorch's orientation XLA would copy at each step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..problem import CHECKED_STEPS, CLIP_NORM, LEARNING_RATE, Outputs, Problem, batches
from . import Peer, Task, require

NAME = "jax"


class Jax:
    cells: tuple[str, ...] = ("rnn", "gru", "lstm")

    def __init__(self, threads: int) -> None:
        # XLA takes its threads when it starts; the environment says how many.
        self.jax = require("jax")
        self.version: str = self.jax.__version__

    def tasks(self, problem: Problem) -> dict[str, Task]:
        make: dict[str, Callable[[Problem], Task]] = {
            "train": self._train,
            "forward": self._forward,
            "backward": self._backward,
            "sample": self._sample,
            "step": self._step,
        }
        suite = problem.case.suite
        return {NAME: make[suite](problem)} if suite in make else {}

    # ---- the network ----------------------------------------------------------------------

    def _cell(self, cell: str, gx: Any, gh: Any, prev: Any) -> Any:
        """The next states (h,) or (h, c) from the parts [B, G*H] of the gates."""
        jnp, sigmoid = self.jax.numpy, self.jax.nn.sigmoid
        if cell == "rnn":
            return (jnp.tanh(gx + gh),)
        if cell == "lstm":
            i, f, g, o = jnp.split(gx + gh, 4, axis=-1)
            c = sigmoid(f) * prev[1] + sigmoid(i) * jnp.tanh(g)
            return (sigmoid(o) * jnp.tanh(c), c)
        (x_r, x_z, x_n), (h_r, h_z, h_n) = jnp.split(gx, 3, axis=-1), jnp.split(gh, 3, axis=-1)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        return ((1 - z) * jnp.tanh(x_n + r * h_n) + z * prev[0],)

    def _layers(self, problem: Problem, p: Any, x: Any, states: Any) -> tuple[Any, Any]:
        """h [T, B, H] of the top layer, and the last states, from x [T, B, I] or tokens [T, B]."""
        jax, case = self.jax, problem.network
        last = []
        for k in range(case.num_layers):
            W_xh, W_hh = p[f"weight_ih_l{k}"], p[f"weight_hh_l{k}"]
            tokens = jax.numpy.issubdtype(x.dtype, jax.numpy.integer)
            gx = (W_xh[x] if tokens else x @ W_xh) + p[f"bias_ih_l{k}"]
            b_hh = p[f"bias_hh_l{k}"]

            def step(prev: Any, gx: Any, W_hh: Any = W_hh, b_hh: Any = b_hh) -> Any:
                following = self._cell(case.cell, gx, prev[0] @ W_hh + b_hh, prev)
                return following, following[0]

            end, x = jax.lax.scan(step, states[k], gx)
            last.append(end)
        return x, last

    def _logits(self, problem: Problem, p: Any, x: Any, states: Any) -> tuple[Any, Any]:
        h, states = self._layers(problem, p, x, states)
        return h @ p["decoder.weight"] + p["decoder.bias"], states

    def _start(self, problem: Problem) -> tuple[Any, Any]:
        """The parameters, matrices [inputs, outputs], and zero states, on the device."""
        case, jnp = problem.network, self.jax.numpy
        parameters = {name: jnp.asarray(value.T) for name, value in problem.parameters.items()}
        count = 2 if case.cell == "lstm" else 1
        shape = (case.batch, case.hidden_size)
        states = [tuple(jnp.zeros(shape) for _ in range(count)) for _ in range(case.num_layers)]
        return parameters, states

    # ---- the suites -----------------------------------------------------------------------

    def _train(self, problem: Problem) -> Task:
        jax, jnp, case = self.jax, self.jax.numpy, problem.network
        p, states = self._start(problem)
        m, v = (jax.tree.map(jnp.zeros_like, p) for _ in range(2))
        data = batches(problem.arrays["ids"], case.batch, case.seq_len)
        steps = 0

        def loss_of(p: Any, x: Any, y: Any, states: Any) -> Any:
            logits, states = self._logits(problem, p, x, states)
            log_p = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(log_p, y[..., None], -1).mean(), states

        def update(p: Any, m: Any, v: Any, states: Any, n: Any, x: Any, y: Any) -> Any:
            grad_of = jax.value_and_grad(loss_of, has_aux=True)
            (loss, states), grads = grad_of(p, x, y, states)
            norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
            factor = jnp.minimum(1.0, CLIP_NORM / (norm + 1e-6))
            grads = jax.tree.map(lambda g: g * factor, grads)
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
            c1, c2 = 1 - 0.9**n, jnp.sqrt(1 - 0.999**n)
            p = jax.tree.map(
                lambda p, m, v: p - LEARNING_RATE / c1 * m / (jnp.sqrt(v) / c2 + 1e-8), p, m, v
            )
            return p, m, v, states, loss

        compiled = jax.jit(update, donate_argnums=(0, 1, 2, 3))

        def run() -> float:
            nonlocal p, m, v, states, steps
            steps += 1
            x, y = next(data)
            p, m, v, states, loss = compiled(p, m, v, states, float(steps), x, y)
            return float(loss)

        return Task(lambda: {"losses": np.array([run() for _ in range(CHECKED_STEPS)])}, run)

    def _forward(self, problem: Problem) -> Task:
        p, states = self._start(problem)
        compiled = self.jax.jit(lambda p, x, states: self._layers(problem, p, x, states)[0])
        tokens = self.jax.numpy.asarray(problem.arrays["tokens"])

        def run() -> Any:
            return compiled(p, tokens, states).block_until_ready()

        return Task(lambda: {"y": np.asarray(run())}, run)

    def _backward(self, problem: Problem) -> Task:
        jax = self.jax
        p, states = self._start(problem)
        tokens = jax.numpy.asarray(problem.arrays["tokens"])
        dy = jax.numpy.asarray(problem.arrays["dy"])
        # What vjp returns is a tree of what forward has kept: it crosses from one jit to another.
        _, vjp = jax.jit(
            lambda p: jax.vjp(lambda p: self._layers(problem, p, tokens, states)[0], p)
        )(p)
        compiled = jax.jit(lambda vjp, dy: vjp(dy)[0])

        def run() -> Any:
            return jax.block_until_ready(compiled(vjp, dy))

        def check() -> Outputs:
            return {name: np.asarray(g).T for name, g in run().items()}

        return Task(check, run)

    def _sample(self, problem: Problem) -> Task:
        jax, case = self.jax, problem.network
        p, states = self._start(problem)
        tokens = jax.numpy.asarray(problem.arrays["tokens"])
        last, key = tokens[0], jax.random.key(0)

        def draw(p: Any, last: Any, states: Any, key: Any) -> Any:
            def step(carry: Any, _: Any) -> Any:
                last, states, key = carry
                logits, states = self._logits(problem, p, last[None], states)
                key, own = jax.random.split(key)
                last = jax.random.categorical(own, logits[0]).astype(last.dtype)
                return (last, states, key), last

            return jax.lax.scan(step, (last, states, key), None, length=case.seq_len)

        compiled = jax.jit(draw)
        start = states

        def check() -> Outputs:
            return {"logits": np.asarray(self._logits(problem, p, tokens, start)[0])}

        def run() -> Any:
            nonlocal last, states, key
            (last, states, key), drawn = compiled(p, last, states, key)
            return drawn.block_until_ready()

        run()  # compiles
        return Task(check, run, case.seq_len * case.batch)

    def _step(self, problem: Problem) -> Task:
        p, states = self._start(problem)
        rows = [self.jax.numpy.asarray(row[None]) for row in problem.arrays["x"]]
        compiled = self.jax.jit(lambda p, x, states: self._layers(problem, p, x, states))

        def steps() -> list[Any]:
            nonlocal states
            outputs = []
            for row in rows:
                y, states = compiled(p, row, states)
                outputs.append(y)
            outputs[-1].block_until_ready()
            return outputs

        return Task(
            lambda: {"y": np.concatenate([np.asarray(y) for y in steps()])}, steps, len(rows)
        )


PEER: type[Peer] = Jax
