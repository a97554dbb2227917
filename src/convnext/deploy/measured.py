"""What a user names to measure the speed of: a network by its name, or a trained one."""

from convnext.deploy.opening import is_trained, open_trained
from convnext.speed.plan import Network


def measured_network(name: str) -> Network:
    """A network to be measured.

    Args:
        name: of a network or a reference, for random weights; or what :func:`convnext.deploy.opening.open_trained`
            opens, but for a library's published weights, which change no speed.

    Raises:
        UsageError: there is no such run or file.
        RunError: a file is damaged or missing, or weights could not be downloaded.
    """
    if not is_trained(name):
        return Network(name)
    trained = open_trained(name)
    return Network(name, trained.model, trained.preprocessing.image_size)
