"""
The bootstrap (Efron 1979): real training flows, drawn with replacement, with a new start time.

No model can look more real, so it bounds fidelity from above, and no flow of it is new, so it must fail novelty. What
a report grants to the bootstrap but not to a model is what the model still lacks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.context import Context
from netdiffusion_core.interfaces import Backend
from netdiffusion_core.model import MISSING, Encoded, Layout, SampleRequest

from .common import generate, read_model, require_fitted, require_flows, start_span, write_model

Array = NDArray[Any]

_ARRAYS = ("rows", "starts", "start_times")


class Bootstrap(Backend):
    """
    Copies of training flows.
    """

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self._data: Encoded | None = None

    def fit(self, data: Encoded, context: Context) -> None:
        """
        Keep the flows. Raises DataError without flows.
        """
        require_flows(data, "bootstrap")
        self._data = data

    def sample(self, request: SampleRequest, context: Context) -> Encoded:
        """
        Draw flows with replacement. Raises NotFittedError, DataError.
        """
        data = require_fitted(self._data, "bootstrap")
        labels = np.unique(data.labels).tolist()
        members = [np.flatnonzero(data.labels == label) for label in labels]

        def draw(c: int, rng: np.random.Generator) -> Array:
            return data.flow(rng.choice(members[c]))

        return generate(request, context, "bootstrap", labels, data.layout, start_span(data.start_times), draw)

    def save(self, folder: Path) -> None:
        """
        Write the training flows. Raises NotFittedError.
        """
        data = require_fitted(self._data, "bootstrap")
        write_model(
            folder, "bootstrap", data.labels.tolist(), data.layout, {name: getattr(data, name) for name in _ARRAYS}
        )

    @classmethod
    def load(cls, folder: Path, options: Any = None) -> Self:
        """
        Read what `save` wrote. Raises DataError.
        """

        def fits(flows: int, layout: Layout, a: dict[str, Array]) -> bool:
            return (
                (a["rows"].dtype, a["starts"].dtype, a["start_times"].dtype) == (np.int8, np.int64, np.int64)
                and a["starts"].shape == (flows + 1,)
                and a["starts"][0] == 0
                and bool((np.diff(a["starts"]) >= 0).all())
                and a["start_times"].shape == (flows,)
                and a["rows"].shape == (a["starts"][-1], layout.width)
                and bool((a["rows"] >= MISSING).all() and (a["rows"] <= 1).all())
            )

        labels, layout, arrays = read_model(folder, "bootstrap", _ARRAYS, fits)
        backend = cls(options)
        backend._data = Encoded(labels=np.array(labels, np.str_), layout=layout, **arrays)
        return backend
