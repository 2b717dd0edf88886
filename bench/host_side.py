"""What a discovery costs the host, at large models' head counts: ``python bench/host_side.py``.

A GPU does the arithmetic of a discovery while the host only asks for it. Here widths are tiny and a batch is one pair,
so that asking is nearly all there is, while layers, heads and prompts are as many as in the real model; and the number
of batches is the one that the real model's widths give on a GPU of 80 GiB. A method costs its parts that run once, and
a batch's worth of asking times the number of batches. Training and encoding are left out: a GPU replays a captured
graph and runs one kernel. CPU milliseconds of one thread, the least of several runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
TINY = 2  # a head's width
SHAPES: dict[str, dict[str, int]] = {
    "gpt2-xl": {"layers": 48, "heads": 25, "d_head": 64, "d_model": 1600, "d_mlp": 6400, "kv": 25},
    "llama-3-8b": {"layers": 32, "heads": 32, "d_head": 128, "d_model": 4096, "d_mlp": 14336, "kv": 8},
}


def model_of(name: str) -> Any:
    """Return a model of the shape's layers and heads, each head TINY wide, with random weights."""
    import transformers as tf
    from tests.conftest import _tokenizer

    from headcodes.models.load import load_model

    shape, tokenizer = SHAPES[name], _tokenizer()
    width = shape["heads"] * TINY
    config: Any
    if name == "gpt2-xl":
        config = tf.GPT2Config(
            vocab_size=len(tokenizer), n_embd=width, n_layer=shape["layers"], n_head=shape["heads"], n_positions=128
        )
    else:
        config = tf.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv"],
            head_dim=TINY,
        )
    torch.manual_seed(0)
    return load_model(tf.AutoModelForCausalLM.from_config(config).eval(), tokenizer=tokenizer)


def cut_as_on_a_gpu(name: str) -> None:
    """Let batches be sized by the real model's widths, in bf16, on a GPU of 80 GiB."""
    shape = SHAPES[name]
    columns, d_model = shape["heads"] * shape["d_head"], shape["d_model"]
    forward = 2 * (6 * d_model + 4 * shape["d_mlp"] + 3 * columns) + 4 * columns
    graph = 2 * shape["layers"] * (8 * d_model + 4 * max(shape["d_mlp"], 4 * d_model) + 8 * columns)
    stand_ins: dict[str, Callable[[Any], int] | int] = {
        "bytes_per_token": lambda _model: forward,
        "node_bytes_per_token": lambda _model: graph,
        "batch_bytes": lambda _device: 4 << 30,
        "graph_bytes": lambda _device: 8 << 30,
        "DEFAULT_BATCH_BYTES": 1 << 30,  # what a GPU got before budgets followed it
    }
    for module_name, module in list(sys.modules.items()):
        for attribute, value in stand_ins.items():
            if module_name.startswith("headcodes.") and hasattr(module, attribute):
                setattr(module, attribute, value)


def least_ms(work: Callable[[], Any], runs: int) -> float:
    """Return the least CPU milliseconds of several runs, after one that does not count."""
    work()
    seconds = []
    for _ in range(runs):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return 1e3 * min(seconds)


def measure(model: Any, pairs: Any, runs: int) -> dict[str, float]:
    """Return what each part of a discovery costs the host, and how many batches there are of it."""
    from headcodes.activations import capture, packing
    from headcodes.methods import attribution
    from headcodes.overlap.mentions import mention_scores
    from headcodes.prompts.task_check import logit_differences
    from headcodes.prompts.tokens import tokenize

    tokens = tokenize(pairs, model.tokenizer, "auto")
    prompts, n_heads = tokens.clean + tokens.corrupt, model.n_components
    budget = capture.batch_bytes(model.device) if hasattr(capture, "batch_bytes") else packing.DEFAULT_BATCH_BYTES

    def cut() -> list[Any]:
        # A logit a token of the vocabulary and prompt: the real models have about 128,000 tokens at most.
        rows: list[Any] = packing.pack(prompts, sys.maxsize)
        units = [[row] for row in rows] if hasattr(packing, "pack_pairs") else rows  # before rows ran in units
        return list(packing.cut(units, capture.bytes_per_token(model), 1 << 19, budget))

    def packed() -> None:
        for batch in cut():
            packing.position_weights(batch, "mean")
            packing.padded(batch, torch.bfloat16)

    found = [torch.randn(len(ids)) for ids in tokens.scored_ids]
    counts = np.random.default_rng(0).integers(0, 20, (n_heads, n_heads)).astype(np.int32)
    one = tokens.subset([0])
    parts = {
        "tokenise": least_ms(lambda: tokenize(pairs, model.tokenizer, "auto"), runs),
        "pack": least_ms(packed, runs),
        "logit differences": 2 * least_ms(lambda: logit_differences(tokens, found), runs),
        "mentions": least_ms(lambda: mention_scores(counts), runs),
        # One pair stands for any number: at these widths asking is nearly all there is.
        "capture, a batch": least_ms(
            lambda: capture.capture(model, one.clean + one.corrupt, answer_ids=one.scored_ids * 2), runs
        ),
        "capture, batches": len(cut()),
        "attribution, a batch": least_ms(lambda: attribution.products(model, one), runs),
        "attribution, batches": counted(attribution, "run", lambda: attribution.products(model, tokens))
        / (1 if hasattr(attribution, "with_gradients") else 2),  # where the clean run is another function's
        "contrast, a batch": least_ms(lambda: contrast_pass(model, one), runs),
        "contrast, batches": contrast_batches(model, tokens),
    }
    shared = sum(parts[name] for name in ("tokenise", "pack", "logit differences", "mentions"))
    shared += parts["capture, a batch"] * parts["capture, batches"]
    for method in ("attribution", "contrast"):
        parts[f"{method} in all"] = shared + parts[f"{method}, a batch"] * parts[f"{method}, batches"]
    if parts["contrast, batches"] == 0:  # the capture's first batch does it on its way
        parts["contrast in all"] += parts["contrast, a batch"] - parts["capture, a batch"]
    return parts


def counted(module: Any, name: str, work: Callable[[], Any]) -> int:
    """Return how often ``work`` calls ``module.name``."""
    with mock.patch.object(module, name, wraps=getattr(module, name)) as calls:
        work()
    return calls.call_count


def contrast_pass(model: Any, tokens: Any) -> Any:
    """Measure what the method measures, by a pass of its own."""
    from headcodes.methods import contrast
    from headcodes.methods.inputs import Inputs

    if hasattr(contrast, "N_MEASURED"):  # before the capture measured it on its way
        return contrast.changes(model, tokens.subset(range(min(contrast.N_MEASURED, len(tokens)))))
    return Inputs(model, tokens).changes()


def contrast_batches(model: Any, tokens: Any) -> float:
    """Return how many batches the method runs beside the capture's."""
    from headcodes.methods import contrast

    if hasattr(contrast, "run"):  # before both sides shared a pass
        return counted(contrast, "run", lambda: contrast_pass(model, tokens)) / 2
    if hasattr(contrast, "N_MEASURED"):
        return counted(model, "trace", lambda: contrast_pass(model, tokens))
    return 0


def main() -> None:
    """Print one JSON object a shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    from headcodes import tasks
    from headcodes.methods import attribution, contrast  # noqa: F401 - imported before they are patched

    for name in SHAPES:
        model = model_of(name)
        cut_as_on_a_gpu(name)
        pairs = tasks.get("ioi").build(model.tokenizer, n=250, seed=0)
        found = measure(model, pairs, args.runs)
        print(json.dumps({"shape": name} | {part: round(value, 1) for part, value in found.items()}), flush=True)


if __name__ == "__main__":
    main()
