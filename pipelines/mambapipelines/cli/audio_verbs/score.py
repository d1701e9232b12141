"""``mambaaudio score``: bits per sample of sound files, as TSV."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import Parser, add_inference, add_model, device_of, precision_of

if TYPE_CHECKING:
    from mambaaudio.scoring import FileScore


def _parser(prog: str) -> Parser:
    parser = Parser(
        prog,
        "Bits per sample of sound files under a model, a row a file; hours pass through in "
        "constant memory. Other rates are resampled.",
    )
    add_model(parser)
    parser.add_argument("files", nargs="+", metavar="FILE", help="any file that libsndfile reads")
    parser.add_argument(
        "--by-second", action="store_true", help="a row a second: file, second, bits"
    )
    parser.add_argument("--floor", action="store_true", help="also linear prediction's bits")
    parser.add_argument("--label", help="the recordings' label")
    parser.add_argument("--speaker", help="the recordings' speaker")
    parser.add_argument(
        "--channel",
        choices=("mix", "left", "right", "each"),
        default="mix",
        help="of several channels: their mean, one, or each with a row FILE#left (default: mix)",
    )
    parser.add_argument("--skip-bad", action="store_true", help="go on after an unreadable file")
    add_inference(parser)
    return parser


def main(argv: list[str], prog: str) -> int:
    """Score; returns the exit code."""
    arguments = _parser(prog).parse_args(argv)
    from mambaaudio.bits import Scorer
    from mambaaudio.model import WaveformModel
    from mambaaudio.scoring import score_file
    from mambaaudio.waveform import probe, voices
    from mambacore.errors import DataError

    device = device_of(arguments)
    model = WaveformModel.from_pretrained(arguments.model, device=device)
    scorer = Scorer(model, precision=precision_of(arguments, device), chunk=arguments.batch_size)
    if not arguments.skip_bad:
        for path in arguments.files:  # what is wrong with the last is said before the first
            probe(path)
    if arguments.by_second:
        print("file\tsecond\tbits_per_sample")
    else:
        print("file\tseconds\tbits_per_sample" + ("\tlinear_prediction" if arguments.floor else ""))
    for path in arguments.files:
        try:
            info = probe(path)
            if info.rate != model.config.rate:
                rates = f"from {info.rate} Hz to {model.config.rate} Hz"
                print(f"{path}: resampled {rates}", file=sys.stderr)
            if info.channels > 1 and arguments.channel != "each":
                heard = "their mean" if arguments.channel == "mix" else f"the {arguments.channel}"
                print(
                    f"{path}: of its {info.channels} channels, {heard} is scored", file=sys.stderr
                )
            for voice, channel in voices(info.channels, arguments.channel):
                score = score_file(
                    scorer,
                    Path(path),
                    label=arguments.label,
                    speaker=arguments.speaker,
                    channel=channel,
                    voice=voice,
                    floor=arguments.floor,
                    progress=_Progress(path) if sys.stderr.isatty() else None,
                )
                _print(score, by_second=arguments.by_second)
        except DataError as error:
            if not arguments.skip_bad:
                raise
            print(f"left out {error}", file=sys.stderr)
    return 0


def _print(score: FileScore, *, by_second: bool) -> None:
    if by_second:
        for second, bits in enumerate(score.by_second):
            print(f"{score.path}\t{second}\t{bits:.4f}")
    else:
        floor = "" if score.floor is None else f"\t{score.floor:.4f}"
        print(f"{score.path}\t{score.seconds:.3f}\t{score.bits:.4f}{floor}", flush=True)


class _Progress:
    """Seconds done, on a terminal."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __call__(self, done: float, total: float) -> None:
        end = "\n" if done >= total - 0.5 else ""
        print(f"\r{self._path}: {done:.0f} of {total:.0f} s", end=end, file=sys.stderr, flush=True)
