"""
What every encoder must do.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np

from ..model import Encoded, Traffic
from .component import Conformance, difference, must_raise, returned, unchanged
from .examples import example_traffic, no_flow, no_packets


class EncoderConformance(Conformance):
    """
    The checks of an encoder.

    lossy  fields that `decode` does not give back as they were
    """

    kind: ClassVar[str] = "encoder"
    lossy: ClassVar[tuple[str, ...]] = ()

    def traffic(self) -> Traffic:
        """
        Return what is encoded. Override it for an encoder that knows other protocols.
        """
        return example_traffic()

    def test_the_layout_is_well_formed(self) -> None:
        """
        A layout has a name, a version of at least 1, and fields ``header.field`` of at least a bit, no name twice. It
        is the same each time: model folders record it and refuse others.
        """
        layout = self.component().layout
        names = [name for name, _ in layout.fields]
        assert layout.name, "the layout has no name"
        assert layout.version >= 1, f"the version of the layout is {layout.version}"
        assert names, "the layout has no fields"
        assert len(set(names)) == len(names), "two fields of the layout have one name"
        for name, bits in layout.fields:
            assert name.count(".") == 1, f"the field {name!r} is not named like header.field, such as tcp.wsize"
            assert bits >= 1, f"the field {name!r} has {bits} bits"
        assert self.component().layout == layout, "two encoders with the same options have different layouts"

    def test_encode_gives_rows_flow_by_flow(self) -> None:
        """
        `encode` returns int8 rows of 1, 0 and -1, as wide as the layout, one group a flow in the order of the flow
        table, with its label; nothing of packets that belong to no flow.

        Mend: ``order, starts = traffic.by_flow()`` is the packets flow by flow, and where each begins.
        """
        traffic = self.traffic()
        encoded = self._encode(traffic)
        assert encoded.labels.tolist() == traffic.flows.labels.tolist(), "the labels are not those of the flow table"
        _, starts = traffic.by_flow()
        longer = np.flatnonzero(encoded.lengths > np.diff(starts))
        assert not len(longer), f"flow {longer[:1]} has more rows than packets"
        assert len(encoded.rows), "not one packet of the example traffic was encoded"
        backwards = self._encode(traffic.select_flows(np.arange(len(traffic.flows))[::-1]))
        for flow, opposite in ((0, -1), (-1, 0)):
            one, other = (e.flow(range(len(e))[i]) for e, i in ((encoded, flow), (backwards, opposite)))
            assert np.array_equal(one, other), "the rows of a flow depend on where it stands in the flow table"

    def test_what_is_decoded_is_encoded_as_it_was(self) -> None:
        """
        ``encode(decode(rows))`` gives the same rows: all that the layout tells of a header is in the packets.

        Mend: `decode` writes every field where `encode` reads it, and repairs nothing: checksums and lengths are
        encoded bits like others. What cannot come back is named in `lossy`.
        """
        encoded = self._encode(self.traffic())
        again = self._encode(self._decode(encoded))
        assert np.array_equal(again.starts, encoded.starts), (
            f"{len(encoded.rows)} rows in {len(encoded)} flows come back as {len(again.rows)} in {len(again)}"
        )
        for field, _ in encoded.layout.fields:
            if field not in self.lossy:
                wrong = np.flatnonzero((again.bits(field) != encoded.bits(field)).any(axis=1))
                assert not len(wrong), (
                    f"{field} is lost in {len(wrong)} of {len(encoded.rows)} packets: row {wrong[0]} was "
                    f"{encoded.bits(field)[wrong[0]].tolist()} and came back as {again.bits(field)[wrong[0]].tolist()}"
                )

    def test_decode_gives_the_flows_it_was_given(self) -> None:
        """
        `decode` returns packets grouped by flow, with the labels and start times of the rows.
        """
        encoded = self._encode(self.traffic())
        decoded = self._decode(encoded)
        assert decoded.flows.labels.tolist() == encoded.labels.tolist(), "the labels are not those of the rows"
        assert (np.diff(decoded.flow_of) >= 0).all(), "the packets are not grouped by flow"
        flows = np.flatnonzero(encoded.lengths)
        order, starts = decoded.by_flow()
        first = decoded.timestamps[order[starts[flows]]]
        late = flows[np.abs(first - encoded.start_times[flows]) >= 1000]
        assert not len(late), f"flow {late[0]} does not begin at its start time (in nanoseconds)"

    def test_the_seed_decides_what_is_drawn(self) -> None:
        """
        What `decode` draws (addresses, payload) comes from the generator that it is given: the same seed gives the
        same packets, another seed others.

        Mend: no ``random``, no ``np.random.default_rng()`` of your own. For an encoder that draws nothing:
        ``random = False``.
        """
        encoded = self._encode(self.traffic())
        one, again, other = (self._decode(encoded, seed) for seed in (3, 3, 4))
        assert one == again, f"the same seed gave other packets: {difference(one, again)}"
        assert not self.random or one != other, (
            "two seeds gave the same packets: draw addresses from rng, or set random = False"
        )

    def test_empty_and_odd_traffic(self) -> None:
        """
        No packets, packets without IP, packets that were cut within a header: no exception, rows for what has flows.
        """
        for traffic in (no_packets(), no_flow()):
            encoded = self._encode(traffic)
            decoded = self._decode(encoded)
            assert len(decoded.flows) == len(encoded) == len(traffic.flows), "a flow was lost or invented"

    def test_files_of_other_formats(self) -> None:
        """
        `write` makes one new file of each of `formats`, and raises KeyError for a format that it does not know.
        """
        encoder, traffic = self.component(), self.traffic()
        with tempfile.TemporaryDirectory() as folder:
            for form, suffix in encoder.formats.items():
                path = Path(folder, f"example{suffix}")
                with unchanged("write", traffic):
                    encoder.write(traffic, path, form)
                assert path.is_file(), f"write(..., {form!r}) made no file"
            with must_raise(KeyError, "write in an unknown format"):
                encoder.write(traffic, Path(folder, "nothing"), "no-such-format")

    def _encode(self, traffic: Traffic) -> Encoded:
        """
        Encode, and look at what every answer has.
        """
        encoder = self.component()
        with unchanged("encode", traffic):
            encoded: Encoded = encoder.encode(traffic)
        check_encoded(encoded)
        assert encoded.layout == encoder.layout, f"the rows have the layout {encoded.layout.name}, not the encoder's"
        return encoded

    def _decode(self, encoded: Encoded, seed: int = 0) -> Traffic:
        """
        Decode, and see that the rows stay as they are.
        """
        with unchanged("decode", encoded):
            answer = self.component().decode(encoded, np.random.default_rng(seed))
        traffic: Traffic = returned(answer, Traffic, "decode")
        return traffic


def check_encoded(encoded: Encoded) -> None:
    """
    Assert that the arrays fit each other.
    """
    assert isinstance(encoded, Encoded), f"the answer is {type(encoded).__name__}, not Encoded"
    assert encoded.rows.ndim == 2, f"rows have the shape {encoded.rows.shape}, not [packets, columns]"
    assert encoded.rows.shape[1] == encoded.layout.width, (
        f"rows have {encoded.rows.shape[1]} columns, and the layout {encoded.layout.name} has {encoded.layout.width}"
    )
    odd = set(np.unique(encoded.rows).tolist()) - {-1, 0, 1}
    assert not odd, f"rows hold {sorted(odd)}; a bit is 1, 0, or -1 where its header is absent"
    for name in ("labels", "start_times"):
        count = len(getattr(encoded, name))
        assert count == len(encoded.starts) - 1, f"{name} has {count} entries for {len(encoded.starts) - 1} flows"
    whole = encoded.starts[0] == 0 and encoded.starts[-1] == len(encoded.rows) and (encoded.lengths >= 0).all()
    assert whole, f"starts must rise from 0 to the number of rows, {len(encoded.rows)}"
