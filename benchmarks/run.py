"""The benchmarks from a checkout: `charrnn-fast bench`, with the same options."""

from __future__ import annotations

import sys

from charrnn_fast.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
