"""
The ``autoregressive`` backend: learn the tokens of packets (`tokens`) by a network (`network`), draw flows from it.

Read top to bottom: options, `fit`, `sample`, `save`, `load`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from netdiffusion_core.context import Context, stream_seed
from netdiffusion_core.errors import DataError, NotFittedError, did_you_mean
from netdiffusion_core.interfaces import Backend
from netdiffusion_core.model import MISSING, Encoded, Layout, SampleRequest

from .network import HEAD_CHANNELS, MORE, Network
from .tokens import RECENT, Codec
from .training import train

FORMAT = 1
SAMPLED_FLOWS = 64
"""
Flows are drawn so many at a time, whatever was asked for: the same matrix shapes give the same rounding, so a flow does
not depend on its companions.
"""
TRAINED_OPTIONS = ("width", "head_width", "layers", "dropout", "steps", "rows_per_step", "learning_rate")


def _option(default: Any, help: str, *validators: Any) -> Any:
    return attrs.field(default=default, validator=list(validators), metadata={"help": help})


def _is_heads(instance: Any, attribute: Any, value: int) -> None:
    if value < 1 or value % HEAD_CHANNELS:
        raise ValueError(f"{attribute.name} is {value}; it must be a multiple of {HEAD_CHANNELS}")


@attrs.frozen(kw_only=True)
class Options:
    """
    What ``[backend]`` in netdiff.toml and ``--set backend.key=value`` may say.
    """

    width: int = _option(128, "channels of the transformer, a multiple of 32", _is_heads)
    head_width: int = _option(96, "channels of the head that tells a packet's fields", attrs.validators.ge(1))
    layers: int = _option(4, "blocks of the transformer", attrs.validators.ge(1))
    dropout: float = _option(0.1, "share of channels dropped", attrs.validators.ge(0), attrs.validators.lt(1))
    steps: int = _option(1500, "training steps", attrs.validators.ge(1))
    rows_per_step: int = _option(512, "packets in a training step", attrs.validators.ge(1))
    learning_rate: float = _option(2e-3, "peak learning rate; it falls to 0 by a cosine", attrs.validators.gt(0))
    temperature: float = _option(1.0, "below 1 draws likelier tokens more often", attrs.validators.gt(0))
    threads: int = _option(0, "CPU threads of torch; 0 leaves them to torch", attrs.validators.ge(0))


@attrs.frozen(kw_only=True, eq=False)
class _Model:
    """
    What was learned.

    longest  packets of the longest training flow; no sampled flow is longer
    span     first and last start of the training flows, ns since 1970
    """

    codec: Codec
    network: Network
    labels: list[str]
    longest: int
    span: tuple[int, int]


class Autoregressive(Backend):
    """
    Packet after packet, and within a packet field after field, each drawn given all before.
    """

    Options = Options

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self._model: _Model | None = None

    def fit(self, data: Encoded, context: Context) -> None:
        """
        Learn the vocabularies of the fields, then the network. Raises DataError for a flow without packets, or none.
        """
        if not len(data) or data.lengths.min() == 0:
            raise DataError(
                "Backend 'autoregressive' needs flows, each with one packet at least: leave out empty ones."
            )
        options = self.options
        self._use_threads()
        with context.progress("learn vocabularies", 1) as advance:
            codec, tokens = Codec.learn(data)
            advance(note=f"{len(codec.columns)} tokens a packet")
        labels, class_of = np.unique(data.labels, return_inverse=True)
        longest = int(data.lengths.max())
        torch.manual_seed(stream_seed(context.seed, "backend.weights"))
        network = _network(codec, len(labels), longest, options)
        train(
            network,
            np.pad(tokens, ((0, 0), (1, 0)), constant_values=MORE),
            data.starts,
            class_of,
            context,
            steps=options.steps,
            rows_per_step=options.rows_per_step,
            learning_rate=options.learning_rate,
        )
        self._model = _Model(
            codec=codec,
            network=network.eval(),
            labels=labels.tolist(),
            longest=longest,
            span=(int(data.start_times.min()), int(data.start_times.max())),
        )

    @torch.inference_mode()
    def sample(self, request: SampleRequest, context: Context) -> Encoded:
        """
        Draw one flow a label, of at most ``request.max_packets`` and no more packets than the longest training flow.
        All that is random about flow i comes from the stream (seed, i).
        """
        model = self._fitted("sample")
        for label in dict.fromkeys(request.labels):
            if label not in model.labels:
                raise DataError(
                    f"The model has not learned class {label!r}.{did_you_mean(label, model.labels)} "
                    f"Known: {', '.join(model.labels)}."
                )
        self._use_threads()
        flows: list[NDArray[np.int8]] = []
        start_times = []
        with context.progress("sample", len(request.labels)) as advance:
            for first in range(0, len(request.labels), SAMPLED_FLOWS):
                some = request.labels[first : first + SAMPLED_FLOWS]
                rngs = [np.random.default_rng([request.seed, first + i]) for i in range(len(some))]
                start_times += [rng.integers(*model.span, endpoint=True) for rng in rngs]
                flows += self._draw(model, [model.labels.index(label) for label in some], rngs, request.max_packets)
                advance(len(some))
        return Encoded(
            rows=np.concatenate([np.empty((0, model.codec.layout.width), np.int8), *flows]),
            starts=np.cumsum([0] + [len(rows) for rows in flows]),
            labels=np.array(request.labels, np.str_),
            start_times=np.array(start_times, np.int64),
            layout=model.codec.layout,
        )

    def _draw(
        self, model: _Model, classes: list[int], rngs: list[np.random.Generator], max_packets: int
    ) -> list[NDArray[np.int8]]:
        """
        Draw at most `SAMPLED_FLOWS` flows side by side, packet after packet.
        """
        codec, network, live = model.codec, model.network, len(classes)
        longest, columns, numbers = min(max_packets, model.longest), len(network.sizes), len(codec.numbers)
        labels = torch.tensor(classes + [0] * (SAMPLED_FLOWS - live))
        cache = network.cache(SAMPLED_FLOWS, longest)
        recent = np.full((SAMPLED_FLOWS, numbers, RECENT), MISSING, np.int64)
        rows = np.empty((longest, SAMPLED_FLOWS, codec.layout.width), np.int8)
        lengths = np.where(np.arange(SAMPLED_FLOWS) < live, longest, 0)
        tokens, u = None, np.zeros((SAMPLED_FLOWS, columns + numbers))
        for position in range(longest):
            for i in np.flatnonzero(lengths > position):
                u[i] = rngs[i].random(columns + numbers)
            tokens = network.draw(
                tokens, labels, position, cache, torch.tensor(u[:, :columns]), self.options.temperature
            )
            lengths = np.where(tokens[:, 0].numpy() == MORE, lengths, np.minimum(lengths, position))
            if not (lengths > position).any():
                break
            rows[position], recent = codec.draw(tokens[:, 1:].numpy(), recent, u[:, columns:])
        return [rows[: lengths[i], i] for i in range(live)]

    def save(self, folder: Path) -> None:
        """
        Write the network and the vocabularies as safetensors, the rest as JSON. Raises NotFittedError.
        """
        model = self._fitted("save")
        save_tensors(model.network.state_dict(), folder / "network.safetensors")
        save_file(model.codec.to_arrays(), folder / "vocabularies.safetensors")
        record = {
            "format": FORMAT,
            "layout": attrs.asdict(model.codec.layout),
            "labels": model.labels,
            "longest": model.longest,
            "span": model.span,
            "options": attrs.asdict(self.options),
        }
        text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
        (folder / "backend.json").write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, options: Options | None = None) -> Self:
        """
        Read what `save` wrote; of `options`, those that concern sampling count. Raises DataError.
        """
        try:
            record = json.loads((folder / "backend.json").read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise DataError(
                    f"{folder} has model format {record['format']}, and this version reads {FORMAT}: fit again."
                )
            saved = Options(**record["options"])
            fields = tuple((str(name), int(bits)) for name, bits in record["layout"].pop("fields"))
            codec = Codec.from_arrays(
                Layout(**record["layout"], fields=fields), load_file(folder / "vocabularies.safetensors")
            )
            labels, longest = [str(label) for label in record["labels"]], int(record["longest"])
            network = _network(codec, len(labels), longest, saved)
            network.load_state_dict(load_tensors(folder / "network.safetensors"))
            first, last = record["span"]
            model = _Model(
                codec=codec, network=network.eval(), labels=labels, longest=longest, span=(int(first), int(last))
            )
        except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{folder} is no usable model of backend 'autoregressive' ({error}): fit again.") from error
        trained = {name: getattr(saved, name) for name in TRAINED_OPTIONS}
        backend = cls(attrs.evolve(options or saved, **trained))
        backend._model = model
        return backend

    def _fitted(self, what: str) -> _Model:
        if self._model is None:
            raise NotFittedError(f"Backend 'autoregressive' has learned nothing yet: call fit or load before {what}.")
        return self._model

    def _use_threads(self) -> None:
        if self.options.threads:
            torch.set_num_threads(self.options.threads)


def _network(codec: Codec, classes: int, longest: int, options: Options) -> Network:
    return Network(
        [2, *codec.sizes],
        classes,
        longest + 1,
        width=options.width,
        head_width=options.head_width,
        layers=options.layers,
        dropout=options.dropout,
    )
