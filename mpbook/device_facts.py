"""What NVIDIA's GPUs can do on paper: peaks, bandwidth, memory.  The one home of these figures.

The roofline, the memory planner, the explorers and every utilisation read them here; a new card is
a new entry of `GPUS`.

* Peaks are *dense*: a data sheet's figure "with sparsity" is halved.  They are those of tensor
  cores that add up in float32, as torch's products do.  GeForce cards do that at half the rate that
  their sheets state for a float16 accumulator.  ``"float32"`` alone is of the ordinary units.
* Memory is what a card *reports* (`torch.cuda.get_device_properties`), not what its name says: of
  "80 GB", which is 80 GiB of chips (units of 2**30 bytes, 7% more than 10**9), a process sees about
  79.1 GiB.  Error correction and the driver take their part, and more
  or less of it by version, so that the figure here is the smallest that public logs of torch show.
* A name decides only if it is known word for word (`find_gpu`).  A laptop's RTX 4090 is another
  chip, a MIG slice a part of one, and no peak is better than a wrong one.

Taught in the chapters "Memory" and "Speed".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

GIB = 2**30
"""Bytes of a gibibyte: what torch and ``nvidia-smi`` count memory in, 7% more than a gigabyte."""

TENSOR_CORES_SINCE: Mapping[str, tuple[int, int]] = {
    "float16": (7, 0),
    "bfloat16": (8, 0),
    "tfloat32": (8, 0),
    "float8_e4m3fn": (8, 9),
    "float8_e5m2": (8, 9),
    "float4_e2m1fn": (10, 0),
}
"""First compute capability with tensor cores for the format.

Source: NVIDIA, CUDA C++ Programming Guide, "Compute Capabilities"; PTX ISA, "mma"."""

FLOAT16_WITHOUT_TENSOR_CORES = frozenset({(5, 3), (6, 0), (6, 2)})
"""Compute capabilities that add and multiply float16 at twice the rate of float32 and have no
tensor cores: Tegra X1, P100, Tegra X2.  A GTX 10 (6.1) does so at 1/64 of it.

Source: NVIDIA, CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions"."""


@dataclass(frozen=True)
class GpuFacts:
    """One board, on paper.

    Args:
        name: short, with the board where several share a chip; unique.
        model: what a reader calls it; boards of equal memory may share it.
        device_names: as `torch.cuda.get_device_name` gives them, without the maker's words.
        compute_capability: major and minor.
        memory_gib: that the card reports, in gibibytes; the smallest seen.
        bandwidth: of its memory, in bytes a second.
        dense_peaks: operations a second of matrix products, by format.
        source: of bandwidth and peaks.
    """

    name: str
    model: str
    device_names: tuple[str, ...]
    compute_capability: tuple[int, int]
    memory_gib: float
    bandwidth: float
    dense_peaks: Mapping[str, float]
    source: str

    @property
    def memory_bytes(self) -> int:
        """The memory that the card reports, in bytes."""
        return int(self.memory_gib * GIB)


def find_gpu(device_name: str) -> GpuFacts | None:
    """The facts of the GPU that calls itself so; None for a name that is not known whole.

    Case does not count, nor which of space, hyphen and underscore stands between two words, nor
    whether the maker's words (NVIDIA, Tesla, GeForce) are there.  Every other word does: "Laptop",
    "MIG 1g.5gb", "Ti", another size of memory.

    >>> found = find_gpu("NVIDIA A100-SXM4-80GB")
    >>> found.name if found else None
    'A100 SXM 80GB'
    >>> find_gpu("NVIDIA A100-SXM4-40GB MIG 1g.5gb") is None
    True
    """
    return _BY_WORDS.get(_words(device_name))


def dense_peak(device_name: str, format: str) -> float | None:
    """Operations a second that the maker states, dense, for products in a format.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
        format: a name of `mpbook.formats.FORMATS`.

    Returns:
        None for a device that is not known, or a format that it has no units for.

    >>> dense_peak("NVIDIA H100 80GB HBM3", "bfloat16")
    989500000000000.0
    """
    found = find_gpu(device_name)
    return None if found is None else found.dense_peaks.get(format)


def memory_sizes(*, within: float = 0.02) -> dict[str, float]:
    """The memory of every card in GiB, from small to large; sizes that are close make one entry.

    Args:
        within: how much more than the smallest of an entry its largest may report, as a fraction.

    Returns:
        The smallest of each entry, by the models that share it.
    """
    found: list[tuple[list[str], float]] = []
    for gpu in sorted(GPUS.values(), key=lambda gpu: gpu.memory_gib):
        if not found or gpu.memory_gib > (1 + within) * found[-1][1]:
            found.append(([], gpu.memory_gib))
        if gpu.model not in found[-1][0]:
            found[-1][0].append(gpu.model)
    return {", ".join(models): gib for models, gib in found}


_MAKERS_WORDS = frozenset({"nvidia", "tesla", "geforce"})


def _words(device_name: str) -> tuple[str, ...]:
    words = re.split(r"[\s_-]+", device_name.strip().casefold())
    return tuple(word for word in words if word not in _MAKERS_WORDS)


# --- The table --------------------------------------------------------------------------------


def _tera(
    float32: float,
    *,
    tf32: float | None = None,
    half: float | None = None,
    fp16: float | None = None,
    fp8: float | None = None,
    fp4: float | None = None,
) -> dict[str, float]:
    """Peaks by format from teraflops; ``half`` is both 16-bit formats, ``fp16`` float16 alone."""
    stated = {
        "float32": float32,
        "tfloat32": tf32,
        "float16": fp16 if half is None else half,
        "bfloat16": half,
        "float8_e4m3fn": fp8,
        "float8_e5m2": fp8,
        "float4_e2m1fn": fp4,
    }
    return {format: tera * 1e12 for format, tera in stated.items() if tera is not None}


_HOPPER, _BLACKWELL, _GEFORCE_BLACKWELL = (9, 0), (10, 0), (12, 0)
_A100, _GA102, _ADA = (8, 0), (8, 6), (8, 9)
_VOLTA, _TURING = (7, 0), (7, 5)

_H100_SXM = _tera(67.0, tf32=494.5, half=989.5, fp8=1979.0)
_H100_NVL = _tera(60.0, tf32=417.5, half=835.5, fp8=1670.5)
_A100_PEAKS = _tera(19.5, tf32=156.0, half=312.0)

_H100_SHEET = "NVIDIA H100 data sheet; tensor cores halved, as stated with sparsity"
_H200_SHEET = "NVIDIA H200 data sheet; tensor cores halved, as stated with sparsity"
_A100_SHEET = "NVIDIA A100 data sheet"
_V100_SHEET = "NVIDIA V100 data sheet"

_BOARDS = (
    GpuFacts(
        "H100 SXM", "H100", ("H100 80GB HBM3",),
        _HOPPER, 79.10, 3.35e12, _H100_SXM, _H100_SHEET,
    ),
    GpuFacts(
        "H100 PCIe", "H100", ("H100 PCIe", "H100 80GB HBM2e"),
        _HOPPER, 79.10, 2.0e12, _tera(51.0, tf32=378.0, half=756.5, fp8=1513.0),
        "NVIDIA H100 data sheet (2022); tensor cores halved, as stated with sparsity",
    ),
    GpuFacts(
        "H100 NVL", "H100 NVL", ("H100 NVL",),
        _HOPPER, 93.01, 3.9e12, _H100_NVL, _H100_SHEET,
    ),
    GpuFacts("H200 SXM", "H200", ("H200",), _HOPPER, 139.70, 4.8e12, _H100_SXM, _H200_SHEET),
    GpuFacts(
        "H200 NVL", "H200", ("H200 NVL",),
        _HOPPER, 139.70, 4.8e12, _H100_NVL, _H200_SHEET,
    ),
    GpuFacts(
        "B200", "B200", ("B200",),
        _BLACKWELL, 178.35, 7.7e12, _tera(75.0, tf32=1125.0, half=2250.0, fp8=4500.0, fp4=9000.0),
        "NVIDIA HGX B200 specifications, an eighth of the board's, halved where with sparsity",
    ),
    GpuFacts(  # the card is named by the memory of its CPU
        "GH200 96GB", "GH200 96GB", ("GH200 480GB",),
        _HOPPER, 94.50, 4.0e12, _H100_SXM, "NVIDIA GH200 data sheet",
    ),
    GpuFacts(
        "A100 SXM 80GB", "A100 80GB", ("A100-SXM4-80GB", "A100-SXM-80GB"),
        _A100, 79.13, 2.039e12, _A100_PEAKS, _A100_SHEET,
    ),
    GpuFacts(
        "A100 PCIe 80GB", "A100 80GB", ("A100 80GB PCIe", "A100-PCIE-80GB"),
        _A100, 79.13, 1.935e12, _A100_PEAKS, _A100_SHEET,
    ),
    GpuFacts(
        "A100 SXM 40GB", "A100 40GB", ("A100-SXM4-40GB",),
        _A100, 39.39, 1.555e12, _A100_PEAKS, "NVIDIA A100 data sheet (2020)",
    ),
    GpuFacts(
        "A100 PCIe 40GB", "A100 40GB", ("A100-PCIE-40GB",),
        _A100, 39.39, 1.555e12, _A100_PEAKS, "NVIDIA A100 data sheet (2020)",
    ),
    GpuFacts(
        "A30", "A30", ("A30",),
        _A100, 23.53, 0.933e12, _tera(10.3, tf32=82.0, half=165.0), "NVIDIA A30 data sheet",
    ),
    GpuFacts(
        "L40S", "L40S", ("L40S",),
        _ADA, 44.39, 0.864e12, _tera(91.6, tf32=183.0, half=362.05, fp8=733.0),
        "NVIDIA L40S data sheet",
    ),
    GpuFacts(
        "L4", "L4", ("L4",),
        _ADA, 22.16, 0.3e12, _tera(30.3, tf32=60.0, half=121.0, fp8=242.5),
        "NVIDIA L4 data sheet; tensor cores halved, as stated with sparsity",
    ),
    GpuFacts(
        "RTX 6000 Ada", "RTX 6000 Ada", ("RTX 6000 Ada Generation",),
        _ADA, 44.43, 0.96e12, _tera(91.1, tf32=182.1, half=364.2, fp8=728.5),
        "NVIDIA RTX 6000 Ada data sheet; tensor cores halved, as stated with sparsity",
    ),
    GpuFacts(
        "RTX A6000", "RTX A6000", ("RTX A6000",),
        _GA102, 44.42, 0.768e12, _tera(38.7, tf32=77.4, half=154.8),
        "NVIDIA Ampere GA102 whitepaper, appendix on the RTX A6000",
    ),
    GpuFacts(
        "RTX A5000", "RTX A5000", ("RTX A5000",),
        _GA102, 22.18, 0.768e12, _tera(27.8, tf32=55.5, half=111.1),
        "NVIDIA RTX A5000 data sheet; tensor cores halved, as stated with sparsity",
    ),
    GpuFacts(
        "A40", "A40", ("A40",),
        _GA102, 44.35, 0.696e12, _tera(37.4, tf32=74.8, half=149.7), "NVIDIA A40 data sheet",
    ),
    GpuFacts(
        "A10", "A10", ("A10",),
        _GA102, 21.98, 0.6e12, _tera(31.2, tf32=62.5, half=125.0), "NVIDIA A10 data sheet",
    ),
    GpuFacts(  # Made for Amazon's G5: half of an A10's tensor rate, as on a GeForce.
        "A10G", "A10G", ("A10G",),
        _GA102, 21.98, 0.6e12, _tera(35.0, tf32=35.0, half=70.0), "NVIDIA A10G data sheet for AWS",
    ),
    GpuFacts(
        "T4", "T4", ("T4",),
        _TURING, 14.56, 0.32e12, _tera(8.1, fp16=65.0), "NVIDIA T4 data sheet",
    ),
    GpuFacts(
        "V100 SXM2", "V100 16GB", ("V100-SXM2-16GB",),
        _VOLTA, 15.75, 0.9e12, _tera(15.7, fp16=125.0), _V100_SHEET,
    ),
    GpuFacts(
        "V100 SXM2 32GB", "V100 32GB", ("V100-SXM2-32GB",),
        _VOLTA, 31.73, 0.9e12, _tera(15.7, fp16=125.0), _V100_SHEET,
    ),
    GpuFacts(
        "V100 PCIe", "V100 16GB", ("V100-PCIE-16GB",),
        _VOLTA, 15.75, 0.9e12, _tera(14.0, fp16=112.0), _V100_SHEET,
    ),
    GpuFacts(
        "V100 PCIe 32GB", "V100 32GB", ("V100-PCIE-32GB",),
        _VOLTA, 31.73, 0.9e12, _tera(14.0, fp16=112.0), _V100_SHEET,
    ),
    GpuFacts(
        "RTX PRO 6000", "RTX PRO 6000", ("RTX PRO 6000 Blackwell Workstation Edition",),
        _GEFORCE_BLACKWELL, 94.97, 1.792e12,
        _tera(126.0, tf32=251.9, half=503.8, fp8=1007.6, fp4=2015.2),
        "NVIDIA RTX Blackwell PRO whitepaper, float32 accumulator",
    ),
    GpuFacts(
        "RTX 5090", "RTX 5090", ("RTX 5090",),
        _GEFORCE_BLACKWELL, 31.34, 1.792e12,
        _tera(104.8, tf32=104.8, half=209.5, fp8=419.0, fp4=1676.0),
        "NVIDIA RTX Blackwell whitepaper, float32 accumulator",
    ),
    GpuFacts(
        "RTX 5080", "RTX 5080", ("RTX 5080",),
        _GEFORCE_BLACKWELL, 15.46, 0.96e12,
        _tera(56.3, tf32=56.3, half=112.6, fp8=225.1, fp4=900.4),
        "NVIDIA RTX Blackwell whitepaper, float32 accumulator",
    ),
    GpuFacts(
        "RTX 5070 Ti", "RTX 5070 Ti", ("RTX 5070 Ti",),
        _GEFORCE_BLACKWELL, 15.43, 0.896e12,
        _tera(43.9, tf32=43.9, half=87.9, fp8=175.8, fp4=703.0),
        "NVIDIA RTX Blackwell whitepaper, float32 accumulator",
    ),
    GpuFacts(
        "RTX 5070", "RTX 5070", ("RTX 5070",),
        _GEFORCE_BLACKWELL, 11.47, 0.672e12,
        _tera(30.9, tf32=30.9, half=61.7, fp8=123.5, fp4=493.9),
        "NVIDIA RTX Blackwell whitepaper, float32 accumulator",
    ),
    GpuFacts(
        "RTX 4090", "RTX 4090", ("RTX 4090",),
        _ADA, 23.51, 1.008e12, _tera(82.6, tf32=82.6, half=165.2, fp8=330.3),
        "NVIDIA Ada whitepaper, float32 accumulator",
    ),
    GpuFacts(
        "RTX 4080", "RTX 4080", ("RTX 4080",),
        _ADA, 15.57, 0.717e12, _tera(48.7, tf32=48.7, half=97.5, fp8=194.9),
        "NVIDIA's comparison of GeForce cards, AI TOPS by 8: dense, float32 accumulator",
    ),
    GpuFacts(
        "RTX 4070 Ti", "RTX 4070 Ti", ("RTX 4070 Ti",),
        _ADA, 11.60, 0.504e12, _tera(40.1, tf32=40.1, half=80.2, fp8=160.4),
        "NVIDIA's comparison of GeForce cards, AI TOPS by 8: dense, float32 accumulator",
    ),
    GpuFacts(
        "RTX 3090", "RTX 3090", ("RTX 3090",),
        _GA102, 23.55, 0.936e12, _tera(35.6, tf32=35.6, half=71.0),
        "NVIDIA Ampere GA102 whitepaper, float32 accumulator",
    ),
    GpuFacts(
        "RTX 3080 Ti", "RTX 3080 Ti", ("RTX 3080 Ti",),
        _GA102, 11.62, 0.912e12, _tera(34.1, tf32=34.1, half=68.2),
        "NVIDIA's comparison of GeForce cards, clock and cores, at the RTX 3090's ratio",
    ),
    GpuFacts(
        "RTX 3070", "RTX 3070", ("RTX 3070",),
        _GA102, 7.57, 0.448e12, _tera(20.3, tf32=20.3, half=40.6),
        "NVIDIA's comparison of GeForce cards, clock and cores, at the RTX 3090's ratio",
    ),
    GpuFacts(
        "RTX 2080 Ti", "RTX 2080 Ti", ("RTX 2080 Ti",),
        _TURING, 10.57, 0.616e12, _tera(13.4, fp16=53.8),
        "NVIDIA Turing whitepaper, reference board, float32 accumulator",
    ),
)  # fmt: skip

GPUS: Mapping[str, GpuFacts] = {board.name: board for board in _BOARDS}
"""The boards by `GpuFacts.name`; the first is the one that the chapters compute with."""

_BY_WORDS = {_words(name): gpu for gpu in _BOARDS for name in gpu.device_names}
