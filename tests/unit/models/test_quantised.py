"""Quantised weights: read as what they compute, or refused by the name of their format."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from headcodes.activations.capture import capture
from headcodes.errors import HeadcodesError
from headcodes.methods import eap
from headcodes.methods.inputs import Inputs
from headcodes.models.load import load_model
from made_pairs import PROMPTS, from_clean
from tiny_families import make


def test_a_configuration_that_speaks_of_quantised_weights_is_no_fault_where_they_are_plain() -> None:
    model = make("gpt-oss").to(torch.bfloat16)
    model.config.quantization_config = {"quant_method": "mxfp4"}
    assert load_model(model).facts.edges is None


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_read_as_what_they_compute(bits: int, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    plain = make("Llama", hidden_size=64, intermediate_size=128)
    plain.save_pretrained(tmp_path)
    how = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    quantised = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=how, dtype=torch.float32)
    found, before = load_model(quantised), load_model(plain).W_O
    assert not torch.equal(found.W_O, before)
    torch.testing.assert_close(found.W_O, before, atol=0.2 if bits == 4 else 0.02, rtol=0)
    seen: list[tuple[Tensor, Tensor]] = []
    watch = found.projections[1].register_forward_hook(lambda _m, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        quantised(input_ids=torch.tensor(PROMPTS[:1]))
    watch.remove()
    (z, out) = seen[0]
    heads = torch.einsum("bshd,hdm->bsm", found.by_head(1, z).float(), found.W_O[1].float())
    assert float((heads - out).norm() / out.norm()) < 0.02
    assert bool(capture(found, PROMPTS)[0].z.isfinite().all())


@pytest.mark.parametrize("dynamic", [False, True])
def test_weights_of_torchao_are_read_as_what_they_compute(dynamic: bool, tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    from transformers import AutoModelForCausalLM, TorchAoConfig

    plain = make("Llama", hidden_size=64, intermediate_size=128)
    plain.save_pretrained(tmp_path)
    kind = "Int8DynamicActivationInt8WeightConfig" if dynamic else "Int8WeightOnlyConfig"
    how = TorchAoConfig(getattr(quantization, kind)())
    quantised = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=how, dtype=torch.float32)
    found, before = load_model(quantised), load_model(plain).W_O
    assert not torch.equal(found.W_O, before)
    torch.testing.assert_close(found.W_O, before, atol=0.02, rtol=0)
    inputs = Inputs(found, from_clean(PROMPTS))
    if dynamic:  # rounded inputs have no gradient
        with pytest.raises(HeadcodesError, match="gradient must reach every part"):
            eap.find("eap", inputs, "node", 0)
    else:
        assert eap.find("eap", inputs, "edge", 0).head_scores.all()


@pytest.mark.parametrize("preset", ["W4A16", "W8A16", "W8A8"])
def test_weights_of_compressed_tensors_are_unpacked_and_rounded_inputs_refused(preset: str, tmp_path: Path) -> None:
    compressors = pytest.importorskip("compressed_tensors.compressors", reason="compressed-tensors is not installed")
    from compressed_tensors import quantization
    from compressed_tensors.quantization.utils import calculate_qparams

    plain, packed = (make("Llama", hidden_size=128, intermediate_size=128) for _ in range(2))
    scheme = quantization.preset_name_to_scheme(preset, ["Linear"])
    how = quantization.QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"])
    quantization.apply_quantization_config(packed, how)
    for part in packed.modules():
        if hasattr(part, "weight_scale"):
            least, most = part.weight.detach().aminmax(dim=1, keepdim=True)
            part.weight_scale.data, _ = calculate_qparams(least, most, part.quantization_scheme.weights)
    packing = compressors.ModelCompressor.from_pretrained_model(packed)
    packing.compress_model(packed)
    packed.save_pretrained(tmp_path)
    packing.update_config(tmp_path)
    if preset == "W8A8":
        with pytest.raises(HeadcodesError, match=r"^An output projection must compute a linear map[^\n]*$"):
            load_model(tmp_path, tokenizer=object(), dtype="float32")
        return
    found, before = load_model(tmp_path, tokenizer=object(), dtype="float32"), load_model(plain).W_O
    assert not torch.equal(found.W_O, before)
    torch.testing.assert_close(found.W_O, before, atol=0.1 if preset == "W4A16" else 0.01, rtol=0)
    assert eap.find("eap", Inputs(found, from_clean(PROMPTS)), "edge", 0).head_scores.all()


def test_experts_packed_as_mxfp4_stand_beside_plain_attention(
    tmp_path: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As gpt-oss is published: transformers makes the experts plain where it has no kernels for them."""
    from safetensors.torch import load_file, save_file

    # transformers 5.9 takes folders of ours named kernels for the package of that name, and asks for its version.
    ours = Path(__file__).parents[2], Path(__file__).parents[3]
    monkeypatch.setattr(sys, "path", [place for place in sys.path if Path(place).resolve() not in ours])
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    plain = make("gpt-oss", hidden_size=64, intermediate_size=64).bfloat16()
    plain.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        n_experts, n_in, n_out = weights.pop(name).shape
        weights[f"{name}_blocks"] = torch.randint(256, (n_experts, n_out, n_in // 32, 16), dtype=torch.uint8)
        weights[f"{name}_scales"] = torch.randint(120, 124, (n_experts, n_out, n_in // 32), dtype=torch.uint8)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": left}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = load_model(tmp_path, dtype="bfloat16")
    assert torch.equal(found.W_O, load_model(plain).W_O)
    assert found.facts.edges is None
    assert not torch.equal(
        found.module.model.layers[0].mlp.experts.down_proj, plain.model.layers[0].mlp.experts.down_proj
    )


@pytest.mark.parametrize("method", ["gptq", "awq", "aqlm"])
def test_a_format_that_cannot_be_read_here_is_named(method: str, tmp_path: Path) -> None:
    make("Llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if any(map(find_spec, ("optimum", "gptqmodel", "aqlm"))):
        pytest.skip("what reads such formats is installed")
    with pytest.raises(HeadcodesError, match=rf"(?i)^quantised weights must .*{method}[^\n]*$"):
        load_model(tmp_path, tokenizer=object())


def test_a_format_that_was_never_tried_is_refused_by_name() -> None:
    model = make("Llama")
    model.config.quantization_config = {"quant_method": "quanto"}
    assert load_model(model).facts.edges is None  # the weights are plain
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight = nn.Parameter(torch.ones(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(HeadcodesError, match=r"of a format that was tried \(.*\); got .* in quanto"):
        load_model(model)
