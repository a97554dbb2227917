"""What a pickle of ``torch.save`` would build, found out from its instructions without following them.

torch's reader of tensors alone runs no code that a file holds, but believes it otherwise: a file of a hundred bytes can
have it claim any memory, or hash a tuple of tuples of tuples for ever. What is checked here builds what checkpoints are
made of, and no more tensors than the file has values.
"""

import pickletools
from dataclasses import dataclass
from mmap import mmap
from typing import IO, Any, cast

from convnext.weights.pickle_calls import CALLS, ITEM_SIZES, TYPES, Built, Global, is_flat, is_key

MOST_INSTRUCTIONS = 2_000_000  # a large network's checkpoint, with its optimizer's state, has 100,000


class PickleError(ValueError):
    """A pickle that no ``torch.save`` of weights writes; the message says what is odd in it."""


@dataclass
class Contents:
    """What a pickle builds.

    Attributes:
        top: the whole: a plain value, a tuple, a :class:`Built` or a :class:`Global`.
        foreign: names of what it needs beside tensors and plain values, in the order they come.
        unknown: the instructions that torch's reader of tensors alone does not know.
    """

    top: Any
    foreign: tuple[str, ...]
    unknown: tuple[str, ...]


def contents(source: IO[bytes] | mmap, file_size: int, records: dict[str, int] | None = None) -> Contents:
    """What the pickle that begins here builds; the source is left behind its end.

    Args:
        source: bytes; it gives no more than it has, however many are asked for.
        file_size: bytes of the whole file, which its tensors may not exceed.
        records: bytes of each storage in the file, where they are known.

    Raises:
        PickleError: it is damaged, or odd.
    """
    machine = Machine(file_size, records)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], source))):
            if count == MOST_INSTRUCTIONS:
                raise PickleError(f"it takes more than {MOST_INSTRUCTIONS:,} instructions to build what it holds")
            machine.step(opcode, argument)
        return Contents(machine.stack[-1], tuple(dict.fromkeys(machine.foreign)), tuple(machine.unknown))
    except (IndexError, KeyError) as error:
        raise PickleError("it takes up what it never put down") from error
    except PickleError:
        raise
    except (ValueError, EOFError, MemoryError, OverflowError) as error:
        raise PickleError(str(error) or type(error).__name__) from error


class Machine:
    """The stack that a pickle's instructions work on, with what it would hold in place of the things themselves."""

    def __init__(self, file_size: int, records: dict[str, int] | None) -> None:
        self.file_size = file_size
        self.records = records
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.storages: dict[str | int, int] = {}  # bytes of each
        self.claimed = 0  # bytes of all
        self.foreign: list[str] = []
        self.unknown: dict[str, None] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Follow one instruction."""
        stack = self.stack
        match opcode.name:
            case "PROTO" | "STOP" | "FRAME":
                pass
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_SET":
                stack.append(Built(opcode.name.removeprefix("EMPTY_").lower()))
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                items = [stack.pop() for _ in range(size)]
                stack.append(tuple(items[::-1]))
            case "TUPLE":
                items = self.pop_mark()
                self.stack.append(tuple(items))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                self.name(*argument.split(" ", 1))
            case "APPEND":
                self.append([stack.pop()])
            case "APPENDS":
                self.append(self.pop_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.pop_mark())
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(self.call(stack.pop(), arguments))
            case "NEWOBJ":
                arguments = stack.pop()
                stack.append(self.new(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                self.set_state(stack[-1], state)
            case _:
                self.other(opcode, argument)

    def other(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """An instruction that torch's reader has not: followed for the names alone that the pickle takes."""
        self.unknown[opcode.name] = None
        if opcode.name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
            return
        if opcode.name in ("PUT", "GET"):
            self.memo[argument] = self.memo[argument] if opcode.name == "GET" else self.stack[-1]
            self.stack += [self.memo[argument]] * (opcode.name == "GET")
            return
        if opcode.name == "INST":
            self.name(*argument.split(" ", 1))
            self.stack.pop()
        taken = opcode.stack_before
        if pickletools.markobject in taken:
            self.pop_mark()
            taken = taken[: taken.index(pickletools.markobject)]
        words = [self.stack.pop() for _ in taken][::-1]
        if opcode.name == "STACK_GLOBAL":
            self.name(*(word if isinstance(word, str) else "?" for word in words))
        else:
            self.stack += [argument if isinstance(argument, str) else Built(made.name) for made in opcode.stack_after]

    def pop_mark(self) -> list[Any]:
        """What was put down since the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def name(self, module: str, name: str) -> None:
        """Take something by name; what is foreign is noted."""
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if full not in CALLS and full not in TYPES and full.removeprefix("torch.") not in ITEM_SIZES:
            self.foreign.append(full)
        self.stack.append(Global(full))

    def append(self, items: list[Any]) -> None:
        """Put items at a list's end."""
        target = self.stack[-1]
        if self.is_built(target, "list"):
            target.items += items

    def set_items(self, items: list[Any]) -> None:
        """Put keys and values, by turns, into a dictionary."""
        target = self.stack[-1]
        if self.is_built(target, "dict", "collections.OrderedDict", "collections.Counter"):
            if not all(map(is_key, items[::2])):
                self.unless_foreign("a key of a dictionary is no word and no small number")
            target.keys += [key for key in items[::2] if isinstance(key, str)]

    def is_built(self, target: Any, *kinds: str) -> bool:
        """Whether it is of a kind.

        Raises:
            PickleError: it is of another, and nothing foreign that this pickle is refused for anyway.
        """
        if isinstance(target, Built) and target.kind in kinds:
            return True
        self.unless_foreign("it fills what is no container")
        return False

    def unless_foreign(self, oddity: str) -> None:
        """Refuse the pickle, but for one that is refused for foreign names anyway: these are to be told in full."""
        if not self.foreign and not self.unknown:
            raise PickleError(oddity)

    def storage(self, mention: Any) -> Built:
        """A tensor's values, by how ``torch.save`` mentions them."""
        match mention:
            case ("storage", Global(name), str() | int() as key, _, int(values), *_) if values >= 0:
                item_size = ITEM_SIZES.get(name.removeprefix("torch."), 0)
            case _:
                self.unless_foreign("it mentions tensors as torch.save does not")
                return Built("storage")
        size = values * item_size
        if self.records is not None and size > self.records.get(str(key), -1):
            raise PickleError(f"a tensor needs {size:,} bytes, and the file has fewer for it")
        self.claimed += max(0, size - self.storages.get(key, 0))
        self.storages[key] = max(size, self.storages.get(key, 0))
        if self.claimed > self.file_size:
            raise PickleError(f"its tensors need {self.claimed:,} bytes, and the whole file has {self.file_size:,}")
        return Built("storage", values=values, item_size=item_size)

    def call(self, function: Any, arguments: Any) -> Built:
        """What a call makes."""
        name = function.name if isinstance(function, Global) else ""
        if isinstance(function, Global) and name in CALLS and isinstance(arguments, tuple):
            if not CALLS[name](arguments):
                self.unless_foreign(f"it calls {name} as torch.save does not")
        else:
            self.unless_foreign("it calls what is no function")
        return Built(name, arguments[0].keys if name == "collections.Counter" and arguments else [])

    def new(self, kind: Any, arguments: Any) -> Built:
        """An empty object."""
        if kind != Global("argparse.Namespace") or arguments != ():
            self.unless_foreign("it makes an object of what is no class of objects")
        return Built(kind.name if isinstance(kind, Global) else "object")

    def set_state(self, target: Any, state: Any) -> None:
        """Give an object its attributes.

        A second time is refused: the first could have put a function where the second is done by one.
        """
        allowed = isinstance(target, Built) and not target.is_set
        if allowed and target.kind == "numpy.dtype":
            allowed = (
                state in [(3, order, None, None, None, -1, -1, 0) for order in "<>|="] if is_flat(state) else False
            )
        elif allowed:
            plain = isinstance(state, Built) and state.kind == "dict"
            # What state_dict() knows of versions. Any other name could stand for a method of the dictionary.
            allowed = plain and (
                target.kind == "argparse.Namespace"
                or (target.kind == "collections.OrderedDict" and set(state.keys) <= {"_metadata"})
            )
        if not allowed:
            self.unless_foreign("it sets attributes of what has none")
        elif isinstance(target, Built):
            target.is_set = True
