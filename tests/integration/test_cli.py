"""The command line, in process: what goes where (what it refuses: test_cli_refusals.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., tuple[int, str, str]]


pytestmark = pytest.mark.usefixtures("own_cache")


def test_table_on_stdout_complaints_on_stderr(run: Run, folder: Path) -> None:
    status, out, err = run("discover", "--model", folder, "--n-prompts", "30", "--level", "edge")
    assert status == 0
    assert "task check" in out
    assert "seconds: import" in out
    assert "a0.h" in out
    assert "warning" in err, out  # a random model does no task


def test_json_is_one_object_and_repeats(run: Run, folder: Path) -> None:
    documents = []
    for _ in range(2):
        status, out, _ = run("discover", "--model", folder, "--n-prompts", "12", "--level", "edge", "--json")
        assert status == 0
        documents.append(json.loads(out))
        assert min(documents[-1].pop("timings_s").values()) >= 0
    assert documents[0] == documents[1]
    assert documents[0]["model"] == str(folder)


def test_planted_models_stay_exact_where_bfloat16_is_the_default(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from headcodes.models import devices

    monkeypatch.setattr(devices, "_computes_bf16", lambda _device: True)
    plain = ("discover", "--model", "planted-ioi", "--n-prompts", "6", "--method", "act-norm", "--json")
    for words, dtype in (((), "float32"), (("--dtype", "bfloat16"), "bfloat16")):
        status, out, err = run(*plain, *words)
        assert (status, json.loads(out)["dtype"]) == (0, dtype), err


def test_a_planted_model_is_asked_for_its_own_task(run: Run) -> None:
    for name in ("planted-ioi", "planted-induction-48"):
        status, out, err = run("discover", "--model", name, "--n-prompts", "6", "--method", "act-norm", "--json")
        assert (status, json.loads(out)["task"]) == (0, name.split("-")[1]), err


def test_a_second_run_opens_no_model_and_says_the_same(
    run: Run, folder: Path, prompt_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headcodes.models import load as opening

    def document(*arguments: str | Path) -> dict[str, Any]:
        plain = ("--level", "edge", "--json", "--verify", "off")
        status, out, err = run("discover", "--model", folder, *plain, *arguments)
        assert status == 0, err
        document: dict[str, Any] = json.loads(out)
        del document["timings_s"]
        return document

    plain = document("--n-prompts", "12", "--no-cache")
    first = document("--n-prompts", "12"), document("--prompts", prompt_file)
    with monkeypatch.context() as patch:
        patch.setattr(opening, "load_model", lambda *_args, **_kwargs: pytest.fail("the model was opened"))
        assert (document("--n-prompts", "12"), document("--prompts", prompt_file)) == first
    assert first[0] == plain
    # Anything that changes the activations asks for others.
    assert document("--n-prompts", "12", "--dtype", "float32")["dtype"] == "float32"
    assert document("--n-prompts", "13") != plain
    status, out, _ = run("cache", "ls")
    assert status == 0
    assert "12 pairs" in out
    assert run("cache", "clear")[0] == 0
    assert run("cache", "ls")[1] == ""


def test_prompt_file_and_out_folder(run: Run, folder: Path, prompt_file: Path, tmp_path: Path) -> None:
    status, _, err = run("discover", "--model", folder, "--prompts", prompt_file, "--out", tmp_path / "new" / "out")
    assert status == 0, err
    names = {path.name for path in (tmp_path / "new" / "out").iterdir()}
    assert names >= {"circuit.json", "result.json", "prompts.json", "scores.safetensors", "sae", "page.html"}


def test_a_circuit_is_found_judged_exported_compared_and_shown(run: Run, tmp_path: Path) -> None:
    for method in ("mean-diff", "patching"):
        arguments = ("--model", "planted-ioi", "--n-prompts", "40", "--top", "5")
        assert run("discover", *arguments, "--method", method, "--out", tmp_path / method)[0] == 0
    found, exact = tmp_path / "mean-diff" / "circuit.json", tmp_path / "patching" / "circuit.json"
    evaluate = ("evaluate", exact, "--model", "planted-ioi", "--n-pairs", "8", "--top", "5")
    status, out, err = run(*evaluate, "--json", "--out", exact.with_name("evaluation.json"))
    assert status == 0, err
    assert json.loads(out) == json.loads(exact.with_name("evaluation.json").read_text())
    assert json.loads(out)["membership"]["f1"] == 1
    assert json.loads(out)["ranking"]["roc_auc"] == 1
    status, out, _ = run("diff", found, exact)
    assert status == 0
    assert "a4.h7" in out
    for form in ("mib", "auto-circuit", "graphml", "circuit"):
        assert run("export", exact, tmp_path / form, "--format", form)[0] == 0
        assert (tmp_path / form).stat().st_size > 0
    status, _, err = run("report", tmp_path, "-o", tmp_path / "report.html")
    assert status == 0, err
    assert "2 runs" in err


def test_fdr_and_verify_are_printed(run: Run) -> None:
    arguments = ("--model", "planted-ioi", "--method", "paper", "--n-prompts", "60")
    status, out, err = run("discover", *arguments, "--fdr", "0.05", "--verify", "5")
    assert status == 0, err
    assert "not membership in the circuit" in out
    assert "of 5 patched exactly on 32 pairs" in out
    confirmed = int(out.split(" heads confirmed of")[0].split()[-1])
    assert (
        out.index("heads confirmed")
        < out.index("not reached (so many were asked for): 43 heads")
        < out.index("seconds")
    )
    heads = out[out.index("heads confirmed") : out.index("not reached")]
    assert heads.count("[+") + heads.count("[-") == confirmed


def test_several_seeds_of_the_method_on_the_prompts_of_one(run: Run, folder: Path, tmp_path: Path) -> None:
    arguments = ("discover", "--model", folder, "--n-prompts", "12", "--level", "edge", "--method", "contrast")
    arguments += ("--verify", "off")

    def document(*more: str) -> dict[str, Any]:
        status, out, err = run(*arguments, "--json", *more)
        assert status == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    together = document("--seed", "1", "--seeds", "1-2,5")
    assert (together["seed"], together["seeds"]) == (1, [1, 2, 5])
    # Prompts come from --seed: only the seed that is both can be had without --seeds.
    single, alone = document("--seed", "1"), document("--seed", "1", "--seeds", "1")
    assert alone["head_scores"] == single["head_scores"]
    assert "seeds" not in single
    others = [document("--seed", "1", "--seeds", str(seed))["head_scores"] for seed in (2, 5)]
    mean = [sum(scores) / 3 for scores in zip(single["head_scores"], *others, strict=True)]
    assert together["head_scores"] == pytest.approx(mean, rel=1e-12)
    status, out, err = run(*arguments, "--seeds", "0-1", "--top", "3", "--out", tmp_path / "out")
    assert status == 0, err
    assert "seed 0, mean of 2 of the method" in out
    assert out.count("consensus") == 2  # of heads and of pairs
    kept = json.loads((tmp_path / "out" / "result.json").read_text())
    best = max(range(12), key=lambda i: kept["head_scores"][i])
    row = next(line for line in out.splitlines() if line.startswith("   1 "))
    assert row.split() == [
        "1",
        kept["components"][best],
        f"{kept['head_scores'][best]:.4g}",
        f"{kept['head_spread'][best]:.4g}",
        f"{kept['head_consensus'][best]:.0%}",
    ]


def test_lists(run: Run) -> None:
    for command, expected in (("models", "smollm2-135m"), ("tasks", "greater-than"), ("methods", "paper-scaled")):
        status, out, _ = run(command)
        assert status == 0
        assert expected in out


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_doctor_names_what_is_damaged_or_left_over(run: Run, folder: Path, tmp_path: Path) -> None:
    status, out, err = run("doctor")
    assert (status, err) == (0, "headcodes: nothing is wrong\n")
    assert "versions: python" in out
    assert run("discover", "--model", folder, "--n-prompts", "4", "--method", "mean-diff")[0] == 0
    assert run("doctor")[0] == 0
    (entry,) = (tmp_path / "cache" / "activations").glob("*.safetensors")
    content = entry.read_bytes()
    entry.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    leftover = write(tmp_path / "cache" / "models" / ".x.elsewhere~1.y.part", "")
    os.utime(leftover, (0, 0))
    status, out, err = run("doctor")
    assert (status, err) == (1, "headcodes: faults: 2\n")
    assert str(entry) in out
    assert str(leftover) in out
    assert out.count("mend it by") == 2
    assert run("cache", "clear")[0] == 0
    assert run("doctor")[0] == 0


def test_doctor_tells_what_earlier_versions_kept_from_damage(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    place = tmp_path / "cache" / "activations"
    place.mkdir(parents=True)
    save_file({"z": zeros(3)}, place / "old.safetensors", metadata={"headcodes": "{}"})
    write(place / "old.json", '{"entry": "old"}')
    status, out, err = run("doctor")
    assert (status, err) == (1, "headcodes: faults: 1\n")
    assert "never used again: 2 files (0.0 MB) of an earlier version" in out
    assert "damaged" not in out
