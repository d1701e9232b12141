"""``mambaaudio generate``: sound files from a model."""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mambacore.cache import atomic_write
from mambacore.errors import UsageError

from ...progress import Bar, Lines, amount, make_progress
from ..arguments import check_output, device_of
from .generate_options import DEPTHS, check, make_parser

if TYPE_CHECKING:
    import numpy as np

    from mambaaudio.generator import Generator, Session

_PLOTTED = 60  # seconds; more cannot be told apart in a picture
_DRAWN = ("temperature", "top_k", "top_p", "core_temperature", "guidance", "candidates")
_COLUMNS = (
    "file",
    "seed",
    "label",
    "speaker",
    "seconds",
    "log_likelihood",
    "bits_per_sample",
    *_DRAWN,
    "ended",
    "rank",
    "kept",
)


def main(argv: list[str], prog: str) -> int:
    """Generate; returns the exit code."""
    arguments = make_parser(prog).parse_args(argv)
    check(arguments)
    from mambaaudio.generator import Generator, drawn_speakers
    from mambaaudio.model_files import read_model_config
    from mambaaudio.ranking import by_likelihood, kept

    config = read_model_config(arguments.model)  # a wrong label costs no reading of weights
    labels = _names(arguments.label, config.labels, config.label_id)
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    if arguments.speaker is None and arguments.prompt is None:
        speakers = drawn_speakers(config, seeds)
    elif arguments.speaker == "none" and "none" not in config.speakers:
        speakers = [None]
    else:
        speakers = _names(arguments.speaker, config.speakers, config.speaker_id)
    clips = [
        _Clip(i, seed, labels[i % len(labels)], speakers[i % len(speakers)])
        for i, seed in enumerate(seeds)
    ]
    for clip in clips:
        clip.path = _path(arguments.output, clip, arguments.count)
    if len({clip.path for clip in clips}) < len(clips):
        raise UsageError(f"-o {arguments.output} gives two clips one name; put {{index}} into it")
    check_output(clips[0].path)
    kept(
        [0.0] * len(clips),
        likeliest=arguments.reject_likeliest,
        unlikeliest=arguments.reject_unlikeliest,
    )

    device = device_of(arguments)
    generator = Generator.from_pretrained(arguments.model, device=device, engine=arguments.engine)
    rows = arguments.batch_size or (256 if device.type == "cuda" else 64)
    size = max(1, rows // arguments.candidates)
    run = _Run(prog, arguments, generator, make_progress())
    try:
        for first in range(0, len(clips), size):
            run.batch(clips[first : first + size])
    finally:
        run.progress.close()
    run.summary()
    bits = [clip.bits for clip in clips]
    remaining = set(
        kept(bits, likeliest=arguments.reject_likeliest, unlikeliest=arguments.reject_unlikeliest)
    )
    for rank, index in enumerate(by_likelihood(bits), 1):
        clips[index].rank, clips[index].kept = rank, index in remaining
    for clip in clips:
        if not clip.kept:
            Path(clip.path).unlink()
            Path(clip.path).with_suffix(".png").unlink(missing_ok=True)
    if arguments.count > 1:
        with atomic_write(Path(clips[0].path).parent / "manifest.tsv", "w") as file:
            print(*_COLUMNS, sep="\t", file=file)
            for clip in clips:
                print(*clip.cells(arguments), sep="\t", file=file)
    return 0


@dataclass
class _Clip:
    """One file to be made, and what is known of it afterwards."""

    index: int
    seed: int
    label: str | None
    speaker: str | None
    path: str = ""
    seconds: float = 0.0
    log_likelihood: float = 0.0
    bits: float = 0.0
    ended: bool = False
    rank: int = 0
    kept: bool = True
    pieces: list[Any] = field(default_factory=list)

    def cells(self, arguments: argparse.Namespace) -> list[str]:
        """The clip's line of the manifest."""
        name = Path(self.path).name
        known = [name, self.seed, self.label or "", self.speaker or "", f"{self.seconds:.4f}"]
        figures = [f"{self.log_likelihood:.3f}", f"{self.bits:.4f}"]
        settings = [getattr(arguments, name) for name in _DRAWN]
        figures += ["" if value is None else f"{value:g}" for value in settings]
        flags = ["yes" if self.ended else "no", self.rank, "yes" if self.kept else "no"]
        return [str(cell) for cell in (*known, *figures, *flags)]


class _Run:
    """Makes batches of clips and shows how fast."""

    def __init__(
        self,
        prog: str,
        arguments: argparse.Namespace,
        generator: Generator,
        progress: Bar | Lines,
    ) -> None:
        self.prog, self.arguments, self.generator = prog, arguments, generator
        self.progress = progress
        self.rate = generator.config.rate
        self.samples = self.clipped = 0
        self.begun = self._first = time.monotonic()
        self._uncounted: int | None = None
        self._said: set[str] = set()

    def say(self, text: str) -> None:
        """A line on standard error, once for all batches."""
        if text not in self._said:
            self._said.add(text)
            self.progress.say(f"{self.prog}: {text}")

    def batch(self, clips: list[_Clip]) -> None:
        """Make these clips side by side, straight to disk."""
        from mambaaudio.writer import WaveformWriter

        given = self.arguments
        session = self.generator.begin(
            given.prompt,
            label=[clip.label for clip in clips],
            speaker=[clip.speaker for clip in clips],
            batch=len(clips),
            temperature=given.temperature,
            top_k=given.top_k,
            top_p=given.top_p,
            guidance=given.guidance,
            core_temperature=given.core_temperature,
            candidates=given.candidates,
            seed=clips[0].seed,
            prompt_start=given.prompt_start,
            prompt_seconds=given.prompt_seconds,
            prompt_channel=given.channel,
            notice=self.say,
        )
        prompt = None if given.no_prompt else session.prompt
        if self._uncounted is None:
            self.begun = time.monotonic()
        frames = given.seconds * self.rate + (0 if prompt is None else len(prompt))
        lengths, told = [0] * len(clips), [0] * len(clips)
        self.progress.update(self._share(clips, 0), "starting; the first time, compiling")
        with ExitStack() as files:
            writers = [
                files.enter_context(
                    WaveformWriter(
                        clip.path,
                        self.rate,
                        output_rate=given.rate,
                        subtype=DEPTHS[given.bits],  # pyright: ignore[reportArgumentType]
                        expected_frames=int(frames * (given.rate or self.rate) / self.rate),
                    )
                )
                for clip in clips
            ]
            if prompt is not None:
                for writer in writers:
                    writer.write(prompt)
            for block in session.blocks(given.seconds):
                for row, (clip, samples) in enumerate(zip(clips, block.waveforms, strict=True)):
                    writers[row].write(samples)
                    if given.plot and lengths[row] < _PLOTTED * self.rate:
                        clip.pieces.append((samples, block.log_probabilities[row]))
                    lengths[row] += len(samples)
                    self.samples += len(samples)
                for row, findings in enumerate(session.findings):
                    for finding in findings[told[row] :]:
                        self.say(f"{clips[row].path}: {finding}")
                    told[row] = len(findings)
                self._show(clips, max(lengths))
                if self._uncounted is None and max(lengths) < given.seconds * self.rate:
                    # The first block also compiles; the speed is that of the others.
                    self.begun, self._uncounted = time.monotonic(), self.samples
        self.clipped += sum(writer.clipped for writer in writers)
        self._finish(clips, session, lengths, prompt)

    def _finish(
        self, clips: list[_Clip], session: Session, lengths: list[int], prompt: np.ndarray | None
    ) -> None:
        from mambaaudio.ranking import bits_per_sample

        for row, clip in enumerate(clips):
            clip.seconds = lengths[row] / self.rate
            clip.log_likelihood = float(session.log_likelihood[row])
            clip.bits = bits_per_sample(clip.log_likelihood, lengths[row])
            clip.ended = bool(session.ended[row])
            if self.arguments.plot:
                self._plot(clip, prompt)

    def _plot(self, clip: _Clip, prompt: np.ndarray | None) -> None:
        import numpy as np

        from mambaaudio.plots import clip_figure, save_figure

        waveform, logs = (np.concatenate(parts) for parts in zip(*clip.pieces, strict=True))
        clip.pieces.clear()
        limit = _PLOTTED * self.rate
        title = f"{Path(clip.path).name}: seed {clip.seed}, {clip.bits:.2f} bits a sample"
        if clip.label:
            title += f", label {clip.label}"
        if clip.seconds > _PLOTTED:
            title += f" (its first {_PLOTTED} s)"
        heard = None if prompt is None else prompt[-limit:]
        figure = clip_figure(waveform[:limit], self.rate, logs[:limit], prompt=heard, title=title)
        save_figure(figure, Path(clip.path).with_suffix(".png"))

    def _share(self, clips: list[_Clip], made: int) -> float:
        done = clips[0].index + len(clips) * made / (self.arguments.seconds * self.rate)
        return min(1.0, done / self.arguments.count)

    def _show(self, clips: list[_Clip], made: int) -> None:
        self.progress.update(self._share(clips, made), self._speed())

    def _speed(self) -> str:
        counted, begun = self.samples - (self._uncounted or 0), self.begun
        if not counted:  # all clips ended in the first block, whose time holds the compilation
            counted, begun = self.samples, self._first
        speed = counted / max(time.monotonic() - begun, 1e-9)
        return f"{amount(speed)} samples/s, {speed / self.rate:.2f} x real time"

    def summary(self) -> None:
        """What was made and how fast, on standard error."""
        made = f"{self.samples / self.rate:.2f} s of sound at {self.rate} Hz"
        self.say(f"{made}: {self._speed()}")
        if self.clipped:
            self.say(f"{self.clipped} samples were beyond full scale and were clipped")


def _path(pattern: str, clip: _Clip, count: int) -> str:
    for name, value in (
        ("index", str(clip.index).zfill(len(str(count - 1)))),
        ("seed", str(clip.seed)),
        ("label", clip.label or "none"),
        ("speaker", clip.speaker or "none"),
    ):
        pattern = pattern.replace(f"{{{name}}}", value)
    return pattern


def _names(given: str | None, known: tuple[str, ...], number: Any) -> list[str | None]:
    """The names of a comma-separated list, or None for all clips; UsageError for unknown ones."""
    if given is None:
        return [None]
    names = [given] if given in known else [part.strip() for part in given.split(",")]
    for name in names:
        number(name)
    return list(names)
