"""What a user names to measure the speed of: a network by its name, or a trained one."""

from convnext.benchmark.benchmark_plan import FileFacts, Network
from convnext.inference.model_opening import is_trained, open_trained
from convnext.inference.runtime import RuntimeModel


def measured_network(name: str, trust: bool = False) -> Network:
    """A network to be measured.

    Args:
        name: of a network or a reference, for random weights; or what :func:`open_trained`
            opens, but for a library's published weights, which change no speed.
        trust: open a ``.pt2`` file that was not exported here as well, though it can run any code.

    Raises:
        UsageError: there is no such run or file, or a file may run code and is not trusted.
        RunError: a file is damaged or missing, or weights could not be downloaded.
    """
    if not is_trained(name):
        return Network(name)
    trained = open_trained(name, trust)
    model, exported = trained.model, None
    if isinstance(model, RuntimeModel):
        card = model.card
        exported = FileFacts(card.precision, card.macs, card.channels, any_size=card.size is None)
    return Network(name, model, trained.preprocessing.image_size, exported)
