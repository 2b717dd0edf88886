"""Judge a circuit: against a truth, by what its heads do on their own, and against another circuit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes import metrics
from headcodes.circuit.circuit import Circuit
from headcodes.circuit.mib import beyond_pairs, chooses_mlps
from headcodes.errors import HeadcodesError
from headcodes.evaluation import truths
from headcodes.evaluation.areas import edge_cpr_cmd, head_cpr_cmd
from headcodes.evaluation.faithfulness import Ablation, curve, faithfulness
from headcodes.evaluation.paths import judge_paths
from headcodes.evaluation.record import Evaluation
from headcodes.graph import Edges, GroundTruth, parse_head, split_slot
from headcodes.interventions.patch import N_LARGEST, CausalTruth, answered, causal_truth, n_of_largest_effect
from headcodes.interventions.reads import graph_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs
    from headcodes.settings import Components


def evaluate_circuit(
    circuit: Circuit,
    model: Model | None = None,
    tokens: TokenPairs | None = None,
    *,
    truth: str | GroundTruth | CausalTruth | None = "causal",
    task: str | None = None,
    components: Components = "heads",
    top: int | None = None,
    n_pairs: int = 32,
    ablation: Ablation = "resample",
    with_faithfulness: bool = True,
    with_curve: bool = False,
    n_random: int = 5,
    seed: int = 0,
    n_resamples: int = 1000,
) -> Evaluation:
    """Judge a circuit.

    Args:
        circuit: What to judge.
        model: Needed for the causal truth and for faithfulness; the causal truth wants float32.
        tokens: Prompt pairs of the task, likewise.
        truth: "causal" (patch every head, cached), "paths" (and then, exactly, every path between two of the ``top``
            heads: judges edges too), the name of a published truth of ``task``, a truth at
            hand, or None.
        task: Task id of a published truth; the circuit's own where None.
        components: What the causal truth is made of: "heads" or "heads+mlps". Heads are judged against heads either
            way; with MLPs, heads and MLPs together too, where the circuit scores every MLP or has chosen among them.
        top: How many heads (of heads and MLPs: components) of largest |effect| a causal truth counts as the circuit;
            None: 20, but no more than half of the heads, which is noted.
        n_pairs: How many answered pairs the causal truth and faithfulness use.
        ablation: For faithfulness: "zero", "mean" or "resample".
        with_faithfulness: Whether to run the circuit on its own.
        with_curve: Whether to run the curve over sizes, CPR and CMD too (several dozen runs a pair). CPR and CMD over
            edges always carry the corrupted prompt's values, whatever ``ablation`` is: as MIB defines them.
        n_random: Random circuits a size of the curve.
        seed: Of the random circuits and of the bootstrap.
        n_resamples: Of the bootstrap.

    Raises:
        HeadcodesError: the circuit, the model and the truth have different shapes; an unknown truth; a
            causal truth without model and prompts; components of another truth than "causal".
    """
    notes: list[str] = []
    if model is not None and (model.n_layers, model.n_heads) != (circuit.n_layers, circuit.n_heads):
        raise HeadcodesError(
            f"the circuit must fit the model of {model.n_layers} layers x {model.n_heads} heads",
            f"a circuit of {circuit.n_layers} x {circuit.n_heads}",
            "Name the model that the circuit was found in.",
        )
    judge = _truth(circuit, model, tokens, truth, task, components, n_pairs)
    scores = circuit.head_scores
    scored = bool(np.all(np.isfinite(scores)))
    if not scored:
        notes.append("not every head has a score, so the ranking is not judged")
    about, ranking, membership, together = None, None, None, None
    if judge is not None:
        real = np.ones(scores.shape, dtype=bool) if model is None else model.real_heads
        n_largest = n_of_largest_effect(top, int(real.sum()))
        labels = judge.labels(n_largest) if isinstance(judge, CausalTruth) else judge.labels
        if labels.shape != scores.shape:
            raise HeadcodesError(
                f"the truth must be about a model of {scores.shape[0]} layers x {scores.shape[1]} heads, the circuit's",
                f"one about {labels.shape[0]} x {labels.shape[1]}",
                "Choose a truth of this model, or 'causal'.",
            )
        about = _about(judge, labels)
        ranking = _ranking(circuit, judge, labels, real, n_largest, n_resamples, seed) if scored else None
        membership = _membership(circuit.head_mask[real], labels[real])
        if isinstance(judge, CausalTruth):
            together = _components(circuit, judge, n_largest)
            if top is None and n_largest < N_LARGEST:
                notes.append(
                    f"the truth is the {n_largest} heads of largest effect, half of all, in place of {N_LARGEST}"
                )
        if isinstance(judge, GroundTruth) and model is not None and circuit.model != judge.model:
            notes.append(
                f"the truth {judge.name} is about {judge.model}, the circuit about {circuit.model or 'unknown'}"
            )
    between = None
    if truth == "paths" and isinstance(judge, CausalTruth) and model is not None and tokens is not None:
        slots = {edge: abs(score) for edge, score in circuit.edge_scores.items() if split_slot(edge[1])[1]}
        between = judge_paths(_pair_scores(circuit), slots, model, tokens, judge, n_largest, seed)
        if between["pair_auc"] is None:
            notes.append("paths are not judged: no edge between these heads is scored, or all paths are alike")
    alone, sizes, areas, edge_areas = None, None, None, None
    if with_faithfulness and model is not None and tokens is not None:
        chosen = answered(model, tokens, n_pairs)[0]
        among: Components = "heads+mlps" if chooses_mlps(circuit) else "heads"
        alone = faithfulness(model, chosen, circuit.parts, components=among, ablation=ablation).as_dict()
        if among != "heads":
            notes.append("faithfulness is of heads and MLPs: MLPs outside the circuit are ablated like other heads")
        if beyond_pairs(circuit.edges):
            notes.append(
                f"faithfulness is of the {len(circuit.parts)} chosen nodes as a whole: every path between them is open,"
                f" not the {len(circuit.edges)} chosen edges alone"
            )
        if with_curve and scored:
            options: dict[str, Any] = {"ablation": ablation}
            ranked = scores
            if chooses_mlps(circuit) and (mlps := _mlp_scores(circuit)) is not None:
                ranked = np.concatenate([scores, mlps[:, None]], axis=1)
            sizes = curve(model, chosen, np.abs(ranked), n_random=n_random, seed=seed, **options).as_dict()
            areas = head_cpr_cmd(model, chosen, ranked, **options)
        if with_curve and beyond_pairs(circuit.edge_scores):
            try:
                edge_areas = edge_cpr_cmd(model, chosen, _edges(circuit, model))
            except HeadcodesError as error:
                notes.append(f"no CPR and CMD over edges: {error}")
    elif with_faithfulness:
        notes.append("faithfulness needs the model and prompts")
    return Evaluation(
        circuit={
            "model": circuit.model or (model.name if model is not None else ""),  # a MIB graph names neither
            "task": circuit.task or task or "",
            "method": circuit.method,
            "n_heads_in_circuit": len(circuit.heads),
            "n_edges_in_circuit": len(circuit.edges),
        },
        truth=about,
        ranking=ranking,
        membership=membership,
        components=together,
        paths=between,
        faithfulness=alone,
        curve=sizes,
        areas=areas,
        edge_areas=edge_areas,
        notes=notes,
    )


def _truth(
    circuit: Circuit,
    model: Model | None,
    tokens: TokenPairs | None,
    truth: str | GroundTruth | CausalTruth | None,
    task: str | None,
    components: Components,
    n_pairs: int,
) -> GroundTruth | CausalTruth | None:
    if components != "heads" and truth not in ("causal", "paths"):
        raise HeadcodesError(
            "a truth about MLPs too must be the causal one", f"{components} with another truth", "Ask for one of them."
        )
    if not isinstance(truth, str):
        return truth
    if truth not in ("causal", "paths"):
        return truths.get(task or circuit.task, truth)
    if model is None or tokens is None:
        raise HeadcodesError(
            "the causal truth must have a model and prompts to be made from",
            "no model" if model is None else "no prompts",
            "Give both, or name a published truth.",
        )
    return causal_truth(model, tokens, components, pairs=n_pairs)


def _about(judge: GroundTruth | CausalTruth, labels: np.ndarray[Any, Any]) -> dict[str, Any]:
    if isinstance(judge, GroundTruth):
        return judge.as_dict()
    mlps = judge.mean_effects[labels.size :].tolist()
    return {
        "name": "causal",
        "task": judge.task,
        "model": judge.model,
        "source": f"exact resample patching of every head{' and MLP' * bool(mlps)}, effect on the logit difference",
        "n_heads_in_circuit": int(labels.sum()),
        "n_pairs": len(judge.effects),
        "n_answered": judge.n_answered,
        "n_given": judge.n_given,
        "engine": None if judge.engine is None else vars(judge.engine),
        "clean_logit_diff": float(judge.clean_ld.mean()),
        "corrupt_logit_diff": float(judge.corrupt_ld.mean()),
        "largest_effects": [[name, effect] for name, effect in judge.largest(10)],
        "head_effects": judge.head_effects.ravel().tolist(),
        **({"mlp_effects": mlps} if mlps else {}),
    }


def _ranking(
    circuit: Circuit,
    judge: GroundTruth | CausalTruth,
    labels: np.ndarray[Any, Any],
    real: np.ndarray[Any, Any],
    top: int,
    n_resamples: int,
    seed: int,
) -> dict[str, Any]:
    # A truth is about |effect|; layers without heads have no rank.
    scores, labels = np.abs(circuit.head_scores)[real], labels[real]
    found: dict[str, Any] = {
        "roc_auc": metrics.roc_auc(scores, labels),
        "roc_auc_pessimistic": metrics.roc_auc_pessimistic(scores, labels),
        "average_precision": metrics.average_precision(scores, labels),
        "at_k": vars(metrics.at_k(scores, labels, int(labels.sum()))),
        "spearman": None,
        "pair_auc": None,
        "intervals": None,
    }
    if isinstance(judge, CausalTruth):
        found["spearman"] = rank_correlation(scores, judge.head_effects[real])
        effects = judge.per_pair_head_effects[:, real.ravel()]
        found["intervals"] = {
            name: metrics.against_effects(metric, scores, effects, top, n_resamples=n_resamples, seed=seed).as_dict()
            for name, metric in (("roc_auc", metrics.roc_auc), ("average_precision", metrics.average_precision))
        }
    elif judge.pairs and circuit.edge_scores:
        found["pair_auc"] = metrics.pair_auc(_pair_scores(circuit), judge.pair_labels, circuit.n_heads)
    return found


def _components(circuit: Circuit, judge: CausalTruth, top: int) -> dict[str, Any] | None:
    """Judge heads and MLPs together, where the truth holds MLPs and the circuit says anything of them."""
    mlps = judge.names[judge.n_layers * judge.n_heads :]
    chooses = bool(mlps) and chooses_mlps(circuit)
    scored = bool(mlps) and all(name in circuit.node_scores for name in judge.names)
    if not (chooses or scored):
        return None
    labels = metrics.largest(judge.mean_effects, top)
    found: dict[str, Any] = dict.fromkeys(("roc_auc", "average_precision", "spearman", "membership"))
    if scored:
        scores = [abs(circuit.node_scores[name]) for name in judge.names]
        found["roc_auc"] = metrics.roc_auc(scores, labels)
        found["average_precision"] = metrics.average_precision(scores, labels)
        found["spearman"] = rank_correlation(scores, judge.mean_effects)
    if chooses:
        found["membership"] = _membership(np.array([name in circuit.nodes for name in judge.names]), labels)
    return found


def _membership(taken: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> dict[str, Any]:
    hits = int((taken & labels).sum())
    return vars(metrics.AtCut.of(int(taken.sum()), hits, int(labels.sum()), labels.size))


def rank_correlation(scores: ArrayLike, effects: ArrayLike) -> float | None:
    """``metrics.spearman``, None where either is constant."""
    value = metrics.spearman(scores, effects)
    return None if np.isnan(value) else value


def _mlp_scores(circuit: Circuit) -> np.ndarray[Any, Any] | None:
    """Return the scores [n_layers] of all MLPs; None where one has none."""
    scores = [circuit.node_scores.get(f"m{layer}") for layer in range(circuit.n_layers)]
    known = [score for score in scores if score is not None]
    return np.array(known) if len(known) == len(scores) else None


def _edges(circuit: Circuit, model: Model) -> Edges:
    """Return the circuit's scores as those of every edge of the model's graph; 0 where it has none."""
    graph = graph_of(model)
    scores = np.full(graph.shape, np.nan)
    for edge, names in zip(graph.edges(), graph.named_edges(), strict=True):
        scores[edge] = circuit.edge_scores.get(names, 0.0)
    return Edges.of(graph, scores)


def _pair_scores(circuit: Circuit) -> np.ndarray[Any, Any]:
    """Return [n_component, n_component] scores of pairs of heads, 0 where there is none.

    A pair that is only scored slot by slot gets the sum of its slots' magnitudes, as ``methods.eap.pair_scores``.
    """
    n = circuit.n_layers * circuit.n_heads
    scores = np.zeros((n, n))
    for (source, destination), score in circuit.edge_scores.items():
        name = split_slot(destination)[0]
        first, second = parse_head(source), parse_head(name)
        if first is not None and second is not None:
            i, j = first[0] * circuit.n_heads + first[1], second[0] * circuit.n_heads + second[1]
            if destination == name:
                scores[i, j] = abs(score)
            elif (source, name) not in circuit.edge_scores:
                scores[i, j] += abs(score)
    return scores
