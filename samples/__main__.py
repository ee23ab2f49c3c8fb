"""``python -m samples``."""

from samples.cli import main

raise SystemExit(main())
