"""Opening language models: by name, from a folder or a file, or as they lie in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from headcodes.errors import HeadcodesError
from headcodes.files import checksum, is_foreign
from headcodes.models import planted
from headcodes.models.adapt import from_bridge, from_lens, from_transformers
from headcodes.models.devices import choose_device, choose_dtype, refuse_kind
from headcodes.models.families import refuse
from headcodes.models.gguf import converted, quiet
from headcodes.models.model import Model
from headcodes.models.sources import (
    Source,
    ask_hub,
    exact_dtype,
    hub_folder,
    not_loaded,
    resolve,
)
from headcodes.models.untrusted import panics_unprinted, refuse_kernels, refuse_pickles, refuse_sizes
from headcodes.models.weights import is_bridge
from headcodes.settings import check_names


def load_model(
    source: Any,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    projection: str | None = None,
    device_map: Any = None,
) -> Model:
    """Open a language model and find its attention heads.

    Args:
        source: a short name (``headcodes models``), a name on the hub, a folder written by save_pretrained, a
            ``.gguf`` file (converted once, into the cache), a model of transformers in memory, or a
            TransformerBridge. What is given in memory is used as it is, adapters included (peft), and left as it was
            found.
        tokenizer: the tokenizer of a model in memory; for the others, one to take instead of their own.
        revision: of a model on the hub.
        device: "auto" takes a CUDA device where there is one, else the CPU. Models in memory stay where they are.
        dtype: "auto" takes bfloat16 where the device computes in it, else float32. Models in memory keep theirs.
        projection: where the attention output projection lies in families that the table lacks, with ``{layer}`` for
            the layer's number: ``"model.layers.{layer}.self_attn.o_proj"``.
        device_map: as transformers takes it (several GPUs, offloading; needs the package accelerate).

    Returns:
        The model, in evaluation mode unless it was given in memory.

    Raises:
        HeadcodesError: nothing there to load, no network, a gated model without permission, an architecture without
            readable heads, quantised weights.
    """
    if isinstance(source, str | Path):
        check_names(model=str(source))
    else:
        if device != "auto" or dtype != "auto" or device_map is not None or revision is not None:
            raise HeadcodesError(
                "a model given in memory must be used as it is",
                "device=, dtype=, device_map= or revision= beside it",
                "Move or convert the model yourself, then call load_model(model, tokenizer=tokenizer).",
            )
        if isinstance(source, nn.Module):
            refuse_kind(*{str(part.device) for part in source.parameters()})
        if is_bridge(source):
            _refuse_projection(projection, "a TransformerBridge")
            return from_bridge(source, tokenizer or source.tokenizer, type(source.original_model).__name__)
        if hasattr(source, "peft_config") and hasattr(source, "get_base_model"):
            if source.active_peft_config.is_prompt_learning:
                raise HeadcodesError(
                    "An adapter must change a model's layers",
                    f"{source.active_peft_config.peft_type.value}, which puts tokens before every prompt",
                    "Take a model adapted by LoRA or a variant of it, or none.",
                )
            # The model itself, with the adapters in its layers.
            source = source.get_base_model()
        if not isinstance(source, nn.Module):
            raise HeadcodesError(
                "A model must be a name, a path, a model of transformers or a TransformerBridge",
                f"an object of type {type(source).__name__}",
                "Pass the model itself.",
            )
        name = str(getattr(getattr(source, "config", None), "name_or_path", "") or type(source).__name__)
        return from_transformers(source, tokenizer, name, projection=projection, owned=False)
    where = choose_device(device)
    if planted.is_planted(source):
        if revision is not None:
            raise HeadcodesError(
                "a planted model must be named without a revision", repr(revision), "Leave revision out."
            )
        _refuse_projection(projection, "a planted model")
        exact = exact_dtype(source, dtype) if isinstance(dtype, str) else dtype
        return planted.load(str(source), device=where, dtype=choose_dtype(exact, where)).model
    place = resolve(source, revision)
    precision = choose_dtype(dtype, where)
    if place.kind == "lens":
        _refuse_projection(projection, "weights in TransformerLens's own format")
        return from_lens(place, tokenizer, where, precision)
    folder = converted(place.path, str(place.checksum)) if place.kind == "gguf" and place.path else place.path
    module, own_tokenizer = _open(place, str(folder or place.name), tokenizer, where, precision, device_map)
    if place.checksum is None:
        commit = getattr(module.config, "_commit_hash", None)
        known = None if commit is None else checksum(f"hub {place.name} {commit}".encode())
    else:
        known = place.checksum
    refuse_kind(*{str(part.device) for part in module.parameters()})
    return from_transformers(
        module, own_tokenizer, str(source), projection=projection, owned=True, revision=revision, known_checksum=known
    )


def _refuse_projection(projection: str | None, source: str) -> None:
    if projection is not None:
        must = "projection must be of a model of transformers"
        raise HeadcodesError(must, f"{projection!r} beside {source}, whose heads are known", "Leave it out.")


_TRIED = " A text, of 1 line:\n\t\u65e5\u672c \U0001f600"


def _open(
    place: Source, where: str, tokenizer: Any, device: torch.device, dtype: torch.dtype, device_map: Any
) -> tuple[Any, Any]:
    """Load model and tokenizer by transformers; what goes wrong there becomes one plain message."""
    asked: dict[str, Any] = {}
    if place.kind == "hub":
        asked = {"revision": place.revision or "main", "local_files_only": not ask_hub(place)}
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    weights = place.path if place.kind == "folder" else hub_folder(place.name, place.revision)
    if weights is not None and place.kind != "gguf":
        refuse_pickles(weights)
    try:
        # Without trust_remote_code=False transformers asks on standard output whether to run a folder's own code.
        config = AutoConfig.from_pretrained(where, trust_remote_code=False, **asked)
        refuse_kernels(config, place.name)
        refuse_sizes(config, place.name)
        refuse(config)
        options = asked | {"config": config, "dtype": dtype, "device_map": device_map, "use_safetensors": True}
        with quiet():
            module = AutoModelForCausalLM.from_pretrained(where, trust_remote_code=False, **options)
        if tokenizer is None:
            with panics_unprinted():
                tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **asked)
                tokenizer.encode(_TRIED)  # some open, and panic over their first text
    except HeadcodesError:
        raise
    except BaseException as error:
        # Whatever is wrong with a file, every library says in its own way; tokenizers panic, which is no Exception.
        if not is_foreign(error):
            raise
        raise not_loaded(place, error) from error
    return module if device_map is not None else module.to(device), tokenizer
