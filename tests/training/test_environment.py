"""The global switches: set for a run, and set back."""

import importlib
import os
from contextlib import contextmanager, nullcontext

import pytest
import torch
from training_cases import NAMES, data, model

from mpbook.precision import PRECISIONS, as_precision, autocast
from mpbook.training import train
from mpbook.training.settings import Settings, cross_entropy

# The package hands on a function of the same name.
environment_module = importlib.import_module("mpbook.training.environment")


def test_tf32_is_switched_on_for_its_run_alone():
    seen = []

    def loss(outputs, targets):
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        seen.append((matmul.allow_tf32, cudnn.allow_tf32))
        return cross_entropy(outputs, targets)

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = (matmul.allow_tf32, cudnn.allow_tf32)
    options = dict(steps=1, loss=loss, device="cpu")
    with pytest.warns(UserWarning, match="a CPU has no TF32"):
        train(model(), data(), precision="tf32", **options)
    train(model(), data(), precision="32-true", **options)
    assert set(seen) == {(True, True), (False, False)} and seen[0] == (True, True)
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


@pytest.mark.parametrize("before", [(True, False), (False, True)])
def test_tf32_is_set_back_even_if_the_run_fails(before):
    def loss(outputs, targets):
        raise KeyError("stop")

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    found = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32, cudnn.allow_tf32 = before
        train(model(), data(), precision="32-true", steps=1, device="cpu")
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before
        with pytest.raises(KeyError, match="stop"):
            train(model(), data(), precision="32-true", steps=1, loss=loss, device="cpu")
        assert (matmul.allow_tf32, cudnn.allow_tf32) == before
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = found


@pytest.fixture
def switches():
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("warn_only", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_determinism_is_asked_for_and_set_back(before, warn_only, filled, switches, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(before, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    with environment_module._deterministic(torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()  # attention repeats too
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # whoever set it knows why
    assert torch.are_deterministic_algorithms_enabled() == before
    assert torch.is_deterministic_algorithms_warn_only_enabled() == warn_only
    assert torch.utils.deterministic.fill_uninitialized_memory == filled


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_run_on_a_gpu_is_deterministic_unless_told_otherwise(deterministic, monkeypatch):
    asked, module = [], environment_module
    monkeypatch.setattr(module, "_deterministic", lambda d: asked.append(d.type) or nullcontext())
    monkeypatch.setattr(module, "matmul_emulation", lambda *_: nullcontext())
    monkeypatch.setattr(torch.random, "fork_rng", lambda *_: nullcontext())
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda *_: None)
    options = Settings(steps=1, deterministic=deterministic)
    with module.environment(PRECISIONS["32-true"], options, torch.device("cuda")):
        assert asked == ["cuda"] * deterministic


def test_products_that_cannot_repeat_warn_instead_of_failing(switches, monkeypatch):
    def mm(a, b):
        raise RuntimeError("not deterministic because it uses CuBLAS")

    monkeypatch.setattr(environment_module.torch, "mm", mm)
    with environment_module._deterministic(torch.device("cpu")):
        assert torch.is_deterministic_algorithms_warn_only_enabled()


def test_an_operator_that_cannot_repeat_names_the_switch(switches):
    missing = "x_backward_cuda does not have a deterministic implementation"
    with (
        pytest.raises(RuntimeError, match=missing) as raised,
        environment_module._deterministic(torch.device("cpu")),
    ):
        raise RuntimeError(missing)
    assert "deterministic=False" in raised.value.__notes__[0]
    with (
        pytest.raises(RuntimeError, match="shape") as other,
        environment_module._deterministic(torch.device("cpu")),
    ):
        raise RuntimeError("shape")
    assert not hasattr(other.value, "__notes__")


@pytest.mark.parametrize("name", NAMES)
def test_products_run_as_the_device_emulates_them(name, monkeypatch):
    active, seen = [], []

    @contextmanager
    def emulation(dtype, device):
        active.append((dtype, device.type))
        yield
        active.pop()

    def loss(outputs, targets):
        seen.extend(active)
        return cross_entropy(outputs, targets)

    monkeypatch.setattr(environment_module, "matmul_emulation", emulation)
    train(model(), data(), precision=name, steps=1, loss=loss, device="cpu")
    assert set(seen) == {(PRECISIONS[name].compute_dtype, "cpu")} and active == []


def test_autocast_is_on_only_for_mixed_precision():
    cpu = torch.device("cpu")
    x = torch.ones(2, 2)
    for name, dtype in (("16-mixed", torch.float16), ("bf16-mixed", torch.bfloat16)):
        with autocast(as_precision(name), cpu):
            assert (x @ x).dtype == dtype
    for name in ("32-true", "bf16-true", "tf32"):
        with autocast(as_precision(name), cpu):
            assert (x @ x).dtype == torch.float32
