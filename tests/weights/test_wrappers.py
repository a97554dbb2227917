"""The same tensors arrive, whatever a checkpoint wraps them in and puts before their names."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from convnext.models.convnext import ConvNeXt
from convnext.weights.layouts import OFFICIAL, TIMM, TIMM_CONV_MLP, TORCHVISION, TRANSFORMERS
from convnext.weights.layouts.rules import Layout
from convnext.weights.torch_files import WRAPPERS
from convnext.weights.weights_file import open_weights

AROUND = ("module.", "_orig_mod.")
BEFORE = ("backbone.", "visual.trunk.", "student.", "encoder.", "model.", "convnext.", "a.b.c.")
BESIDE = {"epoch": 3, "best": 0.5, "args": ["a"], "optimizer": {"state": {0: torch.ones(1)}}, "loss": None}


@cache
def weights(grn: bool) -> Mapping[str, Tensor]:
    torch.manual_seed(0)
    model = ConvNeXt(
        depths=(1, 1, 2, 1), dims=(8, 16, 32, 64), num_classes=3, grn=grn, layer_scale_init_value=None if grn else 1e-6
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model.state_dict()


@given(
    layout=st.sampled_from([OFFICIAL, TIMM, TIMM_CONV_MLP, TORCHVISION, TRANSFORMERS]),
    grn=st.booleans(),
    around=st.lists(st.sampled_from(AROUND), max_size=2, unique=True),
    before=st.lists(st.sampled_from(BEFORE), max_size=2),
    wrappers=st.lists(st.sampled_from(WRAPPERS), max_size=3),
    beside=st.sets(st.sampled_from(sorted(BESIDE))),
    order=st.randoms(use_true_random=False),
    form=st.sampled_from(["zip", "legacy", "safetensors"]),
)
@settings(max_examples=80, deadline=None, derandomize=True, database=None)
def test_the_same_tensors_arrive(
    layout: Layout,
    grn: bool,
    around: list[str],
    before: list[str],
    wrappers: list[str],
    beside: set[str],
    order: Any,
    form: str,
) -> None:
    official = weights(grn and layout is not TORCHVISION)
    prefix = "".join(around + before)
    named = [(prefix + name, tensor) for name, tensor in layout.from_official(official).items()]
    order.shuffle(named)
    with TemporaryDirectory() as folder:
        path = Path(folder, "a.pth")
        if form == "safetensors":
            safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in named}, path)
        else:
            document: dict[str, Any] = dict(named)
            for wrapper in wrappers:
                document = {name: BESIDE[name] for name in sorted(beside)} | {wrapper: document}
            torch.save(document, path, _use_new_zipfile_serialization=form == "zip")
        opened = open_weights(path)
        assert opened.layout.startswith(layout.name)
        assert opened.weights.keys() == official.keys()
        assert all(torch.equal(opened.weights[name], tensor) for name, tensor in official.items())
