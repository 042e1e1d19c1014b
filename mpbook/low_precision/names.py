"""Who calls what how, and which GPU has it: the names of the recipes in other libraries.

Sources, read in November 2026: TransformerEngine, "Datatype and hardware support matrix" and
"Common API"; torchao, "Quantized Training"; Megatron Core, "Low-Precision Training Guide".
"""

from __future__ import annotations

from dataclasses import dataclass

from mpbook.notebook import Table

SUPPORT_MATRIX = "https://nvidia.github.io/TransformerEngine/support_matrix.html"
TORCHAO = "https://docs.pytorch.org/ao/main/workflows/training.html"
MEGATRON = (
    "https://docs.nvidia.com/megatron-core/developer-guide/nightly/user-guide/features/"
    "low_precision_training.html"
)


@dataclass(frozen=True)
class Names:
    """What a recipe is called elsewhere.

    Args:
        torchao: its recipe or configuration; empty if it has none.
        transformer_engine: its class in ``transformer_engine.common.recipe``.
        megatron: its option.
        gpus: which NVIDIA GPUs TransformerEngine runs it on, with their compute capability; of a
            recipe that it lacks, who does.
        differs: in what theirs differ from ours, or from each other.
    """

    torchao: str
    transformer_engine: str
    megatron: str
    gpus: str
    differs: str = ""


NAMES: dict[str, Names] = {
    "float8_tensorwise": Names(
        'Float8LinearRecipeName "tensorwise"',
        "Float8CurrentScaling",
        "--fp8-recipe tensorwise",
        "Ada 8.9, Hopper 9.0, Blackwell 10.0 and 12.0",
        "torchao and TransformerEngine multiply by a reciprocal scale, here amax / max divides",
    ),
    "float8_delayed": Names(
        "",
        "DelayedScaling",
        "--fp8-recipe delayed",
        "Ada 8.9, Hopper 9.0, Blackwell 10.0 and 12.0",
        "TransformerEngine takes the largest amax of all ranks",
    ),
    "float8_rowwise": Names(
        'Float8LinearRecipeName "rowwise"',
        "",
        "",
        "Hopper 9.0 and Blackwell 10.0, in torchao; torch has kernels for Ada 8.9 and 12.0",
    ),
    "float8_blockwise": Names(
        "Float8BlockwiseLinear (prototype)",
        "Float8BlockScaling",
        "--fp8-recipe blockwise",
        "Hopper 9.0; Blackwell computes it as MXFP8",
        "DeepSeek-V3's own has float32 scales for weights",
    ),
    "mxfp8": Names(
        "mx_formats, mxfp8",
        "MXFP8BlockScaling",
        "--fp8-recipe mxfp8",
        "Blackwell 10.0",
        "torchao lets you choose the scale mode; here it is rceil, as in TransformerEngine",
    ),
    "mxfp4": Names("", "", "", "none", "there is no recipe of this name; ours follows nvfp4's"),
    "nvfp4": Names(
        "nvfp4_training (prototype)",
        "NVFP4BlockScaling",
        "--fp4-recipe nvfp4",
        "Blackwell 10.0; 12.0 in part",
        "each has its own fixed signs of the Hadamard transform",
    ),
}
"""The recipes that others have too, by our name."""


def names_table() -> Table:
    """The recipes, what torchao, TransformerEngine and Megatron call them, and where they run."""
    rows = [
        (name, *(word or "none" for word in (n.torchao, n.transformer_engine, n.megatron)), n.gpus)
        for name, n in NAMES.items()
    ]
    header = ["recipe", "torchao", "TransformerEngine", "Megatron Core", "GPUs"]
    caption = f"Read in November 2026 in {SUPPORT_MATRIX}, {TORCHAO} and {MEGATRON}"
    return Table(header, rows, caption=caption)
