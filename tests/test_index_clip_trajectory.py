"""Neighbour lists along a trajectory: from noise to an image of the collection, recomputed as sets."""

from pathlib import Path

import numpy as np
import pytest
from images import encoded, picture
from tiny_clip import projection_model

from index.clip import ClipSearcher, embed_workspace, trajectory_overlap
from index.encode import encode_images
from manifold.errors import InputError, ShapeError


@pytest.fixture(scope="module")
def searcher(tmp_path_factory) -> ClipSearcher:
    root: Path = tmp_path_factory.mktemp("trajectory")
    (root / "photos").mkdir()
    for number in range(40):
        rough = np.random.default_rng(number).normal(0, 60, (16, 16, 3))
        shown = np.clip(picture(16, 16, number) + rough, 0, 255).astype(np.uint8)
        (root / "photos" / f"{number:02d}.png").write_bytes(encoded(shown))
    made = encode_images(root / "photos", root / "ws", size=16, workers=0).root
    embed_workspace(made, projection_model(), workers=0)
    return ClipSearcher.open(made, projection_model())


@pytest.fixture(scope="module")
def path(searcher) -> np.ndarray:
    """Five steps of three trajectories, from noise to the images of rows 4, 9 and 30."""
    rng = np.random.default_rng(1)
    latents = searcher.store.workspace.latents.read([4, 9, 30]).astype(np.float64)
    ends = (latents.reshape(3, 3, 16, 16).transpose(0, 2, 3, 1) + 1) * 127.5
    start = rng.uniform(0, 255, ends.shape)
    mixed = [(1 - share) * start + share * ends for share in (0, 0.25, 0.5, 0.75, 1)]
    return np.rint(mixed).astype(np.uint8)


def test_overlaps_are_those_of_sets(searcher, path):
    latent_ids = np.stack([searcher.by_image(images, 6).ids[:, ::-1] for images in path])
    found = trajectory_overlap(searcher, path, 6, latent_ids=latent_ids)
    lists = [searcher.by_image(images, 6).ids for images in path]
    for step in range(5):
        shared = [len(set(a) & set(b)) / 6 for a, b in zip(lists[step], lists[-1], strict=True)]
        np.testing.assert_allclose(found.to_final[step], shared)
        shared = [len(set(a) & set(b)) / 6 for a, b in zip(lists[step], latent_ids[step], strict=True)]
        np.testing.assert_allclose(found.between_spaces[step], shared)
        for number in range(3):
            rest = [len(set(lists[step][number]) & set(lists[-1][one])) / 6 for one in range(3) if one != number]
            np.testing.assert_allclose(found.to_others[step, number], np.mean(rest))
    assert found.chance == 6 / 40
    assert (found.to_final[-1] == 1).all()
    assert found.to_final[0].mean() < found.to_final[3].mean()
    np.testing.assert_allclose(found.cosine_to_final[-1], 1, atol=1e-5)
    assert (np.diff(found.cosine_to_final, axis=0) > 0).all(), "this path goes straight to its end"


def test_the_final_images_may_be_others(searcher, path):
    found = trajectory_overlap(searcher, path[:2], 4, final=path[-1])
    assert found.between_spaces is None
    np.testing.assert_array_equal(found.to_final, trajectory_overlap(searcher, path, 4).to_final[:2])
    assert trajectory_overlap(searcher, path[:, :1], 4).to_others is None, "one trajectory has no others"


def test_what_does_not_fit_is_refused(searcher, path):
    with pytest.raises(ShapeError, match="steps, n, H, W, 3"):
        trajectory_overlap(searcher, path[0])
    with pytest.raises(InputError, match="between 1 and the collection's 40"):
        trajectory_overlap(searcher, path, 41)
    with pytest.raises(ShapeError, match=r"must be \(5, 3, K\)"):
        trajectory_overlap(searcher, path, 4, latent_ids=np.zeros((4, 3, 4), dtype=np.int64))
    with pytest.raises(ShapeError, match="each of 3 trajectories"):
        trajectory_overlap(searcher, path, 4, final=path[-1, :2])
