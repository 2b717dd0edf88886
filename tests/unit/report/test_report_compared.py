"""Heads along checkpoints and across tasks: means and shares over draws, counted by hand; foreign names stay text."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headcodes.circuit.circuit import Circuit
from headcodes.report.compared import checkpoint_groups, specificity, task_groups
from headcodes.report.page import render
from headcodes.report.records import RunRecord, natural
from headcodes.report.summary import overview_matrix
from made_report import HOSTILE, Parts, result

SHAPE = (2, 2)


def run(scores: list[float], **changes: Any) -> RunRecord:
    """A run of two heads in each of two layers, whose circuit is its two best heads."""
    record = result(level="node").record()
    document = dict(record.document) | {"head_scores": scores, "method": "eap", "negative": "abc"} | changes
    circuit = Circuit.from_scores(np.array(scores).reshape(SHAPE), top=2)
    return replace(record, document=document, circuit=circuit)


ALONG = [
    run([1, 2, 0, 0], model="m", revision="step1000", seed=0),
    run([3, 0, 1, 0], model="m", revision="step1000", seed=1),
    run([0, 1, 0, 5], model="m", revision="step20", seed=0),
    run([0, 8, 0, 9], model="m", revision="step3000", seed=0),
    run([0, 8, 0, 9], model="m", revision="step3000", seed=0, method="dla"),
]


def test_scores_along_revisions_are_means_over_draws() -> None:
    (group,) = checkpoint_groups(ALONG)
    assert group["label"] == "m · made-up (abc) · eap"
    assert group["checkpoints"] == ["step20", "step1000", "step3000"]
    assert group["n_runs"] == [1, 2, 1]
    assert group["heads"] == ["a1.h1", "a0.h1", "a0.h0", "a1.h0"]
    assert group["scores"].tolist() == [[5, 0, 9], [1, 1, 8], [0, 2, 0], [0, 0.5, 0]]
    assert group["shares"].tolist() == [[1, 0, 1], [1, 0.5, 1], [0, 1, 0], [0, 0.5, 0]]
    lines = {line["name"]: line["y"] for line in group["lines"]["data"]}
    assert lines["a0.h1"] == [1, 1, 8]
    (cells,) = group["matrix"]["data"]
    np.testing.assert_allclose(cells["z"], np.sqrt(group["scores"] / 9), rtol=1e-6)


def test_lines_have_the_intervals_of_their_scores_where_a_checkpoint_is_one_run() -> None:
    drawn = {"stable": 0.9, "score_low": [1, 1, 0, 0], "score_high": [4, 9, 1, 6]}
    along = [run([2, 8, 0, 5], model="m", revision=f"step{i}", **drawn) for i in (1, 2)]
    (group,) = checkpoint_groups(along)
    assert group["label"].endswith("eap, selected in 90% of draws")
    bars = {line["name"]: line["error_y"] for line in group["lines"]["data"]}
    assert (bars["a0.h1"]["array"], bars["a0.h1"]["arrayminus"]) == ([1, 1], [7, 7])
    assert (bars["a1.h1"]["array"], bars["a1.h1"]["arrayminus"]) == ([1, 1], [5, 5])
    (group,) = checkpoint_groups([*along, run([2, 8, 0, 5], model="m", revision="step1", seed=1, **drawn)])
    assert not any("error_y" in line for line in group["lines"]["data"])
    assert len(checkpoint_groups([*along, *ALONG])) == 2  # what was drawn anew has a circuit of another kind


@pytest.mark.parametrize(
    ("names", "n_groups"),
    [
        (("runs/step-5", "runs/step-40", "runs/step-300"), 1),
        (("runs/a-5", "other/a-40", "runs/b-300"), 0),
        (("smollm2-135m", "smollm2-360m", "planted-ioi"), 0),
    ],
)
def test_folders_whose_last_number_differs_are_checkpoints(names: tuple[str, ...], n_groups: int) -> None:
    groups = checkpoint_groups([run([1, 2, 3, i], model=name) for i, name in enumerate(reversed(names))])
    assert len(groups) == n_groups
    if groups:
        assert groups[0]["checkpoints"] == ["step-5", "step-40", "step-300"]
        assert groups[0]["label"].startswith("runs/step-N")


def test_models_of_other_shapes_and_failed_runs_are_no_checkpoints() -> None:
    other = replace(ALONG[2], circuit=Circuit.from_scores(np.ones((1, 4)), top=2))
    assert checkpoint_groups([ALONG[0], other]) == []
    assert checkpoint_groups([ALONG[0], replace(ALONG[2], error="no memory")]) == []


def test_tasks_share_heads_that_half_of_their_runs_choose() -> None:
    runs = [
        run([4, 2, 0, 0], model="m", task="ioi", seed=0),
        run([4, 2, 0, 0], model="m", task="ioi", seed=1, prompt_seed=7),
        run([0, 8, 0, 4], model="m", task="induction", seed=0),
        run([1, 0, 0, 3], model="m", task="induction", seed=1),
        run([1, 1, 1, 1], model="another", task="ioi"),
    ]
    (group,) = task_groups(runs)
    assert group["tasks"] == ["induction (abc)", "ioi (abc)"]
    assert group["n_runs"] == [2, 2]
    owners = dict(zip(group["heads"], group["of"], strict=True))
    assert owners == {
        "a0.h0": ["induction (abc)", "ioi (abc)"],
        "a0.h1": ["induction (abc)", "ioi (abc)"],
        "a1.h1": ["induction (abc)"],
    }
    # Means: induction (.5, 4, 0, 3.5) / 4, ioi (4, 2, 0, 0) / 4; with two tasks tau is 1 - smaller / larger.
    tau = dict(zip(group["heads"], group["specificity"], strict=True))
    assert tau == pytest.approx({"a0.h0": 1 - 0.125, "a0.h1": 1 - 0.5, "a1.h1": 1.0})


def test_tau_is_nought_where_alike_and_one_where_alone() -> None:
    scores = np.array([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.5], [1.0, 0.0, 0.0, 0.0]])
    assert specificity(scores).tolist() == pytest.approx([0, 1, 0, (0 + 0.5 + 1) / 2])


def test_foreign_names_stay_text_on_the_page() -> None:
    names = [f"{HOSTILE}{i}" for i in (1, 2)]
    runs = [run([1, 2, 3, 4], model="m", revision=name, task=task) for name in names for task in (HOSTILE, "ioi")]
    html = render(runs)
    parts = Parts(html)
    assert sum(kind is None for kind, _, _ in parts.scripts) == 1
    assert parts.handlers == []
    assert len(parts.blocks["checkpoints"]) == 2
    assert len(parts.blocks["tasks"]) == 2
    for line in parts.blocks["checkpoints"][0]["lines"]["data"]:
        assert not any("<" in name for name in line["x"])
    assert Parts(render(runs[:1])).blocks["checkpoints"] == []
    ids = re.findall(r'\sid="([^"]+)"', html[: html.index('id="plotly"')])
    assert len(ids) == len(set(ids))  # a block and an element of one name: the script would read the wrong one


def test_the_overview_tells_revisions_apart() -> None:
    matrix = overview_matrix(ALONG)
    assert matrix is not None
    assert [row["model"] for row in matrix["rows"]] == ["m@step1000", "m@step20", "m@step3000"]
    assert [row["cells"][0]["n"] for row in matrix["rows"]] == [2, 1, 2]
    html = render(ALONG)
    for revision in ("step20", "step1000", "step3000"):
        assert f'data-model="m@{revision}"' in html
    assert "m@step20 · made-up · eap · seed 0" in html


def test_numbers_in_names_sort_as_numbers() -> None:
    names = ["run/step-4", "run/step-16", "a", "10", "9", "step" + "9" * 5000]
    assert sorted(names, key=natural) == ["9", "10", "a", "run/step-4", "run/step-16", "step" + "9" * 5000]
