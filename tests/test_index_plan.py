"""Plans: what is chosen, whether the figures hold, and what is said when nothing fits."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import make_workspace

from index import faiss_io
from index.build import build_index, plan_workspace
from index.fit import fit_workspace
from index.plan import bytes_text, finer_plan, parse_bytes, plan_index
from manifold.errors import InputError

RANKS = 1 / np.arange(1, 4097)


def correlated(rng, n, d):
    return (rng.standard_normal((n, d)) * np.sqrt(1 / np.arange(1, d + 1))).astype(np.float16)


@pytest.mark.parametrize(
    ("count", "memory", "kind"),
    [
        (10**4, "64M", "FastScan"),
        (10**5, "40M", "FastScan"),
        (10**6, "50M", "FastScan"),
        (10**6, "28M", "IVF-SQ8"),
        (3 * 10**6, "1G", "IVF-SQ8"),
        (10**7, "4G", "IVF-SQ8"),
    ],
)
def test_the_kind_follows_rows_and_memory(count, memory, kind):
    plan = plan_index(count, 4096, RANKS, memory, 0.95)
    assert plan.kind == kind
    assert max(plan.build_bytes, plan.search_bytes) <= parse_bytes(memory)


@pytest.mark.parametrize("recall", [0.9, 0.99])
@pytest.mark.parametrize("spectrum", [RANKS, RANKS**1.5, RANKS**2.5])
def test_nothing_that_will_do_is_much_quicker_or_as_quick_and_smaller(spectrum, recall):
    """Every scan of every rank, planned one by one."""
    chosen = plan_index(50_000, 4096, spectrum, "1G", recall)
    others = [
        plan_index(50_000, 4096, spectrum, "1G", recall, kind=kind, rank=rank)
        for kind in ("FastScan", "Int8", "SQ8", "SQfp16", "Flat")
        for rank in range(16, 257, 16)
    ]
    will_do = [plan for plan in others if 1 - plan.expected_recall <= (1 - recall) / 2]
    assert replace(chosen, chosen=False) in will_do
    least = min(plan.query_seconds for plan in will_do)
    assert chosen.query_seconds <= 1.1 * least
    assert chosen.index_bytes == min(plan.index_bytes for plan in will_do if plan.query_seconds <= 1.1 * least)


def test_one_step_for_all_is_not_taken_where_it_is_too_coarse():
    """One direction a thousand times as wide as the others, which decide who is near: half a step of it drowns them."""
    spectrum = np.concatenate([[1e6], np.full(30, 1.0), np.full(100, 1e-3)])
    assert plan_index(10**5, 131, spectrum, "1G", 0.99).kind in ("SQ8", "SQfp16")
    assert plan_index(10**5, 131, spectrum[1:], "1G", 0.99, tail_var=1e-3).kind == "FastScan"


def test_work_grows_with_recall_and_rows_and_no_more_than_needed():
    plans = [plan_index(20_000, 4096, RANKS, "1G", recall) for recall in (0.5, 0.9, 0.99, 0.999)]
    seconds = [plan.query_seconds for plan in plans]
    assert seconds == sorted(set(seconds))
    assert [plan.candidates for plan in plans] == sorted(plan.candidates for plan in plans)
    more, fewer = (plan_index(count, 4096, RANKS, "4G", 0.9) for count in (10**6, 10**4))
    assert (more.k, more.candidates) > (fewer.k, fewer.candidates)
    steep = plan_index(10**5, 4096, np.exp(-np.arange(4096.0)), "1G", 0.99)
    assert steep.k == 16
    assert steep.candidates <= 70


def test_rank_and_kind_are_taken_as_asked():
    plan = plan_index(10**5, 4096, RANKS, "1G", 0.99, kind="IVF-PQ", rank=100)
    assert (plan.kind, plan.k, plan.groups) == ("IVF-PQ", 100, 50)
    assert plan_index(10**5, 4096, RANKS, "1G", 0.5, kind="RaBitQ").bits == 4


def test_a_finer_plan_has_finer_codes_of_more_coordinates_while_they_fit():
    first = plan_index(10**5, 4096, RANKS, "1G", 0.9)
    second = finer_plan(first, 4096, RANKS)
    third = finer_plan(second, 4096, RANKS)
    assert [plan.kind for plan in (first, second, third)] == ["FastScan", "Int8", "SQfp16"]
    assert (second.k, third.k) == (2 * first.k, min(4 * first.k, 256))
    assert second.memory_bytes == third.memory_bytes == 2**30
    assert finer_plan(third, 4096, RANKS) is None
    assert finer_plan(plan_index(10**5, 4096, RANKS, "1G", 0.9, kind="FastScan"), 4096, RANKS) is None
    assert finer_plan(plan_index(10**5, 4096, RANKS, "1G", 0.9, rank=64), 4096, RANKS) is None
    tight = plan_index(10**6, 4096, RANKS, "42M", 0.9)
    assert tight.kind == "FastScan"
    assert finer_plan(tight, 4096, RANKS) is None


def test_known_eigenvalues_and_a_tail_are_the_whole_spectrum():
    flat = plan_index(20_000, 1000, np.ones(300), "1G", 0.8, tail_var=1.0)
    steep = plan_index(20_000, 1000, np.ones(300), "1G", 0.8, tail_var=0.0)
    assert flat.expected_recall < 0.8 < steep.expected_recall
    assert "0.8 wanted" in flat.sentence()
    assert "wanted" not in steep.sentence()


@pytest.mark.parametrize("kind", faiss_io.KINDS)
@pytest.mark.parametrize("bits_rank", [24, 40])
def test_the_file_is_as_large_as_planned(kind, bits_rank, tmp_path, rng):
    root = make_workspace(tmp_path / "ws", correlated(rng, 3000, 48), shape=(3, 4, 4)).root
    fit_workspace(root)
    plan = plan_workspace(root, kind=kind, rank=bits_rank)
    card = build_index(root, plan=plan)
    assert card["kind"] == kind
    assert card["index_bytes"] == pytest.approx(plan.index_bytes, rel=0.03)


def test_what_does_not_fit_is_refused_with_what_would():
    with pytest.raises(
        InputError, match=r"no index of 10,000,000 rows fits into 64.0 MiB: .* needs .*; give --memory \d\dM$"
    ):
        plan_index(10**7, 4096, RANKS, "64M")
    with pytest.raises(InputError, match=r"of kind Flat fits into 1.0 GiB.*or leave the kind to the plan"):
        plan_index(10**8, 4096, RANKS, "1G", kind="Flat")
    needed = plan_index(10**7, 4096, RANKS, "200M", 0.5)
    assert needed.kind.startswith("IVF")


def test_wrong_arguments_get_a_sentence():
    with pytest.raises(InputError, match="recall wanted must lie between 0 and 1, it is 95"):
        plan_index(100, 10, np.ones(10), recall=95)
    with pytest.raises(InputError, match=r"one of Flat, .*, it is 'LSH'"):
        plan_index(100, 10, np.ones(10), kind="LSH")
    for spectrum in ([1.0, np.nan], [1.0, -1.0], [1.0] * 17):
        with pytest.raises(InputError, match="variances must be at most d = 16 finite numbers of at least 0"):
            plan_index(100, 16, np.array(spectrum))
    with pytest.raises(InputError, match="rank must lie between 1 and the manifold's 10, it is 11"):
        plan_index(100, 10, np.ones(10), rank=11)
    with pytest.raises(InputError, match="at least one row"):
        plan_index(0, 10, np.ones(10))
    for text in ("", "4X", "G", "-1G", "nan", "0"):
        with pytest.raises(InputError, match="must be like 4G, 512M or 2000000"):
            parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("4G", 4 * 2**30),
        ("512m", 2**29),
        ("1.5 GiB", 1.5 * 2**30),
        ("10MB", 10 * 2**20),
        ("2000000", 2 * 10**6),
        ("3b", 3),
    ],
)
def test_amounts_of_memory(text, amount):
    assert parse_bytes(text) == amount


def test_amounts_in_words():
    assert [bytes_text(amount) for amount in (3, 2048, 150 * 2**20, 1.5 * 2**30, 3000 * 2**30)] == [
        "3 B", "2.0 KiB", "150 MiB", "1.5 GiB", "3,000 GiB",
    ]  # fmt: skip
