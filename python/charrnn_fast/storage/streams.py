"""The standard streams, robust to missing and broken ones; escapes on terminals.

A missing stream (closed by ``>&-``, or None under pythonw) is silent. On a terminal, characters
that it would obey instead of showing are escaped; files and pipes get every text unchanged.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

# Control characters but newline and tab, with those of U+0080 to U+009F; the marks, embeddings,
# overrides and isolates that reorder a line; the separators of lines and paragraphs; the format
# characters that are deprecated or show nothing, tags among them; halves of surrogate pairs. Not
# the joiners, which scripts and emoji need.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)


def visible(text: str) -> str:
    r"""text with an escape, such as ``\x1b``, for each character that a terminal would obey."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class Output:
    """A text stream to print to.

    The first OSError on writing is kept and raised; after that it is silent.
    """

    failure: OSError | None
    goes_on: bool
    """Whether errors are only kept, except that of a pipe whose reader has gone."""

    def __init__(
        self, stream: TextIO | None, *, optional: bool = False, escaped: bool = True
    ) -> None:
        """optional: nothing depends on it, and no error is raised. escaped: on a terminal."""
        # A program may have closed it, or put an object of its own there.
        self._stream = None if getattr(stream, "closed", False) else stream
        self._optional = optional
        self._is_terminal = bool(getattr(self._stream, "isatty", bool)())
        self._escaped = escaped and self._is_terminal
        self.failure = None
        self.goes_on = False

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        if self._stream is not None and self.failure is None:
            try:
                self._write(visible(text) if self._escaped else text)
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None and self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._fail(error)

    def obeyed(self) -> Output:
        """The same stream without escapes, for a bar, which moves the cursor."""
        return Output(self._stream, optional=True, escaped=False)

    def close(self) -> OSError | None:
        """Flushes; returns the error if there was one at any time."""
        self._optional = True
        self.flush()
        if self.failure is not None:
            # What is still in the stream's buffer must not fail again when the process ends.
            with suppress(OSError, AttributeError):  # it need not be a file
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self.fileno())
                os.close(null)
        return self.failure

    def _write(self, text: str) -> None:
        stream = cast(TextIO, self._stream)
        try:
            stream.write(text)
        except UnicodeEncodeError:  # a model may draw what the output has no bytes for
            stream.write(text.encode(self.encoding, "replace").decode(self.encoding))

    def _fail(self, error: OSError) -> None:
        self.failure = error
        goes_on = self.goes_on and not isinstance(error, BrokenPipeError)
        if not (self._optional or goes_on):
            raise error

    def __getattr__(self, name: str) -> Any:
        if self._stream is None:
            raise AttributeError(f"the stream is missing, and has no {name}")
        return getattr(self._stream, name)


def output(stream: TextIO | Output | None, *, optional: bool = False) -> Output:
    """An `Output` on a stream; an `Output` is returned as it is."""
    return stream if isinstance(stream, Output) else Output(stream, optional=optional)


@contextmanager
def standard() -> Iterator[Output]:
    """Makes standard output and error `Output` within it; yields that of the output.

    Nothing depends on standard error: if it is broken, it is silent.
    """
    before = sys.stdout, sys.stderr
    out, error = Output(sys.stdout), Output(sys.stderr, optional=True)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, error)
    try:
        yield out
    finally:
        sys.stdout, sys.stderr = before
        out.close()
        error.close()


@contextmanager
def silent() -> Iterator[None]:
    """Standard output and error get nothing within it."""
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = cast(TextIO, Output(None))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def settle() -> None:
    """Makes the descriptors of the standard streams readable and writable.

    Closed ones are opened on the null device: otherwise the next files would take their numbers,
    and what libraries and the system write to standard error would go into them. Those that another
    program left non-blocking are made blocking: a slow reader is not an error, and a slow writer is
    not an end.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for standard_one in range(3):
        with suppress(OSError):
            os.set_blocking(standard_one, True)
