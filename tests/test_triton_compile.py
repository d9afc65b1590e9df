"""Every shipped Triton configuration compiles for every GPU we name, and its machine code keeps the
promises of the tile tables. Nothing here runs on a GPU, and nothing here is a claim of speed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("compiles for real: not under TRITON_INTERPRET", allow_module_level=True)

from lanewise.kernels import target  # noqa: E402
from lanewise.kernels.evidence import aot  # noqa: E402

CASES = [(a, c) for a in aot.GPUS for c in aot.cases()]
NVIDIA = [(a, c) for a, c in CASES if a.startswith("sm_")]
ALIGNED = [(a, c) for a, c in CASES if aot.cases()[c].aligned]


Compiled = dict[tuple[str, str], "Future[aot.Report]"]


@pytest.fixture(scope="session")
def compiled() -> Iterator[Compiled]:
    with aot.workers() as pool:
        yield {case: pool.submit(aot.report, *case) for case in CASES}
        pool.shutdown(cancel_futures=True)


def rows(report: aot.Report) -> int:
    return int(report.tile.split("×")[0])


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_everything_fits(compiled: Compiled, case: tuple[str, str]) -> None:
    report = compiled[case].result()
    assert report.shared <= target.ARCHITECTURES[report.architecture].shared
    # One program at least must fit a unit: 65536 registers, or 512 per lane of 4 waves on CDNA.
    registers = 65536 if report.architecture.startswith("sm_") else 512 * 256
    assert report.registers * report.threads <= registers


@pytest.mark.parametrize("case", ALIGNED, ids=" ".join)
def test_nothing_spills(compiled: Compiled, case: tuple[str, str]) -> None:
    """Rows that start anywhere are read element by element: their pointers may spill, no others."""
    report = compiled[case].result()
    assert report.spills == 0
    assert report.stack == 0


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_products_run_on_matrix_units(compiled: Compiled, case: tuple[str, str]) -> None:
    """Warp-group and tensor-memory instructions take 64 rows or more, mma.sync fewer."""
    report = compiled[case].result()
    wide = {
        "sm_80": "HMMA",
        "sm_90": "HGMMA",
        "sm_100": "UTC[HQ]MMA",
        "gfx942": "v_mfma_f32",
        "gfx950": "v_mfma_f32",
    }
    if report.architecture.startswith("gfx"):
        opcode = "v_mfma_f32"
    else:
        opcode = wide[report.architecture] if rows(report) >= 64 else "HMMA"
    assert report.count(opcode) > 0


@pytest.mark.parametrize("case", [c for c in NVIDIA if c in ALIGNED], ids=" ".join)
def test_tiles_arrive_by_asynchronous_16_byte_copies(
    compiled: Compiled, case: tuple[str, str]
) -> None:
    """All of them but those of a bias, whose tile may be too small for 16 bytes a thread."""
    report = compiled[case].result()
    copies, wide = report.count("LDGSTS"), report.count(r"LDGSTS\.E.*\.128")
    has_bias = case[1].startswith(("attention scored", "attention few"))
    assert wide > 0
    assert has_bias or wide == copies


@pytest.mark.parametrize("case", [c for c in ALIGNED if c not in NVIDIA], ids=" ".join)
def test_tiles_arrive_by_16_byte_loads(compiled: Compiled, case: tuple[str, str]) -> None:
    """The bias alone is read by the element, where a tile reaches past the last key."""
    report = compiled[case].result()
    assert report.count("(global|buffer)_load_dwordx4") > 0
    if "bare" in case[1] or "large" in case[1]:
        assert report.count("(global|buffer)_load_(ushort|short)") == 0


def test_a_compile_without_alignment_facts_would_be_noticed(compiled: Compiled) -> None:
    """The check above can fail: rows of 1001 elements start anywhere, so none is legal."""
    report = compiled["sm_80", "linear large bf16 1001"].result()
    assert report.count(r"LDGSTS\.E.*\.128") == 0
