"""What only a device, or a second one, brings to light: graphs, waits, memory, devices without float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from tests.pretend import device
from tests.pretend.conftest import put
from tests.pretend.device import MixedDevicesError, pretended

import headcodes
from headcodes.codes.sae import TrainConfig
from headcodes.codes.train import train
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.evaluation.faithfulness import behaviour
from headcodes.interventions.ablate import EdgeAblation, HeadAblation
from headcodes.interventions.carried import carried_edges
from headcodes.interventions.patch import patch_effects
from headcodes.interventions.paths import path_effects
from headcodes.interventions.places import effects_by_place
from headcodes.interventions.verify import verify
from headcodes.methods import METHODS, atp_star, eap
from headcodes.models.model import Model
from headcodes.prompts.alignment import align
from made_pairs import token_pairs


def rows() -> torch.Tensor:
    return torch.randn(40, 12, generator=torch.Generator().manual_seed(1))


def trained(x: torch.Tensor, n_epochs: int = 12) -> torch.Tensor:
    config = TrainConfig(d_sae=6, n_epochs=n_epochs)
    return train(x, config, generator=torch.Generator().manual_seed(0)).sae.W_enc.cpu()


@pytest.mark.parametrize("before", [(), ("pretend:0",)], ids=["at first", "after the other device"])
def test_a_captured_step_trains_on_the_device_of_the_weights(before: tuple[str, ...]) -> None:
    want, untrained = trained(rows()), trained(rows(), n_epochs=4)
    with pretended() as log:
        for other in before:  # which makes CUDA's own capture stream there
            trained(rows().to(other))
        found = trained(rows().to("pretend:1"))
    assert log.current == 0
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    assert (found - untrained).abs().max() > 1e-3


def test_a_replay_that_does_nothing_is_refused() -> None:
    with (
        pretended(),
        mock.patch.object(device.Graph, "replay"),
        pytest.raises(HeadcodesError, match="must run when it is replayed"),
    ):
        trained(rows().to("pretend:1"))


def opened(tiny_hf: Any, tokenizer: Any, family: str = "llama", **changes: Any) -> Any:
    return headcodes.load_model(tiny_hf(family, **changes), tokenizer=tokenizer)


def discovered(model: Any, tokenizer: Any, method: str, n: int = 6) -> Any:
    pairs = headcodes.tasks.get("ioi").build(tokenizer, n=n, seed=0)
    # Confirming a circuit takes as many passes as the heads it tries.
    with pytest.warns(HeadcodesWarning):
        return headcodes.discover(model, pairs, method=method, verify=None)


# Of these, each layer or part has passes of its own, or is looked at once a run: see below.
BY_PART = ("eap-ig-activations", "acdc", "atp-star", "patching", "relp", "relp-ah")
COUNTED = [(method, "llama") for method in METHODS if method not in BY_PART]


@pytest.mark.parametrize(("method", "family"), [*COUNTED, ("dla", "gemma2"), ("contrast", "gemma2")])
def test_the_host_waits_a_constant_number_of_times_a_batch(
    tiny_hf: Any, tiny_tokenizer: Any, method: str, family: str
) -> None:
    found = []
    for n_layers in (2, 4):
        model = opened(tiny_hf, tiny_tokenizer, family, num_hidden_layers=n_layers)
        with pretended() as log:
            put(model, "pretend:0")
            _ = model.W_O  # found once a model, layer by layer
            log.waits.clear()
            discovered(model, tiny_tokenizer, method)
        found.append(log.waits)
    assert found[0] == found[1], found[1] - found[0]
    assert found[0].total() <= 80


@pytest.mark.filterwarnings("ignore::headcodes.errors.HeadcodesWarning")  # a random model does no task
@pytest.mark.parametrize("method", ["relp", "relp-ah", "atp-star", "eap", "eap-ig-activations"])
def test_another_batch_costs_a_constant_number_of_waits(tiny_hf: Any, tiny_tokenizer: Any, method: str) -> None:
    """With a pair a batch, twice the pairs cost as much more whatever the layers; where layers have passes of their
    own, eight a pass."""
    more: list[Counter[str]] = []
    passes = []
    for n_layers in (2, 4):
        by_pairs = []
        for n in (2, 4):
            model = opened(tiny_hf, tiny_tokenizer, num_hidden_layers=n_layers)
            with (
                pretended() as log,
                mock.patch.object(eap, "graph_bytes", return_value=1),
                mock.patch.object(atp_star, "graph_bytes", return_value=1),
                mock.patch.object(Model, "trace", autospec=True, side_effect=Model.trace) as runs,
            ):
                put(model, "pretend:0")
                _ = model.W_O
                log.waits.clear()
                headcodes.discover(
                    model, headcodes.tasks.get("ioi").build(tiny_tokenizer, n=n, seed=0), method=method, verify=None
                )
            by_pairs.append(log.waits)
            passes.append(runs.call_count)
        more.append(by_pairs[1] - by_pairs[0])
    if method != "eap-ig-activations":
        assert more[0] == more[1], more[1] - more[0]
    more_passes = passes[3] - passes[2] - (passes[1] - passes[0])
    assert more[1].total() - more[0].total() <= 8 * more_passes


# What is done to some pairs of one length: one batch.
STEPS: dict[str, Callable[[Any, Any], object]] = {
    "patching": lambda m, p: verify(m, p, [(0, 1), (1, 3)], known=known_of(p)),
    "patching by KL": lambda m, p: patch_effects(m, p, [(0, 1), (1, 3)], "heads", False, False, metric="kl"),
    "paths": lambda m, p: path_effects(m, p, [("a0.h1", "a1.h2<q>"), ("a0.h2", "logits")], known=known_of(p)),
    "places": lambda m, p: effects_by_place(m, p, [(0, 1), (1, 3), (1, None)], align(p)),
    "carried edges": lambda m, p: carried_edges(m, p, [(0, 1), (0, 2), (1, 3)]),
    "running circuits": lambda m, p: behaviour(m, p, np.zeros((2, m.n_layers, m.n_heads + 1))),
    "with means instead": lambda m, p: behaviour(m, p, np.zeros((2, m.n_layers, m.n_heads + 1)), ablation="mean"),
}


def known_of(pairs: Any) -> tuple[list[float], list[float]]:
    """Logit differences of pairs that are answered right, whatever the model says."""
    return [1.0] * len(pairs), [0.0] * len(pairs)


@pytest.mark.parametrize("step", STEPS)
def test_patching_waits_a_constant_number_of_times_a_batch(tiny_hf: Any, tiny_tokenizer: Any, step: str) -> None:
    """Whatever its pairs and the model's layers; edges are carried a pair at a time."""
    found = []
    for n_layers, n_pairs in ((2, 3), (4, 3), (2, 6)):
        model = opened(tiny_hf, tiny_tokenizer, "gpt2", n_layer=n_layers)
        pairs = token_pairs(n_pairs, lengths=(7,))
        with pretended() as log:
            put(model, "pretend:0")
            STEPS[step](model, pairs)  # finds out once how the model is built
            log.waits.clear()
            STEPS[step](model, pairs)
        found.append(log.waits)
    assert found[0] == found[1], found[1] - found[0]
    if step != "carried edges":
        assert found[0] == found[2], found[2] - found[0]


@pytest.mark.parametrize("kind", [HeadAblation, EdgeAblation])
def test_a_step_of_acdc_waits_as_often_whatever_the_layers(tiny_hf: Any, tiny_tokenizer: Any, kind: Any) -> None:
    found = []
    for n_layers in (2, 4):
        model = opened(tiny_hf, tiny_tokenizer, "gpt2", n_layer=n_layers)
        with pretended() as log:
            put(model, "pretend:0")
            parts = kind(model, token_pairs(3, lengths=(7,)), "resample", "kl")
            shape = (n_layers, model.n_heads) if kind is HeadAblation else parts.graph.shape
            for _ in range(2):  # the first finds the matrices
                log.waits.clear()
                parts.loss(torch.ones(shape, dtype=torch.bool))
        found.append(log.waits)
    assert found[0] == found[1], found[1] - found[0]


def test_all_weights_are_never_held_in_float32_at_once(tiny_hf: Any, tiny_tokenizer: Any) -> None:
    # Many layers of wide heads, so that their weights outweigh prompts and vocabulary.
    wide = {"num_hidden_layers": 24, "hidden_size": 64, "head_dim": 128}
    for method in ("default", "contrast", "paper-scaled", "act-norm", "mean-diff"):
        module = tiny_hf("llama", **wide).to(torch.bfloat16)
        model = headcodes.load_model(module, tokenizer=tiny_tokenizer)
        n_bytes = model.W_O.numel() * 2
        del model.__dict__["W_O"]
        # The encoder's tiles are bounded by themselves; these models are smaller than one.
        with mock.patch("headcodes.codes.encode.TILE_ELEMENTS", 1 << 14), pretended() as log:
            put(model, "pretend:0")
            discovered(model, tiny_tokenizer, method, n=4)
        assert log.largest_bytes <= n_bytes, method


def test_batches_follow_the_memory_of_the_device(tiny_hf: Any, tiny_tokenizer: Any) -> None:
    from headcodes.models.memory import batch_bytes, graph_bytes

    cpu, gpu = torch.device("cpu"), torch.device("pretend:0")
    with pretended():
        assert batch_bytes(gpu) == 4 << 30  # of 80 GiB
        with mock.patch.object(device, "MEMORY", [1 << 30, 79 << 30]):  # nearly the same, hardly any of it free
            assert batch_bytes(gpu) == 4 << 30
        with mock.patch.object(device, "MEMORY", [7 << 30, 8 << 30]):
            assert batch_bytes(gpu) == 1 << 30
        assert graph_bytes(gpu) == 2 * batch_bytes(gpu)
        assert batch_bytes(cpu) == 1 << 26


def test_mixed_devices_are_refused_as_on_a_gpu() -> None:
    with pretended():
        a = torch.ones(2, device="pretend:0")
        for other in (torch.ones(2), torch.ones(2, device="pretend:1")):
            with pytest.raises(MixedDevicesError):
                a + other
        assert (a + torch.tensor(1.0)).sum().item() == 4


@pytest.mark.parametrize("name", ["mps", "xpu"])
def test_a_device_that_headcodes_is_not_made_for_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(HeadcodesError, match=r"must be cpu or cuda.*got " + name) as refused:
        headcodes.load_model("planted-ioi", device=name)
    assert len(str(refused.value).splitlines()) == 1


def test_a_model_that_lies_on_such_a_device_is_refused(tiny_hf: Any, tiny_tokenizer: Any) -> None:
    module = tiny_hf("llama")
    with pretended():
        module.to("pretend:0")
        with pytest.raises(HeadcodesError, match=r"must be cpu or cuda.*got pretend:0"):
            headcodes.load_model(module, tokenizer=tiny_tokenizer)
