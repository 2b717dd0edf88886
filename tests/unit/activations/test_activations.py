"""Capture gives what one forward pass a prompt gives, whatever the batches, and keeps nothing else."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from headcodes.activations import packing
from headcodes.activations.capture import HeadActivations, capture
from headcodes.errors import HeadcodesError

FAMILIES = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
VOCAB = 900


def prompts(n: int = 9, seed: int = 0) -> list[list[int]]:
    """Prompts of wildly different lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [1, 2, 31, 7, 7, 90, 7, 12, 3, 50, 7, 11][:n]
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def one_by_one(model: Any, tokens: list[list[int]]) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
    """Each prompt's z per layer [seq, n_heads, d_head] and its logits, by forward hooks on a plain call."""
    z: list[list[torch.Tensor]] = []
    logits = []
    for ids in tokens:
        seen: list[torch.Tensor] = []
        hooks = [
            part.register_forward_hook(lambda _m, args, _o, seen=seen: seen.append(args[0][0]))
            for part in model.projections
        ]
        with torch.no_grad():
            logits.append(model.module(torch.tensor([ids])).logits[0, -1])
        for hook in hooks:
            hook.remove()
        z.append([part.view(len(ids), model.n_heads, model.d_head) for part in seen])
    return z, logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("memory_bytes", [1, 1 << 17, 1 << 30])
def test_batches_change_nothing(tiny_model: Any, family: str, memory_bytes: int) -> None:
    model, tokens = tiny_model(family), prompts()
    answers = [[5, 9, 5], [7], [], [8, 2], [1], [2], [3, 4], [899], [0]]
    z, logits = one_by_one(model, tokens)
    heads, found = capture(model, tokens, answer_ids=answers, memory_bytes=memory_bytes)
    assert found is not None
    assert heads.z.shape == (9, 12, model.d_head)
    for row, layers in enumerate(z):
        mean = torch.cat([part.mean(0) for part in layers])
        torch.testing.assert_close(heads.z[row], mean, atol=2e-6, rtol=2e-5)
        torch.testing.assert_close(found[row], logits[row][answers[row]], atol=2e-5, rtol=2e-5)


def test_positions(tiny_model: Any) -> None:
    model, tokens = tiny_model("qwen3"), prompts()
    z, _ = one_by_one(model, tokens)
    last, none = capture(model, tokens, positions="last")
    assert none is None
    given = [sorted({0, len(ids) // 2, len(ids) - 1}) for ids in tokens]
    some, _ = capture(model, tokens, positions=given)
    assert (last.positions, some.positions) == ("last", "given")
    for row, layers in enumerate(z):
        torch.testing.assert_close(last.z[row], torch.cat([part[-1] for part in layers]), atol=2e-6, rtol=2e-5)
        mean = torch.cat([part[given[row]].mean(0) for part in layers])
        torch.testing.assert_close(some.z[row], mean, atol=2e-6, rtol=2e-5)


def test_the_same_call_gives_the_same_bits(tiny_model: Any) -> None:
    model, tokens = tiny_model("llama"), prompts(12)
    first, second = capture(model, tokens, answer_ids=[[1, 2]] * 12), capture(model, tokens, answer_ids=[[1, 2]] * 12)
    assert torch.equal(first[0].z, second[0].z)
    assert all(torch.equal(a, b) for a, b in zip(first[1] or [], second[1] or [], strict=True))


def test_no_logits_are_computed_unless_asked_for(tiny_model: Any) -> None:
    model, seen = tiny_model("gemma2"), []
    hook = model.unembed.register_forward_hook(lambda _m, args, _o: seen.append(tuple(args[0].shape)))
    capture(model, prompts())
    assert seen == []
    capture(model, prompts(), answer_ids=[[1]] * 9)
    hook.remove()
    assert {shape[1] for shape in seen} == {1}
    assert sum(shape[0] for shape in seen) == 9


def test_batch_sizes_follow_from_shapes_alone() -> None:
    rows = packing.pack([[1] * length for length in (5, 3, 9, 3, 3, 100)], 0)

    def batches(memory_bytes: int, per_prompt: int = 0) -> list[list[int]]:
        cut = packing.cut([[row] for row in rows], 1000, per_prompt, memory_bytes)
        return [[row.prompts[0] for row in batch] for batch in cut]

    assert batches(3 * 3 * 1012) == [[1, 3, 4], [0], [2], [5]]
    assert batches(3 * 3 * 1012 - 1) == [[1, 3], [4], [0], [2], [5]]
    assert batches(3 * 3 * 1012, per_prompt=1) == [[1, 3], [4], [0], [2], [5]]
    assert batches(1 << 30) == [[1, 3, 4, 0, 2, 5]]


def test_a_batch_that_is_large_enough_takes_little_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_FULL_TOKENS", 32)
    rows = packing.pack([[1] * length for length in (16, 8, 17, 8, 8, 8, 16, 30)], 0)
    cut = [[len(row.ids) for row in batch] for batch in packing.cut([[row] for row in rows], 1, 0, 1 << 30)]
    # Four rows of 8 are enough, and a row of 16 would waste 32. Two of 16 are; 17 wastes 2: a sixteenth, no more.
    assert cut == [[8, 8, 8, 8], [16, 16, 17], [30]]


def alike(seed: int = 0) -> list[list[int]]:
    """Prompts in disorder: some share long beginnings, one is the beginning of another, two are the same."""
    generator = torch.Generator().manual_seed(seed)

    def some(n: int) -> list[int]:
        return torch.randint(3, VOCAB, (n,), generator=generator).tolist()

    start, other = some(12), some(20)
    return [
        [*start, *some(6)],
        [*other, *some(2)],
        some(5),
        [*start, *some(4)],
        [*other, 7],
        start,
        [*other, 7],
        [*other, *some(25)],
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", [None, "eager"])
def test_a_common_beginning_is_computed_once_and_changes_nothing(
    tiny_model: Any, family: str, attention: str | None
) -> None:
    model, tokens = tiny_model(family, attn_implementation=attention), alike()
    rows = packing.pack(tokens, model.longest_shared)
    assert sum(len(row.ids) for row in rows) < 0.75 * sum(map(len, tokens))
    assert sorted(prompt for row in rows for prompt in row.prompts) == list(range(8))
    answers = [[5, 9], [7], [1, 2, 3], [8], [], [4], [899, 0], [6]]
    given = [[0, len(ids) - 2] for ids in tokens]
    z, logits = one_by_one(model, tokens)
    n_tokens: list[int] = []
    hook = model.projections[0].register_forward_pre_hook(lambda _m, args: n_tokens.append(args[0][..., 0].numel()))
    heads, found = capture(model, tokens, answer_ids=answers)
    hook.remove()
    assert sum(n_tokens) == len(rows) * max(len(row.ids) for row in rows)
    last, some = capture(model, tokens, positions="last")[0], capture(model, tokens, positions=given)[0]
    for row, layers in enumerate(z):
        torch.testing.assert_close(heads.z[row], torch.cat([part.mean(0) for part in layers]), atol=3e-6, rtol=3e-5)
        torch.testing.assert_close(last.z[row], torch.cat([part[-1] for part in layers]), atol=3e-6, rtol=3e-5)
        mean = torch.cat([part[given[row]].mean(0) for part in layers])
        torch.testing.assert_close(some.z[row], mean, atol=3e-6, rtol=3e-5)
        torch.testing.assert_close((found or [])[row], logits[row][answers[row]], atol=2e-5, rtol=2e-5)


def test_rows_are_shared_only_where_that_is_sound_and_pays(tiny_model: Any) -> None:
    tokens = alike()
    separate = packing.pack(tokens, 0)
    assert [row.prompts for row in separate] == [[prompt] for prompt in range(8)]
    # Longer than a sliding window: the window would count tokens of the row, not of the prompt.
    windowed = tiny_model("mistral", sliding_window=16)
    assert windowed.longest_shared == 16
    assert all(len(row.prompts) == 1 for row in packing.pack(tokens, windowed.longest_shared))
    z, _ = one_by_one(windowed, tokens)
    heads, _ = capture(windowed, tokens)
    torch.testing.assert_close(heads.z[7], torch.cat([part.mean(0) for part in z[7]]), atol=3e-6, rtol=3e-5)
    # Nothing to save: one row a prompt, and no mask.
    unlike = [[a, b, 5] for a in range(3) for b in range(3)]
    assert [row.prompts for row in packing.pack(unlike, 99)] == [[prompt] for prompt in range(9)]
    rows = packing.pack([[1, 2, 3, end] for end in range(40)], 99)
    assert all(len(row.ids) <= 8 for row in rows)


def test_head_outputs_are_what_reaches_the_residual_stream(tiny_model: Any) -> None:
    model, tokens = tiny_model("gemma3_text"), prompts()
    outputs: list[torch.Tensor] = []
    hooks = [part.register_forward_hook(lambda _m, _a, out: outputs.append(out)) for part in model.projections]
    with torch.no_grad():
        model.module(torch.tensor([tokens[7]]))
    for hook in hooks:
        hook.remove()
    heads, _ = capture(model, tokens)
    written = heads.head_outputs().detach()
    assert written.shape == (9, 12, 32)
    for layer in range(3):
        total = written[7, 4 * layer : 4 * layer + 4].sum(0)
        torch.testing.assert_close(total, outputs[layer][0].mean(0), atol=1e-5, rtol=1e-4)
    part = heads.head_outputs([7, 2], [11, 0]).detach()
    torch.testing.assert_close(part, written[[7, 2]][:, [11, 0]])
    assert torch.equal(heads.subset([2, 2]).z, heads.z[[2, 2]])
    assert heads.n_component == 12


def test_bf16_is_kept_in_fp32_and_can_be_trained_on(tiny_hf: Any, tiny_tokenizer: Any) -> None:
    from headcodes.models.load import load_model

    hf = tiny_hf("llama")
    full = capture(load_model(hf, tokenizer=tiny_tokenizer), prompts())[0]
    heads, logits = capture(
        load_model(hf.to(torch.bfloat16), tokenizer=tiny_tokenizer), prompts(), answer_ids=[[1, 2]] * 9
    )
    assert isinstance(heads, HeadActivations)
    assert heads.z.dtype == torch.float32 == (logits or [torch.empty(0)])[0].dtype
    torch.testing.assert_close(heads.z, full.z, atol=0.05, rtol=0.1)
    # z comes out of inference mode: autograd must still be able to use it.
    weight = torch.ones(8, requires_grad=True)
    (heads.z @ weight).sum().backward()


def test_capture_holds_no_more_than_its_formula(tiny_model: Any) -> None:
    """docs: z is n_prompt * n_component * d_head * 4 bytes; what hooks see is gone before the next layer's."""
    model = tiny_model("llama")
    alive: list[Any] = []
    most = 0

    def watch(_module: Any, args: Any) -> None:
        nonlocal most
        alive.append(weakref.ref(args[0]))
        most = max(most, sum(ref() is not None for ref in alive))

    hooks = [part.register_forward_pre_hook(watch) for part in model.projections]
    heads, _ = capture(model, prompts())
    for hook in hooks:
        hook.remove()
    assert most == 1
    assert heads.z.untyped_storage().nbytes() == 9 * 12 * 8 * 4


@pytest.mark.parametrize(
    ("tokens", "kwargs", "reason"),
    [
        ([], {}, "must be prompts"),
        ([[1], []], {}, "prompt 1"),
        ([[1], [99999]], {}, "99999 in prompt 1"),
        ([[-1]], {}, "prompt 0"),
        ([[1]], {"positions": "first"}, "'first'"),
        ([[1, 2]], {"positions": [[2]]}, "prompt 0"),
        ([[1, 2]], {"positions": [[]]}, "prompt 0"),
        ([[1, 2]], {"positions": [[0], [1]]}, "2 for 1 prompts"),
        ([[1, 2]], {"answer_ids": []}, "0 for 1 prompts"),
    ],
)
def test_wrong_inputs_get_one_clear_message(tiny_model: Any, tokens: Any, kwargs: Any, reason: str) -> None:
    with pytest.raises(HeadcodesError, match=reason):
        capture(tiny_model(), tokens, **kwargs)
