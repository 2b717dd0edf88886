"""Encode + argmax on a CUDA GPU, against what the device can do: writes bench/results/gpu_encode.csv.

    python bench/gpu_encode.py              every row (minutes)
    python bench/gpu_encode.py --only gpt2  rows whose name holds "gpt2"

A row: the folded kernel with weights at hand, the unfolded kernel, or the whole ``headcodes.encode`` with folding; one
shape; median, 20th and 80th percentile of the time with a cold L2. Bytes and FLOPs are counted from the shapes (each
operand once), and held against a copy and a square fp32 matmul measured in the same run. The binding ceiling is the one
that would take longer; the share of it is that time over ours. Speed-ups are over eager torch and over torch.compile of
``relu(baddbmm(bias, z, weight)).argmax(-1)`` in fp32. A row whose codes are not within tolerance of an fp64 reference
is not reported: the program stops with status 1.

Where ``ncu`` is installed and allowed, counters of the main kernel go to bench/results/gpu_encode_ncu.csv.

Without a CUDA device there is nothing to measure: status 3, and rows stay empty.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from headcodes.files import atomic_write

RESULTS = Path(__file__).parent / "results"
LEDGER = RESULTS / "gpu_encode.csv"
COUNTERS = RESULTS / "gpu_encode_ncu.csv"
COLUMNS = [
    *("what", "name", "n_prompt", "n_component", "d_head", "d_model", "d_sae", "n_sae"),
    *("us", "us_p20", "us_p80", "gb_per_s", "tflop_per_s", "copy_gb_per_s", "matmul_tflop_per_s"),
    *("share_of_copy", "share_of_matmul", "share_of_binding", "eager_us", "compile_us"),
    *("speedup_over_eager", "speedup_over_compile", "worst_loss", "config", "note"),
    *("device", "torch", "triton", "date"),
]
# Largest distance of a chosen latent from the best one, over the standard deviation of latents.
TOLERANCE = 1e-4
NCU_METRICS = (
    "gpu__time_duration.sum,dram__bytes.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,"
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active,sm__warps_active.avg.pct_of_peak_sustained_active,"
    "lts__t_bytes.sum,launch__registers_per_thread,smsp__inst_executed_op_local_ld.sum"
)


@dataclass(frozen=True)
class Shape:
    name: str
    n_prompt: int
    n_component: int
    d_head: int
    d_model: int
    d_sae: int
    n_sae: int = 1


SHAPES = [
    Shape("gpt2", 500, 144, 64, 768, 200),
    Shape("gpt2-xl", 500, 1200, 64, 1600, 200),
    Shape("gpt2-xl", 500, 1200, 64, 1600, 200, n_sae=10),
    Shape("llama-3-8b", 500, 1024, 128, 4096, 200),
    Shape("llama-3-8b", 500, 1024, 128, 4096, 4096),
]
FEW = [Shape("gpt2-xl", 10, 1200, 64, 1600, 200), Shape("llama-3-8b", 10, 1024, 128, 4096, 200)]


def rows() -> Iterator[tuple[str, Shape]]:
    for shape in SHAPES:
        yield "folded kernel", shape
    for shape in FEW:
        yield "unfolded kernel", shape
    for shape in SHAPES + FEW:
        yield "encode", shape


def missing() -> str | None:
    if not torch.cuda.is_available():
        return "no CUDA device (torch.cuda.is_available() is false)"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None


def timed(call: Callable[[], Any]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile in microseconds; L2 is flushed before every call."""
    import triton.testing

    median, low, high = triton.testing.do_bench(call, warmup=50, rep=300, quantiles=[0.5, 0.2, 0.8])
    return 1e3 * median, 1e3 * low, 1e3 * high


class Ceilings:
    """What this device does at best, measured: a copy of 2 GiB, and a matmul of 8192 cubed in fp32."""

    def __init__(self) -> None:
        source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        self.copy_gb_per_s = 2 * source.numel() / timed(lambda: target.copy_(source))[0] / 1e3
        a, b = (torch.randn(8192, 8192, device="cuda") for _ in range(2))
        self.matmul_tflop_per_s = 2 * 8192**3 / timed(lambda: a @ b)[0] / 1e6


def inputs(shape: Shape) -> SimpleNamespace:
    g = torch.Generator(device="cuda").manual_seed(0)

    def randn(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=g, device="cuda")

    return SimpleNamespace(
        z=randn(shape.n_prompt, shape.n_component, shape.d_head),
        W_O=randn(shape.n_component, shape.d_head, shape.d_model) / shape.d_head**0.5,
        W_enc=randn(shape.n_sae, shape.d_model, shape.d_sae) / shape.d_model**0.5,
        bias=randn(shape.n_sae, shape.n_component, shape.d_sae) * 0.1,
    )


def in_rows(x: torch.Tensor) -> torch.Tensor:
    """As encode does before it folds: rows 16 latents apart, of which the kernel gets those that are there."""
    n = x.shape[-1]
    return torch.nn.functional.pad(x, (0, -n % 16))[..., :n]


def worst_loss(x: SimpleNamespace, codes: torch.Tensor, bias: torch.Tensor) -> float:
    """Distance of chosen latents from the best ones, over latents' deviation, for the last four heads, in fp64."""
    heads = slice(-4, None)
    out = torch.einsum("ncd,cdm->ncm", x.z[:, heads].double(), x.W_O[heads].double())
    latents = torch.einsum("ncm,ams->ancs", out, x.W_enc.double()) + bias[:, None, heads].double()
    chosen = codes[:, :, heads]
    reached = latents.gather(-1, chosen.clamp(min=0).long()[..., None])[..., 0].clamp(min=0) * (chosen >= 0)
    return float(((latents.amax(-1).clamp(min=0) - reached).max() / latents.std()).item())


def measure(what: str, shape: Shape, ceilings: Ceilings) -> dict[str, Any]:
    import triton

    from headcodes import encode
    from headcodes_kernels import encode_argmax as host

    x = inputs(shape)
    n_out = shape.n_sae * shape.n_prompt * shape.n_component
    config = ""
    bias, folded = x.bias, None
    if what == "folded kernel":
        folded = torch.einsum("cdm,ams->acds", x.W_O, x.W_enc)
        rows_apart, bias_apart = in_rows(folded), in_rows(bias)

        def call() -> torch.Tensor:
            return host.encode_argmax(x.z, rows_apart, bias_apart)

        n_bytes = 4 * (x.z.numel() + folded.numel() + x.bias.numel() + n_out)
        flops = 2 * n_out * shape.d_head * shape.d_sae
    else:
        saes = [
            SimpleNamespace(W_enc=W, b_enc=b[0], b_dec=torch.zeros(shape.d_model, device="cuda"))
            for W, b in zip(x.W_enc, x.bias, strict=True)
        ]
        if what == "encode":
            bias = x.bias[:, :1].expand_as(x.bias)

            def call() -> torch.Tensor:
                return encode(x, saes, backend="triton")

        else:

            def call() -> torch.Tensor:
                return host.encode_argmax_unfolded(x.z, x.W_O, x.W_enc, x.bias)

        n_bytes = 4 * (x.z.numel() + x.W_O.numel() + x.W_enc.numel() + x.bias.numel() + n_out)
        unfolded = n_out * shape.d_model * (shape.d_head + shape.d_sae)
        per_fold = shape.n_sae * shape.n_component * shape.d_head * shape.d_sae
        flops = 2 * (unfolded if what != "encode" else min(unfolded, per_fold * (shape.d_model + shape.n_prompt)))

    loss = worst_loss(x, call(), bias)
    if loss > TOLERANCE:
        raise SystemExit(f"{what} {shape}: a code is {loss:.2g} deviations below the best. Nothing reported.")
    us, low, high = timed(call)
    row: dict[str, Any] = {"us": us, "us_p20": low, "us_p80": high, "worst_loss": loss, "note": ""}
    row |= {"gb_per_s": n_bytes / us / 1e3, "tflop_per_s": flops / us / 1e6}
    row |= {"copy_gb_per_s": ceilings.copy_gb_per_s, "matmul_tflop_per_s": ceilings.matmul_tflop_per_s}
    row["share_of_copy"] = row["gb_per_s"] / row["copy_gb_per_s"]
    row["share_of_matmul"] = row["tflop_per_s"] / row["matmul_tflop_per_s"]
    row["share_of_binding"] = max(row["share_of_copy"], row["share_of_matmul"])

    if what != "encode":
        config = str(host._tuned[what.split()[0]].best_config)
        z = x.z.transpose(0, 1)

        def expression(z: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.baddbmm(b[:, None], z, W)).argmax(-1)

        def two_products(z: torch.Tensor, W_enc: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.relu(torch.bmm(z, x.W_O) @ W_enc + b[:, None]).argmax(-1)

        plain, second = (two_products, x.W_enc) if folded is None else (expression, folded)
        try:
            for column, function in (("eager_us", plain), ("compile_us", torch.compile(plain))):
                row[column] = timed(lambda f=function: [f(z, second[i], x.bias[i]) for i in range(shape.n_sae)])[0]
        except Exception as error:
            row["note"] = f"no comparison: {type(error).__name__}"
        for column in ("eager", "compile"):
            if row.get(f"{column}_us"):
                row[f"speedup_over_{column}"] = row[f"{column}_us"] / us
    versions = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__}
    return row | versions | {"config": config, "date": datetime.date.today().isoformat()}


def labels(what: str, shape: Shape) -> dict[str, Any]:
    return {"what": what, **vars(shape)}


def write(ledger: list[dict[str, Any]]) -> None:
    with atomic_write(LEDGER) as path, path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        for row in ledger:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def counters() -> None:
    """Hardware counters of the folded kernel at Llama-3-8B's shapes."""
    if (ncu := shutil.which("ncu")) is None:
        print("no hardware counters: ncu is not installed", file=sys.stderr)
        return
    command = [ncu, "--csv", "--metrics", NCU_METRICS, "--kernel-name", "encode_argmax_kernel", "--launch-skip", "20"]
    command += ["--launch-count", "1", sys.executable, __file__, "--launch-only"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    table = [line for line in done.stdout.splitlines() if line.startswith('"')]
    if done.returncode or len(table) < 2:
        why = (done.stdout + done.stderr).strip().splitlines()[-1:]
        print(f"no hardware counters: ncu left with status {done.returncode}: {''.join(why)}", file=sys.stderr)
        return
    with atomic_write(COUNTERS) as path:
        path.write_text("\n".join(table) + "\n")
    print("\n".join(table))


def launch_only() -> None:
    """What the profiler looks at: the tuned kernel, after tuning."""
    from headcodes_kernels.encode_argmax import encode_argmax

    shape = SHAPES[3]
    x = inputs(shape)
    weight, bias = in_rows(torch.einsum("cdm,ams->acds", x.W_O, x.W_enc)), in_rows(x.bias)
    for _ in range(30):
        encode_argmax(x.z, weight, bias)
    torch.cuda.synchronize()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="measure only rows whose name holds this")
    parser.add_argument("--launch-only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if why := missing():
        if not LEDGER.exists():
            write([labels(*row) | {"note": "unmeasured"} for row in rows()])
        print(f"gpu_encode: nothing measured: {why}", file=sys.stderr)
        return 3
    if args.launch_only:
        launch_only()
        return 0
    ceilings = Ceilings()
    ledger = []
    for row in rows():
        measured = args.only in row[1].name
        ledger.append(labels(*row) | (measure(*row, ceilings) if measured else {"note": "unmeasured"}))
        torch.cuda.empty_cache()
        if measured:
            print(*(f"{k} {v:.4g}" if isinstance(v, float) else v for k, v in ledger[-1].items()), flush=True)
        write(ledger)
    counters()
    return 0


if __name__ == "__main__":
    sys.exit(main())
