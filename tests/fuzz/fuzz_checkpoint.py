"""Coverage-guided fuzzing of checkpoints: reading, going on, saving; takes the extra ``fuzz``.

    python tests/fuzz/fuzz_checkpoint.py -max_total_time=30 FOUND tests/fuzz/corpus

runs for 30 seconds from the kept corpus; what reaches new code is put into the folder FOUND, which
may be empty. Options are libFuzzer's. A finding ends it with a file ``crash-...``, which
``python tests/fuzz/fuzz_checkpoint.py crash-...`` tries again; what was found and mended goes into
the corpus, which the tests try as well.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzz import target

_MODULES = {
    f"charrnn_fast.{name}"
    for name in (
        "language.model",
        "states",
        "storage.checkpoint",
        "storage.configuration",
        "storage.input_files",
        "storage.schema",
        "text.vocabulary",
        "training.resume",
        "training.schedules",
        "training.trainer",
        "training.update",
    )
}


def instrument() -> None:
    """Each function of the modules, those too that the schema is made of: one for each key.

    Not by `atheris.instrument_imports`, which silently does nothing for a package that is
    installed editable.
    """
    functions = [f for f in gc.get_objects() if isinstance(f, FunctionType)]
    for function in functions:
        if function.__module__ in _MODULES:
            atheris.instrument_func(function)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    found = target.mutated(data, seed) if seed % 3 else None
    if found is None or len(found) > max_size:
        found = atheris.Mutate(data, max_size)
    return bytes(found)


def main() -> None:
    instrument()
    system: Any = os
    system.fsync = lambda _: None  # nothing here has to outlive a power cut
    arguments = [sys.argv[0], f"-max_len={target.LARGEST}", *sys.argv[1:]]
    atheris.Setup(arguments, target.one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
