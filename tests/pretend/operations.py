"""Operations of torch that move tensors between devices, take indices, or whose result the host must know."""

from __future__ import annotations

import torch

_aten = torch.ops.aten
MOVES = {_aten.copy_.default, _aten._to_copy.default, _aten._copy_from.default, _aten.set_.source_Tensor}
INDEXES = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}
# The host must know the answer, or its size, to go on.
ANSWERS = {
    _aten._local_scalar_dense.default: "item",
    _aten.is_nonzero.default: "item",
    _aten.equal.default: "equal",
    _aten.nonzero.default: "nonzero",
    _aten.masked_select.default: "masked_select",
    _aten.unique_consecutive.default: "unique",
    _aten._unique2.default: "unique",
}
