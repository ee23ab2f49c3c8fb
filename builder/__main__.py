"""``python -m builder``: see ``--help``."""

import sys

from builder.cli import main
from builder.interrupts import interruptible

if __name__ == "__main__":
    sys.exit(interruptible(main))
