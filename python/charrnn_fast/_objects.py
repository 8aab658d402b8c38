"""The base of the package's objects: read-only options, deep copies, pickles."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ._names import meant

_PACKAGE = __name__.partition(".")[0]


class Settled:
    """Read-only options, and copies that share nothing with the original.

    Public attributes that a class of this package declares (by an annotation) are set once. Those
    that may change are properties with a setter, or named in `_settable`. Other public names raise,
    as typos. Subclasses elsewhere may have attributes of their own, which are copied and pickled
    too.

    A pickle holds what `_pickled` returns, in objects of Python and arrays of NumPy, and the format
    `_format`. A version with another format refuses it.
    """

    _settable: ClassVar[frozenset[str]] = frozenset()
    _advice: ClassVar[Mapping[str, str]] = {}
    """Advice for an attribute that cannot be set, by its name; "": for all others."""
    _format: ClassVar[int | str] = 1
    _covered: ClassVar[frozenset[str]] = frozenset()
    """The private attributes that `_unpickle` sets, or that are rebuilt later."""

    if not TYPE_CHECKING:  # type checkers would then allow any attribute

        def __setattr__(self, name: str, value: object) -> None:
            if name[:1] != "_":
                self._check_settable(name)
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in _declared(type(self)):
            self._refuse(name)
        super().__delattr__(name)

    def _check_settable(self, name: str) -> None:
        cls = type(self)
        on_class = getattr(cls, name, None)
        if isinstance(on_class, property):
            if on_class.fset is None:
                self._refuse(name)
        elif name in _declared(cls):
            if name in self.__dict__ and name not in cls._settable:
                self._refuse(name)
        elif on_class is None and _is_ours(cls):
            if f"_{name}" in self.__dict__:
                self._refuse(name)
            known = {n for n in (*dir(cls), *self.__dict__) if n[0] != "_"}
            near = meant(name, known)
            hint = f"; did you mean {near!r}?" if near else ""
            raise AttributeError(f"{cls.__name__} has no attribute {name!r}{hint}")

    def _refuse(self, name: str) -> NoReturn:
        advice = self._advice.get(name) or self._advice.get("", "it is what it was made with")
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed: {advice}")

    def __copy__(self) -> Any:
        return copy.deepcopy(self)

    def __getstate__(self) -> Any:
        """The attributes that `_pickled` does not cover, usually those of subclasses."""
        state: Any = super().__getstate__()
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        covered = _declared(type(self)) | self._covered
        rest = {name: value for name, value in (attributes or {}).items() if name not in covered}
        return (rest or None, slots) if slots else rest or None

    def __reduce__(self) -> tuple[Any, ...]:
        # The object is built first: the other attributes may refer back to it.
        return _restored, (type(self), self._format, self._pickled()), self.__getstate__()

    def _pickled(self) -> dict[str, Any]:
        """What `_unpickle` needs to build an equal object."""
        raise NotImplementedError

    def _unpickle(self, saved: dict[str, Any]) -> None:
        """Builds this still empty object from the result of `_pickled`, and checks it."""
        raise NotImplementedError


def _restored(cls: type[Settled], form: int | str, saved: Any) -> Settled:
    """The object of a pickle or of a copy."""
    if form != cls._format or not isinstance(saved, dict):
        raise ValueError(
            f"this {cls.__name__} was pickled in the format {form!r} by another version of "
            f"charrnn_fast, this one reads {cls._format!r}; files that are kept are checkpoints"
        )
    made = cls.__new__(cls)
    try:
        made._unpickle(saved)  # noqa: SLF001 - the hook is declared for this
    except (KeyError, AttributeError) as error:
        raise ValueError(f"this is no whole pickle of a {cls.__name__}: {error!r}") from error
    return made


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == _PACKAGE


def _declared(cls: type) -> frozenset[str]:
    """The public attributes declared by those bases of a class that this package has."""
    names = cls.__dict__.get("_declared_names")
    if names is None:
        ours = [base for base in cls.__mro__ if _is_ours(base)]
        found = {name for base in ours for name in get_annotations(base)}
        names = frozenset(name for name in found if name[0] != "_")
        type.__setattr__(cls, "_declared_names", names)
    return names
