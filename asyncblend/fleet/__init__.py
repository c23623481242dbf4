"""Blender processes: found, started, watched, restarted and stopped.

- `discovery.py`: which Blenders are on this machine. `pythons.py`: whether another Python has the bpy module.
- `install/`: what Blenders lack.
- `preflight.py`: what a run needs of this process and machine, checked before anything starts.
- `place.py`: where Blenders are: this machine, or a cluster.
- `workspace.py`: the run's private folder, and the pipe that tells a Blender when its host is gone. `sweeper.py`: the
  process that then removes what is left.
- `spawn.py`: the command line and environment of one Blender. `process.py`: one child process. `log.py`: its output.
- `fleet.py`: the supervisor of all instances. It acts on what the other files decide:
- `instance.py`: the states of one instance through all its lives. `liveness.py`: whether a life is overdue.
- `ending.py`: how a life ended, as an error. `restart.py`: whether and when the next life starts.

A life begins when the fleet calls the spawner, which launches a child process with a folder of its own. The stream
reports to the fleet what the Blender sends (HELLO, READY, answers, beats). When the process exits, or is killed
because it is overdue, the fleet stops what is left of it, has its end explained, and waits or gives up as the restart
policy says. Leaving the run stops every process and then removes the workspace.
"""
