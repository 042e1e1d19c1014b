"""Other libraries that round to small formats, behind one call, to compare with.

Each `Peer` says which formats it knows and rounds a float32 tensor to one of them, the way that the
library does when nothing is said about overflow.  Only libraries that are installed are listed, so
a comparison names what it compared: ``pip install "mpbook[peers]"`` gets more of them.

Used by the benchmark (``python -m mpbook bench formats``) and by the page "Same name, different
number".
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mpbook.formats import FloatFormat, as_format, encode, neighbours
from mpbook.formats.block_description import BlockFormat

Round = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Peer:
    """A library, its version, and how it rounds.

    ``prepare`` takes a format and returns the function from float32 tensors to rounded float32
    tensors, or None where the library does not know the format.  ``prepare_blocks`` does so for
    a format with shared scales, there and back, with scales that are rounded down ("floor").
    ``stored`` says what is left of rounded numbers in the format's codes, where rounding goes
    through none; it raises for what has no code.  ``told_bits_only``: the library is told how many
    bits are exponent and mantissa, and never the name of a format.
    """

    name: str
    version: str
    prepare: Callable[[FloatFormat], Round | None]
    prepare_blocks: Callable[[BlockFormat], Round | None] = lambda _: None
    stored: Callable[[FloatFormat, Tensor], Tensor] = lambda _, rounded: rounded
    told_bits_only: bool = False


def installed() -> list[Peer]:
    """The libraries of this module that can be imported here, torch first."""
    known = {
        "torch": _torch,
        "ml_dtypes": _ml_dtypes,
        "gfloat": _gfloat,
        "torchao": _torchao,
        "qtorch": _qtorch,
        "pychop": _pychop,
    }
    found = []
    for name, load in known.items():
        try:
            with _quiet():
                prepare = load()
        except Exception:  # a peer that is absent or does not load on this machine
            continue
        found.append(Peer(name, _version(name), prepare, **_MORE.get(name, {})))
    return found


def _version(name: str) -> str:
    """Torch's own, with its build: a wheel may call itself +cu130 where its package does not."""
    return str(torch.__version__) if name == "torch" else importlib.metadata.version(name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Peers warn and log while they load; that is not our reader's business."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _torch() -> Callable[[FloatFormat], Round | None]:
    def prepare(format: FloatFormat) -> Round | None:
        dtype = getattr(torch, format.name, None)
        if dtype is None or dtype in (torch.float32, getattr(torch, "float4_e2m1fn_x2", None)):
            return None
        return lambda x: x.to(dtype).to(torch.float32)

    return prepare


def _ml_dtypes() -> Callable[[FloatFormat], Round | None]:
    import ml_dtypes

    def prepare(format: FloatFormat) -> Round | None:
        if format.name == "float16":
            dtype: Any = np.float16
        else:
            dtype = getattr(ml_dtypes, format.name, None)
        if dtype is None:
            return None

        def round_with_ml_dtypes(x: Tensor) -> Tensor:
            with np.errstate(all="ignore"):
                return torch.from_numpy(x.numpy().astype(dtype).astype(np.float32))

        return round_with_ml_dtypes

    return prepare


def _gfloat_infos() -> dict[str, Any]:
    import gfloat.formats

    return {
        "float32": gfloat.formats.format_info_binary32,
        "float16": gfloat.formats.format_info_binary16,
        "bfloat16": gfloat.formats.format_info_bfloat16,
        "float8_e4m3fn": gfloat.formats.format_info_ocp_e4m3,
        "float8_e5m2": gfloat.formats.format_info_ocp_e5m2,
        "float6_e2m3fn": gfloat.formats.format_info_ocp_e2m3,
        "float6_e3m2fn": gfloat.formats.format_info_ocp_e3m2,
        "float4_e2m1fn": gfloat.formats.format_info_ocp_e2m1,
        "float8_e8m0fnu": gfloat.formats.format_info_ocp_e8m0,
    }


def _gfloat() -> Callable[[FloatFormat], Round | None]:
    import gfloat

    infos = _gfloat_infos()

    def prepare(format: FloatFormat) -> Round | None:
        if format.name not in infos or format.name == "float32":
            return None
        info, saturate = infos[format.name], not format.has_nan

        def round_with_gfloat(x: Tensor) -> Tensor:
            with np.errstate(all="ignore"):
                rounded = gfloat.round_ndarray(info, x.double().numpy(), sat=saturate)
                return torch.from_numpy(rounded.astype(np.float32))

        return round_with_gfloat

    return prepare


def _gfloat_stored(format: FloatFormat, rounded: Tensor) -> Tensor:
    """`gfloat.round_ndarray` rounds without codes: 0 stays 0 in a format that has none."""
    import gfloat

    info = _gfloat_infos()[format.name]
    codes = [gfloat.encode_float(info, value) for value in rounded.double().tolist()]
    return torch.tensor([gfloat.decode_float(info, code).fval for code in codes])


def _torchao() -> Callable[[FloatFormat], Round | None]:
    utils = importlib.import_module("torchao.prototype.custom_fp_utils")

    def prepare(format: FloatFormat) -> Round | None:
        bits = (format.exponent_bits, format.mantissa_bits)
        if format.specials != "none" or bits not in ((2, 1), (2, 3), (3, 2)):
            return None
        return lambda x: utils._floatx_unpacked_to_f32(
            utils._f32_to_floatx_unpacked(x, *bits), *bits
        )

    return prepare


def _torchao_blocks(format: BlockFormat) -> Round | None:
    dtype = getattr(torch, format.element.name, None)
    if format.scale.name != "float8_e8m0fnu" or format.element.bits != 8 or dtype is None:
        return None
    with _quiet():
        mx = importlib.import_module("torchao.prototype.mx_formats.mx_tensor")
    mode = mx.ScaleCalculationMode.FLOOR
    return lambda x: mx.MXTensor.to_mx(x, dtype, 32, mode).dequantize(torch.float32)


def _is_a_mere_split(format: FloatFormat) -> bool:
    """Whether exponent and mantissa bits are all that a library has to be told about a format."""
    usual_bias = format.bias == 2 ** (format.exponent_bits - 1) - 1
    return format.signed and usual_bias and format.name != "float32"


def _qtorch() -> Callable[[FloatFormat], Round | None]:
    float_quantize = importlib.import_module("qtorch.quant").float_quantize

    def prepare(format: FloatFormat) -> Round | None:
        if not _is_a_mere_split(format):
            return None
        bits = {"exp": format.exponent_bits, "man": format.mantissa_bits}
        return lambda x: float_quantize(x, **bits, rounding="nearest")

    return prepare


def _pychop() -> Callable[[FloatFormat], Round | None]:
    pychop = importlib.import_module("pychop")

    def prepare(format: FloatFormat) -> Round | None:
        if not _is_a_mere_split(format):
            return None
        pychop.backend("torch")
        chop = pychop.Chop(exp_bits=format.exponent_bits, sig_bits=format.mantissa_bits, rmode=1)
        return lambda x: chop(x)

    return prepare


_MORE: dict[str, dict[str, Any]] = {
    "gfloat": {"stored": _gfloat_stored},
    "torchao": {"prepare_blocks": _torchao_blocks},
    "qtorch": {"told_bits_only": True},
    "pychop": {"told_bits_only": True},
}
"""What is particular to some of them."""

# --- What they do with the same input ---------------------------------------------------------


@dataclass(frozen=True)
class Behaviour:
    """What one library makes of the hard inputs of one format, as words and numbers.

    ``ties`` names the rule that the midpoints between 1 and the next two numbers follow; "to even"
    is to the number whose code is even.  ``smallest`` is
    what becomes of the smallest positive number, of three quarters of it, and of 0; ``overflow``
    of numbers slightly less and more than half a gap beyond the largest.
    """

    library: str
    format: str
    ties: str
    smallest: str
    overflow: str
    infinity: str
    nan: str


def behaviour(peer: Peer, format: str | FloatFormat) -> Behaviour | None:
    """How a peer rounds ties, underflows, overflows and treats infinity and NaN in a format.

    Returns:
        None where the peer does not know the format.
    """
    described = as_format(format)
    with _quiet():
        rounder = peer.prepare(described)
    if rounder is None:
        return None
    told = f", told {described.exponent_bits} + {described.mantissa_bits} bits"
    library = f"{peer.name} {peer.version}{told if peer.told_bits_only else ''}"
    return describe(library, lambda x: peer.stored(described, rounder(x)), described)


def describe(library: str, rounder: Round, format: FloatFormat) -> Behaviour:
    """The same, of any function that rounds float32 tensors."""

    def one(value: float) -> str:
        try:
            with _quiet():
                x = torch.full((4,), value, dtype=torch.float64).float()
                result = rounder(x)[0].item()
        except Exception as error:  # some libraries refuse what they have no code for
            return type(error).__name__
        return "NaN" if result != result else f"{result:.6g}".replace("inf", "infinity")

    low = format.smallest_subnormal or format.smallest_normal
    gap = format.eps * 2.0 ** (int(np.log2(format.max)))
    return Behaviour(
        library=library,
        format=format.name,
        ties=_ties(one, format),
        smallest=f"{one(low)}, {one(low * 0.75)}, {one(0.0)}",
        overflow=f"{one(format.max + 0.49 * gap)}, {one(format.max + 0.75 * gap)}",
        infinity=one(float("inf")),
        nan=one(float("nan")),
    )


def _ties(one: Callable[[float], str], format: FloatFormat) -> str:
    """The name of what two neighbouring ties above 1 are rounded to."""
    low, middle = 1.0, 1 + format.eps
    high = neighbours(middle, format)[1] or middle
    found = (one((low + middle) / 2), one((middle + high) / 2))
    even = encode(low, format, overflow="saturate") % 2 == 0
    named = {
        ((low, high) if even else (middle, middle)): "to even",
        (middle, high): "away from zero",
        (low, middle): "toward zero",
    }
    by_text = {tuple(f"{x:.6g}" for x in pair): rule for pair, rule in named.items()}
    return by_text.get(found, ", ".join(found))
