"""`mpbook.device`: verdict tables, and float16 products against torch's kernels and float64."""

import importlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor import cpu_vec_isa
from torch._inductor.exc import InvalidCxxCompiler
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import mpbook.device
from mpbook.device import (
    Capability,
    Float32Accumulation,
    capabilities,
    cpu_capabilities,
    cpu_features,
    gpu_capabilities,
    matmul_emulation,
    name,
    native_16_bit,
    pick,
    sized,
    table,
)
from mpbook.device_facts import GPUS
from mpbook.models import CNN, GPT, GPTConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch report one T4."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Tesla T4 as {device}")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch report no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture
def read_features(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., frozenset[str]]]:
    """Return a function that reads the features of an invented machine."""

    def read(cpuinfo: list[str], torch_says: dict[str, Any]) -> frozenset[str]:
        monkeypatch.setattr(mpbook.device, "_cpuinfo", lambda: cpuinfo)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: torch_says)
        cpu_features.cache_clear()
        return cpu_features()

    yield read
    cpu_features.cache_clear()


# --- which device -----------------------------------------------------------------------------


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_cpu_trains() -> None:
    assert pick() == pick(None) == pick("cpu") == pick(torch.device("cpu")) == CPU


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_trains_if_there_is_one() -> None:
    assert pick() == pick("cuda") == CUDA
    assert pick("cuda:0") == torch.device("cuda:0")
    assert pick("cpu") == CPU


@pytest.mark.usefixtures("one_gpu")
def test_sizes_follow_the_device_unless_a_rehearsal_asks_for_a_cpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MPBOOK_SIZES", raising=False)
    assert sized(cpu=8, gpu=32) == 32 and sized(cpu=8, gpu=32, device="cpu") == 8
    monkeypatch.setenv("MPBOOK_SIZES", "cpu")
    assert sized(cpu=8, gpu=32) == 8
    monkeypatch.setenv("MPBOOK_SIZES", "small")
    with pytest.raises(ValueError, match="MPBOOK_SIZES='small'"):
        sized(cpu=8, gpu=32)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", torch.device("cuda")])
def test_cuda_without_a_gpu_is_refused(device: Any) -> None:
    for function in (pick, capabilities, table, name):
        with pytest.raises(RuntimeError, match=r'device="cuda(:0)?": .* use device="cpu"'):
            function(device)


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_beyond_the_last_is_refused() -> None:
    with pytest.raises(RuntimeError, match='device="cuda:1": the last CUDA GPU here is "cuda:0"'):
        pick("cuda:1")


@pytest.mark.parametrize("device", ["meta", "mps", "gpu", "", torch.device("xpu")])
def test_other_devices_are_refused(device: Any) -> None:
    with pytest.raises(ValueError, match=f'device="{device}": expected "cpu" or "cuda"'):
        pick(device)


# --- verdicts ---------------------------------------------------------------------------------

GPU_FORMATS = [
    "float32",
    "float16",
    "bfloat16",
    "tfloat32",
    "float8_e4m3fn",
    "float8_e5m2",
    "float4_e2m1fn",
]
# n: native, o: on ordinary units, e: emulated, -: missing, in the order above.  Source: NVIDIA's
# architecture white papers: tensor cores with float16 (Volta), bfloat16 and TF32 (Ampere), FP8
# (Ada, Hopper), FP4 (Blackwell).  Float16 before Volta: CUDA C++ Programming Guide, throughput
# of instructions.
GPU_VERDICTS = {
    (5, 3): "noe----",  # Tegra X1
    (6, 0): "noe----",  # P100
    (6, 1): "nee----",  # GTX 1080
    (6, 2): "noe----",  # Tegra X2
    (7, 0): "nne----",  # V100
    (7, 5): "nne----",  # T4
    (8, 0): "nnnn---",  # A100
    (8, 6): "nnnn---",  # RTX 3090
    (8, 9): "nnnnnn-",  # L4, RTX 4090
    (9, 0): "nnnnnn-",  # H100
    (10, 0): "nnnnnnn",  # B200
    (12, 0): "nnnnnnn",  # RTX 5090
}
LETTERS = {"native": "n", "no tensor cores": "o", "emulated": "e", "missing": "-"}
SINCE = dict(zip(GPU_FORMATS[1:], ["7.0", "8.0", "8.0", "8.9", "8.9", "10.0"], strict=True))


@pytest.mark.parametrize("capability", GPU_VERDICTS)
def test_a_gpu_has_the_tensor_cores_of_its_compute_capability(capability: tuple[int, int]) -> None:
    rows = gpu_capabilities(capability)
    assert [row.format for row in rows] == GPU_FORMATS
    assert "".join(LETTERS[row.support] for row in rows) == GPU_VERDICTS[capability]


@pytest.mark.parametrize("capability", GPU_VERDICTS)
def test_a_gpus_verdict_shows_its_evidence(capability: tuple[int, int]) -> None:
    have = "{}.{}".format(*capability)
    first, *others = gpu_capabilities(capability)
    assert "float32 units" in first.evidence
    for row in others:
        expected = f"compute capability {have}; tensor cores for it since {SINCE[row.format]}"
        assert row.evidence.startswith(expected)


def test_what_a_t4_does_without_bfloat16_units_is_said() -> None:
    evidence = {row.format: row.evidence for row in gpu_capabilities((7, 5))}
    assert evidence["bfloat16"].endswith("; torch.cuda.is_bf16_supported() says True all the same")
    assert evidence["tfloat32"].endswith("; products run in full float32")
    assert evidence["float8_e5m2"].endswith("since 8.9")
    pascal = {row.format: row.evidence for row in gpu_capabilities((6, 1))}
    assert pascal["float16"].endswith("products run on float32 or slow units")
    p100 = {row.format: row.evidence for row in gpu_capabilities((6, 0))}
    assert p100["float16"].endswith("at twice the rate of float32")


CPU_FORMATS = ["float32", "tfloat32", "float16", "bfloat16", *GPU_FORMATS[4:]]


@pytest.mark.parametrize(
    ("features", "verdicts"),
    [
        (set(), "n-eeee-"),
        ({"avx2", "avx512f", "f16c", "avx512_vnni"}, "n-eeee-"),
        ({"avx512f", "avx512_bf16"}, "n-enee-"),
        ({"amx_bf16"}, "n-enee-"),
        ({"avx512_fp16"}, "n-neee-"),
        ({"amx_fp16"}, "n-neee-"),
        ({"avx512_bf16", "avx512_fp16", "amx_bf16"}, "n-nnee-"),  # Sapphire Rapids
        ({"asimd", "fphp"}, "n-neee-"),
        ({"asimd", "asimdhp"}, "n-neee-"),
        ({"fp", "asimd", "fphp", "asimdhp", "bf16"}, "n-nnee-"),  # Graviton 3
        ({"bf16"}, "n-enee-"),
    ],
)
def test_a_cpu_computes_natively_what_it_has_instructions_for(
    features: set[str], verdicts: str
) -> None:
    rows = cpu_capabilities(frozenset(features))
    assert [row.format for row in rows] == CPU_FORMATS
    assert "".join(LETTERS[row.support] for row in rows) == verdicts


def test_a_cpus_verdict_shows_its_evidence() -> None:
    rows = cpu_capabilities(frozenset({"amx_bf16", "avx512_bf16", "sse2"}))
    evidence = {row.format: row.evidence for row in rows}
    assert evidence["bfloat16"] == "the CPU has amx_bf16, avx512_bf16"
    assert evidence["float16"] == (
        "none of amx_fp16, asimdhp, avx512_fp16, fphp in the CPU's features; "
        "computed by way of float32"
    )
    assert "mode of NVIDIA's tensor cores; products run in full float32" in evidence["tfloat32"]
    assert evidence["float32"].endswith("has float32 units")
    for format in ("float8_e4m3fn", "float8_e5m2"):
        assert evidence[format] == "torch._scaled_mm and @ compute it by way of float32"
    assert evidence["float4_e2m1fn"] == "torch has no CPU matrix product in it"


FLOAT8 = pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])


def whole_numbers(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(32, 16), (16, 16) and their product in float32, whose sums are exact."""
    a, b = (torch.arange(n).remainder(3).sub(1).view(16, -1).to(dtype) for n in (512, 256))
    expected = a.float().t() @ b.float()
    assert expected.abs().max() > 4
    return a.t(), b, expected


@FLOAT8
def test_a_cpu_multiplies_float8_by_way_of_float32(dtype: torch.dtype) -> None:
    """The evidence of the two rows above."""
    a, b, expected = whole_numbers(dtype)
    assert torch.equal((a @ b).float(), expected.to(dtype).float())


@pytest.mark.skipif(
    "ONEDNN_MAX_CPU_ISA" in os.environ and "amx_int8" in cpu_features(),
    reason="torch takes oneDNN's product where the CPU has AMX, and oneDNN is told that it has not",
)
@FLOAT8
def test_a_cpu_multiplies_float8_with_scales(dtype: torch.dtype) -> None:
    a, b, expected = whole_numbers(dtype)
    one = torch.ones(())
    b = b.t().contiguous().t()
    scaled = torch._scaled_mm(a.contiguous(), b, one, one, out_dtype=torch.float32)
    assert torch.equal(scaled, expected)


@pytest.mark.skipif(
    not (torch.version.cuda or "").startswith("13.") or not hasattr(torch._C, "_cuda_getArchFlags"),
    reason="needs a torch built for CUDA 13",
)
def test_wheels_for_cuda_13_have_no_kernels_for_a_v100() -> None:
    """The chapter "Speed: traps" says so, and what to install."""
    compiled_for = torch._C._cuda_getArchFlags().split()
    assert "sm_75" in compiled_for and not {"sm_60", "sm_61", "sm_70"} & set(compiled_for)


def test_a_cpu_does_not_multiply_float4() -> None:
    packed = torch.zeros(16, 16, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(NotImplementedError):
        packed @ packed


def test_features_are_what_the_operating_system_and_torch_name(
    read_features: Callable[..., frozenset[str]],
) -> None:
    x86 = ["processor\t: 0", "flags\t\t: fpu sse2 avx512_bf16", "bugs\t: spectre", "flags\t: no"]
    assert read_features(x86, {}) == {"fpu", "sse2", "avx512_bf16"}
    arm = ["processor\t: 0", "Features\t: fp asimd fphp asimdhp", "CPU part\t: 0xd40"]
    assert read_features(arm, {}) == {"fp", "asimd", "fphp", "asimdhp"}
    torch_says = {"avx512_fp16": True, "amx_fp16": False, "num_sockets": 1, "cpu_name": "EPYC"}
    assert read_features(x86, torch_says) == {"fpu", "sse2", "avx512_bf16", "avx512_fp16"}
    assert read_features([], torch_says) == {"avx512_fp16"}
    assert read_features([], {}) == frozenset()


def test_features_of_this_machine_are_words() -> None:
    cpu_features.cache_clear()
    assert all(re.fullmatch(r"\S+", feature) for feature in cpu_features())
    assert cpu_features() is cpu_features()


def test_capabilities_are_those_of_the_device(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(mpbook.device, "cpu_features", lambda: frozenset({"avx512_bf16"}))
    assert capabilities("cpu") == cpu_capabilities(frozenset({"avx512_bf16"}))
    request.getfixturevalue("one_gpu")
    assert capabilities("cuda:0") == capabilities() == gpu_capabilities((7, 5))
    assert capabilities("cpu") == cpu_capabilities(frozenset({"avx512_bf16"}))


def test_the_table_says_what_and_why_and_is_captioned_with_the_device(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(mpbook.device, "_cpuinfo", lambda: ["model name\t: Xeon"])
    monkeypatch.setattr(mpbook.device, "cpu_features", frozenset)
    shown = table("cpu")
    assert shown.caption == "Xeon"
    assert list(shown.header) == ["matrix products in", "are", "because"]
    rows = [Capability(*row) for row in shown.rows]
    assert rows == cpu_capabilities(frozenset())
    request.getfixturevalue("one_gpu")
    assert table("cuda:0").caption == "Tesla T4 as cuda:0"
    assert [Capability(*row) for row in table().rows] == gpu_capabilities((7, 5))


def test_a_device_calls_itself_by_its_name(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    lines = ["processor\t: 0", "model name\t: AMD EPYC 9B45", "model name\t: second"]
    monkeypatch.setattr(mpbook.device, "_cpuinfo", lambda: lines)
    assert name("cpu") == "AMD EPYC 9B45"
    monkeypatch.setattr(mpbook.device, "_cpuinfo", list)
    assert name("cpu") == "CPU"
    request.getfixturevalue("one_gpu")
    assert name() == "Tesla T4 as cuda"


# --- when float16 products are emulated -------------------------------------------------------

NO_FLOAT16 = frozenset({"avx512_bf16", "f16c"})


def test_only_float16_on_a_cpu_without_float16_units_is_emulated() -> None:
    emulated = matmul_emulation(torch.float16, CPU, features=NO_FLOAT16)
    assert isinstance(emulated, Float32Accumulation)
    assert isinstance(
        matmul_emulation(torch.float16, CPU, features=frozenset()), Float32Accumulation
    )
    for dtype in (torch.bfloat16, torch.float32):
        assert isinstance(matmul_emulation(dtype, CPU, features=NO_FLOAT16), nullcontext)
    assert isinstance(matmul_emulation(torch.float16, CUDA, features=NO_FLOAT16), nullcontext)


@pytest.mark.parametrize("feature", ["avx512_fp16", "amx_fp16", "fphp", "asimdhp"])
def test_a_cpu_with_float16_units_uses_them(feature: str) -> None:
    features = NO_FLOAT16 | {feature}
    assert isinstance(matmul_emulation(torch.float16, CPU, features=features), nullcontext)


def test_the_features_are_this_machines_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpbook.device, "cpu_features", frozenset)
    assert isinstance(matmul_emulation(torch.float16, CPU), Float32Accumulation)
    monkeypatch.setattr(mpbook.device, "cpu_features", lambda: frozenset({"fphp"}))
    assert isinstance(matmul_emulation(torch.float16, CPU), nullcontext)
    assert isinstance(
        matmul_emulation(torch.float16, CPU, features=frozenset()), Float32Accumulation
    )


# --- what the emulation computes --------------------------------------------------------------

PRODUCT = re.compile(
    r"aten::(_?add|_?badd)?(mm|bmm|mv|dot|vdot|matmul|linear|inner|bilinear)$"
    r"|aten::_?conv.*|aten::.*attention.*"
)


class Spy(TorchDispatchMode):
    """Counts the products that really run, by operator and dtypes of their operands."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[tuple[str, bool]] = Counter()
        self.others: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operator and run it."""
        tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
        half = any(t.dtype == torch.float16 for t in tensors)
        if PRODUCT.match(func._schema.name):
            self.products[func._schema.name, half] += 1
        elif half:
            self.others[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def integers(*shape: int, seed: int = 0, high: int = 20) -> Tensor:
    """Float64 integers that float16 holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-high, high + 1, shape, generator=generator).double()


def conv(*arguments: Any, **options: Any) -> Callable[..., Tensor]:
    return lambda *operands: functional.conv2d(*operands, *arguments, **options)


# Name: function, shapes of its operands.
PRODUCTS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "mm": (torch.mm, [(9, 96), (96, 11)]),
    "addmm": (torch.addmm, [(11,), (9, 96), (96, 11)]),
    "addmm scaled": (
        lambda c, a, b: torch.addmm(c, a, b, beta=3, alpha=0.5),
        [(9, 11), (9, 96), (96, 11)],
    ),
    "bmm": (torch.bmm, [(3, 9, 96), (3, 96, 5)]),
    "baddbmm": (torch.baddbmm, [(3, 9, 5), (3, 9, 96), (3, 96, 5)]),
    "addbmm": (torch.addbmm, [(9, 5), (3, 9, 96), (3, 96, 5)]),
    "mv": (torch.mv, [(99, 96), (96,)]),
    "addmv": (torch.addmv, [(99,), (99, 96), (96,)]),
    "matmul": (torch.matmul, [(2, 3, 9, 96), (2, 3, 96, 5)]),
    "einsum": (lambda a, b: torch.einsum("bik,bjk->bij", a, b), [(3, 9, 96), (3, 5, 96)]),
    "linear": (functional.linear, [(2, 9, 96), (11, 96), (11,)]),
    "linear without bias": (functional.linear, [(2, 9, 96), (11, 96)]),
    "conv1d": (functional.conv1d, [(2, 8, 12), (4, 8, 5), (4,)]),
    "conv2d": (functional.conv2d, [(2, 8, 7, 7), (6, 8, 3, 3), (6,)]),
    "conv2d with options": (
        conv(None, stride=2, padding=1, dilation=2, groups=2),
        [(2, 32, 9, 9), (6, 16, 3, 3)],
    ),
    "conv_transpose2d": (functional.conv_transpose2d, [(2, 16, 5, 5), (16, 4, 3, 3)]),
}
every_product = pytest.mark.parametrize("case", PRODUCTS)


@every_product
def test_a_product_is_exact_and_rounded_once(case: str) -> None:
    function, shapes = PRODUCTS[case]
    operands = [integers(*shape, seed=i) for i, shape in enumerate(shapes)]
    exact = function(*operands)
    with Spy() as spy, Float32Accumulation():
        emulated = function(*(x.half() for x in operands))
    assert emulated.dtype == torch.float16
    assert torch.equal(emulated, exact.half())
    assert not torch.equal(exact, exact.half().double()), "nothing was rounded: too easy a case"
    assert [half for _, half in spy.products] == [False]


@every_product
def test_the_gradients_of_a_product_are_exact_and_rounded_once(case: str) -> None:
    function, shapes = PRODUCTS[case]
    exact = [integers(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)]
    emulated = [x.detach().half().requires_grad_() for x in exact]
    output = function(*exact)
    gradient = 16 * integers(*output.shape, seed=9, high=4)
    output.backward(gradient)
    with Spy() as spy, Float32Accumulation():
        function(*emulated).backward(gradient.half())
    for ours, truth in zip(emulated, exact, strict=True):
        assert ours.grad is not None
        assert truth.grad is not None
        assert ours.grad.dtype == torch.float16
        assert torch.equal(ours.grad, truth.grad.half())
    assert sum(spy.products.values()) >= 2, "the spy saw no backward pass"
    assert not any(half for _, half in spy.products)


@pytest.mark.parametrize("function", [torch.dot, torch.vdot])
def test_a_dot_product_is_exact_and_rounded_once(function: Callable[..., Tensor]) -> None:
    for seed in range(8):
        a, b = integers(400, seed=seed, high=30), integers(400, seed=seed + 100, high=30)
        with Spy() as spy, Float32Accumulation():
            emulated = function(a.half(), b.half())
        assert emulated.dtype == torch.float16
        assert emulated.double() == torch.dot(a, b).half()
        assert [half for _, half in spy.products] == [False]


def test_every_gradient_of_a_convolution_is_rounded() -> None:
    x, weight = integers(2, 8, 7, 7).half(), integers(6, 8, 3, 3).half()
    options: tuple[Any, ...] = ([6], [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True] * 3)
    gradient = torch.ones(2, 6, 5, 5).half()
    with Float32Accumulation():
        found = torch.ops.aten.convolution_backward(gradient, x, weight, *options)
    assert [t.dtype for t in found] == [torch.float16] * 3
    assert found[2].tolist() == [50.0] * 6


def test_only_the_sum_is_rounded_and_not_the_product_before_the_bias_is_added() -> None:
    one, bias = torch.full((1, 2), 1.0).half(), torch.tensor([-2048.0]).half()
    weight = torch.tensor([[2048.0], [1.0]]).half()
    with Float32Accumulation():
        assert (one @ weight).item() == 2048  # 2049, a tie
        assert torch.addmm(bias, one, weight).item() == 1


def test_partial_sums_may_leave_the_range_of_float16() -> None:
    x = torch.tensor([[60000.0, 60000.0, -60000.0]]).half()
    ones = torch.ones(3, 1).half()
    with Float32Accumulation():
        assert (x @ ones).item() == x[0, 0].item()
        assert (x[:, :2] @ ones[:2]).isinf().all()


def test_products_are_those_of_float64_rounded_once() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(64, 64, generator=generator).half() for _ in range(2))
    image, kernel = a.view(4, 4, 16, 16), b[:36, :16].reshape(16, 4, 3, 3)
    for function, left, right in ((torch.mm, a, b), (functional.conv2d, image, kernel)):
        exact = function(left.double(), right.double())
        with Float32Accumulation():
            emulated = function(left, right)
        assert (emulated == exact.half()).double().mean() > 0.97
        assert torch.allclose(emulated.double(), exact, rtol=2**-10, atol=1e-3)
        # Torch's own kernel may add up in float16, in any order: 64 terms of at most 60 in all.
        assert torch.allclose(function(left, right).float(), emulated.float(), rtol=0, atol=0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_other_dtypes_are_left_as_they_are(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(33, 33, generator=generator).to(dtype) for _ in range(2))
    query = a[:, :32].reshape(1, 3, 11, 32)
    functions = (torch.mm, lambda a, b: torch.addmm(b[0], a, b))
    for function in (*functions, lambda *_: attend(query, query, query, is_causal=True)):
        expected = function(a, b)
        with Float32Accumulation():
            found = function(a, b)
        assert found.dtype == dtype
        assert torch.equal(found, expected)


def test_bfloat16_products_run_in_bfloat16() -> None:
    x = torch.ones(3, 3, dtype=torch.bfloat16)
    seen = []

    class Dtypes(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append((func._schema.name, args[0].dtype))
            return func(*args, **(kwargs or {}))

    with Dtypes(), Float32Accumulation():
        torch.mm(x, x)
    assert seen == [("aten::mm", torch.bfloat16)]


def test_everything_that_is_no_product_runs_in_float16() -> None:
    x = torch.linspace(-4, 4, 24).half().view(4, 6)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "aten::_softmax": lambda x: x.softmax(1),
        "aten::add": lambda x: x + x.sin(),
        "aten::sum": lambda x: x.sum(0),
        "aten::native_layer_norm": lambda x: functional.layer_norm(x, (6,)),
    }
    for operator, function in functions.items():
        expected = function(x)
        for inference in (False, True):
            with Spy() as spy, Float32Accumulation(), torch.inference_mode(inference):
                found = function(x)
            assert torch.equal(found, expected)
            assert spy.others[operator] >= 1


def test_the_emulation_ends_with_its_context() -> None:
    x = torch.ones(2, 2).half()
    with Spy() as spy:
        with Float32Accumulation():
            torch.mm(x, x)
        torch.mm(x, x)
    assert spy.products == {("aten::mm", False): 1, ("aten::mm", True): 1}


# --- attention --------------------------------------------------------------------------------

attend: Callable[..., Tensor] = functional.scaled_dot_product_attention


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers of float16, as float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).half().double()


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(is_causal=True),
        dict(is_causal=True, scale=0.5),
        dict(attn_mask=drawn(16, 16, seed=7)),
        dict(attn_mask=torch.ones(16, 16, dtype=torch.bool).tril()),
    ],
    ids=["full", "causal", "scaled", "float mask", "bool mask"],
)
@pytest.mark.parametrize("inference", [False, True])
def test_attention_is_that_of_float64_rounded_once(
    options: dict[str, Any], inference: bool
) -> None:
    query, key, value = drawn(3, 2, 2, 16, 8)
    exact = attend(query, key, value, **options)
    half_options = {
        key: value.half() if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in options.items()
    }
    with Spy() as spy, Float32Accumulation(), torch.inference_mode(inference):
        emulated = attend(*(x.half() for x in (query, key, value)), **half_options)
    assert emulated.dtype == torch.float16
    assert (emulated.double() == exact.half()).double().mean() > 0.98
    assert torch.allclose(emulated.double(), exact, rtol=2**-10, atol=1e-6)
    assert not any(half for _, half in spy.products)
    native = attend(*(x.half() for x in (query, key, value)), **half_options)
    assert torch.allclose(emulated, native, rtol=0, atol=0.05)  # its softmax may be float16


@pytest.mark.parametrize("causal", [False, True])
def test_the_gradients_of_attention_are_those_of_float64(causal: bool) -> None:
    exact = [x.requires_grad_() for x in drawn(3, 2, 2, 16, 8).unbind()]
    emulated = [x.detach().half().requires_grad_() for x in exact]
    gradient = drawn(2, 2, 16, 8, seed=5)
    attend(*exact, is_causal=causal).backward(gradient)
    with Spy() as spy, Float32Accumulation():
        attend(*emulated, is_causal=causal).backward(gradient.half())
    for ours, truth in zip(emulated, exact, strict=True):
        assert ours.grad is not None
        assert truth.grad is not None
        assert ours.grad.dtype == torch.float16
        assert torch.allclose(ours.grad.double(), truth.grad, rtol=2e-3, atol=2e-3)
    assert {half for _, half in spy.products} == {False}
    assert any("backward" in name for name, _ in spy.products)


def test_the_log_sum_exp_of_attention_stays_in_float32() -> None:
    query, key, value = drawn(3, 2, 2, 16, 8)
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with Float32Accumulation():
        output, found = operator(query.half(), key.half(), value.half())
    exact = (query @ key.transpose(-1, -2) / 8**0.5).logsumexp(-1)
    assert output.dtype == torch.float16
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), exact.reshape(found.shape), rtol=1e-5, atol=1e-5)


# --- whole models -----------------------------------------------------------------------------


def gpt_step(context: AbstractContextManager[Any]) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocabulary=11, context=8, layers=1, heads=2, width=16)).half()
    with context:
        logits = model(torch.arange(8).view(2, 4))
        if logits.requires_grad:
            logits.float().square().mean().backward()


def cnn_step(context: AbstractContextManager[Any]) -> None:
    torch.manual_seed(0)
    model = CNN(channels=4)
    with context:
        with torch.autocast("cpu", dtype=torch.float16):
            logits = model(torch.ones(2, 1, 8, 8))
        if logits.requires_grad:
            logits.float().square().mean().backward()


@pytest.mark.parametrize("step", [gpt_step, cnn_step])
def test_no_float16_product_of_a_model_escapes_forward_or_backward(
    step: Callable[[AbstractContextManager[Any]], None],
) -> None:
    with Spy() as native:
        step(nullcontext())
    assert all(half for _, half in native.products), "the model itself computes in float16"
    with Spy() as emulated:
        step(Float32Accumulation())
    expected = {(operator, False): count for (operator, _), count in native.products.items()}
    assert dict(emulated.products) == expected


@pytest.mark.parametrize("step", [gpt_step, cnn_step])
def test_no_float16_product_escapes_without_gradients(
    step: Callable[[AbstractContextManager[Any]], None],
) -> None:
    counts = []
    for without_gradients in (torch.no_grad, torch.inference_mode):
        with without_gradients(), Spy() as spy:
            step(Float32Accumulation())
        assert spy.products
        assert not any(half for _, half in spy.products)
        counts.append(spy.products)
    assert counts[0] == counts[1]


def test_training_updates_the_models_own_float16_weights() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 4).half()
    with Float32Accumulation():
        model(torch.ones(2, 8).half()).float().square().mean().backward()
    assert all(p.dtype == torch.float16 for p in model.parameters())
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float16
        assert parameter.grad.abs().sum() > 0


# --- compiling --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [0, 128, 256, 512])
def test_a_compiled_function_is_cached_under_the_width_of_the_vectors(
    monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    seen = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: seen.append(options))
    monkeypatch.setattr(
        cpu_vec_isa, "pick_vec_isa", lambda: SimpleNamespace(bit_width=lambda: bits)
    )
    mpbook.device.compiled(len, fullgraph=True)
    assert seen == [{"fullgraph": True, "options": {"cpp.simdlen": bits} if bits else None}]


def test_a_compiled_function_takes_more_of_inductors_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: seen.append(options))
    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", lambda: SimpleNamespace(bit_width=lambda: 256))
    mpbook.device.compiled(len, options={"emulate_precision_casts": True})
    assert seen[0]["options"] == {"cpp.simdlen": 256, "emulate_precision_casts": True}


def test_without_a_compiler_it_is_torch_that_complains_and_when_it_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none() -> Any:
        raise InvalidCxxCompiler

    # What torch imports on the first compilation takes the function along, and would keep this one.
    importlib.import_module("torch._inductor.compile_fx")
    monkeypatch.setattr(cpu_vec_isa, "pick_vec_isa", none)
    assert callable(mpbook.device.compiled(torch.sin))


def test_the_package_compiles_nothing_without_it() -> None:
    package = Path(mpbook.device.__file__).parent
    found = {p for p in package.rglob("*.py") if "torch.compile(" in p.read_text("utf-8")}
    probes = package / "evidence" / "versions"  # they ask torch itself, and nothing else
    assert {p.name for p in found if p.parent != probes} == {"device.py"}


# --- the 16-bit dtype to train in ---------------------------------------------------------------


@pytest.mark.parametrize("card", GPUS)
def test_a_gpu_trains_in_bfloat16_if_it_has_units_for_it(
    card: str, one_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = GPUS[card]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: gpu.compute_capability)
    assert (native_16_bit() == torch.bfloat16) is ("bfloat16" in gpu.dense_peaks)
    assert str(native_16_bit("cuda:0")).removeprefix("torch.") in gpu.dense_peaks


def test_a_t4_and_a_v100_train_in_float16() -> None:
    old = [name for name, gpu in GPUS.items() if "bfloat16" not in gpu.dense_peaks]
    assert {"T4", "V100 SXM2", "V100 PCIe"} <= set(old)


def test_a_cpu_trains_in_bfloat16_whatever_its_units(no_gpu: None) -> None:
    assert native_16_bit() == native_16_bit("cpu") == torch.bfloat16
    with pytest.raises(RuntimeError, match="torch sees no CUDA GPU"):
        native_16_bit("cuda")
