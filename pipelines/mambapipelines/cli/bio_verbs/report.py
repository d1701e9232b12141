"""``mambabio report``: a run on one page."""

from __future__ import annotations

from ..arguments import Parser


def main(argv: list[str], prog: str) -> int:
    """Draw; returns the exit code."""
    parser = Parser(
        prog,
        "Draw a run folder: training curves, confusion matrix, accuracy by window length, as one "
        "Markdown page with PNG figures and files for MultiQC. Prints the page's path.",
    )
    parser.add_argument("run", metavar="RUN", help="the run folder")
    parser.add_argument("--out", metavar="DIR", help="where to (default: RUN/report)")
    parser.add_argument("--name", help="what the page calls the run (default: the folder's name)")
    arguments = parser.parse_args(argv)
    from mambabio.report import write_report

    print(write_report(arguments.run, arguments.out, name=arguments.name))
    return 0
