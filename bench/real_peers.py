"""Compare headcodes with the programs themselves, which the user installs (real_peers.md says how).

What is missing is left out, by name.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import types
import warnings
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

N_PAIRS = 6
STEPS = 5


def hooked(model: Any) -> Any:
    """Return the same Llama as a HookedTransformer, with the hooks that both programs want."""
    import transformer_lens
    from transformer_lens.pretrained.weight_conversions import convert_llama_weights

    config = model.module.config
    rope = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    cfg = transformer_lens.HookedTransformerConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_ctx=512,
        d_head=config.hidden_size // config.num_attention_heads,
        n_heads=config.num_attention_heads,
        n_key_value_heads=config.num_key_value_heads,
        d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size,
        act_fn="silu",
        normalization_type="RMS",
        eps=config.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_base=rope,
        rotary_dim=config.hidden_size // config.num_attention_heads,
        gated_mlp=True,
        final_rms=True,
        device="cpu",
        dtype=torch.float32,
        original_architecture="LlamaForCausalLM",
    )
    theirs = transformer_lens.HookedTransformer(cfg)
    weights = convert_llama_weights(model.module, cfg)
    weights.setdefault("unembed.W_U", model.module.lm_head.weight.T)
    theirs.load_state_dict(weights, strict=False)
    theirs.set_ungroup_grouped_query_attention(True)
    theirs.set_use_attn_result(True)
    theirs.set_use_hook_mlp_in(True)
    theirs.set_use_split_qkv_input(True)
    return theirs.requires_grad_(True)


def difference(ours: Any, theirs: Any) -> str:
    """Say how far two lists of numbers are apart, whichever way the peer subtracts."""
    ours, theirs = (np.asarray(each, dtype=np.float64).ravel() for each in (ours, theirs))
    worst = min(np.abs(ours - theirs).max(), np.abs(ours + theirs).max())
    return f"{len(ours)} numbers, worst {worst:.1e} of {np.abs(theirs).max():.3g}"


def against_auto_circuit(theirs: Any, result: Any, ids: dict[str, torch.Tensor]) -> str:
    """Prune scores of every edge: theirs at mask 0, and those of ``headcodes export --format auto-circuit``."""
    import transformer_lens
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    # It was written for an older transformer-lens, in which this class had another name and place.
    old: Any = types.ModuleType("transformer_lens.past_key_value_caching")
    old.HookedTransformerKeyValueCache = TransformerLensKeyValueCache
    transformer_lens.HookedTransformerKeyValueCache = TransformerLensKeyValueCache
    sys.modules[old.__name__] = old
    from auto_circuit.data import PromptDataLoader, PromptDataset
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
    from auto_circuit.utils.graph_utils import patchable_model
    from safetensors.torch import load_file

    from headcodes.circuit.formats import export, load_circuit

    patchable = patchable_model(theirs, factorized=True, slice_output="last_seq", separate_qkv=True)
    prompts = PromptDataset(*(list(ids[name]) for name in ("clean", "corrupt", "right", "wrong")))
    loader = PromptDataLoader(prompts, seq_len=None, diverge_idx=0, batch_size=N_PAIRS, shuffle=False)
    scores = mask_gradient_prune_scores(
        patchable, loader, None, grad_function="logit", answer_function="avg_diff", mask_val=0.0
    )
    with tempfile.TemporaryDirectory() as folder:
        result.save(folder)
        export(load_circuit(Path(folder, "circuit.json")), "auto-circuit", Path(folder, "scores.safetensors"))
        ours = load_file(Path(folder, "scores.safetensors"))
    assert {name: each.shape for name, each in scores.items()} == {name: each.shape for name, each in ours.items()}
    return difference(*(torch.cat([each[name].detach().flatten() for name in scores]) for each in (ours, scores)))


def against_eap_ig(theirs: Any, model: Any, tokens: Any, results: dict[str, Any], ids: dict[str, torch.Tensor]) -> str:
    """Edge scores of EAP and EAP-IG, and what a circuit of their choice from our graph file is worth to both."""
    from circuitkit.backends.eap import attribute, evaluate
    from circuitkit.backends.eap.graph import Graph

    from headcodes.circuit.formats import export, load_circuit
    from headcodes.interventions.ablate import EdgeAblation
    from headcodes.interventions.reads import graph_of

    mask = torch.ones_like(ids["clean"])
    lengths = torch.full((N_PAIRS,), mask.shape[1])

    def same_ids(*_: Any, **__: Any) -> tuple[Any, ...]:
        return ids["clean"], ids["corrupt"], mask, mask, lengths, mask.shape[1]

    def logit_diff(logits: torch.Tensor, *_: Any) -> torch.Tensor:
        rows = torch.arange(N_PAIRS)
        return logits[rows, -1, ids["right"][:, 0]] - logits[rows, -1, ids["wrong"][:, 0]]

    attribute.tokenize_batch_pair = evaluate.tokenize_batch_pair = same_ids  # theirs puts a BOS token in front
    loader = [([""] * N_PAIRS, [""] * N_PAIRS, None)]
    said, graph = [], Graph.from_model(theirs)
    for name, method in (("EAP", "eap"), ("EAP-IG-inputs", "eap-ig-inputs")):
        attribute.attribute(theirs, graph, loader, lambda *a: logit_diff(*a).sum(), name, ig_steps=STEPS, quiet=True)
        edges = results[method].findings.edges
        both = [
            (edges.scores[i, j], graph.edges[f"{source}->{destination}"].score.item())
            for i, source in enumerate(edges.sources)
            for j, destination in enumerate(edges.destinations)
            if not np.isnan(edges.scores[i, j])
        ]
        said.append(f"{name}: {difference(*zip(*both, strict=True))}")
    with tempfile.TemporaryDirectory() as folder:
        results["eap"].save(folder)
        export(load_circuit(Path(folder, "circuit.json")), "mib", Path(folder, "graph.json"))
        graph = Graph.from_json(str(Path(folder, "graph.json")))
    ours, part = graph_of(model), EdgeAblation(model, tokens, "resample", "logit-diff")
    for n in (1000, 5000):
        graph.apply_topn(n, True)
        worth = evaluate.evaluate_graph(theirs, graph, loader, logit_diff, quiet=True).mean().item()
        removed = torch.zeros(len(ours.sources), len(ours.destinations), dtype=torch.bool)
        for source, destination in ours.edges():
            name = f"{ours.sources[source]}->{ours.destinations[destination]}"
            removed[source, destination] = not graph.edges[name].in_graph
        kept = part.clean_logit_diff - part.loss(removed)
        said.append(f"logit difference of {graph.count_included_edges()} edges: ours {kept:.6f}, theirs {worth:.6f}")
    return "; ".join(said)


def against_sae_lens() -> str:
    """Encode and decode by SAELens of an autoencoder that headcodes trained and saved."""
    import sae_lens

    import headcodes

    x = torch.randn(600, 48, generator=torch.Generator().manual_seed(0))
    config = headcodes.TrainConfig(d_sae=64, n_epochs=60)
    sae: Any = headcodes.train(x, config, generator=torch.Generator().manual_seed(0)).sae
    with tempfile.TemporaryDirectory() as folder:
        sae.save(folder)
        theirs = sae_lens.SAE.load_from_disk(folder, device="cpu")
    latents = torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    encoded = theirs.encode(x)
    decoded = difference(latents @ sae.W_dec + sae.b_dec, theirs.decode(encoded).detach())
    return f"encode: {difference(latents, encoded.detach())}; decode: {decoded}"


def main() -> None:
    """Print a line a peer."""
    with suppress(ImportError):
        import_module("circuitkit")  # it must come before transformer-lens
    import headcodes
    from headcodes.prompts.tokens import tokenize

    warnings.simplefilter("ignore")
    model = headcodes.load_model("smollm2-135m", dtype="float32", device="cpu")
    built = headcodes.tasks.get("ioi").build(model.tokenizer, n=40, seed=0)
    tokens = tokenize(built, model.tokenizer)
    lengths = [len(prompt) for prompt in tokens.clean]
    usual = max(set(lengths), key=lengths.count)
    keep = [i for i, n in enumerate(lengths) if n == usual == len(tokens.corrupt[i])][:N_PAIRS]
    pairs = dataclasses.replace(built, pairs=tuple(built.pairs[i] for i in keep))
    tokens = tokens.subset(keep)
    names = {"clean": "clean", "corrupt": "corrupt", "right": "answers", "wrong": "wrong_answers"}
    ids = {name: torch.tensor(getattr(tokens, of)) for name, of in names.items()}
    results = {
        method: headcodes.discover(model, pairs, method=method, level="edge", verify=None)
        for method in ("eap", "eap-ig-inputs")
    }
    checks = {
        "auto-circuit": lambda: against_auto_circuit(hooked(model), results["eap"], ids),
        "EAP-IG": lambda: against_eap_ig(hooked(model), model, tokens, results, ids),
        "SAELens": against_sae_lens,
    }
    for name, check in checks.items():
        try:
            print(f"{name}: {check()}", flush=True)
        except ImportError as error:
            print(f"{name}: left out, {error}", flush=True)


if __name__ == "__main__":
    main()
