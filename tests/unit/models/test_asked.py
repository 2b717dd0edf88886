"""What a model is asked with: answers of several tokens, no wrong answers, made negatives, chat templates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from headcodes import HeadcodesError, PromptPair, PromptPairs
from headcodes.models.asked import ask, whole_answer_differences
from headcodes.prompts.chat import render_chat
from headcodes.prompts.negatives import make_negatives
from headcodes.prompts.tokens import tokenize


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Any]) -> Any:
    return tiny_model("llama")


def pairs_of(*rows: PromptPair) -> PromptPairs:
    return PromptPairs(rows, "mine", "custom")


def log_p(model: Any, prompt: str, answer: str) -> float:
    """Log-probability of an answer by one plain forward pass of transformers' own model a token."""
    ids = model.tokenizer.encode(prompt, add_special_tokens=False)
    total = 0.0
    for token in model.tokenizer.encode(answer, add_special_tokens=False):
        with torch.no_grad():
            total += float(model.module(torch.tensor([ids])).logits[0, -1].double().log_softmax(0)[token])
        ids.append(token)
    return total


def test_several_tokens_are_scored_where_right_and_wrong_part(model: Any) -> None:
    tokenizer = model.tokenizer
    right, wrong = " store garden", " store school"
    tokens = ask(model, pairs_of(PromptPair("Mary went to the", "John went to the", (right,), (wrong,))))
    first, second = (tokenizer.encode(text, add_special_tokens=False) for text in (right, wrong))
    assert first[0] == second[0]
    n = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    prompts = [tokenizer.encode(text, add_special_tokens=False) for text in ("Mary went to the", "John went to the")]
    assert tokens.clean == [prompts[0] + first[:n]]
    assert tokens.corrupt == [prompts[1] + first[:n]]
    assert (tokens.answers, tokens.wrong_answers) == ([[first[n]]], [[second[n]]])


def test_next_tokens_on_both_sides_are_not_scored(tiny_tokenizer: Any) -> None:
    pair = PromptPair("Mary went to the", "John went to the", (" store garden", " garden"), (" store school", " house"))
    tokens = tokenize(pairs_of(pair), tiny_tokenizer)
    one = {name: tiny_tokenizer.encode(name, add_special_tokens=False)[0] for name in (" garden", " house")}
    assert (tokens.answers, tokens.wrong_answers) == ([[one[" garden"]]], [[one[" house"]]])


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ((" store",), (" store garden",), "begins like them"),
        ((" store garden",), (" store",), "begins like them"),
        ((" store garden",), (" store garden",), "in both"),
        (("",), (" a",), "0 tokens"),
        ((10**6,), (" a",), "token id of the model"),
    ],
)
def test_answers_that_cannot_be_told_apart(tiny_tokenizer: Any, right: Any, wrong: Any, said: str) -> None:
    with pytest.raises(HeadcodesError, match=said):
        tokenize(pairs_of(PromptPair("Mary went", "John went", right, wrong)), tiny_tokenizer)


def test_whole_answers_against_a_plain_forward(model: Any) -> None:
    rows = [
        PromptPair("Mary went to the", "John went to the", (" store garden", " house"), (" store school", " garden")),
        PromptPair("When John and", "When Mary and", (" Mary",), (" garden house store",)),
    ]
    tokens = ask(model, pairs_of(*rows))
    expected = [
        np.logaddexp.reduce([log_p(model, row.clean, answer) for answer in row.answers])
        - np.logaddexp.reduce([log_p(model, row.clean, answer) for answer in row.wrong_answers])
        for row in rows
    ]
    np.testing.assert_allclose(whole_answer_differences(model, tokens), expected, atol=2e-5)


def test_without_wrong_answers_the_models_best_other_token_is_wrong(model: Any) -> None:
    rows = [PromptPair("Mary went to the", "John went to the", (" store",), ()) for _ in range(2)]
    with torch.no_grad():
        ids = torch.tensor([model.tokenizer.encode(rows[0].clean, add_special_tokens=False)])
        logits = model.module(ids).logits[0, -1]
    best = int(logits.argmax())
    # Once with another answer, once with the model's own best token as the right one.
    rows[1] = PromptPair(rows[1].clean, rows[1].corrupt, (best,), ())
    tokens = ask(model, pairs_of(*rows))
    assert tokens.wrong_answers == [[best], [int(logits.topk(2).indices[1])]]
    assert tokens.pairs[0].wrong_answers == (best,)
    assert tokens.pairs.reading is not None
    assert "best other tokens" in tokens.pairs.reading.as_text()
    # What was found can be asked again.
    assert tokenize(tokens.pairs, model.tokenizer).wrong_answers == tokens.wrong_answers


NAMES = [" Mary", " John", " Tom", " James"]


def rows_without_negatives() -> PromptPairs:
    rows = [
        PromptPair(f"When{a} and{b} went to the store,{a} gave a drink to", "", (b,), ()) for a in NAMES for b in NAMES
    ]
    return pairs_of(*[row for row in rows if row.answers[0] not in row.clean.split(" and")[0]])


@pytest.mark.parametrize("how", ["swap", "other"])
def test_negatives_are_other_rows_of_as_many_tokens_and_another_answer(tiny_tokenizer: Any, how: Any) -> None:
    given = rows_without_negatives()
    made = make_negatives(given, tiny_tokenizer, how, seed=1, skip_bad=True)
    by_text = {pair.clean: pair for pair in given}
    assert len(made) > len(given) // 2
    for pair in made:
        other = by_text[pair.corrupt]
        assert other.answers != pair.answers
        assert pair.wrong_answers == other.answers
    tokens = tokenize(made, tiny_tokenizer)
    assert tokens.equal_lengths
    if how == "swap":
        partner = {pair.clean: pair.corrupt for pair in made}
        assert all(partner[corrupt] == clean for clean, corrupt in partner.items())
    assert make_negatives(given, tiny_tokenizer, how, seed=1, skip_bad=True) == made
    assert made.reading is not None
    assert "negatives:" in made.reading.as_text()


def test_shuffled_words(tiny_tokenizer: Any) -> None:
    made = make_negatives(rows_without_negatives(), tiny_tokenizer, "shuffle")
    for pair in made:
        assert sorted(pair.clean.split()) == sorted(pair.corrupt.split())
        assert pair.clean != pair.corrupt
    assert tokenize(made, tiny_tokenizer, needs_wrong=False).equal_lengths


def test_rows_without_a_negative_are_refused(tiny_tokenizer: Any) -> None:
    alike = pairs_of(*[PromptPair(text, "", (" store",), ()) for text in ("Mary went", "John went")])
    with pytest.raises(HeadcodesError, match="row with another answer"):
        make_negatives(alike, tiny_tokenizer, "swap")
    with pytest.raises(HeadcodesError, match="order of its words"):
        make_negatives(pairs_of(PromptPair("Mary", "", (" a",), ())), tiny_tokenizer, "shuffle")
    with pytest.raises(HeadcodesError, match="'mirror'"):
        make_negatives(alike, tiny_tokenizer, "mirror")  # type: ignore[arg-type]


def test_made_negatives_must_change_the_answer(model: Any) -> None:
    given = rows_without_negatives()
    with pytest.raises(HeadcodesError, match="must change the model's answer"):
        ask(model, given, corrupt="other", seed=3)
    tokens = ask(model, given, corrupt="other", seed=3, skip_bad=True)
    assert tokens.pairs.reading is not None
    n_left = tokens.pairs.reading.as_dict()["left_out"]["whose made negative changes no answer"]
    assert 0 < n_left == len(given) - len(tokens)
    for pair, right, wrong in zip(tokens.pairs, tokens.answers, tokens.wrong_answers, strict=True):
        ahead = []
        for text in (pair.clean, pair.corrupt):
            with torch.no_grad():
                logits = model.module(torch.tensor([model.tokenizer.encode(text)])).logits[0, -1]
            ahead.append(float(logits[right[0]] - logits[wrong[0]]))
        assert not (ahead[0] > 0 and ahead[1] > 0)


TEMPLATE = (
    "{% for m in messages %}<bos>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}model: {% endif %}"
)


@pytest.fixture
def chatty(tiny_tokenizer: Any) -> Any:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_chat_prompts_are_the_templates(chatty: Any) -> None:
    pair = PromptPair("Mary went", "John went", (" store",), (" garden",))
    made = render_chat(pairs_of(pair), chatty, system="Be brief.")
    expected = "<bos>system: Be brief.\n<bos>user: {}\nmodel: "
    assert [made[0].clean, made[0].corrupt] == [expected.format("Mary went"), expected.format("John went")]
    assert (made[0].answers, made[0].wrong_answers) == (("store",), ("garden",))
    assert made.reading is not None
    assert repr(made[0].clean) in made.reading.as_text()
    assert "taken away" in made.reading.as_text()


def test_a_chat_is_tokenised_as_transformers_does(model: Any, chatty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "tokenizer", chatty)
    pair = PromptPair("Mary went", "John went", ("store",), ("garden",))
    tokens = ask(model, pairs_of(pair), chat=True)
    own = chatty.apply_chat_template(
        [{"role": "user", "content": "Mary went"}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    shared = len(tokens.clean[0]) - len(own)
    assert shared >= 0
    assert tokens.clean[0][: len(own)] == own
    assert not tokens.bos


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "have a chat template; got one without"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "must run no code"),
        ("{{ messages.append(1) }}{{ messages[0].content }}", "must run no code"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "must run no code"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% if %}", "must render the messages"),
        ("{{ 1 / 0 }}", "must render the messages"),
        ("hello", "must keep the message"),
    ],
)
def test_templates_that_cannot_be_used_are_one_line(chatty: Any, template: str | None, said: str) -> None:
    chatty.chat_template = template
    with pytest.raises(HeadcodesError, match=said) as caught:
        render_chat(pairs_of(PromptPair("Mary went", "John went", (" a",), (" b",))), chatty)
    assert "\n" not in str(caught.value)
