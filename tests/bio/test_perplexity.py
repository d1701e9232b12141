"""Perplexity against context: the same bases at every length, from exactly that many before."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mambabio import perplexity as module
from mambabio.alphabet import decode
from mambabio.markov import MarkovModel
from mambabio.perplexity import ContextScore, Perplexity, perplexity
from mambabio.sheet import load_samples
from mambabio.store import build_store
from mambacore import LanguageModel, ModelConfig
from mambacore.errors import DataError, UsageError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Test records: 300 bases with an IUPAC code, an N run, 90 bases; and a training record."""
    folder = tmp_path_factory.mktemp("perplexity")
    random = np.random.default_rng(0)
    made = [decode(random.integers(0, 4, n).astype(np.uint8)) for n in (2000, 300, 90)]
    long = made[1][:200] + "R" + made[1][201:]
    (folder / "train.fa").write_text(f">t\n{made[0]}\n")
    (folder / "test.fa").write_text(f">e\n{long}NNN{made[2]}\n")
    (folder / "s.csv").write_text("path,split\ntrain.fa,train\ntest.fa,test\n")
    sheet = load_samples(folder / "s.csv", labelled=False)
    return build_store(
        sheet, folder / "cache", n_policy="split", validation=0, log=lambda line: None
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LanguageModel(ModelConfig(vocab_size=16, d_model=8, n_layer=2))


def test_bits_are_those_of_the_last_bases_given_the_context(store, model, monkeypatch):
    scored = 16
    result = perplexity(model, store, contexts=(64, 16, 32), scored=scored)
    ends = [(r, e) for r in store.select("test") for e in range(65, r.length + 1, scored)]
    assert (result.windows, result.bases) == (15 + 2, 17 * scored - 1)
    for score in result.contexts:
        nats = count = 0.0
        for record, end in ends:
            ids = store.ids(record, end - score.context - 1, score.context + 1)
            tokens = torch.from_numpy(ids.copy()).long()
            with torch.no_grad():
                log_p = model(tokens[None, :-1])[0][0].log_softmax(-1)
            for i in range(-scored, 0):
                if tokens[i] < 4:
                    nats -= float(log_p[i, tokens[i]])
                    count += 1
        assert score.bits == pytest.approx(nats / count / np.log(2), rel=1e-5)
        assert score.perplexity == pytest.approx(np.exp(nats / count), rel=1e-5)
        assert score.low <= score.bits * (1 + 1e-12)
        assert score.bits <= score.high * (1 + 1e-12)
    assert [s.context for s in result.contexts] == [16, 32, 64]
    assert result.gain[0] == pytest.approx(
        result.contexts[0].bits - result.contexts[2].bits, rel=1e-5
    )
    # In chunks, the state carried, and in other batches: the same to rounding.
    monkeypatch.setitem(module._AT_ONCE, "cpu", 7)
    for batch in (None, 3):
        again = perplexity(model, store, contexts=(16, 64), scored=scored, batch_size=batch)
        assert again.contexts[1].bits == pytest.approx(result.contexts[2].bits, rel=1e-5)


def test_the_markov_model_scores_the_same_bases(store, model):
    markov = MarkovModel.fit([store.ids(0)], [store.ids(0)], order=3)
    result = perplexity(model, store, contexts=(64,), scored=8, most=4, markov=markov)
    assert result.windows == 4
    ends = [(r, e) for r in store.select("test") for e in range(65, r.length + 1, 8)]
    chosen = np.linspace(0, len(ends) - 1, 4).round().astype(int)
    bits = [markov.bits(store.ids(ends[i][0]))[ends[i][1] - 8 : ends[i][1]] for i in chosen]
    assert result.markov is not None
    assert result.markov.bits == pytest.approx(np.nanmean(bits), rel=1e-5)
    assert result.advantage is not None
    assert result.advantage[0] == pytest.approx(
        result.markov.bits - result.contexts[0].bits, rel=1e-5
    )
    assert json.loads(result.to_json())["markov"]["context"] == 3
    assert "Markov 3" in result.to_text()


@pytest.mark.parametrize(
    ("bits", "words"),
    [
        (-0.33, "the model costs 0.3300 bits a base more than the Markov model "
                "(95 % interval 0.3100 to 0.3500)"),
        (0.33, "the model saves 0.3300 bits a base over the Markov model "
               "(95 % interval 0.3100 to 0.3500)"),
    ],
)  # fmt: skip
def test_the_last_lines_say_who_wins(bits, words):
    low, high = bits - 0.02, bits + 0.02
    scores = tuple(ContextScore(n, 1.9, 1.8, 2.0) for n in (1024, 2048))
    result = Perplexity(
        "test", 3, 8, 24, scores, (bits, low, high), ContextScore(12, 1.9 + bits, 1.8, 2.0),
        (bits, low, high),
    )  # fmt: skip
    *_, context, rival = result.to_text().split("\n")
    assert rival == words
    expected = "save 0.3300 bits a base over" if bits > 0 else "cost 0.3300 bits a base more than"
    assert context == f"2,048 bases of context {expected} 1,024 (95 % interval 0.3100 to 0.3500)"


def test_one_context_is_not_compared_with_itself():
    result = Perplexity("test", 3, 8, 24, (ContextScore(64, 1.9, 1.8, 2.0),), (0.0, 0.0, 0.0))
    assert "over 64" not in result.to_text()


def test_refusals(store, model):
    with pytest.raises(DataError, match=r"longer than 301 bases; the\s+longest, of 'e', has 300"):
        perplexity(model, store, contexts=(301,), scored=8)
    with pytest.raises(UsageError, match="at least as long as the 16"):
        perplexity(model, store, contexts=(8,), scored=16)
    with pytest.raises(DataError, match="no val records"):
        perplexity(model, store, split="val", contexts=(64,), scored=8)
