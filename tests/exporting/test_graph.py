"""Graphs of exports: images made of normalised tensors and back, and batches for calibration."""

from dataclasses import replace

import torch
from PIL import Image

from convnext.data.preprocessing import Preprocessing
from convnext.exporting.graph import Uint8Graph, calibration_batches
from convnext.inference.card import Card
from convnext.inference.runtime import input_of


def test_grey_is_pillows_to_the_bit() -> None:
    preprocessing = Preprocessing(16, 1.0, mean=(0.25,), std=(0.5,))

    class Flat(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    pictures = torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8)
    graph = Uint8Graph(Flat(), preprocessing)
    grey = torch.stack([preprocessing(Image.fromarray(picture.numpy())) for picture in pictures])
    torch.testing.assert_close(graph(pictures), grey.flatten(1).softmax(1), rtol=1e-6, atol=0)
    card = Card("onnx", "fp32", "small", ("a", "b"), preprocessing, with_preprocessing=True)
    again = Uint8Graph(Flat(), preprocessing)(input_of(grey, card))  # made pictures, and grey again
    torch.testing.assert_close(again, grey.flatten(1).softmax(1), rtol=1e-6, atol=0)


def test_calibration_fills_calibration_batches_a_fixed_number() -> None:
    images = torch.randn(5, 3, 8, 8)
    free, fixed = (Card("onnx", "int8", "small", ("a",), Preprocessing.whole(8), batch=batch) for batch in (None, 4))
    assert [len(batch) for batch in calibration_batches(images, free)] == [5]
    found = calibration_batches(images, fixed)
    assert [len(batch) for batch in found] == [4, 4]
    torch.testing.assert_close(torch.cat(found), torch.cat([images, images[:3]]), rtol=0, atol=0)
    many = replace(fixed, batch=12)
    assert [len(batch) for batch in calibration_batches(images, many)] == [12]
