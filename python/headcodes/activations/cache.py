"""Captured activations, kept on disk under what they follow from: a second run needs neither model nor transformers.

An entry is found by its content (model, token ids, positions, dtype, device, threads, versions), or by the request
that led to it (model file, task or prompt file, seed, ...), which is known before any model is opened. Anything else
that those two name gives another key; an entry that is damaged is named, and made anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from headcodes import __version__
from headcodes.activations.capture import HeadActivations, Watch, capture_pairs
from headcodes.files import cache_dir, checksum
from headcodes.models.facts import facts_from_json
from headcodes.models.model import Model
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.prompts.rows import LeftOut, Reading
from headcodes.prompts.tokens import TokenPairs
from headcodes.provenance import code_checksum
from headcodes.settings import Positions
from headcodes.store.kept import keep_note, keep_tensors, kept_note, kept_tensors, sweep_cache

if TYPE_CHECKING:
    from headcodes.models.sources import Source


MAX_BYTES = 2 << 30
_FORMAT = 4
_SIZES = ("n_layers", "n_heads", "n_kv_heads", "d_head", "d_heads", "d_model", "d_vocab")
_ABOUT = ("name", "revision", "family", "projection", "without_heads", *_SIZES)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of ``headcodes cache ls``: what was captured, how large it is, when it was last used (Unix time, s)."""

    key: str
    model: str
    task: str
    n_pairs: int
    n_bytes: int
    used_s: float


@dataclass(frozen=True)
class Remembered:
    """What a request led to before: everything that ``methods.Inputs`` is made of."""

    model: Model
    tokens: TokenPairs
    activations: HeadActivations
    logits: list[Tensor]


class RememberedModel(Model):
    """A model known by its sizes and output weights; the model itself is opened when more is asked of it."""

    def __init__(self, about: Mapping[str, Any], W_O: Tensor, load: Callable[[], Model]) -> None:
        self._load = load
        self._dtype, self._device = W_O.dtype, W_O.device
        sizes = {name: about[name] for name in _ABOUT}
        self.__dict__ |= sizes | {"checksum": about["checksum"], "facts": facts_from_json(about["facts"])}
        self.__dict__["W_O"] = W_O.view(self.n_layers, self.n_heads, self.d_head, self.d_model)

    def __getattr__(self, name: str) -> Any:
        # Reached only for what is not known: module, tokenizer, layers, projections, ...
        if name.startswith("__") or name in ("_load", "_opened"):
            raise AttributeError(name)
        if "_opened" not in self.__dict__:
            self._opened = self._load()
        return getattr(self._opened, name)

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the activations lie."""
        return self._device


def request_key(
    source: Source, prompts: Mapping[str, Any], *, device: torch.device, dtype: torch.dtype, **options: Any
) -> str | None:
    """Return the key of a request, or None where only opening the model can tell what it is.

    Args:
        source: from ``sources.resolve``.
        prompts: what names the prompts: ``{"task", "n", "seed", "negative"}``, or ``{"prompts": checksum of the
        file}``. device, dtype: from ``choose_device`` and ``choose_dtype``.
        options: whatever else the activations follow from: bos, positions, projection.
    """
    if source.checksum is None:
        return None
    return _key({"source": source.checksum, "name": source.name, "prompts": dict(prompts), **options}, device, dtype)


def content_key(model: Model, tokens: TokenPairs, positions: Positions | str, mlps: bool = False) -> str:
    """Return the key of activations, or of what else ``positions`` names: everything their bits depend on."""
    content: dict[str, Any] = {"mlps": True} if mlps else {}
    content |= {
        "model": model.checksum,
        "clean": tokens.clean,
        "corrupt": tokens.corrupt,
        "scored": tokens.scored_ids,
        "positions": positions if isinstance(positions, str) else [list(places) for places in positions],
    }
    return _key(content, model.device, model.dtype)


def _key(content: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> str:
    surroundings = {
        "format": _FORMAT,
        "headcodes": __version__,
        "code": code_checksum(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        # Sums round by how they are shared out: another number of threads, another device, other bits.
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "dtype": str(dtype),
    }
    return checksum(json.dumps([surroundings, content], sort_keys=True, default=str).encode())


def captured(
    model: Model,
    tokens: TokenPairs,
    positions: Positions = "mean",
    *,
    request: str | None = None,
    mlps: bool = False,
    watch: Watch | None = None,
) -> tuple[HeadActivations, list[Tensor]]:
    """Return ``capture_pairs``: read, or made and kept.

    Args:
        model, tokens, positions, mlps: as there. watch: sees nothing where they are read.
        request: the key under which ``recall`` shall find them, tokens included.
    """
    key = content_key(model, tokens, positions, mlps)
    found = _read(key, model.device)
    if found is None:
        found = capture_pairs(model, tokens, positions=positions, mlps=mlps, watch=watch)
        _write(key, model, tokens, *found)
    if request is not None:
        about = {name: getattr(model, name) for name in (*_ABOUT, "checksum")} | {"facts": asdict(model.facts)}
        note = {"entry": key, "model": about, "tokens": _tokens_to_json(tokens)}
        keep_note(_folder() / f"{request}.request.json", note)
    return found


def kept(model: Model, tokens: TokenPairs, what: str, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Return small tensors that a model and prompts alone decide: read, or made and kept.

    Args:
        what: names them; anything else they follow from, such as the code that makes them, belongs into it.
    """
    key = content_key(model, tokens, what)
    path = _folder() / f"{key}.safetensors"
    found = kept_tensors(path)
    if found is not None:
        return found[0]
    made = {name: part.cpu().contiguous() for name, part in make().items()}
    keep_tensors(path, made, {"model": model.name, "task": tokens.pairs.task, "n_pairs": len(tokens)})
    return made


def recall(request: str, device: torch.device, load: Callable[[], Model]) -> Remembered | None:
    """Return what an earlier run left under a request, or None.

    Args:
        request: from ``request_key``. device: where the activations shall lie.
        load: opens the model; called only if something is wanted that was not kept.
    """
    note = kept_note(_folder() / f"{request}.request.json")
    if note is None:
        return None
    try:
        tokens = _tokens_from_json(note["tokens"])
        found = _read(note["entry"], device)
        if found is None:
            return None
        model = RememberedModel(note["model"], found[0].W_O, load)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return Remembered(model, tokens, *found)


def ls() -> list[Entry]:
    """Return the entries, the one used last first; the causal truths of a model and task are one."""
    rows = []
    truths: dict[tuple[str, ...], list[Entry]] = {}
    for path in _entries():
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["headcodes"])
            status = path.stat()
            entry = Entry(path.stem, about["model"], about["task"], about["n_pairs"], status.st_size, status.st_mtime)
            if path.parent == _folder():
                rows.append(entry)
            else:
                truths.setdefault((path.parent.name, entry.model, entry.task), []).append(entry)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            continue
    for (key, model, task), pairs in truths.items():
        n_bytes, used_s = sum(pair.n_bytes for pair in pairs), max(pair.used_s for pair in pairs)
        rows.append(Entry(key, model, f"{task}, causal truth", len(pairs), n_bytes, used_s))
    return sorted(rows, key=lambda row: -row.used_s)


def clear() -> int:
    """Remove every entry; return the number of bytes that were freed. Converted models stay."""
    freed = 0
    sweep_cache(cache_dir())
    for path in [*_entries(), *_folder().glob("*.request.json")]:
        freed += path.stat().st_size
        path.unlink(missing_ok=True)
    return freed


def _folder() -> Path:
    return cache_dir() / "activations"


def _entries() -> Iterator[Path]:
    """Yield the files of captured activations, and those of causal truths: a file a pair."""
    yield from _folder().glob("*.safetensors")
    yield from (cache_dir() / "truths").glob("*/*.safetensors")


def _read(key: str, device: torch.device) -> tuple[HeadActivations, list[Tensor]] | None:
    found = kept_tensors(_folder() / f"{key}.safetensors")
    if found is None:
        return None
    parts, about = found
    try:
        z, W_O = parts["z"].to(device), parts["W_O"].to(device)
        mlps = parts["mlps"].to(device) if "mlps" in parts else None
        activations = HeadActivations(z, W_O, about["n_layers"], about["n_heads"], about["positions"], mlps)
        return activations, list(parts["logits"].split(about["n_scored"]))
    except (KeyError, TypeError, ValueError, RuntimeError):
        return None  # an entry of another kind under this name


def _write(key: str, model: Model, tokens: TokenPairs, activations: HeadActivations, logits: list[Tensor]) -> None:
    about = {
        "model": model.name,
        "task": tokens.pairs.task,
        "n_pairs": len(tokens),
        "n_layers": activations.n_layers,
        "n_heads": activations.n_heads,
        "positions": activations.positions,
        "n_scored": [len(values) for values in logits],
    }
    parts = {"z": activations.z.contiguous(), "W_O": activations.W_O.detach().contiguous(), "logits": torch.cat(logits)}
    if activations.mlps is not None:
        parts["mlps"] = activations.mlps
    n_bytes = sum(part.numel() * part.element_size() for part in parts.values())
    if n_bytes > MAX_BYTES:
        return
    if keep_tensors(_folder() / f"{key}.safetensors", parts, about):
        _shrink(keep=key)


def _shrink(keep: str) -> None:
    """Remove the entries unused for longest until the rest fit ``MAX_BYTES``, and requests that lead nowhere."""
    entries = sorted(_entries(), key=lambda path: (path.stem != keep, -path.stat().st_mtime))
    total = 0
    for path in entries:
        n_bytes = path.stat().st_size
        if total + n_bytes > MAX_BYTES and path.stem != keep:
            path.unlink(missing_ok=True)
        else:
            total += n_bytes
    left = {path.stem for path in _entries()}
    for path in _folder().glob("*.request.json"):
        note = kept_note(path)
        if note is None or note.get("entry") not in left:
            path.unlink(missing_ok=True)


def _tokens_to_json(tokens: TokenPairs) -> dict[str, Any]:
    parts = ("clean", "corrupt", "answers", "wrong_answers", "bos", "words")
    texts = {
        "task": tokens.pairs.task,
        "negative": tokens.pairs.negative,
        "pairs": [asdict(pair) for pair in tokens.pairs],
        "reading": None if tokens.pairs.reading is None else asdict(tokens.pairs.reading),
    }
    return {part: getattr(tokens, part) for part in parts} | {"texts": texts}


def _tokens_from_json(kept: Mapping[str, Any]) -> TokenPairs:
    texts = kept["texts"]
    pairs = tuple(
        PromptPair(
            pair["clean"],
            pair["corrupt"],
            tuple(pair["answers"]),
            tuple(pair["wrong_answers"]),
            pair["where"],
            *(
                tuple((name, start, end) for name, start, end in pair[side])
                for side in ("clean_spans", "corrupt_spans")
            ),
        )
        for pair in texts["pairs"]
    )
    read = texts["reading"]
    reading = read and Reading(
        read["source"], read["n_rows"], tuple(read["notes"]), tuple(LeftOut(**row) for row in read["left_out"])
    )
    return TokenPairs(
        clean=kept["clean"],
        corrupt=kept["corrupt"],
        answers=kept["answers"],
        wrong_answers=kept["wrong_answers"],
        bos=bool(kept["bos"]),
        words={int(token): word for token, word in kept["words"].items()},
        pairs=PromptPairs(pairs, texts["task"], texts["negative"], reading),
    )
