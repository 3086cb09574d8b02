"""What runs a network of plain layers: one module for each library, each at its best setting.

`registry` lists them. A library that is not installed, cannot convert a network, or cannot be held to the asked
instruction set is reported as absent, with the reason.
"""
