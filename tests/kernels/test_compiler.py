"""Kernels that are compiled are refused where nothing compiles them, before anything is built."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.commands import TINY_DRIVE, TINY_TRAINING

TOLD = "torch.compile needs a C++ compiler on CPUs, and {} does not run: install g++, set CXX"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("command", "options", "kernels", "ops"),
    [
        ("generate", TINY_DRIVE, "fast", "triton"),
        ("train", TINY_TRAINING, "compiled", "compiled"),
    ],
)
def test_without_a_compiler_the_choice_is_refused_in_one_line(
    command, options, kernels, ops, tmp_path
):
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    (tmp_path / "empty").mkdir()
    kept = [option for option in options if not option.startswith("kernels")]
    done = subprocess.run(
        [sys.executable, "-m", f"lingbot.{command}", *kept, f"kernels={kernels}"],
        env={**environment, "PATH": str(tmp_path / "empty"), "CUDA_VISIBLE_DEVICES": "",
             "PYTHONPATH": os.getcwd()},
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line]
    assert line.startswith(f"lingbot-{command}: kernels.ops={ops}: {TOLD.format('g++')}")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.processes
@pytest.mark.parametrize("compiler", ["/nowhere/g++", "/"])
def test_a_compiler_that_does_not_run_is_named(compiler):
    code = "from lingbot.kernels import KernelConfig; KernelConfig(ops='compiled')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200,
        env={**os.environ, "CXX": compiler, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert f"ValueError: kernels.ops=compiled: {TOLD.format(compiler)}" in done.stderr
