"""``mambaaudio report``: a run on one page, with sounds."""

from __future__ import annotations

import sys
from pathlib import Path

from ..arguments import Parser, device_of, positive


def main(argv: list[str], prog: str) -> int:
    """Draw; returns the exit code."""
    parser = Parser(
        prog,
        "Draw a run folder as one HTML page: training curves, bits per sample, and players and "
        "spectrograms of real recordings beside what the model makes. Prints the page's path.",
    )
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("--out", metavar="DIR", help="where to (default: RUN/report)")
    parser.add_argument("--name", help="what the page calls the run (default: the folder's name)")
    parser.add_argument(
        "--pairs", type=int, default=3, metavar="N", help="sounds to make; 0 for none (default: 3)"
    )
    parser.add_argument(
        "--seconds", type=positive, default=4, metavar="S", help="of each at most (default: 4)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first sound (default: 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ... (default: auto)")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads")
    arguments = parser.parse_args(argv)
    from mambaaudio.report import write_report

    pairs = []
    run = Path(arguments.run)
    if arguments.pairs > 0 and (run / "model").is_dir() and (run / "config.yaml").is_file():
        from ...audio.recordings import make_pairs

        pairs = make_pairs(
            run, arguments.pairs, arguments.seconds, device_of(arguments), seed=arguments.seed,
            log=_log,
        )  # fmt: skip
    print(write_report(run, arguments.out, pairs=pairs, name=arguments.name))
    return 0


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
