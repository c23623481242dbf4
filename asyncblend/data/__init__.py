"""The training side: PyTorch datasets. The only room that imports torch.

dataset     BlenderDataset: live frames, of a SyncStream in the process that iterates
map         BlenderMapDataset: the same samples by random access, for samplers and for a look at one
recorded    RecordedDataset: a recording in place of a live stream
mixed       MixedDataset: both, so that training never waits
share       which Blenders are this process's own, and the stream that runs them while they are needed
items       what they share: a frame as an item or part of a batch; states, ranks and workers
iteration   how far an iterator has come, and in which epoch
states      what is saved of that, and whether a saved state fits a dataset
carried     how an error leaves a DataLoader's worker
accelerated whether accelerate shares out once more what is shared out already
collate     items to a batch, for a DataLoader; ragged arrays come as lists
"""
