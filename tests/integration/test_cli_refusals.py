"""What the command line refuses: one line, status 2, and nothing left behind."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hostile_files import device

Run = Callable[..., tuple[int, str, str]]


pytestmark = pytest.mark.usefixtures("own_cache")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


PAIR = {"clean": "Andrew sent", "corrupt": "Jane sent", "answers": [" Andrew"], "wrong_answers": [" Jane"]}


WRONG_FILES = {
    "empty": "",
    "no json": "{",
    "no list": "[]",
    "no prompts": '{"prompts": []}',
    "missing key": json.dumps({"prompts": [{"clean": "a"}]}),
    "identical prompts": json.dumps({"prompts": [PAIR, PAIR | {"corrupt": PAIR["clean"]}]}),
    "an answer that another goes on from": json.dumps({"prompts": [PAIR | {"wrong_answers": [" Andrew xyzzy"]}]}),
    "answer on both sides": json.dumps({"prompts": [PAIR | {"wrong_answers": [" Andrew"]}]}),
    "no answers": json.dumps({"prompts": [PAIR | {"answers": []}]}),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_wrong_prompt_files(run: Run, folder: Path, tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "wrong.json", WRONG_FILES[kind])
    refused(run("discover", "--model", folder, "--prompts", path))


WRONG_ARGUMENTS = """
unknown task: --task iio
unknown method: --method papier
unknown level: --level path
unknown negative: --negative none
no such model: --model /no/such/model
no such gguf: --model /no/such/model.gguf
no such prompt file: --prompts /no/such/prompts.json
task and prompts: --task ioi --prompts x.json
zero prompts: --n-prompts 0
zero threads: --threads 0
zero training prompts: --n-train 0
unknown dtype: --dtype float8
unknown device: --device abacus
no such device: --device cuda:9
unknown bos: --bos perhaps
unknown positions: --positions first
unknown option: --frobnicate
top zero: --top 0
fdr of zero: --fdr 0
fdr of a method without counts: --method mean-diff --fdr 0.05
verify zero heads: --verify 0
seeds that are none: --seeds few
no seeds: --seeds ''
seeds from high to low: --seeds 3-1
seeds and fdr: --seeds 0-2 --method paper --fdr 0.05
projection that is not there: --projection 'model.layers.{layer}.nothing'
revision of a folder: --revision main
"""


@pytest.mark.parametrize("line", WRONG_ARGUMENTS.strip().splitlines())
def test_wrong_arguments(run: Run, folder: Path, line: str) -> None:
    arguments = shlex.split(line.partition(":")[2])
    model = [] if "--model" in arguments else ["--model", str(folder)]
    refused(run("discover", *model, *arguments))


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "/no/such/circuit.json"),
        ("export", "/no/such/circuit.json", "out"),
        ("diff", "/no/such/a.json", "/no/such/b.json"),
        ("report", "/no/such/run"),
    ],
)
def test_missing_files_of_other_commands(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refused(run(*arguments))


def test_unwritable_out_folder(run: Run, folder: Path, tmp_path: Path) -> None:
    blocked = write(tmp_path / "file", "not a folder")
    refused(run("discover", "--model", folder, "--n-prompts", "4", "--out", blocked / "out"))
    assert blocked.read_text() == "not a folder"


def test_a_run_is_written_over_nothing_but_a_run(run: Run, folder: Path, prompt_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("discover", "--model", folder, "--n-prompts", "4", "--method", "mean-diff", "--out", out)
    assert run(*arguments)[0] == 0
    for name in ("evaluation.json", "attention.safetensors"):
        write(out / name, "of the first run")
    assert run(*arguments, "--seed", "1")[0] == 0
    assert not (out / "evaluation.json").exists()
    assert (out / "attention.safetensors").read_bytes() != b"of the first run"
    mine = write(out / "prompts.json", prompt_file.read_text())
    refused(run(*arguments, "--prompts", mine))
    assert mine.read_text() == prompt_file.read_text()
    theirs = write(tmp_path / "theirs" / "attention.safetensors", "mine")
    refused(run(*arguments[:-1], theirs.parent))
    assert theirs.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "out", "theirs"]


def test_runs_and_stores_have_folders_apart(run: Run, tmp_path: Path) -> None:
    one, store = tmp_path / "run", tmp_path / "store"
    asked = ("--n-prompts", "4", "--method", "act-norm")
    discover = ("discover", "--model", "planted-ioi", *asked, "--out")
    scan = ("scan", "--models", "planted-ioi", *asked[:2], "--methods", "act-norm", "--store")
    assert (run(*discover, one)[0], run(*scan, store)[0]) == (0, 0)
    for place in (one, store):
        (tmp_path / f"link-{place.name}").symlink_to(place)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (store / "arrays" / "empty").mkdir()
    for place in (one, one / "sae", one / "new", tmp_path / "link-run"):
        refused(run(*scan, place))
    for place in (store, store / "cells", store / "cells" / "new", store / "arrays" / "empty", tmp_path / "link-store"):
        refused(run(*discover, place))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert (run(*discover, one, "--seed", "1")[0], run(*scan, store, "--seeds", "0-1")[0]) == (0, 0)


@pytest.mark.parametrize("verb", ["discover", "scan", "evaluate", "export", "report"])
def test_outputs_that_cannot_be_are_refused_before_the_work(
    run: Run, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headcodes.circuit import formats
    from headcodes.models import load
    from headcodes.report import page
    from headcodes.scan import local

    works = ((load, "load_model"), (local, "in_process"), (formats, "load_circuit"), (page, "write_report"))
    for place, name in works:
        monkeypatch.setattr(place, name, lambda *_a, **_k: pytest.fail("the work began"))
    blocked = write(tmp_path / "file", "mine")
    outs = [device(tmp_path), blocked / "below", *([tmp_path] if verb != "scan" else [])]
    asked = {"discover": ("--model", "planted-ioi", "--out"), "scan": ("--models", "planted-ioi", "--store")}
    for out in outs:
        refused(run(verb, *{**asked, "export": ("x.json",)}.get(verb, ("x.json", "--out")), out))
    assert blocked.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device", "file"]


def test_what_is_read_is_not_written_over(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert (
        run(*["discover", "--model", "planted-ioi", "--n-prompts", "4", "--method", "act-norm", "--out"], out)[0] == 0
    )
    circuit, prompts = out / "circuit.json", out / "prompts.json"
    (tmp_path / "link").symlink_to(circuit)
    before = {path: path.read_bytes() for path in out.iterdir()}
    for words in (
        ("evaluate", circuit, "--out", circuit),
        ("evaluate", circuit, "--prompts", prompts, "--out", prompts),
        ("evaluate", circuit, "--out", tmp_path / "link"),
        ("export", circuit, circuit),
        ("report", out, "--out", out / "result.json"),
        ("report", out, "--out", prompts),
    ):
        refused(run(*words))
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert run("report", out, "--out", out / "page.html")[0] == 0


def test_a_tokenizer_that_cannot_carry_the_task(run: Run, tiny_hf: Any, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(["<unk>", *"abcdefghijklmnopqrstuvwxyz "])}
    core = Tokenizer(models.BPE(vocab=letters, merges=[], unk_token="<unk>"))
    tiny_hf("llama").save_pretrained(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>").save_pretrained(tmp_path)
    refused(run("discover", "--model", tmp_path, "--task", "ioi"))


def refused(outcome: tuple[int, str, str]) -> None:
    """One clear message on standard error, nothing on standard output, status 2."""
    status, out, err = outcome
    assert status == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert len(err.strip()) > 20


def test_ctrl_c_leaves_nothing_behind(run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headcodes.circuit.circuit import Circuit

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Circuit, "as_dict", interrupt)  # in the middle of writing
    status, _, err = run("discover", "--model", folder, "--n-prompts", "4", "--out", tmp_path / "out")
    assert status == 130
    assert "Traceback" not in err
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []
