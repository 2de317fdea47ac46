"""Fuzzing of everything that reads what strangers wrote.

    python -m lab.fuzz [TARGET ...] --minutes N

`choices.py` turns the fuzzer's bytes into decisions, the modules of `makers/` turn those into files of the right
structure with something wrong, and `targets.py` states what must hold for any of them. `corpus/` keeps the inputs that
reached something new. docs/dev/fuzzing.md tells what ran for how long and what was found.
"""
