"""What runs, scans and evaluations on disk become on the page."""

from __future__ import annotations

import inspect
import json
import shlex
from dataclasses import replace
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
from headcodes.report import page, read_runs, stores, write_report
from headcodes.report.codes import edge_notes, node_notes, unique_codes
from headcodes.report.curves import published_curves
from headcodes.report.folders import read_folder
from made_report import CODES, NODE, Parts, U, result


def test_what_a_folder_holds_reads_back_as_the_result_was(tmp_path: Path) -> None:
    its = result()
    its.save(tmp_path, top=3)
    read, made = read_folder(tmp_path), its.record(top=3)
    assert page.render([read]) == page.render([made])
    assert read.document["circuit"]["nodes"] == ["a1.h0", "a0.h1", "a0.h0"]


def test_prompts_that_were_scored_are_read_under_their_earlier_name_too(tmp_path: Path) -> None:
    some = np.array([1, 1, 0, 1, 1, 0], dtype=bool)
    its = result(findings=replace(result().findings, scored_prompts=some))
    its.save(tmp_path, top=3)
    arrays = load_file(tmp_path / "scores.safetensors")
    arrays["judged"] = arrays.pop("scored_prompts")
    save_file(arrays, tmp_path / "scores.safetensors")
    assert page.render([read_folder(tmp_path)]) == page.render([its.record(top=3)])


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
        ("result.json", "[]", r"result\.json must be an object"),
        ("result.json", '{"n_layers": "3"}', "'n_layers' of .* must be a valid integer; got '3'"),
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
    with pytest.raises(HeadcodesError, match=f"'{next(iter(wrong))}.*' of"):
        read_folder(tmp_path)


def test_no_runs_make_no_report(tmp_path: Path) -> None:
    with pytest.raises(HeadcodesError, match="at least one run"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(HeadcodesError, match=r"result\.json"):
        write_report([tmp_path], tmp_path / "report.html")


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


@pytest.mark.parametrize("seed", [0, 4])
def test_a_cell_of_a_scan_says_how_to_see_its_prompts(seed: int) -> None:
    cell: dict[str, Any] = {
        "identity": "cell",
        "status": "done",
        "error": None,
        "arrays_sha256": None,
        "projection": None,
        **{"stable": None, "selection_frequency": None},
        **{"model": "it's", "revision": "step1", "task": "ioi", "negative": "abc", "prompts": "", "method": "paper"},
        **{"seed": seed, "prompt_seed": 0, "level": "node", "n_prompts": 20, "n_train": 5, "positions": "last"},
        **{"bos": "no", "bos_added": False, "device": "cpu", "dtype": "float32", "threads": 1, "backend": "torch"},
        **{"n_layers": 1, "n_heads": 2, "n_pairs": 20, "d_model": 4, "parallel_attn_mlp": False},
        **{"head_scores": [1.0, 0.0], "mention_scores": None, "dead_share": 0.0, "share_right": 1.0},
        **{"positive_logit_diff": 1.0, "negative_logit_diff": 0.0, "timings_s": [], "versions": []},
        **dict.fromkeys(
            ("stable", "n_resamples", "selection_frequency", "score_low", "score_high", "verify", "circuit")
        ),
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
        assert Path(given["out"]) == Path("cell")
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
    with pytest.raises(HeadcodesError, match=r"'truth' of .*evaluation\.json must be an object; got 3"):
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
