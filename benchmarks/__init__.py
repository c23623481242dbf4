"""Benchmarks: `python -m benchmarks`, one command a question.

machine     the machine and the versions that figures belong to
measuring   ways to do the same, in turns
report      what was found: tables, JSON, pictures
options     what the commands have in common
peers/      what asyncblend is compared with, and the limits
inside/     scripts that run inside Blender
streams     asyncblend's own ways
transport, latency, render, passes, labels, origin, dataloader, record, startup, memory, tune
            the questions: each has `measure`, which answers it, and the command of its name
results     all of them, into RESULTS.md
soak/       minutes of faults
"""
