"""Sound from a model: primed by any recording, streamed in blocks, of any length."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mambaaudio.codes import code
from mambaaudio.engines import Draws, choose, place_in_period
from mambaaudio.guard import Finding, Guard
from mambaaudio.model import WaveformModel, WaveformState
from mambaaudio.model_config import WaveformConfig
from mambaaudio.prompts import Notice, Prompt, Source, load_prompt, side_by_side
from mambaaudio.ranking import bits_per_sample
from mambaaudio.sampling import Sampling, Uniforms
from mambaaudio.selection import SECONDS, Chooser, SelectingEngine
from mambaaudio.waveform import Channel
from mambacore import state as states
from mambacore.errors import DataError, UsageError

BLOCK = 4096
_PRIMING = 1 << 14
Names = str | Sequence[str | None] | None
ANY = "*"


@dataclass(frozen=True)
class Block:
    """A piece of every row.

    waveforms: float32 (n,) a row, gain undone; shorter, or empty, where a row has ended.
    log_probabilities: (n,) a row, nats a sample, of what was drawn, under the model.
    ended: (rows,) whether the end event was met.
    """

    waveforms: tuple[NDArray[np.float32], ...]
    log_probabilities: tuple[NDArray[np.float32], ...]
    ended: NDArray[np.bool_]


@dataclass
class Generated:
    """What `Generator.generate` made, a row a clip.

    waveforms: float32 (n,) each, the prompt left out. rate: in Hz. seeds: one a row.
    log_probabilities: (n,) each, nats a sample; log_likelihood: (rows,) their sums, and of the
    end event. prompt: (n,) as the model heard it, or None; (rows, n) where each row had its own.
    findings: of the guard, by row. speakers: names, told or drawn; None where not said.
    """

    waveforms: list[NDArray[np.float32]]
    rate: int
    seeds: list[int]
    log_probabilities: list[NDArray[np.float32]]
    log_likelihood: NDArray[np.float64]
    ended: NDArray[np.bool_]
    prompt: NDArray[np.float32] | None = None
    findings: list[list[Finding]] = field(default_factory=list)
    speakers: list[str | None] = field(default_factory=list)

    @property
    def bits_per_sample(self) -> list[float]:
        """Negative log-likelihood of each row in bits a sample."""
        pairs = zip(self.log_likelihood, self.waveforms, strict=True)
        return [bits_per_sample(float(total), len(samples)) for total, samples in pairs]


class Session:
    """Rows under way: `blocks(seconds)` makes the next seconds of each, again and again.

    Memory is constant whatever the length. `prompt` is what the model heard (None, (n,) or
    (rows, n)), `log_likelihood` (rows,) the sum so far in nats, `guards` and `speakers` one a row.
    """

    def __init__(
        self,
        model: WaveformModel,
        seeds: Sequence[int],
        sampling: Sampling,
        prompt: Prompt | None,
        conditions: tuple[Tensor, Tensor],
        engine: str,
        candidates: int,
    ) -> None:
        self.config, self.seeds = model.config, list(seeds)
        self.rate = self.config.rate
        self.prompt = None if prompt is None else prompt.waveform
        self.log_likelihood = np.zeros(len(self.seeds))
        self.ended = np.zeros(len(self.seeds), np.bool_)
        rows = len(self.seeds)
        levels: Any = [None] * rows
        choice: Chooser | None = None
        if prompt is not None:
            heard = prompt.waveform.reshape(len(prompt.codes), -1)
            levels = np.broadcast_to(np.std(heard, axis=1), rows).tolist()
            if candidates > 1:
                choice = Chooser(heard, rows, candidates)
        self.guards = [Guard(self.rate, level) for level in levels]
        self.findings: list[list[Finding]] = [[] for _ in self.seeds]
        self._made = 0
        self._code = code(self.config.code)
        names = (None, *self.config.speakers)
        self.speakers = [names[number] for number in conditions[1].tolist()]
        label, speaker = (c.to(model.device) for c in conditions)
        if sampling.streams == 2:
            label, speaker = _with_untold(label, speaker)
        state = None
        last = label.new_full(label.shape, self.config.start)
        if prompt is not None:
            codes = prompt.codes.to(model.device)
            state = _prime(model, codes, label, speaker)
            last = codes[:, -1].repeat(len(last) // len(codes))
        if choice is not None:
            each = torch.arange(len(last), device=last.device).repeat_interleave(candidates)
            state, last = states.select(state, each), last[each]
            label, speaker = label[each], speaker[each]
        uniforms = Uniforms(self.seeds, candidates)
        self._engine: Draws = choose(model, engine)(
            model, state, last, uniforms, sampling, label=label, speaker=speaker
        )
        if choice is not None:
            period = self.config.backbone.total_pool
            symbols = SECONDS * self.rate * self._code.symbols_per_sample
            interval = max(1, round(symbols / period)) * period
            first = interval - place_in_period(state)
            self._engine = SelectingEngine(self._engine, choice, self._decoded, first, interval)

    def blocks(self, seconds: float, block: int = BLOCK) -> Iterator[Block]:
        """Yield the next `seconds` in blocks of at most `block` samples; less if all rows end.

        Raises:
            DataError: the model's scores became NaN; the sample is named.
        """
        left = round(seconds * self.rate)
        while left > 0 and not self.ended.all():
            count = min(left, block)
            yield self._block(count)
            left -= count

    def _block(self, count: int) -> Block:
        parts = self._code.symbols_per_sample
        symbols, logs = self._engine.run(count * parts)
        if not np.isfinite(logs).all():
            where = self._made + int(np.argwhere(~np.isfinite(logs))[0, 1]) // parts
            raise DataError(
                f"the model's scores are not finite at sample {where}: its weights or its state "
                "hold NaN; train it again with a lower learning rate, or use an earlier checkpoint"
            )
        self.log_likelihood += logs.sum(1, dtype=np.float64)
        waveforms, samples_logs = self._decoded(symbols), []
        for row, wave in enumerate(waveforms):
            self.ended[row] = len(wave) < count
            samples_logs.append(logs[row, : len(wave) * parts].reshape(-1, parts).sum(1))
            self.findings[row] += self.guards[row].update(wave)
        self._made += count
        return Block(tuple(waveforms), tuple(samples_logs), self.ended.copy())

    def _decoded(self, symbols: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        """Samples of each row, gain undone, up to its end event."""
        parts, rows = self._code.symbols_per_sample, []
        for row in symbols:
            ends = np.flatnonzero(row == self.config.end)
            length = (int(ends[0]) if len(ends) else len(row)) // parts
            made = torch.from_numpy(row[: length * parts])
            rows.append((self._code.decode(made) / self.config.gain).numpy())
        return rows


class Generator:
    """Generates sound with a `WaveformModel`.

    Args:
        model: in evaluation mode, on the device where it shall run.
        engine: "auto", "compiled" (CPU), "graph", "graph-modules" (CUDA) or "torch"; see
            `mambaaudio.engines`.

    >>> from mambaaudio import WaveformConfig, WaveformModel
    >>> from mambacore.multiscale import MultiScaleConfig
    >>> tiny = MultiScaleConfig(d_model=8, pools=(2,), n_layer=1)
    >>> generator = Generator(WaveformModel(WaveformConfig(8000, backbone=tiny)), engine="torch")
    >>> made = generator.generate(0.01, batch=2, seed=5)
    >>> len(made.waveforms[0]), made.rate, made.seeds
    (80, 8000, [5, 6])
    """

    def __init__(self, model: WaveformModel, *, engine: str = "auto") -> None:
        self.model = model.eval()
        self.engine = engine

    @classmethod
    def from_pretrained(
        cls,
        folder: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        engine: str = "auto",
    ) -> Generator:
        """From a model folder or a run folder; arguments as for `WaveformModel.from_pretrained`."""
        return cls(WaveformModel.from_pretrained(folder, device=device, dtype=dtype), engine=engine)

    @property
    def config(self) -> WaveformConfig:
        """The model's settings."""
        return self.model.config

    def begin(
        self,
        prompt: Source | Sequence[Source] | None = None,
        *,
        label: Names = None,
        speaker: Names = ANY,
        batch: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        core_temperature: float = 1.0,
        candidates: int = 1,
        seed: int = 0,
        prompt_rate: int | None = None,
        prompt_start: float = 0.0,
        prompt_seconds: float | None = None,
        prompt_channel: Channel = "mix",
        notice: Notice | None = None,
    ) -> Session:
        """A session of `batch` rows, to be continued for as long as one likes.

        Args:
            prompt: a recording to go on from, a file or samples (n,): the state is exactly that
                after hearing it. None begins from nothing. A list has one a row, of one length.
            label, speaker: names that the model knows; one for all rows, or one a row; None is
                not said. The speaker "*", the default, is drawn by each row's seed
                (`drawn_speakers`); after a prompt it is not said.
            batch: rows. Row i has seed `seed` + i and is the same in a batch of any size.
            temperature, top_k, top_p, core_temperature: see `Sampling`; the last is for codes of
                one symbol a sample.
            guidance: above 1 follows the label more closely (the speaker in rows that are told no
                label); see `Sampling`. The likelihoods stay those of the model itself.
            candidates: of each half second that are drawn side by side; what goes on is chosen
                among them (`mambaaudio.selection`). Rows that have a prompt only; as many times
                the work, which on a GPU costs little time where rows are few.
            seed: the same seed gives the same samples on the same machine, bit for bit.
            prompt_rate: of given samples; the model's by default.
            prompt_start, prompt_seconds: the stretch of the prompt that is heard.
            prompt_channel: of a file of several channels: "mix" (their mean), "left" or "right".
            notice: told what was done to the prompt; a Python warning by default.

        Raises:
            UsageError, DataError: see `Sampling` and `load_prompt`; an unknown label or speaker
                (the known ones are listed).
        """
        if batch < 1:
            raise UsageError(f"batch is {batch}; give at least 1")
        sampling = Sampling(temperature, top_k, top_p, guidance, core_temperature)
        if core_temperature != 1 and self.config.symbols_per_sample > 1:
            raise UsageError(
                f"core_temperature needs one symbol a sample; this model's code is "
                f"{self.config.code}"
            )
        seeds = range(seed, seed + batch)
        labels, told = (_each(*given, batch) for given in (("label", label), ("speaker", speaker)))
        speakers = told
        if speaker == ANY:
            told = [None] * batch
            speakers = drawn_speakers(self.config, seeds) if prompt is None else told
        conditions = (
            torch.tensor([self.config.label_id(name) for name in labels]),
            torch.tensor([self.config.speaker_id(name) for name in speakers]),
        )
        if sampling.streams == 2 and not any([*labels, *told]):
            raise UsageError(
                f"guidance {guidance:g} asks to follow a label or a speaker; tell one, or leave "
                "guidance at 1"
            )
        if candidates < 1:
            raise UsageError(f"candidates is {candidates}; give at least 1")
        if candidates > 1 and prompt is None:
            raise UsageError(
                f"{candidates} candidates need a prompt, whose level is kept; give one, or leave "
                "candidates at 1"
            )
        several = isinstance(prompt, list | tuple)
        given: list[Any] = list(prompt) if several else [] if prompt is None else [prompt]
        if several and len(given) != batch:
            raise UsageError(f"{len(given)} prompts for {batch} rows; give one, or one a row")
        prompts = [
            load_prompt(
                source,
                self.config,
                rate=prompt_rate,
                start=prompt_start,
                seconds=prompt_seconds,
                channel=prompt_channel,
                notice=notice or _warn,
            )
            for source in given
        ]
        heard = side_by_side(prompts) if several else prompts[0] if prompts else None
        return Session(self.model, seeds, sampling, heard, conditions, self.engine, candidates)

    def generate(
        self, seconds: float, prompt: Source | Sequence[Source] | None = None, **options: Any
    ) -> Generated:
        """`seconds` of sound, or less where the end event comes first; options as for `begin`.

        Raises:
            UsageError: seconds that are not above 0; and what `begin` raises.
        """
        if not 0 < seconds < float("inf"):
            raise UsageError(f"seconds is {seconds}; give a number above 0")
        session = self.begin(prompt, **options)
        blocks = list(session.blocks(seconds))
        rows = range(len(session.seeds))
        return Generated(
            [np.concatenate([block.waveforms[row] for block in blocks]) for row in rows],
            session.rate,
            session.seeds,
            [np.concatenate([block.log_probabilities[row] for block in blocks]) for row in rows],
            session.log_likelihood,
            session.ended,
            session.prompt,
            session.findings,
            session.speakers,
        )


@torch.no_grad()
def _prime(model: WaveformModel, codes: Tensor, label: Tensor, speaker: Tensor) -> WaveformState:
    """The state before the last code of prompts (n, L) is fed, for every row of the conditions:
    row i hears prompt i modulo n."""
    distinct = torch.stack([label, speaker], 1)
    which = torch.arange(len(distinct), device=distinct.device)
    if len(codes) == 1:  # rows under equal conditions hear the same: one of each is enough
        distinct, which = distinct.unique(dim=0, return_inverse=True)
    inputs, state = model.shift(codes), None
    times = len(distinct) // len(codes)
    conditions = {"label": distinct[:, 0], "speaker": distinct[:, 1]}
    for first in range(0, inputs.shape[1], _PRIMING):
        part = inputs[:, first : first + _PRIMING].repeat(times, 1)
        _, state = model.hidden(part, state, **conditions)
        conditions = {}
    assert state is not None
    return states.select(state, which)


def _with_untold(label: Tensor, speaker: Tensor) -> tuple[Tensor, Tensor]:
    """Conditions (2 rows,): those told, then the same without what guidance shall follow."""
    untold = speaker.where(label != 0, torch.zeros_like(speaker))
    return torch.cat([label, torch.zeros_like(label)]), torch.cat([speaker, untold])


def drawn_speakers(config: WaveformConfig, seeds: Sequence[int]) -> list[str | None]:
    """A speaker for each seed, all with equal chances; None where the model knows none.

    A label alone asks for clips of any speaker: to draw one first and then the clip is exact, and
    what the model heard most in training; a speaker that is not said is a mixture of voices.

    >>> from mambacore.multiscale import MultiScaleConfig
    >>> config = WaveformConfig(8000, backbone=MultiScaleConfig(), speakers=("ann", "bob"))
    >>> drawn_speakers(config, range(6)) == drawn_speakers(config, range(6))
    True
    """
    known = config.speakers
    if not known:
        return [None] * len(seeds)
    return [known[np.random.default_rng(seed).integers(len(known))] for seed in seeds]


def _each(kind: str, given: Names, batch: int) -> list[str | None]:
    names = [given] * batch if given is None or isinstance(given, str) else list(given)
    if len(names) != batch:
        raise UsageError(f"{len(names)} {kind}s for {batch} rows; give one, or one a row")
    return names


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)
