"""Who published the figures, what kind of source each is, and under which licence it stands.

Only numbers and short descriptions are taken.  A licence is that of the repository, where it was
seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["maker", "library", "training log", "individual"]
"""A GPU's maker or seller; a library about itself; the log of a run; somebody's own benchmark."""


@dataclass(frozen=True)
class Source:
    """A repository or a page: its name as figures give it, its kind, its licence ("" not seen)."""

    name: str
    kind: Kind
    licence: str = ""


_ALL = (
    Source("NVIDIA/DeepLearningExamples", "maker", "Apache-2.0, BSD-3-Clause or MIT, by model"),
    Source("NVIDIA/TransformerEngine", "maker", "Apache-2.0"),
    Source("NVIDIA-NeMo/Megatron-Bridge", "maker"),
    Source("https://arxiv.org/abs/2509.25149", "maker"),
    Source("lambdal/deeplearning-benchmark", "maker", "no licence file"),
    Source("Azure/MS-AMP", "library", "MIT"),
    Source("deepseek-ai/DeepGEMM", "library", "MIT"),
    Source("facebookresearch/fairchem", "library"),
    Source("huggingface/transformers", "library", "Apache-2.0"),
    Source("mosaicml/llm-foundry", "library", "Apache-2.0"),
    Source("open-mmlab/mmdetection", "library", "Apache-2.0"),
    Source("open-mmlab/mmsegmentation", "library"),
    Source("pytorch/ao", "library", "BSD-3-Clause style"),
    Source("pytorch/pytorch.github.io", "library"),
    Source("pytorch/torchtitan", "library", "BSD-3-Clause"),
    Source("tensorflow/tensorflow", "library", "Apache-2.0"),
    Source("KellerJordan/modded-nanogpt", "training log", "MIT"),
    Source("THUDM/GLM-130B", "training log", "Apache-2.0 (code)"),
    Source("bigscience-workshop/bigscience", "training log", "Apache-2.0"),
    Source("facebookresearch/metaseq", "training log", "MIT"),
    Source("karpathy/llm.c", "training log", "MIT"),
    Source("karpathy/nanoGPT", "training log", "MIT"),
    Source("karpathy/nanochat", "training log", "MIT"),
    Source("EnzoDing-rgb/cs336-assignment2-systems", "individual"),
    Source("GAOYUEtianc/Stanford-CS336-assignments", "individual"),
    Source("Gzxshg/Stanford-CS336-LanguageModeling", "individual"),
    Source("HanFa/assignment2-systems", "individual"),
    Source("Infinite-Approximation/cs336-assignment2", "individual"),
    Source("KevinZhou-cs336/assignment2-systems", "individual"),
    Source("LINYUNLinYun/CS336-assignment2-systems", "individual"),
    Source("MaxxNine/nanochat", "individual"),
    Source("OpenMOSS/SummerQuest-2026", "individual"),
    Source("ShibukiZero/assignment2-systems", "individual"),
    Source("TianqGuo/MachineLearningNotes", "individual"),
    Source("bewantbe/busy-gemm-benchmark", "individual"),
    Source("brandon-snider/cs336-a2", "individual"),
    Source("ceshine/apex_pytorch_cifar_experiment", "individual", "no licence file"),
    Source("chenwg2000/nanogpt-fp8-mxfp8", "individual"),
    Source("cherryni2022/cs336-assignment2-system", "individual"),
    Source("chsasank/device-benchmarks", "individual"),
    Source("csdiywithme/cs336-assignment2-systems", "individual"),
    Source("damek/cs336-assignment2-systems", "individual"),
    Source("hoya012/automatic-mixed-precision-tutorials-pytorch", "individual", "MIT"),
    Source(
        "https://www.gilesthomas.com/2026/04/"
        "llm-from-scratch-32h-interventions-full-fat-float32",
        "individual",
    ),
    Source("jeremylyn0001-sudo/cs336-assignment2", "individual"),
    Source("kbjiang/cs336-assignment2-systems-mine", "individual"),
    Source("loafbaker/GPT-2-124M", "individual"),
    Source("luke396/assignment2-systems", "individual"),
    Source("lyq1119/lyq-language-modeling-from-scratch-2026-spring", "individual"),
    Source("philharmonic77/cs336-assignment2", "individual"),
    Source("rasbt/LLMs-from-scratch", "individual", "MIT, as it read in 2023 and 2024"),
    Source("sandeepkumar-skb/pytorch_experiments", "individual"),
    Source("sandyhu533/assignment2-systems", "individual"),
    Source("stas00/ml-engineering", "individual", "CC BY-SA 4.0"),
    Source("suvojit-0x55aa/mixed-precision-pytorch", "individual", "WTFPL"),
    Source("u39kun/deep-learning-benchmark", "individual", "no licence file"),
    Source("ymao-otter/assignment2-systems", "individual"),
    Source("yyin-dev/cs336-a2", "individual"),
    Source("zhasion/CS336", "individual"),
    Source("zinccat/nanoGPT-jax", "individual"),
    Source("zzc0721/torch-performance-test-data", "individual"),
)  # fmt: skip
SOURCES: Mapping[str, Source] = {source.name: source for source in _ALL}
"""By name."""
