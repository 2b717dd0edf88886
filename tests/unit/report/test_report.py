"""What a report's page is made of; how it looks and behaves is the browser's business (tests/browser)."""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from safetensors.numpy import load_file, save_file

import headcodes
from headcodes import cli
from headcodes.circuit.agreement import SeedScores
from headcodes.errors import HeadcodesError
from headcodes.evaluation import truths
from headcodes.methods.findings import Findings
from headcodes.overlap.significance import PairSignificance, Significance
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.prompts.task_check import TaskCheck
from headcodes.report import RunRecord, page, read_runs, stores, write_page, write_report
from headcodes.report.attention import AttentionPattern
from headcodes.report.codes import edge_notes, edge_values, node_notes, unique_codes
from headcodes.report.curve_figures import Curve
from headcodes.report.curves import published_curves
from headcodes.report.folders import read_folder
from headcodes.result import Result

# The worked example of the published method (positives, then negatives), as two layers of two heads.
CODES = [[1, 4, 2, 7], [1, 5, 2, 7], [3, 5, 6, 0], [1, 4, 2, 0], [2, 5, 2, 7], [3, 4, 2, 0]]
NODE, U = [0, 0, 1, 0], [[0, 2, 1, 1], [2, 0, 1, 2], [1, 1, 0, 1], [1, 2, 1, 0]]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \u2028 \u202e \ud800 \"'{{ 7*7 }}"


def result(level: str = "edge", **changes: Any) -> Result:
    texts = [(f"clean {i}", f"corrupt {i}") for i in range(3)]
    findings = Findings(
        head_scores=np.array([1.0, 2.0, 3.0, 0.0]).reshape(2, 2),
        pair_scores=np.array(U, dtype=float) if level == "edge" else None,
        mention_scores=np.array([2.0, 4.0, 0.0, 2.0]) if level == "edge" else None,
        codes=np.array(CODES, dtype=np.int32),
        judged=np.ones(6, dtype=bool),
        dead_share=0.25,
    )
    fields: dict[str, Any] = {
        "model": "tiny",
        "revision": None,
        "d_model": 8,
        "parallel_attn_mlp": False,
        "pairs": PromptPairs(tuple(PromptPair(a, b, (" x",), (" y",)) for a, b in texts), "made-up", "swapped"),
        "method": "paper",
        "level": level,
        "seed": 3,
        "bos": "auto",
        "bos_added": True,
        "positions": "mean",
        "n_train": 10,
        "dtype": "float32",
        "threads": 1,
        "backend": "torch",
        "task_check": TaskCheck(3, 1.0, 2.5, 0.0, 0.5, np.ones(3, dtype=bool)),
        "findings": findings,
        "timings_s": {"capture": 0.5, "train": 1.0, "total": 1.5},
        "versions": {"python": "3.11"},
    }
    return Result(**(fields | changes))


class Parts(HTMLParser):
    """The scripts of a page, its policy, and every attribute that could reach outside it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[tuple[str | None, str | None, str]] = []
        self.policy, self.links, self.handlers = "", [], []
        self._script: tuple[str | None, str | None] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "script":
            self._script = found.get("type"), found.get("id")
            self.scripts.append((*self._script, ""))
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"] or ""
        self.links += [value for name, value in attrs if name in ("src", "href", "action") and value is not None]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            kind, name, text = self.scripts[-1]
            self.scripts[-1] = kind, name, text + data

    @property
    def blocks(self) -> dict[str | None, Any]:
        return {name: json.loads(text) for kind, name, text in self.scripts if kind == "application/json"}


def test_page_holds_the_run_and_reaches_for_nothing(tmp_path: Path) -> None:
    write_page(result().record(top=3), tmp_path / "page.html")
    parts = Parts((tmp_path / "page.html").read_text(encoding="utf-8"))
    run = parts.blocks["run-0"]
    assert [head["name"] for head in run["chosen"]] == ["a1.h0", "a0.h1", "a0.h0"]
    assert [head["unique"] for head in run["chosen"]] == [NODE[2], NODE[1], NODE[0]]
    assert run["edges"] == [["a0.h0", "a1.h0", 1.0], ["a0.h1", "a1.h0", 1.0]]
    assert list(run["heads"]) == ["score", "mention score"]
    assert all(link.startswith(("#", "data:")) for link in parts.links)
    assert not parts.handlers
    programs = [text for kind, _, text in parts.scripts if kind != "application/json"]
    assert len(programs) == 2  # plotly, read by the page when the first chart is drawn, and the page's own
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in programs]
    directives = dict(part.strip().split(" ", 1) for part in parts.policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"].split() == [f"'sha256-{one}'" for one in hashes]
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_codes_and_prompts_stand_in_the_page_as_they_are() -> None:
    parts = Parts(page.render([result().record(top=3)]))
    detail = parts.blocks["detail-0"]
    column = np.frombuffer(base64.b64decode(detail["codes"]["a1.h0"]["bdata"]), dtype="<i2")
    assert column.tolist() == [row[2] for row in CODES]
    assert parts.blocks[detail["prompts"]] == {
        "clean": ["clean 0", "clean 1", "clean 2"],
        "corrupt": ["corrupt 0", "corrupt 1", "corrupt 2"],
    }


def test_node_level_has_heads_and_no_edges() -> None:
    run = Parts(page.render([result("node").record()])).blocks["run-0"]
    assert run["edges"] == []
    assert len(run["chosen"]) == 3


@pytest.mark.parametrize("where", ["model", "revision", "prompt", "task", "version", "error", "curve"])
def test_hostile_text_stays_text(where: str) -> None:
    plain = Parts(page.render([result().record(), result().record()]))
    one = result()
    if where in ("model", "revision"):
        one = replace(one, **{where: HOSTILE})
    elif where == "version":
        one = replace(one, versions={HOSTILE: HOSTILE})
    elif where in ("prompt", "task"):
        pair = PromptPair(HOSTILE, HOSTILE + "!", (" x",), (" y",))
        one = replace(one, pairs=PromptPairs((pair,) * 3, HOSTILE if where == "task" else "t", "n"))
    record = one.record()
    if where == "error":
        record = replace(record, error=HOSTILE)
    if where == "curve":
        record = replace(record, curves=[Curve("ROC", HOSTILE, (0.0, 1.0), (0.0, 1.0), summary=HOSTILE)])
    html = page.render([record, result().record()])
    html.encode()
    parts = Parts(html)
    assert [kind for kind, *_ in parts.scripts].count(None) == [kind for kind, *_ in plain.scripts].count(None) == 1
    assert not parts.handlers
    assert "{{ 7*7 }}" in html
    assert not any("\u2028" in text for kind, _, text in parts.scripts if kind)
    if where == "prompt":
        assert parts.blocks[parts.blocks["detail-0"]["prompts"]]["clean"][0] == HOSTILE
        hover = json.dumps(parts.blocks["run-0"]["circuit"])
        assert "<script" not in hover
        assert "<img" not in hover
        assert "\u202e" not in hover


def test_embedded_json_survives_the_round_trip_and_closes_no_element() -> None:
    value = {HOSTILE: [HOSTILE, None, 1.5, True], "array": np.arange(6, dtype=np.float32).reshape(2, 3)}
    text = page.embed(value)
    assert not set("<>&\u2028\u2029") & set(text)
    text.encode()
    read = json.loads(text)
    assert read[HOSTILE][0] == HOSTILE
    assert read["array"]["dtype"] == "f4"
    assert read["array"]["shape"] == "2, 3"
    with pytest.raises(ValueError, match="not JSON compliant"):
        page.embed(float("nan"))


def test_long_prompts_are_cut_and_say_how_long_they_are() -> None:
    pair = PromptPair("a" * 10_000, "b" * 9_000, (" x",), (" y",))
    parts = Parts(page.render([replace(result(), pairs=PromptPairs((pair,) * 3, "t", "n")).record()]))
    shown = parts.blocks[parts.blocks["detail-0"]["prompts"]]["clean"][0]
    assert shown.startswith("a" * page.PROMPT_CHARACTERS + "…")
    assert "10,000" in shown
    assert len(shown) < 700


def test_what_a_folder_holds_reads_back_as_the_result_was(tmp_path: Path) -> None:
    its = result()
    its.save(tmp_path, top=3)
    read, made = read_folder(tmp_path), its.record(top=3)
    assert page.render([read]) == page.render([made])
    assert read.document["circuit"]["nodes"] == ["a1.h0", "a0.h1", "a0.h0"]


def test_sources_may_be_folders_of_folders_and_records(tmp_path: Path) -> None:
    for seed in (2, 0, 1):
        replace(result(), seed=seed).save(tmp_path / f"run{seed}")
    runs = read_runs([tmp_path, tmp_path / "run1", result().record()])
    assert [run.document["seed"] for run in runs] == [0, 1, 2, 1, 3]
    out = tmp_path / "deep" / "report.html"
    assert write_report([tmp_path], out) == 3
    blocks = Parts(out.read_text(encoding="utf-8")).blocks
    assert [group["seeds"] for group in blocks["seeds"]] == [[0, 1, 2]]
    assert blocks["seeds"][0]["agreement"] == 1.0
    assert sum(str(name).startswith("prompts-") for name in blocks) == 1  # the same prompts are kept once


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("result.json", None, "result.json"),
        ("result.json", "{", "result.json"),
        ("result.json", "[]", "JSON object"),
        ("result.json", '{"model": 3}', "'model'"),
        ("scores.safetensors", "junk", "belong together"),
        ("prompts.json", "{}", "prompts"),
        ("circuit.json", "{}", "circuit"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    result().save(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(HeadcodesError, match=message) as caught:
        read_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"revision": ["main"]},
        {"positions": {}},
        {"n_prompts": "many"},
        {"bos_added": 1},
        {"dead_share": "half"},
        {"task_check": {"share_right": float("nan")}},
        {"timings_s": {"total": float("inf")}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_fields_of_the_wrong_kind_are_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    result().save(tmp_path)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(HeadcodesError, match=f"'{next(iter(wrong))}' of"):
        read_folder(tmp_path)


def test_no_runs_make_no_report(tmp_path: Path) -> None:
    with pytest.raises(HeadcodesError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(HeadcodesError, match=r"result\.json"):
        write_report([tmp_path], tmp_path / "report.html")


def test_details_stop_at_their_budget_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [replace(result(), seed=seed).record() for seed in range(3)]
    whole = Parts(page.render(records)).blocks
    cost = sum(
        len(page.embed(block)) for name, block in whole.items() if str(name).startswith(("detail-0", "prompts-"))
    )
    monkeypatch.setattr(page, "DETAIL_BYTES", cost + 10)
    blocks = Parts(page.render(records)).blocks
    assert "detail-0" in blocks
    assert "detail-1" not in blocks
    assert ["left_out" in blocks[f"run-{i}"] for i in range(3)] == [False, True, True]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "--prompts prompts.json"),
        ({"model": "it's a; name"}, "--model 'it'\"'\"'s a; name'"),
        ({"revision": "step1000"}, "--revision step1000"),
    ],
)
def test_command_repeats_the_run(changes: dict[str, Any], expected: str) -> None:
    command = replace(result(), **changes).record().command
    assert expected in command
    words = shlex.split(command)
    assert words[words.index("--seed") + 1] == "3"
    assert words[words.index("--n-train") + 1] == "10"


def test_command_of_a_built_in_task_names_it() -> None:
    pairs = PromptPairs(result().pairs.pairs, "ioi", "abc")
    words = shlex.split(replace(result(), pairs=pairs).record().command)
    assert words[words.index("--task") + 1] == "ioi"
    assert words[words.index("--n-prompts") + 1] == "3"
    assert "--prompts" not in words


def test_positive_only_codes_are_those_of_the_worked_example() -> None:
    record = result().record()
    counts = unique_codes(record)
    assert counts is not None
    assert counts.tolist() == NODE
    notes = edge_notes(record)
    for (source, target), text in notes.items():
        i, j = (["a0.h0", "a0.h1", "a1.h0", "a1.h1"].index(name) for name in (source, target))
        assert f"overlap: {U[i][j]} pairs" in text
    assert "code 6, 1 positives: “clean 2”" in node_notes(record)["a1.h0"]


def test_prompts_that_were_trained_on_do_not_count() -> None:
    findings = replace(result().findings, judged=np.array([1, 1, 0, 1, 1, 0], dtype=bool))
    counts = unique_codes(replace(result(), findings=findings).record())
    assert counts is not None
    # Without the third pair no code of a1.h0 is left that no negative has; a0.h0 is as before.
    assert counts.tolist() == [0, 0, 0, 0]


def test_summary_for_notebooks_is_escaped_and_has_the_best_heads() -> None:
    html = replace(result(), model=HOSTILE)._repr_html_()
    assert "<script" not in html
    assert html.index("a1.h0") < html.index("a0.h1")


def test_tests_of_pairs_come_back_and_stand_beside_their_edges(tmp_path: Path) -> None:
    p, q = np.full((4, 4), 0.5), np.full((4, 4), np.nan)
    p[0, 2], q[0, 2] = 0.001, 0.01
    nothing = np.zeros((4, 4))
    pairs = PairSignificance(nothing, p, p, q, nothing, 999, True, 0, selected=np.array([0, 2]))
    one = np.full(4, 0.04)
    nodes = Significance(one, one, one, one, one, 999, True, 0)
    its = replace(result(), fdr=0.05, node_tests=nodes, pair_tests=pairs)
    its.save(tmp_path, top=3)
    for record in (its.record(top=3), read_folder(tmp_path)):
        first, second = ("a0.h0", "a1.h0"), ("a0.h1", "a1.h0")
        assert edge_values(record) == {
            "p over all pairs": {first: 0.001, second: 0.5},
            "q": {first: 0.01, second: None},
        }
        assert edge_notes(record)[first].startswith("<br>p over all pairs: 0.001<br>q: 0.01<br>overlap")
        assert "q: not taken" in edge_notes(record)[second]
        run = Parts(page.render([record])).blocks["run-0"]
        assert run["edges"] == [["a0.h0", "a1.h0", 1.0, 0.001, 0.01], ["a0.h1", "a1.h0", 1.0, 0.5, None]]
    assert edge_values(result().record()) == {}
    stored = load_file(tmp_path / "scores.safetensors")
    save_file(stored | {"pair_q_values": np.zeros((3, 3))}, tmp_path / "scores.safetensors")
    with pytest.raises(HeadcodesError, match="pair_q_values have shape"):
        read_folder(tmp_path)


def test_several_seeds_show_spread_and_consensus_of_heads_and_pairs(tmp_path: Path) -> None:
    base = result().head_scores
    heads = np.stack(
        [base, base + np.array([[0, 4], [0, 0]]), base - np.array([[1, 0], [0, 0]])]
    )  # the third seed lets a0.h0 go
    pairs = np.stack([np.array(U, dtype=float)] * 3)
    pairs[1, 0, 2] = 4.0
    seeds = SeedScores((4, 5, 6), heads, pairs, np.zeros((3, 4)))
    findings = replace(result().findings, head_scores=heads.mean(0), pair_scores=pairs.mean(0))
    its = replace(result(), findings=findings, by_seed=seeds)
    its.save(tmp_path, top=3)
    for record in (its.record(top=3), read_folder(tmp_path)):
        np.testing.assert_allclose(record.head_values["spread"], np.std(heads, axis=0, ddof=1))
        assert record.head_values["consensus"].tolist() == [[2 / 3, 1], [1, 0]]
        blocks = Parts(page.render([record, result().record()])).blocks
        run = blocks["run-0"]
        assert run["edge_columns"] == ["spread", "consensus"]
        edges = {(source, target): numbers for source, target, *numbers in run["edges"]}
        assert edges["a0.h0", "a1.h0"] == pytest.approx([2.0, np.std([1, 4, 1], ddof=1), 2 / 3])
        assert "consensus: 0.6667<br>" in edge_notes(record)["a0.h0", "a1.h0"]
        assert "spread: 2.309<br>" in node_notes(record)["a0.h1"]
        assert run["label"] == "tiny · made-up · paper · mean of 3 seeds"
        assert run["seeds"]["seeds"] == [4, 5, 6]
        assert run["seeds"]["agreement"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
        assert dict(run["facts"])["seeds of the method"] == "4-6"
        assert "--seed 3" in record.command
        assert "--seeds 4-6" in record.command
        assert blocks["run-1"]["seeds"] is None
        assert blocks["seeds"] == []  # a mean over seeds is no further seed
    stored = load_file(tmp_path / "scores.safetensors")
    save_file(stored | {"head_scores_by_seed": heads[:2]}, tmp_path / "scores.safetensors")
    with pytest.raises(HeadcodesError, match="scores by seed have shape"):
        read_folder(tmp_path)
    save_file(stored | {"head_scores_by_seed": np.full_like(heads, np.inf)}, tmp_path / "scores.safetensors")
    with pytest.raises(HeadcodesError, match="finite"):
        read_folder(tmp_path)
    save_file(stored, tmp_path / "scores.safetensors")
    document = json.loads((tmp_path / "result.json").read_text())
    for wrong in ([], ["4", "5", "6"], [4, 5, 5], 3, None):
        (tmp_path / "result.json").write_text(json.dumps(document | {"seeds": wrong}))
        with pytest.raises(HeadcodesError, match="seeds must be whole numbers"):
            read_folder(tmp_path)


def test_what_is_not_on_the_page_is_said_with_how_to_get_it() -> None:
    def absent(record: RunRecord) -> list[list[str | None]]:
        found: list[list[str | None]] = Parts(page.render([record])).blocks["run-0"]["absent"]
        return found

    here = result().record()
    why, how = zip(*absent(here), strict=True)
    assert [text[:13] for text in why] == ["No attention:", "No curves: no"]
    assert how[0] == "result.save(folder, model=model)"
    full = replace(
        here,
        attention=[AttentionPattern("clean", 0, ("a",), ((0, 1),), np.ones((1, 1, 1), dtype=np.float32))],
        curves=[Curve("ROC", "x", (0.0, 1.0), (0.0, 1.0))],
    )
    assert absent(full) == []
    assert absent(replace(full, pairs=None))[0][0].startswith("No texts of prompts: there was no prompts.json")
    assert absent(replace(full, arrays={}))[0][0].startswith("No codes: this method")
    assert absent(replace(here, error="memory")) == []


@pytest.mark.parametrize("seed", [0, 4])
def test_a_cell_of_a_scan_says_how_to_see_its_prompts(seed: int) -> None:
    cell: dict[str, Any] = {
        "identity": "cell",
        "status": "done",
        "error": None,
        "arrays_sha256": None,
        **{"model": "it's", "revision": "step1", "task": "ioi", "negative": "abc", "prompts": "", "method": "paper"},
        **{"seed": seed, "prompt_seed": 0, "level": "node", "n_prompts": 20, "n_train": 5, "positions": "last"},
        **{"bos": "no", "bos_added": False, "device": "cpu", "dtype": "float32", "threads": 1, "backend": "torch"},
        **{"n_layers": 1, "n_heads": 2, "n_pairs": 20, "d_model": 4, "parallel_attn_mlp": False},
        **{"head_scores": [1.0, 0.0], "mention_scores": None, "dead_share": 0.0, "share_right": 1.0},
        **{"positive_logit_diff": 1.0, "negative_logit_diff": 0.0, "timings_s": [], "versions": []},
    }
    record = stores._from_row(cell, Path("nowhere"), top=5)
    (why, how), *_ = Parts(page.render([record])).blocks["run-0"]["absent"][1:]
    assert "a scan's store keeps neither" in why
    if seed == 0:
        command = typer.main.get_command(cli.app).commands["discover"]  # type: ignore[attr-defined]
        words = shlex.split(how)
        assert words[:2] == ["headcodes", "discover"]
        given = command.make_context("discover", words[2:]).params
        asked = {name: cell[name] for name in ("model", "revision", "task", "negative", "method", "seed", "n_prompts")}
        assert asked.items() <= given.items()
        assert (given["bos"], given["positions"], given["n_train"], given["threads"]) == ("no", "last", 5, 1)
        assert given["out"] == Path("cell")
        return
    # `discover --seed` would change the prompts too.
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    class Called:
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **named: (calls.append((name, args, named)), self)[1]

        @property
        def tasks(self) -> Called:
            return self

        tokenizer = "its tokenizer"

    exec(how.replace("import headcodes\n", ""), {"headcodes": Called()})
    said = {name: (args, named) for name, args, named in calls}
    assert said["load_model"] == (("it's",), {"revision": "step1", "device": "cpu", "dtype": "float32"})
    assert said["build"] == (("its tokenizer",), {"n": 20, "seed": 0, "negative": "abc"})
    assert said["discover"][1]["seed"] == 4
    assert inspect.signature(headcodes.discover).bind(*said["discover"][0], **said["discover"][1])


def test_an_evaluation_beside_the_run_adds_effects_and_curves(tmp_path: Path) -> None:
    result().save(tmp_path, top=3)
    evaluation = {
        "circuit": {"method": "paper", "n_heads_in_circuit": 3},
        "truth": {"name": "causal", "n_heads_in_circuit": 1, "head_effects": [0.1, -0.2, -3.0, 0.0]},
        "curve": {
            "sizes": [0, 2, 4],
            "faithfulness": [0.0, 0.8, 1.0],
            "completeness": [1.0, 0.3, 0.0],
            "random_mean": [0.0, 0.5, 1.0],
            "random_low": [0.0, 0.4, 1.0],
            "random_high": [0.0, 0.6, 1.0],
        },
        "areas": {"cpr": 0.75, "cmd": 0.25},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    read = read_folder(tmp_path)
    assert read.head_values["causal effect"].tolist() == [[0.1, -0.2], [-3.0, 0.0]]
    assert [(curve.kind, curve.summary) for curve in read.curves] == [
        ("ROC", "AUC 1.000"),  # a1.h0 has the largest score and the largest |effect|
        ("precision-recall", "AP 1.000"),
        ("faithfulness", "CPR 0.750, CMD 0.250"),
        ("completeness", ""),
        ("faithfulness", ""),
    ]
    blocks = Parts(page.render([read])).blocks
    assert list(blocks["run-0"]["curves"]) == ["ROC", "precision-recall", "faithfulness", "completeness"]
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation | {"truth": 3}), encoding="utf-8")
    with pytest.raises(HeadcodesError, match="belong together"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    "name", ["circuit.json", "result.json", "scores.safetensors", "prompts.json", "evaluation.json"]
)
def test_files_of_two_runs_are_no_run(tmp_path: Path, name: str) -> None:
    ours = result()
    other = replace(
        ours,
        method="mean-diff",
        pairs=replace(ours.pairs, negative="another"),
        findings=replace(ours.findings, head_scores=ours.findings.head_scores + 1),
    )
    for run, folder in ((ours, tmp_path / "a"), (other, tmp_path / "b")):
        run.save(folder, top=3)
        about = {"method": run.method, "n_heads_in_circuit": len(run.circuit(3).heads)}
        evaluation = {"circuit": about, "truth": None, "curve": None, "areas": None}
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        read_folder(folder)
    (tmp_path / "b" / name).replace(tmp_path / "a" / name)
    with pytest.raises(HeadcodesError, match=r"belong together.*(different runs|another circuit)"):
        read_folder(tmp_path / "a")


def test_published_truths_of_the_same_model_are_drawn() -> None:
    truth = truths.get("ioi", "wang2022")
    curves = published_curves("gpt2", "ioi", "mine", truth.labels.astype(float))
    drawn = {curve.label: curve.summary for curve in curves if curve.kind == "ROC"}
    assert drawn["mine against wang2022"] == "AUC 1.000"
    assert set(drawn) == {f"mine against {name}" for _, name in truths.names("ioi")}
    assert published_curves("gpt2-medium", "ioi", "mine", np.zeros((24, 16))) == []
    assert published_curves("gpt2", "greater-than", "mine", np.zeros((2, 2))) == []


def test_tests_and_verified_effects_of_a_run_are_shown() -> None:
    rows = [{"head": "a1.h0", "effect": 2.0, "low": 1.5, "high": 2.5}]
    more = {"fdr": 0.1, "p_values": [0.1, 0.2, 0.3, 1.0], "q_values": [0.4] * 4, "verification": rows}
    plain = result("node").record(top=3)
    record = replace(plain, document=plain.document | more)
    values = record.head_values
    assert list(values) == ["score", "p-value", "q-value", "exact effect"]
    np.testing.assert_array_equal(values["exact effect"], [[np.nan, np.nan], [2.0, np.nan]])
    run = Parts(page.render([record])).blocks["run-0"]
    assert run["intervals"] == {"a1.h0": [1.5, 2.5]}
    assert [head["values"]["exact effect"] for head in run["chosen"]] == [2.0, None, None]
    words = shlex.split(record.command)
    assert words[words.index("--fdr") :] == ["--fdr", "0.1", "--verify", "1"]


def test_a_scan_s_store_is_read_failed_cells_too(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="stores are Parquet (pip install pyarrow)")
    from headcodes.store.cells import Store

    store = Store(tmp_path)
    common: dict[str, Any] = {"model": "tiny", "task": "ioi", "method": "paper", "level": "edge", "threads": 1}
    for seed in (1, 0):
        done = {
            "identity": f"cell{seed}",
            "status": "done",
            "seed": seed,
            "negative": "abc",
            "n_layers": 2,
            "n_heads": 2,
            "n_pairs": 3,
            "head_scores": [float(value) for value in NODE],
            "share_right": 1.0,
            "timings_s": [("train", 1.0)],
            "versions": [("python", "3.11")],
        }
        codes = np.array(CODES, dtype=np.int32)
        store.write(common | done, {"codes": codes, "pair_scores": np.array(U, dtype=float)})
    failed = {"identity": "cell2", "status": "failed", "seed": 2, "error": "out of memory", "revision": "step 1"}
    store.write(common | failed, {})
    runs = read_runs([tmp_path])
    assert [(run.document["seed"], run.error) for run in runs] == [(0, None), (1, None), (2, "out of memory")]
    assert runs[0].circuit.nodes == ("a1.h0",)
    counts = unique_codes(runs[0])
    assert counts is not None
    assert counts.tolist() == NODE
    assert "--models 'tiny@step 1' --tasks ioi --methods paper --seeds 2" in runs[2].command
    blocks = Parts(page.render(runs)).blocks
    assert blocks["seeds"][0]["runs"] == [0, 1]
    (tmp_path / "arrays" / "cell0.safetensors").write_bytes(b"junk")
    with pytest.raises(HeadcodesError, match=r"cell0\.safetensors"):
        read_runs([tmp_path])
