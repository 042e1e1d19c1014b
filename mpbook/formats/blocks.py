"""Number formats whose scale is shared by a tensor, a row, a tile or a block.

Eight bits and fewer cover too few binades for a tensor.  So such formats store small *elements*,
and per block one *scale* that moves the largest magnitude, amax, to the top of their range; a
number is element times scale.  A `BlockFormat` (`mpbook.formats.block_description`) says so as
data, `quantise` splits a tensor into `Blocks`, and `fake_quantise` gives the numbers that they
stand for.  The scale is

* in **float32** (plain FP8): ``amax / element.max``;
* in **float8_e4m3fn** (NVFP4): the same, after a float32 scale of the whole tensor has brought
  its largest block to the top of E4M3: ``tensor_amax / (448 * element.max)``;
* in **float8_e8m0fnu** (MX): a power of two, so that scaling is exact.  With amax = m * 2**e,
  1 <= m < 2, and 2**emax the top binade of the elements, it is 2**(e - emax), or twice that.
  Libraries disagree on when to double, hence `ScaleMode`, with no default (torchao's names):

  * ``"floor"`` (FLOOR): never, by OCP MX v1.0, section 6.3; magnitudes beyond max saturate.
  * ``"round-to-nearest-even"`` (EVEN): if m rounds to 2 in the elements' mantissa bits.
  * ``"rceil"`` (RCEIL, cuBLAS): if amax / scale > element.max, so that nothing saturates.
  * ``"ceil"`` (CEIL): if m > 1; nothing saturates, and up to a binade is wasted.

**Special values.**  Elements saturate.  A NaN lives in the scale: all that shares a scale with it
becomes NaN, under a tensor scale the whole tensor.  A block of zeros has float32 scale 1, e4m3
scale 0 or the smallest e8m0 scale, and keeps its signs.  Infinity is the largest float32 to a
float32 scale.  To a power of two it is 2**128 (in "rceil" the scale is 2**127): its neighbours
vanish, and its saturated element is infinity again when multiplied in float32.

**Other libraries**, as the tests show.  torchao 0.18 gives the same bits, except: its "rceil" on a
CPU goes through a float32 logarithm, and misses an amax just above a threshold; it divides blocks
of scale 2**-127 by 2**-126, in "rceil" by 1; elements under a NaN scale, which nobody reads.  Its
NVFP4 lets no block scale fall below 2**-6, and multiplies by reciprocals.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from mpbook.formats.block_description import BlockFormat, as_block_format
from mpbook.formats.checks import check_out, check_tensor, check_whole
from mpbook.formats.codes import encode_tensor
from mpbook.formats.counter_hash import draw_keys
from mpbook.formats.description import FloatFormat, Rounding, check_rounding
from mpbook.formats.rounding import in_place_rounder, round_to

ScaleMode = Literal["floor", "round-to-nearest-even", "rceil", "ceil"]

_FLOAT32_MAX = torch.finfo(torch.float32).max
_SMALLEST_FLOAT32 = 2.0**-149
_CACHE_ELEMENTS = 2**19  # half a megabyte of float32 stays in a core's cache


@dataclass(frozen=True, eq=False)
class Blocks:
    """A quantised tensor: elements, and the scales that blocks of them share.

    Args:
        block_format: how it was quantised.
        values: the elements' values before scaling, in the shape of the tensor; float32, or
            float64 if the tensor was float64.
        scales: float32, one per block, with as many dimensions as ``values``: a (256, 512) tensor
            has (1, 1) scales per tensor, (256, 1) per row, (256, 16) in blocks of (1, 32).
        tensor_scale: float32 scalar, or None.
    """

    block_format: BlockFormat
    values: Tensor
    scales: Tensor
    tensor_scale: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self.values.shape

    @property
    def bits_per_element(self) -> float:
        """Storage per element, scales included: 8.25 for MXFP8 and 4.25 for MXFP4."""
        scale_bits = self.scales.numel() * self.block_format.scale.bits
        scale_bits += 0 if self.tensor_scale is None else 32
        return self.block_format.element.bits + scale_bits / self.values.numel()

    def dequantise(self) -> Tensor:
        """The numbers that the blocks stand for, in the dtype of ``values``."""
        tiles = _as_tiles(self.values, self.block_format)
        return (tiles * self._scales_of(tiles)).reshape(self.shape)

    def codes(self) -> Tensor:
        """The elements' codes, int64; 0 for a NaN in a format without NaN, as its scale says it."""
        element = self.block_format.element
        values = self.values if element.has_nan else self.values.nan_to_num(nan=0.0)
        return encode_tensor(values, element, overflow="saturate")

    def scale_codes(self) -> Tensor:
        """The scales' codes in their format, int64."""
        return encode_tensor(self.scales, self.block_format.scale, overflow="saturate")

    def _scales_of(self, tiles: Tensor) -> Tensor:
        scales = self.scales if self.tensor_scale is None else self.scales * self.tensor_scale
        return scales.reshape(tiles.shape[0], 1, tiles.shape[2], 1)


@torch.no_grad()
def quantise(
    x: Tensor,
    block_format: str | BlockFormat,
    *,
    scale_mode: ScaleMode | None = None,
    rounding: Rounding = "nearest-even",
    generator: torch.Generator | None = None,
    keys: Tensor | None = None,
) -> Blocks:
    """Split a tensor into elements and the scales that blocks of them share.

    The quotient ``x / scale`` is exact where scales are powers of two, and otherwise rounded once
    to float32 (float64 if ``x`` is float64, or the rounding is directed) before it is rounded to
    an element.  Elements saturate.  No gradient flows back.

    Args:
        x: a real floating-point tensor, with one or more dimensions, none of them empty.
        block_format: a name in `BLOCK_FORMATS`, or a `BlockFormat`.
        scale_mode: how a power-of-two scale is chosen, see above; needed there, and only there.
        rounding: of the elements, as in `mpbook.formats.round_to`; scales round to nearest.
        generator: draws the keys of stochastic rounding, once a call, on the device of ``x``.
        keys: or the keys themselves (`mpbook.formats.counter_hash`), two int32 numbers from which,
            with an element's index, its random bits follow.  A generator cannot enter code that
            you compile, and keys can.

    Raises:
        TypeError: ``x`` is not a real floating-point tensor.
        ValueError: an empty ``x``, blocks that do not divide it, an unknown option, or a
            ``scale_mode`` that is missing or has no meaning.

    Source: OCP Microscaling Formats specification v1.0, section 6.3.

    >>> blocks = quantise(torch.tensor([[1.0, -70.0] * 16]), "mxfp4", scale_mode="floor")
    >>> blocks.scales, blocks.values[0, :2], blocks.dequantise()[0, :2]
    (tensor([[16.]]), tensor([ 0., -4.]), tensor([  0., -64.]))
    """
    keys = _keys(x, rounding, generator, keys)
    return _quantise(x, None, block_format, scale_mode, rounding, keys, dequantise=False)


@torch.no_grad()
def fake_quantise(
    x: Tensor,
    block_format: str | BlockFormat,
    *,
    scale_mode: ScaleMode | None = None,
    rounding: Rounding = "nearest-even",
    generator: torch.Generator | None = None,
    keys: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """The numbers that a tensor becomes in a block format: `quantise` and dequantise in one pass.

    Arguments and errors are those of `quantise`.  The result is written to ``out`` if given:
    ``x`` itself or memory apart from it, of the shape and device of ``x``, in the dtype of the
    result, which is float32, or float64 if ``x`` is float64.

    >>> fake_quantise(torch.tensor([1.0, 300.0, -1e4, 0.0]), "fp8_per_tensor")
    tensor([ 9.5912e-01,  2.9018e+02, -1.0000e+04,  0.0000e+00])
    """
    keys = _keys(x, rounding, generator, keys)
    return _quantise(x, out, block_format, scale_mode, rounding, keys, dequantise=True).values


def _quantise(
    x: Tensor,
    out: Tensor | None,
    block_format: str | BlockFormat,
    scale_mode: ScaleMode | None,
    rounding: Rounding,
    keys: Tensor | None,
    *,
    dequantise: bool,
) -> Blocks:
    block_format = as_block_format(block_format)
    _check(x, block_format, scale_mode)
    x = (x if x.dtype in (torch.float32, torch.float64) else x.float()).contiguous()
    if out is not None:
        check_out(out, x, x.dtype)
    values = out if out is not None and out.is_contiguous() else torch.empty_like(x)
    grid = [n // k for n, k in zip(x.shape, _extents(x.shape, block_format), strict=True)]
    scales, tensor_scale = x.new_empty(grid, dtype=torch.float32), None
    if block_format.tensor_scale:
        target = block_format.element.max * block_format.scale.max
        tensor_scale = _float32_scales(_largest(x.reshape(1, 1, 1, -1)).squeeze(), target)
    blocks = Blocks(block_format, values, scales, tensor_scale)
    tiles, targets = _as_tiles(x, block_format), _as_tiles(values, block_format)
    grid_of_tiles = scales.view(tiles.shape[0], 1, tiles.shape[2], 1)
    pieces = list(_pieces(tiles))
    round_elements = _element_rounder(block_format, rounding, keys, tiles[pieces[0]])
    for part in pieces:
        own = _scales(_largest(tiles[part]), block_format, scale_mode, tensor_scale)
        grid_of_tiles[part] = own
        combined = own if tensor_scale is None else own * tensor_scale
        round_elements(tiles[part], combined, targets[part], part.start * tiles[0].numel())
        if dequantise:
            targets[part].mul_(combined)
    return blocks if out is None else replace(blocks, values=out.copy_(values))


# --- Blocks of any shape are tiles of (N, rows, G, columns) ------------------------------------


def _extents(shape: torch.Size, block_format: BlockFormat) -> tuple[int, ...]:
    """How many elements of each dimension a block covers."""
    if block_format.block == "tensor":
        return tuple(shape)
    rows, columns = (1, shape[-1]) if block_format.block == "row" else block_format.block
    return ((1,) * (len(shape) - 2) + (rows, columns))[-len(shape) :]


def _as_tiles(x: Tensor, block_format: BlockFormat) -> Tensor:
    """A contiguous tensor as (N, rows, G, columns): block (n, g) is ``tiles[n, :, g, :]``."""
    if block_format.block == "tensor":
        return x.reshape(1, 1, 1, -1)
    *_, rows, columns = (1, *_extents(x.shape, block_format))
    if rows == 1:
        return x.reshape(-1, 1, 1, columns)
    return x.reshape(-1, rows, x.shape[-1] // columns, columns)


def _pieces(tiles: Tensor) -> Iterator[slice]:
    """All tiles at once, but on a CPU one piece after another, to go through every step in cache.

    Elsewhere launching the steps costs more than the memory they touch; and compiled code has one
    loop for all of them.
    """
    in_pieces = tiles.device.type == "cpu" and not torch.compiler.is_compiling()
    length = max(1, _CACHE_ELEMENTS // tiles[0].numel()) if in_pieces else len(tiles)
    return (slice(start, start + length) for start in range(0, len(tiles), length))


def _largest(tiles: Tensor) -> Tensor:
    """The largest magnitude of each block, NaN where there is one; (N, 1, G, 1)."""
    # Not x.abs().amax(): writing a second tensor takes longer than reading the first one twice.
    highest, lowest = tiles.amax((1, 3), keepdim=True), tiles.amin((1, 3), keepdim=True)
    return torch.maximum(highest.abs_(), lowest.abs_())


def _element_rounder(
    block_format: BlockFormat, rounding: Rounding, keys: Tensor | None, piece: Tensor
) -> Callable[[Tensor, Tensor, Tensor, int], None]:
    """A function from a piece, its scales, where to write, and the number of its first element."""
    in_float32 = rounding in ("nearest-even", "stochastic")  # or as wide as the tensor
    like = piece if in_float32 else piece.double()
    round_ = in_place_rounder(
        block_format.element, rounding=rounding, overflow="saturate", keys=keys, like=like
    )

    def round_elements(x: Tensor, scales: Tensor, out: Tensor, first: int) -> None:
        if block_format.scale.name == "float8_e4m3fn":
            scales = torch.where(scales == 0, math.inf, scales)  # 0 can store only zeros
        if in_float32:
            round_(torch.div(x, scales, out=out), first)
        else:  # in float64 the quotient falls on the right side of every element
            quotient = x.double() / scales
            round_(quotient, first)
            out.copy_(quotient)

    return round_elements


def _keys(
    x: Tensor, rounding: Rounding, generator: torch.Generator | None, keys: Tensor | None
) -> Tensor | None:
    """The keys of stochastic rounding, None for any other; or an error."""
    check_tensor(x, generator)
    if rounding != "stochastic":
        check_rounding(rounding)
        return None
    if (keys is None) == (generator is None):
        raise ValueError(
            'rounding="stochastic" needs generator=torch.Generator(), seeded by you, or keys; one'
        )
    return keys if generator is None else draw_keys(generator)


# --- Scales -----------------------------------------------------------------------------------


def _scales(
    amax: Tensor,
    block_format: BlockFormat,
    scale_mode: ScaleMode | None,
    tensor_scale: Tensor | None,
) -> Tensor:
    """The scales of blocks with these largest magnitudes."""
    element, scale = block_format.element, block_format.scale
    if scale_mode is not None:
        return _power_of_two_scales(amax, element, scale_mode)
    if scale.name == "float32":
        return _float32_scales(amax, element.max)
    scales = (amax / element.max).float()
    scales = scales if tensor_scale is None else scales / tensor_scale
    return round_to(scales, scale, overflow="saturate")


def _float32_scales(amax: Tensor, target: float) -> Tensor:
    """The float32 that divides the largest magnitude down, or up, to ``target``."""
    scales = (amax.clamp(max=_FLOAT32_MAX) / target).float().clamp(min=_SMALLEST_FLOAT32)
    return torch.where(amax == 0, 1.0, scales)


def _power_of_two_scales(amax: Tensor, element: FloatFormat, scale_mode: ScaleMode) -> Tensor:
    """``2**(floor(log2(amax)) - emax)``, or twice that, within 2**-127 and 2**127."""
    # The exponent field of a float is its logarithm.  What is added to the bits below it carries
    # into it when the significand is large enough, and doubles the scale: a number per mode.
    wide = amax.dtype == torch.float64
    fraction_bits, bias = (52, 1023) if wide else (23, 127)
    one = 2**fraction_bits
    top, emax = math.frexp(element.max)
    top, emax = 2 * top, emax - 1  # max = top * 2**emax, 1 <= top < 2
    carry = {
        "floor": 0,
        "round-to-nearest-even": one >> (element.mantissa_bits + 1),
        "rceil": one - 1 - int((top - 1) * one),
        "ceil": one - 1,
    }[scale_mode]
    field = (amax.view(torch.int64 if wide else torch.int32) + carry) >> fraction_bits
    code = (field - (bias - 127 + emax)).clamp(0, 254).int()
    scales = (code << 23).clamp(min=2**22).view(torch.float32)  # 2**-127 is subnormal
    if scale_mode == "rceil":
        scales = torch.where(amax.isinf(), 2.0**127, scales)
    return torch.where(amax.isnan(), math.nan, scales)


# --- Bad input ----------------------------------------------------------------------------------


def _check(x: Tensor, block_format: BlockFormat, scale_mode: ScaleMode | None) -> None:
    check_tensor(x)
    if x.dim() == 0 or x.numel() == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected dimensions, none of them empty")
    check_scale_mode(block_format, scale_mode)
    block = block_format.block
    if isinstance(block, tuple) and block[0] > 1 and x.dim() < 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: {block} blocks need two dimensions")
    extents = _extents(x.shape, block_format)
    if any(n % k for n, k in zip(x.shape, extents, strict=True)):
        padded = tuple(-n // k * -k for n, k in zip(x.shape, extents, strict=True))
        raise ValueError(
            f"x has shape {tuple(x.shape)}: {block_format.name}'s blocks of {block} do not divide "
            f"it; pad it with zeros to {padded}"
        )


def check_scale_mode(block_format: BlockFormat, scale_mode: ScaleMode | None) -> None:
    """Refuse a ``scale_mode`` that is missing, unknown, or has no meaning for the format."""
    modes, name = get_args(ScaleMode), block_format.name
    if not block_format.has_power_of_two_scale and scale_mode is not None:
        raise ValueError(
            f"scale_mode={scale_mode!r}: {name} has {block_format.scale.name} scales, which are "
            "no powers of two; leave it out"
        )
    if block_format.has_power_of_two_scale and scale_mode not in modes:
        given = "scale_mode is missing" if scale_mode is None else f"scale_mode={scale_mode!r}"
        raise ValueError(f"{given}: {name} has power-of-two scales; choose one of {modes}")


# --- How much is lost ---------------------------------------------------------------------------


def signal_to_noise_db(x: Tensor, y: Tensor) -> float:
    """``10 log10(sum(x**2) / sum((x - y)**2))``: how far an approximation is below its signal.

    Args:
        x: the signal.
        y: what became of it, in the same shape.

    Returns:
        Decibels, computed in float64; infinity where nothing was lost.

    Raises:
        ValueError: shapes differ, or are empty.

    >>> signal_to_noise_db(torch.tensor([10.0, 0.0]), torch.tensor([10.0, 1.0]))
    20.0
    """
    if x.shape != y.shape or x.numel() == 0:
        shapes = f"x has shape {tuple(x.shape)}, y {tuple(y.shape)}"
        raise ValueError(f"{shapes}: expected two tensors of the same shape, not empty")
    for name, tensor in (("x", x), ("y", y)):
        check_whole(tensor, name)
    signal, noise = x.double().square().sum(), (x.double() - y.double()).square().sum()
    return math.inf if noise == 0 else 10 * torch.log10(signal / noise).item()
