"""The command line: results on standard output, progress and complaints on standard error, status 2 for bad input."""

from __future__ import annotations

import atexit
import io
import os
import sys
import traceback
import warnings

import typer

from headcodes.cli.bench import bench
from headcodes.cli.cache import cache
from headcodes.cli.discover import discover
from headcodes.cli.doctor import doctor
from headcodes.cli.evaluate import evaluate
from headcodes.cli.exchange import diff, export, push
from headcodes.cli.lists import methods, models, tasks
from headcodes.cli.report import report
from headcodes.cli.scan import scan
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.files import is_foreign, out_of_memory, reason_of

app = typer.Typer(
    help="Find the attention heads, and the paths between them, that make a language model do a thing.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)
for verb in (discover, evaluate, export, diff, push, report, bench, scan, cache, doctor, models, tasks, methods):
    app.command()(verb)


# A message is read, not scrolled through.
_MAX_MESSAGE = 1000


def main() -> None:
    """Be the process of the command line, which ends with it; ``run`` is for one that goes on."""
    leaving = _Leaving()
    atexit.register(leaving)
    try:
        run()
    except SystemExit as end:
        leaving.status = end.code or 0
        raise


def run() -> None:
    """Run the command line; bad input ends in one line and status 2, never in a traceback.

    What is a fault of headcodes itself ends in one line and status 1. ``HEADCODES_DEBUG=1`` shows the traceback of
    either.

    Raises:
        SystemExit: always, with the status.
    """
    warnings.simplefilter("always", HeadcodesWarning)
    warnings.showwarning = _show_warning
    try:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # not every terminal has every letter of a prompt
        _check_working_folder()
        app()
    except HeadcodesError as error:
        _complain(str(error), 2, error)
    except OSError as error:
        _complain(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 2, error)
    except KeyboardInterrupt as error:
        _complain("stopped; nothing half-written was left behind", 130, error)
    except BaseException as error:
        if out_of_memory(error):
            _complain(f"out of memory: {reason_of(error)}", 1, error)
        if not is_foreign(error):
            raise  # SystemExit, mostly
        text = f"a fault of headcodes, not of what it was given: {type(error).__name__}: {reason_of(error)}"
        _complain(f"{text} (HEADCODES_DEBUG=1 shows where; please report it)", 1, error)
    finally:
        _flush()


def _check_working_folder() -> None:
    """Refuse a working folder that was removed, before libraries that end the process over it are loaded.

    Raises:
        HeadcodesError: see above.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise HeadcodesError(
            "the working folder must be there", f"one that is not: {reason_of(error)}", "Change to another (cd)."
        ) from error


def _flush() -> None:
    """Write what is left; the reader may have closed the pipe (`| head`), which is no error."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:  # as where a shell closed it (>&-)
                stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)  # for the last flush, which Python does itself


class _Leaving:
    """Spares Python its last search for cycles among torch's and transformers' objects, which takes it a second.

    Registered before a command runs, it is called behind whatever the command's libraries have to do when they leave:
    threads have ended by then, pools are closed and temporary folders gone.

    Attributes:
        status: with which the process ends; None until that is known.
    """

    status: object = None

    def __call__(self) -> None:
        """End the process, if it is known how, and Python would take long over it."""
        if not isinstance(self.status, int) or "torch" not in sys.modules or os.environ.get("HEADCODES_DEBUG") == "1":
            return
        _flush()
        os._exit(self.status)


def _complain(message: str, status: int, error: BaseException) -> None:
    if os.environ.get("HEADCODES_DEBUG") == "1":
        traceback.print_exception(error)
    line = " ".join(message.split())
    line = line if len(line) <= _MAX_MESSAGE else f"{line[: _MAX_MESSAGE // 2]} ... {line[-_MAX_MESSAGE // 2 :]}"
    print(f"headcodes: {_printable(line)}", file=sys.stderr)
    sys.exit(status)


def _printable(text: str) -> str:
    """Return text of one line in which nothing commands a terminal: names in it are anybody's."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _show_warning(message: Warning | str, category: type[Warning], *_place: object, **_more: object) -> None:
    if issubclass(category, HeadcodesWarning):
        print(f"headcodes: warning: {_printable(str(message))}", file=sys.stderr)
