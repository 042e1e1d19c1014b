"""`mpbook.formats` against ml_dtypes, gfloat, torch and numpy: every code, every tie."""

import math
import struct
from fractions import Fraction

import gfloat
import gfloat.formats
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpbook.formats import (
    FORMATS,
    FloatFormat,
    as_format,
    decode,
    decode_tensor,
    encode,
    encode_tensor,
    fields,
    neighbours,
    round_to,
    ulp,
)

ROUNDINGS = ["nearest-even", "toward-zero", "up", "down"]
OTHERS = [
    FloatFormat("float8_e3m4", 3, 4),
    FloatFormat("float8_e4m3", 4, 3),
    FloatFormat("float8_e4m3b11fnuz", 4, 3, bias=11, specials="nan_is_negative_zero"),
]
INVENTED = [
    FloatFormat("tiny", 1, 1, specials="none"),
    FloatFormat("unsigned", 3, 2, signed=False),
    FloatFormat("powers_of_four_bits", 4, 0, specials="none"),
    FloatFormat("shifted", 4, 3, bias=40, specials="nan"),
    FloatFormat("wide", 10, 2),
]
UP_TO_16_BITS = [f for f in FORMATS.values() if f.bits <= 16] + OTHERS
GFLOAT = {
    "float16": gfloat.formats.format_info_binary16,
    "bfloat16": gfloat.formats.format_info_bfloat16,
    "float8_e4m3fn": gfloat.formats.format_info_ocp_e4m3,
    "float8_e5m2": gfloat.formats.format_info_ocp_e5m2,
    "float4_e2m1fn": gfloat.formats.format_info_ocp_e2m1,
    "float6_e2m3fn": gfloat.formats.format_info_ocp_e2m3,
    "float6_e3m2fn": gfloat.formats.format_info_ocp_e3m2,
    "float8_e8m0fnu": gfloat.formats.format_info_ocp_e8m0,
}
GFLOAT_ROUNDING = {
    "nearest-even": gfloat.RoundMode.TiesToEven,
    "toward-zero": gfloat.RoundMode.TowardZero,
    "up": gfloat.RoundMode.TowardPositive,
    "down": gfloat.RoundMode.TowardNegative,
}

by_name = pytest.mark.parametrize("format", UP_TO_16_BITS, ids=lambda f: f.name)
any_format = pytest.mark.parametrize(
    "format", [*FORMATS.values(), *OTHERS, *INVENTED], ids=lambda f: f.name
)


def oracle_dtype(format: FloatFormat) -> np.dtype:
    return np.dtype("float16" if format.name == "float16" else getattr(ml_dtypes, format.name))


def oracle_values(format: FloatFormat) -> np.ndarray:
    """The values of all codes, from ml_dtypes or numpy."""
    unsigned = np.uint16 if format.bits > 8 else np.uint8
    codes = np.arange(2**format.bits).astype(unsigned)
    with np.errstate(invalid="ignore"):
        return codes.view(oracle_dtype(format)).astype(np.float64)


def finite_values(format: FloatFormat) -> np.ndarray:
    codes = torch.arange(2**format.bits) if format.bits <= 16 else edge_codes(format)
    values = decode_tensor(codes, format).numpy()
    return np.unique(values[np.isfinite(values)])


def edge_codes(format: FloatFormat) -> torch.Tensor:
    """Codes around every power of two and at both ends of a format too wide to enumerate."""
    starts = torch.arange(2**format.exponent_bits) << format.mantissa_bits
    around = (starts[:, None] + torch.arange(-3, 4)).flatten()
    codes = around[(around >= 0) & (around < 2 ** (format.bits - 1))]
    return torch.cat([codes, codes + 2 ** (format.bits - 1)])


def hard_inputs(format: FloatFormat, dtype: type = np.float64) -> np.ndarray:
    """Every value, every midpoint, the inputs just beside them, and what lies beyond max."""
    values = finite_values(format)
    beyond = [s * f * format.max for s in (-1, 1) for f in (1 + format.eps / 4, 1.5, 2, 1e4)]
    with np.errstate(over="ignore"):
        grid = np.concatenate([values, (values[1:] + values[:-1]) / 2, beyond])
        virtual = grid.max() if format.mantissa_bits else 0  # the overflow threshold
        top = format.max + float(ulp(torch.tensor(format.max).double(), format)) / 2
        grid = np.concatenate([grid, [top, -top, virtual]]).astype(dtype)
    grid = grid[np.isfinite(grid)]
    inf = dtype(np.inf)
    around = np.concatenate([grid, np.nextafter(grid, inf), np.nextafter(grid, -inf), [inf, -inf]])
    return around if format.signed else np.unique(around[around > 0])


def same(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal element by element, NaN equal to NaN and -0 different from +0."""
    left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
    both_nan = np.isnan(left) & np.isnan(right)
    equal = (left == right) & (np.signbit(left) == np.signbit(right))
    return bool(np.all(both_nan | equal))


# --- descriptions -----------------------------------------------------------------------------


@by_name
def test_limits_equal_finfo(format):
    info = ml_dtypes.finfo(oracle_dtype(format))
    assert format.bits == info.bits
    assert format.max == float(info.max)
    assert format.eps == float(info.eps)
    assert format.smallest_normal == float(info.smallest_normal)
    if format.smallest_subnormal is not None:
        assert format.smallest_subnormal == float(info.smallest_subnormal)


def test_limits_of_float32_and_tfloat32():
    info = np.finfo(np.float32)
    float32, tfloat32 = FORMATS["float32"], FORMATS["tfloat32"]
    assert (float32.max, float32.eps) == (float(info.max), float(info.eps))
    assert float32.smallest_subnormal == float(info.smallest_subnormal)
    assert (tfloat32.bits, tfloat32.eps) == (19, FORMATS["float16"].eps)
    assert tfloat32.smallest_normal == float32.smallest_normal
    assert tfloat32.precision == 11


def test_e8m0_has_neither_zero_nor_sign_nor_infinity():
    format = FORMATS["float8_e8m0fnu"]
    values = oracle_values(format)
    assert values[:0xFF].min() > 0 and np.isnan(values[0xFF])
    assert format.smallest_subnormal is None
    assert not (format.signed or format.has_inf or format.has_negative_zero)


def test_without_mantissa_bits_there_are_no_subnormals():
    assert FloatFormat("powers_of_two", 4, 0, specials="none").smallest_subnormal is None


def test_every_named_format_is_listed_under_its_own_name():
    assert all(name == format.name for name, format in FORMATS.items())
    assert list(FORMATS)[:4] == ["float32", "tfloat32", "float16", "bfloat16"]


def test_a_format_prints_its_layout():
    text = "float16: 1 sign + 5 exponent + 10 mantissa bits, bias 15, max 65504"
    assert str(FORMATS["float16"]) == text
    assert str(FORMATS["float8_e8m0fnu"]).startswith("float8_e8m0fnu: 8 exponent + 0 mantissa")


@pytest.mark.parametrize("spelling", ["bfloat16", torch.bfloat16, FORMATS["bfloat16"]])
def test_as_format_accepts_names_dtypes_and_formats(spelling):
    assert as_format(spelling) is FORMATS["bfloat16"]


def test_unknown_formats_are_refused_with_what_would_be_right():
    with pytest.raises(ValueError, match="did you mean 'float16'"):
        as_format("flaot16")
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        as_format("e4m3")
    with pytest.raises(ValueError, match="float64"):
        as_format(torch.float64)
    with pytest.raises(TypeError, match="expected a name"):
        as_format(16)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(exponent_bits=0, mantissa_bits=7), ValueError, "fixed-point"),
        (dict(exponent_bits=12, mantissa_bits=7), ValueError, "1 to 11"),
        (dict(exponent_bits=5, mantissa_bits=-1), ValueError, "0 to 52"),
        (dict(exponent_bits=5, mantissa_bits=53), ValueError, "0 to 52"),
        (dict(exponent_bits=5.0, mantissa_bits=2), TypeError, "exponent_bits=5.0"),
        (dict(exponent_bits=5, mantissa_bits=2.0), TypeError, "mantissa_bits=2.0"),
        (dict(exponent_bits=5, mantissa_bits=2, bias=1.5), TypeError, "bias=1.5"),
        (dict(exponent_bits=True, mantissa_bits=2), TypeError, "exponent_bits=True"),
        (dict(exponent_bits=5, mantissa_bits=2, specials="ieee"), ValueError, "specials='ieee'"),
        (dict(exponent_bits=5, mantissa_bits=0), ValueError, "1 mantissa bit"),
        (dict(exponent_bits=1, mantissa_bits=3), ValueError, "2 exponent bits"),
        (dict(exponent_bits=5, mantissa_bits=2, subnormals=False), ValueError, "signed=False"),
        (dict(exponent_bits=5, mantissa_bits=2, bias=5000), ValueError, "range of float64"),
        (dict(exponent_bits=5, mantissa_bits=2, bias=-5000), ValueError, "range of float64"),
        (dict(exponent_bits=1, mantissa_bits=0, specials="nan"), ValueError, "no positive"),
        (
            dict(exponent_bits=4, mantissa_bits=3, specials="nan_is_negative_zero", signed=False),
            ValueError,
            "sign bit and a zero",
        ),
    ],
)
def test_impossible_formats_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        FloatFormat("invented", **arguments)


def test_the_range_of_a_format_ends_where_float64_is_still_exact():
    for bias in (1021, -1020):
        format = FloatFormat("at the end", 2, 2, bias=bias)
        assert decode(encode(format.max, format, overflow="inf"), format) == format.max
    for bias in (1022, -1021):
        with pytest.raises(ValueError, match="range of float64"):
            FloatFormat("beyond the end", 2, 2, bias=bias)


# --- decode -----------------------------------------------------------------------------------


@by_name
def test_every_code_decodes_as_in_ml_dtypes(format):
    expected = oracle_values(format)
    codes = range(2**format.bits)
    assert same([decode(code, format) for code in codes], expected)
    assert same(decode_tensor(torch.arange(2**format.bits), format), expected)


@pytest.mark.parametrize("name", GFLOAT)
def test_every_code_decodes_as_in_gfloat(name):
    format = FORMATS[name]
    expected = [gfloat.decode_float(GFLOAT[name], code).fval for code in range(2**format.bits)]
    assert same(decode_tensor(torch.arange(2**format.bits), format), expected)


def test_float32_decodes_as_numpy():
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(2**32, (200_000,), generator=generator)
    codes = torch.cat([random, edge_codes(FORMATS["float32"])])
    with np.errstate(invalid="ignore"):
        expected = codes.numpy().astype(np.uint32).view(np.float32).astype(np.float64)
    assert same(decode_tensor(codes, "float32"), expected)
    assert same([decode(code, "float32") for code in codes[-2000:].tolist()], expected[-2000:])


@any_format
def test_the_two_paths_decode_alike(format):
    codes = torch.arange(2**format.bits) if format.bits <= 10 else edge_codes(format)
    assert same(decode_tensor(codes, format), [decode(code, format) for code in codes.tolist()])


def test_fields_split_a_code_as_stored():
    (code,) = struct.unpack("<H", struct.pack("<e", -1.5))
    assert fields(code, "float16") == (1, 15, 512)
    assert fields(254, "float8_e8m0fnu") == (0, 254, 0)


def test_codes_outside_the_format_are_refused():
    for code in (-1, 256):
        with pytest.raises(ValueError, match="0 to 255"):
            decode(code, "float8_e5m2")
        with pytest.raises(ValueError, match="0 to 255"):
            decode_tensor(torch.tensor([code]), "float8_e5m2")
    for codes in (torch.ones(2), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(TypeError, match="integer tensor"):
            decode_tensor(codes, "float16")


# --- encode and round -------------------------------------------------------------------------


@any_format
def test_every_code_survives_the_round_trip(format):
    codes = torch.arange(2**format.bits) if format.bits <= 16 else edge_codes(format)
    values = decode_tensor(codes, format)
    number = ~values.isnan()
    overflow = "inf" if format.has_inf else "saturate"
    for rounding in ROUNDINGS:
        back = encode_tensor(values[number], format, rounding=rounding, overflow=overflow)
        assert torch.equal(back, codes[number])
    few = slice(None, None, max(1, len(codes[number]) // 2000))
    for code, value in zip(codes[number][few].tolist(), values[number][few].tolist(), strict=True):
        assert encode(value, format, overflow=overflow) == code


@by_name
def test_nearest_rounding_equals_ml_dtypes_at_every_value_and_tie(format):
    x = hard_inputs(format, np.float32)
    if format.name == "float8_e8m0fnu":  # see test_e8m0_just_above_its_smallest_number
        x = x[(x <= 2.0**-127) | (x >= 1.5 * 2.0**-127)]
    with np.errstate(all="ignore"):
        expected = x.astype(oracle_dtype(format)).astype(np.float64)
    overflow = "inf" if format.has_inf else "nan" if format.has_nan else "saturate"
    assert same(round_to(torch.from_numpy(x), format, overflow=overflow), expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("saturate", [False, True])
@pytest.mark.parametrize("name", [n for n in GFLOAT if n != "float8_e8m0fnu"])
def test_every_rounding_equals_gfloat_at_every_value_and_tie(name, rounding, saturate):
    format, info = FORMATS[name], GFLOAT[name]
    if not saturate and not format.has_nan:
        pytest.skip("gfloat refuses to overflow in a format without inf and NaN")
    x = hard_inputs(format)
    x = x[:: max(1, len(x) // 20_000)] if format.bits > 8 else x
    mode = GFLOAT_ROUNDING[rounding]
    expected = [gfloat.round_float(info, v, mode, saturate) for v in x.tolist()]
    overflow = "saturate" if saturate else "inf" if format.has_inf else "nan"
    actual = round_to(torch.from_numpy(x), format, rounding=rounding, overflow=overflow)
    assert same(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_nearest_rounding_equals_torch_casts_on_random_bits(dtype):
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31, (300_000,), generator=generator).to(torch.int32)
    x = bits.view(torch.float32)
    assert same(round_to(x, dtype, overflow="inf"), x.to(dtype).float())


@any_format
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_two_paths_encode_alike(format, rounding):
    x = hard_inputs(format)
    x = x[:: max(1, len(x) // 1500)]
    legal = [o for o, ok in (("inf", format.has_inf), ("nan", format.has_nan)) if ok]
    for overflow in ["saturate", *legal]:
        options = dict(rounding=rounding, overflow=overflow)
        codes = encode_tensor(torch.from_numpy(x), format, **options)
        assert codes.tolist() == [encode(v, format, **options) for v in x.tolist()]
        expected = decode_tensor(codes, format)
        assert same(round_to(torch.from_numpy(x), format, **options), expected)


def test_encode_is_exact_where_float64_is_not():
    just_above_tie = Fraction(2049) + Fraction(1, 10**40)
    assert decode(encode(just_above_tie, "float16", overflow="inf"), "float16") == 2050
    assert decode(encode(2049, "float16", overflow="inf"), "float16") == 2048


def test_float16_overflows_at_65520_and_not_before():
    x = torch.tensor([65504.0, 65519.99, 65520.0, -65520.0])
    assert round_to(x, "float16", overflow="inf").tolist() == [65504, 65504, math.inf, -math.inf]
    assert round_to(x, "float16", overflow="saturate").tolist() == [65504, 65504, 65504, -65504]
    assert round_to(x, "float16", overflow="nan").isnan().tolist() == [False, False, True, True]


def test_infinities_follow_the_overflow_rule():
    x = torch.tensor([math.inf, -math.inf])
    for rounding in ROUNDINGS:
        options = dict(rounding=rounding)
        assert round_to(x, "float16", overflow="inf", **options).equal(x)
        assert round_to(x, "float16", overflow="nan", **options).isnan().all()
        saturated = round_to(x, "float8_e4m3fn", overflow="saturate", **options)
        assert saturated.tolist() == [448, -448]


def test_a_finite_number_rounded_toward_zero_never_overflows():
    x = torch.tensor([1e6, -1e6])
    up, down = (round_to(x, "float16", rounding=r, overflow="inf") for r in ("up", "down"))
    assert round_to(x, "float16", rounding="toward-zero", overflow="nan").tolist() == [
        65504,
        -65504,
    ]
    assert up.tolist() == [math.inf, -65504]
    assert down.tolist() == [65504, -math.inf]


def test_nan_stays_nan_and_keeps_its_code():
    nan = torch.tensor([math.nan])
    for format in FORMATS.values():
        assert round_to(nan, format, overflow="saturate").isnan().all()
        if format.has_nan:
            code = encode(math.nan, format, overflow="saturate")
            assert math.isnan(decode(code, format))
            assert encode_tensor(nan, format, overflow="saturate").item() == code
    assert encode(math.nan, "float16", overflow="inf") == 0x7E00
    assert encode(math.nan, "float8_e4m3fn", overflow="nan") == 0x7F


def test_a_format_without_nan_refuses_to_encode_one():
    with pytest.raises(ValueError, match="no NaN"):
        encode(math.nan, "float4_e2m1fn", overflow="saturate")
    with pytest.raises(ValueError, match="no NaN"):
        encode_tensor(torch.tensor([math.nan]), "float4_e2m1fn", overflow="saturate")


def test_e8m0_rounds_ties_up_as_ml_dtypes_and_torch_do_and_gfloat_does_not():
    ties = [1.5, 3.0, 6.0]
    ours = round_to(torch.tensor(ties), "float8_e8m0fnu", overflow="nan")
    assert ours.tolist() == [2, 4, 8]
    assert torch.tensor(ties).to(torch.float8_e8m0fnu).float().equal(ours)
    info = GFLOAT["float8_e8m0fnu"]
    assert [gfloat.round_float(info, v) for v in ties] == [2, 2, 8]


def test_e8m0_just_above_its_smallest_number_ml_dtypes_and_torch_do_not_round_to_nearest():
    x = np.array([2.0**-127 * 1.01, 2.0**-127 * 1.49], np.float32)
    assert round_to(torch.from_numpy(x), "float8_e8m0fnu", overflow="nan").eq(2.0**-127).all()
    assert [encode(v, "float8_e8m0fnu", overflow="nan") for v in x.tolist()] == [0, 0]
    assert x.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8).tolist() == [1, 1]
    assert torch.from_numpy(x).to(torch.float8_e8m0fnu).view(torch.uint8).tolist() == [1, 1]


def test_e8m0_holds_its_smallest_number_for_zero_and_nan_for_negatives():
    x = torch.tensor([0.0, -0.0, 2.0**-140, -1.0])
    for rounding in ROUNDINGS:
        y = round_to(x, "float8_e8m0fnu", rounding=rounding, overflow="saturate")
        assert y[:3].eq(2.0**-127).all() and y[3].isnan()
        codes = [encode(v, "float8_e8m0fnu", rounding=rounding, overflow="nan") for v in x.tolist()]
        assert codes == [0, 0, 0, 0xFF]


def test_fnuz_formats_have_one_zero():
    format = FORMATS["float8_e4m3fnuz"]
    zeros = round_to(torch.tensor([-0.0, -1e-9]), format, overflow="nan")
    assert not zeros.signbit().any()
    assert encode(-0.0, format, overflow="nan") == 0
    assert encode(math.nan, format, overflow="nan") == 0x80


@any_format
def test_the_result_dtype_holds_every_number_of_the_format(format):
    x = torch.tensor([1.1])
    wide = format.name in ("wide",)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        result = round_to(x.to(dtype), format, overflow="saturate")
        assert result.dtype == (torch.float64 if wide else torch.float32)
    assert round_to(x.double(), format, overflow="saturate").dtype == torch.float64


def test_rounding_float64_rounds_once():
    x = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)  # a tie once it is float32
    assert round_to(x, "bfloat16", overflow="inf").item() == 1 + 2.0**-7
    assert x.float().bfloat16().item() == 1


def test_rounding_up_sees_the_smallest_float64():
    format = FloatFormat("large numbers only", 4, 3, bias=-3)
    x = torch.tensor([5e-324, -5e-324, 0.0], dtype=torch.float64)
    assert round_to(x, format, rounding="up", overflow="inf").tolist() == [2, 0, 0]
    assert round_to(x, format, rounding="down", overflow="inf").tolist() == [0, -2, 0]


def test_round_to_keeps_shape_device_and_input():
    x = torch.randn(3, 0, 2), torch.tensor(1.1), torch.randn(4, 5).t()
    for tensor in x:
        before = tensor.clone()
        rounded = round_to(tensor, "bfloat16", overflow="inf")
        assert rounded.shape == tensor.shape and rounded.device == tensor.device
        assert tensor.equal(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(overflow="clip"), "overflow='clip'"),
        (dict(overflow="inf", rounding="nearest"), "rounding='nearest'"),
        (dict(overflow="inf", rounding="stochastic"), "generator"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        round_to(torch.ones(1), "float16", **options)
    with pytest.raises(ValueError, match=message):
        encode(1.0, "float16", **options)


def test_overflow_needs_a_code_to_go_to_and_has_no_default():
    with pytest.raises(ValueError, match='no infinity; use "saturate" or "nan"'):
        round_to(torch.ones(1), "float8_e4m3fn", overflow="inf")
    with pytest.raises(ValueError, match='no NaN; use "saturate"'):
        round_to(torch.ones(1), "float4_e2m1fn", overflow="nan")
    with pytest.raises(TypeError, match="overflow"):
        round_to(torch.ones(1), "float16")
    with pytest.raises(TypeError, match="overflow"):
        encode(1.0, "float16")


@pytest.mark.parametrize("x", [torch.ones(2, dtype=torch.int32), torch.ones(2) * 1j, 1.0, [1.0]])
def test_only_real_floating_tensors_are_rounded(x):
    with pytest.raises(TypeError, match="expected a"):
        round_to(x, "float16", overflow="inf")


# --- properties -------------------------------------------------------------------------------


@st.composite
def float_formats(draw):
    exponent_bits, mantissa_bits = draw(st.integers(2, 9)), draw(st.integers(1, 30))
    specials = draw(st.sampled_from(["inf_nan", "nan", "none", "nan_is_negative_zero"]))
    bias = 2 ** (exponent_bits - 1) - 1 + draw(st.integers(-9, 9))
    return FloatFormat("drawn", exponent_bits, mantissa_bits, bias=bias, specials=specials)


numbers = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e250, max_value=1e250)
scaled = st.tuples(st.floats(-4, 4), st.integers(-60, 60)).map(lambda t: math.ldexp(*t))
inputs = st.one_of(numbers, scaled)
modes = st.sampled_from(ROUNDINGS)


def rounded(value: float, format: FloatFormat, rounding: str) -> float:
    x = torch.tensor([value], dtype=torch.float64)
    return round_to(x, format, rounding=rounding, overflow="saturate").item()


@given(float_formats(), inputs, modes)
def test_rounding_equals_exact_rational_arithmetic(format, value, rounding):
    code = encode(value, format, rounding=rounding, overflow="saturate")
    assert same([rounded(value, format, rounding)], [decode(code, format)])


@given(float_formats(), inputs, modes)
def test_rounding_is_idempotent(format, value, rounding):
    once = rounded(value, format, rounding)
    assert rounded(once, format, rounding) == once


@given(float_formats(), inputs, inputs, modes)
def test_rounding_is_monotone(format, left, right, rounding):
    low, high = sorted([left, right])
    assert rounded(low, format, rounding) <= rounded(high, format, rounding)


@given(float_formats(), inputs)
def test_rounding_is_symmetric_in_sign(format, value):
    mirror = {"nearest-even": "nearest-even", "toward-zero": "toward-zero", "up": "down"}
    for rounding, mirrored in mirror.items():
        assert rounded(-value, format, mirrored) == -rounded(value, format, rounding)


@given(float_formats(), inputs)
def test_directed_roundings_enclose_the_value_and_nearest_is_one_of_them(format, value):
    if abs(value) > format.max:
        return
    low, high = rounded(value, format, "down"), rounded(value, format, "up")
    nearest = rounded(value, format, "nearest-even")
    assert low <= value <= high and nearest in (low, high)
    distance = abs(Fraction(nearest) - Fraction(value))
    assert distance <= min(Fraction(value) - Fraction(low), Fraction(high) - Fraction(value))


# --- stochastic rounding ----------------------------------------------------------------------


def stochastic(x: torch.Tensor, format: str | FloatFormat, seed: int, **options) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return round_to(
        x, format, rounding="stochastic", generator=generator, **{"overflow": "saturate"} | options
    )


@any_format
def test_stochastic_rounding_never_moves_a_number_of_the_format(format):
    values = torch.from_numpy(finite_values(format))
    for seed in range(3):
        assert torch.equal(stochastic(values, format, seed), values)


def test_a_number_of_the_format_stays_even_where_the_draw_is_zero(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.zeros(shape).double())
    values = torch.from_numpy(finite_values(FORMATS["float8_e4m3fn"]))
    assert torch.equal(stochastic(values, "float8_e4m3fn", 0), values)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float4_e2m1fn"])
@pytest.mark.parametrize("fraction", [0.01, 0.25, 0.5, 0.9])
def test_stochastic_rounding_goes_up_with_the_probability_of_the_fraction(name, fraction):
    format, draws = FORMATS[name], 20_000
    lowest = format.lowest_binade
    for binade in {lowest - 1, lowest, lowest + 1, 0}:  # subnormals first
        low = 2.0**binade
        gap = float(ulp(torch.tensor(low), format))
        x = torch.full((draws,), low + fraction * gap, dtype=torch.float64)
        for sign in (1, -1):
            up = (stochastic(sign * x, format, seed=7) * sign > low).sum().item()
            z = (up - draws * fraction) / math.sqrt(draws * fraction * (1 - fraction))
            assert abs(z) < 4.5
            assert set((stochastic(sign * x, format, seed=7) * sign).tolist()) <= {low, low + gap}


def test_stochastic_rounding_is_reproducible_and_follows_the_generator():
    x = torch.rand(1000)
    assert torch.equal(stochastic(x, "bfloat16", 3), stochastic(x, "bfloat16", 3))
    assert not torch.equal(stochastic(x, "bfloat16", 3), stochastic(x, "bfloat16", 4))
    generator = torch.Generator().manual_seed(3)
    first, second = (
        round_to(x, "bfloat16", rounding="stochastic", overflow="inf", generator=generator)
        for _ in range(2)
    )
    assert not torch.equal(first, second)


def test_stochastic_rounding_overflows_only_beyond_max():
    x = torch.full((4000,), 65512.0)  # a quarter of the way from max to the next binade
    y = stochastic(x, "float16", 0, overflow="inf")
    assert set(y.tolist()) == {65504.0, math.inf}
    assert abs(y.isinf().double().mean().item() - 0.25) < 0.03


def test_the_reference_path_draws_like_the_tensor_path():
    for seed in range(50):
        x, options = 1.003, dict(rounding="stochastic", overflow="inf")
        scalar = encode(x, "bfloat16", **options, generator=torch.Generator().manual_seed(seed))
        tensor = encode_tensor(
            torch.tensor(x, dtype=torch.float64),
            "bfloat16",
            **options,
            generator=torch.Generator().manual_seed(seed),
        )
        assert scalar == tensor.item()


def test_a_generator_of_another_device_is_refused():
    if not torch.cuda.is_available():
        pytest.skip("needs a second device")
    with pytest.raises(ValueError, match="use one device"):
        round_to(
            torch.ones(2, device="cuda"),
            "float16",
            rounding="stochastic",
            overflow="inf",
            generator=torch.Generator(),
        )


# --- neighbours and ulp -----------------------------------------------------------------------


@any_format
def test_neighbours_are_the_adjacent_numbers(format):
    values = finite_values(format)
    infinity = math.inf if format.has_inf else None
    lowest = -math.inf if format.has_inf and format.signed else None
    if format.bits > 16:  # only runs of adjacent codes are listed
        code = int(encode(1.5, format, overflow="inf"))
        values = decode_tensor(torch.arange(code - 50, code + 50), format).numpy()
    else:
        assert neighbours(values[-1], format) == (values[-2], infinity)
        assert neighbours(values[0], format) == (lowest, values[1])
    step = max(1, len(values) // 500)
    for i in range(1, len(values) - 1, step):
        assert neighbours(values[i], format) == (values[i - 1], values[i + 1])
        between = (values[i] + values[i + 1]) / 2
        assert neighbours(between, format) == (values[i], values[i + 1])


@pytest.mark.parametrize("name", ["float16", "float8_e4m3fn", "float8_e8m0fnu"])
def test_neighbours_beyond_the_ends(name):
    format = FORMATS[name]
    infinity = math.inf if format.has_inf else None
    assert neighbours(format.max * 10, format) == (format.max, infinity)
    assert neighbours(math.inf, format) == (format.max, None)
    if format.signed:
        assert neighbours(-format.max * 10, format) == (infinity and -infinity, -format.max)
        assert neighbours(-math.inf, format) == (None, -format.max)
        assert neighbours(-0.0, format) == neighbours(0.0, format)
    else:
        assert neighbours(-3.0, format) == (None, format.smallest_normal)
        assert neighbours(0.0, format) == (None, format.smallest_normal)
    with pytest.raises(ValueError, match="NaN has no neighbours"):
        neighbours(math.nan, format)


@any_format
def test_ulp_is_the_gap_to_the_next_larger_magnitude(format):
    values = finite_values(format)
    values = values[(values >= 0) & (values < format.max)]
    gaps = ulp(torch.from_numpy(values), format).tolist()
    step = max(1, len(values) // 500)
    for value, gap in list(zip(values.tolist(), gaps, strict=True))[::step]:
        assert neighbours(value, format)[1] - value == gap


def test_ulp_equals_math_ulp_for_float64_like_numpy_spacing():
    x = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    assert same(ulp(torch.from_numpy(-x), "float32"), np.abs(np.spacing(x)))
    special = ulp(torch.tensor([math.inf, -math.inf, math.nan, 1e30]), "float16")
    assert same(special, [math.inf, math.inf, math.nan, 32.0])
    with pytest.raises(TypeError, match="floating-point"):
        ulp(torch.ones(2, dtype=torch.int64), "float16")
