"""CKA has the properties that it is known for, and its batches estimate one number."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import convnext
from convnext.errors import RunError, UsageError
from convnext.explanation.cka import MinibatchCKA, centred_gram, evenly
from convnext.explanation.similarity import Similarity, compare, points, similarity, similarity_table
from convnext.explanation.similarity_figure import draw_similarity
from convnext.plotting import render

MakeFolder = Callable[[dict[str, int]], Path]


def cka(first: Tensor, second: Tensor, batch: int | None = None) -> float:
    estimate = MinibatchCKA()
    for ours, theirs in zip(first.split(batch or len(first)), second.split(batch or len(second)), strict=True):
        estimate.add([centred_gram(ours)], [centred_gram(theirs)])
    return estimate.values().item()


def unbiased_hsic(first: np.ndarray, second: np.ndarray) -> float:
    """Song et al. 2012, equation 5, word for word."""
    n = len(first)
    k, m = first @ first.T, second @ second.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    trace = np.trace(k @ m)
    means = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float((trace + means - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3)))


def directly(first: Tensor, second: Tensor) -> float:
    ours, theirs = first.double().numpy(), second.double().numpy()
    scale = unbiased_hsic(ours, ours) * unbiased_hsic(theirs, theirs)
    return unbiased_hsic(ours, theirs) / scale**0.5


@pytest.fixture
def features() -> Tensor:
    """Features (40, 12) of a few factors, with noise."""
    return torch.randn(40, 3) @ torch.randn(3, 12) + 0.3 * torch.randn(40, 12) + 5


def test_a_map_is_like_itself(features: Tensor) -> None:
    assert cka(features, features) == pytest.approx(1, abs=1e-12)
    assert cka(features, features, batch=8) == pytest.approx(1, abs=1e-12)


def test_rotation_scale_shift_and_order_of_channels_do_not_matter(features: Tensor) -> None:
    rotation, _ = torch.linalg.qr(torch.randn(12, 12))
    for other in (features @ rotation, 37 * features, features - 100, features[:, torch.randperm(12)], -features):
        assert cka(features, other) == pytest.approx(1, abs=1e-4)
    assert cka(features, features @ torch.diag(torch.tensor([30.0] + [1.0] * 11))) < 0.95  # other transforms do


def test_independent_noise_is_unrelated_without_bias() -> None:
    """The biased estimate of these would be about 0.9: many more features than images."""
    values = [cka(torch.randn(16, 400), torch.randn(16, 400), batch=8) for _ in range(60)]
    assert abs(float(np.mean(values))) < 0.05
    assert min(values) < 0 < max(values)


@pytest.mark.parametrize(("images", "columns"), [(4, 3), (5, 50), (23, 7)])
def test_it_is_the_estimators_definition_in_float64(images: int, columns: int) -> None:
    first, second = torch.randn(images, columns) + 3, torch.randn(images, 2 * columns)
    second[:, :columns] += first
    assert cka(first.double(), second.double()) == pytest.approx(directly(first, second), rel=1e-9)
    assert cka(first, second) == pytest.approx(directly(first, second), abs=1e-5)


def test_batches_of_any_size_estimate_the_same() -> None:
    factors = torch.randn(480, 4)
    first = factors @ torch.randn(4, 20) + torch.randn(480, 20)
    second = factors @ torch.randn(4, 30) + torch.randn(480, 30)
    whole = directly(first, second)
    assert 0.3 < whole < 0.95
    for batch in (8, 16, 32, 96):
        assert cka(first, second, batch) == pytest.approx(whole, abs=0.05)


def test_maps_are_compared_as_their_flattened_values() -> None:
    maps = torch.randn(10, 3, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(centred_gram(maps), centred_gram(maps.flatten(1)))
    gram = centred_gram(maps)
    assert gram.dtype == torch.float64
    torch.testing.assert_close(gram.sum(0), torch.zeros(10, dtype=torch.float64), atol=1e-9, rtol=0)


def test_features_that_do_not_vary_have_no_similarity(features: Tensor) -> None:
    assert np.isnan(cka(features, torch.ones(40, 5)))
    found = convnext_pair()
    found = Similarity(found.names, found.rows, found.columns, torch.full_like(found.values, torch.nan), 8)
    assert found.to_dict()["values"][0][0] is None
    render(draw_similarity(found), "png")


def test_wrong_features_are_refused(features: Tensor) -> None:
    with pytest.raises(UsageError, match="3 images are too few"):
        centred_gram(features[:3])
    features[0, 0] = torch.inf
    with pytest.raises(RunError, match="not finite"):
        centred_gram(features)
    with pytest.raises(UsageError, match="no images"):
        compare(nn.Identity(), nn.Identity(), [])


def test_batches_are_nearly_equal() -> None:
    for count, most in itertools.product((4, 31, 32, 33, 65, 100, 256), (8, 32)):
        sizes = evenly(count, most)
        assert sum(sizes) == count
        assert max(sizes) <= most
        assert max(sizes) - min(sizes) <= 1


def convnext_pair() -> Similarity:
    torch.manual_seed(1)
    images = torch.randn(12, 3, 32, 32)
    models = [
        convnext.create_model(f"roadmap_micro/{name}", num_classes=5, layer_scale_init_value=1.0).eval()
        for name in ("separate_downsampling", "resnet")
    ]
    batches: Iterator[tuple[Tensor, Tensor]] = ((part, part) for part in images.split(6))
    return compare(models[0], models[1], batches, ("runs/a", "runs/b"), "noise")


def test_all_blocks_of_two_networks_are_compared() -> None:
    found = convnext_pair()
    assert [(point.stage, point.number) for point in found.rows] == [(1, 1), (2, 1), (3, 1), (3, 2), (3, 3), (4, 1)]
    assert [point.is_end for point in found.columns] == [True, True, False, True, True]
    assert found.values.shape == (6, 5)
    assert found.images == 12
    document = found.to_dict()
    assert document["rows"][2] == {"stage": 3, "block": 1, "module": "stages.2.0"}
    assert document["values"][1][2] == found.values[1, 2].item()


def test_its_values_are_those_of_the_blocks_outputs() -> None:
    torch.manual_seed(1)
    images = torch.randn(8, 3, 32, 32)
    model = convnext.create_model("roadmap_micro/resnet", num_classes=5).eval()
    found = compare(model, model, [(images, images)])
    with torch.inference_mode():
        maps = [part.flatten(1) for part in model.forward_intermediates(images)[1]]  # pyright: ignore
    ends = [i for i, point in enumerate(found.rows) if point.is_end]
    for (i, one), (j, other) in itertools.product(enumerate(ends), repeat=2):
        assert found.values[one, other].item() == pytest.approx(directly(maps[i], maps[j]), abs=1e-4)
    torch.testing.assert_close(found.values.diag(), torch.ones(len(found.rows), dtype=torch.float64))
    torch.testing.assert_close(found.values, found.values.T)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.fixture
def folder(make_folder: MakeFolder) -> str:
    """A folder of 10 pictures of noise."""
    return str(make_folder({"a": 5, "b": 5}))


def test_networks_are_opened_by_name_and_see_the_same_pictures(folder: str) -> None:
    found = similarity("roadmap_micro/resnet", "roadmap_micro/kernel_7", folder, device="cpu")
    assert found.names == ("roadmap_micro/resnet", "roadmap_micro/kernel_7")
    assert (found.images, found.data) == (10, folder)
    assert any("untrained" in note for note in found.notes)
    again = similarity("roadmap_micro/resnet", "roadmap_micro/kernel_7", folder, device="cpu")
    assert torch.equal(found.values, again.values)
    itself = similarity("roadmap_micro/resnet", data=folder, device="cpu")
    torch.testing.assert_close(itself.values.diag(), torch.ones(5, dtype=torch.float64))


def test_weights_are_compared_with_their_initial_values(tmp_path: Path, folder: str) -> None:
    torch.manual_seed(7)
    path = tmp_path / "atto.safetensors"
    model = convnext.create_model("convnext_atto", num_classes=4, layer_scale_init_value=1.0)
    convnext.save_weights(model, path)
    found = similarity(str(path), data=folder, device="cpu")
    assert found.names == (str(path), f"{path}, untrained")
    assert len(found.rows) == len(found.columns) == 12
    assert (found.values.diag() < 1 - 1e-6).all()


def test_too_few_pictures_are_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(UsageError, match="3 images"):
        similarity("roadmap_micro/resnet", data=str(make_folder({"a": 3})), device="cpu")


def test_a_network_without_blocks_is_compared_by_its_convolutions() -> None:
    with torch.device("meta"):
        vgg = convnext.create_model("torchvision/vgg11")
    found = points(vgg, torch.empty(1, 3, 224, 224, device="meta"))
    assert len(found) == 8
    assert [point.stage for point in found if point.is_end] == [1, 2, 3, 4, 5]


def test_the_figure_and_the_table_name_stages_and_values() -> None:
    found = convnext_pair()
    figure = draw_similarity(found)
    axes = figure.axes[0]
    values = [text.get_text() for text in axes.texts]
    assert values == [f"{value:.2f}" for value in found.values.flatten().tolist()]
    image = axes.images[0]
    assert image.get_clim() == (0, 1)
    assert image.get_cmap().name == "viridis"
    labels = [
        text.get_text() for child in axes.child_axes for text in (*child.get_xticklabels(), *child.get_yticklabels())
    ]
    assert {f"stage {stage}" for stage in (1, 2, 3, 4)} <= set(labels)
    assert "runs/a" in str([child.get_ylabel() for child in axes.child_axes])
    table = similarity_table(found)
    assert table.row_count == 4
    assert [column.header for column in table.columns][1:] == [f"stage {stage}" for stage in (1, 2, 3, 4)]
