"""``merge``: a recipe of deltas and checkpoints, made into a checkpoint or a delta."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from sparsedelta.checkpoint import FileCheckpoint
from sparsedelta.checkpoint_files import find_files
from sparsedelta.delta_reader import DeltaReader
from sparsedelta.errors import CheckpointError, DeltaGivenError, HubError, UsageError
from sparsedelta.hub.named_base import at_named_commit, pin_together
from sparsedelta.locations import Location, LocationLike, Url, as_location, output_path
from sparsedelta.merging.gradients import Depths, Value, resolve
from sparsedelta.merging.methods import BoundMethod, check_settings, checked
from sparsedelta.merging.outcome import TensorMethod
from sparsedelta.merging.recipes import DTYPES, ModelEntry, Recipe, read_recipe
from sparsedelta.merging.settings import Settings, TaskSettings
from sparsedelta.open_delta import open_delta
from sparsedelta.operations.compose import ComposeReport, composed_delta
from sparsedelta.operations.composed_checkpoint import ComposedReport, write_checkpoint
from sparsedelta.operations.composition import Composition
from sparsedelta.operations.moves import find_moves
from sparsedelta.operations.parts import DeltaOutput
from sparsedelta.operations.tasks import CheckpointTask, DeltaTask, Task
from sparsedelta.operations.weighted import base_leaves, check_base, check_bases
from sparsedelta.parallel import OrderedMap
from sparsedelta.progress import Progress, silent
from sparsedelta.ranks import ALONE, Ranks
from sparsedelta.rounding import FLOATS
from sparsedelta.words import TensorSpec

_TASK_SETTINGS = ("weight", "density", "gamma", "epsilon")


def merge(
    recipe: Path | str | Recipe,
    out: LocationLike | None,
    *,
    as_delta: bool = False,
    seed: int | None = None,
    lean: bool = False,
    max_shard_size: int | None = None,
    shards: int | None = None,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> ComposedReport | ComposeReport:
    """Carry out a recipe as mergekit has them; see docs/composing.md.

    Models are deltas of the base, or checkpoints of the same tensors, which are compared with it on
    the fly; nothing dense is built of them.

    Args:
        recipe: The recipe, or the file that holds it.
        out: The output: a checkpoint as the base is one, or a delta. None: dry runs only.
        as_delta: Write the delta from the base, not a checkpoint.
        seed: What random methods draw from; None: the recipe's, or 0.
        lean: Of a delta: leave out the digests of the tensors that stay.
        max_shard_size: Of a delta: write a set of part files of about this many bytes.
        shards: Of a delta: write a set of this many part files. By default the number of ranks.
        metadata: Of a delta: provenance, beside what is recorded of the models.
        threads: Worker threads; None for the cores of this process.
        force: Replace an existing output.
        dry_run: Do everything but leave the output behind.
        progress: Told how many bytes were done, and of how many: by this rank.
        ranks: The processes that do this together, each with tensors of its own.

    Raises:
        UsageError: The recipe says what makes no sense; names the line.
        CheckpointError: A model is not found, or cannot be read.
        WrongBaseError: A delta starts at another base.
        StructureError: The models exclude each other.
        NotFiniteError: A number that is met or made is not finite.
        OutputError: The output exists, or cannot be written.
        RankError: Another rank failed; nothing is left behind.
    """
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(Path(recipe))
    if out is None and (as_delta or not dry_run):
        raise UsageError("an output is missing", hint="name it: -o OUT")
    if not as_delta and (lean or max_shard_size is not None or shards is not None or metadata):
        raise UsageError(
            "lean, shards, their size and metadata are of a delta; a checkpoint is written in "
            "files like those of the base",
            hint="say --as-delta (as_delta=True)",
        )
    path = None if out is None else output_path(out)
    with ExitStack() as stack:
        stack.enter_context(ranks.together())
        pool = stack.enter_context(OrderedMap(threads))
        composition = composed(recipe, stack, seed=seed, ranks=ranks)
        if not as_delta or path is None:
            return write_checkpoint(
                composition,
                path,
                pool=pool,
                progress=progress,
                ranks=ranks,
                force=force,
                dry_run=dry_run,
            )
        output = DeltaOutput(
            path,
            lean=lean,
            max_shard_size=max_shard_size,
            shards=shards,
            metadata=metadata or {},
            force=force,
            dry_run=dry_run,
        )
        return composed_delta(composition, output, pool=pool, progress=progress, ranks=ranks)


def composed(
    recipe: Recipe, stack: ExitStack, *, seed: int | None = None, ranks: Ranks = ALONE
) -> Composition:
    """What a recipe puts together, opened; nothing of it has been read but headers.

    Args:
        recipe: The recipe.
        stack: Closes what is opened here.
        seed: What random methods draw from; None: the recipe's, or 0.
        ranks: The processes that do this together; all read the Hub at the same commits.
    """
    models = list(recipe.models)
    base_entry = recipe.base
    if base_entry is None:
        if recipe.method.name != "linear":
            raise UsageError(
                f"{recipe.path}: {recipe.method.name} needs a 'base_model'",
                hint="name the checkpoint that all models were made from",
            )
        base_entry = models[0]
    own = _base_among(recipe, base_entry)
    others = [model for model in models if model != own]
    places = [pin_together(_found(recipe, model), ranks) for model in others]
    home = pin_together(at_named_commit(_found(recipe, base_entry), places), ranks)
    base = _open(recipe, base_entry, home)
    if isinstance(base, DeltaReader):
        base.close()
        raise UsageError(
            f"{recipe.path}, line {base_entry.line}: the base {base_entry.name} is a delta, "
            "expected a checkpoint"
        )
    stack.enter_context(base)
    tasks: list[Task] = []
    for number, (model, place) in enumerate(zip(others, places, strict=True)):
        reader = _open(recipe, model, place)
        stack.enter_context(reader)
        if isinstance(reader, DeltaReader):
            tasks.append(DeltaTask(reader))
        else:
            tasks.append(CheckpointTask(reader, base, f"model {number}"))
    readers = [task.reader for task in tasks if isinstance(task, DeltaTask)]
    check_bases(readers)
    for reader in readers:
        check_base(base, reader)
    recipe.method.check(len(tasks))
    _check_dtype(recipe, base)
    order = list(range(len(tasks)))
    if not recipe.method.is_ordered:
        order.sort(key=lambda n: tasks[n].identity)
    chosen = [tasks[n] for n in order]
    plan = RecipePlan(
        replace(recipe, models=tuple(others[n] for n in order)),
        tuple(task.identity for task in chosen),
        own,
        Depths(base.specs),
        seed if seed is not None else recipe.seed or 0,
    )
    names = [spec.name for spec in base.specs.values()]
    for name in names:  # what makes no sense is said before anything is read
        if plan.settings(name).t is None and recipe.method.name == "slerp" and len(tasks) == 1:
            raise UsageError(
                f"{recipe.path}: 't' is missing among the parameters",
                hint="where between the base, 0, and the other model, 1",
            )
    return Composition(
        base,
        chosen,
        plan.method,
        moves=find_moves(chosen, lambda number, name: plan.settings(name).tasks[number].weight),
        leaves=base_leaves(readers),
        fingerprint=readers[0].manifest.base if readers else None,
        weights=plan.settings(names[0] if names else "").weights,
        provenance=_provenance(plan, chosen),
    )


class RecipePlan:
    """The settings of a recipe for each tensor.

    Args:
        recipe: The recipe, of which the models are the tasks.
        identities: What random numbers of each task are drawn from.
        base: The base as one of the models, if it is.
        depths: How deep tensors lie.
        seed: What random numbers are drawn from.
    """

    def __init__(
        self,
        recipe: Recipe,
        identities: tuple[str, ...],
        base: ModelEntry | None,
        depths: Depths,
        seed: int,
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self._identities = identities
        self._base = base
        self._depths = depths

    def method(self, spec: TensorSpec) -> TensorMethod:
        """The method as it is set for a tensor."""
        return BoundMethod(self.recipe.method, self.settings(spec.name))

    def settings(self, tensor: str) -> Settings:
        """The settings for a tensor.

        Raises:
            UsageError: A value that makes no sense; names the parameter and the tensor.
        """
        recipe, method = self.recipe, self.recipe.method
        depth = self._depths(tensor)

        def value(name: str, model: ModelEntry | None) -> Value | None:
            scopes = [recipe.settings] if model is None else [model.settings, recipe.settings]
            return resolve(name, tensor, depth, *scopes)

        def given(names: Sequence[str], model: ModelEntry | None) -> dict[str, Value]:
            found = {name: value(name.rstrip("_"), model) for name in names}
            return {name: checked(name, v) for name, v in found.items() if v is not None}

        try:
            tasks = tuple(
                TaskSettings(**given(_TASK_SETTINGS, model))  # type: ignore[arg-type]
                for model in recipe.models
            )
            shared: dict[str, object] = dict(method.defaults or {})
            shared |= given(sorted(method.parameters - set(_TASK_SETTINGS)), None)
            if method.name == "linear" and self._base is not None:
                shared["base_weight"] = given(["weight"], self._base).get("weight", 1.0)
            settings = Settings(tasks, self._identities, seed=self.seed, **shared)  # type: ignore[arg-type]
            check_settings(method, settings)
        except UsageError as error:
            raise UsageError(
                f"{recipe.path}: tensor {tensor!r}: {error.message}", hint=error.hint
            ) from None
        return settings


def _open(
    recipe: Recipe, model: ModelEntry, location: LocationLike
) -> FileCheckpoint | DeltaReader:
    try:
        try:
            return FileCheckpoint(location)
        except DeltaGivenError:
            return open_delta(location)
    except HubError as error:
        raise HubError(
            f"{recipe.path}, line {model.line}: there is no checkpoint or delta {model.name} here, "
            f"and {error.message}",
            reason=error.reason,
            hint=error.hint,
        ) from error.__cause__


def _found(recipe: Recipe, model: ModelEntry) -> Location:
    location = as_location(model.name)
    if isinstance(location, Url) and "://" in model.name:
        return location
    here = location if isinstance(location, Path) else Path(model.name)
    # A file beside the recipe, too, comes before the Hub.
    for place in (here, Path(recipe.path).parent / here):
        try:
            if place.exists():
                return place
        except (OSError, ValueError):  # too long for a name, or a NUL in it
            break
    if isinstance(location, Url):
        return location
    raise CheckpointError(
        f"{recipe.path}, line {model.line}: there is no checkpoint or delta {model.name}",
        hint="models are local paths, URLs, or models of the Hub as NAMESPACE/NAME[@REVISION]"
        + ("; MODEL+LORA is not supported" if "+" in model.name else ""),
    )


def _base_among(recipe: Recipe, base: ModelEntry) -> ModelEntry | None:
    """The base as one of the models, if it is."""
    home = _files(recipe, base)
    own = [m for m in recipe.models if m.name == base.name or _files(recipe, m) == home]
    if len(own) > 1:
        raise UsageError(
            f"{recipe.path}, line {own[1].line}: {own[1].name} is the base, which is among the "
            f"models already, in line {own[0].line}",
            hint="name it once, with the weight of both",
        )
    return own[0] if own else None


def _files(recipe: Recipe, model: ModelEntry) -> Location | tuple[Path, ...]:
    """What a model lies in, however it is spelled: a folder and what it holds are the same."""
    location = _found(recipe, model)
    if not isinstance(location, Path):
        return location
    try:
        return tuple(sorted(Path(str(f)).resolve() for f in find_files(location).files))
    except (CheckpointError, OSError, RuntimeError, ValueError):  # said where it is opened
        return location.absolute()


def _check_dtype(recipe: Recipe, base: FileCheckpoint) -> None:
    if recipe.out_dtype is None:
        return
    for spec in base.specs.values():
        if spec.dtype in FLOATS and spec.dtype != recipe.out_dtype:
            names = {ours: theirs for theirs, ours in DTYPES.items()}
            raise UsageError(
                f"{recipe.path}: the output shall be {names[recipe.out_dtype]}, but tensor "
                f"{spec.name!r} of the base is {spec.dtype}, and tensors keep their dtypes",
                hint=f"out_dtype: {names[spec.dtype]}, or none; what is computed is float64",
            )


def _provenance(plan: RecipePlan, tasks: Sequence[Task]) -> Mapping[str, str]:
    parents = [
        {"content": task.identity, "target": task.reader.manifest.target}
        if isinstance(task, DeltaTask)
        else {"model": Path(task.name).name}
        for task in tasks
    ]
    found = {
        "compose.method": plan.recipe.method.name,
        "compose.parents": json.dumps(parents),
    }
    if plan.recipe.method.is_random:
        found["compose.seed"] = str(plan.seed)
    return found
