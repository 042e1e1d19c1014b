"""`mpbook.data`: batches drawn by a seed, and training and held-out parts that never meet."""

import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

import mpbook.data
from mpbook.data import (
    ByteCorpus,
    Data,
    Examples,
    digits,
    identifiers,
    python_manual,
    standard_library,
)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def counted(examples: int = 10, held_out: int = 7) -> Examples:
    """Examples whose targets tell which input they belong to."""
    x = torch.arange(examples + held_out).float()[:, None].expand(-1, 3)
    y = torch.arange(examples + held_out) * 100
    return Examples(x[:examples], y[:examples], x[examples:], y[examples:])


def same_batches(left: list[Any], right: list[Any]) -> bool:
    pairs = zip(left, right, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


# --- examples ---------------------------------------------------------------------------------


def test_a_batch_pairs_inputs_with_their_targets() -> None:
    inputs, targets = counted().sample(64, seeded(0))
    assert inputs.shape == (64, 3)
    assert targets.shape == (64,)
    assert torch.equal(inputs[:, 0] * 100, targets.float())


def test_a_batch_is_drawn_with_replacement_from_all_training_examples_and_no_others() -> None:
    data = counted()
    drawn = torch.cat([data.sample(100, seeded(seed))[1] for seed in range(5)])
    assert set((drawn // 100).tolist()) == set(range(10))
    counts = torch.bincount(drawn // 100)
    assert counts.min() > 20
    assert counts.max() < 80


def test_held_out_examples_come_once_each_in_order() -> None:
    batches = list(counted().validation(3))
    assert [len(inputs) for inputs, _ in batches] == [3, 3, 1]
    assert torch.cat([y for _, y in batches]).tolist() == [100 * i for i in range(10, 17)]
    assert all(torch.equal(x[:, 0] * 100, y.float()) for x, y in batches)
    assert same_batches(batches, list(counted().validation(3)))


def test_held_out_examples_may_be_missing_or_none() -> None:
    x, y = torch.ones(2, 3), torch.ones(2)
    assert list(Examples(x, y).validation(3)) == []
    assert list(Examples(x, y, x[:0], y[:0]).validation(3)) == []


def test_examples_have_a_name_and_count_one_item_each() -> None:
    data = Examples(torch.ones(2, 3), torch.ones(2))
    assert (data.name, data.items_per_example) == ("examples", 1)
    assert Examples(data.inputs, data.targets, name="mine").name == "mine"


@pytest.mark.parametrize("data", [counted(), Examples(torch.ones(2, 3), torch.ones(2), name="a")])
def test_examples_move_to_a_device_whole(data: Examples) -> None:
    moved = data.to(torch.device("meta"))
    for field in ("inputs", "targets", "validation_inputs", "validation_targets"):
        before, after = getattr(data, field), getattr(moved, field)
        assert (before is None) == (after is None)
        if before is not None:
            assert after.device.type == "meta"
            assert after.shape == before.shape
            assert before.device.type == "cpu"
    assert moved.name == data.name


def test_no_examples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"inputs: mine has no examples; expected at least one"):
        Examples(torch.ones(0, 3), torch.ones(0), name="mine")


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((3, 2, None, None), "^targets: 2 for 3 inputs, expected one target for each input"),
        ((2, 3, 1, 1), "^targets: 3 for 2 inputs"),
        ((2, 2, 1, None), "^validation_targets: 0 for 1 validation_inputs, expected one target"),
        ((2, 2, None, 1), "^validation_targets: 1 for 0 validation_inputs"),
        ((2, 2, 3, 1), "^validation_targets: 1 for 3 validation_inputs"),
        ((2, 2, None, 0), "^validation_targets: 0 for 0"),
    ],
)
def test_inputs_without_their_targets_are_refused(
    counts: tuple[int | None, ...], message: str
) -> None:
    tensors: list[Any] = [None if n is None else torch.ones(n) for n in counts]
    with pytest.raises(ValueError, match=message):
        Examples(*tensors)


# --- a corpus ---------------------------------------------------------------------------------


def corpus(size: int = 40, length: int = 4, **options: Any) -> ByteCorpus:
    """A text whose bytes are their own positions."""
    options = dict(validation_fraction=0.25) | options
    return ByteCorpus(torch.arange(size, dtype=torch.uint8), length, **options)


def starts(batches: list[tuple[Tensor, Tensor]]) -> list[int]:
    return sorted({int(start) for inputs, _ in batches for start in inputs[:, 0]})


def test_a_target_is_the_byte_after_its_input() -> None:
    for inputs, targets in (corpus().sample(50, seeded(0)), *corpus().validation(50)):
        assert inputs.shape == targets.shape == (50, 4)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.is_contiguous()
        assert targets.is_contiguous()
        assert torch.equal(targets, inputs + 1)
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(4))


def test_training_reads_every_place_of_its_part_and_nothing_else() -> None:
    data = corpus()  # training part 0..29, held out 30..39
    batches = [data.sample(200, seeded(seed)) for seed in range(10)]
    assert starts(batches) == list(range(26))
    assert max(int(targets.max()) for _, targets in batches) == 29


def test_validation_reads_every_place_of_the_held_out_part_and_nothing_else() -> None:
    batches = list(corpus().validation(200))
    assert starts(batches) == list(range(30, 36))
    assert max(int(targets.max()) for _, targets in batches) == 39
    assert min(int(inputs.min()) for inputs, _ in batches) == 30


@pytest.mark.parametrize(("fraction", "first"), [(0.5, 20), (0.2, 32), (0.32, 27)])
def test_the_end_of_the_text_is_held_out(fraction: float, first: int) -> None:
    data = corpus(validation_fraction=fraction)
    batches = [data.sample(400, seeded(0))]
    assert max(int(targets.max()) for _, targets in batches) == first - 1
    assert min(starts(list(data.validation(200)))) == first


def test_a_twentieth_is_held_out_unless_told_otherwise() -> None:
    data = ByteCorpus(torch.arange(200, dtype=torch.uint8), 2)
    assert starts(list(data.validation(200))) == list(range(190, 198))
    assert len(list(data.validation(3))) == 8
    assert data.name == "bytes"


def test_validation_gives_as_many_batches_as_asked_the_same_each_time() -> None:
    data = corpus(validation_batches=3)
    first, second = list(data.validation(5)), list(data.validation(5))
    assert [x.shape for x, _ in first] == [(5, 4)] * 3
    assert same_batches(first, second)
    torch.manual_seed(99)
    assert same_batches(first, list(data.validation(5)))
    assert not torch.equal(first[0][0], first[1][0])


def test_a_corpus_counts_tokens_and_keeps_its_settings_on_a_device() -> None:
    data = corpus(length=6, name="mine", validation_batches=2)
    assert data.items_per_example == 6
    moved = data.to(torch.device("meta"))
    assert moved.text.device.type == "meta"
    assert data.text.device.type == "cpu"
    settings = ("sequence_length", "name", "validation_fraction", "validation_batches")
    assert [getattr(moved, s) for s in settings] == [6, "mine", 0.25, 2]


def test_a_corpus_may_just_fit() -> None:
    data = corpus(10, 4, validation_fraction=0.5)
    for inputs, _ in (data.sample(20, seeded(0)), *data.validation(20)):
        assert len(set(inputs[:, 0].tolist())) == 1


@pytest.mark.parametrize(
    ("size", "length", "fraction"), [(10, 5, 0.5), (40, 10, 0.25), (40, 20, 0.75), (0, 1, 0.5)]
)
def test_a_text_that_is_too_short_is_refused(size: int, length: int, fraction: float) -> None:
    message = f"text: {size} bytes are too few for sequence_length={length} with {fraction:.0%} of"
    with pytest.raises(ValueError, match=message):
        corpus(size, length, validation_fraction=fraction)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    message = f"validation_fraction={fraction}: expected a number between 0 and 1"
    with pytest.raises(ValueError, match=message):
        corpus(validation_fraction=fraction)


@pytest.mark.parametrize("length", [0, -3])
def test_a_sequence_holds_at_least_one_token(length: int) -> None:
    with pytest.raises(ValueError, match=f"sequence_length={length}: expected at least 1"):
        corpus(length=length)
    assert corpus(length=1).sample(2, seeded(0))[0].shape == (2, 1)


@pytest.mark.parametrize("text", [torch.ones(50), torch.ones(50, 2, dtype=torch.uint8)])
def test_a_text_is_a_sequence_of_integers(text: Tensor) -> None:
    with pytest.raises(ValueError, match=r"text: torch.* of shape .*, expected uint8 of shape"):
        ByteCorpus(text, 2, validation_fraction=0.5)


# --- a seed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [counted(), corpus()], ids=["examples", "corpus"])
def test_the_same_seed_gives_the_same_batches_and_another_gives_others(data: Data) -> None:
    def batches(seed: int) -> list[Any]:
        generator = seeded(seed)
        return [data.sample(32, generator) for _ in range(3)]

    first = batches(1)
    torch.manual_seed(5)  # the global generator has no say
    assert same_batches(first, batches(1))
    assert not torch.equal(first[0][0], first[1][0])
    assert not torch.equal(first[0][0], batches(2)[0][0])


@pytest.mark.parametrize("data", [counted(), corpus()], ids=["examples", "corpus"])
def test_drawing_leaves_the_global_generator_alone(data: Data) -> None:
    state = torch.get_rng_state()
    data.sample(4, seeded(0))
    list(data.validation(4))
    assert torch.equal(torch.get_rng_state(), state)


# --- digits -----------------------------------------------------------------------------------


def test_digits_are_scikit_learns_each_exactly_once() -> None:
    raw, labels = load_digits(return_X_y=True)
    data = digits()
    assert data.validation_inputs is not None
    assert data.validation_targets is not None
    x = torch.cat([data.inputs, data.validation_inputs])
    y = torch.cat([data.targets, data.validation_targets])
    pixels = (x - x.min()) * 16  # the darkest pixel is 0
    ours = np.column_stack([pixels.round().numpy(), y.numpy()])
    theirs = np.column_stack([raw, labels])
    assert torch.allclose(pixels, pixels.round(), atol=1e-4)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))


def test_digits_are_shuffled_the_same_way_each_time() -> None:
    _, labels = load_digits(return_X_y=True)
    first = digits()
    torch.manual_seed(77)
    second = digits()
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.targets, second.targets)
    assert first.targets[:100].tolist() != labels[:100].tolist()


def test_digits_have_zero_mean_and_a_range_of_one() -> None:
    for held_out in (360, 1000):
        data = digits(validation_examples=held_out)
        assert abs(data.inputs.mean().item()) < 1e-5
        assert data.inputs.max() - data.inputs.min() == pytest.approx(1)
        assert data.validation_inputs is not None
        assert abs(data.validation_inputs.mean().item()) > 1e-4  # the mean is the training part's


def test_digits_have_the_shapes_and_dtypes_that_models_take() -> None:
    flat, images = digits(), digits(images=True)
    assert flat.inputs.shape == (1437, 64)
    assert images.inputs.shape == (1437, 1, 8, 8)
    assert images.validation_inputs is not None
    assert images.validation_inputs.shape == (360, 1, 8, 8)
    assert torch.equal(images.inputs.flatten(1), flat.inputs)
    assert flat.inputs.dtype == torch.float32
    assert flat.targets.dtype == torch.int64
    assert flat.targets.shape == (1437,)
    assert set(flat.targets.tolist()) == set(range(10))
    assert (flat.name, flat.items_per_example) == ("digits", 1)


def test_an_image_stands_upright() -> None:
    raw, _ = load_digits(return_X_y=True)
    image = digits(images=True).inputs[0, 0]
    pixels = ((image - image.min()) * 16).round()
    assert any(np.array_equal(pixels.numpy(), x.reshape(8, 8)) for x in raw)


@pytest.mark.parametrize("held_out", [0, 1, 360, 1796])
def test_as_many_digits_are_held_out_as_asked(held_out: int) -> None:
    data = digits(validation_examples=held_out)
    assert len(data.inputs) == len(data.targets) == 1797 - held_out
    assert sum(len(y) for _, y in data.validation(500)) == held_out


@pytest.mark.parametrize("held_out", [-1, 1797, 5000])
def test_a_split_without_training_digits_is_refused(held_out: int) -> None:
    with pytest.raises(ValueError, match=f"validation_examples={held_out}: expected 0 to 1796"):
        digits(validation_examples=held_out)


def test_without_scikit_learn_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'scikit-learn: pip install "mpbook\[notebook\]"'):
        digits()


# --- Python's standard library ----------------------------------------------------------------


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An invented standard library of 10 modules, 100 bytes each, and what is left out."""
    for i in range(10):
        path = tmp_path / ("package" if i % 2 else ".") / f"module_{i}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([97 + i]) * 100)
    for folder in ("test", "site-packages", "tests", "pydoc_data", "package/tests", "idlelib"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "left_out.py").write_bytes(b"Z" * 100)
    (tmp_path / "data.txt").write_bytes(b"Z" * 100)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(
        mpbook.data,
        "_standard_library_bytes",
        mpbook.data._standard_library_bytes.__wrapped__,
    )
    return tmp_path


def letters(data: ByteCorpus) -> str:
    """The corpus, each module by one letter."""
    lines = bytes(data.text.tolist()).split(b"\n")
    assert all(len(line) == 100 and len(set(line)) == 1 for line in lines)
    return "".join(chr(line[0]) for line in lines)


@pytest.mark.usefixtures("library")
def test_the_corpus_is_every_module_in_order_of_its_path_without_tests() -> None:
    assert letters(standard_library(sequence_length=8)) == "acegibdfhj"


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("megabytes", "expected"),
    [(0.0005, "aeidh"), (0.00025, "aih"), (0.0003, "agdj"), (1, "acegibdfhj")],
)
def test_a_smaller_corpus_is_spread_over_the_whole_library(megabytes: float, expected: str) -> None:
    assert letters(standard_library(sequence_length=8, megabytes=megabytes)) == expected


def test_a_python_without_its_source_is_refused(library: Path) -> None:
    for path in library.rglob("*.py"):
        path.unlink()
    with pytest.raises(RuntimeError, match=r"no Python source under .*: this Python was installed"):
        standard_library()


@pytest.mark.parametrize("megabytes", [0, -1.0, float("nan")])
def test_megabytes_are_positive(megabytes: float) -> None:
    with pytest.raises(ValueError, match=f"megabytes={megabytes}: expected a positive number, or"):
        standard_library(megabytes=megabytes)


def test_the_real_corpus_is_python_on_this_machine() -> None:
    data = standard_library(sequence_length=32, megabytes=0.3)
    assert data.name == "standard library"
    assert data.sequence_length == 32
    assert data.text.dtype == torch.uint8
    assert 1e5 < len(data.text) < 1e6
    text = bytes(data.text.tolist())
    assert b"def " in text
    assert b"import " in text
    again = standard_library(megabytes=0.3)
    assert again.sequence_length == 64
    assert torch.equal(again.text, data.text)
    again.text[0] = 0  # each corpus owns its bytes
    assert data.text[0] != 0


# --- identifiers of the standard library ------------------------------------------------------


@pytest.fixture
def source(library: Path) -> Path:
    """An invented standard library of one module: 22 passages of two lines, the last ones strange.

    Passage k holds ``common`` twice, ``w{k}`` and ``w{k + 1}``, and what is no identifier.
    """
    for path in library.rglob("*.py"):
        path.unlink()
    passages = [f"w{k} = common\n(common + w{k + 1}) * 7 - x" for k in range(20)]
    strange = "held_out = common\nheld_out()"
    (library / "module.py").write_text("\n".join([*passages, strange, strange]))
    return library


def words_of(data: Examples, inputs: Tensor) -> set[int]:
    return set(inputs.tolist()) - {data.targets.shape[1]}


@pytest.mark.usefixtures("source")
def test_a_passage_is_the_set_of_its_identifiers_the_commonest_first() -> None:
    data = identifiers(vocabulary=5, lines=2, longest=4, megabytes=None)
    assert data.inputs.dtype == torch.int64
    assert data.inputs.shape == (18, 4)
    assert (data.inputs[:, 0] == 0).all()  # "common" is everywhere
    assert data.inputs[0].tolist() == [0, 1, 5, 5]  # w0 occurs once, w1 twice: rank 1; then padding
    assert data.inputs[1].tolist() == [0, 1, 2, 5]
    assert data.inputs[10].tolist() == [0, 5, 5, 5]  # nothing of the vocabulary but "common"


@pytest.mark.usefixtures("source")
def test_targets_say_which_words_of_the_vocabulary_occur_in_the_passage_that_follows() -> None:
    data = identifiers(vocabulary=5, lines=2, longest=4, megabytes=None)
    assert data.targets.dtype == torch.bool
    assert data.targets.shape == (18, 5)
    assert data.targets[0].tolist() == [True, True, True, False, False]
    for row in range(17):
        following = words_of(data, data.inputs[row + 1])
        assert set(data.targets[row].nonzero().flatten().tolist()) == following


@pytest.mark.usefixtures("source")
def test_a_tenth_of_the_passages_is_held_out_and_has_no_say_in_the_vocabulary() -> None:
    data = identifiers(vocabulary=20, lines=2, longest=4, megabytes=None)
    assert data.validation_inputs is not None
    assert data.validation_targets is not None
    assert (len(data.inputs), len(data.validation_inputs)) == (18, 3)
    assert data.validation_targets[-1].nonzero().flatten().tolist() == [0]  # "held_out" is unknown
    with pytest.raises(ValueError, match=r"vocabulary=21: the training part has only 20 identif"):
        identifiers(vocabulary=21, lines=2, megabytes=None)


@pytest.mark.usefixtures("source")
def test_a_passage_that_is_too_long_keeps_its_commonest_words_as_inputs() -> None:
    whole = identifiers(vocabulary=10, lines=2, longest=4, megabytes=None)
    short = identifiers(vocabulary=10, lines=2, longest=2, megabytes=None)
    assert torch.equal(short.inputs, whole.inputs[:, :2])
    assert torch.equal(short.targets, whole.targets)


@pytest.mark.usefixtures("source")
def test_longer_passages_are_fewer() -> None:
    assert len(identifiers(vocabulary=5, lines=4, longest=9, megabytes=None).inputs) == 9


@pytest.mark.parametrize("name", ["vocabulary", "lines", "longest"])
def test_counts_of_identifiers_are_at_least_one(name: str) -> None:
    options: Any = {name: 0}
    with pytest.raises(ValueError, match=f"{name}=0: expected at least 1"):
        identifiers(**options)


def test_identifiers_are_pythons_own_and_about_one_label_in_a_hundred_is_true() -> None:
    data = identifiers()
    assert (data.name, data.items_per_example) == ("identifiers", 1)
    assert data.inputs.shape[1:] == (64,)
    assert data.targets.shape[1:] == (4096,)
    assert len(data.inputs) > 2000
    assert 0.005 < data.targets.float().mean().item() < 0.02
    assert data.inputs.max() == 4096
    again = identifiers(vocabulary=4096, lines=20, longest=64, megabytes=3.0)
    assert torch.equal(again.inputs, data.inputs)
    assert torch.equal(again.targets, data.targets)


def test_fewer_megabytes_give_fewer_passages() -> None:
    small, large = (identifiers(vocabulary=500, megabytes=size) for size in (0.5, 1.0))
    assert 1.2 < len(large.inputs) / len(small.inputs) < 3


# --- Python's manual --------------------------------------------------------------------------


def topics_module(**topics: str) -> ModuleType:
    module = ModuleType("pydoc_data.topics")
    module.__dict__["topics"] = topics
    return module


def test_the_manual_is_every_chapter_in_order_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = topics_module(b="second é", a="first\n", c=" third")
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", module)
    data = python_manual(sequence_length=1)
    assert bytes(data.text.tolist()).decode() == "first\n\nsecond é\n third"
    assert data.sequence_length == 1


def test_a_python_without_the_text_of_help_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(RuntimeError, match=r"no module pydoc_data\.topics: this Python was"):
        python_manual()


def test_the_real_manual_is_english_on_this_machine() -> None:
    data = python_manual()
    assert data.name == "Python manual"
    assert data.sequence_length == 64
    assert data.text.dtype == torch.uint8
    assert 3e5 < len(data.text) < 3e6
    assert b'The "assert" statement' in bytes(data.text.tolist())
    again = python_manual(sequence_length=32)
    assert again.sequence_length == 32
    assert torch.equal(again.text, data.text)
    again.text[0] = 0  # each corpus owns its bytes
    assert data.text[0] != 0


def test_the_manual_is_no_part_of_the_library() -> None:
    library = bytes(standard_library().text.tolist())
    assert b'The "assert" statement' not in library
