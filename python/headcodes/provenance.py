"""What made a result: versions, code checksum."""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from headcodes.files import checksum


def versions() -> dict[str, str]:
    """Return versions of Python and of every package that can change a result."""
    found = {"python": platform.python_version()}
    for package in ("headcodes", "torch", "transformers", "triton", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


# Code that shows results and makes none.
_SHOWS = ("cli", "progress.py", "report")


@cache
def code_checksum() -> str:
    """Return one SHA-256 over what of headcodes can change a result: its Python code and its C++ core."""
    import headcodes
    import headcodes_kernels
    from headcodes import _core

    digests = {f"_core {checksum(Path(_core.__file__))}"}
    for package in (headcodes, headcodes_kernels):
        for folder in map(Path, package.__path__):
            for path in folder.rglob("*.py"):
                if path.relative_to(folder).parts[0] not in _SHOWS:
                    digests.add(f"{path.relative_to(folder).as_posix()} {checksum(path)}")
    return checksum("\n".join(sorted(digests)).encode())


@cache
def library_versions() -> tuple[str, ...]:
    """Return the libraries whose version can change a result, each with it."""
    found = []
    for package in ("torch", "transformers", "triton", "numpy", "tokenizers"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return (*found, os.environ.get("HEADCODES_BACKEND", ""), os.environ.get("HEADCODES_ISA", ""))
