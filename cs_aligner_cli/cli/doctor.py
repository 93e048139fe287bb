"""doctor: is everything there that csalign, or one recipe, needs? Nothing is downloaded, nothing is left behind."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, version
from pathlib import Path
from typing import Literal, TypeAlias

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.errors import CsalignError, InputError
from cs_aligner_cli.common.extras import installed, require_package
from cs_aligner_cli.common.results import Frozen
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.recipe.packages import Need, needs
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe

_DISTRIBUTION = "cs-aligner-cli"
# Extras that make the tests and the checks of csalign itself.
_OURS = ("all", "test", "dev", "browser", "site")
_LITTLE, _NOTHING = 10e9, 0.2e9  # bytes of free disk

State: TypeAlias = Literal["ok", "warning", "failed"]


class Check(Frozen):
    """One thing that was looked at: "ok", "warning" (something optional) or "failed", and what to do then."""

    name: str
    state: State
    found: str
    remedy: str = ""


class DoctorResult(Frozen):
    """All that was looked at."""

    ok: bool
    checks: list[Check]

    @classmethod
    def of(cls, checks: Sequence[Check]) -> DoctorResult:
        """The checks, and whether none failed."""
        return cls(ok=all(check.state != "failed" for check in checks), checks=list(checks))

    def tables(self) -> list[Table]:
        """What doctor looked at: first what failed, then what is optional, then what is well."""
        order = ("failed", "warning", "ok")
        rows = [
            (check.name, check.state, f"{check.found}\n-> {check.remedy}" if check.remedy else check.found)
            for check in sorted(self.checks, key=lambda check: order.index(check.state))
        ]
        return [table("doctor", ["check", "state", "found"], rows)]


def _check(name: str, state: State, found: str, remedy: str = "") -> Check:
    return Check(name=name, state=state, found=found, remedy=remedy)


def examine(name_or_path: str | None, overrides: Sequence[str] = ()) -> list[Check]:
    """Look at the machine and, where a recipe is named, at all that it needs."""
    checks = [*_python(), *_extras(), *_devices(), *_faiss()]
    if name_or_path is None:
        return [*checks, *_folder("current folder", Path.cwd())]
    try:
        recipe = load_recipe(name_or_path, overrides)
    except InputError as error:
        return [*checks, _check("recipe", "failed", *_parted(error))]
    checks.append(_check("recipe", "ok", f"{recipe.name}, valid"))
    folders = {"run_dir": recipe.folder, "data.dir": recipe.data.dir, "embed.dir": recipe.embed.dir}
    for key, folder in folders.items():
        checks += _folder(key, folder) if folder else ()
    return [*checks, *_of_recipe(recipe)]


def _parted(error: Exception) -> tuple[str, str]:
    """The message of an error, and its hint."""
    found, _, remedy = str(error).partition("\n")
    return found, remedy


def _python() -> Iterator[Check]:
    from packaging.requirements import Requirement

    running = ".".join(map(str, sys.version_info[:3]))
    try:
        ours = distribution(_DISTRIBUTION)
    except PackageNotFoundError:
        yield _check("csalign", "failed", f"not installed, on Python {running}", f"pip install {_DISTRIBUTION}")
        return
    needs = [Requirement(text) for text in ours.requires or ()]
    needs = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    yield _check("csalign", "ok", f"{ours.version}, on Python {running}")
    good = []
    for need in needs:
        there = _version(need.name)
        if there is not None and need.specifier.contains(there, prereleases=True):
            good.append(f"{need.name} {there}")
        else:
            found = f"{there}, but {need.specifier} is needed" if there else "not installed"
            yield _check(need.name, "failed", found, f"pip install '{need.name}{need.specifier}'")
    yield _check("packages", "ok", ", ".join(good))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _extras() -> Iterator[Check]:
    """What may be added: one line for every extra."""
    from packaging.requirements import Requirement

    try:
        ours = distribution(_DISTRIBUTION)
    except PackageNotFoundError:
        return
    for extra in ours.metadata.get_all("Provides-Extra") or ():
        if extra in _OURS:
            continue
        needs = [Requirement(text) for text in ours.requires or ()]
        needs = [
            n
            for n in needs
            if n.marker and not n.marker.evaluate({"extra": ""}) and n.marker.evaluate({"extra": extra})
        ]
        found = {need.name: _version(need.name) for need in needs}
        if all(found.values()):
            yield _check(f"extra {extra}", "ok", ", ".join(f"{name} {there}" for name, there in found.items()))
        else:
            absent = ", ".join(name for name, there in found.items() if there is None)
            yield _check(
                f"extra {extra}", "warning", f"{absent} not installed", f"pip install '{_DISTRIBUTION}[{extra}]'"
            )


def _devices() -> Iterator[Check]:
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(i)
            yield _check(f"device cuda:{i}", "ok", f"{card.name}, {card.total_memory / 2**30:.0f} GiB")
    elif torch.backends.mps.is_available():
        yield _check("device mps", "ok", "Apple's GPU; auto takes the CPU", "device: mps in the recipe uses it.")
    yield _check("device cpu", "ok", f"{torch.get_num_threads()} threads, torch {torch.__version__}")


def _faiss() -> Iterator[Check]:
    try:
        import faiss
    except ImportError as error:
        yield _check("faiss", "failed", f"cannot be imported: {error}", "pip install faiss-cpu")
        return
    packages = [name for name in ("faiss-gpu", "faiss-cpu") if _version(name)]
    cards = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    where = f"on {cards} GPU{'s' * (cards > 1)}" if cards else "on the CPU"
    found = f"{faiss.__version__} ({' and '.join(packages) or 'of unknown origin'}), {where}"
    if len(packages) > 1:  # both put their files into one folder, and the later one wins
        remedy = "pip uninstall faiss-cpu faiss-gpu, then install one of them"
        yield _check("faiss", "warning", f"{found}: one package hides the other", remedy)
    else:
        yield _check("faiss", "ok", found)


def _folder(key: str, folder: Path) -> Iterator[Check]:
    """Whether a folder, which need not be there, can be written, and how much room it has."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    name = f"{key} {folder}"
    if not there.is_dir():
        yield _check(name, "failed", f"{there} is a file", f"Name another folder: --set {key}=FOLDER")
        return
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"csalign")
    except OSError as error:
        yield _check(
            name, "failed", f"{there} cannot be written: {error.strerror}", f"Name another: --set {key}=FOLDER"
        )
        return
    free = shutil.disk_usage(there).free
    state: State = "failed" if free < _NOTHING else "warning" if free < _LITTLE else "ok"
    remedy = "" if state == "ok" else f"Make room, or name a folder on another disk: --set {key}=FOLDER"
    yield _check(name, state, f"can be written, {free / 1e9:.1f} GB free", remedy)


def _of_recipe(recipe: Recipe) -> Iterator[Check]:
    """Data, towers, devices and extras, each by the very check that its stage begins with."""
    from cs_aligner_cli.common.modalities import MODALITIES
    from cs_aligner_cli.data.manifest import DrawnManifest, load_manifest
    from cs_aligner_cli.data.manifest_files import missing_shards, require_files
    from cs_aligner_cli.encoders import pick_device
    from cs_aligner_cli.runs.evaluated_sets import evaluated_sets
    from cs_aligner_cli.runs.layout import Layout
    from cs_aligner_cli.runs.other_runs import ORIGIN_FILE, trained_file

    def data(of: Recipe) -> str:
        manifest = load_manifest(of)
        require_files(manifest)
        return "drawn by csalign" if isinstance(manifest, DrawnManifest) else f"in {manifest.root}"

    sets = {f"eval_retrieval.sets.{i}": found.recipe for i, found in enumerate(evaluated_sets(Layout(recipe)).values())}
    for key, of in {"data": recipe, **sets}.items():
        yield (found := _tried(key, lambda of=of: data(of)))  # type: ignore[misc]
        yield from _missing(key, of)
        if found.state == "failed":
            continue
        for gap in missing_shards(load_manifest(of)):
            yield _check(key, "warning", gap, "Fetch them again, or leave it so: what is there is taken.")
        yield from _splits(of, "" if of is recipe else f"{key}: ")
    for number, other in enumerate(Layout(recipe).unpaired.values()):
        yield _tried(f"data.unpaired.sources.{number}", lambda of=other.recipe: data(of))  # type: ignore[misc]
    for modality in recipe.encoders.modalities:
        key = modality if modality in MODALITIES else f"further.{modality}"
        kind = recipe.encoders.of(modality).kind
        if kind == "features" or installed(kind):
            yield _tried(f"encoders.{key}", lambda m=modality: _tower(recipe, m))  # type: ignore[misc]
    yield _tried("embed.device", lambda: str(pick_device(recipe.embed.device)))
    if recipe.train is not None:
        train = recipe.train
        yield _tried("train.device", lambda: str(pick_device(train.device)))
        for key, run in train.other_runs:
            yield _tried(key, lambda key=key, run=run: str(trained_file(run, ORIGIN_FILE, key)))  # type: ignore[misc]
    yield from _generation(recipe)
    for need in needs(recipe):
        if need.key.startswith("encoders.") and installed(need.package):
            continue  # its tower was tried
        yield _tried(need.key, lambda need=need: _package(need))  # type: ignore[misc]


def _generation(recipe: Recipe) -> Iterator[Check]:
    """Weights that pictures are drawn and measured with, where the recipe takes them from elsewhere."""
    from cs_aligner_cli.generation.decoders import decoder_source
    from cs_aligner_cli.generation.inception import require_inception
    from cs_aligner_cli.runs.generation_layout import DECODER

    spec = recipe.generate
    if spec is None:
        return
    if spec.decoder.model is not None and installed("diffusers"):
        yield _tried("generate.decoder.model", lambda: decoder_source(spec, recipe.folder / DECODER))
    weights = spec.metrics.inception
    if weights is not None and installed("torch_fidelity"):
        yield _tried("generate.metrics.inception.weights", lambda: f"SHA-256 {require_inception(weights)}")


def _missing(key: str, recipe: Recipe) -> Iterator[Check]:
    """Every file of a data set that is not here, with its size and where it is published."""
    from cs_aligner_cli.data.manifest import DrawnManifest, read_manifest, root_of
    from cs_aligner_cli.data.manifest_files import missing_files
    from cs_aligner_cli.recipe.paths import HF

    try:
        manifest = read_manifest(recipe)
    except InputError:
        return  # which the check of the data has said
    if isinstance(manifest, DrawnManifest):
        return
    root = root_of(recipe, manifest)
    if str(root).startswith(HF):
        return  # what is not here is fetched
    for file in missing_files(manifest, root if root and root.is_dir() else None):
        yield _check(f"{key}: {file.name}", "failed", "not here", file.about)


def _splits(recipe: Recipe, of: str) -> Iterator[Check]:
    """Whether the splits that the recipe names are there, as far as its data are prepared or its manifest says."""
    from cs_aligner_cli.data.manifest import read_manifest
    from cs_aligner_cli.data.manifest_splits import KnownSplits, split_findings, stated_splits
    from cs_aligner_cli.data.prepared import PreparedData
    from cs_aligner_cli.runs.layout import Layout

    prepared = Layout(recipe).prepared
    known = stated_splits(read_manifest(recipe))
    if prepared.record() is not None:
        tables = PreparedData(prepared.path)
        names = sorted({*tables.images["split"], *tables.captions["split"]})
        parts = {name: tables.part(name) for name in names}
        known = KnownSplits({name: (len(p.images), len(p.captions)) for name, p in parts.items()}, True, True)
    # A set is not trained on, and its own recipe names its split as the one that is evaluated.
    findings = [
        f for f in split_findings(recipe, known, of_set=bool(of)) if not of or f.key.startswith("eval_retrieval")
    ]
    for finding in findings:
        yield _check(f"{of}{finding.key}", "failed" if finding.certain else "warning", finding.message)
    if not findings:
        checked = [recipe.eval_retrieval.split] if of else [*dict.fromkeys(recipe.splits.values())]
        unsure = "" if known.whole else " (whether the data have them is known once they are prepared)"
        yield _check(f"{of}splits", "ok", ", ".join(checked) + unsure)


def _tower(recipe: Recipe, modality: str) -> str:
    """What a tower is; one with weights from elsewhere that are here is loaded, and must tell items apart."""
    from cs_aligner_cli.encoders.availability import brings_weights, require_encoder_of, waits_for_hub
    from cs_aligner_cli.encoders.preflight import COUNT, check_towers

    found, spec = require_encoder_of(recipe, modality), recipe.encoders.of(modality)
    if not brings_weights(spec):
        return found
    if waits_for_hub(spec):
        return f"{found}, still to be fetched"
    encoder = check_towers(recipe, [modality])[modality]
    limit = f", reads {encoder.caption_limit.tokens} tokens" if encoder.caption_limit else ""
    return f"{found}, tells {COUNT} items apart{limit}"


def _package(need: Need) -> str:
    """A package that a recipe needs, with its version; raise InputError if it is not installed."""
    require_package(need.package, need.key)
    names = _distributions().get(need.package, [need.package])
    return f"{names[0]} {_version(names[0])}"


@cache
def _distributions() -> Mapping[str, list[str]]:
    """The distributions of every package by its import name: a second's reading of all that is installed."""
    return packages_distributions()


def _tried(name: str, call: Callable[[], str]) -> Check:
    try:
        return _check(name, "ok", call())
    except CsalignError as error:
        return _check(name, "failed", *_parted(error))


def refuse_failed(checks: Sequence[Check]) -> None:
    """Raise InputError if something that is needed is not there."""
    failed = [check.name for check in checks if check.state == "failed"]
    if failed:
        raise InputError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
