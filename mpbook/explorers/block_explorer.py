"""The block explorer: a row of a real tensor in a format whose scale is shared, number by number.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import base64
import dataclasses
import html
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import traitlets
from torch import Tensor

from mpbook.explorers.base import BadTraitError, Checked, Explorer, one_of
from mpbook.explorers.modules import STATIC, linked
from mpbook.formats import FORMATS, ulp
from mpbook.formats.block_description import BLOCK_FORMATS, BlockFormat, BlockShape
from mpbook.formats.blocks import Blocks, ScaleMode, quantise
from mpbook.formats.counter_hash import keys_of
from mpbook.low_precision.hadamard import hadamard_transform, random_signs

NUMBERS = 128
"""Of a row, as many as are drawn: the longest block along a row that recipes use."""

ELEMENTS = tuple(dict.fromkeys(format.element.name for format in BLOCK_FORMATS.values()))
SCALES = ("float32", "float8_e8m0fnu", "float8_e4m3fn")
BLOCKS: tuple[int | str, ...] = ("tensor", 128, 64, 32, 16)
ROTATIONS = (None, 16, 32)
"""No Hadamard transform, or one in blocks of so many numbers, as NVFP4's and MXFP4's recipes."""

Drawn = Literal["nearest-even", "stochastic"]


def _presets() -> dict[str, BlockFormat]:
    four = BlockFormat("fp4_per_tensor", FORMATS["float4_e2m1fn"], "tensor", FORMATS["float32"])
    return {
        "FP8, tensorwise": BLOCK_FORMATS["fp8_per_tensor"],
        "MXFP8": BLOCK_FORMATS["mxfp8_e4m3"],
        "FP4, tensorwise": four,
        "MXFP4": BLOCK_FORMATS["mxfp4"],
        "NVFP4": BLOCK_FORMATS["nvfp4"],
    }


PRESETS: dict[str, BlockFormat] = _presets()
"""Formats by the names that people use; "FP4, tensorwise" is nobody's, and shows why."""


def _choices_of(format: BlockFormat) -> dict[str, Any]:
    """The traits that say a format of `PRESETS`."""
    block = format.block[1] if isinstance(format.block, tuple) else format.block
    return {"element": format.element.name, "block": block, "scale": format.scale.name}


# --- What became of a row -----------------------------------------------------------------------


@dataclass(frozen=True)
class Fate:
    """What became of a row of numbers.

    Args:
        zeros: how many are 0 and were not.
        saturated: how many lay beyond the largest element by more than half of the last gap, so
            that a format which goes on would have rounded them to a larger one.
        error: norm of the differences over norm of the row.
        median_error: half of the numbers that are not 0 are off by this share or less.
        bits: of a number, with its share of its block's scale.
    """

    zeros: int
    saturated: int
    error: float
    median_error: float
    bits: float


def fate_of(row: Tensor, blocks: Blocks) -> Fate:
    """What became of a row, given as a 1-D tensor and as blocks whose first row it is."""
    element, scales = blocks.block_format.element, blocks.scales[0]
    scales = scales if blocks.tensor_scale is None else scales * blocks.tensor_scale
    largest = torch.tensor(element.max)
    beyond = float(largest + ulp(largest, element) / 2)
    x, becomes = row.double(), blocks.dequantise()[0].double()
    off = (becomes - x).abs()
    ratios = (off / x.abs())[x != 0]
    return Fate(
        zeros=int(((becomes == 0) & (x != 0)).sum()),
        saturated=int((_divided(row, scales).abs() > beyond).sum()),
        error=float(off.norm() / x.norm()) if len(ratios) else 0.0,
        median_error=float(ratios.median()) if len(ratios) else 0.0,
        bits=bits_of(blocks.block_format),
    )


def _divided(row: Tensor, scales: Tensor) -> Tensor:
    quotients = row.reshape(len(scales), -1) / torch.where(scales == 0, math.inf, scales)[:, None]
    return quotients.flatten()


def bits_of(format: BlockFormat) -> float:
    """Bits of a number in blocks along a row, with its share of its block's scale.

    >>> bits_of(BLOCK_FORMATS["nvfp4"]), bits_of(BLOCK_FORMATS["fp8_per_tensor"])
    (4.5, 8.0)
    """
    if not isinstance(format.block, tuple):
        return float(format.element.bits)
    return format.element.bits + format.scale.bits / format.block[1]


# --- The rows, as the page gets them ------------------------------------------------------------


def as_rows(tensors: Mapping[str, Tensor | tuple[Tensor, int]]) -> list[dict[str, Any]]:
    """A row of each tensor, with each rotation, and the largest magnitude of the whole tensor.

    Args:
        tensors: by name, a tensor of shape (rows, multiple of 128), or one with the number of the
            row to show; without it, the row whose largest number is farthest above its mean.

    Returns:
        For each tensor its name, the row's number, and under ``values``, by the block of the
        Hadamard transform, 128 numbers and the largest magnitude as float32 in base64.

    Raises:
        ValueError: no tensor, one of another shape, a row that is not there, NaN or infinity.
        TypeError: something else than a tensor of real floating-point numbers.
    """
    if not tensors:
        raise ValueError("tensors: there is none, expected at least one")
    return [_as_row(name, given) for name, given in tensors.items()]


def _as_row(name: str, given: Tensor | tuple[Tensor, int]) -> dict[str, Any]:
    tensor, row = given if isinstance(given, tuple) else (given, None)
    _check_tensor(name, tensor)
    tensor = tensor.detach().float().cpu()
    if row is None:
        heads = tensor[:, :NUMBERS].abs()
        row = int((heads.amax(1) / heads.mean(1).clamp(min=2.0**-149)).argmax())
    if not 0 <= row < len(tensor):
        raise ValueError(f"tensors[{name!r}]: row={row}, expected 0 to {len(tensor) - 1}")
    values = {str(block): _packed(tensor, row, block) for block in ROTATIONS}
    return {"name": name, "row": row, "shape": list(tensor.shape), "values": values}


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        found = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"tensors[{name!r}] is {found}: expected a real floating-point tensor")
    if tensor.dim() != 2 or not tensor.numel() or tensor.shape[1] % NUMBERS:
        raise ValueError(
            f"tensors[{name!r}] has shape {tuple(tensor.shape)}: expected rows whose length is a "
            f"multiple of {NUMBERS}"
        )
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"tensors[{name!r}] holds NaN or infinity: expected finite numbers")


def _packed(tensor: Tensor, row: int, block: int | None) -> str:
    """The row's numbers and the tensor's largest magnitude, rotated in blocks of this size."""
    if block is not None:
        signs = random_signs(block, torch.Generator().manual_seed(0))
        tensor = hadamard_transform(tensor, block, signs=signs)
    numbers = [*tensor[row, :NUMBERS].tolist(), float(tensor.abs().amax())]
    return base64.b64encode(struct.pack(f"<{NUMBERS + 1}f", *numbers)).decode()


def _unpacked(text: str) -> tuple[Tensor, float]:
    *numbers, amax = struct.unpack(f"<{NUMBERS + 1}f", base64.b64decode(text))
    return torch.tensor(numbers), amax


def quantised(x: Tensor, format: BlockFormat, *, scale_mode: ScaleMode, seed: int | None) -> Blocks:
    """`mpbook.formats.blocks.quantise`, stochastic where there is a seed of its draws."""
    mode = scale_mode if format.has_power_of_two_scale else None
    if seed is None:
        return quantise(x, format, scale_mode=mode)
    keys = keys_of(torch.tensor([seed, 0], dtype=torch.int32))
    return quantise(x, format, scale_mode=mode, rounding="stochastic", keys=keys)


# --- The widget ---------------------------------------------------------------------------------


def _one_of(name: str, choices: tuple[Any, ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if value not in choices or isinstance(value, bool):
            raise ValueError(f"{name}={value!r}: expected one of {choices}")
        return value

    return check


def _as_number(number: Any) -> int:
    if type(number) is not int or not 0 <= number < NUMBERS:
        raise ValueError(f"number={number!r}: expected an integer from 0 to {NUMBERS - 1}")
    return number


def _as_seed(seed: Any) -> int:
    if type(seed) is not int or not 0 <= seed < 2**31:
        raise ValueError(f"seed={seed!r}: expected an integer from 0 to 2**31 - 1")
    return seed


class BlockExplorer(Explorer):
    """A row of a tensor in a block format: what becomes zero, what saturates, and the error.

    The traits ``tensor``, ``element``, ``block``, ``scale``, ``scale_mode``, ``rounding``,
    ``hadamard``, ``seed`` and ``number`` follow the reader, and the picture follows them:
    ``explorer.block = 16``.

    Args:
        tensors: by name, a tensor or a pair of tensor and row; see `as_rows`.
        preset: the format to begin with: ``"FP8, tensorwise"``, ``"MXFP8"``, ``"FP4, tensorwise"``,
            ``"MXFP4"`` or ``"NVFP4"``.
        scale_mode: how a power-of-two scale is chosen, see `mpbook.formats.blocks`.
        rounding: ``"nearest-even"`` or ``"stochastic"``, whose bits follow from ``seed``.
        hadamard: block of the Hadamard transform before it, None, 16 or 32.
        **traits: any other of the traits.

    Raises:
        ValueError: an argument that cannot be drawn; it names what would be right.
        TypeError: a tensor that is none.

    >>> explorer = BlockExplorer({"x": torch.linspace(-1, 1, 128)[None]}, "MXFP4")
    >>> explorer.fate().zeros, explorer.fate().bits
    (4, 4.25)
    """

    _esm = linked(STATIC / "block_explorer.mjs")
    _twin = "block_explorer"
    _twin_traits = (
        "rows", "tensor", "element", "block", "scale", "scale_mode", "rounding", "hadamard", "seed",
        "number", "presets", "elements", "formats",
    )  # fmt: skip

    rows: Any = traitlets.List(read_only=True).tag(sync=True)
    tensor = traitlets.Unicode().tag(sync=True)
    element = Checked(one_of("element", ELEMENTS), "float4_e2m1fn").tag(sync=True)
    block = Checked(_one_of("block", BLOCKS), 32).tag(sync=True)
    scale = Checked(one_of("scale", SCALES), "float8_e8m0fnu").tag(sync=True)
    scale_mode = Checked(one_of("scale_mode", get_args(ScaleMode)), "rceil").tag(sync=True)
    rounding = Checked(one_of("rounding", get_args(Drawn)), "nearest-even").tag(sync=True)
    hadamard = Checked(_one_of("hadamard", ROTATIONS), None).tag(sync=True)
    seed = Checked(_as_seed, 0).tag(sync=True)
    number = Checked(_as_number, 0).tag(sync=True)
    presets = traitlets.List(
        [[name, _choices_of(format)] for name, format in PRESETS.items()], read_only=True
    ).tag(sync=True)
    elements = traitlets.List(list(ELEMENTS), read_only=True).tag(sync=True)
    formats = traitlets.Dict(
        {name: dataclasses.asdict(FORMATS[name]) for name in (*ELEMENTS, *SCALES)}, read_only=True
    ).tag(sync=True)

    def __init__(
        self,
        tensors: Mapping[str, Tensor | tuple[Tensor, int]],
        preset: str = "MXFP4",
        *,
        scale_mode: ScaleMode = "rceil",
        rounding: Drawn = "nearest-even",
        hadamard: int | None = None,
        **traits: Any,
    ) -> None:
        rows = as_rows(tensors)
        chosen = _choices_of(PRESETS[one_of("preset", tuple(PRESETS))(preset)])
        chosen |= {"scale_mode": scale_mode, "rounding": rounding, "hadamard": hadamard}
        self.set_trait("rows", rows)
        super().__init__(**{"tensor": rows[0]["name"]} | chosen | traits)

    @traitlets.validate("tensor")
    def _is_there(self, proposal: Any) -> str:
        names = tuple(row["name"] for row in self.rows)
        try:
            return str(one_of("tensor", names)(proposal.value))
        except ValueError as error:
            raise BadTraitError(str(error)) from error

    def format(self) -> BlockFormat:
        """The block format that is chosen."""
        block: BlockShape = "tensor" if self.block == "tensor" else (1, self.block)
        two = self.scale == "float8_e4m3fn"
        return BlockFormat("chosen", self.element, block, FORMATS[self.scale], tensor_scale=two)

    def row(self) -> tuple[Tensor, float]:
        """The 128 numbers that are quantised, and the largest magnitude of their tensor."""
        values = {row["name"]: row["values"] for row in self.rows}
        return _unpacked(values[self.tensor][str(self.hadamard)])

    def blocks(self, format: BlockFormat | None = None) -> Blocks:
        """What the row becomes in the chosen format, or in another.

        A second row holds the largest magnitude of the tensor, which its scale may depend on.
        """
        row, amax = self.row()
        companion = torch.zeros_like(row)
        companion[0] = amax
        return quantised(
            torch.stack([row, companion]),
            format or self.format(),
            scale_mode=self.scale_mode,
            seed=self.seed if self.rounding == "stochastic" else None,
        )

    def fate(self, format: BlockFormat | None = None) -> Fate:
        """What becomes of the row in the chosen format, or in another."""
        return fate_of(self.row()[0], self.blocks(format))

    def _fallback(self) -> str:
        head = ("format", "became zero", "saturated", "row off by", "median off by", "bits")
        cells = "".join(f"<th scope='col'>{name}</th>" for name in head)
        body = "".join(
            f"<tr><th scope='row'>{name}</th><td>{fate.zeros}</td><td>{fate.saturated}</td>"
            f"<td>{100 * fate.error:.2g}%</td><td>{100 * fate.median_error:.2g}%</td>"
            f"<td>{fate.bits:g}</td></tr>"
            for name, fate in ((name, self.fate(format)) for name, format in PRESETS.items())
        )
        title = html.escape(f"{NUMBERS} numbers of {self.tensor}")
        return (
            f"<figure class='mp-static'><figcaption>{title}</figcaption>"
            f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></figure>"
        )

    def __repr__(self) -> str:
        return (
            f"BlockExplorer(tensor={self.tensor!r}, element={self.element!r}, "
            f"block={self.block!r}, scale={self.scale!r}, rounding={self.rounding!r}, "
            f"hadamard={self.hadamard!r})"
        )
