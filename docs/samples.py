"""Prints the samples in a training's log, with the validation loss of each.

    python docs/samples.py run.jsonl --evaluations 1 4 16

Losses are in nats. --evaluations chooses evaluations; without it, all are printed.
"""

from __future__ import annotations

import argparse

from charrnn_fast.training import log


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the samples of a training's log.")
    parser.add_argument("log")
    parser.add_argument("--evaluations", type=int, nargs="+", metavar="N", help="1 is the first")
    arguments = parser.parse_args()
    entries = [entry for entry in log.read(arguments.log) if entry["type"] == "evaluation"]
    for number in arguments.evaluations or range(1, len(entries) + 1):
        entry = entries[number - 1]
        print(f"epoch {entry['epoch']:.4g}, validation {entry['validation_loss']:.4f}:")
        for line in entry["sample"].splitlines():
            print(f"    {line}".rstrip() or "    ")


if __name__ == "__main__":
    main()
