"""A weights file that is almost a ConvNeXt, or has odd documents beside it: the error names the file."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from convnext.errors import RunError, UsageError
from convnext.weights.weights_file import open_weights
from tests.weights.peers import tiny, to_sparse


@pytest.mark.slow
def test_many_blocks_are_answered_soon(tmp_path: Path) -> None:
    state = dict(tiny().state_dict())
    state |= {f"stages.2.{i}.dwconv.weight": torch.ones(32, 1, 1, 1) for i in range(20_000)}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=r"a\.safetensors.*20,004"):
        open_weights(tmp_path / "a.safetensors")


def change(**tensors: Tensor | None) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Weights with other tensors, or without some, by names with ``__`` for dots."""
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    return lambda state: {name: value for name, value in (state | named).items() if value is not None}


STEM, DEPTHWISE = "downsample_layers__0__0__weight", "stages__0__0__dwconv__weight"
SHAPES: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "stem of five dimensions": (change(**{STEM: torch.ones(8, 3, 4, 4, 1)}), r"downsample_layers\.0\.0\.weight"),
    "stem of another kernel": (change(**{STEM: torch.ones(8, 3, 5, 5)}), "stem"),
    "stem that is no square": (change(**{STEM: torch.ones(8, 3, 3, 4)}), r"downsample_layers\.0\.0\.weight"),
    "no width": (change(**{STEM: torch.ones(0, 3, 4, 4)}), r"downsample_layers\.0\.0\.weight"),
    "no channels": (change(**{STEM: torch.ones(8, 0, 4, 4)}), r"downsample_layers\.0\.0\.weight"),
    "even kernel": (change(**{DEPTHWISE: torch.ones(8, 1, 6, 6)}), "kernel_size is 6"),
    "kernel of nothing": (change(**{DEPTHWISE: torch.ones(8, 1, 0, 0)}), r"stages\.0\.0\.dwconv\.weight"),
    "kernel larger than the file": (change(**{DEPTHWISE: torch.ones(1, 1, 1, 4001)}), "of another shape"),
    "block missing": (
        lambda state: {name.replace("stages.2.0", "stages.2.1"): value for name, value in state.items()},
        "not all blocks",
    ),
    "stage missing": (
        lambda state: {name: value for name, value in state.items() if not name.startswith("stages.3")},
        "not all blocks",
    ),
    "a block of endless number": (
        lambda state: state | {f"stages.0.{'9' * 400}.dwconv.weight": torch.ones(8, 1, 7, 7)},
        "unexpected",
    ),
    "channels that do not double": (change(downsample_layers__1__1__weight=torch.ones(9, 8, 2, 2)), "of another shape"),
    "head of one dimension": (change(head__weight=torch.ones(3)), r"head\.weight has 1 dim"),
    "head of no classes": (change(head__weight=torch.ones(0, 64), head__bias=torch.ones(0)), "unexpected|head"),
    "gamma in some blocks": (change(stages__1__0__gamma=None), r"stages\.1\.0\.gamma"),
    "norms in some blocks": (change(stages__1__0__grn__gamma=torch.ones(1, 1, 1, 64)), r"stages\.1\.0\.grn\.gamma"),
}


@pytest.mark.parametrize("oddity", SHAPES)
def test_what_is_almost_a_convnext(oddity: str, tmp_path: Path) -> None:
    made, says = SHAPES[oddity]
    safetensors.torch.save_file(made(dict(tiny().state_dict())), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match=says) as error:
        open_weights(tmp_path / "a.safetensors")
    assert "a.safetensors" in str(error.value)


def test_a_head_without_dimensions(tmp_path: Path) -> None:
    torch.save(tiny().state_dict() | {"head.bias": torch.ones(())}, tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"a\.pth.*head\.bias"):
        open_weights(tmp_path / "a.pth")


def test_sparse_kernels_of_odd_shapes(tmp_path: Path) -> None:
    state = to_sparse(tiny(grn=True).state_dict())
    for kernel in (torch.ones(()), torch.ones(48), torch.ones(48, 8), torch.ones(49, 8, 1, 1, 1)):
        torch.save(state | {"stages.0.0.dwconv.kernel": kernel}, tmp_path / "a.pth")
        with pytest.raises(UsageError, match=r"a\.pth.*stages\.0\.0\.dwconv\.weight"):
            open_weights(tmp_path / "a.pth")


DEEP = "[" * 100_000
DOCUMENTS: dict[str, tuple[str, bytes]] = {
    "not JSON": ("config.json", b"{"),
    "words that are none": ("config.json", b'{"architecture": "\xff"}'),
    "nested": ("config.json", DEEP.encode()),
    "a list": ("config.json", b"[]"),
    "huge": ("config.json", b" " * 10_000_001),
    "labels in a list": ("config.json", b'{"model_type": "convnext", "id2label": ["a"]}'),
    "labels without numbers": ("config.json", b'{"model_type": "convnext", "id2label": {"a": "b"}}'),
    "labels with gaps": ("config.json", b'{"model_type": "convnext", "id2label": {"0": "a", "1": "b", "7": "c"}}'),
    "labels that are no words": ("config.json", b'{"model_type": "convnext", "id2label": {"0": {}, "1": 1, "2": []}}'),
    "an epsilon of nothing": ("config.json", b'{"model_type": "convnext", "layer_norm_eps": NaN}'),
    "an epsilon beyond numbers": ("config.json", b'{"model_type": "convnext", "layer_norm_eps": 1' + b"0" * 400 + b"}"),
    "settings in a list": ("config.json", b'{"architecture": "a", "pretrained_cfg": []}'),
    "a size of one side": ("config.json", b'{"architecture": "a", "pretrained_cfg": {"input_size": 3}}'),
    "a size beyond numbers": (
        "config.json",
        b'{"architecture": "a", "pretrained_cfg": {"input_size": [3, 224, 224], "crop_pct": 1' + b"0" * 400 + b"}}",
    ),
    "a size below nothing": ("preprocessor_config.json", b'{"do_center_crop": true, "crop_size": -5, "size": -3}'),
    "a resampling that is none": ("preprocessor_config.json", b'{"resample": {}}'),
    "a mean of words": ("preprocessor_config.json", b'{"image_mean": ["a", "b", "c"]}'),
    "means of a terminal": ("preprocessor_config.json", b'{"image_mean": "\\u001b[2J' + b"x" * 100_000 + b'"}'),
}


@pytest.mark.parametrize("oddity", DOCUMENTS)
def test_documents_beside_the_weights(oddity: str, tmp_path: Path) -> None:
    name, content = DOCUMENTS[oddity]
    safetensors.torch.save_file(tiny().state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(b'{"model_type": "convnext"}')
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{tmp_path}/{name}\W") as error:
        open_weights(tmp_path)
    assert len(str(error.value)) < 600
    assert str(error.value).isprintable()


@pytest.mark.parametrize("content", [DEEP, "{}", '["a", 1, 2]', "", '"abc"'])
def test_classes_of_a_run(content: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny().state_dict(), tmp_path / "best.safetensors")
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(RunError, match=r"/classes\.json"):
        open_weights(tmp_path / "best.safetensors")


@pytest.mark.parametrize(
    "content", [DEEP, "[]", "7", '{"classes": 5}', '{"preprocessing": []}', '{"norm_eps": "x"}', "{"]
)
def test_metadata_of_safetensors(content: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny().state_dict(), tmp_path / "a.safetensors", metadata={"convnext": content})
    with pytest.raises(RunError, match=r"/a\.safetensors"):
        open_weights(tmp_path / "a.safetensors")


def test_opening_draws_no_initial_values(tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny().state_dict(), tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    open_weights(tmp_path / "a.safetensors").build()
    assert torch.equal(torch.get_rng_state(), before)
