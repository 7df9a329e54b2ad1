"""dropout.py: the right fraction is dropped, the mean stays, and elements are dropped independently."""

import pytest
import torch

from minbert.dropout import Dropout, dropout


@pytest.mark.parametrize("probability", [0.1, 1 / 3, 0.5, 0.99])
def test_share_and_mean(probability: float) -> None:
    """Of n = 400,000 ones a fraction p is dropped, with a standard deviation of sqrt(p (1 - p) / n), and the
    rest become 1 / (1 - p); rounding p to a multiple of 2^-16 moves it by 8e-6 at most."""
    dropped = dropout(torch.ones(1000, 400), probability)
    share = (dropped == 0).float().mean().item()
    assert share == pytest.approx(probability, abs=4 * (probability * (1 - probability) / 400_000) ** 0.5)
    kept = dropped[dropped != 0]
    assert len(kept.unique()) == 1
    assert kept[0].item() == pytest.approx(1 / (1 - probability), rel=1e-5 / (1 - probability))


def test_shares_are_multiples_of_a_sixteen_bit_number() -> None:
    """At .1, 58,982 of 65,536 are kept, for .9 x 65,536 = 58,982.4; torch's dropout would multiply the rest
    by 1 / .9. On other devices than the CPU, torch's dropout is used."""
    assert dropout(torch.ones(1000), 0.1).max().item() == pytest.approx(65_536 / 58_982, rel=1e-7)
    assert dropout(torch.ones(1000, device="meta"), 0.1).is_meta


def test_just_the_lowest_numbers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """If each of the 65,536 numbers is drawn once, the elements with the 58,982 lowest are kept."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16)

    def drawn(self: torch.Tensor, *_: object) -> torch.Tensor:
        self.view(torch.int16)[: 2**16] = numbers
        return self

    monkeypatch.setattr(torch.Tensor, "random_", drawn)
    assert (dropout(torch.ones(2**16), 0.1) > 0).tolist() == [True] * 58_982 + [False] * 6_554


def test_elements_are_independent() -> None:
    """Four neighbours come from one draw: at 1/2 all 16 patterns of them are equally frequent, each 5,000 of
    80,000 with a standard deviation of 68; and so are the patterns of the same quarter of four draws."""
    kept = (dropout(torch.ones(80_000, 4), 0.5) > 0).long()
    for patterns in (kept, kept.view(20_000, 4, 4).transpose(1, 2).reshape(80_000, 4)):
        counts = (patterns * torch.tensor([1, 2, 4, 8])).sum(dim=1).bincount(minlength=16)
        assert (counts - 5000).abs().max() < 5 * 68


def test_a_function_of_the_seed() -> None:
    x = torch.randn(3, 5, 7)
    torch.manual_seed(1)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (4,), (2, 5), (0, 3)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    assert dropout(torch.ones(shape), 0.5).shape == shape


def test_the_gradient_falls_where_the_value_does() -> None:
    x = torch.ones(50, 50, requires_grad=True)
    y = dropout(x, 0.3)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_nothing_in_evaluation_or_at_zero() -> None:
    x = torch.randn(4, 4)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not torch.equal(Dropout(0.5)(x), x)


def test_half_precision_keeps_its_type() -> None:
    assert dropout(torch.ones(8, dtype=torch.bfloat16), 0.5).dtype == torch.bfloat16


@pytest.mark.parametrize("probability", [1.0, 0.9999999])
def test_nothing_is_kept_where_everything_is_dropped(probability):
    assert not dropout(torch.ones(100), probability).any()
