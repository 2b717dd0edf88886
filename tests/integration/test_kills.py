"""Runs and scans that are killed: whatever the moment and the signal, nothing is mixed, lost or left over.

`make test` kills a few times, `make test-slow` 25 times each kind; HEADCODES_KILLS_TABLE=table.md writes the table of
docs/safety.md.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headcodes.report.folders import read_runs
from scan_plan import arrays, as_words, results
from tables import save_table

# Runs the command line; when the work begins it says so, and what it writes under a folder it counts: each opening for
# writing, each rename, each new folder. At the nth of these it sends itself a signal.
CHILD = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs behind a shell's & is born deaf to Ctrl-C
import headcodes.cli, headcodes.discovery, headcodes.models.load, headcodes.models.planted, transformers.models.mistral
from headcodes.store import packs
packs.WORTH = 2  # so that cells are packed too
place, nth, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.argv = ["headcodes", *sys.argv[4:]]
n_writes = 0
def count(event, arguments):
    global n_writes
    writes = event in ("os.rename", "os.mkdir") or (event == "open" and isinstance(arguments[2], int)
        and arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if writes and isinstance(arguments[0], (str, bytes, os.PathLike)) and place in os.fsdecode(arguments[0]):
        n_writes += 1
        if n_writes == nth:
            os.kill(os.getpid(), number)
sys.addaudithook(count)
print("begun", flush=True)
try:
    headcodes.cli.main()
finally:
    print("writes", n_writes, flush=True)
"""
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
METHODS = ("act-norm", "code-flip")  # the second writes an autoencoder too
SCAN = as_words(models="planted-ioi", methods="act-norm,code-flip", seeds="0-2", n_prompts=12)
N_CELLS = 6


@dataclass
class Started:
    """A process of the command line, in a group of its own, with all that it starts."""

    process: subprocess.Popen[str]
    token: str

    def kill(self, number: int) -> None:
        # Ctrl-C goes to everybody in front of the terminal.
        (os.killpg if number == signal.SIGINT else os.kill)(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate()
        return self.process.returncode, out, err

    def left_over(self) -> list[str]:
        """Return the processes that outlive it by more than they need to find out; Ray's take minutes when busy."""
        until = time.monotonic() + 300
        while True:
            found = []
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    if self.token.encode() in (folder / "environ").read_bytes():
                        found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
                except OSError:
                    continue
            if not found or time.monotonic() > until:
                return found
            time.sleep(0.05)


@dataclass
class Killer:
    """Kills processes of one kind and counts what the kills fell into."""

    folder: Path
    n_tried: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    n_started: int = 0

    def __post_init__(self) -> None:
        self.draw = random.Random(self.n_tried)

    def start(self, words: list[str], place: Path, nth: int = 0, number: int = 0) -> Started:
        self.n_started += 1
        token = f"headcodes-killed-{os.getpid()}-{self.n_started}"
        cache = {"HEADCODES_CACHE": str(self.folder / "cache"), "KILLED": token, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(place.parent), str(nth), str(int(number)), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | cache,
        )
        return Started(process, token)

    def whole(self, words: list[str], place: Path) -> tuple[float, int]:
        """Run to the end; returns the seconds of the work and how many writes there were."""
        started = self.start(words, place)
        assert started.process.stdout is not None
        assert started.process.stdout.readline() == "begun\n"
        begun = time.monotonic()
        status, out, err = started.end()
        assert status == 0, err
        assert not started.left_over()
        for left in (place.parent, self.folder / "cache"):
            assert not list(left.rglob("*.part")), "the next start leaves nothing of the dead"
        return time.monotonic() - begun, int(out.split()[-1])

    def kill(self, words: list[str], place: Path, seconds: float, n_writes: int) -> bool:
        """Kill once, every second time inside the writes; False where the run was over before."""
        number, inside = SIGNALS[self.n_tried % 3], self.n_tried % 2 == 0
        self.n_tried += 1
        started = self.start(words, place, self.draw.randint(1, n_writes) if inside else 0, number)
        assert started.process.stdout is not None
        assert started.process.stdout.readline() == "begun\n"
        if not inside:
            # Nothing is waited for: the kill falls where it falls.
            time.sleep(self.draw.random() * seconds)
            started.kill(number)
        status, _, err = started.end()
        assert not started.left_over()
        assert "Traceback" not in err, err
        if status == 0:
            return False
        assert status in (-number, number, 128 + number), (status, err)
        half = inside or bool(list(place.parent.rglob("*.part")))
        self.kills[f"{number.name} {'in a write' if half else 'elsewhere'}"] += 1
        return True


@pytest.fixture(scope="session")
def table() -> Iterator[dict[str, Counter[str]]]:
    found: dict[str, Counter[str]] = {}
    yield found
    columns = [f"{number.name} {where}" for where in ("in a write", "elsewhere") for number in SIGNALS]
    rows = [(kind, *(kills[column] for column in columns), sum(kills.values())) for kind, kills in found.items()]
    save_table("HEADCODES_KILLS_TABLE", ("what", *columns, "all"), rows)


def content(run: Path) -> dict[str, str | bytes]:
    """Return what must be the same in two runs, by file; the page and the seconds may differ."""
    found: dict[str, str | bytes] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file() and path.name != "page.html"):
        if path.name == "result.json":
            document = json.loads(path.read_text())
            found[path.name] = repr({key: value for key, value in document.items() if key != "timings_s"})
        else:
            found[str(path.relative_to(run))] = path.read_bytes()
    return found


def kill_runs(killer: Killer, n_kills: int) -> None:
    words = {
        method: as_words(model="planted-ioi", n_prompts=12, method=method, threads=1, verify="off", out=place)
        for method, place in ((method, killer.folder / "here" / "run") for method in METHODS)
    }
    place = killer.folder / "here" / "run"
    truth = {}
    seconds = n_writes = 0.0
    for method in METHODS:
        seconds, n_writes = killer.whole(["discover", *words[method]], place)
        truth[method] = content(place)
    while sum(killer.kills.values()) < n_kills:
        (before,) = (record.document["method"] for record in read_runs([place]))
        after = METHODS[1 - METHODS.index(before)]
        killer.kill(["discover", *words[after]], place, seconds, int(n_writes))
        (found,) = (record.document["method"] for record in read_runs([place]))
        assert found in (before, after)
        assert content(place) == truth[found], "files of two runs in one folder"
        killer.whole(["discover", *words[after]], place)
        assert content(place) == truth[after]


def kill_scans(killer: Killer, n_kills: int, *more: str) -> None:
    undisturbed = killer.folder / "undisturbed" / "store"
    words = ["scan", *SCAN, *more]
    seconds, n_writes = killer.whole([*words, "--store", str(undisturbed)], undisturbed)
    truth, kept = results(undisturbed), arrays(undisturbed)
    assert len(truth) == N_CELLS
    n_stores = 0
    while sum(killer.kills.values()) < n_kills:
        n_stores += 1
        place = killer.folder / str(n_stores) / "store"
        n_before = 0
        # Few cells are left after some kills; then the scan is let go on to its end.
        for _ in range(4):
            if sum(killer.kills.values()) == n_kills:
                break
            share = 1 - n_before / N_CELLS
            all_words = [*words, "--store", str(place)]
            if not killer.kill(all_words, place, seconds * share, max(2, int(n_writes * share))):
                break
            found = results(place) if (place / "cells").is_dir() else {}
            assert found.items() <= truth.items()
            assert len(found) >= n_before, "a finished cell was lost"
            n_before = len(found)
        killer.whole([*words, "--store", str(place)], place)
        assert results(place) == truth
        assert arrays(place) == kept


def kill_scans_of_two_workers(killer: Killer, n_kills: int) -> None:
    kill_scans(killer, n_kills, "--workers", "2")


def kill_ray_scans(killer: Killer, n_kills: int) -> None:
    pytest.importorskip("ray", reason='ray is not installed (pip install "headcodes[ray]")')
    kill_scans(killer, n_kills, "--engine", "ray", "--workers", "2")


KINDS: dict[str, Callable[[Killer, int], None]] = {
    "discover --out": kill_runs,
    "scan --workers 2": kill_scans_of_two_workers,
    "scan --engine ray": kill_ray_scans,
}


@pytest.mark.parametrize(
    ("kind", "n_kills"),
    [
        ("discover --out", 2),
        ("scan --workers 2", 1),
        *(pytest.param(kind, 25, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_kills_lose_mix_and_leave_nothing(
    kind: str, n_kills: int, tmp_path: Path, table: dict[str, Counter[str]]
) -> None:
    killer = Killer(tmp_path)
    KINDS[kind](killer, n_kills)
    table[kind] = killer.kills
