"""How a model begins, what stays float32 and what is not decayed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from mambacore import Backbone, LanguageModel, ModelConfig, UsageError, parameter_groups
from mambacore.mixers import MambaMixer, S4DMixer

LAYERS = ("mamba", "s4d", "attention", "bidirectional")
KEPT = {
    "mamba": ("A_log", "D", "dt_proj.bias"),
    "s4d": ("log_dt", "log_A_real", "A_imag", "C", "D"),
}


def _model() -> LanguageModel:
    return LanguageModel(
        ModelConfig(vocab_size=16, d_model=16, n_layer=4, layers=LAYERS, mlp_expand=1.0)
    )


def _kept_names(model: LanguageModel) -> set[str]:
    prefixes = {
        "backbone.layers.0.mixer.": KEPT["mamba"],
        "backbone.layers.1.mixer.": KEPT["s4d"],
        "backbone.layers.3.mixer.left.": KEPT["mamba"],
        "backbone.layers.3.mixer.right.": KEPT["mamba"],
    }
    return {prefix + name for prefix, names in prefixes.items() for name in names}


def test_real_a() -> None:
    assert torch.allclose(-MambaMixer(4, d_state=4).A_log.exp()[3], -torch.tensor([1.0, 2, 3, 4]))
    assert torch.allclose(-MambaMixer(4, a_init="s4d-lin").A_log.exp(), torch.tensor(-0.5))


def test_complex_a() -> None:
    mixer = S4DMixer(4, d_state=6)
    assert torch.allclose(mixer.log_A_real.exp(), torch.tensor(0.5))
    assert torch.allclose(mixer.A_imag[1], math.pi * torch.arange(3))


def test_delta_starts_log_uniform() -> None:
    """In a whole model, so that no general initialisation has touched the bias afterwards."""
    torch.manual_seed(0)
    model = LanguageModel(
        ModelConfig(
            vocab_size=4,
            d_model=1_024,
            n_layer=1,
            mixer_options={"mamba": {"dt_min": 0.002, "dt_max": 0.2}},
        )
    )
    delta = F.softplus(model.backbone.layers[0].mixer.dt_proj.bias)
    level = ((delta.log() - math.log(0.002)) / math.log(100)).sort().values
    assert level.min() > -1e-4
    assert level.max() < 1 + 1e-4
    # Kolmogorov-Smirnov distance of 2,048 samples from uniform: 0.05 has a chance of 1e-4.
    assert (level - (torch.arange(2_048) + 0.5) / 2_048).abs().max() < 0.05


def test_delta_floor_and_constant() -> None:
    mixer = MambaMixer(16, dt_min=1e-6, dt_max=1e-5, dt_init="constant", dt_scale=2.0)
    assert torch.allclose(F.softplus(mixer.dt_proj.bias), torch.tensor(1e-4), rtol=1e-3)
    assert torch.allclose(mixer.dt_proj.weight, torch.tensor(2.0))


@pytest.mark.parametrize("mlp", [0.0, 2.0])
def test_outputs_are_scaled_by_depth(mlp: float) -> None:
    def deviation(layers: int) -> list[float]:
        torch.manual_seed(0)
        block = Backbone(ModelConfig(d_model=64, n_layer=layers, mlp_expand=mlp)).blocks[0]
        weights = [block.mixer.out_proj.weight] + ([block.mlp.fc2.weight] if block.mlp else [])
        return [weight.std().item() for weight in weights]

    for one, sixteen in zip(deviation(1), deviation(16), strict=True):
        assert one / sixteen == pytest.approx(4, rel=0.05)
    torch.manual_seed(0)
    plain = MambaMixer(64).out_proj.weight.std().item()
    assert plain / deviation(1)[0] == pytest.approx(2**0.5 if mlp else 1, rel=0.05)


def test_biases_start_at_zero_except_deltas() -> None:
    model = LanguageModel(
        ModelConfig(vocab_size=4, d_model=8, mixer_options={"mamba": {"bias": True}})
    )
    mixer = model.backbone.layers[0].mixer
    assert mixer.in_proj.bias.abs().max() == 0
    assert mixer.out_proj.bias.abs().max() == 0
    assert mixer.dt_proj.bias.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_space_parameters_stay_float32(dtype: torch.dtype) -> None:
    model = _model()
    before = copy.deepcopy(model.state_dict())
    model = model.to(dtype)
    for name, parameter in model.named_parameters():
        if name in _kept_names(model):
            assert parameter.dtype == torch.float32, name
            assert torch.equal(parameter, before[name]), f"{name} was rounded on the way"
        else:
            assert parameter.dtype == dtype, name
    assert {n for n, p in model.named_parameters() if p.dtype == torch.float32} == _kept_names(
        model
    )


def test_casts_keep_gradients_and_allow_float64() -> None:
    model = _model()
    model(torch.zeros(1, 3, dtype=torch.int64))[0].sum().backward()
    gradient = model.backbone.layers[0].mixer.D.grad.clone()
    model = model.bfloat16()
    assert model.backbone.layers[0].mixer.D.grad.dtype == torch.float32
    assert torch.equal(model.backbone.layers[0].mixer.D.grad, gradient)
    model = model.double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert {p.device.type for p in model.to("meta").parameters()} == {"meta"}


def test_bfloat16_model_and_autocast_follow_float32() -> None:
    torch.manual_seed(0)
    config = ModelConfig(vocab_size=16, d_model=32, n_layer=3, layers=("mamba", "s4d", "attention"))
    model = LanguageModel(config)
    tokens = torch.randint(0, 16, (2, 40))
    with torch.no_grad():
        expected, _ = model(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            cast, state = model(tokens)
        half, half_state = copy.deepcopy(model).bfloat16()(tokens)
    for got in (cast, half):
        assert got.dtype == torch.bfloat16
        assert (got - expected).norm() < 0.03 * expected.norm()
    for carried in (state, half_state):
        assert carried[0].ssm.dtype == torch.float32
        assert carried[0].conv.dtype == torch.bfloat16
        assert carried[1].ssm.dtype == torch.complex64


def test_residual_dtype() -> None:
    seen = []

    def residual_of(name: str, model_dtype: torch.dtype) -> torch.dtype:
        backbone = Backbone(ModelConfig(d_model=8, n_layer=2, residual_dtype=name)).to(model_dtype)
        hook = lambda module, arguments: seen.append(arguments[1].dtype)  # noqa: E731
        backbone.blocks[1].norm.register_forward_pre_hook(hook)
        backbone(torch.randn(1, 3, 8, dtype=model_dtype))
        return seen.pop()

    assert residual_of("float32", torch.bfloat16) == torch.float32
    assert residual_of("float32", torch.float64) == torch.float64
    assert residual_of("model", torch.bfloat16) == torch.bfloat16
    assert residual_of("model", torch.float32) == torch.float32
    assert residual_of("bfloat16", torch.float32) == torch.bfloat16


@pytest.mark.parametrize("decay_embeddings", [True, False])
def test_optimiser_groups(decay_embeddings: bool) -> None:
    model = _model()
    groups = parameter_groups(model, 0.1, decay_embeddings=decay_embeddings)
    optimiser = torch.optim.AdamW(groups, lr=1e-3)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in optimiser.param_groups)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1, 0.0]
    assert decayed | free == set(names.values())
    assert not decayed & free
    for name in free | decayed:
        vector = model.get_parameter(name).dim() < 2
        state_space = name in _kept_names(model) and not name.endswith(".C")
        embedding = name == "embedding.weight" and not decay_embeddings
        assert (name in free) == (vector or state_space or embedding), name
    assert "backbone.layers.0.mixer.A_log" in free
    assert "backbone.layers.0.norm.weight" in free


def test_optimiser_groups_leave_out_frozen_and_honour_marks() -> None:
    model = _model()
    model.embedding.weight.requires_grad_(False)
    marked = model.backbone.layers[0].mixer.in_proj.weight
    marked._no_weight_decay = True
    decayed, free = parameter_groups(model, 0.1)
    assert not any(p is model.embedding.weight for g in (decayed, free) for p in g["params"])
    assert any(p is marked for p in free["params"])
    with pytest.raises(UsageError, match="weight_decay"):
        parameter_groups(model, -0.1)
