"""Checkpoints: whole or not at all, and never a way to run a stranger's code."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from mpbook.training import checkpoint_files

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_saved_comes_back_on_the_cpu(device, tmp_path):
    path = tmp_path / "run.pt"
    weights = torch.arange(3.0, device=device)
    checkpoint_files.save(path, {"weights": weights, "losses": [1.5], "name": "x"})
    state = checkpoint_files.load(path)
    assert state["weights"].tolist() == [0, 1, 2] and state["weights"].device.type == "cpu"
    assert (state["losses"], state["name"]) == ([1.5], "x")
    assert os.listdir(tmp_path) == ["run.pt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(error, tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    checkpoint_files.save(path, {"step": 1})

    def half_written(state, file):
        file.write(b"half")
        raise error("disk full")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(error, match="disk full"):
        checkpoint_files.save(path, {"step": 2})
    monkeypatch.undo()
    assert checkpoint_files.load(path)["step"] == 1
    assert os.listdir(tmp_path) == ["run.pt"]


def test_a_file_is_whole_before_it_is_moved_to_its_place(tmp_path, monkeypatch):
    path, moves, replace = tmp_path / "run.pt", [], os.replace

    def watched(source, target):
        moves.append((Path(source).parent, checkpoint_files.load(Path(source))["step"], target))
        assert not path.exists()
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    checkpoint_files.save(path, {"step": 3})
    assert moves == [(tmp_path, 3, path)]  # from the same folder, or it would be a copy


def test_a_torn_file_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    checkpoint_files.save(path, {"weights": torch.randn(1000)})
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RuntimeError, match="torn, or not written by mpbook"):
            checkpoint_files.load(path)


def test_files_that_mpbook_did_not_write_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(RuntimeError, match="not written by this version of mpbook"):
        checkpoint_files.load(path)
    torch.save([1, 2], path)
    with pytest.raises(RuntimeError, match="not written by this version of mpbook"):
        checkpoint_files.load(path)
    with pytest.raises(RuntimeError, match="no such file"):
        checkpoint_files.load(tmp_path / "absent.pt")


@pytest.mark.parametrize("version", [0, 1, 2, 4, None])
def test_a_checkpoint_of_another_version_is_refused(version, tmp_path):
    path = tmp_path / "run.pt"
    torch.save({"mpbook_checkpoint": version}, path)
    with pytest.raises(RuntimeError, match="not written by this version of mpbook"):
        checkpoint_files.load(path)


# What the unpickler makes of these: KeyError, IndexError, UnicodeDecodeError, struct.error.
@pytest.mark.parametrize("content", [b"hello\n", b"\x80\x02.", b"X\x01\0\0\0\xff", b"G\0"])
def test_files_that_are_no_checkpoints_at_all_are_refused(content, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match="torn, or not written by mpbook"):
        checkpoint_files.load(path)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(RuntimeError, match="torn, or not written by mpbook"):
        checkpoint_files.load(tmp_path)


class Attack:
    """Unpickling this would create the file that it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_code_from_a_file_is_run(tmp_path):
    path, proof = tmp_path / "evil.pt", tmp_path / "proof"
    for write in (
        lambda x: torch.save(x, path),
        lambda x: path.write_bytes(pickle.dumps(x, protocol=2)),
    ):
        write({"mpbook_checkpoint": 2, "payload": Attack(proof)})
        with pytest.raises(RuntimeError, match="torn, or not written by mpbook"):
            checkpoint_files.load(path)
        assert not proof.exists()
