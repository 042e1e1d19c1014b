"""The notebooks that Colab and Binder open: what the book has, after one cell that installs it."""

import subprocess
import sys
from types import SimpleNamespace

import launch
import nbformat
import pytest
import sphinx_extension
from packaging.requirements import Requirement
from refresh import BOOK, notebooks

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    out = tmp_path_factory.mktemp("launch")
    launch.write(out, repository="someone/the-book", commit=SHA)
    return out


def test_every_notebook_is_there_under_the_same_path(written):
    expected = {p.relative_to(BOOK.parent) for p in notebooks()}
    assert {p.relative_to(written) for p in written.rglob("*.ipynb")} == expected


@pytest.mark.parametrize("source", notebooks(), ids=lambda p: p.stem)
def test_a_notebook_gains_one_code_cell_before_all_others_and_nothing_else(written, source):
    before = nbformat.read(source, as_version=4)
    after = nbformat.read(written / source.relative_to(BOOK.parent), as_version=4)
    nbformat.validate(after)
    code = [cell for cell in after.cells if cell.cell_type == "code"]
    assert "mpbook[notebook] @ git+https://github.com/someone/the-book@" + SHA in code[0].source
    assert [cell for cell in after.cells if cell.id != launch.SETUP_ID] == before.cells
    assert after.metadata == before.metadata


def test_the_first_cell_does_nothing_where_the_package_is_installed():
    source = launch.SETUP.format(requirement="nothing-of-this-name-exists")
    script = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        f"result = InteractiveShell.instance().run_cell({source!r})\n"
        "result.raise_error()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_first_cell_installs_where_it_is_not():
    source = launch.SETUP.format(requirement="the-requirement")
    script = (
        "import importlib.util\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "importlib.util.find_spec = lambda name: None\n"
        "shell = InteractiveShell.instance()\n"
        "shell.register_magic_function(lambda line: print('pip', line), magic_name='pip')\n"
        f"shell.run_cell({source!r}).raise_error()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == 'pip install --quiet "the-requirement"\n', done.stderr


def test_what_is_installed_is_this_package_with_what_notebooks_need(written):
    lines = (written / "requirements.txt").read_text().splitlines()
    wanted = Requirement(lines[-1])
    assert (wanted.name, wanted.extras) == ("mpbook", {"notebook"})
    assert wanted.url == f"git+https://github.com/someone/the-book@{SHA}"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"repository": "no-owner"}, "expected OWNER/NAME"),
        ({"repository": 'a/b" ; x'}, "expected OWNER/NAME"),
        ({"commit": "main"}, "expected a commit's hash"),
    ],
)
def test_a_wrong_name_is_refused_and_nothing_written(tmp_path, wrong, words):
    options = {"repository": "a/b", "commit": SHA, **wrong}
    with pytest.raises(ValueError, match=words):
        launch.write(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path, capsys):
    (tmp_path / "mine").touch()
    arguments = ["--repository", "a/b", "--commit", SHA, "--out", str(tmp_path)]
    assert launch.main(arguments) == 1
    assert "expected an empty folder" in capsys.readouterr().err


def an_app(**options):
    return SimpleNamespace(config=SimpleNamespace(html_theme_options=options))


def test_a_build_that_knows_its_repository_has_launch_buttons(monkeypatch):
    monkeypatch.setenv("MPBOOK_REPOSITORY", "someone/the-book")
    app = an_app(show_toc_level=2)
    sphinx_extension.add_launch_buttons(app, app.config)
    options = app.config.html_theme_options
    assert options["repository_url"] == "https://github.com/someone/the-book"
    assert options["repository_branch"] == launch.BRANCH
    assert set(options["launch_buttons"]) == {"colab_url", "binderhub_url"}
    assert options["show_toc_level"] == 2


def test_a_build_that_does_not_has_none(monkeypatch):
    monkeypatch.delenv("MPBOOK_REPOSITORY", raising=False)
    app = an_app()
    sphinx_extension.add_launch_buttons(app, app.config)
    assert app.config.html_theme_options == {}
