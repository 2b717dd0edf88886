"""The whole method, stage by stage: tokenize, capture, train, encode, count, score, confirm heads and edges, judge.

``discover`` tokenizes and calls ``explain``, which calls the stages in this order. Methods of others plug in where
scores are made; what they need beyond the capture they take from the model themselves.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headcodes import methods
from headcodes.circuit.agreement import SeedScores
from headcodes.codes.encode import resolve_backend
from headcodes.codes.recipes import encode_heads
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.evaluation.confirm import confirm_edges, confirm_heads, n_held_out, on_held_out
from headcodes.interventions.base_runs import Prepared
from headcodes.methods.code_sets import count, permutation_tests, train
from headcodes.methods.inputs import Inputs
from headcodes.methods.request import check_request
from headcodes.methods.stability import resample
from headcodes.models.asked import ask
from headcodes.models.devices import torch_threads
from headcodes.progress import timed
from headcodes.prompts.pairs import PromptPairs
from headcodes.provenance import versions
from headcodes.result import Result
from headcodes.settings import SETTINGS, Bos, Components, Metric, Positions, Settings, check_seeds

if TYPE_CHECKING:
    from headcodes.methods.findings import Findings
    from headcodes.models.model import Model
    from headcodes.settings import Level, Verify


def discover(
    model: Model,
    pairs: PromptPairs,
    *,
    method: str = "default",
    level: Level = "node",
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    n_train: int = Settings.n_train,
    positions: Positions = "mean",
    bos: Bos = "auto",
    backend: str = "auto",
    threads: int | None = None,
    fdr: float | None = None,
    verify: Verify = "auto",
    gradient: bool = True,
    metric: Metric | None = None,
    components: Components = "heads",
    stable: float | None = None,
) -> Result:
    """Find the heads (``level="edge"``: and the pairs of heads) of ``model`` that tell ``pairs`` apart.

    Args:
        model: from ``load_model``; left as it was found.
        pairs: positive (clean) and negative (corrupted) prompts.
        method: one of ``headcodes.methods.METHODS``.
        level: "node" scores heads; "edge" scores pairs of heads as well.
        seed: of everything that is drawn. The same seed, device, threads and versions give the same bits; on a GPU only
            with a method that takes no gradient through the model, whose attention's backward pass adds up as it comes.
        seeds: run the method once with each of these, as one batched problem; ``seed`` then draws what is drawn after
            the scores (``verify``). The result's scores are the means over seeds, ``result.by_seed`` holds every
            seed's own, their spread and their consensus; codes and autoencoder are the first seed's. On a CPU a
            seed's scores are bit for bit those of ``seed`` alone; on a GPU its autoencoder is theirs to rounding, and
            a code may differ. A method that draws nothing (``Method.seeded``) warns, and runs once as if without.
        n_train: prompts the autoencoder is trained on.
        positions: "mean", "last", or the positions to average: a list a prompt, clean prompts first.
        bos: "auto" (as the tokenizer does by itself), "yes" or "no".
        backend: of the encoder: "auto", "torch" or "triton".
        threads: for torch and the C++ core; None leaves torch's own setting.
        fdr: test every count by permuting the prompts' labels (``headcodes.overlap.significance``), and let only
            heads into the circuit whose false-discovery rate is at most this. It is the rate of "this head's codes
            differ between the sides", which is not membership in the circuit. Not together with ``seeds``.
        verify: patch this many of the best-ranked heads exactly; "auto": in rank order until ten in a row are not
            confirmed (``headcodes.evaluation.confirm``), for ``default``, ``attribution`` and
            ``contrast``, and none for other methods; None: none. The circuit is then what was confirmed. A fifth of the
            pairs, at most 16, is held out to judge it on: ``attribution`` and ``contrast`` do not score on them.
        gradient: False: ``default`` stands for ``contrast``, which takes no gradients.
        metric: of methods that work with one (``Method.metric``): "logit-diff", "prob-diff", "kl" or "nll"
            (``headcodes.interventions.metric``); the method's own unless told.
        components: what the circuit may hold: "heads", or "heads+mlps" for methods that score both on one scale (all
            but dla, random, hisp, acdc, sp, atp-qk and atp-star). MLPs are then chosen, patched and confirmed among
            heads, their outputs are further rows of the autoencoder, and those outside the circuit are corrupted where
            it is judged.
        stable: draw the pairs anew, with replacement (``headcodes.methods.stability``), and let only heads into the
            circuit that at least this share of draws selects. No head is patched exactly then unless the method does.

    Raises:
        HeadcodesError: something given cannot be used; the message says what and how to mend it.
    """
    with torch_threads(threads):
        tokens = ask(model, pairs, bos)
        settings = Settings(bos=bos, positions=positions, n_train=n_train)
        inputs = Inputs(model, tokens, settings, backend, gradient=gradient, metric=metric, components=components)
        return explain(inputs, method, level=level, seed=seed, seeds=seeds, fdr=fdr, verify=verify, stable=stable)


def explain(
    inputs: Inputs,
    method: str,
    *,
    level: Level = "node",
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    fdr: float | None = None,
    verify: Verify = None,
    stable: float | None = None,
) -> Result:
    """Run one method on inputs that several methods and levels may share; ``discover`` for a single one.

    Raises:
        HeadcodesError: see ``discover``.
    """
    check_request(method, fdr, verify, seeds, inputs.metric, components=inputs.components, stable=stable)
    start = time.perf_counter()
    captured_before_s = inputs.capture_s
    chosen = methods.get(method)
    chosen.check(level)
    stages = {"import": 0.0, "load": 0.0, "capture": 0.0, "train": 0.0, "encode": 0.0, "overlap": 0.0}
    confirms = stable is None and verify is not None and (verify != "auto" or chosen.confirmed)
    inputs.held_out = n_held_out(len(inputs.tokens)) if confirms else 0
    inputs.capture(changes=chosen.measures_changes or (method == "default" and not inputs.gradient))
    task_check = inputs.task_check
    seeds = _seeds_of(method, seeds)
    drawn = (seed,) if seeds is None else seeds
    found = None
    if chosen.recipe is not None:
        with timed(stages, "train"):
            trained = train(chosen.recipe, inputs, drawn)
        with timed(stages, "encode"):
            codes = encode_heads(inputs.activations, trained, inputs.backend)
        found = [count(each, trained.recipe, inputs, level) for each in codes]
    found = chosen.score(found, inputs, level, drawn)
    for each in found:
        each.components = inputs.components
    findings, by_seed = (found[0], None) if seeds is None else _over_seeds(found, drawn)
    nodes, pairs = permutation_tests(findings, inputs, level, fdr, seed) if fdr is not None else (None, None)
    confirmed = _confirm(findings, inputs, verify, seed) if confirms else {}
    if stable is not None:
        resample(findings, stable, seed)
    for stage, seconds in findings.timings_s.items():
        stages[stage] = stages.get(stage, 0.0) + seconds
    stages["capture"] += inputs.capture_s  # some methods run the model themselves
    elapsed_s = time.perf_counter() - start + captured_before_s
    return Result(
        **_settings_of(inputs, method, level, seed),
        d_model=inputs.model.d_model,
        parallel_attn_mlp=inputs.model.parallel_attn_mlp,
        pairs=inputs.tokens.pairs,
        bos_added=inputs.tokens.bos,
        first_ids=tuple(inputs.tokens.clean[0]),
        layers_without_heads=tuple(inputs.model.without_heads),
        backend=resolve_backend(inputs.backend, inputs.model.device),
        task_check=task_check,
        findings=findings,
        by_seed=by_seed,
        fdr=fdr,
        node_tests=nodes,
        pair_tests=pairs,
        verify=verify if confirms else None,
        metric=inputs.metric or chosen.metric,
        **confirmed,
        timings_s=stages | {"total": elapsed_s},
        versions=versions(),
    )


def _seeds_of(method: str, seeds: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the seeds that a method is to run with; None, with a warning, where it draws nothing."""
    if seeds is not None and not methods.get(method).seeded:
        warnings.warn(
            f"method {method!r} draws nothing: it runs once, and its scores hold for every seed",
            HeadcodesWarning,
            stacklevel=3,
        )
        return None
    return None if seeds is None else check_seeds(seeds)


def _settings_of(inputs: Inputs, method: str, level: Level, seed: int) -> dict[str, Any]:
    """Return what was run, as a result names it: the settings asked for, with the model's own in place of "auto"."""
    positions = inputs.settings.positions
    return {name: getattr(inputs.settings, name) for name in SETTINGS} | {
        "model": inputs.model.name,
        "revision": inputs.model.revision,
        "projection": inputs.model.projection,
        "method": method,
        "level": level,
        "seed": seed,
        "positions": positions if isinstance(positions, str) else "given",
        "device": str(inputs.model.device),
        "dtype": str(inputs.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _over_seeds(found: Sequence[Findings], seeds: tuple[int, ...]) -> tuple[Findings, SeedScores]:
    """Return the first seed's findings with the means of all scores and everyone's seconds, and every seed's scores."""
    kinds = [kind for kind in ("head_scores", "pair_scores", "mention_scores") if getattr(found[0], kind) is not None]
    scores: dict[str, Any] = {kind: np.stack([getattr(findings, kind) for findings in found]) for kind in kinds}
    timings_s: dict[str, float] = {}
    for findings in found:
        for stage, seconds in findings.timings_s.items():
            timings_s[stage] = timings_s.get(stage, 0.0) + seconds
    means = {kind: values.mean(axis=0) for kind, values in scores.items()}
    means["other_nodes"] = {
        name: float(np.mean([findings.other_nodes[name] for findings in found])) for name in found[0].other_nodes
    }
    return replace(found[0], timings_s=timings_s, **means), SeedScores(seeds, **scores)


def _confirm(findings: Findings, inputs: Inputs, verify: Verify, seed: int) -> dict[str, Any]:
    """Return the fields of a result that exact patching fills: heads, the paths between them, what both come to on
    held-out pairs, and why where something of it cannot be had.

    Raises:
        HeadcodesError: a number of heads was asked for and cannot be patched.
    """
    found: dict[str, Any] = {}
    prepared = Prepared()

    def missing(what: str, error: HeadcodesError) -> None:
        reason = f"{what}: {error.must}; got {error.got}"
        warnings.warn(reason, HeadcodesWarning, stacklevel=4)
        found["unverified"] = "; ".join(filter(None, [found.get("unverified"), reason]))

    try:
        with findings.timed("verify"):
            n_heads = None if verify == "auto" else verify
            found["verification"] = confirm_heads(inputs, findings, n_heads, seed, prepared)
    except HeadcodesError as error:
        if verify != "auto":
            raise
        missing("no head was patched, so the circuit is a proposal", error)
        return found
    try:
        with findings.timed("edges"):
            found["paths"] = confirm_edges(inputs, findings, found["verification"], seed, prepared)
    except HeadcodesError as error:
        missing("no path between heads was patched", error)
    try:
        with findings.timed("judge"):
            found["held_out"] = on_held_out(inputs, found["verification"].confirmed())
    except HeadcodesError as error:
        missing("the circuit was not judged on held-out prompts", error)
    return found
