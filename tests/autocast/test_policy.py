"""`mpbook.autocast.policy` against torch's own lists: its header, its dispatcher and its documents.

The header ``ATen/autocast_mode.h`` comes with every torch and holds CUDA's lists as macros; fake
tensors put the same question to CUDA's rules on a machine without a GPU.
"""

import contextlib
import functools
import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import mpbook.autocast.policy
from mpbook.autocast.operators import OPERATORS, Operator
from mpbook.autocast.policy import (
    NOT_RECORDED,
    Observation,
    Policy,
    Rule,
    autocast_set,
    categorise,
    computes,
    dtype_name,
    measure_policy,
    side_by_side,
)

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
DTYPES = [torch.float16, torch.bfloat16]
LOWER, FULL, WIDEST = "lower precision", "float32", "widest input"
UNTOUCHED, REFUSES = "as its inputs (not in autocast's lists)", "refuses"
PARTS, DID_NOT_RUN = "its parts follow their own rules", "did not run"


measured = functools.cache(measure_policy)


@pytest.fixture
def cpu() -> Policy:
    return measured("cpu")


@pytest.fixture
def cuda_rules() -> Policy:
    return measured("cuda", tensors="fake")


# --- Torch's own lists ------------------------------------------------------------------------


def header_lists() -> dict[str, str]:
    """From the ATen name of an operator to the category of its CUDA list."""
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    if not header.exists():
        pytest.skip("this torch was installed without its headers")
    macros = {
        "LOWER_PRECISION_FP": LOWER,
        "FP32": FULL,
        "FP32_SET_OPT_DTYPE": FULL,
        "DIFFERENT_REDISPATCH_SIGNATURE": FULL,
        "PROMOTE": WIDEST,
    }
    found = {}
    for macro, category in macros.items():
        pattern = rf"#define AT_FORALL_{macro}\(_\)((?:.*\\\n)*.*)\n"
        body = re.search(pattern, header.read_text())
        assert body, f"no list {macro} in {header.name}"
        found |= dict.fromkeys(re.findall(r"_\((?:ADD_NS\()?(\w+)", body[1]), category)
    return found


ATEN_NAMES = {
    "pow with a number as base": "pow",
    "pow of two tensors": "pow",
    "sum over a dimension": "sum",
    "binary_cross_entropy": "",  # banned by hand, below
    "grid_sample": "grid_sampler",
}
# Not in CUDA's lists themselves; what they are made of is.
MADE_OF = {
    "square": "pow",
    "division of a number": "reciprocal",
    "normalize": "norm",
    "interpolate, nearest": "upsample_nearest2d",
    "interpolate, bilinear": "upsample_bilinear2d",
}


def test_the_rules_of_cuda_are_those_of_torchs_header(cuda_rules: Policy) -> None:
    lists = header_lists()
    compared = 0
    for rule in cuda_rules.rules:
        if rule.category in (DID_NOT_RUN, REFUSES) or rule.operator == "cross_entropy":
            continue  # what cross_entropy is made of has tests of its own, below
        aten = ATEN_NAMES.get(rule.operator, rule.operator).replace(".", "_")
        expected = lists.get(MADE_OF.get(rule.operator, aten), UNTOUCHED)
        assert rule.category == expected, rule
        compared += expected != UNTOUCHED
    assert compared > 70


def test_only_what_needs_a_gpu_cannot_be_asked_without_one(cuda_rules: Policy) -> None:
    missing = {r.operator for r in cuda_rules.rules if r.category == DID_NOT_RUN}
    assert missing <= {"lstm_cell", "gru_cell", "grid_sample"}


def has_rule(aten: str, device: str) -> bool:
    """Whether the dispatcher holds an autocast kernel for any overload of the operator."""
    key = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}[device]
    overloads = re.compile(rf"aten::{aten}(\..*)?")
    names = filter(overloads.fullmatch, torch._C._dispatch_get_all_op_names())
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for name in names)


def test_the_cpu_touches_what_its_dispatcher_has_a_rule_for(cpu: Policy) -> None:
    made_of_parts = {"einsum", "tensordot", "linalg.multi_dot", "rnn_tanh_cell", "lstm_cell",
                     "gru_cell", "cross_entropy", "grid_sample", "pad, reflect"}  # fmt: skip
    compared = 0
    for rule in cpu.rules:
        aten = rule.operator.replace(".", "_")
        if rule.operator not in made_of_parts and hasattr(torch.ops.aten, aten):
            assert has_rule(aten, "cpu") == (rule.category != UNTOUCHED), rule
            compared += 1
        elif rule.operator in made_of_parts:
            assert rule.category != UNTOUCHED
    assert compared > 80


# docs.pytorch.org/docs/stable/amp.html, "CPU Op-Specific Behavior" and "CUDA Op-Specific Behavior".
DOCUMENTED_ON_CPU = {
    LOWER: "linear mm bmm addmm baddbmm conv2d prelu scaled_dot_product_attention",
    FULL: "prod cdist trace mse_loss nll_loss kl_div binary_cross_entropy fft.fft linalg.svd",
    WIDEST: "cat stack index_copy",
    UNTOUCHED: "softmax log_softmax layer_norm sum exp log pow norm softplus mean dot",
}
DOCUMENTED_ON_CUDA = {
    LOWER: "linear matmul mm mv addr conv2d conv_transpose3d prelu",
    FULL: "softmax log_softmax layer_norm group_norm sum exp log pow norm softplus cumsum",
    WIDEST: "addcdiv addcmul atan2 bilinear cross dot index_put scatter_add tensordot",
    UNTOUCHED: "relu gelu add mul mean var batch_norm sqrt tanh sigmoid embedding max_pool2d",
    REFUSES: "binary_cross_entropy",
}


@pytest.mark.parametrize("category", DOCUMENTED_ON_CPU)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cpu_does_what_its_documentation_says(dtype: torch.dtype, category: str) -> None:
    policy = measured("cpu", dtype)
    for operator in DOCUMENTED_ON_CPU[category].split():
        assert policy.of(operator).category == category, operator


@pytest.mark.parametrize("category", DOCUMENTED_ON_CUDA)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tensors", ["fake", *(["real"] if torch.cuda.is_available() else [])])
def test_cuda_does_what_its_documentation_says(
    tensors: str, dtype: torch.dtype, category: str
) -> None:
    policy = measured("cuda", dtype, tensors=tensors)
    for operator in DOCUMENTED_ON_CUDA[category].split():
        assert policy.of(operator).category == category, operator


# --- What is observed -------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_every_operator_runs_in_float32_without_autocast(device: str) -> None:
    for rule in measured(device).rules:
        assert rule.on("float32").output_without_autocast in ("float32", "complex64"), rule
        assert rule.category != DID_NOT_RUN


def test_a_product_casts_whatever_comes_in(cpu: Policy) -> None:
    seen = cpu.of("linear").observations
    assert [s.inputs for s in seen] == ["float32", "float16", "bfloat16", "mixed"]
    assert {s.output for s in seen} == {"bfloat16"}
    assert {s.computed_in for s in seen} == {("bfloat16",)}
    assert [s.output_without_autocast for s in seen[:3]] == ["float32", "float16", "bfloat16"]
    assert seen[3].output_without_autocast == ""  # refused: the dtypes differ


def test_a_float32_operator_computes_in_float32_and_stays_there(cpu: Policy) -> None:
    for inputs in ("float32", "float16", "bfloat16", "mixed"):
        seen = cpu.of("mse_loss").on(inputs)
        assert (seen.output, seen.computed_in) == ("float32", ("float32",))
    assert cpu.of("mse_loss").on("float16").output_without_autocast == "float16"


def test_mixed_inputs_go_to_the_widest(cpu: Policy) -> None:
    assert cpu.of("cat").on("mixed").computed_in == ("float32",)
    assert cpu.of("cat").on("bfloat16").output == "bfloat16"
    assert "autocast" in cpu.of("cat").on("float16").error  # the other 16-bit dtype
    assert cpu.of("dot").on("mixed").output == ""


def test_an_operator_outside_the_lists_sees_what_it_is_given(cpu: Policy) -> None:
    for inputs in ("float32", "float16", "bfloat16"):
        seen = cpu.of("softmax").on(inputs)
        assert seen.output == seen.output_without_autocast == inputs
        assert seen.computed_in == (inputs,)
        assert seen.error == ""


def test_indices_are_no_operands_to_cast(cpu: Policy) -> None:
    assert cpu.of("embedding").on("float16").computed_in == ("float16",)


def a_loss(name: str, loss: Callable[..., Tensor], dtype: torch.dtype) -> Rule:
    """CUDA's rule for a loss of logits and class numbers, cast to a 16-bit dtype."""

    def call(logits: Tensor) -> Tensor:
        return loss(logits, torch.zeros(4, dtype=torch.int64, device=logits.device))

    mine = Operator(name, "losses", call, ((4, 8),))
    return measured("cuda", dtype, tensors="fake", operators=(mine,)).of(name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "sum"}])
def test_cross_entropy_on_cuda_rounds_log_probabilities_to_16_bits(
    dtype: torch.dtype, options: dict
) -> None:
    rule = a_loss("mine", functools.partial(functional.cross_entropy, **options), dtype)
    narrow = dtype_name(dtype)
    assert rule.category == PARTS
    assert rule.on(narrow).output == "float32"
    assert rule.on(narrow).computed_in == rule.on(narrow).rounded_to == (narrow, "float32")
    assert rule.on("float32").rounded_to == ("float32",)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, targets: functional.cross_entropy(logits.float(), targets),
        lambda logits, targets: functional.nll_loss(logits.log_softmax(-1), targets),
    ],
    ids=["float()", "log_softmax without a dtype"],
)
def test_a_cross_entropy_that_rounds_nothing_on_cuda(dtype: torch.dtype, loss: Callable) -> None:
    assert a_loss("mine", loss, dtype).on(dtype_name(dtype)).rounded_to == ("float32",)


@pytest.mark.skipif(
    not hasattr(functional, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy"
)
def test_linear_cross_entropy_on_cuda_rounds_log_probabilities_too() -> None:
    rule = a_loss(
        "mine",
        lambda x, targets: functional.linear_cross_entropy(x, x, targets),
        torch.bfloat16,
    )
    assert rule.on("bfloat16").output == "float32"
    assert rule.on("bfloat16").rounded_to == ("bfloat16", "float32")


def test_cross_entropy_on_a_cpu_is_float32_throughout(cpu: Policy) -> None:
    assert cpu.of("cross_entropy").category == FULL
    seen = cpu.of("cross_entropy").on("bfloat16")
    assert seen.output == "float32" and seen.computed_in == seen.rounded_to == ("float32",)


def test_only_cross_entropy_hides_a_16_bit_part_on_cuda(cuda_rules: Policy) -> None:
    assert {r.operator for r in cuda_rules.rules if r.category == PARTS} <= {
        "cross_entropy",
        "lstm_cell",
        "gru_cell",
        "rnn_tanh_cell",
    }


def test_16_bit_weights_change_nothing_for_what_cuda_casts_up(cuda_rules: Policy) -> None:
    for name in ("softmax", "layer_norm", "mse_loss", "sum", "exp"):
        seen = cuda_rules.of(name).on("float16")
        assert (seen.output, seen.output_without_autocast) == ("float32", "float16"), name


def test_some_operators_compute_in_float32_by_themselves(cpu: Policy) -> None:
    seen = cpu.of("rms_norm").on("bfloat16")
    assert (seen.output, seen.computed_in) == ("bfloat16", ("float32",))


def test_a_cell_made_of_parts_mixes_dtypes(cpu: Policy) -> None:
    seen = cpu.of("lstm_cell").on("float32")
    assert cpu.of("lstm_cell").category == PARTS
    assert (seen.output, seen.computed_in) == ("float32", ("bfloat16", "float32"))


def test_in_place_and_out_forms_are_left_alone(cpu: Policy, cuda_rules: Policy) -> None:
    for policy in (cpu, cuda_rules):
        forms = [rule for rule in policy.rules if rule.family == "in place and out="]
        assert len(forms) == 4
        assert {rule.category for rule in forms} == {UNTOUCHED}


def test_a_refusal_keeps_the_first_line_of_its_reason(cuda_rules: Policy) -> None:
    rule = cuda_rules.of("binary_cross_entropy")
    assert rule.category == REFUSES
    assert rule.error.endswith("BCELoss are unsafe to autocast.")
    assert "\n" not in rule.error
    assert cuda_rules.of("binary_cross_entropy_with_logits").error == ""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_measuring_twice_gives_the_same(device: str, dtype: torch.dtype) -> None:
    assert measure_policy(device, dtype) == measured(device, dtype)


def test_the_mixture_is_float32_with_autocasts_own_dtype() -> None:
    seen: list[list[torch.dtype]] = []
    spy = Operator("spy", "x", lambda *t: seen.append([x.dtype for x in t]) or t[0], ((2,),) * 3)
    measure_policy("cpu", torch.float16, operators=[spy])
    assert seen[-1] == [torch.float32, torch.float16, torch.float16]


def test_one_input_cannot_be_mixed(cpu: Policy) -> None:
    assert [s.inputs for s in cpu.of("exp").observations] == ["float32", "float16", "bfloat16"]


def test_inputs_are_positive_and_square_matrices_invertible() -> None:
    seen: list[torch.Tensor] = []
    spy = Operator("spy", "x", lambda *t: seen.extend(t) or t[0], ((3, 5), (4, 4)))
    measure_policy("cpu", operators=[spy])
    plain, square = seen[0], seen[1]
    assert plain.min() >= 0.2 and plain.max() <= 0.8
    assert (square.diagonal() >= 4.2).all() and torch.linalg.matrix_rank(square) == 4


@pytest.mark.parametrize("device", DEVICES)
def test_measuring_leaves_everything_as_it_was(device: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4, device=device)
    torch.manual_seed(3)
    with torch.autocast(device, dtype=torch.float16):
        measure_policy(device, torch.bfloat16)
        measure_policy("cuda", tensors="fake")
        assert torch.is_autocast_enabled(device)
        assert torch.get_autocast_dtype(device) == torch.float16
    assert torch.equal(torch.rand(4, device=device), expected)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cuda")


def test_an_autocast_region_around_does_not_change_what_is_measured(cpu: Policy) -> None:
    with torch.autocast("cpu", dtype=torch.float16):
        assert measure_policy("cpu", torch.bfloat16) == cpu


def test_an_operator_that_refuses_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    log.setLevel(logging.INFO)
    wrong = Operator("wrong", "x", lambda x: torch.dot(x, x), ((2, 2),))
    log.addHandler(caplog.handler)  # torch's loggers do not pass messages on
    try:
        measure_policy("cuda", tensors="fake", operators=[wrong])
        assert log.level == logging.INFO
    finally:
        log.removeHandler(caplog.handler)
        log.setLevel(before)
    assert caplog.records == []


def test_results_come_from_tuples_too() -> None:
    operator = Operator("pair", "x", lambda x: ((x.half(), x), x), ((2,),))
    (rule,) = measure_policy("cpu", operators=[operator]).rules
    assert rule.on("float32").output == "float16"


def test_gradients_are_not_recorded() -> None:
    modes: list[bool] = []
    spy = Operator("spy", "x", lambda x: modes.append(torch.is_grad_enabled()) or x, ((2,),))
    measure_policy("cpu", operators=[spy])
    assert not any(modes)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_switch_is_set_back_even_after_an_error(enabled: bool) -> None:
    before = torch.get_autocast_dtype("cpu")
    with contextlib.suppress(KeyError), autocast_set("cpu", torch.float16, enabled=enabled):
        assert torch.is_autocast_enabled("cpu") == enabled
        assert torch.get_autocast_dtype("cpu") == torch.float16
        raise KeyError
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_autocast_dtype("cpu") == before


def test_casts_views_copies_and_fresh_tensors_compute_nothing() -> None:
    aten = torch.ops.aten
    idle = (aten._to_copy, aten.view, aten.t, aten.clone, aten.copy_, aten.empty_like)
    assert not any(computes(op.default) for op in idle)
    assert not computes(torch.ops.prim.device.default)
    assert all(computes(op) for op in (aten.mm.default, aten.add.Tensor, aten.exp_.default))


# --- Categories from evidence -----------------------------------------------------------------


def rule_of(
    *rows: tuple[str, str, str],
    computed_in: tuple[str, ...] = (),
    rounded_to: tuple[str, ...] = (),
    error: str = "",
) -> str:
    """The category of (inputs, output, output without autocast), cast to float16."""
    seen = [
        Observation(i, out, computed_in, off, error if not out else "", rounded_to)
        for i, out, off in rows
    ]
    return categorise(seen, "float16")


SAME = [("float32", "float32", "float32"), ("float16", "float16", "float16")]


@pytest.mark.parametrize(
    ("rows", "category"),
    [
        ([("float32", "float16", "float32"), ("float16", "float16", "float16")], LOWER),
        ([("float32", "float32", "float32"), ("float16", "float32", "float16")], FULL),
        ([("float32", "float32", "float32"), ("float16", "float32", "")], FULL),
        ([("float32", "complex64", "complex64"), ("float16", "complex64", "")], FULL),
        ([*SAME, ("mixed", "float32", "")], WIDEST),
        ([*SAME, ("mixed", "float32", "float16")], WIDEST),
        ([*SAME, ("mixed", "float32", "float32")], UNTOUCHED),
        ([*SAME, ("mixed", "float16", "")], UNTOUCHED),
        ([*SAME, ("mixed", "", "")], UNTOUCHED),
        ([*SAME], UNTOUCHED),
        ([("float32", "", "float32"), ("float16", "", "float16")], REFUSES),
        ([("float32", "", ""), ("float16", "", "")], DID_NOT_RUN),
        ([("float32", "float16", "float16"), ("float16", "float16", "float16")], UNTOUCHED),
        ([("float32", "float32", "float32"), ("float16", "float32", "float32")], UNTOUCHED),
        ([("float32", "float32", "float32"), ("float16", "", "float16")], UNTOUCHED),
    ],
)
def test_a_category_follows_from_what_was_seen(rows: list, category: str) -> None:
    assert rule_of(*rows) == category


def test_refusing_the_other_16_bit_dtype_gives_promotion_away() -> None:
    rows = [*SAME, ("bfloat16", "", "bfloat16")]
    assert rule_of(*rows, error="Unexpected ScalarType in at::autocast::prioritize") == WIDEST
    assert rule_of(*rows, error="not implemented for BFloat16") == UNTOUCHED


def test_a_float32_result_of_16_bit_parts_is_its_own_category() -> None:
    rows = [("float32", "float32", "float32"), ("float16", "float32", "float16")]
    assert rule_of(*rows, rounded_to=("float16", "float32")) == PARTS
    assert rule_of(*rows, computed_in=("float16",), rounded_to=("float32",)) == FULL
    assert rule_of(*SAME, computed_in=("float16", "float32")) == PARTS
    assert rule_of(*SAME, computed_in=("bfloat16", "float32")) == UNTOUCHED


# --- Tables and records -----------------------------------------------------------------------


def test_a_table_has_a_row_for_each_operator_and_input(cpu: Policy) -> None:
    table = cpu.table()
    assert len(table.rows) == sum(len(rule.observations) for rule in cpu.rules)
    assert list(table.header) == [
        "operator", "inputs", "output", "kernels take", "kernels return", "autocast"
    ]  # fmt: skip
    assert ("linear", "float32", "bfloat16", "bfloat16", "bfloat16", LOWER) in table.rows
    assert cpu.caption == table.caption


@pytest.mark.parametrize(
    ("filter", "operators"),
    [
        ("BMM", {"bmm", "addbmm", "baddbmm"}),
        ("convolutions", {f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)}),
        ("widest", {"cat", "stack", "index_copy"}),
        ("fourier", {rule.name for rule in OPERATORS if rule.family.endswith("and Fourier")}),
    ],
)
def test_a_filter_looks_at_operator_family_and_category(
    cpu: Policy, filter: str, operators: set[str]
) -> None:
    assert {row[0] for row in cpu.table(filter).rows} == operators


def test_a_filter_that_keeps_nothing_says_so(cpu: Policy) -> None:
    with pytest.raises(ValueError, match='filter="convolve": matches no operator, family or cat'):
        cpu.table("convolve")


def test_a_refusal_shows_its_reason_in_the_table(cuda_rules: Policy) -> None:
    row = cuda_rules.table("refuses").rows[0]
    assert row[2].startswith("raises: torch.nn.functional.binary_cross_entropy")
    assert row[3] == row[4] == "-"


def test_an_unknown_operator_names_those_alike(cpu: Policy) -> None:
    with pytest.raises(ValueError, match='operator="Pool2d": not measured; expected max_pool2d, a'):
        cpu.of("Pool2d")
    with pytest.raises(ValueError, match=r"expected a name from policy\.table\(\)"):
        cpu.of("no such thing")


def test_unknown_inputs_name_those_that_were_run(cpu: Policy) -> None:
    with pytest.raises(ValueError, match='inputs="mixed": exp was run on float32, float16, bfl'):
        cpu.of("exp").on("mixed")


def test_a_policy_survives_json(cpu: Policy, cuda_rules: Policy) -> None:
    for policy in (cpu, cuda_rules):
        again = Policy.from_dict(json.loads(json.dumps(policy.as_dict())))
        assert again == policy
        assert hash(again) == hash(policy)


def test_a_record_says_where_it_comes_from(cpu: Policy, cuda_rules: Policy) -> None:
    saved = cpu.as_dict()
    assert (saved["device_type"], saved["torch"]) == ("cpu", torch.__version__)
    assert (saved["autocast_dtype"], saved["tensors"]) == ("bfloat16", "real")
    assert saved["device"] == mpbook.device.name("cpu")
    assert cuda_rules.as_dict()["tensors"] == "fake"
    assert cuda_rules.as_dict()["device"] == "cuda"  # no GPU in particular
    assert cuda_rules.autocast_dtype == "float16"
    assert "no kernel ran" in cuda_rules.caption and "no kernel ran" not in cpu.caption


@pytest.mark.parametrize("spoil", ["rules", "torch"])
def test_a_record_that_lacks_a_field_is_refused(cpu: Policy, spoil: str) -> None:
    saved = cpu.as_dict()
    del saved[spoil]
    with pytest.raises(ValueError, match=r"saved: not what Policy\.as_dict\(\) writes: .*" + spoil):
        Policy.from_dict(saved)
    with pytest.raises(ValueError, match="extra"):
        Policy.from_dict({**cpu.as_dict(), "extra": 1})


def small(**categories: str) -> Policy:
    """A policy of invented rules: an operator that goes to float16, or is left alone."""
    rules = []
    for name, output in categories.items():
        rows = (("float32", output, "float32"), ("float16", "float16", "float16"))
        seen = tuple(Observation(i, out, (), off) for i, out, off in rows)
        rules.append(Rule(name, "x", "float16", seen))
    return Policy("a device", "cpu", "2", "float16", "real", tuple(rules))


def test_side_by_side_marks_where_policies_differ() -> None:
    one, two = small(a="float16", b="float16"), small(a="float16", b="float32")
    table = side_by_side({"one": one, "two": two})
    assert list(table.header) == ["operator", "one", "two", ""]
    assert list(table.rows) == [("a", LOWER, LOWER, ""), ("b", LOWER, UNTOUCHED, "differs")]
    assert [row[0] for row in side_by_side({"1": one, "2": two}, only_different=True).rows] == ["b"]


def test_what_was_not_recorded_is_not_invented() -> None:
    table = side_by_side({"here": small(a="float16"), "T4": None, "old": small(b="float16")})
    assert list(table.rows) == [
        ("a", LOWER, NOT_RECORDED, NOT_RECORDED, ""),
        ("b", NOT_RECORDED, NOT_RECORDED, LOWER, ""),
    ]


def test_what_could_not_be_run_is_no_difference() -> None:
    raised = (Observation("float32", "", (), ""), Observation("float16", "", (), ""))
    failed = replace(small(), rules=(Rule("a", "x", "float16", raised),))
    (row,) = side_by_side({"one": small(a="float16"), "two": failed}).rows
    assert row == ("a", LOWER, DID_NOT_RUN, "")


def test_comparing_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"policies=.*: expected at least one that is recorded"):
        side_by_side({"T4": None})


def test_cpu_and_cuda_differ_on_softmax_and_agree_on_linear(
    cpu: Policy, cuda_rules: Policy
) -> None:
    rows = {row[0]: row for row in side_by_side({"CPU": cpu, "CUDA": cuda_rules}).rows}
    assert rows["softmax"] == ("softmax", UNTOUCHED, FULL, "differs")
    assert rows["linear"] == ("linear", LOWER, LOWER, "")


# --- Arguments --------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_the_default_dtype_is_the_devices(device: str) -> None:
    few = OPERATORS[:1]
    expected = {"cpu": "bfloat16", "cuda": "float16"}[device]
    assert measure_policy(device, operators=few).autocast_dtype == expected
    assert measure_policy(device, torch.float16, operators=few).autocast_dtype == "float16"


def test_without_a_device_the_best_there_is_is_measured() -> None:
    few = OPERATORS[:1]
    assert measure_policy(operators=few).device_type == DEVICES[-1]
    assert measure_policy(tensors="fake", operators=few).device_type == "cuda"


def test_bad_arguments_say_what_would_be_right() -> None:
    with pytest.raises(
        ValueError, match=r"dtype=torch.float64: autocast casts to torch.float16 or"
    ):
        measure_policy("cpu", torch.float64)
    with pytest.raises(ValueError, match='tensors=\'meta\': expected "real" or "fake"'):
        measure_policy("cpu", tensors="meta")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='expected "cpu" or "cuda"'):
        measure_policy("mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_absent_is_not_measured() -> None:
    with pytest.raises(RuntimeError, match="torch sees no CUDA GPU here"):
        measure_policy("cuda")


def test_operators_are_named_once_and_dtypes_without_torch() -> None:
    names = [operator.name for operator in OPERATORS]
    assert len(set(names)) == len(names) > 110
    assert dtype_name(torch.bfloat16) == "bfloat16"


# --- What no dtype shows: a CPU's norms -------------------------------------------------------


def bias_gradient(norm: torch.nn.Module, dtype: torch.dtype, rows: int = 2**18) -> float:
    """The gradient of a norm's bias, which is the number of rows, under a CPU's autocast."""
    hidden = torch.randn(rows, 8).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(hidden)
    out.float().sum().backward()
    return norm.bias.grad[0].item()


def test_layer_norm_on_a_cpu_adds_up_in_the_dtype_of_its_input() -> None:
    assert bias_gradient(torch.nn.LayerNorm(8), torch.float32) == 2**18
    assert bias_gradient(torch.nn.LayerNorm(8), torch.bfloat16) <= 2**17  # 256 a thread


def test_group_norm_on_a_cpu_adds_up_in_float32() -> None:
    assert bias_gradient(torch.nn.GroupNorm(2, 8), torch.bfloat16) == 2**18
