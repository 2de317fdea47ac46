"""Measure every figure on speed in the documentation: `make bench`."""
