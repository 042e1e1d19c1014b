"""Rounding whole tensors to any format: the functions to call.

`round_to` rounds, `compiled_round_to` gives a compiled function that does, and `in_place_rounder`
one for many tensors of a size.  They check their arguments, decide what is to be computed
(`mpbook.formats.rounding_plan`) and run the steps over the memory (`mpbook.formats.rounding_steps`,
where the arithmetic is and what makes it fast).

Taught in the chapter "Rounding and sums".
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor

from mpbook import device as devices
from mpbook.formats.checks import check_out, check_tensor
from mpbook.formats.counter_hash import draw_keys
from mpbook.formats.description import (
    FloatFormat,
    Overflow,
    Rounding,
    as_format,
    check_options,
)
from mpbook.formats.rounding_plan import Plan, find_plan
from mpbook.formats.rounding_steps import (
    ROW,
    block_size,
    round_in_blocks,
    round_rows,
    round_whole,
    scratch_for,
)

_KEEPS_CASTS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""Whether ``emulate_precision_casts`` keeps a cast to 16 bits and back in code for a CPU: before,
the compiler left the pair out all the same."""


def round_to(
    x: Tensor,
    format: str | torch.dtype | FloatFormat,
    *,
    rounding: Rounding = "nearest-even",
    overflow: Overflow,
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Every element of ``x`` rounded once to a number of the format; no gradient flows.

    Args:
        x: a real floating-point tensor of any shape.
        format: name, torch dtype or `FloatFormat` whose numbers to round to.
        rounding: ``"nearest-even"``, ``"toward-zero"``, ``"up"``, ``"down"``, or
            ``"stochastic"``: away from zero with the probability of the discarded fraction, so
            right on average; a number of the format never moves.
        overflow: what becomes of a result beyond `FloatFormat.max`, infinities included.  There
            is no default, because libraries differ: ``"inf"`` (IEEE 754), ``"saturate"`` to
            ``max``, or ``"nan"``.  Rounding a finite number toward zero never overflows.
        generator: draws the seed of the stochastic bits, once a call; required there, on the
            device of ``x``.  An element's bits follow from the seed and its index alone.  A
            generator cannot enter code that you compile: see `compiled_round_to`.
        out: where to write the result, ``x`` itself included.  Fresh memory costs more than the
            rounding, so reuse it where speed matters.

    Returns:
        ``out``, or a new tensor of the shape of ``x``, in float32, or in float64 where ``x`` is
        float64 or the format does not fit into float32.  NaN stays NaN.  A negative number is
        NaN in an unsigned format, and a format without zero holds its smallest number instead.

    Raises:
        TypeError: ``x`` is not a real floating-point tensor.
        ValueError: an unknown option, ``overflow`` that the format has no code for, or an
            ``out`` of another shape, dtype or device, or that overlaps ``x`` in part.

    >>> round_to(torch.tensor([65519.0, 65520.0]), "float16", overflow="inf")
    tensor([65504.,    inf])
    """
    format = as_format(format)
    run = round_whole if torch.compiler.is_compiling() else round_in_blocks
    return _round(run, x, format, rounding, overflow, generator, out)


def compiled_round_to(
    format: str | torch.dtype | FloatFormat,
    *,
    rounding: Rounding = "nearest-even",
    overflow: Overflow,
) -> Callable[..., Tensor]:
    """`round_to` with these options, compiled: a function ``f(x, *, generator=None, out=None)``.

    Its results have the same bits.  The first call for a dtype and device compiles, for seconds;
    tensors of every shape then share the code.  It never falls back to slow code in silence:
    where torch refuses to compile once more, this raises its ``FailOnRecompileLimitHit``.

    Raises:
        ValueError: an unknown option, or ``overflow`` that the format has no code for.
    """
    format = as_format(format)
    check_options(format, rounding, overflow, torch.Generator())
    return _compiled_round_to(format, rounding, overflow)


def _compiled_copy(steps: Callable[..., None], name: str) -> Callable[..., None]:
    """A copy of the steps, compiled, that goes by this name in torch's counts and messages."""
    copy = FunctionType(steps.__code__.replace(co_name=name), steps.__globals__)
    return devices.compiled(copy, fullgraph=True, options={"emulate_precision_casts": True})


def _of_any_length(tensor: Tensor) -> Tensor:
    """The tensor, marked so that one version of compiled code serves all lengths."""
    torch._dynamo.mark_dynamic(tensor, 0)
    return tensor


@functools.cache
def _columns() -> Tensor:
    return torch.arange(ROW, dtype=torch.int32)


@functools.cache
def _compiled_round_to(
    format: FloatFormat, rounding: Rounding, overflow: Overflow
) -> Callable[..., Tensor]:
    # torch counts the versions of one piece of source, at most 8, and would see one here for all
    # options.  A copy of its own gives each function its own count; past it, fullgraph raises.
    name = f"round_to_{format.name}_{rounding}_{overflow}"
    whole, rows = (_compiled_copy(steps, name) for steps in (round_whole, round_rows))

    def run(x: Tensor, out: Tensor, plan: Plan, keys: Tensor | None) -> None:
        if not torch.compiler.is_compiling() and out.data_ptr() == x.data_ptr():
            x = x.clone()  # the compiler refuses memory that has two names
        size, done = x.numel(), 0
        # The compiler would specialise on lengths 0 and 1.
        if keys is not None and x.device.type == "cpu":
            if size >= 2 * ROW:
                done = size // ROW * ROW
                x_rows, out_rows = (tensor[:done].view(-1, ROW) for tensor in (x, out))
                rows(_of_any_length(x_rows), _of_any_length(out_rows), plan, keys, _columns())
        elif size >= 2:
            done = size
            whole(_of_any_length(x), _of_any_length(out), plan, keys, _KEEPS_CASTS)
        if done < size:
            round_in_blocks(x[done:], out[done:], plan, keys, first=done)

    def compiled_round(
        x: Tensor, *, generator: torch.Generator | None = None, out: Tensor | None = None
    ) -> Tensor:
        return _round(run, x, format, rounding, overflow, generator, out)

    return compiled_round


def _round(
    run: Callable[[Tensor, Tensor, Plan, Tensor | None], None],
    x: Tensor,
    format: FloatFormat,
    rounding: Rounding,
    overflow: Overflow,
    generator: torch.Generator | None,
    out: Tensor | None,
) -> Tensor:
    """Check the arguments, draw the keys, and run over flat, contiguous tensors."""
    check_options(format, rounding, overflow, generator)
    check_tensor(x, generator)
    dtype = _result_dtype(x, format)
    if out is None:
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
    else:
        check_out(out, x, dtype)
    keys = draw_keys(generator) if rounding == "stochastic" and generator is not None else None
    target = out.detach() if out.is_contiguous() else torch.empty_like(out).contiguous()
    plan = find_plan(format, rounding, overflow, dtype)
    run(x.detach().reshape(-1), target.view(-1), plan, keys)
    if not out.is_contiguous():
        out.detach().copy_(target)
    return out


def _result_dtype(x: Tensor, format: FloatFormat) -> torch.dtype:
    fits = (
        format.mantissa_bits <= 23
        and format.max <= torch.finfo(torch.float32).max
        and format.lowest_binade - format.mantissa_bits >= -149
    )
    return torch.float32 if fits and x.dtype != torch.float64 else torch.float64


def in_place_rounder(
    format: FloatFormat,
    *,
    rounding: Rounding,
    overflow: Overflow,
    keys: Tensor | None,
    like: Tensor,
) -> Callable[[Tensor, int], None]:
    """`round_to` in place, for the contiguous pieces of a tensor; none is larger than this one.

    They share one scratch, where `round_to` takes fresh memory for each: pieces of half a million
    elements round twice as fast so.  The function takes a piece and the number of its first element
    in the tensor, from which, with the keys, the bits of stochastic rounding follow.
    """
    plan = find_plan(format, rounding, overflow, like.dtype)
    if torch.compiler.is_compiling():  # all in one piece
        return lambda x, first: round_whole(x.view(-1), x.view(-1), plan, keys)
    size = min(block_size(plan, like.device), like.numel())
    scratch = scratch_for((size,), plan, like.device)

    def round_(x: Tensor, first: int) -> None:
        round_in_blocks(x.view(-1), x.view(-1), plan, keys, scratch, first=first)

    return round_
