"""`python -m benchmarks gpu`: how fast images come from GPUs, and get to one that trains.

- `command`: the command: plans its time, measures, and saves after each table.
- `seen`: which GPUs there are, and which Blenders can render on them.
- `images`: the tables of images/s, from one GPU and from several.
- `training`: a training step, and the table that shows whether copies to the GPU hide behind it.
"""
