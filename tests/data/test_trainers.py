"""Libraries that run trainings over a dataset's loader: Hugging Face's accelerate, and Lightning."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import asyncblend as ab

Make = Callable[..., ab.BlenderDataset]
LIMIT = 200.0  # seconds; the bound of failure of every wait here


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip a test where a library is missing, with what to type."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs more libraries: pip install {' '.join(missing)}")


@pytest.fixture
def run(make: Make, tmp_path: Path) -> Callable[..., None]:
    """Run a program in as many processes as there are ranks: `run(program, ranks=2)`. It asserts by itself."""

    def run(program: str, *arguments: object, ranks: int = 1) -> None:
        config = make("def sample(task): return {'noise': task.rng.random(3)}").config
        script = tmp_path / "program.py"
        script.write_text(COMMON + program)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        given = [str(config.script), str(config.blender), str(tmp_path), *map(str, arguments)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", str(script), str(rank), str(ranks), port, *given],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(ranks)
        ]
        try:
            outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        assert [process.returncode for process in processes] == [0] * ranks, "\n".join(outputs)

    return run


COMMON = """
import os, sys
rank, ranks, port, script, blender, folder, *rest = sys.argv[1:]
if int(ranks) > 1:
    os.environ.update(
        RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=ranks, LOCAL_WORLD_SIZE=ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port
    )
import torch
from torch.utils.data import DataLoader
import asyncblend as ab

def make(**options):
    how = {"script": script, "blender": blender, "instances": 2, "length": 14, **options}
    return ab.BlenderDataset(**how)

def indices_of(batches):
    return [index for batch in batches for index in batch["index"].tolist()]
"""

IN_ONE_PROCESS = """
def prepared():
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(use_stateful_dataloader=True))
    dataset = make()
    return accelerator, dataset, accelerator.prepare(DataLoader(dataset, batch_size=4, num_workers=int(rest[0])))

if __name__ == "__main__":
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration

    accelerator, dataset, loader = prepared()
    steps = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        for number, batch in enumerate(loader, 1):
            accelerator.save_state(f"{folder}/{len(steps)}")
            # In an epoch's last step, accelerate's state is that of the epoch's end.
            steps.append((epoch + (number == 4), batch["index"].tolist()))
        accelerator.save_state(f"{folder}/{len(steps)}")
        steps.append((epoch + 1, []))
    dataset.close()
    assert sorted(sum((own for _, own in steps), [])) == list(range(28))
    for stop, (first, _) in enumerate(steps):
        accelerator, dataset, loader = prepared()
        accelerator.load_state(f"{folder}/{stop}")
        seen = sum((own for _, own in steps[: stop + 1]), [])
        for epoch in range(first, 2):
            loader.set_epoch(epoch)
            seen += indices_of(loader)
        assert sorted(seen) == list(range(28)), (stop, seen)
        dataset.close()
"""


@pytest.mark.exhaustive
@needs("accelerate", "torchdata")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_accelerate_saves_and_loads_the_state(workers: int, run: Callable[..., None]) -> None:
    """`save_state` and `load_state` have that of a prepared loader, in a training with one process."""
    run(IN_ONE_PROCESS, workers)


OF_TWO_RANKS = """
import json
from pathlib import Path

if __name__ == "__main__":
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration
    from torchdata.stateful_dataloader import StatefulDataLoader
    import torch.distributed

    accelerator = Accelerator(cpu=True)
    together = lambda own: sorted(sum(accelerate.utils.gather_object([own]), []))
    import accelerate.utils

    # The loader is left out of prepare: each rank has its share, and the state of its own loader.
    file = Path(folder, f"loader-{accelerator.process_index}.json")
    dataset = make()
    loader = StatefulDataLoader(dataset, batch_size=3)
    iterator = iter(loader)
    before = indices_of([next(iterator)])
    file.write_text(json.dumps(loader.state_dict()))
    dataset.close()
    dataset = make()
    loader = StatefulDataLoader(dataset, batch_size=3)
    loader.load_state_dict(json.loads(file.read_text()))
    after = indices_of(loader)
    assert together(before + after) == list(range(14)), (before, after)
    assert {index % 2 for index in before + after} == {accelerator.process_index}
    accelerator.wait_for_everyone()
    loader = StatefulDataLoader(dataset, batch_size=3)
    other = 1 - accelerator.process_index
    loader.load_state_dict(json.loads(Path(folder, f"loader-{other}.json").read_text()))
    try:
        iter(loader)
    except ab.ConfigError as error:
        assert f"has rank={other}, and this BlenderDataset has {1 - other}" in str(error), error
    else:
        raise AssertionError("the other rank's state was taken")
    dataset.close()

    # Prepared, it would be shared out once more.
    for options, shard, told in (
        ({}, None, "batches of rank 0, which has only its own share"),
        ({"dispatch_batches": False}, None, "drop in each rank"),
        ({"dispatch_batches": False}, (0, 1), "drop in each rank"),
        ({"use_stateful_dataloader": True}, (0, 1), "its state of this loader would lose some"),
    ):
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**options))
        dataset = make(shard=shard)
        for workers in (0, 2):
            loader = accelerator.prepare(DataLoader(dataset, batch_size=3, num_workers=workers))
            try:
                list(loader)
            except ab.ConfigError as error:
                assert told in str(error) and "Leave the loader out of `accelerator.prepare" in str(error), error
            else:
                raise AssertionError((options, shard, workers))
            accelerator.gradient_state._reset_state()
        dataset.close()

    # One rank may render for all.
    accelerator = Accelerator(cpu=True)
    dataset = make(shard=(0, 1), length=16, transform=lambda item: {"index": torch.tensor(item["index"])})
    got = indices_of(accelerator.prepare(DataLoader(dataset, batch_size=4)))
    assert len(got) == 8
    assert together(got) == list(range(16)), got
    assert (dataset.stats() is None) == (accelerator.process_index > 0)
    dataset.close()
    accelerator.end_training()
"""


@needs("accelerate", "torchdata")
@pytest.mark.exhaustive
@pytest.mark.slow
def test_accelerate_with_several_ranks(run: Callable[..., None]) -> None:
    """Each sample comes in one rank; what would lose samples is a ConfigError in every rank, before a Blender starts."""
    run(OF_TWO_RANKS, ranks=2)


WITH_LIGHTNING = """
import logging

if __name__ == "__main__":
    import lightning
    from torchdata.stateful_dataloader import StatefulDataLoader

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.seen, self.dataset = torch.nn.Parameter(torch.zeros(())), [], make()

        def train_dataloader(self):
            self.dataset.set_epoch(self.trainer.current_epoch)  # for workers, which begin before the hook below
            return StatefulDataLoader(self.dataset, batch_size=4, num_workers=int(rest[0]))

        def on_train_epoch_start(self):
            self.dataset.set_epoch(self.current_epoch)

        def training_step(self, batch, number):
            self.seen += batch["index"].tolist()
            return self.weight * 1.0

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    class Save(lightning.Callback):
        saved = []

        def save(self, trainer, module):
            file = f"{folder}/{len(self.saved)}.ckpt"
            trainer.save_checkpoint(file)
            self.saved.append((file, list(module.seen)))

        def on_train_batch_end(self, trainer, module, outputs, batch, number):
            if number < 3:  # Lightning resumes from an epoch's last step in a way of its own, with any dataset
                self.save(trainer, module)

        def on_train_epoch_end(self, trainer, module):
            # Lightning starts the workers of the next epoch before any hook could tell them which one it is.
            if rest[0] == "0":
                self.save(trainer, module)

    def train(*callbacks, checkpoint=None):
        module = Module()
        lightning.Trainer(
            max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        ).fit(module, ckpt_path=checkpoint)
        module.dataset.close()
        return module.seen

    assert sorted(train(Save())) == list(range(28))
    for file, before in Save.saved:
        after = train(checkpoint=file)
        assert sorted(before + after) == list(range(28)), (file, before, after)
"""


@pytest.mark.exhaustive
@needs("lightning", "torchdata")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.slow
def test_lightning_saves_and_loads_the_state(workers: int, run: Callable[..., None]) -> None:
    """A checkpoint has that of a StatefulDataLoader."""
    run(WITH_LIGHTNING, workers)
