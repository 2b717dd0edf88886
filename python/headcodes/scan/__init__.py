"""Scans: many models, tasks, methods and seeds into one store of results that loses nothing when it is stopped."""

from __future__ import annotations

from headcodes.scan.plan import Cell as Cell
from headcodes.scan.plan import Plan as Plan
from headcodes.scan.run import scan as scan
from headcodes.store.cells import load_store as load_store

__all__ = ["Cell", "Plan", "load_store", "scan"]
