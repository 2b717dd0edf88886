"""What was captured is found again, and only where it is the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headcodes import tasks
from headcodes.activations import cache
from headcodes.errors import HeadcodesWarning
from headcodes.models.sources import resolve
from headcodes.prompts.tokens import TokenPairs, tokenize

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HEADCODES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "activations"


@pytest.fixture
def tokens(tiny_tokenizer: Any) -> TokenPairs:
    return tokenize(tasks.get("ioi").build(tiny_tokenizer, n=6, seed=0), tiny_tokenizer, "auto")


def never(*_args: Any, **_kwargs: Any) -> Any:
    pytest.fail("the model ran or was opened")


def test_the_second_time_the_model_does_not_run(
    tiny_model: Any, tokens: TokenPairs, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    model = tiny_model("gemma2")
    first, logits = cache.captured(model, tokens)
    monkeypatch.setattr(cache, "capture_pairs", never)
    second, again = cache.captured(tiny_model("gemma2"), tokens)
    assert torch.equal(first.z, second.z)
    assert torch.equal(first.W_O, second.W_O)
    assert all(torch.equal(a, b) for a, b in zip(logits, again, strict=True))
    assert (second.n_layers, second.n_heads, second.positions) == (3, 4, "mean")
    (entry,) = cache.ls()
    assert (entry.model, entry.task, entry.n_pairs) == (model.name, "ioi", 6)
    assert entry.n_bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_whatever_changes_the_activations_changes_the_key(
    tiny_model: Any, tiny_hf: Any, tokens: TokenPairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headcodes.models.load import load_model

    model = tiny_model("llama")
    longer = replace(tokens, clean=[[7, *tokens.clean[0]], *tokens.clean[1:]])
    given = [[0]] * 12
    keys = [
        cache.content_key(model, tokens, "mean"),
        cache.content_key(model, tokens, "last"),
        cache.content_key(model, tokens, given),
        cache.content_key(model, tokens, [[1], *given[1:]]),
        cache.content_key(model, longer, "mean"),
        cache.content_key(model, replace(tokens, corrupt=tokens.corrupt[::-1]), "mean"),
        cache.content_key(model, replace(tokens, answers=tokens.wrong_answers), "mean"),
        cache.content_key(model, tokens.subset(range(5)), "mean"),
        cache.content_key(tiny_model("llama", seed=1), tokens, "mean"),
        cache.content_key(load_model(tiny_hf("llama").to(torch.bfloat16)), tokens, "mean"),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    keys.append(cache.content_key(model, tokens, "mean"))
    torch.set_num_threads(threads)
    monkeypatch.setattr(cache, "_FORMAT", 99)
    keys.append(cache.content_key(model, tokens, "mean"))
    monkeypatch.undo()
    assert len(set(keys)) == len(keys)
    assert keys[0] == cache.content_key(tiny_model("llama"), tokens, "mean")


def test_a_request_is_recalled_without_the_model(tiny_model: Any, tokens: TokenPairs) -> None:
    model = tiny_model("qwen3")
    heads, logits = cache.captured(model, tokens, "last", request="a" * 64)
    found = cache.recall("a" * 64, CPU, never)
    assert found is not None
    assert found.tokens == tokens
    assert torch.equal(found.activations.z, heads.z)
    assert all(torch.equal(a, b) for a, b in zip(logits, found.logits, strict=True))
    known = found.model
    for name in ("name", "family", "n_layers", "n_heads", "n_kv_heads", "d_head", "d_model", "d_vocab", "dtype"):
        assert getattr(known, name) == getattr(model, name), name
    assert (known.device, known.components, known.checksum) == (CPU, model.components, model.checksum)
    assert torch.equal(known.W_O, model.W_O)
    assert cache.content_key(known, tokens, "last") == cache.content_key(model, tokens, "last")
    assert cache.recall("b" * 64, CPU, never) is None

    opened: list[int] = []
    found = cache.recall("a" * 64, CPU, lambda: (opened.append(1), model)[1])
    assert found is not None
    assert opened == []
    # Whoever needs the model itself gets it, opened once.
    ids = torch.tensor([tokens.clean[0]])
    assert found.model.trace(ids, logits_at=torch.tensor([2])).shape == (1, model.d_vocab)
    assert found.model.module is model.module
    assert found.model.tokenizer is model.tokenizer
    assert opened == [1]
    with pytest.raises(AttributeError):
        found.model.no_such_thing  # noqa: B018


def test_a_request_follows_its_source_and_options(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'{{"name": "{name}"}}')
    one, two = resolve(tmp_path / "one"), resolve(tmp_path / "two")
    ioi = {"task": "ioi", "n": 250, "seed": 0, "negative": "abc"}

    def key(source: Any = one, prompts: Any = ioi, dtype: Any = torch.float32, **options: Any) -> str | None:
        return cache.request_key(source, prompts, device=CPU, dtype=dtype, **({"bos": "auto"} | options))

    keys = [key(), key(two), key(prompts=ioi | {"seed": 1}), key(dtype=torch.bfloat16), key(bos="no"), key(x=1)]
    assert len(set(keys)) == len(keys)
    assert key() == key()
    assert key(resolve("nobody/has-this-model")) is None


@pytest.mark.parametrize("spoil", ["entry cut", "entry gone", "entry empty", "request cut", "request other"])
def test_what_cannot_be_read_is_made_again(tiny_model: Any, tokens: TokenPairs, folder: Path, spoil: str) -> None:
    model = tiny_model("gpt2")
    heads, _ = cache.captured(model, tokens, request="c" * 64)
    (entry,), (request,) = folder.glob("*.safetensors"), folder.glob("*.request.json")
    what, how = spoil.split()
    path = entry if what == "entry" else request
    if how == "gone":
        path.unlink()
    elif how == "other":
        path.write_text(json.dumps({"entry": "../../somewhere", "model": {}, "tokens": []}))
    else:
        path.write_bytes(path.read_bytes()[:100] if how == "cut" else b"")
    named = how in ("cut", "empty")
    with pytest.warns(HeadcodesWarning, match="made anew") if named else nullcontext():
        assert cache.recall("c" * 64, CPU, never) is None
    cache.ls()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeadcodesWarning)  # damage is named each time it is met
        again, _ = cache.captured(model, tokens, request="c" * 64)
    assert torch.equal(again.z, heads.z)
    assert cache.recall("c" * 64, CPU, never) is not None


def test_the_cache_stays_within_its_bound(
    tiny_model: Any, tokens: TokenPairs, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("gpt2")
    # The later the larger, so that it matters which of them go.
    for n, name in ((1, "x"), (2, "y"), (3, "z")):
        cache.captured(model, tokens.subset(range(n)), request=name * 64)
        entry = cache.content_key(model, tokens.subset(range(n)), "mean")
        os.utime(folder / f"{entry}.safetensors", (1000 + n, 1000 + n))
    # The first was used again, so the second is the oldest now.
    assert cache.recall("x" * 64, CPU, never) is not None
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    monkeypatch.setattr(cache, "MAX_BYTES", size + 4000)
    cache.captured(model, tokens.subset(range(4)), request="w" * 64)
    left = {path.name[0] for path in folder.glob("*.request.json")}
    assert left == {"w", "x", "z"}
    assert all((cache.recall(name * 64, CPU, never) is not None) == (name in left) for name in "wxyz")
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) <= size + 4000
    # What is larger than the whole bound is not kept, and pushes nothing out.
    monkeypatch.setattr(cache, "MAX_BYTES", 10)
    before = sorted(folder.iterdir())
    cache.captured(model, tokens.subset(range(5)))
    assert sorted(folder.iterdir()) == before
    freed = sum(path.stat().st_size for path in before)
    assert cache.clear() == freed
    assert cache.ls() == []


def test_recalling_imports_no_transformers(tiny_model: Any, tokens: TokenPairs) -> None:
    cache.captured(tiny_model("gpt2"), tokens, request="d" * 64)
    code = (
        "import sys, torch; from headcodes.activations import cache;"
        "found = cache.recall('d' * 64, torch.device('cpu'), None); assert found.activations.z.shape[0] == 12;"
        "assert not {'transformers', 'transformer_lens'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
