"""A model folder is data: its code never runs, and its pickles are never opened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from headcodes.errors import HeadcodesError
from headcodes.models.load import load_model

CODE = """
import os, pathlib
pathlib.Path({canary!r}).write_text("ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
def generate(model, *args, **kwargs):
    pass
"""


@pytest.fixture
def folder(tiny_folder: Any, tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "model")


def change(path: Path, **changes: Any) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({k: v for k, v in (before | changes).items() if v is not None}))


def by_config(folder: Path) -> None:
    change(folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.EvilConfig"})


def by_model(folder: Path) -> None:
    change(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.EvilModel"})


def by_model_of_unknown_family(folder: Path) -> None:
    auto = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    change(folder / "config.json", model_type="evil", auto_map=auto)


def by_tokenizer(folder: Path) -> None:
    auto = {"AutoTokenizer": [None, "evil.EvilTokenizer"]}
    change(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto)


def by_generation_config(folder: Path) -> None:
    change(folder / "generation_config.json", custom_generate="evil", auto_map={"GenerationConfig": "evil.EvilConfig"})
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text((folder / "evil.py").read_text())


@pytest.mark.parametrize(
    "attack", [by_config, by_model, by_model_of_unknown_family, by_tokenizer, by_generation_config]
)
def test_code_of_a_model_folder_never_runs_and_nobody_is_asked(folder: Path, tmp_path: Path, attack: Any) -> None:
    canary = tmp_path / "canary"
    (folder / "evil.py").write_text(CODE.format(canary=str(canary)))
    attack(folder)
    words = ["discover", "--model", str(folder), "--n-prompts", "4", "--no-cache", "--method", "mean-diff"]
    environment = os.environ | {"HEADCODES_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-m", "headcodes.cli", *words], input="yes\n" * 9, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    assert not canary.exists()
    assert "Do you wish" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 2), done.stderr


class Evil:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.canary,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.CKPT"])
def test_pickled_weights_are_refused_by_name_before_anything_is_opened(
    folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig

    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil(str(tmp_path / "canary"))}, folder / name)
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_a, **_k: pytest.fail("a library opened the folder"))
    with pytest.raises(HeadcodesError, match=name):
        load_model(folder)
    assert not (tmp_path / "canary").exists()


def test_a_pickle_beside_safetensors_is_left_closed(folder: Path, tmp_path: Path) -> None:
    torch.save({"model.norm.weight": Evil(str(tmp_path / "canary"))}, folder / "pytorch_model.bin")
    assert load_model(folder).n_layers == 3
    assert not (tmp_path / "canary").exists()


def test_a_configuration_cannot_name_a_kernel_of_the_hub(folder: Path) -> None:
    change(folder / "config.json", attn_implementation="somebody/kernel")
    with pytest.raises(HeadcodesError, match="somebody/kernel"):
        load_model(folder)


def test_every_opening_in_the_package_says_that_no_code_is_trusted() -> None:
    import headcodes

    lines = [
        f"{path.name}: {line.strip()}"
        for path in Path(headcodes.__file__).parent.rglob("*.py")
        for line in path.read_text().splitlines()
        if ".from_pretrained(" in line
    ]
    assert lines
    assert [line for line in lines if "trust_remote_code=False" not in line] == []


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_prompts_longer_than_the_table_of_positions_are_refused(tiny_model: Any, family: str) -> None:
    from headcodes.activations.capture import capture

    model = tiny_model(family)
    assert model.facts.positions == 128
    capture(model, [[3] * 128])
    with pytest.raises(HeadcodesError, match="128 tokens"):
        capture(model, [[3, 4], [3] * 129])
    with pytest.raises(HeadcodesError, match="128 tokens"):
        model.trace(torch.full((1, 129), 3))
    assert tiny_model("llama").facts.positions is None


def test_devices_without_numbers_are_refused() -> None:
    from headcodes.models.devices import choose_device

    for device in ("meta", "abacus", "cpu:99999999999999999999", "", "\0"):
        with pytest.raises(HeadcodesError):
            choose_device(device)


@pytest.mark.parametrize(("backtrace", "debug"), [("0", ""), ("full", ""), ("1", "1")])
def test_a_panic_of_a_tokenizer_is_one_line_and_hides_nothing_else(folder: Path, backtrace: str, debug: str) -> None:
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["continuing_subword_prefix"] = "x" * 100  # longer than the words it is taken off
    path.write_text(json.dumps(document))
    code = f"""
import os
import transformers
from headcodes.errors import HeadcodesError
from headcodes.models.load import load_model
made = transformers.AutoTokenizer.from_pretrained
def talking(*args, **kwargs):
    os.write(2, b"said before\\n")
    return made(*args, **kwargs)
transformers.AutoTokenizer.from_pretrained = talking
try:
    load_model({str(folder)!r}, device="cpu")
except HeadcodesError as error:
    assert "PanicException" in repr(error.__cause__), error
    os.write(2, b"said after\\n")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"RUST_BACKTRACE": backtrace, "HEADCODES_DEBUG": debug},
    )
    assert done.returncode == 0, done.stderr
    if debug:
        assert "panicked at" in done.stderr
    else:
        assert done.stderr == "said before\nsaid after\n"
