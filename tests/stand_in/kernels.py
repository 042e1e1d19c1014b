"""What CUDA's kernels do otherwise than a CPU's: attention, norms, softmax, products, copies."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

aten = torch.ops.aten
CAPABILITY = tuple(map(int, os.environ.get("MPBOOK_STAND_IN", "8.0").split(".")))
MATH, FLASH, EFFICIENT = 0, 1, 2
"""Torch's numbers of the ways to compute attention."""
FLASH_WIDTH = 8
"""Flash attention pads the width of a head to a multiple of this."""

PRODUCTS = {
    aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default,
    aten.addbmm.default, aten.mv.default, aten.addmv.default, aten.dot.default,
    aten.vdot.default, aten.convolution.default, aten.convolution_backward.default,
}  # fmt: skip
"""Float16 operands of these go through float32: a CPU's own kernels for them take minutes."""


def in_float32(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A product of float16 operands, added up in float32 and rounded once."""
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    if len({x.dtype for x in tensors if x.is_floating_point()}) > 1:
        return func(*args, **kwargs)  # which raises
    result = func(*map(_widen, args), **{name: _widen(x) for name, x in kwargs.items()})
    return tuple(map(_narrow, result)) if isinstance(result, tuple) else _narrow(result)


def _widen(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.dtype == torch.float16 else x


def _narrow(x: Any) -> Any:
    return x.half() if isinstance(x, Tensor) and x.dtype == torch.float32 else x


# --- Attention ------------------------------------------------------------------------------------


def _choice(
    _: Any, q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, *__: Any, **___: Any
) -> int:
    """Which kernel CUDA takes: flash from Ampere on, else the efficient one, else products."""
    switches, recent = torch.backends.cuda, CAPABILITY >= (8, 0)
    if q.dtype == torch.float64:
        return MATH
    half = q.dtype in (torch.float16, torch.bfloat16)
    if half and recent and attn_mask is None and switches.flash_sdp_enabled() and q.size(-1) <= 256:
        return FLASH
    if (recent or q.dtype != torch.bfloat16) and switches.mem_efficient_sdp_enabled():
        return EFFICIENT
    if switches.math_sdp_enabled():
        return MATH
    raise RuntimeError("No available kernel. Aborting execution.")


def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """CUDA's choice of kernel and its own operators: autograd saves what it saves there.

    Raises:
        RuntimeError: dtypes that differ, as torch says it before it chooses.
    """
    if not q.dtype == k.dtype == v.dtype:
        raise RuntimeError(f"Expected one dtype, found {q.dtype}, {k.dtype} and {v.dtype}")
    choice = _choice(None, q, k, v, attn_mask)
    options = {"scale": scale}
    if choice == FLASH:
        width = q.size(-1)
        missing = -width % FLASH_WIDTH
        options["scale"] = width**-0.5 if scale is None else scale
        if missing:
            q, k, v = (torch.nn.functional.pad(x, (0, missing)) for x in (q, k, v))
        flash = aten._scaled_dot_product_flash_attention.default
        out = flash(q, k, v, dropout_p, is_causal, False, **options)[0]
        return out[..., :width] if missing else out
    if choice == EFFICIENT and attn_mask is None:
        keep = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        efficient = aten._scaled_dot_product_efficient_attention.default
        return efficient(q, k, v, None, keep, dropout_p, is_causal, **options)[0]
    math = aten._scaled_dot_product_attention_math.default
    return math(q, k, v, attn_mask, dropout_p, is_causal, enable_gqa=enable_gqa, **options)[0]


def _attend(
    q: Tensor, k: Tensor, v: Tensor, is_causal: bool, scale: float | None
) -> tuple[Tensor, Tensor]:
    dtype = q.dtype
    if dtype == torch.float16:
        q, k, v = q.float(), k.float(), v.float()
    kernel = aten._scaled_dot_product_flash_attention_for_cpu.default
    out, logsumexp = kernel(q, k, v, 0.0, is_causal, scale=scale)
    # CUDA's kernels write (batch, time, heads, width).
    out = out.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)
    return out, logsumexp.float()


def _attend_back(tensors: list[Tensor], is_causal: bool, scale: float | None) -> tuple[Tensor, ...]:
    """Gradients of q, k and v from the gradient, q, k, v, the output and logsumexp."""
    *operands, logsumexp = tensors
    dtype = operands[1].dtype
    if dtype == torch.float16:
        operands = [x.float() for x in operands]
    gradient, *rest = operands
    logsumexp = logsumexp.transpose(1, 2).contiguous().transpose(1, 2)
    kernel = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    found = kernel(gradient.contiguous(), *rest, logsumexp, 0.0, is_causal, scale=scale)
    return tuple(x.to(dtype) for x in found)


def _flash(_: Any, q: Tensor, k: Tensor, v: Tensor, *more: Any, scale: float | None = None) -> Any:
    is_causal = bool(more[1]) if len(more) > 1 else False
    out, logsumexp = _attend(q, k, v, is_causal, scale)
    seed, offset = torch.zeros(2, dtype=torch.uint64), torch.empty(0, dtype=torch.uint64)
    mask = torch.empty(0, dtype=q.dtype)
    return out, logsumexp.contiguous(), None, None, q.size(2), k.size(2), seed, offset, mask


def _flash_back(_: Any, *args: Any, scale: float | None = None) -> Any:
    gradient, q, k, v, out, logsumexp = args[:6]
    return _attend_back([gradient, q, k, v, out, logsumexp], args[11], scale)


def _efficient(
    _: Any, q: Tensor, k: Tensor, v: Tensor, bias: Any, keep: bool, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None,
) -> Any:  # fmt: skip
    out, logsumexp = _attend(q, k, v, is_causal, scale)
    time = -(-logsumexp.size(2) // 32) * 32 if keep else 0
    padded = torch.zeros(*logsumexp.shape[:2], time)
    if keep:
        padded[..., : logsumexp.size(2)] = logsumexp
    return out, padded, *(torch.zeros((), dtype=torch.int64) for _ in range(2))


def _efficient_back(_: Any, *args: Any, scale: float | None = None) -> Any:
    gradient, q, k, v, _bias, out, logsumexp = args[:7]
    is_causal = bool(args[11]) if len(args) > 11 else False
    tensors = [gradient, q, k, v, out, logsumexp[..., : q.size(2)]]
    return *_attend_back(tensors, is_causal, scale), None


# --- Recurrent cells, forward ---------------------------------------------------------------------


def _parts(
    count: int, gates: Tensor, hidden_gates: Tensor, biases: tuple[Tensor | None, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Both operands with their biases, split into gates."""
    with_bias = [
        gate if bias is None else gate + bias
        for gate, bias in zip((gates, hidden_gates), biases or (None, None), strict=True)
    ]
    return with_bias[0].chunk(count, 1), with_bias[1].chunk(count, 1)


def _lstm_cell(_: Any, gates: Tensor, hidden_gates: Tensor, cell: Tensor, *biases: Any) -> Any:
    parts = zip(*_parts(4, gates, hidden_gates, biases), strict=True)
    enter, forget, new, leave = (x + h for x, h in parts)
    opened = enter.sigmoid(), forget.sigmoid(), new.tanh(), leave.sigmoid()
    kept = opened[1] * cell + opened[0] * opened[2]
    return opened[3] * kept.tanh(), kept, torch.cat(opened, 1)


def _gru_cell(_: Any, gates: Tensor, hidden_gates: Tensor, hidden: Tensor, *biases: Any) -> Any:
    (x_reset, x_update, x_new), (reset, update, new) = _parts(3, gates, hidden_gates, biases)
    reset, update = (x_reset + reset).sigmoid(), (x_update + update).sigmoid()
    proposed = (x_new + reset * new).tanh()
    workspace = torch.cat([reset, update, proposed, hidden, new], 1)
    return proposed + update * (hidden - proposed), workspace


# --- Norms, softmax, copies -----------------------------------------------------------------------


def _layer_norm(func: Any, x: Tensor, *more: Any) -> Any:
    out, *statistics = func(x, *more)
    return out, *(s if x.dtype == torch.float64 else s.float() for s in statistics)


def _layer_norm_back(func: Any, gradient: Tensor, x: Tensor, shape: Any, *more: Any) -> Any:
    mean, rstd, weight, bias, mask = more
    dtype = x.dtype if weight is None or weight.dtype == x.dtype else torch.float32
    return func(gradient, x, shape, mean.to(dtype), rstd.to(dtype), weight, bias, mask)


def _softmax(func: Any, x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    return func(x.float() if half_to_float else x, dim, False)


def _softmax_back(func: Any, gradient: Tensor, out: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return func(gradient, out, dim, gradient.dtype).to(dtype)


def _to_copy(func: Any, x: Tensor, **options: Any) -> Tensor:
    kept = {k: v for k, v in options.items() if k not in ("non_blocking", "pin_memory")}
    return func(x, **kept)


OWN = {
    aten._fused_sdp_choice.default: _choice,
    aten._scaled_dot_product_flash_attention.default: _flash,
    aten._scaled_dot_product_flash_attention_backward.default: _flash_back,
    aten._scaled_dot_product_efficient_attention.default: _efficient,
    aten._scaled_dot_product_efficient_attention_backward.default: _efficient_back,
    aten._thnn_fused_lstm_cell.default: _lstm_cell,
    aten._thnn_fused_gru_cell.default: _gru_cell,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_back,
    aten._softmax.default: _softmax,
    aten._log_softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax_back,
    aten._log_softmax_backward_data.default: _softmax_back,
    aten._to_copy.default: _to_copy,
    aten._use_cudnn_ctc_loss.Tensor: lambda func, *args, **kwargs: False,
    aten._use_miopen_ctc_loss.Tensor: lambda func, *args, **kwargs: False,
}
"""Operators whose rule is CUDA's."""

_library = torch.library.Library("aten", "IMPL")


def register() -> None:
    """Let CUDA's choice of attention stand where torch would make the CPU's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _library.impl("scaled_dot_product_attention", attention, "AutogradCUDA")
