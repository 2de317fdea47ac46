"""Checks that need a graphics card: `python -m lab.gpu`. They use the models and files of the tests."""
