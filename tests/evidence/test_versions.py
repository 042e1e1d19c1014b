"""What a release of torch decides: the probes, the records of the releases, the tables."""

import json
import re
import subprocess
import tomllib
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mpbook.__main__ import main
from mpbook.evidence import records, versions
from mpbook.evidence.versions import PROBES, Probe, UnavailableError, base, recording, tables

ROOT = Path(__file__).parents[2]
ON_RECORD = versions.load()


def answer_a() -> str:
    return "a"


def answer_b() -> str:
    return answer_a().replace("a", "b")


def cannot_answer() -> str:
    raise UnavailableError("no compiler")


def failing_probe() -> str:
    raise SystemExit("something broke")


A, B = Probe("a", "Is `x` < 1?", answer_a, "Clamp."), Probe("b", "And?", answer_b, "Wait.")
LACKING = Probe("lacking", "Compiled?", cannot_answer, "Install one.")


def said(**answers_of):
    """Records of releases 1.1, 1.2, ... in which a probe gave these answers in turn."""
    here = records.Provenance.here(torch.device("cpu"))
    found = {}
    for number in range(len(next(iter(answers_of.values())))):
        cases = [
            {"case": {"probe": name}, "status": "measured", "seconds": 0.0,
             "results": {"answer": answers[number]}}
            for name, answers in answers_of.items() if answers[number]
        ]  # fmt: skip
        found[f"1.{number}"] = records.Record(f"torch-1.{number}", {}, cases, here, 0.0)
    return found


# The records.


def test_the_readme_the_package_and_the_records_agree_on_the_supported_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = next(d for d in project["dependencies"] if d.startswith("torch"))
    lowest, beyond = map(int, re.fullmatch(r"torch>=2\.(\d+),<2\.(\d+)", wanted).groups())
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"torch 2.{lowest} to 2.{beyond - 1}" in readme
    assert [base.order(v)[:2] for v in ON_RECORD] == [(2, n) for n in range(lowest, beyond)]


@pytest.mark.parametrize("release", ON_RECORD)
def test_every_probe_was_asked_as_it_stands_today(release):
    asked = {row["case"]["probe"]: row for row in ON_RECORD[release].cases}
    assert set(asked) == set(PROBES)
    assert {row["status"] for row in asked.values()} == {"measured"}
    other = [p.id for p in PROBES.values() if asked[p.id]["case"]["source"] != p.digest]
    assert other == [], "the probe was changed: ask again, see CONTRIBUTING"


@pytest.mark.parametrize("release", ON_RECORD)
def test_a_record_says_where_it_is_from(release):
    at = ON_RECORD[release].provenance
    assert versions.release(at.torch_version) == release
    assert at.device_type == "cpu" and at.python and at.platform and at.started
    assert re.fullmatch(r"[0-9a-f]{40}", at.commit), "recorded from files that were not committed"


@pytest.mark.parametrize("edit", [('"NaN"', '"448"'), ('"measured"', '"failed: x"')])
def test_an_edited_record_is_refused(tmp_path, edit):
    path = next(versions.RECORDED.glob("torch-*.json"))
    text = path.read_text("utf-8")
    assert edit[0] in text
    (tmp_path / path.name).write_text(text.replace(*edit, 1), "utf-8")
    with pytest.raises(ValueError, match="digest does not fit"):
        versions.load(tmp_path)


def test_a_record_of_another_release_than_it_says_is_refused(tmp_path):
    record = next(iter(ON_RECORD.values()))
    records.save(replace(record, config={"torch": "9.9.9"}), tmp_path)
    with pytest.raises(ValueError, match="measured with torch"):
        versions.load(tmp_path)


def test_two_records_of_one_release_are_refused(tmp_path):
    record = next(iter(ON_RECORD.values()))
    for device in ("this", "that"):
        there = replace(record.provenance, device=device)
        records.save(replace(record, provenance=there), tmp_path)
    with pytest.raises(ValueError, match="the second of torch"):
        versions.load(tmp_path)


def of_release(version, **changes):
    """A record of a release, as if it had been asked."""
    record = next(iter(ON_RECORD.values()))
    there = replace(record.provenance, torch_version=f"{version}+cpu")
    named = {"experiment": f"torch-{version}", "config": {"torch": version}, **changes}
    return replace(record, provenance=there, **named)


def test_a_record_under_another_name_is_refused(tmp_path):
    records.save(of_release("1.2.3", experiment="torch-9.9.9"), tmp_path)
    with pytest.raises(ValueError, match=r"measured with torch 1\.2\.3"):
        versions.load(tmp_path)


def test_records_come_the_oldest_release_first(tmp_path):
    for version in ("1.11.0", "1.9.1", "1.10.2"):
        records.save(of_release(version), tmp_path)
    assert list(versions.load(tmp_path)) == ["1.9.1", "1.10.2", "1.11.0"]


def test_releases_are_sorted_as_numbers_are():
    assert sorted(["2.13.0", "2.9.1", "2.11.0+cpu"], key=base.order)[0] == "2.9.1"


# The probes, here.


@pytest.mark.parametrize("probe", PROBES.values(), ids=lambda probe: probe.id)
def test_the_torch_at_hand_answers_as_its_release_did(probe):
    """The answer depends on the release alone; a release that nobody asked yet is no failure."""
    found = versions.answer(probe)
    if found.startswith("not here: "):
        pytest.skip(found)
    assert found and found == found.strip() and "\n" not in found
    if versions.release() not in ON_RECORD:
        pytest.skip(f"no record of torch {versions.release()} to compare with")
    assert found == recording.answers(probe, ON_RECORD)[versions.release()]


def test_probes_leave_the_switches_as_they_were():
    def state():
        of = torch.backends
        return of.fp32_precision, of.cuda.matmul.fp32_precision, of.cudnn.conv.fp32_precision

    before = state()
    for name in ("tf32-switches-mixed", "fp32-precision-convolutions"):
        versions.answer(PROBES[name])
    assert state() == before


def test_a_process_that_fails_says_nothing_of_torch(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr(failing_probe, "__module__", "test_versions")
    with pytest.raises(UnavailableError, match="something broke"):
        base.in_fresh_process(failing_probe)


def test_a_process_of_its_own_has_none_of_torchs_switches_and_its_last_line_counts(monkeypatch):
    asked = {}

    def run(command, *, env, **_options):
        asked.update(env)
        return subprocess.CompletedProcess(command, 0, "a word of a library\nyes\n", "")

    monkeypatch.setattr(base.subprocess, "run", run)
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setenv("ANOTHER", "kept")
    assert base.in_fresh_process(answer_a) == "yes"
    assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" not in asked and asked["ANOTHER"] == "kept"
    assert "NVIDIA_TF32_OVERRIDE" not in asked


@pytest.mark.parametrize("error", [subprocess.TimeoutExpired("python", 300), OSError("no room")])
def test_a_process_that_does_not_end_or_begin_says_nothing_of_torch(monkeypatch, error):
    def run(*_arguments, **_options):
        raise error

    monkeypatch.setattr(base.subprocess, "run", run)
    with pytest.raises(UnavailableError, match="no process of its own"):
        base.in_fresh_process(answer_a)


def warns():
    warnings.warn("torch would rather have another spelling", stacklevel=1)
    return "a"


def test_what_torch_warns_of_is_not_passed_on():
    assert versions.answer(replace(A, run=warns)) == "a"


def test_a_digest_covers_the_helpers_that_a_probe_names(monkeypatch):
    before = B.digest
    assert before != A.digest and len(before) == 12
    monkeypatch.setitem(answer_b.__globals__, "answer_a", cannot_answer)
    assert B.digest != before


def test_what_cannot_be_asked_is_said_and_kept_apart(tmp_path):
    assert versions.answer(LACKING) == "not here: no compiler"
    record = records.load(versions.record_here([A, LACKING], tmp_path))
    assert record.results(probe="a") == {"answer": "a"}
    assert record.cases[1]["status"] == "failed: not here: no compiler"
    found = {"1.0": record}
    assert recording.answers(LACKING, found) == {"1.0": "not recorded"}
    assert versions.spans(LACKING, found) == []


def test_a_recording_is_never_written_over_another(tmp_path):
    path = versions.record_here([A], tmp_path)
    assert list(versions.load(tmp_path)) == [versions.release()]
    with pytest.raises(FileExistsError):
        versions.record_here([A], tmp_path)
    assert json.loads(path.read_text("utf-8"))["config"] == {"torch": versions.release()}


# The tables.


def test_equal_neighbours_are_one_span():
    found = said(a=["NaN", "NaN", "448", "NaN"])
    assert [(s.first, s.last, s.count, s.answer) for s in versions.spans(A, found)] == [
        ("1.0", "1.1", 2, "NaN"), ("1.2", "1.2", 1, "448"), ("1.3", "1.3", 1, "NaN"),
    ]  # fmt: skip


def test_a_release_that_was_not_asked_splits_no_span():
    assert [s.count for s in versions.spans(A, said(a=["x", "", "x"], b=["1", "1", "1"]))] == [2]


def test_the_timeline_joins_cells_and_marks_changes():
    shown = tables.Timeline([A], said(a=["<0>", "<0>", "1"]))._repr_html_()
    assert '<td colspan="2">&lt;0&gt;</td><td colspan="1" class="mp-changed">1</td>' in shown
    assert "Is <code>x</code> &lt; 1?" in shown and "<td>Clamp.</td>" in shown


def test_the_name_of_an_error_may_break_and_is_no_markup():
    shown = tables.Timeline([A], said(a=["RuntimeError", "<b>"]))._repr_html_()
    assert "Runtime<wbr>Error" in shown and "&lt;b&gt;" in shown


def test_the_timeline_has_a_line_for_each_behaviour_in_a_terminal():
    lines = repr(tables.Timeline([A, B], said(a=["p", "q"], b=["r", "r"]))).splitlines()
    assert [line.split() for line in lines[2:]] == [["a", "p", "q"], ["b", "r", "r"]]


def test_here_names_the_releases_that_answered_the_same():
    found = said(a=["x", "x", "y", "x"], b=["1", "1", "1", "1"])
    table = tables.Here([A, B, LACKING], found, {"a": "x", "b": "2", "lacking": "not here: z"})
    assert [row[2] for row in table.rows] == ["1.0 to 1.1, 1.3", "none", ""]


def test_an_unknown_behaviour_is_refused():
    for ask in (versions.timeline, versions.here):
        with pytest.raises(ValueError, match='"nothing": expected one of e4m3fn-overflow'):
            ask("nothing")


def test_ids_are_unique_and_every_probe_asks_and_advises():
    assert len(PROBES) == len({p.question for p in PROBES.values()})
    for probe in PROBES.values():
        assert re.fullmatch(r"[a-z0-9-]+", probe.id) and "?" in probe.question and probe.advice


# The command.


def test_the_command_shows_and_records(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(versions, "PROBES", {"a": A})
    assert main(["versions"]) == 0
    assert f"here: torch {versions.release()}" in capsys.readouterr().out
    assert main(["versions", "--out", str(tmp_path)]) == 0
    assert list(versions.load(tmp_path)) == [versions.release()]
    assert main(["versions", "--out", str(tmp_path)]) == 1
    assert "there is a record already" in capsys.readouterr().err
