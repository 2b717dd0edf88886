"""Folders of a run: replaced whole, and never when they hold anything that is not ours."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from headcodes.errors import HeadcodesError
from headcodes.files import check_writable, follow_umask, read_json, sweep, temporary_prefix

# What `Result.save` writes, and what `evaluate --out` puts beside it.
RUN_FILES = (
    *("circuit.json", "result.json", "prompts.json", "scores.safetensors", "sae", "page.html"),
    *("attention.safetensors", "evaluation.json"),
)
_EXCHANGE = 2  # RENAME_EXCHANGE of linux/fs.h
_HERE = -100  # AT_FDCWD


def check_run_folder(folder: Path | str, inputs: Iterable[Path | str | None] = ()) -> Path:
    """Return where a run would be written: a folder that is new, empty, or an earlier run and nothing else.

    Args:
        folder: as the caller named it; a link to a folder is followed.
        inputs: files that the run reads: replacing the folder would take them away.

    Raises:
        HeadcodesError: it is none of these, cannot be written, holds an input, or lies in the store of a scan.
    """
    place = Path(os.path.realpath(folder))
    _check_apart(folder, _is_store, "the folder a run is written into must lie outside the stores of scans")
    for path in inputs:
        if path is not None and os.path.exists(path) and place in Path(os.path.realpath(path)).parents:
            raise HeadcodesError(
                "the folder a run is written into must not hold what the run reads",
                f"{path} in {folder}",
                "Name another folder for the run.",
            )
    check_writable(place / "result.json")
    if not place.is_dir():
        return place
    sweep(place.parent, place.name)
    sweep(place)
    names = {path.name for path in place.iterdir()}
    foreign = sorted(names - set(RUN_FILES))
    if foreign:
        raise HeadcodesError(
            "the folder a run is written into must be new, empty or an earlier run",
            f"{folder}, which also holds {foreign[0]}",
            "Name another folder.",
        )
    if names and not _is_run(place):
        raise HeadcodesError(
            "the folder a run is written into must be new, empty or an earlier run",
            f"{folder}, whose files no run of headcodes wrote",
            "Name another folder.",
        )
    return place


def check_store_folder(folder: Path | str) -> None:
    """Refuse the store of a scan in the folder of a run: a report would show the one and not the other.

    Raises:
        HeadcodesError: the folder is that of a run, or lies in one.
    """
    _check_apart(folder, _is_run, "the store of a scan must lie outside the folders of runs")


def _check_apart(folder: Path | str, is_other: Callable[[Path], bool], must: str) -> None:
    place = Path(os.path.realpath(folder))
    other = next((above for above in (place, *place.parents) if is_other(above)), None)
    if other is not None:
        got = f"{folder}, which is one" if other == place else f"{folder} in {other}, which is one"
        raise HeadcodesError(must, got, "Name another folder.")


def _is_store(folder: Path) -> bool:
    return (folder / "cells").is_dir() and (folder / "arrays").is_dir()


def _is_run(folder: Path) -> bool:
    if not (folder / "result.json").exists():
        return False
    try:
        known = read_json(folder / "result.json", "a result", "")
    except HeadcodesError:
        return False
    return isinstance(known, dict) and {"schema", "method", "head_scores", "circuit"} <= set(known)


@contextmanager
def run_folder(folder: Path | str) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``; on success it takes that one's place in one step, else it vanishes.

    So a folder holds all files of one run and no others, at any moment. Where the system cannot exchange two folders
    in one step, or the folder itself cannot be renamed (the working folder, a mounted one), files are replaced one by
    one, result.json first removed and last written: without it there is no run.

    Raises:
        HeadcodesError: see ``check_run_folder``.
        OSError: the folder cannot be written.
    """
    place = check_run_folder(folder)
    fixed = place.is_dir() and (os.path.ismount(place) or place.samefile(Path.cwd()))
    beside = place if fixed else place.parent
    beside.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=temporary_prefix(place), suffix=".part", dir=beside))
    try:
        yield fresh
        follow_umask(fresh, 0o777)
        if not place.exists():
            fresh.rename(place)
        elif fixed or not _exchanged(fresh, place):
            _replace_files(fresh, place)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)  # after an exchange: the earlier run


def _exchanged(one: Path, other: Path) -> bool:
    """Give two folders each other's names in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    return int(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)) == 0


def _replace_files(fresh: Path, place: Path) -> None:
    for name in ("result.json", *(name for name in RUN_FILES if name != "result.json")):
        old = place / name
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        else:
            old.unlink(missing_ok=True)
    for path in sorted(fresh.iterdir(), key=lambda path: path.name == "result.json"):
        path.rename(place / path.name)
