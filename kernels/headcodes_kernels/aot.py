"""Compile every kernel to machine code without a GPU, and read off what the code costs.

``python -m headcodes_kernels.aot`` prints one line per kernel, d_head, configuration and GPU generation. It
must run without Triton's interpreter.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from headcodes_kernels import _configs
from headcodes_kernels._encode_argmax import encode_argmax_kernel, encode_argmax_unfolded_kernel

KERNELS = {"folded": encode_argmax_kernel, "unfolded": encode_argmax_unfolded_kernel}
CAPABILITIES = (80, 90)


@dataclass(frozen=True)
class Compiled:
    """What one kernel became.

    Attributes:
        registers: a thread's.
        stack_bytes: a thread's local memory; registers that did not fit are spilled there.
        local_accesses: instructions that read or write that memory.
        shared_bytes: a block's shared memory.
        instructions: opcode -> how often it stands in the code.
    """

    kernel: str
    d_head: int
    capability: int
    blocks: dict[str, int]
    num_warps: int
    num_stages: int
    registers: int
    stack_bytes: int
    local_accesses: int
    shared_bytes: int
    instructions: dict[str, int] = field(repr=False)


def compile_kernel(kernel: str, d_head: int, config: triton.Config, capability: int) -> Compiled:
    """Compile one kernel for one GPU generation (80: A100, 90: H100 and H200), as a launch with such arguments would.

    Raises:
        RuntimeError: the kernels were built for the interpreter.
    """
    if _configs.INTERPRETED:
        raise RuntimeError("ahead-of-time compilation needs TRITON_INTERPRET unset before the kernels are imported")
    function = KERNELS[kernel]
    constants: dict[str, Any] = {**config.kwargs, "N_CLASS": 512}
    signature: dict[str, str] = {}
    # What the launcher finds out at run time: aligned pointers, and widths and strides divisible by 16; not latents.
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for i, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*i32" if name == "codes_ptr" else "*fp32"
            attributes[i,] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if name.startswith("stride_") or name in ("d_head", "d_model"):
                attributes[i,] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    usage, code = _disassemble(compiled.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    opcodes = Counter(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", code, re.MULTILINE))
    return Compiled(
        kernel,
        d_head,
        capability,
        dict(config.kwargs),
        config.num_warps,
        config.num_stages,
        registers=int(found[1]),
        stack_bytes=int(found[2]),
        local_accesses=opcodes["LDL"] + opcodes["STL"],
        shared_bytes=compiled.metadata.shared,
        instructions=dict(opcodes),
    )


def compile_all(
    d_heads: Sequence[int] = (64, 128), capabilities: Sequence[int] = CAPABILITIES, first_only: bool = False
) -> Iterator[Compiled]:
    """Compile every kernel; ``first_only`` takes one configuration of each, not all."""
    for kernel in KERNELS:
        for d_head in d_heads:
            for capability in capabilities:
                configs = _configs.configs(kernel)
                for config in configs[2:3] if first_only else configs:
                    yield compile_kernel(kernel, d_head, config, capability)


def _disassemble(cubin: bytes) -> tuple[str, str]:
    """Return what cuobjdump, which Triton brings along, says of resources, and the assembly."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()

        def ask(option: str) -> str:
            return subprocess.run([tool, option, file.name], check=True, capture_output=True, text=True).stdout

        return ask("--dump-resource-usage"), ask("--dump-sass")


def main(argv: Sequence[str] | None = None) -> None:
    """Print one JSON object per compiled kernel, or a readable line."""
    parser = argparse.ArgumentParser(prog="python -m headcodes_kernels.aot", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--first-only", action="store_true", help="one configuration of each, not all")
    parser.add_argument("--d-head", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--capability", type=int, nargs="+", default=list(CAPABILITIES))
    args = parser.parse_args(argv)
    for c in compile_all(args.d_head, args.capability, args.first_only):
        if args.json:
            print(json.dumps(asdict(c)), flush=True)
            continue
        blocks = " ".join(f"{name[6:]}={size}" for name, size in c.blocks.items())
        print(
            f"{c.kernel:8} d_head {c.d_head:3} sm_{c.capability} {blocks:24} warps {c.num_warps} "
            f"stages {c.num_stages}: registers {c.registers:3}, stack {c.stack_bytes:4} B, "
            f"shared {c.shared_bytes / 1024:5.1f} KiB, {c.instructions['FFMA']} FFMA",
            flush=True,
        )


if __name__ == "__main__":
    main()
