"""Tasks: behaviours of language models, as prompt pairs with answers. One file a task.

``tasks.get("ioi").build(tokenizer, n=250, seed=0)`` gives the pairs; ``tasks.ids()`` names what there is.
Nothing here needs torch or transformers.
"""

from __future__ import annotations

from headcodes.errors import HeadcodesError
from headcodes.tasks import agreement, capital, docstring, greater_than, induction, ioi, pronoun
from headcodes.tasks.base import Task as Task

_TASKS: dict[str, Task] = {
    task.id: task
    for task in (
        Task(
            id="ioi",
            summary="of two names, the one the sentence has not repeated receives the object",
            # abc: the repeated name is a third one, so nobody is singled out. swapped: the other name is repeated, so
            # the answer flips.
            negatives=("abc", "swapped"),
            source="Wang et al. 2022, arXiv 2211.00593; ABC negatives as in O'Neill & Bui 2024, arXiv 2405.12522",
            prepare=ioi.prepare,
        ),
        Task(
            id="greater-than",
            summary="a period ends in a later year than it began",
            # 01: the period begins in a year ending in 01, so any ending will do. range: it ends in the century (or
            # decade) before, so none will. copy: the second year is the first again.
            negatives=("01", "range", "copy"),
            source="Hanna et al. 2023, arXiv 2305.00586; negatives after O'Neill & Bui 2024, arXiv 2405.12522",
            prepare=greater_than.prepare,
        ),
        Task(
            id="docstring",
            summary="a docstring documents the next argument of its function",
            # renamed: other names for the three arguments, so the right answer is nowhere in the prompt. other-doc:
            # the docstring documents names that the function lacks. swapped: the answer and an earlier argument
            # change places.
            negatives=("renamed", "other-doc", "swapped"),
            source="Heimersheim & Janiak 2023, A circuit for Python docstrings in a 4-layer attention-only transformer",
            prepare=docstring.prepare,
        ),
        Task(
            id="induction",
            summary="in a repeated run of random words, the next word is the one that came next before",
            # unrepeated: the first run is of other words, but for the two answers. swapped: the last word is another
            # word of the run, so that the answer flips; previous-token heads have the same outputs in the first run.
            negatives=("unrepeated", "swapped"),
            source="Olsson et al. 2022, arXiv 2209.11895",
            prepare=induction.prepare,
        ),
        Task(
            id="gendered-pronoun",
            summary="the pronoun agrees with the gender that a first name suggests",
            # unisex: a name that women and men bear. swapped: a name of the other gender, so that the answer flips.
            negatives=("unisex", "swapped"),
            source="Mathwin et al. 2023, Identifying a preliminary circuit for predicting gendered pronouns in GPT-2 "
            "small",
            prepare=pronoun.prepare,
        ),
        Task(
            id="subject-verb",
            summary="the verb agrees with its subject, not with the noun beside it",
            # either: a subject with one form for both numbers. swapped: the subject in the other number, so the
            # answer flips.
            negatives=("either", "swapped"),
            source="Linzen et al. 2016, arXiv 1611.01368",
            prepare=agreement.prepare,
        ),
        Task(
            id="capital-country",
            summary="a capital belongs to its country",
            # person: a first name stands where the capital stood. swapped: another capital, so that the answer flips.
            negatives=("person", "swapped"),
            source="Hanna et al. 2024, arXiv 2403.17806",
            prepare=capital.prepare,
        ),
    )
}


def ids() -> tuple[str, ...]:
    """Return the ids of all tasks."""
    return tuple(_TASKS)


def get(task_id: str) -> Task:
    """Return the task of that id.

    Raises:
        HeadcodesError: there is no such task; the message names those there are.
    """
    try:
        return _TASKS[task_id]
    except KeyError:
        raise HeadcodesError(
            "the task must be a known one", repr(task_id), f"Choose from {', '.join(_TASKS)}."
        ) from None
