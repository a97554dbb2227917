"""What a network computes for one image, operation by operation, in order: a pass on the meta device, written down."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from convnext.models.cost import abbreviated, run_on_meta, tensors_on_meta

IMAGE = -1  # what the first operations take in
RESHAPES = {  # operators that keep values as they are, beside those that torch itself calls views
    *("clone", "_unsafe_view", "_to_copy", "contiguous", "constant_pad_nd", "pad", "as_strided_", "resize_"),
    *("squeeze_", "unsqueeze_", "transpose_", "t_", "alias", "lift_fresh", "view_copy"),
}
RATES = ("rate", "p", "drop_prob")  # how the libraries' layers that drop something at random call its probability


@dataclass(frozen=True)
class Operation:
    """One of torch's operators at work on what came of the image.

    Attributes:
        operator: its name, such as ``convolution``.
        calls: the modules' calls under way, places in :attr:`Execution.calls`, the outermost first.
        inputs: the operations whose outputs it takes, in the order of its arguments; :data:`IMAGE` for the image.
        arguments: what it was given, with shapes in the place of tensors.
        shape: of what it puts out.
        parameters: the parameters that are used here first, with the number of their values.
        macs: its multiply-accumulates, with those of what it takes that is computed from parameters alone.
    """

    operator: str
    calls: tuple[int, ...]
    inputs: tuple[int, ...]
    arguments: tuple[Any, ...]
    shape: tuple[int, ...]
    parameters: dict[str, int]
    macs: int


@dataclass(frozen=True)
class Call:
    """One call of a module: its path in the network, the module, and the call that it is part of."""

    path: str
    module: nn.Module
    parent: int | None


@dataclass(frozen=True)
class Constant:
    """What a tensor that does not depend on the image is made of."""

    parameters: frozenset[str] = frozenset()
    operations: frozenset[tuple[int, int]] = frozenset()  # place in time, multiply-accumulates

    def __or__(self, other: "Constant") -> "Constant":
        return Constant(self.parameters | other.parameters, self.operations | other.operations)


@dataclass
class Execution:
    """A pass: all operations in order, all calls of modules, and parameters that nothing used."""

    operations: list[Operation] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    unused: dict[str, int] = field(default_factory=dict)


def execute(model: nn.Module, image_size: int | tuple[int, int] = 224) -> Execution:
    """Write down one pass of an image of ``image_size`` pixels (height and width); nothing is computed.

    The network is in evaluation mode, and left as it is. Layers that only training has (stochastic depth, dropout) are
    written down where they stand, by their rate. Views, copies and padding are no operations.
    """
    tensors = tensors_on_meta(model)
    parameters = {name: tensors[name].numel() for name, _ in model.named_parameters()}
    with FlopCounterMode(display=False) as flops, Recorder(tensors, parameters, flops) as recorder, recorder.on(model):
        run_on_meta(model, image_size, tensors)
    recorder.execution.unused = {name: parameters[name] for name in parameters if name not in recorder.used}
    return recorder.execution


class Recorder(TorchDispatchMode):
    """Writes down every operation on what came of the image.

    Args:
        tensors: the network's parameters and buffers on the meta device, by name.
        parameters: the number of values of those that are parameters.
        flops: torch's counter, under way.
    """

    def __init__(self, tensors: dict[str, Tensor], parameters: dict[str, int], flops: FlopCounterMode) -> None:
        super().__init__()
        self.execution = Execution()
        self.parameters, self.flops = parameters, flops
        self.used: set[str] = set()
        self.counted: set[int] = set()  # operations on constants whose cost has found its place
        self.under_way: list[int] = []
        self.constants = 0
        self.kept: list[Tensor] = []  # as long as a tensor lives, no other has its id
        self.origins: dict[int, int | Constant] = {}
        for name, tensor in tensors.items():
            self.origins[id(tensor)] = Constant(frozenset([name] if name in parameters else []))

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Follow the calls of a network's modules."""
        handles = []
        for path, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(partial(self.enter, path), with_kwargs=False))
            handles.append(module.register_forward_hook(self.leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def enter(self, path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A module is called; what the network itself is called with is the image."""
        parent = self.under_way[-1] if self.under_way else None
        if parent is None:
            for tensor in inputs:
                self.settle(tensor, IMAGE)
        self.under_way.append(len(self.execution.calls))
        self.execution.calls.append(Call(path, module, parent))

    def leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """A module has answered; one that drops something at random did nothing in evaluation, but it stands here."""
        call = self.under_way[-1]
        rate = next((value for name in RATES if isinstance(value := getattr(module, name, None), float)), 0.0)
        if rate and isinstance(output, Tensor) and inputs and output is inputs[0] and not list(module.children()):
            origin = self.origin(output)
            if isinstance(origin, int):
                self.write("drop", (origin,), (tuple(output.shape), rate), output, Constant(), 0)
        assert self.under_way.pop() == call

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flops = self.flops.get_total_flops()
        out = abbreviated(func, args, kwargs)
        macs = (self.flops.get_total_flops() - flops) // 2
        origins = [self.origin(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        inputs = tuple(origin for origin in origins if isinstance(origin, int))
        constant = Constant()
        for origin in origins:
            constant = constant | origin if isinstance(origin, Constant) else constant
        operator: str = func.overloadpacket.__name__  # pyright: ignore[reportFunctionMemberAccess]
        if not inputs or operator.startswith("new_") or operator.endswith("_like"):
            self.constants += 1
            cost = frozenset([(self.constants, macs)] if macs else [])
            self.settle(out, constant | Constant(operations=cost))
        elif func.is_view or operator in RESHAPES:  # pyright: ignore[reportFunctionMemberAccess]
            self.settle(out, inputs[0])
        else:
            shapes = tree_map_only(Tensor, lambda tensor: tuple(tensor.shape), args)
            self.write(operator, inputs, shapes, out, constant, macs)
        return out

    def write(
        self,
        operator: str,
        inputs: tuple[int, ...],
        arguments: tuple[Any, ...],
        out: Any,
        constant: Constant,
        macs: int,
    ) -> None:
        """Write an operation down, with the parameters and the cost behind its constants that no other had before."""
        names = [name for name in self.parameters if name in constant.parameters and name not in self.used]
        fresh = {place: cost for place, cost in constant.operations if place not in self.counted}
        self.used.update(names)
        self.counted.update(fresh)
        shape = next(tuple(leaf.shape) for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        self.settle(out, len(self.execution.operations))
        self.execution.operations.append(
            Operation(
                operator=operator.rstrip("_"),
                calls=tuple(self.under_way),
                inputs=inputs,
                arguments=arguments,
                shape=shape,
                parameters={name: self.parameters[name] for name in names},
                macs=macs + sum(fresh.values()),
            )
        )

    def origin(self, tensor: Tensor) -> int | Constant:
        """Which operation a tensor came of, or of which constants."""
        return self.origins.get(id(tensor), Constant())

    def settle(self, out: Any, origin: int | Constant) -> None:
        """Note where the tensors of an output came from."""
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.kept.append(leaf)
                self.origins[id(leaf)] = origin
