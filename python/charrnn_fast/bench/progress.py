"""How far a run is, on stderr: a bar on a terminal, elsewhere a line for each case."""

from __future__ import annotations

import sys

from ..training.progress import bar, say


class Progress:
    def __init__(self, total: int) -> None:
        self._total, self._done = total, 0
        self._bar = bar(total=total, unit="case")

    def say(self, text: str) -> None:
        say(text, self._bar, sys.stderr)

    def begin(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_description_str(text)

    def end(self, text: str) -> None:
        self._done += 1
        self.say(f"[{self._done}/{self._total}] {text}")
        if self._bar is not None:
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
