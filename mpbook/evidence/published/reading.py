"""How the words of a published figure are read: its baseline, its precision, its GPU, its unit.

Sources name things as they like ("fp32 column (tf32 by default in the NGC container)").  Each name
is put into a class here, by the first pattern that it matches, and a name that matches none is an
error: a figure that cannot be classified cannot be counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, cast

Quantity = Literal["speed", "memory", "batch", "quality", "peak", "count"]
"""What is compared; ``"peak"`` is a share of a data sheet's peak, ``"count"`` no comparison."""

Patterns = Sequence[tuple[str, str]]

_BASELINES: Patterns = (
    ("data-sheet peak", "data sheet"),
    ("TF32 setting not stated", "float32 or TF32"),
    (r"^tf32|\(tf32 by default|hence tf32", "TF32"),
    ("^fp32 weights", "float32 weights"),
    ("^fp32", "float32"),
    ("^(bf16|fp16 AMP|mixed)", "16 bits"),
    ("^(MXFP8|fp8)", "8 bits"),
    ("^torch ", "older torch"),
)
_PRECISIONS: Patterns = (
    ("achieved", "achieved"),
    (r"^(mixed|bf16 autocast)|with fp32 master", "mixed"),
    ("whole model half|^(fp16|bf16)-true|^bf16 weights", "16-bit weights"),
    ("NVFP4", "4 bits"),
    ("fp8|MXFP8|INT8", "8 bits"),
    ("^tf32", "TF32"),
    ("^fp32", "float32"),
    ("^(bf16|fp16)", "16 bits"),
    ("^torch ", "newer torch"),
)
_GENERATIONS: Patterns = (
    (r"\b(P40|P100|GTX 1080 Ti)\b", "Pascal"),
    (r"\b(V100S?|Titan V)\b", "Volta"),
    (r"\b(T4|RTX 8000|RTX 20[678]0( Super| Ti)?|Titan RTX)\b", "Turing"),
    (r"\b(A100|A800|A40|A10|RTX 30[5678]0|RTX 3090|RTX A6000)\b", "Ampere"),
    (r"\b(L4|L40S?|RTX 40[5678]0|RTX 4090|RTX 6000 Ada)\b", "Ada"),
    (r"\b(H20|H100|H200|GH200|H800)\b|sm_90", "Hopper"),
    (r"\b(B200|B300|GB200|GB300|RTX 50[5678]0|RTX 5090|RTX PRO 6000|Blackwell)\b", "Blackwell"),
    (r"\bAMD( MI\d+X)?\b", "AMD"),
)
GENERATIONS = tuple(name for _, name in _GENERATIONS)
"""The generations of GPUs, oldest first; AMD's stand last."""

_MODELS: Patterns = (
    (r"matrix product|matmul|^MLP of|one large Dense layer", "single layers"),
    (r"GNMT|Jasper|WaveGlow|Tacotron|FastPitch|HiFi-GAN|wav2vec", "speech and recurrent nets"),
    (r"NCF|DLRM|graph", "other nets"),
    (
        r"ResN[eE]X?t|EfficientNet|EfficientDet|SSD|R-CNN|VGG|DenseNet|U-Net|RetinaNet|FCN|PSPNet",
        "convolutional nets",
    ),
    (
        r"BERT|GPT|GLM|OPT|BLOOM|Transformer|Llama|MPT|BART|Qwen|Mixtral|DeepSeek|ViT|Swin|"
        r"speedrun",
        "Transformers",
    ),
)
_UNITS: Patterns = (
    (r"\((higher|lower) is better\)$", "quality"),
    (r"^batch |batch that fits", "batch"),
    (r"^(GB|GiB|MB|MiB)\b|^% of the \w+ memory", "memory"),
    (r"/s\b|^ms\b|^s (per|to)\b|^(seconds|minutes|hours) |^speed to|^steps to|MFU", "speed"),
    ("instability|loss spike|explosions|restarts", "count"),
)
_TIMES = re.compile(r"^(ms|s per|s to|seconds|minutes|hours|steps)\b")
"""Units of which less is faster."""


def first_match(text: str, patterns: Patterns, *, what: str) -> str:
    """The class of the first pattern that occurs in a text.

    Raises:
        ValueError: none does.
    """
    for pattern, name in patterns:
        if re.search(pattern, text):
            return name
    raise ValueError(f"{what}={text!r}: no pattern of mpbook.evidence.published.reading knows it")


def baseline(text: str | None) -> str:
    """The class of what a figure is compared with; empty where it is compared with nothing.

    >>> baseline("fp32 column (tf32 by default in the NGC container on this generation)")
    'TF32'
    """
    return "" if text is None else first_match(text, _BASELINES, what="precision_a")


def precision(text: str) -> str:
    """The class of the precision that is compared.

    >>> precision("mixed (fp16 AMP)"), precision("fp16 (whole model half)")
    ('mixed', '16-bit weights')
    """
    return first_match(text, _PRECISIONS, what="precision_b")


def generation(hardware: str) -> str:
    """The generation of the GPU; empty where the source names none, or several.

    >>> generation("8x A100 40GB (DGX A100)"), generation("A100 and V100")
    ('Ampere', '')
    """
    found = [name for pattern, name in _GENERATIONS if re.search(pattern, hardware)]
    return found[0] if len(found) == 1 else ""


def card(hardware: str) -> str:
    """The GPU's model without its count, memory and board.

    Empty where `generation` is, and where the source names the generation alone.

    >>> card("8x A100 80GB (DGX A100)"), card("1x RTX 3090 Ti"), card("A100 and V100")
    ('A100', 'RTX 3090 Ti', '')
    """
    for pattern, name in _GENERATIONS:
        if name == generation(hardware):
            found = re.search(rf"({pattern})( Ti| Super| SUPER| Laptop)?", hardware)
            return found[0] if found and found[0] not in GENERATIONS else ""
    return ""


def quantity(unit: str) -> Quantity:
    """What a unit measures.

    >>> quantity("ms per step"), quantity("mAP (higher is better)")
    ('speed', 'quality')
    """
    return cast(Quantity, first_match(unit, _UNITS, what="unit"))


def less_is_faster(unit: str) -> bool:
    """Whether a unit of speed is a time.

    >>> less_is_faster("s per step"), less_is_faster("samples/s")
    (True, False)
    """
    return _TIMES.match(unit) is not None


def kind_of_model(model: str) -> str:
    """The kind of a model: convolutional nets, Transformers, ..., or single layers.

    >>> kind_of_model("ResNet50 v1.5, ImageNet, 90 epochs")
    'convolutional nets'
    """
    return first_match(model, _MODELS, what="model")


def year(date: str | None, software: str | None) -> int | None:
    """The year in which it was measured, as stated, or as the container's version says.

    >>> year("2026-01", None), year(None, "pytorch-20.06-py3 NGC container"), year(None, None)
    (2026, 2020, None)
    """
    if date and (stated := re.search(r"\b20\d\d\b", date)):
        return int(stated[0])
    container = re.search(r"pytorch\W(\d\d)\.\d\d", software or "", re.I)
    return 2000 + int(container[1]) if container else None
