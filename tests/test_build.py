"""What the build promises: no code of one instruction set where another is expected, one OpenMP
runtime, a dispatch that only goes down."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lanewise
from lanewise import _host

ROOT = Path(__file__).parents[1]
OBJECTS = ROOT / "build" / f"objects-{platform.machine()}"
PACKAGE = Path(lanewise.__file__).parent
TARGETS = list(_host.targets())

needs_objects = pytest.mark.skipif(
    not OBJECTS.exists(), reason="the package was installed from a wheel: no object files"
)
x86_only = pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 machine code")


def output(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@needs_objects
@pytest.mark.parametrize("target", TARGETS)
def test_symbols_stay_in_their_namespace(target: str) -> None:
    """A function that two targets define could be linked from the higher one: SIGILL elsewhere."""
    objects = list((OBJECTS / target).rglob("*.o"))
    assert len(objects) >= (2 if target == "amx" else 8)  # which stands on another
    for path in objects:
        for line in output("nm", "-C", "--defined-only", path).splitlines():
            kind, name = re.match(r"[0-9a-f]* +(\S) (.*)", line).groups()
            if not kind.isupper() and kind not in "vwu":
                continue  # local: no other object sees it
            subject = re.sub(r"^(vtable|typeinfo|typeinfo name|guard variable) for ", "", name)
            assert f"lanewise::{target}::" in subject or (kind == "V" and "DW.ref" in subject), (
                f"{path.name} defines {kind} {name} outside lanewise::{target}"
            )


@needs_objects
@x86_only
@pytest.mark.parametrize(
    ("target", "forbidden"),
    [
        ("generic", r"%[yz]mm"),
        ("avx2", r"%zmm|%k[0-7]\b"),
        ("wide", r"%zmm|%k[0-7]\b"),
        ("avx512bf16", r"%tmm"),
        ("common", r"%[yz]mm"),
    ],
)
def test_registers_are_the_targets_own(target: str, forbidden: str) -> None:
    objects = list((OBJECTS / target).rglob("*.o"))
    assert objects
    for path in objects:
        code = output("objdump", "-d", "--no-show-raw-insn", path)
        found = re.search(rf"^.*(?:{forbidden}).*$", code, re.MULTILINE)
        assert not found, f"{path.name} of {target} holds {found.group(0).strip()}"


@needs_objects
@x86_only
def test_the_wide_registers_are_used_where_they_exist() -> None:
    for target, register in (("avx2", "%ymm"), ("avx512", "%zmm")):
        code = output("objdump", "-d", OBJECTS / target / "csrc" / "gemm" / "kernel.o")
        assert code.count(register) > 100


@pytest.mark.parametrize("library", ["_ops.so", "_host.*.so"])
def test_one_openmp_runtime_is_needed(library: str) -> None:
    (path,) = PACKAGE.glob(library)
    needed = re.findall(r"NEEDED\s+(\S+)", output("objdump", "-p", path))
    assert [name for name in needed if "omp" in name] == ["libgomp.so.1"]


def test_one_openmp_runtime_is_loaded() -> None:
    run = python(
        "import torch, lanewise\n"
        "torch.ops.lanewise.rope(torch.ones(1, 4, 512, 64), *torch.ones(2, 512, 32))\n"
        "print(*{l.split()[-1] for l in open('/proc/self/maps') if 'omp' in l.rsplit('/', 1)[-1]})"
    )
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.split()) == 1
    assert "libgomp.so.1" in run.stdout


def test_unknown_instruction_set() -> None:
    run = python("import lanewise", LANEWISE_ISA="sse9")
    assert run.returncode != 0
    known = ", ".join(name for name in TARGETS if name != "wide")
    assert f"lanewise: LANEWISE_ISA must be one of {known}, got 'sse9'" in run.stderr


def test_the_test_target_cannot_be_chosen() -> None:
    run = python("import lanewise", LANEWISE_ISA="wide")
    assert run.returncode != 0
    assert "got 'wide'" in run.stderr


@pytest.mark.skipif(all(_host.targets().values()), reason="this CPU runs every set built")
def test_unusable_instruction_set() -> None:
    target = next(name for name, usable in _host.targets().items() if not usable)
    run = python("import lanewise", LANEWISE_ISA=target)
    assert run.returncode != 0
    assert (
        f"lanewise: instruction set '{target}' does not run on this CPU, which runs" in run.stderr
    )


@pytest.mark.parametrize("target", [t for t, ok in _host.targets().items() if ok and t != "wide"])
def test_lowering(target: str) -> None:
    run = python("from lanewise import _host; print(_host.isa())", LANEWISE_ISA=target)
    assert run.stdout.strip() == target, run.stderr


def test_thread_count_set_in_another_python_thread() -> None:
    """OpenMP's own setting belongs to a thread; a new one would get as many as there are cores."""
    run = python(
        """
import os, threading, torch, lanewise
x, angles = torch.ones(1, 64, 1024, 64), torch.ones(1024, 32)
wanted = os.cpu_count() + 2
torch.set_num_threads(wanted)
def call():
    before = set(os.listdir("/proc/self/task"))
    torch.ops.lanewise.rope(x, angles, angles)
    print(len(set(os.listdir("/proc/self/task")) - before) + 1 == wanted)
thread = threading.Thread(target=call)
thread.start()
thread.join()
"""
    )
    assert run.stdout.strip() == "True", run.stdout + run.stderr


WORKER = """
import multiprocessing, sys, torch, lanewise

def work(queue, threads):
    if threads:
        torch.set_num_threads(threads)
    x, sin = torch.ones(1, 64, 1024, 64), torch.zeros(1024, 32)
    queue.put(float(torch.ops.lanewise.rope(x, sin + 1, sin).sum()))

if __name__ == "__main__":
    torch.set_num_threads(2)
    context = multiprocessing.get_context(sys.argv[1])
    queue = context.SimpleQueue()
    work(queue, 2)  # the pool of threads is warm
    queue.get()
    child = context.Process(target=work, args=(queue, int(sys.argv[2])))
    child.start()
    child.join(60)
    print(child.exitcode, child.exitcode == 0 and queue.get())
    child.kill()
"""


@pytest.mark.parametrize(("method", "threads"), [("spawn", 2), ("fork", 1)])
def test_worker_processes(tmp_path: Path, method: str, threads: int) -> None:
    """Spawned workers do as they like; a forked one must set one thread (OpenMP's pool is gone)."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    run = subprocess.run(
        [sys.executable, script, method, str(threads)], capture_output=True, text=True, timeout=120
    )
    assert run.stdout.split() == ["0", str(64.0 * 1024 * 64)], run.stderr
