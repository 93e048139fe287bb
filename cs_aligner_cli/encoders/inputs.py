"""From rows of a table to what a tower takes: pixels, decoded and preprocessed on threads, or token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from cs_aligner_cli.common.cores import usable_cores
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.token_sequences import join_padded
from cs_aligner_cli.data.decode_pool import BadPictureError, DecodePool, can_share
from cs_aligner_cli.data.images import BadImageError, read_bytes, read_image
from cs_aligner_cli.data.pictures import on_background
from cs_aligner_cli.encoders.transforms import Parts

PADDING = -1
# Bytes of a picture's pixels that are few enough to keep, and of all that are kept.
_SMALL, _KEPT = 2**16, 2**28
# Rows per chunk of similar length, and the share of tokens in a batch from which chunks gain nothing.
_CHUNK, _FULL = 64, 0.8
# Beside a GPU with 16 cores 4 threads decoded 4,375 photos a second, 8 3,841 and 16 2,918 (`benchmarks/gpu.py decode`):
# the interpreter lock, that each photo takes a few times, then changes hands too often.
_DECODERS = 4
# With more cores than those threads can use, processes decode beside a GPU: so many at most.
_PROCESSES = 32
# What a crop by PIL, normalised elsewhere, may differ by from the library's own pixels.
_SAME = 1e-6


def decoders() -> int:
    """How many threads decode photos at most."""
    return min(usable_cores(), _DECODERS)


def decoding_processes() -> int:
    """How many processes decode photos beside a GPU: one for each core but this process's own; 0 where threads do."""
    if not can_share():
        return 0
    cores = usable_cores()
    return min(cores - 1, _PROCESSES) if cores > 2 * _DECODERS else 0


class ImageLoader:
    """Rows of the images' table to pixels (B, 3, H, W), each picture by ``preprocess``, the library's own.

    It sees the picture in the mode of its file (``pictures.normalised``), or in RGB on ``background`` where one is
    stated.
    ``workers`` threads decode at once (PIL lets go of the interpreter lock); more than it takes to keep the encoder
    busy only get in its way where it runs on the same cores. ``pinned``: pixels lie where a GPU fetches them from.
    ``parts`` are those of ``preprocess``, None where it is not known: with them rows may become crops, see ``crop``.
    """

    def __init__(
        self,
        preprocess: Callable[[Image.Image], Tensor],
        root: Path,
        background: str | None = None,
        parts: Parts | None = None,
    ) -> None:
        self.preprocess, self.root, self.background = preprocess, root, background
        self.workers, self.pinned = decoders(), False
        self._parts = parts.on_background(background) if parts else None
        self._crops, self._device = False, torch.device("cpu")
        self._kept: dict[tuple[Path, bool], Tensor] = {}
        self.processes: DecodePool | None = None

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(decoders(), "decode")

    def __call__(self, rows: pd.DataFrame) -> Tensor:
        """The pixels of some rows, or their crops, see ``crop``; InputError for a picture that is no longer whole."""
        paths = [self.root / locator for locator in rows["locator"]]
        if self.processes is not None:
            return self._in_processes(self.processes, paths)
        if self._device.type != "cpu":
            return self._on_device(paths)
        first = self._read(paths[0])
        # The decoding threads are in no inference mode that the caller may be in, and could not write a tensor of one.
        with torch.inference_mode(False):
            pixels = torch.empty((len(paths), *first.shape), dtype=first.dtype, pin_memory=self.pinned)
        pixels[0] = first

        def fill(places: range) -> None:
            for place in places:
                pixels[place] = self._read(paths[place])

        share = -(-(len(paths) - 1) // self.workers)
        if self.workers == 1 or share == 0:
            fill(range(1, len(paths)))
        else:
            list(self._pool.map(fill, [range(i, min(i + share, len(paths))) for i in range(1, len(paths), share)]))
        return pixels

    def crop(self, processes: DecodePool | None = None) -> bool:
        """Let rows become crops (B, H, W, 3) uint8 for ``finished`` from now on, decoded by ``processes`` if given.

        That cannot be where the library's preprocessing is not known, or does not agree with its parts on a picture.
        """
        if self._parts is not None:
            picture = Image.linear_gradient("L").convert("RGB").resize((331, 257))
            whole, crop = self.preprocess(picture), torch.from_numpy(self._parts.crop.of(picture).copy())
            apart = self._parts.normalised(crop[None])[0]
            self._crops = whole.shape == apart.shape and float((whole - apart).abs().max()) <= _SAME
            self.processes = processes if self._crops else None
        return self._crops

    def decode_jpegs(self, how: Literal["exact", "reduced", "device"], device: torch.device) -> None:
        """Decode JPEGs at a part of their size, or on a CUDA device, from now on; InputError where that cannot be."""
        if how == "exact":
            return
        if self._parts is None:
            raise InputError(
                f"embed.jpeg: {how} takes an encoder's preprocessing apart, and this one's is of another kind",
                "Leave embed.jpeg: exact.",
            )
        if how == "reduced":
            self._parts = replace(self._parts, crop=replace(self._parts.crop, reduced=True))
            return
        from cs_aligner_cli.encoders.device_jpeg import can_resize

        if not (can_resize(self._parts.crop) and self.crop()):
            raise InputError(
                "embed.jpeg: device has no filter as the encoder's preprocessing resizes by",
                "Leave embed.jpeg: exact, or reduced.",
            )
        self._device = device

    def finished(self, inputs: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) of what rows became, normalised on the device where crops lie."""
        if inputs.dtype != torch.uint8:
            return inputs
        assert self._parts is not None
        return self._parts.normalised(inputs)

    def _in_processes(self, processes: DecodePool, paths: Sequence[Path]) -> Tensor:
        assert self._parts is not None
        crop = self._parts.crop
        with torch.inference_mode(False):
            crops = torch.empty((len(paths), crop.height, crop.width, 3), dtype=torch.uint8, pin_memory=self.pinned)
        try:
            processes.read(paths, crop, crops.numpy())
        except BadPictureError as error:
            raise _no_longer_whole(error.path, error) from None
        return crops

    def _on_device(self, paths: Sequence[Path]) -> Tensor:
        from cs_aligner_cli.encoders.device_jpeg import device_crops, pil_crop

        assert self._parts is not None
        contents = list(self._pool.map(_bytes_of, paths))
        crops = device_crops(contents, self._parts.crop, self._device)
        for number, (path, content) in enumerate(zip(paths, contents, strict=True)):
            if crops[number] is None:
                try:
                    crops[number] = pil_crop(content, self._parts.crop).to(self._device)
                except BadImageError as error:
                    raise _no_longer_whole(path, error) from None
        return torch.stack([crop for crop in crops if crop is not None])

    def _read(self, path: Path) -> Tensor:
        """One picture's pixels or crop; small ones are kept for the next epoch, which would decode them again."""
        key = path, self._crops
        found = self._kept.get(key)
        if found is None:
            found = self._decoded(path)
            if found.nbytes <= _SMALL and found.nbytes * len(self._kept) < _KEPT:
                self._kept[key] = found
        return found

    def _decoded(self, path: Path) -> Tensor:
        try:
            image = self._parts.crop.picture(path) if self._parts else read_image(path).image
        except BadImageError as error:
            raise _no_longer_whole(path, error) from None
        if self._crops:
            assert self._parts is not None
            return torch.from_numpy(self._parts.crop.of(image).copy())
        return self.preprocess(image if self.background is None else on_background(image, self.background))


def _bytes_of(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except BadImageError as error:
        raise _no_longer_whole(path, error) from None


def _no_longer_whole(path: Path | str, error: BadImageError) -> InputError:
    return InputError(f"{path}: {error}; it was whole when the data were prepared", "Check it again: csalign prepare")


def pad_on_the_right(tokenizer: Any, key: str) -> None:
    """Let a tokenizer of transformers pad behind the text: batches are cut there, and the last token is looked for from
    the left. Where it has no padding token, as many decoders have none, its end of text is one: the mask tells them
    apart. Raises InputError where it has neither.
    """
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise InputError(
            f"{key}: the tokenizer has no padding token and no end of text to pad with",
            'Name one in its tokenizer_config.json: "pad_token".',
        )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token


def padded_ids(encoding: Any) -> Tensor:
    """Token ids (B, L) int64 of a tokenizer's output, PADDING where its attention mask is 0.

    One tensor says both, so that a batch can be cut and moved like any other.
    """
    ids: Tensor = encoding["input_ids"]
    mask = encoding.get("attention_mask")
    return ids if mask is None else ids.masked_fill(mask == 0, PADDING)


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Inputs of one kind one after another; token ids (B, L) and tokens (B, L, d) are padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].ndim == 3:
        return join_padded(parts)
    if parts[0].ndim == 2 and not parts[0].is_floating_point():
        longest = max(part.shape[1] for part in parts)
        parts = [nn.functional.pad(part, (0, longest - part.shape[1]), value=PADDING) for part in parts]
    return torch.cat([*parts])


def ids_and_mask(padded: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    """The (B, L) token ids and attention mask that ``padded_ids`` joined."""
    mask = padded != PADDING
    return padded.masked_fill(~mask, pad_id), mask.long()


def in_chunks_of_like_length(forward: Callable[[Tensor], Tensor], padded: Tensor) -> Tensor:
    """``forward`` of padded token ids (B, L) to (B, dim), without computing what a mixed batch pads.

    A training batch mixes lengths, and its longest caption may be three times the mean: the rows are computed in chunks
    of similar length, cut to it, and put back in order.
    """
    lengths = (padded != PADDING).sum(1)
    if len(padded) <= _CHUNK or int(lengths.sum()) > _FULL * padded.numel():
        return forward(padded)
    order = lengths.argsort(descending=True, stable=True)
    parts = [forward(padded[rows, : int(lengths[rows[0]])]) for rows in torch.split(order, _CHUNK)]
    return torch.cat(parts)[order.argsort()]


def tokenizer_identity(tokenizer: Any) -> str:
    """Class and digest of the vocabulary of a transformers tokenizer."""
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()
    return f"{type(tokenizer).__name__} {hashlib.blake2b(vocabulary, digest_size=8).hexdigest()}"


def refuse_foreign_tokenizer(tokens: int, embeddings: int, key: str) -> None:
    """Raise InputError if a tokenizer has ids for which the model has no embedding: it belongs to another model."""
    if tokens > embeddings:
        raise InputError(
            f"{key}: the tokenizer has {tokens} tokens, but the model's embedding table has {embeddings} rows",
            "The tokenizer in that folder belongs to another model; copy the one that the model was trained with.",
        )
