"""What `pip install mpbook` gives: a core that needs torch and numpy only, and clear errors.

Each test runs in a Python of its own in which the optional packages cannot be imported.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
from visits import ROOT

OPTIONAL = ("anywidget", "gfloat", "IPython", "ipywidgets", "matplotlib", "ml_dtypes", "scipy")
OPTIONAL += ("sklearn",)
CORE = ["mpbook", *(f"mpbook.{path.stem}" for path in sorted((ROOT / "mpbook").glob("[a-z]*.py")))]
BLOCK = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""


def run(source: str) -> subprocess.CompletedProcess[str]:
    """Run `source` in a fresh Python without the optional packages."""
    command = [sys.executable, "-c", BLOCK + source]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_core_imports_with_torch_and_numpy_alone() -> None:
    done = run("\n".join(f"import {module}" for module in CORE))
    assert done.returncode == 0, done.stderr


def test_the_core_rounds_without_the_optional_packages() -> None:
    done = run(
        "import torch\n"
        "from mpbook.formats import round_to\n"
        "x = torch.tensor([65519.0, 65520.0])\n"
        "print(round_to(x, 'float16', overflow='inf').tolist())"
    )
    assert done.stdout == "[65504.0, inf]\n", done.stderr


def test_importing_the_package_imports_no_torch() -> None:
    done = run("import mpbook, sys\nprint('torch' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    "use",
    [
        "from mpbook.plots import figure\nfigure()",
        "from mpbook.data import digits\ndigits()",
        "from mpbook.explorers import FloatExplorer\nFloatExplorer()",
        "from mpbook.training.paired import t_test_power\nt_test_power(1.0, seeds=8)",
    ],
)
def test_a_missing_package_is_an_error_that_says_what_to_install(use: str) -> None:
    done = run(use)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError"), done.stderr
    assert 'pip install "mpbook[notebook]"' in last, done.stderr


def test_the_core_dependencies_are_torch_and_numpy() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["dependencies"] == ["torch>=2.11,<2.16", "numpy>=1.26"]


def test_the_lock_pins_everything_and_names_no_host() -> None:
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert "torch==2.13.0" in pins
    assert [line for line in pins if "==" not in line.partition(";")[0]] == []
    unwanted = ("http:", "https:", "--", "nvidia-", "cuda-", "triton")
    assert [line for line in pins if line.startswith(unwanted)] == []
