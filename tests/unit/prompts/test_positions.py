"""Positions by name, against tokens counted by hand; and methods that add up over some positions only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcodes import HeadcodesError, PromptPair, PromptPairs, methods, read_pairs, tasks
from headcodes.methods.inputs import Inputs
from headcodes.methods.request import check_request
from headcodes.models.asked import ask
from headcodes.prompts.positions import find_positions, span_of, unmarked
from headcodes.prompts.tokens import tokenize
from headcodes.settings import Settings


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    path = tmp_path / "a.csv"
    path.write_text(
        "clean,corrupt,answer,wrong\n"
        '"When [who]Mary[/who] and John went to the store, John gave a drink to",'
        '"When [who]Tom[/who] and John went to the store, John gave a drink to", Mary, John\n'
    )
    return path


def test_marks_are_taken_out_and_places_kept() -> None:
    assert unmarked("a [x]bc[/x] d[x]e[/x]", "x") == ("a bc de", (("x", 2, 4), ("x", 6, 7)))
    for plain in ("a [x]b", "[/x]a[x]", "[y]a[/y]", ""):
        assert unmarked(plain, "x") == (plain, ())


@pytest.mark.parametrize("bos", ["no", "yes"])
def test_a_span_is_its_tokens(marked: Path, tiny_tokenizer: Any, bos: str) -> None:
    pairs = read_pairs(marked, spans=["who"])
    assert "[" not in pairs[0].clean + pairs[0].corrupt
    assert pairs.reading is not None
    assert "the span [who] is marked in 1 of 1 rows" in pairs.reading.as_text()
    tokens = tokenize(pairs, tiny_tokenizer, bos)
    clean, corrupt = find_positions(tokens, "who", tiny_tokenizer)
    assert "".join(tiny_tokenizer.decode([tokens.clean[0][i]]) for i in clean).strip() == "Mary"
    assert "".join(tiny_tokenizer.decode([tokens.corrupt[0][i]]) for i in corrupt).strip() == "Tom"
    with pytest.raises(HeadcodesError, match=r"clean text of line 2 of .* must have a span \[where\]"):
        find_positions(tokens, "where", tiny_tokenizer)


def test_spans_stay_with_their_text_in_a_chat(marked: Path, tiny_model: Callable[..., Any]) -> None:
    import copy

    model = tiny_model("gpt2")
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = "user: {{ messages[0].content }}\nmodel: "
    tokens = ask(model, read_pairs(marked, spans=["who"]), chat=True)
    clean, corrupt = find_positions(tokens, "who", model.tokenizer)
    assert "".join(model.tokenizer.decode([tokens.clean[0][i]]) for i in clean).strip() == "Mary"
    assert "".join(model.tokenizer.decode([tokens.corrupt[0][i]]) for i in corrupt).strip() == "Tom"


def test_indices_and_changes(marked: Path, tiny_tokenizer: Any) -> None:
    tokens = tokenize(tasks.get("ioi").build(tiny_tokenizer, 4), tiny_tokenizer)
    assert find_positions(tokens, "mean", None) == "mean"
    assert find_positions(tokens, "last", None) == "last"
    assert find_positions(tokens, "-1", None) == [[len(ids) - 1] for ids in tokens.clean + tokens.corrupt]
    assert find_positions(tokens, "2", None) == [[2]] * 8
    changed = [tokens.changed_positions(pair) for pair in range(4)]
    assert find_positions(tokens, "changed", None) == changed * 2
    after = find_positions(tokens, "after-change", None)
    assert after[0] == list(range(changed[0][0] + 1, len(tokens.clean[0])))
    with pytest.raises(HeadcodesError, match="a token 99"):
        find_positions(tokens, "99", None)
    assert [span_of(name) for name in ("mean", "-3", "changed", "who")] == [None, None, None, "who"]


@pytest.mark.parametrize("method", ["eap", "eap-ig-inputs", "hybrid", "attribution"])
def test_scores_come_apart_by_position_and_add_up(tiny_model: Callable[..., Any], method: str) -> None:
    model = tiny_model("gpt2")
    tokens = tokenize(tasks.get("ioi").build(model.tokenizer, 4), model.tokenizer)

    def found(positions: Any) -> Any:
        return methods.get(method).find(Inputs(model, tokens, Settings(positions=positions)))

    whole = found("mean")
    assert whole.by_position is not None
    np.testing.assert_allclose(whole.by_position.sum(-1), whole.signed, atol=1e-7)
    # What one group of positions adds is what the method finds with these positions alone.
    changed = find_positions(tokens, "changed", None)
    for group, positions in ((0, changed), (2, "last")):
        part = found(positions)
        np.testing.assert_allclose(part.signed, whole.by_position[..., group], atol=1e-7)
        assert np.abs(part.signed).max() > 0
    behind = find_positions(tokens, "after-change", None)
    assert not np.allclose(found(behind).signed, whole.signed)


def test_hisp_closes_gates_at_some_positions(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("gpt2")
    tokens = tokenize(tasks.get("ioi").build(model.tokenizer, 3), model.tokenizer)
    every = [[*range(len(ids))] for ids in tokens.clean + tokens.corrupt]
    scores = [
        methods.get("hisp").find(Inputs(model, tokens, Settings(positions=positions))).head_scores
        for positions in ("mean", every, "last")
    ]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
    assert not np.allclose(scores[0], scores[2], atol=1e-3)


def test_methods_about_whole_prompts_refuse_positions() -> None:
    with pytest.raises(HeadcodesError, match="last with 'patching'"):
        check_request("patching", positions="last")
    check_request("eap", positions="last")


def test_a_changed_last_token_counts_once(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model("gpt2")
    pair = PromptPair("Mary went to the store", "Mary went to the garden", (" and",), (" to",))
    tokens = tokenize(PromptPairs((pair,), "mine", "custom"), model.tokenizer)
    assert tokens.changed_positions(0) == [len(tokens.clean[0]) - 1]
    found = methods.get("eap").find(Inputs(model, tokens))
    assert found.by_position is not None
    np.testing.assert_allclose(found.by_position[..., 2], found.signed, atol=1e-7)
    assert not found.by_position[..., :2].any()
