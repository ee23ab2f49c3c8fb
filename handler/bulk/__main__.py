"""The command line; see handler/bulk/command.py."""

from __future__ import annotations

import sys

from handler.bulk.command import main

if __name__ == "__main__":
    sys.exit(main())
