"""Tap: lets others look at the frames of a stream while something else consumes them, and never makes that wait.

    moment     Moment: what there is to see at one time: a frame perhaps, counts, and the log; and how it travels
    tap        Tap: the consumer shows it every frame, and it keeps one only when somebody has asked for it
    served     Served: answers those who look from another process, on a port of this machine
    attached   Attached: looks at a Served, also over its restarts

Whoever looks asks for each moment. So nothing is kept, copied or sent while nobody looks, and those who look slowly
see fewer frames, never older ones. numpy and pyzmq only: what draws the frames need not be installed here.
"""
