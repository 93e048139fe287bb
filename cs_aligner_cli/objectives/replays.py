"""CUDA graphs of functions of tensors, recorded once for every form of their inputs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import Lock

import torch
from torch import Tensor

Tensors = Sequence[Tensor | None]
Function = Callable[[Tensors], Tensors]
# Runs a function once on tensors that stay, and returns what does the same again, and where its results will be.
Recorder = Callable[[Function, Tensors], tuple[Callable[[], None], Tensors]]

_REMEMBERED = 256


def record_graph(function: Function, inputs: Tensors) -> tuple[Callable[[], None], Tensors]:
    """Record a CUDA graph of ``function(inputs)``: its replay, and the tensors that every replay fills."""
    graph = torch.cuda.CUDAGraph()
    # Other threads may call CUDA meanwhile: loaders pin memory.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = function(inputs)
    return graph.replay, outputs


class Replays:
    """Calls of functions that send no scalar to the host, replayed from the second call of a form on.

    A form is a name with the shapes, types and device of the inputs. The first call of a form is an ordinary one, in
    which kernels are compiled and chosen. Of the recorded forms the ``kept`` used last are kept, each with the memory
    of its intermediate results. A function reads nothing that changes but its inputs. Threads take turns; whoever calls
    from several streams puts the stream into the name, since a form's inputs have one place.
    """

    def __init__(self, record: Recorder = record_graph, kept: int = 4) -> None:
        self._record, self._kept = record, kept
        self._recorded: OrderedDict[Hashable, tuple[list[Tensor | None], Callable[[], None], Tensors]] = OrderedDict()
        self._seen: set[Hashable] = set()
        self._turn = Lock()

    def run(self, name: Hashable, function: Function, inputs: Tensors) -> list[Tensor | None]:
        """``function(inputs)``, in tensors of their own; equal names must mean equal functions."""
        with self._turn:
            form = (name, *((x.shape, x.dtype, x.device) if x is not None else None for x in inputs))
            if form not in self._seen:
                if len(self._seen) == _REMEMBERED:  # batches of ever other sizes make each a form
                    self._seen.clear()
                self._seen.add(form)
                return list(function(inputs))
            if form not in self._recorded:
                while len(self._recorded) >= self._kept:
                    self._recorded.popitem(last=False)
                places = [
                    None if x is None else x.detach().clone(memory_format=torch.contiguous_format) for x in inputs
                ]
                self._recorded[form] = (places, *self._record(function, places))
            self._recorded.move_to_end(form)
            places, replay, outputs = self._recorded[form]
            for place, x in zip(places, inputs, strict=True):
                if place is not None and x is not None:
                    place.copy_(x)
            replay()
            return [None if output is None else output.clone() for output in outputs]
