"""A GGUF file is converted once, whole or not at all, into numbers equal to its own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headcodes.activations.capture import capture
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.models import gguf, sources
from headcodes.models.load import load_model

D_MODEL, D_MLP, N_LAYERS, N_HEADS, N_KV = 64, 96, 2, 4, 2


def write_llama(path: Path, quantised: bool = True, vocab_size: bool = True) -> dict[str, np.ndarray]:
    """Write a tiny Llama as a GGUF file, its matrices as Q8_0, and return the numbers that the file stands for."""
    writer_module = pytest.importorskip("gguf", reason="the package gguf is not installed")
    from gguf.quants import dequantize, quantize

    rng = np.random.default_rng(0)
    words = ["<unk>", "<s>", "</s>", *(chr(code) for code in range(33, 127)), *("a" + chr(c) for c in range(97, 123))]
    writer = writer_module.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D_MODEL // N_HEADS)
    writer.add_rope_freq_base(10000.0)
    if vocab_size:
        writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3, 3, 3] + [1] * (len(words) - 3))
    writer.add_token_merges([f"a {chr(code)}" for code in range(97, 123)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    d_kv = D_MODEL * N_KV // N_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(words), D_MODEL), "output_norm.weight": (D_MODEL,)}
    for layer in range(N_LAYERS):
        shapes |= {
            f"blk.{layer}.attn_q.weight": (D_MODEL, D_MODEL),
            f"blk.{layer}.attn_k.weight": (d_kv, D_MODEL),
            f"blk.{layer}.attn_v.weight": (d_kv, D_MODEL),
            f"blk.{layer}.attn_output.weight": (D_MODEL, D_MODEL),
            f"blk.{layer}.ffn_gate.weight": (D_MLP, D_MODEL),
            f"blk.{layer}.ffn_up.weight": (D_MLP, D_MODEL),
            f"blk.{layer}.ffn_down.weight": (D_MODEL, D_MLP),
            f"blk.{layer}.attn_norm.weight": (D_MODEL,),
            f"blk.{layer}.ffn_norm.weight": (D_MODEL,),
        }
    numbers: dict[str, np.ndarray] = {}
    kind = writer_module.GGMLQuantizationType.Q8_0
    for name, shape in shapes.items():
        numbers[name] = rng.standard_normal(shape).astype(np.float32) * 0.3
        if quantised and len(shape) == 2:
            packed = quantize(numbers[name], kind)
            numbers[name] = dequantize(packed, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            writer.add_tensor(name, numbers[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADCODES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_llama(path)
    return path


def test_a_file_is_converted_once_to_its_own_numbers(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.gguf"
    numbers = write_llama(path)
    model = load_model(path, dtype="float32", device="cpu")
    (folder,) = (cache / "models").iterdir()
    assert folder.name.startswith(model.checksum)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    layer = model.module.model.layers[1]
    same = {
        "attn_output": layer.self_attn.o_proj,
        "attn_v": layer.self_attn.v_proj,
        "ffn_down": layer.mlp.down_proj,
        "attn_norm": layer.input_layernorm,
    }
    for name, part in same.items():
        np.testing.assert_array_equal(part.weight.detach().numpy(), numbers[f"blk.1.{name}.weight"])
    assert model.module.get_output_embeddings().weight is model.module.get_input_embeddings().weight
    ids = model.tokenizer("abaz!")["input_ids"]
    assert model.tokenizer.convert_ids_to_tokens(ids)[-3:] == ["ab", "az", "!"]
    before = capture(model, [[5, 6, 7]])[0].z

    monkeypatch.setattr(gguf, "_convert", lambda *_args: pytest.fail("converted again"))
    again = load_model(str(path), dtype="float32", device="cpu")
    assert torch.equal(capture(again, [[5, 6, 7]])[0].z, before)
    # Found by its content: the file's name and place do not matter, a folder that holds only it does as well.
    (tmp_path / "folder").mkdir()
    shutil.copy(path, tmp_path / "folder" / "other.gguf")
    assert load_model(tmp_path / "folder").checksum == model.checksum


@pytest.mark.parametrize("vocab_size", [True, False])
def test_the_folder_holds_what_transformers_itself_reads_from_the_file(
    cache: Path, tmp_path: Path, vocab_size: bool
) -> None:
    from transformers import AutoModelForCausalLM

    path = tmp_path / "tiny.gguf"
    write_llama(path, vocab_size=vocab_size)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32)
    ours = load_model(path, dtype="float32", device="cpu").module
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }
    assert all(torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items())
    differ = {"quantization_config", "_name_or_path", "architectures"}
    ours_about, theirs_about = ours.config.to_dict(), theirs.config.to_dict()
    assert {key: ours_about.get(key) for key in theirs_about if key not in differ} == {
        key: value for key, value in theirs_about.items() if key not in differ
    }


@pytest.mark.parametrize("gone", ["the function", "a tensor's name", "the file's version"])
def test_where_tensors_cannot_be_read_directly_the_slower_way_is_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    from transformers import modeling_gguf_pytorch_utils as reading

    path = tmp_path / "tiny.gguf"
    write_llama(path)
    direct = load_model(path, dtype="float32", device="cpu")
    shutil.rmtree(cache)
    if gone == "the function":
        monkeypatch.delattr(reading, "load_gguf_checkpoint")
    elif gone == "a tensor's name":
        tensors = gguf._tensors
        monkeypatch.setattr(gguf, "_tensors", lambda *args: dict(list(tensors(*args).items())[1:]))
    else:
        monkeypatch.setattr(gguf, "_STRING", 99)
    if gone == "the function":
        # The slower way needs it, too: that is one plain message.
        with pytest.raises(HeadcodesError, match="must hold a language model that transformers can read"):
            load_model(path, dtype="float32", device="cpu")
        return
    with pytest.warns(HeadcodesWarning, match="longer than it must"):
        slower = load_model(path, dtype="float32", device="cpu")
    found = direct.module.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in slower.module.state_dict().items())


def test_a_conversion_cut_short_leaves_nothing(cache: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = gguf._convert

    def stop(source: Path, folder: Path) -> None:
        convert(source, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "_convert", stop)
    with pytest.raises(KeyboardInterrupt):
        load_model(tiny_gguf)
    assert list((cache / "models").iterdir()) == []


def test_of_two_conversions_at_once_one_stands(cache: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = gguf._convert

    def race(source: Path, folder: Path) -> None:
        convert(source, folder)
        monkeypatch.setattr(gguf, "_convert", convert)
        gguf.converted(tiny_gguf, sources.file_checksum(tiny_gguf))

    monkeypatch.setattr(gguf, "_convert", race)
    folder = gguf.converted(tiny_gguf, sources.file_checksum(tiny_gguf))
    assert [part.name for part in (cache / "models").iterdir()] == [folder.name]
    assert (folder / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "checksums.json"])
def test_a_flipped_bit_of_a_conversion_is_named_and_made_anew(cache: Path, tiny_gguf: Path, name: str) -> None:
    folder = gguf.converted(tiny_gguf, sources.file_checksum(tiny_gguf))
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    content = whole[name]
    at = len(content) * 3 // 4
    (folder / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    with pytest.warns(HeadcodesWarning, match=f"damaged .*{folder.name}"):
        assert gguf.converted(tiny_gguf, sources.file_checksum(tiny_gguf)) == folder
    if name != "checksums.json":
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    (folder / "checksums.json").unlink()  # as an earlier version left it
    assert gguf.converted(tiny_gguf, sources.file_checksum(tiny_gguf)) == folder


def test_no_gguf_file_is_one_clear_message(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    with pytest.raises(HeadcodesError, match=r"model\.gguf") as caught:
        load_model(tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tiny.gguf", "no.gguf", "model.safetensors", "config.json"])
def test_a_file_with_a_hole_behind_what_it_says_is_not_read_to_its_end(
    cache: Path, tiny_gguf: Path, tiny_folder: Any, tmp_path: Path, name: str
) -> None:
    """A terabyte that takes no room on a disk would be hashed for an hour."""
    folder = tiny_folder(tmp_path / "model")
    path = tmp_path / name if name.endswith(".gguf") else folder / name
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(HeadcodesError, match=f"as large as its head says; got {path}"):
        load_model(path if name.endswith(".gguf") else folder)


def test_a_large_files_checksum_is_remembered_until_it_changes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_REMEMBERED_BYTES", 4)
    path = tmp_path / "weights.bin"
    path.write_bytes(b"one two three")
    first = sources.file_checksum(path)
    count: list[Any] = []
    real = sources.checksum
    monkeypatch.setattr(sources, "checksum", lambda what: (count.append(what), real(what))[1])
    assert sources.file_checksum(path) == first
    assert path not in count
    path.write_bytes(b"one two four!")
    # As long as before: only the time of change tells (set here, for clocks too coarse to tell two writes apart).
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert sources.file_checksum(path) == real(path) != first
    # A memory that was cut short is no reason to fail.
    (memory,) = (cache / "checksums").iterdir()
    memory.write_text("{")
    with pytest.warns(HeadcodesWarning, match="made anew"):
        assert sources.file_checksum(path) == real(path)


def test_names_are_resolved_without_heavy_imports() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from headcodes.models.sources import known_models, resolve;"
        "resolve('smollm2-135m'); resolve('a/b');"
        "[row.at_hand for row in known_models()];"
        "bad = {'torch', 'transformers', 'numpy'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
