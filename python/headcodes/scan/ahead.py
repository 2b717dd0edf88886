"""A model's files, and reading them from disk before they are wanted."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from headcodes.errors import HeadcodesError
from headcodes.files import cache_dir
from headcodes.scan.plan import Cell


def weight_files(cell: Cell) -> list[Path]:
    """Return the files on this machine that loading a cell's model will read; none where they are not known."""
    from headcodes.models.sources import hub_folder, resolve

    try:
        found = resolve(cell.model, cell.revision)
    except (OSError, HeadcodesError):
        return []
    path = found.path
    if found.kind == "gguf" and path is not None:
        folders = sorted((cache_dir() / "models").glob(f"{found.checksum}-*"))
        if not folders:
            return [path]
        path = folders[-1]
    elif found.kind == "hub":
        path = hub_folder(found.name, cell.revision)
    if path is None or not path.is_dir():
        return []
    return sorted(path.glob("*.safetensors")) or sorted(path.glob("*.bin"))


def read_ahead(cell: Cell) -> threading.Thread:
    """Ask the system to read a model's files from disk while something else computes; a hint, never an error."""

    def read() -> None:
        for file in weight_files(cell):
            try:
                handle = os.open(file, os.O_RDONLY)
            except OSError:
                continue
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(handle)

    # A thread, because the hint may wait for a slow disk.
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread
