"""Hugging Face `mamba` and `mamba_ssm` folders: same logits, and no field read by guess."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import assert_close
from mambacore import DataError, foreign, from_pretrained
from mambacore.folders import save_file

transformers = pytest.importorskip("transformers")

HF: dict[str, Any] = {
    "model_type": "mamba",
    "vocab_size": 23,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "state_size": 5,
}
SSM: dict[str, Any] = {"d_model": 24, "n_layer": 2, "vocab_size": 23}


def _peer(**settings: Any) -> Any:
    torch.manual_seed(0)
    values = {**HF, **settings}
    del values["model_type"]
    peer = transformers.MambaForCausalLM(transformers.MambaConfig(**values)).eval()
    # Away from the initial values, where A and D are the same in every channel.
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return peer


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "untied": {"tie_word_embeddings": False},
    "biases": {"use_bias": True, "use_conv_bias": False},
    "shapes": {"expand": 3, "conv_kernel": 3, "time_step_rank": 7, "state_size": 2},
    "numerics": {"layer_norm_epsilon": 0.1, "residual_in_fp32": False, "hidden_act": "swish"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_transformers(variant: str, tmp_path: Path) -> None:
    peer = _peer(**VARIANTS[variant])
    shard = {"max_shard_size": "20KB"} if variant == "untied" else {}
    peer.save_pretrained(tmp_path, **shard)
    assert (tmp_path / "model.safetensors").exists() is not bool(shard)
    model = from_pretrained(tmp_path)
    tokens = torch.randint(0, 23, (2, 33))
    with torch.no_grad():
        expected = peer(tokens).logits
        whole, _ = model(tokens)
        cut, state = model(tokens[:, :14])
        rest, _ = model(tokens[:, 14:], state)
        stepped, state = [], None
        for t in range(33):
            logits, state = model(tokens[:, t : t + 1], state)
            stepped.append(logits)
    assert expected.abs().max() > 0.5
    for name, got in (
        ("whole", whole),
        ("chunks", torch.cat([cut, rest], dim=1)),
        ("steps", torch.cat(stepped, dim=1)),
    ):
        assert (got - expected).abs().max() < 1e-4, name


def _write(folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


def _hf_tensors(peer: Any) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in peer.state_dict().items() if n != "lm_head.weight"}


def _ssm_tensors(peer: Any, rows: int) -> dict[str, torch.Tensor]:
    """The peer's weights in mamba_ssm's names, its vocabulary padded, its tied head repeated."""
    tensors = _hf_tensors(peer)
    embedding = tensors.pop("backbone.embeddings.weight")
    padded = torch.nn.functional.pad(embedding, (0, 0, 0, rows - len(embedding)))
    return {**tensors, "backbone.embedding.weight": padded, "lm_head.weight": padded.clone()}


def test_mamba_ssm_folder(tmp_path: Path) -> None:
    peer = _peer(state_size=16)
    config = {
        **SSM,
        "ssm_cfg": {},
        "rms_norm": True,
        "residual_in_fp32": True,
        "fused_add_norm": True,
        "pad_vocab_size_multiple": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(_ssm_tensors(peer, 24), tmp_path / "pytorch_model.bin")
    model = from_pretrained(tmp_path)
    tokens = torch.randint(0, 23, (2, 20))
    with torch.no_grad():
        assert_close(model(tokens)[0], peer(tokens).logits, 1e-5)


def test_mamba_ssm_options_are_honoured(tmp_path: Path) -> None:
    peer = _peer(
        state_size=3, conv_kernel=2, expand=1, time_step_rank=4, use_bias=True, use_conv_bias=False
    )
    options = {"layer": "Mamba1", "d_state": 3, "d_conv": 2, "expand": 1, "dt_rank": 4}
    options |= {"bias": True, "conv_bias": False, "dt_min": 0.1, "use_fast_path": False}
    config = {**SSM, "ssm_cfg": options, "pad_vocab_size_multiple": 1, "residual_in_fp32": False}
    _write(tmp_path, config, _ssm_tensors(peer, 23))
    model = from_pretrained(tmp_path)
    assert model.config.residual_dtype == "model"
    tokens = torch.randint(0, 23, (2, 20))
    with torch.no_grad():
        assert_close(model(tokens)[0], peer(tokens).logits, 1e-5)


def test_mamba_ssm_untied(tmp_path: Path) -> None:
    peer = _peer(state_size=16)
    tensors = _ssm_tensors(peer, 24)
    tensors["lm_head.weight"] = torch.randn(24, 24)
    _write(tmp_path, {**SSM, "tie_embeddings": False}, tensors)
    tokens = torch.randint(0, 23, (1, 5))
    model = from_pretrained(tmp_path)
    hidden, _ = model.hidden(tokens)
    assert_close(model(tokens)[0], hidden @ tensors["lm_head.weight"][:23].T, 1e-5)
    _write(tmp_path, SSM, tensors)
    with pytest.raises(DataError, match="lm_head.weight that differs"):
        from_pretrained(tmp_path)


# What each field on the lists of honoured fields changes in the model that is built.
HF_EFFECTS: dict[str, tuple[Any, Any]] = {
    "vocab_size": (31, lambda c: c.vocab_size),
    "hidden_size": (16, lambda c: c.d_model),
    "num_hidden_layers": (3, lambda c: c.n_layer),
    "state_size": (7, lambda c: c.mixer_options["mamba"]["d_state"]),
    "conv_kernel": (2, lambda c: c.mixer_options["mamba"]["d_conv"]),
    "expand": (3, lambda c: c.mixer_options["mamba"]["expand"]),
    "time_step_rank": (5, lambda c: c.mixer_options["mamba"]["dt_rank"]),
    "use_bias": (True, lambda c: c.mixer_options["mamba"]["bias"]),
    "use_conv_bias": (False, lambda c: c.mixer_options["mamba"]["conv_bias"]),
    "layer_norm_epsilon": (0.25, lambda c: c.norm_eps),
    "residual_in_fp32": (False, lambda c: c.residual_dtype != "model"),
    "tie_word_embeddings": (False, lambda c: c.tie_embeddings),
}
SSM_EFFECTS: dict[str, tuple[Any, Any]] = {
    "d_model": (16, lambda c: c.d_model),
    "n_layer": (3, lambda c: c.n_layer),
    "vocab_size": (31, lambda c: c.vocab_size),
    "ssm_cfg": ({"d_state": 7}, lambda c: c.mixer_options["mamba"]),
    "residual_in_fp32": (False, lambda c: c.residual_dtype != "model"),
    "pad_vocab_size_multiple": (3, lambda c: c.pad_vocab_multiple),
    "tie_embeddings": (False, lambda c: c.tie_embeddings),
}


def test_every_honoured_field_has_its_effect() -> None:
    assert set(HF_EFFECTS) == set(foreign.HF_HONOURED)
    assert set(SSM_EFFECTS) == set(foreign.SSM_HONOURED)
    for name, (value, effect) in HF_EFFECTS.items():
        assert effect(foreign.hugging_face_config({**HF, name: value}, "c")) == value, name
        assert effect(foreign.hugging_face_config(HF, "c")) != value, name
    for name, (value, effect) in SSM_EFFECTS.items():
        assert effect(foreign.mamba_ssm_config({**SSM, name: value}, "c")) == value, name
        assert effect(foreign.mamba_ssm_config(SSM, "c")) != value, name
    for name in foreign.SSM_CFG_HONOURED:
        config = foreign.mamba_ssm_config({**SSM, "ssm_cfg": {name: 3}}, "c")
        assert config.mixer_options == {"mamba": {name: 3}}


def test_inert_fields_change_nothing() -> None:
    plain = foreign.hugging_face_config(HF, "c")
    assert foreign.hugging_face_config({**HF, **dict.fromkeys(foreign.HF_INERT, 99)}, "c") == plain
    plain = foreign.mamba_ssm_config(SSM, "c")
    inert = dict.fromkeys(foreign.SSM_INERT, 99)
    options = dict.fromkeys(foreign.SSM_CFG_INERT, 99)
    assert foreign.mamba_ssm_config({**SSM, **inert, "ssm_cfg": options}, "c") == plain


def test_the_inert_list_is_what_transformers_does_with_it(tmp_path: Path) -> None:
    """Change every inert field of a saved peer: its own logits do not move either."""
    peer = _peer()
    peer.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    changed = {
        "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1, "initializer_range": 0.5,
        "time_step_floor": 0.01, "time_step_max": 0.5,
        "time_step_min": 0.01, "time_step_scale": 2.0, "time_step_init_scheme": "constant",
        "use_associative_scan": False, "use_cache": False, "pad_vocab_size_multiple": 64,
        "fused_add_norm": False,
    }  # fmt: skip
    assert set(changed) <= foreign.HF_INERT
    tokens = torch.randint(0, 23, (1, 9))
    with torch.no_grad():
        expected = peer(tokens).logits
        path.write_text(json.dumps({**config, **changed}))
        again = transformers.MambaForCausalLM.from_pretrained(tmp_path).eval()
        assert_close(again(tokens).logits, expected, 1e-6)
        assert_close(from_pretrained(tmp_path)(tokens)[0], expected, 1e-5)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({**HF, "hidden_act": "gelu"}, "hidden_act"),
        ({**HF, "is_encoder_decoder": True}, "is_encoder_decoder"),
        ({**HF, "rms_norm": False}, "rms_norm"),
        ({**HF, "ssm_cfg": {"layer": "Mamba2"}}, "ssm_cfg"),
        ({**HF, "quantization_config": {"bits": 4}}, "quantization_config"),
        ({**HF, "d_model": 25}, "d_model"),
        ({**HF, "n_layer": 3}, "n_layer"),
        ({**HF, "intermediate_size": 50}, "intermediate_size"),
        ({**HF, "d_inner": 50}, "d_inner"),
        ({**HF, "mixer_rms_eps": 1e-6}, "mixer_rms_eps"),
        ({**HF, "model_type": "falcon_mamba"}, "model_type"),
        ({**HF, "model_type": "mamba2"}, "model_type"),
        ({k: v for k, v in HF.items() if k != "hidden_size"}, "hidden_size"),
        ({**SSM, "rms_norm": False}, "rms_norm"),
        ({**SSM, "d_intermediate": 64}, "d_intermediate"),
        ({**SSM, "attn_layer_idx": [1]}, "attn_layer_idx"),
        ({**SSM, "norm_epsilon": 1e-6}, "norm_epsilon"),
        ({**SSM, "ssm_cfg": {"layer": "Mamba2"}}, "layer"),
        ({**SSM, "ssm_cfg": {"headdim": 64}}, "headdim"),
        ({**SSM, "ssm_cfg": 3}, "ssm_cfg"),
        ({**SSM, "vocab_size": -1}, "vocab_size"),
    ],
)
def test_fields_that_change_the_result_are_refused_by_name(
    config: dict[str, Any], field: str, tmp_path: Path
) -> None:
    _write(tmp_path, config, {"x": torch.zeros(1)})
    with pytest.raises(DataError, match=field):
        from_pretrained(tmp_path)


def test_fixed_fields_accept_what_is_implemented() -> None:
    for name, accepted in foreign.HF_FIXED.items():
        for value in accepted:
            foreign.hugging_face_config({**HF, name: value}, "c")
        with pytest.raises(DataError, match=name):
            foreign.hugging_face_config({**HF, name: "other"}, "c")
    for name, accepted in foreign.SSM_FIXED.items():
        for value in accepted:
            foreign.mamba_ssm_config({**SSM, name: value}, "c")
        with pytest.raises(DataError, match=name):
            foreign.mamba_ssm_config({**SSM, name: "other"}, "c")
