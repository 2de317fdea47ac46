"""Checks that need a GPU: `python -m lab.gpu`. They use the models and files of the tests."""
