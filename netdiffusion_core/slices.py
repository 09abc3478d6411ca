"""
The stages of `pipeline`, slice by slice: each piece of work reads some flows from files, and writes what it makes into
files, so that memory holds a few slices whatever the number of flows, and an executor may do them anywhere.

A slice and its random streams depend on the flows alone (see `flow_files.cut`, `Context.of_slice`): the results are the
same bytes for any executor and any number of workers.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import attrs
import numpy as np

from . import flow_files, pipeline, repairs, storage
from .capture import write_capture
from .context import Context, silent, slice_seed
from .flow_files import SLICE_FLOWS, FlowFiles, cut
from .interfaces import Backend, Encoder, Evaluator, Executor, RealTraffic
from .model import Encoded, SampleRequest, Score, Traffic, Violation
from .plugins import Plugins

Slice = tuple[int, int]
"""Flows, from one to before another."""

Result = TypeVar("Result")

_CHANGES, _TALLY = "repairs.csv.gz", "repairs.json"


class Here(Executor):
    """
    Works in this process: the executor where no other is installed.
    """

    def map(self, function: Callable[[Any], Result], items: Iterable[Any]) -> Iterator[Result]:
        """
        See `interfaces.Executor.map`.
        """
        return map(function, items)


@attrs.frozen(kw_only=True)
class Synthesis:
    """
    What one backend made, in a folder.

    traffic  what it generated, after all rules
    tally    what these changed
    changes  a table of each change, where one was asked for; see `repairs.write_csv`
    """

    folder: Path

    @property
    def traffic(self) -> Traffic:
        return FlowFiles(self.folder).traffic

    @property
    def tally(self) -> repairs.Tally:
        return repairs.Tally.from_json(json.loads((self.folder / _TALLY).read_text(encoding="utf-8")))

    @property
    def changes(self) -> Path:
        return self.folder / _CHANGES


@attrs.frozen(kw_only=True)
class Workshop:
    """
    Where and by whom slices are worked on.

    plugins   stands first: where a piece of work is built in another process, the plugins' files are imported before
              components that come from them
    folder    holds what only the run itself reads
    """

    plugins: Plugins
    context: Context
    executor: Executor
    folder: Path

    def keep(self, name: str, traffic: Traffic) -> Path:
        """
        Write traffic where workers can read it, and return its folder.
        """
        folder = self._new(name)
        flow_files.save(traffic, folder)
        return folder

    def encode(self, traffic: Path, target: Path, encoder_index: Mapping[str, Any]) -> None:
        """
        Write the bits of this traffic into a folder.
        """
        target.mkdir(parents=True, exist_ok=True)
        with self._parts() as parts:
            work = _Encode(self.plugins, parts, traffic, self._encoder(), dict(encoder_index))
            made = self._each("encode", work)
            if len(work.slices) == 1:
                (part,) = made
                for file in part.iterdir():
                    file.rename(target / file.name)
                return
            writer = storage.Writer(target, self._encoder().layout, encoder_index)
            for part in made:
                writer.append(storage.load(part))
                shutil.rmtree(part)
            writer.close()

    def generate(
        self,
        backend: Backend,
        request: SampleRequest,
        target: Path,
        encoder_index: Mapping[str, Any],
        model: Path | None = None,
    ) -> None:
        """
        Write flows of a backend into a new folder.

        model  its folder, where workers may load it, if the executor samples
        """
        target.mkdir()
        writer = storage.Writer(target, self._encoder().layout, encoder_index)
        slices = _of_request(request)
        if model is not None and self.executor.samples:
            with self._parts() as parts:
                work = _Sample(self.plugins, parts, self._context(), model, pipeline.options_of(backend), request)
                for part in self._each("generate", work):
                    writer.append(storage.load(part))
                    shutil.rmtree(part)
        else:
            show = self.context.progress if len(slices) > 1 else silent
            with show("generate", len(request.labels)) as advance:
                for number, (first, last) in enumerate(slices):
                    some = _part(request, number, first, last)
                    writer.append(pipeline.generate(backend, some, self.context))
                    advance(last - first)
        writer.close()

    def finish(self, generated: Path, target: Path, with_changes: bool = False) -> Synthesis:
        """
        Constrain, decode and repair generated bits, into a new folder.
        """
        target.mkdir(parents=True)
        writer, tally = flow_files.Writer(target), repairs.Tally()
        with self._parts() as parts, (target / _CHANGES).open("xb") as changes:
            work = _Finish(self.plugins, parts, self._context(), generated, with_changes)
            for part, some in self._each("repair", work):
                writer.append(FlowFiles(part).traffic)
                tally += some
                if with_changes:
                    changes.write((part / _CHANGES).read_bytes())
                shutil.rmtree(part)
        writer.close()
        (target / _TALLY).write_text(json.dumps(attrs.asdict(tally)), encoding="utf-8")
        return Synthesis(folder=target)

    def synthesize(
        self, backend: Backend, request: SampleRequest, target: Path, model: Path | None = None
    ) -> Synthesis:
        """
        `generate` and `finish`.
        """
        with self._parts() as parts:
            generated = parts / "generated"
            self.generate(backend, request, generated, {}, model)
            return self.finish(generated, target)

    def check(self, traffic: Path) -> tuple[Violation, ...]:
        """
        Return every violation of the rules, in the order of flows.
        """
        found = self._each("check", _Check(self.plugins, traffic, self._context()))
        return tuple(violation for some in found for violation in some)

    def write(self, traffic: Path, target: Path) -> None:
        """
        Write one pcap a flow into a new folder, see `pipeline.write`.
        """
        work = _Write(self.plugins, traffic, target)
        for folder in {(target / name).parent for name in work.names}:
            folder.mkdir(parents=True)
        for _ in self._each("write", work):
            pass

    def evaluate(
        self, real: tuple[Path, Path], made: Mapping[str, Path], evaluators: Sequence[tuple[str, Evaluator]]
    ) -> Iterator[tuple[str, dict[str, list[Score]]]]:
        """
        Yield each evaluator's name, and its scores for each synthetic traffic by the name of who made that.

        real  training and test traffic
        """
        work = _Evaluate(self.plugins, self.context, real, dict(made), tuple(evaluators))
        with self.context.progress("evaluate", len(evaluators)) as advance:
            found = self.executor.map(work, range(len(evaluators)))
            for (name, _), scores in zip(evaluators, found, strict=True):
                yield name, scores
                advance(note=name)

    def _context(self) -> Context:
        return attrs.evolve(self.context, progress=silent)

    def _encoder(self) -> Encoder:
        assert self.context.encoder is not None
        return self.context.encoder

    def _new(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder

    @contextmanager
    def _parts(self) -> Iterator[Path]:
        """
        Yield a folder for parts until they are joined.
        """
        parts = Path(tempfile.mkdtemp(prefix="parts-", dir=self.folder))
        yield parts
        shutil.rmtree(parts)

    def _each(self, title: str, work: _Work[Result]) -> Iterator[Result]:
        """
        Yield what becomes of each slice, in order.
        """
        pieces = list(enumerate(work.slices))
        with self.context.progress(title, sum(last - first for _, (first, last) in pieces)) as advance:
            for (_, (first, last)), result in zip(pieces, self.executor.map(work, pieces), strict=True):
                yield result
                advance(last - first)


# --- pieces of work: called with the number of a slice and its flows, wherever the executor does it ----------------


@attrs.define(slots=False, eq=False)
class _Work(ABC, Generic[Result]):
    plugins: Plugins  # first, see `Workshop`

    @abstractmethod
    def __call__(self, piece: tuple[int, Slice]) -> Result: ...

    @property
    @abstractmethod
    def slices(self) -> list[Slice]: ...

    def __getstate__(self) -> dict[str, Any]:
        # What was mapped or built here stays here.
        return {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}


@attrs.define(slots=False, eq=False)
class _Making(_Work[Result]):
    parts: Path

    @contextmanager
    def part(self, number: int) -> Iterator[tuple[Path, Path]]:
        """
        Yield a new folder to write a part into, and the name that it gets when it is whole. One that has it already was
        made by a worker that was thought lost.
        """
        draft, part = Path(tempfile.mkdtemp(prefix="draft-", dir=self.parts)), self.parts / f"{number:08d}"
        yield draft, part
        try:
            draft.rename(part)
        except OSError:
            if not part.exists():
                raise
            shutil.rmtree(draft)


@attrs.define(slots=False, eq=False)
class _Reading(_Work[Result]):
    traffic: Path

    @cached_property
    def files(self) -> FlowFiles:
        return FlowFiles(self.traffic)

    @property
    def slices(self) -> list[Slice]:
        return cut(self.files.starts)


@attrs.define(slots=False, eq=False)
class _Encode(_Reading[Path], _Making[Path]):
    encoder: Encoder
    encoder_index: dict[str, Any]

    def __call__(self, piece: tuple[int, Slice]) -> Path:
        number, flows = piece
        with self.part(number) as (draft, part):
            storage.save(pipeline.encode(self.files.select(*flows), self.encoder), draft, self.encoder_index)
        return part


@attrs.define(slots=False, eq=False)
class _Sample(_Making[Path]):
    samples = True  # what an executor with GPUs gives one for

    context: Context
    model: Path
    options: dict[str, Any]
    request: SampleRequest

    @cached_property
    def backend(self) -> Backend:
        return pipeline.load_model(self.model, self.plugins, self.options)[0]

    @property
    def slices(self) -> list[Slice]:
        return _of_request(self.request)

    def __call__(self, piece: tuple[int, Slice]) -> Path:
        number, (first, last) = piece
        made = pipeline.generate(self.backend, _part(self.request, number, first, last), self.context)
        with self.part(number) as (draft, part):
            storage.save(made, draft)
        return part


@attrs.define(slots=False, eq=False)
class _Finish(_Making[tuple[Path, repairs.Tally]]):
    context: Context
    generated: Path
    with_changes: bool

    @cached_property
    def bits(self) -> Encoded:
        return storage.load(self.generated)

    @cached_property
    def names(self) -> list[str]:
        return pipeline.capture_names(self.bits.labels.tolist())

    @property
    def slices(self) -> list[Slice]:
        return cut(self.bits.starts)

    def __call__(self, piece: tuple[int, Slice]) -> tuple[Path, repairs.Tally]:
        number, (first, last) = piece
        context, rules = self.context.of_slice(number), self.context.rules
        assert context.encoder is not None
        constrained, in_bits = pipeline.constrain(self.bits.select(np.arange(first, last)), rules)
        traffic, in_packets = pipeline.repair(pipeline.decode(constrained, context.encoder, context), rules, context)
        changes = in_bits + in_packets
        with self.part(number) as (draft, part):
            flow_files.save(traffic, draft)
            if self.with_changes:
                repairs.write_csv(draft / _CHANGES, changes, self.names[first:last], with_head=number == 0)
        return part, repairs.Tally.of(changes, len(traffic))


@attrs.define(slots=False, eq=False)
class _Check(_Reading[list[Violation]]):
    context: Context

    def __call__(self, piece: tuple[int, Slice]) -> list[Violation]:
        _, (first, last) = piece
        packets = int(self.files.starts[first])
        return [
            attrs.evolve(v, flow=v.flow + first, packet=None if v.packet is None else v.packet + packets)
            for v in pipeline.check(self.files.select(first, last), self.context.rules)
        ]


@attrs.define(slots=False, eq=False)
class _Write(_Reading[None]):
    target: Path

    @cached_property
    def names(self) -> list[str]:
        return pipeline.capture_names(self.files.traffic.flows.labels.tolist())

    def __call__(self, piece: tuple[int, Slice]) -> None:
        _, (first, last) = piece
        traffic = self.files.select(first, last)
        order, starts = traffic.by_flow()
        for i, name in enumerate(self.names[first:last]):
            write_capture(self.target / name, traffic, order[starts[i] : starts[i + 1]])


@attrs.define(slots=False, eq=False)
class _Evaluate:
    plugins: Plugins
    context: Context
    real: tuple[Path, Path]
    made: dict[str, Path]
    evaluators: tuple[tuple[str, Evaluator], ...]

    # Kept from one evaluator to the next, since these keep what they know of a traffic as long as it is there.
    @cached_property
    def real_traffic(self) -> RealTraffic:
        train, test = (FlowFiles(folder).traffic for folder in self.real)
        return RealTraffic(train=train, test=test)

    @cached_property
    def traffic(self) -> dict[str, Traffic]:
        return {name: FlowFiles(folder).traffic for name, folder in self.made.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in attrs.fields(type(self))}

    def __call__(self, number: int) -> dict[str, list[Score]]:
        name, evaluator = self.evaluators[number]
        scores = {
            maker: pipeline.scores_of(self.real_traffic, traffic, name, evaluator, self.context)
            for maker, traffic in self.traffic.items()
        }
        give_back()
        return scores


def give_back() -> None:
    """
    Give memory that large arrays have left back to the system, where the C library can (glibc): by itself it keeps it,
    hundreds of megabytes in a process that only waits for its workers from then on.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _of_request(request: SampleRequest) -> list[Slice]:
    flows = len(request.labels)
    return [(first, min(first + SLICE_FLOWS, flows)) for first in range(0, flows, SLICE_FLOWS)]


def _part(request: SampleRequest, number: int, first: int, last: int) -> SampleRequest:
    return attrs.evolve(request, labels=request.labels[first:last], seed=slice_seed(request.seed, number))
