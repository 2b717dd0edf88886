"""What a plan file holds (docs/scan.md), and how one is read. Imported once one is."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeInt,
    Tag,
    ValidationError,
    create_model,
    model_validator,
)

from headcodes.errors import HeadcodesError, unlike_schema
from headcodes.files import MAX_DEPTH, read_text, reading
from headcodes.scan.plan import PLAN_SETTINGS, Plan
from headcodes.settings import parse_seeds

_MAX_BYTES = 1 << 20
_MEND = "docs/scan.md describes plans."
_Text = Annotated[str, Field(min_length=1)]


class _Schema(BaseModel, strict=True, extra="forbid"):
    pass


class _ModelRow(_Schema):
    source: _Text
    revisions: Annotated[list[_Text], Field(min_length=1)] | None = None


class _TaskRow(_Schema, json_schema_extra={"oneOf": [{"required": ["id"]}, {"required": ["prompts"]}]}):
    id: str | None = None
    negative: str | None = None
    prompts: _Text | None = None

    @model_validator(mode="after")
    def _names_one(self) -> _TaskRow:
        if (self.id is None) == (self.prompts is None):
            raise ValueError("name either 'id' or 'prompts'")
        return self


def _some(item: Any) -> Any:
    return Annotated[list[item], Field(min_length=1)]


def _text_or(more: Any, text: Any = _Text) -> Any:
    """Return the kind of a text, or of what says more; a fault is that of the one which it is."""
    return Annotated[Annotated[text, Tag("text")] | Annotated[more, Tag("more")], Discriminator(_is_text)]


def _is_text(value: Any) -> str:
    return "text" if isinstance(value, str) else "more"


def _kind_of(setting: dataclasses.Field[Any], hint: Any) -> Any:
    bounds = setting.metadata
    if "enum" in bounds:
        return Literal[tuple(bounds["enum"])]
    return Annotated[hint, Field(ge=bounds["minimum"], le=bounds["maximum"])] if bounds else hint


def _as_text(value: Any) -> Any:
    """To YAML, off is false."""
    return "off" if value is False else str(value) if type(value) is int else value


_VERIFY = Annotated[
    str,
    BeforeValidator(_as_text, json_schema_input_type=str | Literal[False] | int),
    Field(pattern="^(auto|off|[1-9][0-9]{0,9})$"),
]
_SEEDS = Annotated[str, Field(pattern="^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$")]
_FIELDS: dict[str, Any] = {
    "models": (_some(_text_or(_ModelRow)), ...),
    "tasks": (_some(_text_or(_TaskRow)), ["ioi"]),
    "methods": (_some(str), ["default"]),
    "seeds": (_text_or(_some(NonNegativeInt), _SEEDS), "0"),
    **{
        each.name: (_kind_of(each, get_type_hints(Plan)[each.name]), each.default)
        for each in dataclasses.fields(Plan)
        if each.name in PLAN_SETTINGS
    },
    "stable": (Annotated[float, Field(gt=0, le=1)] | None, None),
    "verify": (_VERIFY, "off"),
}
PlanFile = create_model("PlanFile", __base__=_Schema, __doc__="A plan of `headcodes scan`.", **_FIELDS)


def read(path: Path | str) -> Plan:
    """Read a plan file; ``PlanFile`` is its schema.

    Raises:
        HeadcodesError: the file cannot be read or does not follow the schema; the message names the line.
    """
    text = read_text(path, "a plan file", _MEND, max_bytes=_MAX_BYTES)
    path = Path(path)
    with reading("a plan file must be YAML", path, _MEND):
        if _depth(text) > MAX_DEPTH:  # the library takes the square of it
            raise HeadcodesError(
                f"a plan file must be nested at most {MAX_DEPTH} deep", f"{path}, nested deeper", _MEND
            )
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            # A few lines of them can stand for more than any memory holds.
            raise HeadcodesError("a plan file must have no aliases", f"{path}, which has some", "Write it out.")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
        _refuse_twice(root, path)
        json.dumps(data, ensure_ascii=False, default=str).encode()
    try:
        found: Any = PlanFile.model_validate(data)
    except ValidationError as error:
        raise _fault(error, root, path) from error
    models = [(row, [None]) if isinstance(row, str) else (row.source, row.revisions or [None]) for row in found.models]
    try:
        return Plan(
            models=tuple((source, revision) for source, revisions in models for revision in revisions),
            tasks=tuple(
                (row, None) if isinstance(row, str) else (row.id or row.prompts, row.negative) for row in found.tasks
            ),
            methods=tuple(found.methods),
            seeds=tuple(parse_seeds(found.seeds)),
            **{name: getattr(found, name) for name in PLAN_SETTINGS},
        )
    except HeadcodesError as error:
        lines = (n for n, line in enumerate(text.splitlines(), start=1) if error.got.strip("'\"") in line)
        where = f"{path}, line {line}: " if (line := next(lines, None)) else f"{path}: "
        raise HeadcodesError(error.must, where + error.got, error.mend) from error


def _depth(text: str) -> int:
    """Return how deep the brackets of a text are nested at most, those in strings included."""
    depth = deepest = 0
    for mark in re.findall(r"[\[\]{}]", text):
        depth += 1 if mark in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _fault(error: ValidationError, root: Any, path: Path) -> HeadcodesError:
    # A slip in a name is the fault, and not that what it should have named is missing.
    faults = sorted(error.errors(include_url=False), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    place = tuple(step for step in fault["loc"] if step not in ("text", "more"))
    where = f"{path}, line {_line_of(root, place)}"
    if fault["type"] != "extra_forbidden":
        return unlike_schema({**fault, "loc": place}, f"{where},", _MEND)
    rows: dict[Any, type[_Schema]] = {"models": _ModelRow, "tasks": _TaskRow}
    known = (PlanFile if len(place) == 1 else rows[place[0]]).model_fields
    close = difflib.get_close_matches(str(place[-1]), known, n=1)
    mend = f"Did you mean {close[0]!r}?" if close else f"Known keys: {', '.join(known)}."
    return HeadcodesError("every key of a plan must be known", f"{where}: the unknown key {place[-1]!r}", mend)


def _line_of(node: Any, place: Sequence[int | str]) -> int:
    """Return the line of what a path of keys and indices leads to, or of as much of it as is there; the first is 1."""
    line = 0
    for step in place:
        if isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line
        elif (pair := next((pair for pair in node.value if pair[0].value == step), None)) is not None:
            line, node = pair[0].start_mark.line, pair[1]
    return line + 1


def _refuse_twice(node: Any, path: Path) -> None:
    """YAML keeps the last of two equal keys without a word; a plan should not."""
    if node is None or isinstance(node.value, str):
        return
    seen: set[str] = set()
    for child in node.value:
        if not isinstance(child, tuple):
            _refuse_twice(child, path)
            continue
        key, value = child
        if key.value in seen:
            line = key.start_mark.line + 1
            raise HeadcodesError(
                "a plan file must name every key once", f"{path}, line {line}: {key.value!r} again", "Leave one out."
            )
        seen.add(key.value)
        _refuse_twice(value, path)
