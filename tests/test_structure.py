"""The house's rules, read off the syntax tree of every file, and what each import pulls in."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import asyncblend
from asyncblend import blender

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "asyncblend"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py"))

BELOW: dict[str, set[str]] = {
    "__init__": {"_lazy"},  # everything else only by name, at its first use
    "__main__": {"cli"},
    "_lazy": set(),
    "errors": set(),
    "config": {"errors"},
    "aio": {"errors"},
    "wire": {"errors"},
    "blender": {"errors", "_lazy", "wire"},
    "fleet": {"errors", "config", "aio", "wire"},
    "recording": {"errors", "config", "aio", "wire", "__init__"},  # the last one for the version
    "pictures": {"errors"},
    "export": {"errors", "pictures"},
    "stream": {"errors", "config", "aio", "wire", "fleet", "recording"},
    "data": {"errors", "config", "recording", "stream"},
    "blendtorch": {"errors", "config", "stream"},
    "testing": {"errors", "wire", "blender"},
    "cli": {
        "errors",
        "config",
        "aio",
        "wire",
        "fleet",
        "recording",
        "pictures",
        "export",
        "stream",
        "data",
        "__init__",
    },
}
"""What each room may import. Files, within a room and across, may not import in a circle either."""

INSIDE = [
    *(f"asyncblend/{name}.py" for name in ("__init__", "_lazy", "errors")),
    *(file for file in FILES if file.startswith(("asyncblend/wire/", "asyncblend/blender/"))),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "blender_scripts").glob("*.py")),
]
"""What runs in Blender's Python."""

BLENDERS = {"bpy", "bpy_extras", "mathutils", "gpu", "gpu_extras", "cycles", "_cycles"}
SINCE_310 = {"tomllib"}


def tree_of(file: str) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


def imported(file: str, tree: ast.AST | None = None) -> Iterator[str]:
    """Every module that is imported anywhere in it, in a function or for type checking too, by its full name."""
    parts = Path(file).with_suffix("").parts
    for node in ast.walk(tree or tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*parts[: len(parts) - node.level]] if node.level else []
            base += (node.module or "").split(".") if node.module else []
            for alias in node.names:
                full = [*base, alias.name]
                yield ".".join(full if is_module(full) else base)


def is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def room_of(module: str) -> str:
    """The room of one of our own modules; "__init__" is the package itself."""
    return [*module.split("."), "__init__"][1]


def at_run_time(tree: ast.Module) -> ast.Module:
    """Without what only a type checker sees."""

    class Drop(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                return node.orelse
            return self.generic_visit(node)

    return ast.fix_missing_locations(Drop().visit(tree))  # type: ignore[no-any-return]


def dotted(node: ast.expr) -> str:
    """`a.b.c`, as it is written; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def child(code: str) -> Any:
    """What a fresh Python prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def pulled_in(statement: str) -> set[str]:
    """The modules that a fresh Python loads for this."""
    code = (
        f"import sys, json; before = set(sys.modules); {statement}; print(json.dumps(list(set(sys.modules) - before)))"
    )
    return set(child(code))


# -- layers ------------------------------------------------------------------------------------------------------


def module_of(file: str) -> str:
    return Path(file).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def files_below() -> dict[str, set[str]]:
    """By module: the modules of ours that it imports, wherever in the file, for type checking too."""
    modules = {module_of(file) for file in FILES}
    below = {}
    for file in FILES:
        tree = tree_of(file)
        if file.endswith("__init__.py"):
            tree = at_run_time(tree)  # its names are typed, but loaded at their first use
        below[module_of(file)] = {name for name in imported(file, tree) if name in modules} - {module_of(file)}
    return below


def assert_no_circle(below: dict[str, set[str]]) -> None:
    done: set[str] = set()
    while left := {name: needs - done for name, needs in below.items() if name not in done}:
        free = {name for name, needs in left.items() if not needs}
        assert free, f"a circle among {left}"
        done |= free


def test_imports_point_down_only() -> None:
    """Each room imports only what the design's table allows, wherever in the file."""
    for module, needs in files_below().items():
        room, used = room_of(module), {room_of(name) for name in needs}
        assert used - {room} <= BELOW[room], f"{module} imports {sorted(used - BELOW[room])}"


def test_the_table_knows_every_room() -> None:
    """A new room has to be put somewhere."""
    assert {room_of(module_of(file)) for file in FILES} == set(BELOW)


def test_nothing_imports_in_a_circle() -> None:
    """Neither rooms nor files: from any of them, down is down."""
    assert_no_circle({room: needs - {"__init__"} for room, needs in BELOW.items()})
    assert_no_circle(files_below())


def test_a_circle_would_be_seen() -> None:
    """The check can fail."""
    with pytest.raises(AssertionError, match="a circle"):
        assert_no_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})


def test_the_check_sees_every_kind_of_import() -> None:
    """Plain, relative, of the package, inside a function, and for type checking."""
    code = """
import os.path
from . import queue, nothing
from .. import errors
from ..stream.hub import Hub
from asyncblend import config as c
def f():
    import torch
    from ..fleet.fleet import Fleet
if TYPE_CHECKING:
    from asyncblend.stream.leases import LeaseBook
"""
    assert sorted(imported("asyncblend/stream/x.py", ast.parse(code))) == [
        "asyncblend.config",
        "asyncblend.errors",
        "asyncblend.fleet.fleet",
        "asyncblend.stream",
        "asyncblend.stream.hub",
        "asyncblend.stream.leases",
        "asyncblend.stream.queue",
        "os.path",
        "torch",
    ]


@pytest.mark.parametrize(
    ("module", "homes"),
    [
        ("torch", ["data/dataset.py", "data/items.py", "data/mixed.py", "data/recorded.py"]),
        ("uvloop", ["aio.py"]),
        ("webdataset", ["recording/writer.py"]),
    ],
)
def test_who_imports_what_is_heavy(module: str, homes: list[str]) -> None:
    """torch is the datasets' alone, uvloop the loop factory's, and webdataset, which imports torch, the writer's."""
    users = [file for file in FILES if any(name.split(".")[0] == module for name in imported(file))]
    assert users == [f"asyncblend/{home}" for home in homes]


@pytest.mark.parametrize(
    ("file", "allowed"),
    [
        ("errors.py", {"__future__", "typing"}),
        ("stream/leases.py", {"__future__", "typing", "collections", "dataclasses", "heapq"}),
        (
            "config.py",
            {"__future__", "typing", "collections", "dataclasses", "difflib", "functools", "math", "os"},
        ),
        ("fleet/restart.py", {"__future__", "collections"}),
        ("fleet/liveness.py", {"__future__"}),
        ("fleet/instance.py", {"__future__", "typing", "collections"}),
        ("fleet/ending.py", {"__future__", "typing"}),
        ("stream/queue.py", {"__future__", "typing", "collections", "asyncio"}),
    ],
)
def test_what_is_pure_stays_pure(file: str, allowed: set[str]) -> None:
    """No I/O and no clock where the design says so."""
    assert {name.split(".")[0] for name in imported(f"asyncblend/{file}")} - {"asyncblend"} <= allowed


def test_the_wire_format_knows_no_sockets() -> None:
    """It is bytes only."""
    for file in ("asyncblend/wire/protocol.py", "asyncblend/wire/payload.py"):
        assert not {name.split(".")[0] for name in imported(file)} & {"zmq", "socket", "asyncio"}


# -- what is never done ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_unpickled_or_evaluated(file: str) -> None:
    """No bytes that come from anywhere become code."""
    pickling = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
    assert not {name.split(".")[0] for name in imported(file)} & pickling
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Attribute):
            assert node.attr not in {"recv_pyobj", "send_pyobj", "pickle"}, f"line {node.lineno}"
            assert dotted(node) not in {"np.load", "numpy.load", "torch.load"}, f"line {node.lineno}"
        if isinstance(node, ast.Call):
            assert dotted(node.func) not in {"eval", "exec", "builtins.eval", "builtins.exec"}, f"line {node.lineno}"
            assert "allow_pickle" not in {keyword.arg for keyword in node.keywords}, f"line {node.lineno}"
        if isinstance(node, ast.Name):
            assert node.id not in pickling | {"eval", "exec"}, f"line {node.lineno}"


@pytest.mark.parametrize("file", FILES)
def test_processes_start_in_one_way(file: str) -> None:
    """Only `asyncio.create_subprocess_exec` starts processes: no shell, and nothing that blocks the loop or forks it."""
    assert not {"subprocess", "pty", "multiprocessing.process", "popen2"} & set(imported(file))
    banned = (
        "os.system",
        "os.popen",
        "os.spawn",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "pty.",
        "subprocess.",
    )
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Attribute):
            assert not dotted(node).startswith(banned), f"line {node.lineno}: {dotted(node)}"
            assert node.attr not in {"Popen", "create_subprocess_shell", "subprocess_shell"}, f"line {node.lineno}"
        if isinstance(node, ast.Name):
            assert node.id not in {"Popen", "create_subprocess_shell"}, f"line {node.lineno}"


# -- Blender's side ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", INSIDE)
def test_the_blender_side_is_python_310(file: str) -> None:
    """No newer syntax, and nothing imported but the standard library, numpy, zmq, Blender's own and ours."""
    text = (ROOT / file).read_text(encoding="utf-8")
    tree = at_run_time(ast.parse(text, file, feature_version=(3, 10)))
    allowed = set(sys.stdlib_module_names) - SINCE_310 | BLENDERS | {"numpy", "zmq", "asyncblend"}
    assert {name.split(".")[0] for name in imported(file, tree)} <= allowed


MODULES = [
    Path(file).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
    for file in FILES
    if file.startswith("asyncblend/blender/")
]


@pytest.mark.parametrize("module", MODULES)
def test_the_blender_side_imports_without_bpy(module: str) -> None:
    """Each module by itself, and it pulls in nothing of Blender, of the host, or that Blender may not have."""
    got = pulled_in(f"import {module}")
    roots = {name.split(".")[0] for name in got}
    assert not roots & (BLENDERS | {"torch", "uvloop", "asyncio", "rich", "typer", "PIL"})
    ours = {room_of(name) for name in got if name.startswith("asyncblend")}
    assert ours <= BELOW["blender"] | {"blender", "__init__"}


def test_the_names_of_the_blender_side_import_without_bpy() -> None:
    """A script can be imported, and its functions be tested, anywhere."""
    got = pulled_in("from asyncblend.blender import *")
    assert not {name.split(".")[0] for name in got} & (BLENDERS | {"torch", "uvloop", "asyncio"})


def test_what_starts_a_blender_needs_nothing() -> None:
    """The bootstrap, and what reports missing packages, run before numpy and pyzmq are known to be there."""
    got = pulled_in(
        "import asyncblend.blender.serving as s; from asyncblend.blender.serving import child, requirements, bootstrap"
    )
    assert not {name.split(".")[0] for name in got} & {"numpy", "zmq"}


# -- the public names --------------------------------------------------------------------------------------------


def lazy_table(file: str) -> dict[str, list[str]]:
    """The second argument of `lazy(__name__, {...})`."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call) and dotted(node.func) == "lazy":
            table: dict[str, list[str]] = ast.literal_eval(node.args[1])
            return table
    raise AssertionError("no lazy table")


def lazy_modules(file: str) -> list[str]:
    """The argument `modules` of `lazy(...)`: submodules that are public names themselves."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Call) and dotted(node.func) == "lazy":
            found = [ast.literal_eval(each.value) for each in node.keywords if each.arg == "modules"]
            return [name for names in found for name in names]
    raise AssertionError("no lazy table")


def typed_table(file: str) -> dict[str, list[str]]:
    """What a type checker is told: the imports under TYPE_CHECKING, as a lazy table; "" has the modules."""
    table: dict[str, list[str]] = {}
    for node in tree_of(file).body:
        if isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                assert all(alias.name == alias.asname for alias in line.names)
                table.setdefault(line.module or "", []).extend(alias.name for alias in line.names)
    return table


@pytest.mark.parametrize("package", [asyncblend, blender], ids=lambda package: package.__name__)
def test_public_names_are_one_list(package: Any) -> None:
    """`__all__` is sorted, and it is exactly what is loaded lazily and what a type checker sees, from the same homes."""
    file = Path(package.__file__).relative_to(ROOT).as_posix()
    assert sorted(package.__all__) == package.__all__
    table, modules = lazy_table(file), lazy_modules(file)
    assert sorted([*modules, *(name for names in table.values() for name in names)]) == package.__all__
    typed = typed_table(file)
    assert sorted(typed.pop("", [])) == sorted(modules)
    assert {home: sorted(names) for home, names in typed.items()} == {
        home: sorted(names) for home, names in table.items()
    }
    for name in modules:
        assert getattr(package, name) is importlib.import_module(f"{package.__name__}.{name}")
    for home, names in table.items():
        module = importlib.import_module(f"{package.__name__}.{home}")
        for name in names:
            assert getattr(package, name) is getattr(module, name)
            assert name in dir(package)


@pytest.mark.parametrize("package", [asyncblend, blender], ids=lambda package: package.__name__)
def test_no_public_name_is_a_submodule(package: Any) -> None:
    """Importing that submodule would put it in the name's place. Unless it is that name."""
    file = Path(package.__file__)
    names = set(package.__all__) - set(lazy_modules(file.relative_to(ROOT).as_posix()))
    assert not {path.stem for path in file.parent.iterdir()} & names


@pytest.mark.parametrize("package", [asyncblend, blender], ids=lambda package: package.__name__)
def test_an_unknown_name_is_an_attribute_error(package: Any) -> None:
    """As of any module, so that hasattr works."""
    assert not hasattr(package, "BlenderLauncher")
    with pytest.raises(AttributeError, match=rf"module '{package.__name__}' has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


def test_the_public_names_are_as_pinned() -> None:
    """The public API of the design."""
    assert set(asyncblend.__all__) == {
        *("AsyncblendError", "BlenderNotFound", "ConfigError", "CrashLoop", "FrameTimeout", "InstanceError"),
        *("InstanceExited", "ProtocolError", "RecordingError", "SampleError", "StartTimeout", "StreamClosed"),
        *(
            "BlenderDataset",
            "BlenderStream",
            "Frame",
            "MixedDataset",
            "RecordedDataset",
            "RestartPolicy",
            "StreamConfig",
            "StreamStats",
            "Timeouts",
        ),
    }
    assert set(blender.__all__) >= {"Camera", "Task", "render", "serve"}


def test_importing_the_package_is_cheap() -> None:
    """It loads nothing but itself and a little of the standard library; Blender's own Python does it too."""
    got = pulled_in("import asyncblend")
    assert {name for name in got if name.startswith("asyncblend")} == {"asyncblend", "asyncblend._lazy"}
    others = {name.split(".")[0] for name in got} - {"asyncblend"}
    assert not others & {"torch", "zmq", "numpy", "rich", "typer", "uvloop", "asyncio", "PIL", "bpy"}
    assert others <= set(sys.stdlib_module_names)
    assert len(got) < 60


@pytest.mark.parametrize("name", ["StreamConfig", "RestartPolicy", "Timeouts", "ConfigError"])
def test_data_are_cheap_too(name: str) -> None:
    """A config is made without torch, zmq or numpy."""
    others = {module.split(".")[0] for module in pulled_in(f"from asyncblend import {name}")} - {"asyncblend"}
    assert others <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", ["BlenderStream", "Frame", "recording"])
def test_a_stream_needs_no_torch(name: str) -> None:
    """Only the datasets do. Nor does reading a recording."""
    got = {module.split(".")[0] for module in pulled_in(f"from asyncblend import {name}")}
    assert not got & {"torch", "webdataset", "typer", "rich", "uvloop", "bpy"}
