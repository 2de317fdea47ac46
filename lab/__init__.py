"""Tools for developers: benchmarks, fuzzing, fault injection, and checks on GPUs and in real webuis."""
