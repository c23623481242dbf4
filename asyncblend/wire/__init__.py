"""What a host and its Blenders agree on. Both sides import these files; they import nothing of the package but errors.

    gate       who may connect: by a token on one machine, by keys from others
    launch     what a Blender is told when it is started, and the report that it leaves if it cannot serve
    protocol   the messages, and their form: a JSON header and raw buffers
    request    what is asked of a Blender with a lease, and several of them in one message
    payload    the values that a message carries, as JSON and arrays
    json_text  JSON as text and back, strictly and fast
    ownership  whether a folder of packages can be trusted
    line       a socket between a Blender and its host for the steps of an episode, which is faster than messages
    ring       memory that a Blender and the host share, in which large arrays lie instead of being sent

The host writes a `Launch` into the environment of a Blender and starts it. From then on messages go over one ZeroMQ
socket on each side, the host's `stream.hub` and Blender's `serving.worker`. The way of a frame: the script's `sample`
returns a dict; `payload.encode_values` makes JSON and a list of arrays of it, and copies large arrays into the ring if
it has room; `protocol.encode` puts the JSON into the header of a FRAME; the parts are sent. The host's
`protocol.decode` checks everything and makes arrays that are views of the received buffers and of the ring. The params
of a LEASE go the other way, without the ring. Steps of an episode that a thread plays go over the line, both ways, as the
same parts without a header of JSON.
"""
