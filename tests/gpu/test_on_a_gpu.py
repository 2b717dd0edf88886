"""What tests/pretend does on a pretended device, on real ones: ``make test-gpu``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import FAMILIES

import headcodes
from headcodes.errors import HeadcodesWarning
from headcodes.methods import METHODS

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


def two() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")


def scores(tiny_hf: Any, tokenizer: Any, family: str, method: str, where: str) -> np.ndarray:
    module = tiny_hf(family, tie_word_embeddings=True)
    if where == "both":
        from accelerate import dispatch_model, infer_auto_device_map

        half = sum(part.numel() for part in module.parameters()) * 2
        map_ = infer_auto_device_map(module, max_memory={0: half, 1: 4 * half})
        module = dispatch_model(module, map_, force_hooks=True)
    else:
        module.to(where)
    model = headcodes.load_model(module, tokenizer=tokenizer)
    pairs = headcodes.tasks.get("ioi").build(tokenizer, n=6, seed=0)
    with pytest.warns(HeadcodesWarning):  # a random model does no task
        return headcodes.discover(model, pairs, method=method).head_scores


def alike(found: np.ndarray, want: np.ndarray) -> None:
    # A GPU adds up in another order: codes of near-ties flip.
    assert np.corrcoef(found.ravel(), want.ravel())[0, 1] > 0.98 or np.ptp(want) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_capture_gives_the_cpus_activations(tiny_hf: Any, tiny_tokenizer: Any, family: str) -> None:
    from headcodes.activations.capture import capture

    pairs = headcodes.tasks.get("ioi").build(tiny_tokenizer, n=6, seed=0)
    ids = [tiny_tokenizer.encode(pair.clean) for pair in pairs]
    z = [
        capture(headcodes.load_model(tiny_hf(family).to(where), tokenizer=tiny_tokenizer), ids)[0].z.cpu()
        for where in ("cpu", "cuda")
    ]
    torch.testing.assert_close(z[1], z[0], rtol=1e-3, atol=1e-4)


# Trained codes of another rounding are other codes: the counts of a tiny model's few prompts tell nothing then.
COUNTED = ("paper", "paper-scaled", "code-flip")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["cuda:0", "cuda:1", "both"])
def test_discover(tiny_hf: Any, tiny_tokenizer: Any, method: str, where: str) -> None:
    if where != "cuda:0":
        two()
    want = scores(tiny_hf, tiny_tokenizer, "llama", method, "cpu")
    found = scores(tiny_hf, tiny_tokenizer, "llama", method, where)
    assert found.shape == want.shape
    assert np.isfinite(found).all()
    if method not in COUNTED:
        alike(found, want)


def test_the_same_seed_gives_the_same_bits(tiny_hf: Any, tiny_tokenizer: Any) -> None:
    for method in ("contrast", "paper"):  # without a backward pass through attention
        first, second = (scores(tiny_hf, tiny_tokenizer, "llama", method, "cuda") for _ in range(2))
        assert np.array_equal(first, second), method


def test_a_capture_keeps_to_its_memory(tiny_hf: Any, tiny_tokenizer: Any) -> None:
    from headcodes.activations.capture import capture

    model = headcodes.load_model(tiny_hf("gpt2", n_embd=512, n_layer=8, n_head=8).to("cuda"), tokenizer=tiny_tokenizer)
    budget, ids = 64 << 20, [[5 + i % 50 for i in range(start, start + 40)] for start in range(400)]
    _ = model.W_O
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    activations, _ = capture(model, ids, memory_bytes=budget)
    most = torch.cuda.max_memory_allocated() - held
    assert most <= 1.5 * budget + activations.z.numel() * 4


def test_a_scan_with_a_worker_a_gpu(tmp_path: Path) -> None:
    from headcodes.scan import Plan, scan

    plan = Plan.from_lists("planted-ioi", "ioi", "act-norm,mean-diff", "0-3", n_prompts=12, device="cuda")
    rows = list(scan(plan, tmp_path, workers=max(2, torch.cuda.device_count())))
    assert {row["status"] for row in rows} == {"done"}
