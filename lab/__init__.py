"""Tools for developers: benchmarks, fuzzing, fault injection, and checks on graphics cards and in real webuis."""
