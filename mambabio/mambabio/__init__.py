"""DNA: sequence files, tokenizers, windows, species classification."""

from typing import TYPE_CHECKING

from mambakernels._lazy import attach

if TYPE_CHECKING:
    from mambabio.alphabet import decode as decode
    from mambabio.alphabet import encode as encode
    from mambabio.alphabet import reverse_complement as reverse_complement
    from mambabio.classifier import SpeciesClassifier as SpeciesClassifier
    from mambabio.classifier_config import ClassifierConfig as ClassifierConfig
    from mambabio.classify import Prediction as Prediction
    from mambabio.errors import SequenceError as SequenceError
    from mambabio.errors import SheetError as SheetError
    from mambabio.evaluation import Evaluation as Evaluation
    from mambabio.indexed import IndexedFasta as IndexedFasta
    from mambabio.indexed import Region as Region
    from mambabio.indexed import parse_region as parse_region
    from mambabio.info import describe as describe
    from mambabio.records import Record as Record
    from mambabio.records import RecordStream as RecordStream
    from mambabio.records import read_records as read_records
    from mambabio.records import stream_records as stream_records
    from mambabio.report import write_report as write_report
    from mambabio.tokenizers import KmerTokenizer as KmerTokenizer
    from mambabio.tokenizers import NucleotideTokenizer as NucleotideTokenizer

_NAMES: dict[str, str] = {
    "ClassifierConfig": "classifier_config",
    "Evaluation": "evaluation",
    "IndexedFasta": "indexed",
    "KmerTokenizer": "tokenizers",
    "NucleotideTokenizer": "tokenizers",
    "Prediction": "classify",
    "Record": "records",
    "RecordStream": "records",
    "Region": "indexed",
    "SequenceError": "errors",
    "SheetError": "errors",
    "SpeciesClassifier": "classifier",
    "decode": "alphabet",
    "describe": "info",
    "encode": "alphabet",
    "parse_region": "indexed",
    "read_records": "records",
    "reverse_complement": "alphabet",
    "stream_records": "records",
    "write_report": "report",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = attach(__name__, _NAMES)
