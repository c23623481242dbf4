"""The rules of the house, checked on the syntax tree of every file, and what importing each module loads."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import subprocess
import sys
import textwrap
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
    "__init__": {"_lazy"},  # everything else is loaded lazily, when its name is first used
    "__main__": {"cli"},
    "_lazy": set(),
    "errors": set(),
    "ports": set(),
    "checks": {"errors"},
    "config": {"errors", "checks"},
    "aio": {"errors"},
    "wire": {"errors"},
    "blender": {"errors", "_lazy", "wire"},
    "fleet": {"errors", "config", "aio", "wire"},
    "recording": {"errors", "checks", "config", "aio", "wire", "__init__"},  # "__init__" for the version
    "pictures": {"errors"},
    "export": {"errors", "pictures", "recording"},
    "warm": {"errors", "config", "wire"},
    "stream": {"errors", "checks", "config", "aio", "wire", "fleet", "recording", "warm"},
    "curriculum": {"errors", "checks"},
    "tap": {"errors", "ports", "aio", "wire", "stream"},
    "data": {"errors", "ports", "checks", "config", "recording", "stream", "tap"},
    "metrics": {"errors", "ports", "checks", "config", "stream"},
    "scripts": {"errors"},
    "gym": {"errors", "checks", "config", "stream", "scripts"},
    "ray": {"errors", "checks", "config", "aio", "wire", "fleet", "recording", "stream", "warm"},
    "blendtorch": {"errors", "config", "stream"},
    "testing": {"errors", "wire", "blender"},
    "viewer": {"errors", "ports", "config", "aio", "recording", "pictures", "stream", "tap"},
    "cli": {
        *("errors", "ports", "checks", "config", "aio", "wire", "fleet", "recording"),
        *("pictures", "export", "stream", "data", "metrics", "scripts", "ray", "warm", "__init__"),
        *("tap", "viewer"),
    },
}
"""What each room may import. Neither rooms nor files may import each other in a circle."""

PUBLIC_ATTRIBUTES: dict[str, set[str]] = {
    "BlenderStream": {
        *(
            "aclose",
            "batches",
            "blender_version",
            "clips",
            "config",
            "consumer",
            "episode",
            "episodes",
            "flush",
            "frames",
        ),
        *("load_state_dict", "record"),
        *("render", "source", "state_dict", "stats", "sync"),
    },
    "Frames": {*("aclose", "batches", "clips", "episodes", "flush", "samples", "state_dict", "stats")},
    "SyncStream": {
        *(
            "begin_episode",
            "blender_version",
            "close",
            "config",
            "consumer",
            "episode",
            "flush",
            "frames",
            "render",
            "source",
            "start",
        ),
        *("state_dict", "stats", "usable", "wait_ready"),
    },
    "SyncFrames": {
        *("clips", "close", "episodes", "finished", "flush", "get", "hold", "poll", "samples", "state_dict", "stats")
    },
    "BlenderDataset": {
        *("close", "config", "feedback", "flush", "load_state_dict", "render", "set_epoch", "state_dict", "stats"),
        "view",
    },
    "Curriculum": {*("feedback", "load_state_dict", "state_dict", "weights")},
    "BlenderMapDataset": {*("close", "config", "render", "stats")},
    "RecordedDataset": {*("about", "close", "load_state_dict", "set_epoch", "state_dict", "stats", "view")},
    "MixedDataset": {*("close", "counts", "load_state_dict", "set_epoch", "state_dict", "stats", "view")},
}
"""Every attribute without an underscore that our own code gives these classes: their whole public surface."""

INSIDE = [
    *(f"asyncblend/{name}.py" for name in ("__init__", "_lazy", "errors")),
    *(file for file in FILES if file.startswith(("asyncblend/wire/", "asyncblend/blender/"))),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "blender_scripts").glob("*.py")),
]
"""The files that run in Blender's Python."""

BLENDERS = {"addon_utils", "bpy", "bpy_extras", "mathutils", "gpu", "gpu_extras", "cycles", "_cycles"}
SINCE_311 = {"tomllib"}
BESIDE = {"cartpole_scene", "model_options", "model_scene"}
"""What a script imports from its own folder."""
PACKAGES = [asyncblend, blender]


@functools.cache
def tree_of(file: str) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), file)


def imported(file: str, tree: ast.AST | None = None) -> Iterator[str]:
    """Yield the full name of every module that the file imports, also in functions and for type checking."""
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
    """Tell whether there is a file or a package of this name."""
    path = ROOT.joinpath(*parts)
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def module_of(file: str) -> str:
    """Return the dotted name of the module in this file."""
    return Path(file).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def room_of(module: str) -> str:
    """Return the room of one of our modules: "__init__" for the package itself."""
    return [*module.split("."), "__init__"][1]


def roots_of(modules: set[str]) -> set[str]:
    """Return the top-level packages of these modules."""
    return {name.split(".")[0] for name in modules}


def at_run_time(tree: ast.Module) -> ast.Module:
    """Return the tree without the blocks that only a type checker reads. The given tree is changed."""

    class Drop(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                return node.orelse
            return self.generic_visit(node)

    return ast.fix_missing_locations(Drop().visit(tree))  # type: ignore[no-any-return]


def dotted(node: ast.expr) -> str:
    """Return `a.b.c` as it is written, or "" for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


LOADED_BY = """
import json, os, sys
loaded = []
for statement in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    if not os.fork():
        before = set(sys.modules)
        exec(statement, {})
        with open(writing, "w") as pipe:
            json.dump(sorted(set(sys.modules) - before), pipe)
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    os.wait()
    loaded.append(json.loads(text) if text else sys.exit(f"failed: {statement}"))
print(json.dumps(loaded))
"""
"""Executes each statement in a fork of one fresh Python: a Python of its own for each takes many times as long."""


def loaded_by(*statements: str) -> dict[str, set[str]]:
    """Return the modules that a fresh Python loads for each of the statements."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LOADED_BY, json.dumps(statements)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(statements, map(set, json.loads(done.stdout)), strict=True))


# -- layers ------------------------------------------------------------------------------------------------------


def files_below() -> dict[str, set[str]]:
    """Return for each module the modules of ours that it imports, also in functions and for type checking."""
    modules = {module_of(file) for file in FILES}
    below = {}
    for file in FILES:
        tree = tree_of(file)
        if file.endswith("__init__.py"):  # its typed names are loaded only when they are first used
            tree = at_run_time(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        below[module_of(file)] = {name for name in imported(file, tree) if name in modules} - {module_of(file)}
    return below


def assert_no_circle(below: dict[str, set[str]]) -> None:
    """Fail if anything imports itself through others."""
    done: set[str] = set()
    while left := {name: needs - done for name, needs in below.items() if name not in done}:
        if not (free := {name for name, needs in left.items() if not needs}):
            while unneeded := left.keys() - set().union(*left.values()):  # so that only the circle is shown
                left = {name: needs for name, needs in left.items() if name not in unneeded}
            pytest.fail(f"a circle among {left}")
        done |= free


def test_imports_point_down_only() -> None:
    """Each room imports only what the design's table allows, wherever in the file the import stands."""
    for module, needs in files_below().items():
        room, used = room_of(module), {room_of(name) for name in needs}
        assert used - {room} <= BELOW[room], f"{module} imports {sorted(used - BELOW[room] - {room})}"


def test_the_table_knows_every_room() -> None:
    """A new room must get a place in the table."""
    assert {room_of(module_of(file)) for file in FILES} == set(BELOW)


def test_nothing_imports_in_a_circle() -> None:
    """Neither the rooms nor the files import each other in a circle."""
    assert_no_circle({room: needs - {"__init__"} for room, needs in BELOW.items()})
    assert_no_circle(files_below())


def test_a_circle_would_be_seen() -> None:
    """The check for circles fails when there is one."""
    with pytest.raises(pytest.fail.Exception, match=r"a circle among {'b': {'c'}, 'c': {'b'}}"):
        assert_no_circle({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()})


def test_the_check_sees_every_kind_of_import() -> None:
    """Plain and relative imports count, those of the package, those inside functions and those for type checking."""
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


def test_who_imports_what_is_heavy() -> None:
    """Only the datasets import torch, only `aio` uvloop, and only the writers webdataset, which imports torch.

    Only `gym` imports Gymnasium, and only `ray`, and `warm` below the streams, Ray.
    """
    for module, homes in {
        "torch": [
            f"data/{name}.py"
            for name in (*("carried", "collate", "dataset", "items"), *("iteration", "map", "mixed", "share", "states"))
        ],
        "gymnasium": [
            "gym/__init__.py",
            "gym/env.py",
            "gym/player.py",
            "gym/registering.py",
            "gym/spaces.py",
            "gym/vector.py",
        ],
        "pyarrow": ["export/columns.py"]
        + [f"ray/{name}.py" for name in ("actors", "generating", "recording", "renderer", "rows")],
        "ray": [
            f"ray/{name}.py"
            for name in (
                *("__init__", "actors", "generating", "keeper", "nodes", "placing", "recording", "remote"),
                *("renderer", "rows", "serving", "warm"),
            )
        ]
        + [f"warm/{name}.py" for name in ("attachment", "connection", "finding", "session")],
        "fsspec": ["recording/places.py"],
        "isal": ["recording/npy.py", "recording/png.py"],
        "prometheus_client": ["metrics.py"],
        "rerun": [f"viewer/{name}.py" for name in ("activity", "entities", "layout", "screen")],
        "rerun_cli": ["viewer/program.py"],
        "uvloop": ["aio.py"],
        "webdataset": ["recording/writer.py"],
    }.items():
        users = [file for file in FILES if module in roots_of(set(imported(file)))]
        assert users == [f"asyncblend/{home}" for home in homes], module


def test_what_is_pure_stays_pure() -> None:
    """The files that the design calls pure import nothing that does I/O or reads a clock."""
    for file, allowed in {
        "errors.py": {"typing"},
        "stream/leases.py": {"typing", "collections", "dataclasses", "heapq"},
        "checks.py": {"typing", "collections", "dataclasses", "difflib", "functools", "math", "os"},
        "config.py": {"typing", "collections", "dataclasses", "os", "sys"},
        "fleet/restart.py": {"collections"},
        "fleet/liveness.py": set(),
        "fleet/instance.py": {"typing", "collections"},
        "fleet/ending.py": {"typing"},
        "stream/queue.py": {"typing", "collections", "asyncio"},
        "stream/timing.py": {"typing", "collections", "math"},
        "stream/verdict.py": set(),
        "cli/bench/judging.py": {"typing", "collections", "dataclasses", "math", "statistics"},
    }.items():
        found = roots_of(set(imported(f"asyncblend/{file}"))) - {"asyncblend", "__future__"}
        assert found <= allowed, f"{file} imports {sorted(found - allowed)}"


def test_the_wire_format_knows_no_sockets() -> None:
    """These files only turn values into bytes and back."""
    for name in ("protocol", "request", "payload", "json_text"):
        assert not roots_of(set(imported(f"asyncblend/wire/{name}.py"))) & {"zmq", "socket", "asyncio"}, name


# -- what is never done ------------------------------------------------------------------------------------------

PICKLING = {"pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}
STARTS = ("os.system", "os.popen", "os.spawn", "os.exec", "os.posix_spawn", "os.fork", "pty.", "subprocess.")


def evaluates(node: ast.AST) -> bool:
    """Tell whether this turns bytes into code, or could unpickle them."""
    if isinstance(node, ast.Attribute):
        return node.attr in {"recv_pyobj", "send_pyobj", "pickle"} or dotted(node) in {
            *("np.load", "numpy.load", "torch.load")
        }
    if isinstance(node, ast.Call):
        called = {"eval", "exec", "builtins.eval", "builtins.exec"}
        return dotted(node.func) in called or "allow_pickle" in {keyword.arg for keyword in node.keywords}
    return isinstance(node, ast.Name) and node.id in PICKLING | {"eval", "exec"}


def starts_a_process(node: ast.AST) -> bool:
    """Tell whether this starts a process otherwise than by `asyncio.create_subprocess_exec`."""
    if isinstance(node, ast.Attribute):
        shells = {"Popen", "create_subprocess_shell", "subprocess_shell"}
        return dotted(node).startswith(STARTS) or node.attr in shells
    return isinstance(node, ast.Name) and node.id in {"Popen", "create_subprocess_shell"}


def test_nothing_is_unpickled_or_evaluated() -> None:
    """No bytes that come from anywhere become code."""
    for file in FILES:
        assert not roots_of(set(imported(file))) & PICKLING, file
        for node in ast.walk(tree_of(file)):
            assert not evaluates(node), f"{file}, line {getattr(node, 'lineno', '?')}: {ast.unparse(node)}"


def test_processes_start_in_one_way() -> None:
    """Processes start without a shell, and by nothing that blocks the event loop or forks it.

    Only the sweeper is no child of an event loop, because it must outlive every one of them; and the leash, which is
    one, becomes the program that it runs.
    """
    for file in set(FILES) - {"asyncblend/fleet/sweeper.py", "asyncblend/viewer/leash.py"}:
        assert not {"subprocess", "pty", "multiprocessing.process", "popen2"} & set(imported(file)), file
        for node in ast.walk(tree_of(file)):
            assert not starts_a_process(node), f"{file}, line {getattr(node, 'lineno', '?')}: {ast.unparse(node)}"


def test_forbidden_code_would_be_seen() -> None:
    """The checks for what is never done find each way of doing it."""
    for code in (
        "eval(x)",
        "builtins.exec(x)",
        "np.load(x)",
        "f(allow_pickle=True)",
        "socket.recv_pyobj()",
        "joblib.x",
    ):
        assert any(map(evaluates, ast.walk(ast.parse(code)))), code
    for code in ("os.system(x)", "subprocess.run(x)", "Popen(x)", "loop.subprocess_shell(x)", "os.fork()"):
        assert any(map(starts_a_process, ast.walk(ast.parse(code)))), code


# -- Blender's side ----------------------------------------------------------------------------------------------


def test_the_blender_side_is_python_310() -> None:
    """Blender's side has no newer syntax, and imports only the standard library, numpy, zmq, Blender's own and ours."""
    allowed = set(sys.stdlib_module_names) - SINCE_311 | BLENDERS | BESIDE | {"numpy", "zmq", "asyncblend"}
    for file in INSIDE:
        tree = at_run_time(ast.parse((ROOT / file).read_text(encoding="utf-8"), file, feature_version=(3, 10)))
        found = roots_of(set(imported(file, tree)))
        assert found <= allowed, f"{file} imports {sorted(found - allowed)}"


def test_the_blender_side_imports_without_bpy() -> None:
    """Each module loads by itself, and nothing of Blender, of the host, or that a Blender may lack comes with it."""
    modules = [module_of(file) for file in FILES if file.startswith("asyncblend/blender/")]
    for statement, loaded in loaded_by(*(f"import {module}" for module in modules)).items():
        unwanted = roots_of(loaded) & (BLENDERS | {"torch", "uvloop", "asyncio", "rich", "typer", "PIL"})
        assert not unwanted, f"{statement} loads {sorted(unwanted)}"
        ours = {room_of(name) for name in loaded if name.startswith("asyncblend")}
        assert ours <= BELOW["blender"] | {"blender", "__init__"}, f"{statement} loads {sorted(ours)}"


def test_what_is_imported_often_loads_little() -> None:
    """Scripts import anywhere, a Blender starts without packages, and streams and recordings need no torch."""
    no_torch = {"torch", "webdataset", "typer", "rich", "uvloop", "bpy"}
    unwanted = {
        "from asyncblend.blender import *": BLENDERS | {"torch", "uvloop", "asyncio"},
        "from asyncblend.blender.serving import child, requirements, bootstrap": {"numpy", "zmq"},
        **{f"from asyncblend import {name}": no_torch for name in ("BlenderStream", "Frame", "recording")},
    }
    for statement, loaded in loaded_by(*unwanted).items():
        assert not roots_of(loaded) & unwanted[statement], statement


def test_a_config_loads_only_the_standard_library() -> None:
    """A config is made, and its errors are caught, without torch, zmq or numpy."""
    names = ("StreamConfig", "RestartPolicy", "Timeouts", "ConfigError")
    for statement, loaded in loaded_by(*(f"from asyncblend import {name}" for name in names)).items():
        assert roots_of(loaded) - {"asyncblend"} <= set(sys.stdlib_module_names), statement


def test_importing_the_package_is_cheap() -> None:
    """It loads nothing but itself and a little of the standard library, because Blender's own Python does it too."""
    (loaded,) = loaded_by("import asyncblend").values()
    assert {name for name in loaded if name.startswith("asyncblend")} == {"asyncblend", "asyncblend._lazy"}
    others = roots_of(loaded) - {"asyncblend"}
    assert others <= set(sys.stdlib_module_names)
    assert "asyncio" not in others
    assert len(loaded) < 60


# -- the public names --------------------------------------------------------------------------------------------


def file_of(package: Any) -> str:
    """Return the path of the package's file, from the project's root."""
    return Path(package.__file__).relative_to(ROOT).as_posix()


def lazy_call(package: Any) -> ast.Call:
    """Return the call `lazy(__name__, {...})` of this package."""
    calls = [node for node in ast.walk(tree_of(file_of(package))) if isinstance(node, ast.Call)]
    (found,) = [call for call in calls if dotted(call.func) == "lazy"]
    return found


def lazy_table(package: Any) -> dict[str, list[str]]:
    """Return the second argument of `lazy(__name__, {...})`: the names by the module that they come from."""
    return {home: names.split() for home, names in ast.literal_eval(lazy_call(package).args[1]).items()}


def lazy_modules(package: Any) -> list[str]:
    """Return the argument `modules` of `lazy(...)`: submodules that are public names themselves."""
    found = [ast.literal_eval(each.value) for each in lazy_call(package).keywords if each.arg == "modules"]
    return [name for names in found for name in names]


def typed_table(package: Any) -> dict[str, list[str]]:
    """Return the imports under TYPE_CHECKING as a lazy table, with submodules under ""."""
    table: dict[str, list[str]] = {}
    for node in tree_of(file_of(package)).body:
        if isinstance(node, ast.If) and dotted(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                assert all(alias.name == alias.asname for alias in line.names)
                table.setdefault(line.module or "", []).extend(alias.name for alias in line.names)
    return table


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_public_names_are_one_list(package: Any) -> None:
    """`__all__` is sorted, and is what is loaded lazily and what a type checker sees, from the same modules."""
    assert sorted(package.__all__) == package.__all__
    table, modules = lazy_table(package), lazy_modules(package)
    assert sorted([*modules, *(name for names in table.values() for name in names)]) == package.__all__
    typed = typed_table(package)
    assert sorted(typed.pop("", [])) == sorted(modules)
    assert {home: sorted(names) for home, names in typed.items()} == {
        home: sorted(names) for home, names in table.items()
    }
    for name in modules:
        assert getattr(package, name) is importlib.import_module(f"{package.__name__}.{name}")
    for home, names in table.items():
        module = importlib.import_module(f"{package.__name__}.{home}")
        for name in names:
            assert getattr(package, name) is getattr(module, name), name
            assert name in dir(package), name


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_no_public_name_is_a_submodule(package: Any) -> None:
    """Importing a submodule would put it in the place of a public name that is called the same."""
    names = set(package.__all__) - set(lazy_modules(package))
    assert not {path.stem for path in Path(package.__file__).parent.iterdir()} & names


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_an_unknown_name_is_an_attribute_error(package: Any) -> None:
    """An unknown name raises AttributeError, as for any module, so that hasattr works."""
    assert not hasattr(package, "BlenderLauncher")
    with pytest.raises(AttributeError, match=rf"module '{package.__name__}' has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018


def test_the_public_names_are_as_pinned() -> None:
    """The package has the names that the design pins, and no others."""
    assert set(asyncblend.__all__) == {
        *("AsyncblendError", "BlenderNotFound", "ConfigError", "CrashLoop", "ForkedProcessError", "FrameTimeout"),
        *("Clip", "Episode", "EpisodeLost", "EpisodeOver", "SyncEpisode"),
        *("InstanceError", "InstanceExited", "ProtocolError", "RecordingError", "SampleError", "StartTimeout"),
        *("StreamClosed", "BlenderDataset", "MixedDataset", "RecordedDataset", "RestartPolicy", "StreamConfig"),
        *("Timeouts", "BlenderStream", "Frame", "Frames", "PassStats", "StreamStats", "SyncFrames", "SyncStream"),
        *("BlenderMapDataset", "Curriculum", "FleetLost", "WindowClosed", "collate", "verdict"),
    }
    assert set(blender.__all__) >= {"Camera", "Task", "render", "serve"}


def public_attributes(cls: type) -> set[str]:
    """Return the attributes without an underscore that our own classes define or set on themselves.

    Those that come from torch or the standard library do not count.
    """
    found: set[str] = set()
    for base in cls.__mro__:
        if base.__module__.split(".")[0] == "asyncblend":
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
            found |= {*vars(base), *vars(base).get("__annotations__", {})}
            found |= {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and dotted(node.value) == "self"
            }
    return {name for name in found if not name.startswith("_")}


def test_public_means_public() -> None:
    """What a public class shows without an underscore is pinned, so that nothing becomes public by accident."""
    found = {name: public_attributes(getattr(asyncblend, name)) for name in PUBLIC_ATTRIBUTES}
    assert found == PUBLIC_ATTRIBUTES
