"""`headcodes scan`: many models, tasks, methods and seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from headcodes.cli import options
from headcodes.cli.prompts import reads_prompts
from headcodes.settings import MOST_SEED, MOST_THREADS, Settings


@reads_prompts(after="n_train")
def scan(
    context: typer.Context,
    plan: Annotated[Path | None, typer.Argument(help="A plan file (docs/scan.md), instead of the lists below.")] = None,
    store: Annotated[Path, typer.Option(help="Folder of finished cells; a stopped scan goes on there.")] = Path("scan"),
    models: Annotated[str, typer.Option(help="Models, parted by commas; name@revision for a checkpoint.")] = "",
    tasks: Annotated[
        str, typer.Option(help="Tasks (task:negative too), prompt files or hf:NAME[:SPLIT], parted by commas.")
    ] = "ioi",
    methods: Annotated[str, typer.Option(help="Methods, parted by commas.")] = "default",
    seeds: Annotated[str, typer.Option(help='Seeds of the methods: "0-9" or "0,3".')] = "0",
    level: options.Level = "node",
    n_prompts: options.NPrompts = Settings.n_prompts,
    prompt_seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the prompts, for all seeds.")] = 0,
    n_train: options.NTrain = Settings.n_train,
    stable: options.Stable = None,
    verify: Annotated[
        str,
        typer.Option(help="Patch a cell's best heads exactly: auto (until no more are confirmed), a number, or off."),
    ] = "off",
    positions: options.Positions = "mean",
    bos: options.Bos = "auto",
    device: options.Device = Settings.device,
    dtype: options.Dtype = Settings.dtype,
    revision: Annotated[str | None, typer.Option(help="Of the models that name none.")] = None,
    projection: options.Projection = None,
    threads: Annotated[int, typer.Option(min=1, max=MOST_THREADS, help="CPU threads of one cell.")] = Settings.threads,
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
    from headcodes.scan.plan import PLAN_SETTINGS

    sources = {name: context.get_parameter_source(name) for name in (*command.LISTS, "revision", *PLAN_SETTINGS)}
    given = {name: context.params[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"}
    chosen = command.read_plan(plan, given)
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
