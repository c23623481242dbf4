"""The soak: a fleet under random faults, for minutes. What was lost, what came twice, what was left: nothing may be.

Many finite passes run on one warm fleet. Each must deliver each of its indices exactly once, with content that this
side computes again from (seed, index); every second pass repeats the one before, so that the images of real Blenders
are compared too, across instances and lives. Some passes are broken off halfway, so that frames of one pass meet the
next one. Meanwhile a task of chaos kills and stops Blenders, talks garbage to the host and holds up the consumer.

Each file imports only files above it:

    scene      what a Blender makes of an index, and the same computed here
    ledger     each frame against what it must be
    faults     the kinds of faults, and how long a Blender took to come back
    processes  the fleet's processes, as the operating system shows them
    garbage    messages that no Blender sends
    chaos      injects the faults
    memory     of the host and of the Blenders, over time
    left       what the run left behind
    fleet      fakes or real Blenders: how they start, and how fast they are
    run        the passes
    live       the lines that show how far it is
    report     figures, table, problems
    plot       the picture
    command    `python -m benchmarks soak`
"""
