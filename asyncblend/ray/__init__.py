"""Ray: the same samples from a whole cluster. asyncblend stays a fleet per node, and Ray says which node renders what.

`dataset` returns a `ray.data.Dataset` whose rows are samples. All that Ray Data does with rows works with them:
`iter_torch_batches`, `streaming_split`, `write_parquet`, and Ray Train. `record` writes them as a recording. `start` keeps
a fleet warm, to which streams and datasets attach by its name.

Or this program stays the host, and `Cluster` has Ray place the Blenders of its stream:

- `placing`: `Cluster`, and how Ray is asked for a node. `keeper`: the actor that has one Blender there. `remote`: how the
  fleet sees that Blender.

The rows of a dataset and the shards of a recording come from fleets in actors:

- `generating`: `dataset`. Cuts the indices into blocks, and gives them to actors that render.
- `recording`: `record`. Gives the shards of a recording to such actors.
- `actors`: how many they are, and what each of them has of Ray's resources.
- `renderer`: what runs in each actor: a warm fleet, whose passes render the indices of one batch each.
- `warm`: `start`, `fleets` and `stop`, for fleets that outlive the program which starts them.
- `serving`, `places`: what runs in the actor of such a fleet, which renders for all programs that are attached. The room
  `warm` below this one has what these programs need.
- `shipping`: the script, the scene and their files, as content that travels to other nodes.
- `nodes`: what nodes there are, and which Blender they have.
- `rows`: samples as typed columns, and as files of WebDataset.

A sample is a function of seed, index and params. So what Ray executes again after a failure gives the same rows.
"""

try:
    import ray.data as _data  # noqa: F401
except ImportError as _missing:
    raise ModuleNotFoundError(
        f'asyncblend.ray needs Ray Data ({_missing}); type: pip install "asyncblend[ray]"', name=_missing.name
    ) from None

from ..warm.connection import connect
from ..warm.told import FleetStatus
from .generating import dataset
from .placing import Cluster
from .recording import Progress, record
from .rows import decode, encode
from .warm import fleets, start, stop

__all__ = [
    "Cluster",
    "FleetStatus",
    "Progress",
    "connect",
    "dataset",
    "decode",
    "encode",
    "fleets",
    "record",
    "start",
    "stop",
]
