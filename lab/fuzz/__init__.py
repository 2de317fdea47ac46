"""Fuzz everything that reads files and texts from strangers.

    python -m lab.fuzz [TARGET ...] --minutes N

`choices.py` turns the fuzzer's bytes into decisions. The modules of `makers/` turn decisions into files that have the
right structure and some fault. `targets.py` states what must hold for any of them. `corpus/` keeps the inputs that
reached new code. docs/dev/fuzzing.md reports what ran, for how long, and what it found.
"""
