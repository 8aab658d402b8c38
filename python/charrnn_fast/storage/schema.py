"""Schemas of JSON from files, declared in one place and checked before use.

A `Check` takes the dotted name of a value and the value. It raises ValueError or TypeError that
says which value is wrong, what it is and what it must be. Types are JSON's own and strict: true is
not an integer, "7" not a number, and no number is infinite.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from .. import _checks
from .._checks import LARGEST

Check = Callable[[str, Any], None]

_DEPTH = 32  # of lists and objects in each other
_FREE_VALUES = 20_000  # strings, lists and objects that any text may have
_LENGTH_PER_VALUE = 24  # characters of text, for each one more
# A string (if unterminated, to the end of the text) or a bracket. Possessive: no backtracking.
_STRUCTURE = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)|[\[{\]}]', re.DOTALL)


def loads(text: str, depth: int = _DEPTH, values: int | None = None) -> Any:
    """The value of a JSON text; ValueError unless it is one that this package may write.

    Limits are checked before parsing, so that a text takes at most a few times its size in memory:
    on the depth of lists and objects, and on the number of them and of strings (None: by the text's
    length). Keys are unique in an object, and no number is NaN or infinite by name.
    """
    if values is None:
        values = _FREE_VALUES + len(text) // _LENGTH_PER_VALUE
    level = count = 0
    for match in _STRUCTURE.finditer(text):
        start = text[match.start()]
        if start in "]}":
            level -= 1
            continue
        level += start in "[{"
        count += 1
        if level > depth:
            raise ValueError(f"lists and objects are more than {depth} deep in each other")
        if count > values:
            raise ValueError(f"it has more than {values:,} strings, lists and objects")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:  # called from a deep stack
        raise ValueError("lists and objects are too deep in each other") from None


def integer(least: int, most: int = LARGEST) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not int:
            takes = f">= {least}" if most == LARGEST else f"in {least} to {most}"
            _wrong(name, f"an integer {takes}", value)
        _checks.integer(name, value, least, most)

    return check


def number(**bounds: float) -> Check:
    """bounds: as `_checks.real` takes them."""

    def check(name: str, value: Any) -> None:
        if type(value) not in (int, float):
            _wrong(name, "a number", value)
        _checks.real(name, value, **bounds)

    return check


def flag(name: str, value: Any) -> None:
    if type(value) is not bool:
        _wrong(name, "true or false", value)


def text(pattern: str = "", takes: str = "a text") -> Check:
    """A string; with a pattern, one that matches all of it."""

    def check(name: str, value: Any) -> None:
        if type(value) is not str or (pattern and not re.fullmatch(pattern, value)):
            _wrong(name, takes, value)

    return check


def one_of(*choices: str | bool) -> Check:
    def check(name: str, value: Any) -> None:
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            _wrong(name, f"one of {', '.join(json.dumps(choice) for choice in choices)}", value)

    return check


def optional(inner: Check) -> Check:
    """null, or a value that inner accepts."""

    def check(name: str, value: Any) -> None:
        if value is not None:
            inner(name, value)

    return check


def row(**columns: Check) -> Check:
    """A list with one value for each column."""

    def check(name: str, value: Any) -> None:
        if type(value) not in (list, tuple) or len(value) != len(columns):
            _wrong(name, f"a list [{', '.join(columns)}]", value)
        for i, (column, inner) in enumerate(columns.items()):
            inner(f"{name}.{i} ({column})", value[i])

    return check


def list_of(inner: Check) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not list:
            _wrong(name, "a list", value)
        for i, element in enumerate(value):
            inner(f"{name}.{i}", element)

    return check


def table(
    keys: Mapping[str, Check], optional: Mapping[str, Check] | None = None, *, others: bool = False
) -> Check:
    """An object with these keys, any of the optional ones and no others, unless others is True."""
    may = optional or {}

    def check(name: str, value: Any) -> None:
        if type(value) is not dict:
            _wrong(name, "an object", value)
        prefix = f"{name}." if name else ""
        for key in keys:
            if key not in value:
                raise ValueError(f"{prefix}{key} is missing")
        for key, element in value.items():
            inner = keys.get(key) or may.get(key)
            if inner is not None:
                inner(f"{prefix}{key}", element)
            elif not others:
                raise ValueError(f"{prefix}{_key(key)} is unknown to this version")

    return check


def variant(key: str, kinds: Mapping[str, Check]) -> Check:
    """An object whose key selects the check for its other keys."""
    kind = one_of(*kinds)

    def check(name: str, value: Any) -> None:
        if type(value) is not dict:
            _wrong(name, "an object", value)
        if key not in value:
            raise ValueError(f"{name}.{key} is missing")
        kind(f"{name}.{key}", value[key])
        kinds[value[key]](name, {k: v for k, v in value.items() if k != key})

    return check


def mapping(inner: Check) -> Check:
    """An object with any keys."""

    def check(name: str, value: Any) -> None:
        if type(value) is not dict:
            _wrong(name, "an object", value)
        for key, element in value.items():
            if type(key) is not str:
                _wrong(f"the key {shown(key)} of {name}", "a text", key)
            inner(f"{name}.{_key(key)}", element)

    return check


def anything(name: str, value: Any) -> None:
    """Any JSON value, not too deep."""
    _anything(name, value, _DEPTH // 2)


def _anything(name: str, value: Any, depth: int) -> None:
    if depth == 0 and type(value) in (dict, list):
        raise ValueError(f"{name} is too deep: lists and objects of lists and objects")
    if type(value) is float and not math.isfinite(value):
        _wrong(name, "finite", value)
    if type(value) is dict:
        mapping(lambda n, v: _anything(n, v, depth - 1))(name, value)
    elif type(value) is list:
        list_of(lambda n, v: _anything(n, v, depth - 1))(name, value)
    elif value is not None and type(value) not in (bool, int, float, str):
        _wrong(name, "a JSON value", value)


def _wrong(name: str, takes: str, value: Any) -> NoReturn:
    raise TypeError(f"{name or 'it'} must be {takes}, got {shown(value)}")


def shown(value: Any) -> str:
    """value for a message, shortened however long and deep it is."""
    return _checks.shown(value) if type(value) is int else reprlib.repr(value)


def _key(key: str) -> str:
    return key if key.isprintable() and len(key) <= 60 else shown(key)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; ValueError for a duplicate key, of which readers would take either."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
