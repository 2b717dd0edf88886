"""The options by which commands are given prompts of the user's own."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headcodes.errors import HeadcodesError
from headcodes.prompts.files import read_as, source_checksum
from headcodes.prompts.positions import NAMED, span_of
from headcodes.settings import Settings

if TYPE_CHECKING:
    from headcodes.prompts.pairs import PromptPairs

Prompts = Annotated[
    str | None,
    typer.Option(help="Prompt pairs instead of a task: .json, .jsonl, .csv, .tsv, .parquet, or hf:NAME[:SPLIT]."),
]
# How the prompts of a file are read: type, words and default of each option.
_READING: dict[str, tuple[Any, Any, Any]] = {
    "columns": (
        str | None,
        typer.Option(help="Columns of the prompts, where not known by name: clean=...,corrupt=...,answer=..."),
        None,
    ),
    "skip_bad": (bool, typer.Option("--skip-bad", help="Leave broken rows of the prompts out, and list them."), False),
    "leading_space": (
        Literal["auto", "yes", "no"],
        typer.Option(help="Put a space before the answers of a table (docs/prompts.md)."),
        "auto",
    ),
    "corrupt": (
        Literal["swap", "shuffle", "other"] | None,
        typer.Option(help="Make the corrupted prompts from the file's own rows, as many tokens each."),
        None,
    ),
    "chat": (bool, typer.Option("--chat", help="Render the prompts by the tokenizer's own chat template."), False),
    "system": (str | None, typer.Option(help="System message of a chat."), None),
}
WholeAnswers = Annotated[
    bool, typer.Option("--whole-answers", help="Judge answers of several tokens as whole sequences too.")
]


def reads_prompts(after: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options by which prompt files are read, behind its option ``after``.

    The command itself does not take them: ``settings_of`` finds them in its context.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(**{name: value for name, value in given.items() if name not in _READING})

        signature = inspect.signature(command, eval_str=True)
        parameters = []
        for parameter in signature.parameters.values():
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            if parameter.name == after:
                parameters += [
                    inspect.Parameter(
                        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
                    )
                    for name, (kind, option, default) in _READING.items()
                ]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def settings_of(context: typer.Context, **others: Any) -> Settings:
    """Return the settings that a command line asks for."""
    given = {name: context.params[name] for name in OPTIONS if context.params[name] is not None}
    return Settings(**given, **others)


OPTIONS = (*_READING, "bos")


@dataclass(frozen=True)
class Asked:
    """Prompts as they are asked for: a file or data set (None: a task), how it is read, and which positions count."""

    prompts: str | None
    settings: Settings
    positions: str = "mean"

    def __post_init__(self) -> None:
        if self.prompts is None and self.settings.of_files:
            raise HeadcodesError(
                "--columns, --skip-bad, --corrupt and --leading-space must go with --prompts",
                f"{', '.join(self.settings.of_files)} without it",
                "Give --prompts, or leave them out.",
            )
        if self.prompts is None and span_of(self.positions):
            raise HeadcodesError(
                f"positions must be {', '.join(NAMED)}, an index, or a span that --prompts marks",
                repr(self.positions),
                "Choose one of them.",
            )

    def read(self) -> PromptPairs | None:
        """Return the pairs of the file; None where a task was asked for."""
        if self.prompts is None:
            return None
        return read_as(self.prompts, self.settings, spans=[span] if (span := span_of(self.positions)) else ())

    def key(self, task: dict[str, Any]) -> dict[str, Any] | None:
        """Return what names the prompts: the file by its checksum, or ``task``. None for what may change unseen."""
        if self.prompts is not None and self.prompts.startswith("hf:"):
            return None
        named = task if self.prompts is None else {"prompts": source_checksum(self.prompts), "seed": task["seed"]}
        return named | {name: getattr(self.settings, name) for name in OPTIONS} | {"span": span_of(self.positions)}


def state(pairs: PromptPairs) -> None:
    """Say on standard error what was read of a file, and how."""
    if pairs.reading is not None:
        print("\n".join(f"headcodes: {line}" for line in pairs.reading.as_text().splitlines()), file=sys.stderr)
