"""Texts of one model on a device and on the CPU: where each first differs.

    python benchmarks/gpu/same_texts.py cuda
    python benchmarks/gpu/same_texts.py emulated --module FOLDER   # built by tests/cuda

A language model is trained on the CPU, then 64 seeds draw 2,000 characters each, as one batch. A
draw takes the first character whose cumulative probability exceeds a random number. Where a text
differs, the distance of that number from the nearest boundary is told, as the CPU has it: a
difference by rounding lies within 1e-5. Exit status 1: one lies farther off.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import charrnn_fast as cf
from charrnn_fast.reference.masks import uniform
from charrnn_fast.text import demo

NEAR = 1e-5


def trained(hidden_size: int, layers: int) -> cf.CharLM:
    corpus = cf.Corpus.from_text(demo.text()[:200_000])
    model = cf.CharLM(corpus.vocabulary, hidden_size, layers, "lstm", seed=1)
    cf.Trainer(model, corpus, 20, 30, learning_rate=1e-2).fit(steps=300, progress=False)
    return model


def boundary_distance(model: cf.CharLM, text: str, at: int, seed: int) -> float:
    """How far the random number of draw `at` of a text lies from a boundary."""
    first = max(model.vocabulary.id_of(ord("\n")), 0)  # what an empty prime reads
    ids = np.array([first, *model.vocabulary.encode(text[:at])], np.int32)
    logits = model.rnn.forward(ids[:, None], keep=False)[0][-1, 0].astype(float)
    weights = np.exp(logits - logits.max())
    return float(np.abs(np.cumsum(weights) / weights.sum() - uniform(seed, at)).min())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("device")
    parser.add_argument("--module", type=Path, help="folder of the emulated device's module")
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--length", type=int, default=2000)
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.module is not None:
        sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
        import devices

        devices.register(arguments.module)
    ours = trained(arguments.hidden_size, arguments.layers)
    theirs = cf.CharLM(ours.vocabulary, **ours.settings(), device=arguments.device)
    theirs.rnn.load_parameters(ours.rnn.parameters())
    seeds = range(arguments.seeds)
    start = time.perf_counter()
    texts = theirs.sample(arguments.length, seeds=seeds)
    seconds = time.perf_counter() - start
    expected = ours.sample(arguments.length, seeds=seeds)
    far = 0
    for seed, text, other in zip(seeds, texts, expected, strict=True):
        if text == other:
            continue
        at = next(i for i, (a, b) in enumerate(zip(text, other, strict=True)) if a != b)
        distance = boundary_distance(ours, other, at, seed)
        far += distance > NEAR
        print(f"seed {seed}: differs from character {at} on, {distance:.2g} from a boundary")
    same = sum(map(str.__eq__, texts, expected))
    print(
        f"{same} of {len(texts)} texts of {arguments.length} characters are the same on "
        f"{arguments.device} and on the CPU ({cf.build_info()['isa']}); {len(set(texts))} are "
        f"different texts; {seconds:.0f} s"
    )
    return 1 if far else 0


if __name__ == "__main__":
    sys.exit(main())
