"""The products on units that a device has for them: `torch._scaled_mm`.

It takes elements in eight bits, multiplies their sums with the scales of whole tensors or rows, and
means what the emulation means: elements and scales are the same bits, and what may differ is how
the sums round.  A CPU has it too, which proves it and is no faster.

Formats with scales inside a row (1x128, MX, NVFP4) ask for layouts of their own on each GPU, and
are emulated alone.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from mpbook.formats.description import FloatFormat
from mpbook.low_precision.recipes import NATIVE_MULTIPLE as MULTIPLE
from mpbook.low_precision.recipes import Recipe


def native_product(
    left: tuple[Tensor, Tensor],
    right: tuple[Tensor, Tensor],
    formats: tuple[FloatFormat, FloatFormat],
) -> Tensor:
    """``left @ right.T`` of elements and factors (`factored`), with the elements in eight bits.

    Returns:
        (m, n): float32, but bfloat16 on a GPU with scales for each row, as the unit has it.
    """
    (a, a_scale), (b, b_scale) = left, right
    a, b = (x.to(getattr(torch, f.name)) for x, f in zip((a, b), formats, strict=True))
    rows = a_scale.numel() > 1 or b_scale.numel() > 1
    if rows:
        a_scale = a_scale.expand(len(a), 1).contiguous()
        b_scale = b_scale.expand(len(b), 1).contiguous()
    else:
        a_scale, b_scale = a_scale.squeeze(), b_scale.squeeze()
    dtype = torch.bfloat16 if rows and a.is_cuda else torch.float32
    return torch._scaled_mm(a, b.T, a_scale, b_scale.T if rows else b_scale, out_dtype=dtype)


def check_native(name: str, linear: nn.Linear, recipe: Recipe) -> None:
    """Refuse what `torch._scaled_mm` cannot compute, on the device of a layer.

    Raises:
        ValueError: a format for which this engine has no product.
        RuntimeError: a device that lacks it.
    """
    for product, tensor, operand in recipe.operands():
        found = operand.block_format
        if found is None or found.element.bits != 8 or found.block not in ("tensor", "row"):
            raise ValueError(
                f'layer "{name}": engine="native" multiplies eight bits with one scale a tensor or '
                f'a row, and "{recipe.name}" has {operand} as {tensor} of {product}; use '
                'engine="emulated"'
            )
    device, row = linear.weight.device, recipe.fprop.left.block_format.block == "row"  # type: ignore[union-attr]
    if problem := lacks(str(device), row=row):
        raise RuntimeError(
            f'layer "{name}": engine="native", and {device} has no products of eight bits with '
            f'scales of {"rows" if row else "tensors"} ({problem}); use engine="emulated", or a '
            "GPU of compute capability 8.9 or higher (for rows with a torch for Linux)"
        )


@functools.cache
def lacks(device: str, *, row: bool) -> str | None:
    """Why a device cannot multiply eight bits, found by trying; None if it can."""
    ones = torch.ones(MULTIPLE, MULTIPLE, device=device).to(torch.float8_e4m3fn)
    scale = torch.ones(MULTIPLE, 1, device=device) if row else torch.ones((), device=device)
    try:
        other = scale.T if row else scale
        torch._scaled_mm(ones, ones.T, scale, other, out_dtype=torch.bfloat16)
    except Exception as error:  # each build and device has an error of its own
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return None
