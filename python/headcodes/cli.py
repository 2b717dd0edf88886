"""The command line: results on standard output, progress and complaints on standard error, status 2 for bad input."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from headcodes.errors import HeadcodesError, HeadcodesWarning

if TYPE_CHECKING:
    from headcodes.models import Model
    from headcodes.result import Result

app = typer.Typer(
    help="Find the attention heads, and the paths between them, that make a language model do a thing.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)

_STARTED = time.perf_counter()


def main() -> None:
    """Run the command line; bad input ends in one message and status 2, never in a traceback."""
    warnings.simplefilter("always", HeadcodesWarning)
    warnings.showwarning = _show_warning
    try:
        app()
    except HeadcodesError as error:
        _complain(str(error), status=2)
    except OSError as error:
        _complain(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), status=2)
    except KeyboardInterrupt:
        _complain("stopped; nothing half-written was left behind", status=130)


def _complain(message: str, status: int) -> None:
    print(f"headcodes: {message}", file=sys.stderr)
    sys.exit(status)


def _show_warning(message: Warning | str, category: type[Warning], *_place: object, **_more: object) -> None:
    if issubclass(category, HeadcodesWarning):
        print(f"headcodes: warning: {message}", file=sys.stderr)


@app.command()
def discover(
    model: Annotated[str, typer.Option(help="Hub name, local folder, .gguf file, or smollm2-135m.")] = "smollm2-135m",
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    task: Annotated[str | None, typer.Option(help="A built-in task (headcodes tasks).  [default: ioi]")] = None,
    negative: Annotated[str | None, typer.Option(help="Which of the task's negatives; its first by default.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A JSON file of prompt pairs instead of a task.")] = None,
    method: Annotated[str, typer.Option(help="How heads are scored (headcodes methods).")] = "default",
    level: Annotated[Literal["node", "edge"], typer.Option(help="Score heads, or pairs of heads too.")] = "node",
    n_prompts: Annotated[int, typer.Option(min=1, help="Pairs to build from the task.")] = 250,
    n_train: Annotated[int, typer.Option(min=1, help="Prompts to train the autoencoder on.")] = 10,
    positions: Annotated[Literal["mean", "last"], typer.Option(help="Which positions of a prompt count.")] = "mean",
    top: Annotated[int, typer.Option(min=1, help="Heads, and pairs, in the circuit.")] = 20,
    fdr: Annotated[
        float | None,
        typer.Option(help="Let in only heads whose codes differ between the sides at this false-discovery rate."),
    ] = None,
    verify: Annotated[int | None, typer.Option(min=1, help="Patch this many of the best heads exactly.")] = None,
    seed: Annotated[int, typer.Option(help="Of prompts, training and everything else drawn.")] = 0,
    seeds: Annotated[
        str | None, typer.Option(help='Seeds of the method, "0-9" or "0,3": their mean, spread and consensus.')
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto (bf16 where it is fast), float32, bfloat16, float16.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")] = None,
    bos: Annotated[Literal["auto", "yes", "no"], typer.Option(help="auto: as the tokenizer does by itself.")] = "auto",
    projection: Annotated[
        str | None, typer.Option(help="Output projection of an unknown family: path.{layer}.o_proj")
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep activations for a second run, and use those kept.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for circuit, scores, autoencoder and page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Find the circuit of a model on a task: the main job."""
    from headcodes import activation_cache, discovery, tasks
    from headcodes.files import checksum
    from headcodes.methods.inputs import Inputs
    from headcodes.models import choose_device, choose_dtype, load_model
    from headcodes.prompts import PromptPairs, tokenize
    from headcodes.seeds import parse_seeds
    from headcodes.sources import resolve

    if task is not None and prompts is not None:
        raise HeadcodesError("either --task or --prompts is given", "both", "Leave one out.")
    if prompts is not None and negative is not None:
        raise HeadcodesError("--negative belongs to a task", "it together with --prompts", "Leave one out.")
    of_method = parse_seeds(seeds) if seeds is not None else None
    discovery.check_request(method, fdr, verify, of_method)
    pairs = PromptPairs.from_json(prompts) if prompts is not None else None
    chosen = tasks.get(task or "ioi")
    imported = time.perf_counter()
    with discovery.torch_threads(threads):
        where = choose_device(device)
        precision = choose_dtype(dtype, where)
        asked: dict[str, Any] = {"task": chosen.id, "negative": negative, "n": n_prompts, "seed": seed}
        if prompts is not None:
            asked = {"prompts": checksum(prompts)}
        settings: dict[str, Any] = {"bos": bos, "positions": positions, "projection": projection}
        request = activation_cache.request_key(
            resolve(model, revision), asked, device=where, dtype=precision, **settings
        )

        def load() -> Model:
            return load_model(model, revision=revision, device=where, dtype=precision, projection=projection)

        recalled = activation_cache.recall(request, where, load) if cache and request is not None else None
        if recalled is not None:
            inputs = Inputs(recalled.model, recalled.tokens, bos, positions, n_train, cache=True)
        else:
            loaded = load()
            if pairs is None:
                pairs = chosen.build(loaded.tokenizer, n=n_prompts, seed=seed, negative=negative)
            tokens = tokenize(pairs, loaded.tokenizer, bos)
            inputs = Inputs(loaded, tokens, bos, positions, n_train, cache=cache, request=request)
        load_s = time.perf_counter() - imported
        result = discovery.explain(inputs, method, level=level, seed=seed, seeds=of_method, fdr=fdr, verify=verify)
    result = result.with_timings(
        **{"import": imported - _STARTED, "load": load_s, "total": time.perf_counter() - _STARTED}
    )
    if out is not None:
        result.save(out, top, inputs.model)
        result = result.with_timings(total=time.perf_counter() - _STARTED)
    print(json.dumps(result.as_json(top)) if as_json else _table(result, top))
    if out is not None:
        print(
            f"headcodes: wrote {out}/circuit.json, result.json, scores.safetensors and page.html",
            file=sys.stderr,
        )


def _table(result: Result, top: int) -> str:
    check, by_seed = result.task_check, result.by_seed
    columns = f"{'score':>9}"
    if by_seed is not None:
        columns += f"  {'±':>8}  consensus"
    lines = [
        f"{result.model}  {result.pairs.task} ({result.pairs.negative} negatives)  method {result.method}"
        f"  seed {result.seed}{f', mean of {len(by_seed.seeds)} of the method' if by_seed else ''}"
        f"  {result.dtype}  BOS {'added' if result.bos_added else 'not added'}",
        f"task check: {check.share_right:.1%} of {check.n_pairs} positives right, "
        f"logit difference {check.positive_logit_diff:+.2f} positive, {check.negative_logit_diff:+.2f} negative",
        "",
        f"{'rank':>4}  {'head':<9} {columns}" + ("         p         q" if result.node_tests else ""),
    ]
    circuit = result.circuit(top)
    agreement = {name: values.ravel() for name, values in by_seed.agreement(top).items()} if by_seed else {}
    for rank, node in enumerate(circuit.nodes, start=1):
        index = result.components.index(node)
        line = f"{rank:>4}  {node:<9} {_score(circuit.node_scores[node]):>9}"
        if by_seed is not None:
            line += f"  {_score(agreement['head_spread'][index]):>8}  {agreement['head_consensus'][index]:>9.0%}"
        if result.node_tests is not None:
            line += f"  {result.node_tests.p[index]:8.2g}  {result.node_tests.q[index]:8.2g}"
        lines.append(line)
    if result.node_tests is not None:
        n_passed = int((result.node_tests.q <= result.fdr).sum())
        lines += [
            f"{n_passed} of {len(result.components)} heads have codes that differ between the sides (q <= {result.fdr}"
            f"; {result.node_tests.n_permutations} permutations of the pairs that did not train the autoencoder).",
            "That is not membership in the circuit: a head may differ and matter for nothing.",
        ]
    if result.verification is not None:
        clean_ld = float(result.verification.clean_ld.mean())
        lines += ["", f"exact effect on the logit difference ({clean_ld:.2f}), 95% interval over prompts", ""]
        for row in sorted(result.verification.as_rows(), key=lambda row: -abs(row["effect"])):
            lines.append(f"      {row['head']:<9} {row['effect']:>+9.3f}  [{row['low']:+.3f}, {row['high']:+.3f}]")
    if circuit.edges:
        lines += ["", f"{'rank':>4}  {'from':<9} {'to':<9} {columns}"]
        for rank, (source, target) in enumerate(circuit.edges, start=1):
            line = f"{rank:>4}  {source:<9} {target:<9} {_score(circuit.edge_scores[source, target]):>9}"
            if by_seed is not None:
                index = result.components.index(source) * len(result.components) + result.components.index(target)
                line += f"  {_score(agreement['pair_spread'][index]):>8}  {agreement['pair_consensus'][index]:>9.0%}"
            lines.append(line)
    stages = "  ".join(f"{stage} {seconds:.2f}" for stage, seconds in result.timings_s.items())
    return "\n".join([*lines, "", f"seconds: {stages}"])


def _score(score: float) -> str:
    return f"{score:.0f}" if float(score).is_integer() else f"{score:.4g}"


@app.command()
def evaluate(
    circuit: Annotated[Path, typer.Argument(help="A circuit.json of ours, or a MIB graph.")],
    model: Annotated[str | None, typer.Option(help="As for discover; the circuit's own by default.")] = None,
    task: Annotated[str | None, typer.Option(help="A built-in task; the circuit's own by default.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A JSON file of prompt pairs instead of a task.")] = None,
    truth: Annotated[str, typer.Option(help="causal (patch every head, once, then cached), or a published one.")] = (
        "causal"
    ),
    components: Annotated[
        Literal["heads", "heads+mlps"], typer.Option(help="What the causal truth patches: heads, or every MLP too.")
    ] = "heads",
    top: Annotated[int, typer.Option(min=1, help="Heads of largest effect that the causal truth holds.")] = 20,
    n_pairs: Annotated[int, typer.Option(min=1, help="Answered pairs to judge on.")] = 32,
    ablation: Annotated[Literal["zero", "mean", "resample"], typer.Option(help="What the rest is replaced by.")] = (
        "resample"
    ),
    curve: Annotated[
        bool, typer.Option("--curve", help="Faithfulness over sizes, CPR and CMD too (over edges, if scored): slow.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of prompts, random circuits and the bootstrap.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 (the causal truth wants it), bfloat16, ...")] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")] = None,
    bos: Annotated[Literal["auto", "yes", "no"], typer.Option(help="auto: as the tokenizer does by itself.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="File for the evaluation; beside a run, its report shows it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Judge a circuit: against a truth, and on its own."""
    from headcodes import tasks
    from headcodes.discovery import torch_threads
    from headcodes.evaluate import evaluate_circuit
    from headcodes.export import load_circuit
    from headcodes.files import atomic_write
    from headcodes.models import load_model
    from headcodes.prompts import PromptPairs, tokenize

    judged = load_circuit(circuit)
    if prompts is not None and task is not None:
        raise HeadcodesError("either --task or --prompts is given", "both", "Leave one out.")
    if not (model or judged.model):
        raise HeadcodesError("the model of the circuit must be known", "a file that names none", "Give --model.")
    if not (prompts or task or judged.task):
        raise HeadcodesError("the task of the circuit must be known", "a file that names none", "Give --task.")
    with torch_threads(threads):
        loaded = load_model(model or judged.model, device=device, dtype=dtype)
        if prompts is not None:
            pairs = PromptPairs.from_json(prompts)
        else:
            # A third more than needed: only answered prompts count.
            pairs = tasks.get(task or judged.task).build(loaded.tokenizer, n=n_pairs + n_pairs // 3 + 1, seed=seed)
        evaluation = evaluate_circuit(
            judged,
            loaded,
            tokenize(pairs, loaded.tokenizer, bos),
            truth=truth,
            task=pairs.task,
            components=components,
            top=top,
            n_pairs=n_pairs,
            ablation=ablation,
            with_curve=curve,
            seed=seed,
        )
    document = json.dumps(evaluation.as_dict(), allow_nan=False)
    if out is not None:
        with atomic_write(out) as path:
            path.write_text(document + "\n", encoding="utf-8")
    print(document if as_json else evaluation.as_text())


@app.command()
def export(
    circuit: Annotated[Path, typer.Argument(help="A circuit.json of ours, or a MIB graph.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    form: Annotated[str, typer.Option("--format", help="mib, auto-circuit, graphml or circuit (ours).")] = "mib",
) -> None:
    """Write a circuit in another tool's form."""
    from headcodes import export as forms

    forms.export(forms.load_circuit(circuit), form, out)


@app.command()
def diff(
    a: Annotated[Path, typer.Argument(help="A circuit.json of ours, or a MIB graph.")],
    b: Annotated[Path, typer.Argument(help="Another one, of a model of the same shape.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two circuits: what one has and the other has not, and how their scores rank."""
    from headcodes.evaluate import diff as compare
    from headcodes.export import load_circuit

    found = compare(load_circuit(a), load_circuit(b))
    print(json.dumps(found.as_dict()) if as_json else found.as_text())


@app.command()
def report(
    sources: Annotated[list[Path], typer.Argument(help="Run folders (discover --out), folders of them, scan stores.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write one page about many runs: overview, every run, any two side by side."""
    from headcodes.report.page import write_report

    n_runs = write_report(sources, out)
    print(f"headcodes: wrote {out} about {n_runs} run{'s' if n_runs != 1 else ''}", file=sys.stderr)


@app.command()
def bench(
    suite: Annotated[
        Literal["quality", "paper", "speed"], typer.Option(help="quality: methods x tasks x seeds on one model.")
    ] = "quality",
    model: Annotated[str, typer.Option(help="As for discover; planted-ioi has a known circuit.")] = "smollm2-135m",
    methods: Annotated[str, typer.Option(help="Methods, parted by commas; all of them by default.")] = "",
    tasks: Annotated[str, typer.Option(help="Tasks, parted by commas.")] = "ioi",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 0 .. N-1, of prompts and methods.")] = 5,
    level: Annotated[Literal["node", "edge"], typer.Option(help="What methods score.")] = "node",
    n_pairs: Annotated[int, typer.Option(min=2, help="Prompt pairs a cell.")] = 50,
    truth_pairs: Annotated[int, typer.Option(min=1, help="Pairs that the causal truth is made from.")] = 32,
    top: Annotated[int, typer.Option(min=1, help="Heads of largest effect that the causal truth holds.")] = 20,
    budget: Annotated[float | None, typer.Option(min=0.001, help="Seconds a cell may take.")] = None,
    faithfulness: Annotated[bool, typer.Option(help="CPR, CMD and faithfulness curves too.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 (the causal truth wants it), bfloat16, ...")] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; all cores by default.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of cells and results; a stopped suite goes on there.")] = Path(
        "bench"
    ),
) -> None:
    """Compare methods: a table, CSV, JSON and a page."""
    from headcodes import suite as suites
    from headcodes.discovery import torch_threads
    from headcodes.models import load_model

    if suite == "speed":
        sys.exit(suites.run_speed())

    def report(row: suites.Row) -> None:
        said = f"AUC {row.auc:.3f}, {row.seconds:.2f} s" if row.auc is not None else f"{row.status}: {row.note}"
        print(f"headcodes: {row.task} {row.method} seed {row.seed}: {said}", file=sys.stderr)

    with torch_threads(threads):
        if suite == "paper":
            rows, missing = suites.run_paper(
                load=lambda name: load_model(name, device=device, dtype=dtype),
                out=out,
                seeds=range(seeds),
                budget_s=budget,
                report=report,
            )
            if rows:
                print(suites.paper_table(rows))
            if missing:
                print("missing:", *missing, sep="\n  ", file=sys.stderr)
                sys.exit(3)
            return
        rows = suites.run_quality(
            load_model(model, device=device, dtype=dtype),
            out=out,
            method_ids=_listed(methods) or suites.all_methods(),
            task_ids=_listed(tasks),
            seeds=range(seeds),
            level=level,
            n_pairs=n_pairs,
            truth_pairs=truth_pairs,
            top=top,
            budget_s=budget,
            with_faithfulness=faithfulness,
            report=report,
        )
    print(suites.table(rows))
    print(f"headcodes: wrote {out}/results.csv, results.json and page.html", file=sys.stderr)


@app.command()
def scan(
    plan: Annotated[Path | None, typer.Argument(help="A plan file (docs/scan.md), instead of the lists below.")] = None,
    store: Annotated[Path, typer.Option(help="Folder of finished cells; a stopped scan goes on there.")] = Path("scan"),
    models: Annotated[str, typer.Option(help="Models, parted by commas; name@revision for a checkpoint.")] = "",
    tasks: Annotated[
        str | None, typer.Option(help="Tasks (task:negative too) or prompt files, parted by commas.  [default: ioi]")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Methods, parted by commas.  [default: default]")] = None,
    seeds: Annotated[str | None, typer.Option(help='Seeds of the methods: "0-9" or "0,3".  [default: 0]')] = None,
    level: Annotated[Literal["node", "edge"] | None, typer.Option(help="What methods score.  [default: node]")] = None,
    n_prompts: Annotated[int | None, typer.Option(min=1, help="Pairs to build from a task.  [default: 250]")] = None,
    prompt_seed: Annotated[int | None, typer.Option(min=0, help="Of the prompts, for all seeds.  [default: 0]")] = None,
    n_train: Annotated[int | None, typer.Option(min=1, help="Prompts to train on.  [default: 10]")] = None,
    positions: Annotated[Literal["mean", "last"] | None, typer.Option(help="Which positions count.")] = None,
    bos: Annotated[Literal["auto", "yes", "no"] | None, typer.Option(help="As for discover.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of one cell.  [default: 1]")] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Cells at once; by default one a GPU, or one.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster; else one is started here.")] = None,
    gpu_share: Annotated[float, typer.Option(help="Of a GPU that a worker takes.")] = 1.0,
    retry_failed: Annotated[bool, typer.Option(help="Do failed cells again.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Print the cells, and what they may take; do nothing.")] = False,
    json_lines: Annotated[bool, typer.Option(help="Print each finished cell as one line of JSON.")] = False,
) -> None:
    """Do many models, tasks, methods and seeds; a stopped scan goes on where it stopped."""
    from headcodes.scan import command

    settings = {
        "level": level,
        "n_prompts": n_prompts,
        "prompt_seed": prompt_seed,
        "n_train": n_train,
        "positions": positions,
        "bos": bos,
        "device": device,
        "dtype": dtype,
        "threads": threads,
    }
    lists = {"models": models or None, "tasks": tasks, "methods": methods, "seeds": seeds}
    chosen = command.read_plan(plan, lists, {name: value for name, value in settings.items() if value is not None})
    if dry_run:
        command.dry_run(chosen, store, engine=engine, retry_failed=retry_failed, as_json=json_lines)
        return
    sys.exit(
        command.do(
            chosen,
            store,
            engine=engine,
            workers=workers,
            address=address,
            gpu_share=gpu_share,
            retry_failed=retry_failed,
            json_lines=json_lines,
        )
    )


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


@app.command()
def cache(
    action: Annotated[Literal["ls", "clear"], typer.Argument(help="ls lists what is kept; clear removes it.")],
) -> None:
    """List or clear the activations kept for second runs."""
    from headcodes import activation_cache

    if action == "clear":
        print(f"headcodes: freed {activation_cache.clear() / 1e6:.1f} MB", file=sys.stderr)
        return
    for entry in activation_cache.ls():
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used_s))
        print(f"{used}  {entry.n_bytes / 1e6:8.1f} MB  {entry.n_pairs:>5} pairs  {entry.model}  {entry.task}")


@app.command()
def models() -> None:
    """List the models with short names, and which of them lie on this machine; other hub names work too."""
    from headcodes.sources import known_models

    for row in known_models():
        shape = f"{row.n_layers} x {row.n_heads} heads"
        print(f"{row.name:<16} {'at hand' if row.at_hand else '':<8} {shape:<15} {row.source}  {row.note}".rstrip())


@app.command()
def tasks() -> None:
    """List the built-in tasks and their negatives."""
    from headcodes import tasks as registry

    for name in registry.ids():
        task = registry.get(name)
        print(f"{name:<18} {task.summary}  [negatives: {', '.join(task.negatives)}]")


@app.command()
def methods() -> None:
    """List the methods and where they were published."""
    from headcodes.methods import METHODS

    for method in METHODS.values():
        print(f"{method.id:<22} {method.summary}  [{'/'.join(method.levels)}; {method.cost}; {method.source}]")


if __name__ == "__main__":
    main()
