"""Other ways to do the same, which asyncblend is compared with.

Each way carries the same arrays, with as many frames in flight, to a receiver that only receives.

    arrays       the arrays of a scenario
    producers    Python processes that send them
    pickled      `send_pyobj` over PUSH and PULL on tcp, as blendtorch does it
    raw          multipart messages without a copy over PUSH and PULL on ipc
    torch_queue  a queue of torch.multiprocessing
    memcpy       copies of the same bytes within one process: the limit of every transport
    turns        messages between a ROUTER and several DEALERs, a turn at a time: the limit of environments in step
    req_rep      pickled requests and replies, as blendtorch steps its environments
    echo         small messages between a ROUTER and a DEALER: the limit of round trips
    plain        Blenders that are launched without asyncblend, and controlled by benchmarks/inside/told.py
    origin       Blenders that render into a file, read it, pickle it and publish it, as blendtorch's first version did
    bare         Blenders that render and send nothing: the limit of rendering
"""
