"""A sequence split over ranks anywhere equals the whole: outputs and every gradient."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sequence_ranks import in_processes, in_threads
from torch import nn

from helpers import assert_close
from mambacore import Backbone, LanguageModel, ModelConfig, Pooling, UsageError, build_mixer
from mambacore.checkpointing import set_checkpointing
from mambacore.losses import chunked_cross_entropy
from mambacore.parallel import SequenceGroup, average_gradients, part_of, split_sequence

WHOLE = SequenceGroup()
MIXERS = {
    "mamba": {"d_state": 3, "d_conv": 5},
    "mamba-reference": {"d_state": 3, "d_conv": 5, "backend": "reference"},
    "mamba-zoh": {"d_state": 2, "discretization": "zoh", "backend": "reference"},
    "mamba-fused": {"d_state": 3, "d_conv": 5, "recompute": True},
    "mamba-fused-reference": {
        "recompute": True,
        "conv_bias": False,
        "bias": True,
        "d_state": 2,
        "discretization": "zoh",
        "backend": "reference",
    },
    "s4d": {"d_state": 4, "block": 4},
    "bidirectional": {"inner_options": {"d_state": 3, "recompute": True}},
    "bidirectional-shared": {"inner": "s4d", "inner_options": {"d_state": 4}, "shared": True},
}


def make_mixer(name: str, dtype: torch.dtype = torch.float64, seed: int = 0):
    torch.manual_seed(seed)
    mixer = build_mixer(name.split("-")[0], 6, **MIXERS[name])
    if dtype == torch.float64:
        mixer = mixer.double()
    return mixer


def run_part(model, group, bounds, x, ids, weight):
    """Outputs and gradients of one part; the loss is a weighted sum of all outputs."""
    model = copy.deepcopy(model)
    split_sequence(model, group)
    part = slice(bounds[group.rank], bounds[group.rank + 1])
    own = x[:, part].clone().requires_grad_()
    y, _ = model(own, segment_ids=None if ids is None else ids[:, part])
    group.sum((y * weight[:, part]).sum()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return y.detach(), own.grad, gradients


def joined(parts):
    """Whole outputs, input gradients and mean parameter gradients from those of the parts."""
    ys, dxs, gradients = zip(*parts, strict=True)
    mean = {k: sum(g[k] for g in gradients) / len(parts) for k in gradients[0]}
    return torch.cat(ys, 1), torch.cat(dxs, 1) / len(parts), mean


def assert_equal_runs(got, expected, relative):
    assert_close(got[0], expected[0], relative, "y")
    assert_close(got[1], expected[1], relative, "dx")
    assert got[2].keys() == expected[2].keys()
    for name, gradient in expected[2].items():
        assert_close(got[2][name], gradient, relative, name)


@st.composite
def split_sequences(draw):
    size = draw(st.integers(2, 4))
    lengths = [draw(st.integers(1, 9)) for _ in range(size)]
    changes = draw(st.lists(st.booleans(), min_size=2 * sum(lengths), max_size=2 * sum(lengths)))
    packed = draw(st.booleans())
    return lengths, changes if packed else None, draw(st.integers(0, 1000))


@pytest.mark.parametrize("name", MIXERS)
@settings(max_examples=8, deadline=None)
@given(case=split_sequences())
def test_any_split_equals_the_whole(name, case):
    lengths, changes, seed = case
    bounds = [0]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(2, 2, bounds[-1], 6, generator=generator, dtype=torch.float64)
    ids = None
    if changes is not None:  # ids that come back: what counts is the run
        ids = torch.tensor(changes).view(2, -1).cumsum(1) % 2
    model = make_mixer(name)
    whole = run_part(model, WHOLE, (0, bounds[-1]), x, ids, weight)
    parts, _ = in_threads(
        len(lengths), lambda group: run_part(model, group, bounds, x, ids, weight)
    )
    assert_equal_runs(joined(parts), whole, 1e-10)


@pytest.mark.parametrize("name", ["mamba", "mamba-fused", "s4d", "bidirectional"])
def test_messages_do_not_grow_with_length(name):
    model = make_mixer(name)
    sent = []
    for length in (8, 64):
        x, weight = torch.randn(2, 1, 2 * length, 6, dtype=torch.float64)
        bounds = (0, length, 2 * length)
        _, meeting = in_threads(
            2,
            lambda group: run_part(model, group, bounds, x, None, weight),  # noqa: B023
        )
        sent.append(meeting.sent)
    assert sent[0] == sent[1]


@pytest.mark.parametrize("kind", ["mean", "last", "max"])
def test_pooling_of_parts(kind):
    """Also where a row's valid positions end in an earlier part, or there are none."""
    hidden = torch.randn(4, 9, 3)
    weight = torch.randn(4, 3)
    lengths = torch.tensor([9, 4, 2, 0])

    def run(group, start, stop):
        pool = Pooling(kind)
        split_sequence(pool, group)
        own = hidden[:, start:stop].clone().requires_grad_()
        pooled = pool(own, (lengths - start).clamp(0, stop - start))
        (pooled * weight).sum().backward()
        return pooled.detach(), own.grad / group.size

    expected = run(WHOLE, 0, 9)
    bounds = (0, 3, 5, 9)
    parts, _ = in_threads(3, lambda g: run(g, bounds[g.rank], bounds[g.rank + 1]))
    for pooled, _ in parts:
        assert_close(pooled, expected[0], 1e-6)
    assert_close(torch.cat([d for _, d in parts], 1), expected[1], 1e-6)


def test_attention_is_refused_and_nothing_is_changed():
    config = ModelConfig(vocab_size=8, d_model=8, layers=("mamba", "attention"), n_layer=2)
    model = LanguageModel(config)
    with pytest.raises(UsageError, match=r"backbone\.layers\.1\.mixer \(AttentionMixer\) needs"):
        split_sequence(model, SequenceGroup(0, 2))
    assert all(getattr(m, "sequence_group", None) is None for m in model.modules())


def test_a_state_is_refused():
    mixer = make_mixer("mamba", torch.float32)
    _, state = mixer(torch.randn(1, 3, 6))
    split_sequence(mixer, SequenceGroup(0, 2))
    with pytest.raises(UsageError, match="takes no state"):
        mixer(torch.randn(1, 3, 6), state)
    split_sequence(mixer, None)
    mixer(torch.randn(1, 3, 6), state)


@pytest.mark.parametrize("mode", ["none", "selective", "block"])
def test_checkpointed_blocks_exchange_again(mode):
    """What a block computes again in the backward pass meets the others again; pieces of a part
    would need the state of the piece before, so a part is taken whole."""
    torch.manual_seed(0)
    model = Backbone(ModelConfig(d_model=6, n_layer=2)).double()
    set_checkpointing(model, mode, piece=3)
    x, weight = torch.randn(2, 1, 20, 6, dtype=torch.float64)
    whole = run_part(model, WHOLE, (0, 20), x, None, weight)
    parts, _ = in_threads(2, lambda group: run_part(model, group, (0, 9, 20), x, None, weight))
    assert_equal_runs(joined(parts), whole, 1e-10)


def test_parts_cover_the_whole():
    for length in range(12):
        bounds = [part_of(length, rank, 5) for rank in range(5)]
        assert bounds[0][0] == 0
        assert bounds[-1][1] == length
        assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
        assert max(b - a for a, b in bounds) - min(b - a for a, b in bounds) <= 1


def test_a_group_needs_processes():
    with pytest.raises(
        UsageError, match="needs torch.distributed: start the program with torchrun"
    ):
        SequenceGroup.split_world(2)


# ---- two gloo processes: a language model's training step, once for all dtypes


def lm_step(group: SequenceGroup, dtype: torch.dtype, tokens, ids, name: str):
    """Loss and gradients of a step; the label of a part's last token is the next part's first."""
    torch.manual_seed(3)
    kind = name.split("-")[0]
    config = ModelConfig(
        vocab_size=11, d_model=8, n_layer=2, mixer=kind, mixer_options={kind: MIXERS[name]}
    )
    model = LanguageModel(config).to(dtype)
    split_sequence(model, group)
    start, stop = group.part(tokens.shape[1])
    own = tokens[:, start:stop]
    own_ids = None if ids is None else ids[:, start:stop]
    hidden, _ = model.hidden(own, segment_ids=own_ids)
    targets = torch.cat([own[:, 1:], group.first_of_next(own[:, :1])], 1)
    mask = torch.ones_like(targets, dtype=torch.bool)
    mask[:, -1] = group.rank + 1 < group.size
    loss = chunked_cross_entropy(hidden, model.embedding.weight[:11], targets, mask=mask)
    loss = loss.over(group).mean()
    loss.backward()
    if group.size > 1:
        average_gradients(model.parameters())
    return {"loss": loss.detach(), **{k: p.grad for k, p in model.named_parameters()}}


CASES = [
    (dtype, name, packed)
    for dtype in (torch.float64, torch.float32)
    for name in ("mamba", "mamba-fused", "s4d", "bidirectional")
    for packed in (False, True)
]


def lm_input(packed: bool):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(11, (2, 101), generator=generator)
    ids = (torch.arange(101) // 17).expand(2, -1) if packed else None
    return tokens, ids


def lm_steps():
    group = SequenceGroup.split_world(2)
    return [lm_step(group, dtype, *lm_input(packed), name) for dtype, name, packed in CASES]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return in_processes(tmp_path_factory.mktemp("ranks"), 2, lm_steps)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_two_processes_train_as_one(two_ranks, number):
    dtype, name, packed = CASES[number]
    expected = lm_step(WHOLE, dtype, *lm_input(packed), name)
    relative = 1e-10 if dtype == torch.float64 else 1e-5
    largest = max(value.abs().max().item() for value in expected.values())
    for rank in two_ranks:
        assert rank[number].keys() == expected.keys()
        for key, value in expected.items():
            # Small gradients are sums of large terms: their rounding is that of the terms.
            own = relative if dtype == torch.float64 else 10 * relative
            assert_close(rank[number][key], value, own, key)
            assert (rank[number][key] - value).abs().max() <= relative * largest, key


def test_average_counts_a_missing_gradient_as_zeros(monkeypatch):
    weight, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
    weight.grad = torch.full((2,), 4.0)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda group: 4)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda flat, group: None)
    average_gradients([weight, unused])
    assert weight.grad.tolist() == [1.0, 1.0]
    assert unused.grad is not None
    assert unused.grad.tolist() == [0.0]
