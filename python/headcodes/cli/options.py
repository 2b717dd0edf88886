"""Options that several verbs have, each with its words in one place; their defaults are those of ``Settings``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from headcodes.settings import MOST_PROMPTS, MOST_THREADS

Level = Annotated[Literal["node", "edge"], typer.Option(help="Score heads, or pairs of heads too.")]
NPrompts = Annotated[int, typer.Option(min=1, max=MOST_PROMPTS, help="Pairs to build from a task.")]
NTrain = Annotated[int, typer.Option(min=1, max=MOST_PROMPTS, help="Prompts to train the autoencoder on.")]
Positions = Annotated[Literal["mean", "last"], typer.Option(help="Which positions of a prompt count.")]
AnyPositions = Annotated[
    str,
    typer.Option(
        help="mean, last, changed, after-change, an index (-1), or a span marked [name]...[/name] in --prompts."
    ),
]
Stable = Annotated[
    float | None,
    typer.Option(help="Let in only heads that this share of draws of the pairs selects, 0.9 say; none is patched."),
]
Bos = Annotated[Literal["auto", "yes", "no"], typer.Option(help="auto: as the tokenizer does by itself.")]
Revision = Annotated[str | None, typer.Option(help="Revision of a hub model.")]
Projection = Annotated[str | None, typer.Option(help="Output projection of an unknown family: path.{layer}.o_proj")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto (bf16 where it is fast), float32, bfloat16, float16.")]
ExactDtype = Annotated[str, typer.Option(help="float32 (the causal truth wants it), bfloat16, ...")]
TruthTop = Annotated[
    int | None,
    typer.Option(
        min=1, help="Heads of largest effect that the causal truth holds; 20 by default, at most half of the model's."
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, max=MOST_THREADS, help="CPU threads; all cores by default.")]
