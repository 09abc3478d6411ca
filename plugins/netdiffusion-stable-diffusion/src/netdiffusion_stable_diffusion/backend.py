"""
The ``stable-diffusion`` backend: fine-tune a checkpoint on the user's classes by LoRA, sample flows from it.

Read top to bottom: options, `fit`, `sample`, `save`, `load`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from netdiffusion_core.context import Context
from netdiffusion_core.errors import ConfigError, DataError, NotFittedError, did_you_mean
from netdiffusion_core.interfaces import Backend
from netdiffusion_core.model import Encoded, Layout, SampleRequest

from . import checkpoint as checkpoints
from .checkpoint import EMBEDDED, Precision
from .control import (
    Exemplars,
    Plan,
    Start,
    Structure,
    count_plans,
    edge_rows,
    learn_exemplars,
    learn_structure,
    own_edges,
    plans,
    send_again,
    starts,
)
from .diffusion import LONGEST, answered_at, denoise, heights, prompt
from .family import Family
from .fine_tuning import fine_tune
from .images import PacketCodec
from .values import FieldValues, from_arrays, learn_values, settle, to_arrays

FORMAT = 6
STRUCTURE_ARRAYS = ("edges", "origin", "target", "chance", "again")
TRAINED_OPTIONS = (
    "base",
    "controlnet",
    "control",
    "lora_rank",
    "lora_alpha",
    "steps",
    "learning_rate",
    "prompt_dropout",
)
ABSENT_SHARE = 0.95
"""A row with fewer present bits than this leaves is no packet: an IP header alone is a tenth of a row."""


def _option(default: Any, help: str, validator: Any = None) -> Any:
    return attrs.field(default=default, validator=validator, metadata={"help": help})


def _between(low: float, high: float) -> Any:
    return attrs.validators.and_(attrs.validators.ge(low), attrs.validators.le(high))


@attrs.frozen(kw_only=True)
class Options:
    """
    What ``[backend]`` in netdiff.toml and ``--set backend.key=value`` may say.
    """

    base: str = _option(EMBEDDED, "the embedded base, a folder in diffusers' layout, or (with download) a hub id")
    controlnet: str = _option("", "ControlNet folder or hub id; by default the base's own")
    download: bool = attrs.field(default=False, metadata={"help": "allow access to the model hub", "consent": True})
    control: Literal["none", "class", "exemplar"] = _option(
        "class", "what steers the structure: nothing, what was learned of the class, or one training flow (the paper)"
    )
    control_scale: float = _option(1.0, "weight of the ControlNet", attrs.validators.ge(0))
    class_values: bool = _option(
        True, "what the latents leave open is drawn from the class's values in such packets (control=class)"
    )
    lora_rank: int = _option(16, "rank of the LoRA matrices", _between(1, 1024))
    lora_alpha: float = _option(16.0, "LoRA scale is alpha / rank", attrs.validators.gt(0))
    steps: int = _option(200, "fine-tuning steps; 0 samples from the base as it is", _between(0, 10**7))
    rows_per_step: int = _option(2048, "packets in a fine-tuning step", _between(1, 10**7))
    learning_rate: float = _option(1e-3, "peak learning rate; it falls to 0 by a cosine", attrs.validators.gt(0))
    prompt_dropout: float = _option(
        0.1,
        "share of empty prompts, for classifier-free guidance",
        _between(0, 1),
    )
    sampling_steps: int = _option(20, "denoising steps", _between(1, 1000))
    guidance: float = _option(1.5, "classifier-free guidance; 1 is none", attrs.validators.gt(0))
    rows_per_batch: int = _option(4096, "packets denoised together", _between(1, 10**7))
    device: str = _option("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: Precision = _option(
        "auto", "fp32, fp16, bf16; auto is fp32 on a CPU and for the embedded base, else what the GPU computes in best"
    )
    offload: bool = _option(False, "text encoders and autoencoder wait in main memory until they are at work")
    gradient_checkpointing: bool = _option(False, "fine-tune in less memory, for a third more time")
    threads: int = _option(0, "CPU threads of torch; 0 takes the cores that this process may use", _between(0, 1024))


class StableDiffusion(Backend):
    """
    LoRA on the U-Net and the text encoder, structure from a ControlNet on Canny maps.
    """

    Options = Options

    def __init__(self, options: Options | None = None) -> None:
        super().__init__(options)
        self.layout: Layout | None = None
        self.checkpoint: Family | None = None
        self.plans: dict[str, dict[Plan, int]] = {}  # class -> what flows are like -> how many
        self.structure: Structure | Exemplars | None = None
        self.values: dict[str, FieldValues] = {}  # what they are in each state of the structure

    def fit(self, data: Encoded, context: Context) -> None:
        """
        Fine-tune on the user's flows. One adapter serves all classes, told apart by their prompts.
        """
        options, layout = self.options, data.layout
        base = self._open(layout)
        longest = int(min(LONGEST, heights(data.lengths, base.codec.shortest).max()))

        # What is learned of a class besides the weights: how long its flows are, where its edges lie, and what values
        # its fields have there.
        found = plans(data, longest)
        self.plans, self.structure, self.values = count_plans(found), None, {}
        own: Callable[[NDArray[np.int64], int], NDArray[np.uint8]] | None = None
        if options.control != "none":
            edges = edge_rows(data, base.codec, longest, context)
            if options.control == "class":
                self.structure, state_of = learn_structure(data, edges, base.codec, longest)
                own = partial(self.structure.own, state_of, data)
                if isinstance(base.codec, PacketCodec):
                    self.values = learn_values(data, state_of)
            else:
                self.structure = learn_exemplars(data, edges, base.codec, longest)
                own = partial(own_edges, data, edges)

        fine_tune(
            base,
            data,
            [prompt(label, service) for label, _, service in found],
            None if own is None else lambda flows, height: base.steer(own(flows, height)),
            context,
            longest=longest,
            steps=options.steps,
            rows_per_step=options.rows_per_step,
            learning_rate=options.learning_rate,
            prompt_dropout=options.prompt_dropout,
            lora_rank=options.lora_rank,
            lora_alpha=options.lora_alpha,
        )
        self.layout, self.checkpoint = layout, base

    def sample(self, request: SampleRequest, context: Context) -> Encoded:
        """
        Denoise one flow a label. All that is random about flow i comes from the stream (seed, i).
        """
        if self.checkpoint is None or self.layout is None:
            raise NotFittedError("The stable-diffusion backend has no model yet: call fit or load first.")
        for label in dict.fromkeys(request.labels):
            if label not in self.plans:
                known = sorted(self.plans)
                raise DataError(
                    f"The model has not learned class {label!r}.{did_you_mean(label, known)} Known: {', '.join(known)}."
                )
        options, base, codec = self.options, self.checkpoint, self.checkpoint.codec
        rngs = [np.random.default_rng([request.seed, i]) for i in range(len(request.labels))]
        drawn = [self._draw_plan(label, rng) for label, rng in zip(request.labels, rngs, strict=True)]
        tallest = int(heights(np.array([request.max_packets]), codec.shortest)[0])
        begin = starts(drawn, codec)
        height_of = np.array([min(height, tallest) for _, height, _ in begin])
        flows: list[NDArray[np.int8]] = [np.empty((0, self.layout.width), np.int8)] * len(request.labels)
        with base.merged(), context.progress("denoise", len(flows)) as advance:
            for height in np.unique(height_of).tolist():
                same = np.flatnonzero(height_of == height)
                per_batch = max(1, options.rows_per_batch // height)
                for some in np.array_split(same, -(-len(same) // per_batch)):
                    some_rngs, some_begin = [rngs[i] for i in some], [begin[i] for i in some]
                    shape = codec.latent_shape(height)
                    noise = np.stack([rng.standard_normal(shape, np.float32) for rng in some_rngs])
                    control, settled, again = None, None, None
                    if isinstance(self.structure, Structure):
                        states = self.structure.draw(some_begin, [drawn[i][1] for i in some], height, some_rngs)
                        control, again = base.steer(self.structure.edges[states]), self.structure.again[states]
                        if self.values and options.class_values:
                            settled = partial(settle, self.values, self.layout, states)
                    elif isinstance(self.structure, Exemplars):
                        control = base.steer(self.structure.draw(some_begin, height, some_rngs))
                    latents = denoise(
                        base,
                        torch.tensor(noise, device=base.device),
                        [prompt(label, service) for label, _, service in some_begin],
                        control,
                        steps=options.sampling_steps,
                        guidance=options.guidance,
                        control_scale=options.control_scale,
                    )
                    made = base.decode(latents, some_rngs, settled)
                    if again is not None:
                        made = send_again(made, again, self.layout)
                    for i, rows in zip(some, made, strict=True):
                        rows = answered_at(rows, drawn[i][2], self.layout)
                        flows[i] = _until_absent(rows)[: request.max_packets]
                    advance(len(some))
        return Encoded(
            rows=np.concatenate([np.empty((0, self.layout.width), np.int8), *flows]),
            starts=np.cumsum([0] + [len(rows) for rows in flows]),
            labels=np.array(request.labels, np.str_),
            start_times=np.zeros(len(flows), np.int64),
            layout=self.layout,
        )

    def save(self, folder: Path) -> None:
        """
        Write the adapter in diffusers' format, the class structure as safetensors, the rest as JSON.
        """
        if self.checkpoint is None or self.layout is None:
            raise NotFittedError(
                "The stable-diffusion backend has learned nothing that could be saved: call fit first."
            )
        self.checkpoint.save_adapter(folder)
        labels = list(self.plans)
        arrays: dict[str, NDArray[Any]] = {}
        if isinstance(self.structure, Structure):
            arrays = {name: getattr(self.structure, name) for name in STRUCTURE_ARRAYS} | to_arrays(self.values)
        elif isinstance(self.structure, Exemplars):
            arrays = {
                f"{labels.index(label)}/{height}": images
                for label, by_height in self.structure.images.items()
                for height, images in by_height.items()
            }
        save_file(arrays, folder / "control.safetensors")
        record = {
            "format": FORMAT,
            "layout": attrs.asdict(self.layout),
            "base": self.options.base,
            "base_sha256": self.checkpoint.digest,
            "options": attrs.asdict(self.options),
            "classes": {
                label: [[packets, service, count] for (_, packets, service), count in found.items()]
                for label, found in self.plans.items()
            },
        }
        (folder / "backend.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path, options: Options | None = None) -> Self:
        """
        Read what `save` wrote. The adapter is loaded by diffusers' own loader onto the base that it was trained for;
        of `options`, those that concern sampling count.

        Raises DataError for a folder that is damaged, or made for another base or format.
        """
        with _blamed_on(folder):
            record = json.loads((folder / "backend.json").read_text())
            if record["format"] != FORMAT:
                raise DataError(
                    f"{folder} has model format {record['format']}, and this version reads {FORMAT}: fit again."
                )
            saved = Options(**record["options"])
            fields = tuple((str(name), int(bits)) for name, bits in record["layout"].pop("fields"))
            layout = Layout(**record["layout"], fields=fields)
            learned = {
                label: {(label, int(packets), str(service)): int(count) for packets, service, count in found}
                for label, found in record["classes"].items()
            }
            if not all(
                1 <= packets <= LONGEST and count > 0
                for found in learned.values()
                for (_, packets, _), count in found.items()
            ):
                raise ValueError("backend.json has a number of packets or flows that cannot be")
            arrays = load_file(folder / "control.safetensors")
            known = any(name.startswith("values/") for name in arrays)
            values = from_arrays(arrays, layout, len(arrays["edges"])) if known else {}
        if options is None:
            options = saved
        backend = cls(attrs.evolve(options, **{name: getattr(saved, name) for name in TRAINED_OPTIONS}))
        base = backend._open(layout)
        with _blamed_on(folder):
            begin = sorted(set(starts([plan for found in learned.values() for plan in found], base.codec)))
            structure = _load_structure(arrays, begin, list(learned), saved.control)
        if not _is_whole(structure, begin, base.codec.edge_features):
            raise DataError(
                f"{folder / 'control.safetensors'} is damaged, or of another model: it does not hold the control maps "
                "of all classes and heights in backend.json. Fit again."
            )
        if base.digest != record["base_sha256"]:
            raise DataError(
                f"{folder} was fine-tuned on another version of the base {saved.base!r} "
                f"(SHA-256 {record['base_sha256'][:12]}…, found {base.digest[:12]}…): fit again."
            )
        try:
            base.load_adapter(folder)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise DataError(f"The adapter in {folder} does not fit its base: {error}") from error
        backend.layout, backend.checkpoint = layout, base
        backend.plans, backend.structure, backend.values = learned, structure, values
        return backend

    def _open(self, layout: Layout) -> Family:
        """
        Load the checkpoint that the options name, on the device that they name.
        """
        options = self.options
        torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
        device = options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"backend.device={device} is not usable here: {str(error).splitlines()[0]}") from error
        base = checkpoints.load(
            options.base,
            layout,
            controlnet=options.controlnet,
            download=options.download,
            device=device,
            precision=options.precision,
            offload=options.offload,
            gradient_checkpointing=options.gradient_checkpointing,
        )
        if options.control != "none" and base.controlnet is None:
            raise ConfigError(
                f"The base {options.base!r} has no controlnet/ folder: give one with --set backend.controlnet=…, "
                "or use --set backend.control=none."
            )
        return base

    def _draw_plan(self, label: str, rng: np.random.Generator) -> Plan:
        """
        Draw length and service of a flow, as they occur together in its class.
        """
        found = self.plans[label]
        chance = np.array(list(found.values()), float)
        return list(found)[rng.choice(len(found), p=chance / chance.sum())]


@contextmanager
def _blamed_on(folder: Path) -> Iterator[None]:
    """
    Turn whatever goes wrong with a damaged model folder into one DataError.
    """
    try:
        yield
    except (
        OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, SafetensorError,
    ) as error:  # fmt: skip
        raise DataError(f"{folder} is not a model of the stable-diffusion backend: {error}") from error


def _load_structure(
    arrays: dict[str, NDArray[Any]], begin: Sequence[Start], labels: Sequence[str], control: str
) -> Structure | Exemplars | None:
    """
    Undo what `save` did to the structure.
    """
    if control == "none":
        return None
    if control == "class":
        start = {name: len(arrays["edges"]) + i for i, name in enumerate(begin)}
        return Structure(**{name: arrays[name] for name in STRUCTURE_ARRAYS}, start=start)
    images: dict[str, dict[int, NDArray[np.uint8]]] = {}
    for name, stored in arrays.items():
        label, height = name.split("/")
        images.setdefault(labels[int(label)], {})[int(height)] = stored
    return Exemplars(images=images)


def _is_whole(structure: Structure | Exemplars | None, begin: Sequence[Start], edge_features: int) -> bool:
    """
    Tell whether a structure has all that sampling will ask it for.
    """
    if isinstance(structure, Structure):
        states, known = len(structure.edges), len(structure.edges) + len(structure.start)
        origin, target, chance = structure.origin, structure.target, structure.chance
        return bool(
            structure.edges.shape == (states, edge_features)
            and structure.edges.dtype == np.uint8
            and structure.again.shape == (states,)
            and structure.again.dtype == np.bool_
            and origin.shape == target.shape == chance.shape
            and np.array_equal(origin, np.sort(origin))
            and np.array_equal(np.unique(origin), np.arange(1, known))  # all but the flow's end lead on
            and ((target >= 0) & (target < states) & (chance >= 0)).all()
            and np.allclose(np.bincount(origin, chance)[1:], 1)
        )
    if isinstance(structure, Exemplars):
        return all(
            len(maps := structure.images.get(label, {}).get(height, np.empty(0))) > 0
            and maps.shape[1:] == (height, edge_features)
            and maps.dtype == np.uint8
            for label, height, _ in begin
        )
    return True


def _until_absent(rows: NDArray[np.int8]) -> NDArray[np.int8]:
    """
    Cut a flow before its first absent packet. A flow has at least one packet.
    """
    absent = (rows == -1).mean(1) > ABSENT_SHARE
    end = int(np.argmax(absent)) if absent.any() else len(rows)
    return rows[: max(end, 1)]
