"""Checkpoints: whole or not at all, and never a way to run a stranger's code."""

import os
import pickle

import pytest
import torch

from mpbook import checkpoints


def test_what_is_saved_comes_back(tmp_path):
    path = tmp_path / "run.pt"
    checkpoints.save(path, {"weights": torch.arange(3.0), "losses": [1.5], "name": "x"})
    state = checkpoints.load(path)
    assert state["weights"].tolist() == [0, 1, 2]
    assert (state["losses"], state["name"]) == ([1.5], "x")
    assert os.listdir(tmp_path) == ["run.pt"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    checkpoints.save(path, {"step": 1})

    def half_written(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(path, {"step": 2})
    monkeypatch.undo()
    assert checkpoints.load(path)["step"] == 1
    assert os.listdir(tmp_path) == ["run.pt"]


def test_a_torn_file_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    checkpoints.save(path, {"weights": torch.randn(1000)})
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RuntimeError, match="torn, or not written by mpbook"):
            checkpoints.load(path)


def test_files_that_mpbook_did_not_write_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(RuntimeError, match="not written by this version of mpbook"):
        checkpoints.load(path)
    torch.save([1, 2], path)
    with pytest.raises(RuntimeError, match="not written by this version of mpbook"):
        checkpoints.load(path)
    with pytest.raises(RuntimeError, match="no such file"):
        checkpoints.load(tmp_path / "absent.pt")


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
        write({"mpbook_checkpoint": 1, "payload": Attack(proof)})
        with pytest.raises(RuntimeError, match="torn, or not written by mpbook"):
            checkpoints.load(path)
        assert not proof.exists()
