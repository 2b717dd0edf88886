"""Prompt pairs: a clean prompt, its corrupted counterpart, the right and the wrong answers; and their tokens.

Nothing here imports torch or transformers: a tokenizer is any object with transformers' ``encode``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from headcodes.errors import HeadcodesError
from headcodes.files import atomic_write


@dataclass(frozen=True, slots=True)
class PromptPair:
    """One clean (positive) prompt and its corrupted (negative) counterpart.

    Answers are continuations of the clean prompt, one token each, with their leading space where they have
    one (``" Mary"``). Both prompts are judged by the same two sets.
    """

    clean: str
    corrupt: str
    answers: tuple[str, ...]
    wrong_answers: tuple[str, ...]


@dataclass(frozen=True)
class PromptPairs(Sequence[PromptPair]):
    """Prompt pairs of one task with one kind of negative. Slicing keeps the type."""

    pairs: tuple[PromptPair, ...]
    task: str
    negative: str

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> PromptPair: ...
    @overload
    def __getitem__(self, index: slice) -> PromptPairs: ...
    def __getitem__(self, index: int | slice) -> PromptPair | PromptPairs:
        if isinstance(index, slice):
            return PromptPairs(self.pairs[index], self.task, self.negative)
        return self.pairs[index]

    def head(self, n: int) -> PromptPairs:
        """Return the first ``n`` pairs (all of them where there are fewer)."""
        return self[:n]

    def to_json(self, path: Path | str) -> None:
        """Write the pairs in auto-circuit's form, which ``from_json`` reads back unchanged.

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
        """Read pairs in auto-circuit's form: ``{"prompts": [{"clean", "corrupt", "answers",
        "wrong_answers"}]}``.

        Unknown keys are ignored. Without a ``task`` key the file's name without its suffix is the task.

        Raises:
            HeadcodesError: the file cannot be read or is not of this form; the message names the file and the
                prompt (counted from 0).
        """
        path = Path(path)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise HeadcodesError(
                f"the prompt file {path} must be readable", error.strerror or str(error), "Check the path."
            ) from error
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise HeadcodesError(
                f"the prompt file {path} must be JSON in UTF-8",
                str(error),
                "Mend the file or write it again.",
            ) from error
        rows = record.get("prompts") if isinstance(record, dict) else None
        if not isinstance(rows, list) or not rows:
            raise HeadcodesError(
                f"the prompt file {path} must hold an object with a list 'prompts' of at least one prompt",
                "an empty list" if rows == [] else f"a top-level {type(record).__name__} without such a list",
                f"Write it as {_FORM}.",
            )
        pairs = tuple(_pair_from_json(row, f"prompt {index} of {path}") for index, row in enumerate(rows))
        task, negative = record.get("task", path.stem), record.get("negative", "custom")
        for key, value in (("task", task), ("negative", negative)):
            if not isinstance(value, str):
                raise HeadcodesError(f"'{key}' of {path} must be a string", repr(value), "Leave it out or name it.")
        return cls(pairs, task, negative)


_FORM = '{"prompts": [{"clean": "...", "corrupt": "...", "answers": [" yes"], "wrong_answers": [" no"]}]}'


def _pair_from_json(row: Any, where: str) -> PromptPair:
    if not isinstance(row, dict):
        raise HeadcodesError(f"{where} must be an object", type(row).__name__, f"Write the file as {_FORM}.")
    texts = []
    for key in ("clean", "corrupt"):
        text = row.get(key)
        if not isinstance(text, str):
            got = f"a {type(text).__name__}" if key in row else "no such key"
            raise HeadcodesError(f"{where} must have a string '{key}'", got, f"Write the file as {_FORM}.")
        texts.append(text)
    sets = []
    for key in ("answers", "wrong_answers"):
        answers = row.get(key)
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            got = repr(answers) if key in row else "no such key"
            raise HeadcodesError(f"{where} must have a list of strings '{key}'", got, f"Write the file as {_FORM}.")
        sets.append(tuple(answers))
    return PromptPair(texts[0], texts[1], sets[0], sets[1])
