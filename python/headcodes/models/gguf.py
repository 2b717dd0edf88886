"""GGUF files: converted once to what transformers opens in a moment, and found again by the file's checksum."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcodes.errors import HeadcodesError
from headcodes.files import cache_dir
from headcodes.progress import progress

if TYPE_CHECKING:
    from torch import Tensor, nn


# Part of the folder's name: raise it when the conversion writes something else than before.
_CONVERSION = 1


def converted(path: Path, digest: str) -> Path:
    """Return a folder with the model of a GGUF file as fp32 safetensors, its configuration and its tokenizer.

    The folder lies in the cache under ``digest`` (the file's SHA-256). It is made on first use, under another name,
    and renamed when complete: whoever finds it finds all of it, and two processes converting at once do no harm.

    Raises:
        HeadcodesError: the file is no GGUF file, or of an architecture that transformers cannot read from GGUF.
    """
    folder = cache_dir() / "models" / f"{digest}-{_CONVERSION}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{digest[:12]}.", suffix=".part", dir=folder.parent))
    try:
        _convert(path, temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        for part in temporary.iterdir():
            part.chmod(0o666 & ~umask)
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
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
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        with quiet(), progress(f"converting {path.name} (once)", total=2) as advance:
            model = AutoModelForCausalLM.from_pretrained(**where, trust_remote_code=False, dtype=torch.float32)
            advance(1)
            tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
            advance(1)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HeadcodesError(
            "A .gguf file must hold a language model that transformers can read",
            f"{path} ({reason})",
            "Give the model's folder or hub name instead.",
        ) from error
    save_file(_without_ties(model), folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict()
    # The converted weights are plain fp32 numbers; left in, this entry would send the next start back to the GGUF
    # file.
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    tokenizer.save_pretrained(folder)


def _without_ties(model: nn.Module) -> dict[str, Tensor]:
    """Return the state with every shared tensor once: safetensors refuses twins, and loading ties them again."""
    kept: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        kept.setdefault(tensor.data_ptr() or id(tensor), (name, tensor))
    return {name: tensor.contiguous() for name, tensor in kept.values()}
