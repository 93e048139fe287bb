"""Alignments in closed form with scikit-learn's manners: fit on pairs, transform rows of either modality."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, in_range, refuse_not_finite
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.gap.baselines import Maps, fit_baseline, fit_cca

Embeddings: TypeAlias = npt.NDArray[np.float32]


@dataclass(eq=False)
class _Aligner(ABC):
    """Two affine maps of unit rows, fitted on row-paired arrays."""

    def fit(self, image: ArrayLike, text: ArrayLike) -> Self:
        """Fit both maps on pairs: image (N, d) and text (N, e), row by row one, N at least 4; return self.

        Rows are scaled to unit length first. Raises InputError on arrays that are not row-paired, or that hold a row
        of zeros, NaN or infinity; ``Centring`` also where d and e differ.
        """
        image, text = as_rows(image, "image"), as_rows(text, "text")
        self.image_map_, self.text_map_ = self._maps(image, text)
        self.n_features_in_ = {"image": int(image.shape[1]), "text": int(text.shape[1])}
        return self

    @overload
    def transform(self, image: ArrayLike) -> Embeddings: ...
    @overload
    def transform(self, image: None = None, *, text: ArrayLike) -> Embeddings: ...
    @overload
    def transform(self, image: ArrayLike, text: ArrayLike) -> tuple[Embeddings, Embeddings]: ...
    def transform(
        self, image: ArrayLike | None = None, text: ArrayLike | None = None
    ) -> Embeddings | tuple[Embeddings, Embeddings]:
        """Unit float32 rows in the shared space: of image (M, d), of text (N, e), or a pair of both, M and N any.

        Dot products of the rows are cosines. Raises InputError before ``fit``, and on rows of another dimension or
        with NaN or infinity.
        """
        if not hasattr(self, "n_features_in_"):
            raise InputError(f"{type(self).__name__}: is not fitted yet", "Call fit(image, text) with paired rows.")
        if image is not None and text is not None:
            return self._mapped("image", image), self._mapped("text", text)
        if image is None and text is None:
            raise InputError("transform: expected image, text or both, got neither")
        return self._mapped("image", image) if image is not None else self._mapped("text", text)

    def fit_transform(self, image: ArrayLike, text: ArrayLike) -> tuple[Embeddings, Embeddings]:
        """``fit`` on the pairs, then ``transform`` both."""
        return self.fit(image, text).transform(image, text)

    @abstractmethod
    def _maps(self, image: ArrayLike, text: ArrayLike) -> Maps:
        """The map of images and the map of texts."""

    def _mapped(self, modality: str, array: ArrayLike | None) -> Embeddings:
        assert array is not None
        rows, width = as_rows(array, modality), self.n_features_in_[modality]
        if rows.shape[1] != width:
            raise InputError(f"{modality}: rows have {rows.shape[1]} dimensions, but those of fit had {width}")
        row_map = self.image_map_ if modality == "image" else self.text_map_
        refuse_not_finite(rows, modality)
        mapped = row_map(in_range(rows.detach()).cpu().numpy())
        unit: Embeddings = mapped / np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return unit


@dataclass(eq=False)
class Centring(_Aligner):
    """Each modality minus its own mean: closes most of a centroid gap, and learns nothing (GR-CLIP, arXiv 2507.19054).

    image (N, d) and text (N, d) share one space, as CLIP's do.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> shared = rng.normal(size=(50, 8))
    >>> image, text = shared + 5, shared - 5
    >>> x, y = Centring().fit_transform(image, text)
    >>> bool(np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)) < 0.2)
    True
    """

    def _maps(self, image: ArrayLike, text: ArrayLike) -> Maps:
        return fit_baseline("centred", image, text)


@dataclass(eq=False)
class Procrustes(_Aligner):
    """Centred rows on the singular axes of their cross-covariance, an orthogonal map (Schoenemann 1966).

    image (N, d) and text (N, e) may differ in dimension; the shared space has the smaller of both.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> image = rng.normal(size=(50, 8))
    >>> rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    >>> x, y = Procrustes().fit_transform(image, image @ rotation)
    >>> bool(np.allclose((x * y).sum(axis=1), 1, atol=1e-5))
    True
    """

    def _maps(self, image: ArrayLike, text: ArrayLike) -> Maps:
        return fit_baseline("procrustes", image, text)


@dataclass(eq=False)
class CCA(_Aligner):
    """Centred rows on their canonical axes, weighted by the correlations (Hotelling 1936; Gong et al. 2014).

    The strongest alignment without training between unlike encoders. image (N, d) and text (N, e) may differ in
    dimension; the shared space has the smaller of both. ``shrinkage`` is added to both covariances as a share of
    their mean eigenvalue; None: that of 0.01, 0.1, 1 and 10 which ranks the last fifth of the pairs best.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> shared = rng.normal(size=(200, 4))
    >>> image, text = shared @ rng.normal(size=(4, 16)), shared @ rng.normal(size=(4, 12))
    >>> cca = CCA(shrinkage=0.01).fit(image[:150], text[:150])
    >>> cca.transform(image[150:]).shape, cca.transform(text=text[150:]).shape
    ((50, 12), (50, 12))
    """

    shrinkage: float | None = None

    def _maps(self, image: ArrayLike, text: ArrayLike) -> Maps:
        return fit_cca(image, text, self.shrinkage)
