"""How the command line leaves: at once, and with everything done that others have to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import atexit, sys, types
from headcodes import cli

sys.modules["torch"] = types.ModuleType("torch")  # what takes Python long to clear away

class Held:
    def __del__(self):
        print("collected", flush=True)

def command():
    atexit.register(print, "last words")
    sys.stdout.write("result\\n")  # nobody flushes it
    sys.exit(int(sys.argv[1]))

held = Held()
cli.app = command
cli.main()
"""


@pytest.mark.parametrize("status", [0, 3])
def test_leaves_behind_everyone_elses_last_words_and_collects_nothing(status: int) -> None:
    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SCRIPT, str(status)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)

    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (status, "result\nlast words\n", "")
    plain = run(HEADCODES_DEBUG="1")
    assert (plain.returncode, plain.stdout) == (status, "result\nlast words\ncollected\n")


def test_a_process_that_goes_on_ends_with_its_own_status() -> None:
    """Such as that of these tests, which would else have ended well with the last command, whatever failed."""
    goes_on = SCRIPT.replace("cli.main()", "try: cli.run()\nexcept SystemExit: sys.exit(5)")
    assert subprocess.run([sys.executable, "-c", goes_on, "0"], capture_output=True, check=False).returncode == 5


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_stream_that_the_shell_closed_is_no_fault(closed: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"$0" -m headcodes.cli tasks {closed}', sys.executable], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", ["discover --model planted-ioi", "doctor", "scan --store s --dry-run", "diff a b"])
def test_a_working_folder_that_was_removed_is_one_line(tmp_path: Path, words: str) -> None:
    """Libraries below torch end the process over it, in words of their own."""
    (tmp_path / "gone").mkdir()
    script = f'cd "$1"; rmdir "$1"; exec "$0" -m headcodes.cli {words}'
    command = ["sh", "-c", script, sys.executable, str(tmp_path / "gone")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("headcodes: the working folder must be there")
    assert done.stderr.count("\n") == 1
