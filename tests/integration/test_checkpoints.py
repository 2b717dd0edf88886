"""A scan over checkpoints of one model, and the report of how its heads move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headcodes import tasks
from headcodes.scan import load_store
from made_report import Parts

STEPS = (1, 4, 9, 16)


@pytest.fixture(scope="session")
def checkpoints(tiny_hf: Any, tiny_tokenizer: Any, tmp_path_factory: Any) -> list[Path]:
    """A random model, trained for some steps to answer ioi prompts: a folder a checkpoint."""
    model = tiny_hf("llama")
    pairs = tasks.get("ioi").build(tiny_tokenizer, n=32, seed=5)
    answers = torch.tensor([tiny_tokenizer.encode(pair.answers[0])[0] for pair in pairs])
    prompts = [tiny_tokenizer(pair.clean, return_tensors="pt").input_ids for pair in pairs]
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    root, folders = tmp_path_factory.mktemp("run"), []
    for step in range(1, STEPS[-1] + 1):
        rows = [(3 * step + i) % len(prompts) for i in range(8)]
        logits = torch.cat([model(input_ids=prompts[row]).logits[:, -1] for row in rows])
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits, answers[rows]).backward()
        optimiser.step()
        if step in STEPS:
            folders.append(root / f"step-{step}")
            model.save_pretrained(folders[-1])
            tiny_tokenizer.save_pretrained(folders[-1])
    return folders


def test_the_report_shows_what_the_store_holds(checkpoints: list[Path], run: Any, tmp_path: Path) -> None:
    """A scan over them, with two draws of the prompts, two negatives and two methods, and its page."""
    along, page = tmp_path / "store", tmp_path / "page.html"
    what = ["--models", ",".join(map(str, checkpoints)), "--tasks", "ioi:abc,ioi:swapped", "--n-prompts", 8]
    what += ["--methods", "eap,mean-diff", "--dtype", "float32", "--device", "cpu", "--store", along]
    for seed in (0, 1):
        assert run("scan", *what, "--prompt-seed", seed)[0] == 0
    assert run("report", along, "--out", page)[0] == 0
    blocks = Parts(page.read_text(encoding="utf-8")).blocks
    rows = load_store(along).to_pylist()
    assert len(rows) == 32
    assert all(row["status"] == "done" for row in rows)
    groups = {group["label"].partition(" · ")[2]: group for group in blocks["checkpoints"]}
    assert set(groups) == {f"ioi ({negative}) · {m}" for negative in ("abc", "swapped") for m in ("eap", "mean-diff")}
    group = groups["ioi (swapped) · eap"]
    assert group["checkpoints"] == [f"step-{step}" for step in STEPS]
    assert group["n_runs"] == [2] * 4
    lines = {line["name"]: line["y"] for line in group["lines"]["data"]}
    for place, step in enumerate(STEPS):
        asked = {"method": "eap", "negative": "swapped"}
        its = [row for row in rows if row["model"].endswith(f"-{step}") and asked.items() <= row.items()]
        means = np.mean([row["head_scores"] for row in its], 0)
        for head, values in lines.items():
            layer, number = head[1:].split(".h")
            assert values[place] == pytest.approx(means[4 * int(layer) + int(number)])
    assert len(blocks["tasks"]) == 8  # two tasks for each checkpoint and method
    assert blocks["tasks"][0]["tasks"] == ["ioi (abc)", "ioi (swapped)"]
