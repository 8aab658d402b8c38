"""The structure of the package: imports go downward only, without cycles or private names.

Imports are read from the sources, including those in functions and for type checking.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "python" / "charrnn_fast"

# From the bottom to the top, as CONTRIBUTING.md has them: what a layer imports is in it or below.
LAYERS = (
    ("_core", "_cuda", "reference"),
    ("_checks", "_names", "_objects", "_devices", "cuda", "registry", "runtime"),
    ("device_array",),
    ("rnn", "device_calls", "states", "initial", "losses", "optim"),
    ("torch", "jax"),
    ("storage",),
    ("text",),
    ("language",),
    ("onnx",),
    ("training",),
    ("callbacks", "distributed", "log", "schedules"),  # public paths of what is in training
    ("view", "serve", "tune", "bench"),
    ("cli",),
    ("__init__", "__main__"),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# By the module's name without the package's: "text.corpus"; of a folder itself "text.__init__".
Sources = Mapping[str, str]


def package() -> dict[str, str]:
    files = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.pyi")]
    return {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts): file.read_text(encoding="utf-8")
        for file in files
    }


def imports(sources: Sources, module: str) -> Iterator[tuple[str, str]]:
    """What a module of the package imports from it: the other module, and the name ("": all)."""
    folder = module.split(".")[:-1]
    for node in _statements(sources[module]):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = folder[: len(folder) - node.level + 1]
            elif (node.module or "").partition(".")[0] == "charrnn_fast":
                base = []
            else:
                continue
            named = (node.module or "").split(".")
            base = [*base, *(named if node.level else named[1:])]
            for alias in node.names:
                path = [part for part in base if part]
                inner = _found(sources, [*path, alias.name])
                yield (inner, "") if inner else (_found(sources, path), alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first, *path = alias.name.split(".")
                if first == "charrnn_fast":
                    yield _found(sources, path), ""


@cache
def _statements(source: str) -> list[ast.stmt]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.stmt)]


def _found(sources: Sources, path: list[str]) -> str:
    """The module at a path; "" where there is none."""
    names = (".".join(path), ".".join([*path, "__init__"]))
    return next((name for name in names if name in sources), "")


def circle(sources: Sources) -> list[str]:
    """Modules of which each imports the next, and the last one the first; none: there is none."""
    done: set[str] = set()

    def search(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        for other, _ in imports(sources, module):
            if found := search(other, [*way, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sources if (found := search(module, []))), [])


def upward(sources: Sources) -> list[str]:
    """Imports of a module in a higher layer, and modules that have none."""
    lost = [f"{module} is in no layer" for module in sources if _layer(module) not in RANKS]
    return lost + [
        f"{module} imports {other}"
        for module in sources
        for other, _ in imports(sources, module)
        if RANKS.get(_layer(other), 0) > RANKS.get(_layer(module), 0)
    ]


def _layer(module: str) -> str:
    return module.partition(".")[0]


def private(sources: Sources) -> list[str]:
    """Imports of names with an underscore, which are their own module's; ruff sees no relative
    ones.
    """
    return [
        f"{module} imports {name} of {other}"
        for module in sources
        for other, name in imports(sources, module)
        if name.startswith("_") and not name.endswith("__")
    ]


def test_no_circle() -> None:
    assert circle(package()) == []


def test_downward_only() -> None:
    assert upward(package()) == []


def test_private_names_stay_in_their_file() -> None:
    assert private(package()) == []


def test_the_reference_imports_itself_alone() -> None:
    sources = package()
    modules = [module for module in sources if _layer(module) == "reference"]
    assert len(modules) > 5
    assert {_layer(o) for m in modules for o, _ in imports(sources, m)} == {"reference"}


def test_the_graph_is_that_of_the_package() -> None:
    """Some imports of each kind, so that the tests above have something to find."""
    found = {m: set(imports(package(), m)) for m in package()}
    assert ("_core", "") in found["rnn"]
    assert ("text.files", "") in found["text.corpus"]
    assert ("training.trainer", "Trainer") in found["training.log"]  # for type checking
    assert ("_core", "build_info") in found["runtime"]  # in a function
    assert ("bench.peers.__init__", "Task") in found["bench.peers.kernels"]
    assert all(other in found for edges in found.values() for other, _ in edges)


@pytest.mark.parametrize(
    ("check", "change", "message"),
    [
        (circle, {"text.vocabulary": "def f() -> None:\n    from . import corpus"}, "text.corpus"),
        (
            circle,
            {"training.callbacks": "if TYPE_CHECKING:\n    from .trainer import A"},
            "trainer",
        ),
        (circle, {"view.reading": "from . import page"}, "view.__init__"),
        (upward, {"rnn": "from .text.corpus import Corpus"}, "rnn imports text.corpus"),
        (
            upward,
            {"storage.schema": "import charrnn_fast.training.clock"},
            "storage.schema imports",
        ),
        (upward, {"language.model": "from charrnn_fast import build_info"}, "imports __init__"),
        (upward, {"sound.wave": ""}, "sound.wave is in no layer"),
        (private, {"text.chunks": "from .corpus import _check"}, "text.chunks imports _check"),
        (private, {"cli.info": "from charrnn_fast.rnn import _rate"}, "cli.info imports _rate"),
    ],
)
def test_what_would_be_found(check: object, change: dict[str, str], message: str) -> None:
    assert callable(check)
    assert message in " ".join(check({**package(), **change}))
