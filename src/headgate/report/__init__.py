"""A finished run as one HTML page: what was saved, where, on which images, and how to do it again."""

from headgate.report.page import write_report

__all__ = ["write_report"]
