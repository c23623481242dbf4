"""The training side: PyTorch datasets. The only room that imports torch.

dataset     BlenderDataset: live frames, of a SyncStream in the process that iterates
recorded    RecordedDataset: a recording in place of a live stream
mixed       MixedDataset: both, so that training never waits
items       what they share: a frame as an item or part of a batch; states, ranks and workers
iteration   how far an iterator has come, and in which epoch
states      what is saved of that, and whether a saved state fits a dataset
carried     how an error leaves a DataLoader's worker
accelerated whether accelerate shares out once more what is shared out already
collate     items to a batch, for a DataLoader; ragged arrays come as lists
"""
