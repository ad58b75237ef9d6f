"""Pictures to be scored on: where the known data sets are found, and any folder; pairs of low and high resolution."""

from liif_cli.benchmarks.datasets import KNOWN, Dataset, Pair, Truth, find

__all__ = ["KNOWN", "Dataset", "Pair", "Truth", "find"]
