"""headcodes: find the attention heads, and the paths between them, that make a language model do a thing."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Name -> module. Looked up on first use: `import headcodes` must stay instant and free of torch.
_EXPORTS = {
    "HeadcodesError": "errors",
    "HeadcodesWarning": "errors",
    "PromptPair": "prompts.pairs",
    "PromptPairs": "prompts.pairs",
    "read_pairs": "prompts.files",
    "load_model": "models.load",
    "Model": "models.model",
    "capture": "activations.capture",
    "HeadActivations": "activations.capture",
    "SparseAutoencoder": "codes.sae",
    "TrainConfig": "codes.sae",
    "train": "codes.train",
    "encode": "codes.encode",
    "unique_counts": "overlap.counts",
    "pair_unique_counts": "overlap.counts",
    "discover": "discovery",
    "Result": "result",
    "Circuit": "circuit.circuit",
}
_MODULES = {
    "tasks": "tasks",
    "methods": "methods",
    "metrics": "metrics",
    "truths": "evaluation.truths",
    "planted": "models.planted",
    "patching": "interventions.patch",
    "significance": "overlap.significance",
}

__all__ = ["__version__", *_EXPORTS, *_MODULES]  # noqa: PLE0604 - keys of the table are strings

if TYPE_CHECKING:
    from headcodes.errors import HeadcodesError as HeadcodesError
    from headcodes.errors import HeadcodesWarning as HeadcodesWarning


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(import_module(f"headcodes.{_EXPORTS[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return import_module(f"headcodes.{_MODULES[name]}")
    raise AttributeError(f"module 'headcodes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
