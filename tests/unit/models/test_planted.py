"""Planted circuits, looked at with nothing but hooks on transformers' own modules and plain loops."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from headcodes import HeadcodesError, load_model
from headcodes.models import planted, planted_weights
from headcodes.prompts.tokens import tokenize

SMALL = ("planted-ioi", "planted-induction")
# The smallest size; the one the command line gives; one with more heads a layer than the plant has in all.
SIZES = ("planted-ioi-18", "planted-ioi", "planted-ioi-480", "planted-induction-18", "planted-induction")


@pytest.fixture(scope="module", params=SIZES)
def grown(request):
    return planted.load(request.param)


@pytest.fixture(scope="module", params=SMALL)
def small(request):
    return planted.load(request.param)


def prompts(plant, n, negative=None, seed=5):
    return tokenize(plant.task.build(plant.model.tokenizer, n, seed, negative), plant.model.tokenizer)


def projections(plant):
    return [layer.self_attn.o_proj for layer in plant.model.module.model.layers]


def run(plant, ids, edits=None):
    """Return the logits after the last token and every layer's head results; ``edits[layer](z)`` changes them."""
    seen = {}

    def hook(layer):
        def change(_module, args):
            z = args[0].clone()
            if edits and layer in edits:
                z = edits[layer](z)
            seen[layer] = z
            return (z,)

        return change

    with ExitStack() as stack, torch.no_grad():
        for layer, module in enumerate(projections(plant)):
            stack.callback(module.register_forward_pre_hook(hook(layer)).remove)
        logits = plant.model.module(torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits, seen


def logit_difference(tokens, i, logits):
    right, wrong = logits[tokens.answers[i]], logits[tokens.wrong_answers[i]]
    return float(right.double().logsumexp(0) - wrong.double().logsumexp(0))


def columns(head):
    return slice(head * planted_weights.D_HEAD, (head + 1) * planted_weights.D_HEAD)


def replace(heads, other):
    """Edits that give ``heads`` the results in ``other``."""
    edits = {}
    for layer in {layer for layer, _ in heads}:

        def edit(z, layer=layer):
            for own_layer, head in heads:
                if own_layer == layer:
                    z[..., columns(head)] = other[layer][..., columns(head)]
            return z

        edits[layer] = edit
    return edits


def distractors(plant):
    return [(int(layer), int(head)) for layer, head in np.argwhere(~plant.truth.labels)]


def test_the_task_is_done_and_the_negatives_are_undetermined(grown):
    tokens = prompts(grown, 40)
    clean = [logit_difference(tokens, i, run(grown, tokens.clean[i])[0]) for i in range(40)]
    corrupt = [logit_difference(tokens, i, run(grown, tokens.corrupt[i])[0]) for i in range(40)]
    assert tokens.bos
    assert tokens.equal_lengths
    assert min(clean) > 3
    assert abs(np.mean(corrupt)) < 0.1 * np.mean(clean)


def test_swapped_negatives_flip_the_answer(small):
    tokens = prompts(small, 20, "swapped")
    for i in range(20):
        assert logit_difference(tokens, i, run(small, tokens.corrupt[i])[0]) < -3


def test_patching_any_head_of_the_plant_matters_and_of_no_other(small):
    tokens = prompts(small, 4)
    effects = np.zeros((4, small.model.n_layers, small.model.n_heads))
    for i in range(4):
        clean_logits, _ = run(small, tokens.clean[i])
        _, corrupt_z = run(small, tokens.corrupt[i])
        clean = logit_difference(tokens, i, clean_logits)
        for layer in range(small.model.n_layers):
            for head in range(small.model.n_heads):
                logits, _ = run(small, tokens.clean[i], replace([(layer, head)], corrupt_z))
                effects[i, layer, head] = clean - logit_difference(tokens, i, logits)
    labels = small.truth.labels
    assert np.abs(effects[:, ~labels]).max() == 0
    assert np.abs(effects[:, labels]).min() > 0.1
    against = [head for role, heads in small.truth.roles.items() if role.startswith("negative") for head in heads]
    for head in small.truth.heads:
        assert (effects[:, head[0], head[1]] < 0).all() == (head in against)


@pytest.mark.parametrize("how", ["zero", "resample", "noise"])
def test_the_plant_alone_gives_the_same_logits(grown, how):
    tokens = prompts(grown, 3)
    others = distractors(grown)
    for i in range(3):
        logits, z = run(grown, tokens.clean[i])
        if how == "zero":
            other = {layer: torch.zeros_like(value) for layer, value in z.items()}
        elif how == "noise":
            other = {layer: torch.randn(value.shape, generator=torch.manual_seed(i)) for layer, value in z.items()}
        else:
            _, other = run(grown, tokens.corrupt[i])
        assert torch.equal(run(grown, tokens.clean[i], replace(others, other))[0], logits)


def test_without_the_plant_nothing_is_left(grown):
    tokens = prompts(grown, 3)
    for i in range(3):
        corrupt_logits, corrupt_z = run(grown, tokens.corrupt[i])
        patched = run(grown, tokens.clean[i], replace(grown.truth.heads, corrupt_z))[0]
        torch.testing.assert_close(patched, corrupt_logits, rtol=0, atol=1e-5)


def test_distractors_write_as_much_as_the_plant(grown):
    rows = [grown.model.tokenizer.encode(pair.clean) for pair in grown.task.build(grown.model.tokenizer, 64)]
    norms = np.zeros((len(rows), grown.model.n_layers, grown.model.n_heads))
    for i, row in enumerate(rows):
        for layer, z in run(grown, row)[1].items():
            weight = projections(grown)[layer].weight.detach()
            for head in range(grown.model.n_heads):
                output = z[0, :, columns(head)] @ weight[:, columns(head)].T
                norms[i, layer, head] = output.mean(0).norm()
    mean = norms.mean(0)
    labels = grown.truth.labels
    own = np.unique(mean[labels].round(4))
    nearest = np.abs(mean[~labels][:, None] / own - 1).min(1)
    assert nearest.max() < 0.01
    assert (norms[:, ~labels] > 0).all()


def test_some_distractors_tell_clean_from_corrupted_and_most_do_not(small):
    tokens = prompts(small, 8)
    changed = np.zeros((small.model.n_layers, small.model.n_heads), dtype=bool)
    for i in range(8):
        _, clean = run(small, tokens.clean[i])
        _, corrupt = run(small, tokens.corrupt[i])
        for layer, z in clean.items():
            gap = (z - corrupt[layer]).abs().amax((0, 1)).view(small.model.n_heads, -1).amax(1)
            changed[layer] |= gap.numpy() > 1e-3
    labels = small.truth.labels
    assert changed[labels].all()
    assert 0.1 < changed[~labels].mean() < 0.5


def test_gradients_say_the_same(small):
    """A method that uses gradients finds its queries, keys and values where any Llama has them."""
    tokens = prompts(small, 1)
    module = small.model.module
    module.requires_grad_(True)
    logits = module(torch.tensor([tokens.clean[0]]), use_cache=False).logits[0, -1]
    (logits[tokens.answers[0]].sum() - logits[tokens.wrong_answers[0]].sum()).backward()
    for layer, block in enumerate(module.model.layers):
        for slot in ("q_proj", "k_proj", "v_proj"):
            gradient = getattr(block.self_attn, slot).weight.grad.view(small.model.n_heads, -1).abs().amax(1)
            assert not gradient[torch.tensor(~small.truth.labels[layer])].any()
    values = [
        module.model.layers[layer].self_attn.v_proj.weight.grad[columns(head)].abs().max()
        for layer, head in small.truth.heads
    ]
    assert min(values) > 1e-3
    module.zero_grad()


def test_the_truth_names_later_readers(grown):
    truth = grown.truth
    assert truth.labels.shape == (grown.model.n_layers, grown.model.n_heads)
    assert len(truth.heads) == sum(len(heads) for heads in truth.roles.values())
    assert all(source in truth.heads and target in truth.heads for source, target in truth.pairs)
    assert all(source[0] < target[0] for source, target in truth.pairs)
    assert {head for pair in truth.pairs for head in pair} == set(truth.heads)


def test_the_same_model_every_time():
    first, second = planted.load("planted-ioi-24"), planted.load("planted-ioi-24")
    state = second.model.module.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.model.module.state_dict().items())
    assert first.model.checksum == second.model.checksum
    assert first.truth == second.truth
    assert planted.load("planted-ioi", n_heads_total=24).model.checksum == first.model.checksum


def test_models_are_opened_by_name():
    model = load_model("planted-ioi", device="cpu")
    assert (model.name, model.n_components, model.d_head) == ("planted-ioi-48", 48, planted_weights.D_HEAD)
    assert model.dtype == torch.float32
    assert not model.module.training
    assert load_model("planted-ioi-18", device="cpu", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(HeadcodesError, match="revision"):
        load_model("planted-ioi", revision="main")


def test_a_cache_gives_the_same_logits(small):
    """Positions come from rotary embedding, so a prompt can be run in two pieces."""
    ids = torch.tensor([prompts(small, 1).clean[0]])
    with torch.no_grad():
        whole = small.model.module(ids).logits[0, -1]
        first = small.model.module(ids[:, :9], use_cache=True)
        rest = small.model.module(ids[:, 9:], past_key_values=first.past_key_values).logits[0, -1]
    torch.testing.assert_close(rest, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("planted-nothing", {}, "planted-nothing"),
        ("planted-ioi-", {}, "planted-ioi-"),
        ("planted-ioi-47", {}, "47 heads"),
        ("planted-ioi-0", {}, "0 heads"),
        ("planted-ioi-48", {"n_heads_total": 50}, "48 and 50"),
    ],
)
def test_what_cannot_be_planted_is_refused(name, options, said):
    with pytest.raises(HeadcodesError, match=said):
        planted.load(name, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["planted-ioi-4800", "planted-induction-4800"])
def test_thousands_of_heads(name):
    plant = planted.load(name)
    assert plant.model.n_components == 4800
    tokens = prompts(plant, 4)
    others = distractors(plant)
    for i in range(4):
        logits, _ = run(plant, tokens.clean[i])
        _, corrupt_z = run(plant, tokens.corrupt[i])
        assert torch.equal(run(plant, tokens.clean[i], replace(others, corrupt_z))[0], logits)
        for head in plant.truth.heads:
            patched = run(plant, tokens.clean[i], replace([head], corrupt_z))[0]
            assert abs(logit_difference(tokens, i, patched) - logit_difference(tokens, i, logits)) > 0.1
