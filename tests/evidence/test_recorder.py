"""`recorder` and its commands: all that is missing, each saved at once, none overwritten."""

import json
import os
import re
from dataclasses import dataclass, replace

import pytest
import torch
from visits import needs_compiler

from mpbook import __main__ as command
from mpbook import device as devices
from mpbook.cost.measure import Spread
from mpbook.evidence import recorder, records
from mpbook.evidence.experiments import EXPERIMENTS, Experiment

CPU = torch.device("cpu")
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@dataclass(frozen=True)
class Config:
    cases: tuple[str, ...] = ("good", "bad", "last")


def measure(config, case, device):
    if case["name"] == "bad":
        raise RuntimeError("no kernel\nfor this")
    if case["name"] == "large":
        raise torch.OutOfMemoryError("CUDA out of memory")
    return {"device": device.type, "pair": (1, 2.5)}


def an_experiment(name="first", *cases, predicted_s=1.0, measure=measure):
    return Experiment(
        name=name,
        question="Does it run?",
        config=lambda device: Config(cases or ("good", "bad", "last")),
        cases=lambda config, device: [{"name": c} for c in config.cases],
        measure=measure,
        predicted_s={"cpu": predicted_s, "cuda": predicted_s},
    )


@pytest.fixture
def two(monkeypatch):
    experiments = {name: an_experiment(name, "good", "last") for name in ("first", "second")}
    monkeypatch.setattr(recorder, "EXPERIMENTS", experiments)
    monkeypatch.setattr(recorder, "slowness", lambda device: 1.0)
    return experiments


def quiet(**options):
    return recorder.record(device="cpu", say=lambda line: None, **options)


def counting(seen, *, fail=(), stop=()):
    """Measures each case and notes its name; some fail, some end the process."""

    def measure(config, case, device):
        seen.append(case["name"])
        if case["name"] in stop:
            raise KeyboardInterrupt
        if case["name"] in fail:
            raise RuntimeError("no kernel")
        return {"measured": case["name"]}

    return measure


@pytest.fixture(autouse=True)
def no_records_yet(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "RECORDED", tmp_path / "package")


def test_one_failing_case_does_not_take_the_others_along():
    record = recorder.run(an_experiment("x", "large", "bad", "good"), CPU, say=lambda line: None)
    assert [row["status"] for row in record.cases] == [
        "out of memory",
        "failed: RuntimeError: no kernel",
        "measured",
    ]
    assert [row["case"]["name"] for row in record.cases] == ["large", "bad", "good"]
    assert record.cases[0]["results"] == record.cases[1]["results"] == {}


def test_an_error_without_words_is_recorded_too():
    def fail(config, case, device):
        raise ValueError

    record = recorder.run(an_experiment("x", "a", measure=fail), CPU, say=lambda line: None)
    assert record.cases[0]["status"] == "failed: ValueError: "


def test_a_record_holds_plain_values_as_json_gives_them_back(tmp_path):
    record = recorder.run(an_experiment(), CPU, say=lambda line: None)
    assert record.config == {"cases": ["good", "bad", "last"]}
    assert record.results(name="good") == {"device": "cpu", "pair": [1, 2.5]}
    assert records.load(records.save(record, tmp_path)) == record


def test_an_interrupt_is_no_result(two, tmp_path, monkeypatch):
    def interrupt(config, case, device):
        raise KeyboardInterrupt

    two["second"] = an_experiment("second", measure=interrupt)
    with pytest.raises(KeyboardInterrupt):
        recorder.record(out=tmp_path / "out", device="cpu", say=lambda line: None)
    assert [p.name.split("--")[0] for p in (tmp_path / "out").iterdir()] == ["first"]

    two["second"] = an_experiment(
        "second", "good"
    )  # and the next call goes on where this one stopped
    written = recorder.record(out=tmp_path / "out", device="cpu", say=lambda line: None)
    assert [p.name.split("--")[0] for p in written] == ["second"]


def test_what_is_recorded_is_left_alone(two, tmp_path):
    out, lines = tmp_path / "out", []
    assert len(recorder.record(out=out, device="cpu", say=lines.append)) == 2
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    assert recorder.record(out=out, device="cpu", say=lines.append) == []
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_records_of_the_package_count_too(two, tmp_path):
    recorder.record(["first"], out=tmp_path / "package", device="cpu", say=lambda line: None)
    planned = recorder.plan(device="cpu", out=tmp_path / "out")
    assert [p.recorded is not None for p in planned] == [True, False]
    rows = recorder.table(planned, device="cpu").rows
    assert [row[2:] for row in rows] == [("is there", ""), ("not yet", 1.0)]


def test_what_this_machine_cannot_run_is_left_out_with_the_reason(two, tmp_path):
    two["first"] = replace(an_experiment("first"), cannot=lambda device: "it needs two GPUs")
    planned, lines = recorder.plan(device="cpu", out=tmp_path), []
    rows = recorder.table(planned, device="cpu").rows
    assert [row[2:] for row in rows] == [("not here: it needs two GPUs", ""), ("not yet", 1.0)]
    written = recorder.record(out=tmp_path, device="cpu", say=lines.append)
    assert [path.name.split("--")[0] for path in written] == ["second"]
    assert "first: left out: it needs two GPUs" in lines


def test_asking_by_name_for_what_is_there_is_an_error(two, tmp_path):
    recorder.record(["first"], out=tmp_path, device="cpu", say=lambda line: None)
    with pytest.raises(FileExistsError, match="move it away first"):
        recorder.record(["second", "first"], out=tmp_path, device="cpu", say=lambda line: None)
    assert recorder.plan(["second"], device="cpu", out=tmp_path)[0].recorded is None


def test_only_what_fits_the_budget_is_begun(two, tmp_path):
    two["first"] = an_experiment("first", "good", predicted_s=100.0)
    lines = []
    written = recorder.record(out=tmp_path, device="cpu", budget_s=50, say=lines.append)
    assert [p.name.split("--")[0] for p in written] == ["second"]
    assert re.fullmatch(r"first: left out, \d+ s of the budget are left", lines[0])


def test_time_spent_counts_against_the_budget(two, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(recorder.time, "monotonic", lambda: now[0])

    def slow(config, case, device):
        now[0] += 30
        return {"good": True}

    two["first"] = an_experiment("first", "good", "last", measure=slow)
    written = quiet(out=tmp_path, budget_s=60.5)
    assert [p.name.split("--")[0] for p in written] == ["first"]


def test_a_budget_that_ends_in_the_middle_keeps_what_was_measured(two, tmp_path, monkeypatch):
    now, seen = [0.0], []
    monkeypatch.setattr(recorder.time, "monotonic", lambda: now[0])

    def slow(config, case, device):
        now[0] += 30
        return counting(seen)(config, case, device)

    two["first"] = an_experiment("first", "a", "b", "c", measure=slow)
    lines = []
    assert recorder.record(out=tmp_path, device="cpu", budget_s=50, say=lines.append) == []
    assert seen == ["a", "b"] and "the budget has ended" in lines[-1]
    (path, _) = quiet(out=tmp_path)
    assert seen == ["a", "b", "c"]
    assert [row["case"]["name"] for row in records.load(path).cases] == ["a", "b", "c"]
    assert list(tmp_path.glob("*.cases")) == []


def test_a_killed_run_goes_on_after_its_last_case(two, tmp_path):
    seen = []
    two["first"] = an_experiment("first", "a", "b", "c", measure=counting(seen, stop="b"))
    with pytest.raises(KeyboardInterrupt):
        quiet(out=tmp_path)
    (kept,) = tmp_path.glob("first--*.cases")
    with kept.open("a") as file:
        file.write('{"case": {"name": "b"}, "sta')  # killed while it wrote
    two["first"] = an_experiment("first", "a", "b", "c", measure=counting(seen, stop="c"))
    with pytest.raises(KeyboardInterrupt):
        quiet(out=tmp_path)
    assert seen == ["a", "b", "b", "c"]
    two["first"] = an_experiment("first", "a", "b", "c", measure=counting(seen))
    path = quiet(out=tmp_path)[0]
    assert seen == ["a", "b", "b", "c", "c"]  # what came after the torn line is kept too
    assert [row["case"]["name"] for row in records.load(path).cases] == ["a", "b", "c"]


@pytest.mark.parametrize("what", ["code", "configuration"])
def test_cases_of_another_code_or_configuration_do_not_count(what, two, tmp_path, monkeypatch):
    seen = []
    two["first"] = an_experiment("first", "a", "b", measure=counting(seen, stop="b"))
    with pytest.raises(KeyboardInterrupt):
        quiet(out=tmp_path)
    cases = ["a", "b"] if what == "code" else ["a", "b", "c"]
    two["first"] = an_experiment("first", *cases, measure=counting(seen))
    if what == "code":
        monkeypatch.setattr(records, "source_digest", lambda: "another")
    quiet(out=tmp_path)
    assert seen == ["a", "b", *cases]


def test_a_record_with_failed_cases_is_not_finished(two, tmp_path):
    seen = []
    two["first"] = an_experiment("first", "a", "b", "c", measure=counting(seen, fail="b"))
    path = quiet(out=tmp_path)[0]
    planned = recorder.plan(device="cpu", out=tmp_path)
    assert (planned[0].recorded, planned[0].failed) == (None, 1)
    assert recorder.table(planned, device="cpu").rows[0][2] == "1 cases failed"

    two["first"] = an_experiment("first", "a", "b", "c", measure=counting(seen))
    assert quiet(out=tmp_path) == [path]  # what failed is tried again, and nothing else
    assert seen == ["a", "b", "c", "b"]
    assert {row["status"] for row in records.load(path).cases} == {"measured"}
    assert recorder.plan(device="cpu", out=tmp_path)[0].recorded == path


def test_out_of_memory_is_a_result(two, tmp_path):
    two["first"] = an_experiment("first", "good", "large")
    quiet(out=tmp_path)
    assert recorder.plan(device="cpu", out=tmp_path)[0].recorded is not None


def test_a_plan_reads_what_it_counts(two, tmp_path):
    path = quiet(out=tmp_path)[0]
    path.write_text(path.read_text().replace('"good"', '"nice"'))
    with pytest.raises(ValueError, match="its digest does not fit"):
        recorder.plan(device="cpu", out=tmp_path)


def test_predictions_grow_on_a_slower_device(two, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "slowness", lambda device: 40.0)
    lines = []
    assert recorder.record(out=tmp_path, device="cpu", budget_s=30, say=lines.append) == []
    assert lines[0] == "first: left out, 30 s of the budget are left"


@pytest.mark.parametrize(("seconds", "expected"), [(1e-6, 1.0), (1.0, 372.5)])
def test_slowness_is_that_of_one_product_and_never_below_1(seconds, expected, monkeypatch):
    spread = Spread((seconds,))
    monkeypatch.setattr(recorder, "time_calls", lambda *_, **options: spread)
    assert recorder.slowness(CPU) == pytest.approx(expected, rel=1e-3)


def test_a_gpu_that_answers_no_longer_ends_the_run_and_its_case_is_kept(two, tmp_path, monkeypatch):
    def refuse(device):
        raise RuntimeError("CUDA error: an illegal memory access\nand more")

    check = recorder._check_answers
    monkeypatch.setattr(recorder.torch.cuda, "synchronize", refuse)
    monkeypatch.setattr(recorder, "_check_answers", lambda device: check(torch.device("cuda")))
    seen = []
    two["first"] = an_experiment("first", "a", "b", "c", measure=counting(seen, fail="b"))
    with pytest.raises(RuntimeError, match=r"goes on after this case \(CUDA error: an illegal mem"):
        quiet(out=tmp_path)
    monkeypatch.setattr(recorder, "_check_answers", check)
    quiet(out=tmp_path)
    assert seen == ["a", "b", "c"]


def test_progress_says_what_remains(two, tmp_path):
    two["first"] = an_experiment("first")
    lines = []
    recorder.record(out=tmp_path, device="cpu", say=lines.append)
    assert lines[0] == "first: 1 of 2, about 2 s remain"
    assert "second: 2 of 2, about 1 s remain" in lines
    assert any(line.startswith("  2 of 3: bad: failed: RuntimeError") for line in lines)


def test_a_folder_that_cannot_be_written_is_known_before_anything_runs(two, tmp_path):
    (tmp_path / "file").touch()
    two["first"] = an_experiment(measure=lambda *_: pytest.fail("ran"))
    with pytest.raises(OSError, match="file"):
        recorder.record(out=tmp_path / "file" / "out", device="cpu")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match='"nothing": expected one of autocast_rules, '):
        recorder.plan(["nothing"], device="cpu")


# --- The experiments themselves -----------------------------------------------------------------


def compiles(experiment):
    """Whether one of its cases runs through `torch.compile` on a CPU."""
    cases = experiment.cases(experiment.config(CPU), CPU)
    return any(c.get("compile") or "compiled" in c.get("mode", "") for c in cases)


SMALL_ON = ["cpu", "cuda"] if os.environ.get("MPBOOK_SIZES") == "cpu" else ["cpu"]
"""Where experiments take a CPU's sizes; `make rehearse` asks a GPU for them."""


@pytest.mark.parametrize("device", SMALL_ON)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[needs_compiler] * compiles(e)) for n, e in EXPERIMENTS.items()],
)
def test_every_experiment_runs_here_and_its_record_can_be_kept(
    name, device, tmp_path, recorded_here
):
    if reason := EXPERIMENTS[name].cannot(torch.device(device)):
        pytest.skip(reason)
    record = recorded_here(name, device)
    assert {row["status"] for row in record.cases} == {"measured"}
    assert all(results for _, results in record.measured())
    assert records.load(records.save(record, tmp_path)) == record


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_configurations_are_frozen_and_cases_differ(name, kind):
    experiment, device = EXPERIMENTS[name], torch.device(kind)
    config = experiment.config(device)
    with pytest.raises(AttributeError):
        config.anything = 1
    assert config == experiment.config(device)
    cases = [json.dumps(case, sort_keys=True) for case in experiment.cases(config, device)]
    assert len(set(cases)) == len(cases) > 0
    assert experiment.predicted_s[kind] > 0
    assert experiment.name == name


@pytest.mark.parametrize("name", ["lost_weight_updates", "bf16_pairs"])
def test_a_case_measured_twice_gives_the_same_losses(name):
    experiment = EXPERIMENTS[name]
    config = experiment.config(CPU)
    for case in experiment.cases(config, CPU)[:2]:
        first, second = (experiment.measure(config, case, CPU)["losses"] for _ in range(2))
        assert first == second


# --- The command line ---------------------------------------------------------------------------


def test_record_writes_files_and_says_how_many(two, tmp_path, capsys):
    assert command.main(["record", "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert capsys.readouterr().out == f"2 records in {tmp_path}\n"
    names = sorted(p.name for p in tmp_path.glob("*.json"))
    slug = records.file_name("first", devices.name("cpu"))
    assert names[0] == slug


def test_a_dry_run_writes_nothing(two, tmp_path, capsys):
    out = tmp_path / "out"
    assert command.main(["record", "--dry-run", "--device", "cpu", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "first" in printed and "second" in printed and "Does it run?" in printed
    assert not out.exists()


def test_record_says_what_is_wrong_and_returns_1(two, tmp_path, capsys):
    assert command.main(["record", "nothing", "--out", str(tmp_path)]) == 1
    assert 'mpbook: "nothing": expected one of first, second' in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_an_error(tmp_path, capsys):
    assert command.main(["record", "--device", "cuda", "--out", str(tmp_path)]) == 1
    assert "torch sees no CUDA GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("8m", 480), ("1h", 3600)])
def test_a_budget_is_a_time(two, tmp_path, monkeypatch, text, seconds):
    given = []
    monkeypatch.setattr(recorder, "record", lambda *_, **options: given.append(options) or [])
    command.main(["record", "--budget", text, "--out", str(tmp_path), "--device", "cpu"])
    assert given[0]["budget_s"] == seconds


@pytest.mark.parametrize("text", ["", "m", "-1", "0", "8x", "inf", "nan"])
def test_a_budget_that_is_no_time_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        command.main(["record", "--budget", text])
    assert "expected a time such as 90, 90s, 8m or 1h" in capsys.readouterr().err


def test_the_doctor_lists_the_records_that_could_be_added(two, capsys):
    assert command.main(["doctor"]) == 0
    assert "not yet" in capsys.readouterr().out


@pytest.mark.parametrize("kind", DEVICES)
def test_provenance_is_that_of_the_device(kind):
    record = recorder.run(an_experiment(), torch.device(kind), say=lambda line: None)
    assert record.provenance.device_type == kind
    assert replace(record.provenance, started="") == replace(
        records.Provenance.here(torch.device(kind)), started=""
    )
