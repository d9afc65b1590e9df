"""What the evidence about GPU kernels is made of: keys, counts, the record, the model of speed, and
the command that shows them. Nothing here needs a GPU, and next to nothing is compiled."""

from __future__ import annotations

import json
import linecache
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("compiles for real: not under TRITON_INTERPRET", allow_module_level=True)

from lanewise.kernels.evidence import compile as compiler  # noqa: E402
from lanewise.kernels.evidence import page, record, rows  # noqa: E402
from lanewise.kernels.evidence.case import Promise  # noqa: E402
from lanewise.kernels.evidence.machine_code import (  # noqa: E402
    SASS_OPCODE,
    Facts,
    Opcodes,
    count_amdgcn,
    count_sass,
)
from lanewise.kernels.evidence.rows import Row  # noqa: E402
from lanewise.kernels.evidence.source import source_hash  # noqa: E402
from lanewise.kernels.evidence.speed_model import PEAKS, clocks, operands, predict, product  # noqa: E402

from lanewise.cli import gpu_report, main  # noqa: E402
from lanewise.explain import limits  # noqa: E402

ROW = Row("kernel", "case", "sm_90", "bf16", "M128 N128 K64 w8 s4", "key")
WGMMA = Facts(threads=256, registers=128, shared_bytes=65536, matrix_opcodes=("HGMMA.64x128x16",))


# --- keys ----------------------------------------------------------------------------------------


PLAIN = """
@triton.jit
def f(x):
    y = x + 1
    return y
"""


def key_of(source: str, folder: Path) -> str:
    """The hash of the function f of a module."""
    path = folder / "module.py"
    path.write_text(f"import triton\nimport triton.language as tl\n{source}")
    linecache.clearcache()
    space: dict[str, Any] = {"__name__": "module"}
    exec(compile(path.read_text(), str(path), "exec"), space)
    return source_hash(space["f"])


def test_a_key_ignores_what_no_compiler_reads(tmp_path: Path) -> None:
    quiet = PLAIN.replace("x + 1", "x + 1  # one more").replace("    y", "    # here\n\n    y")
    quiet = quiet.replace("(x):", '(x):\n    """Says much."""')
    assert "Says" in quiet
    assert "here" in quiet
    assert key_of(f"\n\n\n{quiet}", tmp_path) == key_of(PLAIN, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x + 1", "x + 2"),
        ("x + 1", "x - 1"),
        ("return y", 'return "y"'),
        ("y = x", "if x:\n        y = x"),
        ("jit", "jit(noinline=True)"),
    ],
)
def test_a_key_changes_with_the_code(tmp_path: Path, old: str, new: str) -> None:
    assert old in PLAIN
    assert key_of(PLAIN.replace(old, new), tmp_path) != key_of(PLAIN, tmp_path)


def test_a_block_that_ends_elsewhere_is_other_code(tmp_path: Path) -> None:
    inside = PLAIN.replace("    y = x + 1", "    if x:\n        x = 1\n        x = 2")
    outside = inside.replace("        x = 2", "    x = 2")
    assert key_of(inside, tmp_path) != key_of(outside, tmp_path)


def test_a_key_changes_with_what_the_code_calls_and_reads(tmp_path: Path) -> None:
    source = """
C = tl.constexpr({value})
@triton.jit
def g(x):
    return x {sign} 1
@triton.jit
def f(x):
    return g(x) + C
"""
    keys = {
        key_of(source.format(value=value, sign=sign), tmp_path) for value in (1, 2) for sign in "+-"
    }
    assert len(keys) == 4


def test_a_key_changes_with_how_machine_code_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    (row, *_) = rows.of_target("sm_90")
    monkeypatch.setattr(compiler, "module_hash", lambda module: "another")
    with pytest.raises(StopIteration):
        rows.launch_of(row)


def test_keys_are_the_same_in_another_process_and_place(tmp_path: Path) -> None:
    """Hashes of strings and the working directory differ there."""
    (row, *_) = rows.of_target("sm_90")
    ask = "from lanewise.kernels.evidence import rows; print(rows.of_target('sm_90')[0].key)"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.stdout.strip() == row.key, result.stderr


# --- counts --------------------------------------------------------------------------------------

SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R5], [R2.64] ;
        /*0020*/              @P1  LDGSTS.E [R5], [R2.64] ;
        /*0030*/                   UTMALDG.2D [UR8], [UR4] ;
        /*0040*/              @!UPT LDG.E.128 R4, desc[UR6][R2.64] ;
        /*0050*/                   LDG.E.U16 R4, [R2.64] ;
        /*0060*/                   LDGDEPBAR ;
        /*0070*/                   HMMA.16816.F32.BF16 R4, R4, R6, RZ ;
        /*0080*/                   UTCHMMA gdesc[UR8], gdesc[UR10] ;
        /*0090*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00a0*/                   STL.64 [R1], R4 ;
        /*00b0*/                   LDL R4, [R1] ;
        /*00c0*/                   MUFU.EX2 R4, R4 ;
        /*00d0*/                   MUFU.RCP R4, R4 ;
        /*00e0*/                   UTCBAR [UR4] ;
        /*00f0*/                   NOP ;
"""


def test_counts_of_nvidia() -> None:
    found = count_sass(Opcodes(re.findall(SASS_OPCODE, SASS, re.M)))
    assert found == {
        "spills": 1,
        "local": 2,
        "matrix_instructions": 2,
        "matrix_opcodes": ("HMMA.16816.F32.BF16", "UTCHMMA"),
        "async_copies": 3,
        "async_copies_16": 2,
        "loads": 2,
        "loads_16": 1,
        "barriers": 1,
        "exp2": 1,
        "instructions": 15,
    }


GCN = """
kernel:
	s_load_dwordx2 s[0:1], s[4:5], 0x0
	buffer_load_dwordx4 v[0:3], v4, s[8:11], 0 offen
	buffer_load_dwordx4 v5, s[8:11], 0 offen lds
	buffer_load_dword v5, s[8:11], 0 offen lds
	global_load_ushort v1, v[2:3], off
	v_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]
	s_barrier
	v_exp_f32_e32 v1, v1
	scratch_store_dword off, v1, s0
	.p2align 8
"""


def test_counts_of_amd() -> None:
    assert count_amdgcn(GCN) == {
        "local": 1,
        "matrix_instructions": 1,
        "matrix_opcodes": ("v_mfma_f32_32x32x8_bf16",),
        "async_copies": 2,
        "async_copies_16": 1,
        "loads": 2,
        "loads_16": 1,
        "barriers": 1,
        "exp2": 1,
        "instructions": 9,
    }


# --- the record ----------------------------------------------------------------------------------


def test_the_record_comes_back_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(record.dump({ROW: WGMMA}))
    assert record.known([ROW], record.load(path)) == {ROW: WGMMA}
    assert len(path.read_text().splitlines()) == 3


def test_another_key_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(record.dump({ROW: WGMMA}))
    changed = Row(*list(vars(ROW).values())[:5], key="another")
    assert record.known([changed], record.load(path)) == {}


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"kernel": "x"}]'])
def test_a_record_of_something_else_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    if text == "{}":
        assert record.load(path) == {}
        return
    with pytest.raises(ValueError, match="must be a JSON list of rows; renew it with"):
        record.load(path)


def test_the_sample_has_each_kernel_and_vendor_and_moves_with_the_source() -> None:
    def drawn(seed: int) -> list[str]:
        made = [
            Row(kernel, f"case {i}", target, "bf16", "w4 s1", f"{seed} {i} {kernel} {target}")
            for kernel in ("a", "b")
            for target in ("sm_80", "sm_90", "gfx942")
            for i in range(8)
        ]
        facts = {row: Facts(instructions=100 * int(row.case[-1])) for row in made}
        found = record.sample(made, facts)
        drawn_of = sorted((r.kernel, r.target[:2]) for r in found)
        assert drawn_of == [("a", "gf"), ("a", "sm"), ("b", "gf"), ("b", "sm")]
        assert all(facts[row].instructions < 400 for row in found)
        return [row.case for row in found]

    assert drawn(0) == drawn(0)
    assert len({tuple(drawn(seed)) for seed in range(8)}) > 1


# --- the model of speed, by hand -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "sixteen", "thirty_two"),
    [
        ("sm_80", 312e12, 156e12 / 3),
        ("sm_90", 989e12, 495e12 / 3),
        ("sm_100", 2250e12, 1125e12 / 3),
        ("gfx942", 1307e12, 163e12),
        ("gfx950", 2517e12, 157e12),
    ],
)
def test_rates_are_the_published_ones(target: str, sixteen: float, thirty_two: float) -> None:
    peaks = PEAKS[target]
    assert peaks.units * peaks.clock * peaks.flops16 == pytest.approx(sixteen, rel=0.01)
    assert peaks.units * peaks.clock * peaks.flops32 == pytest.approx(thirty_two, rel=0.01)


@pytest.mark.parametrize(
    ("target", "gpu"),
    [("sm_80", "a100"), ("sm_90", "h100"), ("sm_100", "b200"), ("gfx942", "mi300x")],
)
def test_rates_are_those_that_explain_names(target: str, gpu: str) -> None:
    peaks, machine = PEAKS[target], limits.GPUS[gpu]
    assert peaks.dram == pytest.approx(machine.bandwidth, rel=0.01)
    assert peaks.clock == pytest.approx(machine.clock, rel=0.01)
    flops = machine.flops[torch.bfloat16]
    assert peaks.units * peaks.clock * peaks.flops16 == pytest.approx(flops, rel=0.01)


def test_a_step_of_a_product_by_hand() -> None:
    """128 × 128 × 64 in bfloat16 on sm_90: 2·128·128·64 = 2097152 operations, 512 clocks at 4096.
    32768 bytes arrive; two groups of 64 rows read 16384 of a and twice 16384 of b: 81920 bytes in
    all, 640 clocks at 128. L2 gives 5120 / 132 bytes a clock and unit: 845 clocks."""
    step = product(ROW, {"M": 128, "N": 128, "K": 64}, WGMMA)
    assert (step.flops, step.shared, step.l2) == (2097152, 81920, 32768)
    found = clocks(step, "sm_90", 2)
    assert found.clocks["tensor"] == 512
    assert found.clocks["shared"] == 640
    assert found.clocks["L2"] == pytest.approx(844.8)
    assert found.bound == "L2"
    assert found.ceiling == pytest.approx(512 / 844.8)


def test_few_rows_are_bound_by_memory_and_large_tiles_are_not() -> None:
    few = Row("kernel", "case", "sm_90", "bf16", "M16 N64 K64 w4 s5", "key")
    narrow = Facts(threads=128, registers=56, shared_bytes=40960, matrix_opcodes=("HMMA.16816",))
    found = predict(few, narrow, Promise())
    assert found is not None
    assert found.bound == "DRAM"
    # 64 × 64 × 2 bytes at 3352 GB/s over 132 units of 1.83 GHz: 13.88 bytes a clock
    assert found.clocks["DRAM"] == pytest.approx(8192 / 13.88, rel=1e-3)

    large = Row("kernel", "case", "sm_90", "bf16", "M256 N256 K64 w8 s3", "key")
    best = predict(large, WGMMA, Promise())
    worse = predict(ROW, WGMMA, Promise())
    assert best is not None
    assert worse is not None
    assert best.ceiling is not None
    assert worse.ceiling is not None
    assert best.ceiling > worse.ceiling


def test_a_step_of_attention_by_hand() -> None:
    """128 queries, 64 keys, head 64 on sm_90: 4·128·64·64 = 2097152 operations, 512 clocks; 8192
    exponentials, 512 clocks at 16 too."""
    row = Row("attention", "case", "sm_90", "bf16", "M128 N64 D64 DV64 w8 s2", "key")
    found = predict(row, WGMMA, Promise())
    assert found is not None
    assert found.clocks["tensor"] == found.clocks["exp2"] == 512


def test_warps_of_attention_each_read_all_keys() -> None:
    """128 queries, 64 keys, head 128 on sm_80: 2048 clocks of products; 32768 bytes arrive, and
    eight warps of 16 rows read 16384 of keys and 16384 of values each: 294912 bytes, 2304 clocks.
    Four warps of 32 rows would read half."""
    row = Row("attention", "case", "sm_80", "bf16", "M128 N64 D128 DV128 w8 s3", "key")
    eight = Facts(threads=256, registers=128, shared_bytes=65536, matrix_opcodes=("HMMA.16816",))
    four = Facts(**{**vars(eight), "threads": 128})
    found = [predict(row, facts, Promise()) for facts in (eight, four)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].clocks["tensor"] == found[1].clocks["tensor"] == 2048
    assert found[0].clocks["shared"] == 2304
    assert found[1].clocks["shared"] == 1280
    assert (found[0].bound, found[0].ceiling) == ("shared", pytest.approx(2048 / 2304))


def test_a_program_that_owns_keys_streams_queries() -> None:
    row = Row("attention_backward_keys", "case", "sm_90", "bf16", "M32 N128 D64 w8 s2", "key")
    found = predict(row, WGMMA, Promise(rows=("N",)))
    assert found is not None
    assert found.clocks["tensor"] == 4 * 2 * 32 * 128 * 64 / 4096
    assert found.clocks["L2"] == pytest.approx(2 * 32 * 64 * 2 / (5120 / 132))


@pytest.mark.parametrize("kernel", ["tiled_gated_product", "persistent_gated_product"])
def test_a_gated_product_has_twice_the_columns(kernel: str) -> None:
    gated = Row(kernel, "case", "sm_90", "bf16", "M128 N64 K64 w8 s4", "key")
    assert predict(gated, WGMMA, Promise()) == predict(ROW, WGMMA, Promise())


def test_the_cheapest_arrangement_of_warps_is_counted() -> None:
    """Eight warps of mma.sync over 128 × 64: four below each other and two beside read rows twice
    and columns four times, 512 a column of K; two by four 2·64 + 128·4 = 640, eight by one 640."""
    eight = Facts(threads=256, matrix_opcodes=("HMMA.16816",))
    assert operands(128, 64, 1, 1, eight) == 512
    assert operands(64, 128, 1, 1, eight) == 512


def test_what_only_streams_has_no_ceiling() -> None:
    found = predict(ROW, WGMMA, Promise(products=False))
    assert found is not None
    assert (found.bound, found.ceiling) == ("DRAM", None)


def test_the_page_calls_the_model_a_model() -> None:
    assert "GPU speed: **not measured**" in page.INTRO
    assert "are a model, not measured" in page.INTRO
    assert all("model" in name for name in page.COLUMNS[-2:])


# --- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target", "sm_75"], "target must be one of sm_80, sm_90, sm_100, gfx942, gfx950, got"),
        (["--kernel", "conv"], "kernel must be one of "),
    ],
)
def test_a_wrong_name_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gpu-report", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err
    assert len(printed.err.splitlines()) == 1


def test_the_interpreter_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_report.triton.knobs.runtime, "interpret", True)
    assert main(["gpu-report"]) == 1
    assert "TRITON_INTERPRET must not be set" in capsys.readouterr().err


def test_an_installed_package_has_no_page_to_renew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(record, "DOCS", tmp_path / "docs")
    assert main(["gpu-report", "--write"]) == 1
    assert "--write must run in a checkout" in capsys.readouterr().err


class Stub:
    """Stands for the compilers: every row has the same facts."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.compiled: list[Row] = []

    def __call__(self, rows: Any, fresh: bool = False) -> Any:
        self.compiled += rows
        return ((row, self.facts) for row in rows)


GOOD = Facts(
    threads=256,
    registers=32,
    shared_bytes=1024,
    matrix_instructions=4,
    matrix_opcodes=("HGMMA.64x128x16.F32.BF16", "HMMA.16816.F32.BF16"),
    async_copies=8,
    async_copies_16=8,
    loads_16=8,
    wide_products=1,
)


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stub:
    stub = Stub(GOOD)
    monkeypatch.setattr(rows, "compile_all", stub)
    monkeypatch.setattr(record, "PATH", tmp_path / "gpu-evidence.json")
    monkeypatch.setattr(page, "PATH", tmp_path / "gpu-evidence.md")
    monkeypatch.setattr(record, "load", lambda load=record.load: load(record.PATH))
    return stub


def test_json_has_one_row_of_each_configuration(
    compilers: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gpu-report", "--target", "sm_90", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["key"] for row in found] == [row.key for row in rows.all_rows(["sm_90"])]
    due = {"kernel", "config", "target", "matrix_instructions", "spills", "registers"}
    for row in found:
        assert due | {"shared_bytes", "async_copies"} <= row.keys()
        assert row["target"] == "sm_90"
        assert row["registers"] == 32


def test_what_is_recorded_is_not_compiled_again(compilers: Stub) -> None:
    (kernel, *_) = rows.kernels()
    arguments = ["gpu-report", "--target", "sm_90", "--kernel", kernel]
    main([*arguments, "--write"])
    mine = rows.all_rows(["sm_90"], [kernel])
    assert compilers.compiled == mine
    main(arguments)
    assert compilers.compiled == mine
    main([*arguments, "--fresh"])
    assert compilers.compiled == 2 * mine


def test_write_renews_the_record_and_the_page(
    compilers: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["gpu-report", "--target", "sm_90", "--write"])
    assert "rows are still out of date" in capsys.readouterr().err
    main(["gpu-report", "--write"])
    assert "out of date" not in capsys.readouterr().err
    assert [entry["key"] for entry in json.loads(record.PATH.read_text())] == [
        row.key for row in rows.all_rows()
    ]
    assert page.PATH.read_text() == page.render(record.known(rows.all_rows(), record.load()))


def test_what_was_compiled_before_an_interruption_is_kept(
    compilers: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(missing: list[Row], fresh: bool) -> Any:
        yield missing[0], GOOD
        raise KeyboardInterrupt

    monkeypatch.setattr(rows, "compile_all", interrupted)
    assert main(["gpu-report", "--write"]) == 130
    assert [entry["key"] for entry in json.loads(record.PATH.read_text())] == [
        rows.all_rows()[0].key
    ]


def test_a_row_that_does_not_compile_is_one_sentence(
    compilers: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(missing: list[Row], fresh: bool) -> Any:
        yield missing[0], GOOD
        raise RuntimeError(f"lanewise: {missing[1].name} does not compile: out of registers")

    monkeypatch.setattr(rows, "compile_all", failing)
    assert main(["gpu-report"]) == 1
    assert capsys.readouterr().err.endswith("does not compile: out of registers\n")


def test_a_broken_promise_is_printed(compilers: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    compilers.facts = Facts(**{**vars(GOOD), "spills": 3})
    assert main(["gpu-report", "--target", "sm_90"]) == 1
    printed = capsys.readouterr()
    assert "3 registers spilled" in printed.err
    assert "GPU speed: not measured" in printed.out


def test_without_triton_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert main(["gpu-report"]) == 1
    assert "gpu-report needs the package triton" in capsys.readouterr().err
