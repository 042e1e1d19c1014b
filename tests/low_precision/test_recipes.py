"""Recipes as data: what they say, what they ask of a shape, and what they refuse."""

from dataclasses import replace

import pytest

from mpbook.formats import BlockFormat
from mpbook.low_precision import (
    HIGH,
    RECIPES,
    Accumulation,
    Delayed,
    Fixed,
    Operand,
    Product,
    Recipe,
    as_recipe,
    of_tensors,
    rotated,
)
from mpbook.low_precision.names import NAMES, names_table

FP8 = Operand("fp8_per_tensor")
NVFP4 = Operand("nvfp4")
WORDS = {  # of the sources that `mpbook.low_precision.recipes` names: element, block, scale
    "float8_tensorwise": {
        "x": ("float8_e4m3fn", "tensor", "float32"),
        "w": ("float8_e4m3fn", "tensor", "float32"),
        "dy": ("float8_e5m2", "tensor", "float32"),
    },
    "float8_rowwise": dict.fromkeys(("x", "w", "dy"), ("float8_e4m3fn", "row", "float8_e8m0fnu")),
    "float8_blockwise": {
        "x": ("float8_e4m3fn", (1, 128), "float8_e8m0fnu"),
        "w": ("float8_e4m3fn", (128, 128), "float8_e8m0fnu"),
        "dy": ("float8_e4m3fn", (1, 128), "float8_e8m0fnu"),
    },
    "mxfp8": dict.fromkeys(("x", "w", "dy"), ("float8_e4m3fn", (1, 32), "float8_e8m0fnu")),
    "mxfp4": dict.fromkeys(("x", "w", "dy"), ("float4_e2m1fn", (1, 32), "float8_e8m0fnu")),
    "nvfp4": {
        "x": ("float4_e2m1fn", (1, 16), "float8_e4m3fn"),
        "w": ("float4_e2m1fn", (16, 16), "float8_e4m3fn"),
        "dy": ("float4_e2m1fn", (1, 16), "float8_e4m3fn"),
    },
}
WORDS["float8_delayed"] = WORDS["float8_tensorwise"]


@pytest.mark.parametrize("name", WORDS)
def test_a_recipe_says_what_its_sources_say(name):
    recipe = RECIPES[name]
    assert recipe.name == name and as_recipe(name) is recipe is as_recipe(recipe)
    for _, tensor, operand in recipe.operands():
        found = operand.block_format
        assert (found.element.name, found.block, found.scale.name) == WORDS[name][tensor]
        assert (operand.scale_mode == "rceil") is (found.scale.name == "float8_e8m0fnu")
        assert found.tensor_scale is (name == "nvfp4")


@pytest.mark.parametrize(("name", "size"), [("nvfp4", 16), ("mxfp4", 32)])
def test_four_bits_draw_the_gradients_and_rotate_wgrad_alone(name, size):
    for product, tensor, operand in RECIPES[name].operands():
        assert (operand.rounding == "stochastic") is (tensor == "dy")
        assert operand.hadamard == (size if product == "wgrad" else None)
        assert len(operand.signs) == (operand.hadamard or 0) and set(operand.signs) <= {-1, 1}
    assert RECIPES[name].wgrad.left.signs == RECIPES[name].wgrad.right.signs
    assert len(set(RECIPES[name].wgrad.left.signs)) == 2


def test_eight_bits_draw_and_rotate_nothing():
    for name in ("float8_tensorwise", "float8_delayed", "float8_rowwise", "mxfp8"):
        for _, _, operand in RECIPES[name].operands():
            assert (operand.rounding, operand.hadamard) == ("nearest-even", None)


def test_only_one_recipe_is_delayed_and_it_remembers_what_transformer_engine_does():
    assert RECIPES["float8_delayed"].scaling == Delayed(history=1024, margin=0, amax="max")
    assert RECIPES["unscaled_e4m3"].scaling == Fixed(1.0)
    others = RECIPES.keys() - {"float8_delayed", "unscaled_e4m3"}
    assert {type(RECIPES[name].scaling).__name__ for name in others} == {"Current"}


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "tokens", "forward_tokens"),
    [
        ("float8_tensorwise", 1, 1, 1, 1),
        ("float8_rowwise", 1, 1, 1, 1),
        ("float8_blockwise", 128, 128, 128, 1),
        ("mxfp8", 32, 32, 32, 1),
        ("mxfp4", 32, 32, 32, 1),
        ("nvfp4", 16, 16, 16, 1),
    ],
)
def test_a_recipe_says_what_sizes_must_be_multiples_of(
    name, inputs, outputs, tokens, forward_tokens
):
    recipe = RECIPES[name]
    assert recipe.multiple_of("in_features") == inputs
    assert recipe.multiple_of("out_features") == outputs
    assert recipe.multiple_of("tokens") == tokens
    assert recipe.multiple_of("tokens", backward=False) == forward_tokens


def test_each_dimension_is_asked_for_by_the_product_that_contracts_it():
    mx = Product(Operand("mxfp8_e4m3", "rceil"), HIGH)
    for product, dimension in (
        ("fprop", "in_features"),
        ("dgrad", "out_features"),
        ("wgrad", "tokens"),
    ):
        products = dict.fromkeys(("fprop", "dgrad", "wgrad"), Product()) | {product: mx}
        recipe = Recipe("one", **products)
        for asked in ("in_features", "out_features", "tokens"):
            assert recipe.multiple_of(asked) == (32 if asked == dimension else 1)
    turned = rotated(RECIPES["mxfp8"], 128)
    assert turned.multiple_of("tokens") == 128 and turned.multiple_of("in_features") == 32
    native = replace(RECIPES["float8_tensorwise"], engine="native")
    assert {native.multiple_of(d) for d in ("in_features", "out_features", "tokens")} == {16}


def test_everything_that_two_recipes_differ_in_is_described():
    plain = RECIPES["nvfp4"]
    changed = [
        rotated(plain, 32),
        replace(plain, last_layers_high=2),
        replace(plain, stays_high=("blocks.1.*",)),
        replace(plain, accumulation=Accumulation()),
        replace(plain, fprop=replace(plain.fprop, left=HIGH)),
        replace(plain, dgrad=replace(plain.dgrad, left=NVFP4)),
        replace(RECIPES["float8_delayed"], scaling=Delayed(16)),
        *(recipe for name, recipe in RECIPES.items() if name != "nvfp4"),
    ]
    described = [str(recipe.described()) for recipe in (plain, *changed)]
    assert len(set(described)) == len(described)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Operand("mxfp8"), ValueError, "block_format='mxfp8': expected one of"),
        (lambda: Operand("mxfp8_e4m3"), ValueError, "scale_mode is missing: mxfp8_e4m3 has power"),
        (lambda: Operand("nvfp4", "rceil"), ValueError, "scale_mode='rceil': nvfp4 has"),
        (lambda: Operand("nvfp4", rounding="random"), ValueError, "rounding='random'"),
        (lambda: Operand("nvfp4", hadamard=12), ValueError, "hadamard=12: expected None or"),
        (lambda: Operand("nvfp4", hadamard=1), ValueError, "hadamard=1: expected"),
        (lambda: Operand(None, "rceil"), ValueError, "an operand that stays high has no scale"),
        (lambda: Operand(rounding="stochastic"), ValueError, "an operand that stays high"),
        (lambda: Product(Operand(hadamard=16), HIGH), ValueError, "16 on the left and None on"),
        (lambda: of_tensors("m", x=NVFP4, w=NVFP4, dy=NVFP4, scaling=Delayed()), ValueError,
         'recipe "m", fprop, x: Delayed scaling has one float32 scale a tensor, nvfp4 has others'),
        (lambda: of_tensors("m", x=FP8, w=FP8, dy=Operand("mxfp4", "floor"), scaling=Fixed()),
         ValueError, 'recipe "m", dgrad, dy: Fixed scaling has one float32 scale a tensor'),
        (lambda: rotated(RECIPES["float8_delayed"], 16), ValueError,
         'recipe "float8_delayed", wgrad, dy: Delayed scaling knows no amax of a rotated tensor'),
        (lambda: replace(RECIPES["float8_delayed"], wgrad=Product(FP8, FP8)), ValueError,
         "wgrad, dy: float8_e4m3fn here and float8_e5m2 in another product; Delayed"),
        (lambda: replace(RECIPES["mxfp8"], engine="cuda"), ValueError, "engine='cuda': expected"),
        (lambda: replace(RECIPES["mxfp8"], last_layers_high=-1), ValueError, "expected 0 or more"),
        (lambda: replace(RECIPES["mxfp8"], stays_high="head"), TypeError, "expected a tuple"),
        (lambda: replace(RECIPES["float8_rowwise"], engine="native", accumulation=Accumulation()),
         ValueError, 'engine="native" adds up as its device does; leave accumulation out'),
        (lambda: Accumulation(bits=30), ValueError, "bits=30, step=32: expected 2 to 24"),
        (lambda: Accumulation(promote_every=100), ValueError, "promote_every=100: expected a mul"),
        (lambda: as_recipe("nvfp5"), ValueError, "recipe='nvfp5': expected one of .*did you mean"),
        (lambda: as_recipe("FP8"), ValueError, "did you mean 'mxfp8'"),
        (lambda: as_recipe(4), TypeError, "recipe=4: expected a name or a Recipe"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_block_of_a_fixed_scale_is_a_tensor_of_any_element():
    e2m1 = Operand(BlockFormat("fp4_per_tensor", "float4_e2m1fn", "tensor", "float32"))
    assert of_tensors("m", x=e2m1, w=e2m1, dy=e2m1, scaling=Fixed(2.0)).element("dy").bits == 4


# --- names ----------------------------------------------------------------------------------------


def test_every_recipe_that_others_have_is_in_the_table_of_names():
    assert NAMES.keys() == RECIPES.keys() - {"unscaled_e4m3"}
    rows = names_table().rows
    assert [row[0] for row in rows] == list(NAMES) and all(all(row) for row in rows)
