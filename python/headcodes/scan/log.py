"""How far a scan is: a live view in a terminal, plain lines elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headcodes.scan.plan import Cell
    from headcodes.scan.run import Work


class ScanLog:
    """Counts what a scan does and prints it in plain lines on standard error.

    Attributes:
        failures: how often each error was met in this run.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._left = Counter((cell.model, cell.revision) for _, cell in work.jobs)
        self._began = time.monotonic()
        self._peak_bytes = 0
        self._last = ""
        self.n_finished = 0
        self.failures: Counter[str] = Counter()

    def started(self, cell: Cell) -> None:
        """Take note of a cell that is begun."""
        self._last = f"doing {cell.label}"
        self._show()

    def finished(self, row: Mapping[str, Any]) -> None:
        """Take note of a row that is kept."""
        self.n_finished += 1
        self._left[row["model"], row["revision"]] -= 1
        self._peak_bytes = max(self._peak_bytes, row["peak_memory_bytes"] or 0)
        if row["status"] == "failed":
            self.failures[row["error"]] += 1
        self._tell(row)
        self._show()

    def _tell(self, row: Mapping[str, Any]) -> None:
        cell = f"{_model_name(row)} {row['task']} {row['method']} seed {row['seed']}"
        outcome = f"{_took(row):.2f} s" if row["status"] == "done" else self._failure(row)
        print(f"headcodes: [{self.n_finished}/{len(self._work.jobs)}] {cell}: {outcome}", file=sys.stderr, flush=True)

    def _failure(self, row: Mapping[str, Any]) -> str:
        """Return an error in full the first time only: a model that does not load fails in every cell."""
        return f"failed: {row['error']}" if self.failures[row["error"]] == 1 else "failed for the same reason"

    def _show(self) -> None:
        pass

    @property
    def rate(self) -> float:
        """Cells an hour so far."""
        return self.n_finished / max(time.monotonic() - self._began, 1e-9) * 3600

    def summary(self) -> str:
        """Return what was done, and every kind of failure once."""
        now = self.n_finished - sum(self.failures.values())
        lines = [f"{self._work.n_done + now} of {self._work.n_cells} cells done, {now} of them now"]
        if self._work.n_failed:
            lines.append(f"{self._work.n_failed} failed before and were left alone (--retry-failed does them again)")
        for error, count in self.failures.most_common():
            lines.append(f"{count} cell{'s' if count > 1 else ''} failed: {error}")
        return "\n".join(f"headcodes: {line}" for line in lines)


class _LiveLog(ScanLog):
    """The same as a table that is drawn anew."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        from rich.console import Console
        from rich.live import Live

        self._live = Live(
            console=Console(stderr=True), refresh_per_second=4, transient=True, get_renderable=self._table
        )

    def _tell(self, row: Mapping[str, Any]) -> None:
        if row["status"] == "failed" and self.failures[row["error"]] == 1:
            cell = f"{_model_name(row)} {row['task']} {row['method']} seed {row['seed']}"
            self._live.console.print(f"{cell}: {self._failure(row)}", markup=False, highlight=False)

    def _table(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        n_jobs = len(self._work.jobs)
        seconds = time.monotonic() - self._began
        left = f"{_span((n_jobs - self.n_finished) * seconds / self.n_finished)} left" if self.n_finished else "..."
        models = sum(not count for count in self._left.values())
        table = Table.grid(padding=(0, 2))
        table.add_row(
            "cells", ProgressBar(total=n_jobs, completed=self.n_finished, width=30), f"{self.n_finished}/{n_jobs}"
        )
        table.add_row("models", f"{models} of {len(self._left)} done", f"{sum(self.failures.values())} cells failed")
        table.add_row("rate", f"{self.rate:.0f} cells/h", f"{left}, {_span(seconds)} so far")
        table.add_row("memory", f"{self._peak_bytes / 2**30:.1f} GiB at most", self._last)
        return table


@contextmanager
def log_of(work: Work) -> Iterator[ScanLog]:
    """Show a scan on standard error: live where that is a terminal, in plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield ScanLog(work)
        return
    view = _LiveLog(work)
    with view._live:
        yield view


def json_line(row: Mapping[str, Any]) -> str:
    """Return a row as one line of JSON; what is not a number is null, and maps are objects."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, list) and value and isinstance(value[0], tuple):
            return {key: plain(item) for key, item in value}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return json.dumps({name: plain(value) for name, value in row.items()}, allow_nan=False)


def _model_name(row: Mapping[str, Any]) -> str:
    return row["model"] if row["revision"] is None else f"{row['model']}@{row['revision']}"


def _took(row: Mapping[str, Any]) -> float:
    return float(dict(row["timings_s"] or ()).get("total", 0.0))


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
