"""Tests of the pretended device stand aside, with the reason, where this torch cannot have one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tests.pretend import device


@pytest.fixture(autouse=True)
def _pretendable() -> None:
    reason = device.why_not()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def brief() -> Iterator[None]:
    """Methods that search or train do little of it: where tensors lie does not depend on how long."""
    from headcodes.codes import recipes
    from headcodes.methods import acdc, eap, sp

    short = {name: _shortened(recipe) for name, recipe in recipes.RECIPES.items()}
    with (
        mock.patch.dict(recipes.RECIPES, short),
        mock.patch.object(acdc, "THRESHOLDS", (0.01,)),
        mock.patch.object(sp, "N_EPOCHS", 2),
        mock.patch.dict(eap.find.__kwdefaults__, steps=2),
    ):
        yield


def _shortened(recipe: Any) -> Any:
    from dataclasses import replace

    return replace(recipe, config=replace(recipe.config, n_epochs=8, d_sae=24))


@pytest.fixture(scope="session")
def placed(tiny_hf: Any, tiny_tokenizer: Any) -> Callable[[str, str], Any]:
    """``placed(family, place)``: a tiny model with tied embeddings on "cpu", on "pretend:1", or on "both" devices, its
    norm and unembedding on another than its last layer; "norm behind": the norm with the last layer, the tied
    unembedding not. Opened once: methods leave it as they found it."""

    @cache
    def opened(family: str, place: str) -> Any:
        import headcodes

        model = headcodes.load_model(tiny_hf(family, tie_word_embeddings=True), tokenizer=tiny_tokenizer)
        put(model, place)
        return model

    return opened


@pytest.fixture(scope="session")
def scores(placed: Callable[[str, str], Any]) -> Callable[..., np.ndarray]:
    """``scores(family, method, place, level)``: head scores of the model that is ``placed`` there."""

    def find(family: str, method: str, place: str = "cpu", level: str = "node", n: int = 4) -> np.ndarray:
        import headcodes

        model = placed(family, place)
        pairs = headcodes.tasks.get("ioi").build(model.tokenizer, n=n, seed=0)
        with pytest.warns(headcodes.HeadcodesWarning):  # a random model does no task
            result = headcodes.discover(model, pairs, method=method, level=level)
        return result.head_scores if result.pair_scores is None else result.pair_scores

    @cache
    def on_cpu(family: str, method: str, level: str) -> np.ndarray:
        return find(family, method, "cpu", level)

    def asked(family: str, method: str, place: str = "cpu", level: str = "node") -> np.ndarray:
        return on_cpu(family, method, level) if place == "cpu" else find(family, method, place, level)

    return asked


def put(model: Any, place: str) -> None:
    """Move an opened model; "both": as accelerate spreads models, by its own hooks."""
    if place in ("both", "norm behind"):
        from accelerate import dispatch_model

        later = [*model.layers[1:], *([model.final_norm] if place == "norm behind" else [])]
        dispatch_model(model.module, spread(model, later), force_hooks=True)
    elif place != "cpu":
        model.module.to(place)
        model.module.tie_weights()


def spread(model: Any, modules: list[Any]) -> dict[str, str]:
    """Return a device map: these modules on the second device, all else on the first."""
    names = {module: name for name, module in model.module.named_modules()}
    later = {names[module] for module in modules}
    containers = {name.rpartition(".")[0] for name in later}
    found: dict[str, str] = {}

    def visit(name: str, module: Any) -> None:
        if name and name not in containers and not any(part.startswith(f"{name}.") for part in later):
            found[name] = "pretend:1" if name in later else "pretend:0"
            return
        for child, part in module.named_children():
            visit(f"{name}.{child}" if name else child, part)

    visit("", model.module)
    return found
