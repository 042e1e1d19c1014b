"""`portability` and `versions`: variants, orders, environments; and which warnings fail."""

import itertools
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import portability
import pytest
import random_order
import rehearse
import suite_runs
import torch
import versions

from mpbook.evidence.versions import release


@pytest.mark.parametrize(
    "module", ["torch._dynamo.guards", "torch._inductor.compile_fx", "torch.fx.graph"]
)
def test_what_torchs_compiler_says_of_this_machine_fails_nothing(module):
    with pytest.warns(RuntimeWarning, match="slower on this Python"):
        warnings.warn_explicit("slower on this Python", RuntimeWarning, "x.py", 1, module=module)
    warnings.warn_explicit("slower on this Python", RuntimeWarning, "x.py", 1, module=module)


@pytest.mark.parametrize(
    "module", ["mpbook.training.loop", "torch.optim.lr_scheduler", "torch._dynamics", "numpy"]
)
def test_every_other_warning_is_an_error(module):
    with pytest.raises(RuntimeWarning, match="overflow"):
        warnings.warn_explicit("overflow", RuntimeWarning, "x.py", 1, module=module)


@pytest.mark.parametrize("name", portability.VARIANTS)
def test_a_variant_runs_files_that_are_there(name):
    for path in portability.VARIANTS[name].tests:
        assert (portability.ROOT / path).exists(), path


def test_every_variant_is_run_once_if_nobody_asks_for_a_few():
    runs = portability.chosen_by("")
    assert sorted(itertools.chain(*runs)) == sorted(portability.VARIANTS)
    assert portability.chosen_by("avx2, locale+cu130") == [["avx2"], ["locale", "cu130"]]


def test_variants_that_are_run_together_set_and_test_what_each_does():
    one, two = (portability.VARIANTS[name] for name in ("threads-4", "random-order"))
    both = portability.together(["threads-4", "random-order"])
    assert both.set == {**one.set, **two.set} and both.options == two.options
    assert both.tests == ("book", "tests")  # whose folders need not be named beside it
    with pytest.raises(SystemExit, match="OMP_NUM_THREADS cannot be 1 and 4"):
        portability.together(["threads-1", "threads-4"])


def test_what_fails_together_is_run_under_each_variant_alone(monkeypatch):
    asked = []

    def run_variant(name, variant, tests, options):
        asked.append((name, list(tests)))
        failures = ("tests/test_a.py::test_b", "book/n.ipynb::Cell 3") if "locale" in name else ()
        return suite_runs.Outcome(name, len(failures), "", failures, 1.0)

    monkeypatch.setattr(portability, "run_variant", run_variant)
    options = SimpleNamespace(tests=["tests"])
    assert len(portability.run(["avx2", "cu130"], options)) == 1
    assert len(portability.run(["locale", "cu130"], options)) == 3
    files = ["book/n.ipynb", "tests/test_a.py"]
    assert asked[1:] == [("locale+cu130", ["tests"]), ("locale", files), ("cu130", files)]


def in_a_cuda_build(code):
    """What a Python says on stdout and stderr whose torch calls itself +cu130."""
    environment = os.environ | {
        "MPBOOK_TRITON": "missing",
        "PYTHONPATH": os.pathsep.join([str(portability.SHIMS), os.environ.get("PYTHONPATH", "")]),
        "MPBOOK_TORCH_BUILD": "cu130",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout, done.stderr


def test_a_torch_can_be_made_to_call_itself_another_build():
    said, _ = in_a_cuda_build("import torch; print(torch.__version__, torch.version.cuda)")
    version, cuda = said.split()
    assert version.endswith("+cu130") and version.count("+") == 1 and cuda == "13.0"


def test_a_build_for_cuda_without_triton_counts_operations_in_silence():
    said = in_a_cuda_build(
        "import torch; from mpbook.cost.measure import count_flops; import mpbook.training\n"
        "from mpbook import diagnose; from torch.nn.functional import cross_entropy\n"
        "import logging; assert not logging.getLogger('torch.utils.flop_counter').filters\n"
        "batch = torch.ones(2, 3), torch.zeros(2, dtype=torch.long)\n"
        "diagnose(torch.nn.Linear(3, 5), batch, loss=cross_entropy)\n"
        "print(count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 5)))"
    )
    assert said == ("60\n", "")


def items(path, count, *, parent=None):
    return [SimpleNamespace(path=path, parent=parent, number=n) for n in range(count)]


def test_an_order_keeps_files_whole_and_depends_on_its_seed_alone(monkeypatch):
    given = [item for path in "abcdefgh" for item in items(path, 9)]
    orders = []
    for seed, before in ((1, given), (1, given[::-1][::-1]), (2, given)):
        monkeypatch.setattr(random_order, "SEED", seed)
        shuffled = list(before)
        random_order.pytest_collection_modifyitems(shuffled)
        orders.append([(item.path, item.number) for item in shuffled])
    assert orders[0] == orders[1] != orders[2]
    paths = [path for path, _ in orders[0]]
    assert sum(a != b for a, b in itertools.pairwise(paths)) == 7
    assert sorted(orders[0]) == [(item.path, item.number) for item in given] != orders[0]


def test_the_cells_of_a_notebook_stay_in_their_order():
    notebook = random_order.IPyNbFile.__new__(random_order.IPyNbFile)
    cells = items("n.ipynb", 30, parent=notebook)
    shuffled = [*items("a", 5), *cells]
    random_order.pytest_collection_modifyitems(shuffled)
    assert [item for item in shuffled if item.parent is notebook] == cells


def test_an_environment_holds_the_lock_with_another_torch():
    made = versions.Versions("3.11", "2.12.1").requirements.splitlines()
    locked = versions.LOCK.read_text().splitlines()
    ours = [line for line in made if line not in locked]
    assert ours == ["torch==2.12.1", "setuptools"]
    gone = [line.split("==")[0] for line in locked if line not in made]
    assert sorted(gone) == ["setuptools", "torch"]


def test_environments_are_chosen_by_a_part_of_their_name():
    assert [v.name for v in versions.chosen_by("torch2.15.0, py3.12")] == [
        "py3.11-torch2.15.0",
        "py3.12-torch2.13.0",
    ]
    assert versions.chosen_by("") == list(versions.ENVIRONMENTS)


@pytest.mark.parametrize("found", [None, "a shim"])
def test_a_python_that_is_not_there_is_an_outcome_and_not_the_end(
    found, monkeypatch, tmp_path, capsys
):
    shim = tmp_path / "python3.11"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    paths = {"python3.11": str(shim) if found else None}
    monkeypatch.setattr(versions.shutil, "which", paths.get)
    options = SimpleNamespace(folder=tmp_path, tests=["tests"], workers=1)
    outcome = versions.run(versions.Versions("3.11", "2.15.0"), options)
    assert not outcome.passed and "no python3.11 that runs is on PATH" in outcome.last_line
    assert suite_runs.conclude([outcome]) == 1
    assert "no environment" in capsys.readouterr().out


def test_what_fails_is_named_and_a_signal_is_told(tmp_path, capsys):
    test = tmp_path / "test_x.py"
    test.write_text("def test_bad():\n    assert False\ndef test_good():\n    pass\n")
    log = tmp_path / "log"
    run = lambda path: suite_runs.run_pytest(  # noqa: E731
        "x", suite_runs.Path(sys.executable), ["-c", os.devnull, str(path)], os.environ, log
    )
    outcome = run(test)
    assert outcome.status == 1 and outcome.last_line.startswith("1 failed, 1 passed")
    assert [name.rpartition("::")[2] for name in outcome.failures] == ["test_bad"]
    test.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    assert run(test).status == -11
    assert "killed by signal 11" in capsys.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="writes a shell script")
@pytest.mark.parametrize(("environment", "threads"), [({}, 1), ({"OMP_NUM_THREADS": "4"}, 4)])
def test_a_process_has_one_thread_unless_the_environment_says_otherwise(
    environment, threads, tmp_path
):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$OMP_NUM_THREADS threads"\n')
    fake.chmod(0o755)
    outcome = suite_runs.run_pytest("x", fake, [], environment, tmp_path / "log")
    assert outcome.passed and outcome.last_line == f"{threads} threads"


def test_names_that_nobody_knows_are_refused():
    assert suite_runs.choose("b a", ["a", "b"]) == ["b", "a"]
    assert suite_runs.choose("", ["a", "b"]) == ["a", "b"]
    with pytest.raises(SystemExit, match=r"'c': expected some of a, b"):
        suite_runs.choose("a,c", ["a", "b"])


needs_what_the_stand_in_needs = pytest.mark.skipif(
    sys.platform != "linux"
    or shutil.which("g++") is None
    or torch.version.cuda is not None
    or f"torch=={release()}" not in versions.LOCK.read_text("utf-8").splitlines(),
    reason="the stand-in needs Linux, g++ and the lock's torch, built without CUDA",
)

ON_A_GPU = """
import torch
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)).to("cuda")
inputs = torch.randn(5, 8, device="cuda")
with torch.autocast("cuda", dtype=torch.bfloat16):
    logits = model(inputs)
    normed = nn.functional.softmax(logits, -1)
logits.float().sum().backward()
print(logits.device, logits.dtype, normed.dtype, model[0].weight.grad.device)
print(torch.cuda.get_device_capability(), torch.cuda.memory_allocated() > 0)
try:
    inputs + torch.ones(8)
except RuntimeError as error:
    print(str(error).split(",")[0])
"""


@needs_what_the_stand_in_needs
@pytest.mark.parametrize("gpu", rehearse.GPUS)
def test_the_stand_in_is_a_cuda_device_with_cudas_rules(gpu):
    done = subprocess.run(
        [sys.executable, "-c", ON_A_GPU],
        env=rehearse.environment(gpu), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "cuda:0 torch.bfloat16 torch.float32 cuda:0",
        f"({rehearse.GPUS[gpu].replace('.', ', ')}) True",
        "Expected all tensors to be on the same device",
    ]


def artefact(file, words):
    return rehearse.Artefact(file, words, "no compiler")


def test_artefacts_of_the_stand_in_are_no_faults_and_faults_stay(monkeypatch):
    monkeypatch.setattr(rehearse, "ARTEFACTS", (artefact("tests/a.py", "test_c"),))
    outcome = suite_runs.Outcome("x", 1, "2 failed", ("tests/a.py::test_c[1]", "b.py::c"), 1.0)
    assert rehearse.without_artefacts(outcome).failures == ("b.py::c",)
    assert not rehearse.without_artefacts(outcome).passed
    alone = replace(outcome, failures=outcome.failures[:1])
    assert rehearse.without_artefacts(alone).passed
    killed = replace(alone, status=-11)
    assert not rehearse.without_artefacts(killed).passed


@pytest.mark.parametrize("listed", rehearse.ARTEFACTS, ids=lambda one: one.words[:20])
def test_an_artefact_is_one_cell_of_today(listed):
    assert len(listed.names()) == 1 and listed.why


@pytest.mark.skipif(os.name != "posix", reason="writes a shell script")
def test_a_failed_cell_is_told_by_its_number(tmp_path):
    """`Cell 1` must not stand for `Cell 12` too."""
    said = "FAILED book/a.ipynb::Cell 12 - Notebook cell\nERROR tests/b.py::c[1] - x\n1 failed"
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\nprintf '{said}'\nexit 1\n")
    fake.chmod(0o755)
    outcome = suite_runs.run_pytest("x", fake, [], {}, tmp_path / "log")
    assert outcome.failures == ("book/a.ipynb::Cell 12", "tests/b.py::c[1]")
