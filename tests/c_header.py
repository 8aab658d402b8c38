"""The C interface for Python's ctypes, made of the declarations in charrnn_fast.h alone."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import charrnn_fast as cf

HEADER = Path(__file__).parents[1] / "cpp" / "include" / "charrnn_fast" / "charrnn_fast.h"

_SCALARS: dict[str, Any] = {
    "void": None,
    "char": ctypes.c_char,
    "double": ctypes.c_double,
    "int": ctypes.c_int,
    "size_t": ctypes.c_size_t,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint32_t": ctypes.c_uint32,
    "uint64_t": ctypes.c_uint64,
    "charrnn_status": ctypes.c_int32,
}


class Library:
    """Functions are attributes without their prefix: ``library.model_create``.

    A failing call raises `FailedError`. Structs and constants are in `structs` and `constants`.
    """

    def __init__(self, path: Path) -> None:
        text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
        self.constants = {
            name: int(value) for name, value in re.findall(r"\b(CHARRNN_\w+) = (-?\d+)", text)
        }
        self.structs: dict[str, type[ctypes.Structure]] = {}
        self.functions: dict[str, Any] = {}
        for result, name, given in re.findall(r"typedef (\w+) \(\*(\w+)\)\((.*?)\);", text):
            types = [self._declared(parameter)[1] for parameter in given.split(",")]
            self.functions[name] = ctypes.CFUNCTYPE(self._type(result), *types)
        for name, body in re.findall(r"typedef struct (charrnn_\w+) \{(.*?)\}", text, re.DOTALL):
            fields = [self._declared(field) for field in body.split(";") if field.strip()]
            self.structs[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
        declared = re.findall(r"CHARRNN_API ([^;()]*?)(charrnn_\w+)\(([^;]*?)\);", text)
        self.names = [name for _, name, _ in declared]
        self._loaded = ctypes.CDLL(str(path))
        for result, name, given in declared:
            function = getattr(self._loaded, name)
            function.restype = self._type(result)
            parameters = [p for p in given.split(",") if p.strip() != "void"]
            function.argtypes = [self._declared(p)[1] for p in parameters]
            checked = result.strip() == "charrnn_status"
            short = name.removeprefix("charrnn_")
            setattr(self, short, self._checked(function) if checked else function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def _declared(self, text: str) -> tuple[str, Any]:
        """The name and the type of "const float* x"."""
        found = re.fullmatch(r"\s*(.*?)(\w+)\s*", text, re.DOTALL)
        assert found is not None, text
        return found[2], self._type(found[1])

    def _type(self, text: str) -> Any:
        words = text.replace("const", " ").replace("*", " * ").split()
        kind, stars = words[0], words.count("*")
        base: Any
        if kind in ("void", "char") and stars:
            base = ctypes.c_void_p if kind == "void" else ctypes.c_char_p
            stars -= 1
        elif kind in _SCALARS:
            base = _SCALARS[kind]
        elif kind in self.structs:
            base = self.structs[kind]
        elif kind in self.functions:
            base = self.functions[kind]
        else:  # a handle
            base = ctypes.c_void_p
            stars -= 1
        for _ in range(stars):
            base = ctypes.POINTER(base)
        return base

    def _checked(self, function: Any) -> Any:
        def call(*arguments: object) -> None:
            status = function(*arguments)
            if status:
                raise FailedError(status, self.last_error().decode())

        return call

    def struct(self, name: str, **values: Any) -> Any:
        """A struct of options with its size."""
        kind = self.structs[f"charrnn_{name}"]
        return kind(**{"size": ctypes.sizeof(kind), **values})


class FailedError(Exception):
    """status, message"""


def path_of_library() -> Path:
    """The installed library's file."""
    (path,) = (Path(cf.get_include()).parent / "lib").glob("libcharrnn_fast_c.so.*")
    return path
