"""A classifier trained on the CPU gives the same predictions on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mambabio.alphabet import decode
from mambabio.classifier import SpeciesClassifier
from mambabio.classifier_config import ClassifierConfig
from mambacore.config import ModelConfig

pytestmark = pytest.mark.gpu
_COMPOSITION = ((0.4, 0.1, 0.1, 0.4), (0.25, 0.25, 0.25, 0.25), (0.1, 0.4, 0.4, 0.1))


def _draw(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(rows) % 3
    weights = torch.tensor(_COMPOSITION)[labels]
    return torch.multinomial(weights, length, replacement=True).to(torch.uint8), labels


def test_predictions_on_the_gpu_are_those_of_the_cpu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ClassifierConfig(
        model=ModelConfig(d_model=32, n_layer=2), labels=("at", "even", "gc"), window=256
    )
    model = SpeciesClassifier(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        tokens, labels = _draw(12, 256)
        loss = torch.nn.functional.cross_entropy(model(tokens), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3
    folder = model.eval().save_pretrained(tmp_path / "model")
    tokens, _ = _draw(9, 1000)
    fasta = tmp_path / "x.fa"
    fasta.write_text("".join(f">r{i}\n{decode(row.numpy())}\n" for i, row in enumerate(tokens)))
    there = SpeciesClassifier.from_pretrained(folder, device="cuda")
    half = SpeciesClassifier.from_pretrained(folder, device="cuda", dtype=torch.bfloat16)
    for whole in (False, True):
        expected = list(model.classify(fasta, whole=whole))
        for other, tolerance in ((there, 1e-3), (half, 0.03)):
            got = list(other.classify(fasta, whole=whole))
            assert [p.label for p in got] == [p.label for p in expected]
            for a, b in zip(got, expected, strict=True):
                assert a.probability == pytest.approx(b.probability, abs=tolerance)
