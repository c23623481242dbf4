"""The Dockerfile, the files for clusters, and the script for SLURM: as right as can be told without Docker and a cluster."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from asyncblend.cli import app

ROOT = Path(__file__).parents[2]
HOME = "/home/ray/asyncblend"
"""Where the repository stands in the image."""
FILES = ["Dockerfile", "examples/ray-cluster.yaml", "examples/ray-kuberay.yaml", "examples/ray-slurm.sh"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
every_file = pytest.mark.parametrize("file", FILES)

INSTRUCTIONS = {
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER"),
    *("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
}
"""All that Docker knows."""

JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy", "entrypoint"),
    *("entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId", "managedBy", "metadata"),
    *("preRunningDeadlineSeconds", "rayClusterSpec", "runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode"),
    *("submitterConfig", "submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
}
CLUSTER = {
    *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec"),
    *("headServiceAnnotations", "historyServerOptions", "managedBy", "networkPolicy", "rayVersion", "suspend"),
    *("tlsOptions", "upgradeStrategy", "workerGroupSpecs"),
}
HEAD = {
    *("enableIngress", "headService", "ingressOptions", "labels", "rayStartParams", "resources", "serviceType"),
    "template",
}
WORKERS_NEED = {"groupName", "maxReplicas", "minReplicas", "template"}
WORKERS = WORKERS_NEED | {
    *("idleTimeoutSeconds", "labels", "numOfHosts", "priority", "rayStartParams", "replicas", "resources"),
    *("scaleStrategy", "suspend"),
}
"""The fields that KubeRay 1.7 defines for a RayJob, its cluster, and the groups of that."""


def text_of(file: str) -> str:
    """Return a file's text, in which the paths of the image are those of the repository."""
    return (ROOT / file).read_text(encoding="utf-8").replace(f"{HOME}/", "")


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments."""
    joined = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(first, rest) for first, _, rest in (line.partition(" ") for line in lines)]


@functools.cache
def base() -> tuple[str, str]:
    """Return the versions of Ray and of Python in the image that the Dockerfile starts from."""
    found = re.fullmatch(r"rayproject/ray:(\d+\.\d+\.\d+)-py(\d)(\d+)", dict(dockerfile())["FROM"])
    assert found
    return found[1], f"{found[2]}.{found[3]}"


def documents(file: str) -> list[Any]:
    """Return what a YAML file has."""
    yaml = pytest.importorskip("yaml", reason='pip install ".[ray]"')
    return list(yaml.safe_load_all((ROOT / file).read_text(encoding="utf-8")))


# -- the image ---------------------------------------------------------------------------------------------------


def test_the_dockerfile_has_only_what_docker_knows() -> None:
    """It starts from an image, copies the repository, and does not end as root."""
    names = [name for name, _ in dockerfile()]
    assert names[0] == "FROM"
    assert set(names) <= INSTRUCTIONS
    arguments = dict(dockerfile())  # the last of each
    assert arguments["WORKDIR"] == HOME
    assert arguments["USER"] == "ray"
    assert arguments["COPY"].split()[-2:] == [".", "."]


def test_the_image_has_a_ray_and_a_python_that_asyncblend_supports() -> None:
    """The extras allow that Ray, and have a Blender for that Python."""
    ray, python = base()
    extras = PROJECT["optional-dependencies"]
    needs = {need.name: need for need in map(Requirement, extras["ray"])}
    assert needs["ray"].specifier.contains(ray)
    assert SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
    markers = [Requirement(need).marker for need in extras["bpy"]]
    assert any(marker and marker.evaluate({"python_version": python}) for marker in markers)


def test_the_image_has_the_libraries_of_the_makefile() -> None:
    """The same Debian packages, and what of NVIDIA's driver CUDA, OptiX and EGL need."""
    wanted = re.findall(r"(\S+):lib\S+\.so\.\d+", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(wanted) > 5
    (command,) = (rest for name, rest in dockerfile() if name == "RUN" and "apt-get" in rest)
    words = command.partition(" install ")[2].partition("&&")[0].split()
    assert [word for word in words if not word.startswith("-")] == wanted
    name, _, value = dict(dockerfile())["ENV"].partition("=")
    assert name == "NVIDIA_DRIVER_CAPABILITIES"
    assert set(value.split(",")) == {"compute", "utility", "graphics"}


def test_what_git_ignores_does_not_go_into_the_image() -> None:
    """Neither a virtual environment nor what was rendered."""
    left_out = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    patterns = [pattern.lstrip("*/") for pattern in left_out]
    assert ".git" in patterns
    for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split():
        name = line.strip("/").lstrip("*/")
        assert any(Path(name).match(pattern) for pattern in patterns), line


# -- the clusters ------------------------------------------------------------------------------------------------


def test_rays_launcher_takes_its_file() -> None:
    """Ray fills in its defaults and checks the outcome, as `ray up` does. It would refuse a word that it does not know."""
    util = pytest.importorskip("ray.autoscaler._private.util", reason='pip install ".[ray]"')
    (config,) = documents("examples/ray-cluster.yaml")
    whole = util.prepare_config(config)
    util.validate_config(whole)
    assert whole["max_workers"] == len(config["provider"]["worker_ips"])
    with pytest.raises(Exception, match="'dokcer' was unexpected"):
        util.validate_config({**whole, "dokcer": {}})
    assert "--env=RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_kuberay_knows_all_fields_of_its_file() -> None:
    """Nothing is misspelt or missing, and what is named twice is named alike."""
    claim, job = documents("examples/ray-kuberay.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"].keys() <= JOB
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster.keys() <= CLUSTER
    assert cluster["rayVersion"] == base()[0]
    assert cluster["authOptions"] == {"mode": "token"}
    head, (workers,) = cluster["headGroupSpec"], cluster["workerGroupSpecs"]
    assert head.keys() <= HEAD
    assert WORKERS_NEED <= workers.keys() <= WORKERS
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    (launchers,) = documents("examples/ray-cluster.yaml")
    for group in (head, workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,), (volume,) = pod["containers"], pod["volumes"]
        assert container["image"] == launchers["docker"]["image"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        (mount,) = container["volumeMounts"]
        assert mount["name"] == volume["name"]
        assert f"--out {mount['mountPath']}" in job["spec"]["entrypoint"]
    assert workers["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


@pytest.fixture
def srun(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """Run the script for SLURM with what SLURM sets and no more. Return the arguments and the environment of srun."""
    stand_in = tmp_path / "srun"
    stand_in.write_text('#!/bin/sh\nenv > "$SEEN/environment"\nprintf "%s\\n" "$@" > "$SEEN/arguments"\n')
    stand_in.chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    slurm = {"SLURM_JOB_NUM_NODES": "4", "SLURM_CPUS_PER_TASK": "8", "SLURMD_NODENAME": "node7"}
    done = subprocess.run(
        ["bash", "examples/ray-slurm.sh", "--samples", "64", "--blender", "a b"],
        cwd=ROOT, env={**slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEN": str(tmp_path)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "environment").read_text(encoding="utf-8").splitlines()
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    return (tmp_path / "arguments").read_text(encoding="utf-8").splitlines(), environment


def test_slurm_starts_ray_once_on_each_node(srun: tuple[list[str], dict[str, str]]) -> None:
    """srun gets all tasks and their CPUs, and Ray the nodes, a token of this job, and the program with its arguments."""
    arguments, environment = srun
    assert arguments == [
        *("--ntasks=4", "--cpus-per-task=8"),
        *("ray", "symmetric-run", "--address", "node7:6379", "--min-nodes", "4", "--num-cpus=8", "--"),
        *("python", "-u", "examples/ray_train.py", "--address", "auto", "--samples", "64", "--blender", "a b"),
    ]
    assert environment["RAY_AUTH_MODE"] == "token"
    assert re.fullmatch(r"[0-9a-f]{64}", environment["RAY_AUTH_TOKEN"])


def test_slurm_sets_what_the_script_reads() -> None:
    """bash can read the script, and what it asks of SLURM sets SLURM_CPUS_PER_TASK and starts one Ray on each node."""
    script = ROOT / "examples/ray-slurm.sh"
    assert os.access(script, os.X_OK)
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    text = script.read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert len(asked) == text.count("\n#SBATCH ")
    assert asked.keys() >= {"nodes", "cpus-per-task", "gpus-per-node", "exclusive"}
    assert asked["ntasks-per-node"] == "1"


def test_ray_knows_the_command_that_slurm_runs(srun: tuple[list[str], dict[str, str]]) -> None:
    """Ray's own parsers take the options of `ray symmetric-run`, and those which that hands to `ray start`."""
    scripts = pytest.importorskip("ray.scripts.scripts", reason='pip install ".[ray]"')
    symmetric_run = pytest.importorskip("ray.scripts.symmetric_run", reason='pip install ".[ray]"')
    arguments, environment = srun
    rays = arguments[arguments.index("symmetric-run") + 1 : arguments.index("--")]
    left = symmetric_run.curate_and_validate_ray_start_args(rays)
    assert left == ["--num-cpus=8"]
    assert scripts.start.make_context("start", ["--head", *left]).params["num_cpus"] == 8
    (name,) = (name for name in environment if name.startswith("RAY_SYMMETRIC_RUN_"))
    assert name in Path(symmetric_run.__file__).read_text(encoding="utf-8")


# -- all of them -------------------------------------------------------------------------------------------------


@every_file
def test_each_says_what_to_type_and_what_it_names_is_here(file: str) -> None:
    """On top stand the commands; files, extras, commands and options of the example exist."""
    text = text_of(file)
    lines = [line for line in text.splitlines() if not line.startswith("#!")]
    top = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    assert any(line.startswith("#     ") for line in top)
    named = re.findall(r"(?<![\w/.~-])(?:asyncblend|blender_scripts|examples|tests)/[\w./-]*\w", text)
    assert any(name.startswith("examples/") for name in named)
    for name in named:
        assert (ROOT / name).exists(), name
    for extras in re.findall(r"\"\.\[([\w,]+)\]\"", text):
        assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    commands = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    for command in re.findall(r"asyncblend asyncblend (\w+)", text):
        assert command in commands
    example = (ROOT / "examples/ray_train.py").read_text(encoding="utf-8")
    known = set(re.findall(r"add_argument\(\"(--[a-z]+)\"", example))
    for options in re.findall(r"ray(?:_train\.py|-slurm\.sh)(?: |\n +)(--[^'\n]*)", text):
        assert set(re.findall(r"--[a-z-]+", options)) <= known, options


@every_file
def test_no_address_is_anybodys(file: str) -> None:
    """Addresses and hosts are those that are kept for documentation."""
    text = text_of(file)
    assert all(address.startswith("192.0.2.") for address in re.findall(r"\d+\.\d+\.\d+\.\d+", text))
    assert set(re.findall(r"[\w.-]+\.(?:com|org|net)\b", text)) <= {
        "nvidia.com",  # of the name of a resource
        "registry.example.com",
    }
