"""Prompt files of every usual form, read into pairs.

JSON (ours and auto-circuit's, or a list of rows), JSON lines, CSV, TSV, Parquet, and data sets through the ``datasets``
library. What names a column may have is in ``KNOWN``; docs/prompts.md describes the forms.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from headcodes.errors import HeadcodesError
from headcodes.files import checksum
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.prompts.positions import unmarked
from headcodes.prompts.rows import Reading, RowError, settle
from headcodes.prompts.tables import FORM, read_rows
from headcodes.settings import LeadingSpace, SharedSettings

# By role, the names a column is known by, the likeliest first; compared without regard to case.
KNOWN: dict[str, tuple[str, ...]] = {
    "clean": ("clean", "clean_prompt", "prompt", "positive"),
    "corrupt": ("corrupt", "corrupted", "corrupted_prompt", "corrupt_prompt", "counterfactual", "negative"),
    "answer": ("answers", "answer", "correct", "correct_answer", "clean_answer", "label", "target"),
    "wrong": ("wrong_answers", "wrong_answer", "wrong", "incorrect", "incorrect_answer", "corrupted_answer"),
    # Token ids, as EAP-IG's files have them: of the tokenizer that the file was made with.
    "answer_id": ("correct_idx", "clean_answer_idx"),
    "wrong_id": ("incorrect_idx", "corrupted_answer_idx"),
    # MIB's data sets: a list of answers and the place of the right one.
    "choices": ("choices",),
    "choice": ("answerkey",),
}
_MARKS = re.compile(r"\[(\w+)\].+?\[/\1\]", re.DOTALL)
_GREATER = re.compile(r"\b(\d\d)(\d\d)\b.*\b(\d\d)$", re.DOTALL)


def read_as(source: str, settings: SharedSettings, spans: Iterable[str] = ()) -> PromptPairs:
    """``read_pairs`` as settings ask for it."""
    return read_pairs(
        source,
        columns=parse_columns(settings.columns) if settings.columns else None,
        skip_bad=settings.skip_bad,
        leading_space=settings.leading_space,
        made_negatives=bool(settings.corrupt),
        spans=spans,
    )


def source_checksum(source: str) -> str:
    """Return the SHA-256 of a prompt file, or of the rows of a data set (``hf:NAME[:split]``).

    Raises:
        HeadcodesError: a data set that cannot be read.
    """
    if not source.startswith("hf:"):
        return checksum(Path(source))
    return checksum(repr(read_rows(source)[1]).encode())


def read_pairs(
    source: Path | str,
    *,
    columns: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    leading_space: LeadingSpace = "auto",
    made_negatives: bool = False,
    spans: Iterable[str] = (),
) -> PromptPairs:
    """Read prompt pairs.

    Args:
        source: a file (.json, .jsonl, .csv, .tsv, .parquet), or ``hf:NAME[:split]`` for a data set by name or local
            folder.
        columns: which column is what: the roles clean, corrupt, answer, wrong, answer_id and wrong_id to the names of
            columns; the others are guessed from the names in ``KNOWN``.
        skip_bad: leave broken rows out, instead of refusing the file. ``pairs.reading`` lists them.
        leading_space: whether answers of a table get a space in front: "yes", "no" (they are taken as they stand), or
            "auto": where a prompt ends in a space, the space goes to its answers; and where no answer of the file
            begins with one, a space is put before every answer that begins with a letter of a cased alphabet or a
            digit, unless its prompt ends in a character that a word follows without a space (a digit before a digit,
            an opening bracket or quote, a line break). Our own JSON is always taken as it stands.
        made_negatives: corrupted texts are made later: rows need none.
        spans: names of spans that the texts mark, ``[name]...[/name]``: the marks are taken out and the places kept.

    Returns:
        The pairs, with ``reading`` saying how they were read.

    Raises:
        HeadcodesError: no such file, not of its form, no column for a role, or a broken row, which the message names.
    """
    name = str(source)
    form, rows, about = read_rows(name)
    cells = [row for _, row in rows if not isinstance(row, RowError)]
    names = dict.fromkeys(key for row in cells for key in row)
    # Where no row is one, the first of them is the message.
    roles = _roles(names, columns or {}, name, made_negatives) if cells else {}
    pairs: list[PromptPair] = []
    faults: list[tuple[str, RowError]] = []
    for where, row in rows:
        try:
            if isinstance(row, RowError):
                raise row
            pairs.append(_pair(row, roles, where, split=form in ("csv", "tsv"), made=made_negatives))
        except RowError as error:
            faults.append((where, error))
    notes: list[str] = []
    for span in spans:
        pairs, n_marked = _unmarked(pairs, span)
        notes.append(f"the span [{span}] is marked in {n_marked:,} of {len(pairs):,} rows; the marks are taken out")
    if (marks := next(filter(None, (_MARKS.search(pair.clean[:2000]) for pair in pairs)), None)) is not None:
        notes.append(f"texts hold what look like marks of a span: [{marks[1]}]; --positions {marks[1]} takes them out")
    left_out = settle(faults, len(rows), skip_bad=skip_bad)
    task = about.get("task", Path(name.removeprefix("hf:").split(":")[0]).stem)
    negative = about.get("negative", "custom")
    if not about:
        notes.append(f"columns: {', '.join(f'{role} from {column!r}' for role, column in roles.items())}")
    if "answer_id" in roles:
        notes.append("answers are token ids, taken to be this model's own")
    pairs, years = _greater_than(pairs, roles)
    if years:
        notes.append(
            "labels are two-digit years, as in EAP-IG's greater-than file: later years are right, others wrong"
        )
    elif not about:
        pairs, spaces = _spaced(pairs, leading_space)
        notes += spaces
    reading = Reading(name, len(rows), tuple(notes), left_out)
    return PromptPairs(tuple(pairs), task, negative, reading)


def _unmarked(pairs: list[PromptPair], name: str) -> tuple[list[PromptPair], int]:
    made = []
    for pair in pairs:
        (clean, ours), (corrupt, theirs) = unmarked(pair.clean, name), unmarked(pair.corrupt, name)
        ours, theirs = pair.clean_spans + ours, pair.corrupt_spans + theirs
        made.append(replace(pair, clean=clean, corrupt=corrupt, clean_spans=ours, corrupt_spans=theirs))
    return made, sum(bool(pair.clean_spans) for pair in made)


def parse_columns(text: str) -> dict[str, str]:
    """Read ``"clean=question,answer=label"``.

    Raises:
        HeadcodesError: another form, or a role that does not exist.
    """
    found: dict[str, str] = {}
    for part in text.split(","):
        role, equals, column = part.partition("=")
        if role.strip() not in KNOWN or not equals or not column.strip():
            raise HeadcodesError(
                f"columns must be named like clean=...,corrupt=...,answer=...; roles are {', '.join(KNOWN)}",
                repr(part),
                "Name the columns of your file.",
            )
        found[role.strip()] = column.strip()
    return found


def _roles(names: Iterable[str], given: Mapping[str, str], source: str, made: bool) -> dict[str, str]:
    """Return the column of every role that there is one for."""
    columns = list(names)
    plain = {column.strip().lower(): column for column in reversed(columns)}
    found: dict[str, str] = {}
    for role, known in KNOWN.items():
        if role in given:
            if given[role] not in columns:
                raise HeadcodesError(
                    f"the column for {role} must be one of {source}",
                    f"{given[role]!r}; its columns are {', '.join(map(repr, columns))}",
                    "Mend --columns.",
                )
            found[role] = given[role]
        elif (column := next((plain[name] for name in known if name in plain), None)) is not None:
            found[role] = column
    # Text is taken before ids, unless ids were asked for by name.
    for text, ids in (("answer", "answer_id"), ("wrong", "wrong_id")):
        if text in found and ids in found:
            del found[text if ids in given and text not in given else ids]
    if "choices" in found and "choice" in found and not {"answer", "answer_id"} & set(given):
        for role in ("answer", "answer_id", "wrong", "wrong_id"):
            found.pop(role, None)
    else:
        found.pop("choices", None)
        found.pop("choice", None)
    right = any(role in found for role in ("answer", "answer_id", "choices"))
    missing = [role for role in ("clean",) if role not in found]
    missing += [] if made or "corrupt" in found else ["corrupt"]
    missing += [] if right else ["answer"]
    if missing:
        named = {"clean": "'clean'", "corrupt": "'corrupt'", "answer": "'answers'"}
        needed = " and ".join(named[role] for role in missing)
        raise HeadcodesError(
            f"the rows of {source} must have {needed}, under these or other names",
            f"columns {', '.join(map(repr, columns[:12])) or 'of no name'}",
            f"Name them, as in --columns {','.join(f'{role}=...' for role in missing)}"
            + (", or make negatives with --corrupt." if "corrupt" in missing else f". Our JSON is {FORM}."),
        )
    if made:
        found.pop("corrupt", None)
    return found


def _pair(row: Mapping[str, Any], roles: Mapping[str, str], where: str, *, split: bool, made: bool) -> PromptPair:
    def text(role: str) -> str:
        value = row.get(roles[role])
        if isinstance(value, Mapping):  # MIB's counterfactuals are rows themselves
            value = value.get("prompt")
        if not isinstance(value, str):
            raise RowError(
                f"{where} must have a string {roles[role]!r}",
                _got(value, roles[role] in row),
                f"Write rows like those of {FORM}.",
                f"without {role} text",
            )
        if not _encodes(value):
            raise RowError(f"{where} must be Unicode text", ascii(value[:60]), "Mend its characters.", "not Unicode")
        return value

    def answers(role: str) -> tuple[str | int, ...]:
        column = roles[role]
        value = row.get(column)
        found = _answers(value, split=split, ids=role.endswith("_id"))
        empty = value in (None, "", [])
        if empty and role.startswith("wrong"):
            return ()
        if empty and column in row:
            raise RowError(f"{where} must have an answer {column!r}", "none", "Add one.", "without an answer")
        if found is None or not all(isinstance(answer, int) or _encodes(answer) for answer in found):
            raise RowError(
                f"{where} must have a list of {'token ids' if role.endswith('_id') else 'strings'} {column!r}",
                _got(value, column in row),
                f"Write rows like those of {FORM}.",
                f"without usable {column}",
            )
        return found

    clean, corrupt = text("clean"), "" if made else text("corrupt")
    if "choices" in roles:
        choices, place = row.get(roles["choices"]), row.get(roles["choice"])
        fits = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
        if not fits or not isinstance(place, int) or not 0 <= place < len(choices or ()):
            raise RowError(
                f"{where} must have a list of choices and the place of the right one",
                f"{choices!r:.80} and {place!r:.20}",
                "Name the answers' columns with --columns.",
                "without usable choices",
            )
        assert isinstance(choices, list)
        return PromptPair(clean, corrupt, (choices[place],), (*choices[:place], *choices[place + 1 :]), where)
    right = answers("answer" if "answer" in roles else "answer_id")
    wrong_role = next((role for role in ("wrong", "wrong_id") if role in roles), None)
    return PromptPair(clean, corrupt, right, answers(wrong_role) if wrong_role else (), where)


def _got(value: Any, there: bool) -> str:
    if not there or value is None:
        return "no such key" if not there else "nothing"
    shown = repr(value)
    return f"a {type(value).__name__}, {shown if len(shown) <= 80 else shown[:77] + '...'}"


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _answers(value: Any, *, split: bool, ids: bool) -> tuple[str | int, ...] | None:
    """Return the answers of a cell, or None where it holds none that can be used."""
    if isinstance(value, str) and (split or ids):
        if value.strip().startswith("["):
            try:
                value = ast.literal_eval(value.strip())
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return None
        elif split and "|" in value and all(part.strip() for part in value.split("|")):
            value = value.split("|")
    if not isinstance(value, list):
        if isinstance(value, int) and not isinstance(value, bool) and not ids:
            value = str(value)  # a label that a table keeps as a number
        value = [value]
    ids = ids or any(isinstance(part, int) for part in value)  # a list of whole numbers: token ids, as to_json writes
    if ids:
        try:
            found = [int(part) for part in value if not isinstance(part, (bool, float))]
        except (TypeError, ValueError):
            return None
        return tuple(found) if len(found) == len(value) and found and min(found) >= 0 else None
    return tuple(value) if all(isinstance(part, str) for part in value) else None


def _greater_than(pairs: list[PromptPair], roles: Mapping[str, str]) -> tuple[list[PromptPair], bool]:
    """Turn the labels of EAP-IG's greater-than file into answers: "... 1752 to the year 17" with the label 52."""
    made = []
    for pair in pairs:
        found = _GREATER.search(pair.clean)
        label = pair.answers[0] if len(pair.answers) == 1 and not pair.wrong_answers else None
        if roles.get("answer", "").lower() != "label" or found is None or found[1] != found[3]:
            return pairs, False
        if not isinstance(label, str) or not label.isascii() or not label.isdigit() or f"{int(label):02d}" != found[2]:
            return pairs, False
        years = [f"{year:02d}" for year in range(100)]
        right, wrong = tuple(years[int(label) + 1 :]), tuple(years[: int(label) + 1])
        made.append(replace(pair, answers=right, wrong_answers=wrong))
    return made, bool(made)


def _spaced(pairs: list[PromptPair], leading_space: LeadingSpace) -> tuple[list[PromptPair], list[str]]:
    """Put spaces where prompts end and answers begin; and say so."""
    if leading_space == "no":
        return pairs, []
    notes = []
    moved = [pair.clean.endswith(" ") and (pair.corrupt or " ").endswith(" ") for pair in pairs]
    if any(moved):
        notes.append(f"{sum(moved):,} prompts end in a space: it is counted to their answers")
    bare = not any(
        isinstance(answer, str) and answer[:1].isspace()
        for pair in pairs
        for answer in pair.answers + pair.wrong_answers
    )
    n_spaced, made = 0, []
    for pair, move in zip(pairs, moved, strict=True):
        clean, corrupt = (text.rstrip(" ") if move else text for text in (pair.clean, pair.corrupt))

        def put(answer: str | int, clean: str = clean, move: bool = move) -> str | int:
            if isinstance(answer, int) or answer[:1].isspace() or not answer:
                return answer
            return f" {answer}" if move or leading_space == "yes" or (bare and _is_word(clean, answer)) else answer

        right, wrong = (tuple(put(answer) for answer in side) for side in (pair.answers, pair.wrong_answers))
        n_spaced += (right, wrong) != (pair.answers, pair.wrong_answers)
        made.append(replace(pair, clean=clean, corrupt=corrupt, answers=right, wrong_answers=wrong))
    if n_spaced and not all(moved):
        notes.append(f"answers of {n_spaced:,} rows got a space in front (--leading-space no takes them as they stand)")
    return made, notes


def _is_word(prompt: str, answer: str) -> bool:
    """Whether a space parts ``answer`` from ``prompt`` in writing."""
    last, first = prompt[-1:], answer[0]
    if first.isdigit():
        return not last.isdigit() and not last.isspace() and last not in "([{\"'“‘«/-_$#@"
    cased = first.isalpha() and first.lower() != first.upper()
    return cased and not last.isspace() and last not in "([{\"'“‘«/-_$#@\\"
