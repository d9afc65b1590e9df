"""A wheel of the checkout installs anywhere and is whole; the sdist can build one."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the objects of the checkout's own build, so that it takes seconds."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        *(sys.executable, "-m", "pip", "wheel", ROOT, "--no-build-isolation", "--no-deps", "-q"),
        *("-w", folder),
    )
    (path,) = folder.glob("lanewise-*.whl")
    return path


def test_wheel_holds_everything(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    python_files = {
        f"{package}/{path.relative_to(ROOT / folder)}"
        for package, folder in (
            ("lanewise", "python/lanewise"),
            ("lanewise/kernels", "kernels/triton"),
        )
        for path in (ROOT / folder).rglob("*.py")
    }
    assert python_files <= names
    assert "lanewise/_ops.so" in names
    assert any(name.startswith("lanewise/_host.") and name.endswith(".so") for name in names)
    assert not [name for name in names if name.startswith(("kernels/", "tests/", "csrc/"))]


CHECK = """
import os, torch, lanewise, lanewise.kernels
from lanewise import _host
assert os.path.dirname(lanewise.__file__).startswith({venv!r}), lanewise.__file__
x = torch.randn(2, 3, 4, 8)
angle = torch.zeros(4, 4)
assert torch.equal(lanewise.rope(x, angle + 1, angle), x)
print(_host.isa())
"""


def test_wheel_works_in_a_venv_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """The new venv borrows torch from this one, and nothing of the checkout that it runs in."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    (site,) = venv.glob("lib/python*/site-packages")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel)
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir()
    for entry in Path(torch.__file__).parents[1].iterdir():
        if "lanewise" not in entry.name and entry.suffix != ".pth":
            (borrowed / entry.name).symlink_to(entry)
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    assert run(venv / "bin/python", "-c", CHECK.format(venv=str(venv)), cwd=ROOT).strip()


def test_the_other_package_named_kernels_stays_itself() -> None:
    """Root folder kernels/ is no package, so Hugging Face's is found from the checkout as well."""
    pytest.importorskip("kernels")
    program = "import lanewise, kernels; print(kernels.__file__); import lanewise.kernels"
    where = Path(run(sys.executable, "-c", program).strip())
    assert ROOT not in where.parents or "site-packages" in where.parts


def test_sdist_holds_what_a_build_needs(tmp_path: Path) -> None:
    run(sys.executable, "setup.py", "-q", "egg_info", "-e", tmp_path, "sdist", "-d", tmp_path)
    (path,) = tmp_path.glob("lanewise-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    sources = {
        str(p.relative_to(ROOT))
        for folder in ("csrc", "python/lanewise", "kernels", "tests")
        for p in (ROOT / folder).rglob("*")
        if p.suffix in (".cpp", ".h", ".py")
    }
    assert sources <= names
    assert {"setup.py", "pyproject.toml", "Makefile", "LICENSE"} <= names
    assert not [name for name in names if name.endswith((".so", ".o"))]
