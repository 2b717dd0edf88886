"""What is read in other people's models and may be gone one day: each stand-in lacks one of it, and that is said."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headcodes.activations.capture import capture
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.interventions.ablate import EdgeAblation
from headcodes.interventions.patch import causal_truth
from headcodes.models import planted, relied
from headcodes.models.load import load_model
from headcodes.models.prefix_cache import why_not_walked
from headcodes.report.attention import attention_patterns
from made_pairs import token_pairs

IDS = [[5, 9, 7, 30, 31, 8], [40, 5, 41], [3, 9, 7, 30]]
HEADS = [(0, 1), (2, 3)]


class _WithoutWay:
    """A model's configuration that does not say how attention is worked out."""

    def __init__(self, config: Any) -> None:
        self.__dict__["config"] = config

    def __getattr__(self, name: str) -> Any:
        if name == "_attn_implementation":
            raise AttributeError(name)
        return getattr(self.config, name)


def _forget_the_way(module: Any) -> None:
    module.config = _WithoutWay(module.config)  # the layers keep theirs


def test_without_the_name_of_its_attention_every_prompt_has_a_row_of_its_own(tiny_hf: Any, tiny_tokenizer: Any) -> None:
    model = load_model(tiny_hf("llama"), tokenizer=tiny_tokenizer)
    shared, _ = capture(model, IDS)
    assert model.longest_shared > 0
    module = tiny_hf("llama")
    _forget_the_way(module)
    with pytest.warns(HeadcodesWarning, match="a row of its own.*_attn_implementation"):
        lacking = load_model(module, tokenizer=tiny_tokenizer)
    assert lacking.longest_shared == 0
    alone, _ = capture(lacking, IDS)
    torch.testing.assert_close(alone.z, shared.z, atol=1e-5, rtol=1e-4)


def test_attention_patterns_say_what_they_lack(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    assert attention_patterns(model, IDS, HEADS)
    _forget_the_way(model.module)
    with pytest.warns(HeadcodesWarning), pytest.raises(HeadcodesError, match=r"config\._attn_implementation"):
        attention_patterns(model, IDS, HEADS)
    model = tiny_model("llama")
    monkeypatch.setattr(type(model.module), "set_attn_implementation", property())
    with pytest.raises(HeadcodesError, match="set_attn_implementation"):
        attention_patterns(model, IDS, HEADS)


def test_shared_keys_that_cannot_be_told_apart_are_refused(tiny_model: Any) -> None:
    model = tiny_model("llama", num_key_value_heads=2)
    EdgeAblation(model, token_pairs(), "resample", "kl")
    for layer in range(model.n_layers):
        del model.attention(layer).num_key_value_groups
    with pytest.raises(HeadcodesError, match="num_key_value_groups"):
        EdgeAblation(model, token_pairs(), "resample", "kl")


def test_planted_models_notice_positions_that_turn_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.mistral import modeling_mistral

    honest = modeling_mistral.MistralRotaryEmbedding

    class Renamed(honest):  # type: ignore[misc, valid-type]
        """Turns by another attribute than the one that is set."""

        def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
            angles = torch.cat([position_ids[..., None] * torch.ones(self.config.head_dim // 2)] * 2, -1)
            return angles.cos(), angles.sin()

    monkeypatch.setattr(modeling_mistral, "MistralRotaryEmbedding", Renamed)
    with pytest.raises(HeadcodesError, match=r"rotary_emb\.inv_freq"):
        planted.load("planted-ioi")


def _has_no_body(model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(type(model.module), "base_model", None)
    return r"which of its modules holds the layers \(base_model\)"


def _lies_on_two_devices(model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    devices = [SimpleNamespace(device=torch.device("cuda", number)) for number in range(2)]
    monkeypatch.setattr(model.module, "parameters", lambda: iter(devices))
    return "its weights lie on several devices"


def _lies_elsewhere(model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(model.module, "parameters", lambda: iter([SimpleNamespace(device=torch.device("meta"))]))
    return "some of its weights are off their device"


def _is_a_bridge(model: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("headcodes.models.prefix_cache.is_bridge", lambda _module: True)
    return "TransformerLens calls them in its own way"


@pytest.mark.parametrize("lack", [_has_no_body, _lies_on_two_devices, _lies_elsewhere, _is_a_bridge])
def test_layers_that_cannot_be_walked_through_say_why(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, lack: Any
) -> None:
    model = tiny_model("llama")
    assert why_not_walked(model) is None
    reason = lack(model, monkeypatch)
    assert reason.replace("\\", "") in str(why_not_walked(model))


def test_a_model_without_a_body_runs_as_a_whole(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    expected, _ = capture(model, IDS)
    _has_no_body(model, monkeypatch)
    found, _ = capture(model, IDS)
    torch.testing.assert_close(found.z, expected.z)


def test_a_cap_of_logits_under_another_name_is_not_passed_over(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gemma2", final_logit_softcapping=0.5)
    tokens = token_pairs(8)
    walked = causal_truth(model, tokens, cache=False)
    assert walked.engine is not None
    assert walked.engine.name == "walk"
    text = type(model.module.config.get_text_config())
    honest = text.__getattribute__

    def without(self: Any, name: str) -> Any:
        # The model itself goes on capping, by whatever name.
        if name == "final_logit_softcapping" and _asked_by_us():
            raise AttributeError(name)
        return honest(self, name)

    monkeypatch.setattr(text, "__getattribute__", without)
    with pytest.warns(HeadcodesWarning, match="whole forward passes.*own answers"):
        slower = causal_truth(model, tokens, cache=False)
    assert slower.engine is not None
    assert slower.engine.name == "forward"
    np.testing.assert_allclose(slower.effects, walked.effects, atol=2e-5)


def _asked_by_us() -> bool:
    return sys._getframe(2).f_globals["__name__"] == relied.__name__


def test_everything_slower_is_announced_once(tiny_model: Any) -> None:
    model = tiny_model("llama")
    with pytest.warns(HeadcodesWarning, match="slower: reason"):
        relied.announce(model, "slower", "reason")
    relied.announce(model, "slower", "reason")  # warnings of ours are errors here
    assert isinstance(relied.body_of(model.module), nn.Module)
