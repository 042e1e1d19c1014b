"""The steps of rounding, in place over memory, about as fast as copying it.

The rounding itself is one line of arithmetic: with q = ulp(x), the gap between the format's
numbers around x, the result is ``round(x / q) * q``.  Every step is exact, since q is a power of
two.  What remains is to find q without a logarithm, and to do it all without wasting memory
traffic, which is where the time goes:

* **q comes from the bits.**  A float's exponent field *is* the logarithm: mask the rest away and
  what is left, read as a float, is the power of two p below the magnitude of x.  With m mantissa
  bits, q = p / 2**m.
* **Blocks.**  Run over a large tensor, each operation would fetch it from memory again.  Here
  a block that fits into the cache goes through all of them, in place, in scratch that is reused.
* **No boolean masks.**  They cost several times an arithmetic pass.  Clamping does the
  saturation, overflow to infinity happens by itself, and NaN spreads by multiplication.
* **Under torch.compile** the same steps run once, on the whole tensor, and fuse into one loop.

Formats with float32's own exponents take an older short cut (`_round_by_carry_`), float64 tensors
and formats that float32 cannot hold do the same in float64.  The tests prove all of them equal to
the reference path of `mpbook.formats`, bit by bit; ``make exhaustive`` does so for all 2**32
float32 inputs.

Taught in the chapter "Rounding and sums".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from mpbook.formats.counter_hash import hash_counters_
from mpbook.formats.description import DRAW_BITS, Rounding
from mpbook.formats.rounding_plan import EXPONENT_BIAS, Plan

CPU_BLOCK = 2**17
"""Elements that a CPU rounds at a time: with their powers of two they take a megabyte, which fits
into the second cache of a core of a server."""

DEVICE_BLOCK = 2**26
"""The same elsewhere, where launching an operation costs more than memory traffic."""

ROW = 2**12
"""Elements whose numbers are read from memory in code that is compiled for a CPU: `round_rows`."""

Way = Literal["cast", "carry", "arithmetic", "ulp"]
"""How the numbers are rounded, once those that overflow are cut off."""

_EXPONENT_MASK = {torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}
_STORED_BITS = {torch.float32: 23, torch.float64: 52}

# --- Block after block, or all at once ---------------------------------------------------------


def block_size(plan: Plan, device: torch.device) -> int:
    """How many elements go through the steps together."""
    if device.type == "cpu":
        return CPU_BLOCK
    return DEVICE_BLOCK // 4 if plan.rounding == "stochastic" else DEVICE_BLOCK  # more scratch


def round_in_blocks(
    x: Tensor,
    out: Tensor,
    plan: Plan,
    keys: Tensor | None,
    scratch: dict[str, Tensor] | None = None,
    *,
    first: int = 0,
) -> None:
    """Round a flat tensor so that all the steps meet a block in the cache.

    Its elements are numbered from ``first`` on: their random bits follow from that number.
    """
    block = block_size(plan, x.device)
    if scratch is None:
        scratch = scratch_for((min(block, x.numel()),), plan, x.device)
    for i, (part, result) in enumerate(zip(x.split(block), out.split(block), strict=True)):
        if part.numel() < block:
            scratch = {name: memory[: part.numel()] for name, memory in scratch.items()}
        _round_block(part, result, plan, scratch, keys, first=first + i * block)


def round_whole(
    x: Tensor, out: Tensor, plan: Plan, keys: Tensor | None, keeps_casts: bool = False
) -> None:
    """The same at once, for torch.compile, which fuses it into one loop without any scratch.

    ``keeps_casts`` says that it was told not to leave casts to 16 bits and back out.
    """
    scratch = scratch_for(x.shape, plan, x.device)
    if keys is not None:
        scratch["counters"] = torch.arange(x.numel(), dtype=torch.int32, device=x.device)
    _round_block(x, out, plan, scratch, keys, first=0, keeps_casts=keeps_casts)


def round_rows(x: Tensor, out: Tensor, plan: Plan, keys: Tensor, columns: Tensor) -> None:
    """`round_whole` with random bits over a matrix, for code that is compiled for a CPU.

    There the compiler writes a vector of consecutive numbers element by element, which takes longer
    than all their hashes.  So they are read here, from the first cache: ``columns`` is an int32
    tensor of 0, 1, 2 and so on, one for each column of ``x``.
    """
    scratch = scratch_for(x.shape, plan, x.device)
    rows = torch.arange(x.shape[0], dtype=torch.int32, device=x.device)
    scratch["counters"] = (rows * x.shape[1])[:, None] + columns
    _round_block(x, out, plan, scratch, keys, first=0)


def scratch_for(shape: Sequence[int], plan: Plan, device: torch.device) -> dict[str, Tensor]:
    """The memory that the steps write to, block after block."""
    dtypes = {"value": plan.dtype, "power": plan.dtype, "native": plan.native}
    if plan.rounding in ("toward-zero", "stochastic"):
        dtypes |= {"whole": plan.dtype}
    if plan.rounding == "stochastic":
        dtypes |= {"magnitude": plan.dtype, "draw": plan.dtype}
        dtypes |= {"hash": torch.int32, "fold": torch.int32}
    scratch = {
        name: torch.empty(shape, dtype=dtype, device=device)
        for name, dtype in dtypes.items()
        if dtype is not None
    }
    if plan.rounding == "stochastic" and not torch.compiler.is_compiling():
        scratch["counters"] = torch.arange(shape[0], dtype=torch.int32, device=device)
    return scratch


def _round_block(
    x: Tensor,
    out: Tensor,
    plan: Plan,
    scratch: dict[str, Tensor],
    keys: Tensor | None,
    first: int,
    keeps_casts: bool = False,
) -> None:
    """Round the block that begins at element ``first``; ``out`` may be ``x``."""
    value = out if out.dtype == plan.dtype else scratch["value"]
    infinite = x.isinf() if plan.infinities_differ else None
    way = _way(plan, value.device, keeps_casts)
    _cut_off(x, value, plan, way)
    if keys is not None:
        torch.add(scratch["counters"], first, out=scratch["hash"])
        hash_counters_(scratch["hash"], keys, scratch["fold"])
    match way:
        case "cast":
            value.copy_(scratch["native"].copy_(value))
        case "carry":
            _round_by_carry_(value, plan, scratch)
        case "arithmetic":
            _round_by_arithmetic_(value, plan, scratch)
        case "ulp":
            _round_by_ulp_(value, plan, scratch)
    if not (way == "cast" and plan.overflow == "inf"):
        _apply_overflow_(value, plan)
    if infinite is not None:
        value.mul_(torch.where(infinite, math.inf if plan.overflow == "inf" else math.nan, 1.0))
    if not plan.format.has_negative_zero:
        _drop_negative_zeros_(value)
    if value is not out:
        out.copy_(value)


# --- The steps ---------------------------------------------------------------------------------


def _way(plan: Plan, device: torch.device, keeps_casts: bool) -> Way:
    """The fastest way to round that is exact here; infinities among the inputs differ: `_cut_off`.

    Code that is compiled for a CPU computes with floats alone where it can.  There the bits of a
    vector of floats come element by element, through memory: g++ tuned for Zen makes nothing of it,
    as it should, and tuned for Sapphire Rapids six times the work.
    """
    compiling = torch.compiler.is_compiling()
    for_cpu = compiling and device.type == "cpu"
    if plan.native is not None and (not compiling or (keeps_casts and for_cpu)):
        return "cast"
    stored = _STORED_BITS[plan.dtype]
    if plan.carries:  # infinities go the way of the largest float32, which is theirs if it is sure
        floats_do = plan.rounding != "stochastic" and plan.format.mantissa_bits < stored
        return "arithmetic" if for_cpu and floats_do else "carry"
    # `_ulp_by_arithmetic` multiplies by so much.
    return "arithmetic" if for_cpu and plan.headroom > stored + 1 else "ulp"


def _cut_off(x: Tensor, value: Tensor, plan: Plan, way: Way) -> None:
    """Write ``x`` to ``value``, clamped to the range that can matter; NaN passes."""
    if x.dtype == value.dtype and plan.format.signed:
        most = torch.finfo(x.dtype).max if way == "arithmetic" else math.inf
        torch.clamp(x, max(plan.low, -most), min(plan.high, most), out=value)
        return
    value.copy_(x)
    if not plan.format.signed:  # negative numbers become NaN, as they are not above this one:
        largest_negative = -torch.finfo(value.dtype).smallest_normal * torch.finfo(value.dtype).eps
        torch.threshold_(value, largest_negative, math.nan)
    value.clamp_(plan.low, plan.high)


def _round_by_ulp_(value: Tensor, plan: Plan, scratch: dict[str, Tensor]) -> None:
    """``round(x / ulp) * ulp``: nothing but the rounding itself is inexact."""
    if plan.format.lowest_binade > 0:
        _lift_(value)
    power = power_of_two(value, out=scratch["power"])
    power.clamp_(*plan.powers)  # subnormals share the smallest ulp
    ulps = 2.0**plan.format.mantissa_bits  # in that power of two
    if torch.compiler.is_compiling():
        # Compiled for a GPU, a division is approximate.  A power of two p has an exponent field
        # e and nothing else; flipping its bits gives 255 - e, which is exactly 2 / p.
        reciprocal = (_bits(power) ^ _EXPONENT_MASK[power.dtype]).view(power.dtype)
        value.mul_(reciprocal).mul_(0.5 * ulps)
        _round_units_(value, plan.rounding, scratch)
        value.mul_(1 / ulps).mul_(power)  # the other way round could overflow
    elif plan.headroom <= plan.format.mantissa_bits + 1:  # the products below could overflow
        value.div_(power).mul_(ulps)
        _round_units_(value, plan.rounding, scratch)
        value.mul_(1 / ulps).mul_(power)
    else:  # two products in one pass; a sum with -0 leaves zeros of both signs alone
        nothing = value.new_full((), -0.0)
        torch.addcdiv(nothing, value, power, value=ulps, out=value)
        _round_units_(value, plan.rounding, scratch)
        torch.addcmul(nothing, value, power, value=1 / ulps, out=value)


def _round_by_arithmetic_(value: Tensor, plan: Plan, scratch: dict[str, Tensor]) -> None:
    """``round(x / ulp) * ulp`` without a look at the bits."""
    if plan.format.lowest_binade > 0:
        _lift_(value)
    small = value.abs() < 2.0**16
    if plan.carries:  # to where neither ulps nor their multiples leave the range of normal numbers
        value.mul_(torch.where(small, 2.0**64, 2.0**-64))
    ulp = _ulp_by_arithmetic(value, plan)
    value.div_(ulp)
    _round_units_(value, plan.rounding, scratch)
    value.mul_(ulp)
    if plan.carries:
        value.mul_(torch.where(small, 2.0**-64, 2.0**64))


def _ulp_by_arithmetic(value: Tensor, plan: Plan) -> Tensor:
    """The gap between the format's numbers around each value; NaN for NaN.

    With t bits, u = 2**-t and q = (2**(t-1) + 1) * x, the difference q - (1 - u) * q is the power
    of two below x, exactly: q has x in its upper bits and x again below, and the rounding of
    (1 - u) * q leaves the leading one.  A product that is fused with the difference would not be
    rounded; torch forbids that to the C++ compiler.  Source: Rump, "Error estimation of
    floating-point summation and dot product", BIT Numerical Mathematics 52 (2012).
    """
    stored, ulps = _STORED_BITS[value.dtype], 2.0**-plan.format.mantissa_bits
    smallest = plan.powers[0] * ulps * (2.0**64 if plan.carries else 1)
    q = value * ((2.0**stored + 1) * ulps)
    return (q - q * (1 - 2.0 ** -(stored + 1))).abs().clamp(min=smallest)


def _round_units_(units: Tensor, rounding: Rounding, scratch: dict[str, Tensor]) -> None:
    """Round to whole numbers, in place; zeros keep their sign."""
    match rounding:
        case "nearest-even":
            units.round_()
        case "toward-zero":
            whole = torch.abs(units, out=scratch["whole"]).floor_()
            _take_sign_(whole, units)  # torch.trunc takes ten times as long
        case "up":
            units.ceil_()
        case "down":
            units.floor_()
        case "stochastic":
            _round_by_draw_(units, scratch)


def _take_sign_(magnitude: Tensor, units: Tensor) -> None:
    """Write the magnitudes with the signs of ``units`` over ``units``; a zero there stays as it is.

    Only zeros and magnitudes below 1 give 0, and these keep their sign.
    """
    if torch.compiler.is_compiling():  # calls a function for copysign, and stops being one loop
        signed = torch.where(units < 0, -magnitude, magnitude)
        units.copy_(torch.where(units == 0, units, signed))
    else:
        torch.copysign(magnitude, units, out=units)


def power_of_two(value: Tensor, *, out: Tensor) -> Tensor:
    """The power of two at or below each magnitude; 0 below the normal numbers."""
    # It is what remains of a float without its sign and mantissa.
    torch.bitwise_and(_bits(value), _EXPONENT_MASK[out.dtype], out=_bits(out))
    return out


def _bits(x: Tensor) -> Tensor:
    """The bits of floats, as integers in the same memory."""
    return x.view(torch.int32 if x.dtype == torch.float32 else torch.int64)


def _lift_(value: Tensor) -> None:
    """Raise tiny magnitudes to 2**-100, which rounds alike where the smallest number is > 1.

    Their quotient by an ulp could underflow to 0, and rounding up would miss them.
    """
    tiny = (value != 0) & (value.abs() < 2.0**-100)
    value.copy_(torch.where(tiny, torch.copysign(torch.full_like(value, 2.0**-100), value), value))


def _round_by_draw_(units: Tensor, scratch: dict[str, Tensor]) -> None:
    """Stochastic rounding to whole units: away from zero where the draw is below the fraction.

    The draw is one of 2**23 numbers, evenly spaced in (0, 1).  Of these exactly j lie below
    j / 2**23, so the mean is right; none lies below 0, so whole numbers never move.
    """
    draw, whole = scratch["draw"], scratch["whole"]
    bits = scratch["hash"].bitwise_right_shift_(32 - DRAW_BITS).bitwise_and_(2**DRAW_BITS - 1)
    # Counted from 1 down: as in `_round_by_carry_`, large bits round away.
    draw.copy_(bits).mul_(-(2.0**-DRAW_BITS)).add_(1 - 2.0 ** -(DRAW_BITS + 1))
    magnitude = torch.abs(units, out=scratch["magnitude"])
    torch.floor(magnitude, out=whole)
    magnitude.sub_(whole)  # the fraction
    magnitude.sub_(draw).ceil_()  # 1 where the fraction is larger, else 0
    _take_sign_(magnitude.add_(whole), units)


def _round_by_carry_(value: Tensor, plan: Plan, scratch: dict[str, Tensor]) -> None:
    """Rounding for formats with the exponents of float32: add to the bits, then cut them off.

    Read as integers, floats of one sign are in order, and the next float is the next integer.
    So what is added below the cut carries into the kept bits just where the result is to go away
    from zero: into the next binade, out of the subnormals, up to infinity.
    """
    cut = _STORED_BITS[value.dtype] - plan.format.mantissa_bits
    if cut == 0:
        return
    bits, added = _bits(value), _bits(scratch["power"])
    one_or_nan = torch.clamp(value, 1, 1, out=scratch["value"])  # a carry may undo a NaN
    below = 2**cut - 1
    match plan.rounding:
        case "nearest-even":  # just under a half, and the last kept bit: a tie goes to even
            torch.bitwise_right_shift(bits, cut, out=added).bitwise_and_(1).add_(below >> 1)
        case "toward-zero":
            added.zero_()
        case "up" | "down":  # a shifted sign is 0 or all ones: everything, if on that side
            torch.bitwise_right_shift(bits, 31, out=added)
            added.bitwise_xor_(0 if plan.rounding == "down" else -1).bitwise_and_(below)
        case "stochastic":
            torch.bitwise_right_shift(scratch["hash"], 32 - cut, out=added).bitwise_and_(below)
    bits.add_(added).bitwise_and_(~below)
    value.mul_(one_or_nan)


def _drop_negative_zeros_(value: Tensor) -> None:
    """Turn -0 into +0."""
    if not torch.compiler.is_compiling():
        value.add_(0.0)  # -0 + 0 = +0
        return
    # torch's compiler may leave out the addition of a 0 (`remove_no_ops`; `reference/versions` says
    # since when), and compilers below it may take floats of either sign for the same zero.
    # Not so integers: here -0 is the smallest of all, and no other number looks like it.
    bits = _bits(value)
    bits.copy_(torch.where(bits == torch.iinfo(bits.dtype).min, 0, bits))


def _apply_overflow_(value: Tensor, plan: Plan) -> None:
    """Turn what came out beyond `max` into what the overflow rule says."""
    rule, beyond = plan.overflow, plan.beyond
    if rule == "saturate" or beyond == plan.format.max or (rule == "inf" and beyond == math.inf):
        return
    if rule == "inf" and plan.headroom < EXPONENT_BIAS[value.dtype]:
        # Scaled until `max` lies in the last binade of all, what is beyond becomes infinite.
        value.mul_(2.0**plan.headroom).mul_(2.0**-plan.headroom)
        return
    replacement = -math.inf if rule == "inf" else math.nan
    for _sign in (-1, 1):  # `threshold_` replaces what is not above its first argument
        torch.threshold_(value, -beyond, replacement).neg_()
