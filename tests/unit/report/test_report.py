"""What a report's page is made of; how it looks and behaves is the browser's business (tests/browser)."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from headcodes.errors import HeadcodesError
from headcodes.overlap.significance import PairSignificance, Significance
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.report import RunRecord, page, write_page
from headcodes.report.attention import AttentionPattern
from headcodes.report.codes import edge_notes, edge_values, node_notes, unique_codes
from headcodes.report.curve_figures import Curve
from headcodes.report.folders import read_folder
from made_report import CODES, HOSTILE, NODE, Parts, U, result


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


def test_of_many_runs_some_of_every_kind_have_a_view_and_the_page_counts_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records = [replace(result(), model=model, seed=seed).record() for model in "AB" for seed in range(3)]
    whole = Parts(page.render(records)).blocks
    assert len(whole["seeds"]) == 2
    cost = [len(page.embed(whole[f"run-{i}"])) for i in range(6)]
    room = sum(cost[i] for i in (0, 1, 3)) + sum(len(page.embed(group)) for group in whole["seeds"]) + 100
    monkeypatch.setattr(page, "RUN_BYTES", room)
    text = page.render(records)
    parts = Parts(text)
    # The first seed of each model, then the second of the first.
    assert sorted(str(name) for name in parts.blocks if str(name).startswith("run-")) == ["run-0", "run-1", "run-3"]
    assert parts.blocks["seeds"] == whole["seeds"]
    assert "3 of the runs stand in the list below and have no view of their own" in text
    assert len(re.findall("<tr data-index=", text)) == 6
    assert re.findall('href="#run-([0-9])"', text) == ["0", "1", "3"]
    assert re.findall('aria-label="Compare run ([0-9])', text) == ["1", "2", "4"]
    monkeypatch.setattr(page, "MOST_ROWS", 4)
    text = page.render(records)
    assert len(re.findall("<tr data-index=", text)) == 4
    assert "The last 2 runs are counted here and left out of the list" in text
    assert "<h1>6 runs</h1>" in text


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
    findings = replace(result().findings, scored_prompts=np.array([1, 1, 0, 1, 1, 0], dtype=bool))
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
