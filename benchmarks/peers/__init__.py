"""What asyncblend is compared with, written for the comparison: the same arrays, as many in flight, a receiver that
does nothing but take.

    arrays       the arrays of a scenario
    producers    Python processes that produce them
    pickled      `send_pyobj` over PUSH and PULL on tcp, as blendtorch has it
    raw          multipart messages without a copy over PUSH and PULL on ipc
    torch_queue  a queue of torch.multiprocessing
    memcpy       the same bytes, copied within one process: the limit
    echo         small messages between a ROUTER and a DEALER: the limit of round trips
    plain        Blenders that are launched plainly, and told what to render by benchmarks/inside/told.py
    origin       Blenders that render into a file, read it, pickle it and publish it, as blendtorch's first version did
    bare         Blenders that only render: the limit
"""
