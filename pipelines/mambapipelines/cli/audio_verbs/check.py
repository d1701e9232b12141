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
    arguments = parser.parse_args(argv)
    from mambaaudio.check import FileCheck, check_folder, find

    files = [file for path in arguments.paths for file in find(path)]
    print(FileCheck.header())
    for check in check_folder(files):
        print(check.row())
    return 0
