"""DNA: sequence files, tokenizers, windows, species classification."""

from typing import TYPE_CHECKING

from mambakernels._lazy import attach

if TYPE_CHECKING:
    from mambabio.alphabet import decode, encode, reverse_complement
    from mambabio.errors import SequenceError, SheetError
    from mambabio.indexed import IndexedFasta, Region, parse_region
    from mambabio.records import Record, RecordStream, read_records, stream_records
    from mambabio.tokenizers import KmerTokenizer, NucleotideTokenizer

_NAMES: dict[str, str] = {
    "IndexedFasta": "indexed",
    "KmerTokenizer": "tokenizers",
    "NucleotideTokenizer": "tokenizers",
    "Record": "records",
    "RecordStream": "records",
    "Region": "indexed",
    "SequenceError": "errors",
    "SheetError": "errors",
    "decode": "alphabet",
    "encode": "alphabet",
    "parse_region": "indexed",
    "read_records": "records",
    "reverse_complement": "alphabet",
    "stream_records": "records",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = attach(__name__, _NAMES)
