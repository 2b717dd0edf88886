"""Codes on the torch backend, against a plain fp64 statement of the formula that stores everything."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from headcodes.codes import encode as codes_module
from headcodes.codes.encode import encode, folding_pays, resolve_backend
from headcodes.errors import HeadcodesError, HeadcodesWarning


def heads(n, c, d_head, d_model, seed=0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, c, d_head, generator=g)
    W_O = torch.randn(c, d_head, d_model, generator=g) / d_head**0.5
    return SimpleNamespace(z=z.to(dtype), W_O=W_O.to(dtype))


def autoencoder(d_model, d_sae, seed=1):
    g = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        W_enc=torch.randn(d_model, d_sae, generator=g) / d_model**0.5,
        b_enc=torch.randn(d_sae, generator=g) * 0.1,
        b_dec=torch.randn(d_model, generator=g) * 0.1,
    )


def preactivations(activations, sae, shift=None, scale=None):
    x = torch.einsum("ncd,cdm->ncm", activations.z.double(), activations.W_O.double())
    if shift is not None:
        x = x - shift.double()
    if scale is not None:
        x = x * torch.as_tensor(scale, dtype=torch.float64).reshape(-1, 1)
    return (x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()


def assert_codes(codes, pre, dead=-1, gap=1e-4):
    """Codes are exact wherever the two largest latents differ by more than ``gap``; elsewhere nearly largest."""
    latent = pre.relu()
    assert codes.dtype == torch.int32
    assert codes.shape == latent.shape[:2]
    top = latent.topk(2).values
    truth = latent.argmax(-1)
    clear = (top[..., 0] - top[..., 1] > gap) & (top[..., 0] > gap)
    assert (clear | (pre.amax(-1) < -gap)).double().mean() > 0.5, "the test's own data are mostly ties"
    assert torch.equal(codes[clear], truth[clear].int())
    assert (codes[pre.amax(-1) < -gap] == dead).all()
    loss = top[..., 0] - latent.gather(-1, codes.clamp(min=0).long()[..., None])[..., 0]
    assert (loss <= gap).all()


SHAPES = [  # n, c, d_head, d_model, d_sae: both sides of the cost model, nothing a power of two
    (100, 6, 17, 48, 100),
    (3, 7, 24, 65, 33),
    (1, 1, 1, 1, 2),
    (37, 5, 64, 96, 200),
    (300, 3, 16, 40, 700),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", ["plain", "number", "heads"])
def test_matches_the_stored_formula(shape, affine):
    n, c, d_head, d_model, d_sae = shape
    a, sae = heads(n, c, d_head, d_model), autoencoder(d_model, d_sae)
    shift = {"plain": None, "number": None}.get(affine, torch.randn(c, d_model, generator=torch.manual_seed(3)))
    scale = {"plain": None, "number": 0.3}.get(affine, torch.rand(c, generator=torch.manual_seed(4)) + 0.5)
    got = encode(a, sae, shift=shift, scale=scale)
    want = preactivations(a, sae, shift, scale)
    if min(shape) > 1:
        assert_codes(got, want)
    else:
        assert torch.equal(got, torch.where(want.amax(-1) > 0, want.argmax(-1), -1).int())


@pytest.mark.parametrize("dead", [-1, 0])
def test_rows_without_an_active_latent_get_the_code_of_the_dead(dead):
    a, sae = heads(60, 5, 16, 48), autoencoder(48, 40)
    sae.b_enc -= 2.2
    want = preactivations(a, sae)
    assert 0.2 < (want.amax(-1) < 0).double().mean() < 0.8, "the test's own data are all alive, or all dead"
    assert_codes(encode(a, sae, dead=dead), want, dead)


@pytest.mark.parametrize(
    ("shape", "fold"),
    [((4, 40, 12, 30, 530), False), ((60, 40, 12, 30, 530), True), ((30, 200, 8, 200, 16), True)],
    ids=["unfolded", "folded", "folded-wide"],
)
def test_tiles_do_not_change_codes_and_bound_every_intermediate(monkeypatch, shape, fold):
    n, c, d_head, d_model, d_sae = shape
    a, sae = heads(n, c, d_head, d_model, dtype=torch.bfloat16), autoencoder(d_model, d_sae)
    shift = torch.randn(c, d_model, generator=torch.manual_seed(3))
    assert folding_pays(n, d_head, d_model, d_sae) == fold
    whole = encode(a, sae, shift=shift)
    tile = 4096
    monkeypatch.setattr(codes_module, "TILE_ELEMENTS", tile)

    class Largest(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else [out]:
                if isinstance(t, torch.Tensor) and t._base is None and t.data_ptr() != shift.data_ptr():
                    self.largest = max(self.largest, t.numel())
            return out

    # A tile is at least 128 latents of all prompts wide; the encoder is as large as it was given.
    bound = max(2 * tile, n * 128, sae.W_enc.numel())
    with Largest() as seen:
        tiled = encode(a, sae, shift=shift)
    assert torch.equal(tiled, whole)
    assert seen.largest <= bound, "an intermediate is larger than a tile"
    assert n * c * d_sae > 4 * bound


def test_ties_go_to_the_lowest_latent_across_tiles(monkeypatch):
    """Whole numbers, so that equal latents are equal bit for bit; the same best latent stands in several tiles."""
    monkeypatch.setattr(codes_module, "TILE_ELEMENTS", 1)
    d_sae = 400
    a = SimpleNamespace(z=torch.ones(1, 2, 3).expand(200, 2, 3).contiguous(), W_O=torch.ones(2, 3, 4))
    W_enc = torch.zeros(4, d_sae)
    W_enc[:, [131, 140, 300, 399]] = 2.0
    W_enc[:, 5] = 1.0
    sae = SimpleNamespace(W_enc=W_enc, b_enc=torch.zeros(d_sae), b_dec=torch.zeros(4))
    assert (encode(a, sae) == 131).all()


def test_dead_rows():
    a = SimpleNamespace(z=torch.tensor([[[1.0]], [[-1.0]], [[0.0]]]), W_O=torch.ones(1, 1, 1))
    sae = SimpleNamespace(W_enc=torch.tensor([[1.0, 2.0]]), b_enc=torch.zeros(2), b_dec=torch.zeros(1))
    codes = encode(a, sae)
    assert codes.flatten().tolist() == [1, -1, -1]
    paper = encode(a, sae, dead=0)
    assert paper.flatten().tolist() == [1, 0, 0]
    assert torch.equal(paper, codes.clamp(min=0))
    assert encode(a, sae, scale=1e-3, shift=torch.full((1, 1), -2.0)).flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize("n", [4, 60])
def test_several_autoencoders_equal_one_by_one(n):
    a = heads(n, 5, 12, 30)
    saes = [autoencoder(30, 90, seed=s) for s in range(3)]
    shift = torch.randn(3, 5, 30, generator=torch.manual_seed(3))
    scale = torch.rand(3, 5, generator=torch.manual_seed(4)) + 0.5
    got = encode(a, saes, shift=shift, scale=scale)
    assert got.shape == (3, n, 5)
    for i, sae in enumerate(saes):
        assert torch.equal(got[i], encode(a, sae, shift=shift[i], scale=scale[i]))
        assert torch.equal(encode(a, saes, shift=shift[0])[i], encode(a, sae, shift=shift[0]))
    assert encode(a, saes[:1]).shape == (1, n, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_activations_of_any_float_dtype_are_computed_in_fp32(dtype):
    a, sae = heads(40, 6, 16, 48, dtype=dtype), autoencoder(48, 60)
    assert_codes(encode(a, sae), preactivations(a, sae))


def test_a_view_of_activations_and_no_prompts():
    a, sae = heads(40, 6, 16, 48), autoencoder(48, 60)
    view = SimpleNamespace(z=a.z[::2, 1:], W_O=a.W_O[1:])
    assert torch.equal(encode(view, sae), encode(a, sae)[::2, 1:])
    assert encode(SimpleNamespace(z=a.z[:0], W_O=a.W_O), sae).shape == (0, 6)


@pytest.mark.parametrize(
    "shape",
    [(500, 3, 64, 576, 200), (10, 3, 64, 576, 200), (70, 3, 64, 64, 64), (70, 2, 64, 4096, 64), (2, 2, 8, 8, 8)],
)
def test_the_cost_model_chooses_the_way_that_does_less_arithmetic(shape):
    n, c, d_head, d_model, d_sae = shape
    a, sae = heads(n, c, d_head, d_model), autoencoder(d_model, d_sae)
    encoder = codes_module._Encoder(sae, None, None, a.z.device)
    flops = {}
    for fold, tiles in ((True, codes_module._folded_tiles), (False, codes_module._unfolded_tiles)):
        with FlopCounterMode(display=False) as counter:
            for _ in tiles(a.z, a.W_O, encoder):
                pass
        flops[fold] = counter.get_total_flops()
    chosen = folding_pays(n, d_head, d_model, d_sae)
    assert flops[chosen] <= flops[not chosen]


@pytest.mark.parametrize("n", [4, 60])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_named(n, value):
    a, sae = heads(n, 5, 12, 30), autoencoder(30, 90)
    a.z[2, 3, 4] = value
    with pytest.raises(HeadcodesError, match="1 rows with nan or infinity, first prompt 2, component 3"):
        encode(a, sae)


def test_nan_in_one_tile_is_not_forgotten_in_the_next():
    whole = slice(None)
    tiles = [torch.tensor([[[0.0, torch.nan], [0.0, 1.0]]]), torch.tensor([[[0.0, 2.0], [2.0, 0.0]]])]
    codes = torch.zeros(2, 1, dtype=torch.int32)
    codes_module._running_argmax(((whole, whole, 2 * i, tile) for i, tile in enumerate(tiles)), -1, codes)
    assert codes.flatten().tolist() == [codes_module.NOT_FINITE, 2]


def test_an_autoencoder_that_is_not_finite_is_refused():
    a, sae = heads(8, 5, 12, 30), autoencoder(30, 90)
    sae.W_enc[3, 80] = float("nan")
    with pytest.raises(HeadcodesError, match="weights must be finite"):
        encode(a, sae)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": torch.zeros(8, 5)}, "z must be a float tensor"),
        ({"z": torch.zeros(8, 5, 12, dtype=torch.int64)}, "z must be a float tensor"),
        ({"W_O": torch.zeros(4, 12, 30)}, "W_O must be a float tensor"),
        ({"W_O": torch.zeros(5, 12, 31)}, "every autoencoder must have W_enc"),
        ({"sae": []}, "at least one autoencoder"),
        ({"sae": [autoencoder(30, 90), autoencoder(30, 91)]}, r"d_sae\] = \[30, 90\]"),
        ({"shift": torch.zeros(5, 31)}, r"shift must have shape \[5, 30\]"),
        ({"scale": torch.ones(4)}, r"scale must have shape \[5\]"),
        ({"scale": 0.0}, "scale must be positive"),
        ({"scale": torch.tensor([1.0, 1.0, -1.0, 1.0, 1.0])}, "scale must be positive"),
        ({"scale": float("nan")}, "scale must be positive"),
        ({"scale": float("inf")}, "scale must be positive"),
        ({"dead": -2}, "dead must be -1 or 0"),
        ({"backend": "cuda"}, "backend must be one of auto, torch, triton"),
    ],
)
def test_wrong_arguments(change, message):
    a = heads(8, 5, 12, 30)
    arguments = {"sae": autoencoder(30, 90), **change}
    a.z, a.W_O = arguments.pop("z", a.z), arguments.pop("W_O", a.W_O)
    with pytest.raises(HeadcodesError, match=message):
        encode(a, **arguments)


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_backend_auto(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("HEADCODES_BACKEND", raising=False)
    assert resolve_backend("auto", CPU) == "torch"
    assert resolve_backend("auto", CUDA) == "triton"
    monkeypatch.setitem(sys.modules, "headcodes_kernels.encode_argmax", None)
    assert resolve_backend("auto", CUDA) == "torch"


@pytest.mark.parametrize(
    ("capability", "compilers", "reason"),
    [((7, 5), "gcc", "compute capability 7.5"), ((9, 0), "", "no C compiler"), ((9, 0), "gcc", None)],
)
def test_backend_auto_asks_whether_triton_can_compile(monkeypatch, capability, compilers, reason):
    pytest.importorskip("triton")
    from headcodes.codes import encode as codes_module

    monkeypatch.delenv("HEADCODES_BACKEND", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("headcodes_kernels.encode_argmax.interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr("shutil.which", lambda name: name if name == compilers else None)
    assert resolve_backend("auto", CUDA) == ("torch" if reason else "triton")
    if reason:
        assert reason in str(codes_module._why_not_triton(CUDA))
        with pytest.raises(HeadcodesError, match=reason):
            resolve_backend("triton", CUDA)
        with pytest.warns(HeadcodesWarning, match=f"more slowly than in Triton: .*{reason}"):
            assert codes_module._announced("auto", CUDA) == "torch"
        monkeypatch.setenv("HEADCODES_BACKEND", "torch")
    assert codes_module._announced("auto", CUDA) == ("torch" if reason else "triton")  # as asked: no warning


def test_backend_from_the_environment_overrides_auto_only(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("HEADCODES_BACKEND", "torch")
    assert resolve_backend("auto", CUDA) == "torch"
    assert resolve_backend("triton", CUDA) == "triton"
    monkeypatch.setenv("HEADCODES_BACKEND", "tpu")
    with pytest.raises(HeadcodesError, match="HEADCODES_BACKEND must be one of"):
        resolve_backend("auto", CPU)
    assert resolve_backend("torch", CPU) == "torch"


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_a_named_backend_is_refused_with_the_reason(monkeypatch, how):
    pytest.importorskip("triton")
    backend = "triton"
    if how == "environment":
        monkeypatch.setenv("HEADCODES_BACKEND", "triton")
        backend = "auto"
    monkeypatch.setattr("headcodes_kernels.encode_argmax.interpreted", lambda: False)
    with pytest.raises(HeadcodesError, match="tensors on cpu, where Triton makes no code"):
        encode(heads(8, 5, 12, 30), autoencoder(30, 90), backend=backend)
    monkeypatch.setitem(sys.modules, "headcodes_kernels.encode_argmax", None)
    with pytest.raises(HeadcodesError, match="no importable triton"):
        resolve_backend(backend, CUDA)
