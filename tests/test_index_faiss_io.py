"""Every kind of index against brute force, and files written in portions against FAISS's own, byte for byte."""

import faiss
import numpy as np
import pytest

from index import faiss_io, inverted_file
from index.costs import INVERTED, stored_errors
from index.cpu_index import CpuIndex
from index.inverted_file import InvertedLists, write_inverted_file
from manifold.errors import FormatError

D, K, N = 40, 16, 3000
LOSS = {
    "Flat": 1e-5, "SQfp16": 1e-3, "SQ8": 0.02, "Int8": 0.05, "FastScan": 0.12, "RaBitQ": 0.15, "HNSW": 1e-3,
    "IVF-Flat": 1e-5, "IVF-SQ8": 0.02, "IVF-PQ": 0.4,
}  # fmt: skip
"""Largest error of the stored coordinates, as a share of their size."""


@pytest.fixture
def eigvecs(rng):
    return np.linalg.qr(rng.standard_normal((D, D)))[0][:, :K].astype(np.float32)


@pytest.fixture
def eigvals():
    return 9.0 / np.arange(1, K + 1) ** 2


@pytest.fixture
def rows(rng, eigvecs, eigvals):
    return ((rng.standard_normal((N, K)) * np.sqrt(eigvals)) @ eigvecs.T + 3).astype(np.float32)


MEAN = np.full(D, 3, dtype=np.float32)


def empty(kind, eigvecs, eigvals, rows, lists=32):
    index = faiss_io.new_index(MEAN, eigvecs, kind, eigvals=eigvals, lists=lists, groups=8)
    faiss_io.train(index, faiss_io.eigen_coordinates(index, rows))
    return index


def filled(kind, eigvecs, eigvals, rows):
    index = empty(kind, eigvecs, eigvals, rows)
    faiss_io.take(index, faiss_io.eigen_coordinates(index, rows))
    return index


def write_in_portions(index, coords, path, lists=32, portion=700):
    encoded = (
        faiss_io.assign_and_encode(index, coords[start : start + portion]) for start in range(0, len(coords), portion)
    )
    header = faiss_io.empty_file(index, len(coords))
    write_inverted_file(path, header, lists, encoded, path.with_name("spool"))


@pytest.mark.parametrize("kind", faiss_io.KINDS)
def test_stored_coordinates_are_those_of_the_basis(kind, rows, eigvecs, eigvals, tmp_path):
    index = filled(kind, eigvecs, eigvals, rows)
    faiss_io.write_index(index, tmp_path / "one.index")
    stored = faiss_io.coordinates(faiss_io.read_index(tmp_path / "one.index"), 100, 900)
    expected = (rows[100:1000].astype(np.float64) - 3) @ eigvecs
    assert stored.shape == (900, K)
    assert np.linalg.norm(stored - expected) / np.linalg.norm(expected) < LOSS[kind]


@pytest.mark.parametrize("kind", faiss_io.KINDS)
def test_nearest_are_those_of_brute_force(kind, rows, eigvecs, eigvals, tmp_path):
    """All lists, a wide graph search: what is left is the loss of the codes, which 100 candidates for 10 make up for."""
    index = filled(kind, eigvecs, eigvals, rows)
    faiss_io.set_effort(index, 128)
    faiss_io.write_index(index, tmp_path / "one.index")
    queries = rows[::100] + 0.1
    squared = np.square(queries[:, None].astype(np.float64) - rows[None]).sum(2)
    found = CpuIndex(faiss_io.read_index(tmp_path / "one.index")).nearest(queries, 100)
    kept = [np.isin(np.argsort(far)[:10], ids).mean() for far, ids in zip(squared, found, strict=True)]
    assert np.mean(kept) > 0.97


@pytest.mark.parametrize("kind", faiss_io.KINDS)
@pytest.mark.parametrize("k", [N // 2, N, N + 5])
def test_as_many_neighbours_as_asked_for(kind, k, rows, eigvecs, eigvals):
    """One list of 32 is probed, but a search for many rows goes on until it has them."""
    found = CpuIndex(filled(kind, eigvecs, eigvals, rows)).nearest(rows[:3], k)
    for ids in found:
        valid = ids[ids >= 0]
        assert len(valid) == len(set(valid.tolist())) == min(k, N)


@pytest.mark.parametrize("kind", INVERTED)
@pytest.mark.parametrize("gather_bytes", [1, 5000, 2**26])
def test_a_file_written_in_portions_is_that_of_faiss(kind, gather_bytes, rows, eigvecs, eigvals, tmp_path, monkeypatch):
    monkeypatch.setattr(inverted_file, "_GATHER_BYTES", gather_bytes)
    whole = filled(kind, eigvecs, eigvals, rows)
    faiss_io.write_index(whole, tmp_path / "whole.index")
    coords = faiss_io.eigen_coordinates(whole, rows)
    write_in_portions(empty(kind, eigvecs, eigvals, rows), coords, tmp_path / "portions.index")
    assert (tmp_path / "portions.index").read_bytes() == (tmp_path / "whole.index").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["portions.index", "whole.index"]


@pytest.mark.parametrize("kind", INVERTED)
@pytest.mark.parametrize("first", [0, 3, 2000, N])
def test_lists_extended_from_file_to_file_are_those_of_faiss(kind, first, rows, eigvecs, eigvals, tmp_path):
    """With few, many or no rows before: sparse and full tables of lengths. From one product: last bits vary with its size."""
    index = empty(kind, eigvecs, eigvals, rows)
    coords = faiss_io.eigen_coordinates(index, rows)
    old, grown = tmp_path / "old.index", tmp_path / "grown.index"
    write_in_portions(index, coords[:first], old)
    header, storage = faiss_io.empty_file(index, N), faiss_io.storage_of(index)
    earlier = InvertedLists(old, len(header), 32, storage.code_size)
    assert len(earlier) == first
    later = coords[first:]
    portions = (faiss_io.assign_and_encode(index, later[low : low + 700]) for low in range(0, len(later), 700))
    write_inverted_file(grown, header, 32, portions, tmp_path / "spool", earlier)
    faiss_io.write_index(filled(kind, eigvecs, eigvals, rows), tmp_path / "whole.index")
    assert grown.read_bytes() == (tmp_path / "whole.index").read_bytes()


@pytest.mark.parametrize("kind", faiss_io.KINDS)
def test_an_emptied_index_can_be_filled_again(kind, rows, eigvecs, eigvals, tmp_path):
    faiss_io.write_index(filled(kind, eigvecs, eigvals, rows), tmp_path / "one.index")
    before = (tmp_path / "one.index").read_bytes()
    index = faiss_io.emptied(faiss_io.read_index(tmp_path / "one.index"))
    assert (index.ntotal, faiss_io.storage_of(index).ntotal) == (0, 0)
    faiss_io.take(index, faiss_io.eigen_coordinates(index, rows))
    faiss_io.write_index(index, tmp_path / "two.index")
    assert (tmp_path / "one.index").read_bytes() == before
    again = faiss_io.read_index(tmp_path / "two.index")
    found, expected = (
        CpuIndex(one).nearest(rows[:40], 20) for one in (again, faiss_io.read_index(tmp_path / "one.index"))
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("power", [0.0, 1.0, 1.5])
def test_a_fast_scan_loses_what_the_plan_counts_on(power, rng):
    """Sixteen levels of a normal number lose at least 0.0095 of its variance (Max, 1960, table 1); ours hardly more."""
    variances = np.arange(1.0, 65) ** -power
    rows = (rng.standard_normal((8000, 64)) * np.sqrt(variances)).astype(np.float32)
    index = faiss_io.new_index(np.zeros(64, np.float32), np.eye(64, dtype=np.float32), "FastScan")
    faiss_io.train(index, rows)
    faiss_io.take(index, rows)
    lost = np.square(faiss_io.coordinates(index, 0, 8000) - rows).mean(0).sum()
    assert lost == pytest.approx(stored_errors("FastScan", 0, 0, variances).sum(), rel=0.05)
    assert 0.0095 * variances.sum() < lost < 0.011 * variances.sum()


@pytest.mark.parametrize("kind", faiss_io.KINDS)
def test_candidates_do_not_depend_on_the_batch_or_on_threads(kind, rng):
    """Wide coordinates and many queries, where FAISS and BLAS would go over to other ways of adding up."""
    eigvals = 1 / np.arange(1, 65)
    wide = (rng.standard_normal((4000, 64)) * np.sqrt(eigvals)).astype(np.float32)
    index = faiss_io.new_index(
        np.zeros(64, np.float32), np.eye(64, dtype=np.float32), kind, eigvals=eigvals, lists=64, groups=32
    )
    faiss_io.train(index, wide)
    faiss_io.take(index, wide)
    faiss_io.set_effort(index, 16)
    queries = (rng.standard_normal((90, 64)) * np.sqrt(eigvals)).astype(np.float32)
    searched, found, before = CpuIndex(index), [], faiss.omp_get_max_threads()
    try:
        for threads, size in ((1, 90), (2, 90), (2, 1), (1, 7)):
            faiss.omp_set_num_threads(threads)
            found.append(
                np.concatenate([searched.nearest(queries[low : low + size], 60) for low in range(0, 90, size)])
            )
    finally:
        faiss.omp_set_num_threads(before)
    for ids in found[1:]:
        np.testing.assert_array_equal(ids, found[0])


@pytest.mark.parametrize("kind", faiss_io.KINDS)
def test_a_query_is_prepared_alike_alone_and_among_others(kind, rng):
    eigvals = 1 / np.arange(1, 65)
    index = faiss_io.new_index(
        np.zeros(64, np.float32), np.eye(64, dtype=np.float32), kind, eigvals=eigvals, lists=4, groups=32
    )
    faiss_io.train(index, rng.standard_normal((600, 64)).astype(np.float32))
    change, queries = faiss_io.rearrangement(index), rng.standard_normal((40, 64)).astype(np.float32)
    np.testing.assert_array_equal(change(queries), np.concatenate([change(query[None]) for query in queries]))


def test_bytes_are_cut_to_their_range_not_wrapped(rows, eigvecs, eigvals):
    """A row and a query ten times as far out as any that the range was made from stay the farthest on their side."""
    index = empty("Int8", eigvecs, eigvals, rows)
    far = rows[:1] + 10 * np.abs(rows - 3).max() * eigvecs[:, 0]
    faiss_io.take(index, faiss_io.eigen_coordinates(index, np.concatenate([rows, far])))
    stored = faiss_io.coordinates(index, 0, N + 1)
    assert stored[N, 0] == stored[:, 0].max()
    assert CpuIndex(index).nearest(far, 1).tolist() == [[N]]


def test_mostly_empty_lists_are_written_as_faiss_does(rows, eigvecs, eigvals, tmp_path):
    few = rows[:9]
    index = empty("IVF-SQ8", eigvecs, eigvals, rows)
    write_in_portions(index, faiss_io.eigen_coordinates(index, few), tmp_path / "few.index")
    in_memory = empty("IVF-SQ8", eigvecs, eigvals, rows)
    faiss_io.take(in_memory, faiss_io.eigen_coordinates(in_memory, few))
    faiss_io.write_index(in_memory, tmp_path / "whole.index")
    assert (tmp_path / "few.index").read_bytes() == (tmp_path / "whole.index").read_bytes()


@pytest.mark.parametrize("kind", INVERTED)
def test_lists_stay_on_the_disk_and_plain_faiss_reads_them(kind, rows, eigvecs, eigvals, tmp_path):
    index = empty(kind, eigvecs, eigvals, rows)
    write_in_portions(index, faiss_io.eigen_coordinates(index, rows), tmp_path / "one.index")
    opened = faiss_io.read_index(tmp_path / "one.index")
    lists = faiss.downcast_InvertedLists(faiss_io.storage_of(opened).invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists)
    plain = faiss.read_index(str(tmp_path / "one.index"))
    np.testing.assert_array_equal(plain.search(rows[:20], 5)[1], CpuIndex(opened).nearest(rows[:20], 5))


def test_a_spool_is_removed_when_encoding_stops(rows, eigvecs, eigvals, tmp_path):
    index = empty("IVF-PQ", eigvecs, eigvals, rows)

    def stop():
        yield faiss_io.assign_and_encode(index, faiss_io.eigen_coordinates(index, rows[:10]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_inverted_file(tmp_path / "one.index", faiss_io.empty_file(index, 10), 32, stop(), tmp_path / "spool")
    assert not list(tmp_path.iterdir())


def test_groups_of_a_product_quantiser_have_equal_products(eigvecs, eigvals, rows):
    """The parametric solution of optimised product quantisation; consecutive groups are far from it."""
    index = faiss_io.new_index(MEAN, eigvecs, "IVF-PQ", eigvals=eigvals, lists=4, groups=4)
    order = faiss.vector_to_array(faiss.downcast_VectorTransform(index.chain.at(2)).map)
    assert sorted(order.tolist()) == list(range(K))
    balanced = np.log(eigvals[order]).reshape(4, 4).sum(1)
    consecutive = np.log(eigvals).reshape(4, 4).sum(1)
    assert np.ptp(balanced) < 0.2 * np.ptp(consecutive)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_rabitq_decodes_all_its_bits(bits, rows, eigvecs, eigvals):
    """Each bit more halves the error; FAISS's own reconstruction reads one."""
    index = faiss_io.new_index(MEAN, eigvecs, "RaBitQ", bits=bits)
    coords = faiss_io.eigen_coordinates(index, rows)
    faiss_io.train(index, coords)
    faiss_io.take(index, coords)
    error = np.linalg.norm(faiss_io.coordinates(index, 0, N) - coords) / np.linalg.norm(coords)
    assert error < 1.3 * 2.0**-bits * 1.25
    mixed = faiss.downcast_VectorTransform(index.chain.at(2)).reverse_transform(
        faiss_io.storage_of(index).reconstruct_n(0, N)
    )
    assert error < 0.8 * np.linalg.norm(mixed - coords) / np.linalg.norm(coords)


@pytest.mark.parametrize("kind", faiss_io.KINDS)
def test_cut_off_files_are_refused(kind, rows, eigvecs, eigvals, tmp_path):
    path = tmp_path / "one.index"
    faiss_io.write_index(filled(kind, eigvecs, eigvals, rows), path)
    whole = path.read_bytes()
    for damaged in (whole[:2000], whole[:-100], b"", b"# Thesis\n" * 100):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match=r"one.index is not a sound FAISS index; build it again"):
            faiss_io.read_index(path)
