"""The page: one HTML file that needs no server and no network, for one run or for many.

The page is made of three files in ``assets/`` and plotly's own script. Text from outside (prompts, tokens, names)
reaches it in two ways only: through jinja with autoescape, and as JSON in script elements that no browser runs
(``embed``). A content security policy allows the two scripts by their hashes and nothing else, no network included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headcodes.files import atomic_write
from headcodes.report import figures
from headcodes.report.folders import read_runs
from headcodes.report.html import asset, csp_hash, embed, encodable, environment, plotly_script
from headcodes.report.records import RunRecord
from headcodes.report.summary import overview_matrix, overview_row, page_title, run_facts, run_summary, seed_groups

# Prompts, codes and attention patterns: beyond this many bytes, later runs are shown without them, with a note.
DETAIL_BYTES = 8_000_000
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
    html: str = (
        environment()
        .get_template("page.html.jinja")
        .render(
            rows=[overview_row(i, run) for i, run in enumerate(runs)],
            matrix=overview_matrix(runs),
            blocks=[(name, Markup(embed(block))) for name, block in blocks.items()],  # noqa: S704 (embed escapes)
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


def _blocks(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the page's JSON blocks by the id of their script element."""
    blocks: dict[str, Any] = {
        "seeds": seed_groups(runs),
        "scales": {"sequential": figures.colorscale(figures.SEQUENTIAL)},
    }
    left = DETAIL_BYTES
    for index, run in enumerate(runs):
        summary = run_summary(run)
        detail = _detail(run) if run.error is None else None
        prompts = _prompts(run)
        if detail is not None:
            name = "prompts-" + hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]
            cost = len(embed(detail)) + (0 if name in blocks or prompts is None else len(embed(prompts)))
            if cost <= left:
                left -= cost
                if prompts is not None:
                    blocks[name] = prompts
                    detail["prompts"] = name
                summary["detail"] = f"detail-{index}"
                blocks[f"detail-{index}"] = detail
            else:
                summary["left_out"] = True
        blocks[f"run-{index}"] = summary
    return blocks


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
        if (judged := run.arrays.get("judged")) is not None:
            detail["judged"] = judged.astype(np.uint8)
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
