"""Recordings: samples of a stream in WebDataset shards. No torch here.

codec     a sample as files, and back
shards    whole shards in a folder, and where each sample lies in them
reader    reading them
about     what made a recording
writer    writing one, so that whatever happens leaves whole shards
"""

from .reader import Recording, is_recording, read

__all__ = ["Recording", "is_recording", "read"]
