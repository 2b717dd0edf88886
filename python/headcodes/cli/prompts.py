"""The options by which commands are given prompts of the user's own."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headcodes.errors import HeadcodesError

if TYPE_CHECKING:
    from headcodes.models.model import Model
    from headcodes.prompts.pairs import PromptPairs
    from headcodes.prompts.tokens import TokenPairs

Prompts = Annotated[
    str | None,
    typer.Option(help="Prompt pairs instead of a task: .json, .jsonl, .csv, .tsv, .parquet, or hf:NAME[:SPLIT]."),
]
Columns = Annotated[
    str | None, typer.Option(help="Columns of the prompts, where not known by name: clean=...,corrupt=...,answer=...")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave broken rows of the prompts out, and list them.")]
LeadingSpace = Annotated[
    Literal["auto", "yes", "no"], typer.Option(help="Put a space before the answers of a table (docs/prompts.md).")
]
Corrupt = Annotated[
    Literal["swap", "shuffle", "other"] | None,
    typer.Option(help="Make the corrupted prompts from the file's own rows, as many tokens each."),
]
Chat = Annotated[bool, typer.Option("--chat", help="Render the prompts by the tokenizer's own chat template.")]
System = Annotated[str | None, typer.Option(help="System message of a chat.")]


@dataclass(frozen=True)
class Asked:
    """What was asked for by these options."""

    prompts: str | None
    columns: str | None = None
    skip_bad: bool = False
    leading_space: Literal["auto", "yes", "no"] = "auto"
    corrupt: Literal["swap", "shuffle", "other"] | None = None
    chat: bool = False
    system: str | None = None
    positions: str = "mean"

    def __post_init__(self) -> None:
        if self.prompts is None and (self.columns or self.skip_bad or self.corrupt or self.leading_space != "auto"):
            raise HeadcodesError(
                "--columns, --skip-bad, --corrupt and --leading-space must go with --prompts",
                "one of them without it",
                "Give --prompts, or leave them out.",
            )
        from headcodes.prompts.positions import NAMED, span_of

        if self.prompts is None and span_of(self.positions):
            raise HeadcodesError(
                f"positions must be {', '.join(NAMED)}, an index, or a span that --prompts marks",
                repr(self.positions),
                "Choose one of them.",
            )
        if self.system is not None and not self.chat:
            raise HeadcodesError("--system must go with --chat", "it alone", "Give --chat too.")

    def read(self) -> PromptPairs | None:
        """Return the pairs of the file; None where a task was asked for."""
        from headcodes.prompts.files import parse_columns, read_pairs

        if self.prompts is None:
            return None
        from headcodes.prompts.positions import span_of

        return read_pairs(
            self.prompts,
            columns=parse_columns(self.columns) if self.columns else None,
            skip_bad=self.skip_bad,
            leading_space=self.leading_space,
            made_negatives=self.corrupt is not None,
            spans=[span] if (span := span_of(self.positions)) else (),
        )

    def key(self, task: dict[str, Any]) -> dict[str, Any] | None:
        """Return what names the prompts: the file by its checksum, or ``task``. None for what may change unseen."""
        from headcodes.files import checksum

        if self.prompts is None:
            return task | {"chat": self.chat, "system": self.system}
        if self.prompts.startswith("hf:"):
            return None
        return asdict(self) | {"prompts": checksum(Path(self.prompts)), "seed": task["seed"]}

    def ask(self, model: Model, pairs: PromptPairs, bos: str, seed: int) -> TokenPairs:
        """Return the tokens that the model is asked with."""
        from headcodes.models.asked import ask

        return ask(
            model,
            pairs,
            bos,
            corrupt=self.corrupt,
            chat=self.chat,
            system=self.system,
            seed=seed,
            skip_bad=self.skip_bad,
        )


def state(pairs: PromptPairs) -> None:
    """Say on standard error what was read of a file, and how."""
    if pairs.reading is not None:
        print("\n".join(f"headcodes: {line}" for line in pairs.reading.as_text().splitlines()), file=sys.stderr)
