"""Replaying recorded calls: what is recorded when, with a recorder for the CPU in place of CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cs_aligner_cli.objectives.replays import Function, Replays, Tensors


class Recorder:
    """Does what a graph does: calls again on the tensors recorded, and fills those that it gave first."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, function: Function, inputs: Tensors) -> tuple[Callable[[], None], Tensors]:
        self.recorded += 1
        outputs = function(inputs)
        for output in outputs:
            if output is not None:
                output.fill_(torch.nan)  # as long as nothing is replayed nothing is there

        def replay() -> None:
            self.replayed += 1
            for output, new in zip(outputs, function(inputs), strict=True):
                if output is not None and new is not None:
                    output.copy_(new)

        return replay, outputs


def sums(inputs: Tensors) -> Tensors:
    x, weight = inputs[0], inputs[1]
    assert x is not None and weight is not None
    return [weight * x, None]


def test_a_form_is_recorded_once_and_its_results_are_no_views() -> None:
    recorder = Recorder()
    replays = Replays(recorder)
    kept = []
    for number in range(4):
        x, weight = torch.full((3,), float(number)), torch.tensor(2.0 + number)
        found, nothing = replays.run("sums", sums, [x, weight, None])
        assert nothing is None and found is not None
        kept.append((found, weight * x))
    for found, expected in kept:
        torch.testing.assert_close(found, expected)
    assert (recorder.recorded, recorder.replayed) == (1, 3)


def test_other_shapes_and_names_are_other_forms_of_which_the_latest_stay() -> None:
    recorder = Recorder()
    replays = Replays(recorder, kept=2)
    weight = torch.tensor(3.0)
    for size in (1, 1, 2, 2, 1, 3, 3):  # the third form takes the place of 2, the one unused longest
        x = torch.ones(size)
        found, _ = replays.run("sums", sums, [x, weight])
        torch.testing.assert_close(found, 3 * x)
    assert recorder.recorded == 3
    replays.run("sums", sums, [torch.ones(1), weight])
    assert recorder.recorded == 3
    replays.run("sums", sums, [torch.ones(2), weight])
    assert recorder.recorded == 4
    replays.run("other", sums, [torch.ones(1), weight])
    assert recorder.recorded == 4  # the first call of a name is an ordinary one
