"""Makes a picture of a page of ``charrnn-fast view``, as a browser shows it; needs Chromium.

    python docs/screenshot.py view.html "#layer=1&cell=8" --at 0.1 view.png

The address is what follows the page's name in the browser; --at is a place on the overview.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from charrnn_fast.storage import atomic_file
from chromium import Chromium, find


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a picture of a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("address")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--at", type=float, default=0.0, help="0 the first line, 1 the last")
    options = parser.parse_args()
    atomic_file.check(options.picture)
    program = find()
    if program is None:
        raise SystemExit("there is no Chromium")
    with tempfile.TemporaryDirectory() as folder, Chromium(program, Path(folder)) as browser:
        browser.resize(1280, 742)
        browser.open(options.page.resolve().as_uri() + options.address)
        x, top, height = browser.evaluate(
            "(box => [box.x + box.width / 2, box.y, box.height])(map.getBoundingClientRect())"
        )
        browser.press_mouse(x, top + options.at * height)
        atomic_file.replace(options.picture, [browser.screenshot()])


if __name__ == "__main__":
    main()
