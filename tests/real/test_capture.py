"""Capture on a real model: equal to the plain way, and no larger than its formula."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from headcodes import capture, tasks
from headcodes.prompts.tokens import TokenPairs, tokenize
from peers import capture_published

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def pairs(smollm2: Any) -> TokenPairs:
    return tokenize(tasks.get("ioi").build(smollm2.tokenizer, n=20, seed=0), smollm2.tokenizer, "auto")


@pytest.mark.parametrize("peer", ["transformer-lens", "hooks"])
def test_the_same_as_one_prompt_at_a_time(smollm2: Any, pairs: TokenPairs, peer: str) -> None:
    some = pairs.subset(range(3))
    prompts = some.clean + some.corrupt
    if peer == "transformer-lens":
        bridge = capture_published.bridged("smollm2", smollm2.module, smollm2.tokenizer)
        theirs, their_logits = capture_published.capture_by_transformer_lens(bridge, prompts)
    else:
        theirs, their_logits = capture_published.capture_by_hooks(
            smollm2.module, smollm2.projections, smollm2.n_heads, prompts
        )
    # All forty prompts, of which these are a part: neighbours in a batch must not matter.
    heads, logits = capture(smollm2, pairs.clean + pairs.corrupt, answer_ids=pairs.scored_ids * 2)
    assert heads.z.shape == (40, 270, 64)
    rows = [0, 1, 2, 20, 21, 22]
    scale = float(theirs.std())
    torch.testing.assert_close(heads.head_outputs(rows), theirs, atol=1e-4 * scale, rtol=1e-4)
    for row, expected in zip(rows, their_logits, strict=True):
        ids = (pairs.scored_ids * 2)[row]
        torch.testing.assert_close((logits or [])[row], expected[ids], atol=2e-3, rtol=1e-4)


def test_the_model_does_the_task_and_bf16_says_the_same(smollm2: Any, pairs: TokenPairs) -> None:
    from headcodes.models.load import load_model
    from headcodes.prompts.task_check import logit_differences

    half = load_model("smollm2-135m", dtype="bfloat16", device="cpu")
    prompts, scored = pairs.clean + pairs.corrupt, pairs.scored_ids * 2
    heads, logits = capture(smollm2, prompts, answer_ids=scored)
    coarse, coarse_logits = capture(half, prompts, answer_ids=scored)
    assert logits is not None
    assert coarse_logits is not None
    right = logit_differences(pairs, logits[:20])
    assert (right > 0).mean() > 0.9
    assert abs(logit_differences(pairs, coarse_logits[:20]).mean() - right.mean()) < 0.3
    # bf16 keeps 8 bits: a few parts in a hundred after thirty layers.
    assert float((coarse.z - heads.z).norm() / heads.z.norm()) < 0.05


def test_peak_memory_is_weights_result_and_one_batch(smollm2: Any) -> None:
    """docs: weights + W_O + z (4 * n_prompt * n_component * d_head bytes) + at most 1.5 times ``memory_bytes``."""
    code = """
from pathlib import Path
import torch
from headcodes.activations.capture import capture
from headcodes.models.load import load_model

def memory(what):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024

model = load_model("smollm2-135m", dtype="float32", device="cpu")
prompts = torch.randint(0, 40000, (120, 24), generator=torch.Generator().manual_seed(0)).tolist()
# The first pass touches every weight and lets the allocator and the products' buffers settle.
capture(model, prompts[:2], answer_ids=[[1]] * 2)
model.W_O
before = memory("VmRSS")
heads, _ = capture(model, prompts, answer_ids=[[1]] * 120, memory_bytes=1 << 25)
z = heads.z.numel() * 4
print((memory("VmHWM") - before - z) / (1 << 25))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 1.5
