"""The package as others get it: the wheel, its pins, and a drive from anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.commands import TINY_DRIVE


@pytest.fixture(scope="module")
def project(repository) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(repository, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=repository, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    source = out / "source"
    for name in filter(None, files):
        if (repository / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((repository / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run([*build, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_the_list_of_packages_is_the_tree(project, repository):
    ours = {
        ".".join(path.parent.relative_to(repository).parts)
        for path in (repository / "lingbot").rglob("__init__.py")
    }
    listed = project["tool"]["setuptools"]["packages"]
    assert set(listed) == ours | {"lingbot.callbacks", "lingbot.conf"}
    assert listed == sorted(listed)


FOR_GPUS = {"nvidia-cudnn-frontend"}  # of no use, and not installed, where there is none


def test_every_requirement_is_pinned_as_it_is_installed(project, repository):
    lines = (repository / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): pin for name, pin in pins.items()}
    asked = list(project["project"]["dependencies"])
    for extra in project["project"]["optional-dependencies"].values():
        asked += extra
    for requirement in map(Requirement, asked):
        pin = pins[canonicalize_name(requirement.name)]
        assert pin in requirement.specifier, requirement
        if requirement.name not in FOR_GPUS:
            assert version(requirement.name).split("+")[0] == pin


def test_the_wheel_holds_modules_configuration_and_licence(wheel, repository):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("lingbot", "lingbot"), ("conf", "lingbot/conf"),
                           ("callbacks", "lingbot/callbacks")):  # fmt: skip
        for path in (repository / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".safetensors", ".json"):
                assert f"{inside}/{path.relative_to(repository / folder)}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names} == {"lingbot", wheel_info(wheel)}


def test_no_top_level_callbacks_or_conf_is_installed(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert not tops & {"callbacks", "conf", "tests"}


def wheel_info(wheel: Path) -> str:
    return "-".join(wheel.name.split("-")[:2]) + ".dist-info"


@pytest.mark.processes
@pytest.mark.timeout(400)
def test_the_wheel_drives_a_world_from_another_folder(wheel, tmp_path):
    home = tmp_path / "environment"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps"]
    done = subprocess.run([*install, "--quiet", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (site,) = (home / "lib").glob("python*/site-packages")
    # as plain path: a .pth of ours for the editable checkout is not followed there
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    command = [str(home / "bin" / "lingbot-generate"), *TINY_DRIVE, "num_steps=1"]
    done = subprocess.run(
        command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(list(elsewhere.glob("outputs/generate/*/drive.mp4"))) == 1
    look = "import lingbot.generate, lingbot.train, sys; print(lingbot.__file__, *sys.modules)"
    done = subprocess.run(
        [str(python), "-c", look], cwd=elsewhere, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    file, *modules = done.stdout.split()
    assert Path(file).is_relative_to(home)
    assert "wandb" not in modules  # only where it is chosen


def test_console_scripts_are_the_modules_there_are(project):
    for target in project["project"]["scripts"].values():
        module, function = target.split(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_makefile_and_continuous_integration_are_runnable(repository):
    assert os.access(repository / ".ci" / "run", os.X_OK)
    done = subprocess.run(
        ["make", "-n", "demo", "test", "lint"], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
