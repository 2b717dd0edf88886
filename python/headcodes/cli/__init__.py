"""The command line: results on standard output, progress and complaints on standard error, status 2 for bad input."""

from __future__ import annotations

import sys
import warnings

import typer

from headcodes.cli.bench import bench
from headcodes.cli.cache import cache
from headcodes.cli.discover import discover
from headcodes.cli.evaluate import evaluate
from headcodes.cli.exchange import diff, export
from headcodes.cli.lists import methods, models, tasks
from headcodes.cli.report import report
from headcodes.cli.scan import scan
from headcodes.errors import HeadcodesError, HeadcodesWarning

app = typer.Typer(
    help="Find the attention heads, and the paths between them, that make a language model do a thing.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
for verb in (discover, evaluate, export, diff, report, bench, scan, cache, models, tasks, methods):
    app.command()(verb)


def main() -> None:
    """Run the command line; bad input ends in one message and status 2, never in a traceback."""
    warnings.simplefilter("always", HeadcodesWarning)
    warnings.showwarning = _show_warning
    try:
        app()
    except HeadcodesError as error:
        _complain(str(error), status=2)
    except OSError as error:
        _complain(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), status=2)
    except KeyboardInterrupt:
        _complain("stopped; nothing half-written was left behind", status=130)


def _complain(message: str, status: int) -> None:
    print(f"headcodes: {message}", file=sys.stderr)
    sys.exit(status)


def _show_warning(message: Warning | str, category: type[Warning], *_place: object, **_more: object) -> None:
    if issubclass(category, HeadcodesWarning):
        print(f"headcodes: warning: {message}", file=sys.stderr)
