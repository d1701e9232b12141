"""DNA: sequence files, tokenizers, windows, species classification."""

from typing import TYPE_CHECKING

from mambakernels._lazy import attach

if TYPE_CHECKING:
    from mambabio.alphabet import decode as decode
    from mambabio.alphabet import encode as encode
    from mambabio.alphabet import reverse_complement as reverse_complement
    from mambabio.baselines import KmerBaselines as KmerBaselines
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
    from mambabio.language import LanguageTiles as LanguageTiles
    from mambabio.language import LanguageWindows as LanguageWindows
    from mambabio.records import Record as Record
    from mambabio.records import RecordStream as RecordStream
    from mambabio.records import read_records as read_records
    from mambabio.records import stream_records as stream_records
    from mambabio.report import write_report as write_report
    from mambabio.sheet import Sample as Sample
    from mambabio.sheet import SampleSheet as SampleSheet
    from mambabio.sheet import load_samples as load_samples
    from mambabio.split import split_sheet as split_sheet
    from mambabio.store import SequenceStore as SequenceStore
    from mambabio.store import StoredRecord as StoredRecord
    from mambabio.store import build_store as build_store
    from mambabio.tokenizers import KmerTokenizer as KmerTokenizer
    from mambabio.tokenizers import NucleotideTokenizer as NucleotideTokenizer
    from mambabio.windows import TrainingWindows as TrainingWindows
    from mambabio.windows import WindowBatch as WindowBatch
    from mambabio.windows import WindowSet as WindowSet
    from mambabio.windows import tile_windows as tile_windows

_NAMES: dict[str, str] = {
    "ClassifierConfig": "classifier_config",
    "Evaluation": "evaluation",
    "IndexedFasta": "indexed",
    "KmerBaselines": "baselines",
    "KmerTokenizer": "tokenizers",
    "LanguageTiles": "language",
    "LanguageWindows": "language",
    "NucleotideTokenizer": "tokenizers",
    "Prediction": "classify",
    "Record": "records",
    "RecordStream": "records",
    "Region": "indexed",
    "Sample": "sheet",
    "SampleSheet": "sheet",
    "SequenceError": "errors",
    "SequenceStore": "store",
    "SheetError": "errors",
    "SpeciesClassifier": "classifier",
    "StoredRecord": "store",
    "TrainingWindows": "windows",
    "WindowBatch": "windows",
    "WindowSet": "windows",
    "build_store": "store",
    "decode": "alphabet",
    "describe": "info",
    "encode": "alphabet",
    "load_samples": "sheet",
    "parse_region": "indexed",
    "read_records": "records",
    "reverse_complement": "alphabet",
    "split_sheet": "split",
    "stream_records": "records",
    "tile_windows": "windows",
    "write_report": "report",
}

__all__ = sorted(_NAMES)
__getattr__, __dir__ = attach(__name__, _NAMES)
