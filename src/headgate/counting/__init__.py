"""Multiply-accumulates and bytes that a network executes, counted exactly from the decisions of a real run."""

from headgate.counting.counts import Counts, LayerRecord, Total
from headgate.counting.layers import LayerCounts, Uncounted
from headgate.counting.ledger import MacLedger
from headgate.counting.run import count, trace
from headgate.counting.traffic import BufferModel, LayerTraffic, Traffic

__all__ = [
    "BufferModel",
    "Counts",
    "LayerCounts",
    "LayerRecord",
    "LayerTraffic",
    "MacLedger",
    "Total",
    "Traffic",
    "Uncounted",
    "count",
    "trace",
]
