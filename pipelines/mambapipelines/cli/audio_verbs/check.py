"""``mambaaudio check``: what is odd about recordings, as TSV."""

from __future__ import annotations

from ..arguments import Parser


def main(argv: list[str], prog: str) -> int:
    """Check; returns the exit code."""
    parser = Parser(
        prog,
        "Measure sound files before training on them: clipping, DC, digital silence, true bit "
        "depth, mixed rates, equal recordings. One TSV row a file; the last column is in words.",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="sound files, or folders that are searched"
    )
    parser.add_argument(
        "--channel",
        choices=("all", "each"),
        default="all",
        help="of several channels: a row for all, or for each, FILE#left (default: all)",
    )
    arguments = parser.parse_args(argv)
    from mambaaudio.check import FileCheck, check_folder, find

    files = [file for path in arguments.paths for file in find(path)]
    print(FileCheck.header())
    for check in check_folder(files, each=arguments.channel == "each"):
        print(check.row())
    return 0
