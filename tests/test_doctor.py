"""`doctor`: environments that are broken in known ways, made of a few small files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from visits import ROOT

from mpbook import doctor
from mpbook.__main__ import main


@pytest.fixture(autouse=True)
def ask_again():
    doctor.cpp_compiler.cache_clear()
    yield
    doctor.cpp_compiler.cache_clear()


def install(folder: Path, version: str, *, says: str | None = None, files: bool = True) -> str:
    """Put a torch of this version into a folder; its own files may say another one."""
    metadata = folder / f"torch-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    if files:
        (folder / "torch").mkdir(exist_ok=True)
        (folder / "torch" / "__init__.py").write_text("raise RuntimeError('not to be run')\n")
        (folder / "torch" / "version.py").write_text(f"__version__ = '{says or version}'\n")
    return str(folder)


def found(*path: str) -> list[str]:
    return list(doctor._torch_problems(path))


def test_this_environment_has_no_problem():
    assert doctor.problems() == []
    assert main(["doctor"]) == 0


@pytest.mark.parametrize("says", ["2.13.0", "2.13.0+cpu", "2.13.0+cu130"])
def test_one_whole_torch_is_no_problem(tmp_path, says):
    folder = install(tmp_path, "2.13.0", says=says)
    assert found(folder) == found(folder, folder, str(tmp_path / "absent")) == []


def test_no_torch_is_a_problem(tmp_path):
    assert found(str(tmp_path)) == ["torch is not installed: pip install torch"]


def test_two_torches_in_one_folder_are_a_problem(tmp_path):
    install(tmp_path, "2.12.1")
    said = found(install(tmp_path, "2.13.0"))
    assert said[0].startswith("2 torches are installed: ")
    assert "2.12.1" in said[0] and "2.13.0" in said[0]
    assert "pip uninstall torch until none is left" in said[0]


def test_two_torches_in_two_folders_are_a_problem_though_they_are_alike(tmp_path):
    first, second = (install(tmp_path / name, "2.13.0") for name in ("first", "second"))
    [said] = found(first, second)
    assert said.startswith("2 torches are installed: ")
    assert said.index(first) < said.index(second)


@pytest.mark.parametrize("hides", ["torch.py", "torch/__init__.py"])
def test_a_file_or_folder_that_hides_torch_is_a_problem(tmp_path, hides):
    folder = install(tmp_path / "installed", "2.13.0")
    hiding = tmp_path / "work" / hides
    hiding.parent.mkdir(parents=True)
    hiding.touch()
    [said] = found(str(tmp_path / "work"), folder)
    assert said.startswith(f"`import torch` gives {tmp_path / 'work' / 'torch'}")
    assert f"torch 2.13.0 is installed in {folder}: rename what hides it" in said


def test_half_an_upgrade_is_a_problem(tmp_path):
    [said] = found(install(tmp_path, "2.13.0", says="2.12.1+cpu"))
    assert "are torch 2.12.1+cpu, the installed package says 2.13.0: half an upgrade" in said


def test_a_torch_that_is_a_checkout_of_its_own_source_is_no_problem(tmp_path):
    folder = install(tmp_path / "installed", "2.13.0", files=False)
    checkout = install(tmp_path / "checkout", "0", says="2.13.0a0+git1234")
    for file in (tmp_path / "checkout" / "torch-0.dist-info").iterdir():
        file.unlink()
    (tmp_path / "checkout" / "torch-0.dist-info").rmdir()
    url = {"url": "file:///checkout", "dir_info": {"editable": True}}
    (Path(folder) / "torch-2.13.0.dist-info" / "direct_url.json").write_text(json.dumps(url))
    assert found(folder, checkout) == []


@pytest.mark.parametrize(("version", "wrong"), [((3, 10), 1), ((3, 11), 0), ((3, 13), 0)])
def test_a_python_that_is_too_old_is_a_problem(version, wrong):
    assert len(list(doctor._python_problems(version))) == wrong


def test_python_3_14_is_named_with_those_that_work():
    [said] = doctor._python_problems((3, 14))
    assert said == "this is Python 3.14; mpbook works with Python 3.11, 3.12 and 3.13"


def test_a_torch_that_cannot_even_be_imported_is_explained(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no libtorch_cpu.so')\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "mpbook", "doctor"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith(f"problem: `import torch` gives {tmp_path / 'torch.py'}")
    assert last == "problem: torch cannot be used: no libtorch_cpu.so"


def test_without_a_compiler_the_doctor_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    assert doctor.cpp_compiler() is None
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "C++ compiler: none, so torch.compile fails on the CPU: install g++" in printed


def test_without_a_compiler_the_benchmark_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    command = ["bench", "formats", "--formats", "float16", "--elements", "64", "--rounds", "1"]
    assert main(command) == 1
    assert "no C++ compiler: install g++" in capsys.readouterr().err
    assert main([*command, "--no-compile"]) == 0


def test_a_compiler_that_does_not_run_is_none(monkeypatch, tmp_path):
    stub = tmp_path / "g++"
    stub.write_text("#!/bin/sh\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("CXX", str(stub))
    assert doctor.cpp_compiler() is None
    stub.write_text("#!/bin/sh\nexit 0\n")
    doctor.cpp_compiler.cache_clear()
    assert doctor.cpp_compiler() == str(stub)
