"""Models of unknown families, of revisions and with layers without heads, where scan, bench and evaluate take them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcodes import Circuit, discover, load_model, tasks
from headcodes.report.stores import read_store
from headcodes.report.summary import run_facts
from headcodes.scan import load_store
from tiny_families import known, make

pytestmark = pytest.mark.usefixtures("own_cache")
PATH = "model.layers.{layer}.self_attn.out_proj"
WRONG = "model.layers.{layer}.self_attn.out"
BENCH = (
    "bench",
    "--tasks",
    "ioi",
    "--methods",
    "act-norm",
    "--seeds",
    1,
    "--n-pairs",
    4,
    "--no-faithfulness",
)
JUDGED = ("--task", "ioi", "--n-pairs", 4)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def unknown(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A model of a family that the table lacks: XGLM."""
    import torch
    from transformers import XGLMConfig, XGLMForCausalLM

    folder = tmp_path_factory.mktemp("xglm")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4, "init_std": 0.2}
    config = XGLMConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=64, **sizes)
    XGLMForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_hf: Any, tiny_tokenizer: Any) -> str:
    """The hub's local cache with two revisions of one model: main has two layers, step9 three."""
    from huggingface_hub import constants

    for revision, n_layers in (("main", 2), ("step9", 3)):
        folder = tmp_path / "hub" / "models--me--tiny"
        snapshot = folder / "snapshots" / (str(n_layers) * 40)
        tiny_hf("llama", num_hidden_layers=n_layers).save_pretrained(snapshot)
        tiny_tokenizer.save_pretrained(snapshot)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / revision).write_text(snapshot.name)
    for name, value in (("HF_HUB_CACHE", str(tmp_path / "hub")), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    # Both are read when the client is imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return "me/tiny"


def one_head(path: Path, n_layers: int) -> Path:
    """A circuit of one head of the first layer, as a file."""
    Circuit.from_heads([(0, 1)], n_layers=n_layers, n_heads=4).to_json(path)
    return path


# Its cache is no plain keys and values: whole forward passes are run, with a warning.
@pytest.mark.filterwarnings("default::headcodes.errors.HeadcodesWarning")
def test_a_family_outside_the_table_is_scanned_judged_and_compared(unknown: Path, tmp_path: Path, run: Run) -> None:
    scan = ("scan", "--models", unknown, "--methods", "act-norm", "--n-prompts", 6)
    status, _, err = run(*scan, "--projection", PATH, "--store", tmp_path / "store")
    assert status == 0, err
    (row,) = load_store(tmp_path / "store").to_pylist()
    model = load_model(unknown, projection=PATH)
    pairs = tasks.get("ioi").build(model.tokenizer, n=6, seed=0)
    expected = discover(model, pairs, method="act-norm", threads=1, verify=None).head_scores
    np.testing.assert_array_equal(row["head_scores"], expected.ravel())

    status, _, err = run(*BENCH, "--model", unknown, "--projection", PATH, "--out", tmp_path / "bench")
    assert status == 0, err
    assert "the truth is the 4 heads of largest effect" in err
    (judged,) = json.loads((tmp_path / "bench" / "results.json").read_text())["rows"]
    assert judged["truth"].endswith(" pairs, 4 heads")
    assert np.sum(judged["labels"]) == 4
    circuit = one_head(tmp_path / "circuit.json", 2)
    status, out, err = run("evaluate", circuit, "--model", unknown, *JUDGED, "--projection", PATH, "--json")
    assert status == 0, err
    evaluation = json.loads(out)
    assert len(evaluation["truth"]["head_effects"]) == 2 * 4
    assert evaluation["truth"]["n_heads_in_circuit"] == 4
    assert any("the 4 heads of largest effect" in note for note in evaluation["notes"])


def test_a_projection_that_is_not_there_is_named_by_each(unknown: Path, tmp_path: Path, run: Run) -> None:
    scan = ("scan", "--models", unknown, "--methods", "act-norm", "--n-prompts", 6)
    assert run(*scan, "--projection", WRONG, "--store", tmp_path / "store")[0] == 1
    assert "self_attn.out" in load_store(tmp_path / "store").to_pylist()[0]["error"]
    circuit = one_head(tmp_path / "circuit.json", 2)
    for words in ((*BENCH, "--out", tmp_path / "bench"), ("evaluate", circuit, *JUDGED)):
        status, _, err = run(*words, "--model", unknown, "--projection", WRONG)
        assert (status, len(err.splitlines())) == (2, 1), err
        assert "self_attn.out" in err


@pytest.mark.filterwarnings("default:the truth is the 6 heads:headcodes.errors.HeadcodesWarning")
def test_a_revision_is_the_one_scanned_judged_and_compared(hub: str, tmp_path: Path, run: Run) -> None:
    scan = ("scan", "--models", hub, "--methods", "act-norm", "--n-prompts", 6, "--store", tmp_path / "store")
    assert run(*scan)[0] == 0
    assert run(*scan, "--revision", "step9")[0] == 0
    rows = load_store(tmp_path / "store").to_pylist()
    assert sorted((row["revision"] or "", row["n_layers"]) for row in rows) == [("", 2), ("step9", 3)]

    status, _, err = run(*BENCH, "--model", hub, "--revision", "step9", "--out", tmp_path / "bench")
    assert status == 0, err
    assert "me/tiny@step9,ioi,act-norm" in (tmp_path / "bench" / "results.csv").read_text()

    words = ("evaluate", one_head(tmp_path / "circuit.json", 3), "--model", hub, *JUDGED)
    status, out, err = run(*words, "--revision", "step9", "--json")
    assert status == 0, err
    assert len(json.loads(out)["truth"]["head_effects"]) == 3 * 4
    status, _, err = run(*words, "--revision", "step8")
    assert (status, len(err.splitlines())) == (2, 1), err
    assert "me/tiny@step8" in err


def test_layers_without_heads_are_named_in_a_scans_rows_and_pages(
    tmp_path: Path, tiny_tokenizer: Any, run: Run
) -> None:
    if not known("LFM2"):
        pytest.skip("the installed transformers does not know LFM2")
    make("LFM2", vocab_size=len(tiny_tokenizer)).save_pretrained(tmp_path / "hybrid")
    tiny_tokenizer.save_pretrained(tmp_path / "hybrid")
    scan = ("scan", "--models", tmp_path / "hybrid", "--methods", "act-norm", "--n-prompts", 6)
    status, _, err = run(*scan, "--store", tmp_path / "store")
    assert status == 0, err
    (row,) = load_store(tmp_path / "store").to_pylist()
    assert row["layers_without_heads"] == [0, 2]
    (record,) = read_store(tmp_path / "store")
    assert dict(run_facts(record))["layers without attention heads"] == "layers 0, 2"
