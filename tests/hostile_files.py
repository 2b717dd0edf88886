"""What attacks on readers share: damaged files, and what is wrong with how a reader takes one."""

from __future__ import annotations

import json
import os
import random
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from headcodes.errors import HeadcodesError

Read = Callable[[Path], Any]


def misbehaves(read: Read, path: Path, named: str) -> str | None:
    """Return what is wrong with how a reader takes a file: None where it reads it, or refuses it in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(path)
    except HeadcodesError as error:
        said = str(error)
        if "\n" in said or len(said) > 2000 or named not in said:
            return f"unclear: {said[:300]}"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def device(folder: Path) -> Path:
    """Make a device in a folder, for tests that write to one: a fault would replace the system's own for everybody.

    Where only the superuser makes devices, a pipe stands for it.
    """
    path = folder / "device"
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))  # what /dev/null is
    except PermissionError:
        os.mkfifo(path)
    return path


VALUES = [
    None, True, 0, -1, 1.5, 10**18, 10**30, float("nan"), float("inf"), "", "x" * 2000, "\ud800", "\0", "a" * 3 + "١",
    [], {}, [[]], [None], {"a": None}, ["\udfff"],
]  # fmt: skip


# The row of a finished cell.
ROW: dict[str, Any] = {
    "identity": "a" * 32,
    "status": "done",
    "model": "m",
    "task": "ioi",
    "negative": "abc",
    "method": "paper",
    "level": "node",
    "seed": 0,
    "n_layers": 2,
    "n_heads": 2,
    "d_model": 8,
    "n_pairs": 3,
    "head_scores": [1.0, 2.0, 3.0, 4.0],
    "timings_s": [("total", 1.0)],
    "versions": [("torch", "2")],
}


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where every value of a JSON document stands."""
    if path:
        yield path
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        yield from places(value, (*path, key))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


def variants(document: Any, n: int, seed: int) -> Iterator[bytes]:
    """Yield damaged texts of a JSON document: values of other kinds everywhere, cut, flipped, nested, too large."""
    draw = random.Random(seed)
    text = json.dumps(document).encode()
    everywhere = list(places(document))
    yield from (nested(50_000).encode(), b'{"a":' * 50_000, b"9" * 5000, b"\xff\xfe", b"", b"null", b"[]", b"{}", b"\0")
    for _ in range(n):
        where, value = draw.choice(everywhere), draw.choice(VALUES)
        yield json.dumps(changed(document, where, value)).encode()
    for _ in range(n // 2):
        place = draw.randrange(len(text))
        yield draw.choice((text[:place], text[:place] + bytes([draw.randrange(256)]) + text[place + 1 :]))


def flipped_or_cut(content: bytes, n: int, seed: int) -> Iterator[bytes]:
    """Yield a file with a bit flipped, an end cut off or bytes behind it."""
    draw = random.Random(seed)
    huge = (1 << 62).to_bytes(8, "little")  # where safetensors has the length of its header
    yield from (b"", content[:-1], content + b"x", b"\0" * len(content), content[:8], huge + content[8:])
    for number in range(n):
        at = draw.randrange(len(content))
        byte = bytes([content[at] ^ (1 << draw.randrange(8))])
        yield content[:at] + (byte + content[at + 1 :] if number % 4 else b"")
