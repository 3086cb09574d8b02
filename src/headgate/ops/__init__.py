"""Operators: each has one signature, a reference in plain torch and, where it pays, faster implementations."""
