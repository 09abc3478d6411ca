"""
What every backend must do.
"""

from __future__ import annotations

import io
import json
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np

from ..context import Context
from ..errors import DataError, NotFittedError
from ..interfaces import Backend
from ..model import Encoded, SampleRequest
from .component import Conformance, difference, must_raise, unchanged
from .encoder import check_encoded
from .examples import example_bits, example_traffic


class BackendConformance(Conformance):
    """
    The checks of a backend. It is fitted twice: set `options` so that this takes seconds.

    max_packets  no flow that is asked for is longer
    """

    kind: ClassVar[str] = "backend"
    max_packets: ClassVar[int] = 12
    _backend: ClassVar[Backend]

    @classmethod
    def data(cls) -> Encoded:
        """
        Return the flows to learn from, of two labels or more. Override it for a backend that needs another layout.
        """
        return example_bits(example_traffic())

    def request(self, seed: int = 7) -> SampleRequest:
        """
        Return what is asked for: every label twice, in turn.
        """
        labels = sorted(set(self.data().labels.tolist()))
        return SampleRequest(labels=(*labels, *labels[::-1]), max_packets=self.max_packets, seed=seed)

    def test_nothing_is_sampled_before_fit(self) -> None:
        """
        `sample` raises NotFittedError before `fit` or `load`.
        """
        with must_raise(NotFittedError, "sample before fit"):
            self.component().sample(self.request(), Context())

    def test_the_request_is_answered(self) -> None:
        """
        `sample` returns one flow a label, in the order asked for, of one to `max_packets` packets, in the layout that
        was learned; no flow for no label.
        """
        request, data = self.request(), self.data()
        sample = self._sample(request)
        assert sample.labels.tolist() == list(request.labels), (
            f"{list(request.labels)} was asked for, and {sample.labels.tolist()} came"
        )
        assert sample.layout == data.layout, f"the layout is {sample.layout.name}, and {data.layout.name} was learned"
        assert ((sample.lengths >= 1) & (sample.lengths <= request.max_packets)).all(), (
            f"flows have {sample.lengths.tolist()} packets; 1 to {request.max_packets} were asked for"
        )
        assert (sample.start_times >= 0).all(), "start times are nanoseconds since 1970, and one is negative"
        assert not len(self._sample(attrs.evolve(request, labels=()))), "a request for nothing was answered by flows"

    def test_the_seed_decides_what_is_drawn(self) -> None:
        """
        The same request gives the same flows, another seed other ones.

        Mend: ``np.random.default_rng([request.seed, i])`` for flow i, or a generator of your library made of these.
        """
        one, again, other = (self._sample(self.request(seed)) for seed in (7, 7, 8))
        assert one == again, f"the same seed gave other flows: {difference(one, again)}"
        assert not self.random or one.digest() != other.digest(), (
            "two seeds gave the same flows: use request.seed, or set random = False"
        )

    def test_a_flow_depends_on_its_place_and_no_other_flow(self) -> None:
        """
        Flow i depends on (seed, i) and the model: not on how many flows are asked for, so that a larger run begins
        with the flows of a smaller one. One bit in a hundred may differ: sums of floating-point numbers depend on the
        size of a batch.
        """
        request = self.request()
        others = attrs.evolve(request, labels=(request.labels[1], *request.labels[1:-1]))
        whole, part = self._sample(request), self._sample(others)
        whole, part = (sample.select(np.arange(1, len(others.labels))) for sample in (whole, part))
        assert whole.lengths.tolist() == part.lengths.tolist(), (
            f"flows have {part.lengths.tolist()} packets, and {whole.lengths.tolist()} among other flows"
        )
        moved = float((whole.rows != part.rows).mean())
        assert moved <= 0.01, f"{moved:.0%} of a flow's bits change when other flows are drawn with it"

    def test_fit_twice_gives_the_same_model(self) -> None:
        """
        The same data and seed give the same model, on one machine.

        Mend: seed every draw of `fit` from ``context.rng("...")`` or ``stream_seed(context.seed, "...")``.
        """
        one, other = self._sample(self.request()), self._fit().sample(self.request(), Context())
        assert one == other, f"a second fit with the same seed samples other flows: {difference(one, other)}"

    def test_a_saved_model_samples_the_same(self) -> None:
        """
        ``load(folder)`` brings back what `save` wrote: the same request gives the same flows.
        """
        with tempfile.TemporaryDirectory() as folder:
            loaded = self._saved(Path(folder))
        one, other = self._sample(self.request()), loaded.sample(self.request(), Context())
        assert one == other, f"the loaded model samples other flows: {difference(one, other)}"

    def test_no_pickle_is_saved(self) -> None:
        """
        A model folder holds safetensors, npy, JSON and TOML files, which cannot run code, and each is what its suffix
        says.

        Mend: ``np.save(path, array, allow_pickle=False)``, ``safetensors.numpy.save_file``, ``json.dumps``. No
        ``torch.save``, ``joblib.dump`` or ``np.savez`` of objects.
        """
        with tempfile.TemporaryDirectory() as name:
            self._saved(Path(name))
            for path in self._files(Path(name)):
                reader = _READERS.get(path.suffix)
                shown = path.relative_to(name)
                assert reader, f"{shown} is none of {', '.join(_READERS)}, which are all that a model may be saved as"
                try:
                    reader(path.read_bytes())
                except (ValueError, EOFError) as error:
                    raise AssertionError(f"{shown} is no {path.suffix[1:]} file ({error}): is it a pickle?") from None

    def test_a_label_that_was_not_learned(self) -> None:
        """
        A label that no training flow had is a DataError that names it.
        """
        request = attrs.evolve(self.request(), labels=("no-such-class",))
        with must_raise(DataError, "a label that was never learned", naming="no-such-class"):
            self._fitted().sample(request, Context())

    def test_a_damaged_folder_is_refused(self) -> None:
        """
        `load` raises DataError for an empty folder, and for one in which a file is missing, was cut in half, or holds
        something else.

        Mend: catch what your readers raise (OSError, ValueError, KeyError ...) and raise
        ``DataError(f"{folder} is no usable model (...): fit again")``; compare the arrays' shapes with the layout.
        """
        with tempfile.TemporaryDirectory() as empty:
            self._refuses(Path(empty), "an empty folder")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self._saved(folder)
            for path in self._files(folder):
                whole, shown = path.read_bytes(), path.relative_to(folder)
                path.unlink()
                self._refuses(folder, f"a folder without {shown}")
                for what, content in (("was cut in half", whole[: len(whole) // 2]), ("is noise", b"\x93noise" * 9)):
                    path.write_bytes(content)
                    self._refuses(folder, f"a folder whose {shown} {what}")
                path.write_bytes(whole)

    @classmethod
    def _fit(cls) -> Backend:
        backend: Backend = cls.component()
        data = cls.data()
        with unchanged("fit", data):
            backend.fit(data, Context())
        return backend

    @classmethod
    def _fitted(cls) -> Backend:
        """
        Fit once a test class.
        """
        if "_backend" not in vars(cls):
            cls._backend = cls._fit()
        return cls._backend

    def _sample(self, request: SampleRequest) -> Encoded:
        sample: Encoded = self._fitted().sample(request, Context())
        check_encoded(sample)
        return sample

    def _saved(self, folder: Path) -> Backend:
        """
        Save into an empty folder, and return what is loaded from it.
        """
        fitted = self._fitted()
        fitted.save(folder)
        return type(fitted).load(folder, fitted.options)

    def _files(self, folder: Path) -> list[Path]:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        assert files, "save wrote no file"
        return files

    def _refuses(self, folder: Path, what: str) -> None:
        fitted = self._fitted()
        with must_raise(DataError, f"load of {what}"):
            type(fitted).load(folder, fitted.options)


def _read_npy(content: bytes) -> None:
    np.load(io.BytesIO(content), allow_pickle=False)


def _read_safetensors(content: bytes) -> None:
    """
    Read the header: its size in eight bytes, low byte first, then JSON (huggingface.co/docs/safetensors).
    """
    json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


_READERS: Mapping[str, Callable[[bytes], Any]] = {
    ".json": json.loads,
    ".npy": _read_npy,
    ".safetensors": _read_safetensors,
    ".toml": lambda content: tomllib.loads(content.decode()),
}
