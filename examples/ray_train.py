"""Render on a cluster and train on it: Ray Data renders, two workers of Ray Train share the rows.

    pip install "asyncblend[bpy,ray]"
    python examples/ray_train.py                       # on this machine
    python examples/ray_train.py --address auto        # on the cluster that this machine is a node of

A network learns which way a cone points. Each worker takes its own half of the rows, and DistributedDataParallel keeps
the two networks the same. Whatever actor that renders dies meanwhile, each sample is trained on once in an epoch, but for
those that do not make whole batches for both.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import nn

import asyncblend as ab
import asyncblend.ray

SCRIPT = Path(__file__).parents[1] / "blender_scripts" / "pointer.py"
BATCH = 16


def network() -> nn.Module:
    """Return a small convolutional network from 32 x 32 pixels to a direction."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2048, 64), nn.ReLU(), nn.Linear(64, 2)),
    )


def train(options: dict[str, Any]) -> None:
    """Train in one worker. Ray Train calls it in each of them, and has set torch.distributed up."""
    torch.manual_seed(0)
    model = ray.train.torch.prepare_model(network())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    rows = ray.train.get_dataset_shard("train")
    for epoch in range(1, options["epochs"] + 1):
        total, seen = 0.0, 0
        for batch in rows.iter_torch_batches(batch_size=BATCH):
            images = batch["image"].permute(0, 3, 1, 2).float() / 255
            loss = (model(images) - batch["points_to"]).square().sum(dim=1).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total, seen = total + loss.item() * len(images), seen + len(images)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if ray.train.get_context().get_world_rank() == 0:
                torch.save(model.state_dict(), Path(folder, "network.pt"))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"epoch": epoch, "loss": total / seen, "rows": seen}, checkpoint=checkpoint)


def main(arguments: argparse.Namespace) -> None:
    """Render and train, and print how it went."""
    ray.init(arguments.address)
    config = ab.StreamConfig(script=SCRIPT, blender=arguments.blender, length=arguments.samples)
    trainer = ray.train.torch.TorchTrainer(
        train,
        train_loop_config={"epochs": arguments.epochs},
        datasets={"train": asyncblend.ray.dataset(config, batch_size=BATCH, num_gpus=arguments.gpus)},
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": arguments.cpus}),
        run_config=ray.train.RunConfig(storage_path=str(arguments.out.resolve())),
    )
    found = trainer.fit()
    print("epoch {epoch}: loss {loss:.3f} of the {rows} rows of one worker".format(**found.metrics))
    print(found.checkpoint.path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4800, help="of each epoch")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--blender", help="as the option of a stream: an executable, or `bpy`")
    parser.add_argument("--address", help="of a cluster, or `auto`; by default this machine becomes one")
    parser.add_argument("--out", type=Path, default=Path("tmp/ray_train"), help="a folder that all nodes can write to")
    parser.add_argument("--gpus", type=float, default=0, help="Ray's GPUs of each actor that renders, such as 0.25")
    parser.add_argument("--cpus", type=float, default=0.5, help="Ray's CPUs of each worker")
    main(parser.parse_args())
