"""`trace`: casts counted by hand, and the weight cache as autocast itself behaves."""

import copy
import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import mpbook.autocast.trace
from mpbook import plots
from mpbook.autocast.trace import trace_dtypes
from mpbook.autocast.trace_report import LOSS, MODEL, Cast, Trace
from mpbook.models import CNN, GPT, MLP, GPTConfig
from mpbook.precision import PRECISIONS

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
MIXED = {"16-mixed": "float16", "bf16-mixed": "bfloat16"}

on_each_device = pytest.mark.parametrize("device", DEVICES)


def numbers(*shape: int, device: str = "cpu") -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)


def summary(casts: Any) -> list[tuple[str, str, str, int, int]]:
    """Module, what, parameter, and the bytes read and written, in no order."""
    return sorted((c.module, c.what, c.parameter, c.bytes_read, c.bytes_written) for c in casts)


def of_phase(trace: Trace, phase: str) -> list[Cast]:
    return [cast for cast in trace.casts if cast.phase == phase]


# --- A model whose casts are known ------------------------------------------------------------


@on_each_device
@pytest.mark.parametrize("precision", MIXED)
def test_a_linear_layer_casts_its_weight_its_bias_and_its_input(
    precision: str, device: str
) -> None:
    model = nn.Linear(3, 5).to(device)
    trace = trace_dtypes(model, numbers(2, 3, device=device), precision)
    assert summary(of_phase(trace, "forward")) == [
        (LOSS, "activation", "", 2 * 5 * 2, 2 * 5 * 4),  # the loss takes the output in float32
        (MODEL, "activation", "", 2 * 3 * 4, 2 * 3 * 2),
        (MODEL, "weight", "bias", 5 * 4, 5 * 2),
        (MODEL, "weight", "weight", 3 * 5 * 4, 3 * 5 * 2),
    ]
    assert summary(of_phase(trace, "backward")) == [  # each cast that has a gradient, back
        (LOSS, "gradient", "", 2 * 5 * 4, 2 * 5 * 2),
        (MODEL, "gradient", "", 5 * 2, 5 * 4),
        (MODEL, "gradient", "", 3 * 5 * 2, 3 * 5 * 4),
    ]
    narrow = MIXED[precision]
    for cast in trace.casts:
        forth = (cast.phase == "forward") == (cast.module == MODEL)
        assert (cast.source, cast.target) == (("float32", narrow) if forth else (narrow, "float32"))
    assert trace.cast_bytes == 2 * (5 + 15 + 10) * 6 + 6 * 6


@pytest.mark.parametrize("precision", MIXED)
def test_a_module_is_shown_with_all_its_dtypes(precision: str) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    row = trace_dtypes(model, numbers(2, 3), precision).of("0")
    narrow = MIXED[precision]
    assert (row.name, row.kind, row.calls) == ("0", "Linear", 1)
    assert (row.inputs, row.weights, row.computed_in) == (("float32",), ("float32",), (narrow,))
    assert (row.outputs, row.backward_in) == ((narrow,), (narrow,))


@on_each_device
def test_backward_is_told_apart_by_module(device: str) -> None:
    class Halves(nn.Module):
        """Two products of which one escapes autocast."""

        def __init__(self) -> None:
            super().__init__()
            self.narrow, self.wide = nn.Linear(4, 4), Wide()

        def forward(self, x: Tensor) -> Tensor:
            return self.wide(self.narrow(x))

    class Wide(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, enabled=False):
                return super().forward(x.float())

    trace = trace_dtypes(Halves().to(device), numbers(3, 4, device=device), "bf16-mixed")
    assert trace.of("narrow").computed_in == trace.of("narrow").backward_in == ("bfloat16",)
    assert trace.of("wide").computed_in == trace.of("wide").backward_in == ("float32",)
    modules = {c.module for c in of_phase(trace, "backward")}
    assert modules == {"narrow", "wide"}
    (back,) = [c for c in of_phase(trace, "backward") if c.module == "wide"]
    assert (back.source, back.target, back.bytes) == ("float32", "bfloat16", 12 * 6)


def test_work_between_the_children_belongs_to_the_parent() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).double().sin().float()).double().cos()

    trace = trace_dtypes(Scaled(), numbers(3, 4), "bf16-mixed", loss=lambda y: y.sum())
    assert trace.of("").computed_in == ("float64",)
    assert trace.of("").backward_in == ("float64",)
    assert trace.of("first").backward_in == trace.of("second").backward_in == ("bfloat16",)
    assert trace.of(LOSS).backward_in == ()  # expanding a number is a view
    assert {c.module for c in of_phase(trace, "backward")} == {MODEL, "first", "second"}


def test_a_module_that_is_called_twice_keeps_the_dtypes_of_both_calls() -> None:
    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.tanh = nn.Linear(4, 4), nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.tanh(self.layer(self.tanh(x)))

    row = trace_dtypes(Again(), numbers(2, 4).requires_grad_(), "bf16-mixed").of("tanh")
    both = ("bfloat16", "float32")
    assert row.inputs == row.computed_in == row.outputs == row.backward_in == both
    assert row.calls == 2


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true"])
def test_products_are_emulated_where_training_emulates_them(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    emulation = mpbook.autocast.trace.matmul_emulation
    monkeypatch.setattr(
        "mpbook.autocast.trace.matmul_emulation",
        lambda dtype, device: asked.append((dtype, device)) or emulation(dtype, device),
    )
    trace_dtypes(MLP(4, 2), numbers(2, 4), precision)
    assert asked == [(PRECISIONS[precision].compute_dtype, torch.device("cpu"))]


def test_backward_runs_in_the_thread_that_numbered_the_graph() -> None:
    allowed: list[bool] = []

    def loss(y: Tensor) -> Tensor:
        allowed.append(torch.autograd.is_multithreading_enabled())
        return y.float().sum()

    trace_dtypes(MLP(4, 2), numbers(2, 4), "bf16-mixed", loss=loss)
    assert allowed == [False]


def test_what_a_modules_own_pre_hook_casts_belongs_to_the_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model[1].register_forward_pre_hook(lambda _module, args: (args[0].bfloat16(),))
    trace = trace_dtypes(model, numbers(2, 4), "32-true")
    assert trace.casts[0].module == "1"
    assert (trace.of("1").inputs, trace.of("1").outputs) == (("float32",), ("bfloat16",))


def test_the_loss_is_outside_autocast_and_has_a_row_of_its_own() -> None:
    target = torch.tensor([0, 1])

    def loss(logits: Tensor) -> Tensor:
        assert not torch.is_autocast_enabled("cpu")
        return functional.cross_entropy(logits.float(), target)

    trace = trace_dtypes(MLP(4, 8, 3), numbers(2, 4), "bf16-mixed", loss=loss)
    row = trace.of(LOSS)
    assert (row.computed_in, row.backward_in) == (("float32",), ("float32",))
    assert trace.modules[-1].name == LOSS


# --- The weight cache -------------------------------------------------------------------------


class Twice(nn.Module):
    """Applies one layer twice, in one of several ways."""

    def __init__(self, how: str = "call") -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(4, 4, bias=False), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "view":
            return (x @ self.layer.weight.t()) + (x @ self.layer.weight.t())
        return self.layer(x) + self.layer(x)


@on_each_device
@pytest.mark.parametrize("backward", [True, False])
def test_a_weight_is_cast_once_though_it_is_used_twice(backward: bool, device: str) -> None:
    batch = numbers(2, 4, device=device)
    trace = trace_dtypes(Twice().to(device), batch, "bf16-mixed", backward=backward)
    forward = of_phase(trace, "forward")
    weights = [c for c in forward if c.what == "weight"]
    assert [(c.parameter, c.cached) for c in weights] == [("layer.weight", True)]
    assert len([c for c in forward if c.module == "layer" and c.what == "activation"]) == 2
    assert trace.of("layer").calls == 2
    assert trace.cache_bytes == 4 * 4 * 2
    assert trace.repeated == ()


@pytest.mark.parametrize("how", ["frozen", "view", "uncached"])
def test_what_the_cache_does_not_hold_is_cast_again(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Twice(how)
    model.layer.weight.requires_grad_(how != "frozen")
    if how == "uncached":
        monkeypatch.setattr(
            "mpbook.autocast.trace.autocast",
            lambda *_: torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
        )
    batch = numbers(2, 4).requires_grad_()
    trace = trace_dtypes(model, batch, "bf16-mixed")
    weights = [c for c in of_phase(trace, "forward") if c.what == "weight"]
    assert [(c.parameter, c.cached) for c in weights] == [("layer.weight", False)] * 2
    assert trace.repeated == (weights[1],)
    assert trace.cache_bytes == 0


def test_one_matrix_under_two_names_is_one_weight() -> None:
    model = GPT(GPTConfig(vocabulary=16, context=8, layers=1, heads=2, width=8))
    trace = trace_dtypes(model, torch.zeros(1, 4, dtype=torch.int64), "bf16-mixed")
    (cast,) = [c for c in of_phase(trace, "forward") if c.module == "head" and c.what == "weight"]
    assert cast.parameter == "token_embedding.weight"
    assert cast.bytes == 16 * 8 * 6


def test_weights_that_share_a_storage_keep_their_names() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            numbers = torch.rand(20)
            self.first = nn.Parameter(numbers[:12].view(3, 4))
            self.second = nn.Parameter(numbers[12:].view(2, 4))

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.first).sum() + functional.linear(x, self.second).sum()

    trace = trace_dtypes(Packed(), numbers(2, 4), "bf16-mixed")
    weights = [c for c in of_phase(trace, "forward") if c.what == "weight"]
    assert [(c.parameter, c.bytes_read) for c in weights] == [("first", 48), ("second", 32)]


def test_a_part_of_a_weight_is_that_weight() -> None:
    class Part(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(x, self.weight[1:])

    trace = trace_dtypes(Part(4, 3), numbers(2, 4), "bf16-mixed")
    (cast,) = [c for c in of_phase(trace, "forward") if c.what == "weight"]
    assert (cast.parameter, cast.bytes_read, cast.cached) == ("weight", 2 * 4 * 4, False)


def test_an_empty_weight_does_not_claim_empty_activations() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    model.register_parameter("empty", nn.Parameter(torch.zeros(0)))
    trace = trace_dtypes(model, torch.zeros(0, 4), "bf16-mixed")
    assert {c.parameter for c in trace.casts if c.module == "0"} == {"", "0.weight", "0.bias"}
    assert {c.what for c in trace.casts if c.bytes == 0} == {"activation", "gradient"}


def test_casts_of_one_weight_to_two_dtypes_are_no_repetition() -> None:
    cast = Cast("m", "weight", "float32", "float16", 4, 2, "forward", "w")
    other = dataclasses.replace(cast, target="bfloat16")
    unnamed = dataclasses.replace(cast, what="activation", parameter="")
    trace = Trace(PRECISIONS["16-mixed"], (), (cast, unnamed, other, unnamed))
    assert trace.repeated == ()
    again = dataclasses.replace(trace, casts=(cast, other, cast))
    assert again.repeated == (cast,)


@pytest.mark.filterwarnings("ignore:model. holds bfloat16")
def test_only_the_narrowing_of_a_float32_weight_is_cached() -> None:
    narrow = trace_dtypes(Twice().bfloat16(), numbers(2, 4), "16-mixed")
    cast = next(c for c in narrow.casts if c.what == "weight")
    assert (cast.source, cast.target, cast.cached) == ("bfloat16", "float16", False)

    class Widened(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x.double() * self.weight.double()

    wide = trace_dtypes(Widened(4, 1), numbers(2, 4), "bf16-mixed")
    cast = next(c for c in wide.casts if c.what == "weight")
    assert (cast.target, cast.cached) == ("float64", False)


@on_each_device
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_casts_the_weights_again_in_the_backward_pass(
    reentrant: bool, device: str
) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = MLP(4, 8, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(checkpoint(self.inner, x, use_reentrant=reentrant))

    model, batch = Checkpointed().to(device), numbers(2, 4, device=device).requires_grad_()
    trace = trace_dtypes(model, batch, "bf16-mixed")
    backward = of_phase(trace, "backward")
    weights = {c.parameter for c in backward if c.what == "weight"}
    assert weights == {f"inner.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")}
    assert {c.parameter for c in trace.repeated} == weights
    assert [(c.module, c.what) for c in backward if c.what == "activation"] == [
        ("inner.0", "activation")
    ]
    for name in ("inner.0", "inner.2", "last"):
        assert trace.of(name).calls == 1
        assert trace.of(name).computed_in == trace.of(name).backward_in == ("bfloat16",)
        gradients = [c for c in backward if c.module == name and c.what == "gradient"]
        assert len(gradients) == (3 if name == "inner.0" else 2)
    cached = [p for n, p in model.named_parameters()]
    assert trace.cache_bytes == 2 * sum(p.numel() for p in cached)  # recomputing adds nothing


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_computed_again_is_forward_work(reentrant: bool) -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.detach().double().sin().float()

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = Gate()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.gate, x, use_reentrant=reentrant)

    trace = trace_dtypes(Gated(), numbers(2, 4).requires_grad_(), "bf16-mixed")
    assert trace.of("gate").computed_in == ("float32", "float64")
    assert trace.of("gate").backward_in == ("float32",)


def test_only_a_change_between_floating_dtypes_is_a_cast() -> None:
    class Moves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            copied = x.to(torch.float32, copy=True)
            return copied + x.long().float() + torch.arange(4).float()

    trace = trace_dtypes(Moves(), numbers(2, 4), "bf16-mixed", backward=False)
    assert trace.casts == ()


# --- Real models ------------------------------------------------------------------------------


@on_each_device
@pytest.mark.parametrize("precision", MIXED)
def test_an_mlp_computes_in_16_bits_throughout(precision: str, device: str) -> None:
    trace = trace_dtypes(MLP(6, 8, 3).to(device), numbers(4, 6, device=device), precision)
    narrow = (MIXED[precision],)
    assert [trace.of(n).inputs for n in "012"] == [("float32",), narrow, narrow]
    assert {trace.of(n).computed_in for n in "012"} == {narrow}
    assert trace.cache_bytes == 2 * (6 * 8 + 8 + 8 * 3 + 3)


@on_each_device
def test_a_cnn_pools_in_16_bits(device: str) -> None:
    trace = trace_dtypes(CNN(channels=4).to(device), numbers(2, 1, 8, 8, device=device))
    assert trace.precision.name == "16-mixed"
    assert trace.of("0").computed_in == trace.of("2").computed_in == ("float16",)
    flatten = trace.of("6")
    assert (flatten.computed_in, flatten.outputs) == ((), ("float16",))  # a view


@on_each_device
def test_a_gpt_keeps_its_residual_stream_in_float32(device: str) -> None:
    config = GPTConfig(vocabulary=16, context=8, layers=2, heads=2, width=8)
    tokens = torch.zeros(2, 8, dtype=torch.int64, device=device)
    trace = trace_dtypes(GPT(config).to(device), tokens, "bf16-mixed")
    assert trace.of("").inputs == ("int64",)
    assert trace.of("token_embedding").outputs == ("float32",)
    for block in ("blocks.0", "blocks.1"):
        assert trace.of(block).inputs == trace.of(block).outputs == ("float32",)
        assert trace.of(f"{block}.mlp_norm").computed_in == ("float32",)
        assert trace.of(f"{block}.expand").computed_in == ("bfloat16",)
        assert "bfloat16" in trace.of(f"{block}.attention").computed_in
    assert trace.never_called == ()
    assert "blocks" not in [row.name for row in trace.modules]  # a ModuleList runs nothing


@on_each_device
@pytest.mark.parametrize("name", ["32-true", "tf32", "16-true", "bf16-true"])
@pytest.mark.filterwarnings("ignore:precision=.tf32")
def test_a_true_precision_casts_nothing(name: str, device: str) -> None:
    trace = trace_dtypes(MLP(4, 8, 2).to(device), numbers(3, 4, device=device), name)
    dtype = (str(PRECISIONS[name].parameter_dtype).removeprefix("torch."),)
    row = trace.of("0")
    assert row.inputs == row.weights == row.computed_in == row.outputs == row.backward_in == dtype
    assert {c.module for c in trace.casts} <= {LOSS}
    assert trace.cache_bytes == 0


def test_a_custom_autograd_function_is_seen_from_below() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @torch.amp.custom_bwd(device_type="cpu")
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return 2 * gradient * ctx.saved_tensors[0]

    class Squares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Square.apply(x)

    trace = trace_dtypes(nn.Sequential(nn.Linear(3, 3), Squares()), numbers(2, 3), "bf16-mixed")
    row = trace.of("1")
    assert (row.inputs, row.computed_in, row.outputs) == (("bfloat16",), ("float32",), ("float32",))
    assert row.backward_in == ("float32",)
    casts = [(c.phase, c.what, c.target) for c in trace.casts if c.module == "1"]
    assert ("forward", "activation", "float32") in casts


def test_batches_may_be_tuples_or_mappings() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, a: Tensor, b: Tensor, *, times: int = 1) -> dict[str, Any]:
            return {"sum": self.layer(a) + times * b, "count": 2, "index": torch.zeros(1).long()}

    a, b = numbers(2, 3), numbers(2, 3)
    by_position = trace_dtypes(Sum(), (a, b), "bf16-mixed")
    by_name = trace_dtypes(Sum(), {"b": b, "a": a, "times": 2}, "bf16-mixed")
    assert by_position.casts == by_name.casts
    assert by_name.of("").inputs == ("float32",)
    assert by_name.of("").outputs == ("float32", "int64")
    listed = trace_dtypes(Sum(), [a, b], "bf16-true")  # type: ignore[arg-type]
    assert listed.of("").inputs == ("bfloat16",)
    assert trace_dtypes(Sum(), {"a": a, "b": b}, "bf16-true").of("layer").inputs == ("bfloat16",)


@on_each_device
def test_integers_stay_integers(device: str) -> None:
    tokens = torch.zeros(2, 3, dtype=torch.int64, device=device)
    trace = trace_dtypes(nn.Embedding(4, 5).to(device), tokens, "bf16-true")
    assert trace.of("").inputs == ("int64",)


def test_without_backward_nothing_is_recorded_for_it() -> None:
    grad: list[bool] = []
    model = MLP(4, 8, 2)
    model.register_forward_hook(lambda *_: grad.append(torch.is_grad_enabled()))
    trace = trace_dtypes(model, numbers(2, 4), "bf16-mixed", backward=False)
    assert grad == [False]
    assert of_phase(trace, "backward") == []
    assert LOSS not in [row.name for row in trace.modules]
    assert all(row.backward_in == () for row in trace.modules)


def test_no_grad_around_does_not_stop_the_backward_pass() -> None:
    with torch.no_grad():
        trace = trace_dtypes(MLP(4, 8, 2), numbers(2, 4), "bf16-mixed")
        assert not torch.is_grad_enabled()
    assert trace.of("0").backward_in == ("bfloat16",)


def test_autocast_around_does_not_reach_inside() -> None:
    with torch.autocast("cpu", dtype=torch.float16):
        trace = trace_dtypes(MLP(4, 8, 2), numbers(2, 4), "32-true")
        mixed = trace_dtypes(MLP(4, 8, 2), numbers(2, 4), "bf16-mixed")
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.float16
    assert trace.casts == ()
    assert mixed.of("0").computed_in == ("bfloat16",)


def test_a_compiled_model_is_traced_as_it_was_before() -> None:
    model = MLP(4, 8, 2)
    assert trace_dtypes(torch.compile(model), numbers(2, 4), "bf16-mixed") == trace_dtypes(
        model, numbers(2, 4), "bf16-mixed"
    )


def test_tracing_twice_gives_the_same() -> None:
    model = CNN(channels=2)
    traces = [trace_dtypes(model, numbers(2, 1, 8, 8), "bf16-mixed") for _ in range(2)]
    assert traces[0] == traces[1]
    assert repr(traces[0]) == repr(traces[1])


# --- The model is left as it was --------------------------------------------------------------


@on_each_device
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_the_model_and_the_random_numbers_are_left_as_they_were(
    precision: str, device: str
) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Dropout())
    model.to(device)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[2].eval()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3, device=device)
    torch.manual_seed(5)
    trace_dtypes(model, numbers(6, 4, device=device), precision)
    assert torch.equal(torch.rand(3, device=device), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == before[name].dtype
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert model[0].bias.grad is None
    assert model.training and not model[2].training
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_the_batch_gets_no_gradient_from_a_model_that_never_ran() -> None:
    batch = numbers(2, 4)
    trace_dtypes(MLP(4, 2), batch, "bf16-mixed")
    assert batch.grad is None and batch.dtype == torch.float32


def test_a_model_that_raises_says_so_itself() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.layer(x)
            raise ZeroDivisionError("by design")

    model = Broken()
    with pytest.raises(ZeroDivisionError, match="by design"):
        trace_dtypes(model, numbers(2, 4), "bf16-mixed")
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    assert not model._forward_hooks and not model.layer._forward_hooks
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trace_dtypes(MLP(4, 2), numbers(2, 3), "bf16-mixed")
    assert torch.autograd.is_multithreading_enabled()


# --- What cannot be traced, and what is odd ---------------------------------------------------


def test_modules_that_the_batch_does_not_reach_are_listed() -> None:
    class Detour(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(4, 2), MLP(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    trace = trace_dtypes(Detour(), numbers(2, 4), "bf16-mixed")
    assert trace.never_called == ("spare", "spare.0")
    assert trace.of("spare.0").weights == ("float32",)
    assert [row[2] for row in trace.table().rows if row[0] == "spare.0"] == ["never called"]
    labels = trace.diagram().axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == ["used", "spare.0", LOSS]


def test_16_bit_weights_under_a_mixed_precision_are_pointed_out() -> None:
    model = MLP(4, 2).bfloat16()
    message = r"model: holds bfloat16 parameters, and .*model\.float\("
    with pytest.warns(UserWarning, match=message) as caught:
        trace_dtypes(model, numbers(2, 4), "bf16-mixed")
    assert caught[0].filename == __file__  # it points at the caller
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace_dtypes(model, numbers(2, 4), "bf16-true")
        trace_dtypes(MLP(4, 2), numbers(2, 4), "bf16-mixed")


def test_a_device_that_is_neither_is_refused() -> None:
    with pytest.raises(ValueError, match='expected "cpu" or "cuda"'):
        trace_dtypes(MLP(4, 2).to("meta"), numbers(2, 4), "bf16-mixed")
    with pytest.raises(ValueError, match='precision="bf16": ambiguous'):
        trace_dtypes(MLP(4, 2), numbers(2, 4), "bf16")


def test_a_model_without_weights_runs_where_its_batch_is() -> None:
    trace = trace_dtypes(nn.ReLU(), numbers(2, 4).requires_grad_(), "bf16-mixed")
    assert trace.of("").computed_in == ("float32",)
    with pytest.raises(ValueError, match='expected "cpu" or "cuda"'):
        trace_dtypes(nn.ReLU(), torch.zeros(2, device="meta"), "bf16-mixed")


def test_an_output_without_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="model: its output has no gradient; pass backward=False"):
        trace_dtypes(nn.ReLU(), numbers(2, 4), "bf16-mixed")
    trace_dtypes(nn.ReLU(), numbers(2, 4), "bf16-mixed", backward=False)


def test_an_unknown_module_names_those_there_are() -> None:
    trace = trace_dtypes(MLP(4, 2), numbers(2, 4), "bf16-mixed")
    with pytest.raises(ValueError, match=r'module="1": expected one of \(model\), 0, \(loss\)'):
        trace.of("1")


# --- What is shown ----------------------------------------------------------------------------


def test_the_table_has_dtypes_casts_and_bytes_for_each_module() -> None:
    trace = trace_dtypes(MLP(3, 5), numbers(2, 3), "bf16-mixed")
    assert list(trace.table().header) == [
        "module", "kind", "input", "weight", "computed in",
        "output", "backward in", "casts", "cast bytes",
    ]  # fmt: skip
    assert trace.table().rows[1] == (
        "0", "Linear", "float32", "float32", "bfloat16", "bfloat16", "bfloat16",
        5, (6 + 15 + 5 + 15 + 5) * 6,
    )  # fmt: skip
    assert trace.table().caption == "bf16-mixed"
    assert repr(trace) == repr(trace.table())
    assert trace._repr_html_() == trace.table()._repr_html_()
    assert sum(row[-1] for row in trace.table().rows) == trace.cast_bytes


def test_the_diagram_shows_what_computes_or_holds_weights() -> None:
    trace = trace_dtypes(CNN(channels=2), numbers(2, 1, 8, 8), "bf16-mixed")
    figure = trace.diagram()
    (axes,) = figure.axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["0", "1", "2", "3", "4", "5", "7", LOSS]  # neither (model) nor Flatten
    titles = [label.get_text() for label in axes.get_xticklabels()]
    assert titles == ["in", "weight", "compute", "out", "backward"]
    assert "".join(text.get_text() for text in axes.texts[:5]) == "FFBBB"
    assert len(plots.render(figure)) > 1000


# --- Models of other kinds ----------------------------------------------------------------------


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class GivesFields(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = MLP(3, 5)

    def forward(self, x: Tensor) -> Output:
        y = self.inner(x)
        return Output(y, y.float())


def test_a_dataclass_shows_its_dtypes_and_trains() -> None:
    trace = trace_dtypes(GivesFields(), numbers(2, 3), "bf16-mixed")
    assert trace.of("").outputs == ("bfloat16", "float32")
    assert trace.of("inner.0").backward_in == ("bfloat16",)


@pytest.mark.parametrize("how", ["compile()", "torch.compile", "on the instance", "bare"])
def test_a_forward_of_any_origin_has_a_row(how: str) -> None:
    torch.compiler.reset()
    model: Any = MLP(3, 4, 5)
    if how == "compile()":
        model[0].compile(backend="eager")
    elif how == "torch.compile":
        model[0] = torch.compile(model[0], backend="eager")
    elif how == "on the instance":
        own = model[0].forward
        model[0].forward = lambda x: own(x)
    else:
        bare = nn.Module()
        bare.weight = nn.Parameter(torch.ones(4, 3))
        bare.forward = lambda x: functional.linear(x, bare.weight)  # type: ignore[method-assign]
        model[0] = bare
    trace = trace_dtypes(model, numbers(2, 3), "bf16-mixed")
    assert trace.of("0").calls == 1
    assert trace.of("0").outputs == trace.of("0").computed_in == ("bfloat16",)
    torch.compiler.reset()


def test_complex_weights_stay_complex_in_16_bits() -> None:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spectrum = nn.Parameter(torch.full((3,), 1 + 2j))

        def forward(self, x: Tensor) -> Tensor:
            return (torch.fft.fft(x.float()) * self.spectrum).real.to(x.dtype)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace = trace_dtypes(Filter(), numbers(2, 3), "bf16-true")
    assert trace.of("").weights == ("complex64",)
