"""A headless Chromium for the tests of pages, driven over pipes by its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/: messages in JSON, each ended by a zero byte.
Chromium reads them from its file descriptor 3 and writes to 4 (--remote-debugging-pipe).
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

_PATIENCE = 300  # seconds; a browser that says nothing for so long hangs

# Popen cannot choose the numbers of the descriptors that a child gets.
_START = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])"""
_FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # which root, and a container, cannot have; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
)


def find() -> str | None:
    """The path of a Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


class Chromium:
    """One browser with one page. A context manager: the browser ends with it."""

    events: list[dict[str, Any]]
    """What the page has reported since `open`: messages with "method" and "params"."""

    def __init__(self, program: str, folder: Path) -> None:
        """folder: where the browser keeps its profile, and whatever else it writes."""
        read_here, write_there = _pipe()
        read_there, write_here = _pipe()
        self._log = folder / "chromium.log"
        homes = {name: str(folder) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
        start = [sys.executable, "-c", _START, str(read_there), str(write_there)]
        flags = [*_FLAGS, f"--user-data-dir={folder / 'profile'}"]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*start, program, *flags, "about:blank"],
                pass_fds=(read_there, write_there),
                env={**os.environ, **homes},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        os.close(read_there)
        os.close(write_there)
        self._read, self._write = read_here, write_here
        self._received = b""
        self._last_id = 0
        self._session: str | None = None
        self.events = []
        targets = self.call("Target.getTargets")["targetInfos"]
        (target,) = (t["targetId"] for t in targets if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Chromium:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **parameters: Any) -> Any:
        """The result of a command of the protocol; RuntimeError where it fails."""
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last_id:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, url: str) -> None:
        """Loads a page, and comes back when it has loaded and has drawn itself."""
        for address in ("about:blank", url):  # to another place of the same page is no load
            self.events.clear()
            self.call("Page.navigate", url=address)
            while not any(event["method"] == "Page.loadEventFired" for event in self.events):
                self.events.append(self._receive())
        self.settle()

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page, as JSON; a promise's if it is one.

        RuntimeError where it throws.
        """
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def settle(self) -> None:
        """Waits for two frames: what an event has set off is then done."""
        frame = "requestAnimationFrame"
        self.evaluate(f"new Promise(done => {frame}(() => {frame}(() => done())))")

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )
        self.settle()

    def prefer(self, scheme: str) -> None:
        """The user's colour scheme, "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.settle()

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key by its name in KeyboardEvent.key."""
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        codes |= {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36}
        code = codes.get(key, ord(key[0].upper()))
        text = {"text": "\r"} if key == "Enter" else {}  # without which it presses no button
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                modifiers=8 * shift,
                **(text if kind == "keyDown" else {}),
            )
        self.settle()

    def point(self, selector: str) -> tuple[float, float]:
        """Moves the mouse to the middle of an element, which is scrolled into sight."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{found}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        self.settle()
        x, y = self.evaluate(
            f"(box => [box.x + box.width / 2, box.y + box.height / 2])({found}"
            ".getBoundingClientRect())"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()
        return x, y

    def click(self, selector: str) -> None:
        x, y = self.point(selector)
        self.press_mouse(x, y)

    def press_mouse(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                buttons=int(kind == "mousePressed"),
                clickCount=1,
            )
        self.settle()

    def screenshot(self) -> bytes:
        """What is in sight, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._read], [], [], left)[0]:
                raise TimeoutError(f"Chromium says nothing; {self._said()}")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise RuntimeError(f"Chromium has ended; {self._said()}")
            self._received += data
        message, _, self._received = self._received.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _said(self) -> str:
        return f"it wrote {self._log.read_text(errors='replace')[-2000:]!r}"


def _pipe() -> tuple[int, int]:
    """A pipe whose ends are neither 3 nor 4, which the browser's start overwrites."""
    low = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low]
    for end in low:
        os.close(end)
    return high[0], high[1]
