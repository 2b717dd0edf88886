"""`headcodes discover`: the main job."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from headcodes.errors import HeadcodesError

if TYPE_CHECKING:
    from headcodes.models.model import Model

from headcodes.cli import options
from headcodes.cli.prompts import Asked, Prompts, WholeAnswers, reads_prompts, settings_of, state
from headcodes.cli.started import STARTED
from headcodes.settings import MOST_SEED, Metric, Settings, parse_seeds, parse_verify


@reads_prompts(after="prompts")
def discover(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Hub name, local folder, .gguf file, or smollm2-135m.")] = Settings.model,
    revision: options.Revision = None,
    task: Annotated[
        str | None, typer.Option(help="A built-in task (headcodes tasks).  [default: ioi; of a planted model, its own]")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="Which of the task's negatives; its first by default.")] = None,
    prompts: Prompts = None,
    whole_answers: WholeAnswers = False,
    method: Annotated[str, typer.Option(help="How heads are scored (headcodes methods).")] = Settings.method,
    metric: Annotated[
        Metric | None, typer.Option(help="Of the answer, for methods that work with one; their own by default.")
    ] = None,
    components: Annotated[
        Literal["heads", "heads+mlps"],
        typer.Option(help="What the circuit may hold: heads, or MLPs among them."),
    ] = "heads",
    level: options.Level = "node",
    n_prompts: options.NPrompts = Settings.n_prompts,
    n_train: options.NTrain = Settings.n_train,
    positions: options.AnyPositions = "mean",
    top: Annotated[int, typer.Option(min=1, help="Heads, and pairs, in the circuit.")] = 20,
    fdr: Annotated[
        float | None,
        typer.Option(help="Let in only heads whose codes differ between the sides at this false-discovery rate."),
    ] = None,
    verify: Annotated[
        str, typer.Option(help="Patch the best heads exactly: auto (until no more are confirmed), a number, or off.")
    ] = "auto",
    stable: options.Stable = None,
    gradient: Annotated[
        bool, typer.Option("--gradient/--no-gradient", help="Without: default stands for contrast, which takes none.")
    ] = True,
    seed: Annotated[
        int, typer.Option(min=0, max=MOST_SEED, help="Of prompts, training and everything else drawn.")
    ] = 0,
    seeds: Annotated[
        str | None, typer.Option(help='Seeds of the method, "0-9" or "0,3": their mean, spread and consensus.')
    ] = None,
    device: options.Device = Settings.device,
    dtype: options.Dtype = Settings.dtype,
    threads: options.Threads = None,
    bos: options.Bos = "auto",
    projection: options.Projection = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep activations for a second run, and use those kept.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for circuit, scores, autoencoder and page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the circuit of a model on a task: the main job."""
    from headcodes import discovery, tasks
    from headcodes.activations import cache as activation_cache
    from headcodes.cli.table import table
    from headcodes.methods.inputs import Inputs
    from headcodes.methods.request import check_request
    from headcodes.models import planted
    from headcodes.models.asked import ask_as, whole_answer_differences
    from headcodes.models.devices import choose_device, choose_dtype, torch_threads
    from headcodes.models.load import load_model
    from headcodes.models.sources import exact_dtype, resolve
    from headcodes.prompts.positions import find_positions, span_of
    from headcodes.store.folders import check_run_folder

    if task is not None and prompts is not None:
        raise HeadcodesError("only one of --task and --prompts must be given", "both", "Leave one out.")
    if prompts is not None and negative is not None:
        raise HeadcodesError("--negative must go with a task", "it together with --prompts", "Leave one out.")
    of_method = parse_seeds(seeds) if seeds is not None else None
    heads = parse_verify(verify)
    check_request(method, fdr, heads, of_method, metric, positions, components, stable)
    wanted = Asked(prompts, settings_of(context, n_train=n_train), positions)
    pairs = wanted.read()
    if task is None:
        task = planted.read_name(model)[0] if planted.is_planted(model) else "ioi"
    chosen = tasks.get(task)
    if out is not None:
        check_run_folder(out, inputs=[prompts, model])
    imported = time.perf_counter()
    with torch_threads(threads):
        where = choose_device(device)
        precision = choose_dtype(exact_dtype(model, dtype), where)
        asked = wanted.key({"task": chosen.id, "negative": negative, "n": n_prompts, "seed": seed})
        request = None
        if asked is not None:
            follows: dict[str, Any] = {"positions": positions, "projection": projection}
            follows |= {} if components == "heads" else {"components": components}
            request = activation_cache.request_key(
                resolve(model, revision), asked, device=where, dtype=precision, **follows
            )

        def load() -> Model:
            return load_model(model, revision=revision, device=where, dtype=precision, projection=projection)

        recalled = activation_cache.recall(request, where, load) if cache and request is not None else None
        its: Model = load() if recalled is None else recalled.model
        if recalled is not None:
            tokens = recalled.tokens
        else:
            if pairs is None:
                pairs = chosen.build(its.tokenizer, n=n_prompts, seed=seed, negative=negative)
            tokens = ask_as(its, pairs, wanted.settings, seed)
        # Only spans need the tokenizer, for which a remembered model must be opened.
        places = find_positions(tokens, positions, its.tokenizer if span_of(positions) else None)
        inputs = Inputs(
            its,
            tokens,
            replace(wanted.settings, positions=places),
            cache=cache,
            gradient=gradient,
            request=request,
            metric=metric,
            components=components,
        )
        state(inputs.tokens.pairs)
        if whole_answers:
            inputs.whole_answers = whole_answer_differences(inputs.model, inputs.tokens)
        load_s = time.perf_counter() - imported
        chooses: dict[str, Any] = {"fdr": fdr, "verify": heads, "stable": stable}
        result = discovery.explain(inputs, method, level=level, seed=seed, seeds=of_method, **chooses)
    result = replace(result, positions=cast(Any, positions))  # by name
    result = result.with_timings(
        **{"import": imported - STARTED, "load": load_s, "total": time.perf_counter() - STARTED}
    )
    if out is not None:
        result.save(out, top, inputs.model)
        result = result.with_timings(total=time.perf_counter() - STARTED)
    if not as_json and sys.stdout.isatty():
        from rich.console import Console

        from headcodes.cli.terminal import show

        show(result, top, Console())
    else:
        print(json.dumps(result.as_json(top)) if as_json else table(result, top))
    if out is not None:
        print(
            f"headcodes: wrote {out}/circuit.json, result.json, scores.safetensors and page.html",
            file=sys.stderr,
        )
