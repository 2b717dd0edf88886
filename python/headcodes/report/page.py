"""The page: one HTML file that needs no server and no network, for one run or for many.

The page is made of three files in ``assets/`` and plotly's own script. Text from outside (prompts, tokens, names)
reaches it in two ways only: through jinja with autoescape, and as JSON in script elements that no browser runs
(``embed``). A content security policy allows the two scripts by their hashes and nothing else, no network included.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from headcodes.files import atomic_write
from headcodes.report import figures
from headcodes.report.compared import checkpoint_groups, task_groups
from headcodes.report.folders import read_runs
from headcodes.report.html import asset, csp_hash, embed, encodable, environment, plotly_script
from headcodes.report.records import RunRecord
from headcodes.report.summary import overview_matrix, overview_row, page_title, run_facts, run_summary, seed_groups

# Of the runs' own views, and of their prompts, codes and attention patterns: beyond this many bytes runs go without,
# with a note. From the hundredth on a run's line in the overview takes about ROW_BYTES from both.
RUN_BYTES = 8_000_000
DETAIL_BYTES = 8_000_000
ROW_BYTES = 1_750
MOST_ROWS = 5_000
# The page's script is these files of ``assets/page`` one after another: one function, so that they share its names.
PROGRAM = ("base", "charts", "run", "views")
# Longer prompts are cut: a page is read by people, and prompts.json has the whole.
PROMPT_CHARACTERS = 600


def write_page(record: RunRecord, path: Path | str) -> None:
    """Write the page of one run: heat map, circuit, codes, attention where given, timings, provenance.

    Raises:
        OSError: the file cannot be written; nothing half-written is left behind.
    """
    _write([record], path)


def write_report(sources: Iterable[RunRecord | Path | str], path: Path | str) -> int:
    """Write one page about many runs, and return how many: overview, every run, any two side by side.

    Args:
        sources: what ``read_runs`` takes: folders written by ``Result.save``, folders of them, scan stores, records.

    Raises:
        HeadcodesError: a source is no run.
        OSError: the file cannot be written; nothing half-written is left behind.
    """
    runs = read_runs(sources)
    _write(runs, path)
    return len(runs)


def _write(runs: Sequence[RunRecord], path: Path | str) -> None:
    html = render(runs)
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def render(runs: Sequence[RunRecord]) -> str:
    """Return the page as text."""
    from markupsafe import Markup

    plotly, program = plotly_script(), "".join(asset(f"page/{part}.js") for part in PROGRAM)
    blocks = _blocks(runs)
    rows = [overview_row(i, run) | {"whole": f"run-{i}" in blocks} for i, run in enumerate(runs[:MOST_ROWS])]
    html: str = (
        environment()
        .get_template("page.html.jinja")
        .render(
            n_runs=len(runs),
            n_without=sum(not row["whole"] for row in rows),
            rows=rows,
            matrix=overview_matrix(runs),
            blocks=[(name, Markup(block)) for name, block in blocks.items()],  # noqa: S704 (embed escapes)
            style=Markup(asset("page.css")),  # noqa: S704 (our own file)
            plotly=Markup(plotly),  # noqa: S704 (plotly's own file)
            program=Markup(program),  # noqa: S704 (our own file)
            hashes=[csp_hash(plotly), csp_hash(program)],
            title=page_title(runs),
        )
    )
    return encodable(html)


def render_summary(record: RunRecord) -> str:
    """Return a run as a small piece of HTML without scripts, for notebooks: its best heads and where it is from."""
    html: str = (
        environment()
        .get_template("summary.html.jinja")
        .render(
            facts=dict(run_facts(record)),
            nodes=[(name, record.circuit.node_scores[name]) for name in record.circuit.nodes],
            edges=[(*edge, record.circuit.edge_scores[edge]) for edge in record.circuit.edges],
        )
    )
    return encodable(html)


def _blocks(runs: Sequence[RunRecord]) -> dict[str, str]:
    """Return the page's JSON blocks by the id of their script element: of all runs, or of those that there is room for.

    Room goes to the first of the runs that differ in their seed only, then to the second of each, and so on.
    """
    blocks: dict[str, str] = {}
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, run in enumerate(runs[:MOST_ROWS]):
        groups.setdefault(run.group, []).append(index)
    of_seeds = {group["runs"][0]: group for group in seed_groups(runs)}
    seeds = []
    lines = ROW_BYTES * max(0, len(runs) - 100)
    room, left = (max(most // 8, most - lines) for most in (RUN_BYTES, DETAIL_BYTES))
    for index in (index for turn in zip_longest(*groups.values()) for index in turn if index is not None):
        run = runs[index]
        summary = run_summary(run)
        room -= len(embed(summary)) + (len(embed(of_seeds[index])) if index in of_seeds else 0)
        if room < 0 and blocks:
            break
        if index in of_seeds:
            seeds.append(of_seeds[index])
        detail = _detail(run) if run.error is None else None
        prompts = embed(_prompts(run))
        if detail is not None:
            name = "prompts-" + hashlib.sha256(prompts.encode()).hexdigest()[:16]
            if run.pairs is not None:
                detail["prompts"] = name
            text = embed(detail)
            cost = len(text) + (0 if name in blocks or run.pairs is None else len(prompts))
            if cost <= left:
                left -= cost
                if run.pairs is not None:
                    blocks[name] = prompts
                summary["detail"] = f"detail-{index}"
                blocks[f"detail-{index}"] = text
            else:
                summary["left_out"] = True
        blocks[f"run-{index}"] = embed(summary)
    scales = {
        "sequential": figures.colorscale(figures.SEQUENTIAL),
        "signs": [figures.DIVERGING[2], figures.DIVERGING[8]],
    }
    compared = {"checkpoints": embed(checkpoint_groups(runs)), "tasks": embed(task_groups(runs))}
    return {"seeds": embed(seeds), "scales": embed(scales)} | compared | blocks


def _detail(run: RunRecord) -> dict[str, Any] | None:
    """Return codes and attention of the chosen heads; None where neither is known."""
    codes = run.arrays.get("codes")
    detail: dict[str, Any] = {}
    if codes is not None:
        small = np.int16 if codes.max(initial=0) < 2**15 else np.int32
        n_heads = run.circuit.n_heads
        detail["n_prompt"] = len(codes)
        detail["codes"] = {
            f"a{layer}.h{head}": codes[:, layer * n_heads + head].astype(small) for layer, head in run.circuit.heads
        }
        if (scored := run.arrays.get("scored_prompts")) is not None:
            detail["scored_prompts"] = scored.astype(np.uint8)
    if run.attention:
        detail["attention"] = [
            {
                "side": example.side,
                "index": example.index,
                "tokens": example.tokens,
                "patterns": {
                    f"a{layer}.h{head}": np.rint(pattern[np.tril_indices(len(pattern))] * 255).astype(np.uint8)
                    for (layer, head), pattern in zip(example.heads, example.patterns, strict=True)
                },
            }
            for example in run.attention
        ]
    return detail or None


def _prompts(run: RunRecord) -> dict[str, list[str]] | None:
    if run.pairs is None:
        return None
    return {
        "clean": [_cut(pair.clean) for pair in run.pairs.pairs],
        "corrupt": [_cut(pair.corrupt) for pair in run.pairs.pairs],
    }


def _cut(text: str) -> str:
    return text if len(text) <= PROMPT_CHARACTERS else f"{text[:PROMPT_CHARACTERS]}… ({len(text):,} characters in all)"
