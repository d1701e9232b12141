"""What can be wrong with sequences and with sample sheets."""

from __future__ import annotations

from mambacore.errors import DataError


class SequenceError(DataError):
    """A sequence file, or a record in it, that cannot be used.

    position: 0-based offset of the offending letter in the sequence given, where one letter is
        what is wrong; the message counts from 1.
    """

    def __init__(self, message: str, *, position: int | None = None) -> None:
        super().__init__(message)
        self.position = position


class SheetError(DataError):
    """A sample sheet, or a row of it, that cannot be used."""
