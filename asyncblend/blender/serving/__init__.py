"""Blender's end of the stream: what runs in a Blender that a host has started.

- `bootstrap.py`: the script that Blender is started with. It loads the package and calls `child.py`.
- `child.py`: the life of this process. It sets up what follows, runs the user's script, and ends the process.
- `lifeline.py`: ends the process when the host is gone. `requirements.py`: finds numpy and pyzmq.
- `autoexec.py`: whether the Python in .blend files is executed. `scene_check.py`: warns of what is wrong in a scene.
- `devices.py`: the threads and GPUs to render on. `worker.py`: takes leases and sends frames. `heartbeat.py`: its beats.
- `contact.py`: ends the process when a host on another machine is silent.
- `serve.py`: `bl.serve`. `task.py`: `bl.Task`, one sample to be made. `seeding.py`: its randomness. `timed.py`: how long
  it took.
- `window.py`: makes the samples from a timer where Blender has a window. `preview.py`: shows one sample where there is
  no host. `probe.py`: the script that `asyncblend doctor` runs.

The script ends in `bl.serve(sample)`, which enters the worker's loop. For each lease the worker seeds all randomness,
calls `sample(task)` and sends what it returns as a frame, with the large arrays in shared memory. STOP ends the loop.
"""
