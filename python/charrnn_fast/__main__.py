"""``python -m charrnn_fast`` is the command ``charrnn-fast``."""

import sys

from .cli import main

sys.exit(main())
