"""What the cache keeps: every file with a checksum, so that damage is named and made anew instead of believed.

An entry is a safetensors file whose metadata hold a JSON object about it and an XXH3 checksum over that and all
tensors; a note is a JSON file of an object and its checksum; a folder holds a note of the checksums of its files. XXH3
finds damage, not malice: who can write the cache can write its checksums too.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from headcodes.errors import HeadcodesWarning
from headcodes.files import atomic_write, is_foreign, reason_of, sweep

if TYPE_CHECKING:
    from torch import Tensor

# Places that could not be written, so that a run that keeps hundreds of files says so once.
_told: set[tuple[str, str]] = set()


def keep(path: Path, write: Callable[[Path], object]) -> bool:
    """Write a file of the cache; where that cannot be done, warn and return False: the result itself stands.

    Args:
        path: the file.
        write: is given the temporary path to write to.

    Warns:
        HeadcodesWarning: the cache is full, or cannot be written; once a folder and reason.
    """
    try:
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            write(temporary)
    except BaseException as error:
        # safetensors tells of a full disk in its own kind of exception.
        if not is_foreign(error):
            raise
        place = (str(path.parent), reason_of(error))
        if place not in _told:
            _told.add(place)
            text = f"nothing is kept in {place[0]} for a second run: {place[1]}; the result itself is whole"
            warnings.warn(text, HeadcodesWarning, stacklevel=2)
        return False
    return True


def keep_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bool:
    """Keep tensors on the CPU or elsewhere, with what is to be known about them; see ``keep``."""
    from safetensors.torch import save_file

    parts = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(about)
    metadata = {"headcodes": text, "xxh3": _seal(parts, text)}
    return keep(path, lambda temporary: save_file(parts, temporary, metadata=metadata))


def kept_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors, on the CPU, and what is known about them; None where there are none, or they are damaged.

    Warns:
        HeadcodesWarning: they are damaged; they will be made anew.
    """
    from safetensors import safe_open

    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if "xxh3" not in (metadata or {}):
            return None  # as earlier versions kept it
        text = metadata["headcodes"]
        if metadata["xxh3"] != _seal(parts, text):
            raise ValueError("its checksum is another")
        about: dict[str, Any] = json.loads(text)
    except BaseException as error:
        if not is_foreign(error):
            raise
        _damaged(path, error)
        return None
    with suppress(OSError):  # of a cache that can only be read
        os.utime(path)
    return parts, about


def keep_note(path: Path, note: Mapping[str, Any]) -> bool:
    """Keep a JSON object; see ``keep``."""
    text = json.dumps(note)
    sealed = json.dumps({"note": text, "xxh3": xxhash.xxh3_128_hexdigest(text.encode())})
    return keep(path, lambda temporary: temporary.write_text(sealed, encoding="utf-8"))


def kept_note(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, None where there is none or it is damaged.

    Warns:
        HeadcodesWarning: it is damaged; it will be made anew.
    """
    try:
        if not path.is_file():
            return None
        sealed = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(sealed, dict) and "xxh3" not in sealed:
            return None  # as earlier versions kept it
        if sealed["xxh3"] != xxhash.xxh3_128_hexdigest(sealed["note"].encode()):
            raise ValueError("its checksum is another")
        note: dict[str, Any] = json.loads(sealed["note"])
    except Exception as error:
        _damaged(path, error)
        return None
    return note


_SUMS = "checksums.json"


def seal_folder(folder: Path) -> None:
    """Keep, in a folder of the cache that is complete, a note of the checksums of its files."""
    keep_note(folder / _SUMS, {path.name: _file_seal(path) for path in folder.iterdir() if path.name != _SUMS})


def folder_damage(folder: Path) -> str | None:
    """Return what is wrong with a folder of the cache; None where its files are as they were, or nobody noted that.

    Warns:
        HeadcodesWarning: the note of its checksums is damaged.
    """
    for name, seal in (kept_note(folder / _SUMS) or {}).items():
        try:
            if _file_seal(folder / name) != seal:
                return f"{name} has another checksum"
        except OSError as error:
            return f"{name}: {reason_of(error)}"
    return None


def _file_seal(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def of_earlier(path: Path) -> bool:
    """Whether a file of the cache was kept by a version that knew no checksums: it is never read, nor damaged."""
    from safetensors import safe_open

    try:
        if path.suffix == ".json":
            note = json.loads(path.read_text(encoding="utf-8"))
            return isinstance(note, dict) and "xxh3" not in note
        with safe_open(path, framework="pt") as file:
            return "xxh3" not in (file.metadata() or {})
    except BaseException as error:
        if not is_foreign(error):
            raise
        return False


def sweep_cache(folder: Path) -> list[Path]:
    """Remove what dead writers left in the folders of a cache, and return it."""
    return [path for place in (folder, *(folder.glob("*/") if folder.is_dir() else ())) for path in sweep(place)]


def _damaged(path: Path, error: BaseException) -> None:
    warnings.warn(f"damaged file of the cache, made anew: {path} ({reason_of(error)})", HeadcodesWarning, stacklevel=3)


def _seal(parts: Mapping[str, Tensor], about: str) -> str:
    import torch

    digest = xxhash.xxh3_128(about.encode())
    for name, part in sorted(parts.items()):
        digest.update(f"{name} {part.dtype} {tuple(part.shape)}".encode())
        if part.numel():
            digest.update(part.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
