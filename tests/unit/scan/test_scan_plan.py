"""Plans, cells and what makes two cells the same."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headcodes.errors import HeadcodesError
from headcodes.scan import plan as plans
from headcodes.scan.cells import Queue
from headcodes.scan.command import read_plan
from headcodes.scan.plan import Cell, Plan

WHOLE = """\
models:
  - planted-ioi
  - source: EleutherAI/pythia-160m
    revisions: [step1000, step2000]
tasks:
  - ioi
  - id: ioi
    negative: abc
methods: [paper, default]
seeds: 0-2,5
n_prompts: 40
device: cpu
dtype: float32
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


def cell(**changes: Any) -> Cell:
    (found,) = Plan(models=(("planted-ioi", None),), device="cpu").cells()
    return dataclasses.replace(found, **changes)


def test_a_plan_is_the_product_of_its_lists(tmp_path: Path) -> None:
    plan = Plan.from_yaml(written(tmp_path, WHOLE))
    assert plan.models == (
        ("planted-ioi", None),
        ("EleutherAI/pythia-160m", "step1000"),
        ("EleutherAI/pythia-160m", "step2000"),
    )
    assert plan.tasks == (("ioi", None), ("ioi", "abc"))
    cells = list(plan.cells())
    assert len(cells) == 3 * 2 * 2 * 4
    assert {cell.n_prompts for cell in cells} == {40}
    # What is dear to change comes first: all cells of a model, and in it all of one set of prompts, are neighbours.
    order = [(cell.model, cell.revision) for cell in cells]
    assert order == sorted(order, key=order.index)


def test_lists_of_the_command_line_make_the_same_plan(tmp_path: Path) -> None:
    lists = {"models": "a/b, c/d@step5", "tasks": "ioi:abc,induction", "methods": "paper", "seeds": "0-1"}
    plan = read_plan(None, {**lists, "n_prompts": 7})
    assert plan.models == (("a/b", None), ("c/d", "step5"))
    assert plan.tasks == (("ioi", "abc"), ("induction", None))
    explicit, implicit = plan.cells(), replace(plan, tasks=(("ioi", None), ("induction", None))).cells()
    assert list(explicit) == list(implicit), "a task's first negative is its default"
    assert (plan.methods, plan.seeds, plan.n_prompts) == (("paper",), (0, 1), 7)
    with pytest.raises(HeadcodesError, match=r"--seeds, --n-prompts beside"):
        read_plan(tmp_path / "plan.yaml", {"seeds": "1", "n_prompts": 7})
    with pytest.raises(HeadcodesError, match="neither a plan file nor --models"):
        read_plan(None, {})


def test_a_path_with_an_at_sign_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a@b").mkdir()
    assert Plan.from_lists(f"{tmp_path}/a@b", "ioi", "default", "0").models == ((f"{tmp_path}/a@b", None),)


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("n_prompts: 40", "n_promts: 40", 11, r"unknown key 'n_promts'.*Did you mean 'n_prompts'"),
        ("n_prompts: 40", "n_prompts: forty", 11, "'n_prompts' of .* must be a valid integer; got 'forty'"),
        ("n_prompts: 40", "n_prompts: 0", 11, "must be greater than or equal to 1; got 0"),
        ("n_prompts: 40", "methods: [paper]", 11, "'methods' again"),
        ("methods: [paper, default]", "methods: [papre]", 9, "Did you mean 'paper'"),
        ("  - ioi\n", "  - iou\n", 6, "Did you mean 'ioi'"),
        ("    negative: abc", "    negative: abd", 8, "Did you mean 'abc'"),
        ("    negative: abc", "    negativ: abc", 8, "Did you mean 'negative'"),
        ("seeds: 0-2,5", "seeds: 0..2", 10, "0..2"),
        ("    revisions: [step1000, step2000]", "    revision: step1000", 4, "unknown key 'revision'.*'revisions'"),
        ("methods: [paper, default]", "methods: [paper", 10, ""),
        ("dtype: float32", "dtype: int8", 13, "int8"),
        ("  - id: ioi\n", "  - prompts: a.csv\n    id: ioi\n", 7, "must name either 'id' or 'prompts'"),
        ("source: EleutherAI/pythia-160m", "source: [a]", 3, r"'models\.1\.source' of .* must be a valid string"),
        ("n_prompts: 40", "stable: 0", 11, "must be greater than 0"),
    ],
)
def test_a_typing_error_is_named_with_its_line(tmp_path: Path, old: str, new: str, line: int, says: str) -> None:
    assert old in WHOLE
    with pytest.raises(HeadcodesError) as caught:
        Plan.from_yaml(written(tmp_path, WHOLE.replace(old, new)))
    assert f"line {line}" in str(caught.value)
    assert re.search(says, str(caught.value), re.DOTALL), caught.value


@pytest.mark.parametrize("text", ["", "[]", "tasks: [ioi]", "just words", "models: []", "!!python/object:os.system {}"])
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(HeadcodesError):
        Plan.from_yaml(written(tmp_path, text))


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HeadcodesError, match=r"none\.yaml"):
        Plan.from_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"tasks": (("missing.json", None),)}, "prompt file"),
        ({"tasks": (("induction", "abc"),)}, "negative of induction"),
        ({"methods": ("dla",), "level": "edge"}, "must score its level"),
        ({"methods": ("eap", "paper"), "stable": 0.9}, "stable=0.9 with 'paper'"),
        ({"methods": ("eap",), "stable": 1.5}, "stable must lie in"),
        ({"verify": "0"}, "verify must be"),
        ({"methods": ("eap",), "stable": 0.9, "verify": "5"}, "stable"),
    ],
)
def test_what_no_cell_could_do_is_refused_at_once(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(HeadcodesError, match=says):
        Plan(models=(("planted-ioi", None),), **changes)


def test_a_revision_is_that_of_models_that_name_none() -> None:
    plan = Plan.from_lists("a,b@step1", "ioi", "paper", "0", revision="main", projection="layers.{layer}.o_proj")
    assert plan.models == (("a", "main"), ("b", "step1"))
    assert plan.projection == "layers.{layer}.o_proj"


def test_every_setting_is_part_of_what_a_cell_is(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {
        "model": "planted-induction",
        "revision": "x",
        "task": "induction",
        "negative": "bac",
        "prompts": "0" * 64,
        "method": "paper",
        "seed": 1,
        "level": "edge",
        "n_prompts": 3,
        "prompt_seed": 2,
        "stable": 0.9,
        "verify": "auto",
        "n_train": 4,
        "positions": "last",
        "bos": "no",
        "columns": "clean=x",
        "skip_bad": True,
        "leading_space": "no",
        "corrupt": "swap",
        "chat": True,
        "system": "Be brief.",
        "device": "cuda",
        "dtype": "bfloat16",
        "projection": "layers.{layer}.o_proj",
        "threads": 2,
    }
    assert set(changes) == {field.name for field in dataclasses.fields(Cell)}
    besides = {"system": {"chat": True}}  # which is then another change than that of chat alone
    changed = [{name: value, **besides.get(name, {})} for name, value in changes.items()]
    identities = [cell().identity(), *(cell(**each).identity() for each in changed)]
    assert len(set(identities)) == len(changes) + 1
    assert cell().identity() == identities[0]
    for name in ("code_checksum", "library_versions"):
        with monkeypatch.context() as patch:
            patch.setattr(plans, name, lambda: "other")
            assert cell().identity() != identities[0], name


def test_other_weights_are_another_cell(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"one")
    seen = set()
    for content in (b"one", b"two"):
        (tmp_path / "model.safetensors").write_bytes(content)
        plans.forget_models()
        seen.add(cell(model=str(tmp_path)).identity())
    assert len(seen) == 2
    plans.forget_models()
    missing = cell(model=str(tmp_path / "gone")).identity()  # has an identity too: it is to become a failed row
    assert missing not in seen


def test_code_that_only_shows_results_changes_no_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import headcodes

    for name in ("sae.py", "cli/scan.py", "report/page.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(headcodes, "__path__", [str(tmp_path)])

    def now() -> str:
        return plans.code_checksum.__wrapped__()

    first = now()
    (tmp_path / "cli" / "scan.py").write_text("2")
    (tmp_path / "report/page.py").write_text("2")
    assert now() == first
    (tmp_path / "sae.py").write_text("2")
    assert now() != first


def test_auto_is_resolved_and_planted_models_stay_exact() -> None:
    plan = Plan(models=(("planted-ioi", None), ("a/b", None)), dtype="bfloat16", device="cpu")
    assert {cell.dtype for cell in plan.cells()} == {"bfloat16"}
    resolved = {cell.model: cell for cell in dataclasses.replace(plan, dtype="auto", device="auto").cells()}
    assert resolved["planted-ioi"].dtype == "float32"
    assert "auto" not in {cell.device for cell in resolved.values()} | {cell.dtype for cell in resolved.values()}
    elsewhere = dataclasses.replace(plan, device="cuda:7")
    assert {cell.device for cell in elsewhere.cells(here=False)} == {"cuda:7"}


def jobs(*rows: tuple[str, str, int]) -> list[tuple[str, Cell]]:
    return [(f"{model}{task}{seed}", cell(model=model, task=task, seed=seed)) for model, task, seed in rows]


def test_one_worker_takes_cells_in_the_order_of_the_plan() -> None:
    rows = jobs(*((m, t, s) for m in "AB" for t in ("ioi", "induction") for s in range(3)))
    queue = Queue(rows)
    assert [queue.take(0) for _ in rows] == rows
    assert queue.take(0) is None


def test_workers_keep_their_models_and_steal_only_at_the_end() -> None:
    rows = jobs(*((m, t, s) for m in "AB" for t in ("ioi", "induction") for s in range(2)))
    queue = Queue(rows)
    taken: dict[int, list[str]] = {0: [], 1: []}
    for turn in range(len(rows)):
        job = queue.take(turn % 2)
        assert job is not None
        taken[turn % 2].append(job[0])
    assert taken[0] == ["Aioi0", "Aioi1", "Ainduction0", "Ainduction1"]
    assert taken[1] == ["Bioi0", "Bioi1", "Binduction0", "Binduction1"]
    queue = Queue(jobs(*(("A", "ioi", seed) for seed in range(4))))
    assert [(queue.take(worker) or "")[0] for worker in (0, 1, 1, 0)] == ["Aioi0", "Aioi1", "Aioi2", "Aioi3"]


def test_the_model_read_ahead_is_the_one_wanted_next() -> None:
    queue = Queue(jobs(("A", "ioi", 0), ("B", "ioi", 0), ("C", "ioi", 0)))
    first, second = queue.take(0), queue.take(1)
    assert first is not None
    assert second is not None
    ahead = queue.ahead(second[1])
    assert ahead is not None
    assert (first[1].model, second[1].model, ahead.model) == ("A", "B", "C")
    last = queue.take(0)
    assert last is not None
    assert queue.ahead(last[1]) is None


def test_a_plan_from_a_device_is_refused() -> None:
    with pytest.raises(HeadcodesError, match="a device"):
        Plan.from_yaml("/dev/zero")
