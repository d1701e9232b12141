"""What constant state buys: generation against batch, scan against attention, memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..options import require

if TYPE_CHECKING:
    from .results import Context, Result


@dataclass(frozen=True)
class ModelSize:
    """A language model of one mixer.

    Args:
        mixer: mamba or attention.
        d_model: width.
        n_layer: blocks.
        mlp_expand: hidden width of the gated MLP after each mixer, in units of d_model.
    """

    mixer: str = "mamba"
    d_model: int = 1024
    n_layer: int = 48
    mlp_expand: float = 0.0


@dataclass(frozen=True)
class Config:
    """What `recipe efficiency` does.

    Args:
        models: the models that generate, by the name that they have in the table.
        vocab_size: tokens of both.
        prompt: tokens that each sequence begins with.
        new: tokens that each sequence then makes.
        together: steps recorded as one CUDA graph; divides `new`.
        batches: batch sizes, rising; a model stops at the first that does not fit.
        repeats: timed runs of scan and attention, of which the median counts.
        scan_lengths: lengths of the scan and of attention, one sequence each.
        scan_width: d_model of both; the scan has twice as many channels, 16 states each.
        head_width: of attention.
        memory_tokens: generated lengths at which memory is read, rising.
        memory_batch: sequences then.
        dtype: bfloat16 or float32.
    """

    models: dict[str, ModelSize] = field(
        default_factory=lambda: {
            "mamba": ModelSize(),
            "transformer": ModelSize("attention", n_layer=24, mlp_expand=2.875),
        }
    )
    vocab_size: int = 256
    prompt: int = 2048
    new: int = 128
    together: int = 8
    batches: tuple[int, ...] = (1, 4, 16, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
    repeats: int = 3
    scan_lengths: tuple[int, ...] = tuple(2**n for n in range(9, 20))
    scan_width: int = 1024
    head_width: int = 64
    memory_tokens: tuple[int, ...] = (1024, 2048, 4096, 8192)
    memory_batch: int = 4
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        require(len(self.models) >= 1, "--models", self.models, "at least one")
        require(self.new % self.together == 0, "--together", self.together, "a divisor of --new")
        require(self.dtype in ("bfloat16", "float32"), "--dtype", self.dtype, "one of the two")


def run(config: Config, context: Context) -> Result:
    """Measure the three, one after the other."""
    from .efficiency_measures import generation, memory, scan_times

    sizes = generation(config, context)
    memory(config, context)
    scan_times(config, context)
    return _result(config, context, sizes)


def _result(config: Config, context: Context, sizes: dict[str, int]) -> Result:
    from .figures import line_figure
    from .results import Result, power

    made = [row for row in context.rows if row["what"] == "generation"]
    table = [["measure", *config.models, "ratio"]]
    table.append(["parameters", *(f"{sizes[name]:,}" for name in config.models), ""])
    best = {
        name: max(
            (row for row in made if row["model"] == name), key=lambda row: row["tokens_per_s"]
        )
        for name in config.models
    }
    largest = {n: max(r["batch"] for r in made if r["model"] == n) for n in config.models}
    first, *others = config.models
    table.append(["largest batch that fits", *(f"{largest[n]:,}" for n in config.models), ""])
    for key, text in (
        ("tokens_per_s", "generated tokens/s, prompt included"),
        ("decode_tokens_per_s", "generated tokens/s, decoding alone"),
    ):
        tops = {n: max(r[key] for r in made if r["model"] == n) for n in config.models}
        ratio = f"{tops[first] / tops[others[0]]:.2f}" if others else ""
        table.append([f"{text}, best batch", *(f"{tops[n]:,.0f}" for n in config.models), ratio])
    table.append(["best batch", *(f"{best[n]['batch']:,}" for n in config.models), ""])
    for tokens in config.memory_tokens:
        cells = [
            f"{row['state_mib']:,.1f} MiB"
            for name in config.models
            for row in context.rows
            if row["what"] == "memory" and (row["model"], row["tokens"]) == (name, tokens)
        ]
        table.append(
            [f"state after {tokens:,} new tokens, batch {config.memory_batch}", *cells, ""]
        )
    scans = [row for row in context.rows if row["what"] == "forward"]
    for length in config.scan_lengths:
        ms = {row["op"]: row["ms"] for row in scans if row["length"] == length}
        cells = [f"{ms['scan']:.3f} ms", f"{ms['attention']:.3f} ms"]
        ratio = f"{ms['attention'] / ms['scan']:.2f}"
        table.append([f"scan / attention forward, {power(length)}", *cells, ratio])
    return Result(context.rows, table, line_figure(_panels(config, context), log_y=(True,) * 3))


def _panels(config: Config, context: Context) -> list[Any]:
    def curve(what: str, key: str, x: str, y: str) -> dict[str, list[Any]]:
        lines: dict[str, list[Any]] = {}
        for name in dict.fromkeys(row[key] for row in context.rows if row["what"] == what):
            rows = [r for r in context.rows if r["what"] == what and r[key] == name]
            lines[name] = [([r[x] for r in rows], [r[y] for r in rows])]
        return lines

    return [
        (
            f"Generation: prompt {config.prompt:,}, {config.new} new tokens",
            curve("generation", "model", "batch", "tokens_per_s"),
            "batch",
            "generated tokens/s",
        ),
        (
            f"Forward, one sequence, d_model {config.scan_width:,}",
            curve("forward", "op", "length", "ms"),
            "length",
            "ms",
        ),
        (
            f"State while generating, batch {config.memory_batch}",
            curve("memory", "model", "tokens", "state_mib"),
            "generated tokens",
            "MiB",
        ),
    ]
