"""Every error headgate raises on purpose.

All derive from `HeadgateError` and, so that callers who do not know headgate can still catch them, from the closest
built-in class. A message says what was expected, what was given and what to do about it.
"""


class HeadgateError(Exception):
    """Base of all errors that headgate raises on purpose."""


class ConfigError(HeadgateError, ValueError):
    """An option has a value outside what it accepts."""


class ShapeError(HeadgateError, ValueError):
    """A tensor's shape or number of channels does not fit."""


class ModelError(HeadgateError, ValueError):
    """A model cannot be traced, gated, or does not fit what is asked of it."""


class ExportError(HeadgateError, ValueError):
    """A model holds what a plan file cannot express."""


class DataError(HeadgateError, ValueError):
    """A dataset is missing, has another layout, or holds labels outside its classes."""


class CheckpointError(HeadgateError, OSError):
    """A file is missing, truncated, foreign, of another model, or could not be written."""


class PlanError(HeadgateError, OSError):
    """A plan file is missing, truncated, foreign, or of another version."""


class DivergedError(HeadgateError, ArithmeticError):
    """Training produced a loss that is not a number."""


class BackendError(HeadgateError, OSError):
    """A native backend was forced that this build or this CPU lacks."""


class DtypeError(HeadgateError, TypeError):
    """A tensor's dtype, or an argument's type, is not accepted."""


class BenchmarkError(HeadgateError, RuntimeError):
    """What was to be timed computes something else than it should, or the process that timed it died."""
