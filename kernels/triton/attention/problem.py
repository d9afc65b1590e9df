"""What the launchers of attention check of their arguments, in the words of csrc/attention."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .. import check

MAX_HEAD_SIZE = 512
LARGEST = torch.finfo(torch.float32).max


def check_tensors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    op: str = "attention",
) -> None:
    """Of padded sequences: q [B, H, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv, Sk, Dv]."""
    check_operands(op, q, k, v, ranks=(4, 4), heads_at=1)
    for name, x in (("k", k), ("v", v)):
        check.require_same(op, name, "batch size", x.size(0), "q", q.size(0))
    require_count(op, "v", v.size(2), "tokens", "k", k.size(2))
    check_extras(op, bias, sinks, alibi_slopes, (*q.shape[:3], k.size(2)), q.device)


def check_packed(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    bias: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
) -> None:
    """Of packed sequences: q [Tq, H, D], k [Tk, Hkv, D], v [Tk, Hkv, Dv]."""
    check_operands(op, q, k, v, ranks=(3, 3), heads_at=1)
    check_starts(op, "q", cu_seqlens_q, max_seqlen_q, q)
    check_starts(op, "k", cu_seqlens_k, max_seqlen_k, k)
    require_count(op, "v", v.size(0), "tokens", "k", k.size(0))
    batch, batch_k = cu_seqlens_q.size(0) - 1, cu_seqlens_k.size(0) - 1
    require_count(op, "cu_seqlens_k", batch_k, "sequences", "cu_seqlens_q", batch)
    scores = (batch, q.size(1), max_seqlen_q, max_seqlen_k)
    check_extras(op, bias, sinks, alibi_slopes, scores, q.device)


def check_paged(
    op: str,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cu_seqlens_q: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    max_seqlen_q: int,
    bias: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
) -> None:
    """Of packed queries over pages: q [Tq, H, D], k_cache [blocks, block_size, Hkv, D], v_cache."""
    check_operands(
        op, q, k_cache, v_cache, names=("q", "k_cache", "v_cache"), ranks=(3, 4), heads_at=2
    )
    check_same_blocks(op, k_cache, v_cache)
    check_starts(op, "q", cu_seqlens_q, max_seqlen_q, q)
    batch, (blocks, block_size) = cu_seqlens_q.size(0) - 1, k_cache.shape[:2]
    check.require_device(op, "block_table", block_table, q.device)
    check.require_dtype(op, "block_table", block_table, torch.int32)
    check.require(
        block_table.dim() == 2 and block_table.size(0) == batch,
        op,
        f"block_table must have shape [{batch}, blocks of a sequence],"
        f" got {list(block_table.shape)}",
    )
    check.require_device(op, "context_lens", context_lens, q.device)
    check.require_dtype(op, "context_lens", context_lens, torch.int32)
    check.require(
        list(context_lens.shape) == [batch],
        op,
        f"context_lens must have shape {[batch]}, got {list(context_lens.shape)}",
    )
    if check.index_values_checked():
        check_pages(op, cu_seqlens_q, block_table, context_lens, blocks, block_size)
    scores = (batch, q.size(1), max_seqlen_q, block_table.size(1) * block_size)
    check_extras(op, bias, sinks, alibi_slopes, scores, q.device)


# --- operands ------------------------------------------------------------------------------------


def check_operands(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    names: tuple[str, str, str] = ("q", "k", "v"),
    ranks: tuple[int, int],
    heads_at: int,
) -> None:
    """`ranks` are those of q, and of k and v; `heads_at` is the dimension of k's and v's heads, q's
    is 1."""
    name_k, name_v = names[1:]
    for name, x, rank in zip(names, (q, k, v), (ranks[0], ranks[1], ranks[1]), strict=True):
        check.require_device(op, name, x, q.device)
        check.require_floating(op, name, x)
        check.require(
            x.dtype == q.dtype,
            op,
            f"{name} must have q's dtype {check.name_of(q.dtype)}, got {check.name_of(x.dtype)}",
        )
        check.require_rank(op, name, x, rank)
        check.require(
            1 <= x.size(-1) <= MAX_HEAD_SIZE,
            op,
            f"{name} must have a head size from 1 to {MAX_HEAD_SIZE}, got {x.size(-1)}",
        )
        check.require_unit_stride(op, name, x)
    heads, heads_k, heads_v = q.size(1), k.size(heads_at), v.size(heads_at)
    check.require_same(op, name_k, "head size", k.size(-1), "q", q.size(-1))
    check.require(
        heads % heads_k == 0 if heads_k else heads == 0,
        op,
        f"{name_k} has {heads_k} heads, which does not divide q's {heads}",
    )
    require_count(op, name_v, heads_v, "heads", name_k, heads_k)


def require_count(op: str, name: str, got: int, what: str, other: str, due: int) -> None:
    check.require(got == due, op, f"{name} has {got} {what}, which is not {other}'s {due}")


def check_same_blocks(op: str, k_cache: Tensor, v_cache: Tensor) -> None:
    blocks, block_size = k_cache.shape[:2]
    check.require(
        block_size >= 1,
        op,
        f"k_cache must have blocks of at least 1 token, got shape {list(k_cache.shape)}",
    )
    require_count(op, "v_cache", v_cache.size(0), "blocks", "k_cache", blocks)
    check.require(
        v_cache.size(1) == block_size,
        op,
        f"v_cache has blocks of {v_cache.size(1)} tokens, which is not k_cache's {block_size}",
    )


# --- options -------------------------------------------------------------------------------------


def check_extras(
    op: str,
    bias: Tensor | None,
    sinks: Tensor | None,
    alibi_slopes: Tensor | None,
    scores: tuple[int, int, int, int],
    device: torch.device,
) -> None:
    """`scores` [B, H, Sq, Sk] is what the bias broadcasts to."""
    batch, heads = scores[:2]
    if bias is not None:
        check.require_device(op, "bias", bias, device)
        check.require(
            bias.dtype == torch.bool or bias.dtype in check.FLOATING,
            op,
            f"bias must be bool, float32, bfloat16 or float16, got {check.name_of(bias.dtype)}",
        )
        shape = list(bias.shape)
        check.require(
            bias.dim() <= 4, op, f"bias must have at most 4 dimensions, got shape {shape}"
        )
        check.require(
            all(b in (1, s) for b, s in zip(shape[::-1], scores[::-1], strict=False)),
            op,
            f"bias of shape {shape} does not broadcast to {list(scores)}",
        )
    if sinks is not None:
        check.require_device(op, "sinks", sinks, device)
        check.require_floating(op, "sinks", sinks)
        check.require(
            list(sinks.shape) == [heads],
            op,
            f"sinks must have shape {[heads]}, got {list(sinks.shape)}",
        )
    if alibi_slopes is not None:
        check.require_device(op, "alibi_slopes", alibi_slopes, device)
        check.require_dtype(op, "alibi_slopes", alibi_slopes, torch.float32)
        shape = list(alibi_slopes.shape)
        check.require(
            shape in ([heads], [batch, heads]),
            op,
            f"alibi_slopes must have shape {[heads]} or {[batch, heads]}, got {shape}",
        )


def check_options(
    window_left: int, window_right: int, softcap: float, scale: float, op: str = "attention"
) -> None:
    for name, window in (("window_left", window_left), ("window_right", window_right)):
        check.require(window >= -1, op, f"{name} must be at least -1, got {window}")
    check.require_finite(op, "softcap", softcap)
    check.require(softcap >= 0, op, f"softcap must not be negative, got {softcap:g}")
    check.require(
        softcap == 0 or 1e-30 <= softcap <= 1e30,
        op,
        f"softcap must be 0 or between 1e-30 and 1e30, got {softcap:g}",
    )
    check.require_finite(op, "scale", scale)
    # The factor of the products: to be scores in units of log 2, or what the cap is applied to.
    factor = scale / softcap if softcap else scale * math.log2(math.e)
    check.require(abs(factor) <= LARGEST, op, f"scale is too large for float32, got {scale:g}")


# --- indexes -------------------------------------------------------------------------------------


def check_starts(
    op: str, tokens: str, starts: Tensor, longest: int, x: Tensor, whose: str | None = None
) -> None:
    """Of cu_seqlens_q or cu_seqlens_k; `tokens` is the q or k whose tokens x they count, and
    `whose` what the caller of `op` calls x if not that."""
    name, bound = f"cu_seqlens_{tokens}", f"max_seqlen_{tokens}"
    check.require_device(op, name, starts, x.device)
    check.require(
        starts.dtype in (torch.int32, torch.int64),
        op,
        f"{name} must be int32 or int64, got {check.name_of(starts.dtype)}",
    )
    check.require(
        starts.dim() == 1 and starts.size(0) >= 1,
        op,
        f"{name} must have shape [batch + 1], got {list(starts.shape)}",
    )
    check.require(longest >= 0, op, f"{bound} must not be negative, got {longest}")
    if not check.index_values_checked():
        return
    at = starts.tolist()
    check.require(at[0] == 0, op, f"{name} must start at 0, got {at[0]}")
    for before, after in pairwise(at):
        check.require(after >= before, op, f"{name} must not decrease, got {before} before {after}")
    check.require(
        at[-1] == x.size(0),
        op,
        f"{name} must end at {whose or tokens}'s {x.size(0)} tokens, got {at[-1]}",
    )
    length = max((after - before for before, after in pairwise(at)), default=0)
    check.require(
        length <= longest,
        op,
        f"{name} has a sequence of {length} tokens, more than {bound}, {longest}",
    )


def check_pages(
    op: str, starts: Tensor, table: Tensor, context_lens: Tensor, blocks: int, block_size: int
) -> None:
    """That each sequence's keys lie in blocks that exist; only the entries they need are read."""
    own = starts.diff().tolist()
    rows, entries = table.tolist(), table.size(1)
    for b, context in enumerate(context_lens.tolist()):
        keys = f"context_lens counts {context} keys for sequence {b}"
        check.require(
            context >= 0,
            op,
            f"context_lens must not be negative, got {context} for sequence {b}",
        )
        check.require(context >= own[b], op, f"{keys}, fewer than its {own[b]} queries")
        needed = -(-context // block_size)
        check.require(
            needed <= entries,
            op,
            f"{keys}, more than block_table's {entries} blocks of {block_size} hold",
        )
        for i, block in enumerate(rows[b][:needed]):
            check.require(
                0 <= block < blocks,
                op,
                f"block_table must hold indices of k_cache's {blocks} blocks,"
                f" got {block} for block {i} of sequence {b}",
            )


# --- writing the cache ---------------------------------------------------------------------------


def check_write(
    op: str, k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor
) -> None:
    for name, x, cache_name, cache in (("k", k, "k_cache", k_cache), ("v", v, "v_cache", v_cache)):
        for each, t in ((name, x), (cache_name, cache)):
            check.require_device(op, each, t, k.device)
        check.require_floating(op, name, x)
        for each, t, other, due in ((name, x, "k", k), (cache_name, cache, name, x)):
            check.require(
                t.dtype == due.dtype,
                op,
                f"{each} must have {other}'s dtype {check.name_of(due.dtype)},"
                f" got {check.name_of(t.dtype)}",
            )
        check.require_rank(op, name, x, 3)
        check.require_rank(op, cache_name, cache, 4)
        require_count(op, name, x.size(0), "tokens", "k", k.size(0))
        require_count(op, name, x.size(1), "heads", "k", k.size(1))
        require_count(op, cache_name, cache.size(2), "heads", name, x.size(1))
        check.require_same(op, cache_name, "head size", cache.size(3), name, x.size(2))
        check.require_unit_stride(op, name, x)
        check.require_unit_stride(op, cache_name, cache)
        for d, (extent, stride) in enumerate(zip(cache.shape, cache.stride(), strict=True)):
            check.require(
                extent <= 1 or stride != 0,
                op,
                f"{cache_name} must not be expanded, since it is written,"
                f" got stride 0 in dimension {d}",
            )
    check_same_blocks(op, k_cache, v_cache)
    check.require_device(op, "slots", slots, k.device)
    check.require_dtype(op, "slots", slots, torch.int64)
    check.require(
        list(slots.shape) == [k.size(0)],
        op,
        f"slots must have shape {[k.size(0)]}, got {list(slots.shape)}",
    )
    if check.index_values_checked():
        check_slots(op, slots, k_cache.size(0) * k_cache.size(1))


def check_slots(op: str, slots: Tensor, places: int) -> None:
    """Each is a place of the cache or -1, and none but -1 comes twice."""
    at = slots.tolist()
    for token, slot in enumerate(at):
        check.require(
            -1 <= slot < places,
            op,
            f"slots must be -1 or one of the cache's {places} places, got {slot} for token {token}",
        )
    taken = sorted((slot, token) for token, slot in enumerate(at) if slot >= 0)
    for (slot, token), (next_slot, next_token) in pairwise(taken):
        check.require(
            slot != next_slot,
            op,
            f"slots must not repeat, got {slot} for tokens {token} and {next_token}",
        )
