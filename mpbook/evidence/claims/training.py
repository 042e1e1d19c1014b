"""Claims about training that a second of training decides, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpbook.cost.measure import saved_for_backward
from mpbook.data import digits
from mpbook.evidence.claims.base import MICIKEVICIUS, Claim, Finding, by_share, live
from mpbook.models import GPT, MLP, GPTConfig, parameter_count
from mpbook.precision import Precision
from mpbook.training import train
from mpbook.training.run import Run
from mpbook.training.settings import cross_entropy

_ADAM_BYTES = 16  # float32: the weight, its gradient and two moments


def _train(
    precision: str | Precision,
    device: torch.device,
    *,
    steps: int,
    rate: float,
    optimizer: str = "sgd",
) -> Run:
    torch.manual_seed(0)
    return train(
        MLP(64, 128, 10),
        digits(),
        precision=precision,
        steps=steps,
        batch_size=256,
        learning_rate=rate,
        optimizer=optimizer,
        count_lost_updates_every=max(1, steps // 4),
        device=device,
        progress=False,
    )


# --- What is stored in which dtype ---------------------------------------------------------------


def _dtypes(device: torch.device) -> dict[str, str]:
    layer = nn.Linear(8, 8, device=device)
    with torch.autocast(device.type, dtype=torch.float16):
        activation = layer(torch.ones(2, 8, device=device))
    activation.float().sum().backward()
    assert layer.weight.grad is not None
    stored = {"weights": layer.weight, "gradients": layer.weight.grad, "activations": activation}
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in stored.items()}


def _stores(device: torch.device) -> Finding:
    dtypes = _dtypes(device)
    weights, activations = dtypes["weights"], dtypes["activations"]
    why = f"Under autocast the weights are {weights}, a product's output is {activations}."
    return by_share([weights == activations == "float16"]), why


def _gradients(device: torch.device) -> Finding:
    dtype = _dtypes(device)["gradients"]
    rounded = _are_float16_numbers(device)
    why = (
        f"Under autocast parameter.grad is {dtype}, as the parameter is. In a linear layer it is a "
        f"float16 product that was cast: its values {'all fit' if rounded else 'do not all fit'} "
        "float16."
    )
    return by_share([dtype == "float16"]), why


def _are_float16_numbers(device: torch.device) -> bool:
    """Whether the gradient of a linear layer's weight, after one backward pass, fits float16."""
    layer = nn.Linear(64, 64, device=device)
    inputs = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.autocast(device.type, dtype=torch.float16):
        outputs = layer(inputs)
    outputs.float().square().mean().backward()
    gradient = layer.weight.grad
    assert gradient is not None
    return torch.equal(gradient.half().float(), gradient)


def _bytes_per_parameter(precision: str, device: torch.device) -> tuple[float, ...]:
    """Of the weight and its copies, the gradient, and Adam's state."""
    run = _train(precision, device, steps=1, rate=1e-3, optimizer="adam")
    memory, count = run.memory, parameter_count(run.model)
    kept = memory.parameters + memory.master_copies, memory.gradients, memory.optimizer_state
    return tuple(part / count for part in kept)


def _twice_the_model(device: torch.device) -> Finding:
    full, mixed = (_bytes_per_parameter(p, device) for p in ("32-true", "bf16-mixed"))
    said = [" + ".join(f"{part:.0f}" for part in parts) for parts in (full, mixed)]
    why = (
        f"Weight, gradient and Adam's moments take {said[0]} bytes in float32 and {said[1]} in "
        "mixed precision."
    )
    return by_share([sum(mixed) <= 0.55 * sum(full)]), why


def _activation_bytes(batch: int, device: torch.device) -> tuple[int, int]:
    """Bytes saved for the backward pass of a small GPT, and its parameters."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(context=64, layers=2, width=64)).to(device)
    tokens = torch.zeros(batch, 64, dtype=torch.int64, device=device)
    with saved_for_backward(model) as saved:
        cross_entropy(model(tokens), tokens)
    return saved(), parameter_count(model)


def _activations_dominate(device: torch.device) -> Finding:
    shares = {}
    for batch in (1, 64):
        activations, parameters = _activation_bytes(batch, device)
        shares[batch] = activations / (activations + _ADAM_BYTES * parameters)
    why = (
        "In a GPT of two layers they are "
        + " and ".join(f"{share:.0%} at batch {batch}" for batch, share in shares.items())
        + "; the rest is weights, gradients and Adam's moments, whatever the batch."
    )
    return by_share([share > 0.5 for share in shares.values()]), why


# --- What the recipe is needed for ---------------------------------------------------------------


def _master_copy(device: torch.device) -> Finding:
    gaps, said = [], []
    for rate, steps in ((0.003, 400), (1.0, 100)):
        full, pure = (_train(p, device, steps=steps, rate=rate) for p in ("32-true", "bf16-true"))
        gaps.append(pure.loss - full.loss)
        lost = pure.updates_lost[-1][1]
        said.append(f"{gaps[-1]:+.3f} at a rate of {rate}, where {lost:.0%} of updates are lost")
    why = f"Without one a bfloat16 MLP under SGD ends, against float32's loss, {'; '.join(said)}."
    return by_share([gap > 0.05 for gap in gaps]), why


_BATCH, _LABELS = 512, 4096


def _rare_labels(device: torch.device, dtype: torch.dtype, *, scale: float = 1.0) -> Tensor:
    """Weight gradients of one step towards labels that are rare and absent in this batch.

    Each logit's gradient is p / (batch x labels), here about 0.05 / 2^21.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(_BATCH, 32, generator=generator).to(device)
    weight = (0.005 * torch.randn(_LABELS, 32, generator=generator)).to(device).requires_grad_()
    bias = torch.full((_LABELS,), -3.0, device=device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits = nn.functional.linear(inputs, weight, bias)
    absent = torch.zeros_like(logits, dtype=torch.float32)
    loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), absent)
    (gradient,) = torch.autograd.grad(scale * loss, weight)
    return gradient


def _zeros(device: torch.device, dtype: torch.dtype, *, scale: float = 1.0) -> float:
    return (_rare_labels(device, dtype, scale=scale) == 0).float().mean().item()


def _fp16_needs_scaling(device: torch.device) -> Finding:
    unscaled = Precision("16-mixed, unscaled", compute_dtype=torch.float16)
    full, half = (_train(p, device, steps=100, rate=1.0).loss for p in ("32-true", unscaled))
    lost, scaled = (_zeros(device, torch.float16, scale=s) for s in (1.0, 65536.0))
    why = (
        f"An MLP on digits ends {half - full:+.3f} from float32's loss without it; a mean over "
        f"{_BATCH} x {_LABELS} rare labels loses {lost:.0%} of its weight gradients, and with a "
        f"scale of 65536 it loses {scaled:.0%}."
    )
    return by_share([half - full > 0.05, lost > 0.5 and scaled < 0.05]), why


def _bf16_needs_none(device: torch.device) -> Finding:
    lost = {dtype: _zeros(device, dtype) for dtype in (torch.float16, torch.bfloat16)}
    why = (
        f"Where float16 loses {lost[torch.float16]:.0%} of the weight gradients, towards rare "
        f"labels, bfloat16 loses {lost[torch.bfloat16]:.0%}: it has float32's range."
    )
    return by_share([lost[torch.bfloat16] == 0 and lost[torch.float16] > 0.5]), why


_FASTAI = "[fastai's guide](https://docs.fast.ai/callback.fp16.html)"
_THREAD = "https://discuss.pytorch.org/t/torch-autocasts-gradient/169003"
_HF = "https://huggingface.co/docs/transformers/en/mixed_precision_training"

CLAIMS = (
    Claim(
        "mixed-precision-stores-16-bit-weights",
        "Mixed precision stores weights and activations in float16.",
        f"[transformers' guide]({_HF}): both shrink",
        live(_stores),
        "recipe/autocast#autocast-why",
    ),
    Claim(
        "gradients-are-16-bit",
        "In mixed precision the gradients are float16.",
        f"[asked in a thread]({_THREAD})",
        live(_gradients),
        "recipe/autocast#autocast-why",
    ),
    Claim(
        "twice-the-model",
        "Mixed precision lets you double the size of the model.",
        f"{_FASTAI}: in theory",
        live(_twice_the_model),
        "practice/memory#memory-twice",
    ),
    Claim(
        "activations-dominate-memory",
        "Activations take most of the memory of training.",
        "often said",
        live(_activations_dominate),
        "practice/memory#memory-bytes",
    ),
    Claim(
        "master-copy-is-needed",
        "16-bit training needs a float32 master copy of the weights.",
        MICIKEVICIUS,
        live(_master_copy),
        "recipe/master_weights#mw-ship",
    ),
    Claim(
        "fp16-needs-loss-scaling",
        "float16 training needs loss scaling.",
        "often said",
        live(_fp16_needs_scaling),
        "recipe/loss_scaling#ls-my-model",
    ),
    Claim(
        "bf16-needs-no-loss-scaling",
        "bfloat16 needs no loss scaling.",
        "[Kalamkar et al. 2019](https://arxiv.org/abs/1905.12322): no tuning needed",
        live(_bf16_needs_none),
        "formats_that_need_less/bf16#bf16-ship",
    ),
)
