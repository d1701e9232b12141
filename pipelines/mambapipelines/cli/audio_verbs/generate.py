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
from ..arguments import Parser, add_model, check_output, device_of, positive

if TYPE_CHECKING:
    import numpy as np

    from mambaaudio.generator import Generator, Session

_DEPTHS = {"16": "PCM_16", "24": "PCM_24", "float": "FLOAT"}
_PLOTTED = 60  # seconds; more cannot be told apart in a picture
_COLUMNS = (
    "file",
    "seed",
    "label",
    "speaker",
    "seconds",
    "log_likelihood",
    "bits_per_sample",
    "temperature",
    "ended",
    "rank",
    "kept",
)


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Generate sound with a trained model: from nothing, under a label, or going on from any "
        "recording.",
        "The suffix of -o names the format: .wav, .flac or .ogg; -o - streams WAV to standard "
        "output, for aplay, sox or ffmpeg. With -n, clip i has seed SEED + i: the manifest says "
        "with which --seed a clip can be made again alone.",
    )
    add_model(parser)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help="with -n, the name holds {index} (also {seed}, {label}, {speaker})",
    )
    parser.add_argument(
        "--seconds",
        type=_above_zero,
        default=10.0,
        metavar="S",
        help="of new sound (default: 10); less where the model ends a clip",
    )
    parser.add_argument(
        "-n",
        type=positive,
        default=1,
        dest="count",
        metavar="N",
        help="clips; also writes manifest.tsv beside them (default: 1)",
    )
    parser.add_argument(
        "--plot",
        action="store_true",
        help="also a PNG a clip: waveform, spectrogram, bits a sample",
    )
    group = parser.add_argument_group("what it goes on from")
    group.add_argument("--prompt", metavar="FILE", help="a recording of any rate and format")
    group.add_argument(
        "--prompt-start",
        type=_not_below_zero,
        default=0.0,
        metavar="S",
        help="where in it the model begins to hear (default: 0)",
    )
    group.add_argument(
        "--prompt-seconds",
        type=_above_zero,
        metavar="S",
        help="how much of it (default: to its end)",
    )
    group.add_argument("--no-prompt", action="store_true", help="leave it out of the output")
    group.add_argument(
        "--label", metavar="NAME", help="a label of the model's, or several with commas, in turn"
    )
    group.add_argument("--speaker", metavar="NAME", help="likewise a speaker")
    group = parser.add_argument_group("how samples are drawn")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    group.add_argument(
        "--temperature",
        type=_not_below_zero,
        default=1.0,
        metavar="T",
        help="1 is the model's own distribution, 0 the likeliest (default: 1)",
    )
    group.add_argument("--top-k", type=positive, metavar="K", help="only the K likeliest values")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="only the likeliest values that together reach P"
    )
    group.add_argument(
        "--reject-likeliest",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with -n: drop this share of the clips, those of fewest bits",
    )
    group.add_argument(
        "--reject-unlikeliest",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with -n: drop this share of the clips, those of most bits",
    )
    group = parser.add_argument_group("the file")
    group.add_argument(
        "--rate", type=positive, metavar="HZ", help="resample (default: the model's)"
    )
    group.add_argument(
        "--bits", choices=sorted(_DEPTHS), default="16", help="a sample (default: 16)"
    )
    group = parser.add_argument_group("computing")
    group.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: auto, a GPU if there is)"
    )
    group.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads (default: one a core)"
    )
    group.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="clips at a time (default: 64, on a GPU 256)",
    )
    group.add_argument(
        "--engine",
        choices=("auto", "compiled", "graph", "graph-modules", "torch"),
        default="auto",
        help="what steps the model (default: auto, the fastest)",
    )
    return parser


def main(argv: list[str], prog: str) -> int:
    """Generate; returns the exit code."""
    arguments = _parser(prog).parse_args(argv)
    _check(arguments)
    from mambaaudio.generator import Generator
    from mambaaudio.model_files import read_model_config
    from mambaaudio.ranking import by_likelihood, kept

    config = read_model_config(arguments.model)  # a wrong label costs no reading of weights
    labels = _names(arguments.label, config.labels, config.label_id)
    speakers = _names(arguments.speaker, config.speakers, config.speaker_id)
    clips = [
        _Clip(i, arguments.seed + i, labels[i % len(labels)], speakers[i % len(speakers)])
        for i in range(arguments.count)
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
    size = arguments.batch_size or (256 if device.type == "cuda" else 64)
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
                print(*clip.cells(arguments.temperature), sep="\t", file=file)
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

    def cells(self, temperature: float) -> list[str]:
        """The clip's line of the manifest."""
        name = Path(self.path).name
        known = [name, self.seed, self.label or "", self.speaker or "", f"{self.seconds:.4f}"]
        figures = [f"{self.log_likelihood:.3f}", f"{self.bits:.4f}", f"{temperature:g}"]
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
        self.begun = time.monotonic()
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
            seed=clips[0].seed,
            prompt_start=given.prompt_start,
            prompt_seconds=given.prompt_seconds,
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
                        subtype=_DEPTHS[given.bits],  # pyright: ignore[reportArgumentType]
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
        counted = self.samples - (self._uncounted or 0)
        speed = counted / max(time.monotonic() - self.begun, 1e-9)
        return f"{amount(speed)} samples/s, {speed / self.rate:.2f} x real time"

    def summary(self) -> None:
        """What was made and how fast, on standard error."""
        made = f"{self.samples / self.rate:.2f} s of sound at {self.rate} Hz"
        self.say(f"{made}: {self._speed()}")
        if self.clipped:
            self.say(f"{self.clipped} samples were beyond full scale and were clipped")


def _check(arguments: argparse.Namespace) -> None:
    if arguments.prompt is None:
        for name in ("no_prompt", "prompt_start", "prompt_seconds"):
            if getattr(arguments, name):
                raise UsageError(f"--{name.replace('_', '-')} needs --prompt.")
    if arguments.seed < 0:
        raise UsageError(f"--seed is {arguments.seed}; give 0 or more.")
    if arguments.output == "-":
        if arguments.count > 1 or arguments.plot:
            raise UsageError("-o - streams one clip; -n and --plot need files.")
        if arguments.bits != "16":
            raise UsageError(f"-o - streams 16 bits; --bits {arguments.bits} needs a file.")
    elif arguments.count > 1 and not any(
        place in arguments.output for place in ("{index}", "{seed}")
    ):
        raise UsageError(f"-n {arguments.count} needs {{index}} in the name, as out_{{index}}.wav.")


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


def _above_zero(text: str) -> float:
    value = _not_below_zero(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _not_below_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value
