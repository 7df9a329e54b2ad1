"""products.py: a library is chosen by measuring it, here with a clock of the test's own, and then kept."""

import json
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from minbert import products
from minbert.hub import cache_home
from minbert.products import FEWEST_ROWS, GAIN, PRODUCTS, ROUNDS, is_faster

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


class Clock:
    """A clock that moves only as the contestants say."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, seconds: Iterator[float]):
        def work() -> None:
            self.now += next(seconds)

        return work


def verdict(plain: list[float], other: list[float]) -> bool:
    """Return whether a contestant is chosen that takes these seconds in one round after another; the one
    before them warms up."""
    clock = Clock()
    return is_faster(clock.takes(iter([100.0, *other])), clock.takes(iter(plain)), clock)


@pytest.mark.parametrize(
    "ratio, faster", [(2.0, True), (GAIN + 0.01, True), (1.05, False), (1.0, False), (0.5, False)]
)
def test_a_library_must_be_clearly_faster(ratio, faster):
    assert verdict([1.0] * ROUNDS, [1 / ratio] * ROUNDS) == faster


@pytest.mark.parametrize("ratio, faster", [(2.0, True), (1.05, False)])
def test_the_least_disturbed_round_counts(ratio, faster):
    """Whatever a busy machine adds to all rounds but one, on either side."""
    slow, quick = [5.0, 3.0, 9.0, 4.0], [1 / ratio]
    assert len(slow) + len(quick) == ROUNDS
    assert verdict([1.0, *slow], slow + quick) == faster
    assert verdict([*slow, 1.0], quick + slow) == faster


@pytest.fixture
def measured(monkeypatch, tmp_path) -> list[tuple[int, int, int]]:
    """What has been measured; oneDNN wins the first product of layers with more outputs than inputs."""
    sizes: list[tuple[int, int, int]] = []

    def measure(inputs: int, outputs: int, rows: int) -> frozenset[str]:
        sizes.append((inputs, outputs, rows))
        return frozenset(PRODUCTS[:1] if outputs > inputs else ())

    monkeypatch.setattr(products, "measure", measure)
    as_a_new_process(monkeypatch)
    monkeypatch.setenv("MINBERT_CACHE", str(tmp_path))
    return sizes


def as_a_new_process(monkeypatch) -> None:
    monkeypatch.setattr(products, "_measured", {})
    monkeypatch.setattr(products, "_adopted", {})


def test_a_size_is_measured_once_on_a_machine(monkeypatch, measured):
    small, large = FEWEST_ROWS
    assert products.chosen(8, 9, small) == products.chosen(8, 9, large - 1) == {"output"}
    assert products.chosen(8, 9, 10 * large) == {"output"} and products.chosen(9, 8, small) == frozenset()
    assert measured == [(8, 9, small), (8, 9, large), (9, 8, small)]
    as_a_new_process(monkeypatch)
    assert products.chosen(8, 9, small) == {"output"} and len(measured) == 3
    monkeypatch.setattr(products, "processor", lambda: "another processor")
    as_a_new_process(monkeypatch)
    assert products.chosen(8, 9, small) == {"output"} and len(measured) == 4
    assert len(json.loads((cache_home() / "products.json").read_text())) == 2


def test_another_number_of_threads_is_another_machine(monkeypatch, measured):
    products.chosen(8, 9, 32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    products.chosen(8, 9, 32)
    assert len(measured) == 2


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{",
        '{"MACHINE": 3}',
        '{"MACHINE": {"8 x 9": []}}',
        '{"MACHINE": {"8 x 9, 32 rows or more": ["sum"]}}',
    ],
)
def test_a_damaged_file_is_measured_again(monkeypatch, measured, content):
    path = cache_home() / "products.json"
    path.write_text(content.replace("MACHINE", products.machine()))
    assert products.chosen(8, 9, 32) == {"output"} and len(measured) == 1
    as_a_new_process(monkeypatch)
    assert products.chosen(8, 9, 32) == {"output"} and len(measured) == 1


def test_where_nothing_can_be_kept_it_measures_all_the_same(monkeypatch, measured, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINBERT_CACHE", str(tmp_path / "file"))
    assert products.chosen(8, 9, 32) == {"output"}


def test_choices_are_adopted_in_this_process_alone(monkeypatch, measured):
    found = products.choices({(8, 9), (9, 8)})
    assert found["8 x 9, 32 rows or more"] == ["output"] and len(found) == 2 * len(FEWEST_ROWS)
    products.adopt({name: ["input"] for name in found})
    assert products.chosen(8, 9, 40) == {"input"} and products.choices({(8, 9)}).items() <= found.items()
    products.chosen(10, 11, 40)  # has the file written
    as_a_new_process(monkeypatch)
    assert products.chosen(8, 9, 40) == {"output"}
    with pytest.raises(ValueError, match="not a product"):
        products.adopt({"8 x 9": []})


@needs_onednn
def test_the_three_products():
    """measure() names a subset of them, and onednn() computes what its docstring says, of views as well."""
    assert products.measure(64, 32, 32) <= {*PRODUCTS}
    x, weight, bias = torch.randn(32, 64), torch.randn(16, 64), torch.randn(16)
    torch.testing.assert_close(products.onednn(x, weight, bias), x @ weight.t() + bias, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(products.onednn(x.t(), x.t()), x.t() @ x, rtol=1e-5, atol=1e-4)


@needs_onednn
def test_measuring_does_not_depend_on_torchs_defaults():
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            assert products.measure(64, 32, 32) <= {*PRODUCTS}
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "text, name",
    [
        ("model name\t: AMD EPYC\ncpu family\t: 26\nmodel\t\t: 2\n", "AMD EPYC, family 26, model 2"),
        ("CPU implementer\t: 0x41\nCPU part\t: 0xd40\n", "aarch64, maker 0x41, part 0xd40"),
        ("", "aarch64"),
    ],
)
def test_processors_have_names(monkeypatch, text, name):
    monkeypatch.setattr(Path, "exists", lambda _: bool(text))
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert products.processor.__wrapped__() == name
