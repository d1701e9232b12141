"""The three measurements of the efficiency recipe."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from mambacore import LanguageModel, ModelConfig
from mambakernels import selective_scan

from .decoding import Decoder

if TYPE_CHECKING:
    from .efficiency import Config, ModelSize
    from .results import Context


def build(size: ModelSize, config: Config, device: torch.device) -> LanguageModel:
    """The model with random weights, in the configuration's dtype."""
    torch.manual_seed(0)
    model = LanguageModel(
        ModelConfig(
            vocab_size=config.vocab_size,
            d_model=size.d_model,
            n_layer=size.n_layer,
            mixer=size.mixer,
            mlp_expand=size.mlp_expand,
            residual_dtype="model",
        )
    )
    return model.to(device, getattr(torch, config.dtype)).eval()


def generation(config: Config, context: Context) -> dict[str, int]:
    """Throughput against batch, until a batch does not fit; the models' parameters."""
    sizes: dict[str, int] = {}
    for name, size in config.models.items():
        model = build(size, config, context.device)
        sizes[name] = sum(p.numel() for p in model.parameters())
        context.say(f"{name}: {sizes[name]:,} parameters")
        _generate(model, config, context.device, config.batches[0])  # compiles the kernels
        for batch in config.batches:
            row = _if_it_fits(model, config, context.device, batch)
            _forget(context.device)
            if row is None:
                context.say(f"  batch {batch:,}: out of memory")
                break
            context.add({"what": "generation", "model": name, "batch": batch, **row})
            context.say(
                f"  batch {batch:,}: {row['tokens_per_s']:,.0f} tokens/s, decoding alone "
                f"{row['decode_tokens_per_s']:,.0f}"
            )
        del model
        _forget(context.device)
    return sizes


def _if_it_fits(
    model: LanguageModel, config: Config, device: torch.device, batch: int
) -> dict[str, float] | None:
    try:
        return _generate(model, config, device, batch)
    except RuntimeError as error:
        # A recording that runs out of memory ends with an error of its own.
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, torch.OutOfMemoryError):
            cause = cause.__context__
        if cause is None:
            raise
        return None


def _generate(
    model: LanguageModel, config: Config, device: torch.device, batch: int
) -> dict[str, float]:
    generator = torch.Generator(device).manual_seed(0)
    prompt = torch.randint(
        0, config.vocab_size, (batch, config.prompt), generator=generator, device=device
    )
    length = config.prompt + config.new
    Decoder(model, prompt, length, together=config.together)  # compiles what this batch needs
    start = _clock(device)
    decoder = Decoder(model, prompt, length, together=config.together)
    reading = _clock(device) - start
    decoder.prepare()
    start = _clock(device)
    decoder.run(config.new)
    decoding = _clock(device) - start
    made = batch * config.new
    return {
        "tokens_per_s": made / (reading + decoding),
        "decode_tokens_per_s": made / decoding,
        "prompt_s": reading,
        "decode_s": decoding,
        "state_mib": decoder.state_bytes / 2**20,
    }


def memory(config: Config, context: Context) -> None:
    """The state's size, and on a GPU all memory in use, while sequences grow."""
    for name, size in config.models.items():
        model = build(size, config, context.device)
        prompt = torch.zeros(config.memory_batch, 1, dtype=torch.int64, device=context.device)
        for tokens in config.memory_tokens:
            # What a decoder of that many tokens has to hold; attention reserves its cache.
            decoder = Decoder(model, prompt, tokens + 1, together=config.together)
            decoder.prepare()
            row = {"state_mib": decoder.state_bytes / 2**20}
            if context.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            decoder.run(tokens)
            if context.device.type == "cuda":
                row["peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
            context.add({"what": "memory", "model": name, "tokens": tokens, **row})
            del decoder
            _forget(context.device)
        context.say(f"{name}: memory read up to {config.memory_tokens[-1]:,} tokens")
        del model
        _forget(context.device)


def scan_times(config: Config, context: Context) -> None:
    """Forward times of one sequence: the selective scan and causal attention of one d_model."""
    device, dtype = context.device, getattr(torch, config.dtype)
    channels, states = 2 * config.scan_width, 16
    heads = config.scan_width // config.head_width
    for length in config.scan_lengths:
        torch.manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, dtype=dtype)

        u, delta, z = (draw(1, length, channels) for _ in range(3))
        B, C = draw(1, length, states), draw(1, length, states)
        A = -torch.rand(channels, states, device=device) - 0.5
        D, bias = torch.ones(channels, device=device), torch.zeros(channels, device=device)

        def scan(inputs: tuple[Tensor | None, ...] = (u, delta, A, B, C, D, z, bias)) -> None:
            selective_scan(*inputs, delta_softplus=True)  # type: ignore[arg-type]

        ms = _time(scan, device, config.repeats)
        context.add({"what": "forward", "op": "scan", "length": length, "ms": ms})
        del u, delta, z, scan
        q, k, v = (draw(1, heads, length, config.head_width) for _ in range(3))

        def attention(inputs: tuple[Tensor, Tensor, Tensor] = (q, k, v)) -> None:
            functional.scaled_dot_product_attention(*inputs, is_causal=True)

        other = _time(attention, device, config.repeats)
        context.add({"what": "forward", "op": "attention", "length": length, "ms": other})
        context.say(f"length {length:,}: scan {ms:.3f} ms, attention {other:.3f} ms")
        del q, k, v, attention
        _forget(device)


def _time(function: Callable[[], None], device: torch.device, repeats: int) -> float:
    """Median time in ms; short ones are repeated until they are well above the clock."""
    with torch.no_grad():
        function()
        start = _clock(device)
        function()
        calls = max(1, min(50, int(0.02 / max(_clock(device) - start, 1e-6))))
        times = []
        for _ in range(repeats):
            start = _clock(device)
            for _ in range(calls):
                function()
            times.append((_clock(device) - start) / calls * 1e3)
    return statistics.median(times)


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _forget(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
