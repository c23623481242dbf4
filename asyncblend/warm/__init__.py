"""Warm: what a program needs to attach to a fleet that another one has started, and that outlives both.

connection   joins this program to a cluster of Ray
session      as long as that connection lasts
finding      the fleets that run there, by their names
actor        what such a fleet is to Ray
told         what such a fleet and its programs tell each other
attachment   a program's places in the fleet: its leases go there, frames come back

The other side is in `ray`: `ray.serving` runs such a fleet, and `ray.warm` starts, lists and stops them. This room lies
below `stream`, which attaches to it as it would launch Blenders itself. Nothing but `connection` is imported before a
stream names a fleet, because Ray may be missing.
"""
