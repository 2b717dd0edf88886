"""What a model folder may not bring along: pickled weights and code."""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headcodes.errors import HeadcodesError
from headcodes.files import MAX_BYTES, reading, regular
from headcodes.models.gguf import most_bytes

# Formats that are, or may hold, pickles: reading one can run whatever its writer liked.
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def refuse_pickles(folder: Path) -> None:
    """Refuse a folder whose weights are pickled; beside safetensors, which are taken, a pickle is not opened.

    Raises:
        HeadcodesError: the folder has pickles and no safetensors, or a pipe or device, which a library would wait for.
    """
    paths = sorted(folder.iterdir())
    for path in paths:
        if path.exists() and not path.is_dir():
            regular(path)
    names = [path.name for path in paths]
    pickles = [name for name in names if name.lower().endswith(_PICKLED)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise HeadcodesError(
            "weights must be safetensors: a pickle can run code when it is opened",
            f"{folder / pickles[0]}",
            "Convert it where you trust it: save_pretrained writes safetensors.",
        )


def refuse_endless(path: Path) -> None:
    """Refuse a file of a model that is larger than what it says of itself, before it is read to its end.

    A file with a hole of a terabyte takes no room on a disk, and hours to read.

    Raises:
        HeadcodesError: it is, or it does not say; of other kinds than weights, it is larger than any file may be.
    """
    size = path.stat().st_size
    with reading("a file of a model must be as large as its head says", path, "Fetch it, or write it, again."):
        if path.suffix == ".gguf":
            most = most_bytes(path)
        elif path.suffix == ".safetensors":
            most = _safetensors_bytes(path)
        else:
            most = MAX_BYTES
        if size > most:
            raise ValueError(f"{size:,} bytes, where {most:,} are the most")


def _safetensors_bytes(path: Path) -> int:
    with path.open("rb") as stream:
        (n_head,) = struct.unpack("<Q", stream.read(8))
        if n_head > _MOST_OF_HEAD:
            raise ValueError(f"a head of {n_head:,} bytes")
        tensors: dict[str, Any] = json.loads(stream.read(n_head))
    ends = (int(about["data_offsets"][1]) for name, about in tensors.items() if name != "__metadata__")
    return 8 + int(n_head) + max(ends, default=0)


_MOST_OF_HEAD = 100_000_000  # the format's own limit


def refuse_kernels(config: Any, name: str) -> None:
    """Refuse a configuration that names code from the hub as its attention: transformers would fetch and run it.

    Raises:
        HeadcodesError: it does.
    """
    for key in ("_attn_implementation", "_experts_implementation"):
        named = getattr(config, key, None)
        if named is not None and "/" in str(named):
            raise HeadcodesError(
                "a model must need no code from the hub, which is never run here",
                f"{name}, whose configuration names {named!r}",
                "Take it out.",
            )


# Beyond any model there is, and short of what would be built until the memory ends.
_MOST = {
    "num_hidden_layers": 10_000,
    "num_attention_heads": 10_000,
    "num_key_value_heads": 10_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "head_dim": 1_000_000,
    "vocab_size": 100_000_000,
    "max_position_embeddings": 1_000_000_000,
}


def refuse_sizes(config: Any, name: str) -> None:
    """Refuse a configuration of impossible sizes before a library builds the model.

    Raises:
        HeadcodesError: a size is no whole number from 1 to what any model has.
    """
    text = config.get_text_config()
    # As written: where layers differ (Gemma 4), asking the configuration for one size of all of them is an error.
    written, names = text.to_dict(), getattr(text, "attribute_map", {})
    for key, most in _MOST.items():
        size = written.get(names.get(key, key))
        if size is None or isinstance(size, list):  # some families have a size a layer
            continue
        if not isinstance(size, int) or not 0 < size <= most:
            raise HeadcodesError(f"{key} must be a number from 1 to {most:,}", f"{size!r:.40} in {name}", "Mend it.")


# What a library written in Rust prints when it panics, before Python hears of it.
_PANIC = re.compile(
    rb"\n?thread '[^\n]*panicked at .*?\n"
    rb"(?:stack backtrace:\n(?: [^\n]*\n)*(?:note: [^\n]*\n)?|note: run with [^\n]*\n)",
    re.DOTALL,
)


@contextmanager
def panics_unprinted() -> Iterator[None]:
    """Keep a panic's own lines off standard error, where the exception says the same in one line.

    They go past Python, to the descriptor itself. So that is led into a file meanwhile, and what else was written
    appears afterwards, nothing lost. ``HEADCODES_DEBUG=1`` leaves all of it as it is.
    """
    try:
        shown = os.dup(2)
    except OSError:  # of a process without standard error
        shown = -1
    if shown < 0 or os.environ.get("HEADCODES_DEBUG") == "1":
        yield
        return
    panicked = False
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException as error:
            panicked = type(error).__name__ == "PanicException"
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)
            file.seek(0)
            text = _PANIC.sub(b"", file.read()) if panicked else file.read()
            while text:
                text = text[os.write(2, text) :]


@contextmanager
def unasked() -> Iterator[None]:
    """Keep transformers from asking anybody whether to run a repository's code, where a library calls it for us."""
    from transformers import dynamic_module_utils as code

    kept, code.TIME_OUT_REMOTE_CODE = code.TIME_OUT_REMOTE_CODE, 0
    try:
        yield
    finally:
        code.TIME_OUT_REMOTE_CODE = kept
