"""`asyncblend bench`: the number of instances and threads, and whether a GPU, that are best for a script.

A machine has slow minutes. Fleets that are measured one after another meet different ones, so here they take turns: all
of them are open, the Blenders of one render for a moment while those of the others wait, then those of the next. A
Blender that waits takes memory, and hardly any processor time: measured with bpy 4.5 and Blender 3.4, four of them took
20 ms in five seconds, all together. A fleet is compared with another only within the same round.

- `command`: the command of the command line.
- `settings`: which numbers are tried.
- `blenders`: the Blenders that are open, from which a fleet is put together for its turn.
- `usage`: the processor time and the memory that they take.
- `search`: rounds of turns, until the time is up or one fleet is left.
- `judging`: which fleets are clearly slower, and which one is best. Pure.
- `shown`: prints and draws what was found.
"""
