"""From a fleet's Blenders to the consumers of their frames, in one event loop.

stream       BlenderStream, the public way in an asyncio program
sync         SyncStream, the same in a background thread, for programs without asyncio and for PyTorch
bridge       what crosses between that thread and those of the consumers: frames one way, and back what they took
loop_thread  a background thread with an event loop of its own
frames, sync_frames
             the consumer's end of one pass: Frames with asyncio, SyncFrames without
episode, sync_episode, episode_pass
             an episode that its consumer goes through step by step, likewise, and its pass
direct       the steps of such an episode that a consumer's thread and a Blender exchange past the event loop
directs      which episodes go so, in the event loop's thread
clips        whole episodes and clips, collected from the frames of a pass
run          one running fleet with its hub and dispatcher; the engine under stream and sync
attached     the engine of a stream that has a part in another program's fleet instead, by the room `warm`
ends         what a dispatcher needs of Blenders, whoever runs them, and what the hub tells of these
dispatcher   which index is leased to which Blender, for which pass; which frame goes to which pass
holding      what one Blender holds: its leases, and the episode that it is at
holdings     what all of them hold, what they are told of it, and what becomes of it when one dies
passes       one consumer's leases, queue, order, crashes, error and counters
indices      which samples a pass is over
params       where the params of a lease come from, and how they are drawn and saved
leases       the book of one pass: which positions of its indices are leased, arrived, consumed (pure)
queue        arrived frames of one pass
hub          the ROUTER socket, and who is connected to it
rejects      what it turns away or drops, counted
frame, batch, stats
             what is delivered: a sample, samples stacked, counters
timing       how long consumers, Blenders and frames took over the latest minute (pure)
idleness     when each Blender had nothing to do
timekeeper   the same of a whole run
totals       what a whole run has counted and timed
verdict      who is the bottleneck, in one line (pure)

The way of a frame: a consumer frees a slot of its pass; the dispatcher leases the next index to a Blender through the
hub; Blender's answer comes through the hub to the dispatcher, which checks that its sender holds that lease, and to the
pass, whose book notes it and whose queue keeps it until the consumer takes it. Heartbeats go from the hub to the fleet.
"""
