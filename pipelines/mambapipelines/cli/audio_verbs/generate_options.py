"""The options of ``mambaaudio generate``."""

from __future__ import annotations

import argparse

from mambacore.errors import UsageError

from ..arguments import Parser, add_model, positive

_CHANNELS = ("mix", "left", "right")
DEPTHS = {"16": "PCM_16", "24": "PCM_24", "float": "FLOAT"}


def make_parser(prog: str) -> Parser:
    """Its parser."""
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
    group.add_argument(
        "--channel",
        metavar="mix|left|right",
        default="mix",
        help="what is heard of a prompt of several channels (default: mix, their mean)",
    )
    group.add_argument("--no-prompt", action="store_true", help="leave it out of the output")
    group.add_argument(
        "--label", metavar="NAME", help="a label of the model's, or several with commas, in turn"
    )
    group.add_argument(
        "--speaker",
        metavar="NAME",
        help="likewise a speaker; none: not said (default: drawn for each clip by its seed; with "
        "--prompt not said)",
    )
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
        "--guidance",
        type=_not_below_zero,
        default=1.0,
        metavar="G",
        help="above 1 follows --label more closely (or --speaker, told alone), at half the speed "
        "(default: 1)",
    )
    group.add_argument(
        "--core-temperature",
        type=_above_zero,
        default=1.0,
        metavar="T",
        help="below 1 draws what is within two standard deviations of the expected value with "
        "less noise, and what is rare as often: long sound keeps its notes instead of swelling, "
        "e.g. 0.5 (default: 1)",
    )
    group.add_argument(
        "--candidates",
        type=positive,
        default=1,
        metavar="N",
        help="draw each half second after a prompt N times side by side and go on as what is no "
        "drone and nearest to the prompt's level, e.g. 8 (default: 1)",
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
        "--bits", choices=sorted(DEPTHS), default="16", help="a sample (default: 16)"
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
        help="clips at a time, times --candidates (default: 64, on a GPU 256)",
    )
    group.add_argument(
        "--engine",
        choices=("auto", "compiled", "graph", "graph-modules", "torch"),
        default="auto",
        help="what steps the model (default: auto, the fastest)",
    )
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together."""
    if arguments.prompt is None:
        for name in ("no_prompt", "prompt_start", "prompt_seconds"):
            if getattr(arguments, name):
                raise UsageError(f"--{name.replace('_', '-')} needs --prompt.")
        if arguments.candidates > 1:
            raise UsageError(f"--candidates {arguments.candidates} needs --prompt.")
    if arguments.guidance != 1 and not (arguments.label or arguments.speaker):
        raise UsageError(f"--guidance {arguments.guidance:g} needs --label or --speaker.")
    if arguments.channel not in _CHANNELS:
        raise UsageError(
            f"--channel {arguments.channel}: a prompt is one recording; choose "
            f"{', '.join(_CHANNELS)}."
        )
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
