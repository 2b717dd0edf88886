"""Token ids of prompt pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from headcodes.errors import HeadcodesError
from headcodes.prompts.pairs import PromptPairs


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

    ``clean``, ``corrupt``: ids per prompt, with the BOS token in front where ``bos`` says so. ``answers``,
    ``wrong_answers``: ids per prompt, each id once, in the order of the pair's own lists.
    """

    clean: list[list[int]]
    corrupt: list[list[int]]
    answers: list[list[int]]
    wrong_answers: list[list[int]]
    bos: bool
    pairs: PromptPairs

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
            pairs=PromptPairs(tuple(self.pairs[i] for i in chosen), self.pairs.task, self.pairs.negative),
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


def tokenize(pairs: PromptPairs, tokenizer: Tokenizer, bos: str = "auto") -> TokenPairs:
    """Turn prompt pairs into token ids.

    Args:
        pairs: at least one pair. Repeated pairs are fine, and so are unequal lengths within a pair.
        tokenizer: a transformers tokenizer.
        bos: ``auto`` puts a BOS token in front exactly where ``tokenizer.encode(text)`` does; ``yes`` and
            ``no`` say so. A prompt that already begins with the BOS token never gets a second one.

    Raises:
        HeadcodesError: no pairs; an empty prompt; clean and corrupted the same, as text or as tokens; no
            answers or no wrong answers; an answer that is not one known token, or in both sets; a prompt with
            a word that a word-level tokenizer does not know; ``bos="yes"`` with a tokenizer that has no such
            token. The message names the prompt by its index (from 0) and its text.
    """
    if not len(pairs):
        raise HeadcodesError("there must be at least one prompt pair", "none", "Give some prompts.")
    with_bos = _puts_bos(tokenizer, bos)
    unknown = tokenizer.unk_token_id
    if unknown in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        unknown = None  # GPT-2 names its end-of-text token "unknown" too, and its bytes spell every text.
    answer_ids: dict[str, int] = {}
    tokens = TokenPairs([], [], [], [], with_bos, pairs)
    for index, pair in enumerate(pairs):
        where = f"prompt {index} ({_shown(pair.clean)})"
        if pair.clean == pair.corrupt:
            raise HeadcodesError(
                f"clean and corrupted text of {where} must differ", "the same text twice", "Corrupt it."
            )
        for column, text, side in (
            (tokens.clean, pair.clean, "clean"),
            (tokens.corrupt, pair.corrupt, "corrupted"),
        ):
            ids = tokenizer.encode(text, add_special_tokens=False)
            if not ids:
                raise HeadcodesError(f"the {side} text of {where} must not be empty", repr(text), "Give it words.")
            if unknown is not None and unknown in ids:
                raise HeadcodesError(
                    f"every word of the {side} text of {where} must be known to the tokenizer",
                    f"an unknown one in {text!r}",
                    "Use a task that this model knows the words of.",
                )
            if with_bos and ids[0] != tokenizer.bos_token_id:
                assert tokenizer.bos_token_id is not None
                ids = [tokenizer.bos_token_id, *ids]
            column.append(list(ids))
        if tokens.clean[-1] == tokens.corrupt[-1]:
            raise HeadcodesError(
                f"clean and corrupted text of {where} must differ for this tokenizer",
                f"the same {len(tokens.clean[-1])} tokens twice",
                "Corrupt it by more than what the tokenizer normalises away.",
            )
        for column, answers, kind in (
            (tokens.answers, pair.answers, "answer"),
            (tokens.wrong_answers, pair.wrong_answers, "wrong answer"),
        ):
            if not answers:
                raise HeadcodesError(f"{where} must have at least one {kind}", "none", "Add one.")
            for answer in answers:
                if answer not in answer_ids:
                    answer_ids[answer] = _answer_id(tokenizer, answer, unknown, f"{kind} of {where}")
            column.append(list(dict.fromkeys(answer_ids[answer] for answer in answers)))
        both = set(tokens.answers[-1]) & set(tokens.wrong_answers[-1])
        if both:
            named = next(answer for answer in pair.answers if answer_ids[answer] in both)
            raise HeadcodesError(
                f"right and wrong answers of {where} must be different tokens",
                f"{named!r} in both",
                "Remove one.",
            )
    return tokens


def _puts_bos(tokenizer: Tokenizer, bos: str) -> bool:
    if bos not in ("auto", "yes", "no"):
        raise HeadcodesError("bos must be 'auto', 'yes' or 'no'", repr(bos), "Choose one of them.")
    if bos == "no":
        return False
    if tokenizer.bos_token_id is None:
        if bos == "yes":
            raise HeadcodesError(
                "bos='yes' needs a tokenizer with a BOS token", "one without", "Use bos='auto' or bos='no'."
            )
        return False
    return bos == "yes" or tokenizer.encode("a")[:1] == [tokenizer.bos_token_id]


def _answer_id(tokenizer: Tokenizer, answer: str, unknown: int | None, what: str) -> int:
    ids = continuation_ids(tokenizer, answer)
    if len(ids) != 1 or ids[0] == unknown:
        raise HeadcodesError(
            f"each {what} must be exactly one known token",
            f"{answer!r}, which is {'an unknown word' if ids == [unknown] else f'{len(ids)} tokens'}",
            "Choose another answer, with its leading space where it has one.",
        )
    return ids[0]


def _shown(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")
