"""Predictions: the same whatever the file, the batch, the chunks and the strand."""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mambabio.alphabet import decode, encode, reverse_complement
from mambabio.classifier import SpeciesClassifier
from mambabio.classifier_config import ClassifierConfig
from mambabio.classify import UNCLASSIFIED, Prediction, classify
from mambabio.scoring import Scorer
from mambacore.config import ModelConfig

LABELS = ("ape", "bat", "cow")
WINDOW = 80


def make(mixer: str = "mamba", **options) -> SpeciesClassifier:
    torch.manual_seed(1)
    sizes = ModelConfig(d_model=16, n_layer=2, mixer=mixer)
    config = ClassifierConfig(sizes, LABELS, **{"window": WINDOW, **options})
    model = SpeciesClassifier(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(2)
    return model


def sequences(lengths: list[int], seed: int = 0, letters: str = "ACGT") -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(letters), n)) for n in lengths]


def fasta(path: Path, records: list[str], width: int = 60) -> Path:
    lines = []
    for i, sequence in enumerate(records):
        lines.append(f">r{i} made up")
        lines += [sequence[j : j + width] for j in range(0, len(sequence), width)]
    path.write_text("\n".join(lines) + "\n")
    return path


def probabilities(predictions) -> np.ndarray:
    return np.array([p.probabilities for p in predictions])


def by_hand(model: SpeciesClassifier, ids: np.ndarray, window: int = WINDOW) -> np.ndarray:
    """Mean of the windows' log-probabilities, by bases, one window at a time."""
    scorer = Scorer(model)
    cut = ids[ids != 4]
    pieces = [cut[i : i + window] for i in range(0, len(cut), window)]
    pieces = [p for p in pieces if len(p) >= min(64, window)] or pieces
    logs = [scorer(p[None], np.array([len(p)]))[0] for p in pieces]
    mean = np.average(logs, axis=0, weights=[len(p) for p in pieces])
    return np.exp(mean) / np.exp(mean).sum()


LENGTHS = [200, 30, 80, 81, 144, 1000, 1, 79]


@pytest.fixture(scope="module")
def model() -> SpeciesClassifier:
    return make()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return fasta(tmp_path / "mixed.fa", sequences(LENGTHS, letters="ACGTNRYacgtn"))


def test_windows_of_the_trained_length_are_averaged(model: SpeciesClassifier, mixed: Path) -> None:
    got = list(model.classify(mixed))
    assert [p.record for p in got] == [f"r{i}" for i in range(len(LENGTHS))]
    assert [p.length for p in got] == LENGTHS
    for p, sequence in zip(got, sequences(LENGTHS, letters="ACGTNRYacgtn"), strict=True):
        ids = encode(sequence)
        if (ids == 4).all():
            continue
        expected = by_hand(model, ids)
        np.testing.assert_allclose(p.probabilities, expected, rtol=1e-5)
        assert p.label == LABELS[int(expected.argmax())]
        assert p.probability == max(p.probabilities)
        assert sum(p.probabilities) == pytest.approx(1)


def test_batch_size_changes_nothing_but_rounding(model: SpeciesClassifier, mixed: Path) -> None:
    one = list(model.classify(mixed, batch_size=1))
    for size in (2, 3, 1000):
        other = list(model.classify(mixed, batch_size=size))
        assert [p.record for p in other] == [p.record for p in one]
        np.testing.assert_allclose(probabilities(other), probabilities(one), rtol=1e-5)


def test_plain_gzip_and_stdin_agree(
    model: SpeciesClassifier, mixed: Path, tmp_path: Path, monkeypatch
) -> None:
    plain = list(model.classify(mixed))
    zipped = tmp_path / "x.gz"
    zipped.write_bytes(gzip.compress(mixed.read_bytes()))
    assert list(model.classify(zipped)) == plain
    for content in (mixed.read_bytes(), zipped.read_bytes()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert list(model.classify("-")) == plain


def test_line_width_and_case_change_nothing(model: SpeciesClassifier, tmp_path: Path) -> None:
    records = sequences([500, 90])
    plain = list(model.classify(fasta(tmp_path / "a.fa", records)))
    other = fasta(tmp_path / "b.fa", [r.lower() for r in records], width=7)
    assert list(model.classify(other)) == plain


def test_runs_of_n_are_cut_as_in_training(model: SpeciesClassifier, tmp_path: Path) -> None:
    (sequence,) = sequences([700])
    gappy = sequence[:100] + "N" * 333 + sequence[100:400] + "n" + sequence[400:]
    plain, cut = model.classify(fasta(tmp_path / "x.fa", [sequence, gappy]))
    assert cut.probabilities == plain.probabilities
    assert cut.length == 700 + 334
    keep = make(n_policy="keep")
    one, two = keep.classify(tmp_path / "x.fa")
    assert one.probabilities != two.probabilities
    split = make(n_policy="split")
    got = list(split.classify(fasta(tmp_path / "y.fa", [sequence[:100] + "N" + sequence[:100]])))
    alone = list(split.classify(fasta(tmp_path / "z.fa", [sequence[:100]])))
    np.testing.assert_allclose(probabilities(got), probabilities(alone), rtol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_nothing_but_n_is_unclassified(
    model: SpeciesClassifier, tmp_path: Path, whole: bool
) -> None:
    said: list[str] = []
    path = fasta(tmp_path / "x.fa", ["N" * 300, "ACGT" * 30])
    for policy in ("cut", "keep", "split"):
        said.clear()
        one, two = make(n_policy=policy).classify(path, notice=said.append, whole=whole)
        assert one == Prediction("r0", 300, UNCLASSIFIED, 1 / 3, (1 / 3,) * 3)
        assert two.label in LABELS
        assert len(said) == 1
        assert "record 'r0' is nothing but N" in said[0]


def test_short_and_partial_windows(model: SpeciesClassifier, tmp_path: Path) -> None:
    (sequence,) = sequences([WINDOW + 70])
    records = [sequence[:WINDOW], sequence[: WINDOW + 63], sequence[: WINDOW + 64], sequence[:10]]
    a, b, c, d = model.classify(fasta(tmp_path / "x.fa", records))
    assert b.probabilities == pytest.approx(a.probabilities, rel=1e-5)  # 63 bases are no window
    assert c.probabilities != pytest.approx(a.probabilities, rel=1e-4)  # 64 are
    assert d.label in LABELS  # nor is there anything else


@pytest.mark.parametrize("mixer", ["mamba", "s4d", "attention"])
@pytest.mark.parametrize("both", [False, True])
def test_whole_records_in_chunks(mixer: str, both: bool, tmp_path: Path, monkeypatch) -> None:
    model = make(mixer, window=1000)
    records = sequences([900, 1, 345])
    path = fasta(tmp_path / "x.fa", records)
    monkeypatch.setattr(Scorer, "bases_at_once", 100)  # the chunk
    chunked = list(classify(model, path, whole=True, both_strands=both, notice=lambda _: None))
    for p, sequence in zip(chunked, records, strict=True):
        ids = encode(sequence)
        expected = Scorer(model, both_strands=both)(ids[None], np.array([len(ids)]))[0]
        np.testing.assert_allclose(p.probabilities, np.exp(expected), rtol=1e-4)


def test_whole_with_split_stretches(tmp_path: Path) -> None:
    model = make(n_policy="split")
    (sequence,) = sequences([300])
    path = fasta(tmp_path / "x.fa", [sequence[:100] + "NN" + sequence[100:]])
    (got,) = model.classify(path, whole=True)
    scorer = Scorer(model)
    ids = encode(sequence)
    logs = [scorer(x[None], np.array([len(x)]))[0] for x in (ids[:100], ids[100:])]
    mean = np.average(logs, axis=0, weights=[100, 200])
    np.testing.assert_allclose(got.probabilities, np.exp(mean) / np.exp(mean).sum(), rtol=1e-4)


def test_whole_is_refused_or_warned_of(tmp_path: Path) -> None:
    path = fasta(tmp_path / "x.fa", sequences([10 * WINDOW, 11 * WINDOW]))
    with pytest.raises(ValueError, match="whole sequence at once"):
        make("bidirectional").classify(path, whole=True)
    said: list[str] = []
    assert len(list(make().classify(path, whole=True, notice=said.append))) == 2
    assert len(said) == 1
    assert "trained on 80" in said[0]
    said.clear()
    list(make("attention").classify(path, whole=True, notice=said.append))
    assert "memory grows" in said[0]


@pytest.mark.parametrize("mixer", ["mamba", "bidirectional"])
def test_both_strands_give_one_answer(mixer: str, tmp_path: Path) -> None:
    model = make(mixer)
    forward = sequences([WINDOW, 3 * WINDOW, 50], letters="ACGTRYK")
    backward = [decode(reverse_complement(encode(s))) for s in forward]
    a = fasta(tmp_path / "a.fa", forward)
    b = fasta(tmp_path / "b.fa", backward)
    one = probabilities(model.classify(a, both_strands=True))
    two = probabilities(model.classify(b, both_strands=True))
    np.testing.assert_allclose(one, two, rtol=1e-5)
    single = probabilities(model.classify(b))
    assert np.abs(single - probabilities(model.classify(a))).max() > 1e-3
    # The model's own setting serves where nothing is said.
    np.testing.assert_allclose(probabilities(make(mixer, both_strands=True).classify(a)), one)


def test_temperature_softens_but_never_changes_the_label(
    model: SpeciesClassifier, mixed: Path
) -> None:
    plain = list(model.classify(mixed))
    for temperature in (0.2, 3.0):
        other = list(make(temperature=temperature).classify(mixed))
        assert [p.label for p in other] == [p.label for p in plain]
        for p, q in zip(plain, other, strict=True):
            if p.label != UNCLASSIFIED:
                assert (q.probability > p.probability) == (temperature < 1)


def test_minimum_probability(model: SpeciesClassifier, mixed: Path) -> None:
    plain = list(model.classify(mixed))
    level = float(np.median([p.probability for p in plain]))
    for p, q in zip(plain, model.classify(mixed, min_probability=level), strict=True):
        assert q.label == (p.label if p.probability >= level else UNCLASSIFIED)
        assert q.probabilities == p.probabilities


def test_records_before_a_bad_one_are_given(model: SpeciesClassifier, tmp_path: Path) -> None:
    path = fasta(tmp_path / "x.fa", [*sequences([100, 200]), "ACGT*ACGT"])
    got = []
    with pytest.raises(ValueError, match=r"record 'r2'"):
        for p in model.classify(path):
            got.append(p.record)
    assert got == ["r0", "r1"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"window": -1}, "window is -1"),
        ({"min_probability": 2.0}, "accepted is 0 to 1"),
        ({"precision": "int8"}, "accepted are float32"),
    ],
)
def test_wrong_options_are_refused_at_once(
    model: SpeciesClassifier, mixed: Path, options: dict, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        model.classify(mixed, **options)


def test_training_mode_and_dropout_do_not_matter(mixed: Path) -> None:
    model = make(head_dropout=0.5).train()
    one = list(model.classify(mixed))
    assert model.training
    assert list(model.eval().classify(mixed)) == one


def test_bfloat16_is_close(model: SpeciesClassifier, mixed: Path) -> None:
    full = probabilities(model.classify(mixed))
    half = probabilities(model.classify(mixed, precision="bfloat16"))
    assert 0 < np.abs(full - half).max() < 0.1


def test_a_long_record_streams_in_constant_memory(
    model: SpeciesClassifier, tmp_path: Path, monkeypatch
) -> None:
    import tracemalloc

    monkeypatch.setattr("mambabio.classify._CHUNK", 1 << 16)
    peaks = []
    for bases in (3_000_000, 9_000_000):
        path = tmp_path / f"{bases}.fa"
        path.write_text(">long\n" + "\n".join(["ACGTTGCATC" * 6] * (bases // 60)) + "\n")
        stub = _Stub(model)
        tracemalloc.start()
        (p,) = classify(stub, path, window=2000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert p.length == bases
    assert peaks[1] < peaks[0] + 1_000_000


class _Stub(SpeciesClassifier):
    """The same interface without the work: memory of the streaming alone."""

    def __init__(self, model: SpeciesClassifier) -> None:
        super().__init__(model.config)

    def forward(self, tokens, lengths=None):
        return torch.zeros(len(tokens), len(self.labels))


@pytest.mark.parametrize("whole", [False, True])
def test_a_million_bases(tmp_path: Path, monkeypatch, whole: bool) -> None:
    torch.manual_seed(0)
    config = ClassifierConfig(ModelConfig(d_model=8, n_layer=1), LABELS, window=1024)
    model = SpeciesClassifier(config)
    longest = 0

    def watch(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal longest
        longest = max(longest, inputs[0].numel())

    model.embedding.register_forward_pre_hook(watch)
    path = fasta(tmp_path / "x.fa", sequences([1_000_000]), width=100)
    (p,) = model.classify(path, whole=whole, notice=lambda _: None)
    assert p.length == 1_000_000
    assert p.label in LABELS
    assert longest <= Scorer(model).bases_at_once  # never the record at once
