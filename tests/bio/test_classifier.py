"""The classifier as a module and as a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import assert_close
from mambabio.alphabet import PAD
from mambabio.alphabet import reverse_complement as reverse_complement_ids
from mambabio.classifier import SpeciesClassifier
from mambabio.classifier_config import ClassifierConfig
from mambabio.info import describe
from mambacore.config import ModelConfig

LABELS = ("ape", "bat", "cow")
MIXERS = ("mamba", "s4d", "attention", "bidirectional")
CAUSAL = MIXERS[:3]


def make(mixer: str = "mamba", pooling: str = "mean", **options) -> SpeciesClassifier:
    torch.manual_seed(0)
    sizes = ModelConfig(d_model=16, n_layer=2, mixer=mixer)
    model = SpeciesClassifier(ClassifierConfig(sizes, LABELS, pooling=pooling, **options))
    for parameter in model.parameters():  # away from small initial weights, so that errors show
        if parameter.dim() > 1:
            parameter.data.mul_(2)
    return model.eval()


def tokens(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 15, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_padding_changes_nothing(mixer: str, pooling: str) -> None:
    model = make(mixer, pooling)
    lengths = torch.tensor([70, 1, 33, 69])
    x = tokens(4, 70)
    with torch.no_grad():
        alone = torch.cat([model(x[i : i + 1, :n]) for i, n in enumerate(lengths.tolist())])
        for filler in (PAD, 0, 4):
            padded = x.clone()
            padded[torch.arange(70) >= lengths[:, None]] = filler
            assert_close(model(padded, lengths), alone, 1e-5, f"padded with {filler}")


@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
@pytest.mark.parametrize("mixer", CAUSAL)
def test_chunks_are_the_whole(mixer: str, pooling: str) -> None:
    model = make(mixer, pooling)
    x = tokens(2, 101)
    with torch.no_grad():
        whole = model(x)
        for sizes in ([101], [1, 99, 1], [50, 0, 51], [7] * 14 + [3]):
            assert_close(model.forward_chunks(x.split(sizes, 1)), whole, 1e-5, str(sizes))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 1000))
def test_chunks_of_any_size(sizes: list[int], seed: int) -> None:
    model = make()
    x = tokens(1, sum(sizes), seed)
    with torch.no_grad():
        assert_close(model.forward_chunks(x.split(sizes, 1)), model(x), 1e-5)


def test_bidirectional_models_refuse_chunks() -> None:
    model = make("bidirectional")
    assert not model.causal
    assert make().causal
    with pytest.raises(ValueError, match="need the whole sequence at once"):
        model.forward_chunks([tokens(1, 5)])
    with pytest.raises(ValueError, match="no bases"):
        make().forward_chunks([])


def test_integer_types_and_bad_shapes() -> None:
    model = make()
    x = tokens(2, 30)
    with torch.no_grad():
        expected = model(x)
        for dtype in (torch.uint8, torch.int32):
            assert torch.equal(model(x.to(dtype)), expected)
    for bad in (x[0], x[:, :0]):
        with pytest.raises(ValueError, match="batch, length"):
            model(bad)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=4), st.integers(0, 1000))
def test_reverse_complement_of_rows(lengths: list[int], seed: int) -> None:
    model = make()
    x = tokens(len(lengths), 25, seed).to(torch.uint8)
    for row, n in zip(x, lengths, strict=True):
        row[n:] = PAD
    n = torch.tensor(lengths)
    other = model.reverse_complement(x, n)
    for row, expected, count in zip(other, x, lengths, strict=True):
        ids = reverse_complement_ids(expected[:count].numpy())
        assert np.array_equal(row[:count].numpy(), ids)
        assert (row[count:] == PAD).all()
    assert torch.equal(model.reverse_complement(other, n), x.long())
    full = tokens(2, 9, seed)
    assert torch.equal(
        model.reverse_complement(full), model.reverse_complement(full, torch.tensor([9, 9]))
    )


def test_gradients_reach_every_weight() -> None:
    model = make(head_dropout=0.1).train()
    loss = model(tokens(4, 40), torch.tensor([40, 30, 20, 10])).square().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    weight = model.embedding.weight.grad
    assert weight is not None
    assert (weight[:15].abs().sum(1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_saved_and_read_again_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make(temperature=1.25, trained_on={"records": 12}, n_policy="keep").to(dtype)
    run = tmp_path / "run"
    assert model.save_pretrained(run / "model") == run / "model"
    model.save_pretrained(run / "model")  # replaces itself
    assert sorted(p.name for p in (run / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    for place in (run / "model", run, str(run)):
        again = SpeciesClassifier.from_pretrained(place)
        assert again.config == model.config
        assert not again.training
        state, expected = again.state_dict(), model.state_dict()
        assert list(state) == list(expected)
        for name, tensor in expected.items():
            assert state[name].dtype == tensor.dtype, name
            assert torch.equal(state[name], tensor), name
    if dtype == torch.float32:
        x = tokens(2, 50)
        with torch.no_grad():
            assert torch.equal(again(x), model(x))
        half = SpeciesClassifier.from_pretrained(run, dtype=torch.bfloat16)
        assert half.head.weight.dtype == torch.bfloat16


def test_foreign_folders_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        make().save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_failed_save_leaves_the_old_model(tmp_path: Path, monkeypatch) -> None:
    from mambacore import folders

    folder = make().save_pretrained(tmp_path / "m")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "save_file", full)
    with pytest.raises(ValueError, match="No space left"):
        make("s4d").save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def _spoil(folder: Path, **changes) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'"),
        ({"wnidow": 3}, "unknown entries wnidow"),
        ({"window": None}, "missing entries window"),
        ({"labels": ["ape"]}, "two or more"),
        ({"labels": ["ape", "ape"]}, "differ"),
        ({"pooling": "median"}, "accepted are mean, last, max"),
        ({"temperature": -1}, "temperature is -1"),
        ({"labels": ["ape", "bat"]}, r"head\.weight has shape"),
        ({"model": {"d_modle": 3}}, "d_modle"),
        ({"n_policy": "hide"}, "n_policy is 'hide'"),
    ],
)
def test_wrong_configurations_are_named(tmp_path: Path, changes: dict, said: str) -> None:
    folder = make().save_pretrained(tmp_path / "m")
    _spoil(folder, **changes)
    with pytest.raises(ValueError, match=said) as caught:
        SpeciesClassifier.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is no folder"):
        SpeciesClassifier.from_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match=r"has a config\.json"):
        SpeciesClassifier.from_pretrained(tmp_path)
    folder = make().save_pretrained(tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    for read in (SpeciesClassifier.from_pretrained, describe):
        with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
            read(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        SpeciesClassifier.from_pretrained(folder)


def test_vocabulary_of_the_backbone_must_be_the_nucleotides() -> None:
    with pytest.raises(ValueError, match="16 token ids"):
        ClassifierConfig(ModelConfig(vocab_size=17), LABELS)
    assert ClassifierConfig(ModelConfig(vocab_size=16), LABELS).to_dict()["window"] == 1024


def test_description(tmp_path: Path) -> None:
    model = make(trained_on={"bases": 5})
    folder = model.save_pretrained(tmp_path / "m")
    facts = describe(folder)
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["mixers"] == ["mamba", "mamba"]
    assert facts["labels"] == list(LABELS)
    assert facts["trained_on"] == {"bases": 5}
    assert len(facts["weights_sha256"]) == 64
    json.dumps(facts)
