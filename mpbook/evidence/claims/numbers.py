"""Claims about numbers alone: a few additions decide them, the same on every device."""

from __future__ import annotations

import math

import torch

from mpbook.evidence.claims.base import Claim, Finding, by_share, exactly


def _rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=torch.float64).to(dtype).item()


def _underflow() -> Finding:
    survivors = [e for e in range(-40, -13) if _rounded(2.0**e, torch.float16) > 0]
    smallest = 2.0 ** min(survivors)
    normal = torch.finfo(torch.float16).tiny
    why = (
        f"{normal:.1e} is the smallest normal number; below it the digits dwindle, and "
        f"{smallest:.2e} is the smallest number that is not 0. The matrix units of AMD's MI200 "
        "are an exception: they read subnormals as 0."
    )
    return ("holds" if smallest >= 6e-5 else "false"), why


def _small_updates() -> Finding:
    # All numbers from 0 to the largest.
    weights = torch.arange(0x7C00, dtype=torch.int16).view(torch.float16)
    # The sum in float64, which is exact here, is rounded once, as in an optimizer's kernel.
    vanishes = (weights.double() + 1e-7).half() == weights
    moved = weights[~vanishes].max().item() if not vanishes.all() else 0.0
    why = (
        f"1e-7 is not 0 in float16: it moves weights of up to {moved:.2e}, and vanishes in larger "
        "ones, of which it is less than half an ulp."
    )
    return by_share(vanishes.tolist()), why


def _after_a_zero_gradient(*, fused: bool) -> tuple[float, float]:
    """A float16 weight of 1 after one step of AdamW, and AdamW's eps."""
    parameter = torch.nn.Parameter(torch.ones(1, dtype=torch.float16))
    adam = torch.optim.AdamW([parameter], fused=fused)
    parameter.grad = torch.zeros_like(parameter)
    adam.step()
    return parameter.item(), adam.defaults["eps"]


def _eps() -> Finding:
    weight, eps = _after_a_zero_gradient(fused=False)
    fused, _ = _after_a_zero_gradient(fused=True)
    stored = _rounded(eps, torch.float16)
    why = (
        f"{eps:g} rounds to {stored:g}, and after one step with a gradient of 0 a float16 weight "
        f"is {weight:g}; with fused=True, which computes in float32, it is {fused:g}."
    )
    return by_share([stored == 0, math.isnan(weight), math.isnan(fused)]), why


def _second_moment() -> Finding:
    # One binade is enough: in the next everything is twice as large.
    moments = 1 + torch.arange(128, dtype=torch.float32) / 128
    frozen = {}
    for beta2 in (0.999, 0.95):
        decayed = (moments.bfloat16() * beta2).float()
        frozen[beta2] = int((decayed == moments).sum())
    why = (
        f"v x 0.999 rounds back to v for {frozen[0.999]} of 128 mantissas; with beta2 = 0.95 for "
        f"{frozen[0.95]}."
    )
    return by_share([frozen[0.999] == 128]), why


def _weight_of_one() -> Finding:
    ends = {}
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.ones(1, dtype=dtype))
        adam = torch.optim.AdamW([weight], lr=6e-4, weight_decay=0.0)
        for _ in range(100):
            weight.grad = torch.ones_like(weight)
            adam.step()
        ends[dtype] = weight.item()
    why = (
        f"After 100 steps down it is {ends[torch.bfloat16]:g}; a float32 weight is at "
        f"{ends[torch.float32]:.2f}. The neighbour below 1 is 2^-8 away, and a step is less than "
        "half of that."
    )
    return by_share([ends[torch.bfloat16] == 1.0 != ends[torch.float32]]), why


def _sum_stops() -> Finding:
    ones = torch.ones(1000, dtype=torch.bfloat16)
    running = torch.zeros((), dtype=torch.bfloat16)
    for one in ones:
        running = running + one
    summed = ones.sum().item()
    why = (
        f"A running sum of 1000 ones ends at {running.item():g}; torch.sum, which adds up in "
        f"float32, gives {summed:g}."
    )
    return by_share([running.item() == 256, summed == 256]), why


def _reach() -> Finding:
    largest = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.bfloat16)}
    why = (
        f"float32 ends at {largest[torch.float32]:.2g} and bfloat16 at "
        f"{largest[torch.bfloat16]:.2g}, the same power of two."
    )
    return by_share([end >= 3e75 for end in largest.values()]), why


def _float32_sums() -> Finding:
    # 4096 products of 64: each fits float16, and so do the first thousand of their sums.
    eights = torch.full((4096,), 8.0, dtype=torch.float16)
    product = (eights[None] @ eights[:, None]).item()
    kept = (eights.float() @ eights.float()).item()
    why = (
        f"4096 products of 64 are {kept:g} in float32, and {product:g} as a float16 result: the "
        "sum may be float32, what is written of it is not."
    )
    return by_share([math.isfinite(product)]), why


CLAIMS = (
    Claim(
        "fp16-underflows-below-6e-5",
        "float16 underflows below 6e-5.",
        "often said",
        exactly(_underflow),
        "numbers/precision_formats#formats-subnormals",
    ),
    Claim(
        "updates-of-1e-7-vanish",
        "Updates of 1e-7 vanish in float16.",
        "often said",
        exactly(_small_updates),
        "recipe/master_weights#mw-why",
    ),
    Claim(
        "adam-eps-is-0-in-fp16",
        "Adam's eps, 1e-8, is 0 in float16, and a gradient of 0 makes NaN.",
        "[optax#1754](https://github.com/google-deepmind/optax/issues/1754)",
        exactly(_eps),
        "recipe/master_weights_traps#mw-adam-nan",
    ),
    Claim(
        "beta2-is-frozen-in-bf16",
        "With beta2 = 0.999 a bfloat16 second moment never decays.",
        "rarely said",
        exactly(_second_moment),
        "recipe/master_weights_traps#mw-beta2",
    ),
    Claim(
        "bf16-weight-of-1-is-stuck",
        "A bfloat16 weight of 1.0 does not move under AdamW at lr 6e-4.",
        "[HF's handbook](https://github.com/huggingface/llm_training_handbook/tree/main/dtype): "
        "a tiny addition is often nullified",
        exactly(_weight_of_one),
        "recipe/master_weights#mw-why",
    ),
    Claim(
        "bf16-sums-stop-at-256",
        "A sum of ones in bfloat16 stops at 256.",
        "often said",
        exactly(_sum_stops),
        "numbers/rounding_and_sums_traps#sums-counter",
    ),
    Claim(
        "bf16-reaches-3e75",
        "float32 and bfloat16 reach 3.4e75.",
        "[mlmentorship](https://mlmentorship.com/concepts/mixed-precision-training/)",
        exactly(_reach),
        "numbers/precision_formats#formats-which",
    ),
    Claim(
        "float32-sums-prevent-overflow",
        "Accumulating in float32 keeps a float16 product from overflowing.",
        "[systemoverflow](https://www.systemoverflow.com/learn/ml-model-optimization/"
        "model-quantization/mixed-precision-training-fp16-bf16-and-fp32-accumulation)",
        exactly(_float32_sums),
        "numbers/rounding_and_sums#sums-matmul",
    ),
)
