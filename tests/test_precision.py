"""`mpbook.precision`: what each name means, what is refused, and what the table says."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from mpbook.low_precision import RECIPES
from mpbook.precision import (
    PRECISIONS,
    Precision,
    as_precision,
    cast_module,
    checked_loss_scale,
    side_by_side,
)

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

# Lightning's names; parameters, compute, TF32 products, loss scale.
MEANINGS: dict[str, tuple[torch.dtype, torch.dtype, str, str | None]] = {
    "32-true": (F32, F32, "ieee", None),
    "tf32": (F32, F32, "tf32", None),
    "16-mixed": (F32, F16, "ieee", "dynamic"),
    "bf16-mixed": (F32, BF16, "ieee", None),
    "16-true": (F16, F16, "ieee", None),
    "bf16-true": (BF16, BF16, "ieee", None),
}
ROWS = {
    "32-true": ["float32", "float32", "float32", "float32", "none", "none", "in float32"],
    "tf32": ["float32", "tf32", "float32", "float32", "none", "none", "in float32"],
    "16-mixed": [
        "float32",
        "float16, by autocast",
        "float32",
        "float32",
        "the parameters themselves",
        "dynamic",
        "in float32",
    ],
    "bf16-mixed": [
        "float32",
        "bfloat16, by autocast",
        "float32",
        "float32",
        "the parameters themselves",
        "none",
        "in float32",
    ],
    "16-true": ["float16", "float16", "float16", "float16", "none", "none", "in float16"],
    "bf16-true": ["bfloat16", "bfloat16", "bfloat16", "bfloat16", "none", "none", "in bfloat16"],
}
TITLES = [
    "parameters",
    "compute",
    "gradients",
    "optimizer state",
    "float32 master copy",
    "loss scale",
    "weight update",
]
CURES = {
    "master_weights": "in float32, on a master copy",
    "stochastic_rounding": "in float32, rounded stochastically",
    "kahan_summation": "in float32, what rounding discards is kept",
}


def bf16_true(**options: Any) -> Precision:
    return Precision("mine", parameter_dtype=BF16, compute_dtype=BF16, **options)


def test_the_names_are_lightnings_in_the_order_of_the_book() -> None:
    assert list(PRECISIONS) == list(MEANINGS)


@pytest.mark.parametrize("name", MEANINGS)
def test_a_name_means_these_dtypes(name: str) -> None:
    precision = as_precision(name)
    found = (precision.parameter_dtype, precision.compute_dtype)
    assert (*found, precision.float32_matmul, precision.loss_scale) == MEANINGS[name]
    assert precision.name == name
    assert precision.weight_update == "plain"


@pytest.mark.parametrize("name", MEANINGS)
def test_only_mixed_precisions_are_mixed(name: str) -> None:
    assert as_precision(name).is_mixed == name.endswith("-mixed")


@pytest.mark.parametrize("name", MEANINGS)
def test_gradients_have_the_dtype_that_torch_gives_them(name: str) -> None:
    precision = as_precision(name)
    weight = torch.ones(2, dtype=precision.parameter_dtype, requires_grad=True)
    weight.sum().backward()
    assert weight.grad is not None
    assert precision.gradient_dtype == weight.grad.dtype


@pytest.mark.parametrize(
    ("precision", "in_float32"),
    [
        (PRECISIONS["32-true"], True),
        (PRECISIONS["tf32"], True),
        (PRECISIONS["16-mixed"], True),
        (PRECISIONS["bf16-mixed"], True),
        (PRECISIONS["16-true"], False),
        (PRECISIONS["bf16-true"], False),
        *((bf16_true(weight_update=cure), True) for cure in CURES),
    ],
)
def test_the_update_is_in_float32_unless_16_bit_weights_have_nothing_else(
    precision: Any, in_float32: bool
) -> None:
    assert precision.updates_in_float32 is in_float32
    state = F32 if in_float32 else precision.parameter_dtype
    assert precision.optimizer_state_dtype == state
    assert precision.gradient_dtype == precision.parameter_dtype


def test_the_plainest_precision_is_the_default() -> None:
    assert Precision("32-true") == PRECISIONS["32-true"]


def test_a_precision_is_a_value_that_does_not_change() -> None:
    precision = as_precision("16-mixed")
    with pytest.raises(dataclasses.FrozenInstanceError):
        precision.loss_scale = 1.0  # type: ignore[misc]
    static = dataclasses.replace(precision, loss_scale=1024)
    assert static.loss_scale == 1024
    assert static != precision
    assert {precision: 1}[Precision("16-mixed", compute_dtype=F16, loss_scale="dynamic")] == 1


# --- names ------------------------------------------------------------------------------------


def test_a_precision_stands_for_itself() -> None:
    for mine in (bf16_true(), Precision("16-mixed", compute_dtype=F16, loss_scale=8.0)):
        assert as_precision(mine) is mine
    assert as_precision("tf32") is PRECISIONS["tf32"]


@pytest.mark.parametrize(
    ("names", "meanings"),
    [
        (["32", "fp32", "float32", "float"], ["32-true", "tf32"]),
        (["16", "fp16", "float16", "half"], ["16-mixed", "16-true"]),
        (["bf16", "bfloat16"], ["bf16-mixed", "bf16-true"]),
    ],
)
def test_an_ambiguous_name_is_refused_with_both_meanings(
    names: list[str], meanings: list[str]
) -> None:
    for name in names:
        with pytest.raises(ValueError, match=f'precision="{name}": ambiguous') as refused:
            as_precision(name)
        named = [m for m in PRECISIONS if f'"{m}"' in str(refused.value)]
        assert sorted(named) == sorted(meanings)


def test_each_meaning_of_an_ambiguous_name_is_explained() -> None:
    for name, explained in {
        "32": '"32-true" (float32 throughout) or "tf32" (float32 stored',
        "16": '"16-mixed" (fp32 weights, fp16 compute, loss scaling) or "16-true" (everything in',
        "bf16": '"bf16-mixed" (fp32 weights, bf16 compute) or "bf16-true" (everything in bf16)',
    }.items():
        with pytest.raises(ValueError, match="ambiguous") as refused:
            as_precision(name)
        assert explained in str(refused.value)


@pytest.mark.parametrize("name", ["fp6", "", "16-MIXED", "16_mixed", "64-true"])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(ValueError, match=f'precision="{name}": expected one of 32-true') as refused:
        as_precision(name)
    known = [*MEANINGS, *(f"{recipe}-mixed" for recipe in RECIPES)]
    assert ": expected one of " + ", ".join(known) in str(refused.value)


@pytest.mark.parametrize("thing", [16, None, torch.float16, ["16-mixed"]])
def test_what_is_no_name_is_a_type_error(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"precision=.*: expected a name or a Precision"):
        as_precision(thing)


# --- combinations that cannot train -----------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(parameter_dtype=torch.float64),
            "parameter_dtype=torch.float64: expected torch.float",
        ),
        (dict(parameter_dtype="float16"), "parameter_dtype='float16': expected torch.float32, fl"),
        (dict(compute_dtype=torch.int8), "compute_dtype=torch.int8: expected torch.float32, float"),
        (dict(compute_dtype=torch.float64), "compute_dtype=torch.float64: expected torch.float32"),
        (dict(parameter_dtype=F16), "compute_dtype=torch.float32: torch.float16 weights compute"),
        (dict(parameter_dtype=F16, compute_dtype=BF16), "keeps float32 weights"),
        (dict(parameter_dtype=BF16, compute_dtype=F16), "torch.bfloat16 weights compute in their"),
        (dict(float32_matmul="high"), 'float32_matmul=\'high\': expected "ieee" or "tf32"'),
        (
            dict(weight_update="kahan"),
            'weight_update=\'kahan\': expected "plain", "master_weights"',
        ),
        (dict(weight_update=["plain"]), r"weight_update=\['plain'\]: expected \"plain\""),
        (
            dict(weight_update=None),
            'weight_update=None: expected .*"stochastic_rounding" or "kahan_s',
        ),
        (dict(weight_update="master_weights"), 'weights": float32 parameters are their own master'),
        (dict(weight_update="master_weights", compute_dtype=BF16), "are their own master copy"),
        (dict(weight_update="stochastic_rounding"), 'rounding": needs 16-bit parameters to round'),
        (dict(weight_update="stochastic_rounding", compute_dtype=F16), "needs 16-bit parameters"),
        (dict(weight_update="kahan_summation"), "needs 16-bit parameters, whose rounding it makes"),
    ],
)
def test_what_cannot_train_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Precision("mine", **options)


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan, "static", True, [2.0]])
def test_a_loss_scale_that_is_no_scale_is_refused(scale: Any) -> None:
    with pytest.raises(ValueError, match=r'loss_scale=.*: expected "dynamic", None or a posit'):
        Precision("mine", compute_dtype=F16, loss_scale=scale)


@pytest.mark.parametrize("scale", ["dynamic", 65536.0, 1, 2.0**-16, None])
def test_a_loss_scale_is_dynamic_or_a_positive_number_or_none(scale: Any) -> None:
    assert Precision("mine", compute_dtype=F16, loss_scale=scale).loss_scale == scale
    assert Precision("mine", loss_scale=scale).loss_scale == scale


LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("scale", [2.0**-127, LARGEST, 1, 1000.3, 2.0**127])
def test_a_loss_scale_is_a_float32_number_with_a_float32_reciprocal(scale: float) -> None:
    checked = checked_loss_scale("scale", scale)
    assert checked == torch.tensor(float(scale)).item()
    reciprocal = torch.tensor(1 / checked, dtype=torch.float64).to(F32)
    assert 0 < reciprocal < math.inf
    if math.frexp(scale)[0] == 0.5:  # a power of two unscales exactly
        assert reciprocal.item() * checked == 1


BEYOND = [math.nextafter(2.0**-127, 0), math.nextafter(LARGEST, math.inf), 0.0, -1.0]


@pytest.mark.parametrize("scale", [*BEYOND, math.inf, math.nan, True, None, "1", 2j, 10**400])
def test_what_is_no_loss_scale_is_refused_by_name(scale: Any) -> None:
    with pytest.raises(ValueError, match=r"^mine=.*: expected none or a positive number that flo"):
        checked_loss_scale("mine", scale, or_else="none or ")


@pytest.mark.parametrize("scale", ["dynamic", 8.0])
@pytest.mark.parametrize("dtype", [F16, BF16])
def test_a_loss_scale_needs_an_update_in_float32(scale: Any, dtype: torch.dtype) -> None:
    options: dict[str, Any] = dict(parameter_dtype=dtype, compute_dtype=dtype, loss_scale=scale)
    with pytest.raises(ValueError, match=r'loss_scale=.*"master_weights", or float32 param'):
        Precision("mine", **options)
    for cure in CURES:
        assert Precision("mine", **options, weight_update=cure).loss_scale == scale


# --- as a table -------------------------------------------------------------------------------


def cells(precision: Precision) -> dict[str, str]:
    rows: list[Any] = list(precision.table().rows)
    return dict(rows)


@pytest.mark.parametrize("name", MEANINGS)
def test_the_table_says_what_is_stored_and_computed(name: str) -> None:
    table = as_precision(name).table()
    assert table.header == ["", name]
    assert list(table.rows) == list(zip(TITLES, ROWS[name], strict=True))


def test_the_table_names_a_master_copy_and_a_static_scale() -> None:
    scaled = Precision(
        "a", parameter_dtype=F16, compute_dtype=F16, weight_update="master_weights", loss_scale=8.0
    )
    rows = cells(scaled)
    assert rows["float32 master copy"] == "kept by the optimizer"
    assert rows["loss scale"] == "8.0"
    assert (rows["gradients"], rows["optimizer state"]) == ("float16", "float32")


@pytest.mark.parametrize("cure", CURES)
def test_the_table_says_in_words_how_weights_are_updated(cure: str) -> None:
    rows = cells(bf16_true(weight_update=cure))
    assert rows["weight update"] == CURES[cure]
    assert rows["optimizer state"] == "float32"
    assert (rows["float32 master copy"] != "none") == (cure == "master_weights")


def test_products_in_16_bits_are_not_called_tf32() -> None:
    mixed = Precision("mine", compute_dtype=BF16, float32_matmul="tf32")
    assert cells(mixed)["compute"] == "bfloat16, by autocast"


def test_a_precision_prints_as_its_table() -> None:
    precision = as_precision("16-mixed")
    assert repr(precision) == repr(precision.table())
    assert repr(precision).splitlines()[0].split() == ["16-mixed"]
    assert precision._repr_html_() == precision.table()._repr_html_()


def test_a_comparison_has_a_column_for_each_precision() -> None:
    table = side_by_side("bf16-true", "16-mixed", bf16_true(weight_update="master_weights"))
    assert list(table.header) == ["", "bf16-true", "16-mixed", "mine"]
    columns = list(zip(*table.rows, strict=True))
    assert list(columns[0]) == TITLES
    assert list(columns[1]) == ROWS["bf16-true"]
    assert list(columns[2]) == ROWS["16-mixed"]


def test_a_comparison_of_nothing_in_particular_has_all_that_have_a_name() -> None:
    assert list(side_by_side().header) == ["", *MEANINGS]
    with pytest.raises(ValueError, match="ambiguous"):
        side_by_side("32-true", "16")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("16-MIXED", "16-mixed"),
        ("fp16-mixed", "16-mixed"),
        ("amp", "16-mixed"),
        ("bf16_mixed", "bf16-mixed"),
        ("bfloat16-true", "bf16-true"),
        ("pure_fp16", "16-true"),
    ],
)
def test_an_unknown_name_gets_the_one_that_was_meant(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        as_precision(typed)


@pytest.mark.parametrize("name", ["FP16", "BF16", "Half"])
def test_capitals_are_as_ambiguous(name: str) -> None:
    with pytest.raises(ValueError, match="ambiguous"):
        as_precision(name)


def test_a_module_is_cast_but_for_its_complex_numbers() -> None:
    module = torch.nn.Linear(2, 2)
    module.spectrum = torch.nn.Parameter(torch.tensor([1 + 2j]))
    module.register_buffer("count", torch.tensor(3))
    cast_module(module, torch.float16)
    assert module.weight.dtype == torch.float16
    assert torch.equal(module.spectrum, torch.tensor([1 + 2j]))
    assert module.count.dtype == torch.int64
