"""The README and the pages of `docs/`: their text, their blocks of code and their commands, and who runs what."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]}
BLOCKS = [
    block
    for text in PAGES.values()
    for block in re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
]
PYTHON: list[str] = list(dict.fromkeys(text for language, text in BLOCKS if language == "python"))
"""Each block once: the shortest example is in the README and in a tutorial."""
CONFIGS = [text for language, text in BLOCKS if language == "toml"]
COMMANDS = {line for language, text in BLOCKS if language == "sh" for line in text.splitlines()}

SCRIPTS = {
    "scene.py": "camera.project",
    "labelled.py": "bl.annotate",
    "animated.py": "# pre_animation",
    "rising.py": "speed * step",
    "reach.py": "class Reach",
}
"""The blocks that run inside Blender, each with a word that only it has."""


def page(name: str) -> str:
    """Return the text of a page of `docs/`."""
    return PAGES[ROOT / "docs" / name]


def block(word: str) -> str:
    """Return the one Python block with this word in it."""
    (found,) = [text for text in PYTHON if word in text]
    return found
