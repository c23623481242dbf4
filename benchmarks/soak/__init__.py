"""The soak: a fleet under random faults for minutes. Nothing may be lost, come twice or be left behind.

Three consumers share one warm fleet, each with one finite pass after another. The first is quick, the second is slow,
and the third is cancelled at random moments and begins anew, so that frames of one pass meet the next one. Each pass
must deliver each of its indices exactly once, with content that this process computes again from (seed, index,
consumer). Every second pass of the first two repeats the one before, so that the images of real Blenders are compared
too, across instances and their lives. Meanwhile a task kills and stops Blenders, has them hang, close their
descriptors, redirect their output and send what cannot be read, sends garbage to the host, delays the consumers, kills
other hosts, and starts some that have too few descriptors.

Each file imports only files above it:

- `orders`: what a Blender does to itself when it is ordered to.
- `scene`: what a Blender makes of an index, and the same computed here.
- `ledger`: compares each frame with what it must be.
- `program`: another program with a stream of its own.
- `faults`: the kinds of faults, and how long a Blender takes to come back.
- `processes`: a fleet's processes, as the operating system shows them.
- `hosts`: starts other programs, kills one and gives few descriptors to another.
- `garbage`: messages that no Blender sends.
- `chaos`: injects the faults.
- `memory`: the memory of the host and of the Blenders over time.
- `left`: what the run left behind.
- `fleet`: fakes or real Blenders, how they start and how fast they are.
- `run`: the three consumers and their passes.
- `live`: the lines that show how far the run is.
- `report`: the figures, the table and the problems.
- `plot`: the picture.
- `command`: the command `python -m benchmarks soak`.
"""
