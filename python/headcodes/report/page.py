"""The page: one HTML file that needs no server and no network, for one run or for many.

The page is made of three files in ``assets/`` and plotly's own script. Text from outside (prompts, tokens, names)
reaches it in two ways only: through jinja with autoescape, and as JSON in script elements that no browser runs
(``embed``). A content security policy allows the two scripts by their hashes and nothing else, no network included.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.circuit import Circuit, parse_head
from headcodes.files import atomic_write
from headcodes.report import figures
from headcodes.report.attention import MOST_TOKENS
from headcodes.report.codes import edge_notes, edge_values, node_notes, unique_codes
from headcodes.report.records import RunRecord, read_runs, record_of

if TYPE_CHECKING:
    from jinja2 import Environment

    from headcodes.report.attention import AttentionPattern
    from headcodes.result import Result

# Prompts, codes and attention patterns: beyond this many bytes, later runs go without them and say so.
DETAIL_BYTES = 8_000_000
# Longer prompts are cut: a page is read by people, and prompts.json has the whole.
PROMPT_CHARACTERS = 600
_N_TOP_IN_OVERVIEW = 3


def write_page(result: Result, path: Path | str, top: int = 20, attention: Sequence[AttentionPattern] = ()) -> None:
    """Write the page of one result: heat map, circuit, codes, attention where given, timings, provenance.

    Raises:
        OSError: the file cannot be written; nothing half-written is left behind.
    """
    _write([record_of(result, top, attention)], path)


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

    plotly, program = _plotly(), _asset("page.js")
    blocks = _blocks(runs)
    html: str = (
        _environment()
        .get_template("page.html.jinja")
        .render(
            rows=[_row(i, run) for i, run in enumerate(runs)],
            matrix=_matrix(runs),
            blocks=[(name, Markup(embed(block))) for name, block in blocks.items()],  # noqa: S704 (embed escapes)
            style=Markup(_asset("page.css")),  # noqa: S704 (our own file)
            plotly=Markup(plotly),  # noqa: S704 (plotly's own file)
            program=Markup(program),  # noqa: S704 (our own file)
            hashes=[_csp_hash(plotly), _csp_hash(program)],
            title=_title(runs),
        )
    )
    return _encodable(html)


def render_summary(result: Result, top: int = 20) -> str:
    """Return a result as a small piece of HTML without scripts, for notebooks: its best heads and where it is from."""
    record = record_of(result, top)
    html: str = (
        _environment()
        .get_template("summary.html.jinja")
        .render(
            facts=dict(_facts(record)),
            nodes=[(name, record.circuit.node_scores[name]) for name in record.circuit.nodes],
            edges=[(*edge, record.circuit.edge_scores[edge]) for edge in record.circuit.edges[:top]],
        )
    )
    return _encodable(html)


def embed(value: Any) -> str:
    """Return JSON that can stand inside a script element: no ``<``, ``>``, ``&`` or line separator is left in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_array)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return _encodable(text)


def _encodable(text: str) -> str:
    """Write lone surrogates, which UTF-8 cannot hold, as backslash escapes: in JSON they then mean the same."""
    return text.encode("utf-8", "backslashreplace").decode()


def _array(value: Any) -> Any:
    """Encode an array the way plotly.js reads it: little-endian bytes in base64."""
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"no JSON for {type(value).__name__}")
    kind = f"{value.dtype.kind}{value.dtype.itemsize}"
    little = np.ascontiguousarray(value).astype(value.dtype.newbyteorder("<"))
    data = base64.b64encode(little.tobytes()).decode("ascii")
    return {"dtype": kind, "bdata": data, "shape": ", ".join(map(str, value.shape))}


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("headcodes.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = figures.number
    return environment


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _script(get_plotlyjs())


@cache
def _asset(name: str) -> str:
    return _script(files("headcodes.report").joinpath("assets", name).read_text(encoding="utf-8"))


def _script(text: str) -> str:
    # An HTML parser turns CR into LF before the hash is taken, and ends a script at the first "</script".
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _title(runs: Sequence[RunRecord]) -> str:
    if len(runs) == 1:
        return f"{runs[0].document['model']}, {runs[0].document['task']}"
    return f"{len(runs)} runs"


def _label(run: RunRecord) -> str:
    document = run.document
    return f"{document['model']} · {document['task']} · {document['method']} · {_drawn(run)}"


def _drawn(run: RunRecord) -> str:
    n_seeds = len(run.document.get("seeds", ()))
    return f"mean of {n_seeds} seeds" if n_seeds else f"seed {run.document['seed']}"


def _row(index: int, run: RunRecord) -> dict[str, Any]:
    """Return a run's line in the overview."""
    document = run.document
    check = document["task_check"]
    return {
        "index": index,
        "label": _label(run),
        "model": document["model"],
        "revision": document.get("revision") or "",
        "task": document["task"],
        "negative": document["negative"],
        "method": document["method"],
        "level": document["level"],
        "seed": run.seeds,
        "first_seed": document.get("seeds", [document["seed"]])[0],
        "share_right": check.get("share_right"),
        "top": list(run.circuit.nodes[:_N_TOP_IN_OVERVIEW]),
        "n_nodes": len(run.circuit.nodes),
        "dead_share": document.get("dead_share"),
        "summary": next((curve.summary for curve in run.curves if curve.summary), ""),
        "seconds": document["timings_s"].get("total"),
        "error": run.error,
    }


def _matrix(runs: Sequence[RunRecord]) -> dict[str, Any] | None:
    """Return models x tasks: how many runs, how well the model does the task, how far seeds agree; None if 1 x 1."""
    cells: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for run in runs:
        cells[run.document["model"], run.document["task"]].append(run)
    models = list(dict.fromkeys(model for model, _ in cells))
    tasks = list(dict.fromkeys(task for _, task in cells))
    if len(cells) < 2:
        return None
    return {
        "tasks": tasks,
        "rows": [
            {"model": model, "cells": [_cell(cells.get((model, task), [])) for task in tasks]} for model in models
        ],
    }


def _cell(runs: Sequence[RunRecord]) -> dict[str, Any] | None:
    if not runs:
        return None
    shares = [run.document["task_check"].get("share_right") for run in runs if run.error is None]
    known = [share for share in shares if share is not None]
    return {
        "n": len(runs),
        "n_failed": sum(run.error is not None for run in runs),
        "share_right": float(np.mean(known)) if known else None,
    }


def _blocks(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return the page's JSON blocks by the id of their script element."""
    blocks: dict[str, Any] = {
        "seeds": _seed_groups(runs),
        "scales": {"sequential": figures.colorscale(figures.SEQUENTIAL)},
    }
    left = DETAIL_BYTES
    for index, run in enumerate(runs):
        summary = _summary(run)
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


def _summary(run: RunRecord) -> dict[str, Any]:
    document = run.document
    kinds: dict[str, list[figures.Curve]] = defaultdict(list)
    for curve in run.curves:
        kinds[curve.kind].append(curve)
    values = run.head_values
    heads = run.circuit.heads
    unique = unique_codes(run)
    values_of_edges = edge_values(run)
    return {
        "label": _label(run),
        "error": run.error,
        "shape": [run.circuit.n_layers, run.circuit.n_heads],
        "level": document["level"],
        "check": document["task_check"],
        "heads": {what: figures.heads_figure(its, what=what, chosen=heads) for what, its in values.items()},
        "chosen": [
            {
                "name": name,
                "values": {what: _finite(its[head]) for what, its in values.items()},
                "unique": None if unique is None else int(unique[head[0] * run.circuit.n_heads + head[1]]),
            }
            for name in run.circuit.nodes
            if (head := parse_head(name)) is not None
        ],
        "intervals": {row["head"]: [row["low"], row["high"]] for row in document.get("verification") or []},
        "edges": [
            [*edge, _finite(run.circuit.edge_scores.get(edge)), *(its.get(edge) for its in values_of_edges.values())]
            for edge in run.circuit.edges
        ],
        "edge_columns": list(values_of_edges),
        "seeds": _seeds_of(run),
        "circuit": figures.circuit_figure(run.circuit, node_notes(run), edge_notes(run)),
        "curves": {kind: figures.curves_figure(curves) for kind, curves in kinds.items()},
        "timings": figures.timings_figure(document["timings_s"]) if document["timings_s"] else None,
        "facts": _facts(run),
        "command": run.command,
        "absent": _absent(run),
    }


def _absent(run: RunRecord) -> list[tuple[str, str | None]]:
    """Return what a reader may miss on the page of a run: why it is not there, and what to run to get it."""
    found: list[tuple[str, str | None]] = []
    if run.error is not None:
        return found
    if run.arrays.get("codes") is None:
        found.append(("No codes: this method gives heads none.", None))
    if (whole := run.document.get("whole_page")) is not None:
        why = "No texts of prompts and no attention: a scan's store keeps neither."
        found.append((f"{why} This writes a page with both, cell/page.html:", str(whole)))
    elif run.pairs is None:
        found.append(("No texts of prompts: there was no prompts.json beside the result.", None))
    elif not run.attention:
        why = "No attention: it is kept where a result is saved with its model, for prompts"
        found.append((f"{why} of at most {MOST_TOKENS} tokens.", "result.save(folder, model=model)"))
    if not run.curves:
        folder = "RUN" if whole is None else "cell"
        why = "No curves: no truth is published for this model and task. Find the causal one, then report again:"
        found.append((why, f"headcodes evaluate {folder}/circuit.json --curve --out {folder}/evaluation.json"))
    return found


def _seeds_of(run: RunRecord) -> dict[str, Any] | None:
    """Return every seed's scores of a run of several, and how far the circuits agree that they alone would give."""
    scores = run.arrays.get("head_scores_by_seed")
    if scores is None:
        return None
    top = max(1, len(run.circuit.heads))
    chosen = [set(Circuit.from_scores(its, top=top).nodes) for its in scores]
    return _agreement(dict(zip(run.document["seeds"], scores, strict=True)), chosen)


def _agreement(scores: Mapping[int, np.ndarray], chosen: Sequence[set[str]]) -> dict[str, Any]:
    overlaps = [len(a & b) / max(1, len(a | b)) for i, a in enumerate(chosen) for b in chosen[i + 1 :]]
    return {
        "seeds": sorted(scores),
        "agreement": float(np.mean(overlaps)) if overlaps else 1.0,
        "figure": figures.seeds_figure(scores),
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """Return what a run was, line by line; JSON has no order to rely on."""
    document = run.document
    bos = {True: "added", False: "not added"}.get(document.get("bos_added"), "unknown")  # type: ignore[arg-type]
    check = document["task_check"]
    facts = {
        "model": document["model"],
        "revision": document.get("revision"),
        "task": f"{document['task']} ({document['negative']} negatives)",
        "method": f"{document['method']}, {document['level']} level",
        "seed": document["seed"],
        "seeds of the method": run.seeds if "seeds" in document else None,
        "codes": "of the first seed" if "seeds" in document and "codes" in run.arrays else None,
        "false-discovery rate asked for": document.get("fdr"),
        "permutations": document.get("n_permutations"),
        "prompt pairs": document.get("n_prompts", check.get("n_pairs")),
        "trained on": None if "n_train" not in document else f"{document['n_train']} prompts (as asked for)",
        "positions": document.get("positions"),
        "beginning-of-sequence token": f"{bos} (asked for: {document.get('bos', 'unknown')})",
        "number type": document.get("dtype"),
        "device": document.get("device"),
        "seed of the prompts": document.get("prompt_seed"),
        "threads": document.get("threads"),
        "encoder": document.get("backend"),
        "rows without an active latent": None
        if document.get("dead_share") is None
        else f"{document['dead_share']:.1%}",
        **{f"version of {name}": version for name, version in document["versions"].items()},
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


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


def _seed_groups(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return, for runs that differ in their seed only, their scores side by side and how far their circuits agree."""
    groups: dict[tuple[Any, ...], dict[int, tuple[int, RunRecord]]] = defaultdict(dict)
    for index, run in enumerate(runs):
        if run.error is None:
            groups[run.group].setdefault(int(run.document["seed"]), (index, run))
    found = []
    for members in groups.values():
        if len(members) < 2:
            continue
        scores = {seed: run.head_values["score"] for seed, (_, run) in members.items()}
        agreement = _agreement(scores, [set(run.circuit.nodes) for _, run in members.values()])
        found.append({"runs": [index for index, _ in members.values()], **agreement})
    return found
