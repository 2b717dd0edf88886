"""`headcodes evaluate`: a circuit against a truth, and on its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from headcodes.cli import options
from headcodes.cli.prompts import Asked, Prompts, WholeAnswers, reads_prompts, settings_of, state
from headcodes.errors import HeadcodesError
from headcodes.settings import MOST_PROMPTS, MOST_SEED, Settings


@reads_prompts(after="prompts")
def evaluate(
    context: typer.Context,
    circuit: Annotated[Path, typer.Argument(help="A circuit.json of ours, or a MIB graph.")],
    model: Annotated[str | None, typer.Option(help="As for discover; the circuit's own by default.")] = None,
    revision: options.Revision = None,
    projection: options.Projection = None,
    task: Annotated[str | None, typer.Option(help="A built-in task; the circuit's own by default.")] = None,
    prompts: Prompts = None,
    whole_answers: WholeAnswers = False,
    truth: Annotated[
        str,
        typer.Option(
            help="causal (patch every head, once, then cached), paths (the paths between its largest heads too), or a "
            "published one."
        ),
    ] = "causal",
    components: Annotated[
        Literal["heads", "heads+mlps"], typer.Option(help="What the causal truth patches: heads, or every MLP too.")
    ] = "heads",
    top: options.TruthTop = None,
    n_pairs: Annotated[int, typer.Option(min=1, max=MOST_PROMPTS // 2, help="Answered pairs to judge on.")] = 32,
    ablation: Annotated[Literal["zero", "mean", "resample"], typer.Option(help="What the rest is replaced by.")] = (
        "resample"
    ),
    curve: Annotated[
        bool, typer.Option("--curve", help="Faithfulness over sizes, CPR and CMD too (over edges, if scored): slow.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of prompts, random circuits and the bootstrap.")] = 0,
    device: options.Device = Settings.device,
    dtype: options.ExactDtype = "float32",
    threads: options.Threads = None,
    bos: options.Bos = "auto",
    out: Annotated[
        Path | None, typer.Option(help="File for the evaluation; beside a run, its report shows it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Evaluate a circuit: against a truth, and on its own."""
    from headcodes import tasks
    from headcodes.circuit.formats import load_circuit
    from headcodes.evaluation.evaluate import evaluate_circuit
    from headcodes.files import atomic_write, check_writable
    from headcodes.models.asked import ask_as, whole_answer_differences
    from headcodes.models.devices import torch_threads
    from headcodes.models.load import load_model

    if out is not None:
        check_writable(out, circuit, Path(prompts) if prompts else None)
    given = load_circuit(circuit)
    if prompts is not None and task is not None:
        raise HeadcodesError("only one of --task and --prompts must be given", "both", "Leave one out.")
    if not (model or given.model):
        raise HeadcodesError("the model of the circuit must be known", "a file that names none", "Give --model.")
    if not (prompts or task or given.task):
        raise HeadcodesError("the task of the circuit must be known", "a file that names none", "Give --task.")
    wanted = Asked(prompts, settings_of(context))
    pairs = wanted.read()
    with torch_threads(threads):
        loaded = load_model(model or given.model, revision=revision, device=device, dtype=dtype, projection=projection)
        if pairs is None:
            # A third more than needed: only answered prompts count.
            pairs = tasks.get(task or given.task).build(loaded.tokenizer, n=n_pairs + n_pairs // 3 + 1, seed=seed)
        tokens = ask_as(loaded, pairs, wanted.settings, seed)
        state(tokens.pairs)
        whole = whole_answer_differences(loaded, tokens) if whole_answers else None
        evaluation = evaluate_circuit(
            given,
            loaded,
            tokens,
            truth=truth,
            task=pairs.task,
            components=components,
            top=top,
            n_pairs=n_pairs,
            ablation=ablation,
            with_curve=curve,
            seed=seed,
        )
    if whole is not None:
        likelier = {"n_pairs": len(whole), "share_right": float((whole > 0).mean()), "log_ratio": float(whole.mean())}
        evaluation = replace(evaluation, whole_answers=likelier)
    document = json.dumps(evaluation.as_dict(), allow_nan=False)
    if out is not None:
        with atomic_write(out) as path:
            path.write_text(document + "\n", encoding="utf-8")
    print(document if as_json else evaluation.as_text())
