"""Fuzzing: inputs that a coverage-guided fuzzer changes until something raises what it must not.

- `command`: `python -m benchmarks fuzz`, which fuzzes one target after another, and shows what was found.
- `targets`: what is fuzzed, and the real messages, shards and configs that the fuzzer begins with.
- `child`: the process of one target, in which atheris runs.
"""
