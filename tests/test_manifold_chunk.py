"""Rows in parts, against the same rows in one tensor."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from manifold.chunk import Chunk


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    ends=st.tuples(st.integers(0, 54), st.integers(0, 54)),
    columns=st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_reading_is_slicing_all_rows(sizes, ends, columns):
    rows = torch.arange(sum(sizes) * 5, dtype=torch.float32).reshape(-1, 5)
    chunk = Chunk(rows.split(sizes))
    top, stop = sorted(min(end, len(rows)) for end in ends)
    left, right = sorted(columns)
    assert (len(chunk), chunk.shape) == (len(rows), rows.shape)
    if top < stop:
        assert torch.equal(chunk.read(top, stop, left, right), rows[top:stop, left:right])
    assert torch.equal(chunk.tensor(), rows)
    numbers = np.random.default_rng(len(rows)).integers(0, len(rows), 7).tolist()
    assert torch.equal(chunk.select(numbers), rows[numbers])


def test_rows_of_one_part_are_not_copied():
    parts = [torch.zeros(4, 3), torch.ones(5, 3, dtype=torch.float16)]
    chunk = Chunk(parts)
    assert chunk.read(5, 8).data_ptr() == parts[1][1:].data_ptr()
    assert chunk.read(5, 8).dtype == torch.float16


def test_rows_of_several_types_are_of_the_one_that_holds_them():
    """Neither float16 nor bfloat16 holds the other's values."""
    parts = [torch.full((1, 2), 65504.0, dtype=torch.float16), torch.full((1, 2), 1e38, dtype=torch.bfloat16)]
    found = Chunk(parts).read(0, 2)
    assert found.dtype == Chunk(parts).dtype == torch.float32
    assert torch.equal(found, torch.cat([part.float() for part in parts]))
