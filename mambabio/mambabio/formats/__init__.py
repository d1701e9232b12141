"""From a file to raw records: opening, recognising and taking apart, one module a format.

A raw record is a header and pieces of text with line breaks in them; what its letters mean is
`mambabio.records`'s to say.
"""

from mambabio.formats.raw import RawRecord
from mambabio.formats.sniff import open_raw_records, sniff_format
from mambabio.formats.source import compression

__all__ = ["RawRecord", "compression", "open_raw_records", "sniff_format"]
