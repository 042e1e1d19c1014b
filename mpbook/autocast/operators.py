"""The operators whose behaviour under autocast is measured, one line each.

An `Operator` is a name, its family, a call, and the shapes of the floating tensors that the call
takes.  Whatever else a call needs (class numbers, indices, sizes) it makes itself, so that
`mpbook.autocast.policy` can feed every operator alike and change nothing but the dtype.

The names are those of ``torch.nn.functional`` and ``torch``, without the module.  To ask about an
operator of your own, write ``Operator("mine", "elementwise", my_function, ((8,),))``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """One operator: ``call`` takes one floating tensor for each of ``shapes``.

    A call returns a tensor, or a tuple that begins with one.
    """

    name: str
    family: str
    call: Callable[..., Any]
    shapes: tuple[Shape, ...]


def _family(family: str, rows: Mapping[str, tuple[Any, ...]]) -> tuple[Operator, ...]:
    """Operators from ``{name: (call, shape, shape, ...)}``."""
    return tuple(Operator(name, family, row[0], row[1:]) for name, row in rows.items())


def _zeros(x: Tensor) -> Tensor:
    """A class number or an index for each row of ``x``: all 0, which is always in range."""
    return torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)


def _signs(x: Tensor) -> Tensor:
    """A target of +1 for each row of ``x``."""
    return torch.ones(x.shape[0], dtype=torch.int64, device=x.device)


_VECTOR, _SQUARE, _BATCH = (4,), (4, 4), (2, 4, 4)
_SIGNAL, _IMAGE, _VOLUME = (1, 2, 8), (1, 2, 8, 8), (1, 2, 4, 4, 4)
_HEADS = (1, 2, 4, 8)

_PRODUCTS = {
    "linear": (F.linear, _SQUARE, _SQUARE, _VECTOR),
    "matmul": (torch.matmul, _SQUARE, _SQUARE),
    "mm": (torch.mm, _SQUARE, _SQUARE),
    "bmm": (torch.bmm, _BATCH, _BATCH),
    "mv": (torch.mv, _SQUARE, _VECTOR),
    "addmm": (torch.addmm, _SQUARE, _SQUARE, _SQUARE),
    "addmv": (torch.addmv, _VECTOR, _SQUARE, _VECTOR),
    "addr": (torch.addr, _SQUARE, _VECTOR, _VECTOR),
    "addbmm": (torch.addbmm, _SQUARE, _BATCH, _BATCH),
    "baddbmm": (torch.baddbmm, _BATCH, _BATCH, _BATCH),
    "einsum": (lambda a, b: torch.einsum("ij,jk", a, b), _SQUARE, _SQUARE),
    "tensordot": (lambda a, b: torch.tensordot(a, b, 1), _SQUARE, _SQUARE),
    "dot": (torch.dot, _VECTOR, _VECTOR),
    "vdot": (torch.vdot, _VECTOR, _VECTOR),
    "linalg.vecdot": (torch.linalg.vecdot, _SQUARE, _SQUARE),
    "linalg.multi_dot": (
        lambda *factors: torch.linalg.multi_dot(factors),
        _SQUARE,
        _SQUARE,
        _SQUARE,
    ),
    "bilinear": (F.bilinear, _SQUARE, _SQUARE, _BATCH),
    "prelu": (F.prelu, _SQUARE, (1,)),
}

_CONVOLUTIONS = {
    "conv1d": (F.conv1d, _SIGNAL, (2, 2, 3)),
    "conv2d": (F.conv2d, _IMAGE, (2, 2, 3, 3)),
    "conv3d": (F.conv3d, _VOLUME, (2, 2, 3, 3, 3)),
    "conv_transpose1d": (F.conv_transpose1d, _SIGNAL, (2, 2, 3)),
    "conv_transpose2d": (F.conv_transpose2d, _IMAGE, (2, 2, 3, 3)),
    "conv_transpose3d": (F.conv_transpose3d, _VOLUME, (2, 2, 3, 3, 3)),
}

_ATTENTION = {
    "scaled_dot_product_attention": (F.scaled_dot_product_attention, _HEADS, _HEADS, _HEADS),
    "lstm_cell": (
        lambda x, hidden, cell, *weights: torch.lstm_cell(x, (hidden, cell), *weights),
        *(_SQUARE, _SQUARE, _SQUARE, (16, 4), (16, 4)),
    ),
    "gru_cell": (torch.gru_cell, _SQUARE, _SQUARE, (12, 4), (12, 4)),
    "rnn_tanh_cell": (torch.rnn_tanh_cell, _SQUARE, _SQUARE, _SQUARE, _SQUARE),
}

_ELEMENTWISE = {
    "exp": (torch.exp, _VECTOR),
    "expm1": (torch.expm1, _VECTOR),
    "log": (torch.log, _VECTOR),
    "log2": (torch.log2, _VECTOR),
    "log10": (torch.log10, _VECTOR),
    "log1p": (torch.log1p, _VECTOR),
    "pow": (lambda x: x**2, _VECTOR),
    "pow with a number as base": (lambda x: 2**x, _VECTOR),
    "square": (torch.square, _VECTOR),
    "sqrt": (torch.sqrt, _VECTOR),
    "rsqrt": (torch.rsqrt, _VECTOR),
    "reciprocal": (torch.reciprocal, _VECTOR),
    "division of a number": (lambda x: 1 / x, _VECTOR),
    "acos": (torch.acos, _VECTOR),
    "asin": (torch.asin, _VECTOR),
    "tan": (torch.tan, _VECTOR),
    "cosh": (torch.cosh, _VECTOR),
    "sinh": (torch.sinh, _VECTOR),
    "erfinv": (torch.erfinv, _VECTOR),
    "relu": (F.relu, _VECTOR),
    "gelu": (F.gelu, _VECTOR),
    "silu": (F.silu, _VECTOR),
    "tanh": (torch.tanh, _VECTOR),
    "sigmoid": (torch.sigmoid, _VECTOR),
    "softplus": (F.softplus, _VECTOR),
    "dropout": (lambda x: F.dropout(x, 0.5, training=True), _VECTOR),
}

_REDUCTIONS = {
    "sum": (torch.sum, _SQUARE),
    "sum over a dimension": (lambda x: x.sum(0), _SQUARE),
    "mean": (torch.mean, _SQUARE),
    "var": (torch.var, _SQUARE),
    "std": (torch.std, _SQUARE),
    "prod": (torch.prod, _SQUARE),
    "cumsum": (lambda x: x.cumsum(0), _SQUARE),
    "cumprod": (lambda x: x.cumprod(0), _SQUARE),
    "amax": (torch.amax, _SQUARE),
    "logsumexp": (lambda x: x.logsumexp(0), _SQUARE),
    "norm": (torch.norm, _SQUARE),
    "linalg.vector_norm": (torch.linalg.vector_norm, _SQUARE),
    "linalg.matrix_norm": (torch.linalg.matrix_norm, _SQUARE),
    "renorm": (lambda x: x.renorm(2, 0, 1.0), _SQUARE),
    "trace": (torch.trace, _SQUARE),
    "quantile": (lambda x: x.quantile(0.5), _SQUARE),
    "dist": (torch.dist, _VECTOR, _VECTOR),
    "cdist": (torch.cdist, _SQUARE, _SQUARE),
}

_NORMS = {
    "softmax": (lambda x: x.softmax(-1), _SQUARE),
    "log_softmax": (lambda x: x.log_softmax(-1), _SQUARE),
    "layer_norm": (lambda x: F.layer_norm(x, (4,)), _SQUARE),
    "rms_norm": (lambda x: F.rms_norm(x, (4,)), _SQUARE),
    "group_norm": (lambda x: F.group_norm(x, 2), _IMAGE),
    "batch_norm": (lambda x: F.batch_norm(x, None, None, training=True), _IMAGE),
    "normalize": (F.normalize, _SQUARE),
}

_LOSSES = {
    "mse_loss": (F.mse_loss, _SQUARE, _SQUARE),
    "l1_loss": (F.l1_loss, _SQUARE, _SQUARE),
    "smooth_l1_loss": (F.smooth_l1_loss, _SQUARE, _SQUARE),
    "huber_loss": (F.huber_loss, _SQUARE, _SQUARE),
    "kl_div": (lambda x, y: F.kl_div(x, y, reduction="batchmean"), _SQUARE, _SQUARE),
    "poisson_nll_loss": (F.poisson_nll_loss, _SQUARE, _SQUARE),
    "binary_cross_entropy": (F.binary_cross_entropy, _VECTOR, _VECTOR),
    "binary_cross_entropy_with_logits": (F.binary_cross_entropy_with_logits, _VECTOR, _VECTOR),
    "cross_entropy": (lambda x: F.cross_entropy(x, _zeros(x)), _SQUARE),
    "nll_loss": (lambda x: F.nll_loss(x, _zeros(x)), _SQUARE),
    "cosine_similarity": (F.cosine_similarity, _SQUARE, _SQUARE),
    "cosine_embedding_loss": (
        lambda x, y: F.cosine_embedding_loss(x, y, _signs(x)),
        *(_SQUARE, _SQUARE),
    ),
    "multi_margin_loss": (lambda x: F.multi_margin_loss(x, _zeros(x)), _SQUARE),
    "soft_margin_loss": (F.soft_margin_loss, _VECTOR, _VECTOR),
    "hinge_embedding_loss": (lambda x: F.hinge_embedding_loss(x, _signs(x)), _VECTOR),
    "margin_ranking_loss": (lambda x, y: F.margin_ranking_loss(x, y, _signs(x)), _VECTOR, _VECTOR),
    "triplet_margin_loss": (F.triplet_margin_loss, _SQUARE, _SQUARE, _SQUARE),
}

_SEVERAL_INPUTS = {
    "add": (torch.add, _VECTOR, _VECTOR),
    "mul": (torch.mul, _VECTOR, _VECTOR),
    "addcdiv": (torch.addcdiv, _VECTOR, _VECTOR, _VECTOR),
    "addcmul": (torch.addcmul, _VECTOR, _VECTOR, _VECTOR),
    "atan2": (torch.atan2, _VECTOR, _VECTOR),
    "pow of two tensors": (torch.pow, _VECTOR, _VECTOR),
    "cross": (lambda a, b: torch.cross(a, b, dim=-1), (2, 3), (2, 3)),
    "cat": (lambda *parts: torch.cat(parts), _VECTOR, _VECTOR),
    "stack": (lambda *parts: torch.stack(parts), _VECTOR, _VECTOR),
    "where": (lambda a, b: torch.where(_zeros(a) > 0, a, b), _VECTOR, _VECTOR),
    "index_put": (lambda a, b: torch.index_put(a, (_zeros(a),), b), _VECTOR, _VECTOR),
    "index_copy": (lambda a, b: torch.index_copy(a, 0, _zeros(b), b), _VECTOR, (1,)),
    "scatter_add": (lambda a, b: torch.scatter_add(a, 0, _zeros(b), b), _VECTOR, _VECTOR),
}

_IMAGES = {
    "embedding": (lambda weight: F.embedding(_zeros(weight), weight), _SQUARE),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), _IMAGE),
    "max_pool3d": (lambda x: F.max_pool3d(x, 2), _VOLUME),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), _IMAGE),
    "avg_pool3d": (lambda x: F.avg_pool3d(x, 2), _VOLUME),
    "adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 2), _IMAGE),
    "interpolate, nearest": (lambda x: F.interpolate(x, scale_factor=2), _IMAGE),
    "interpolate, bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), _IMAGE),
    "grid_sample": (lambda x, at: F.grid_sample(x, at, align_corners=False), _IMAGE, (1, 2, 2, 2)),
    "pad, reflect": (lambda x: F.pad(x, (1, 1), "reflect"), _SIGNAL),
}

_LINEAR_ALGEBRA = {
    "fft.fft": (torch.fft.fft, _SQUARE),
    "fft.rfft": (torch.fft.rfft, _SQUARE),
    "linalg.inv": (torch.linalg.inv, _SQUARE),
    "linalg.cholesky": (torch.linalg.cholesky, _SQUARE),
    "linalg.qr": (torch.linalg.qr, _SQUARE),
    "linalg.svd": (torch.linalg.svd, _SQUARE),
    "linalg.eigh": (torch.linalg.eigh, _SQUARE),
    "linalg.det": (torch.linalg.det, _SQUARE),
    "linalg.solve": (torch.linalg.solve, _SQUARE, _VECTOR),
}

_IN_PLACE = {
    "addmm_ (in place)": (lambda c, a, b: c.clone().addmm_(a, b), _SQUARE, _SQUARE, _SQUARE),
    "mm (out=)": (lambda a, b: torch.mm(a, b, out=torch.empty_like(a)), _SQUARE, _SQUARE),
    "exp_ (in place)": (lambda x: x.clone().exp_(), _VECTOR),
    "softmax (out=)": (lambda x: torch.softmax(x, -1, out=torch.empty_like(x)), _SQUARE),
}

OPERATORS: tuple[Operator, ...] = (
    *_family("products", _PRODUCTS),
    *_family("convolutions", _CONVOLUTIONS),
    *_family("attention and recurrence", _ATTENTION),
    *_family("elementwise", _ELEMENTWISE),
    *_family("reductions", _REDUCTIONS),
    *_family("softmax and norms", _NORMS),
    *_family("losses", _LOSSES),
    *_family("several inputs", _SEVERAL_INPUTS),
    *_family("images and lookup", _IMAGES),
    *_family("linear algebra and Fourier", _LINEAR_ALGEBRA),
    *_family("in place and out=", _IN_PLACE),
)
"""The operators that are measured, in the order in which tables list them."""
