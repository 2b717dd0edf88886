"""Token ids of prompt pairs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.prompts.rows import Reading, RowError, settle


class Tokenizer(Protocol):
    """What is asked of a tokenizer; every transformers tokenizer has it."""

    bos_token_id: int | None
    eos_token_id: int | None
    unk_token_id: int | None

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]:
        """Return the token ids of ``text``."""
        ...


@dataclass(frozen=True)
class TokenPairs:
    """The token ids of prompt pairs, for one tokenizer.

    ``clean``, ``corrupt``: ids per prompt, with the BOS token in front where ``bos`` says so, and behind it the tokens
    that all answers of the pair begin with. ``answers``, ``wrong_answers``: the ids scored, per prompt, each id once,
    in the order of the pair's own lists. ``words``: the text of each token of clean prompts, where known.
    """

    clean: list[list[int]]
    corrupt: list[list[int]]
    answers: list[list[int]]
    wrong_answers: list[list[int]]
    bos: bool
    pairs: PromptPairs
    words: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def equal_lengths(self) -> bool:
        """Whether every clean prompt has as many tokens as its corrupted counterpart: what patching needs."""
        return all(len(a) == len(b) for a, b in zip(self.clean, self.corrupt, strict=True))

    @property
    def scored_ids(self) -> list[list[int]]:
        """The ids whose logits judge each prompt: the right answers, then the wrong ones."""
        return [right + wrong for right, wrong in zip(self.answers, self.wrong_answers, strict=True)]

    def changed_positions(self, index: int) -> list[int]:
        """Return the positions at which the clean and the corrupted tokens of one pair differ.

        Raises:
            HeadcodesError: the two prompts have different numbers of tokens.
        """
        clean, corrupt = self.clean[index], self.corrupt[index]
        if len(clean) != len(corrupt):
            raise HeadcodesError(
                "clean and corrupted prompt must have equally many tokens to be compared by position",
                f"{len(clean)} and {len(corrupt)} at prompt {index} ({_shown(self.pairs[index].clean)})",
                "Reword the pair, or use a method that does not patch.",
            )
        return [position for position, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b]

    def subset(self, indices: Iterable[int]) -> TokenPairs:
        """Return the pairs at ``indices``, in that order."""
        chosen = list(indices)
        return TokenPairs(
            clean=[self.clean[i] for i in chosen],
            corrupt=[self.corrupt[i] for i in chosen],
            answers=[self.answers[i] for i in chosen],
            wrong_answers=[self.wrong_answers[i] for i in chosen],
            bos=self.bos,
            pairs=PromptPairs(
                tuple(self.pairs[i] for i in chosen), self.pairs.task, self.pairs.negative, self.pairs.reading
            ),
            words=self.words,
        )


def continuation_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of ``text`` as they continue a prompt, without special tokens.

    SentencePiece tokenizers such as Llama 2's put a space before every text they are given, so that an answer
    on its own reads as two tokens. The ids are therefore those that ``text`` adds behind a line break; where
    the two merge, those of the text alone.
    """
    before = tokenizer.encode("\n", add_special_tokens=False)
    both = tokenizer.encode("\n" + text, add_special_tokens=False)
    if len(both) > len(before) and both[: len(before)] == before:
        return both[len(before) :]
    return tokenizer.encode(text, add_special_tokens=False)


def tokenize(
    pairs: PromptPairs,
    tokenizer: Tokenizer,
    bos: str = "auto",
    *,
    skip_bad: bool = False,
    needs_wrong: bool = True,
    warn: bool = True,
) -> TokenPairs:
    """Turn prompt pairs into token ids.

    Answers of several tokens are judged by the first token in which right and wrong ones differ: tokens that all
    answers of a pair begin with are put behind both prompts, and the answers' next tokens are scored. Among several
    answers, a next token that a right one and a wrong one share tells nothing and is not scored.

    Args:
        pairs: at least one pair. Repeated pairs are fine, and so are unequal lengths within a pair.
        tokenizer: a transformers tokenizer.
        bos: ``auto`` puts in front what ``tokenizer.encode(text)`` puts there: a BOS token, GLM's ``[gMASK]<sop>``, or
            nothing; ``yes`` and ``no`` say whether there is a BOS token. A prompt that already begins so never gets it
            twice.
        skip_bad: leave pairs out that cannot be used; the result's ``pairs.reading`` lists them.
        needs_wrong: whether a pair must have wrong answers.
        warn: whether to warn; not where that was done before, or a chat template decided how prompts begin and end.

    Warns:
        HeadcodesWarning: prompts that begin with what would be put in front of them, or end in a space that belongs to
            their answers; a tokenizer that ends every text with a token.

    Raises:
        HeadcodesError: no pairs; an empty prompt; clean and corrupted the same, as text or as tokens; no
            answers or no wrong answers; an empty or unknown answer, or one in both sets; right or wrong answers of
            which no next token is left to score; a prompt with a word that a word-level tokenizer does not know;
            ``bos="yes"`` with a tokenizer that has no such token. The message names the prompt by its place (its
            index, from 0, where it comes from no file) and its text.
    """
    if not len(pairs):
        raise HeadcodesError("there must be at least one prompt pair", "none", "Give some prompts.")
    front = _front(tokenizer, bos)
    reader = _Reader(tokenizer, front, needs_wrong)
    reader.read_all(pairs)
    found, faults = [], []
    for index, pair in enumerate(pairs):
        where = pair.where or f"prompt {index}"
        try:
            found.append((pair, reader.ids(pair, f"{where} ({_shown(pair.clean)})")))
        except RowError as error:
            faults.append((where, error))
    left_out = settle(faults, len(pairs), skip_bad=skip_bad)
    if left_out:
        reading = (pairs.reading or Reading("prompts", len(pairs))).also(left_out=left_out)
        pairs = PromptPairs(tuple(pair for pair, _ in found), pairs.task, pairs.negative, reading)
    n_long = sum(any(len(reader.answer_ids(answer)) > 1 for answer in pair.answers) for pair, _ in found)
    if n_long and pairs.reading is not None:
        note = f"right answers of {n_long:,} rows have several tokens: the first that tells right from wrong is scored"
        pairs = PromptPairs(pairs.pairs, pairs.task, pairs.negative, pairs.reading.also(note))
    if warn:
        reader.warn([pair for pair, _ in found])
    columns = [list(column) for column in zip(*(ids for _, ids in found), strict=True)]
    used = sorted({token for ids in columns[0] for token in ids}) if hasattr(tokenizer, "decode") else []
    words = {token: tokenizer.decode([token]) for token in used}  # type: ignore[attr-defined]
    return TokenPairs(columns[0], columns[1], columns[2], columns[3], bool(front), pairs, words)


@dataclass
class _Reader:
    """One tokenizer's way of reading pairs; answers are looked up once."""

    tokenizer: Tokenizer
    front: list[int]
    needs_wrong: bool

    def __post_init__(self) -> None:
        tokenizer = self.tokenizer
        self.unknown = tokenizer.unk_token_id
        if self.unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            self.unknown = None  # GPT-2 names its end-of-text token "unknown" too, and its bytes spell every text.
        self.answers: dict[str, list[int]] = {}
        self.read: dict[str, list[int]] = {}
        size: Any = getattr(tokenizer, "__len__", None)
        self.n_vocab: int | None = size() if size is not None else None

    def read_all(self, pairs: PromptPairs) -> None:
        """Read all prompts in one call where the tokenizer is of transformers' fast kind: a tenth of the time."""
        tokenizer: Any = self.tokenizer
        if getattr(tokenizer, "is_fast", False):
            texts = list(dict.fromkeys(text for pair in pairs for text in (pair.clean, pair.corrupt)))
            self.read = dict(zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True))

    def ids(self, pair: PromptPair, where: str) -> tuple[list[int], list[int], list[int], list[int]]:
        """Return the ids of both prompts, of the right answers, and of the wrong ones."""
        if pair.clean == pair.corrupt:
            raise RowError(
                f"clean and corrupted text of {where} must differ",
                "the same text twice",
                "Corrupt it.",
                "identical texts",
            )
        clean, corrupt = self._prompt(pair.clean, "clean", where), self._prompt(pair.corrupt, "corrupted", where)
        if clean == corrupt:
            raise RowError(
                f"clean and corrupted text of {where} must differ for this tokenizer",
                f"the same {len(clean)} tokens twice",
                "Corrupt it by more than what the tokenizer normalises away.",
                "equal after tokenisation",
            )
        right = [(answer, self._answer(answer, f"answer of {where}")) for answer in pair.answers]
        wrong = [(answer, self._answer(answer, f"wrong answer of {where}")) for answer in pair.wrong_answers]
        for answers, kind in ((right, "answer"), (wrong, "wrong answer")):
            if not answers and (kind == "answer" or self.needs_wrong):
                raise RowError(f"{where} must have at least one {kind}", "none", "Add one.", f"without {kind}s")
        shared, first, others = _scored(right, wrong, where)
        return clean + shared, corrupt + shared, first, others

    def _prompt(self, text: str, side: str, where: str) -> list[int]:
        ids = self._plain(text)
        if not ids:
            raise RowError(
                f"the {side} text of {where} must not be empty", repr(text), "Give it words.", f"empty {side} text"
            )
        if self.unknown is not None and self.unknown in ids:
            raise RowError(
                f"every word of the {side} text of {where} must be known to the tokenizer",
                f"an unknown one in {_shown(text, 200)}",
                "Use a task that this model knows the words of.",
                "with unknown words",
            )
        return ids if ids[: len(self.front)] == self.front else [*self.front, *ids]

    def warn(self, pairs: Sequence[PromptPair]) -> None:
        """Warn where the ids are not those that ``tokenizer(prompt)`` and ``tokenizer(prompt + answer)`` give."""
        front = self.front
        twice = [pair for pair in pairs if front and self._plain(pair.clean)[: len(front)] == front]
        if twice:
            _warn(f"{len(twice):,} prompts begin with what the tokenizer puts in front: it stands there but once")
        moved = [pair for pair in pairs if pair.clean.endswith(" ") and self._moves(pair)]
        if moved:
            where = moved[0].where or f"the one that ends in {_shown(moved[0].clean[-20:])}"
            _warn(
                f"{len(moved):,} prompts end in a space, which with their answers makes other tokens than one text"
                f" would (first: {where}): take it off, and let the answers begin with it"
            )

    def _plain(self, text: str) -> list[int]:
        return self.read.get(text) or list(self.tokenizer.encode(text, add_special_tokens=False))

    def _moves(self, pair: PromptPair) -> bool:
        """Whether an answer brings a space of its own, or prompt and answer together are other tokens than apart."""
        ids = self._plain(pair.clean)
        answers = [answer for answer in (*pair.answers, *pair.wrong_answers) if isinstance(answer, str)]
        return any(answer[:1].isspace() or self._plain(pair.clean + answer)[: len(ids)] != ids for answer in answers)

    def answer_ids(self, answer: str | int) -> list[int]:
        """Return the ids of an answer that was read before."""
        return [answer] if isinstance(answer, int) else self.answers[answer]

    def _answer(self, answer: str | int, what: str) -> list[int]:
        if isinstance(answer, int):
            if self.n_vocab is not None and answer >= self.n_vocab:
                raise RowError(
                    f"each {what} must be a token id of the model, below {self.n_vocab}",
                    str(answer),
                    "Give answers as text, or the model that the file was made for.",
                    "with unknown token ids",
                )
            return [answer]
        if answer not in self.answers:
            ids = list(continuation_ids(self.tokenizer, answer))
            if not ids or self.unknown in ids:
                raise RowError(
                    f"each {what} must be known tokens",
                    f"{_shown(answer)}, which is {'an unknown word' if ids else '0 tokens'}",
                    "Choose another answer, with its leading space where it has one.",
                    "with unknown answers" if ids else "with empty answers",
                )
            self.answers[answer] = ids
        return self.answers[answer]


def n_shared(right: Sequence[Sequence[int]], wrong: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all answers of a pair begin with; 0 where there are no wrong ones.

    They are part of the prompt: what right and wrong answers share does not tell them apart.
    """
    n = 0
    everyone = [*right, *wrong]
    while wrong and all(len(ids) > n for ids in everyone) and len({ids[n] for ids in everyone}) == 1:
        n += 1
    return n


_Answers = Sequence[tuple[str | int, list[int]]]


def _scored(right: _Answers, wrong: _Answers, where: str) -> tuple[list[int], list[int], list[int]]:
    """Return the tokens that all answers begin with, and the next tokens of the right and of the wrong ones.

    A single answer without wrong ones is scored by its first token.
    """
    known = {tuple(ids) for _, ids in wrong}
    for answer, ids in right:
        if tuple(ids) in known:
            raise RowError(
                f"right and wrong answers of {where} must be different tokens",
                f"{answer!r} in both",
                "Remove one.",
                "with an answer that is right and wrong",
            )
    n = n_shared([ids for _, ids in right], [ids for _, ids in wrong])
    shared = right[0][1][:n]
    sides = [[ids[n] for _, ids in side if len(ids) > n] for side in (right, wrong)]
    both = set(sides[0]) & set(sides[1])
    first, others = (list(dict.fromkeys(token for token in side if token not in both)) for side in sides)
    if not first or (wrong and not others):
        side, kind = (right, "right") if not first else (wrong, "wrong")
        raise RowError(
            f"some token must tell a {kind} answer of {where} from the others",
            f"{_shown(str(side[0][0]))}, which begins like them",
            "Choose answers that part in their first tokens, none of them the beginning of another.",
            "with answers that begin alike",
        )
    return shared, first, others


def _warn(message: str) -> None:
    warnings.warn(message, HeadcodesWarning, stacklevel=4)


def _front(tokenizer: Tokenizer, bos: str) -> list[int]:
    """Return the ids that stand in front of every prompt."""
    if bos not in ("auto", "yes", "no"):
        raise HeadcodesError("bos must be 'auto', 'yes' or 'no'", repr(bos), "Choose one of them.")
    if bos == "no":
        return []
    if bos == "yes":
        if tokenizer.bos_token_id is None:
            raise HeadcodesError(
                "the tokenizer must have a BOS token for bos='yes'", "one without", "Use bos='auto' or bos='no'."
            )
        return [tokenizer.bos_token_id]
    whole, text = list(tokenizer.encode("a")), list(tokenizer.encode("a", add_special_tokens=False))
    starts = [i for i in range(len(whole)) if whole[i : i + len(text)] == text]
    if starts and text and whole[starts[-1] + len(text) :]:
        _warn("the tokenizer ends every text with a token of its own: it is left out, since an answer follows")
    return whole[: starts[-1]] if starts and text else []


def _shown(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")
