"""`headcodes bench`: compare methods."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from headcodes.settings import MOST_PROMPTS


def bench(
    suite: Annotated[
        Literal["quality", "paper", "speed"], typer.Option(help="quality: methods x tasks x seeds on one model.")
    ] = "quality",
    model: Annotated[str, typer.Option(help="As for discover; planted-ioi has a known circuit.")] = "smollm2-135m",
    methods: Annotated[str, typer.Option(help="Methods, parted by commas; all of them by default.")] = "",
    tasks: Annotated[str, typer.Option(help="Tasks, parted by commas.")] = "ioi",
    seeds: Annotated[int, typer.Option(min=1, max=100_000, help="Seeds 0 .. N-1, of prompts and methods.")] = 5,
    level: Annotated[Literal["node", "edge"], typer.Option(help="What methods score.")] = "node",
    n_pairs: Annotated[int, typer.Option(min=2, max=MOST_PROMPTS, help="Prompt pairs a cell.")] = 50,
    truth_pairs: Annotated[int, typer.Option(min=1, help="Pairs that the causal truth is made from.")] = 32,
    top: Annotated[int, typer.Option(min=1, help="Heads of largest effect that the causal truth holds.")] = 20,
    budget: Annotated[float | None, typer.Option(min=0.001, help="Seconds a cell may take.")] = None,
    faithfulness: Annotated[bool, typer.Option(help="CPR, CMD and faithfulness curves too.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 (the causal truth wants it), bfloat16, ...")] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of cells and results; a stopped suite goes on there.")] = Path(
        "bench"
    ),
) -> None:
    """Compare methods: a table, CSV, JSON and a page."""
    from headcodes.comparison import suite as suites
    from headcodes.comparison.paper import paper_table, run_paper
    from headcodes.comparison.rows import Row, table
    from headcodes.models.devices import torch_threads
    from headcodes.models.load import load_model

    if suite == "speed":
        sys.exit(suites.run_speed())

    def report(row: Row) -> None:
        said = f"AUC {row.auc:.3f}, {row.seconds:.2f} s" if row.auc is not None else f"{row.status}: {row.note}"
        print(f"headcodes: {row.task} {row.method} seed {row.seed}: {said}", file=sys.stderr)

    with torch_threads(threads):
        if suite == "paper":
            rows, missing = run_paper(
                load=lambda name: load_model(name, device=device, dtype=dtype),
                out=out,
                seeds=range(seeds),
                budget_s=budget,
                report=report,
            )
            if rows:
                print(paper_table(rows))
            if missing:
                print("missing:", *missing, sep="\n  ", file=sys.stderr)
                sys.exit(3)
            return
        rows = suites.run_quality(
            load_model(model, device=device, dtype=dtype),
            out=out,
            method_ids=_listed(methods) or suites.all_methods(),
            task_ids=_listed(tasks),
            seeds=range(seeds),
            level=level,
            n_pairs=n_pairs,
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
