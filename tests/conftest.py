"""What the tests share: a hypothesis profile, the built book, a server for it, and a browser.

* `book_html`: the folder of the built HTML: `make book`'s if it is this tree's, else built once
  per run, for all workers of `pytest -n`, warnings as errors.
* `page_url(page, scheme="http")`: the address of a built page, over http or from disk.
* `browser`: Chromium, one a file; under CI a missing browser fails, elsewhere it skips.
* `visit(page, ...)`: opens a page as a reader would and records what went wrong on it; `opened` is
  a page that several tests look at.
* `load_module(name)`, `open_explorer(*explorers)`: an explorer's JavaScript, a page of explorers.
"""

from __future__ import annotations

import functools
import http.server
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import build_html
import chromium
import pytest
import torch
from explorer_pages import LoadModule, OpenExplorer, import_module, write_page
from filelock import FileLock
from hypothesis import settings
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from visits import ROOT, Look, OpenPage, PageUrl, Scheme, Theme, Visit

TIMEOUT_MS = 30_000
HEIGHT = 900
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
# The theme looks what scrolls 300 ms after the last change, and later where the machine is busy.
WHAT_SCROLLS_TAKES_KEYS = """() =>
  [...document.querySelectorAll("#main-content pre, #main-content .cell_output > .output")].every(
    ({scrollWidth, clientWidth, scrollHeight, clientHeight, tabIndex}) =>
      tabIndex === 0 || (scrollWidth <= clientWidth && scrollHeight <= clientHeight))"""
MATHS_IS_SET = "() => !window.MathJax || window.MathJax.startup?.promise.then(() => true)"

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# cuBLAS reads it at a process's first product; later ones then repeat bit for bit.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
settings.register_profile("book", derandomize=True, deadline=None, database=None)
settings.load_profile("book")
expect.set_options(timeout=TIMEOUT_MS)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deal out the tests to `pytest -n`'s workers by file, the long ones first."""
    from scheduling import LongestFirst

    return LongestFirst(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`pytest -n auto`: a worker for each core that this process may use, hyper-threads too."""
    usable = getattr(os, "sched_getaffinity", None)
    return len(usable(0)) if usable else os.cpu_count() or 1


def _folder_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder that all workers share."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def book_html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the book's HTML: `make book`'s if it is current, else built here, once."""
    if build_html.is_current(ROOT / "_build"):
        return ROOT / "_build" / "html"
    run = _folder_of_the_run(tmp_path_factory)
    with FileLock(run / "book.lock"):
        if not (run / "book" / "_build" / build_html.NOTE).exists():
            build_html.build(run / "book", quiet=True)
    return run / "book" / "_build" / "html"


@pytest.fixture(scope="session")
def trained_pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """`case_study.short_runs`, which trains once for all tests and all workers of a run."""
    from mpbook.evidence import case_study

    train, folder = case_study.short_runs, _folder_of_the_run(tmp_path_factory)

    def pairs(precisions: Sequence[str], *, device: Any) -> Any:
        file = folder / f"{'-'.join(precisions)}-{device}.pickle"
        return _once(file, lambda: train(list(precisions), device=device))

    return pairs


@pytest.fixture(scope="session")
def recorded_here(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a function from an experiment's name to its record, measured once for all workers.

    ``MPBOOK_RECORDS`` names a folder of records that this code has made on this CPU just before.
    """
    from mpbook.evidence import recorder, records
    from mpbook.evidence.experiments import EXPERIMENTS

    folder, made = _folder_of_the_run(tmp_path_factory), os.environ.get("MPBOOK_RECORDS")

    def record(name: str, device: str = "cpu") -> Any:
        place = torch.device(device)
        if made is not None and device == "cpu":
            (file,) = Path(made).glob(f"{name}--*.json")
            return records.load(file)
        measure = functools.partial(recorder.run, say=lambda line: None)
        return _once(folder / f"{name}-{device}.pickle", lambda: measure(EXPERIMENTS[name], place))

    return record


def _once(file: Path, make: Callable[[], Any]) -> Any:
    """What a function returns, asked once for all workers and kept in a file."""
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            file.write_bytes(pickle.dumps(make()))
    return pickle.loads(file.read_bytes())


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_arguments: Any) -> None:
        """Log nothing."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_arguments: Any) -> None:
        """Say nothing of a connection that the browser dropped."""


@pytest.fixture(scope="session")
def site_url(book_html: Path) -> Iterator[str]:
    """Serve the built book on localhost; yield its address."""
    handler = functools.partial(_QuietHandler, directory=str(book_html))
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="session")
def page_url(book_html: Path, site_url: str) -> PageUrl:
    """Return a function from a page, such as "book/index.html", to its address."""

    def url(page: str, scheme: Scheme = "http") -> str:
        return f"{site_url if scheme == 'http' else book_html.as_uri()}/{page}"

    return url


def require_browser() -> str:
    """Return the path of a Chromium; without one skip the test, or fail it under CI."""
    if found := chromium.executable():
        return found
    if os.environ.get("CI"):
        pytest.fail(chromium.MISSING)
    pytest.skip(chromium.MISSING)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Yield a running Chromium.

    One per test file: while Playwright runs, its event loop does too, and the notebooks' kernels
    that are tested later want the thread for themselves.
    """
    executable = require_browser()
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=executable, args=chromium.ARGUMENTS)
        yield running
        running.close()


def _watch(visit: Visit, home: Callable[[str], bool]) -> None:
    """Record in `visit` every error of its page and every request that leaves the book."""
    visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
    visit.page.on("console", lambda m: visit.errors.append(m.text) if m.type == "error" else None)
    visit.page.on("requestfailed", lambda r: visit.errors.append(f"failed: {r.url}"))
    visit.page.on(
        "request", lambda r: None if home(r.url) else visit.external_requests.append(r.url)
    )


class _Reader:
    """Opens pages of the book as a reader would, each in a context of its own."""

    def __init__(self, browser: Browser, page_url: PageUrl, site_url: str) -> None:
        self._browser, self._page_url = browser, page_url
        self._home = (site_url, "file:", "data:", "blob:")
        self._contexts: list[BrowserContext] = []

    def __call__(
        self, page: str, *, scheme: Scheme = "http", theme: Theme = "light", width: int = 1280
    ) -> Visit:
        """Open a page and wait until it has loaded, and has set its maths; for nothing else."""
        size = {"width": width, "height": HEIGHT}
        # Reduced motion: a colour halfway through a transition is no colour of the page's.
        context = self._browser.new_context(
            viewport=size,  # type: ignore[arg-type]
            color_scheme=theme,
            reduced_motion="reduce",
        )
        self._contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        visit = Visit(context.new_page())
        _watch(visit, lambda url: url.startswith(self._home))
        visit.page.goto(self._page_url(page, scheme), wait_until="load")
        visit.page.wait_for_function(MATHS_IS_SET)
        return visit

    def leave(self) -> None:
        """Close every page."""
        while self._contexts:
            self._contexts.pop().close()


@pytest.fixture
def visit(browser: Browser, page_url: PageUrl, site_url: str) -> Iterator[OpenPage]:
    """Return a function that opens a page as a reader would."""
    reader = _Reader(browser, page_url, site_url)
    yield reader
    reader.leave()


class _Looker:
    """Looks at a page in several ways: loads it once, then turns its theme and its width."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._loaded: tuple[str, Scheme] | None = None
        self._visit: Visit

    def __call__(self, look: Look) -> Visit:
        if self._loaded != (look.page, look.scheme):
            self._reader.leave()
            self._visit = self._reader(
                look.page, scheme=look.scheme, theme=look.theme, width=look.width
            )
            self._loaded = look.page, look.scheme
            return self._visit
        page = self._visit.page
        page.emulate_media(color_scheme=look.theme)
        if page.viewport_size != (size := {"width": look.width, "height": HEIGHT}):
            page.set_viewport_size(size)  # type: ignore[arg-type]
            page.evaluate(DRAWN)
            page.wait_for_function(WHAT_SCROLLS_TAKES_KEYS)
        page.wait_for_function(
            "theme => document.documentElement.dataset.theme === theme", arg=look.theme
        )
        page.evaluate(DRAWN)
        return self._visit


@pytest.fixture(scope="module")
def _looker(browser: Browser, page_url: PageUrl, site_url: str) -> Iterator[_Looker]:
    reader = _Reader(browser, page_url, site_url)
    yield _Looker(reader)
    reader.leave()


@pytest.fixture(scope="module")
def opened(request: pytest.FixtureRequest, _looker: _Looker) -> Visit:
    """The page that a test names by a `Look`; loaded once for the looks that follow each other."""
    return _looker(request.param)


@pytest.fixture(scope="module")
def load_module(browser: Browser) -> Iterator[LoadModule]:
    """Return a function from a module of the explorers to a page that has it as ``window.m``."""
    pages: dict[str, Page] = {}

    def load(name: str) -> Page:
        return pages.get(name) or pages.setdefault(name, import_module(browser, name))

    yield load
    for page in pages.values():
        page.close()


@pytest.fixture
def open_explorer(browser: Browser, tmp_path: Path) -> Iterator[OpenExplorer]:
    """Return a function that opens explorers from disk, in a page with nothing else.

    An error on the page, or a word on its console, fails the test.
    """
    contexts: list[BrowserContext] = []
    problems: list[str] = []

    def open_page(*explorers: Any, width: int = 800, **options: Any) -> Page:
        file = write_page(tmp_path, explorers)
        context = browser.new_context(viewport={"width": width, "height": 1000}, **options)
        contexts.append(context)
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.goto(file.as_uri())
        has_script = options.get("java_script_enabled", True)
        page.locator(".mp-explorer" if has_script else ".mp-static").last.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []
