"""lanewise.paged_attention and paged_cache_write: the keys are found wherever their blocks lie."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from attention_calls import Call, check_forward, extras
from hypothesis import given
from hypothesis import strategies as st
from numerics import assert_no_worse_than, assert_same_bits, assert_threads_agree
from strategies import DTYPES, LAYOUTS, dtypes, randn, seeds
from test_attention_varlen import Lengths, starts
from torch import Tensor

import lanewise

HOLE = -(2**31)  # an entry that must never be followed


def paged_call(
    lengths: Lengths,
    block_size: int,
    dtype: torch.dtype,
    *,
    kv_heads: int = 2,
    group: int = 3,
    dims: tuple[int, int] = (40, 24),
    spare: int = 2,
    shared: bool = False,
    layout: str = "contiguous",
    seed: int = 0,
) -> Call:
    """Shuffled blocks, NaN in every place that no key takes, holes in the table past the keys.

    `shared`: every sequence begins with the blocks of the first, as far as both are full.
    """
    generator = torch.Generator().manual_seed(seed)
    queries, contexts = [q for q, _ in lengths], [k for _, k in lengths]
    needed = [-(-k // block_size) for k in contexts]
    blocks = sum(needed) + spare
    order = torch.randperm(blocks, generator=generator).int()
    table = torch.full((len(lengths), max(needed, default=0) + spare), HOLE, dtype=torch.int32)
    used = torch.zeros(blocks, block_size, dtype=torch.bool)
    for b, (context, count) in enumerate(zip(contexts, needed, strict=True)):
        table[b, :count], order = order[:count], order[count:]
        if shared:
            full = min(context, contexts[0]) // block_size
            table[b, :full] = table[0, :full]
        places = torch.arange(context)
        used[table[b, places // block_size].long(), places % block_size] = True
    caches = [
        randn((blocks, block_size, kv_heads, dim), dtype, seed + i, layout).clone()
        if layout == "expanded"
        else randn((blocks, block_size, kv_heads, dim), dtype, seed + i, layout)
        for i, dim in enumerate(dims)
    ]
    for cache in caches:
        cache[~used] = math.nan
    return Call(
        {
            "q": randn((sum(queries), kv_heads * group, dims[0]), dtype, seed + 2, layout),
            "k_cache": caches[0],
            "v_cache": caches[1],
            "cu_seqlens_q": starts(queries),
            "block_table": table,
            "context_lens": torch.tensor(contexts, dtype=torch.int32),
        },
        {"max_seqlen_q": max(queries, default=0)},
        "paged_attention",
    )


BLOCK_SIZES = (1, 3, 16, 128)


@st.composite
def paged_calls(draw: st.DrawFn, dtype: torch.dtype) -> Call:
    """Prompts, chunks of prompts and single tokens, whose contexts hold them at least."""
    one = st.tuples(
        st.sampled_from((0, 1, 1, 1, 5, 33, 70)), st.sampled_from((0, 1, 3, 16, 40, 129))
    )
    lengths = [(new, new + old) for new, old in draw(st.lists(one, max_size=4))]
    dim = draw(st.sampled_from((1, 8, 17, 64)))
    call = paged_call(
        lengths,
        draw(st.sampled_from(BLOCK_SIZES)),
        dtype,
        kv_heads=draw(st.integers(1, 3)),
        group=draw(st.sampled_from((1, 2, 3, 5, 8))),
        dims=(dim, draw(st.sampled_from((dim, 5, 24)))),
        spare=draw(st.sampled_from((0, 2))),
        shared=draw(st.booleans()),
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(seeds) % 2**20,
    )
    call.options["max_seqlen_q"] += draw(st.sampled_from((0, 3)))
    heads, table = call.tensors["q"], call.tensors["block_table"]
    cache = call.tensors["k_cache"]
    assert heads is not None
    assert table is not None
    assert cache is not None
    keys = table.shape[1] * cache.shape[1]
    scores = (len(lengths), heads.shape[1], call.options["max_seqlen_q"], keys)
    extra = draw(extras(scores, dtype))
    return Call({**call.tensors, **extra.tensors}, {**call.options, **extra.options}, call.op)


@given(data=st.data(), dtype=dtypes)
def test_forward(data: st.DataObject, dtype: torch.dtype) -> None:
    check_forward(data.draw(paged_calls(dtype)))


MIXED = [(70, 70), (1, 300), (0, 9), (5, 130), (1, 1), (0, 0), (3, 3)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_prompts_chunks_and_single_tokens(
    block_size: int, shared: bool, dtype: torch.dtype
) -> None:
    call = paged_call(MIXED, block_size, dtype, shared=shared)
    call.options.update(causal=True, window_left=100)
    call.tensors["sinks"] = randn((6,), dtype, 4)
    out, lse = call.ours()
    assert out.isfinite().all()
    exact_out, exact_lse = call.solved()
    alone_out, alone_lse = call.solved(lanewise.attention)
    assert_no_worse_than(out, exact_out, alone_out)
    assert_no_worse_than(lse, exact_lse, alone_lse)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_size_of_blocks_changes_no_bit(dtype: torch.dtype) -> None:
    whole = paged_call([(7, 90), (1, 128)], 128, dtype)
    expected = whole.ours()
    k, v = whole.tensors["k_cache"], whole.tensors["v_cache"]
    table = whole.tensors["block_table"]
    assert k is not None
    assert v is not None
    assert table is not None
    for size in (1, 4, 32):
        parts = 128 // size
        split = (table.long()[..., None] * parts + torch.arange(parts)).flatten(1)
        out = whole(
            lanewise.paged_attention,
            k_cache=k.view(-1, size, *k.shape[2:]),
            v_cache=v.view(-1, size, *v.shape[2:]),
            block_table=split.int(),
        )
        for a, b in zip(out, expected, strict=True):
            assert_same_bits(a, b)


def test_strided_tables_and_lengths() -> None:
    call = paged_call(MIXED, 3, torch.float32)
    expected = call.ours()
    table, context = call.tensors["block_table"], call.tensors["context_lens"]
    assert table is not None
    assert context is not None
    wide = torch.cat([table, torch.full((len(table), 50), HOLE, dtype=torch.int32)], 1)
    for changes in (
        {"block_table": wide},
        {"block_table": table.mT.contiguous().mT},
        {"block_table": wide[:, : table.shape[1]]},
        {"context_lens": context.repeat_interleave(2)[::2]},
    ):
        for a, b in zip(call(lanewise.paged_attention, **changes), expected, strict=True):
            assert_same_bits(a, b)


def test_no_sequences_and_an_empty_cache() -> None:
    call = paged_call([], 4, torch.float32, spare=0)
    out, lse = call.ours()
    assert out.shape == (0, 6, 24)
    assert lse.shape == (6, 0)
    assert paged_call([(0, 0), (0, 0)], 4, torch.float32, spare=0).ours()[0].shape == (0, 6, 24)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_agree(dtype: torch.dtype) -> None:
    call = paged_call([(1, 700), (130, 200), (1, 33)], 16, dtype)
    call.options.update(causal=True)
    assert_threads_agree(call.ours)


# --- writing the cache ---------------------------------------------------------------------------


def caches(
    dtype: torch.dtype, blocks: int, block_size: int, layout: str = "contiguous"
) -> tuple[Tensor, Tensor]:
    return (
        randn((blocks, block_size, 2, 40), dtype, 1, layout),
        randn((blocks, block_size, 2, 24), dtype, 2, layout),
    )


@given(
    dtype=dtypes,
    block_size=st.sampled_from(BLOCK_SIZES),
    tokens=st.sampled_from((0, 1, 2, 5, 33, 200)),
    layout=st.sampled_from(LAYOUTS),
    cache_layout=st.sampled_from(("contiguous", "transposed", "sliced")),
    skip=st.booleans(),
    seed=seeds,
)
def test_cache_write(
    dtype: torch.dtype,
    block_size: int,
    tokens: int,
    layout: str,
    cache_layout: str,
    skip: bool,
    seed: int,
) -> None:
    k = randn((tokens, 2, 40), dtype, seed, layout)
    v = randn((tokens, 2, 24), dtype, seed + 1, layout)
    blocks = tokens // block_size + 2
    ours, expected = (caches(dtype, blocks, block_size, cache_layout) for _ in range(2))
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(blocks * block_size, generator=generator)[:tokens]
    if skip:
        slots[::2] = -1
    lanewise.paged_cache_write(k, v, *ours, slots)
    reference.paged_cache_write(k, v, *expected, slots)
    for a, b in zip(ours, expected, strict=True):
        assert_same_bits(a, b)


def test_what_was_written_is_attended() -> None:
    """A prompt in two chunks and one token more, against one call over all keys."""
    q, k, v = randn((50, 6, 40)), randn((50, 2, 40), seed=1), randn((50, 2, 24), seed=2)
    k_cache, v_cache = (torch.full((9, 7, 2, dim), math.nan) for dim in (40, 24))
    table = torch.tensor([[3, 8, 0, 5, 1, 2, 6, 7]], dtype=torch.int32)
    slots = (table[0].long()[:, None] * 7 + torch.arange(7)).flatten()[:50]
    out = []
    for begin, end in ((0, 20), (20, 49), (49, 50)):
        new = slice(begin, end)
        lanewise.paged_cache_write(k[new], v[new], k_cache, v_cache, slots[new])
        context = torch.tensor([end], dtype=torch.int32)
        start = torch.tensor([0, end - begin])
        out.append(
            lanewise.paged_attention(
                q[new], k_cache, v_cache, start, table, context, end - begin, causal=True
            )[0]
        )
    heads_first = [t.transpose(0, 1)[None] for t in (q, k, v)]
    whole, _ = lanewise.attention(*heads_first, causal=True)
    exact, _ = reference.attention(*heads_first, causal=True)
    assert_no_worse_than(torch.cat(out), exact[0].transpose(0, 1), whole[0].transpose(0, 1))


@pytest.mark.parametrize(
    "slots", [[0, 1, 99], [5, -2, 3], [4, 7, 4], [-1, 9, 9], [2**40, 0, 1]], ids=str
)
def test_a_refused_write_writes_nothing(slots: list[int]) -> None:
    ours, before = caches(torch.float32, 4, 3), caches(torch.float32, 4, 3)
    k, v = randn((3, 2, 40)), randn((3, 2, 24))
    with pytest.raises(RuntimeError, match=r"^lanewise\.paged_cache_write: slots must "):
        lanewise.paged_cache_write(k, v, *ours, torch.tensor(slots))
    for a, b in zip(ours, before, strict=True):
        assert_same_bits(a, b)


def test_slots_may_have_any_stride_and_be_all_skipped() -> None:
    ours, expected = caches(torch.float32, 4, 3), caches(torch.float32, 4, 3)
    k, v = randn((3, 2, 40)), randn((3, 2, 24))
    lanewise.paged_cache_write(k, v, *ours, torch.tensor([-1, -1, -1]))
    assert_same_bits(ours[0], expected[0])
    slots = torch.tensor([7, 0, 0, 5, 3, 1])[::2]
    lanewise.paged_cache_write(k, v, *ours, slots)
    reference.paged_cache_write(k, v, *expected, slots)
    assert_same_bits(ours[0], expected[0])
    assert_same_bits(ours[1], expected[1])


def test_keys_and_values_may_share_a_buffer() -> None:
    buffer = torch.zeros(2, 4, 3, 2, 24)
    k, v = randn((2, 2, 24)), randn((2, 2, 24), seed=1)
    lanewise.paged_cache_write(k, v, buffer[0], buffer[1], torch.tensor([11, 2]))
    assert torch.equal(buffer[0, [3, 0], [2, 2]], k)
    assert torch.equal(buffer[1, [3, 0], [2, 2]], v)
    assert int((buffer != 0).any(-1).sum()) == 8


@pytest.mark.cpu
def test_cache_write_threads_agree() -> None:
    k, v = randn((500, 2, 40)), randn((500, 2, 24), seed=1)

    def run() -> tuple[Tensor, ...]:
        written = caches(torch.float32, 70, 8)
        lanewise.paged_cache_write(k, v, *written, torch.arange(500).flip(0))
        return written

    assert_threads_agree(run)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_code_writes_the_cache_in_place(backend: str) -> None:
    """And in order: what is read after the write sees it, what was read before does not."""
    torch._dynamo.reset()

    def step(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> Tensor:
        before = k_cache.sum()
        lanewise.paged_cache_write(k * 2, v, k_cache, v_cache, slots)
        return torch.stack([before, k_cache.sum(), v_cache.sum()])

    k, v, slots = randn((3, 2, 40)), randn((3, 2, 24)), torch.tensor([4, -1, 0])
    ours, expected = caches(torch.float32, 4, 3), caches(torch.float32, 4, 3)
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(k, v, *ours, slots), step(k, v, *expected, slots))
    for a, b in zip(ours, expected, strict=True):
        assert_same_bits(a, b)


class Write(torch.nn.Module):
    def forward(
        self, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor
    ) -> Tensor:
        lanewise.paged_cache_write(k, v, k_cache, v_cache, slots)
        return k_cache.sum() + v_cache.sum()


def test_an_exported_functional_graph_writes_the_cache() -> None:
    k, v, slots = randn((3, 2, 40)), randn((3, 2, 24)), torch.tensor([4, -1, 0])
    exported = torch.export.export(Write(), (k, v, *caches(torch.float32, 4, 3), slots))
    functional = exported.run_decompositions().module()
    ours, expected = caches(torch.float32, 4, 3), caches(torch.float32, 4, 3)
    assert_same_bits(functional(k, v, *ours, slots), Write()(k, v, *expected, slots))
    for a, b in zip(ours, expected, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("name", ["k", "v", "k_cache", "v_cache"])
def test_a_write_has_no_gradient_and_says_so(name: str) -> None:
    k_cache, v_cache = caches(torch.float32, 4, 3)
    tensors = {"k": randn((1, 2, 40)), "v": randn((1, 2, 24)), "k_cache": k_cache}
    tensors["v_cache"] = v_cache
    tensors[name].requires_grad_()
    slots = torch.tensor([5])
    with pytest.raises(RuntimeError, match=r"^lanewise\.paged_cache_write: .*torch\.no_grad"):
        lanewise.paged_cache_write(**tensors, slots=slots)
    with torch.no_grad():
        lanewise.paged_cache_write(**tensors, slots=slots)
    assert torch.equal(k_cache[1, 2], tensors["k"][0])
