"""A place for records: read and checked as Python does, laid over what is known, nothing lost."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from accessibility import serious_violations
from explorer_pages import LoadModule, OpenExplorer
from playwright.sync_api import Page, expect

from mpbook.evidence import records
from mpbook.evidence.overlay import Overlay, product_lines
from mpbook.evidence.published import published
from mpbook.evidence.records import Provenance, Record
from mpbook.explorers import RecordExplorer

CPU = torch.device("cpu")
GPU = dataclasses.replace(
    Provenance.here(CPU),
    device="NVIDIA T4", device_type="cuda", capability="7.5", cuda="13.0", driver="580.1",
    commit="0123456789abcdef+changes", started="2027-01-02T03:04:05+00:00",
)  # fmt: skip


def case(status: str = "measured", results: dict[str, Any] | None = None, **values: Any) -> Any:
    return {"case": values, "status": status, "seconds": 1.25, "results": results or {}}


def throughput(**changes: Any) -> Record:
    def rate(seconds: list[float], **extra: Any) -> dict[str, Any]:
        return {"seconds": seconds, "tokens": 1024, **extra}

    cases = [
        case(precision="32-true", mode="eager", results=rate([0.2, 0.25, 0.3])),
        case(precision="bf16-mixed", mode="eager", results=rate([0.1, 0.125], wide=True)),
        case("out of memory", precision="16-true", mode="eager"),
        case("failed: RuntimeError: no", precision="tf32", mode="eager"),
    ]
    record = Record("gpt2_throughput", {"batch": 1}, cases, GPU, 2.5)
    return dataclasses.replace(record, **changes)


OVERLAYS = (
    Overlay(
        experiment="gpt2_throughput", label="over float32", take="speedup",
        of={"precision": "bf16-mixed", "mode": "eager"},
        over={"precision": "32-true", "mode": "eager"},
        predicted="2.0", published="1.0 to 1.5, median 1.1",
    ),
    Overlay(
        experiment="gpt2_throughput", label="tokens a second", take="rate",
        of={"precision": "bf16-mixed"},
    ),
    Overlay(
        experiment="gpt2_throughput", label="over TF32", take="speedup",
        of={"precision": "bf16-mixed"}, over={"precision": "tf32"},
    ),
    Overlay(
        experiment="gpt2_memory", label="less at batch 1", take="saving",
        of={"precision": "bf16-mixed", "batch": 1}, over={"precision": "32-true", "batch": 1},
    ),
    Overlay(
        experiment="matmul_ladder", label="best product", take="share", of={"format": "bfloat16"}
    ),
)  # fmt: skip


def file_of(record: Record, folder: Path) -> Path:
    return records.save(record, folder)


# --- What a record says ---------------------------------------------------------------------------


def test_a_speedup_is_a_ratio_of_medians_and_a_rate_tokens_over_one() -> None:
    assert [o.text(throughput()) for o in OVERLAYS[:3]] == ["2.22", "9,102", "no such result"]


def test_memory_is_the_peak_or_without_one_the_sum() -> None:
    def held(peak: int | None, **memory: int) -> dict[str, Any]:
        return {"peak": peak, "memory": memory}

    cases = [
        case(precision="32-true", batch=1, results=held(None, a=30, b=70)),
        case(precision="bf16-mixed", batch=1, results=held(80, a=1)),
    ]
    record = throughput(experiment="gpt2_memory", cases=cases)
    assert OVERLAYS[3].value(record) == pytest.approx(0.2) and OVERLAYS[3].text(record) == "20%"


def test_the_best_share_is_of_the_cases_with_a_stated_peak() -> None:
    def product(seconds: float, peak: float | None) -> dict[str, Any]:
        return {"seconds": [seconds], "flops": 100, "stated_peak": peak}

    cases = [
        case(format="bfloat16", n=1, results=product(1.0, 400.0)),
        case(format="bfloat16", n=2, results=product(0.5, 400.0)),
        case(format="bfloat16", n=3, results=product(0.1, None)),
        case(format="float16", n=1, results=product(0.1, 400.0)),
    ]
    record = throughput(experiment="matmul_ladder", cases=cases)
    assert OVERLAYS[4].value(record) == 0.5
    assert OVERLAYS[4].value(throughput(experiment="matmul_ladder", cases=[])) is None


def test_a_record_is_laid_over_the_lines_of_its_experiment() -> None:
    explorer = RecordExplorer(OVERLAYS)
    first = ["over float32", "2.0", "1.0 to 1.5, median 1.1", "", "2.22"]
    assert explorer.rows(throughput())[0] == first
    assert len(explorer.rows(throughput())) == 3
    assert explorer.rows(throughput(experiment="bandwidth")) == []
    assert repr(explorer) == "A place for records of gpt2_throughput, gpt2_memory, matmul_ladder."


def test_an_experiment_that_does_not_exist_is_refused() -> None:
    wrong = dataclasses.replace(OVERLAYS[0], experiment="gpt3")
    with pytest.raises(ValueError, match="experiment='gpt3': expected one of autocast_rules, "):
        RecordExplorer([wrong])


# --- The same in JavaScript -----------------------------------------------------------------------


@pytest.mark.browser
def test_the_digest_is_sha256(load_module: LoadModule) -> None:
    random = Random(1)
    texts = ["", "abc", "ä€😀\n", *("x" * n for n in (55, 56, 63, 64, 65, 119, 120, 1000))]
    texts += ["".join(map(chr, random.choices(range(32, 0x2FFF), k=n))) for n in range(40)]
    expected = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    assert load_module("sha256").evaluate("(texts) => texts.map(m.sha256)", texts) == expected


@pytest.mark.browser
def test_a_number_is_written_as_python_writes_it(load_module: LoadModule) -> None:
    random = Random(2)
    values: list[Any] = [0.0, -0.0, 1.0, 0.1, 1e15, 1e16, 123456789012345680.0, 1e22, 5e-324, -1e-5]
    values += [1e-4, 0.00012, 1.7976931348623157e308, 2**53 + 1, -(2**70), 0, 100.0, 1e-7, 12.5]
    values += [random.uniform(-1, 1) * 10.0 ** random.randint(-320, 300) for _ in range(3000)]
    texts = [json.dumps(value) for value in values]
    assert load_module("record").evaluate("(texts) => texts.map(m.numeral)", texts) == texts
    other = ["1.50", "1E3", "-0", "0.1e1", "100e-2", "-0.0"]
    expected = [json.dumps(json.loads(text)) for text in other]
    assert load_module("record").evaluate("(texts) => texts.map(m.numeral)", other) == expected


def random_json(random: Random, depth: int = 4) -> Any:
    words = ["a", "ab", "B", "é", "ｆ", "😀", "\ue000", '"\\\n\t\x01', "</script>", "", "__proto__"]
    simple = [None, True, False, 0, -7, 2**60, 0.1, -1e-9, 1e300, *words]
    kind = random.choice(["simple", "list", "table"]) if depth else "simple"
    if kind == "list":
        return [random_json(random, depth - 1) for _ in range(random.randint(0, 4))]
    if kind == "table":
        keys = random.sample(words, random.randint(0, 6))
        return {key: random_json(random, depth - 1) for key in keys}
    return random.choice(simple)


@pytest.mark.browser
def test_json_becomes_the_canonical_text_of_python(load_module: LoadModule) -> None:
    random = Random(3)
    values = [random_json(random) for _ in range(500)]
    layouts = [{}, {"indent": 1}, {"ensure_ascii": False}, {"separators": (",", ":")}]
    sources = [json.dumps(value, **random.choice(layouts)) for value in values]
    expected = [json.dumps(value, sort_keys=True, separators=(",", ":")) for value in values]
    said = load_module("record").evaluate("(all) => all.map((s) => m.parse(s).text)", sources)
    assert said == expected


@pytest.mark.browser
@pytest.mark.parametrize(
    "text", ["", "{", "[1,]", "[1 2]", '{"a":}', "01", "1 2", "{'a': 1}", '{"a" 1}', "nul", "\x00P"]
)
def test_what_is_not_json_is_refused(text: str, load_module: LoadModule) -> None:
    wrong = "(text) => { try { m.parse(text); return 'read' } catch (e) { return e.name } }"
    assert load_module("record").evaluate(wrong, text) == "SyntaxError"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, recorded_here: Any) -> list[Path]:
    """Files that the recorder itself writes."""
    folder = tmp_path_factory.mktemp("records")
    names = ("autocast_rules", "bandwidth", "gpt2_memory")
    return [file_of(recorded_here(name), folder) for name in names]


@pytest.mark.browser
def test_what_the_recorder_writes_passes_and_says_what_python_says(
    load_module: LoadModule, recorded: list[Path]
) -> None:
    sources = [path.read_text("utf-8") for path in recorded]
    module = load_module("record")
    found = module.evaluate("(all) => all.map((s) => m.load('x.json', s, 1))", sources)
    overlays = [o.as_dict() for o in OVERLAYS]
    for result, path in zip(found, recorded, strict=True):
        whole = records.load(path)
        assert "problem" not in result
        assert result["record"]["cases"] == json.loads(json.dumps(whole.cases))
        texts = module.evaluate(
            "([record, all]) => all.map((o) => m.valueText(record, o))",
            [result["record"], overlays],
        )
        assert texts == [o.text(whole) for o in OVERLAYS]
    assert len(found) == 3


def products() -> Record:
    """Of three sizes, one without a stated peak."""
    results = [
        {"seconds": [seconds], "flops": 100, "stated_peak": peak}
        for seconds, peak in ((1.0, 400.0), (0.5, 400.0), (0.8, 400.0), (0.1, None))
    ]
    cases = [case(format="bfloat16", n=n, results=one) for n, one in enumerate(results)]
    return throughput(experiment="matmul_ladder", cases=cases)


def held() -> Record:
    cases = [
        case(precision=name, batch=1, results={"peak": peak, "memory": {"a": 30, "b": 70}})
        for name, peak in (("32-true", None), ("bf16-mixed", 83))
    ]
    return throughput(experiment="gpt2_memory", cases=cases)


@pytest.mark.browser
@pytest.mark.parametrize("made", [throughput, products, held])
def test_values_are_those_of_python(load_module: LoadModule, tmp_path: Path, made: Any) -> None:
    record = made()
    source = file_of(record, tmp_path).read_text("utf-8")
    lines = [o for o in OVERLAYS if o.experiment == record.experiment]
    overlays = [o.as_dict() for o in lines]
    texts = load_module("record").evaluate(
        "([s, all]) => all.map((o) => m.valueText(m.load('x', s, 1).record, o))", [source, overlays]
    )
    assert texts == [o.text(record) for o in lines] and texts


BAD = {
    "torn": (lambda text: text[: len(text) // 2], "is torn, or no record: it is not JSON"),
    "edited": (lambda text: text.replace("0.25", "0.26"), "its digest does not fit"),
    "newer": (lambda text: text.replace('"schema": 1', '"schema": 2'), "schema 2, expected 1"),
    "a list": (lambda text: "[1, 2]", "schema none, expected 1"),
    "of another kind": (lambda text: '{"a": 1}', "schema none, expected 1"),
    "without digest": (lambda text: text.replace('"digest"', '"d"'), "its digest does not fit"),
}


@pytest.mark.browser
@pytest.mark.parametrize("kind", BAD)
def test_each_bad_file_has_its_sentence_and_python_refuses_it_too(
    kind: str, load_module: LoadModule, tmp_path: Path
) -> None:
    spoil, sentence = BAD[kind]
    path = file_of(throughput(), tmp_path)
    path.write_text(spoil(path.read_text("utf-8")), "utf-8")
    with pytest.raises(ValueError, match="record"):
        records.load(path)
    found = load_module("record").evaluate(
        "(s) => m.load('mine.json', s, 1)", path.read_text("utf-8")
    )
    assert sentence in found["problem"] and found["problem"].startswith("mine.json")


@pytest.mark.browser
def test_parts_that_a_record_lacks_are_noticed(load_module: LoadModule) -> None:
    content = {"schema": 1, "experiment": "bandwidth", "config": {}, "cases": [], "seconds": 1.0}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode())
    source = json.dumps({**content, "digest": digest.hexdigest()})
    found = load_module("record").evaluate("(s) => m.load('x.json', s, 1)", source)
    assert found["problem"] == "x.json: its parts are not those that a record has."


WHOLE = throughput()
SPOILT: dict[str, dict[str, Any]] = {
    "a provenance with more": {"provenance": {**dataclasses.asdict(GPU), "colour": "green"}},
    "a provenance with less": {"provenance": {"device": "NVIDIA T4"}},
    "cases that are none": {"cases": {"a": 1}},
    "a case that is none": {"cases": [7]},
    "a case without a status": {"cases": [{**WHOLE.cases[0], "status": 1}]},
    **{
        f"a case without {name}": {
            "cases": [{key: value for key, value in WHOLE.cases[0].items() if key != name}]
        }
        for name in ("case", "results", "seconds")
    },
    "seconds in words": {"seconds": "2.5"},
}


def signed(content: dict[str, Any]) -> str:
    """A file whose digest is right."""
    plain = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return json.dumps({**content, "digest": hashlib.sha256(plain.encode()).hexdigest()})


@pytest.mark.browser
@pytest.mark.parametrize("kind", [None, *SPOILT])
def test_a_part_that_is_wrong_is_noticed_though_the_digest_is_right(
    kind: str | None, load_module: LoadModule, tmp_path: Path
) -> None:
    content = json.loads(file_of(WHOLE, tmp_path).read_text("utf-8"))
    del content["digest"]
    source = signed(content | (SPOILT[kind] if kind else {}))
    found = load_module("record").evaluate("(s) => m.load('x.json', s, 1)", source)
    problem = "x.json: its parts are not those that a record has."
    assert found.get("problem") == (problem if kind else None)


@pytest.mark.browser
def test_a_drag_over_the_box_is_not_the_browsers(open_explorer: OpenExplorer) -> None:
    page = open_explorer(RecordExplorer(OVERLAYS))
    left = """() => ["dragover", "drop"].map((name) => {
      const event = new DragEvent(name, {dataTransfer: new DataTransfer(), cancelable: true});
      return document.querySelector(".mp-drop").dispatchEvent(event);
    })"""
    assert page.evaluate(left) == [False, False]  # else the page would give way to the file


@pytest.mark.browser
def test_a_record_takes_its_lines_and_gives_them_back(
    open_explorer: OpenExplorer, tmp_path: Path
) -> None:
    explorer = RecordExplorer(OVERLAYS)
    page = open_explorer(explorer)
    known = page.locator(".mp-explorer > div > .mp-wide tbody th")
    labels = [overlay.label for overlay in OVERLAYS]
    expect(known).to_have_text(labels)
    path = file_of(WHOLE, tmp_path)
    give(page, path)
    expect(known).to_have_text(labels[3:])
    expect(page.locator(".mp-record")).to_contain_text(explorer.experiments["gpt2_throughput"])
    assert page.locator("input[type=file]").input_value() == ""  # the same file can be given again
    page.get_by_role("button", name="Take it away").click()
    expect(page.locator(".mp-words")).to_have_text(
        "gpt2_throughput, recorded on NVIDIA T4, 2027-01-02: taken away."
    )
    expect(known).to_have_text(labels)


@pytest.mark.browser
def test_what_is_not_known_of_a_record_is_said(load_module: LoadModule) -> None:
    provenance = {**dataclasses.asdict(GPU), "driver": None, "commit": "unknown"}
    said = load_module("record_explorer").evaluate("(p) => m.origin({provenance: p})", provenance)
    assert "CUDA 13.0, driver not known," in said
    assert "not from a repository. Schema" in said


@pytest.mark.browser
def test_times_have_three_digits(open_explorer: OpenExplorer, tmp_path: Path) -> None:
    times = {0.25: "250 ms", 0.0123456: "12.3 ms", 0.000451: "0.451 ms", 12.3456: "12346 ms"}
    cases = [case(n=n, results={"seconds": [s]}) for n, s in enumerate(times)]
    page = open_explorer(RecordExplorer(OVERLAYS))
    give(page, file_of(throughput(cases=cases), tmp_path))
    page.get_by_text("All 4 cases").click()
    expect(page.locator("details tbody td:last-child")).to_have_text([*times.values()])


# --- The page without a kernel --------------------------------------------------------------------


def give(page: Page, *files: Path) -> None:
    page.get_by_label("Records to lay over the numbers").set_input_files(list(files))


@pytest.mark.browser
def test_a_record_is_laid_over_prediction_and_published(
    open_explorer: OpenExplorer, tmp_path: Path
) -> None:
    page = open_explorer(RecordExplorer(OVERLAYS))
    expect(page.locator("table")).to_have_count(1)
    give(page, file_of(throughput(), tmp_path))
    section = page.locator(".mp-record")
    expect(section.get_by_role("heading")).to_have_text(
        "gpt2_throughput, recorded on NVIDIA T4, 2027-01-02"
    )
    cells = section.locator("table").first.locator("tr").nth(1).locator("th, td")
    expect(cells).to_have_text(["over float32", "2.0", "1.0 to 1.5, median 1.1", "", "2.22"])
    expect(section).to_contain_text(
        "2 cases measured; 1 out of memory; 1 failed: run the command again, and they are tried "
        "again; 1 with a wide spread"
    )
    expect(section).to_contain_text("CUDA 13.0, driver 580.1")
    expect(section).to_contain_text("commit 012345678 with changes. Schema and digest are right.")
    section.get_by_text("All 4 cases").click()
    expect(section.locator("details tr").nth(1)).to_contain_text("250 ms")


@pytest.mark.browser
def test_a_bad_file_takes_no_good_one_along_and_nothing_is_lost(
    open_explorer: OpenExplorer, tmp_path: Path
) -> None:
    page = open_explorer(RecordExplorer(OVERLAYS))
    first = file_of(throughput(), tmp_path)
    picture, torn = tmp_path / "chart.png", tmp_path / "torn.json"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    torn.write_text(first.read_text("utf-8")[:300])
    give(page, picture, first, torn)
    words = page.locator(".mp-words")
    expect(words).to_contain_text("chart.png is a picture.")
    expect(words).to_contain_text("torn.json is torn, or no record")
    expect(words).to_contain_text(f"{first.name}: laid over the numbers below.")
    expect(page.locator(".mp-record")).to_have_count(1)
    give(page, first)
    expect(words).to_have_text(f"{first.name} is on the page already.")
    another = tmp_path / "another"
    give(page, file_of(throughput(seconds=3.5), another))
    expect(page.locator(".mp-record")).to_have_count(2)
    page.get_by_role("button", name="Take it away").first.click()
    expect(page.locator(".mp-record")).to_have_count(1)


@pytest.mark.browser
def test_a_file_is_dropped(open_explorer: OpenExplorer, tmp_path: Path) -> None:
    page = open_explorer(RecordExplorer(OVERLAYS))
    path = file_of(throughput(), tmp_path)
    page.evaluate(
        """([name, text]) => {
          const carried = new DataTransfer();
          carried.items.add(new File([text], name, {type: "application/json"}));
          const over = {dataTransfer: carried, bubbles: true, cancelable: true};
          document.querySelector(".mp-drop").dispatchEvent(new DragEvent("drop", over));
        }""",
        [path.name, path.read_text("utf-8")],
    )
    expect(page.locator(".mp-record")).to_have_count(1)


@pytest.mark.browser
def test_a_file_that_is_too_large_is_not_read(load_module: LoadModule) -> None:
    read = "() => m.read({name: 'a.json', type: '', size: 3e7}, 1, [])"
    found = load_module("record_explorer").evaluate(read)
    assert found == {"problem": "a.json has 30 MB; no record has more than 20."}


@pytest.mark.browser
def test_a_cpu_says_nothing_of_a_gpu(open_explorer: OpenExplorer, recorded: list[Path]) -> None:
    page = open_explorer(RecordExplorer(OVERLAYS))
    give(page, *recorded)
    expect(page.locator(".mp-record")).to_have_count(len(recorded))
    expect(page.locator(".mp-record").first).to_contain_text("Of a CPU: it says nothing of a GPU.")


@pytest.mark.browser
@pytest.mark.parametrize(("theme", "width"), [("light", 800), ("dark", 390)])
def test_axe_finds_nothing_and_the_page_fits(
    theme: Any, width: int, open_explorer: OpenExplorer, tmp_path: Path
) -> None:
    page = open_explorer(RecordExplorer(OVERLAYS), width=width, color_scheme=theme)
    give(page, file_of(throughput(), tmp_path))
    page.get_by_text("All 4 cases").click()
    assert serious_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_without_javascript_the_known_numbers_are_there(open_explorer: OpenExplorer) -> None:
    page = open_explorer(RecordExplorer(OVERLAYS), java_script_enabled=False)
    expect(page.locator(".mp-static")).to_contain_text("1.0 to 1.5, median 1.1")


def test_products_are_laid_beside_what_others_reached() -> None:
    lines = product_lines()
    assert [line.of["format"] for line in lines] == ["bfloat16", "float8_e4m3fn"]
    reached = published(quantity="peak", model="single matrix product")
    for line, word in zip(lines, ("bf16", "fp8"), strict=True):
        ratios = reached.that(lambda f, word=word: word in f.precision_b).ratios
        assert line.published.startswith(f"{min(ratios):.0%} to {max(ratios):.0%}")
