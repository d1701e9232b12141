"""The synthetic tasks: every question has the one right answer that its definition says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mambacore import UsageError
from mambacore.tasks import InductionHeads, SelectiveCopying


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 70), st.integers(3, 300), st.integers(0, 2**31))
def test_induction_asks_for_what_followed_the_special_token(
    length: int, vocabulary: int, seed: int
) -> None:
    task = InductionHeads(length, vocabulary)
    tokens, answers = task.draw(5, generator=_generator(seed))
    assert tokens.shape == (5, length)
    assert answers.shape == (5, 1)
    special = vocabulary - 1
    for row, (answer,) in zip(tokens.tolist(), answers.tolist(), strict=True):
        assert row.count(special) == 2
        assert row[-1] == special
        assert row[row.index(special) + 1] == answer < special


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(1, 9), st.integers(4, 300), st.integers(0, 2**31))
def test_copying_asks_for_the_data_in_order(
    length: int, recall: int, vocabulary: int, seed: int
) -> None:
    task = SelectiveCopying(length, vocabulary, recall)
    tokens, answers = task.draw(4, generator=_generator(seed))
    assert tokens.shape == (4, length + 2 * recall)
    for row, expected in zip(tokens.tolist(), answers.tolist(), strict=True):
        assert [token for token in row[: length + recall] if token] == expected
        assert set(row[length + recall :]) == {vocabulary - 1}
        assert all(0 < token < vocabulary - 1 for token in expected)


def test_places_and_answers_are_uniform() -> None:
    tokens, answers = InductionHeads(10).draw(20_000, generator=_generator(0))
    place = (tokens == 15).int().argmax(dim=1)
    assert torch.bincount(place, minlength=10)[:8].min() > 2_200  # 2,500 each
    assert torch.bincount(answers[:, 0], minlength=15).min() > 1_150  # 1,333 each
    tokens, answers = SelectiveCopying(6, recall=2).draw(20_000, generator=_generator(0))
    assert (tokens[:, :8] > 0).sum(dim=0).min() > 4_700  # 5,000 each
    assert torch.bincount(answers.flatten(), minlength=15)[1:].min() > 2_600  # 2,857 each


@pytest.mark.parametrize("task", [InductionHeads(50), SelectiveCopying(30, recall=4)])
def test_the_generator_alone_decides(task: InductionHeads | SelectiveCopying) -> None:
    torch.manual_seed(1)
    once = task.draw(3, generator=_generator(5))
    torch.manual_seed(2)
    again = task.draw(3, generator=_generator(5))
    other = task.draw(3, generator=_generator(6))
    assert torch.equal(once.tokens, again.tokens)
    assert torch.equal(once.answers, again.answers)
    assert not torch.equal(once.tokens, other.tokens)


@pytest.mark.parametrize(
    "make",
    [
        lambda: InductionHeads(2),
        lambda: InductionHeads(9, vocab_size=2),
        lambda: SelectiveCopying(-1),
        lambda: SelectiveCopying(9, vocab_size=3),
        lambda: SelectiveCopying(9, recall=0),
    ],
)
def test_sizes_that_make_no_task_are_refused(make) -> None:
    with pytest.raises(UsageError):
        make()
