"""Scoring of files and tables of any size: ``python -m handler.bulk``, and :class:`Scorer` for Ray Data and Spark."""

from __future__ import annotations

from handler.bulk.scorer import Scorer

__all__ = ["Scorer"]
