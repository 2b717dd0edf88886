"""Device code: encode, relu and argmax in one pass, so that latents never reach memory.

Both kernels run one program per (tile of prompts, autoencoder, head). Programs of one head are neighbours: they share
its weights, and autoencoders share its activations, through L2.
"""

# mypy: disable-error-code="no-untyped-def"
import triton
import triton.language as tl

# What a row gets whose largest latent is nan or infinite. The caller turns it into an error.
NOT_FINITE: tl.constexpr = tl.constexpr(-2147483648)
# Latents of a narrow tile, which takes what is left over by tiles of BLOCK_S: 200 cost 200, not 256.
NARROW: tl.constexpr = tl.constexpr(8)


@triton.jit
def _place(n_prompt, n_sae, BLOCK_N: tl.constexpr):
    """This program's rows of prompts, autoencoder and head."""
    pid = tl.program_id(0).to(tl.int64)
    n_tile = tl.cdiv(n_prompt, BLOCK_N)
    rows = pid % n_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    return rows, (pid // n_tile) % n_sae, pid // n_tile // n_sae


@triton.jit
def _z_tile(z_ptr, rows, d, n_prompt, d_head, stride_zn):
    mask = (rows < n_prompt)[:, None] & (d < d_head)[None, :]
    return tl.load(z_ptr + rows[:, None] * stride_zn + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _row_best(latents, columns):
    """Largest value per row, its lowest column (nan anywhere: value nan). ``columns`` numbers each entry."""
    top = tl.max(latents, 1)
    column = tl.min(tl.where(latents == top[:, None], columns, 2147483647), 1)
    n_nan = tl.sum((latents != latents).to(tl.int32), 1)  # noqa: PLR0124
    return tl.where(n_nan > 0, float("nan"), top), column


@triton.jit
def _store_codes(codes_ptr, rows, n_prompt, stride, top, code, dead):
    code = tl.where(top > 0, code, dead)
    # nan compares false both times.
    finite = (top > -float("inf")) & (top < float("inf"))
    code = tl.where(finite, code, NOT_FINITE)
    tl.store(codes_ptr + rows * stride, code, mask=rows < n_prompt)


@triton.jit
def _best(
    z_ptr, weight, bias, rows, d, begin, end, n_prompt, d_head, stride_zn, stride_wd, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, WIDTH: tl.constexpr
):  # fmt: skip
    """Each row's largest latent of begin to end, a whole number of tiles WIDTH latents wide, and the place of it."""
    s = tl.arange(0, WIDTH)
    # Running best of every lane on its own: three instructions an element, and rows are reduced once, at the end.
    best = tl.full((BLOCK_N, WIDTH), -float("inf"), tl.float32)
    first = tl.zeros((BLOCK_N, WIDTH), tl.int32)
    for start in range(begin, end, WIDTH):
        latents = tl.zeros((BLOCK_N, WIDTH), tl.float32)
        for at in range(0, d_head, BLOCK_D):
            z = _z_tile(z_ptr, rows, at + d, n_prompt, d_head, stride_zn)
            w = tl.load(weight + at * stride_wd + start + s[None, :], mask=(at + d < d_head)[:, None], other=0.0)
            latents = tl.dot(z, w, latents, input_precision="ieee")
        latents += tl.load(bias + start + s)[None, :]
        first = tl.where(latents > best, start, first)  # strictly: of equal latents the earlier stays
        best = tl.maximum(best, latents, propagate_nan=tl.PropagateNan.ALL)
    return _row_best(best, first + s[None, :])


@triton.jit(do_not_specialize=["n_prompt", "n_component", "n_sae", "dead"])
def encode_argmax_kernel(
    z_ptr,
    weight_ptr,
    bias_ptr,
    codes_ptr,
    n_prompt,
    n_component,
    n_sae,
    d_head,
    d_sae,
    stride_zn,
    stride_zc,
    stride_wa,
    stride_wc,
    stride_wd,
    stride_ba,
    stride_bc,
    dead,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    N_CLASS: tl.constexpr,  # only a key for the autotuner
):
    """codes[a, n, c] = argmax_s relu(z[n, c, :] . weight[a, c, :, s] + bias[a, c, s]).

    z [n_prompt, n_component, d_head], weight [n_sae, n_component, d_head, d_sae], bias [n_sae, n_component, d_sae],
    both fp32, codes [n_sae, n_prompt, n_component] int32, contiguous. Innermost strides are 1, and d_sae is a multiple
    of NARROW.
    """
    rows, sae, head = _place(n_prompt, n_sae, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    z_ptr += head * stride_zc
    weight = weight_ptr + sae * stride_wa + head * stride_wc + d.to(tl.int64)[:, None] * stride_wd
    bias = bias_ptr + sae * stride_ba + head * stride_bc
    tiled = d_sae // BLOCK_S * BLOCK_S
    top, code = _best(
        z_ptr, weight, bias, rows, d, 0, tiled, n_prompt, d_head, stride_zn, stride_wd, BLOCK_N, BLOCK_D, BLOCK_S
    )
    rest, place = _best(
        z_ptr, weight, bias, rows, d, tiled, d_sae, n_prompt, d_head, stride_zn, stride_wd, BLOCK_N, BLOCK_D, NARROW
    )
    code = tl.where(rest > top, place, code)
    top = tl.maximum(top, rest, propagate_nan=tl.PropagateNan.ALL)
    codes = codes_ptr + sae * n_prompt * n_component + head
    _store_codes(codes, rows, n_prompt, n_component, top, code, dead)


@triton.jit(do_not_specialize=["n_prompt", "n_component", "n_sae", "dead"])
def encode_argmax_unfolded_kernel(
    z_ptr,
    out_ptr,
    enc_ptr,
    bias_ptr,
    codes_ptr,
    n_prompt,
    n_component,
    n_sae,
    d_head,
    d_model,
    d_sae,
    stride_zn,
    stride_zc,
    stride_oc,
    stride_od,
    stride_ea,
    stride_em,
    stride_ba,
    stride_bc,
    dead,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    N_CLASS: tl.constexpr,  # only a key for the autotuner
):
    """codes[a, n, c] = argmax_s relu((z[n, c, :] . W_O[c]) . W_enc[a, :, s] + bias[a, c, s]).

    As encode_argmax_kernel, with W_O [n_component, d_head, d_model] and W_enc [n_sae, d_model, d_sae], and any d_sae. A
    tile of x = z . W_O lives in registers, and is made anew for every tile of latents.
    """
    rows, sae, head = _place(n_prompt, n_sae, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    m = tl.arange(0, BLOCK_M)
    s = tl.arange(0, BLOCK_S)
    z_ptr += head * stride_zc
    out = out_ptr + head * stride_oc + d.to(tl.int64)[:, None] * stride_od + m[None, :]
    enc = enc_ptr + sae * stride_ea + s[None, :]
    bias = bias_ptr + sae * stride_ba + head * stride_bc + s

    best = tl.full((BLOCK_N,), -float("inf"), tl.float32)
    code = tl.zeros((BLOCK_N,), tl.int32)
    for start in range(0, d_sae, BLOCK_S):
        inside = start + s < d_sae
        latents = tl.zeros((BLOCK_N, BLOCK_S), tl.float32)
        for at in range(0, d_model, BLOCK_M):
            x = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
            for deep in range(0, d_head, BLOCK_D):
                z = _z_tile(z_ptr, rows, deep + d, n_prompt, d_head, stride_zn)
                mask = (deep + d < d_head)[:, None] & (at + m < d_model)[None, :]
                o = tl.load(out + deep * stride_od + at, mask=mask, other=0.0)
                x = tl.dot(z, o, x, input_precision="ieee")
            e = tl.load(
                enc + (at + m).to(tl.int64)[:, None] * stride_em + start,
                mask=(at + m < d_model)[:, None] & inside[None, :],
                other=0.0,
            )
            latents = tl.dot(x, e, latents, input_precision="ieee")
        b = tl.load(bias + start, mask=inside, other=0.0)
        top, column = _row_best(latents + b[None, :], tl.zeros((BLOCK_N, 1), tl.int32) + s[None, :])
        code = tl.where(top > best, start + column, code)
        best = tl.maximum(best, top, propagate_nan=tl.PropagateNan.ALL)

    codes = codes_ptr + sae * n_prompt * n_component + head
    _store_codes(codes, rows, n_prompt, n_component, best, code, dead)
