"""Prompt pairs: a clean prompt, its corrupted counterpart, the right and the wrong answers; and their tokens.

Nothing here imports torch or transformers: a tokenizer is any object with transformers' ``encode``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

from headcodes.files import atomic_write
from headcodes.prompts.rows import Reading
from headcodes.settings import check_names

Spans = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class PromptPair:
    """One clean (positive) prompt and its corrupted (negative) counterpart.

    Answers are continuations of the clean prompt, with their leading space where they have one (``" Mary"``), or token
    ids. Both prompts are judged by the same two sets; ``headcodes.prompts.tokens`` says how where an answer has several
    tokens. Without wrong answers the model's own best other token takes their place (``headcodes.models.asked``).
    ``where`` is the place of the pair in the file it was read from; empty where it comes from none. Spans are stretches
    of the texts that the file marks: name, first character, and the one behind the last.
    """

    clean: str
    corrupt: str
    answers: tuple[str | int, ...]
    wrong_answers: tuple[str | int, ...]
    where: str = field(default="", compare=False, repr=False)
    clean_spans: Spans = field(default=(), compare=False, repr=False)
    corrupt_spans: Spans = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class PromptPairs(Sequence[PromptPair]):
    """Prompt pairs of one task with one kind of negative. Slicing keeps the type.

    ``reading`` says how they were read; None where they come from no file.

    Raises:
        HeadcodesError: the name of the task or of the negative has control characters.
    """

    pairs: tuple[PromptPair, ...]
    task: str
    negative: str
    reading: Reading | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_names(task=self.task, negative=self.negative)

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> PromptPair: ...
    @overload
    def __getitem__(self, index: slice) -> PromptPairs: ...
    def __getitem__(self, index: int | slice) -> PromptPair | PromptPairs:
        if isinstance(index, slice):
            return PromptPairs(self.pairs[index], self.task, self.negative, self.reading)
        return self.pairs[index]

    def head(self, n: int) -> PromptPairs:
        """Return the first ``n`` pairs (all of them where there are fewer)."""
        return self[:n]

    def to_json(self, path: Path | str) -> None:
        """Write the pairs in auto-circuit's form, which ``from_json`` reads back unchanged (but token ids as answers).

        The keys ``task`` and ``negative`` are additions that auto-circuit ignores.
        """
        rows = [
            {
                "clean": pair.clean,
                "corrupt": pair.corrupt,
                "answers": list(pair.answers),
                "wrong_answers": list(pair.wrong_answers),
            }
            for pair in self.pairs
        ]
        record = {"task": self.task, "negative": self.negative, "prompts": rows}
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: Path | str) -> PromptPairs:
        """Read what ``to_json`` wrote; ``headcodes.prompts.files.read_pairs`` reads this and every other form.

        Raises:
            HeadcodesError: the file cannot be read or is not of this form.
        """
        from headcodes.prompts.files import read_pairs

        return read_pairs(path)
