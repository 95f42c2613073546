"""Tapes: operations on a CPU that are recorded once and repeated without the Python code between them.

A denoising step of a peptide is 1,700 operations of a few microseconds. Half of them are views, which need not be made
again where memory stays the same; the others are called with all that they need at hand, and write where their results
belong. The kernels are those of the first time, and so are the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

UNREPEATABLE = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default  # no random numbers without dropout
COPIES = torch.ops.aten.clone.default, torch.ops.aten._to_copy.default
QUICK = torch._C._VariableFunctions, torch._C._nn, torch._C._linalg  # bind arguments in a third of an operator's time
ALIGNMENT = 64  # bytes


class Tape:
    """Recording of the operations of a function on tensors, to be repeated.

    Tensors that were there before are read and written where they are, as by a CUDA graph; what is made on the way lies
    in memory of the tape's own, and what nobody reads is left out. Numbers of Python are what they were.

    Parameters
    ----------
    function : callable
        Called once, without arguments.

    Raises
    ------
    RuntimeError
        If it does what cannot be repeated: tells Python what is in a tensor, or draws random numbers.
    """

    def __init__(self, function: Callable[[], object]):
        recorder = _Recorder()
        with recorder:
            function()
        self._operations = _needed(recorder.operations)

    @cached_property
    def _calls(self) -> list[Callable[[], object]]:
        buffers = _buffers(self._operations)
        return [operation.call(buffers) for operation in self._operations]

    def replay(self) -> None:
        """Repeat all operations."""
        for call in self._calls:
            call()


@dataclass(eq=False)
class _Piece:
    """Memory that an operation makes, and the number of the buffer that it gets."""

    nbytes: int
    buffer: int = -1


@dataclass(frozen=True)
class _Place:
    """A tensor in a piece of memory."""

    piece: _Piece
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def tensor(self, buffers: list[Tensor]) -> Tensor:
        return buffers[self.piece.buffer].view(self.dtype).as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True)
class _Operation:
    """Operation that makes results (None where nobody reads them) or writes into arguments; tensors may be places."""

    function: OpOverload
    args: tuple
    kwargs: dict
    results: list[_Place | None]
    into: Callable | None

    def pieces(self) -> Iterator[_Piece]:
        """Pieces of memory that the operation reads and writes."""
        return (place.piece for place in _found(_Place, (self.args, self.kwargs, self.results)))

    def call(self, buffers: list[Tensor]) -> Callable[[], object]:
        """The operation with all that it needs."""
        parts = self.args, self.kwargs, self.results
        args, kwargs, results = _mapped(_Place, lambda place: place.tensor(buffers), parts)
        if self.function in COPIES:
            return partial(results[0].copy_, args[0])
        if self.into:
            return partial(self.into, *args, **kwargs, out=results[0])
        if results:
            return partial(_fill, results, partial(_quick(self.function), *args, **kwargs))
        name = self.function.overloadpacket.__name__
        return partial(getattr(Tensor, name, self.function), *args, **kwargs)


def _fill(results: list[Tensor | None], function: Callable[[], Tensor | tuple[Tensor, ...]]) -> None:
    made = function()
    for result, new in zip(results, (made,) if isinstance(made, Tensor) else made, strict=True):
        if result is not None:
            result.copy_(new)


class _Recorder(TorchDispatchMode):
    """Mode that records every operation on tensors; where one consists of others, the others."""

    def __init__(self):
        super().__init__()
        self.operations: list[_Operation] = []
        self._pieces: dict[StorageWeakRef, _Piece] = {}  # the references keep addresses from being used again
        self._into: dict[OpOverload, Callable | None] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:
            results = function.decompose(*args, **kwargs)
        if results is not NotImplemented:
            return results
        if UNREPEATABLE.intersection(function.tags) and function is not ATTENTION:
            raise RuntimeError(f"{function.name()} cannot be repeated")
        results = function(*args, **kwargs)
        given = {_storage(t) for t in _found(Tensor, (args, kwargs))}
        new = [t for t in _found(Tensor, results) if _storage(t) not in given]
        if new or function._schema.is_mutable:
            if function not in self._into:
                self._into[function] = _into(function, args, kwargs, new)
            arguments = _mapped(Tensor, self._place, (args, kwargs))
            self._pieces |= {_storage(t): _Piece(t.untyped_storage().nbytes()) for t in new}
            places = [self._place(t) for t in new]
            self.operations.append(_Operation(function, *arguments, places, self._into[function]))
        return results

    def _place(self, t: Tensor) -> _Place | Tensor:
        piece = self._pieces.get(_storage(t))
        return t if piece is None else _Place(piece, t.dtype, t.shape, t.stride(), t.storage_offset())


def _needed(operations: list[_Operation]) -> list[_Operation]:
    """Operations that write into arguments, or whose results others read."""
    kept, read = [], set()
    for operation in reversed(operations):
        results = [place if place.piece in read else None for place in operation.results]
        if any(results) or not results:
            kept.append(replace(operation, results=results))
            read.update(operation.pieces())
    return kept[::-1]


def _buffers(operations: list[_Operation]) -> list[Tensor]:
    """Memory for all pieces; those that are not needed at the same time share a buffer."""
    last = {piece: k for k, operation in enumerate(operations) for piece in operation.pieces()}
    sizes: list[int] = []
    free: list[int] = []
    for k, operation in enumerate(operations):
        for piece in (place.piece for place in operation.results if place):
            free.sort(key=sizes.__getitem__)
            enough = [buffer for buffer in free if sizes[buffer] >= piece.nbytes]
            if not free:
                free, sizes = [len(sizes)], [*sizes, 0]
            piece.buffer = enough[0] if enough else free[-1]
            free.remove(piece.buffer)
            sizes[piece.buffer] = max(sizes[piece.buffer], -(-piece.nbytes // ALIGNMENT) * ALIGNMENT)
        free += {piece.buffer for piece in operation.pieces() if last[piece] == k}
    return [torch.empty(size, dtype=torch.uint8) for size in sizes]


def _into(function: OpOverload, args: tuple, kwargs: dict, results: list[Tensor]) -> Callable | None:
    """Function that writes a single result into memory that is there, where PyTorch can without a copy."""
    if len(results) != 1:
        return None
    packet, wanted = function.overloadpacket, [(a.name, str(a.type)) for a in function._schema.arguments]
    for overload in (getattr(packet, name) for name in packet.overloads()):
        taken = [(a.name, str(a.type)) for a in overload._schema.arguments if not a.is_out]
        if taken == wanted and torch.Tag.out in overload.tags and torch.Tag.generated not in overload.tags:
            quick = _quick(overload)
            try:
                quick(*args, **kwargs, out=torch.empty_like(results[0]))
            except TypeError:
                return overload
            return quick
    return None


def _quick(function: OpOverload) -> Callable:
    name = function.overloadpacket.__name__
    return next((getattr(space, name) for space in QUICK if hasattr(space, name)), function)


def _storage(t: Tensor) -> StorageWeakRef:
    return StorageWeakRef(t.untyped_storage())


def _found(kind: type, x) -> Iterator:
    """Everything of a kind in nested tuples, lists and dicts; PyTorch's own walk makes recording twice as slow."""
    if isinstance(x, kind):
        yield x
    elif isinstance(x, tuple | list | dict):
        for part in x.values() if isinstance(x, dict) else x:
            yield from _found(kind, part)


def _mapped(kind: type, function: Callable, x):
    """Copy of a structure with every ``kind`` in it replaced by what the function makes of it."""
    if isinstance(x, kind):
        return function(x)
    if isinstance(x, dict):
        return {key: _mapped(kind, function, part) for key, part in x.items()}
    return type(x)(_mapped(kind, function, part) for part in x) if isinstance(x, tuple | list) else x
