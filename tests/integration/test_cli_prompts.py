"""The user's own prompts on the command line: what is said, what is kept, and what is refused."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headcodes import tasks
from headcodes.report.stores import read_store

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def folder(tiny_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny_folder(tmp_path_factory.mktemp("tiny-llama"))
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a: {% endif %}"
    )
    return path


@pytest.fixture(scope="module")
def table(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of ioi pairs as a spreadsheet writes it, two of its rows broken."""
    path = tmp_path_factory.mktemp("prompts") / "mine.csv"
    pairs = tasks.get("ioi").build(tiny_tokenizer, n=14, seed=1)
    rows = [[pair.clean, pair.corrupt, pair.answers[0].strip(), pair.wrong_answers[0].strip()] for pair in pairs]
    rows[3] = rows[3][:2]
    rows[5][1] = rows[5][0]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([["prompt", "counterfactual", "answer", "wrong"], *rows])
    return path


def test_a_table_with_broken_rows(run: Run, folder: Path, table: Path, tmp_path: Path) -> None:
    status, out, err = run("discover", "--model", folder, "--prompts", table)
    assert (status, out) == (2, "")
    assert "line 5 of" in err
    assert err.count("\n") == 1
    arguments = ["discover", "--model", folder, "--prompts", table, "--skip-bad", "--json"]
    status, out, err = run(*arguments, "--out", tmp_path / "out")
    assert status == 0
    assert f"headcodes: {table}: 12 of 14 rows used" in err
    assert "got a space in front" in err
    assert "line 7 of" in err
    first = json.loads(out)
    assert first["n_prompts"] == 12
    assert first["reading"]["left_out"] == {"of another length": 1, "identical texts": 1}
    assert json.loads((tmp_path / "out" / "result.json").read_text())["reading"] == first["reading"]
    # Without opening the model again, the same is said.
    status, out, again = run(*arguments)
    assert status == 0
    assert "12 of 14 rows used" in again
    assert json.loads(out)["reading"] == first["reading"]
    # Other options are other prompts.
    status, out, _ = run(*arguments, "--leading-space", "no", "--whole-answers")
    assert status == 0
    second = json.loads(out)
    assert second["task_check"]["positive_logit_diff"] != first["task_check"]["positive_logit_diff"]
    assert 0 <= second["task_check"]["whole_share_right"] <= 1


def test_negatives_and_chat(run: Run, folder: Path, table: Path) -> None:
    arguments = ["discover", "--model", folder, "--prompts", table, "--skip-bad", "--json", "--method", "mean-diff"]
    status, out, err = run(*arguments, "--corrupt", "shuffle", "--seed", "1")
    assert status == 0, err
    document = json.loads(out)
    assert document["negative"] == "shuffle"
    assert "the words of each prompt are put in another order" in err
    status, out, err = run(*arguments, "--chat", "--system", "Be brief.")
    assert status == 0, err
    assert "system: Be brief.\\nuser: " in err
    chat = json.loads(out)
    assert (chat["bos"], chat["bos_added"], chat["chat"], chat["system"]) == ("auto", False, True, "Be brief.")
    assert json.loads(out)["head_scores"] != document["head_scores"]


def test_evaluate_and_scan_take_the_same_file(run: Run, folder: Path, table: Path, tmp_path: Path) -> None:
    status, _, err = run(
        "discover", "--model", folder, "--prompts", table, "--skip-bad", "--out", tmp_path / "out", "--method", "dla"
    )
    assert status == 0, err
    options = ["--skip-bad", "--leading-space", "no"]
    evaluate = ["evaluate", tmp_path / "out" / "circuit.json", "--prompts", table, "--top", "4", "--whole-answers"]
    status, out, err = run(*evaluate, *options, "--json")
    assert status == 0, err
    assert "12 of 14 rows used" in err
    judged = json.loads(out)
    assert judged["circuit"]["task"] == "mine"
    discover = ["discover", "--model", folder, "--prompts", table, *options, "--method", "eap", "--whole-answers"]
    own = json.loads(run(*discover, "--json", "--dtype", "float32")[1])
    assert judged["whole_answers"]["share_right"] == own["task_check"]["whole_share_right"]
    assert judged["whole_answers"]["log_ratio"] == pytest.approx(own["task_check"]["whole_log_ratio"], abs=1e-5)
    assert "whole answers: the right ones likelier in" in run(*evaluate, *options)[1]
    # A scan reads the file as it is asked to, and finds what discover finds.
    scan = ["scan", "--models", folder, "--tasks", table, "--methods", "eap", "--dtype", "float32"]
    status, _, err = run(*scan, "--store", tmp_path / "strict")
    assert "line 5 of" in err
    status, out, err = run(*scan, *options, "--json-lines", "--store", tmp_path / "store")
    assert status == 0, err
    row = json.loads(out)
    assert (row["skip_bad"], row["leading_space"], row["n_pairs"]) == (True, "no", 12)
    assert row["head_scores"] == pytest.approx(own["head_scores"], abs=1e-6)
    (record,) = read_store(tmp_path / "store")
    assert "--skip-bad --leading-space no" in record.command


def test_a_scan_takes_data_sets(run: Run, folder: Path, table: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.csv").write_bytes(table.read_bytes())
    scan = ["scan", "--models", folder, "--tasks", f"hf:{tmp_path / 'set'}", "--skip-bad", "--methods", "random"]
    status, out, err = run(*scan, "--json-lines", "--store", tmp_path / "store")
    assert status == 0, err
    assert json.loads(out)["n_pairs"] == 12
    assert "0 of 1 cells to do" in run(*scan, "--dry-run", "--store", tmp_path / "store")[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--columns", "clean=x"], "must go with --prompts"),
        (["--system", "x"], "--system must go with --chat"),
        (["--prompts", "nowhere.csv"], "there to be read"),
        (["--prompts", "{table}", "--columns", "clean=x"], "'x'"),
        (["--prompts", "{table}", "--columns", "x"], "roles are clean"),
        (["--prompts", "{table}", "--corrupt", "swap"], "line 5 of"),
    ],
)
def test_wrong_requests_are_one_line(run: Run, folder: Path, table: Path, arguments: list[str], said: str) -> None:
    status, out, err = run("discover", "--model", folder, *[word.format(table=table) for word in arguments])
    assert (status, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_positions_by_name(run: Run, folder: Path, table: Path, tmp_path: Path) -> None:
    path = tmp_path / "marked.csv"
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))[:4]
    for row in rows[1:]:
        row[:2] = [re.sub(r"(\w+)$", r"[end]\1[/end]", text) for text in row[:2]]
    plain = tmp_path / "plain.csv"
    for name, unmark in ((path, ""), (plain, r"\[/?end\]")):
        with name.open("w", newline="") as file:
            csv.writer(file).writerows([[re.sub(unmark, "", text) if unmark else text for text in row] for row in rows])
    arguments = ["discover", "--model", folder, "--json", "--method", "eap"]
    found = {}
    for positions in ("mean", "end", "-1", "changed"):
        file = path if positions == "end" else plain
        status, out, err = run(*arguments, "--prompts", file, "--positions", positions)
        assert status == 0, err
        found[positions] = json.loads(out)
        assert found[positions]["positions"] == positions
    assert "span [end] is marked" in run(*arguments, "--prompts", path, "--positions", "end")[2]
    assert "look like marks of a span: [end]" in run(*arguments, "--prompts", path)[2]
    assert found["end"]["head_scores"] == pytest.approx(found["-1"]["head_scores"])
    assert found["end"]["head_scores"] != pytest.approx(found["mean"]["head_scores"])
    assert len(found["mean"]["scores_last"]) == len(found["mean"]["head_scores"])
    status, _, err = run("discover", "--model", folder, "--positions", "end")
    assert status == 2
    assert "span that --prompts marks" in err
