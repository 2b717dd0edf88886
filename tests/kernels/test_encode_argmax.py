"""The Triton kernels against a plain fp64 statement: interpreted without a GPU, real with one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

POISON = -7
MARGIN = 64


def data(n, c, d_head, d_model, d_sae, n_sae, device, seed=0):
    """Inputs that lie inside larger tensors full of nan: whatever is read beyond a mask shows."""
    g = torch.Generator().manual_seed(seed)

    def inside_nan(*shape):
        outer = torch.full([size + 3 for size in shape], torch.nan, device=device)
        inner = outer[tuple(slice(0, size) for size in shape)]
        return inner.copy_(torch.randn(shape, generator=g))

    return SimpleNamespace(
        z=inside_nan(n, c, d_head),
        W_O=inside_nan(c, d_head, d_model).div_(d_head**0.5),
        W_enc=inside_nan(n_sae, d_model, d_sae).div_(d_model**0.5),
        bias=inside_nan(n_sae, c, d_sae).mul_(0.1),
    )


def folded(case):
    weight = torch.einsum("cdm,ams->acds", case.W_O.double(), case.W_enc.double()).float()
    outer = torch.full([size + 3 for size in weight.shape], torch.nan, device=weight.device)
    return outer[tuple(slice(0, size) for size in weight.shape)].copy_(weight)


def latents(case):
    x = torch.einsum("ncd,cdm->ncm", case.z.double(), case.W_O.double())
    return torch.einsum("ncm,ams->ancs", x, case.W_enc.double()) + case.bias.double()[:, None]


def guarded(shape, device):
    """A poisoned output between two poisoned margins, and a function that checks the margins."""
    n = torch.Size(shape).numel()
    memory = torch.full((n + 2 * MARGIN,), POISON, dtype=torch.int32, device=device)

    def check():
        assert (memory[:MARGIN] == POISON).all(), "written before the output"
        assert (memory[-MARGIN:] == POISON).all(), "written beyond the output"
        assert not (memory[MARGIN:-MARGIN] == POISON).any(), "codes left unwritten"

    return memory[MARGIN:-MARGIN].view(shape), check


def run(case, kernel, dead=-1):
    """Run one kernel on a case with guarded output; [n_sae, n, c]."""
    from headcodes_kernels import encode_argmax as host

    n_sae, c, _ = case.bias.shape
    out, check = guarded((n_sae, case.z.shape[0], c), case.z.device)
    if kernel == "folded":
        got = host.encode_argmax(case.z, folded(case), case.bias, dead=dead, out=out)
    else:
        got = host.encode_argmax_unfolded(case.z, case.W_O, case.W_enc, case.bias, dead=dead, out=out)
    check()
    assert got.data_ptr() == out.data_ptr()
    return got


def assert_codes(got, want, gap, least=0.5):
    """Exact wherever the best latent stands out by more than ``gap``; within ``gap`` of the best everywhere."""
    top = want.topk(2).values.clamp(min=0)
    clear = ((top[..., 0] - top[..., 1]) > gap) | (want.amax(-1) < -gap)
    assert clear.double().mean() >= least, "the test's own data are mostly ties"
    truth = torch.where(want.amax(-1) > 0, want.argmax(-1), -1).int()
    assert torch.equal(got[clear], truth[clear])
    reached = want.gather(-1, got.clamp(min=0).long()[..., None])[..., 0].clamp(min=0)
    assert (top[..., 0] - reached * (got >= 0) <= gap).all()


KERNELS = ["folded", "unfolded"]
SHAPES = [  # n, c, d_head, d_model, d_sae, n_sae: nothing a multiple of a block, then everything
    (17, 3, 48, 37, 100, 1),
    (33, 2, 17, 48, 17, 2),
    (1, 2, 5, 19, 3, 1),
    (16, 1, 32, 32, 32, 2),
    (5, 2, 20, 24, 72, 1),  # two tiles and a narrow one
    (5, 1, 20, 24, 8, 1),  # a narrow one alone
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_codes(device, kernel, shape):
    case = data(*shape, device)
    assert_codes(run(case, kernel), latents(case), gap=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_ties_go_to_the_lowest_latent(device, kernel):
    """Whole numbers, equal bit for bit; the best latent stands several times in one tile and in later ones."""
    case = data(5, 2, 3, 4, 70, 1, device)
    case.z.fill_(1)
    case.W_O.fill_(1)
    case.bias.zero_()
    case.W_enc.zero_()
    case.W_enc[:, :, [21, 25, 37, 69]] = 2
    case.W_enc[:, :, 3] = 1
    assert (run(case, kernel) == 21).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dead", [-1, 0])
def test_dead_rows(device, kernel, dead):
    case = data(20, 2, 8, 16, 40, 1, device)
    case.z[3:9] = 0
    case.bias.copy_(-case.bias.abs() - 0.01)
    case.z[9, 0] = 0
    case.bias[:, 0, 33] = 0  # a latent of exactly zero is dead too
    got = run(case, kernel, dead=dead)
    assert (got[:, 3:9] == dead).all()
    assert got[0, 9, 0] == dead
    assert (got[:, 10:] > 0).any()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_marked_and_no_others(device, kernel, value):
    from headcodes.codes.encode import NOT_FINITE

    case = data(20, 2, 8, 16, 40, 1, device)
    clean = run(case, kernel)
    case.z[4, 1, 7] = value
    got = run(case, kernel)
    assert got[0, 4, 1] == NOT_FINITE
    got[0, 4, 1] = clean[0, 4, 1]
    assert torch.equal(got, clean)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_latent_is_enough_to_mark_a_row(device, kernel, value):
    from headcodes.codes.encode import NOT_FINITE

    case = data(6, 2, 8, 16, 40, 1, device)
    case.bias[0, 1, 2] = value
    got = run(case, kernel)
    assert (got[0, :, 1] == NOT_FINITE).all()
    assert (got[0, :, 0] != NOT_FINITE).all()


@pytest.mark.parametrize("n", [4, 40], ids=["unfolded", "folded"])
def test_encode_on_triton_equals_encode_on_torch(device, n, monkeypatch):
    from headcodes.codes import encode as codes_module
    from headcodes.codes.encode import encode, folding_pays
    from headcodes_kernels import encode_argmax as host

    case = data(n, 3, 10, 30, 50, 2, device)
    activations = SimpleNamespace(z=case.z, W_O=case.W_O)
    saes = [
        SimpleNamespace(W_enc=case.W_enc[i], b_enc=case.bias[i, 0], b_dec=torch.full((30,), 0.1, device=device))
        for i in range(2)
    ]
    options = {"shift": torch.randn(3, 30).to(device) * 0.1, "scale": torch.rand(3).to(device) + 0.5}
    assert folding_pays(n, 10, 30, 50) == (n == 40)
    largest = []

    def watched(function):
        def call(z, *weights, **options):
            largest.extend(weight.numel() * 4 for weight in weights[:1])
            return function(z, *weights, **options)

        return call

    for name in ("encode_argmax", "encode_argmax_unfolded"):
        monkeypatch.setattr(host, name, watched(getattr(host, name)))
    # Two heads' weights in fp32 at once, of three: a large model's would be twice its own in bf16.
    monkeypatch.setattr(codes_module, "FOLDED_BYTES", 10_500 if n == 40 else 2400)
    got = encode(activations, saes, backend="triton", **options)
    assert len(largest) == 2
    assert max(largest) <= codes_module.FOLDED_BYTES
    assert torch.equal(got, encode(activations, saes, backend="torch", **options))
    assert torch.equal(encode(activations, saes[1], backend="triton", **options), got[1])


def test_no_prompts(device):
    from headcodes_kernels.encode_argmax import encode_argmax

    z = torch.empty(0, 2, 4, device=device)
    codes = encode_argmax(z, torch.empty(2, 4, 8, device=device), torch.empty(2, 8, device=device))
    assert codes.shape == (0, 2)


GOOD = {"z": (6, 2, 4), "weight": (2, 4, 16), "bias": (2, 16)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.zeros(6, 8)}, r"z must be float \[n_prompt, n_component, d_head\]"),
        ({"z": torch.zeros(6, 2, 4, dtype=torch.int32)}, "z must be float"),
        ({"z": torch.zeros(6, 4, 2).mT}, "z must have innermost stride 1"),
        ({"weight": torch.zeros(2, 5, 16)}, r"weight must be .* = \[2, 4, 16\]"),
        ({"weight": torch.zeros(2, 4, 16, dtype=torch.bfloat16)}, "weight must be torch.float32"),
        ({"bias": torch.zeros(2, 15)}, r"bias must be .* = \[2, 16\]"),
        ({"bias": torch.zeros(2, 16, dtype=torch.float64)}, "bias must be torch.float32"),
        ({"bias": torch.zeros(2, 16, device="meta")}, "bias must be on z's device"),
        ({"out": torch.zeros(6, 2)}, "out must be contiguous torch.int32"),
        ({"out": torch.zeros(2, 6, dtype=torch.int32).T}, "out must be contiguous torch.int32"),
    ],
)
def test_wrong_arguments(device, change, message):
    from headcodes_kernels.encode_argmax import encode_argmax

    arguments = {name: torch.zeros(shape, device=device) for name, shape in GOOD.items()}
    moved = {
        k: v.to(device) if isinstance(v, torch.Tensor) and v.device.type != "meta" else v for k, v in change.items()
    }
    with pytest.raises(ValueError, match=message):
        encode_argmax(**{**arguments, **moved})


def test_tensors_on_the_cpu_are_refused_outside_the_interpreter(monkeypatch):
    from headcodes_kernels import encode_argmax as host

    monkeypatch.setattr(host, "interpreted", lambda: False)
    arguments = {name: torch.zeros(shape) for name, shape in GOOD.items()}
    with pytest.raises(ValueError, match="the kernels run on CUDA tensors; got z on cpu"):
        host.encode_argmax(**arguments)


def test_one_configuration_in_the_interpreter(device):
    from headcodes_kernels.encode_argmax import _tuned, interpreted

    assert all((len(tuned.configs) == 1) == interpreted() for tuned in _tuned.values())


REAL = [  # n, c, d_head, d_model, d_sae, n_sae
    (500, 24, 64, 768, 200, 1),
    (500, 8, 128, 4096, 4096, 1),
    (130, 8, 80, 320, 200, 3),
    (10, 16, 64, 768, 200, 2),
    (40, 4, 320, 640, 100, 1),
]


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", REAL)
def test_real_sizes(device, kernel, shape):
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    case = data(*shape, device)
    assert_codes(run(case, kernel), latents(case), 1e-4, least=0.2)


@pytest.mark.gpu
def test_offsets_beyond_32_bits(device):
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    from headcodes_kernels.encode_argmax import encode_argmax

    n, c, d_head, d_sae = 2, 3, 16, 32
    memory = torch.zeros(2**31 + 2**20, dtype=torch.bfloat16, device=device)
    z = memory.as_strided((n, c, d_head), (2**31 - 64, 32, 1))
    z.copy_(torch.randn(n, c, d_head, device=device))
    weight = torch.randn(c, d_head, d_sae, device=device)
    bias = torch.ones(c, d_sae, device=device)
    want = torch.einsum("ncd,cds->ncs", z.double(), weight.double()) + 1
    assert_codes(encode_argmax(z, weight, bias), want, gap=1e-4)
