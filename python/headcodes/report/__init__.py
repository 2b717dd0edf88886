"""Reports: one self-contained page for one run or many, and the same figures for notebooks and papers."""

from __future__ import annotations

from headcodes.report.folders import read_runs
from headcodes.report.page import write_page, write_report
from headcodes.report.records import RunRecord

__all__ = ["RunRecord", "read_runs", "write_page", "write_report"]
