"""Builds lanewise: torch-free kernels once per instruction set, linked into two extensions.

`lanewise/_ops.so` holds the torch ops on the LibTorch stable ABI and needs no Python;
`lanewise._host` is a pybind11 module over the same kernels. Metadata and tool settings are in
pyproject.toml.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from torch.utils.cpp_extension import include_paths as torch_include_paths
from torch.utils.cpp_extension import library_paths as torch_library_paths

ROOT = Path(__file__).parent.resolve()

# Compiler flags of every instruction set, lowest level first: the order of the dispatch.
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
X86 = {
    "generic": [],
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512bf16": [*AVX512, "-mavx512bf16"],
}
ARM64 = {
    "generic": ["-DLANEWISE_LANES=4"],
    "neon": ["-march=armv8.2-a+fp16"],
}
# Targets that stand on the one before them in the dispatch: what it is compiled with besides, and
# the sources that are its own. All else is the other's.
AMX_FLAGS = ["-mamx-tile", "-mamx-bf16"]
ADDITIONS = {
    "amx": ("avx512bf16", AMX_FLAGS, [f"csrc/{f}/amx.cpp" for f in ("attention", "gemm", "probe")])
}
TARGETS = {"x86_64": X86, "amd64": X86, "aarch64": ARM64, "arm64": ARM64}[
    platform.machine().lower()
]
# The 16-lane source lowered to 8-lane registers: lets a machine without AVX-512 test that logic. It
# is not there to be fast, and -O3 would take twice as long.
TEST_TARGETS = {"wide": [*AVX2, "-DLANEWISE_LANES=16", "-O2"]} if TARGETS is X86 else {}
if chosen := os.environ.get("LANEWISE_BUILD_TARGETS", "").split():  # fewer, for sanitizers
    TARGETS = {name: flags for name, flags in TARGETS.items() if name in chosen}
    TEST_TARGETS = {name: flags for name, flags in TEST_TARGETS.items() if name in chosen}

ADDITIONS = {name: added for name, added in ADDITIONS.items() if added[0] in TARGETS}

# The oldest torch whose stable ABI offers all that we call: 2.10.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"

COMMON = [
    "-std=c++20",
    "-O3",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",  # g++ 12 says it of its own AVX-512 intrinsics
    "-Wno-unknown-pragmas",
    f"-I{ROOT / 'csrc'}",
]
# For sanitizers and other experiments, after all other flags; CFLAGS would reach setuptools' own.
EXTRA = shlex.split(os.environ.get("LANEWISE_CFLAGS", ""))
LINK = ["-fopenmp", *shlex.split(os.environ.get("LANEWISE_LDFLAGS", ""))]


def sources(pattern: str) -> list[str]:
    """Paths relative to the root, sorted so that a build is the same everywhere."""
    return sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").glob(pattern))


KERNELS = [*sources("*/kernel*.cpp"), "csrc/dispatch/table.cpp"]
HELPERS = ["csrc/dispatch/cpu.cpp", "csrc/dispatch/scratch.cpp"]


class BuildKernels(build_ext):
    """Compiles every source with its own flags, in parallel, and only when something changed."""

    def finalize_options(self) -> None:
        given = self.build_temp
        super().finalize_options()
        # One object serves both extensions, and an editable build keeps its objects.
        self.build_temp = given or str(ROOT / "build" / f"objects-{platform.machine()}")

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.split(".")[-1] == "_ops":  # loaded by torch.ops.load_library, not imported
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def compile_one(self, source: str, variant: str, flags: list[str]) -> str:
        flags = [*flags, *EXTRA]
        obj = Path(self.build_temp, variant, source).with_suffix(".o")
        command = obj.with_suffix(".cmd")
        depfile = obj.with_suffix(".d")
        words = " ".join([*self.compiler.compiler_so, *flags])
        if not (command.exists() and command.read_text() == words and is_fresh(obj, depfile)):
            obj.parent.mkdir(parents=True, exist_ok=True)
            self.spawn(
                [
                    *(*self.compiler_cxx(), "-fPIC", *flags, "-MMD", "-MF", str(depfile)),
                    *("-c", source, "-o", str(obj)),
                ]
            )
            command.write_text(words)
        return str(obj)

    def compiler_cxx(self) -> list[str]:
        return shlex.split(os.environ.get("CXX", "")) or ["g++"]

    def knows(self, flags: list[str]) -> bool:
        """Whether the compiler takes these flags."""
        probe = [*self.compiler_cxx(), *flags, "-E", "-x", "c++", os.devnull, "-o", os.devnull]
        return subprocess.run(probe, capture_output=True).returncode == 0

    def jobs(self, ext: Extension) -> list[tuple[str, str, list[str]]]:
        """(source, variant, flags) of every object that `ext` is linked from."""
        host = ext.name.endswith("_host")
        targets = {**TARGETS, **TEST_TARGETS} if host else TARGETS
        additions = {name: a for name, a in ADDITIONS.items() if self.knows(a[1])}
        names = [*TARGETS, *additions, *(TEST_TARGETS if host else {})]
        choose = "-DLANEWISE_TARGETS=" + " ".join(f"X({name})" for name in names)
        jobs = [
            (source, name, [*COMMON, *flags, f"-DLANEWISE_TARGET={name}"])
            for name, flags in targets.items()
            for source in KERNELS
        ]
        for name, (base, own, files) in additions.items():
            flags = [*COMMON, *TARGETS[base]]
            both = [f"-DLANEWISE_TARGET={name}", f"-DLANEWISE_BASE={base}"]
            table = [f"-DLANEWISE_TARGET={base}", f"-DLANEWISE_TABLE={name}"]
            jobs += [(source, name, [*flags, *own, *both]) for source in files]
            jobs += [("csrc/dispatch/table.cpp", name, [*flags, *table])]
        jobs += [(source, "common", COMMON) for source in HELPERS]
        variant = "host" if host else "ops"
        jobs += [("csrc/dispatch/choose.cpp", variant, [*COMMON, choose])]
        if host:
            includes = [f"-I{pybind11.get_include()}", *(f"-I{d}" for d in self.include_dirs)]
            faces = ["csrc/host.cpp", *sources("*/host.cpp")]
            return jobs + [(s, variant, [*COMMON, "-O1", *includes]) for s in faces]
        # Torch's headers are not ours to warn about.
        includes = [f"-isystem{d}" for d in torch_include_paths()]
        faces = ["csrc/library.cpp", *sources("*/op*.cpp")]
        return jobs + [(s, variant, [*COMMON, "-O2", TORCH_TARGET, *includes]) for s in faces]

    def build_extension(self, ext: Extension) -> None:
        workers = self.parallel or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(workers) as pool:
            objects = list(pool.map(lambda job: self.compile_one(*job), self.jobs(ext)))
        output = Path(self.get_ext_fullpath(ext.name))
        output.parent.mkdir(parents=True, exist_ok=True)
        if is_newer_than_all(output, objects):
            return
        libraries: list[str] = []
        if ext.name.endswith("_ops"):
            libraries = [f"-L{d}" for d in torch_library_paths()] + ["-ltorch_cpu", "-lc10"]
        self.spawn(
            [*self.compiler_cxx(), "-shared", *objects, *LINK, *libraries, "-o", str(output)]
        )


def is_fresh(obj: Path, depfile: Path) -> bool:
    """Whether an object is newer than every file that the compiler read to make it."""
    if not (obj.exists() and depfile.exists()):
        return False
    dependencies = depfile.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    return is_newer_than_all(obj, dependencies)


def is_newer_than_all(output: Path, inputs: list[str]) -> bool:
    if not output.exists():
        return False
    made = output.stat().st_mtime
    return all(os.path.exists(i) and os.stat(i).st_mtime <= made for i in inputs)


setup(
    ext_modules=[Extension("lanewise._ops", []), Extension("lanewise._host", [])],
    cmdclass={"build_ext": BuildKernels},
)
