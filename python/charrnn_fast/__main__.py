"""``python -m charrnn_fast`` is the command ``charrnn-fast``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, or says in one line why the kernels cannot be loaded."""
    try:
        from . import cli
    except ImportError as error:  # an instruction set in CHARRNN_ISA that there is not, say
        print(f"charrnn-fast: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
