"""A model proves itself when it is opened: one short batch of its own shows what its parts do, whatever their names.

All rows but the last, another prompt, hold the same tokens, and every layer is given row 0's stream. In the rows
between, heads' results and MLPs, or the queries, keys or values of one head, are disturbed in each layer: what changes,
and whether it adds up, is what the model does. A second pass (or third) holds heads in shared rows to heads alone.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import metadata
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.files import atomic_write, cache_dir, checksum
from headcodes.graph import numbered
from headcodes.models.disturbed import (
    CLEAN,
    HEADS,
    LENGTH,
    OTHER,
    REST,
    SLOT,
    Record,
    logit_scale,
    plain_unembedding,
    run,
    tokens,
)
from headcodes.models.facts import Facts, facts_from_json
from headcodes.models.hooks import as_found, capture_inputs
from headcodes.models.model import Model
from headcodes.models.relied import attention_way
from headcodes.models.slots import LAYOUTS, slot_projection
from headcodes.models.weights import check_affine, is_quantised, weights_of

if TYPE_CHECKING:
    from jaxtyping import Float, Int

_VERSION = 5
# Roundings of a sum of three terms, and how far two ways of computing the same attention may differ.
_ROUNDINGS = 8
_SAME = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


def prove(model: Model, known_checksum: str | None = None) -> None:
    """Find out what the model does and set its ``facts``.

    Args:
        known_checksum: under which the verdict is kept, and found again without running anything.

    Raises:
        HeadcodesError: an output projection that is no linear map; attention that looks ahead; numbers that are not
            finite in this dtype; a model that does not run on token ids alone.
    """
    path = None
    if known_checksum is not None:
        about = [_VERSION, known_checksum, str(model.dtype), model.device.type, model.family, torch.__version__]
        about += [attention_way(model), metadata.version("transformers"), model.attention_path]
        path = cache_dir() / "checks" / f"{checksum(json.dumps(about).encode())[:24]}.json"
        try:
            model.facts = facts_from_json(json.loads(path.read_text()))
            model.n_kv_heads = model.facts.n_kv_heads
            return
        except (OSError, ValueError, TypeError):
            pass
    for layer in _with_heads(model):
        check_affine(model.projections[layer], f"layer {layer}")
    with as_found(model.module), torch.inference_mode():
        model.facts = _found(model)
    if path is not None:
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(model.facts)))


def _found(model: Model) -> Facts:
    ids = tokens(model)
    config_positions = _config(model, "max_position_embeddings") or _config(model, "n_positions")
    trained = int(config_positions) if isinstance(config_positions, int) else None
    model.facts = Facts(positions=_table(model, trained), trained=trained)
    record = _record(model, ids, _other(ids))
    facts = replace(
        model.facts,
        n_kv_heads=model.n_kv_heads,
        without_heads=model.without_heads,
        plain_unembedding=plain_unembedding(model, record),
        logit_scale=logit_scale(model, record),
        layout=record.layout,
        norms_over_heads=record.norms,
        slots=record.slots,
        **_stream(model, record),
        **_parallel(record),
    )
    shares, error = _batches(model, ids, record)
    return replace(facts, shares_rows=shares, batch_error=error)


def _other(ids: Int[Tensor, " seq"]) -> Int[Tensor, " seq"]:
    """Return another prompt that begins like this one and, like it, has one token behind it."""
    return torch.cat([ids[: LENGTH - 3], ids[LENGTH - 3 : LENGTH - 1].flip(0), ids[LENGTH - 1 :]])


def _record(model: Model, ids: Int[Tensor, " seq"], other: Int[Tensor, " seq"]) -> Record:
    """Run the disturbed batch; where one module makes queries, keys and values, try each way they may lie in it."""
    reason = None
    for layout in LAYOUTS:
        model.facts = replace(model.facts, layout=layout)
        try:
            for layer in _with_heads(model):
                for name in "qkv":
                    slot_projection(model, layer, name)
        except HeadcodesError:
            reason = reason or "its query, key and value projections are not known"
            continue
        record = run(model, ids, other, slots=True)
        record.layout = layout
        if len(record.n_kv) > 1:
            record.slots = "its layers have different numbers of keys and values"
        model.n_kv_heads = next(iter(record.n_kv))
        if record.slots is None:
            record.slots = _slot_fault(model, record)
        if layout == "separate" or record.slots is None:
            return record
        reason = "where queries, keys and values lie in their common module is not known"
    record = run(model, ids, other, slots=False)
    record.slots = reason
    return record


def _with_heads(model: Model) -> list[int]:
    return [layer for layer in range(model.n_layers) if layer not in model.without_heads]


def _stream(model: Model, record: Record) -> dict[str, Any]:
    """Find out whether the parts add up to what the final norm reads, and by what each is multiplied."""
    scales: dict[str, list[float]] = {"z": [], "mlp": []}
    beside: list[str | None] = []
    largest, reason, norms = 0.0, None, False
    for layer in range(model.n_layers):
        left = record.left[layer].double()
        # With device_map, the layer before it may lie on another device.
        entered = record.entered[layer].to(left)
        parts = {}
        for kind in ("z", "mlp"):
            written = record.written.get((kind, layer))
            if written is not None:
                passed = record.passed[kind, layer]
                behind = next((made for given, made in record.calls[layer] if given is passed), written)
                norms = norms or behind is not written
                parts[kind] = behind.double().reshape(left.shape)
        # Where heads and MLP alone are not all that is added, others may be: a state space, a convolution, experts.
        others = [(name, part.double()) for name, part in record.others[layer] if part.shape == left.shape]
        found: list[tuple[str | None, list[float], float, bool]] = []
        for some in chain.from_iterable(combinations(others, n) for n in range(3)):
            columns = [*parts.values(), *(part for _, part in some)]
            name = ", ".join(name for name, _ in some) or None
            found.append((name, *_added(entered, left, columns, model.dtype)))
            if found[-1][3]:
                break
        name, multiples, rest, fits = found[-1] if found[-1][3] else found[0]
        if not fits:
            reason = reason or f"embedding, heads and MLPs do not add up to what leaves layer {layer}"
        beside.append(name)
        largest = max(largest, rest)
        by_kind = dict(zip(parts, multiples, strict=False))
        for kind, values in scales.items():
            values.append(by_kind.get(kind, 1.0))
    if model.final_norm is None:
        reason = "there is no final norm behind the last layer"
    elif record.gap is not None:
        reason = reason or f"layer {record.gap} does not read what layer {record.gap - 1} puts out"
    elif record.final is None or not torch.equal(record.final, record.left[model.n_layers - 1]):
        reason = reason or "the final norm does not read what the last layer puts out"
    kept = {kind: tuple(values) if any(value != 1 for value in values) else () for kind, values in scales.items()}
    return {
        "stream": reason,
        "sum_error": largest,
        "norms_behind": norms,
        "beside": tuple(beside) if any(beside) else (),
        "attention_scale": kept["z"],
        "mlp_scale": kept["mlp"],
    }


def _added(entered: Tensor, left: Tensor, parts: list[Tensor], dtype: torch.dtype) -> tuple[list[float], float, bool]:
    """Find the multiple of each part with which they make up what a layer changes; how far off that is, as a share of
    the largest number in the stream, and whether it is no more than rounding."""
    eps = torch.finfo(dtype).eps
    change = left - entered
    rounding = _ROUNDINGS * eps * (left.abs() + entered.abs())

    def with_multiples(multiples: list[float]) -> tuple[list[float], float, bool]:
        rest, bound = change, rounding
        for multiple, part in zip(multiples, parts, strict=True):
            rest = rest - multiple * part
            bound = bound + abs(multiple) * _ROUNDINGS * eps * part.abs()
        rest = rest.abs()
        return multiples, float(rest.max() / left.abs().max().clamp_min(1e-30)), not bool((rest > bound).any())

    plain = with_multiples([1.0] * len(parts))
    if plain[2] or not parts:
        return plain
    columns = torch.stack([part.flatten() for part in parts], 1).cpu()
    solution = torch.linalg.lstsq(columns, change.flatten().cpu()[:, None], driver="gelsd").solution
    return with_multiples(solution[:, 0].tolist())


def _parallel(record: Record) -> dict[str, Any]:
    """Find out whether a layer's MLP notices a change of what its heads write."""
    noticed = []
    for layer, read in record.mlp_in.items():
        written = record.written.get(("z", layer))
        if written is not None and not torch.equal(written[HEADS], written[CLEAN]):
            noticed.append(not torch.equal(read[HEADS], read[CLEAN]))
    return {"parallel": bool(noticed) and not any(noticed)}


def _slot_fault(model: Model, record: Record) -> str | None:
    """Say what is wrong where a change of one head's query, key or value is not a change of that head (its group), or
    where heads change though their queries, keys and values do not."""
    visible = 1e-5 if model.dtype in (torch.float32, torch.float64) else 4 * torch.finfo(model.dtype).eps
    for layer in {layer for _, layer in record.slot_shift}:
        z = record.z[layer].float()
        if float((z[REST] - z[CLEAN]).abs().max()) > visible * float(z[CLEAN].abs().max()):
            return f"heads of layer {layer} read more of the stream than queries, keys and values"
    for (name, layer), shift in record.slot_shift.items():
        z = record.z[layer].float()
        heads = (z[SLOT[name]] - z[CLEAN]).unflatten(-1, (model.n_heads, -1))
        moved = heads.abs().amax(-1)  # [seq, head]
        size = float(z[CLEAN].abs().max())
        chosen = model.n_heads // 2
        n_kv = model.n_heads if name == "q" else model.n_kv_heads
        group = model.n_heads // n_kv
        mine = torch.zeros(model.n_heads, dtype=torch.bool, device=z.device)
        start = chosen if name == "q" else chosen * n_kv // model.n_heads * group
        mine[start : start + (1 if name == "q" else group)] = True
        if float(moved[:, ~mine].max() if (~mine).any() else 0) > visible * size:
            return f"a change of one head's {name} in layer {layer} changes other heads"
        if record.layout != "separate":
            # In one module, queries, keys and values could be mistaken for each other: a query counts at its own
            # position alone; the first token sees itself only, whatever its key, and passes its value on as it is.
            first = heads[0, mine] - shift.float()
            wrong = {
                "q": float(moved[[0, 2]].max()) > visible * size,
                "k": float(moved[0].max()) > visible * size,
                "v": float(first.abs().max()) > 10 * visible * float(shift.abs().max()),
            }[name]
            if wrong:
                return f"what should be {name} in layer {layer} does not act as such"
    return None


def _batches(model: Model, ids: Int[Tensor, " seq"], record: Record) -> tuple[bool, float]:
    """Hold two prompts among others, a token behind each, to both in one row of theirs, or to the first alone."""
    n, common = LENGTH - 1, LENGTH - 3
    layers = _with_heads(model)
    batch = [record.z[layer][[CLEAN, OTHER], :n].cpu() for layer in layers]
    # Weights of eight bits round their inputs too, by what else is in the batch.
    coarse = model.dtype not in (torch.float32, torch.float64)
    coarse = coarse or any(is_quantised(model.projections[layer]) for layer in layers)
    tolerance = 0.1 if coarse else _SAME[model.dtype]

    def off(found: list[Tensor]) -> list[float]:
        rows = [(one.float(), both[: len(one)].float()) for one, both in zip(found, batch, strict=True)]
        return [float((one - both).norm() / both[:1].norm().clamp_min(1e-30)) for one, both in rows]

    if attention_way(model) in ("sdpa", "eager"):
        path = torch.tensor([*range(common), *range(n, 2 * n - common)])
        seen = torch.eye(2 * n - common, dtype=torch.bool)
        for places in (torch.arange(n), path):
            seen[places[:, None], places[None]] = torch.ones(n, n, dtype=torch.bool).tril()
        mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, -torch.inf)[None, None]
        positions = torch.cat([torch.arange(n), torch.arange(common, n)])[None]
        inputs = {"attention_mask": mask.to(model.device), "position_ids": positions.to(model.device)}
        with suppress(TypeError, ValueError, RuntimeError, IndexError):
            shared = _results(model, torch.cat([ids[:n], _other(ids)[common:n]])[None], **inputs)
            shares = off([torch.stack([row[0, :n], row[0, path]]) for row in shared])
            if all(share <= tolerance for share in shares):
                return True, max(shares)
    shares = off(_results(model, ids[None, :n]))
    for layer, share in zip(layers, shares, strict=True):
        # Which experts an MLP takes can depend on a rounding: in coarse dtypes only the first layer is decisive.
        if share > tolerance and (layer == layers[0] or not coarse):
            raise HeadcodesError(
                "A model must read from left to right, each prompt by itself",
                f"heads of layer {layer} whose results change by {share:.2g} with the tokens behind or beside a prompt",
                "Take a causal language model.",
            )
    return False, max(shares)


def _results(model: Model, ids: Int[Tensor, "batch seq"], **inputs: Any) -> list[Float[Tensor, "batch seq column"]]:
    kept: dict[int, Tensor] = {}
    with capture_inputs(model.projections, lambda layer, x: kept.__setitem__(layer, x.cpu())):
        model.trace(ids, **inputs)
    return [kept[layer] for layer in _with_heads(model)]


def _config(model: Model, name: str) -> Any:
    config: Any = getattr(model.module, "config", None)
    return getattr(config.get_text_config(), name, None) if hasattr(config, "get_text_config") else None


def _table(model: Model, trained: int | None) -> int | None:
    """Return how many positions there are in a table of the model's, learned or computed beforehand, or None."""
    if trained is None:
        return None
    known = {id(weights_of(model.unembed).weight)}
    body: Any = model.module
    for part in body.modules():
        if isinstance(part, nn.Embedding) and id(part.weight) not in known:
            # OPT's table begins with two rows that no prompt uses.
            offset = int(getattr(part, "offset", 0))
            if part.num_embeddings - offset == trained and part.num_embeddings != model.d_vocab:
                return trained
        if any(buffer.ndim == 2 and buffer.shape[0] == trained for buffer in part.buffers(recurse=False)):
            return trained
    return None


def verdict(model: Model) -> dict[str, str]:
    """Return what the model was found to do, a line for each check of it."""
    facts = model.facts
    widths = sorted(set(model.d_heads))
    order = "parallel" if facts.parallel else "one after the other" if model.mlp_reader(0) is not None else "no MLP"
    scales = {round(value, 4) for value in (*facts.attention_scale, *facts.mlp_scale)} - {1.0}
    sums = f"exact (to {facts.sum_error:.0e} of the stream)"
    if scales and facts.stream is None:
        sums += f", parts multiplied by {', '.join(map(str, sorted(scales)))}"
    keys = f"{model.n_kv_heads} with keys of their own"
    n_with = model.n_layers - len(model.without_heads)
    left_out = f"; none in {numbered(model.without_heads)}, left out" if model.without_heads else ""
    return {
        "projection": "a linear map in every layer",
        "sum of parts": facts.stream or sums + (", norms behind parts" if facts.norms_behind else ""),
        "attention and MLP": order,
        "heads": f"{n_with} x {model.n_heads}, {' and '.join(map(str, widths))} wide, {keys}{left_out}",
        "finite": str(model.dtype).removeprefix("torch."),
        "batches": f"alone = batched = padded{' = shared row' if facts.shares_rows else '; rows are not shared'}",
        "edges": "yes" if facts.edges is None else f"no: {facts.edges}",
    }
