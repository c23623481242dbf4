"""`asyncblend doctor`: what is on this machine, what is missing, and the command that mends it.

- `command`: the command of the command line.
- `examining`: looks at this Python, has each Blender examined, and comes to a verdict.
- `rendering`: has one Blender render a frame, or finds out why it cannot.
- `libraries`: the shared libraries that a Blender misses, and the Debian packages that have them.
- `advice`: command lines for the user to type.
- `page`: prints what was found, for people.

What is found is one dict, which `--json` prints; `examine` says what is in it. Errors of the package bring the
attributes `command` and `details` along, so that no message is taken apart here.
"""
