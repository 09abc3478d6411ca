"""
What both baselines share: how a request is answered flow by flow, and how a model folder is written and read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.context import Context
from netdiffusion_core.errors import DataError, NotFittedError, did_you_mean
from netdiffusion_core.model import Encoded, Layout, SampleRequest

Array = NDArray[Any]
T = TypeVar("T")

FORMAT = 1
"""Version of the model folder: ``model.json`` and one .npy an array."""


def require_flows(data: Encoded, backend: str) -> None:
    """
    Raise DataError when there is nothing to learn from.
    """
    if not len(data.rows):
        raise DataError(f"Backend {backend!r} needs at least one training flow with packets; the data has none.")


def require_fitted(model: T | None, backend: str) -> T:
    """
    Return the model. Raises NotFittedError when there is none.
    """
    if model is None:
        raise NotFittedError(f"Backend {backend!r} has learned nothing yet: call fit or load before sample or save.")
    return model


def start_span(start_times: Array) -> Array:
    """
    Return int64[2]: the first and the last start of the training flows (ns since 1970). New flows start in between.
    """
    return np.array([start_times.min(), start_times.max()], np.int64)


def generate(
    request: SampleRequest,
    context: Context,
    backend: str,
    labels: Sequence[str],
    layout: Layout,
    span: Array,
    draw: Callable[[int, np.random.Generator], Array],
) -> Encoded:
    """
    Answer a request: ``draw(class, rng)`` returns the rows of one flow, int8[packets, columns], of which at most
    ``request.max_packets`` are kept. Flow i has a random stream of its own, made of (seed, i).

    Raises DataError for a label that is not in `labels`.
    """
    unknown = sorted(set(request.labels) - set(labels))
    if unknown:
        raise DataError(
            f"Backend {backend!r} never learned the class {unknown[0]!r}.{did_you_mean(unknown[0], labels)} "
            f"It knows: {', '.join(labels)}."
        )
    class_of = {label: c for c, label in enumerate(labels)}
    flows, start_times = [np.empty((0, layout.width), np.int8)], []
    with context.progress(f"sample {backend}", len(request.labels)) as advance:
        for i, label in enumerate(request.labels):
            rng = np.random.default_rng([request.seed, i])
            start_times.append(rng.integers(span[0], span[1], endpoint=True))
            flows.append(draw(class_of[label], rng)[: request.max_packets])
            advance()
    return Encoded(
        rows=np.concatenate(flows),
        starts=np.cumsum([len(rows) for rows in flows]),  # the empty first block gives the leading 0
        labels=np.array(request.labels, np.str_),
        start_times=np.array(start_times, np.int64),
        layout=layout,
    )


def write_model(folder: Path, backend: str, labels: Sequence[str], layout: Layout, arrays: Mapping[str, Array]) -> None:
    """
    Write ``model.json`` (backend, format, labels, layout) and each array as .npy into an existing folder.
    """
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    facts = {
        "backend": backend,
        "format": FORMAT,
        "labels": list(labels),
        "layout": {"name": layout.name, "version": layout.version, "fields": layout.fields},
    }
    (folder / "model.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def read_model(
    folder: Path, backend: str, names: Sequence[str], fits: Callable[[int, Layout, dict[str, Array]], bool]
) -> tuple[list[str], Layout, dict[str, Array]]:
    """
    Return ``(labels, layout, arrays)`` as `write_model` was given them; ``fits(len(labels), layout, arrays)`` tells
    whether their shapes agree.

    Raises DataError for a folder of another backend or format, or one that is incomplete or damaged.
    """
    try:
        facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        if (facts["backend"], facts["format"]) != (backend, FORMAT):
            raise DataError(
                f"{folder} holds a model of backend {facts['backend']!r}, format {facts['format']!r}; backend "
                f"{backend!r} reads its own, format {FORMAT}. Choose the right backend, or fit again."
            )
        labels = [str(label) for label in facts["labels"]]
        layout = Layout(
            name=facts["layout"]["name"],
            version=facts["layout"]["version"],
            fields=tuple((str(name), int(bits)) for name, bits in facts["layout"]["fields"]),
        )
        # Mapped, so that a header that lies about the size is an error and no allocation.
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("an archive is no array")
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{folder} is no usable {backend!r} model ({error!r}). Fit the backend again.") from error
    if not fits(len(labels), layout, arrays):
        raise DataError(f"The arrays in {folder} do not fit the layout in its model.json. Fit the backend again.")
    return labels, layout, arrays
