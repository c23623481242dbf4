"""Recordings: a stream's samples in WebDataset shards. No torch here, and webdataset only where shards are written.

    checksums  what is compared so that no changed byte is read in silence
    codec      one sample as files, and back: images, arrays and JSON
    png        an image as a PNG file
    npy        an array as a gzipped npy file, and back
    places     where recordings are read: folders, and object stores
    shards     whole shards in a folder: their tables, and reading a sample from one
    reader     Recording: the samples of all shards of a folder
    writer     Writer: shard after shard into a locked folder, each of which gets its name when it is whole
    about      what a recording was made from, and whether it is the same as a stream's
    recorder   Recorder: records a stream while its frames come

A frame goes from the recorder, which encodes it in a thread, to the writer, which appends its files to the unfinished
shard. Reading starts from the tables: `Recording` knows where each sample lies, reads that stretch, and decodes it.
"""

from .reader import Recording, is_recording, read

__all__ = ["Recording", "is_recording", "read"]
