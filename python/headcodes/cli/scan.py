"""`headcodes scan`: many models, tasks, methods and seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer


def scan(
    plan: Annotated[Path | None, typer.Argument(help="A plan file (docs/scan.md), instead of the lists below.")] = None,
    store: Annotated[Path, typer.Option(help="Folder of finished cells; a stopped scan goes on there.")] = Path("scan"),
    models: Annotated[str, typer.Option(help="Models, parted by commas; name@revision for a checkpoint.")] = "",
    tasks: Annotated[
        str | None, typer.Option(help="Tasks (task:negative too) or prompt files, parted by commas.  [default: ioi]")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Methods, parted by commas.  [default: default]")] = None,
    seeds: Annotated[str | None, typer.Option(help='Seeds of the methods: "0-9" or "0,3".  [default: 0]')] = None,
    level: Annotated[Literal["node", "edge"] | None, typer.Option(help="What methods score.  [default: node]")] = None,
    n_prompts: Annotated[int | None, typer.Option(min=1, help="Pairs to build from a task.  [default: 250]")] = None,
    prompt_seed: Annotated[int | None, typer.Option(min=0, help="Of the prompts, for all seeds.  [default: 0]")] = None,
    n_train: Annotated[int | None, typer.Option(min=1, help="Prompts to train on.  [default: 10]")] = None,
    positions: Annotated[Literal["mean", "last"] | None, typer.Option(help="Which positions count.")] = None,
    bos: Annotated[Literal["auto", "yes", "no"] | None, typer.Option(help="As for discover.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of one cell.  [default: 1]")] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Cells at once; by default one a GPU, or one.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster; else one is started here.")] = None,
    gpu_share: Annotated[float, typer.Option(help="Of a GPU that a worker takes.")] = 1.0,
    retry_failed: Annotated[bool, typer.Option(help="Do failed cells again.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the cells, and what they may take; do nothing.")] = False,
    json_lines: Annotated[bool, typer.Option(help="Print each finished cell as one line of JSON.")] = False,
) -> None:
    """Do many models, tasks, methods and seeds; a stopped scan goes on where it stopped."""
    from headcodes.scan import command

    settings = {
        "level": level,
        "n_prompts": n_prompts,
        "prompt_seed": prompt_seed,
        "n_train": n_train,
        "positions": positions,
        "bos": bos,
        "device": device,
        "dtype": dtype,
        "threads": threads,
    }
    lists = {"models": models or None, "tasks": tasks, "methods": methods, "seeds": seeds}
    chosen = command.read_plan(plan, lists, {name: value for name, value in settings.items() if value is not None})
    if dry_run:
        command.dry_run(chosen, store, engine=engine, retry_failed=retry_failed, as_json=json_lines)
        return
    sys.exit(
        command.do(
            chosen,
            store,
            engine=engine,
            workers=workers,
            address=address,
            gpu_share=gpu_share,
            retry_failed=retry_failed,
            json_lines=json_lines,
        )
    )
