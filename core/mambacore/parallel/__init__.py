"""One sequence over several processes: who holds which part, and what crosses between them."""

from mambacore.parallel.group import SequenceGroup, part_of
from mambacore.parallel.model import average_gradients, split_sequence

__all__ = ["SequenceGroup", "average_gradients", "part_of", "split_sequence"]
