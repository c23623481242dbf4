"""Benchmarks: `python -m benchmarks`, with one command for each question.

Each question is a file with two functions: `measure` answers it, and the command of the file's name shows the answer.
All ways of an answer run in the same process, in turns, beside a limit that no way can beat.

- `transport`, `latency`, `render`, `passes`, `environment`, `ray`, `labels`, `pixels`, `origin`, `dataloader`, `record`, `replay`, `startup`, `memory`, `tune`: the questions.
- `measuring`: runs several ways of doing the same in turns, and times them.
- `streams`: asyncblend's own ways, a stream, asynchronous or in a thread, as something that can be timed.
- `report`: what was found, as tables, JSON and pictures.
- `charts`: panels over time, for pictures of memory.
- `machine`: the machine and the versions that the figures belong to.
- `options`: the options that the commands share.
- `results`: answers all questions and writes RESULTS.md.
- `peers/`: what asyncblend is compared with, and the limits.
- `inside/`: scripts that run inside Blender.
- `gpu/`: what GPUs add, which `all` leaves out, as it needs one.
- `soak/`: minutes of faults.
- `fuzz/`: minutes of inputs that nobody wrote.
"""
