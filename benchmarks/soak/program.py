"""Another program with a stream of its own: `python -m benchmarks.soak.program OPTIONS`, with the options as JSON.

It prints the index of each frame, whose content it has checked, and the ConfigError if it cannot begin.
"""

from __future__ import annotations

import asyncio
import json
import sys

import asyncblend as ab
from asyncblend.aio import loop_factory

from . import scene

__all__: list[str] = []


async def _main(config: ab.StreamConfig) -> None:
    async with ab.BlenderStream(config) as stream:
        async for frame in stream:
            if not scene.is_right(frame, config.seed):
                sys.exit(f"index {frame.index} has wrong content")
            print(frame.index, flush=True)


if __name__ == "__main__":
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_main(ab.StreamConfig(**json.loads(sys.argv[1]), params=scene.params)))
    except ab.ConfigError as error:
        sys.exit(f"ConfigError: {error}")
