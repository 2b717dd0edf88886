"""Prompt pairs, their file form, and every way in which tokenising them is refused."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from headcodes import HeadcodesError, HeadcodesWarning, PromptPair, PromptPairs
from headcodes.prompts.tokens import continuation_ids, tokenize

WORDS = ["<s>", "</s>", "<unk>", "a", "cat", "dog", "sat", "ran", "the", "yes", "no"]


def word_tokenizer(adds_bos=False, bos="<s>"):
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token="</s>", unk_token="<unk>")


def spaced_tokenizer():
    """As Llama 2's: every text gets a space in front, a space is part of the word, unknown characters are bytes."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)] + ["▁", "5", "▁5", "▁Mary", "Mary", "▁a", "▁the", "▁cat"]
    pieces += [*"Maryctheu", "Ma", "Mar", "ca", "cat", "th", "the", "▁c", "▁ca", "▁t", "▁th", "▁M", "▁Ma", "▁Mar"]
    pieces = list(dict.fromkeys(pieces))
    merges = [("▁", "5"), ("▁", "a"), ("M", "a"), ("Ma", "r"), ("Mar", "y"), ("▁", "Mary"), ("c", "a"), ("ca", "t")]
    merges += [("▁", "cat"), ("t", "h"), ("th", "e"), ("▁", "the")]
    inner = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges, byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def pair(**changes):
    given = {"clean": "the cat", "corrupt": "the dog", "answers": (" sat",), "wrong_answers": (" ran",)}
    return PromptPair(**(given | changes))


def pairs(*rows):
    return PromptPairs(tuple(rows), "mine", "custom")


def test_pairs_are_a_sequence_and_slices_keep_the_type():
    three = pairs(pair(), pair(clean="a cat"), pair(clean="a dog"))
    assert len(three) == 3
    assert three[1].clean == "a cat"
    assert three.head(2) == three[:2] == PromptPairs(three.pairs[:2], "mine", "custom")
    assert list(three) == list(three.pairs)


def test_json_comes_back_unchanged(tmp_path):
    given = pairs(pair(answers=(" Zoë", " sat")), pair())
    given.to_json(tmp_path / "pairs.json")
    assert PromptPairs.from_json(tmp_path / "pairs.json") == given
    assert set(json.loads((tmp_path / "pairs.json").read_text())["prompts"][0]) == {
        "clean",
        "corrupt",
        "answers",
        "wrong_answers",
    }


def test_a_file_of_auto_circuit_is_read(tmp_path):
    rows = [{"clean": "x", "corrupt": "y", "answers": [" a"], "wrong_answers": [" b", " c"]}]
    (tmp_path / "docstring_prompts.json").write_text(json.dumps({"seq_labels": ["s"], "prompts": rows}))
    read = PromptPairs.from_json(tmp_path / "docstring_prompts.json")
    assert read == PromptPairs((PromptPair("x", "y", (" a",), (" b", " c")),), "docstring_prompts", "custom")


GOOD = {"clean": "x", "corrupt": "y", "answers": [" a"], "wrong_answers": [" b"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"[]", "prompts"),
        (b"{}", "prompts"),
        (b'{"prompts": []}', "at least one"),
        (b'{"prompts": {}}', "prompts"),
        (b'{"prompts": [3]}', "prompt 0"),
        (json.dumps({"prompts": [GOOD, {**GOOD, "clean": 3}]}).encode(), "prompt 1"),
        (json.dumps({"prompts": [GOOD, {k: v for k, v in GOOD.items() if k != "corrupt"}]}).encode(), "'corrupt'"),
        (json.dumps({"prompts": [{**GOOD, "answers": 1.5}]}).encode(), "'answers'"),
        (json.dumps({"prompts": [{**GOOD, "wrong_answers": [" b", {}]}]}).encode(), "'wrong_answers'"),
        (json.dumps({"prompts": [GOOD], "task": 3}).encode(), "'task'"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(HeadcodesError, match=said) as caught:
        PromptPairs.from_json(path)
    assert "bad.json" in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(HeadcodesError, match=r"nowhere\.json"):
        PromptPairs.from_json(tmp_path / "nowhere.json")


def test_tokens_of_a_pair():
    tokens = tokenize(
        pairs(pair(answers=(" sat", "sat", " yes")), pair(corrupt="a big dog".replace("big", "the"))), word_tokenizer()
    )
    assert tokens.clean == [[8, 4], [8, 4]]
    assert tokens.corrupt == [[8, 5], [3, 8, 5]]
    assert tokens.answers == [[6, 9], [6]]
    assert tokens.wrong_answers == [[7], [7]]
    assert tokens.scored_ids == [[6, 9, 7], [6, 7]]
    assert not tokens.bos
    assert not tokens.equal_lengths
    assert tokens.changed_positions(0) == [1]
    with pytest.raises(HeadcodesError, match="2 and 3 at prompt 1"):
        tokens.changed_positions(1)
    second = tokens.subset([1])
    assert (second.clean, second.answers, len(second), len(second.pairs)) == ([[8, 4]], [[6]], 1, 1)
    assert second.pairs[0] == tokens.pairs[1]
    assert tokens.subset([0]).equal_lengths


@pytest.mark.parametrize(
    ("right", "wrong", "shared", "scored"),
    [
        # What all begin with is put behind both prompts, and the next tokens are scored.
        ((" the cat",), (" the dog",), [8], ([4], [5])),
        ((" the a cat", " the a yes"), (" the a dog sat",), [8, 3], ([4, 9], [5])),
        # "ran" begins a right and a wrong answer: it tells nothing, and is scored on neither side.
        ((" sat", " ran yes"), (" ran no", " cat"), [], ([6], [4])),
        ((" the sat", " the ran yes"), (" the cat", " the ran no", " the cat no"), [8], ([6], [4])),
        # Without wrong answers nothing is shared: the first token is scored.
        ((" the cat",), (), [], ([8], [])),
        ((" the cat", " the dog"), (), [], ([8], [])),
        # Token ids, the last of the vocabulary among them.
        ((len(WORDS) - 1,), (0,), [], ([len(WORDS) - 1], [0])),
    ],
)
def test_answers_of_several_tokens_are_scored_where_right_and_wrong_part(right, wrong, shared, scored):
    given = pairs(pair(answers=right, wrong_answers=wrong))
    tokens = tokenize(given, word_tokenizer(), needs_wrong=bool(wrong))
    assert (tokens.clean, tokens.corrupt) == ([[8, 4, *shared]], [[8, 5, *shared]])
    assert (tokens.answers[0], tokens.wrong_answers[0]) == scored


@pytest.mark.parametrize(
    ("adds_bos", "bos", "put"),
    [(False, "auto", False), (True, "auto", True), (False, "yes", True), (True, "no", False), (False, "no", False)],
)
def test_bos_is_put_as_asked(adds_bos, bos, put):
    tokens = tokenize(pairs(pair()), word_tokenizer(adds_bos), bos)
    assert tokens.bos is put
    assert tokens.clean == [[0, 8, 4] if put else [8, 4]]
    assert tokens.corrupt == [[0, 8, 5] if put else [8, 5]]


def test_a_bos_in_the_text_is_not_doubled():
    """``tokenizer(text)`` would have it twice, and so it is said."""
    with pytest.warns(HeadcodesWarning, match="1 prompts begin with what the tokenizer puts in front"):
        tokens = tokenize(pairs(pair(clean="<s> the cat"), pair()), word_tokenizer(True))
    assert tokens.clean == [[0, 8, 4]] * 2


@pytest.mark.parametrize("answers", [("Mary", "the"), (" Mary", " the")])
def test_a_space_at_the_end_that_moves_the_answer_is_told(answers):
    """' Mary' is a token; a space and 'Mary' are others, of which the model thinks otherwise."""
    given = pair(clean="a cat ", corrupt="a the ", answers=answers[:1], wrong_answers=answers[1:])
    with pytest.warns(HeadcodesWarning, match=r"1 prompts end in a space, .* \(first: the one that ends in 'a cat '\)"):
        tokenize(pairs(given), spaced_tokenizer())
    tokenize(
        pairs(pair(clean="a cat", corrupt="a the", answers=(" Mary",), wrong_answers=(" the",))), spaced_tokenizer()
    )


def test_what_a_tokenizer_ends_every_text_with_is_left_out_and_told():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    with pytest.warns(HeadcodesWarning, match="ends every text with a token of its own"):
        assert tokenize(pairs(pair()), tokenizer).clean == [[8, 4]]


def test_a_tokenizer_that_pads_on_the_left_gives_the_same_ids():
    left, right = word_tokenizer(True), word_tokenizer(True)
    left.pad_token, left.padding_side = "</s>", "left"
    some = pairs(pair(), pair(clean="the cat sat the cat"))
    assert tokenize(some, left).clean == tokenize(some, right).clean == [[0, 8, 4], [0, 8, 4, 6, 8, 4]]


def test_a_tokenizer_without_bos():
    assert not tokenize(pairs(pair()), word_tokenizer(bos=None)).bos
    with pytest.raises(HeadcodesError, match="BOS"):
        tokenize(pairs(pair()), word_tokenizer(bos=None), "yes")
    with pytest.raises(HeadcodesError, match="'maybe'"):
        tokenize(pairs(pair()), word_tokenizer(), "maybe")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"corrupt": "the cat"}, "must differ"),
        ({"corrupt": "THE  cat"}, "the same 2 tokens"),
        ({"clean": ""}, "must not be empty"),
        ({"corrupt": "  "}, "must not be empty"),
        ({"clean": "the zebra"}, "unknown"),
        ({"answers": ()}, "at least one answer"),
        ({"wrong_answers": ()}, "at least one wrong answer"),
        ({"answers": ("",)}, "0 tokens"),
        ({"wrong_answers": (" zebra",)}, "unknown word"),
        ({"wrong_answers": (" ran", " sat")}, "' sat' in both"),
        ({"wrong_answers": (" SAT",)}, "in both"),
        ({"answers": (" ran",), "wrong_answers": (" ran no",)}, "tell a right answer"),
        ({"answers": (" ran yes", " sat"), "wrong_answers": (" ran no",)}, "tell a wrong answer"),
        ({"answers": (len(WORDS),)}, f"below {len(WORDS)}"),
        ({"wrong_answers": (len(WORDS),)}, f"below {len(WORDS)}"),
    ],
)
def test_what_cannot_be_used_is_refused_by_index_and_text(bad, said):
    with pytest.raises(HeadcodesError, match=said) as caught:
        tokenize(pairs(pair(), pair(**bad)), word_tokenizer())
    assert "prompt 1 (" in str(caught.value)


def test_no_pairs_are_refused():
    with pytest.raises(HeadcodesError, match="at least one prompt pair"):
        tokenize(pairs(), word_tokenizer())


def test_repeated_pairs_are_fine():
    assert len(tokenize(pairs(pair(), pair()), word_tokenizer())) == 2


def test_answers_continue_the_prompt_where_a_tokenizer_puts_spaces_in_front():
    tokenizer = spaced_tokenizer()
    ids = tokenizer.get_vocab()
    # On their own these texts are two tokens; behind a prompt they are one.
    assert len(tokenizer.encode(" Mary", add_special_tokens=False)) == 2
    assert continuation_ids(tokenizer, " Mary") == [ids["▁Mary"]]
    assert tokenizer.encode("5", add_special_tokens=False) == [ids["▁5"]]
    assert continuation_ids(tokenizer, "5") == [ids["5"]]
    for answer in (" Mary", "5"):
        prompt = tokenizer.encode("the cat", add_special_tokens=False)
        assert tokenizer.encode("the cat" + answer, add_special_tokens=False) == prompt + continuation_ids(
            tokenizer, answer
        )


def test_what_else_a_tokenizer_begins_every_text_with_is_put_in_front_too():
    """GLM's [gMASK]<sop>, as tokenizer(text) has it."""
    from tokenizers import processors

    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>"]})
    ids = tokenizer.convert_tokens_to_ids(["[gMASK]", "<sop>"])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[gMASK] <sop> $A", special_tokens=[("[gMASK]", ids[0]), ("<sop>", ids[1])]
    )
    tokens = tokenize(pairs(pair()), tokenizer)
    assert tokens.clean[0] == tokenizer(pair().clean)["input_ids"]
    assert tokens.clean[0][:2] == ids
    assert tokenize(pairs(pair()), tokenizer, "no").clean[0] == tokens.clean[0][2:]
