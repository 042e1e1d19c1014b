"""Each trick on trial: what blocks, stochastic rounding, Hadamard and square weight blocks pay.

A recipe adds tricks to a format, and whether one pays depends on the tensors.  `which_trick_pays`
takes x, w and dy from a model (`mpbook.low_precision.capture`), computes the three products of each
linear layer in every combination, and compares them with the exact ones:

* *error*: the root mean square of ``C' - C`` over that of C;
* *cosine*: of C' and C;
* *bias*: the part of the error that stays when draws are averaged, with the tensors as they are.
  Without draws it is all of it; with draws on dy, what the other operand's rounding leaves;
* *spread*: the part that a draw adds.  ``error**2 = bias**2 + spread**2``, on average.

Errors that are spread average out over steps, and those that are bias add up: so stochastic
rounding is judged by the bias, everything else by the error.  A verdict compares pairs, the same
layers and batches with and without the trick; its interval is over batches.

Taught in the chapter "FP8 and below".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpbook.formats.blocks import ScaleMode
from mpbook.low_precision.capture import Captured, Loss, capture, next_token_loss
from mpbook.low_precision.quantisation import quantised
from mpbook.low_precision.trial import Measured, Trial
from mpbook.low_precision.variants import Variant, variants

FORMATS_ON_TRIAL = ("fp8_per_tensor", "fp8_per_row", "mxfp8_e4m3", "mxfp4", "nvfp4")


def which_trick_pays(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    layers: Sequence[str] | None = None,
    loss: Loss = next_token_loss,
    formats: Sequence[str] = FORMATS_ON_TRIAL,
    scale_modes: Sequence[ScaleMode] = ("rceil",),
    hadamard: Sequence[int] = (16, 32, 128),
    draws: int = 8,
    seed: int = 0,
) -> Trial:
    """Try every combination of tricks on the tensors of a model.

    Args:
        model: any module; it is left as it was.
        batches: two or more, which ``loss`` takes.
        layers: names of linear layers; all by default.
        loss: ``loss(model, batch)``; cross entropy of ``(inputs, targets)`` by default.
        formats: names in `BLOCK_FORMATS`.
        scale_modes: to try where scales are powers of two.
        hadamard: sizes to try, powers of two.
        draws: of stochastic rounding, two or more.
        seed: of the draws.

    Raises:
        ValueError: an argument out of range, or nothing that could be tried.
    """
    _check_draws(draws)
    return trial_of(
        capture(model, batches, layers=layers, loss=loss),
        formats=formats, scale_modes=scale_modes, hadamard=hadamard, draws=draws, seed=seed,
    )  # fmt: skip


def trial_of(
    captured: Sequence[Captured],
    *,
    formats: Sequence[str] = FORMATS_ON_TRIAL,
    scale_modes: Sequence[ScaleMode] = ("rceil",),
    hadamard: Sequence[int] = (16, 32, 128),
    draws: int = 8,
    seed: int = 0,
) -> Trial:
    """The same for tensors that you have."""
    _check_draws(draws)
    rows: list[Measured] = []
    left_out: dict[str, None] = {}
    for layer in captured:
        for product, (left, right) in layer.operands().items():
            exact = left.double() @ right.double().T
            for variant in variants(product, formats, scale_modes, hadamard):
                if why := _misfit(product, variant, left, right):
                    where = f"{layer.layer}, {product}, {variant.format_name}, {variant.tricks}"
                    left_out[f"{where}: {why}"] = None
                    continue
                found = list(_products(product, variant, left, right, draws, seed))
                measured = _errors(product, exact, found)
                rows.append(Measured(layer.layer, layer.batch, product, variant, *measured))
    if not rows:
        raise ValueError(f"nothing could be tried: {next(iter(left_out), 'formats is empty')}")
    return Trial(tuple(rows), left_out=tuple(left_out))


def _check_draws(draws: int) -> None:
    if draws < 2:
        raise ValueError(f"draws={draws}: expected 2 or more, to tell bias from spread")


# --- One product -------------------------------------------------------------------------------


def _misfit(product: str, variant: Variant, left: Tensor, right: Tensor) -> str | None:
    for matrix, operand in zip((left, right), variant.operands(product), strict=True):
        if any(n % k for n, k in zip(matrix.shape, operand.tile, strict=True)):
            return f"{tuple(matrix.shape)} is no multiple of {operand.tile}"
    return None


def _errors(
    product: str, exact: Tensor, products: Sequence[Tensor]
) -> tuple[float, float, float, float]:
    """Error, cosine, bias and spread of a product, as it came out in each draw."""
    norm = exact.square().sum().item()
    if not math.isfinite(norm) or norm == 0:
        raise ValueError(f"{product}: the exact product is zero, infinite or NaN; leave it out")
    n = len(products)
    errors = [p - exact for p in products]
    squares = statistics.fmean(e.square().sum().item() for e in errors)
    mean = torch.stack(errors).mean(0).square().sum().item()
    spread = max(0.0, (squares - mean) * n / (n - 1)) if n > 1 else 0.0
    cosine = statistics.fmean(
        (p * exact).sum().item() / math.sqrt(norm * max(p.square().sum().item(), 1e-300))
        for p in products
    )
    bias = max(0.0, squares - spread)  # the square of the mean error holds spread / n by chance
    return math.sqrt(squares / norm), cosine, math.sqrt(bias / norm), math.sqrt(spread / norm)


def _products(
    product: str, variant: Variant, left: Tensor, right: Tensor, draws: int, seed: int
) -> Iterator[Tensor]:
    """The product in float64, of elements that are exact in it: once for each draw."""
    of_left, of_right = variant.operands(product)
    right = quantised(right, of_right).double().T
    with torch.random.fork_rng(range(torch.cuda.device_count())):  # manual_seed goes to them all
        torch.manual_seed(seed)
        for _ in range(draws if of_left.rounding == "stochastic" else 1):
            yield quantised(left, of_left).double() @ right
