"""The training side: PyTorch datasets. The only room that imports torch.

dataset     BlenderDataset: live frames, of a SyncStream in the process that iterates
recorded    RecordedDataset: a recording in place of a live stream
mixed       MixedDataset: both, so that training never waits
carried     how an error leaves a DataLoader's worker
collate     items to a batch, for a DataLoader; ragged arrays come as lists
items       what they share: a frame as an item or part of a batch; epochs, ranks and workers
"""
