"""Attacks on every reader of files from elsewhere: one line with the file's name, or a result; never a traceback.

``ATTACKS`` is what docs/safety.md shows as a table: kind of attack, how often tried, how often it misbehaved. Further
inputs come from hypothesis; what once failed lies here or in tests/data.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headcodes.circuit.circuit import Circuit
from headcodes.circuit.formats import load_circuit
from headcodes.models.load import load_model
from headcodes.prompts.files import read_pairs
from headcodes.scan.plan import Plan
from hostile_files import Read, device, misbehaves, nested, variants

CIRCUIT = {
    **Circuit.from_heads([(1, 0)], n_layers=2, n_heads=2, pairs=[((0, 1), (1, 0))], d_model=8, model="m").as_dict(),
    "node_scores": {"a0.h1": 1.0, "a1.h0": 2.0},
    "meta": {"note": ["x"]},
}
GRAPH = {
    "cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 4},
    "nodes": {"input": {"in_graph": True}, "a0.h0": {"in_graph": True, "score": 1.0}, "logits": {"in_graph": True}},
    "edges": {"input->a0.h0<q>": {"score": 1.0, "in_graph": True}, "a0.h0->logits": {"score": 1, "in_graph": False}},
}
PROMPTS = {
    "task": "mine",
    "negative": "swap",
    "prompts": [{"clean": "a b", "corrupt": "c b", "answers": [" x"], "wrong_answers": [" y"]}],
}
PLAN = {"models": ["gpt2", {"source": "x", "revisions": ["a"]}], "tasks": ["ioi"], "seeds": [0, 1], "n_prompts": 3}


def plan(path: Path) -> Any:
    return Plan.from_yaml(path)


def write_again(path: Path) -> Any:
    """What can be read can be written."""
    load_circuit(path).to_json(path.with_suffix(".out"))


JSON_READERS: dict[str, tuple[Any, str, Read]] = {
    "circuit": (CIRCUIT, "mine.json", write_again),
    "MIB graph": (GRAPH, "mine.json", write_again),
    "prompt file": (PROMPTS, "mine.json", read_pairs),
    "plan": (PLAN, "mine.yaml", plan),
}


@pytest.mark.parametrize("kind", JSON_READERS)
def test_damaged_json(tmp_path: Path, kind: str, record_attacks: Any, n_attacks: int) -> None:
    document, name, read = JSON_READERS[kind]
    path = tmp_path / name
    found = []
    for content in variants(document, n_attacks, seed=0):
        path.write_bytes(content)
        found.append((misbehaves(read, path, name), content[:200]))
    record_attacks(f"damaged {kind}", found)


@pytest.mark.parametrize("kind", JSON_READERS)
def test_files_without_an_end_and_other_places(tmp_path: Path, kind: str, record_attacks: Any) -> None:
    read = JSON_READERS[kind][2]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    found = []
    for path in (Path("/dev/zero"), Path("/dev/null"), *(tmp_path / name for name in ("pipe", ".", "circle", "none"))):
        found.append((misbehaves(read, path, path.name), str(path)))
    record_attacks("devices, pipes, folders and links in place of files", found)


@pytest.mark.parametrize("kind", JSON_READERS)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*CIRCUIT, *GRAPH, *PROMPTS, *PLAN]), inner),
        max_leaves=30,
    )
)
def test_any_json(tmp_path: Path, kind: str, document: Any) -> None:
    _, name, read = JSON_READERS[kind]
    base = JSON_READERS[kind][0]
    for whole in (document, base | document if isinstance(document, dict) else document):
        (tmp_path / name).write_text(json.dumps(whole))
        assert misbehaves(read, tmp_path / name, name) is None


WORD_PIECE = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
SMALL_CONFIG = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "architectures")


def model_attacks(n: int) -> Iterator[tuple[str, Callable[[bytes], bytes]]]:
    """Yield a file of a model folder and what is done to it."""
    draw = random.Random(0)

    def instead(content: bytes) -> Callable[[bytes], bytes]:
        return lambda _whole: content

    def having(**changes: Any) -> Callable[[bytes], bytes]:
        return lambda whole: json.dumps(json.loads(whole) | changes).encode()

    def cut(share: float) -> Callable[[bytes], bytes]:
        return lambda whole: whole[: int(len(whole) * share)]

    def flipped(at: int, bit: int) -> Callable[[bytes], bytes]:
        return lambda whole: whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :]

    contents = (b"", b"null", b"[]", b"{", b"{}", nested(50_000).encode(), b"\xff", b"9" * 5000)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        yield from ((name, instead(content)) for content in draw.sample(contents, min(n, len(contents))))
    sizes = [(key, value) for key in SMALL_CONFIG for value in (None, -1, 10**12, "x", [], {}, 0)]
    yield from (("config.json", having(**{key: value})) for key, value in draw.sample(sizes, min(4 * n, len(sizes))))
    for pattern in ("(", "(?<x", "[" * 5000, "\\")[:n]:
        broken = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        yield "tokenizer.json", having(pre_tokenizer=broken)
    yield "tokenizer.json", having(pre_tokenizer={"type": "FixedLength", "length": 0})  # panics over a text
    yield "tokenizer.json", having(model={"type": "WordPiece", "unk_token": "none", "vocab": {"a": 0}} | WORD_PIECE)
    panicking = json.dumps("x" * 100)
    yield (
        "tokenizer.json",
        lambda whole: whole.replace(
            b'"continuing_subword_prefix": null', f'"continuing_subword_prefix": {panicking}'.encode()
        ),
    )
    for _ in range(n):
        yield "model.safetensors", cut(draw.random())
        yield "model.safetensors", flipped(draw.randrange(2000), draw.randrange(8))  # in its header
    yield "model.safetensors", instead(b"")
    yield "model.safetensors", lambda whole: (1 << 62).to_bytes(8, "little") + whole[8:]


def opened(folder: Path) -> None:
    """A model that opens reads texts."""
    load_model(folder, device="cpu").tokenizer.encode("To whom it may concern: 1, 2 \u00e9")


def test_damaged_model_folders(
    tmp_path: Path, tiny_folder: Any, record_attacks: Any, n_attacks: int, capfd: Any
) -> None:
    whole = tiny_folder(tmp_path / "whole")
    found = []
    for number, (name, damage) in enumerate(model_attacks(max(3, n_attacks // 20))):
        folder = tmp_path / f"model{number}"
        folder.mkdir()
        for path in whole.iterdir():
            (folder / path.name).symlink_to(path)
        content = (whole / name).read_bytes()
        (folder / name).unlink()
        (folder / name).write_bytes(damage(content))
        found.append((misbehaves(opened, folder, folder.name), f"{number} {name}"))
    record_attacks("damaged model folder", found)
    assert "panicked" not in capfd.readouterr().err


REFUSED = """
discover --n-prompts 99999999999999999999
discover --seed 18446744073709551616
discover --seed -1
discover --n-train 9223372036854775808
discover --threads 9223372036854775808
discover --device meta
discover --prompts /dev/zero
discover --out DEVICE
discover --model planted-ioi-99999999999
scan --models planted-ioi --seeds 9223372036854775808 --dry-run
scan --models planted-ioi --prompt-seed 18446744073709551616 --dry-run
scan --models planted-ioi --n-train 18446744073709551616 --dry-run
scan --models planted-ioi --threads 18446744073709551616 --dry-run
scan --models planted-ioi --n-prompts 99999999999999999999 --dry-run
discover --seeds 9223372036854775808
scan --models planted-ioi --tasks iio --dry-run
export /dev/zero out
report /dev/zero
evaluate /dev/zero
diff /dev/zero /dev/zero
discover --prompts \x1b[31mred.json
discover --model \x1b[31mred
discover --model \udcff\udcfe
report \udcff
export \udcff out
discover --model ../../etc/passwd
discover --device cuda:99999999999999999999
discover --fdr nan
discover --stable nan
discover --method paper --stable 1e999
push . ../../x
"""
LONG = (
    *("discover --model LONG", "discover --prompts LONG", "discover --out LONG --model planted-ioi", "report LONG"),
    *("scan LONG", "scan --models LONG --dry-run", "evaluate LONG", "export LONG out", "diff LONG LONG"),
)


def test_command_lines_that_cannot_be(
    tmp_path: Path, run: Any, own_cache: None, record_attacks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused = REFUSED.replace("DEVICE", str(device(tmp_path)))
    found = []
    for line in (*refused.strip().splitlines(), *(line.replace("LONG", "x" * 200_000) for line in LONG), "cache ls"):
        if line == "cache ls":
            monkeypatch.setenv("HEADCODES_CACHE", "~nobody-here/c")
        status, out, err = run(*line.split())
        wrong = status != 2 or out or "Traceback" in err or not err.strip() or len(err) > 1100 or "\x1b" in err
        found.append((f"status {status}: {err[-300:]}" if wrong else None, line[:200]))
    record_attacks("command line", found)


@pytest.mark.parametrize("where", ["layers.2.mlp.down_proj", "lm_head"])
def test_weights_that_are_no_numbers(tiny_hf: Any, tiny_tokenizer: Any, where: str, record_attacks: Any) -> None:
    from headcodes import tasks
    from headcodes.discovery import discover

    found = []
    for method in ("acdc", "eap", "random", "act-norm", "patching"):
        module = tiny_hf("llama", num_key_value_heads=4)
        (weight,) = (part for name, part in module.named_parameters() if where in name)
        weight.data[3] = float("nan")

        def run(_path: Path, module: Any = module, method: str = method) -> None:
            model = load_model(module, tokenizer=tiny_tokenizer)
            discover(model, tasks.get("ioi").build(tiny_tokenizer, n=6, seed=0), method=method, verify=None)
            raise AssertionError("taken for numbers")

        found.append((misbehaves(run, Path(), "must be finite"), f"{method}, {where}"))
    record_attacks("NaN weights", found)


@pytest.mark.parametrize("closed", [1, 2])
def test_a_reader_that_has_had_enough(tmp_path: Path, closed: int, record_attacks: Any) -> None:
    """`headcodes ... | head`: the work ends, finished cells stay, nothing is said to nobody."""
    found = []
    scan = ("scan", "--models", "planted-ioi", "--methods", "act-norm", "--seeds", "0-9", "--n-prompts", "6")
    # More than a buffer, less than one, and work that goes on.
    for words in (("methods",), ("tasks",), (*scan, "--json-lines", "--store", str(tmp_path / "store"))):
        reader, writer = os.pipe()
        os.close(reader)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {
            {1: "stdout", 2: "stderr"}[closed]: writer,
        }
        done = subprocess.run([sys.executable, "-m", "headcodes.cli", *words], check=False, **streams)
        os.close(writer)
        said = (done.stderr or b"").decode()
        wrong = done.returncode not in (0, 1) or "Traceback" in said or "Exception" in said
        found.append((f"status {done.returncode}: {said[-300:]}" if wrong else None, words))
    record_attacks("readers of the output that end", found)
    from headcodes.scan import load_store

    assert load_store(tmp_path / "store").num_rows < 10
    assert not list(tmp_path.rglob("*.part"))


def test_a_terminal_without_the_letters_of_a_prompt() -> None:
    code = "from headcodes import cli; cli.app.command('say')(lambda: print(chr(0x65e5), chr(0xd800))); cli.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "say"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"},
    )
    assert (done.returncode, done.stdout) == (0, "\\u65e5 \\ud800\n"), done.stderr
