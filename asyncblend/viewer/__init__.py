"""The live view: frames in rerun's viewer, with their labels, the scene in 3D, and what the stream does.

    sources    where moments come from: a stream, a recording, or a training that runs elsewhere
    showing    show(): takes moments from a source to the screen until the end, and keeps the program beside it
    screen     Screen: writes moments for rerun, into a file or to a viewer that listens
    entities   a frame as rerun's entities: pictures, boxes, keypoints, points and boxes in space
    layout     which views there are, for what the frames have
    counts     how many frames came while one looks, and how many of them were drawn (without rerun)
    activity   the stream's counts as lines over time, the states of its Blenders, and its log
    program    Program: rerun's own viewer or its web page, on the loopback device, ended with us
    page       serves that page, so that the browser speaks to nobody else
    leash      what runs before that program, so that it ends even if we are killed

Only this room imports rerun, which needs numpy 2.
"""
