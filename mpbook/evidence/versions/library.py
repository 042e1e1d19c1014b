"""Switches and functions: which there are, and what they reach."""

from __future__ import annotations

import inspect

import torch
from torch.nn import functional

from mpbook.evidence.versions.base import Probe, in_fresh_process


def _yes(there: bool) -> str:
    return "yes" if there else "no"


def _new_switch() -> str:
    return _yes(hasattr(torch.backends.cuda.matmul, "fp32_precision"))


def _read_old_after_new() -> str:
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        return str(torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:
        return "RuntimeError"


def _switches_mixed() -> str:
    return in_fresh_process(_read_old_after_new)


def _convolutions_after_all() -> str:
    torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    return str(torch.backends.cudnn.conv.fp32_precision)  # type: ignore[attr-defined]


def _switch_reaches_convolutions() -> str:
    return in_fresh_process(_convolutions_after_all)


def _products_and_convolutions() -> str:
    products = torch.backends.cuda.matmul.allow_tf32
    return f"{_yes(products)}, {_yes(torch.backends.cudnn.allow_tf32)}"


def _tf32_defaults() -> str:
    return in_fresh_process(_products_and_convolutions)


def _get_capabilities() -> str:
    return _yes(hasattr(torch.cpu, "get_capabilities"))


def _linear_cross_entropy() -> str:
    return _yes(hasattr(functional, "linear_cross_entropy"))


def _grad_dtype() -> str:
    return _yes(hasattr(torch.ones(1), "grad_dtype"))


def _zero_grad() -> str:
    default = inspect.signature(torch.optim.Optimizer.zero_grad).parameters["set_to_none"].default
    return "None" if default else "zeros"


PROBES = (
    Probe(
        "tf32-defaults",
        "Is TF32 allowed by default for matrix products, and for cuDNN's convolutions?",
        _tf32_defaults,
        "Say which float32 you mean before you compare.",
        ("practice/speed",),
    ),
    Probe(
        "fp32-precision",
        "Is there `torch.backends.cuda.matmul.fp32_precision`, the newer switch of TF32?",
        _new_switch,
        "Use the old switches or the new ones, never both.",
        ("formats_that_need_less/bf16_traps",),
    ),
    Probe(
        "tf32-switches-mixed",
        "What does reading `matmul.allow_tf32` give after the newer switch was set?",
        _switches_mixed,
        "Use the old switches or the new ones, never both.",
        ("formats_that_need_less/bf16_traps",),
    ),
    Probe(
        "fp32-precision-convolutions",
        'What are cuDNN\'s convolutions set to after `torch.backends.fp32_precision = "ieee"`?',
        _switch_reaches_convolutions,
        "Set `torch.backends.cudnn.conv.fp32_precision` by itself.",
        ("formats_that_need_less/bf16_traps",),
    ),
    Probe(
        "cpu-get-capabilities",
        "Is there `torch.cpu.get_capabilities`?",
        _get_capabilities,
        "Nothing.",
    ),
    Probe(
        "linear-cross-entropy",
        "Is there `F.linear_cross_entropy`, which never keeps all logits if it is given `options`?",
        _linear_cross_entropy,
        "Before: compute the loss in chunks under a checkpoint.",
        ("practice/memory", "recipe/autocast_traps"),
    ),
    Probe(
        "grad-dtype",
        "Is there `Tensor.grad_dtype`, by which a gradient is wider than its parameter?",
        _grad_dtype,
        "Nothing.",
        ("formats_that_need_less/bf16_traps",),
    ),
    Probe(
        "zero-grad",
        "What does `optimizer.zero_grad()` leave behind?",
        _zero_grad,
        "Nothing.",
        ("practice/memory_traps",),
    ),
)
"""What the library offers."""
