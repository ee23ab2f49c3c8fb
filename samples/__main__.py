"""``python -m samples``."""

from handler.faults import guarded
from samples.cli import main

raise SystemExit(guarded("samples", main))
