"""Find the sets of weights in a file by the network's parameter names, and choose which one to read.

A set is found by its names, not by its place: ``state_dict``, ``model``, ``ema_model.module``, nothing at all. Wrappers
(``module.``, ``_orig_mod.``, ...) may stand anywhere in a name. A set is a moving average if its place says so
(:func:`is_average`), or if it is a list of arrays in the order of the parameters at such a place.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pds_jax.convert.pickles import OtherObject
from pds_jax.convert.tree import ConversionError, Report

WRAPPERS = frozenset(
    "module _orig_mod _fsdp_wrapped_module _checkpoint_wrapped_module _forward_module "
    "_parameters _buffers _modules".split()
)
RAW = "ask by use_ema=False, on the command line by --raw_weights"
AS_SAVED = "as saved"  # of a kind of file that keeps one set of weights
ROOT = "the file's top level"
_MAX_DEPTH = 64
_MAX_VISITS = 1_000_000
_AVERAGES = frozenset("average averages averaged avg shadow shadows swa polyak".split())
_RAW_WORDS = frozenset("online raw student backup collected stored original".split())
_NO_AVERAGES = frozenset("email schema cinema".split())
_TRAINING = frozenset("opt optim optims optimizer optimizers optimiser adam grad grads gradients mu nu moments".split())
_LIGHTNING = ["current_model_state", "state_dict"]
# What diffusion models register beside their weights: it follows from the config.
_SCHEDULE = re.compile(r"(discrete_)?(sigmas|betas|alphas|timesteps)(_\w+)?|(sqrt|log|posterior|p2|loss)_\w+|logvar")


@dataclasses.dataclass(frozen=True)
class Expected:
    """The names that a network's parameters have in a file.

    ``names``, ``ordered`` if that is the order in which the program registers them, ``aliases`` {other name: name},
    ``frozen`` those that never train, ``separator`` between the parts of a name.
    """

    names: Sequence[str]
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    frozen: frozenset[str] = frozenset()
    separator: str = "."
    ordered: bool = True


@dataclasses.dataclass
class WeightSet:
    """One set of weights: where it lies, whether it is a moving average, its arrays by the network's names.

    ``rest`` is what else lies there, by its names.
    """

    where: str
    average: bool
    arrays: dict[str, Any]
    rest: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The arrays to read by the network's names, and the buffers of the file, which are none of its parameters."""

    arrays: dict[str, Any]
    buffers: dict[str, Any]


class NoWeights(ConversionError):
    """A file holds no arrays with the names of the network."""


@dataclasses.dataclass
class _Contents:
    """Arrays by their full names, in order, and lists of arrays by place."""

    arrays: dict[str, Any]
    lists: dict[str, list[Any]]
    visits: int = 0


def is_average(place: str) -> bool:
    """Whether a name is that of averaged weights; its last telling word decides.

    >>> [is_average(place) for place in ("model_ema", "ema/shadow_params", "netEMA", "ema.online_model", "schema")]
    [True, True, True, False, False]
    """
    for word in reversed(_words(place)):
        if word in _RAW_WORDS:
            return False
        if word in _AVERAGES or ((word.startswith("ema") or word.endswith("ema")) and word not in _NO_AVERAGES):
            return True
    return False


def _is_training(place: str) -> bool:
    """Whether a place holds an optimiser's moments; flax.optim keeps the raw weights there too, as its target."""
    words = _words(place)
    return bool(_TRAINING & set(words)) and "target" not in words


def _words(place: str) -> list[str]:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", place)
    return [word.lower() for word in re.split(r"[^A-Za-z]+", spaced) if word]


def choose(value: Any, kind: type, expected: Expected, report: Report, use_ema: bool, *, alone: bool = False) -> Chosen:
    """The set of weights to read.

    ``value`` is what a file holds, ``kind`` the class of its arrays, with ``shape`` and ``dtype``. The moving average
    is read if ``use_ema``, else the raw weights; the raw ones too where a file has no average, and the report says so.
    ``alone`` says that files of this kind keep one set, whose name means nothing.

    Raises NoWeights if there is no set, ConversionError if the one asked for is not there or several could be meant.
    """
    try:
        return _choose(value, kind, expected, report, use_ema, alone)
    except ConversionError as error:
        raise type(error)(f"{report.path}: {error}") from error


def _choose(value: Any, kind: type, expected: Expected, report: Report, use_ema: bool, alone: bool) -> Chosen:
    contents = _collect(value, kind, expected.separator)
    sets = _named_sets(contents, expected)
    raw = [found for found in sets if not found.average]
    averages = [found for found in sets if found.average]
    with contextlib.nullcontext() if use_ema else contextlib.suppress(ConversionError):
        averages += _listed(contents.lists, kind, expected, raw)
    _name_averages(value, raw, averages)
    if not raw and not averages:
        raise NoWeights(_nothing(contents, expected))
    if use_ema and not averages:
        _refuse_other_averages(contents)
    chosen = raw[0] if alone and len(raw) == 1 and not averages else _pick(averages, raw, use_ema, report)
    _complete(chosen, raw, expected)
    _account(chosen, averages + raw, contents, value, expected.separator, report)
    buffers = {name: array for found in (*raw, chosen) for name, array in found.rest.items()}
    return Chosen(chosen.arrays, {name: array for name, array in buffers.items() if name not in chosen.arrays})


def _refuse_other_averages(contents: _Contents) -> None:
    """Arrays that are called averages and lack the network's names must not be skipped for the raw weights."""
    for name, array in contents.arrays.items():
        if is_average(name) and not _is_training(name) and "exp_avg" not in name and _may_be_weight(array):
            raise ConversionError(
                f"{name!r} is called a moving average, but the arrays there lack names of the network; is this the "
                f"config it was trained with? For the raw weights {RAW}"
            )


def arrays_in(value: Any, kind: type, separator: str) -> dict[str, Any]:
    """Every array of class ``kind`` that a file's contents hold, by its full name without wrappers."""
    return _collect(value, kind, separator).arrays


def _collect(value: Any, kind: type, separator: str) -> _Contents:
    contents = _Contents({}, {})
    _walk(value, kind, separator, (), contents, set())
    return contents


def _walk(value: Any, kind: type, separator: str, path: tuple[str, ...], out: _Contents, above: set[int]) -> None:
    """Depth first; a container inside itself is skipped, one that is shared is seen at each of its places."""
    out.visits += 1
    if out.visits > _MAX_VISITS:
        raise ConversionError(f"the file nests more than {_MAX_VISITS} objects; no checkpoint does")
    if isinstance(value, kind):
        name = separator.join(part for part in separator.join(path).split(separator) if part not in WRAPPERS)
        if name in out.arrays and out.arrays[name] != value:
            raise ConversionError(f"{name!r} is there twice, with and without a wrapper's name such as 'module.'")
        out.arrays[name] = value
        return
    if id(value) in above or len(path) > _MAX_DEPTH or not isinstance(value, Mapping | list | tuple | OtherObject):
        return
    values = _as_list(value, "/".join(path))
    if values is not None and any(isinstance(item, kind) for item in values):
        out.lists["/".join(path)] = values
        return
    above.add(id(value))
    for key, child in _children(value):
        _walk(child, kind, separator, (*path, key), out, above)
    above.discard(id(value))


def _as_list(value: Any, place: str) -> list[Any] | None:
    """A list or tuple; in a moving average also a dictionary whose keys count from 0."""
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, Mapping) and value and is_average(place):
        counted = [str(number) for number in range(len(value))]
        if [str(key) for key in value] == counted:
            return list(value.values())
    return None


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, OtherObject):
        for part in (value.state, *value.parts):
            yield from _children(part)
    elif isinstance(value, Mapping):
        yield from ((str(key), child) for key, child in value.items() if isinstance(key, str | int))
    else:
        yield from ((str(number), child) for number, child in enumerate(value))


def _named_sets(contents: _Contents, expected: Expected) -> list[WeightSet]:
    """Sets of arrays whose names end in the network's, by what stands before; those with half of them or more."""
    groups: dict[str, dict[str, Any]] = {}
    canonical = {**{name: name for name in expected.names}, **expected.aliases}
    squashed = {name.replace(".", ""): name for name in expected.names}
    for full, array in contents.arrays.items():
        for prefix, name in _endings(full, canonical, expected.separator) or _squashed(full, squashed):
            group = groups.setdefault(prefix, {})
            if name in group and group[name] != array:
                continue  # an alias of it, which stays left over
            group[name] = array
    groups = {prefix: group for prefix, group in groups.items() if not _is_training(prefix)}
    count = len(expected.names)
    kept = {prefix: group for prefix, group in groups.items() if 2 * len(group) >= count}
    if not kept and groups:  # another network's, perhaps: to be refused by the name of what is missing
        best = max(groups, key=lambda prefix: len(groups[prefix]))
        kept = {best: groups[best]} if 10 * len(groups[best]) >= count else {}
    taken = {prefix: set(map(id, group.values())) for prefix, group in kept.items()}
    sets = []
    for prefix, group in kept.items():
        inner = [other for other in kept if other != prefix and other.startswith(prefix)]
        elsewhere = set().union(*(taken[other] for other in inner)) | taken[prefix]
        rest = {
            full[len(prefix) :]: array
            for full, array in contents.arrays.items()
            if full.startswith(prefix)
            and id(array) not in elsewhere
            and not any(full.startswith(other) for other in inner)
            and not _is_training(full)
        }
        place = prefix.strip("./~") or ROOT
        sets.append(WeightSet(place, is_average(prefix), group, rest))
    return sets


def _endings(full: str, canonical: Mapping[str, str], separator: str) -> list[tuple[str, str]]:
    found, start = [], 0
    while start >= 0:
        if full[start:] in canonical:
            found.append((full[:start], canonical[full[start:]]))
        start = full.find(separator, start) + 1 or -1
    return found


def _squashed(full: str, squashed: Mapping[str, str]) -> list[tuple[str, str]]:
    """Averages of latent-diffusion codes keep names without their dots: ``model_ema.all_modules0W``."""
    head, _, last = full.rpartition(".")
    if not is_average(head):
        return []
    for start in range(len(last)):
        if last[start:] in squashed:
            return [(f"{head}.{last[:start]}~", squashed[last[start:]])]
    return []


def _listed(lists: Mapping[str, list[Any]], kind: type, expected: Expected, raw: list[WeightSet]) -> list[WeightSet]:
    """Moving averages that are lists of arrays: one for each trainable parameter, each parameter, or each buffer too.

    Their order is that of the model beside them.
    """
    found = []
    for place, values in lists.items():
        if not is_average(place) or (_is_training(place) and not is_average(place.rpartition("/")[2])):
            continue
        if not all(isinstance(value, kind) for value in values):
            raise ConversionError(f"the list {place!r} holds other things than tensors; for the raw weights {RAW}")
        if not raw and not expected.ordered:
            raise NoWeights(f"the list {place!r} has no names, and no model beside it that has them")
        model = raw[0] if raw else WeightSet("", False, dict.fromkeys(expected.names))
        missing = [name for name in expected.names if name not in model.arrays]
        if missing:
            raise ConversionError(f"leaf {missing[0]!r} is missing in {model.where!r}, whose average {place!r} is")
        names = list(model.arrays)
        trainable = [name for name in names if name not in expected.frozen]
        order = next((order for order in (trainable, names) if len(order) == len(values)), None)
        if order is None and len(values) == len(names) + len(model.rest):
            values, order = _without_buffers(values, model), names
        if order is None:
            raise ConversionError(
                f"the moving average {place!r} has {len(values)} tensors, the model {len(trainable)} trainable ones; "
                f"for the raw weights {RAW}"
            )
        found.append(WeightSet(place, True, dict(zip(order, values, strict=True)), dict(model.rest)))
    return found


def _without_buffers(values: list[Any], raw: WeightSet) -> list[Any]:
    """The values of a whole state dict, without those of its buffers, which have shapes of their own."""
    shapes = [value.shape for value in raw.arrays.values()]
    kept: list[Any] = []
    for value in values:
        if len(kept) < len(shapes) and value.shape == shapes[len(kept)]:
            kept.append(value)
    if len(kept) != len(shapes):
        raise ConversionError(f"the moving average beside {raw.where!r} does not have the shapes of the model")
    return kept


def _name_averages(value: Any, raw: list[WeightSet], averages: list[WeightSet]) -> None:
    """Averages that nothing at their place calls so.

    DDIM's and NCSNv2's programs save the list [model, optimizer, ..., average]; Lightning's weight averaging puts the
    average in ``state_dict`` and the raw weights in ``current_model_state``.
    """
    heads = [found.where.split(".")[0] for found in raw]
    if averages or len(raw) != 2:
        return
    if isinstance(value, list) and heads == ["0", str(len(value) - 1)]:
        average = raw[1]
        average.where = f"{average.where}, the last of the list"
    elif isinstance(value, Mapping) and "averaging_state" in value and sorted(heads) == _LIGHTNING:
        average = raw[heads.index("state_dict")]
    else:
        return
    average.average = True
    raw.remove(average)
    averages.append(average)


def _pick(averages: list[WeightSet], raw: list[WeightSet], use_ema: bool, report: Report) -> WeightSet:
    apart = [found for found in raw if not _in_average(found.where)] or raw  # not a copy that an average's object keeps
    wanted, others = (averages, raw) if use_ema else (apart, averages)
    if not wanted and not use_ema:
        raise ConversionError(
            f"the raw weights are asked for; the file holds the moving average {others[0].where!r} only"
        )
    different = _different(wanted or others)
    if len(different) > 1:
        places = ", ".join(repr(found.where) for found in different)
        what = "moving averages" if different[0].average else "sets of weights"
        raise ConversionError(
            f"{len(different)} {what} could be meant: {places}; save the one you want in a file of its own"
        )
    chosen = different[0]
    report.weights = "ema" if chosen.average else "raw"
    if chosen.average and raw:
        report.notes.append(f"read the moving average {chosen.where!r}, not the raw weights {raw[0].where!r}")
    elif not chosen.average and averages:
        report.notes.append(f"read the raw weights {chosen.where!r}, not the moving average {averages[0].where!r}")
    elif use_ema and not chosen.average:
        report.notes.append(f"no moving average in the file: read the weights {chosen.where!r} as they are")
    return chosen


def _in_average(place: str) -> bool:
    return any(is_average(part) for part in re.split(r"[./]", place))


def _different(sets: list[WeightSet]) -> list[WeightSet]:
    """Without sets that are the same arrays under another name."""
    kept: list[WeightSet] = []
    for found in sets:
        if not any(found.arrays == other.arrays for other in kept):
            kept.append(found)
    return kept


def _complete(chosen: WeightSet, raw: list[WeightSet], expected: Expected) -> None:
    """Parameters that never train are not in every average; they are those of the raw weights."""
    for name in expected.frozen:
        source = next((found.arrays[name] for found in raw if name in found.arrays), None)
        if name not in chosen.arrays and source is not None and chosen.average:
            chosen.arrays[name] = source


def _may_be_weight(array: Any) -> bool:
    return re.fullmatch(r"float\d+|bfloat16", array.dtype) is not None and array.shape != ()


def _account(
    chosen: WeightSet, sets: list[WeightSet], contents: _Contents, value: Any, separator: str, report: Report
) -> None:
    """Note what is not read; what may be a weight stays among the arrays, to be refused as left over."""
    for name, array in chosen.rest.items():
        if _may_be_weight(array) and not _SCHEDULE.fullmatch(name.rpartition(".")[2]):
            chosen.arrays[name] = array
        else:
            report.unused.append(f"{name}: no weight of the network")
    for found in sets:
        if found is not chosen:
            report.unused.append(f"{found.where}: {len(found.arrays)} {'averaged' if found.average else 'raw'} weights")
    used = {id(array) for found in sets for array in (*found.arrays.values(), *found.rest.values())}
    beside: dict[str, int] = {}
    for name, array in contents.arrays.items():
        if id(array) not in used:
            place = separator.join(name.split(separator)[:2])
            beside[place] = beside.get(place, 0) + 1
    report.unused += [f"{place}: {count} arrays beside the weights" for place, count in beside.items()]
    if isinstance(value, Mapping):
        plain = [str(name) for name, part in value.items() if isinstance(part, str | int | float | None)]
        report.unused += [f"{name}: training state" for name in plain]


def _nothing(contents: _Contents, expected: Expected) -> str:
    """What a file holds that has no weights of the network."""
    if not contents.arrays and not contents.lists:
        return "there are no arrays in it"
    places: dict[str, int] = {}
    for name in contents.arrays:
        head = name.split(expected.separator)[0]
        places[head] = places.get(head, 0) + 1
    for place, values in contents.lists.items():
        places[place] = len(values)
    told = [f"{place!r} ({count})" for place, count in places.items()]
    more = f" and {len(told) - 8} more" if len(told) > 8 else ""
    first = next(iter(expected.names))
    return (
        f"no set of weights with the network's names, such as {first!r}; it holds arrays in "
        f"{', '.join(told[:8])}{more}. Is this the config it was trained with?"
    )
