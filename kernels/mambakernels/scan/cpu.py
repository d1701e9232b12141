"""The CPU backend; serves by the reference until the kernel stands."""

from mambakernels.scan.reference import backward, forward, saved_shape, summary

__all__ = ["backward", "forward", "saved_shape", "summary"]
