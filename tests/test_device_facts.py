"""`mpbook.device_facts`: names as cards give them, and figures that agree with each other."""

from __future__ import annotations

import pytest

from mpbook.device_facts import (
    GIB,
    GPUS,
    TENSOR_CORES_SINCE,
    dense_peak,
    find_gpu,
    memory_sizes,
)
from mpbook.formats import FORMATS

# As `torch.cuda.get_device_name` printed them, in public logs.
KNOWN = {
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H100 PCIe": "H100 PCIe",
    "NVIDIA H100 80GB HBM2e": "H100 PCIe",
    "NVIDIA H100 NVL": "H100 NVL",
    "NVIDIA H200": "H200 SXM",
    "NVIDIA H200 NVL": "H200 NVL",
    "NVIDIA B200": "B200",
    "NVIDIA A100-SXM4-80GB": "A100 SXM 80GB",
    "A100-SXM4-80GB": "A100 SXM 80GB",
    "A100-SXM-80GB": "A100 SXM 80GB",
    "NVIDIA A100 80GB PCIe": "A100 PCIe 80GB",
    "NVIDIA A100-SXM4-40GB": "A100 SXM 40GB",
    "A100-SXM4-40GB": "A100 SXM 40GB",
    "NVIDIA A100-PCIE-40GB": "A100 PCIe 40GB",
    "A100-PCIE-40GB": "A100 PCIe 40GB",
    "NVIDIA L40S": "L40S",
    "NVIDIA L4": "L4",
    "NVIDIA RTX A6000": "RTX A6000",
    "RTX A6000": "RTX A6000",
    "NVIDIA A10": "A10",
    "NVIDIA A10G": "A10G",
    "Tesla T4": "T4",
    "NVIDIA T4": "T4",
    "Tesla V100-SXM2-16GB": "V100 SXM2",
    "Tesla V100-SXM2-32GB": "V100 SXM2 32GB",
    "Tesla V100-PCIE-16GB": "V100 PCIe",
    "Tesla V100-PCIE-32GB": "V100 PCIe 32GB",
    "NVIDIA GeForce RTX 3090": "RTX 3090",
    "GeForce RTX 3090": "RTX 3090",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA GeForce RTX 5090": "RTX 5090",
    "NVIDIA GeForce RTX 5080": "RTX 5080",
    "NVIDIA GeForce RTX 5070 Ti": "RTX 5070 Ti",
    "NVIDIA GeForce RTX 5070": "RTX 5070",
    "NVIDIA GeForce RTX 4080": "RTX 4080",
    "NVIDIA GeForce RTX 4070 Ti": "RTX 4070 Ti",
    "NVIDIA GeForce RTX 3080 Ti": "RTX 3080 Ti",
    "NVIDIA GeForce RTX 3070": "RTX 3070",
    "NVIDIA GeForce RTX 2080 Ti": "RTX 2080 Ti",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition": "RTX PRO 6000",
    "NVIDIA RTX 6000 Ada Generation": "RTX 6000 Ada",
    "NVIDIA RTX A5000": "RTX A5000",
    "NVIDIA GH200 480GB": "GH200 96GB",
    "NVIDIA A30": "A30",
    "NVIDIA A40": "A40",
}

# Two cards of unlike memory or bandwidth share some names: an RTX 3060, 3080 and 4070.
# Each begins or ends like a card above, and is another one, a part of one, or none.
OTHERS = (
    "NVIDIA RTX A1000 Laptop GPU",
    "NVIDIA RTX A1000",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "NVIDIA A100-PCIE-40GB MIG 1g.5gb",
    "NVIDIA A100 80GB PCIe MIG 7g.80gb",
    "NVIDIA H100 NVL MIG 7g.94gb",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
    "GRID A100D-20C",
    "GRID A100D-1-20C",
    "GRID T4-16Q",
    "NVIDIA A10-24Q",
    "NVIDIA A100-SXM-64GB",
    "NVIDIA A100X",
    "NVIDIA A100",
    "NVIDIA A800-SXM4-80GB",
    "NVIDIA H100",
    "NVIDIA H100 64GB",
    "NVIDIA H800",
    "NVIDIA H20",
    "NVIDIA GH200 120GB",
    "NVIDIA GB200",
    "NVIDIA B300",
    "NVIDIA L40",
    "NVIDIA L20",
    "NVIDIA A2",
    "NVIDIA A16",
    "NVIDIA A6000",
    "Quadro RTX 6000",
    "NVIDIA GeForce RTX 3060",
    "NVIDIA GeForce RTX 3080",
    "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 4070",
    "NVIDIA GeForce RTX 4080 SUPER",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    "NVIDIA GH200 144G HBM3e",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 5090 D",
    "NVIDIA GeForce RTX 5090 Laptop GPU",
    "NVIDIA GeForce GTX 1080 Ti",
    "NVIDIA T4G",
    "NVIDIA T400",
    "Tesla P100-PCIE-16GB",
    "Tesla V100S-PCIE-32GB",
    "Tesla V100-SXM3-32GB",
    "Tesla V100-SXM2-32GB-LS",
    "Tesla V100-DGXS-32GB",
    "NVIDIA",
    "",
    "AMD Instinct MI300X",
    "Intel(R) Xeon(R) Platinum 8480+",
    "a CPU",
)


@pytest.mark.parametrize("device", KNOWN)
def test_a_card_is_known_by_the_name_that_it_gives(device: str) -> None:
    found = find_gpu(device)
    assert found is not None and found is GPUS[KNOWN[device]]
    assert {format: dense_peak(device, format) for format in found.dense_peaks} == dict(
        found.dense_peaks
    )


@pytest.mark.parametrize("device", OTHERS)
def test_another_card_has_no_peak_rather_than_a_wrong_one(device: str) -> None:
    assert find_gpu(device) is None
    assert dense_peak(device, "float32") is None


@pytest.mark.parametrize("device", KNOWN)
def test_a_word_more_makes_another_card(device: str) -> None:
    for word in ("Laptop GPU", "MIG 1g.5gb", "Ti", "D", "Super"):
        found = find_gpu(f"{device} {word}")
        assert found is None or f"{device} {word}" in KNOWN
    assert find_gpu(f"{device}X") is None and find_gpu(f"X{device}") is None


@pytest.mark.parametrize("device", KNOWN)
def test_case_and_what_joins_two_words_do_not_count(device: str) -> None:
    for spelt in (device.upper(), device.lower(), device.replace("-", " "), f" {device}\n"):
        assert find_gpu(spelt) is GPUS[KNOWN[device]]
    assert find_gpu(device.replace(" ", "_")) is GPUS[KNOWN[device]]


def test_every_card_and_every_name_of_it_is_tried_above() -> None:
    assert set(KNOWN.values()) == set(GPUS)
    for name, gpu in GPUS.items():
        for device in gpu.device_names:  # a name that two cards shared would find the other
            assert find_gpu(f"NVIDIA {device}") is GPUS[name]


# --- the figures --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GPUS)
def test_a_card_has_a_peak_in_every_format_that_its_tensor_cores_have(name: str) -> None:
    gpu = GPUS[name]
    have = {f for f, since in TENSOR_CORES_SINCE.items() if gpu.compute_capability >= since}
    assert set(gpu.dense_peaks) == {"float32"} | have
    assert set(gpu.dense_peaks) - {"tfloat32"} <= set(FORMATS)


@pytest.mark.parametrize("name", GPUS)
def test_half_the_bits_are_twice_the_rate(name: str) -> None:
    peaks = GPUS[name].dense_peaks
    steps = (("tfloat32", "float16"), ("float16", "float8_e4m3fn"))
    for wide, narrow in steps:
        if wide in peaks and narrow in peaks:  # a sheet rounds: an L4's 60 and 121
            assert peaks[narrow] / peaks[wide] == pytest.approx(2, rel=0.025)
    if "bfloat16" in peaks:
        assert peaks["float16"] == peaks["bfloat16"]
    if "float8_e5m2" in peaks:
        assert peaks["float8_e4m3fn"] == peaks["float8_e5m2"]
    if "float4_e2m1fn" in peaks:
        assert peaks["float4_e2m1fn"] >= 2 * peaks["float8_e4m3fn"]
    assert peaks["float16"] >= 1.9 * peaks["float32"]


def test_peaks_are_dense_and_add_up_in_float32() -> None:
    sparse = {"NVIDIA H100 80GB HBM3": 1979e12, "NVIDIA B200": 4.5e15, "NVIDIA L4": 242e12}
    for device, stated in sparse.items():
        assert dense_peak(device, "bfloat16") == pytest.approx(stated / 2)
    in_float16 = {"RTX 3090": 142e12, "RTX 4090": 330.3e12, "RTX 5090": 419e12}
    for name, stated in in_float16.items():
        assert GPUS[name].dense_peaks["float16"] == pytest.approx(stated / 2, rel=2e-3)


def test_cards_of_one_chip_differ_as_their_boards_do() -> None:
    peak = {name: gpu.dense_peaks["float16"] for name, gpu in GPUS.items()}
    assert peak["H100 SXM"] > peak["H100 NVL"] > peak["H100 PCIe"]
    assert peak["A10"] > 1.7 * peak["A10G"]
    assert peak["V100 SXM2"] > peak["V100 PCIe"]
    bandwidth = {name: gpu.bandwidth for name, gpu in GPUS.items()}
    assert bandwidth["A100 SXM 80GB"] > bandwidth["A100 PCIe 80GB"] > bandwidth["A100 SXM 40GB"]
    assert bandwidth["H200 SXM"] > bandwidth["H100 SXM"]


# Bits of the memory bus, and gigabits a second of each pin.
BUSES = {
    "RTX 5090": (512, 28), "RTX PRO 6000": (512, 28), "RTX 5080": (256, 30),
    "RTX 5070 Ti": (256, 28), "RTX 5070": (192, 28), "RTX 4090": (384, 21),
    "RTX 4080": (256, 22.4), "RTX 4070 Ti": (192, 21), "RTX 3090": (384, 19.5),
    "RTX 3080 Ti": (384, 19), "RTX 3070": (256, 14), "RTX 2080 Ti": (352, 14),
    "RTX 6000 Ada": (384, 20), "RTX A6000": (384, 16), "RTX A5000": (384, 16), "A40": (384, 14.5),
    "A10": (384, 12.5), "A10G": (384, 12.5), "L40S": (384, 18), "L4": (192, 12.5), "T4": (256, 10),
}  # fmt: skip
# CUDA cores, and the boost clock in gigahertz.
CORES = {
    "RTX 5090": (21760, 2.407), "RTX 5080": (10752, 2.617), "RTX 5070 Ti": (8960, 2.452),
    "RTX 5070": (6144, 2.512), "RTX 4090": (16384, 2.52), "RTX 4080": (9728, 2.505),
    "RTX 4070 Ti": (7680, 2.61), "RTX 3090": (10496, 1.695), "RTX 3080 Ti": (10240, 1.665),
    "RTX 3070": (5888, 1.725), "RTX 2080 Ti": (4352, 1.545),
}  # fmt: skip


@pytest.mark.parametrize("name", BUSES)
def test_bandwidth_is_what_all_pins_of_the_bus_carry(name: str) -> None:
    bits, rate = BUSES[name]
    assert GPUS[name].bandwidth == pytest.approx(bits * rate * 1e9 / 8, rel=0.002)


@pytest.mark.parametrize("name", CORES)
def test_the_peak_of_float32_is_two_operations_of_each_core_a_cycle(name: str) -> None:
    cores, gigahertz = CORES[name]
    assert GPUS[name].dense_peaks["float32"] == pytest.approx(2e9 * cores * gigahertz, rel=0.005)


@pytest.mark.parametrize("name", GPUS)
def test_every_row_says_where_it_is_from(name: str) -> None:
    gpu = GPUS[name]
    assert gpu.name == name and gpu.source.startswith("NVIDIA") and gpu.device_names
    assert 1e11 < gpu.bandwidth < 1e13 and 5e12 < gpu.dense_peaks["float32"] < 2e14


# --- memory -------------------------------------------------------------------------------------

SOLD_AS = {
    "RTX 3070": 8, "RTX 2080 Ti": 11, "RTX 3080 Ti": 12, "RTX 4070 Ti": 12, "RTX 5070": 12,
    "RTX 4080": 16, "RTX 5070 Ti": 16, "RTX 5080": 16, "RTX A5000": 24, "A30": 24, "A40": 48,
    "RTX 6000 Ada": 48, "GH200 96GB": 96, "RTX PRO 6000": 96,
    "T4": 16, "V100 16GB": 16, "L4": 24, "A10": 24, "A10G": 24, "RTX 3090": 24, "RTX 4090": 24,
    "V100 32GB": 32, "RTX 5090": 32, "A100 40GB": 40, "L40S": 48, "RTX A6000": 48,
    "A100 80GB": 80, "H100": 80, "H100 NVL": 94, "H200": 141, "B200": 180,
}  # fmt: skip


@pytest.mark.parametrize("name", GPUS)
def test_a_card_reports_somewhat_less_than_it_is_sold_with(name: str) -> None:
    gpu = GPUS[name]
    assert 0.90 * SOLD_AS[gpu.model] < gpu.memory_gib < SOLD_AS[gpu.model]
    assert gpu.memory_bytes == int(gpu.memory_gib * GIB) and GIB == 1024**3


def test_the_gigabytes_of_a_box_are_units_of_2_to_the_30() -> None:
    for name in ("RTX 4090", "RTX 3090", "A100 SXM 80GB", "H100 SXM"):  # no error correction apart
        gpu = GPUS[name]
        assert 10**9 * SOLD_AS[gpu.model] < gpu.memory_bytes < GIB * SOLD_AS[gpu.model]


def test_sizes_of_memory_are_listed_once_from_small_to_large() -> None:
    sizes = memory_sizes()
    assert list(sizes.values()) == sorted(sizes.values())
    listed = [model for models in sizes for model in models.split(", ")]
    assert sorted(listed) == sorted(SOLD_AS)
    for models, gib in sizes.items():
        of_these = [g.memory_gib for g in GPUS.values() if g.model in models.split(", ")]
        assert min(of_these) == gib and max(of_these) <= 1.02 * gib
    assert len(memory_sizes(within=0)) == len({gpu.memory_gib for gpu in GPUS.values()})
    assert len(memory_sizes(within=100)) == 1
