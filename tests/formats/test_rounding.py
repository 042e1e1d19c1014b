"""`rounding`: equal to the reference path in every way to run it, and safe with ``out=``."""

import functools
import math
from collections.abc import Iterator
from fractions import Fraction

import exhaustive
import numpy as np
import pytest
import torch
from test_formats import INVENTED, OTHERS, ROUNDINGS, hard_inputs
from visits import needs_compiler

import mpbook.formats.counter_hash
import mpbook.formats.rounding
import mpbook.formats.rounding_steps
from mpbook.formats import (
    FORMATS,
    FloatFormat,
    compiled_round_to,
    decode,
    encode,
    round_to,
    ulp,
)
from mpbook.formats.counter_hash import hash_counters_, keys_of
from mpbook.formats.rounding_steps import ROW

MODES = [*ROUNDINGS, "stochastic"]
# Formats at the edges of what float32 can compute with.
EDGES = [
    FloatFormat("large_numbers_only", 4, 3, bias=-3),
    FloatFormat("below_float32_normals", 5, 3, bias=130),
    FloatFormat("float32_binades_small_max", 7, 5, bias=127),
    FloatFormat("float32_binades_with_nan", 6, 4, bias=127, specials="nan"),
    FloatFormat("products_beyond_float32", 7, 5, bias=1, specials="nan"),
    FloatFormat("unsigned_without_zero", 3, 2, signed=False, subnormals=False, specials="nan"),
    FloatFormat("tiny_numbers_only", 4, 3, bias=120),
    FloatFormat("low_in_float64", 4, 3, bias=1010),
    FloatFormat("high_in_float64", 10, 40, bias=0),
]
ALL = [*FORMATS.values(), *OTHERS, *INVENTED, *EDGES]
every_format = pytest.mark.parametrize("format", ALL, ids=lambda f: f.name)


def same(left, right) -> bool:
    """Equal element by element, NaN equal to NaN and -0 different from +0."""
    left, right = (torch.as_tensor(t).detach().double() for t in (left, right))
    equal = (left == right) & (left.signbit() == right.signbit())
    return left.shape == right.shape and bool((equal | (left.isnan() & right.isnan())).all())


def rounded(x: torch.Tensor, format, rounding="nearest-even", overflow="saturate", **more):
    """`round_to`, with the same random bits each time."""
    if rounding == "stochastic":
        more["generator"] = torch.Generator().manual_seed(11)
    return round_to(x, format, rounding=rounding, overflow=overflow, **more)


@functools.cache
def float32_inputs(count: int = 2**20) -> torch.Tensor:
    """Every pattern of the upper 16 bits, extreme ones, and random ones."""
    upper = torch.arange(2**16) << 16
    extreme = torch.tensor([1, 2**31 + 1, 0x7F7FFFFF, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF])
    random = torch.randint(2**32, (count,), generator=torch.Generator().manual_seed(count))
    return torch.cat([upper, extreme, random]).to(torch.int32).view(torch.float32)


def plain(
    x: torch.Tensor, format: FloatFormat, rounding: str, overflows: list[str]
) -> Iterator[torch.Tensor]:
    """Rounding as a textbook has it: in float64, with logarithms and masks, and no trick.

    One result for each way to overflow.
    """
    x = x.double()
    highest = math.frexp(format.max)[1] - 1
    binade = torch.frexp(torch.where(x.isfinite(), x, 0.0))[1] - 1
    binade = torch.where(x == 0, format.lowest_binade, binade).clamp(format.lowest_binade, highest)
    ulp = torch.ldexp(torch.ones_like(x), binade - format.mantissa_bits)
    units = (x.abs() / ulp).clamp(min=2.0**-1000) * (x != 0)
    away = torch.where(x < 0, rounding == "down", rounding == "up")
    whole = units.round() if rounding == "nearest-even" else units.floor()
    y = torch.where(away, units.ceil(), whole) * ulp
    if not format.subnormals:
        y = y.clamp(min=format.smallest_normal)
    stops = x.isfinite() & ~away & (rounding != "nearest-even")
    overflowing, largest = (y > format.max) & ~stops, y.clamp(max=format.max)
    for overflow in overflows:
        beyond = {"inf": math.inf, "nan": math.nan, "saturate": format.max}[overflow]
        y = torch.where(overflowing, beyond, largest)
        y = torch.copysign(y, x) if format.signed else torch.where(x < 0, math.nan, y)
        yield y if format.has_negative_zero else torch.where(y == 0, 0.0, y)


# --- equal to plain and to exact arithmetic ---------------------------------------------------


@every_format
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_float32_and_float64_round_as_plain_arithmetic_does(format, rounding):
    hard = torch.from_numpy(hard_inputs(format))
    narrow = torch.cat([float32_inputs(), hard.float()])
    overflows = exhaustive.legal_overflows(format)
    for x in (narrow, torch.cat([narrow[: 2**16], hard]).double()):
        expected = plain(x, format, rounding, overflows)
        for overflow, values in zip(overflows, expected, strict=True):
            assert same(rounded(x, format, rounding, overflow), values)


@every_format
def test_stochastic_rounding_draws_alike_in_float32_and_float64(format):
    x = torch.cat([float32_inputs(), torch.from_numpy(hard_inputs(format)).float()])
    for overflow in exhaustive.legal_overflows(format):
        narrow = rounded(x, format, "stochastic", overflow)
        assert same(narrow, rounded(x.double(), format, "stochastic", overflow))


@every_format
@pytest.mark.parametrize("rounding", MODES)
def test_a_single_number_rounds_as_in_exact_arithmetic(format, rounding):
    x = torch.cat([float32_inputs(60)[-60:], torch.from_numpy(hard_inputs(format)[-60:])])
    x = x if format.has_nan else x[~x.isnan()]
    for overflow in exhaustive.legal_overflows(format):
        for seed, value in enumerate(x.tolist()):
            options = dict(rounding=rounding, overflow=overflow)
            drawn = [torch.Generator().manual_seed(seed) for _ in range(2)]
            code = encode(value, format, **options, generator=drawn[0])
            number = torch.tensor(value, dtype=torch.float64)
            actual = round_to(number, format, **options, generator=drawn[1])
            assert same([actual.item()], [decode(code, format)])


@pytest.mark.parametrize("name", exhaustive.NAMES)
def test_the_exhaustive_check_finds_nothing_in_a_sample_and_something_in_a_fault(name):
    format, x = FORMATS[name], float32_inputs()
    for overflow in exhaustive.legal_overflows(format):
        theirs = exhaustive.with_overflow(exhaustive.oracle(x, name), x, format, overflow)
        ours = rounded(x, format, overflow=overflow)
        assert exhaustive.count_mismatches(ours, theirs) == 0
        ours[np.flatnonzero(ours.numpy() == format.smallest_normal)[0]] *= 2
        assert exhaustive.count_mismatches(ours, theirs) == 1


def test_the_bit_patterns_of_the_exhaustive_check_are_all_there_are():
    ends = [exhaustive.bit_patterns(i).view(torch.int32)[[0, -1]] for i in (0, 1, 2047)]
    assert exhaustive.CHUNKS == 2048
    assert [end.tolist() for end in ends] == [
        [-(2**31), -(2**31) + 2**21 - 1],
        [-(2**31) + 2**21, -(2**31) + 2**22 - 1],
        [2**31 - 2**21, 2**31 - 1],
    ]


# --- out= -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("name", ["float8_e4m3fn", "bfloat16", "float8_e8m0fnu"])
def test_out_receives_the_result_and_may_be_the_input(name, rounding):
    x = torch.randn(300, 7).abs()
    expected, out = rounded(x, name, rounding), torch.empty(300, 7)
    assert rounded(x, name, rounding, out=out) is out
    assert same(out, expected)
    assert rounded(x, name, rounding, out=x) is x
    assert same(x, expected)


@pytest.mark.parametrize("rounding", MODES)
def test_tensors_that_are_not_contiguous_round_as_their_copies(rounding):
    base = torch.randn(40, 60)
    for x in (base.t(), base[:, ::2], base[::3, 5:]):
        expected = rounded(x.contiguous(), "float16", rounding)
        assert same(rounded(x, "float16", rounding), expected)
        out = torch.zeros(*x.shape, 2)[..., 1]
        assert same(rounded(x, "float16", rounding, out=out), expected)
    x = base.clone().t()
    assert same(rounded(x, "float16", rounding, out=x), rounded(base.t(), "float16", rounding))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3)])
def test_every_shape_works_with_out(shape):
    x = torch.randn(shape)
    out = torch.empty(shape)
    assert same(rounded(x, "float16", out=out), rounded(x, "float16"))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.empty(5), "out has shape"),
        (torch.empty(4, dtype=torch.float64), "out has dtype"),
        (torch.empty(4, dtype=torch.float16), "out has dtype"),
        (torch.empty(4, device="meta"), "out has device"),
        (torch.empty(1).expand(4), "share memory"),
    ],
)
def test_an_out_that_does_not_fit_is_refused(out, message):
    with pytest.raises(ValueError, match=message):
        round_to(torch.ones(4), "float16", overflow="inf", out=out)


def test_an_out_that_overlaps_the_input_in_part_is_refused():
    memory = torch.randn(64)
    square = memory.view(8, 8)
    for x, out in [(memory[:32], memory[16:48]), (square, square.t()), (memory[::2], memory[:32])]:
        with pytest.raises(ValueError, match="overlaps x"):
            round_to(x, "float16", overflow="inf", out=out)
    round_to(memory[:32], "float16", overflow="inf", out=memory[32:])
    with pytest.raises(TypeError, match="out is a list"):
        round_to(memory, "float16", overflow="inf", out=[0.0])


def test_parameters_can_be_rounded_in_place():
    weight = torch.nn.Parameter(torch.randn(9))
    expected = rounded(weight.detach().clone(), "bfloat16")
    assert not rounded(weight, "bfloat16").requires_grad
    assert same(rounded(weight, "bfloat16", out=weight).detach(), expected)


# --- blocks -----------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("rounding", MODES)
def test_the_block_size_changes_nothing(format, rounding, monkeypatch):
    x = float32_inputs(2**16)[: 2**17 - 5]
    at_once = rounded(x, format, rounding)
    monkeypatch.setattr(mpbook.formats.rounding_steps, "CPU_BLOCK", 10_000)
    assert same(rounded(x, format, rounding), at_once)


# --- the random bits --------------------------------------------------------------------------


def random_bits(count: int, seed: tuple[int, int]) -> np.ndarray:
    """The hash of 0 ... count - 1 as unsigned integers."""
    keys = keys_of(torch.tensor(seed, dtype=torch.int32))
    counters = torch.arange(count, dtype=torch.int32)
    return hash_counters_(counters, keys, torch.empty_like(counters)).numpy().view(np.uint32)


def chi_square_z(values: np.ndarray, cells: int) -> float:
    """How many standard deviations the chi-square statistic lies off its mean."""
    counts = np.bincount(values, minlength=cells)
    expected = len(values) / cells
    return (((counts - expected) ** 2 / expected).sum() - (cells - 1)) / math.sqrt(2 * (cells - 1))


SEEDS = [(0, 0), (1, 0), (0, 1), (-1, 12345)]


def plain_hash(x: int, first: int, second: int) -> int:
    """The hash in Python's integers, which do not overflow."""
    x = (x ^ first) * 0xED5AD4BB % 2**32
    x = ((x ^ x >> 16) + second) * 0xAC4C1B51 % 2**32
    return (x ^ x >> 15) * 0x31848BAB % 2**32


@pytest.mark.parametrize("seed", SEEDS)
def test_the_hash_is_that_of_plain_integers(seed):
    words = [word % 2**32 for word in seed]
    keys = [plain_hash(counter, *words) for counter in (1, 2)]
    assert random_bits(1000, seed).tolist() == [plain_hash(i, *keys) for i in range(1000)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lowest_bit", [24, 16, 9])
def test_bits_are_uniform(seed, lowest_bit):
    bits = random_bits(2**22, seed)
    assert abs(chi_square_z(bits >> lowest_bit & 255, 256)) < 4.5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("distance", [1, 2, 3, 64, 1024, 2**16, 2**21])
def test_neighbouring_elements_are_uncorrelated(seed, distance):
    bits = random_bits(2**22, seed)
    left, right = bits[:-distance], bits[distance:]
    for lowest_bit in (28, 9):
        pairs = (left >> lowest_bit & 15) << 4 | (right >> lowest_bit & 15)
        assert abs(chi_square_z(pairs, 256)) < 4.5
    assert abs(np.corrcoef(left, right)[0, 1]) * math.sqrt(len(left)) < 4.5


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (2, 0), (-(2**31), 0), (0, 2**16)])
def test_consecutive_seeds_are_uncorrelated_at_every_small_shift(other):
    left, right = random_bits(2**18, (0, 0)), random_bits(2**18, other)
    for shift in (0, 1, 2, 64):
        a, b = left[: len(left) - shift], right[shift:]
        assert abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(len(a)) < 4.5
        assert abs(chi_square_z((a >> 28 << 4) | (b >> 28), 256)) < 4.5
    assert len(np.intersect1d(left, right)) < 2 * 2 ** (18 + 18 - 32)  # other numbers, not moved


def test_generators_with_consecutive_seeds_round_independently():
    x = torch.full((2**20,), 1 + 2.0**-8)
    ups = [
        round_to(x, "bfloat16", rounding="stochastic", overflow="inf", generator=g) > 1
        for g in (torch.Generator().manual_seed(seed) for seed in range(4))
    ]
    for i in range(3):
        both = (ups[i] & ups[i + 1]).double().mean().item()
        assert abs(both - 1 / 4) < 4.5 * math.sqrt(3 / 16 / 2**20)


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "tfloat32", "float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_stochastic_rounding_is_unbiased_in_each_binade(name, dtype):
    format, draws = FORMATS[name], 2**18
    if name == "float32" and dtype == torch.float32:
        pytest.skip("every float32 is a number of the format")
    lowest = format.lowest_binade
    depth = min(3, format.mantissa_bits)
    for binade in (lowest - depth, lowest - 1, lowest, lowest + 1, -3, 0, 5):
        low = 2.0**binade
        gap = float(ulp(torch.tensor(low), format))
        for fraction in (Fraction(1, 2), Fraction(5, 8), Fraction(1, 4)):
            x = torch.tensor(low, dtype=torch.float64) + float(fraction) * gap
            if float(x.to(dtype)) != float(x):
                continue  # float32 cannot hold it
            y = rounded(x.to(dtype).expand(draws), format, "stochastic").double()
            z = ((y - low) / gap).mean().item() - float(fraction)
            z /= math.sqrt(float(fraction * (1 - fraction)) / draws)
            assert abs(z) < 4.5, (binade, fraction)


# --- compiled ---------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rounding", "overflow"),
    [
        ("float8_e4m3fn", "nearest-even", "nan"),
        ("float8_e5m2", "up", "inf"),
        ("float16", "toward-zero", "nan"),
        ("float16", "nearest-even", "inf"),
        ("float16", "nearest-even", "saturate"),
        ("bfloat16", "nearest-even", "inf"),
        ("bfloat16", "nearest-even", "nan"),
        ("tfloat32", "down", "nan"),
        ("bfloat16", "stochastic", "saturate"),
        ("float8_e4m3fn", "stochastic", "nan"),
        ("float8_e8m0fnu", "down", "saturate"),
        ("float8_e4m3fnuz", "nearest-even", "saturate"),
    ],
)
def test_compiled_code_gives_the_same_bits_for_all_shapes(name, rounding, overflow):
    format = next(f for f in ALL if f.name == name)
    function = compiled_round_to(format, rounding=rounding, overflow=overflow)
    assert function is compiled_round_to(format, rounding=rounding, overflow=overflow)
    x = float32_inputs()
    rows = (x[: 2 * ROW - 1], x[: 2 * ROW], x[-3 * ROW - 5 :])
    for inputs in (x, x[:1], x[:0], x[: 2**19].view(-1, 8).t(), x[5:5005], *rows):
        drawn = {"generator": torch.Generator().manual_seed(11)} if rounding == MODES[-1] else {}
        out = torch.empty(inputs.shape)
        assert function(inputs, out=out, **drawn) is out
        assert same(out, rounded(inputs, format, rounding, overflow))


@needs_compiler
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float8_e5m2"])
def test_no_draw_takes_an_infinity_back(name: str) -> None:
    """The largest float32 is not infinity: of 2**20 some would round down to bfloat16's largest."""
    rounded = compiled_round_to(name, rounding="stochastic", overflow="inf")
    x = torch.full((2**20,), math.inf)
    x[1::2] = -math.inf
    assert torch.equal(rounded(x, generator=torch.Generator().manual_seed(0)), x)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_compiled_code_rounds_a_float64_once_and_in_place(name):
    """A cast of a float64 to 16 bits goes by way of float32, and so rounds twice."""
    halfway = 1 + 2.0 ** -(FORMATS[name].mantissa_bits + 1)
    above = halfway + 2.0**-40
    x = torch.tensor([1 - above, halfway, -0.0, 1e300, -math.inf, above], dtype=torch.float64)
    expected = rounded(x, name, "nearest-even", "inf")
    function = compiled_round_to(name, overflow="inf")
    assert function(x, out=x) is x
    assert same(x, expected)
    assert x[-1] == 1 + 2.0 ** -FORMATS[name].mantissa_bits


SMALL = [f for f in FORMATS.values() if f.bits <= 8] + [
    next(f for f in ALL if f.name == name)
    for name in ("float8_e4m3b11fnuz", "unsigned", "large_numbers_only", "products_beyond_float32")
]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("format", SMALL, ids=lambda f: f.name)
def test_every_number_and_tie_of_a_small_format_rounds_compiled_as_in_exact_arithmetic(format):
    """Every rounding and overflow in one compiled graph, -0 where the format has it and only there.

    torch 2.14's compiler leaves out ``+ 0.0``, which had turned -0 into +0.
    """
    torch.compiler.reset()  # or the numbers of another format would be taken for variables
    ways = [(r, o) for r in ROUNDINGS for o in exhaustive.legal_overflows(format)]

    @torch.compile(fullgraph=True)
    def compiled(x):
        return [round_to(x, format, rounding=r, overflow=o) for r, o in ways]

    tiny = torch.tensor([1e-45, 1e-38, 1e-30, 1e-12, 0.0])
    x = torch.cat([torch.from_numpy(hard_inputs(format)).float(), tiny, -tiny])
    for (rounding, overflow), actual in zip(ways, compiled(x), strict=True):
        options = dict(rounding=rounding, overflow=overflow)
        legal = (x >= 0) | (format.signed or format.has_nan)
        exact = [decode(encode(v, format, **options), format) for v in x[legal].tolist()]
        assert same(actual[legal], exact), options
        assert same(round_to(x, format, **options)[legal], exact), options


@needs_compiler
@pytest.mark.slow
def test_rounding_inside_a_function_compiled_by_the_reader_breaks_no_graph():
    @torch.compile(fullgraph=True)
    def step(x):
        return round_to(2 * x, "float8_e4m3fn", rounding="down", overflow="nan") + 1

    x = torch.randn(1000) * 100
    assert same(step(x), rounded(2 * x, "float8_e4m3fn", "down", "nan") + 1)


def test_compiled_rounding_refuses_what_round_to_refuses():
    with pytest.raises(ValueError, match="no infinity"):
        compiled_round_to("float8_e4m3fn", overflow="inf")
    with pytest.raises(ValueError, match="needs generator"):
        compiled_round_to("float16", rounding="stochastic", overflow="inf")(torch.ones(3))
    with pytest.raises(TypeError, match="x is a float"):
        compiled_round_to("float16", overflow="inf")(1.0)
