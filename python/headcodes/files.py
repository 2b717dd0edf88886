"""Files: read within limits, written whole or not at all, found again by their content."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headcodes.errors import HeadcodesError, unlike_schema

if TYPE_CHECKING:
    from pydantic import BaseModel

    Model = TypeVar("Model", bound=BaseModel)

# Limits of files from elsewhere; docs/safety.md states them.
MAX_BYTES = 1 << 30
MAX_DEPTH = 64
MAX_DIGITS = 19  # of a whole number: what 64 bits hold
_MAX_REASON = 300
_PART = ".part"
_WRITER = re.compile(r"\.([^./]*)~(\d+)\.[^.]*\.part$")
_LEFTOVER_S = 24 * 3600
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def cache_dir() -> Path:
    """Return the folder of converted models and cached results: ``HEADCODES_CACHE``, else ``~/.cache/headcodes``.

    The folder is not created here: reading from a cache must not leave traces.

    Raises:
        HeadcodesError: it lies in the home of a user whom this machine does not know.
    """
    named = os.environ.get("HEADCODES_CACHE")
    try:
        if named:
            return Path(named).expanduser()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "headcodes"
    except RuntimeError as error:
        raise HeadcodesError(
            "the folder of the cache must be known", f"{named or '~'}: {error}", "Set HEADCODES_CACHE to a folder."
        ) from error


def checksum(source: Path | bytes) -> str:
    """Return the SHA-256 of a file's content (read in blocks) or of bytes, as 64 hexadecimal digits."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    digest = hashlib.sha256()
    with source.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def target_of(path: Path | str) -> Path:
    """Return where writing to ``path`` would write: a link is followed, so that it stays a link.

    Raises:
        HeadcodesError: what is there is no regular file (a folder, a device, a pipe), or links lead in a circle.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        # A link to where nothing is yet: the file is made there.
        return Path(os.path.realpath(path)) if path.is_symlink() else path
    except OSError as error:
        raise HeadcodesError(
            "a file must be written where one can be", f"{path}: {error.strerror}", "Name another place."
        ) from error
    if not stat.S_ISREG(mode):
        got = "a folder" if stat.S_ISDIR(mode) else "a device, a pipe or a socket"
        raise HeadcodesError("what a file replaces must be a regular file", f"{path}, which is {got}", "Name a file.")
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def check_writable(path: Path | str, *inputs: Path | None) -> None:
    """Refuse before the work what would be refused after it, or take away an input: a file that must not be written.

    Raises:
        HeadcodesError: see ``target_of``; its folder cannot be made or written; it is an input.
    """
    if any(given is not None and given.exists() and Path(path).exists() and given.samefile(path) for given in inputs):
        raise HeadcodesError("what is read must not be written over", str(path), "Name another file.")
    folder = target_of(path).parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()  # tried: not every folder that takes no files says so (/proc)
    except OSError as error:
        raise HeadcodesError(f"{path} must be writable", f"{folder}: {reason_of(error)}", "Name another.") from error


def temporary_prefix(target: Path) -> str:
    """Return how the name of what is to become ``target`` begins until it is whole: with its writer in it."""
    return f".{target.name[:100]}.{_this_host()}~{os.getpid()}."


def _this_host() -> str:
    return socket.gethostname()[:64].replace(".", "-")


def sweep(folder: Path, target: str = "") -> list[Path]:
    """Remove ``leftovers`` and return what was removed."""
    swept = []
    for path in leftovers(folder, target):
        with suppress(OSError):  # another process swept it, or it is not ours to remove
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            swept.append(path)
    return swept


def leftovers(folder: Path, target: str = "") -> list[Path]:
    """Return what dead writers left half-written in a folder.

    A writer of this machine is dead when its process is; any other is taken for dead after a day.

    Args:
        folder: need not be there.
        target: name of what was to become of it; any by default.
    """
    begins = f".{target}." if target else "."
    found = []
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith(begins) and path.name.endswith(_PART):
                with suppress(FileNotFoundError):
                    found += [] if _writer_lives(path) else [path]
    return found


def _writer_lives(path: Path) -> bool:
    writer = _WRITER.search(path.name)
    if writer is None or writer[1] != _this_host():
        return time.time() - path.stat().st_mtime < _LEFTOVER_S
    try:
        os.kill(int(writer[2]), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def follow_umask(path: Path, mode: int = 0o666) -> None:
    """Give a file that was made privately the permissions that the user's own umask gives."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(mode & ~umask)


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside the file; on success it becomes the file, on any exception it vanishes.

    The file is flushed to disk before the rename, so that after a crash ``path`` holds the old content or the whole
    new one. A link stays a link: what it points to is written.

    Raises:
        HeadcodesError: what is there is no regular file.
        OSError: the folder cannot be made or written.
    """
    target = target_of(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=temporary_prefix(target), suffix=_PART, dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        follow_umask(temporary)  # mkstemp makes files private
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def reason_of(error: BaseException) -> str:
    """Return what an exception says, in one line of bounded length."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    try:
        text = str(error).strip()
    except Exception:  # an exception of a library that cannot even be shown
        text = ""
    line = " ".join(text[: 4 * _MAX_REASON].split())
    line = line if len(line) <= _MAX_REASON else line[: _MAX_REASON - 3] + "..."
    if not line or isinstance(error, KeyError | AttributeError | IndexError | TypeError):
        line = f"{type(error).__name__}: {line}".rstrip(": ")
    return line.encode("utf-8", "backslashreplace").decode()


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out; torch tells that of the CPU only by its text."""
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text


def is_foreign(error: BaseException) -> bool:
    """Whether an exception is what a library says of a file that it cannot read.

    Panics of libraries written in Rust are, though no ``Exception`` to Python. That memory ran out is no fault of the
    file.
    """
    return (isinstance(error, Exception) or type(error).__name__ == "PanicException") and not out_of_memory(error)


@contextmanager
def reading(must: str, path: Path | str, mend: str) -> Iterator[None]:
    """Turn whatever a library raises over a file (``is_foreign``) into one HeadcodesError that names the file.

    A HeadcodesError that does not name it is raised again with its name.

    Args:
        must: what must hold of the file.
        path: the file, or folder, as the caller named it.
        mend: how to mend it.
    """
    try:
        yield
    except HeadcodesError as error:
        if str(path) in str(error):
            raise
        raise HeadcodesError(error.must, f"{error.got} in {path}", error.mend) from error
    except BaseException as error:
        if not is_foreign(error):
            raise
        raise HeadcodesError(must, f"{path}: {reason_of(error)}", mend) from error


def regular(path: Path | str, mend: str = "Check the path.") -> Path:
    """Return the path of a file that can be read to its end: no folder, device or pipe.

    Raises:
        HeadcodesError: there is none, or it is no regular file.
    """
    path = Path(path)
    with reading("a file must be there to be read", path, mend):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
        got = next((name for check, name in kinds if check(mode)), "a device")
        raise HeadcodesError("what is read must be a regular file", f"{path}, which is {got}", mend)
    return path


def read_text(path: Path | str, what: str, mend: str, max_bytes: int = MAX_BYTES) -> str:
    """Return the text of a file in UTF-8.

    Args:
        path: the file.
        what: what it is called in messages: "the prompt file".
        mend: how to mend it.
        max_bytes: how large it may be.

    Raises:
        HeadcodesError: no such file, no regular file, larger, or not UTF-8; the message names the file.
    """
    path = regular(path, mend)
    size = path.stat().st_size
    if size > max_bytes:
        raise HeadcodesError(f"{what} must have at most {max_bytes:,} bytes", f"{path} of {size:,}", mend)
    with reading(f"{what} must be readable, in UTF-8", path, mend), path.open("rb") as stream:
        content = stream.read(max_bytes + 1)  # bounded here too: some files of the system have no size
        if len(content) > max_bytes:
            raise HeadcodesError(f"{what} must have at most {max_bytes:,} bytes", f"{path} of more", mend)
        return content.decode("utf-8-sig")  # the mark that some editors put in front is no text


def read_json(path: Path | str, what: str, mend: str, max_bytes: int = MAX_BYTES) -> Any:
    """Return what a JSON file holds; NaN and the infinities, which other tools write, are numbers here.

    Args:
        path, what, mend, max_bytes: as ``read_text`` takes them.

    Raises:
        HeadcodesError: as ``read_text``; no JSON; nested deeper than 64; a whole number of more than 19 digits; half
            of a surrogate pair, which no text holds.
    """
    return parse_json(read_text(path, what, mend, max_bytes), path, what, mend)


def checked(schema: type[Model], data: Any, of: str, mend: str) -> Model:
    """Return what was read as its schema has it; ``of`` and ``mend`` as ``unlike_schema`` takes them.

    Raises:
        HeadcodesError: it does not follow the schema; the message names the first place that does not.
    """
    from pydantic import ValidationError

    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise unlike_schema(error.errors(include_url=False)[0], of, mend) from error


def parse_json(text: str, path: Path | str, what: str, mend: str) -> Any:
    """Return what JSON text holds, within the limits of ``read_json``; ``path`` is where it came from."""
    must = f"{what} must be JSON"
    try:
        with reading(must, path, mend):
            data = json.loads(text, parse_int=_whole)
    except HeadcodesError as error:
        if isinstance(error.__cause__, RecursionError):
            raise _too_deep(path, what, mend) from error
        raise
    _check_depth(data, path, what, mend)
    if _ESCAPED_SURROGATE.search(text):
        with reading(must, path, mend):
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    return data


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits.lstrip('-'))} digits, where {MAX_DIGITS} are the most")
    return int(digits)


def _too_deep(path: Path | str, what: str, mend: str) -> HeadcodesError:
    return HeadcodesError(f"{what} must be nested at most {MAX_DEPTH} deep", f"{path}, nested deeper", mend)


def _check_depth(data: Any, path: Path | str, what: str, mend: str) -> None:
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    if level:
        raise _too_deep(path, what, mend)
