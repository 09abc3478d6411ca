"""
The model: P(bit of this packet | the same bit of the packet before), for each class and column.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.context import Context
from netdiffusion_core.errors import DataError, NotFittedError, did_you_mean
from netdiffusion_core.interfaces import Backend
from netdiffusion_core.model import Encoded, Layout, SampleRequest
from netdiffusion_core.storage import layout_from_json, layout_to_json

Array = NDArray[Any]

FIRST = 3  # what "the bit before" is for the first packet of a flow; 0, 1 and 2 are the values -1, 0 and 1


@attrs.frozen(kw_only=True)
class NewpluginOptions:
    """
    Options of the backend.
    """

    smoothing: float = attrs.field(
        default=0.0,
        validator=attrs.validators.ge(0),
        metadata={"help": "added to every count: above 0, transitions that were never seen become possible"},
    )


class NewpluginBackend(Backend):
    """
    A first-order Markov chain for every column.

    chances  float32[classes, before, columns, 2]  P(bit = -1) and P(bit <= 0); `before` as `FIRST` says
    lengths  list of int64[flows]                  packets of the training flows of each class
    """

    Options = NewpluginOptions

    def __init__(self, options: Any = None) -> None:
        super().__init__(options)
        self.labels: list[str] = []
        self.layout: Layout | None = None
        self.chances = np.empty((0, 4, 0, 2), np.float32)
        self.lengths: list[Array] = []

    def fit(self, data: Encoded, context: Context) -> None:
        """
        Count the transitions of every bit. Raises DataError without packets.
        """
        if not len(data.rows):
            raise DataError("the backend newplugin needs at least one training flow with packets")
        self.layout, self.labels = data.layout, sorted(set(data.labels.tolist()))
        before = np.full(data.rows.shape, FIRST)
        before[1:] = data.rows[:-1] + 1
        before[data.starts[:-1][data.lengths > 0]] = FIRST
        counts = np.full((len(self.labels), 4, self.layout.width, 3), self.options.smoothing)
        of_class = np.searchsorted(self.labels, data.labels)
        columns = np.arange(self.layout.width)
        with context.progress("fit newplugin", len(self.labels)) as advance:
            for c, label in enumerate(self.labels):
                mine = of_class[data.flow_of] == c
                np.add.at(counts[c], (before[mine], columns, data.rows[mine] + 1), 1)
                advance(note=label)
        total = counts.sum(axis=-1, keepdims=True)
        shares = np.divide(counts, total, out=np.full(counts.shape, 1 / 3), where=total > 0)
        self.chances = shares.cumsum(axis=-1)[..., :2].astype(np.float32)
        self.lengths = [data.lengths[(of_class == c) & (data.lengths > 0)] for c in range(len(self.labels))]

    def sample(self, request: SampleRequest, context: Context) -> Encoded:
        """
        Draw flows packet by packet. Flow i has a random stream of its own, made of (seed, i).
        """
        if self.layout is None:
            raise NotFittedError("the backend newplugin has learned nothing yet: call fit or load first")
        for label in request.labels:
            if label not in self.labels:
                raise DataError(
                    f"the backend newplugin never learned the class {label!r}.{did_you_mean(label, self.labels)} "
                    f"It knows: {', '.join(self.labels)}."
                )
        flows = [np.empty((0, self.layout.width), np.int8)]
        with context.progress("sample newplugin", len(request.labels)) as advance:
            for i, label in enumerate(request.labels):
                rng, c = np.random.default_rng([request.seed, i]), self.labels.index(label)
                length = min(int(rng.choice(self.lengths[c])), request.max_packets)
                flows.append(self._draw(self.chances[c], length, rng))
                advance()
        return Encoded(
            rows=np.concatenate(flows),
            starts=np.cumsum([len(rows) for rows in flows]),  # the empty first block gives the leading 0
            labels=np.array(request.labels, np.str_),
            start_times=np.zeros(len(request.labels), np.int64),
            layout=self.layout,
        )

    def save(self, folder: Path) -> None:
        """
        Write ``model.json``, ``chances.npy`` and ``lengths.npy``.
        """
        if self.layout is None:
            raise NotFittedError("the backend newplugin has learned nothing that could be saved: call fit first")
        np.save(folder / "chances.npy", self.chances, allow_pickle=False)
        np.save(folder / "lengths.npy", np.concatenate(self.lengths), allow_pickle=False)
        flows = {label: len(lengths) for label, lengths in zip(self.labels, self.lengths, strict=True)}
        facts = {"layout": layout_to_json(self.layout), "flows": flows}
        (folder / "model.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, options: Any = None) -> Self:
        """
        Read what `save` wrote. Raises DataError for a folder that is damaged or of another backend.
        """
        model = cls(options)
        try:
            facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            model.layout = layout_from_json(facts["layout"], folder / "model.json")
            model.labels, flows = list(facts["flows"]), list(facts["flows"].values())
            model.chances = np.load(folder / "chances.npy", allow_pickle=False)
            lengths = np.load(folder / "lengths.npy", allow_pickle=False)
            fits = model.chances.shape == (len(flows), 4, model.layout.width, 2) and lengths.shape == (sum(flows),)
            model.lengths = np.split(lengths, np.cumsum(flows)[:-1])
        except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{folder} is no usable model of the backend newplugin ({error!r}): fit again") from error
        if not fits:
            raise DataError(f"the arrays in {folder} do not fit its model.json: fit again")
        return model

    def _draw(self, chances: Array, length: int, rng: np.random.Generator) -> NDArray[np.int8]:
        """
        Draw one flow: int8[length, columns].
        """
        rows = np.empty((length, chances.shape[1]), np.int8)
        before, columns = np.full(chances.shape[1], FIRST), np.arange(chances.shape[1])
        for packet in range(length):
            missing, not_one = chances[before, columns].T
            drawn = rng.random(len(columns), np.float32)
            before = (drawn >= missing).astype(np.int64) + (drawn >= not_one)
            rows[packet] = before - 1
        return rows
