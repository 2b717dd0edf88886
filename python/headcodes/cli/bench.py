"""`headcodes bench`: compare methods."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from headcodes.cli import options
from headcodes.settings import MOST_PROMPTS, Settings


def bench(
    suite: Annotated[
        Literal["quality", "paper", "speed"], typer.Option(help="quality: methods x tasks x seeds on one model.")
    ] = "quality",
    model: Annotated[str, typer.Option(help="As for discover; planted-ioi has a known circuit.")] = Settings.model,
    revision: options.Revision = None,
    projection: options.Projection = None,
    methods: Annotated[str, typer.Option(help="Methods, parted by commas; all of them by default.")] = "",
    tasks: Annotated[str, typer.Option(help="Tasks, parted by commas.")] = "ioi",
    seeds: Annotated[int, typer.Option(min=1, max=100_000, help="Seeds 0 .. N-1, of prompts and methods.")] = 5,
    level: options.Level = "node",
    n_pairs: Annotated[int, typer.Option(min=2, max=MOST_PROMPTS, help="Prompt pairs a cell.")] = 50,
    truth_pairs: Annotated[int, typer.Option(min=1, help="Pairs that the causal truth is made from.")] = 32,
    top: options.TruthTop = None,
    budget: Annotated[float | None, typer.Option(min=0.001, help="Seconds a cell may take.")] = None,
    faithfulness: Annotated[bool, typer.Option(help="CPR, CMD and faithfulness curves too.")] = True,
    device: options.Device = Settings.device,
    dtype: options.ExactDtype = "float32",
    threads: options.Threads = None,
    out: Annotated[Path, typer.Option(help="A store of cells, and results; a stopped suite goes on there.")] = Path(
        "bench"
    ),
) -> None:
    """Compare methods: a table, CSV, JSON and a page."""
    import torch

    from headcodes.comparison import suite as suites
    from headcodes.comparison.paper import paper_table, run_paper
    from headcodes.comparison.rows import Row, table
    from headcodes.methods import METHODS
    from headcodes.models.devices import torch_threads

    if suite == "speed":
        sys.exit(suites.run_speed())

    def report(row: Row) -> None:
        outcome = f"AUC {row.auc:.3f}, {row.seconds:.2f} s" if row.auc is not None else f"{row.status}: {row.note}"
        print(f"headcodes: {row.task} {row.method} seed {row.seed}: {outcome}", file=sys.stderr)

    with torch_threads(threads):
        shared = {"n_prompts": n_pairs, "device": device, "dtype": dtype, "threads": torch.get_num_threads()}
        if suite == "paper":
            rows, missing = run_paper(
                out=out, seeds=range(seeds), shared=shared | {"n_prompts": 250}, budget_s=budget, report=report
            )
            if rows:
                print(paper_table(rows))
            if missing:
                print("missing:", *missing, sep="\n  ", file=sys.stderr)
                sys.exit(3)
            return
        rows = suites.run_quality(
            model,
            out=out,
            method_ids=_listed(methods) or list(METHODS),
            task_ids=_listed(tasks),
            seeds=range(seeds),
            shared=shared | {"level": level, "projection": projection},
            revision=revision,
            truth_pairs=truth_pairs,
            top=top,
            budget_s=budget,
            with_faithfulness=faithfulness,
            report=report,
        )
    print(table(rows))
    print(f"headcodes: wrote {out}/results.csv, results.json and page.html", file=sys.stderr)


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
