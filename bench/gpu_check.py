"""Look at a GPU for the first time: ``make gpu-check``, or ``python bench/gpu_check.py [FILE]``.

Versions and capability; whether the kernels compile and agree with torch; whether a captured training step trains; a
discovery on a planted model, whose circuit is known, and on GPT-2 XL with random weights, with seconds beside what was
estimated. One JSON object, which says of each step whether it went well, to attach to an issue; status 1 where one did
not. Without a GPU it says so in one line, and leaves with status 2.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Seconds, warm, of a discovery on 250 pairs: counted from passes and launches, not measured (docs/performance.md).
ESTIMATED_S = {"gpt2-xl": 1.6}
# Prompts of the folded and of the unfolded kernel; heads, d_head, d_model, latents. Tests take less.
KERNEL_PROMPTS = {"folded": 500, "unfolded": 10}
KERNEL_SHAPE = (144, 64, 768, 200)
GPT2_XL = {"n_embd": 1600, "n_layer": 48, "n_head": 25}
N_PAIRS = 250


def about() -> dict[str, Any]:
    """Return versions, and what the GPUs are."""
    import torch

    from headcodes.provenance import versions

    def gpu(number: int) -> dict[str, Any]:
        found = torch.cuda.get_device_properties(number)
        return {
            "name": found.name,
            "capability": f"{found.major}.{found.minor}",
            "memory_bytes": found.total_memory,
            "shared_bytes": getattr(found, "shared_memory_per_block_optin", None),
        }

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "cuda": torch.version.cuda,
        "gpus": [gpu(number) for number in range(torch.cuda.device_count())],
    }


def kernels(device: str) -> dict[str, Any]:
    """Compile and run both kernels; return the shares of codes that differ from torch's."""
    import torch

    from headcodes.activations.capture import HeadActivations
    from headcodes.codes.encode import encode
    from headcodes.codes.sae import SparseAutoencoder

    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(device)

    found: dict[str, Any] = {}
    n_heads, d_head, d_model, d_sae = KERNEL_SHAPE
    W_enc, W_dec = draw(d_model, d_sae) / d_model**0.5, draw(d_sae, d_model)
    sae = SparseAutoencoder(W_enc, draw(d_sae) / 10, W_dec, torch.zeros(d_model, device=device))
    for kernel, n in KERNEL_PROMPTS.items():
        W_O = draw(n_heads, d_head, d_model) / d_head**0.5
        heads = HeadActivations(draw(n, n_heads, d_head), W_O, 1, n_heads, "mean")
        truth = encode(heads, sae, backend="torch")
        start = time.perf_counter()
        codes = encode(heads, sae, backend="triton")
        torch.cuda.synchronize()
        first_s = time.perf_counter() - start
        flips = float((codes != truth).float().mean())
        found[kernel] = {"flips": flips, "first_call_s": first_s}
        assert flips <= 0.001, f"the {kernel} kernel flips {flips:.1%} of codes"
    return found


def training(device: str) -> dict[str, Any]:
    """Train on the last GPU and on the CPU; return the last losses, which must agree."""
    import torch

    from headcodes.codes.sae import TrainConfig
    from headcodes.codes.train import train

    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    config = TrainConfig(d_sae=32, n_epochs=50)
    last = f"{device}:{torch.get_device_module(device).device_count() - 1}"
    losses = [
        float(train(x.to(where), config, generator=torch.Generator().manual_seed(0)).losses[-1])
        for where in ("cpu", last)
    ]
    assert abs(losses[1] / losses[0] - 1) < 1e-3, f"losses {losses} on the CPU and on {last}"
    return {"device": last, "losses": losses}


def planted(device: str) -> dict[str, Any]:
    """Discover a planted circuit on the CPU and on the GPU; the scores must agree."""
    import numpy as np

    from headcodes.discovery import discover
    from headcodes.models.planted import load

    found = []
    for where in ("cpu", device):
        plant = load("planted-ioi", device=where)
        pairs = plant.task.build(plant.model.tokenizer, n=32, seed=0)
        found.append(discover(plant.model, pairs).head_scores.ravel())
    correlation = float(np.corrcoef(found)[0, 1])
    assert correlation > 0.99, f"scores on CPU and GPU correlate by {correlation:.3f}"
    return {"correlation": correlation}


def gpt2_xl(device: str) -> dict[str, Any]:
    """Discover on GPT-2 XL's shape with random weights in bf16, twice; the second run is warm."""
    import torch
    import transformers as tf

    from headcodes import tasks
    from headcodes.discovery import discover
    from headcodes.models.load import load_model
    from headcodes.models.planted import load

    tokenizer = load("planted-ioi").model.tokenizer
    config = tf.GPT2Config(vocab_size=50257, **GPT2_XL)
    with torch.device(device):
        module = tf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    model = load_model(module, tokenizer=tokenizer)
    pairs = tasks.get("ioi").build(tokenizer, n=N_PAIRS, seed=0)
    runs = []
    for _ in range(2):
        torch.cuda.synchronize()
        runs.append(discover(model, pairs, level="edge").timings_s)
    return {"first_s": runs[0], "warm_s": runs[1], "estimated_s": ESTIMATED_S["gpt2-xl"]}


STEPS: dict[str, Callable[[str], dict[str, Any]]] = {
    "kernels": kernels,
    "training": training,
    "planted": planted,
    "gpt2-xl": gpt2_xl,
}


def main(argv: list[str]) -> int:
    """Run every step, also after one that fails; return the exit status."""
    import torch

    warnings.simplefilter("ignore")
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA device (torch.cuda.is_available() is false): nothing was run", file=sys.stderr)
        return 2
    report: dict[str, Any] = {"about": about(), "steps": {}}
    for name, step in STEPS.items():
        print(f"gpu-check: {name}", file=sys.stderr, flush=True)
        try:
            report["steps"][name] = {"well": True} | step("cuda")
        except Exception as error:
            said = "".join(traceback.format_exception(error)[-4:])
            report["steps"][name] = {"well": False, "error": f"{type(error).__name__}: {error}", "where": said}
    text = json.dumps(report, indent=2, default=str)
    if argv:
        Path(argv[0]).parent.mkdir(parents=True, exist_ok=True)
        Path(argv[0]).write_text(text + "\n")
    print(text)
    return 0 if all(step["well"] for step in report["steps"].values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
