"""Rounding whole tensors to any format, about as fast as copying them.

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

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType

import torch
from torch import Tensor

from mpbook import device as devices
from mpbook.formats.counter_hash import draw_keys, hash_counters_
from mpbook.formats.description import (
    DRAW_BITS,
    FloatFormat,
    Overflow,
    Rounding,
    as_format,
    check_options,
    never_overflows,
)

CPU_BLOCK = 2**19
"""Elements that a CPU rounds at a time: their scratch fits into a core's cache."""

DEVICE_BLOCK = 2**26
"""The same elsewhere, where launching an operation costs more than memory traffic."""

_EXPONENT_MASK = {torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}
_STORED_BITS = {torch.float32: 23, torch.float64: 52}
_BIAS = {torch.float32: 127, torch.float64: 1023}


# --- Rounding: the public functions ------------------------------------------------------------


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
    run = _round_whole if torch.compiler.is_compiling() else _round_in_blocks
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


@functools.cache
def _compiled_round_to(
    format: FloatFormat, rounding: Rounding, overflow: Overflow
) -> Callable[..., Tensor]:
    # torch counts the versions of one piece of source, at most 8, and would see one here for all
    # options.  A copy of its own gives each function its own count; past it, fullgraph raises.
    code = _round_whole.__code__.replace(co_name=f"round_to_{format.name}_{rounding}_{overflow}")
    compiled = devices.compiled(FunctionType(code, globals()), fullgraph=True)

    def run(x: Tensor, out: Tensor, steps: _Steps, keys: Tensor | None) -> None:
        if x.numel() < 2:  # the compiler would specialise on sizes 0 and 1
            _round_in_blocks(x, out, steps, keys)
            return
        for tensor in (x, out):
            torch._dynamo.mark_dynamic(tensor, 0)  # one version for all sizes
        compiled(x, out, steps, keys)

    def compiled_round(
        x: Tensor, *, generator: torch.Generator | None = None, out: Tensor | None = None
    ) -> Tensor:
        return _round(run, x, format, rounding, overflow, generator, out)

    return compiled_round


def _round(
    run: Callable[[Tensor, Tensor, _Steps, Tensor | None], None],
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
    steps = _steps(format, rounding, overflow, dtype)
    run(x.detach().reshape(-1), target.view(-1), steps, keys)
    if not out.is_contiguous():
        out.detach().copy_(target)
    return out


def check_tensor(x: Tensor, generator: torch.Generator | None = None) -> None:
    """Refuse what is no real floating-point tensor, or is not on the generator's device."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}: expected a torch.Tensor")
    if not x.is_floating_point():
        raise TypeError(f"x has dtype {x.dtype}: expected a real floating-point tensor")
    if generator is not None and generator.device.type != x.device.type:
        raise ValueError(f"generator is on {generator.device}, x on {x.device}: use one device")


def check_out(out: Tensor, x: Tensor, dtype: torch.dtype) -> None:
    """Refuse an ``out`` that cannot take the result for ``x``, which has this dtype."""
    if not isinstance(out, Tensor):
        raise TypeError(f"out is a {type(out).__name__}: expected a torch.Tensor")
    wanted = {"shape": x.shape, "dtype": dtype, "device": x.device}
    for name, value in wanted.items():
        if getattr(out, name) != value:
            actual = getattr(out, name)
            raise ValueError(f"out has {name} {actual}: expected {value}, that of the result")
    if torch.compiler.is_compiling():
        return  # compiled code has no addresses yet, and reads all of x before it writes
    if any(size > 1 and not stride for size, stride in zip(out.shape, out.stride(), strict=True)):
        raise ValueError("out has elements that share memory: expand()ed tensors cannot be written")
    is_x = out.data_ptr() == x.data_ptr() and out.stride() == x.stride()
    if _overlap(out, x) and not (is_x and out.dtype == x.dtype):
        raise ValueError("out overlaps x in memory: pass x itself, or memory apart from it")


def _overlap(left: Tensor, right: Tensor) -> bool:
    """Whether the memory that two tensors span has a byte in common."""
    (left_start, left_end), (right_start, right_end) = map(_span, (left, right))
    return left_start < right_end and right_start < left_end


def _span(x: Tensor) -> tuple[int, int]:
    """First byte of a tensor, and the byte after its last."""
    sizes = zip(x.shape, x.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in sizes)
    length = (last + 1) * x.element_size() if x.numel() else 0
    return x.data_ptr(), x.data_ptr() + length


def _result_dtype(x: Tensor, format: FloatFormat) -> torch.dtype:
    fits = (
        format.mantissa_bits <= 23
        and format.max <= torch.finfo(torch.float32).max
        and format.lowest_binade - format.mantissa_bits >= -149
    )
    return torch.float32 if fits and x.dtype != torch.float64 else torch.float64


# --- Rounding: what to compute -----------------------------------------------------------------


@dataclass(frozen=True)
class _Steps:
    """How to round: the options, and what follows from them."""

    format: FloatFormat
    rounding: Rounding
    overflow: Overflow
    dtype: torch.dtype  # computes
    native: torch.dtype | None  # the hardware rounds to it in this way
    carries: bool  # see `_round_by_carry_`
    low: float  # where inputs are cut off
    high: float
    powers: tuple[float, float]  # of two, in the lowest and the highest binade
    headroom: int  # binades of the computing dtype above those of the format

    @property
    def beyond(self) -> float:
        """What all that overflows is rounded to, before `overflow` applies."""
        return max(self.high, -self.low)

    @property
    def infinities_differ(self) -> bool:
        """Whether infinities overflow where large finite numbers stop at `max`."""
        stops = any(never_overflows(self.rounding, negative) for negative in (False, True))
        return stops and self.overflow != "saturate"


def _steps(
    format: FloatFormat, rounding: Rounding, overflow: Overflow, result: torch.dtype
) -> _Steps:
    """The steps to a result of this dtype."""
    # The compiler looks through a cache, with a warning, and evaluates all this at compile time.
    find = _find_steps if torch.compiler.is_compiling() else _cached_steps
    return find(format, rounding, overflow, result)


def _find_steps(
    format: FloatFormat, rounding: Rounding, overflow: Overflow, result: torch.dtype
) -> _Steps:
    lowest, highest = format.lowest_binade, math.frexp(format.max)[1] - 1
    smallest, largest = (binade - format.mantissa_bits for binade in (lowest, highest))  # ulps
    carries = result == torch.float32 and lowest == -126 and format.mantissa_bits > 0
    # Float32 computes where its powers of two, the ulps and what comes after max, are normal.
    dtype = result if carries or (smallest >= -126 and highest < 127) else torch.float64
    low, high = _cut_offs(format, rounding, overflow, math.ldexp(1.0, largest), dtype)
    return _Steps(
        format=format,
        rounding=rounding,
        overflow=overflow,
        dtype=dtype,
        native=_native(format, rounding, dtype),
        carries=carries,
        low=low,
        high=high,
        powers=(math.ldexp(1.0, lowest), math.ldexp(1.0, highest)),
        headroom=_BIAS[dtype] - highest,
    )


_cached_steps = functools.cache(_find_steps)


def _cut_offs(
    format: FloatFormat, rounding: Rounding, overflow: Overflow, ulp: float, dtype: torch.dtype
) -> tuple[float, float]:
    """The range outside of which inputs round like its ends; only infinities may differ."""
    beyond = format.max + ulp  # the number that would come after max
    beyond = beyond if beyond <= torch.finfo(dtype).max else math.inf
    down, up = (
        format.max if overflow == "saturate" or never_overflows(rounding, negative) else beyond
        for negative in (True, False)
    )
    if format.signed:
        return -down, up
    return (0.0 if format.subnormals else format.smallest_normal), up


def _native(format: FloatFormat, rounding: Rounding, dtype: torch.dtype) -> torch.dtype | None:
    natives = {as_format(native): native for native in (torch.float16, torch.bfloat16)}
    return natives.get(format) if (rounding, dtype) == ("nearest-even", torch.float32) else None


# --- Rounding: block after block, or all at once -----------------------------------------------


def rounder_(
    format: FloatFormat,
    *,
    rounding: Rounding,
    overflow: Overflow,
    generator: torch.Generator | None,
    like: Tensor,
) -> Callable[[Tensor], None]:
    """`round_to` in place, for many contiguous tensors like this one, or smaller, one by one.

    They share one scratch, where `round_to` takes fresh memory for each: pieces of half a million
    elements round twice as fast so.
    """
    check_options(format, rounding, overflow, generator)
    check_tensor(like, generator)
    steps = _steps(format, rounding, overflow, like.dtype)
    scratch = _scratch(min(_block(steps, like.device), like.numel()), steps, like.device)

    def round_(x: Tensor) -> None:
        keys = draw_keys(generator) if rounding == "stochastic" and generator is not None else None
        _round_in_blocks(x.view(-1), x.view(-1), steps, keys, scratch)

    return round_


def _block(steps: _Steps, device: torch.device) -> int:
    """How many elements go through the steps together."""
    block = CPU_BLOCK if device.type == "cpu" else DEVICE_BLOCK
    return block // 4 if steps.rounding == "stochastic" else block  # that takes more scratch


def _round_in_blocks(
    x: Tensor,
    out: Tensor,
    steps: _Steps,
    keys: Tensor | None,
    scratch: dict[str, Tensor] | None = None,
) -> None:
    """Round a flat tensor so that all the steps meet a block in the cache."""
    block = _block(steps, x.device)
    scratch = _scratch(min(block, x.numel()), steps, x.device) if scratch is None else scratch
    for i, (part, result) in enumerate(zip(x.split(block), out.split(block), strict=True)):
        if part.numel() < block:
            scratch = {name: memory[: part.numel()] for name, memory in scratch.items()}
        _round_block(part, result, steps, scratch, keys, first=i * block)


def _round_whole(x: Tensor, out: Tensor, steps: _Steps, keys: Tensor | None) -> None:
    """The same at once, for torch.compile, which fuses it into one loop without any scratch."""
    _round_block(x, out, steps, _scratch(x.numel(), steps, x.device), keys, first=0)


def _scratch(size: int, steps: _Steps, device: torch.device) -> dict[str, Tensor]:
    """The memory that the steps write to, block after block."""
    dtypes = {"value": steps.dtype, "power": steps.dtype, "native": steps.native}
    if steps.rounding in ("toward-zero", "stochastic"):
        dtypes |= {"whole": steps.dtype}
    if steps.rounding == "stochastic":
        dtypes |= {"magnitude": steps.dtype, "draw": steps.dtype}
        dtypes |= {"hash": torch.int32, "fold": torch.int32}
    scratch = {
        name: torch.empty(size, dtype=dtype, device=device)
        for name, dtype in dtypes.items()
        if dtype is not None
    }
    if steps.rounding == "stochastic":
        scratch["counters"] = torch.arange(size, dtype=torch.int32, device=device)
    return scratch


def _round_block(
    x: Tensor,
    out: Tensor,
    steps: _Steps,
    scratch: dict[str, Tensor],
    keys: Tensor | None,
    first: int,
) -> None:
    """Round the flat block that begins at element ``first``; ``out`` may be ``x``."""
    value = out if out.dtype == steps.dtype else scratch["value"]
    infinite = x.isinf() if steps.infinities_differ else None
    _cut_off(x, value, steps)
    if keys is not None:
        torch.add(scratch["counters"], first, out=scratch["hash"])
        hash_counters_(scratch["hash"], keys, scratch["fold"])
    casts = steps.native is not None and not torch.compiler.is_compiling()
    if casts:
        value.copy_(scratch["native"].copy_(value))  # the compiler would leave both copies out
    elif steps.carries:
        _round_by_carry_(value, steps, scratch)
    else:
        _round_by_ulp_(value, steps, scratch)
    if not (casts and steps.overflow == "inf"):
        _apply_overflow_(value, steps)
    if infinite is not None:
        value.mul_(torch.where(infinite, math.inf if steps.overflow == "inf" else math.nan, 1.0))
    if not steps.format.has_negative_zero:
        value.add_(0.0)  # -0 + 0 = +0
    if value is not out:
        out.copy_(value)


# --- Rounding: the steps -----------------------------------------------------------------------


def _cut_off(x: Tensor, value: Tensor, steps: _Steps) -> None:
    """Write ``x`` to ``value``, clamped to the range that can matter; NaN passes."""
    if x.dtype == value.dtype and steps.format.signed:
        torch.clamp(x, steps.low, steps.high, out=value)
        return
    value.copy_(x)
    if not steps.format.signed:  # negative numbers become NaN, as they are not above this one:
        largest_negative = -torch.finfo(value.dtype).smallest_normal * torch.finfo(value.dtype).eps
        torch.threshold_(value, largest_negative, math.nan)
    value.clamp_(steps.low, steps.high)


def _round_by_ulp_(value: Tensor, steps: _Steps, scratch: dict[str, Tensor]) -> None:
    """``round(x / ulp) * ulp``: nothing but the rounding itself is inexact."""
    if steps.format.lowest_binade > 0:
        _lift_(value)
    power = power_of_two(value, out=scratch["power"])
    power.clamp_(*steps.powers)  # subnormals share the smallest ulp
    ulps = 2.0**steps.format.mantissa_bits  # in that power of two
    if torch.compiler.is_compiling():
        # Compiled for a GPU, a division is approximate.  A power of two p has an exponent field
        # e and nothing else; flipping its bits gives 255 - e, which is exactly 2 / p.
        reciprocal = (_bits(power) ^ _EXPONENT_MASK[power.dtype]).view(power.dtype)
        value.mul_(reciprocal).mul_(0.5 * ulps)
        _round_units_(value, steps.rounding, scratch)
        value.mul_(power).mul_(1 / ulps)
    elif steps.headroom <= steps.format.mantissa_bits + 1:  # the products below could overflow
        value.div_(power).mul_(ulps)
        _round_units_(value, steps.rounding, scratch)
        value.mul_(1 / ulps).mul_(power)
    else:  # two products in one pass; a sum with -0 leaves zeros of both signs alone
        nothing = value.new_full((), -0.0)
        torch.addcdiv(nothing, value, power, value=ulps, out=value)
        _round_units_(value, steps.rounding, scratch)
        torch.addcmul(nothing, value, power, value=1 / ulps, out=value)


def _round_units_(units: Tensor, rounding: Rounding, scratch: dict[str, Tensor]) -> None:
    """Round to whole numbers, in place; zeros keep their sign."""
    match rounding:
        case "nearest-even":
            units.round_()
        case "toward-zero":
            whole = torch.abs(units, out=scratch["whole"]).floor_()
            torch.copysign(whole, units, out=units)  # torch.trunc takes ten times as long
        case "up":
            units.ceil_()
        case "down":
            units.floor_()
        case "stochastic":
            _round_by_draw_(units, scratch)


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
    torch.copysign(magnitude.add_(whole), units, out=units)


def _round_by_carry_(value: Tensor, steps: _Steps, scratch: dict[str, Tensor]) -> None:
    """Rounding for formats with the exponents of float32: add to the bits, then cut them off.

    Read as integers, floats of one sign are in order, and the next float is the next integer.
    So what is added below the cut carries into the kept bits just where the result is to go away
    from zero: into the next binade, out of the subnormals, up to infinity.
    """
    cut = _STORED_BITS[value.dtype] - steps.format.mantissa_bits
    if cut == 0:
        return
    bits, added = _bits(value), _bits(scratch["power"])
    one_or_nan = torch.clamp(value, 1, 1, out=scratch["value"])  # a carry may undo a NaN
    below = 2**cut - 1
    match steps.rounding:
        case "nearest-even":  # just under a half, and the last kept bit: a tie goes to even
            torch.bitwise_right_shift(bits, cut, out=added).bitwise_and_(1).add_(below >> 1)
        case "toward-zero":
            added.zero_()
        case "up" | "down":  # a shifted sign is 0 or all ones: everything, if on that side
            torch.bitwise_right_shift(bits, 31, out=added)
            added.bitwise_xor_(0 if steps.rounding == "down" else -1).bitwise_and_(below)
        case "stochastic":
            torch.bitwise_right_shift(scratch["hash"], 32 - cut, out=added).bitwise_and_(below)
    bits.add_(added).bitwise_and_(~below)
    value.mul_(one_or_nan)


def _apply_overflow_(value: Tensor, steps: _Steps) -> None:
    """Turn what came out beyond `max` into what the overflow rule says."""
    rule, beyond = steps.overflow, steps.beyond
    if rule == "saturate" or beyond == steps.format.max or (rule == "inf" and beyond == math.inf):
        return
    if rule == "inf" and steps.headroom < _BIAS[value.dtype]:
        # Scaled until `max` lies in the last binade of all, what is beyond becomes infinite.
        value.mul_(2.0**steps.headroom).mul_(2.0**-steps.headroom)
        return
    replacement = -math.inf if rule == "inf" else math.nan
    for _sign in (-1, 1):  # `threshold_` replaces what is not above its first argument
        torch.threshold_(value, -beyond, replacement).neg_()
