"""Real pictures where a user names none: squares out of the two photographs that scikit-learn ships."""

from collections.abc import Iterable, Iterator

from PIL import Image


def crops(sides: Iterable[int], across: int, down: int) -> Iterator[Image.Image]:
    """Squares of a temple, then of a flower, photographs of 640 x 427 pixels.

    Args:
        sides: of the squares, in pixels.
        across: pixels from one square to the next in a row.
        down: pixels from one row to the next.
    """
    from sklearn.datasets import load_sample_images

    sides = tuple(sides)
    for pixels in load_sample_images().images:  # pyright: ignore[reportAttributeAccessIssue]
        photograph = Image.fromarray(pixels)
        for side in sides:
            for top in range(0, photograph.height - side + 1, down):
                for left in range(0, photograph.width - side + 1, across):
                    yield photograph.crop((left, top, left + side, top + side))
