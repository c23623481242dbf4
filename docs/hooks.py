"""What mkdocs cannot do by itself: pages link to files outside `docs/` as they do on GitHub, and the site has those too.

The README becomes the first page. Other files that a page links to come under `repository/`: pages and pictures as they
are, source files as pages that show them. `reference/commands.md` is made from the commands' own help.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
LINK = re.compile(r"\]\((?P<target>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "sh", ".toml": "toml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README, what pages link to outside `docs/`, and the page of commands."""
    files.append(File.generated(config, "reference/commands.md", content=_commands()))
    todo, done = [ROOT / "README.md", *DOCS.rglob("*.md")], set[Path]()
    while todo:
        path = todo.pop()
        if path in done:
            continue
        done.add(path)
        if not path.is_relative_to(DOCS):
            uri = _uri(path)
            if path.suffix in LANGUAGES:
                code = f"# {path.relative_to(ROOT)}\n\n```{LANGUAGES[path.suffix]}\n{path.read_text('utf-8')}```\n"
                files.append(File.generated(config, uri, content=code))
            else:
                files.append(File.generated(config, uri, abs_src_path=str(path)))
        if path.suffix == ".md":
            todo += [target for link in LINK.finditer(path.read_text("utf-8")) if (target := _target(link, path))]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to where the files are in the site."""
    uri = page.file.src_uri
    if uri == "index.md":
        source = ROOT / "README.md"
    elif uri.startswith("repository/"):
        source = ROOT / uri.removeprefix("repository/")
    else:
        source = DOCS / uri

    def moved(link: re.Match[str]) -> str:
        if (target := _target(link, source)) is None:
            return link[0]
        return f"]({os.path.relpath(_uri(target), os.path.dirname(uri) or '.')}{link['anchor'] or ''})"

    return LINK.sub(moved, markdown) if source.suffix == ".md" else markdown


def _target(link: re.Match[str], source: Path) -> Path | None:
    """Return the file that a link of a page leads to, or None if there is none."""
    path = Path(os.path.normpath(source.parent / link["target"]))
    return path if path.is_file() and path.is_relative_to(ROOT) else None


def _uri(path: Path) -> str:
    """Return where a file of the repository is in the site, before pages become HTML."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    return f"repository/{path.relative_to(ROOT).as_posix()}{'.md' if path.suffix in LANGUAGES else ''}"


def _commands() -> str:
    """Return a page with the help of every command."""
    import typer

    from asyncblend.cli import app

    parts = ["# Commands\n\nEach command says this by itself: `asyncblend stream --help`."]

    def add(name: str, command: Any, parent: Any = None) -> None:
        context = command.context_class(
            command, parent, name, terminal_width=100, max_content_width=100, **command.context_settings
        )
        parts.append(f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```")
        for below, child in sorted(getattr(command, "commands", {}).items()):
            add(below, child, context)

    add("asyncblend", typer.main.get_command(app))
    return "\n\n".join(parts) + "\n"
