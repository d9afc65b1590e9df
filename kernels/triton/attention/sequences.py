"""Which tokens a sequence owns, and where its keys lie. What the index tensors say is not trusted:
nothing outside is ever pointed at, and a sequence whose indexes are wrong is known to be.
"""

# Triton, not Python, types a kernel's arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def owned_tokens(p_starts, i_b, batch, tokens, longest):
    """(first token, number of tokens, right) of sequence `i_b`, in the type of `tokens`.

    Sequences that are not right own what is left of their range inside the `tokens`; the first one
    owns all that comes before it, the last one all that follows, so that somebody owns every token.
    """
    begin = tl.load(p_starts + i_b).to(tl.int64)
    end = tl.load(p_starts + i_b + 1).to(tl.int64)
    right = (begin >= 0) & (begin <= end) & (end <= tokens) & (end - begin <= longest)
    right = right & ((begin == 0) | (i_b > 0)) & ((end == tokens) | (i_b < batch - 1))
    begin = tl.where(i_b == 0, 0, tl.minimum(tl.maximum(begin, 0), tokens))
    end = tl.where(i_b == batch - 1, tokens, tl.minimum(tl.maximum(end, 0), tokens))
    return begin.to(tokens.dtype), tl.maximum(end - begin, 0).to(tokens.dtype), right


@triton.jit
def find_pages(p_table, t_n, o_n, len_k, PAGE: tl.constexpr, BLOCK_N: tl.constexpr):
    """(page, place in it) of tile `t_n`'s first key where a page holds whole tiles, else of each of
    its keys, [BLOCK_N]. Those past the end count as in page 0; a negative page as a very high one.
    """
    if PAGE % BLOCK_N == 0:
        o_key = t_n * BLOCK_N
        page = tl.load(p_table + o_key // PAGE)
    else:
        o_key = t_n * BLOCK_N + o_n
        page = tl.load(p_table + o_key // PAGE, mask=o_key < len_k, other=0)
    return page.to(tl.uint32), o_key % PAGE


@triton.jit
def rows_of(
    p, page, place, t_n, o_n, stride_page, stride, PAGE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """(pointer to tile `t_n` of keys or values, offsets of its rows [BLOCK_N])."""
    o_row = o_n * stride
    if PAGE is None:
        p += (t_n * BLOCK_N).to(tl.int64) * stride
    else:
        o_page = page.to(tl.int64) * stride_page + place.to(tl.int64) * stride
        if PAGE % BLOCK_N == 0:
            p += o_page
        else:
            o_row = o_page
    return p, o_row
