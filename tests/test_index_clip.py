"""Real open_clip models, small and with random weights: names, preprocessing, text and image search."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from images import encoded, picture
from PIL import Image

from index.clip import ClipSearcher, embed_workspace, open_clip_model
from index.clip import model as opening
from index.encode import encode_images
from manifold.errors import FormatError, InputError, MismatchError, MissingExtraError

HAVE_OPEN_CLIP = importlib.util.find_spec("open_clip") is not None
needs_open_clip = pytest.mark.skipif(not HAVE_OPEN_CLIP, reason="needs open_clip: pip install 'latent-manifold[clip]'")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    from tiny_clip import save_tiny_clip

    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number:02d}.png").write_bytes(encoded(picture(48, 60, number)))
    return folder


@needs_open_clip
def test_vectors_are_those_of_open_clip_itself(tiny):
    """The same numbers from open_clip's own transforms, for images that need no resizing."""
    import open_clip

    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny}")
    network.eval()
    pictures = [picture(32, 32, seed) for seed in range(4)]
    with torch.no_grad():
        reference = network.encode_image(torch.stack([transform(Image.fromarray(one)) for one in pictures]))
        tokens = open_clip.get_tokenizer(f"local-dir:{tiny}")(["a red car", "two dogs on grass"])
        texts = network.encode_text(tokens)
    clip = open_clip_model(str(tiny))
    ours = clip.encode_images(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))
    torch.testing.assert_close(ours, torch.nn.functional.normalize(reference, dim=1), rtol=1e-4, atol=1e-5)
    found = clip.encode_texts(["a red car", "two dogs on grass"])
    torch.testing.assert_close(found, torch.nn.functional.normalize(texts, dim=1), rtol=1e-4, atol=1e-5)
    assert (clip.spec.d, clip.spec.image_size) == (24, 32)


@needs_open_clip
def test_only_the_filter_differs_from_its_own_preprocessing(tiny, photos, tmp_path):
    """Larger pictures through the whole path: Lanczos for bicubic and a crop before resizing move a vector by little."""
    import open_clip

    network, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny}")
    network.eval()
    with torch.no_grad():
        pictures = [transform(Image.open(path)) for path in sorted(photos.iterdir())]
        reference = torch.nn.functional.normalize(network.encode_image(torch.stack(pictures)), dim=1).numpy()
    root = encode_images(photos, tmp_path / "ws", size=16, workers=0).root
    rows = embed_workspace(root, str(tiny), workers=0).embeddings()
    own = (rows * reference).sum(1)
    # Random weights put all images close together, so the shift is measured against the distances between images.
    shift = np.sqrt(np.maximum(2 - 2 * own, 0))
    between = np.linalg.norm(reference[:, None] - reference, axis=2)
    assert np.median(shift) < 0.2 * np.median(between[between > 0])


@needs_open_clip
def test_text_image_and_row_search_through_the_whole_path(tiny, photos, tmp_path):
    root = encode_images(photos, tmp_path / "ws", size=16, workers=0).root
    store = embed_workspace(root, str(tiny), workers=0, batch_size=6)
    assert (root / store.card.spec.id).resolve() == tiny.resolve(), "kept relative to the workspace"
    searcher = ClipSearcher.open(root)
    rows = store.embeddings().astype(np.float64)
    text = open_clip_model(str(tiny)).encode_texts(["a photo of a cat"]).double().numpy()
    hits = searcher.by_text("a photo of a cat", k=5)
    cosines = (text @ rows.T)[0]
    np.testing.assert_array_equal(hits.ids[0], np.argsort(-cosines, kind="stable")[:5])
    np.testing.assert_allclose(hits.scores[0], np.sort(cosines)[::-1][:5], atol=1e-6)
    square = np.asarray(Image.open(photos / "13.png").crop((6, 0, 54, 48)))[None]
    assert searcher.by_image(square, k=1).rows()[0]["image_path"] == "13.png"
    assert searcher.by_row([13], k=1).ids[0, 0] == 13


@needs_open_clip
def test_a_model_is_the_same_by_folder_file_and_architecture(tiny, tmp_path):
    by_folder = open_clip_model(str(tiny))
    by_file = open_clip_model(str(tiny / "open_clip_model.safetensors"))
    assert by_folder.spec.weights_sha256 == by_file.spec.weights_sha256
    import open_clip

    renamed = tmp_path / "tiny-clip-for-tests.json"
    renamed.write_text(json.dumps(json.loads((tiny / "open_clip_config.json").read_text())["model_cfg"]))
    open_clip.add_model_config(renamed)
    named = open_clip_model(f"tiny-clip-for-tests/{tiny / 'open_clip_model.safetensors'}")
    image = torch.full((1, 3, 32, 32), 90, dtype=torch.uint8)
    assert named.spec.mean != by_folder.spec.mean, "without its own configuration it takes OpenAI's mean and deviation"
    assert named.encode_images(image).shape == by_folder.encode_images(image).shape


@needs_open_clip
def test_other_weights_are_another_model(tiny, photos, tmp_path):
    from tiny_clip import save_tiny_clip

    other = save_tiny_clip(tmp_path / "other", seed=12)
    root = encode_images(photos, tmp_path / "ws", size=16, workers=0).root
    embed_workspace(root, str(tiny), workers=0)
    with pytest.raises(MismatchError, match="its weights differ"):
        ClipSearcher.open(root, str(other))
    with pytest.raises(MismatchError, match="delete that folder"):
        embed_workspace(root, str(other), workers=0)


def test_a_device_that_is_not_there_is_not_blamed_on_the_model(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device, words in (("cuda", "torch finds no CUDA device here"), ("gpu", "'gpu' is no device")):
        with pytest.raises(InputError, match=words):
            open_clip_model("ViT-B-32/openai", device=device)


@needs_open_clip
def test_what_is_no_model_is_said(tiny, tmp_path, capfd):
    with pytest.raises(InputError, match="names no weights"):
        open_clip_model("ViT-B-32")
    with pytest.raises(InputError, match="there is no CLIP model 'ViT-B-32/no-such-weights'"):
        open_clip_model("ViT-B-32/no-such-weights")
    with pytest.raises(InputError, match=r"holds no open_clip_config\.json"):
        open_clip_model(str(tmp_path))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "open_clip_config.json").write_text((tiny / "open_clip_config.json").read_text())
    with pytest.raises(FormatError, match="holds no open_clip model"):
        open_clip_model(str(empty))
    (empty / "open_clip_model.safetensors").write_bytes((tiny / "open_clip_model.safetensors").read_bytes()[:1000])
    with pytest.raises(FormatError, match="holds no open_clip model"):
        open_clip_model(str(empty))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImportError("No module named 'open_clip'"), r"pip install 'latent-manifold\[clip\]'"),
        (RuntimeError("operator torchvision::nms does not exist"), "torchvision built for the torch installed here"),
    ],
)
def test_without_open_clip_the_error_names_the_pip_line(monkeypatch, error, words):
    import builtins

    real = builtins.__import__

    def broken(name, *arguments, **keywords):
        if name == "open_clip":
            raise error
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(MissingExtraError, match=words):
        opening.open_clip_model("ViT-B-32/openai")
