"""
Independent bits: every column of every packet position is drawn on its own, from the class's frequencies.

It gets each column's distribution right and everything that joins columns or packets wrong, so a score that it wins
measures marginals only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import Backend
from netdiffusion_core.model import MISSING, Encoded, Layout, SampleRequest

from .common import generate, read_model, require_fitted, require_flows, start_span, write_model

Array = NDArray[Any]


@attrs.frozen(kw_only=True)
class BernoulliOptions:
    """
    Options of the ``bernoulli`` backend.
    """

    positions: int = attrs.field(
        default=64,
        validator=[attrs.validators.instance_of(int), attrs.validators.ge(1)],
        metadata={"help": "packet positions with frequencies of their own; all later packets share the last one's"},
    )


@attrs.frozen(kw_only=True, eq=False)
class _Model:
    """
    thresholds  float32[classes, positions, columns, 2]  P(bit = -1) and P(bit = -1) + P(bit = 1)
    lengths     int64[flows]                             packets of the training flows, class by class
    flows       int64[classes + 1]                       class c has ``lengths[flows[c]:flows[c + 1]]``
    span        int64[2]                                 first and last start, ns since 1970
    """

    labels: list[str]
    layout: Layout
    thresholds: Array
    lengths: Array
    flows: Array
    span: Array


_ARRAYS = ("thresholds", "lengths", "flows", "span")


class Bernoulli(Backend):
    """
    Independent bits. The model takes 8 bytes a class, position and column.
    """

    Options = BernoulliOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._model: _Model | None = None

    def fit(self, data: Encoded, context: Context) -> None:
        """
        Count each bit's values per class and packet position. Raises DataError without flows.
        """
        require_flows(data, "bernoulli")
        labels, class_of = np.unique(data.labels, return_inverse=True)
        positions = min(self.options.positions, int(data.lengths.max()))
        position = np.minimum(np.arange(len(data.rows)) - data.starts[:-1][data.flow_of], positions - 1)
        cell = class_of[data.flow_of] * positions + position  # one class at one position
        order = np.argsort(cell, kind="stable")
        ends = np.searchsorted(cell[order], np.arange(len(labels) * positions + 1))
        thresholds = np.zeros((len(labels) * positions, data.layout.width, 2), np.float32)
        with context.progress("fit bernoulli", len(thresholds)) as advance:
            for c in range(len(thresholds)):
                rows = data.rows[order[ends[c] : ends[c + 1]]]
                missing, ones = (rows == MISSING).sum(0), (rows == 1).sum(0)
                # from integers, so that a bit that was never 0 has a threshold of exactly 1 and is never drawn as 0
                thresholds[c] = np.stack([missing, missing + ones], 1) / max(len(rows), 1)
                advance()
        by_class = np.argsort(class_of, kind="stable")
        self._model = _Model(
            labels=labels.tolist(),
            layout=data.layout,
            thresholds=thresholds.reshape(len(labels), positions, data.layout.width, 2),
            lengths=data.lengths[by_class],
            flows=np.searchsorted(class_of[by_class], np.arange(len(labels) + 1)),
            span=start_span(data.start_times),
        )

    def sample(self, request: SampleRequest, context: Context) -> Encoded:
        """
        Draw a length from the class's training flows, then each bit. Raises NotFittedError, DataError.
        """
        model = require_fitted(self._model, "bernoulli")

        def draw(c: int, rng: np.random.Generator) -> Array:
            length = min(rng.choice(model.lengths[model.flows[c] : model.flows[c + 1]]), request.max_packets)
            thresholds = model.thresholds[c, np.minimum(np.arange(length), model.thresholds.shape[1] - 1)]
            u = rng.random((length, model.layout.width), np.float32)
            return np.where(u < thresholds[..., 0], MISSING, u < thresholds[..., 1]).astype(np.int8)

        return generate(request, context, "bernoulli", model.labels, model.layout, model.span, draw)

    def save(self, folder: Path) -> None:
        """
        Write the frequencies. Raises NotFittedError.
        """
        model = require_fitted(self._model, "bernoulli")
        write_model(folder, "bernoulli", model.labels, model.layout, {name: getattr(model, name) for name in _ARRAYS})

    @classmethod
    def load(cls, folder: Path, options: Any = None) -> Self:
        """
        Read what `save` wrote. Raises DataError.
        """

        def fits(classes: int, layout: Layout, a: dict[str, Array]) -> bool:
            thresholds, positions = a["thresholds"], a["thresholds"].shape[1:2]
            return (
                (thresholds.dtype, a["lengths"].dtype, a["flows"].dtype, a["span"].dtype)
                == (np.float32, np.int64, np.int64, np.int64)
                and thresholds.shape == (classes, *positions, layout.width, 2)
                and positions > (0,)
                and a["flows"].shape == (classes + 1,)
                and a["flows"][0] == 0
                and a["flows"][-1] == a["lengths"].size
                and bool((np.diff(a["flows"]) > 0).all() and (a["lengths"] >= 0).all())
                and a["span"].shape == (2,)
                and a["span"][0] <= a["span"][1]
            )

        labels, layout, arrays = read_model(folder, "bernoulli", _ARRAYS, fits)
        backend = cls(options)
        backend._model = _Model(labels=labels, layout=layout, **arrays)
        return backend
