"""GGUF files: converted once to what transformers opens in a moment, and found again by the file's checksum."""

from __future__ import annotations

import json
import math
import mmap
import os
import shutil
import struct
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.files import cache_dir, reason_of, sweep, temporary_prefix
from headcodes.progress import progress
from headcodes.store.kept import folder_damage, seal_folder

if TYPE_CHECKING:
    from torch import Tensor, nn


# Part of the folder's name: raise it when the conversion writes something else than before.
_CONVERSION = 1


def converted(path: Path, digest: str) -> Path:
    """Return a folder with the model of a GGUF file as fp32 safetensors, its configuration and its tokenizer.

    The folder lies in the cache under ``digest`` (the file's SHA-256). It is made on first use, under another name,
    and renamed when complete: so it is never found half-written, and two processes converting at once do no harm.
    Checksums of its files lie in it; a folder that is damaged is made anew.

    Warns:
        HeadcodesWarning: it is damaged.

    Raises:
        HeadcodesError: the file is no GGUF file, or of an architecture that transformers cannot read from GGUF.
    """
    folder = cache_dir() / "models" / f"{digest}-{_CONVERSION}"
    if folder.is_dir():
        damage = folder_damage(folder)
        if damage is None:
            return folder
        warnings.warn(f"damaged folder of the cache, made anew: {folder} ({damage})", HeadcodesWarning, stacklevel=2)
        aside = folder.with_name(f"{temporary_prefix(folder)}damaged.part")
        with suppress(FileNotFoundError):  # another process was faster
            folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    sweep(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(folder), suffix=".part", dir=folder.parent))
    try:
        _convert(path, temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        for part in temporary.iterdir():
            part.chmod(0o666 & ~umask)
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
        seal_folder(temporary)
        try:
            temporary.replace(folder)
        except OSError:
            # Another process was faster; a folder that is there is complete.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars off; they come back as they were."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _convert(path: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    try:
        with quiet(), progress(f"converting {path.name} (once)", total=2) as advance:
            config, weights = _weights(path, folder)
            advance(1)
            tokenizer = _tokenizer(path, config.model_type)
            advance(1)
    except Exception as error:
        raise HeadcodesError(
            "a .gguf file must hold a language model that transformers can read",
            f"{path} ({reason_of(error)})",
            "Give the model's folder or hub name instead.",
        ) from error
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    about = config.to_dict()
    # The converted weights are plain fp32 numbers; left in, this entry would send the next start back to the GGUF
    # file.
    about.pop("quantization_config", None)
    about.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(about, indent=2, sort_keys=True))
    tokenizer.save_pretrained(folder)


def _weights(path: Path, folder: Path) -> tuple[Any, dict[str, Tensor]]:
    """Return configuration and fp32 weights, each once, where two names share one.

    Both are read from a copy without the vocabulary, which takes transformers most of a pass to read. The weights
    come by the function that from_pretrained itself calls: from_pretrained spends longer on their names than on their
    values, since it asks gguf for all names again for every module of the model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    without = folder / "model.gguf"
    try:
        with quiet():
            without_vocabulary(path, without)
            config = AutoConfig.from_pretrained(folder, gguf_file=without.name, trust_remote_code=False)
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
            names = {name for name, _ in (*skeleton.named_parameters(), *_saved_buffers(skeleton))}
            found = _tensors(without, skeleton)
            if missing := names - found.keys():
                raise KeyError(f"no tensor for {min(missing)}")
        return config, {name: found[name].to(torch.float32).contiguous() for name in sorted(names)}
    except Exception as error:
        with quiet():
            options: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
            model = AutoModelForCausalLM.from_pretrained(path.parent, trust_remote_code=False, **options)
        # Said only where the slower way has gone through: a file that neither can read has another message.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"converting {path.name} took longer than it must: its tensors could not be read directly ({reason})",
            HeadcodesWarning,
            stacklevel=2,
        )
        return model.config, _without_ties(model)
    finally:
        without.unlink(missing_ok=True)


def _tokenizer(path: Path, model_type: str) -> Any:
    """Return the tokenizer that AutoTokenizer finds, told of which kind it is: else it reads the vocabulary once more,
    by the slower of its two ways, to learn the model's type."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    asked = {"gguf_file": path.name, "tokenizer_type": model_type}
    try:
        return AutoTokenizer.from_pretrained(path.parent, trust_remote_code=False, **asked)
    except ValueError:  # a type without a class of its own (Llama) gets this one
        return PreTrainedTokenizerFast.from_pretrained(path.parent, trust_remote_code=False, gguf_file=path.name)


def _tensors(path: Path, skeleton: nn.Module) -> dict[str, Tensor]:
    """Return every tensor of the file under transformers' name for it."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    class Names:
        """What is asked of a model here: its names, and no names of parts again."""

        config: Any = skeleton.config

        def state_dict(self) -> dict[str, Any]:
            return skeleton.state_dict()

        def named_children(self) -> list[Any]:
            return []

    tensors: dict[str, Tensor] = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=Names())["tensors"]
    return tensors


def _saved_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    saved = module.state_dict()
    return [(name, buffer) for name, buffer in module.named_buffers() if name in saved]


def without_vocabulary(path: Path, out: Path) -> None:
    """Copy a GGUF file, leaving out the tokenizer's lists; the vocabulary's size goes into the model's own keys.

    The format is that of ggml's docs/gguf.md, versions 2 and 3, little-endian: a head (magic, version, number of
    tensors, number of keys), keys with typed values, the tensors' names and places, and, aligned, their data.

    Raises:
        ValueError: another format.
        struct.error: the file ends too early.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        head = _head(data)
        kept, n_tokens = {}, None
        for key, (kind, start, end) in head.keys.items():
            if key == "tokenizer.ggml.tokens":
                n_tokens = struct.unpack_from("<IIQ", data, start + 8 + len(key.encode()))[2]
            if kind != _ARRAY or not key.startswith("tokenizer."):
                kept[key] = data[start:end]
        family = kept["general.architecture"][8 + len("general.architecture") + 12 :].decode()
        size = f"{family}.vocab_size"
        if n_tokens is not None and size not in kept:
            kept[size] = struct.pack("<Q", len(size)) + size.encode() + struct.pack("<IQ", 10, n_tokens)
        front = struct.pack("<4sIQQ", b"GGUF", head.version, head.n_tensors, len(kept)) + b"".join(kept.values())
        front += data[head.tensors : head.end]
        with out.open("wb") as copy:
            copy.write(front + bytes(-len(front) % head.alignment))
            stream.seek(head.end + -head.end % head.alignment)
            shutil.copyfileobj(stream, copy, 1 << 24)


def most_bytes(path: Path) -> int:
    """Return how many bytes a GGUF file has at most, by what its head says of its tensors: no number is wider than 8.

    Raises:
        ValueError: another format.
        struct.error: the file ends too early.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _head(data).most_bytes


@dataclass(frozen=True, slots=True)
class _Head:
    """What stands before the data: keys by name as (kind, start, end), and from ``tensors`` to ``end`` the tensors'."""

    version: int
    alignment: int
    keys: dict[str, tuple[int, int, int]]
    n_tensors: int
    tensors: int
    end: int
    most_bytes: int


# Of keys, tensors and the texts of a list: beyond any file, and short of what would be counted for hours.
_MOST = 10_000_000


def _head(data: mmap.mmap) -> _Head:
    magic, version, n_tensors, n_keys = struct.unpack_from("<4sIQQ", data)
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError("neither version 2 nor 3 of the format")
    if max(n_tensors, n_keys) > _MOST:
        raise ValueError(f"{n_tensors:,} tensors and {n_keys:,} keys")
    place, alignment, keys = 24, 32, {}
    for _ in range(n_keys):
        start = place
        place = _behind(data, _STRING, place)
        key = data[start + 8 : place].decode()
        (kind,) = struct.unpack_from("<I", data, place)
        if key == "general.alignment":
            (alignment,) = struct.unpack_from("<I", data, place + 4)
        place = _behind(data, kind, place + 4)
        keys[key] = (kind, start, place)
    tensors, n_bytes = place, 0
    for _ in range(n_tensors):
        place = _behind(data, _STRING, place)
        (n_dims,) = struct.unpack_from("<I", data, place)
        if n_dims > 8:
            raise ValueError(f"a tensor of {n_dims} dimensions")
        n_bytes += 8 * math.prod(struct.unpack_from(f"<{n_dims}Q", data, place + 4)) + alignment
        place += 4 + 8 * n_dims + 4 + 8
    return _Head(version, alignment, keys, n_tensors, tensors, place, place + alignment + n_bytes)


# Sizes in bytes of the format's scalar types, by its numbers for them; strings and arrays have their own rules.
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def _behind(data: mmap.mmap, kind: int, place: int) -> int:
    """Return where a value that begins at ``place`` ends."""
    if kind in _SCALARS:
        return place + _SCALARS[kind]
    if kind == _STRING:
        length: int = struct.unpack_from("<Q", data, place)[0]
        return place + 8 + length
    if kind != _ARRAY:
        raise ValueError(f"a value of unknown type {kind}")
    item, n_items = struct.unpack_from("<IQ", data, place)
    place += 12
    if item in _SCALARS:
        return place + int(n_items) * _SCALARS[item]
    if n_items > _MOST:
        raise ValueError(f"a list of {n_items:,} items")
    for _ in range(n_items):
        place = _behind(data, item, place)
    return place


def _without_ties(model: nn.Module) -> dict[str, Tensor]:
    """Return the state with every shared tensor once: safetensors refuses twins, and loading ties them again."""
    kept: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        kept.setdefault(tensor.data_ptr() or id(tensor), (name, tensor))
    return {name: tensor.contiguous() for name, tensor in kept.values()}
