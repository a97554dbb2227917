"""`convnext convert`."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

from convnext.cli.options import Json, note, print_json, warn


def convert(
    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")],
    layout: Literal["official", "timm", "torchvision", "transformers"] = "official",
    json: Json = False,
) -> None:
    """Write a ConvNeXt's weights in the layout of another library, with classes and preprocessing where it takes them.

    Values and precision stay as they are. The layout of the source is told from the names of its tensors.

    Args:
        source: a run folder; a weights file (.safetensors, .pth, .pt, .bin) of the authors, timm, OpenCLIP, torchvision
            or transformers; a folder as timm or transformers save it; VARIANT or VARIANT.TAG for published weights.
        out: a file, .safetensors, .pth, .pt or .bin. For transformers a folder; for timm either.
        layout: the library's layout to write; official is the authors' and this package's.
    """
    from convnext.weights.names import find_weights
    from convnext.weights.saving import convert as write
    from convnext.weights.weights_file import open_weights

    path, notes = find_weights(source)
    opened = open_weights(path)
    saved = write(opened, out, layout)
    warn((*notes, *opened.notes, *saved.notes))
    if json:
        document = {
            "source": str(opened.path),
            "from": opened.layout,
            "to": layout,
            "model": opened.architecture.name,
            "classes": opened.architecture.num_classes,
            "files": [str(path) for path in saved.paths],
            "opens_with": saved.opens_with,
        }
        print_json(document)
        return
    note(f"{opened.architecture.name} from {opened.layout} to {layout}: {', '.join(map(str, saved.paths))}")
    note(f"Opens with: {saved.opens_with}")
