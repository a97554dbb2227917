"""`explain`: pictures in; for each the most probable classes and two maps of what speaks for one of them out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convnext.data.images import UnreadableImageError
from convnext.errors import RunError, UsageError, unknown_name
from convnext.explanation.feature_maps import map_layer
from convnext.explanation.saliency import grad_cam, occlusion
from convnext.inference.classifier import Candidate, Classifier
from convnext.inference.inputs import ImageInput, image_inputs
from convnext.inference.model import has_gradients, resolve
from convnext.weights.names import parse_name
from convnext.weights.published import tags_of

NO_GRADIENTS = "no Grad-CAM: this is no network of layers that torch can differentiate, such as an exported file"


@dataclass(frozen=True)
class Explanation:
    """What a network sees in a picture, and where.

    Attributes:
        path: the picture's file, as it was named; None for a picture that was given itself.
        picture: in RGB and upright; None where it could not be read.
        top: the most probable classes, the first first.
        label: the class that the maps explain.
        probability: of that class.
        seen: left, top, right and bottom of the part of the picture that the network sees, in its pixels: where the
            maps belong. Beyond the edges where there are borders.
        grad_cam: (S, S), from 0 to 1; None where the network has no gradients.
        layer: the layer behind which Grad-CAM is taken.
        occlusion: (S, S), by how much the class's probability falls where a square is hidden.
        error: why the picture could not be read; None where it was.
    """

    path: str | None
    picture: Image.Image | None = None
    top: tuple[Candidate, ...] = ()
    label: str | None = None
    probability: float | None = None
    seen: tuple[float, float, float, float] | None = None
    grad_cam: Tensor | None = None
    layer: str | None = None
    occlusion: Tensor | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The explanation as plain data, without picture and maps: an entry of ``convnext explain --json``."""
        falls = self.occlusion
        return {
            "path": self.path,
            "label": self.top[0].label if self.top else None,
            "probability": self.top[0].probability if self.top else None,
            "top": [candidate._asdict() for candidate in self.top],
            "explained": self.label,
            "explained_probability": self.probability,
            "seen": None if self.seen is None else list(self.seen),
            "grad_cam_layer": self.layer,
            "occlusion_largest_fall": None if falls is None else falls.max().item(),
            "occlusion_largest_rise": None if falls is None else -falls.min().item(),
            "error": self.error,
        }


def explain(
    run: str | Path | Classifier,
    images: Any,
    *,
    label: str | None = None,
    top: int = 5,
    device: str = "auto",
    trust: bool = False,
) -> list[Explanation]:
    """What a network sees in pictures, and where: classes, Grad-CAM, and a map without gradients (occlusion).

    Args:
        run: what :func:`convnext.load` opens or returns; or the name of a step of the roadmap, which is untrained.
        images: a picture or an iterable of pictures, as for ``Classifier.predict``, but for prepared floats.
        label: the class to explain; by default the most probable one of each picture.
        top: classes to name for each picture.
        device: auto (a GPU where there is one), cpu, cuda, mps or xpu.
        trust: open a ``.pt2`` file that was not exported here as well, though it can run any code.

    Returns:
        An explanation a picture, in their order; of one that cannot be read, with its ``error``.

    Raises:
        UsageError: there is no such run or class, captum is not installed, or a picture is of a kind that is not taken.
        RunError: a file of the run is damaged, or the network's outputs are not finite.
    """
    classifier = run if isinstance(run, Classifier) else open_explained(run, device, trust)
    return list(explain_each(classifier, images, label, top))


def open_explained(run: str | Path, device: str = "auto", trust: bool = False) -> Classifier:
    """A network to explain pictures by, which leaves it to its caller to say the classifier's ``notes``."""
    name = parse_name(run)
    has_weights = name.kind != "architecture" or tags_of(name.model)  # steps of the roadmap are explained untrained
    model = resolve(run, "trained" if has_weights else "named", trust=trust)
    return Classifier.of(model, device, *(() if model.has_gradients else (NO_GRADIENTS,)))


def explain_each(classifier: Classifier, images: Any, label: str | None = None, top: int = 5) -> Iterator[Explanation]:
    """The same as :func:`explain`, one by one."""
    classes = classifier.classes
    if not classes:
        raise UsageError(f"{classifier.name or 'the network'} has no classifier, so there is no class to explain")
    if top < 1:
        raise UsageError(f"top is {top}, needs 1 or more")
    if label is not None and label not in classes:
        raise unknown_name("class", label, classes)
    for image in image_inputs(images, classifier.preprocessing):
        try:
            yield explanation(classifier, image, None if label is None else classes.index(label), top)
        except UnreadableImageError as error:
            yield Explanation(image.path, error=error.reason)


def explanation(classifier: Classifier, image: ImageInput, label: int | None, top: int) -> Explanation:
    """The explanation of one picture.

    Raises:
        UnreadableImageError: it cannot be read.
    """
    if image.is_prepared:
        raise UsageError("prepared floats are no pictures to draw maps over: give files, PIL images or uint8 values")
    picture = image.load()
    pixels = ImageInput(image=picture).pixels(classifier.preprocessing)
    prepared = classifier.on_device(pixels)[None].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        logits = classifier.model(prepared)
        if not logits.isfinite().all():
            raise RunError(f"the outputs of {classifier.name or 'the network'} are not finite: its weights are damaged")
        probabilities = logits[0].float().softmax(0).cpu()
    values, labels = probabilities.topk(min(top, len(classifier.classes)))
    chosen = int(labels[0]) if label is None else label
    seen = has_gradients(classifier.model)
    return Explanation(
        path=image.path,
        picture=picture,
        top=tuple(
            Candidate(classifier.classes[place], value)
            for place, value in zip(labels.tolist(), values.tolist(), strict=True)
        ),
        label=classifier.classes[chosen],
        probability=probabilities[chosen].item(),
        seen=classifier.preprocessing.seen(*picture.size),
        grad_cam=grad_cam(classifier.model, prepared, [chosen])[0].cpu() if seen else None,
        layer=map_layer(classifier.model, prepared) if seen else None,
        occlusion=occlusion(classifier.model, prepared, [chosen])[0].cpu(),
    )
