"""A program: networks, models and trainers give the same results on a device as on the CPU.

It takes the folder of a module with a device, and its name: guarded_device
(tests/cpp/guarded_module.cpp), whose device ends the program if anything but the device's own
kernels and copies accesses its memory; or emulated_device (tests/cuda/emulated_module.cpp), with
the orders in which the emulator runs the threads.
"""

from __future__ import annotations

import functools
import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import charrnn_fast as cf
import devices
from charrnn_fast import _devices

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. " * 40
DROPOUTS: dict[str, Any] = {
    "dropout": 0.2,
    "input_dropout": 0.1,
    "output_dropout": 0.3,
    "recurrent_dropout": 0.25,
    "weight_drop": 0.1,
    "zoneout": 0.1,
}


def operators(**options: Any) -> Iterator[Any]:
    """Forward, backward, steps and an update of an RNN by itself."""
    rng = np.random.default_rng(1)
    rnn = cf.RNN(5, 9, 4, seed=2, **options)
    dense = rng.standard_normal((6, 3, 5)).astype(rnn.dtype)
    tokens = rng.integers(0, 5, (6, 3)).astype(np.int32)
    lengths = np.array([6, 2, 4])
    for x in (dense, tokens):
        for given in (None, lengths):
            y, state = rnn.forward(x, lengths=given)
            dx, dstate, gradients = rnn.backward(np.ones_like(y))
            yield from (y, state, dstate, *gradients.values())
            if dx is not None:
                yield dx
    optimizer = cf.optim.Adam(rnn, lr=0.01)
    optimizer.step(gradients)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step(gradients)
    yield from rnn.parameters().values()
    if not rnn.bidirectional:
        yield from (rnn.step(dense[0]) for _ in range(3))


def language_model(optimizer: str, **options: Any) -> Iterator[Any]:
    """Training, evaluation, samples and a file of a language model."""
    corpus = cf.Corpus.from_text(TEXT)
    model = cf.CharLM(corpus.vocabulary, hidden_size=16, num_layers=2, seed=3, **options)
    trainer = cf.Trainer(
        model, corpus, batch_size=4, seq_len=12, optimizer=optimizer, learning_rate=1e-2
    )
    trainer.fit(steps=6, progress=False)
    yield from model.rnn.parameters().values()
    yield np.float64(model.evaluate(TEXT[:300]))
    for sampling in ({}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}, {"temperature": 0}):
        yield np.array(list(model.sample(40, prime="the ", seed=1, **sampling)))
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "m.safetensors")
        loaded = cf.CharLM.load(Path(folder) / "m.safetensors")
    yield from loaded.rnn.parameters().values()
    yield np.array(list(loaded.sample(40, prime="the ", seed=2)))


def results() -> list[Any]:
    """Arrays of all cases."""
    cases: list[Callable[[], Iterator[Any]]] = [
        functools.partial(operators, cell="lstm", num_layers=2),
        functools.partial(operators, cell="gru", bidirectional=True, dtype="float64"),
        functools.partial(operators, cell="lstm", proj_size=4, layer_norm=True),
        functools.partial(operators, cell="rnn", bias="single"),
        functools.partial(language_model, "adam", cell="lstm", **DROPOUTS),
        functools.partial(language_model, "sgd", cell="gru", layer_norm=True),
        functools.partial(language_model, "rmsprop", cell="rnn", dtype="float64"),
    ]
    return [
        np.asarray(array)
        for case in cases
        for result in case()
        for array in (result if isinstance(result, tuple) else (result,))
    ]


def main(folder: str, name: str = "guarded_device", *orders: str) -> None:
    expected = results()
    sys.path.insert(0, folder)
    module = importlib.import_module(name)
    _devices.register(name, module.device(0) if callable(module.device) else module.device)
    devices.in_place_of_the_cpu(name)
    network = cf.RNN(2, 3)
    first, second = (network.parameters()["weight_hh_l0"] for _ in range(2))
    assert network.device == name and not np.shares_memory(first, second), "the CPU's memory"
    for order in orders or [""]:
        if order:
            module.set_order(int(order))
        found = results()
        assert len(found) == len(expected)
        different = [
            number
            for number, (a, b) in enumerate(zip(expected, found, strict=True))
            if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes())
        ]
        print(f"{len(found)} results, {len(different)} different: {different}")


if __name__ == "__main__":
    main(*sys.argv[1:])
