"""Counting into bins: every float of every dtype in its own, and every border where it belongs."""

import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpbook.formats import FORMATS, FloatFormat
from mpbook.watch import binades
from mpbook.watch.binades import MIDDLES, PARTS, BinCounter, borders

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]

SPECIAL = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES += [torch.float8_e4m3fn, torch.float8_e5m2]


def counted(x: torch.Tensor, **options) -> binades.Counts:
    counter = BinCounter()
    counter.add(x, **options)
    return counter.counts()


def by_binade(counts: binades.Counts) -> dict[int, int]:
    result: dict[int, int] = {}
    for (binade, _), count in counts.bins.items():
        result[binade] = result.get(binade, 0) + count
    return result


def bin_of(value: float) -> binades.Bin:
    (place,) = counted(torch.tensor([value], dtype=torch.float64)).bins
    return place


def exact_exponents(values: list[float]) -> dict[int, int]:
    """floor(log2|x|) by `math.frexp`, which is exact for subnormals too."""
    result: dict[int, int] = {}
    for value in values:
        if value and math.isfinite(value):
            exponent = math.frexp(value)[1] - 1
            result[exponent] = result.get(exponent, 0) + 1
    return result


def random_floats(count: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Random bit patterns: every exponent, subnormals, infinities and NaN."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator).byte()
    return bits.view(dtype)


# --- The bins -----------------------------------------------------------------------------------


def test_the_parts_tile_a_binade():
    assert PARTS[0] == (1, 1) and PARTS[-1][1] == 2
    assert all(left[1] == right[0] for left, right in itertools.pairwise(PARTS))
    assert all(low <= high for low, high in PARTS)


def test_a_middle_is_within_a_ninth_of_all_that_is_in_its_part():
    for (low, high), middle in zip(PARTS, MIDDLES, strict=True):
        assert max(low / middle, high / middle, middle / low) <= 1 + 1 / 8
        assert max(abs(low - middle), abs(high - middle)) / middle <= 1 / 9 + 1e-15


def test_larger_values_lie_in_higher_bins():
    generator = np.random.default_rng(0)
    significands = np.concatenate([1 + np.arange(4096) / 4096, 1 + generator.random(500)])
    values = np.sort(np.concatenate([significands, significands * 0.5, significands * 2.0**-1040]))
    bins = [bin_of(value) for value in values[::41]]
    assert bins == sorted(bins)


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (1.0, (0, (1, 1))),
        (1 + 2.0**-52, (0, (1, 1.25))),
        (1.25, (0, (1, 1.25))),
        (1.25 + 2.0**-52, (0, (1.25, 1.5))),
        (1.5 - 2.0**-52, (0, (1.25, 1.5))),
        (1.5, (0, (1.5, 1.5))),
        (1.5 + 2.0**-52, (0, (1.5, 1.625))),
        (1.75, (0, (1.75, 1.8125))),
        (1.8125, (0, (1.75, 1.8125))),
        (2 - 2.0**-11, (0, (2 - 2.0**-11, 2))),
        (2 - 2.0**-52, (0, (2 - 2.0**-11, 2))),
        (-3.0, (1, (1.5, 1.5))),
    ],
)
def test_an_edge_lies_on_the_side_where_rounding_puts_it(value, place):
    binade, part = bin_of(value)
    assert (binade, PARTS[part]) == place


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_binade_is_the_exact_exponent_for_every_dtype(dtype, device):
    x = random_floats(5000, dtype)
    assert by_binade(counted(x.to(device))) == exact_exponents(x.double().tolist())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "smallest", "largest"),
    [
        (torch.float32, -149, 127),
        (torch.float64, -1074, 1023),
        (torch.bfloat16, -133, 127),
        (torch.float16, -24, 15),
    ],
    ids=str,
)
def test_the_smallest_subnormal_and_the_largest_number_have_their_binade(
    dtype, smallest, largest, device
):
    x = torch.tensor([2.0**smallest, -torch.finfo(dtype).max], dtype=torch.float64).to(dtype)
    assert by_binade(counted(x.to(device))) == {smallest: 1, largest: 1}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES[:4], ids=str)
def test_zeros_infinities_and_nan_are_apart(dtype, device):
    assert counted(SPECIAL.to(device, dtype)) == ({}, 2, 2, 1)


@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
def test_every_nan_is_a_nan(integers):
    bits = {torch.int32: (0x7F800001, 0x7FC00000, 0x7FFFFFFF)}
    bits[torch.int64] = (0x7FF0000000000001, 0x7FF8000000000000, 0x7FFFFFFFFFFFFFFF)
    positive = torch.tensor(bits[integers], dtype=integers)
    both = torch.cat([positive, positive | torch.iinfo(integers).min])
    x = both.view(torch.float32 if integers == torch.int32 else torch.float64)
    assert counted(x) == ({}, 0, 0, 6)


def test_float32_counts_like_the_same_numbers_in_float64():
    x = random_floats(20_000, torch.float32)
    assert counted(x) == counted(x.double())
    normal = x[x.abs() > 2.0**-120]
    assert counted(normal) == counted(normal.double())


def test_both_ways_to_tally_agree():
    slots = torch.tensor([3, 0, 5, 3, 3])
    expected = [1, 0, 0, 3, 0, 1, 0]
    assert binades._tally(slots, 7).tolist() == expected
    assert binades._tally_without_waiting(slots, 7).tolist() == expected


# --- Borders ------------------------------------------------------------------------------------

NUMPY_FORMATS = {
    FORMATS["float16"]: np.float16,
    FORMATS["bfloat16"]: ml_dtypes.bfloat16,
    FORMATS["float8_e4m3fn"]: ml_dtypes.float8_e4m3fn,
    FORMATS["float8_e5m2"]: ml_dtypes.float8_e5m2,
    FORMATS["float4_e2m1fn"]: ml_dtypes.float4_e2m1fn,
    FloatFormat("float8_e4m3", 4, 3): ml_dtypes.float8_e4m3,
    FloatFormat("float8_e3m4", 3, 4): ml_dtypes.float8_e3m4,
    FORMATS["float6_e2m3fn"]: ml_dtypes.float6_e2m3fn,
    FORMATS["float6_e3m2fn"]: ml_dtypes.float6_e3m2fn,
    FORMATS["float8_e4m3fnuz"]: ml_dtypes.float8_e4m3fnuz,
    FORMATS["float8_e5m2fnuz"]: ml_dtypes.float8_e5m2fnuz,
}
FIRST_OVERFLOW = {"float4_e2m1fn": 7.0, "float6_e2m3fn": 7.75, "float6_e3m2fn": 30.0}
"""Formats that saturate: the middle between the largest number and the one that would follow."""


def fate_of(value: float, format: FloatFormat) -> str:
    """What `borders` says of a value."""
    limits, place = borders(format), bin_of(value)
    if place < limits.survives:
        return "underflows"
    if place < limits.normal:
        return "subnormal"
    return "normal" if place < limits.overflows else "overflows"


def numpy_fate_of(value: float, format: FloatFormat) -> str:
    """What numpy's or ml_dtypes' own cast says."""
    with np.errstate(all="ignore"):
        rounded = float(np.float32(value).astype(NUMPY_FORMATS[format]))
    if not math.isfinite(rounded) or value >= FIRST_OVERFLOW.get(format.name, math.inf):
        return "overflows"
    if rounded == 0:
        return "underflows"
    return "subnormal" if rounded < format.smallest_normal else "normal"


def around_the_borders(format: FloatFormat) -> list[float]:
    """All that a border could be mistaken for, with its neighbours in float32.

    Not in float64: ml_dtypes rounds those to float32 first, and so twice.
    """
    gap = 2.0 ** (format.lowest_binade - format.mantissa_bits)
    last_gap = 2.0 ** (math.frexp(format.max)[1] - 1 - format.mantissa_bits)
    corners = [gap / 2, gap, 1.5 * gap, format.smallest_normal - gap, format.smallest_normal]
    corners += [format.smallest_normal - gap / 2, format.smallest_normal + gap / 2, 1.0]
    corners += [format.max + part * last_gap for part in (-1, -0.5, 0, 0.25, 0.5, 0.75, 1, 2)]
    with np.errstate(all="ignore"):
        to_either_side = itertools.product(np.float32(corners), np.float32([0, math.inf]))
        beside = [float(np.nextafter(corner, side)) for corner, side in to_either_side]
    return [value for value in corners + beside if value < 2.0**128]


@pytest.mark.parametrize("format", NUMPY_FORMATS, ids=lambda format: format.name)
def test_borders_are_where_numpy_and_ml_dtypes_round(format):
    for value in around_the_borders(format):
        assert fate_of(value, format) == numpy_fate_of(value, format), value.hex()


@pytest.mark.parametrize("mantissa_bits", range(11))
@pytest.mark.parametrize("specials", ["inf_nan", "nan", "none", "nan_is_negative_zero"])
def test_every_format_of_ten_mantissa_bits_or_fewer_has_its_borders_between_bins(
    mantissa_bits, specials
):
    if specials == "inf_nan" and mantissa_bits == 0:
        pytest.skip("no such format")
    format = FloatFormat("any", 5, mantissa_bits, specials=specials)
    gap = Fraction(2) ** (format.lowest_binade - mantissa_bits)
    top = Fraction(format.max)
    after_top = Fraction(2) ** (math.frexp(format.max)[1] - 1 - mantissa_bits)
    is_odd = format.max_code % 2 == 1
    just = Fraction(1, 2**40)
    assert fate_of(float(gap / 2), format) == "underflows"
    assert fate_of(float(gap / 2 * (1 + just)), format) != "underflows"
    overflow = top + after_top / 2
    assert fate_of(float(overflow), format) == ("overflows" if is_odd else "normal")
    assert fate_of(float(overflow * (1 + just)), format) == "overflows"
    assert fate_of(float(overflow * (1 - just)), format) == "normal"
    if mantissa_bits:
        normal = Fraction(format.smallest_normal) - gap / 2
        assert fate_of(float(normal), format) == "normal"
        assert fate_of(float(normal * (1 - just)), format) == "subnormal"


def test_a_finer_border_moves_up_to_the_next_bin():
    limits = borders(FORMATS["float32"])
    assert limits == binades.Borders(survives=(-150, 1), normal=(-126, 0), overflows=(128, 0))
    eleven = borders(FloatFormat("e5m11", 5, 11))
    assert eleven.normal == (-15, len(PARTS) - 1)  # 2 - 2**-11 is an edge
    assert eleven.overflows == (16, 0)  # 2 - 2**-12 is none


@pytest.mark.parametrize(
    "format",
    [FORMATS["float8_e8m0fnu"], FloatFormat("unsigned", 4, 3, signed=False)],
    ids=lambda format: format.name,
)
def test_a_format_for_scales_is_refused(format):
    with pytest.raises(ValueError, match=f"{format.name}.*no sign or no zero"):
        borders(format)


# --- Counting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_blocks_add_up(dtype, device, monkeypatch):
    x = random_floats(100, dtype).to(device)
    whole = counted(x)
    monkeypatch.setattr(binades, "CPU_BLOCK", 7)
    monkeypatch.setattr(binades, "DEVICE_BLOCK", 7)
    assert counted(x) == whole


def test_subnormals_have_parts_like_other_numbers():
    significands = torch.tensor([1.0, 1.1, 1.25, 1.5, 1.75, 1.99], dtype=torch.float64)
    expected = sorted(part for _, part in counted(significands).bins)
    for binade in (-1023, -1030):
        assert sorted(part for _, part in counted(significands * 2.0**binade).bins) == expected
    single = significands.float()
    assert sorted(part for _, part in counted(single * 2.0**-127).bins) == expected


def test_only_subnormals_take_the_slow_way(monkeypatch):
    monkeypatch.setattr(binades, "_slots_of_float64", lambda *_: 1 / 0)
    assert counted(torch.cat([SPECIAL, torch.ones(2)])) == ({(0, 0): 2}, 2, 2, 1)
    with pytest.raises(ZeroDivisionError):
        counted(torch.tensor([2.0**-140]))


def test_a_block_with_subnormals_counts_once():
    x = torch.tensor([1.0, 2.0**-140, 2.0**-149, 0.0])
    assert by_binade(counted(x)) == {0: 1, -140: 1, -149: 1}
    assert counted(x).zeros == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("exponent", [-126, -1, 0, 1, 16, 127])
def test_dividing_by_a_power_of_two_is_exact_even_beyond_float32(exponent, device):
    x = random_floats(3000, torch.float32)
    expected = exact_exponents([value / 2.0**exponent for value in x.double().tolist()])
    result = counted(x.to(device), divisor=2.0**exponent)
    assert by_binade(result) == expected
    assert result[1:] == counted(x)[1:]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("divisor", "shift"), [(2.0**127, -127), (2.0**-127, 127)])
def test_the_ends_of_a_dtype_stay_in_range_with_the_ends_of_the_divisors(
    divisor, shift, dtype, device
):
    smallest, largest = {torch.float32: (-149, 127), torch.float64: (-1074, 1023)}[dtype]
    x = torch.tensor([2.0**smallest, 2.0**largest], dtype=torch.float64).to(device, dtype)
    assert by_binade(counted(x, divisor=divisor)) == {smallest + shift: 1, largest + shift: 1}
    narrow = torch.tensor([2.0**-149, 2.0**127], device=device)
    by_tensor = counted(narrow, divisor=torch.tensor(divisor, device=device))
    assert by_binade(by_tensor) == {-149 + shift: 1, 127 + shift: 1}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("divisor", [1000.0, 3.0, 2.0**-126 * 1.5, 2.0**128 - 2.0**104])
def test_another_divisor_divides_in_float64(divisor, device):
    x = random_floats(3000, torch.float32)
    expected = counted(x.double() / divisor)
    assert counted(x.to(device), divisor=divisor) == expected
    assert counted(x.to(device), divisor=torch.tensor(divisor).double().to(device)) == expected


def test_float64_divides_too():
    x = torch.tensor([1.0, -(2.0**1000)], dtype=torch.float64)
    assert by_binade(counted(x, divisor=2.0**100)) == {-100: 1, 900: 1}
    assert by_binade(counted(x, divisor=3.0)) == {-2: 1, 998: 1}


@pytest.mark.parametrize("device", DEVICES)
def test_a_tensor_that_divides_by_nonsense_writes_nowhere_else(device):
    x = torch.tensor([1.0, 0.0], device=device, dtype=torch.float64)
    for divisor in (0.0, 2.0**-1000, 2.0**1000, math.inf, math.nan):
        result = counted(x.float(), divisor=torch.tensor(divisor, dtype=torch.float64).to(device))
        assert sum(result.bins.values()) + sum(result[1:]) == 2
        quotients = x / divisor
        in_a_bin = int((quotients.isfinite() & (quotients != 0)).sum())
        assert sum(result.bins.values()) == in_a_bin  # the first or the last, if beyond


@pytest.mark.parametrize("divisor", [0.0, -2.0, math.inf, math.nan, 2.0**128, 2.0**-128])
def test_divisors_out_of_range_are_refused(divisor):
    with pytest.raises(
        ValueError, match=r"divisor=.*expected a positive number that float32 holds"
    ):
        counted(torch.ones(1), divisor=divisor)


@pytest.mark.parametrize("device", DEVICES)
def test_shape_and_strides_do_not_matter(device):
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)).to(device)
    whole = counted(x)
    assert counted(x.T) == counted(x.reshape(-1)) == whole
    assert counted(x[:, ::2]) == counted(x[:, ::2].clone())
    assert counted(x[0, ::3]) == counted(x[0, ::3].clone())
    assert by_binade(counted(torch.ones(1, device=device).expand(5))) == {0: 5}
    assert by_binade(counted(torch.tensor(3.0, device=device))) == {1: 1}
    assert counted(torch.zeros(0, 3, device=device)) == ({}, 0, 0, 0)


def test_a_sparse_tensor_counts_with_its_zeros():
    x = torch.tensor([[0.0, 3.0], [0.0, 0.0]])
    assert counted(x.to_sparse()) == counted(x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_counted_stays_as_it_is(dtype, device):
    x = random_floats(100, dtype).to(device).requires_grad_()
    before = x.detach().clone().view(torch.uint8)
    counted(x, divisor=3.0)
    counted(x)
    assert torch.equal(x.detach().view(torch.uint8), before)
    assert x.requires_grad


def test_a_counter_goes_on_and_mixes_dtypes():
    counter = BinCounter()
    for dtype in DTYPES[:4]:
        counter.add(torch.tensor([1.0, 0.0, math.inf]).to(dtype))
    counter.add(torch.tensor([2.0, math.nan]))
    assert counter.counts() == ({(0, 0): 4, (1, 0): 1}, 4, 4, 1)
    assert counter.counts() == ({(0, 0): 4, (1, 0): 1}, 4, 4, 1)


def test_a_counter_works_across_inference_mode_and_default_devices():
    binades._slot_of_position.cache_clear()
    binades._part_of_position.cache_clear()
    counter, x = BinCounter(), torch.tensor([1.0, 2.0**-140])
    with torch.inference_mode():
        counter.add(torch.tensor([1.0, 2.0**-140]))
    with torch.device("meta"):
        counter.add(x)
    counter.add(x)
    assert counter.counts().bins == {(0, 0): 3, (-140, 0): 3}


def test_counts_do_not_stop_at_2_to_the_31():
    counter = BinCounter()
    counter.add(torch.ones(3))
    (counts,) = counter._counts.values()
    counts *= 2**40
    assert counter.counts().bins == {(0, 0): 3 * 2**40}


@pytest.mark.parametrize("x", [torch.ones(2, dtype=torch.int64), torch.ones(2) * 1j, [1.0]])
def test_only_real_floating_point_tensors_are_counted(x):
    with pytest.raises(TypeError, match="expected a real floating-point tensor"):
        BinCounter().add(x)


@settings(max_examples=40)
@given(st.lists(st.floats(), max_size=20), st.lists(st.floats(), max_size=20))
def test_counting_one_after_the_other_is_counting_both(first, second):
    counter = BinCounter()
    counter.add(torch.tensor(first, dtype=torch.float64))
    counter.add(torch.tensor(second, dtype=torch.float64))
    assert counter.counts() == counted(torch.tensor(first + second, dtype=torch.float64))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
def test_counting_does_not_wait_for_the_device():
    counter, x = BinCounter(), torch.randn(1000, device="cuda")
    scale = torch.tensor(1000.0, device="cuda")
    counter.add(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        counter.add(x)
        counter.add(x.half(), divisor=3.0)
        counter.add(x, divisor=scale)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum(counter.counts().bins.values()) == 4000
