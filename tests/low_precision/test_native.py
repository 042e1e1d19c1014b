"""The native engine means what the emulation means, or says that a device lacks it."""

from dataclasses import replace

import product_references as references
import pytest
import torch
from torch import nn

from mpbook.low_precision import RECIPES, convert, native
from mpbook.low_precision.operands import Operand
from mpbook.low_precision.quantisation import factored, quantised

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
NATIVE = ["float8_tensorwise", "float8_delayed", "float8_rowwise", "unscaled_e4m3"]


def skip_without(device: str, name: str) -> None:
    if problem := native.lacks(device, row=name == "float8_rowwise"):
        pytest.skip(f"{device}: {problem}")


def run(recipe, device: str, x, w, dy, *, steps: int = 2) -> list[dict[str, torch.Tensor]]:
    linear = nn.Linear(w.shape[1], w.shape[0], bias=False, device=device)
    linear.weight.data = w.to(device)
    convert(linear, recipe, filter=lambda module, name: True)
    found = []
    for _ in range(steps):  # the second one with delayed scales
        inputs = x.to(device).requires_grad_()
        linear.weight.grad = None
        y = linear(inputs)
        y.backward(dy.to(device))
        linear.advance()
        found.append({"y": y.detach(), "dx": inputs.grad, "dw": linear.weight.grad})
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", NATIVE)
def test_native_products_are_the_emulated_ones_as_far_as_sums_allow(name, device):
    skip_without(device, name)
    x, w, dy = references.layer_data(tokens=64, inputs=128, outputs=48)
    emulated = run(RECIPES[name], device, x, w, dy)
    ours = run(replace(RECIPES[name], engine="native"), device, x, w, dy)
    # Sums of a few hundred terms differ in float32's last bits; on a GPU they keep about 14 bits,
    # and those with scales of rows come in bfloat16.
    for a, b in zip(emulated, ours, strict=True):
        for part in a:
            gap = (a[part] - b[part]).norm() / (a[part].norm() + 1e-30)
            assert gap < (1e-5 if device == "cpu" else 5e-3), part


@pytest.mark.parametrize("name", ["mxfp8", "mxfp4", "nvfp4", "float8_blockwise"])
def test_formats_with_scales_inside_a_row_have_no_native_engine(name):
    model = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 128))
    message = f'layer "0": engine="native" multiplies eight bits .*"{name}" has .* use engine="emul'
    with pytest.raises(ValueError, match=message):
        convert(model, replace(RECIPES[name], engine="native"))


def test_a_device_without_the_products_is_named_with_the_cure(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("torch._scaled_mm is only supported on CUDA devices\nand so on")

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    monkeypatch.setattr(native, "lacks", native.lacks.__wrapped__)  # without what it remembers
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    message = (
        'layer "0": engine="native", and cpu has no products of eight bits with scales of tensors '
        r"\(RuntimeError: torch._scaled_mm is only supported on CUDA devices\); use engine="
    )
    with pytest.raises(RuntimeError, match=message):
        convert(model, replace(RECIPES["float8_tensorwise"], engine="native"))


def test_shapes_that_the_hardware_does_not_take_are_refused():
    skip_without("cpu", "float8_tensorwise")
    recipe = replace(RECIPES["float8_tensorwise"], engine="native")
    with pytest.raises(ValueError, match='layer "0": in_features=24 is no multiple of 16'):
        convert(nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 2)), recipe)
    model = convert(nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 2)), recipe)
    with pytest.raises(ValueError, match=r'layer "0": input has 20 tokens'):
        model(torch.ones(20, 32))


@pytest.mark.parametrize("name", RECIPES)
def test_elements_times_factor_are_the_quantised_numbers(name):
    x, _, _ = references.layer_data()
    scale = torch.tensor(3.7) if "delayed" in name else None
    for _, _, operand in RECIPES[name].operands():
        torch.manual_seed(0)
        expected = quantised(x, operand, scale=scale)
        torch.manual_seed(0)
        elements, factor = factored(x, operand, scale=scale)
        assert torch.allclose(elements * factor, expected, rtol=1e-6, atol=0)
        if operand.block_format.block in ("tensor", "row"):
            element = getattr(torch, operand.block_format.element.name)
            assert torch.equal(elements.to(element).float(), elements)


def test_an_operand_that_stays_high_has_factor_1():
    x = torch.randn(4, 4)
    elements, factor = factored(x, Operand())
    assert torch.equal(elements, x) and factor.tolist() == [[1]]
