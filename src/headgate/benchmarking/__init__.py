"""Time a network in the native engine, in other inference libraries, and pruned statically: docs/benchmark.md.

`request` says what is wanted and `record` what came of it. `run` starts one child process for each number of threads;
there `work` builds the networks (`subject`; `from_plan` of a plan file) and what runs them (`libraries`), and times
them in turn (`timing`).
"""

from headgate.benchmarking.record import Record
from headgate.benchmarking.request import Request
from headgate.benchmarking.run import benchmark

__all__ = ["Record", "Request", "benchmark"]
