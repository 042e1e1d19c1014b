"""A folder of a checkpoint: whole at every moment, and torn ones are refused."""

import shutil

import pytest
import torch
from one_rank import group_of_one, sharded
from torch import nn

from mpbook.training import checkpoint_files, checkpoint_folders
from mpbook.training.parallel import Ranks

STATE = {
    "model": {"weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(7)},
    "optimizer": {"state": {0: {"mean": torch.ones(2, 3).bfloat16()}}, "groups": [{"lr": 0.5}]},
    "random": [[torch.arange(4).byte(), None]],
}


@pytest.fixture(scope="module")
def one():
    """The one rank of a group."""
    with group_of_one():
        yield Ranks(engine=nn.Linear(1, 1))


def filled(path, ranks):
    state = checkpoint_folders.load(path)
    assert state["model"]["weight"].is_meta
    empty = checkpoint_folders.mapped(lambda t: torch.empty_like(t, device="cpu"), state)
    checkpoint_folders.read(path, empty, ranks)
    return empty


def test_what_is_saved_comes_back(one, tmp_path):
    path = tmp_path / "run"
    checkpoint_folders.save(path, STATE, one)
    for ranks in (one, Ranks()):  # alone too, without a warning
        back = filled(path, ranks)
        ours, theirs = (dict(checkpoint_folders.named_tensors(s)) for s in (back, STATE))
        assert list(ours) == list(theirs)
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype and ours[name].equal(tensor)
        assert back["optimizer"]["groups"] == [{"lr": 0.5}] and back["random"][0][1] is None


def test_torch_itself_reads_the_tensors_by_their_names(one, tmp_path):
    """With torch's own tool, which turns such a folder into a file."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    checkpoint_folders.save(tmp_path / "run", STATE, one)
    (inner,) = (tmp_path / "run").glob("tensors-*")
    dcp_to_torch_save(inner, tmp_path / "all.pt")
    found = torch.load(tmp_path / "all.pt")
    assert found["model.weight"].equal(STATE["model"]["weight"])


def test_shared_weights_are_saved_whole(one, tmp_path):
    module = sharded(nn.Linear(3, 2))
    checkpoint_folders.save(tmp_path / "run", {"model": module.state_dict()}, one)
    back = filled(tmp_path / "run", one)["model"]
    assert back["weight"].equal(module.weight.full_tensor())


def test_a_second_checkpoint_replaces_the_first_and_its_tensors(one, tmp_path):
    path = tmp_path / "run"
    checkpoint_folders.save(path, STATE, one)
    checkpoint_folders.save(path, {"model": {"weight": torch.zeros(3)}}, one)
    assert len(list(path.glob("tensors-*"))) == 1
    assert filled(path, one)["model"]["weight"].tolist() == [0, 0, 0]


def test_a_write_that_fails_in_the_middle_leaves_the_one_before(one, tmp_path, monkeypatch):
    path = tmp_path / "run"
    checkpoint_folders.save(path, STATE, one)

    def fails(*_):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint_files, "save", fails)
    with pytest.raises(OSError, match="disk full"):
        checkpoint_folders.save(path, {"model": {"weight": torch.zeros(3)}}, one)
    assert filled(path, one)["model"]["weight"].equal(STATE["model"]["weight"])
    monkeypatch.undo()
    checkpoint_folders.save(path, STATE, one)
    assert len(list(path.glob("tensors-*"))) == 1  # what was left over is gone


def test_a_folder_that_cannot_be_made_is_an_error(one, tmp_path):
    with pytest.raises(OSError, match="no-such"):
        checkpoint_folders.save(tmp_path / "no-such" / "run", STATE, one)


def test_a_folder_of_something_else_or_a_torn_one_is_refused(one, tmp_path):
    with pytest.raises(RuntimeError, match="no such file"):
        checkpoint_folders.load(tmp_path)
    path = tmp_path / "run"
    checkpoint_folders.save(path, STATE, one)
    (inner,) = path.glob("tensors-*")
    for file in inner.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(RuntimeError, match="torn, or not whole"):
        filled(path, one)
    shutil.rmtree(inner)
    with pytest.raises(RuntimeError, match="torn, or not whole"):
        filled(path, Ranks())


def test_a_disk_that_is_full_is_an_error_and_leaves_the_one_before(one, tmp_path, monkeypatch):
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    path = tmp_path / "run"
    checkpoint_folders.save(path, STATE, one)

    def fails(*_):
        raise OSError("no space left")

    monkeypatch.setattr(FileSystemWriter, "write_data", fails)
    with pytest.raises(OSError, match=r"cannot be written .*no space left"):
        checkpoint_folders.save(path, {"model": {"weight": torch.zeros(3)}}, one)
    assert filled(path, one)["model"]["weight"].equal(STATE["model"]["weight"])
