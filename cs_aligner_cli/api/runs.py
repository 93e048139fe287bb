"""Runs from Python: make one, open one, and use what it trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.arguments import as_path
from cs_aligner_cli.common.arrays import ArrayLike, as_rows
from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.modalities import ALIGNED, FROZEN
from cs_aligner_cli.data.images import BadImageError, read_image
from cs_aligner_cli.recipe.encoders import FeaturesEncoder
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.run_record import read_run_record
from cs_aligner_cli.stages.pipeline import run_all

if TYPE_CHECKING:
    from cs_aligner_cli.api.adapters import FittedAdapter
    from cs_aligner_cli.search.query_encoder import QueryEncoder
    from cs_aligner_cli.stages.search import SearchResult

Embeddings: TypeAlias = npt.NDArray[np.float32]
PathLike: TypeAlias = str | Path
Item = TypeVar("Item")
# Of two threads that want the same encoders, one loads them.
_LOADING = Lock()


class Run:
    """A run's folder: its recipe, its numbers, and the towers that it trained."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._encoders: dict[str, QueryEncoder] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        return self.recipe.folder

    @property
    def report(self) -> Path:
        """The page with the gap's numbers and figures."""
        return self.folder / "gap_report" / "report.html"

    @cached_property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """All numbers by store ("frozen", "aligned", ...), as `csalign run --json` has them.

        ``metrics["aligned"]["i2t"]["R@1"]`` is a fraction; retrieval stands under "i2t", "t2i", "both" and "mixed", the
        gap's metrics under "gap".

        Raises InputError where neither eval-retrieval nor gap-report is done.
        """
        record = Layout(self.recipe).run_record
        stages = read_run_record(record)["stages"] if record.is_file() else {}
        parts = {name: stages[name] for name in ("eval_retrieval", "gap_report") if name in stages}
        if not parts:
            raise InputError(
                f"{self.folder}: nothing is measured yet", "Run its recipe: csalign run RECIPE, or run(recipe) here."
            )
        found: dict[str, dict[str, Any]] = {}
        for store, directions in parts.get("eval_retrieval", {}).get("eval_retrieval", {}).items():
            found.setdefault(store, {}).update(directions)
        for store, values in parts.get("gap_report", {}).get("gap_report", {}).items():
            found.setdefault(store, {})["gap"] = values
        return found

    @overload
    def embed(self, *, images: Sequence[PathLike], store: str = ALIGNED) -> Embeddings: ...
    @overload
    def embed(self, *, texts: Sequence[str], store: str = ALIGNED) -> Embeddings: ...
    @overload
    def embed(
        self, *, images: Sequence[PathLike], texts: Sequence[str], store: str = ALIGNED
    ) -> tuple[Embeddings, Embeddings]: ...
    def embed(
        self,
        *,
        images: Sequence[PathLike] | None = None,
        texts: Sequence[str] | None = None,
        store: str = ALIGNED,
    ) -> Embeddings | tuple[Embeddings, Embeddings]:
        """Unit float32 rows (n, d) of image files, of texts, or a pair of both, through encoders and trained towers.

        ``store`` "frozen" leaves the trained part out, "pairwise_only" takes the control's. The encoders are loaded
        once, and an empty list counts as none. Raises InputError where nothing is given, a bare string stands for a
        list, a picture cannot be read, or the modality's encoder is stored features, which cannot embed anything new
        (``apply`` maps features).
        """
        from cs_aligner_cli.search.query_encoder import QueryEncoder, require_encoder

        items = {
            "image": [
                str(Path(path).resolve()) for path in _listed(() if images is None else images, "images", str | Path)
            ],
            "text": _listed(() if texts is None else texts, "texts", str),
        }
        given = {modality: values for modality, values in items.items() if values}
        if not given:
            raise InputError("embed: expected images, texts or both, got none")
        for modality in given:
            require_encoder(self.recipe, modality, "Map features of your own: run.apply(array, modality).")
        for path in given.get("image", ()):
            try:
                read_image(Path(path))
            except BadImageError as error:
                raise InputError(f"{path}: {error}") from None
        self._require_store(store)
        with _LOADING:
            if store not in self._encoders:
                self._encoders[store] = QueryEncoder(self.recipe, store)
        found = [self._encoders[store].embed(m, values).numpy() for m, values in given.items()]
        return found[0] if len(found) == 1 else (found[0], found[1])

    def apply(self, array: ArrayLike, modality: str, store: str = ALIGNED) -> Embeddings:
        """Unit float32 rows (N, k) in the shared space, of features (N, d) through the trained adapter of a modality.

        ``array`` holds features of the run's encoder, of any length; for encoders of kind features rows as their file
        has them, to which the recipe's ``power`` is applied. Raises InputError on another modality or dimension, where
        nothing was trained, and where a tower is no adapter on pooled features (``embed`` takes items).
        """
        spec, rows = self.recipe.encoders.of(modality), as_rows(array, modality)
        if isinstance(spec, FeaturesEncoder) and spec.power != 1:
            from cs_aligner_cli.encoders.features import SignedPower

            rows = SignedPower(spec.power)(rows)
        return self._adapter(store).apply(rows, modality)

    def search(
        self,
        *,
        texts: Sequence[str] = (),
        images: Sequence[PathLike] = (),
        ids: Sequence[str] = (),
        k: int | None = None,
        store: str | None = None,
        gallery: str | None = None,
        rerank: bool = True,
    ) -> SearchResult:
        """The k nearest items of the measured split to sentences, image files and known ids, as `csalign search`.

        ``queries[i].results`` are those of the i-th query (ids first, then texts, then images), the best first, each
        with ``score`` (the cosine), ``id``, ``image_path`` and ``caption``. ``k`` None: 10, or the whole gallery where
        it is smaller. ``gallery`` is "image" or "text"; None: the modality that the query is not of. Where the recipe
        reranks the store, its first hits are in the order of the matching head, each with ``matching_logit``, unless
        ``rerank`` is False. Raises InputError as `csalign search`.
        """
        from cs_aligner_cli.stages.search import SearchRequest, search

        photos = [Path(path) for path in _listed(images, "images", str | Path)]
        known = _listed(ids, "ids", str)
        request = SearchRequest(_listed(texts, "texts", str), photos, known, k, store, gallery, rerank=rerank)
        return search(self.recipe, Console(quiet=True), request)

    def _require_store(self, store: str) -> None:
        there = [FROZEN, *Layout(self.recipe).aligned_names]
        if store not in there:
            raise InputError(f"store: this run has no {store!r}{did_you_mean(store, there)}")

    def _adapter(self, store: str) -> FittedAdapter:
        from cs_aligner_cli.api.adapters import load_adapter

        self._require_store(store)
        if store == FROZEN:
            raise InputError("store: the frozen encoders have no adapter", "Use store='aligned'.")
        return load_adapter(Layout(self.recipe).weights(store))


def _listed(items: Sequence[Item], name: str, kind: type[Item] | UnionType) -> list[Item]:
    """Items of the kind, as a list; a bare string is a sequence of letters, and never meant as one."""
    if isinstance(items, str | Path):
        raise InputError(f"{name}: expected a list, got {str(items)!r} alone", f"Put it into a list: {name}=[...].")
    if not isinstance(items, Iterable):
        raise InputError(f"{name}: expected a list, got {items!r}")
    found = list(items)
    for number, item in enumerate(found):
        if not isinstance(item, kind):
            what = "a path" if name == "images" else "a string"
            raise InputError(f"{name}: item {number} is {item!r}, expected {what}")
    return found


def run(
    recipe: PathLike | Mapping[str, Any] | Recipe | None = None,
    overrides: Sequence[str] = (),
    *,
    force: bool = False,
    archive: bool = False,
    quiet: bool = False,
) -> Run:
    """Run all stages of a recipe, as `csalign run`; what is up to date is not done again. Returns the run.

    ``recipe`` is a file, the name of a shipped recipe, its content as a dict, or what ``load_recipe`` gave; None:
    $CSALIGN_RECIPE, then ./recipe.yaml. ``overrides`` are as with --set: ["train.lr=1e-3"]. ``force`` does all again,
    ``archive`` moves finished work aside that would be replaced, ``quiet`` shows no progress on stderr. Raises
    InputError where the command ends with exit code 2.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise InputError("overrides: go with the name, file or content of a recipe; this one is loaded already")
        loaded = recipe
    else:
        loaded = load_recipe(str(recipe) if isinstance(recipe, Path) else recipe, overrides)
    run_all(loaded, Console(quiet=quiet), force, archive=archive)
    return Run(loaded)


def open_run(folder: PathLike) -> Run:
    """The run in a folder that `csalign run` or ``run`` wrote; it may have been moved since.

    Raises InputError where the folder holds no run.
    """
    folder = as_path(folder, "folder")
    file = folder / "recipe.yaml"
    if not file.is_file() or not (folder / "run.json").is_file():
        raise InputError(
            f"{folder}: holds no run (recipe.yaml and run.json are not there)",
            "Name a run's folder, as in runs/scenes.",
        )
    return Run(load_recipe(str(file), settings={"run_dir": str(folder.resolve())}))
