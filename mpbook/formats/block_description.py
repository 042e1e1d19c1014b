"""What a format with shared scales is, as data: its elements, its blocks, and their scale.

`mpbook.formats.blocks` quantises to such a format, and says what each scale means.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from mpbook.formats.description import FloatFormat, as_format
from mpbook.synonyms import did_you_mean

BlockShape = Literal["tensor", "row"] | tuple[int, int]

_SCALES = ("float32", "float8_e8m0fnu", "float8_e4m3fn")


@dataclass(frozen=True)
class BlockFormat:
    """Elements of a small format, in blocks that share a scale.

    Args:
        name: e.g. ``"mxfp4"``.
        element: format of the elements; a name or dtype is looked up.
        block: what shares a scale: ``"tensor"``, ``"row"`` (the last dimension), or a tile of the
            last two dimensions, such as ``(1, 32)`` or ``(128, 128)``.
        scale: format of the scales, ``"float32"``, ``"float8_e8m0fnu"`` or ``"float8_e4m3fn"``.
        tensor_scale: whether one more scale, in float32, is shared by the whole tensor; for
            ``float8_e4m3fn`` scales only.

    Raises:
        ValueError: a block, scale or element that no block format can have.

    Source: OCP Microscaling Formats specification v1.0, section 5.

    >>> BLOCK_FORMATS["mxfp4"].element.max, BLOCK_FORMATS["mxfp4"].block
    (6.0, (1, 32))
    """

    name: str
    element: FloatFormat
    block: BlockShape
    scale: FloatFormat
    tensor_scale: bool = False

    def __post_init__(self) -> None:
        for field in ("element", "scale"):
            object.__setattr__(self, field, as_format(getattr(self, field)))
        element = self.element
        if not element.has_negative_zero or element.mantissa_bits > 7 or element.max < 2:
            raise ValueError(f"element={element.name}: expected a small signed format, max >= 2")
        if self.scale.name not in _SCALES:
            raise ValueError(f"scale={self.scale.name!r}: expected one of {_SCALES}")
        if self.tensor_scale and self.scale.name != "float8_e4m3fn":
            raise ValueError(f"tensor_scale=True: {self.scale.name} scales need no second scale")
        if self.block not in ("tensor", "row") and not _is_tile(self.block):
            raise ValueError(
                f'block={self.block!r}: expected "tensor", "row" or two positive integers'
            )

    @property
    def has_power_of_two_scale(self) -> bool:
        """Whether scales are powers of two, so that a `ScaleMode` has to be chosen."""
        return self.scale.name == "float8_e8m0fnu"


def _is_tile(block: object) -> bool:
    is_pair = isinstance(block, tuple) and len(block) == 2
    return is_pair and all(type(n) is int and n > 0 for n in cast(tuple[int, int], block))


def _block_formats() -> dict[str, BlockFormat]:
    e4m3, e5m2, e2m1 = map(as_format, ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"))
    e2m3, e3m2 = map(as_format, ("float6_e2m3fn", "float6_e3m2fn"))
    float32, e8m0 = as_format("float32"), as_format("float8_e8m0fnu")
    described = (
        BlockFormat("fp8_per_tensor", e4m3, "tensor", float32),
        BlockFormat("fp8_per_row", e4m3, "row", float32),
        BlockFormat("fp8_1x128", e4m3, (1, 128), float32),
        BlockFormat("fp8_128x128", e4m3, (128, 128), float32),
        BlockFormat("mxfp8_e4m3", e4m3, (1, 32), e8m0),
        BlockFormat("mxfp8_e5m2", e5m2, (1, 32), e8m0),
        BlockFormat("mxfp6_e2m3", e2m3, (1, 32), e8m0),
        BlockFormat("mxfp6_e3m2", e3m2, (1, 32), e8m0),
        BlockFormat("mxfp4", e2m1, (1, 32), e8m0),
        BlockFormat("nvfp4", e2m1, (1, 16), e4m3, tensor_scale=True),
    )
    return {format.name: format for format in described}


BLOCK_FORMATS: dict[str, BlockFormat] = _block_formats()
"""Block formats by name: plain FP8, DeepSeek-V3's tiles, the OCP's MX formats, NVIDIA's NVFP4."""


def as_block_format(block_format: str | BlockFormat) -> BlockFormat:
    """The `BlockFormat` that a name stands for.

    Raises:
        ValueError: a name that is not in `BLOCK_FORMATS`.
        TypeError: neither a name nor a block format.

    >>> as_block_format("nvfp4").scale.name
    'float8_e4m3fn'
    """
    if isinstance(block_format, BlockFormat):
        return block_format
    if not isinstance(block_format, str):
        raise TypeError(f"block_format={block_format!r}: expected a name or a BlockFormat")
    if block_format not in BLOCK_FORMATS:
        hint = did_you_mean(block_format, BLOCK_FORMATS)
        names = ", ".join(BLOCK_FORMATS)
        raise ValueError(f"block_format={block_format!r}: expected one of {names}{hint}")
    return BLOCK_FORMATS[block_format]
