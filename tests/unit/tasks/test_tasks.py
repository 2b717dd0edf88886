"""Every task, with tokenizers of several kinds; what a prompt says is read back from its text alone."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest

from headcodes import HeadcodesError, PromptPair, tasks
from headcodes.prompts.tokens import tokenize
from headcodes.tasks import agreement, capital, ioi, pronoun
from headcodes.tasks.base import Task


class RegexTokenizer:
    """Cuts text by a pattern; what it has not seen before gets the next id."""

    bos_token_id = eos_token_id = unk_token_id = None

    def __init__(self, pattern):
        self.pattern = pattern
        self.ids = {}

    def encode(self, text, *, add_special_tokens=True):
        return [self.ids.setdefault(piece, len(self.ids)) for piece in re.findall(self.pattern, text)]


def by_words(digits=1):
    return RegexTokenizer(rf" ?[A-Za-z]+|\d{{1,{digits}}}|[^\w\s]|\s")


def by_chunks():
    """Words of more than six letters are two tokens or more, so that sides of a pair can differ in length."""
    return RegexTokenizer(r" ?[A-Za-z]{1,6}|\d|[^\w\s]|\s")


EVERY = [(task_id, negative) for task_id in tasks.ids() for negative in tasks.get(task_id).negatives]


def test_the_tasks_there_are():
    assert tasks.ids() == (
        "ioi",
        "greater-than",
        "docstring",
        "induction",
        "gendered-pronoun",
        "subject-verb",
        "capital-country",
    )
    for task_id in tasks.ids():
        task = tasks.get(task_id)
        assert task.id == task_id
        assert task.summary
        assert task.source
        assert len(set(task.negatives)) == len(task.negatives) >= 2
    with pytest.raises(HeadcodesError, match="capital-country"):
        tasks.get("nonsense")


def test_listing_tasks_needs_nothing_heavy():
    code = "import sys; from headcodes import tasks; [tasks.get(i) for i in tasks.ids()]; "
    code += "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("make", [by_words, by_chunks])
@pytest.mark.parametrize(("task_id", "negative"), EVERY)
def test_500_different_pairs_of_equal_lengths(task_id, negative, make):
    tokenizer = make()
    pairs = tasks.get(task_id).build(tokenizer, 500, seed=3, negative=negative)
    assert (len(pairs), pairs.task, pairs.negative) == (500, task_id, negative)
    assert len(set(pairs)) == 500
    tokens = tokenize(pairs, tokenizer)
    assert tokens.equal_lengths
    assert all(tokens.changed_positions(i) for i in range(500))


@pytest.mark.parametrize("task_id", tasks.ids())
def test_the_seed_decides(task_id):
    task = tasks.get(task_id)
    first = task.build(by_words(), 20, seed=1)
    assert first == task.build(by_words(), 20, seed=1)
    assert first != task.build(by_words(), 20, seed=2)
    assert first.negative == task.negatives[0]
    # More pairs begin with the same pairs.
    assert task.build(by_words(), 30, seed=1).head(20) == first


@pytest.mark.parametrize("task_id", tasks.ids())
def test_what_cannot_be_built_is_refused(task_id):
    task = tasks.get(task_id)
    with pytest.raises(HeadcodesError, match="at least 1"):
        task.build(by_words(), 0)
    with pytest.raises(HeadcodesError, match=task.negatives[-1]):
        task.build(by_words(), 1, negative="nonsense")
    letters = RegexTokenizer(r"\d{4}|.|\s")
    with pytest.raises(HeadcodesError, match=f"carry the task {task_id}"):
        task.build(letters, 1)


def test_pairs_repeat_only_when_there_are_no_more():
    def prepare(tokenizer, negative):
        return lambda rng: PromptPair(f"a {rng.choice('xyz')}", "a w", (" b",), (" c",))

    pairs = Task("few", "", ("only",), "", prepare).build(by_words(), 7)
    assert len(set(pairs[:3])) == 3
    assert pairs.pairs == (pairs.pairs[:3] * 3)[:7]


def test_a_task_with_no_pair_of_equal_lengths_is_refused():
    def prepare(tokenizer, negative):
        return lambda rng: PromptPair("a b", "a", (" b",), (" c",))

    with pytest.raises(HeadcodesError, match="equally many"):
        Task("never", "", ("only",), "", prepare).build(by_words(), 1)


def names_in(text):
    return Counter(word for word in re.findall(r" [A-Z][a-z]+", text) if word in ioi.NAMES)


@pytest.mark.parametrize("negative", ["abc", "swapped"])
def test_ioi_names_are_where_they_should_be(negative):
    pairs = tasks.get("ioi").build(by_words(), 300, negative=negative)
    orders = Counter()
    for pair in pairs:
        (receiver,), (giver,) = pair.answers, pair.wrong_answers
        assert names_in(pair.clean) == {giver: 2, receiver: 1}
        corrupted = names_in(pair.corrupt)
        if negative == "swapped":
            assert corrupted == {giver: 1, receiver: 2}
        else:
            (third,) = set(corrupted) - {giver, receiver}
            assert corrupted == {giver: 1, receiver: 1, third: 1}
        orders[pair.clean.index(giver) < pair.clean.index(receiver)] += 1
        changed = [(a, b) for a, b in zip(pair.clean.split(" "), pair.corrupt.split(" "), strict=True) if a != b]
        assert len(changed) == 1
    assert min(orders[True], orders[False]) > 100


def test_ioi_has_names_and_frames_enough():
    assert len(set(ioi.NAMES)) == len(ioi.NAMES) > 100
    assert len(set(ioi.FRAMES)) == 15
    # With only the short names as single tokens, no other name is ever used.
    short = RegexTokenizer(r" ?[A-Za-z]{1,4}|\d|[^\w\s]|\s")
    for pair in tasks.get("ioi").build(short, 100):
        assert all(len(name.strip()) <= 4 for name in names_in(pair.clean + pair.corrupt))


@pytest.mark.parametrize(("digits", "shown", "width"), [(1, 2, 1), (2, 2, 2), (3, 3, 1)])
@pytest.mark.parametrize("negative", ["01", "range", "copy"])
def test_greater_than_is_arithmetic(digits, shown, width, negative):
    for pair in tasks.get("greater-than").build(by_words(digits), 200, negative=negative):
        year, end = re.findall(r"\d+", pair.clean)
        assert len(year) == 4
        assert end == year[:shown]
        assert pair.clean.endswith(end)
        answers = {**dict.fromkeys(pair.answers, True), **dict.fromkeys(pair.wrong_answers, False)}
        assert len(answers) == len(pair.answers) + len(pair.wrong_answers)
        for number in range(10**width):
            text = f"{number:0{width}d}"
            rest = 4 - shown - width
            least, most = int(end + text + "0" * rest), int(end + text + "9" * rest)
            verdict = True if least > int(year) else False if most <= int(year) else None
            # The start year's own tens digit leaves it open.
            assert answers.get(text) is (None if rest and text == year[shown] else verdict)
        corrupt_year, corrupt_end = re.findall(r"\d+", pair.corrupt)
        if negative == "01":
            assert (corrupt_year, corrupt_end) == (year[:2] + "01", end)
        elif negative == "range":
            assert (corrupt_year, int(corrupt_end)) == (year, int(end) - 1)
        else:
            assert (corrupt_year, corrupt_end) == (year, end)


def test_greater_than_leaves_out_years_that_the_tokenizer_does_not_split():
    # As GPT-2, which has single tokens for some years.
    some = RegexTokenizer(r" ?[A-Za-z]+|1[78]\d\d(?!\d)|\d{1,2}|[^\w\s]|\s")
    years = {re.search(r"\d{4}", pair.clean)[0] for pair in tasks.get("greater-than").build(some, 300)}
    assert {year[:2] for year in years} == {"11", "12", "13", "14", "15", "16", "19"}


@pytest.mark.parametrize("negative", ["renamed", "other-doc", "swapped"])
def test_docstring_asks_for_the_next_argument(negative):
    for pair in tasks.get("docstring").build(by_words(), 100, negative=negative):
        arguments = re.search(r"\(self,(.*)\)", pair.clean)[1].split(",")
        documented = re.findall(r":param( \w+):", pair.clean)
        assert len(set(arguments)) == 6
        assert documented == arguments[2:4]
        assert pair.clean.endswith(":param")
        assert pair.answers == (arguments[4],)
        assert set(pair.wrong_answers) == {arguments[0], arguments[1], arguments[5]}
        others = re.search(r"\(self,(.*)\)", pair.corrupt)[1].split(",")
        if negative == "renamed":
            assert [a == b for a, b in zip(arguments, others, strict=True)] == [True, True, False, False, False, True]
            assert pair.answers[0] not in pair.corrupt.split(":param")[0].replace("(", " ").split(",")
        elif negative == "other-doc":
            assert others == arguments
            assert not set(re.findall(r":param( \w+):", pair.corrupt)) & set(arguments)
        else:
            assert others[0] == pair.answers[0]
            assert others[4] == arguments[0]


@pytest.mark.parametrize("negative", ["unrepeated", "swapped"])
def test_induction_repeats_and_its_negative_does_not(negative):
    for pair in tasks.get("induction").build(by_words(), 100, negative=negative):
        words, others = pair.clean.split(), pair.corrupt.split()
        last = words[-1]
        first_at = words.index(last)
        assert words[first_at + 1] == pair.answers[0].strip()
        assert words.count(pair.answers[0].strip()) == words.count(pair.wrong_answers[0].strip()) == 1
        if negative == "unrepeated":
            assert len(set(others)) == len(others)
            assert {pair.answers[0].strip(), pair.wrong_answers[0].strip()} <= set(others)
            assert others[-1] == last
        else:
            assert words[:-1] == others[:-1]
            assert others[others.index(others[-1]) + 1] == pair.wrong_answers[0].strip()


@pytest.mark.parametrize("negative", ["unisex", "swapped"])
def test_pronouns_go_with_names(negative):
    seen = Counter()
    for pair in tasks.get("gendered-pronoun").build(by_words(), 200, negative=negative):
        (name,) = {w for w in re.findall(r" [A-Z]\w+", pair.clean) if w in pronoun.MEN + pronoun.WOMEN}
        assert pair.answers == ((" he",) if name in pronoun.MEN else (" she",))
        assert {*pair.answers, *pair.wrong_answers} == {" he", " she"}
        others = pronoun.UNISEX if negative == "unisex" else pronoun.WOMEN if name in pronoun.MEN else pronoun.MEN
        assert len([w for w in re.findall(r" [A-Z]\w+", pair.corrupt) if w in others]) == 1
        seen[pair.answers] += 1
    assert min(seen[(" he",)], seen[(" she",)]) > 60
    assert not set(pronoun.MEN) & set(pronoun.WOMEN)
    assert not set(pronoun.UNISEX) & {*pronoun.MEN, *pronoun.WOMEN}


@pytest.mark.parametrize("negative", ["either", "swapped"])
def test_verbs_agree_with_the_subject_and_not_with_its_neighbour(negative):
    seen = Counter()
    for pair in tasks.get("subject-verb").build(by_words(), 200, negative=negative):
        subject, neighbour = (w for w in re.findall(r"\w+", pair.clean) if w.rstrip("s") in agreement.SINGULAR)
        plural = subject.endswith("s")
        assert pair.answers == ((" are", " were", " have") if plural else (" is", " was", " has"))
        changed = next(b for a, b in zip(pair.clean.split(), pair.corrupt.split(), strict=True) if a != b)
        if negative == "either":
            assert " " + changed in agreement.EITHER
        else:
            assert changed == (subject[:-1] if plural else subject + "s")
        seen[plural, neighbour.endswith("s")] += 1
    assert len(seen) == 4
    assert min(seen.values()) > 20


@pytest.mark.parametrize("negative", ["person", "swapped"])
def test_capitals_go_with_their_countries(negative):
    table = dict(capital.CAPITALS)
    assert len(table) == len(capital.CAPITALS) > 50
    for pair in tasks.get("capital-country").build(by_words(), 200, negative=negative):
        named = [c for c in table if re.search(rf"{c}\b", pair.clean)]
        assert [table[c] for c in named] == list(pair.answers)
        others = [c for c in table if re.search(rf"{c}\b", pair.corrupt)]
        if negative == "swapped":
            assert [table[c] for c in others] == list(pair.wrong_answers)
        else:
            assert others == []
            assert len(names_in(pair.corrupt)) == 1
