"""What the package's objects have in common: options that stay, deep copies, pickles."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ._names import meant

_PACKAGE = __name__.partition(".")[0]


class Settled:
    """Options that are fixed with the object, and copies that share nothing with it.

    Public attributes that a class of this package declares (by an annotation) are set once; those
    that may be set again are properties with a setter, or stand in `_settable`. Other public names
    are refused as slips. A subclass elsewhere may have attributes of its own: they are copied and
    pickled with the rest.

    A pickle holds what `_pickled` gives, Python's own objects and NumPy's arrays, and the number of
    its format, `_format`: a version that knows another one alone refuses it.
    """

    _settable: ClassVar[frozenset[str]] = frozenset()
    _advice: ClassVar[Mapping[str, str]] = {}
    """What to do where an attribute cannot be set, by its name; "": for all others."""
    _format: ClassVar[int | str] = 1
    _covered: ClassVar[frozenset[str]] = frozenset()
    """The private attributes that `_unpickle` sets, or leaves to be made anew."""

    if not TYPE_CHECKING:  # which would take it for leave to set anything

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
        """The attributes that `_pickled` does not cover: those of subclasses, as a rule."""
        state: Any = super().__getstate__()
        attributes, slots = state if isinstance(state, tuple) else (state, None)
        covered = _declared(type(self)) | self._covered
        rest = {name: value for name, value in (attributes or {}).items() if name not in covered}
        return (rest or None, slots) if slots else rest or None

    def __reduce__(self) -> tuple[Any, ...]:
        # What makes the object comes first, and the rest behind it, which may refer back to it.
        return _restored, (type(self), self._format, self._pickled()), self.__getstate__()

    def _pickled(self) -> dict[str, Any]:
        """What makes an equal object."""
        raise NotImplementedError

    def _unpickle(self, saved: dict[str, Any]) -> None:
        """Makes the object, of which nothing is there yet, from what `_pickled` gave; checks it."""
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
        made._unpickle(saved)  # noqa: SLF001 - the hook that it is declared for
    except (KeyError, AttributeError) as error:
        raise ValueError(f"this is no whole pickle of a {cls.__name__}: {error!r}") from error
    return made


def _is_ours(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == _PACKAGE


def _declared(cls: type) -> frozenset[str]:
    """The public attributes that the package's own classes among a class's bases declare."""
    names = cls.__dict__.get("_declared_names")
    if names is None:
        ours = [base for base in cls.__mro__ if _is_ours(base)]
        found = {name for base in ours for name in get_annotations(base)}
        names = frozenset(name for name in found if name[0] != "_")
        type.__setattr__(cls, "_declared_names", names)
    return names
