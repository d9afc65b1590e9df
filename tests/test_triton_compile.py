"""Every shipped Triton configuration compiles for every GPU we name, and its machine code keeps the
promises of the tile tables. Nothing here runs on a GPU, and nothing here is a claim of speed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("compiles for real: not under TRITON_INTERPRET", allow_module_level=True)

from lanewise.kernels import target  # noqa: E402
from lanewise.kernels.evidence import catalogue, page, record, rows  # noqa: E402
from lanewise.kernels.evidence.case import Promise, rows_anywhere  # noqa: E402
from lanewise.kernels.evidence.compile import GPUS  # noqa: E402
from lanewise.kernels.evidence.machine_code import Facts  # noqa: E402
from lanewise.kernels.evidence.promises import broken  # noqa: E402
from lanewise.kernels.evidence.rows import Row  # noqa: E402
from lanewise.kernels.table import TABLES, watch  # noqa: E402

ROWS = rows.all_rows()
RECORDED = record.load()
KNOWN = record.known(ROWS, RECORDED)
STALE = [row for row in ROWS if row not in KNOWN]
SAMPLE = record.sample([row for row in ROWS if row in KNOWN], KNOWN)
FEW = 40  # more stale rows are not compiled here, where minutes count

Compiled = dict[Row, "Future[Facts]"]


@pytest.fixture(scope="session")
def compiled() -> Iterator[Compiled]:
    """What is compiled now: the sample, and what the record does not know."""
    with rows.workers(2) as pool:
        yield {row: pool.submit(rows.compile_row, row, True) for row in STALE[:FEW] + SAMPLE}
        pool.shutdown(cancel_futures=True)


def facts_of(row: Row, request: pytest.FixtureRequest) -> Facts:
    if row in KNOWN:
        return KNOWN[row]
    if row in STALE[FEW:]:
        pytest.fail(f"{len(STALE)} rows of the evidence are out of date: run {record.RENEW}")
    return request.getfixturevalue("compiled")[row].result()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_machine_code_keeps_its_promises(row: Row, request: pytest.FixtureRequest) -> None:
    assert broken(row, facts_of(row, request), catalogue.promises()[row.kernel]) == []


@pytest.mark.parametrize("row", SAMPLE, ids=lambda row: row.name)
def test_what_is_recorded_is_what_compiles(compiled: Compiled, row: Row) -> None:
    """Of each kernel and GPU one configuration, another after every change of the source."""
    assert compiled[row].result() == KNOWN[row], f"run {record.RENEW} --fresh"


def test_the_record_is_of_these_kernels() -> None:
    entries = [{k: str(v) for k, v in record.to_json(row, Facts()).items()} for row in ROWS]
    due = [[entry[k] for k in ("kernel", "config", "target", "tile", "key")] for entry in entries]
    got = [[e[k] for k in ("kernel", "config", "target", "tile", "key")] for e in RECORDED.values()]
    assert got == due, f"docs/gpu-evidence.json is out of date: run {record.RENEW}"


def test_the_page_shows_the_record() -> None:
    assert page.PATH.read_text() == page.render(KNOWN), f"run {record.RENEW}"


@pytest.mark.parametrize("name", GPUS)
def test_every_row_of_every_table_is_compiled(name: str) -> None:
    architecture = target.ARCHITECTURES[name]
    with target.record(architecture, lambda *_: None), watch() as used:
        for case in catalogue.cases().values():
            case.launch("meta")
            with rows_anywhere():
                case.launch("meta")
    shipped = {
        (table.name, name, problem)
        for table in TABLES.values()
        for problem in {**table.rows.get(architecture.tiles, {}), **table.rows.get(name, {})}
    }
    assert shipped - set(used) == set()


# --- each promise can be broken ------------------------------------------------------------------

GOOD = Facts(
    threads=256,
    registers=128,
    spills=0,
    stack=0,
    shared_bytes=65536,
    matrix_instructions=8,
    matrix_opcodes=("HGMMA.64x128x16.F32.BF16",),
    async_copies=8,
    async_copies_16=8,
    loads=4,
    loads_16=2,
    local=0,
    barriers=8,
    exp2=0,
    wide_products=2,
    instructions=1000,
)
ROW = Row("kernel", "linear large bf16 4096", "sm_90", "bf16", "M128 N128 K64 w8 s4", "key")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"spills": 1}, "1 registers spilled"),
        ({"stack": 16}, "16 bytes of stack"),
        ({"local": 3}, "3 accesses to local memory"),
        ({"shared_bytes": (227 << 10) + 1}, "232449 bytes of shared memory, of 232448"),
        ({"registers": 129}, "1 programs fit a unit, not 2"),
        ({"shared_bytes": 114 << 10}, "1 programs fit a unit, not 2"),
        ({"threads": 1024, "registers": 64}, "1 programs fit a unit, not 2"),
        ({"matrix_opcodes": ("HMMA.16816.F32.BF16",)}, "no matrix instruction HGMMA"),
        ({"matrix_opcodes": ()}, "no matrix instruction HGMMA"),
        ({"async_copies": 0, "async_copies_16": 0}, "0 of 0 asynchronous copies move 16 bytes"),
        ({"async_copies": 99}, "8 of 99 asynchronous copies move 16 bytes"),
        ({"loads_16": 0, "async_copies_16": 0}, "no 16 bytes of global memory at a time"),
        ({"wide_products": 0}, "no offset is multiplied in 64 bits"),
        ({"barriers": 129}, "129 barriers, more than 128"),
    ],
    ids=str,
)
def test_a_broken_promise_is_noticed(wrong: dict, sentence: str) -> None:
    assert broken(ROW, GOOD, Promise(resident=2)) == []
    found = broken(ROW, dataclasses.replace(GOOD, **wrong), Promise(resident=2))
    assert sentence in " ".join(found)


def test_rows_that_start_anywhere_may_not_spill_either() -> None:
    row = dataclasses.replace(ROW, divisible=False)
    loads = dataclasses.replace(GOOD, async_copies=0, async_copies_16=0, loads_16=0)
    assert broken(row, loads, Promise()) == []
    assert broken(row, dataclasses.replace(loads, spills=1), Promise()) == ["1 registers spilled"]


def test_warps_that_do_not_specialize_are_noticed() -> None:
    promise = Promise(specialized=("sm_90",))
    assert broken(ROW, dataclasses.replace(GOOD, threads=384), promise) == []
    assert broken(ROW, GOOD, promise) == ["256 threads: warps do not specialize"]
    assert broken(ROW, GOOD, Promise(specialized=("sm_100",))) == []


def test_tensor_memory_holds_the_programs() -> None:
    row = dataclasses.replace(ROW, target="sm_100")
    facts = dataclasses.replace(GOOD, matrix_opcodes=("UTCHMMA",), tensor_columns=256)
    assert broken(row, facts, Promise(resident=2)) == []
    full = dataclasses.replace(facts, tensor_columns=257)
    assert "1 programs fit a unit, not 2" in broken(row, full, Promise(resident=2))
    assert "0 programs fit a unit, not 1" in broken(
        row, dataclasses.replace(facts, tensor_columns=513), Promise()
    )


@pytest.mark.parametrize(
    ("architecture", "opcode"),
    [("sm_80", "HMMA.1"), ("sm_90", "HGMMA.6"), ("sm_100", "UTCHMMA"), ("gfx942", "v_mfma_f32")],
)
def test_matrix_instructions_are_of_the_right_generation(architecture: str, opcode: str) -> None:
    row = dataclasses.replace(ROW, target=architecture)
    others = {"HMMA.1", "HGMMA.6", "UTCHMMA", "v_mfma_f32"} - {opcode}
    small = dataclasses.replace(GOOD, shared_bytes=1024)
    assert broken(row, dataclasses.replace(small, matrix_opcodes=(opcode,)), Promise()) == []
    for other in others:
        assert broken(row, dataclasses.replace(small, matrix_opcodes=(other,)), Promise()) != []
    few = dataclasses.replace(row, tile="M16 N64 K64 w4 s4")
    narrow = broken(few, dataclasses.replace(small, matrix_opcodes=("HMMA.1",)), Promise())
    assert (narrow == []) == architecture.startswith("sm_")


def test_without_alignment_nothing_arrives_by_16_bytes(request: pytest.FixtureRequest) -> None:
    """Rows that start anywhere show that the counts of 16-byte accesses are read, not assumed."""
    plain = [row for row in ROWS if not row.divisible]
    missing = {row.kernel for row in ROWS} - {row.kernel for row in plain}
    for row in (row for row in ROWS if row.kernel in missing):
        assert rows.launch_of(row).takes_descriptors, row.name
    for row in plain:
        facts = facts_of(row, request)
        assert facts.async_copies_16 == facts.loads_16 == 0, row.name
