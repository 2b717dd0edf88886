"""The suite ends whatever its cells do, goes on where it stopped, and makes nothing up."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headcodes import methods, metrics, tasks
from headcodes.comparison import judge, paper, suite
from headcodes.comparison import rows as rows_of
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.methods.findings import Findings
from headcodes.methods.inputs import Inputs
from headcodes.models import planted
from headcodes.models.load import load_model
from headcodes.provenance import code_checksum
from headcodes.scan import cells, plan
from headcodes.store.cells import load_store

QUICK = ["random", "mean-diff", "eap"]


@pytest.fixture(scope="module")
def words_of_docstring() -> Any:
    """A tokenizer in which names of arguments are single tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from headcodes.tasks import docstring

    core = Tokenizer(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, min_frequency=1, show_progress=False)
    core.train_from_iterator([f" {word}" for word in docstring.WORDS], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core)


def quality(out: Path, level: str = "node", **changes: Any) -> list[rows_of.Row]:
    wanted: dict[str, Any] = {"method_ids": QUICK, "task_ids": ["ioi"], "seeds": range(2), "with_faithfulness": False}
    wanted["shared"] = {"n_prompts": 6, "level": level, "device": "cpu", "threads": torch.get_num_threads()}
    return suite.run_quality("planted-ioi", out=out, **(wanted | changes))


def test_rows_files_and_figures(tmp_path: Path) -> None:
    rows = quality(tmp_path, with_faithfulness=True)
    assert [(row.method, row.seed) for row in rows] == [(m, s) for s in (0, 1) for m in QUICK]
    labels = planted.load("planted-ioi").truth.labels
    for row in rows:
        assert row.status == "ok", row
        assert row.auc == pytest.approx(metrics.roc_auc(np.array(row.scores), labels))
        assert row.ap == pytest.approx(metrics.average_precision(np.array(row.scores), labels))
        assert row.truth == "planted"
        assert row.seconds is not None
        assert row.seconds > 0
        assert row.faithfulness is not None
        assert row.faithfulness[0] == pytest.approx(0, abs=1e-4)
        assert row.faithfulness[-1] == pytest.approx(1, abs=1e-4)
    eap = [row for row in rows if row.method == "eap"]
    assert all(row.auc == 1.0 and row.cpr is not None and row.cmd is not None for row in eap)
    with (tmp_path / "results.csv").open() as file:
        sheet = list(csv.DictReader(file))
    assert [float(line["auc"]) for line in sheet] == [row.auc for row in rows]
    document = json.loads((tmp_path / "results.json").read_text())
    summary = {each["method"]: each for each in document["summary"]}
    values = [row.auc for row in rows if row.method == "random"]
    assert summary["random"]["means"]["auc"] == pytest.approx(np.mean(values))
    # Student's t for one degree of freedom: 12.706 standard errors.
    assert summary["random"]["halves"]["auc"] == pytest.approx(12.7062 * np.std(values, ddof=1) / 2**0.5, rel=1e-5)
    page = (tmp_path / "page.html").read_text()
    figures = json.loads(page.split('id="figures">')[1].split("</script>")[0])
    names = {trace["name"].split(":")[0] for figure in figures.values() for trace in figure["data"]}
    assert set(QUICK) <= names
    assert "mean-diff" in rows_of.table(rows)


def test_a_stopped_suite_goes_on_and_budgets_can_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    score = methods.Method.score

    def slow(self: Any, *given: Any) -> list[Findings]:
        calls.append(self.id)
        if self.id == "mean-diff":
            signal.raise_signal(signal.SIGALRM)  # as the timer would, on a machine of any speed
        if self.id == "act-norm":
            raise RuntimeError("broken\nin two lines")
        return score(self, *given)

    monkeypatch.setattr(signal, "setitimer", lambda *_args: None)
    monkeypatch.setattr(methods.Method, "score", slow)
    names = ["random", "mean-diff", "act-norm"]
    rows = quality(tmp_path, method_ids=names, seeds=[0], budget_s=3)
    assert [row.status for row in rows] == ["ok", "over budget", "failed"]
    assert rows[1].note == "more than 3 s"
    assert rows[2].note == "RuntimeError: broken"
    assert "over budget: more than 3 s" in rows_of.table(rows)
    assert quality(tmp_path, method_ids=names, seeds=[0], budget_s=3) == rows
    assert calls == names
    two = quality(tmp_path, method_ids=["mean-diff"], seeds=[0, 1], budget_s=3)
    assert (two[0], two[1].seed, two[1].status) == (rows[1], 1, "over budget")
    assert two[1].note == "more than 3 s with seed 0, so not tried"
    assert calls == names
    monkeypatch.setattr(plan, "code_checksum", lambda: "other code")
    assert [row.status for row in quality(tmp_path, method_ids=["random"], seeds=[0])] == ["ok"]
    assert calls == [*names, "random"]
    monkeypatch.setattr(plan, "code_checksum", code_checksum)
    monkeypatch.setattr(methods.Method, "score", score)
    again = quality(tmp_path, method_ids=names, seeds=[0], budget_s=60)
    assert [row.status for row in again] == ["ok", "ok", "failed"]
    (failed,) = (row["identity"] for row in load_store(tmp_path).to_pylist() if row["failure"] == "error")
    (tmp_path / "cells" / f"{failed}.parquet").write_text("{")
    with pytest.warns(HeadcodesWarning, match="damaged cell, to be done again"):
        assert [row.status for row in quality(tmp_path, method_ids=names, seeds=[0])] == ["ok"] * 3


def test_pairs_are_judged_by_paths_where_no_plant_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planted.load("planted-induction-18")
    monkeypatch.setattr(planted, "is_planted", lambda _name: False)
    options: dict[str, Any] = {"top": len(made.truth.heads), "n_pairs": 8, "with_faithfulness": False}
    found = judge.make_judge(made.model, "induction", with_paths=True, **options)
    assert found.pair_labels is not None
    assert found.known_pairs is not None
    assert np.array_equal(found.pair_labels, made.truth.pair_labels)
    # Every two of the four heads that lie in different layers, and no others.
    assert found.known_pairs.sum() == 6
    without = judge.make_judge(made.model, "induction", **options)
    assert without.pair_labels is None
    assert without.key() != found.key()


def test_what_a_method_cannot_do_is_a_row(tmp_path: Path) -> None:
    rows = quality(tmp_path, method_ids=["mean-diff", "eap"], seeds=[0], level="edge")
    assert [row.status for row in rows] == ["not possible", "ok"]
    assert rows[0].note == "scores node level only"
    assert rows[1].pair_auc is not None
    assert rows[1].pair_auc > 0.95
    assert rows[1].pair_ap is not None
    assert rows[1].cpr is None
    with pytest.raises(HeadcodesError, match="a method must be one of"):
        quality(tmp_path, method_ids=["nonsense"])
    with pytest.raises(HeadcodesError, match="tasks of planted-ioi-48 must be ioi"):
        quality(tmp_path, task_ids=["induction"])


def test_scores_stand_where_faithfulness_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_named: Any) -> None:
        raise HeadcodesError("heads matter", "none", "Choose others.")

    monkeypatch.setattr(judge, "head_cpr_cmd", refuse)
    (row,) = quality(tmp_path, method_ids=["mean-diff"], seeds=[0], with_faithfulness=True)
    assert (row.status, row.cpr, row.cmd) == ("ok", None, None)
    assert row.note.startswith("no CPR and CMD: ")
    assert row.auc is not None
    assert row.sizes is not None


def test_areas_at_edge_level_are_over_edges(tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headcodes.evaluation.areas import edge_cpr_cmd
    from headcodes.prompts.tokens import tokenize

    model = tiny_model("qwen3")
    tokens = tokenize(tasks.get("ioi").build(model.tokenizer, 3, seed=9), model.tokenizer)
    labels = np.arange(12).reshape(3, 4) < 3
    made = judge.Judge("made", labels, None, tokens)

    def judged(name: str) -> list[rows_of.Row]:
        monkeypatch.setattr(cells, "_load", lambda _cell: tiny_model(name))
        shared = {"n_prompts": 4, "level": "edge", "device": "cpu"}
        names = ["eap", "paper"] if name == "qwen3" else ["eap"]
        worker = cells.Worker()
        return list(suite.judged_cells((name, None), "ioi", names, [0], shared, lambda _: made, tmp_path, worker, None))

    row, without = judged("qwen3")
    given = tokenize(tasks.get("ioi").build(model.tokenizer, 4, seed=0), model.tokenizer)
    edges = methods.get("eap").find(Inputs(model, given), "edge", 0).edges
    assert edges is not None
    areas = edge_cpr_cmd(model, tokens, edges)
    assert (row.cpr, row.cmd) == (pytest.approx(areas["cpr"], rel=1e-3), pytest.approx(areas["cmd"], rel=1e-3))
    assert (without.status, without.cpr, without.note) == ("ok", None, "")
    (gemma,) = judged("gemma3_text")
    assert (gemma.status, gemma.cpr) == ("ok", None)
    assert "norms what its parts write" in gemma.note


def test_a_judgement_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quality(tmp_path, with_faithfulness=True, seeds=[0])
    monkeypatch.setattr(judge, "curve", lambda *_args, **_named: pytest.fail("a judgement was made again"))
    assert quality(tmp_path, with_faithfulness=True, seeds=[0]) == first
    assert [row.sizes for row in quality(tmp_path, seeds=[0])] == [None] * 3


def test_the_paper_suite_lists_what_is_missing_and_invents_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(cell: Any) -> Any:
        raise HeadcodesError("a model must be there", cell.model, "Connect.")

    monkeypatch.setattr(cells, "_load", load)
    rows, missing = paper.run_paper(out=tmp_path, shared={"n_prompts": 2, "device": "cpu"})
    assert rows == []
    assert [line.split(":")[0] for line in missing] == ["attn-only-4l (for docstring)", "gpt2 (for greater-than, ioi)"]
    assert not list(tmp_path.iterdir())


def test_the_paper_suite_runs_on_random_weights_of_the_models_shapes(
    attention_only: Any, words_of_docstring: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=48, n_layer=12, n_head=12, n_positions=64)
    gpt2 = load_model(GPT2LMHeadModel(config), tokenizer=tiny_tokenizer)
    shapes = {"gpt2": gpt2, "attn-only-4l": attention_only(words_of_docstring)}
    monkeypatch.setattr(paper, "PAPER_METHODS", ("mean-diff", "eap"))
    monkeypatch.setattr(cells, "_load", lambda cell: shapes[cell.model])
    rows, missing = paper.run_paper(out=tmp_path, shared={"n_prompts": 2, "device": "cpu"})
    found = [("mean-diff", "node", "ok"), ("eap", "node", "ok"), ("eap", "edge", "ok")]
    tasks_of = [("docstring", "conmy2023"), ("greater-than", "conmy2023"), ("ioi", "wang2022")]
    assert [(row.task, row.truth, row.method, row.level, row.status) for row in rows] == [
        (*task, *cell) for task in tasks_of for cell in found
    ]
    assert all(row.auc is not None for row in rows)
    assert all(row.pair_auc is not None for row in rows[2::3])
    assert missing == []
    monkeypatch.setitem(paper.PUBLISHED, "eap", {"ioi": (0.123, 0.456)})
    lines = paper.paper_table(rows).splitlines()
    assert [line.split()[4] for line in lines[7:]] == ["-", "0.123", "0.456"]
