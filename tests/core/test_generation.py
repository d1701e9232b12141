"""Generation from the carried state equals generation from the whole prefix."""

from __future__ import annotations

import pytest
import torch

from mambacore import LanguageModel, ModelConfig, UsageError, generate, sample


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=11,
        d_model=16,
        n_layer=3,
        layers=("mamba", "s4d", "attention"),
        pad_vocab_multiple=8,
    )
    model = LanguageModel(config).eval()
    torch.nn.init.normal_(model.embedding.weight)  # so that the most likely token is clear
    return model


def test_greedy_equals_recomputation_of_the_prefix(model: LanguageModel) -> None:
    prompt = torch.tensor([[1, 2, 3, 4], [9, 9, 0, 5]])
    made, _ = generate(model, prompt, 12, temperature=0)
    tokens = prompt
    for _ in range(12):
        tokens = torch.cat([tokens, model(tokens)[0][:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(made, tokens[:, 4:])


def test_a_returned_state_continues(model: LanguageModel) -> None:
    prompt = torch.tensor([[1, 2, 3]])
    whole, _ = generate(model, prompt, 9, temperature=0)
    first, state = generate(model, prompt, 4, temperature=0)
    second, _ = generate(model, first[:, -1:], 5, temperature=0, state=state)
    assert torch.equal(torch.cat([first, second], dim=1), whole)


def test_a_seed_fixes_the_tokens_and_leaves_the_global_generator(model: LanguageModel) -> None:
    prompt = torch.zeros(3, 2, dtype=torch.int64)
    before = torch.get_rng_state()
    a = generate(model, prompt, 20, seed=1).tokens
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a, generate(model, prompt, 20, seed=1).tokens)
    assert not torch.equal(a, generate(model, prompt, 20, seed=2).tokens)
    assert a.max() < 11  # never a row of the padding
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_sampling_frequencies_follow_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    drawn = sample(logits.expand(20_000, 4), temperature=2.0, generator=generator)
    frequency = torch.bincount(drawn, minlength=4) / 20_000
    assert torch.allclose(frequency, (logits / 2).softmax(0), atol=0.015)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 1}, {2}),
        ({"top_k": 2}, {1, 2}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.01}, {2}),
        ({"top_p": 0.65}, {1, 2}),  # the first has .64 of the probability
        ({"top_p": 1.0}, {0, 1, 2, 3}),
        ({"top_k": 3, "top_p": 0.99}, {0, 1, 2}),
        ({"temperature": 0}, {2}),
    ],
)
def test_truncated_sampling(options: dict[str, float], allowed: set[int]) -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(4_000, 4)
    drawn = sample(logits, generator=torch.Generator().manual_seed(0), **options)
    assert set(drawn.tolist()) == allowed


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"max_new_tokens": 0},
    ],
)
def test_refusals(model: LanguageModel, options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        generate(model, torch.tensor([[1]]), **{"max_new_tokens": 2, **options})
