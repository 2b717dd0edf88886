"""A result: scores with everything needed to say where they came from, kept in open formats."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.circuit.circuit import Circuit
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.evaluation.confirm import confirmed_circuit, found_exactly
from headcodes.files import atomic_write
from headcodes.settings import SETTINGS, Settings, Verify
from headcodes.store.folders import run_folder

if TYPE_CHECKING:
    from jaxtyping import Float, Int32
    from numpy.typing import ArrayLike

    from headcodes.circuit.agreement import SeedScores
    from headcodes.codes.sae import SparseAutoencoder
    from headcodes.interventions.paths import PathEffects
    from headcodes.interventions.verify import Verification
    from headcodes.methods.findings import Findings
    from headcodes.models.model import Model
    from headcodes.overlap.significance import PairSignificance, Significance
    from headcodes.prompts.pairs import PromptPairs
    from headcodes.prompts.task_check import TaskCheck
    from headcodes.report.attention import AttentionPattern
    from headcodes.report.plots import Backend, CurveKind
    from headcodes.report.records import RunRecord


SCHEMA = 1
_N_PAIRS_IN_JSON = 1000


@dataclass(frozen=True, kw_only=True)
class Result(Settings):
    """What ``discover`` returns: the settings of the run, "auto" resolved where it is known, and what was found.

    Attributes:
        pairs: the prompts, as they were given.
        bos_added, first_ids: whether a beginning of the tokenizer's was put in front; the first clean prompt's ids.
        seed: of everything that was drawn; where there are several, of what was not drawn by the method.
        task_check: whether the model does the task at all.
        timings_s: seconds for import, load, capture, train, encode, overlap, and in total; and of whatever else ran.
        fdr: level of the filter that was asked for: heads whose codes differ between the sides by more than chance,
            at this false-discovery rate, are let into the circuit; that is not membership in it.
        node_tests, pair_tests: permutation tests behind the filter; pair_tests at edge level.
        verify: what was asked of exact patching: a number of heads, "auto", or None where none was to be.
        verification: exact effects of the best-ranked heads; the circuit is then the confirmed ones.
        paths: exact effects of paths between the confirmed heads.
        held_out: the circuit judged on prompts that were held out (``headcodes.evaluation.confirm.on_held_out``).
        unverified: why no head was patched, or the circuit not judged, although it was to be.
        metric: of the answer that the method worked with; None: it works with none.
        by_seed: every seed's scores, where ``seeds`` were asked for: scores are then their means, codes the first's.
        layers_without_heads: of a hybrid model; the scores of heads there are 0.
    """

    d_model: int
    parallel_attn_mlp: bool
    pairs: PromptPairs
    bos_added: bool
    backend: str
    task_check: TaskCheck
    findings: Findings
    timings_s: dict[str, float]
    versions: dict[str, str]
    fdr: float | None = None
    node_tests: Significance | None = None
    pair_tests: PairSignificance | None = None
    verify: Verify = None
    verification: Verification | None = None
    paths: PathEffects | None = None
    held_out: Mapping[str, Any] | None = None
    unverified: str | None = None
    by_seed: SeedScores | None = None
    metric: str | None = None
    first_ids: tuple[int, ...] = ()
    layers_without_heads: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # Bounds are those of what can be asked for: a model of the caller's own may have another dtype.
        of_pairs = {"task": self.pairs.task, "negative": self.pairs.negative, "n_prompts": len(self.pairs)}
        for name, value in of_pairs.items():
            object.__setattr__(self, name, value)

    @property
    def head_scores(self) -> Float[np.ndarray, "n_layers n_heads"]:
        """Scores of heads, larger is more likely in the circuit; always the node level."""
        return self.findings.head_scores

    @property
    def pair_scores(self) -> Float[np.ndarray, "n_component n_component"] | None:
        """Scores of pairs of heads, symmetric, zero diagonal; None at node level."""
        return self.findings.pair_scores

    @property
    def mention_scores(self) -> Float[np.ndarray, " n_component"] | None:
        """The published "edge level" score: how often a head stands in the list of the best pairs."""
        return self.findings.mention_scores

    @property
    def codes(self) -> Int32[np.ndarray, "n_prompt n_component"] | None:
        """Codes, -1 or 0 where no latent is active; clean prompts first. None for methods without codes."""
        return self.findings.codes

    @property
    def sae(self) -> SparseAutoencoder | None:
        """The autoencoder behind the codes."""
        return self.findings.sae

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return int(self.head_scores.shape[0])

    @property
    def n_heads(self) -> int:
        """Heads a layer."""
        return int(self.head_scores.shape[1])

    @property
    def components(self) -> list[str]:
        """Names of heads in the order of every flat array: ``a{layer}.h{head}``, layer-major."""
        return [f"a{layer}.h{head}" for layer in range(self.n_layers) for head in range(self.n_heads)]

    @property
    def method_used(self) -> str:
        """The method that ran: what ``default`` stood for, else the one asked for."""
        return self.findings.method_used or self.method

    def circuit(self, top: int = 20) -> Circuit:
        """Return the confirmed heads, largest effect first; where none were patched, the ``top`` best that pass ``fdr``
        or ``stable``, where asked for, and, at edge level, the best pairs among them that point forward."""
        about: dict[str, Any] = {
            "d_model": self.d_model,
            "parallel_attn_mlp": self.parallel_attn_mlp,
            "model": self.model,
            "task": self.task,
            "method": self.method,
            "meta": {} if self.findings.components == "heads" else {"components": self.findings.components},
        }
        if self.verification is not None:
            about["meta"] |= {"method_used": self.method_used, "held_out": self.held_out}
            return confirmed_circuit(self.findings, self.verification, self.paths, **about)
        scores = self.head_scores
        if self.findings.resampled is not None:
            scores = self.findings.resampled.kept(scores, top)
        if self.fdr is not None and self.node_tests is not None:
            scores = np.where(self.node_tests.q.reshape(scores.shape) <= self.fdr, scores, 0.0)
        mlps = self.findings.best_mlps(scores, top)
        circuit = Circuit.from_scores(scores, top=max(top - len(mlps), 1), pair_scores=self.pair_scores, **about)
        # Chosen by magnitude, kept with their sign. What is not chosen among is scored all the same.
        signs = np.where(self.findings.signed_scores < 0, -1.0, 1.0).ravel()
        kept = {name: score * sign for (name, score), sign in zip(circuit.node_scores.items(), signs, strict=True)}
        kept |= self.findings.other_nodes
        heads, edges = (circuit.nodes, circuit.edges) if len(mlps) < top else ((), ())
        nodes = tuple(sorted([*heads, *mlps], key=lambda name: -abs(kept[name])))
        return replace(circuit, node_scores=kept, nodes=nodes, edges=edges)

    def with_timings(self, **timings_s: float) -> Result:
        """Return the same result with some stages' seconds set."""
        return replace(self, timings_s=self.timings_s | timings_s)

    def as_json(self, top: int = 20) -> dict[str, Any]:
        """Return the object that ``--json`` prints (docs/result-json.md)."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            **{name: getattr(self, name) for name in SETTINGS if name != "device"},
            "method_used": self.method_used,
            **{name: why for name in ("fallback", "pairs_proposed_by") if (why := getattr(self.findings, name))},
            "bos_added": self.bos_added,
            "first_ids": list(self.first_ids),
            **({} if self.pairs.reading is None else {"reading": self.pairs.reading.as_dict()}),
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "layers_without_heads": list(self.layers_without_heads),
            "components": self.components,
            "head_scores": self.head_scores.ravel().tolist(),
        }
        if self.pair_scores is not None:
            document["pair_scores"] = _largest_pairs(self.pair_scores, self.n_heads, _N_PAIRS_IN_JSON)
        if self.mention_scores is not None:
            document["mention_scores"] = self.mention_scores.tolist()
        if self.by_seed is not None:
            document["seeds"] = list(self.by_seed.seeds)
            for name, values in self.by_seed.agreement(top).items():
                if name.startswith("pair"):  # of the pairs in pair_scores, in their order
                    document[name] = [float(values[i, j]) for i, j, _ in document["pair_scores"]]
                else:
                    document[name] = values.ravel().tolist()
        if self.findings.resampled is not None:
            document |= self.findings.resampled.as_json(top)
        if self.node_tests is not None:
            tests = self.node_tests
            document |= {"fdr": self.fdr, "n_permutations": tests.n_permutations, "p_values": tests.p.tolist()}
            document |= {"p_family": tests.p_family.tolist(), "q_values": tests.q.tolist()}
        if self.verification is not None:
            document |= {"verify": self.verify, **found_exactly(self.findings, self.verification, self.paths)}
            document["faithfulness"] = self.held_out
        if self.unverified is not None:
            document["unverified"] = self.unverified
        for name, by in (("engine", self.verification or self.findings), ("path_engine", self.paths)):
            if by is not None and by.engine is not None:
                document[name] = asdict(by.engine)
        circuit = self.circuit(top)
        return document | {
            "circuit": circuit.as_lists(),
            **({} if self.metric is None else {"metric": self.metric}),
            **self.findings.further_scores(circuit.nodes),
            "task_check": self.task_check.as_dict(),
            "dead_share": self.findings.dead_share,
            "timings_s": {stage: round(seconds, 4) for stage, seconds in self.timings_s.items()},
            "backend": self.backend,
            "versions": self.versions,
        }

    def save(self, folder: Path | str, top: int = 20, model: Model | None = None) -> None:
        """Write circuit.json, result.json, prompts.json, scores.safetensors, sae/ and page.html into ``folder``.

        The folder is replaced whole: it must be new, empty or an earlier run, and then holds nothing but this run.
        Given the model, the page also shows the attention of the chosen heads on some prompts (attention.safetensors).

        Raises:
            HeadcodesError: the folder holds something that is no run's.
        """
        from headcodes.report.attention import attention_examples, save_attention
        from headcodes.report.page import write_page

        attention = []
        if model is not None:
            try:
                attention = attention_examples(model, self.pairs, self.circuit(top).heads, self.bos)
            except HeadcodesError as error:
                warnings.warn(str(error), HeadcodesWarning, stacklevel=2)
        with run_folder(folder) as fresh:
            self._write(fresh, top)
            if self.sae is not None:
                self.sae.save(fresh / "sae")
            save_attention(fresh, attention)
            write_page(self.record(top, attention), fresh / "page.html")

    def _write(self, folder: Path, top: int) -> None:
        from safetensors.numpy import save_file

        edges = self.findings.edges
        circuit = replace(self.circuit(top), edge_scores_file="scores.safetensors" if edges else None)
        circuit.to_json(folder / "circuit.json")
        self.pairs.to_json(folder / "prompts.json")
        with atomic_write(folder / "result.json") as path:
            path.write_text(json.dumps(self.as_json(top), indent=1) + "\n", encoding="utf-8")
        seeds = self.by_seed
        arrays = {
            "head_scores": self.head_scores,
            "pair_scores": self.pair_scores,
            "mention_scores": self.mention_scores,
            "codes": self.codes,
            "mlp_codes": self.findings.mlp_codes,
            "scores_by_position": self.findings.by_place,
            "scored_prompts": self.findings.scored_prompts,
            "p_values": self.node_tests.p.reshape(self.head_scores.shape) if self.node_tests else None,
            "q_values": self.node_tests.q.reshape(self.head_scores.shape) if self.node_tests else None,
            "pair_p_family": self.pair_tests.p_family if self.pair_tests else None,
            "pair_q_values": self.pair_tests.q if self.pair_tests else None,
            "edge_scores": edges.scores if edges else None,
            "seeds": np.array(seeds.seeds) if seeds else None,
            "head_scores_by_seed": seeds.head_scores if seeds else None,
            "mention_scores_by_seed": seeds.mention_scores if seeds else None,
            **(seeds.agreement(top) if seeds else {}),
        }
        names = None
        if edges is not None:
            names = {"edge_sources": " ".join(edges.sources), "edge_destinations": " ".join(edges.destinations)}
        with atomic_write(folder / "scores.safetensors") as path:
            save_file({name: np.ascontiguousarray(a) for name, a in arrays.items() if a is not None}, path, names)

    def push_to_hub(self, repo: str, *, token: str | None = None, private: bool = False, top: int = 20) -> str:
        """Send circuit, result and a card to a dataset repository of the Hub; see ``headcodes.report.hub``.

        ``headcodes.Circuit.from_hub(repo)`` fetches the circuit again.
        """
        from headcodes.report.hub import push_folder

        with TemporaryDirectory() as folder:
            self.save(folder, top)
            return push_folder(folder, repo, token=token, private=private)

    def record(self, top: int = 20, attention: Sequence[AttentionPattern] = ()) -> RunRecord:
        """Return what a report shows of this result."""
        from headcodes.report.curves import published_curves
        from headcodes.report.records import ARRAYS, RunRecord

        found = {"codes": self.findings.codes, "scored_prompts": self.findings.scored_prompts}
        if self.pair_tests is not None:
            found |= {"pair_p_family": self.pair_tests.p_family, "pair_q_values": self.pair_tests.q}
        if self.by_seed is not None:
            found |= {"head_scores_by_seed": self.by_seed.head_scores, **self.by_seed.agreement(top)}
        return RunRecord(
            document=self.as_json(top),
            circuit=self.circuit(top),
            arrays={name: array for name, array in found.items() if array is not None and name in ARRAYS},
            pairs=self.pairs,
            attention=attention,
            curves=published_curves(self.model, self.pairs.task, self.method, self.head_scores),
        )

    def plot_heads(self, what: str = "score", top: int = 20, backend: Backend = "plotly") -> Any:
        """Draw a number a head as a map of layers by heads; see ``headcodes.report.plots.plot_heads``."""
        from headcodes.report.plots import plot_heads

        return plot_heads(self.record(top), what, backend)

    def plot_circuit(self, top: int = 20, backend: Backend = "plotly") -> Any:
        """Draw the circuit as a layered graph; see ``headcodes.report.plots.plot_circuit``."""
        from headcodes.report.plots import plot_circuit

        return plot_circuit(self.record(top), backend)

    def plot_curves(self, truth: ArrayLike, kind: CurveKind = "ROC", backend: Backend = "plotly") -> Any:
        """Draw how well the scores find the heads of a truth; see ``headcodes.report.plots.plot_curves``."""
        from headcodes.report.plots import plot_curves

        return plot_curves(self.record(), truth, kind, backend=backend)

    def __repr__(self) -> str:
        nodes = self.circuit(5).nodes
        drawn = f"seed {self.seed}" if self.by_seed is None else f"mean of {len(self.by_seed.seeds)} seeds"
        about = f"{self.model}, {self.pairs.task}, method {self.method}, {self.level} level, {drawn}"
        return f"Result({about}: best heads {', '.join(nodes) or 'none'})"

    def _repr_html_(self) -> str:
        from headcodes.report.page import render_summary

        return render_summary(self.record())


def _largest_pairs(scores: Float[np.ndarray, "c c"], n_heads: int, n_most: int) -> list[list[float]]:
    """Return [i, j, score] of the largest scores with layer_i < layer_j, ties by (i, j)."""
    layer = np.arange(len(scores)) // n_heads
    i, j = np.nonzero((layer[:, None] < layer[None, :]) & (scores > 0))
    best = np.argsort(-scores[i, j], kind="stable")[:n_most]
    return [[int(i[k]), int(j[k]), float(scores[i[k], j[k]])] for k in best]
