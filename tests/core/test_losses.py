"""The chunked loss is the plain loss: value, gradients, masks, chunks, memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_as_exact, assert_close
from mambacore.errors import UsageError
from mambacore.losses import LossSum, chunked_cross_entropy


def plain(hidden, weight, targets, mask):
    losses = F.cross_entropy(
        F.linear(hidden, weight).flatten(0, -2), targets.flatten(), reduction="none"
    )
    return (losses * mask.flatten()).sum()


def with_gradients(function, hidden, weight, *rest):
    hidden, weight = (x.detach().clone().requires_grad_() for x in (hidden, weight))
    value = function(hidden, weight, *rest)
    (value * 0.7).backward()
    return value.detach(), hidden.grad, weight.grad


def chunked(chunk):
    return lambda h, w, t, m: chunked_cross_entropy(h, w, t, mask=m, chunk=chunk).total


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 40),
    vocabulary=st.integers(1, 9),
    chunk=st.integers(1, 50),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_equals_the_plain_loss(batch, length, vocabulary, chunk, share, seed):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, length, 5, generator=g) * 3
    weight = torch.randn(vocabulary, 5, generator=g)
    targets = torch.randint(vocabulary, (batch, length), generator=g)
    mask = torch.rand(batch, length, generator=g) < share
    exact = with_gradients(plain, hidden.double(), weight.double(), targets, mask)
    reference = with_gradients(plain, hidden, weight, targets, mask)
    # Where nothing counts a target may be anything.
    shown = torch.where(mask, targets, 255 * torch.ones_like(targets)).to(torch.int16)
    got = with_gradients(chunked(chunk), hidden, weight, shown, mask)
    for name, a, e, r in zip(("loss", "d hidden", "d weight"), got, exact, reference, strict=True):
        assert_as_exact(a, e, r, name)
    count = chunked_cross_entropy(hidden, weight, shown, mask=mask).counted
    assert int(count) == int(mask.sum())


def test_sums_of_parts_are_the_sum_of_the_whole():
    """Segments and ranks add totals and counts."""
    hidden, weight = torch.randn(2, 31, 6).double(), torch.randn(4, 6).double()
    targets, mask = torch.randint(4, (2, 31)), torch.rand(2, 31) < 0.8
    whole = chunked_cross_entropy(hidden, weight, targets, mask=mask)
    cut = [slice(0, 7), slice(7, 31)]
    parts = [
        chunked_cross_entropy(hidden[:, c], weight, targets[:, c], mask=mask[:, c]) for c in cut
    ]
    total = sum(p.total for p in parts)
    count = sum(p.counted for p in parts)
    assert int(count) == int(whole.counted)
    assert_close(LossSum(total, count).mean(), whole.mean(), 1e-14)


def test_gradients_by_differences():
    hidden = torch.randn(1, 5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets, mask = torch.randint(4, (1, 5)), torch.tensor([[True, True, False, True, True]])
    assert torch.autograd.gradcheck(lambda h, w: chunked(2)(h, w, targets, mask), (hidden, weight))


def test_nothing_counted_is_zero():
    hidden, weight = torch.randn(1, 3, 2), torch.randn(4, 2)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    loss = chunked_cross_entropy(hidden, weight, torch.full((1, 3), 15), mask=nothing)
    assert (float(loss.total), int(loss.counted), float(loss.mean())) == (0.0, 0, 0.0)


def test_autocast_computes_as_a_linear_layer_does():
    hidden, weight, targets = torch.randn(1, 64, 32), torch.randn(16, 32), torch.arange(64) % 16
    mask = torch.ones(1, 64, dtype=torch.bool)
    exact = plain(hidden.double(), weight.double(), targets[None], mask)
    with torch.autocast("cpu", torch.bfloat16):
        reference = plain(hidden, weight, targets[None], mask)
        got, d_hidden, d_weight = with_gradients(chunked(7), hidden, weight, targets[None], mask)
    assert got.dtype == d_hidden.dtype == d_weight.dtype == torch.float32
    assert float(got) != float(plain(hidden, weight, targets[None], mask))
    assert_as_exact(got, exact, reference, dtype=torch.bfloat16)


def test_logits_never_stand_whole(monkeypatch):
    """No product has more rows than a chunk, and nothing (positions, vocabulary) is kept."""
    sizes = []
    real = F.linear
    monkeypatch.setattr(F, "linear", lambda x, w: sizes.append(len(x)) or real(x, w))
    kept = []
    hidden = torch.randn(1, 100, 4, requires_grad=True)
    weight = torch.randn(300, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        loss = chunked_cross_entropy(hidden, weight, torch.arange(100)[None], chunk=16)
    loss.total.backward()
    assert max(sizes) == 16
    assert len(sizes) == 14  # seven chunks, forward and backward
    assert max(kept) <= max(hidden.numel(), weight.numel())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(2, 4, dtype=torch.long)}, "targets must be integers"),
        ({"targets": torch.zeros(2, 3)}, "targets must be integers"),
        ({"targets": torch.full((2, 3), 7)}, "target 7 counts"),
        ({"mask": torch.zeros(2, 3)}, "mask must be bool"),
        ({"weight": torch.zeros(7, 5)}, "must be"),
        ({"chunk": 0}, "chunk must be"),
    ],
)
def test_what_does_not_go_together_is_named(change, message):
    arguments = {
        "hidden": torch.zeros(2, 3, 4),
        "weight": torch.zeros(7, 4),
        "targets": torch.zeros(2, 3, dtype=torch.long),
        **change,
    }
    with pytest.raises(UsageError, match=message):
        chunked_cross_entropy(**arguments)
