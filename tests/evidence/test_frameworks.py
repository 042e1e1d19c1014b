"""What other libraries' words do: the records, their reader, the tables, and the command."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from mpbook.__main__ import main
from mpbook.evidence import frameworks, records
from mpbook.evidence.frameworks import base, recording
from mpbook.evidence.frameworks.base import Question

ON_RECORD = frameworks.load()
NEWEST = list(ON_RECORD.values())[-1]


def fails(_folder: Path) -> dict[str, str]:
    raise RuntimeError("no such switch")


# The records.


def test_the_old_and_the_new_major_release_are_on_record() -> None:
    assert [release.split(".")[0] for release in ON_RECORD] == ["4", "5"]


@pytest.mark.parametrize("release", ON_RECORD)
def test_every_question_was_asked_as_it_stands_today(release: str) -> None:
    record = ON_RECORD[release]
    assert record.config["source"] == base.source_digest(), "ask again, see CONTRIBUTING"
    assert [row["case"] for row in record.cases] == [q.case for q in frameworks.questions()]
    assert {row["status"] for row in record.cases} == {"measured"}


@pytest.mark.parametrize("release", ON_RECORD)
def test_a_record_names_its_libraries_and_its_commit(release: str) -> None:
    record = ON_RECORD[release]
    assert record.config["transformers"] == release
    assert all(re.match(r"\d+\.\d+", record.config[name]) for name in frameworks.LIBRARIES)
    assert record.config["torch"] == record.provenance.torch_version
    assert re.fullmatch(r"[0-9a-f]{40}", record.provenance.commit), "files were not committed"


def test_an_edited_record_is_refused(tmp_path: Path) -> None:
    path = next(frameworks.RECORDED.glob("*.json"))
    text = path.read_text("utf-8")
    assert '"unchanged": 0.8' in text
    (tmp_path / path.name).write_text(text.replace('"unchanged": 0.8', '"unchanged": 0.1'), "utf-8")
    with pytest.raises(ValueError, match="digest does not fit"):
        frameworks.load(tmp_path)


def test_a_record_of_another_release_than_it_says_is_refused(tmp_path: Path) -> None:
    records.save(replace(NEWEST, config=NEWEST.config | {"transformers": "9.9.9"}), tmp_path)
    with pytest.raises(ValueError, match="measured with transformers 9"):
        frameworks.load(tmp_path)


def test_two_records_of_one_release_are_refused(tmp_path: Path) -> None:
    for device in ("this", "that"):
        there = replace(NEWEST.provenance, device=device)
        records.save(replace(NEWEST, provenance=there), tmp_path)
    with pytest.raises(ValueError, match="the second of transformers"):
        frameworks.load(tmp_path)


def test_releases_are_sorted_as_numbers_are(tmp_path: Path) -> None:
    for release in ("10.1.0", "9.1.0"):
        name = f"transformers-{release}"
        config = NEWEST.config | {"transformers": release}
        records.save(replace(NEWEST, experiment=name, config=config), tmp_path)
    assert list(frameworks.load(tmp_path)) == ["9.1.0", "10.1.0"]


# What they say: the sentences of the page.


@pytest.mark.parametrize("record", ON_RECORD.values(), ids=list(ON_RECORD))
def test_the_loaded_dtype_alone_decides_what_is_kept(record: records.Record) -> None:
    for loaded, bytes_each in (("float32", 4), ("bfloat16", 2)):
        for bf16 in (False, True):
            found = record.results(what="training", loaded=loaded, bf16=bf16)
            for part in ("parameters", "gradients", "state", "checkpoint", "optimizer.pt"):
                assert found[part] == loaded
            assert found["parameters bytes"] == bytes_each * found["count"]
            assert found["optimizer.pt bytes"] == 2 * bytes_each * found["count"]
            assert found["computes in"] == ("bfloat16" if bf16 else loaded)
            assert (found["unchanged"] > 0.5) == (loaded == "bfloat16")


def test_a_clipping_function_that_does_not_unscale_sees_the_loss_scale() -> None:
    norms = [found["norm"] for case, found in NEWEST.measured()
             if case["what"] == "clip_grad_norm_"]  # fmt: skip
    assert norms == [1.0, 1024.0]


# The tables.


def test_the_tables_have_a_row_for_each_setting() -> None:
    assert len(frameworks.two_by_two(NEWEST).rows) == len(frameworks.sizes(NEWEST).rows) == 4
    assert [row[1] for row in frameworks.sizes(NEWEST).rows] == [16, 16, 8, 8]
    words = frameworks.lightning_words(NEWEST).rows
    assert [row[0] for row in words if row[-1] == "yes"] == ["16-mixed"]
    assert frameworks.accelerate_words(NEWEST).rows[-1] == ["fp16", *["float32"] * 3]
    assert frameworks.loaded_without_dtype(ON_RECORD).rows[1] == ["bfloat16", "float32", "bfloat16"]


# Asking.


def test_a_question_that_fails_is_kept_as_failed() -> None:
    row = recording._case(Question("here", "fails", {"flag": True}, fails))
    assert row["status"] == "failed: RuntimeError: no such switch" and row["results"] == {}
    assert row["case"] == {"library": "here", "what": "fails", "flag": True}


def test_a_missing_library_is_named_by_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(recording, "version", missing)
    assert main(["frameworks"]) == 1
    assert "no transformers: in an environment of its own" in capsys.readouterr().err


def test_state_is_found_in_nested_containers_without_its_counters() -> None:
    state = {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(2)}, "more": [torch.ones(3)]}
    assert [t.numel() for t in base.tensors_in(state)] == [2, 3]


def test_an_error_is_told_by_its_name_and_first_line() -> None:
    assert base.message_of(lambda: int("x")).startswith("ValueError: invalid literal")
    assert base.message_of(lambda: None) == "no error"
