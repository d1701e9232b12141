"""Saving, loading, and every way in which a folder can be wrong."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from mambacore import (
    DataError,
    LanguageModel,
    ModelConfig,
    UsageError,
    from_pretrained,
    read_folder,
    save_pretrained,
    write_folder,
)
from mambacore import folders as folders_module
from mambacore.model_path import find_model

CONFIG = ModelConfig(
    vocab_size=11,
    d_model=16,
    n_layer=4,
    layers=("mamba", "s4d", "attention", "bidirectional"),
    mixer_options={"mamba": {"d_state": 3}, "bidirectional": {"shared": True}},
    mlp_expand=1.5,
    tie_embeddings=False,
    pad_vocab_multiple=4,
    residual_dtype="model",
)
SMALL = ModelConfig(vocab_size=5, d_model=8, n_layer=1)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_pretrained(LanguageModel(SMALL), tmp_path / "model")
    return tmp_path / "model"


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_round_trip(tmp_path: Path) -> None:
    model = LanguageModel(CONFIG).eval()
    save_pretrained(model, tmp_path / "deep" / "model")
    again = from_pretrained(tmp_path / "deep" / "model")
    assert again.config == CONFIG
    assert not again.training
    tokens = torch.randint(0, 11, (2, 9))
    assert torch.equal(model(tokens)[0], again(tokens)[0])
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"]
    assert sorted(p.name for p in (tmp_path / "deep" / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_dtypes(tmp_path: Path) -> None:
    model = LanguageModel(SMALL)
    mixer = model.backbone.blocks[0].mixer
    save_pretrained(model, tmp_path / "a")
    half = from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    assert half.embedding.weight.dtype == torch.bfloat16
    loaded = half.backbone.blocks[0].mixer
    assert torch.equal(loaded.get_parameter("A_log"), mixer.get_parameter("A_log"))
    save_pretrained(half, tmp_path / "b")
    assert read_folder(tmp_path / "b")[1]["embedding.weight"].dtype == torch.bfloat16
    assert from_pretrained(tmp_path / "b").embedding.weight.dtype == torch.float32


def test_an_earlier_save_is_replaced_and_other_files_are_not(saved: Path) -> None:
    other = LanguageModel(ModelConfig(vocab_size=7, d_model=8, n_layer=1))
    save_pretrained(other, saved)
    assert from_pretrained(saved).vocab_size == 7
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files \\(notes.txt\\)"):
        save_pretrained(other, saved)
    assert (saved / "notes.txt").read_text() == "mine"
    (saved.parent / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        save_pretrained(other, saved.parent / "file")


def test_a_full_disk_leaves_the_old_model_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = from_pretrained(saved).embedding.weight
    monkeypatch.setattr(folders_module, "save_file", full)
    with pytest.raises(DataError, match="model: cannot be written .*No space left"):
        save_pretrained(LanguageModel(SMALL), saved)
    with pytest.raises(DataError, match="No space left"):
        save_pretrained(LanguageModel(SMALL), saved.parent / "new")
    assert [p.name for p in saved.parent.iterdir()] == ["model"]
    assert torch.equal(from_pretrained(saved).embedding.weight, before)


def test_a_folder_under_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_folder(tmp_path / "file" / "model", {}, {})


def test_a_model_is_found_by_folder_run_and_shipped_name(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_model(saved, "toypackage") == saved
    assert find_model(saved.parent, "toypackage") == saved  # a run folder has model/
    package = tmp_path / "toypackage"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="shipped: none in this version"):
        find_model("apes", "toypackage")
    saved.rename(package / "models" / "apes")
    assert find_model("apes", "toypackage") == package / "models" / "apes"
    with pytest.raises(UsageError, match=r"no model 'bats'.*shipped: apes"):
        find_model("bats", "toypackage")
    with pytest.raises(DataError, match="no model in"):
        find_model(tmp_path, "toypackage")


def test_unknown_settings_are_errors(saved: Path) -> None:
    _edit(saved, d_modle=3)
    with pytest.raises(DataError, match=r"config.json: unknown model setting 'd_modle'"):
        from_pretrained(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'"),
        ({"model_type": "mambabio-species-classifier"}, "mambabio-species-classifier"),
        ({"mixer": "mamba3"}, "unknown mixer 'mamba3'"),
        ({"mixer_options": {"mamba": {"d_stat": 3}}}, "no option 'd_stat'"),
        ({"d_model": 16}, "embedding.weight has shape \\(5, 8\\)"),
        ({"n_layer": 2}, "hold no backbone.layers.1"),
        ({"mixer_options": {"mamba": {"conv_bias": False}}}, "hold .*conv1d.bias, which the model"),
        ({"d_model": 0}, "d_model must be"),
        ({"vocab_size": None}, "needs vocab_size"),
    ],
)
def test_configurations_that_do_not_fit(saved: Path, changes: dict, message: str) -> None:
    _edit(saved, **changes)
    with pytest.raises(DataError, match=message):
        from_pretrained(saved)


def test_damaged_folders(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a model folder"):
        from_pretrained(tmp_path / "absent")
    weights = saved / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="model.safetensors cannot be read"):
        from_pretrained(saved)
    weights.unlink()
    with pytest.raises(DataError, match="holds no weights"):
        from_pretrained(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(DataError, match="config.json cannot be read as JSON"):
        from_pretrained(saved)
    (saved / "config.json").write_text("[]")
    with pytest.raises(DataError, match="one JSON object"):
        from_pretrained(saved)


def test_shards_and_pickles(saved: Path) -> None:
    tensors = read_folder(saved)[1]
    expected = from_pretrained(saved).state_dict()
    names = sorted(tensors)
    (saved / "model.safetensors").unlink()

    def loads() -> bool:
        got = from_pretrained(saved).state_dict()
        return all(torch.equal(got[name], expected[name]) for name in names)

    torch.save(tensors, saved / "pytorch_model.bin")
    assert loads()
    (saved / "pytorch_model.bin").unlink()
    shards = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for file, held in shards.items():
        folders_module.save_file({name: tensors[name] for name in held}, saved / file)
    index = {name: file for file, held in shards.items() for name in held}
    path = saved / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}))
    assert loads()
    (saved / "b.safetensors").unlink()
    with pytest.raises(DataError, match="b.safetensors cannot be read"):
        from_pretrained(saved)
    path.write_text(json.dumps({"weight_map": {"x": "../b.safetensors"}}))
    with pytest.raises(DataError, match="not a file of its folder"):
        from_pretrained(saved)


class _Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("evil"),))


def test_nothing_but_tensors_is_unpickled(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (saved / "model.safetensors").unlink()
    torch.save({"a": _Evil()}, saved / "pytorch_model.bin")
    with pytest.raises(DataError, match="pytorch_model.bin cannot be read as weights"):
        from_pretrained(saved)
    assert not Path("evil").exists()


def test_config_round_trip_and_refusals() -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    for wrong in (
        {"d_model": 0},
        {"d_model": 8.0},
        {"n_layer": True},
        {"layers": ("mamba",)},
        {"layers": "mamba"},
        {"mixer_options": {"s4d": {}}},
        {"mixer_options": {"mamba": 3}},
        {"dropout": 1.0},
        {"norm_eps": -1.0},
        {"residual_dtype": "float16"},
        {"vocab_size": 0},
    ):
        with pytest.raises(UsageError):
            ModelConfig(**wrong)
    with pytest.raises(UsageError, match="vocab_size"):
        LanguageModel(ModelConfig(d_model=8))
