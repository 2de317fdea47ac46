"""Checks that need a graphics card: `python -m lab.gpu`. They share models and files with the tests."""
