"""torchao's float8 and MXFP8 training layers, on a CPU: the same bits, or the difference named."""

import warnings
from dataclasses import replace

import product_references as references
import pytest
import torch
from torch import nn

from mpbook.low_precision import RECIPES, Operand, Product, convert


def imported(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason="torchao is not installed", exc_type=ImportError)


def run(module: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> dict[str, torch.Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = x.clone().requires_grad_()
        module.weight.grad = None
        y = module(x)
        y.backward(dy)
    return {"y": y.detach(), "dx": x.grad, "dw": module.weight.grad.clone()}


def linear(w: torch.Tensor) -> nn.Linear:
    made = nn.Linear(w.shape[1], w.shape[0], bias=False)
    made.weight.data = w.clone()
    return made


def ours(recipe, w: torch.Tensor) -> nn.Linear:
    return convert(linear(w), recipe, filter=lambda module, name: True)


def float8(recipe: str, w: torch.Tensor) -> nn.Module:
    config = imported("torchao.float8.config").Float8LinearConfig.from_recipe_name(recipe)
    config = replace(config, emulate=True)
    return imported("torchao.float8.float8_linear").Float8Linear.from_float(linear(w), config)


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Sums of the same numbers, which torch adds up in the same call: equal but for their order."""
    return a.dtype == b.dtype and bool((a - b).norm() <= 2e-6 * a.norm())


def test_rowwise_is_torchaos():
    x, w, dy = references.layer_data()
    theirs = run(float8("rowwise", w), x, dy)
    found = run(ours("float8_rowwise", w), x, dy)
    assert all(equal(found[part], theirs[part]) for part in found)


def test_rowwise_with_the_weights_gradient_in_high_precision_is_torchaos():
    row, w_tensor = RECIPES["float8_rowwise"].fprop.left, "fp8_per_tensor_e8m0"
    tensor = Operand(replace(row.block_format, name=w_tensor, block="tensor"), "rceil")
    recipe = replace(
        RECIPES["float8_rowwise"], name="gw_hp", dgrad=Product(row, tensor), wgrad=Product()
    )
    x, w, dy = references.layer_data()
    theirs = run(float8("rowwise_with_gw_hp", w), x, dy)
    found = run(ours(recipe, w), x, dy)
    assert all(equal(found[part], theirs[part]) for part in found)


def test_tensorwise_differs_from_torchao_by_its_reciprocal_alone():
    x, w, dy = references.layer_data()
    theirs = run(float8("tensorwise", w), x, dy)
    found = run(ours("float8_tensorwise", w), x, dy)
    for part in found:  # x * (448 / amax) and x / (amax / 448) round to another element at a tie
        assert (found[part] - theirs[part]).norm() < 1e-3 * theirs[part].norm()
    # Where amax is 448 or 57344 over a power of two, both scales are exact, and all bits agree.
    for matrix, top in ((x, 448), (w, 448), (dy, 57344)):
        largest = matrix.abs().max()
        matrix.clamp_(-largest / 2, largest / 2)
        matrix[0, 0] = top * torch.exp2(torch.ceil(torch.log2(largest / top)))
    theirs, found = run(float8("tensorwise", w), x, dy), run(ours("float8_tensorwise", w), x, dy)
    assert all(equal(found[part], theirs[part]) for part in found)


@pytest.mark.parametrize("mode", ["floor", "rceil"])
def test_mxfp8_is_torchaos(mode):
    module = imported("torchao.prototype.moe_training.mxfp8_linear")
    preference = imported("torchao.quantization.quantize_.common.kernel_preference")
    config = imported("torchao.prototype.mx_formats.config")

    class Theirs(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.weight = nn.Parameter(w.clone())

        def forward(self, x):
            return module.mx_mm.apply(
                x, self.weight, *[torch.float8_e4m3fn] * 3, 32,
                preference.KernelPreference.EMULATED,
                config.MXFP8Dim0CastKernelChoice.TORCH, config.MXFP8Dim1CastKernelChoice.TORCH,
                config.ScaleCalculationMode(mode), False,
            )  # fmt: skip

    def with_mode(product: Product) -> Product:
        return Product(*(replace(o, scale_mode=mode) for o in (product.left, product.right)))

    recipe = RECIPES["mxfp8"]
    parts = {p: with_mode(getattr(recipe, p)) for p in ("fprop", "dgrad", "wgrad")}
    x, w, dy = references.layer_data()
    theirs, found = run(Theirs(w), x, dy), run(ours(replace(recipe, **parts), w), x, dy)
    assert all(equal(found[part], theirs[part]) for part in found)
