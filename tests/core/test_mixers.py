"""Each mixer against its definition, and what the registry and the bidirectional mixer promise."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from helpers import assert_close
from mambacore import (
    Backbone,
    BidirectionalMixer,
    LanguageModel,
    ModelConfig,
    UsageError,
    build_mixer,
    generate,
    mixer_names,
    register_mixer,
)
from mambacore.mixers import AttentionMixer, MambaMixer, S4DMixer, s4d


def test_mamba_has_the_peers_parameters() -> None:
    shapes = {
        name: tuple(p.shape) for name, p in MambaMixer(32, d_state=5, bias=True).named_parameters()
    }
    assert shapes == {
        "A_log": (64, 5),
        "D": (64,),
        "in_proj.weight": (128, 32),
        "in_proj.bias": (128,),
        "conv1d.weight": (64, 1, 4),
        "conv1d.bias": (64,),
        "x_proj.weight": (12, 64),
        "dt_proj.weight": (64, 2),
        "dt_proj.bias": (64,),
        "out_proj.weight": (32, 64),
        "out_proj.bias": (32,),
    }


@pytest.mark.parametrize("discretization", ["euler", "zoh"])
def test_mamba_is_its_definition(discretization: str) -> None:
    """Algorithm 2 of the paper, written out step by step."""
    torch.manual_seed(0)
    m = MambaMixer(6, d_state=3, discretization=discretization).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    u, z = m.in_proj(x).chunk(2, dim=-1)
    padded = F.pad(u.transpose(1, 2), (3, 0))
    u = F.silu(F.conv1d(padded, m.conv1d.weight, m.conv1d.bias, groups=12)).transpose(1, 2)
    delta, B, C = m.x_proj(u).split([1, 3, 3], dim=-1)
    delta, A = F.softplus(m.dt_proj(delta)), -m.A_log.exp()
    h, outputs = torch.zeros(2, 12, 3, dtype=torch.float64), []
    for t in range(9):
        step = delta[:, t, :, None]
        a = (step * A).exp()
        b = (a - 1) / A if discretization == "zoh" else step
        h = a * h + b * B[:, t, None] * u[:, t, :, None]
        outputs.append((h * C[:, t, None]).sum(-1) + m.D * u[:, t])
    expected = m.out_proj(torch.stack(outputs, dim=1) * F.silu(z))
    assert_close(m(x)[0], expected, 1e-12)


@pytest.mark.parametrize("a_init", ["s4d-lin", "s4d-real"])
def test_s4d_is_its_definition(a_init: str) -> None:
    torch.manual_seed(0)
    m = S4DMixer(4, d_state=6, a_init=a_init).double()
    x = torch.randn(2, 40, 4, dtype=torch.float64)
    A = torch.complex(-m.log_A_real.exp(), m.A_imag)
    delta = m.log_dt.exp()[:, None]
    a = (delta * A).exp()
    h, outputs = torch.zeros(2, 4, 3, dtype=torch.complex128), []
    for t in range(40):
        h = a * h + (a - 1) / A * x[:, t, :, None]
        outputs.append(2 * (torch.view_as_complex(m.C) * h).sum(-1).real + m.D * x[:, t])
    expected = F.glu(m.out_proj(F.gelu(torch.stack(outputs, dim=1))), dim=-1)
    assert_close(m(x)[0], expected, 1e-12)
    ids = torch.zeros(2, 40, dtype=torch.int64)
    assert_close(m(x, segment_ids=ids)[0], expected, 1e-12)


@pytest.mark.parametrize("decay", [0.5, 0.01])
def test_s4d_in_float32_stays_exact_over_long_memory(decay: float) -> None:
    """Fast modes that hardly decay: FFT blocks, the scan and the recurrence against float64."""
    torch.manual_seed(0)
    m = S4DMixer(2, d_state=64, dt_min=0.01, dt_max=0.1)
    with torch.no_grad():
        m.log_A_real.fill_(math.log(decay))
    x = torch.randn(1, 1_200, 2)
    with torch.no_grad():
        exact = S4DMixer(2).double()
        exact.load_state_dict(m.state_dict())
        expected, _ = exact(x.double())
        for block in (1 << 14, 700):
            m.block = block
            assert_close(m(x)[0], expected, 5e-6, f"FFT, blocks of {block}")
        assert_close(m(x, segment_ids=torch.zeros(1, 1_200).long())[0], expected, 5e-6, "scan")
        carried, outputs = None, []
        for t in range(1_200):
            y, carried = m(x[:, t : t + 1], carried)
            outputs.append(y)
        assert_close(torch.cat(outputs, dim=1), expected, 5e-6, "recurrence")


def test_s4d_scans_segments_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    m = S4DMixer(4, d_state=6)
    x, ids = torch.randn(2, 75, 4), torch.arange(75).repeat(2, 1) // torch.tensor([[20], [33]])
    x.requires_grad_()
    outcomes = []
    for budget in (1 << 20, 1):  # one block, and blocks of a single chunk
        monkeypatch.setattr(s4d, "_SCAN_BYTES_CPU", budget)
        y, state = m(x, segment_ids=ids)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        outcomes.append((y, torch.view_as_real(state.ssm), gradient))
    for got, expected in zip(*outcomes, strict=True):
        assert_close(got, expected, 1e-5)


def test_s4d_does_not_leak_backwards_in_time() -> None:
    m = S4DMixer(2, d_state=4, block=256)
    x = torch.zeros(1, 1_024, 2)
    x[:, 700:] = 1e6
    silent, _ = m(torch.zeros(1, 1_024, 2))
    assert torch.equal(m(x)[0][:, :512], silent[:, :512])


def test_attention_is_its_definition() -> None:
    """Softmax over the past of rotated queries and keys; the score knows only distances."""
    torch.manual_seed(0)
    m = AttentionMixer(8, n_heads=1).double()
    x = torch.randn(1, 7, 8, dtype=torch.float64)
    q, k, v = m.in_proj(x)[0].chunk(3, dim=-1)
    frequency = 10_000.0 ** -(torch.arange(4, dtype=torch.float64) / 4)

    def turned(vector: torch.Tensor) -> torch.Tensor:
        pairs = torch.complex(vector[:, :4], vector[:, 4:])
        pairs = pairs * torch.exp(1j * torch.arange(7)[:, None] * frequency)
        return torch.cat([pairs.real, pairs.imag], dim=-1)

    scores = turned(q) @ turned(k).T / 8**0.5
    scores = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    assert_close(m(x)[0][0], m.out_proj(scores.softmax(-1) @ v), 1e-12)


def test_attention_forgets_finished_segments() -> None:
    m = AttentionMixer(8, n_heads=2)
    _, carried = m(
        torch.randn(2, 10, 8), segment_ids=torch.tensor([[0] * 6 + [1] * 4, [0] * 7 + [1] * 3])
    )
    assert carried.keys.shape[2] == 4


@pytest.mark.parametrize("inner", ["mamba", "s4d", "attention"])
def test_bidirectional_runs_from_both_ends(inner: str) -> None:
    torch.manual_seed(0)
    options = {"n_heads": 2} if inner == "attention" else {}
    mixer = BidirectionalMixer(8, inner=inner, inner_options=options)
    x = torch.randn(2, 13, 8)
    y, state = mixer(x)
    assert state is None
    assert mixer.right is not None
    expected = mixer.left(x)[0] + mixer.right(x.flip(1))[0].flip(1)
    assert_close(y, expected, 1e-6)
    ids = torch.tensor([[0] * 5 + [1] * 8, [3] * 13])
    packed, _ = mixer(x, segment_ids=ids)
    separate = torch.cat([mixer(x[:1, :5])[0], mixer(x[:1, 5:])[0]], dim=1)
    assert_close(packed, torch.cat([separate, mixer(x[1:])[0]]), 1e-5)


def test_bidirectional_needs_the_whole_sequence() -> None:
    mixer = BidirectionalMixer(8, shared=True)
    x = torch.randn(1, 4, 8)
    with pytest.raises(UsageError, match="needs the whole sequence"):
        mixer(x, mixer.left.initial_state(1))
    with pytest.raises(UsageError, match="needs the whole sequence"):
        mixer.initial_state(1)
    config = ModelConfig(vocab_size=4, d_model=8, n_layer=2, layers=("mamba", "bidirectional"))
    backbone = Backbone(config)
    assert backbone(x)[1] is None
    assert not backbone.causal
    with pytest.raises(UsageError, match=r"layer 1 \(bidirectional\) needs the whole sequence"):
        backbone(x, (None, None))
    with pytest.raises(UsageError, match="needs the whole sequence"):
        backbone.initial_state(1)
    model = LanguageModel(config)
    assert model(torch.tensor([[1, 2]]))[1] is None
    with pytest.raises(UsageError, match="cannot generate"):
        generate(model, torch.tensor([[1]]), 3)
    with pytest.raises(UsageError, match="not causal"):
        BidirectionalMixer(8, inner="bidirectional")


def test_registry() -> None:
    assert {"attention", "bidirectional", "mamba", "s4d"} <= set(mixer_names())
    with pytest.raises(UsageError, match="unknown mixer 'mamba3'; there are: attention"):
        build_mixer("mamba3", 8)
    with pytest.raises(UsageError, match="no option 'd_stat'; accepted: d_state, d_conv"):
        build_mixer("mamba", 8, d_stat=3)
    with pytest.raises(UsageError, match="exists already"):
        register_mixer("mamba")(S4DMixer)
    with pytest.raises(UsageError, match="unknown mixer"):
        Backbone(ModelConfig(d_model=8, mixer="mamba3"))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mamba", {"d_state": 0}),
        ("mamba", {"discretization": "bilinear"}),
        ("mamba", {"dt_init": "zero"}),
        ("mamba", {"a_init": "hippo"}),
        ("mamba", {"dt_min": 0.0}),
        ("s4d", {"d_state": 3}),
        ("s4d", {"block": 1 << 15}),
        ("s4d", {"a_init": "hippo"}),
        ("attention", {"n_heads": 3}),
    ],
)
def test_options_out_of_range_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        build_mixer(name, 8, **options)


def test_compiled_without_a_graph_break() -> None:
    model = LanguageModel(ModelConfig(vocab_size=8, d_model=8, n_layer=2, layers=("mamba", "s4d")))
    tokens = torch.randint(0, 8, (2, 12))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_close(compiled(tokens)[0], model(tokens)[0], 1e-5)
