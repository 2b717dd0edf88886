"""`headcodes report`: one page about many runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    sources: Annotated[list[Path], typer.Argument(help="Run folders (discover --out), folders of them, scan stores.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one page about many runs: overview, every run, any two side by side."""
    from headcodes.files import check_writable
    from headcodes.report.page import write_report
    from headcodes.store.folders import RUN_FILES

    check_writable(out, *(source / name for source in sources for name in RUN_FILES if name != "page.html"))
    n_runs = write_report(sources, out)
    print(f"headcodes: wrote {out} about {n_runs} run{'s' if n_runs != 1 else ''}", file=sys.stderr)
