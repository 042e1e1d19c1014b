"""`mpbook.evidence.records`: a record is whole, unedited and of this schema, or it is refused."""

import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mpbook.evidence import records
from mpbook.evidence.records import Provenance, Record

HERE = Provenance.here(torch.device("cpu"))
GPU = replace(HERE, device="NVIDIA H100 80GB HBM3", device_type="cuda", capability="9.0")


def a_record(**changes):
    cases = [
        {"case": {"n": 1}, "status": "measured", "seconds": 0.5, "results": {"s": [0.1, 1 / 3]}},
        {"case": {"n": 2}, "status": "out of memory", "seconds": 0.1, "results": {}},
    ]
    return replace(Record("ladder", {"sizes": [1, 2]}, cases, GPU, 0.6), **changes)


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    path = records.save(a_record(), tmp_path)
    assert path.name == "ladder--nvidia-h100-80gb-hbm3.json"
    assert records.load(path) == a_record()
    assert [f.name for f in tmp_path.iterdir()] == [path.name]  # nothing else is left behind


def test_its_file_is_json_with_one_line_for_each_case(tmp_path):
    path = records.save(a_record(), tmp_path)
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert content["provenance"]["device"] == "NVIDIA H100 80GB HBM3"
    assert sum('"status"' in line for line in path.read_text().splitlines()) == 2


def test_others_may_read_the_file(tmp_path):
    assert records.save(a_record(), tmp_path).stat().st_mode & 0o777 == 0o644


def test_the_folder_is_made(tmp_path):
    assert records.save(a_record(), tmp_path / "a" / "b").exists()


def test_no_record_is_overwritten(tmp_path):
    path = records.save(a_record(), tmp_path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="move it away first"):
        records.save(a_record(seconds=9.0), tmp_path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_is_refused_by_its_place(tmp_path, number):
    cases = [{"case": {}, "status": "measured", "seconds": 0.0, "results": {"loss": [1.0, number]}}]
    with pytest.raises(ValueError, match=r"record.cases\[0\].results.loss\[1\]=-?(nan|inf)"):
        records.save(a_record(cases=cases), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text.replace("0.5", "0.4"),
        lambda text: text.replace("H100", "H200"),
        lambda text: text.replace('"sizes"', '"shapes"'),
        lambda text: text.replace("out of memory", "measured"),
    ],
)
def test_an_edited_record_is_refused(tmp_path, edit):
    path = records.save(a_record(), tmp_path)
    assert edit(path.read_text()) != path.read_text()
    path.write_text(edit(path.read_text()))
    with pytest.raises(ValueError, match="edited or torn"):
        records.load(path)


def test_white_space_is_no_edit(tmp_path):
    path = records.save(a_record(), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert records.load(path) == a_record()


@pytest.mark.parametrize("kept", [0, 1, 100, -3])
def test_a_torn_record_is_refused(tmp_path, kept):
    path = records.save(a_record(), tmp_path)
    path.write_text(path.read_text()[:kept])
    with pytest.raises(ValueError, match="torn, or not JSON"):
        records.load(path)


@pytest.mark.parametrize("schema", [0, 2, "1", None])
def test_another_schema_is_refused(tmp_path, schema):
    path = records.save(a_record(), tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))
    with pytest.raises(ValueError, match="expected 1"):
        records.load(path)


@pytest.mark.parametrize("content", ["[]", "3", '"x"', "null"])
def test_json_that_is_no_record_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match="schema None, expected 1"):
        records.load(tmp_path / "x.json")


def test_a_record_without_a_part_is_refused(tmp_path):
    path = records.save(a_record(), tmp_path)
    content = json.loads(path.read_text())
    del content["digest"], content["seconds"]
    path.write_text(json.dumps({**content, "digest": records._digest(content)}))
    with pytest.raises(ValueError, match="not what save"):
        records.load(path)


def test_results_are_found_by_case():
    assert a_record().results(n=1) == {"s": [0.1, 1 / 3]}
    assert list(a_record().measured()) == [({"n": 1}, {"s": [0.1, 1 / 3]})]


@pytest.mark.parametrize(
    ("case", "words"), [({"n": 3}, "0 cases"), ({}, "2 cases"), ({"n": 2}, "out of memory")]
)
def test_results_that_are_not_there_are_an_error(case, words):
    with pytest.raises(LookupError, match=words):
        a_record().results(**case)


def test_find_takes_the_newest_of_a_gpu(tmp_path):
    old = replace(GPU, device="A", started="2026-01-01T00:00:00+00:00")
    new = replace(GPU, device="B", started="2026-02-01T00:00:00+00:00")
    for provenance in (new, old, replace(HERE, started="2027-01-01T00:00:00+00:00")):
        records.save(a_record(provenance=provenance), tmp_path)
    records.save(a_record(experiment="ladder--more", provenance=GPU), tmp_path)
    assert records.find("ladder", folders=[tmp_path]).provenance.device == "B"
    assert records.find("ladder", device="A", folders=[tmp_path]).provenance.device == "A"
    assert records.find("ladder", device=HERE.device, folders=[tmp_path]).provenance == replace(
        HERE, started="2027-01-01T00:00:00+00:00"
    )


def test_find_says_none_where_nothing_is_recorded(tmp_path):
    records.save(a_record(provenance=HERE), tmp_path)
    assert records.find("ladder", folders=[tmp_path]) is None
    assert records.find("ladder", device="C", folders=[tmp_path]) is None
    assert records.find("other", folders=[tmp_path]) is None
    assert records.find("ladder", folders=[tmp_path / "absent"]) is None


def test_find_does_not_hide_a_spoilt_record(tmp_path):
    (tmp_path / "ladder--x.json").write_text("{")
    with pytest.raises(ValueError, match="torn"):
        records.find("ladder", folders=[tmp_path])


def test_every_record_of_the_package_can_be_read():
    for path in records.RECORDED.glob("*.json"):
        record = records.load(path)
        assert path.name == record.file_name
        assert record.provenance.device_type == "cuda"


def test_a_caption_says_where_and_when():
    at = replace(GPU, started="2026-11-24T10:00:00+00:00")
    assert a_record(provenance=at).caption == "recorded on NVIDIA H100 80GB HBM3, 2026-11-24"


def test_provenance_names_device_versions_and_code():
    assert HERE.device_type == "cpu"
    assert HERE.torch_version == torch.__version__
    assert HERE.threads == torch.get_num_threads()
    assert HERE.cuda == HERE.driver == HERE.capability == ""
    assert len(HERE.source) == 16
    assert HERE.started.endswith("+00:00")


def test_the_source_digest_changes_with_a_file_and_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "a.py").write_text("1")
    first = records.source_digest()
    (tmp_path / "deeper" / "a.py").write_text("2")
    second = records.source_digest()
    (tmp_path / "deeper" / "a.py").rename(tmp_path / "deeper" / "b.py")
    assert len({first, second, records.source_digest()}) == 3


@pytest.mark.skipif(os.name != "posix", reason="writes a shell script")
def test_gpu_state_is_empty_where_nvidia_smi_fails_or_is_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_smi_id", lambda device: "0")
    monkeypatch.setenv("PATH", str(tmp_path))
    gpu = torch.device("cuda")
    assert records.gpu_state("driver_version", gpu) == ""
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho '570.1  '\n")
    script.chmod(0o755)
    assert records.gpu_state("driver_version", gpu) == "570.1"
    script.write_text("#!/bin/sh\necho no devices; exit 9\n")
    assert records.gpu_state("driver_version", gpu) == ""


@pytest.mark.skipif(os.name != "posix", reason="writes a shell script")
@pytest.mark.parametrize(("uuid", "asked"), [("0f-1", "GPU-0f-1"), ("MIG-7", "MIG-7"), (None, "3")])
def test_gpu_state_asks_for_the_gpu_that_was_chosen(uuid, asked, tmp_path, monkeypatch):
    """Not for the first one: CUDA_VISIBLE_DEVICES renumbers torch's GPUs and not nvidia-smi's."""
    properties = SimpleNamespace(uuid=uuid) if uuid else SimpleNamespace()
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    script = tmp_path / "nvidia-smi"
    script.write_text('#!/bin/sh\necho "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    said = records.gpu_state("driver_version", torch.device("cuda", 3))
    assert f"--id={asked}" in said.split()


def test_the_commit_says_whether_files_differ_from_it(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
    git("init", "--quiet")
    (tmp_path / "records.py").write_text("1")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    assert records._commit() == git("rev-parse", "HEAD")
    (tmp_path / "records.py").write_text("2")
    assert records._commit() == git("rev-parse", "HEAD") + "+changes"


def test_outside_a_repository_the_commit_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert records._commit() == "unknown"


def test_the_front_page_says_which_gpus_were_recorded():
    front = (Path(__file__).parents[2] / "book" / "index.md").read_text("utf-8")
    found = {records.load(file).provenance.device for file in records.RECORDED.glob("*.json")}
    if found:
        assert all(device in front for device in found)
    else:
        assert "no GPU has been recorded" in " ".join(front.split())
