"""`claims`: each verdict follows from a run or a record, and says what it rests on."""

import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mpbook import device as devices
from mpbook import device_facts
from mpbook.__main__ import main
from mpbook.evidence import case_study, claims, records
from mpbook.evidence.claims import (
    CLAIMS,
    NOT_RECORDED,
    Claim,
    Evidence,
    Ledger,
    Verdict,
    base,
    ledger,
    low_precision,
    many_gpus,
    numbers,
    pytorch,
    recorded,
    training,
)
from mpbook.evidence.experiments import EXPERIMENTS
from mpbook.evidence.published import Figures, published
from mpbook.evidence.records import Provenance, Record
from mpbook.training.paired import PairedDifference

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
CPU = torch.device("cpu")
GPU = replace(
    Provenance.here(CPU),
    device="NVIDIA H100 80GB HBM3",
    device_type="cuda",
    capability="9.0",
    started="2026-11-25T01:02:03+00:00",
)


def a_record(experiment, *rows):
    """Rows are a case with its results, or with the status of a case that has none."""
    cases = [
        {"case": case, "status": "measured", "seconds": 1.0, "results": results}
        if isinstance(results, dict)
        else {"case": case, "status": results, "seconds": 1.0, "results": {}}
        for case, results in rows
    ]
    return Record(experiment, {}, cases, GPU, 1.0)


NOTHING = Figures(())


def decide(name, record=None, *, device=CPU, figures=NOTHING):
    """The verdict on a claim where this record, and these figures, are all there is."""

    def find(experiment):
        return record if record and record.experiment == experiment else None

    return CLAIMS[name].decide(Evidence(device, find, lambda: figures))


@cache
def settled(name, device="cpu"):
    """The verdict without any record; for tests that change nothing, so once is enough."""
    return decide(name, device=torch.device(device))


@pytest.fixture(autouse=True)
def train_once(monkeypatch, trained_pairs):
    monkeypatch.setattr(case_study, "short_runs", trained_pairs)


# Published figures.

PUBLISHED = {
    "two-to-four-times-faster": ("holds when ...", "153 figures", "22 of 82 reach 2"),
    "gpt2-twice-the-tokens": ("holds when ...", "96 figures", "Seldom for GPT-2 124M"),
    "memory-halves": ("false", "49 figures", "they take 56% to 111%"),
    "gpt2-40-percent-less-memory": ("false", "6 figures", "79% to 84%"),
    "twice-the-batch": ("holds when ...", "34 figures", "1.2 times as large"),
    "quality-is-kept": ("holds when ...", "82 figures", "57 of 82"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_a_record_the_published_figures_decide(name):
    kind, counted, why = PUBLISHED[name]
    verdict = decide(name, figures=published())
    assert verdict.kind == kind and why in verdict.why
    assert verdict.evidence.startswith(f"published: {counted}, ")


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "quality-is-kept"])
def test_without_either_the_verdict_says_what_is_missing(name):
    verdict = decide(name)
    assert verdict.kind == NOT_RECORDED and "It takes a record of" in verdict.why


def test_a_record_outranks_the_published_figures_and_both_are_named():
    found = base.recorded("x", lambda record: ("false", "No."), otherwise=counted("holds"))
    verdict = found(Evidence(CPU, {"x": a_record("x")}.get))
    assert (verdict.kind, verdict.why) == ("false", "No.")
    assert verdict.evidence.startswith("recorded on NVIDIA H100 80GB HBM3, 2026-11-25; published: ")


def test_a_record_that_decides_nothing_leaves_it_to_the_published_figures():
    def find_out(record):
        raise LookupError("no case")

    found = base.recorded("x", find_out, otherwise=counted("holds"))
    assert found(Evidence(CPU, {"x": a_record("x")}.get)).kind == "holds"


def counted(kind):
    return lambda figures: ((kind, "Because."), figures)


@pytest.mark.parametrize(
    ("ratios", "kind"), [([3.0, 3.0], "holds"), ([3.0, 1.0], "holds when ..."), ([1.0], "false")]
)
def test_twice_the_tokens_follows_from_the_figures(ratios, kind):
    large = published(claim="gpt2-2x-tokens", baseline="float32", model="large").rows[0]
    small = published(claim="gpt2-2x-tokens", baseline="float32", model="small").rows[0]
    rows = [
        replace(like, value_a=1.0, value_b=ratio, ratio=ratio, unit="tokens/s", precision_b="mixed")
        for ratio, like in zip(ratios, (large, small), strict=False)
    ]
    rows.append(replace(rows[0], model="GPT-2 small"))
    verdict = decide("gpt2-twice-the-tokens", figures=Figures(tuple(rows)))
    assert verdict.kind == kind


SPEEDS = {"claim": "gpt2-2x-tokens", "precision": "mixed", "baseline": "float32"}
MEMORY = {"claim": "gpt2-40-percent-memory", "precision": "mixed"}


def pairs_of(small, large):
    """Published speed-ups over float32 with these ratios instead of their own."""
    rows = published(**SPEEDS, model="small").rows[0], published(**SPEEDS, model="large").rows[0]
    return [
        replace(like, value_a=1.0, value_b=ratio, ratio=ratio, unit="tokens/s")
        for ratios, like in zip((small, large), rows, strict=True)
        for ratio in ratios
    ]


def about_twice_the_tokens(rows):
    return decide("gpt2-twice-the-tokens", figures=Figures(tuple(rows))).why


@pytest.mark.parametrize(
    ("small", "word"),
    [
        ([1.0], "Not"),
        ([2.0, 1.0, 1.0, 1.0, 1.0], "Seldom"),
        ([2.0, 1.0, 1.0], "Sometimes"),
        ([2.0, 1.0], "Mostly"),
        ([2.0], "Always"),
    ],
)
def test_how_often_the_small_model_doubles_is_counted(small, word):
    assert about_twice_the_tokens(pairs_of(small, [1.0])).startswith(f"{word} for GPT-2 124M")


def test_what_compiled_pairs_gain_is_told_by_baseline_or_that_there_is_none():
    eager = pairs_of([1.0], [1.0])
    assert "The collection has no compiled pair." in about_twice_the_tokens(eager)
    compiled = {"precision_b": "mixed, compiled", "value_b": 1.5, "ratio": 1.5}
    tf32, float32 = (
        replace(eager[0], precision_a=f"{a}, compiled", **compiled) for a in ("tf32", "fp32")
    )
    told = about_twice_the_tokens([*eager, tf32, float32, float32])
    assert "1.50 times as fast as TF32 (1 pair) and 1.50 times as fast as float32 (2 pairs)" in told
    assert "0 of 1 pairs reach 2" in told


def steps_that_take(*shares):
    step = next(figure for figure in published(**MEMORY) if figure.whole_step)
    return [replace(step, value_a=1.0, value_b=share, ratio=share) for share in shares]


@pytest.mark.parametrize(
    ("name", "shares", "kind", "why"),
    [
        ("gpt2-40-percent-less-memory", (0.8, 0.7), "false", "None of 2 published steps"),
        ("gpt2-40-percent-less-memory", (0.8, 0.6), "holds when ...", "1 of 2 published steps"),
        ("gpt2-40-percent-less-memory", (0.5, 0.6), "holds", "takes 50% to 60%"),
        ("memory-halves", (0.8, 0.6), "false", "None of 2 published steps"),
        ("memory-halves", (0.8, 0.5), "holds when ...", "1 of 2 published steps"),
        ("memory-halves", (0.55, 0.5), "holds", "they take 50% to 55%"),
    ],
)
def test_published_steps_decide_of_memory_either_way(name, shares, kind, why):
    verdict = decide(name, figures=Figures(tuple(steps_that_take(*shares))))
    assert verdict.kind == kind and why in verdict.why


def test_a_step_without_its_optimizer_decides_nothing_of_memory():
    rows = [replace(row, caveat="no optimizer state") for row in steps_that_take(0.5)]
    verdict = decide("gpt2-40-percent-less-memory", figures=Figures(tuple(rows)))
    assert verdict.kind == NOT_RECORDED and "No published figure was found" in verdict.why
    assert "takes 50% (no optimizer state)" in verdict.why
    assert decide("memory-halves", figures=Figures(tuple(rows))).kind == NOT_RECORDED


# The ledger.


def test_every_claim_has_an_id_of_its_own_and_all_are_in_the_ledger():
    groups = (numbers, pytorch, training, many_gpus, recorded, low_precision)
    listed = [claim.id for group in groups for claim in group.CLAIMS]
    assert len(set(listed)) == len(listed) >= 25
    assert list(CLAIMS) == listed
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in listed)


def test_a_sentence_is_a_sentence_and_names_its_source():
    for claim in CLAIMS.values():
        assert claim.sentence.endswith(".") and claim.source


def test_a_claim_says_that_something_is_so_since_advice_is_neither_true_nor_false():
    advice = {"Use", "Set", "Keep", "Take", "Write", "Put", "Always", "Never", "Avoid", "Do"}
    assert [c.id for c in CLAIMS.values() if c.sentence.split()[0] in advice] == []


def test_a_ledger_keeps_the_order_that_was_asked_for():
    names = ["h100-does-1979-tflops", "autocast-means-float16"]
    assert list(ledger(*names, evidence=Evidence(CPU)).kinds()) == names


def test_an_unknown_claim_is_refused_by_name():
    with pytest.raises(ValueError, match='"no-such-claim": expected one of fp16-underflows'):
        ledger("autocast-means-float16", "no-such-claim")


def test_without_names_all_are_decided(monkeypatch):
    two = {
        name: Claim(name, "It is.", "me", base.exactly(lambda: ("holds", "Yes.")))
        for name in ("a", "b")
    }
    monkeypatch.setattr(claims, "CLAIMS", two)
    assert ledger().kinds() == {"a": "holds", "b": "holds"}


ROW = (
    Claim(
        "some-id",
        "It is said.",
        "[a|b](https://x.org)",
        lambda e: None,
        "recipe/loss_scaling#ls-floor",
    ),
    Verdict("false", "The numbers say no.", "live, exact"),
)


def test_a_notebook_shows_claim_source_verdict_reason_chapter_and_evidence():
    head, rule, row = Ledger((ROW,))._repr_markdown_().splitlines()
    assert head == "| Claim | Verdict | Why | Evidence |"
    assert rule == "| --- | --- | --- | --- |"
    assert row == (
        r"| It is said. ([a\|b](https://x.org)) | **false** | The numbers say no. "
        "See [loss scaling](../recipe/loss_scaling.ipynb#ls-floor). | live, exact |"
    )


def test_a_claim_without_a_section_links_to_none():
    text = Ledger(((replace(ROW[0], section=""), ROW[1]),))._repr_markdown_()
    assert "See [" not in text and "no. | live" in text


def test_a_terminal_shows_a_table_of_wrapped_cells():
    long = Verdict("not recorded yet", "word " * 30 + "end.", "none")
    lines = repr(Ledger((ROW, (ROW[0], long)))).splitlines()
    assert lines[0].split() == ["Claim", "Verdict", "Why", "Evidence"]
    assert set(lines[1]) == {"-", " "}
    assert "It is said. [some-id]" in lines[2] and "live, exact" in lines[2]
    assert lines[3] == "" and "not recorded yet" in lines[4]
    assert sum(line.count("word") for line in lines) == 30
    assert max(map(len, lines)) <= 122


def test_the_command_prints_the_claims_that_are_named(capsys):
    assert main(["claims", "autocast-means-float16", "twice-the-batch"]) == 0
    out = capsys.readouterr().out
    assert "[autocast-means-float16]" in out and "[twice-the-batch]" in out
    assert "[memory-halves]" not in out


def test_the_command_refuses_an_unknown_claim(capsys):
    assert main(["claims", "nonsense"]) == 1
    assert "nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=lambda claim: claim.id)
def test_the_section_that_a_claim_names_exists(claim):
    from refresh import BOOK

    chapter, _, section = claim.section.partition("#")
    page = (BOOK / f"{chapter}.ipynb").read_text("utf-8")
    assert f'"({section})=\\n"' in page


def test_the_experiments_that_claims_wait_for_exist():
    waiting = [decide(claim.id) for claim in recorded.CLAIMS[1:]]
    asked = {re.search(r"a record of (\w+)", verdict.why)[1] for verdict in waiting}
    assert asked == {"gpt2_throughput", "gpt2_memory", "bf16_pairs"} <= set(EXPERIMENTS)


# Ways to decide.


@pytest.mark.parametrize(
    ("held", "kind"),
    [
        ([True], "holds"),
        ([True, True], "holds"),
        ([True, False], "holds when ..."),
        ([False, True, False], "holds when ..."),
        ([False, False], "false"),
    ],
)
def test_the_kind_is_by_how_many_cases_held(held, kind):
    assert base.by_share(held) == kind


def test_nothing_tried_is_nothing_decided():
    with pytest.raises(LookupError, match="no two cases"):
        base.by_share([])


def test_the_evidence_says_whether_it_was_exact_or_of_which_device():
    finding = ("holds", "So it is.")
    exact = base.exactly(lambda: finding)(Evidence(CPU))
    assert exact == Verdict("holds", "So it is.", "live, exact")
    seen = []
    measured = base.live(lambda device: seen.append(device) or finding)(Evidence(CPU))
    assert measured == Verdict("holds", "So it is.", f"live, {devices.name(CPU)}")
    assert seen == [CPU]


def test_a_record_gives_its_caption_as_evidence():
    found = base.recorded("x", lambda record: ("false", "No."))
    verdict = found(Evidence(CPU, {"x": a_record("x")}.get))
    assert verdict == Verdict("false", "No.", "recorded on NVIDIA H100 80GB HBM3, 2026-11-25")


def test_without_a_record_the_verdict_is_not_recorded_yet_and_names_the_experiment():
    verdict = base.recorded("x", lambda record: ("holds", "Yes."))(Evidence(CPU, lambda name: None))
    assert verdict == Verdict(NOT_RECORDED, "It takes a record of x on a GPU.", "none")


def test_a_record_without_the_cases_needed_decides_nothing():
    def find_out(record):
        record.results(precision="32-true")
        return "holds", "Yes."

    verdict = base.recorded("x", find_out)(Evidence(CPU, {"x": a_record("x")}.get))
    assert verdict.kind == NOT_RECORDED and verdict.evidence == "none"
    assert "0 cases have {'precision': '32-true'}" in verdict.why


def test_by_default_claims_are_decided_here_and_by_the_package_s_records():
    assert Evidence().device == devices.pick()
    assert Evidence().find is records.find


# What the pages and the chapters rely on, on every device.

KINDS = {
    "fp16-underflows-below-6e-5": "false",
    "updates-of-1e-7-vanish": "holds when ...",
    "adam-eps-is-0-in-fp16": "holds when ...",
    "beta2-is-frozen-in-bf16": "holds",
    "bf16-weight-of-1-is-stuck": "holds",
    "bf16-sums-stop-at-256": "holds when ...",
    "bf16-reaches-3e75": "false",
    "float32-sums-prevent-overflow": "false",
    "use-torch-cuda-amp": "false",
    "cuda-amp-autocast-takes-a-device-type": "false",
    "autocast-means-float16": "holds when ...",
    "autocast-treats-cpu-and-cuda-alike": "false",
    "autocast-runs-cross-entropy-in-float32": "holds when ...",
    "tf32-is-on-by-default": "holds when ...",
    "grad-scaler-65536-2000": "holds",
    "mixed-precision-stores-16-bit-weights": "false",
    "gradients-are-16-bit": "false",
    "twice-the-model": "false",
    "activations-dominate-memory": "holds when ...",
    "master-copy-is-needed": "holds when ...",
    "fp16-needs-loss-scaling": "holds when ...",
    "bf16-needs-no-loss-scaling": "holds",
    "quality-is-kept": "holds when ...",
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_live_verdict_is_the_same_on_every_device(name, kind, device):
    verdict = settled(name, device)
    assert verdict.kind == kind, verdict.why
    assert verdict.evidence.startswith("live, ")
    assert verdict.why.endswith(".") and len(verdict.why) < 320


# Numbers: numpy is the oracle.


def test_what_float16_keeps_below_its_smallest_normal_number():
    why = decide("fp16-underflows-below-6e-5").why
    info = np.finfo(np.float16)
    assert f"{float(info.tiny):.1e}" in why and f"{float(info.smallest_subnormal):.2e}" in why
    assert "MI200" in why  # not on every device


@pytest.mark.parametrize(("last", "kind"), [(2.0**-14, "holds"), (2.0**-30, "false")])
def test_underflow_is_looked_for_and_not_known(monkeypatch, last, kind):
    monkeypatch.setattr(numbers, "_rounded", lambda value, dtype: value if value >= last else 0.0)
    verdict = decide("fp16-underflows-below-6e-5")
    assert verdict.kind == kind and f"{last:.2e} is the smallest number that" in verdict.why


def test_the_heaviest_weight_that_an_update_of_1e_7_moves():
    moved = float(re.search(r"up to (\S+),", decide("updates-of-1e-7-vanish").why)[1])
    assert moved == pytest.approx(2.0**-12, rel=0.01)
    heaviest = np.nextafter(np.float16(2.0**-12), np.float16(0))
    for weight, moves in ((heaviest, True), (np.float16(2.0**-12), False)):
        assert (np.float16(np.float64(weight) + 1e-7) != weight) == moves


def test_adam_s_eps_and_the_nan_that_it_makes():
    assert np.float16(torch.optim.AdamW([torch.ones(1)]).defaults["eps"]) == 0
    why = settled("adam-eps-is-0-in-fp16").why
    assert re.search(r"1e-08 rounds to 0, .* is nan; with fused=True, .* it is 1\.", why)


def test_the_second_moment_is_frozen_at_all_mantissas_and_at_none_of_a_lower_beta2():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    moments = (1 + np.arange(128) / 128).astype(ml_dtypes.bfloat16)
    for beta2, frozen in ((0.999, 128), (0.95, 0)):
        decayed = (moments.astype(np.float32) * np.float32(beta2)).astype(ml_dtypes.bfloat16)
        assert int((decayed == moments).sum()) == frozen
    why = decide("beta2-is-frozen-in-bf16").why
    assert "for 128 of 128 mantissas" in why and "0.95 for 0." in why


def test_a_float32_weight_moves_where_the_bfloat16_one_stays():
    why = settled("bf16-weight-of-1-is-stuck").why
    assert "After 100 steps down it is 1; a float32 weight is at 0.94." in why


def test_a_running_sum_stops_and_a_kernel_s_does_not():
    why = decide("bf16-sums-stop-at-256").why
    assert "ends at 256;" in why and "gives 1000." in why


# PyTorch's defaults.


@pytest.fixture
def switch():
    """Sets a switch of torch.backends for one test."""
    before = []

    def turn(module, name, value):
        before.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    yield turn
    for module, name, value in reversed(before):
        setattr(module, name, value)


def test_one_variable_of_the_environment_turns_tf32_on_for_products_too():
    assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1" in decide("tf32-is-on-by-default").why
    asked = "import torch; print(torch.backends.cuda.matmul.allow_tf32)"
    for value, expected in (("1", "True"), ("0", "False")):
        there = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": value}
        command = [sys.executable, "-c", asked]
        said = subprocess.run(command, env=there, capture_output=True, text=True, check=True)
        assert said.stdout.strip() == expected


def test_the_range_of_bfloat16_is_numpy_s_of_float32():
    assert f"float32 ends at {np.finfo(np.float32).max:.2g}" in decide("bf16-reaches-3e75").why


def test_a_product_that_no_float16_holds_is_infinite():
    why = decide("float32-sums-prevent-overflow").why
    assert "are 262144 in float32, and inf as a float16" in why


def test_an_old_spelling_that_takes_the_argument_would_be_noticed(monkeypatch):
    monkeypatch.setattr(torch.cuda.amp, "autocast", lambda **options: None)
    assert decide("cuda-amp-autocast-takes-a-device-type").kind == "holds"


def test_both_old_spellings_warn():
    assert decide("use-torch-cuda-amp").why.startswith("2 of 2 warn")
    assert not pytorch._is_deprecated(lambda: torch.amp.GradScaler("cpu"))


def test_the_default_dtype_of_each_device():
    why = decide("autocast-means-float16").why
    assert why == "The default is float16 on CUDA and bfloat16 on a CPU."


def test_the_lists_differ_in_all_but_the_product():
    why = settled("autocast-treats-cpu-and-cuda-alike").why
    assert "these differ: softmax, layer_norm, sum, exp (CUDA: float32; CPU: as its inputs)." in why


def test_cross_entropy_is_rounded_on_cuda_alone():
    why = settled("autocast-runs-cross-entropy-in-float32").why
    assert "return float32 on a CPU and bfloat16 and float32 on CUDA" in why


@pytest.mark.parametrize(
    ("products", "convolutions", "kind"),
    [(False, False, "false"), (False, True, "holds when ..."), (True, True, "holds")],
)
def test_tf32_is_read_from_both_switches(monkeypatch, switch, products, convolutions, kind):
    monkeypatch.delenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", raising=False)
    switch(torch.backends.cuda.matmul, "allow_tf32", products)
    switch(torch.backends.cudnn, "allow_tf32", convolutions)
    verdict = decide("tf32-is-on-by-default")
    on = {True: "on", False: "off"}
    assert verdict.kind == kind
    assert verdict.why == (
        f"For matrix products it is {on[products]}, for cuDNN's convolutions {on[convolutions]}."
        " The environment variable TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 turns it on for products "
        "too; NVIDIA's containers set it."
    )


def test_tf32_by_an_environment_variable_is_no_default_of_pytorch(switch, monkeypatch):
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    switch(torch.backends.cuda.matmul, "allow_tf32", True)
    switch(torch.backends.cudnn, "allow_tf32", True)
    verdict = decide("tf32-is-on-by-default")
    assert verdict.kind == "holds when ..."
    assert "For matrix products it is off, for cuDNN's convolutions on." in verdict.why


def test_the_scaler_is_watched_until_it_grows_and_halves():
    why = decide("grad-scaler-65536-2000").why
    assert why == (
        "It starts at 65536, is at 131072 after 2000 clean steps and at 65536 after an infinity."
    )


@pytest.mark.parametrize(
    "changed", [{"init_scale": 2.0**15}, {"growth_interval": 1000}, {"backoff_factor": 0.25}]
)
def test_another_default_of_the_scaler_would_be_noticed(monkeypatch, changed):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: scaler(device, **changed))
    assert decide("grad-scaler-65536-2000").kind == "false"


@pytest.mark.parametrize(
    ("sums", "allowed", "kind"),
    [
        ((16384.0, 16384.0), [], "holds"),
        ((16384.0, 16384.0), ["a_switch"], "holds when ..."),
        ((2048.0, 256.0), [], "false"),
        ((16384.0, 256.0), [], "false"),
        ((2048.0, 256.0), ["a_switch"], "false"),
    ],
)
def test_a_product_is_judged_by_its_sum_and_by_the_switches(sums, allowed, kind):
    found, why = pytorch.judge_sums(sums, ones=16384, allowed=allowed)
    assert found == kind
    assert f"give {sums[0]:g} and {sums[1]:g} in float16 and bfloat16" in why
    assert ("a_switch still lets" in why) == bool(allowed)


@pytest.mark.parametrize("device", DEVICES)
def test_a_16_bit_product_adds_up_more_than_16_bits_can_count(device):
    verdict = decide("16-bit-products-accumulate-in-float32", device=torch.device(device))
    assert verdict.kind == ("holds" if device == "cpu" else "holds when ...")
    assert "16384 ones summed by a product give 16384 and 16384" in verdict.why


def test_the_switches_that_are_on_are_named(switch):
    switch(torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False)
    assert pytorch._reduced_precision_switches() == ["allow_fp16_reduced_precision_reduction"]


def test_a_gpu_with_the_units_leaves_is_bf16_supported_to_what_others_report():
    verdict = decide("is-bf16-supported-means-native")
    assert verdict.kind == "false" and verdict.evidence.startswith("reported: [output of a T4](")
    assert pytorch.bf16_supported_on((8, 0), says=True)[0] == NOT_RECORDED
    kind, why = pytorch.bf16_supported_on((7, 5), says=True)
    assert kind == "false" and "says True on compute capability 7.5" in why
    assert pytorch.bf16_supported_on((7, 5), says=False)[0] == "holds"


# Training: counted and trained.


@pytest.mark.parametrize("device", DEVICES)
def test_what_autocast_stores(device):
    dtypes = training._dtypes(torch.device(device))
    assert dtypes == {"weights": "float32", "gradients": "float32", "activations": "float16"}
    assert (
        "weights are float32, a product's output is float16"
        in settled("mixed-precision-stores-16-bit-weights").why
    )


@pytest.mark.parametrize(
    ("precision", "parts"),
    [("32-true", (4, 4, 8)), ("bf16-mixed", (4, 4, 8)), ("bf16-true", (2, 2, 4))],
)
def test_bytes_of_a_parameter_under_adam(precision, parts):
    counted = training._bytes_per_parameter(precision, CPU)
    assert counted == pytest.approx(parts, abs=0.02)


def test_the_sum_of_bytes_is_in_the_reason():
    assert "4 + 4 + 8 bytes in float32 and 4 + 4 + 8 in mixed" in settled("twice-the-model").why


def test_activations_grow_with_the_batch_and_parameters_do_not():
    (one, count), (four, same) = (training._activation_bytes(batch, CPU) for batch in (1, 4))
    assert count == same and 3 < four / one <= 4
    shares = re.search(
        r"are (\d+)% at batch 1 and (\d+)% at batch 64", settled("activations-dominate-memory").why
    )
    assert int(shares[1]) == round(100 * one / (one + 16 * count)) < 50 < int(shares[2])


def test_the_master_copy_s_reason_counts_what_was_rounded_away():
    why = settled("master-copy-is-needed").why
    small, large = re.findall(r"([+-]\d\.\d{3}) at a rate of \S+, where (\d+)% of updates", why)
    assert float(small[0]) > 0.2 and int(small[1]) > 80
    assert abs(float(large[0])) < 0.02 and int(large[1]) < 60


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_of_rare_labels_is_below_float16_and_a_scale_lifts_it(device):
    chosen = torch.device(device)
    exact = training._rare_labels(chosen, torch.float32)
    assert (exact != 0).float().mean() > 0.99
    assert training._zeros(chosen, torch.float16) == 1.0
    assert training._zeros(chosen, torch.float16, scale=65536.0) < 0.01
    lifted = training._rare_labels(chosen, torch.float16, scale=65536.0) / 65536
    torch.testing.assert_close(lifted, exact, rtol=0.05, atol=2e-8)


def test_the_reasons_about_loss_scaling_name_both_cases():
    why = settled("fp16-needs-loss-scaling").why
    assert "a mean over 512 x 4096 rare labels loses 100%" in why and "65536 it loses 0%." in why
    gap = float(re.search(r"ends ([+-]\d\.\d{3})", why)[1])
    assert abs(gap) < 0.02
    assert (
        "float16 loses 100% of the weight gradients, towards rare labels, bfloat16 loses 0%"
        in settled("bf16-needs-no-loss-scaling").why
    )


# What would decide otherwise: a claim that two cases split holds if both hold, and not if neither.


@pytest.mark.parametrize(("activations", "kind"), [(10**9, "holds"), (10, "false")])
def test_activations_that_always_or_never_dominate(monkeypatch, activations, kind):
    monkeypatch.setattr(training, "_activation_bytes", lambda batch, device: (activations, 1000))
    assert decide("activations-dominate-memory").kind == kind


def trained(**losses):
    """Stands for `_train`, with a final loss for full and for lower precision."""

    def train(precision, device, **settings):
        loss = losses["full" if precision == "32-true" else "lower"]
        return SimpleNamespace(loss=loss, updates_lost=[(0, 0.5)])

    return train


@pytest.mark.parametrize(
    ("lower", "kind"), [(2.5, "holds"), (2.06, "holds"), (2.04, "false"), (1.0, "false")]
)
def test_a_master_copy_that_is_always_or_never_missed(monkeypatch, lower, kind):
    monkeypatch.setattr(training, "_train", trained(full=2.0, lower=lower))
    assert decide("master-copy-is-needed").kind == kind


@pytest.mark.parametrize(
    ("lower", "lost", "lost_when_scaled", "kind"),
    [
        (2.5, 1.0, 0.0, "holds"),
        (2.0, 0.0, 0.0, "false"),
        (2.0, 1.0, 1.0, "false"),  # the scale is no cure, so it is not what was missing
        (2.5, 0.0, 0.0, "holds when ..."),
    ],
)
def test_loss_scaling_that_is_always_or_never_missed(
    monkeypatch, lower, lost, lost_when_scaled, kind
):
    def zeros(device, dtype, *, scale=1.0):
        return lost if scale == 1.0 else lost_when_scaled

    monkeypatch.setattr(training, "_train", trained(full=2.0, lower=lower))
    monkeypatch.setattr(training, "_zeros", zeros)
    assert decide("fp16-needs-loss-scaling").kind == kind


@pytest.mark.parametrize(
    ("fp16", "bf16", "kind"), [(1.0, 0.0, "holds"), (1.0, 0.1, "false"), (0.0, 0.0, "false")]
)
def test_bfloat16_is_held_to_where_float16_fails(monkeypatch, fp16, bf16, kind):
    lost = {torch.float16: fp16, torch.bfloat16: bf16}
    monkeypatch.setattr(training, "_zeros", lambda device, dtype: lost[dtype])
    assert decide("bf16-needs-no-loss-scaling").kind == kind


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float16, "holds"), (torch.bfloat16, "false")])
def test_one_default_dtype_for_all_devices(monkeypatch, dtype, kind):
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: dtype)
    assert decide("autocast-means-float16").kind == kind


def test_a_sum_that_does_not_stop_anywhere(monkeypatch):
    ones = torch.ones(1000)
    monkeypatch.setattr(torch, "ones", lambda count, dtype: ones)
    assert decide("bf16-sums-stop-at-256").kind == "false"


# Records of speed.


def throughput(rates):
    """A record of tokens a second, by precision and mode."""
    rows = [
        (
            {"precision": name, "mode": mode, "vocabulary": 50257},
            {"tokens": 1000, "seconds": [1e9, 1000 / rate, 1e-9]},
        )
        for name, by_mode in rates.items()
        for mode, rate in by_mode.items()
    ]
    return a_record("gpt2_throughput", *rows)


def both(eager, compiled):
    return {"eager": eager, "compiled": compiled}


BF16, FP16 = "bf16-mixed", "16-mixed"


@pytest.mark.parametrize(
    ("rates", "kind"),
    [
        ({"32-true": both(10, 10), "tf32": both(15, 15), BF16: both(30, 40)}, "holds"),
        ({"32-true": both(10, 10), "tf32": both(10, 10), BF16: both(20, 40)}, "holds"),
        ({"32-true": both(10, 10), "tf32": both(20, 20), BF16: both(30, 30)}, "holds when ..."),
        ({"32-true": both(10, 10), "tf32": both(20, 20), BF16: both(80, 80)}, "holds when ..."),
        ({"32-true": both(10, 10), "tf32": both(10, 10), BF16: both(41, 50)}, "false"),
        ({"32-true": both(10, 10), "tf32": both(10, 10), BF16: both(19, 12)}, "false"),
        ({"32-true": both(10, 10), "tf32": both(10, 10), FP16: both(19, 12)}, "false"),
        ({"32-true": both(10, 10), "tf32": both(10, 10), "bf16-true": both(30, 30)}, NOT_RECORDED),
        ({"32-true": both(10, 10), BF16: both(30, 30)}, NOT_RECORDED),
        ({"tf32": both(10, 10), BF16: both(30, 30)}, NOT_RECORDED),
    ],
)
def test_two_to_four_times_faster_by_the_record(rates, kind):
    verdict = decide("two-to-four-times-faster", throughput(rates))
    assert verdict.kind == kind, verdict.why
    assert verdict.evidence.startswith("none" if kind == NOT_RECORDED else "recorded on NVIDIA")


def test_the_speed_ups_over_ieee_and_over_tf32_are_told_apart():
    record = throughput({"32-true": both(10, 20), "tf32": both(20, 40), BF16: both(60, 100)})
    why = decide("two-to-four-times-faster", record).why
    assert "5.0 to 6.0 times as fast as in float32, and 2.5 to 3.0 times as fast as in TF32" in why


@pytest.mark.parametrize(
    ("rates", "kind"),
    [
        ({"32-true": both(10, 10), BF16: both(20, 30)}, "holds"),
        ({"32-true": both(10, 10), BF16: both(19.9, 30)}, "holds when ..."),
        ({"32-true": both(10, 10), BF16: both(19, 19)}, "false"),
        ({"32-true": {"eager": 10}, BF16: {"compiled": 30}}, NOT_RECORDED),
        ({"32-true": both(10, 10), FP16: both(30, 30)}, NOT_RECORDED),
    ],
)
def test_twice_the_tokens_by_the_record(rates, kind):
    assert decide("gpt2-twice-the-tokens", throughput(rates)).kind == kind


def test_a_rate_is_of_one_vocabulary():
    record = throughput({"32-true": both(10, 10), BF16: both(30, 30)})
    for row in record.cases:
        row["case"]["vocabulary"] += 47 * (row["case"]["precision"] == "bf16-mixed")
    assert decide("gpt2-twice-the-tokens", record).kind == NOT_RECORDED


# Records of memory.


def memory(*, full, mixed, **others):
    """A record of peaks by batch, in GB; None is a case that ran out of memory."""
    named = {"32-true": full, "bf16-mixed": mixed, **others}

    def results(peak):
        if isinstance(peak, float | int):
            return {"peak": peak * 10**9, "memory": {}}
        return peak or "out of memory"

    rows = [
        (
            {"precision": precision, "batch": batch},
            results(peak),
        )
        for precision, peaks in named.items()
        for batch, peak in peaks.items()
    ]
    return a_record("gpt2_memory", *rows)


@pytest.mark.parametrize(
    ("name", "mixed", "kind"),
    [
        ("memory-halves", {1: 5.0, 2: 8.0}, "holds"),
        ("memory-halves", {1: 5.5, 2: 8.8}, "holds"),
        ("memory-halves", {1: 5.6, 2: 8.0}, "holds when ..."),
        ("memory-halves", {1: 5.6, 2: 9.0}, "false"),
        ("memory-halves", {1: None, 2: None}, NOT_RECORDED),
        ("memory-halves", {4: 5.0}, NOT_RECORDED),
        ("gpt2-40-percent-less-memory", {1: 6.0, 2: 9.6}, "holds"),
        ("gpt2-40-percent-less-memory", {1: 6.1, 2: 9.6}, "holds when ..."),
        ("gpt2-40-percent-less-memory", {1: 6.1, 2: 9.7}, "false"),
    ],
)
def test_shares_of_memory_by_the_record(name, mixed, kind):
    record = memory(full={1: 10.0, 2: 16.0, 8: None}, mixed=mixed, **{"bf16-true": {1: 1.0}})
    verdict = decide(name, record)
    assert verdict.kind == kind, verdict.why


def test_the_share_is_of_float32_s_peak_at_the_same_batch():
    record = memory(full={1: 10.0, 2: 20.0}, mixed={1: 7.0, 2: 11.0})
    assert "takes 55% to 70% of float32's memory" in decide("memory-halves", record).why


@pytest.mark.parametrize(
    ("full", "mixed", "kind", "said"),
    [
        ({1: 10, 2: 16}, {2: 9, 4: 16}, "holds", "from batch 1, 2 of 1, 2"),
        ({1: 10, 2: 16}, {2: 11, 4: 16}, "holds when ...", "from batch 2 of 1, 2"),
        ({1: 10, 2: 16}, {2: 11, 4: None}, "false", "from batch none of 1, 2"),
        ({1: 10, 2: 16}, {2: 9}, "holds", "from batch 1 of 1"),
        ({1: 10, 2: None}, {2: 9, 4: 12}, "holds", "from batch 1 of 1"),
        ({1: 10, 2: 16}, {2: 9, 4: "failed: no kernel"}, "holds", "from batch 1 of 1"),
        ({1: 10, 2: 16}, {1: 9}, NOT_RECORDED, "no batch in float32"),
        ({}, {2: 9, 4: 12}, NOT_RECORDED, "no batch in float32"),
    ],
)
def test_twice_the_batch_by_the_record(full, mixed, kind, said):
    verdict = decide("twice-the-batch", memory(full=full, mixed=mixed))
    assert verdict.kind == kind and said in verdict.why


def test_a_peak_that_nobody_counted_decides_nothing():
    record = memory(full={1: 10}, mixed={1: 5, 2: 9})
    for row in record.cases:
        row["results"]["peak"] = None
    for name in ("memory-halves", "twice-the-batch"):
        assert decide(name, record).kind == NOT_RECORDED


# Records of quality.


def quality(full, mixed, *, other=None):
    named = {"32-true": full, "bf16-mixed": mixed, "16-mixed": other or full}
    rows = [
        ({"precision": precision, "seed": seed}, {"validation_loss": loss, "losses": []})
        for precision, losses in named.items()
        for seed, loss in enumerate(losses)
    ]
    return a_record("bf16_pairs", *rows)


FULL = [2.0, 2.2, 1.8, 2.1, 1.9, 2.0, 2.05, 1.95]


def shifted(by, noise=0.0):
    return [loss + by + noise * (-1) ** seed for seed, loss in enumerate(FULL)]


@pytest.mark.parametrize(
    ("mixed", "kind"),
    [
        (shifted(0.001, 0.001), "holds"),
        (shifted(-0.001, 0.001), "holds"),
        (shifted(0.05, 0.001), "false"),
        (shifted(-0.05, 0.001), "false"),
        (shifted(0.0, 0.05), NOT_RECORDED),
        (shifted(0.006, 0.002), NOT_RECORDED),
        (shifted(-0.006, 0.002), NOT_RECORDED),
    ],
)
def test_quality_is_what_the_interval_says(mixed, kind):
    verdict = decide("quality-is-kept", quality(FULL, mixed, other=shifted(1.0)))
    assert verdict.kind == kind, verdict.why
    assert "Over 8 pairs of seeds" in verdict.why


def test_without_a_record_the_chapters_short_pairs_decide_and_say_what_they_are(monkeypatch):
    mixed = shifted(0.001, 0.001)
    pairs = PairedDifference(
        name="bf16-mixed", baseline="32-true", values=tuple(mixed), baseline_values=tuple(FULL)
    )
    asked = []

    def short_runs(precisions, *, device):
        asked.append(precisions)
        return SimpleNamespace(difference=lambda name: pairs)

    monkeypatch.setattr(case_study, "short_runs", short_runs)
    verdict = decide("quality-is-kept")
    assert asked == [["32-true", "bf16-mixed"]]
    assert verdict.kind == "holds when ..." and "50 steps, bfloat16" in verdict.why
    pairs = replace(pairs, values=tuple(shifted(0.05, 0.001)))
    assert decide("quality-is-kept").kind == "false"
    pairs = replace(pairs, values=tuple(shifted(0.006, 0.002)))
    assert decide("quality-is-kept").kind == NOT_RECORDED


def test_quality_states_the_interval_and_its_power():
    mixed = shifted(0.0, 0.002)
    pairs = PairedDifference(
        name="bf16-mixed", baseline="32-true", values=tuple(mixed), baseline_values=tuple(FULL)
    )
    low, high = pairs.relative_interval
    why = decide("quality-is-kept", quality(FULL, mixed)).why
    assert f"{low:+.2%} to {high:+.2%} (95% confidence)" in why
    assert f"a difference of {pairs.detectable():.2%} four times in five" in why


def test_seeds_are_paired_by_number_and_not_by_place():
    record = quality(FULL, shifted(0.001, 0.0005))
    record.cases.reverse()
    record.cases[8:16] = record.cases[8:16][::-1]
    assert decide("quality-is-kept", record).kind == "holds"


def test_a_run_that_diverges_in_16_bits_alone_is_not_kept_quality():
    mixed = shifted(0.0, 0.001)
    verdict = decide("quality-is-kept", quality(FULL, [None, *mixed[1:]]))
    assert verdict.kind == "false" and "diverged" in verdict.why
    neither = decide("quality-is-kept", quality([None, *FULL[1:]], [None, *mixed[1:]]))
    assert neither.kind == "holds" and "Over 7 pairs" in neither.why


@pytest.mark.parametrize("seeds", [0, 1])
def test_fewer_than_two_pairs_say_nothing(seeds):
    verdict = decide("quality-is-kept", quality(FULL[:seeds], shifted(0.0)[:2]))
    assert verdict.kind == NOT_RECORDED and f"{seeds} pairs of seeds" in verdict.why


# The data sheet of an H100.


def test_the_stated_peak_of_an_h100_is_twice_the_dense_one():
    verdict = decide("h100-does-1979-tflops")
    dense = device_facts.dense_peak("NVIDIA H100 80GB HBM3", "bfloat16")
    assert math.isclose(2 * dense, 1979e12)
    assert verdict.kind == "false" and "dense it is 989.5 (989.4 " in verdict.why
    half_of_1513 = device_facts.dense_peak("NVIDIA H100 PCIe", "bfloat16")
    assert math.isclose(2 * half_of_1513, 1513e12) and "on PCIe 756.5" in verdict.why
    tensor_cores, operations, hertz = 4 * 132, 2 * 512, 1.83e9
    assert math.isclose(tensor_cores * operations * hertz, 989.4e12, rel_tol=1e-4)
    assert verdict.evidence == "NVIDIA's data sheet"


@pytest.mark.parametrize(("reached", "kind"), [(1979e12, "holds"), (1978e12, "false")])
def test_a_record_of_an_h100_overrules_its_data_sheet(reached, kind):
    row = {"flops": int(reached), "seconds": [0.1, 1.0, 8.0]}
    fp8 = {"flops": 10**17, "seconds": [1.0]}
    case = {"m": 8, "k": 8, "n": 8}
    record = a_record(
        "matmul_ladder",
        ({"format": "bfloat16", **case}, row),
        ({"format": "bfloat16", **case}, {"flops": 10, "seconds": [1.0]}),
        ({"format": "bfloat16", **case}, "out of memory"),
        ({"format": "float8_e4m3fn", **case}, fp8),
    )
    verdict = decide("h100-does-1979-tflops", record)
    assert verdict.kind == kind and f"reached {reached / 1e12:.0f};" in verdict.why
    assert verdict.evidence == "recorded on NVIDIA H100 80GB HBM3, 2026-11-25"


@pytest.mark.parametrize(
    "device", ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"]
)
def test_a_record_of_another_gpu_does_not_judge_an_h100(device):
    other = replace(a_record("matmul_ladder"), provenance=replace(GPU, device=device))
    assert decide("h100-does-1979-tflops", other).evidence == "NVIDIA's data sheet"


# Eight and four bits.


def test_fp8_needs_a_scale_for_each_operand_in_place_of_a_loss_scale():
    verdict = decide("fp8-needs-no-loss-scaling")
    assert verdict.kind == "holds when ..." and verdict.evidence == base.EXACT
    assert "makes 100% with no scale and 0% with a scale" in verdict.why


@pytest.mark.parametrize("name", ["fp8-halves-memory", "fp8-doubles-speed"])
def test_published_figures_refute_what_is_said_of_fp8(name):
    verdict = decide(name, figures=published())
    assert verdict.kind == "false" and verdict.evidence.startswith("published: ")
    assert decide(name).kind == NOT_RECORDED


def test_a_gpu_on_which_fp8_doubles_the_speed_is_believed_first():
    rows = [
        (
            {"precision": precision, "mode": "compiled", "vocabulary": 50304},
            {"tokens": 1000, "seconds": [seconds, seconds, seconds]},
        )
        for precision, seconds in (("bf16-mixed", 1.0), ("float8_tensorwise-native", 0.4))
    ]
    verdict = decide("fp8-doubles-speed", a_record("gpt2_throughput", *rows), figures=published())
    assert verdict.kind == "holds" and "2.50 to 2.50" in verdict.why


@pytest.mark.parametrize(
    ("shift", "spread", "kind"),
    [(0.0, 0.001, "holds"), (0.03, 0.001, "false"), (0.0, 0.1, NOT_RECORDED)],
)
def test_pairs_of_runs_decide_whether_mxfp8_is_as_good(shift, spread, kind):
    rows = [
        ({"precision": precision, "seed": seed}, {"validation_loss": 2.0 + 0.1 * seed + added})
        for seed in range(13)
        for precision, added in (
            ("bf16-mixed", 0.0),
            ("mxfp8-mixed", shift + spread * (-1) ** seed),
        )
    ]
    verdict = decide("mxfp8-is-as-good-as-bf16", a_record("low_precision_pairs", *rows))
    assert verdict.kind == kind and "13 pairs" in verdict.why


@pytest.mark.parametrize(
    ("name", "counted", "said"),
    [
        ("mxfp8-is-as-good-as-bf16", "2 figures, 1 source", "1 of 2 published pairs"),
        ("nvfp4-trains-as-well-as-fp8", "5 figures, 2 sources", "1 of 5 published pairs"),
    ],
)
def test_published_pairs_decide_of_fewer_bits_without_a_record(name, counted, said):
    verdict = decide(name, figures=published())
    assert verdict.kind == "holds when ..." and said in verdict.why
    assert verdict.evidence == f"published: {counted}"


@pytest.mark.parametrize(
    ("losses", "kind"),
    [((3.0, 3.009), "holds"), ((3.0, 3.01), "holds when ..."), ((2.99, 3.01), "false")],
)
def test_a_published_loss_may_lie_on_either_side_by_the_margin(losses, kind):
    like = published(claim="quality-0.1-0.3-percent").that(lambda f: f.precision_b == "MXFP8")
    rows = [
        replace(like.rows[0], value_a=3.0, value_b=loss, ratio=round(loss / 3.0, 4))
        for loss in losses
    ]
    tf32 = replace(rows[0], precision_a="tf32", value_b=6.0, ratio=2.0)
    verdict = decide("mxfp8-is-as-good-as-bf16", figures=Figures((*rows, tf32)))
    assert verdict.kind == kind, verdict.why


def test_a_record_without_fp8_leaves_nvfp4_open():
    rows = [({"precision": "nvfp4-mixed", "seed": s}, {"validation_loss": 2.0}) for s in range(3)]
    verdict = decide("nvfp4-trains-as-well-as-fp8", a_record("low_precision_pairs", *rows))
    assert verdict.kind == NOT_RECORDED and "no two seeds" in verdict.why


def test_a_run_that_diverges_in_four_bits_alone_is_not_as_good():
    rows = [
        ({"precision": precision, "seed": seed}, {"validation_loss": loss})
        for precision, losses in (
            ("float8_tensorwise-mixed", [2.0, 2.1, 2.2]),
            ("nvfp4-mixed", [2.0, None, 2.2]),
        )
        for seed, loss in enumerate(losses)
    ]
    verdict = decide("nvfp4-trains-as-well-as-fp8", a_record("low_precision_pairs", *rows))
    assert verdict.kind == "false" and "nvfp4-mixed diverged" in verdict.why
