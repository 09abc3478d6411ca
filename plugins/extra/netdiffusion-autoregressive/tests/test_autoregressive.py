"""
The autoregressive backend: what it tells exactly, what it learns, and what it promises to a caller.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

import netdiffusion_core
from netdiffusion_autoregressive import training
from netdiffusion_autoregressive.backend import SAMPLED_FLOWS, Autoregressive, Options
from netdiffusion_autoregressive.tokens import RECENT, Codec, split
from netdiffusion_core import pipeline
from netdiffusion_core.config import RunConfig
from netdiffusion_core.context import Context
from netdiffusion_core.errors import DataError, NotFittedError
from netdiffusion_core.model import Encoded, Layout, SampleRequest, numbers
from netdiffusion_core.plugins import Plugins

SAMPLE = Path(netdiffusion_core.__file__).parent / "samples" / "lab"
LAYOUT = Layout(
    name="toy",
    version=2,
    fields=(
        ("a.version", 4), ("a.kind", 8), ("a.id", 16), ("a.sum", 16), ("a.more", 1), ("a.last", 1),
        ("b.port", 16), ("b.size", 16), ("b.options", 96),
        ("c.type", 8),
        ("trace.gap", 48),
    ),
)  # fmt: skip
KINDS = np.array([17, 40, 99, 180])
SMALL = Options(
    width=32, head_width=32, layers=1, dropout=0.0, steps=260, rows_per_step=512, learning_rate=1e-2, threads=1
)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def bits_of(value: int, width: int) -> list[int]:
    return [value >> shift & 1 for shift in range(width)][::-1]


def planted(flows: int, rng: np.random.Generator) -> Encoded:
    """
    Flows with rules. Class "up": the kind of each packet is the next of `KINDS`, "down": the one before. The size is
    ten times the kind, the identification counts, the port stays, the sum is noise. The flag ``last`` ends a flow of
    "up", which has 1, 3 or 8 packets; one of "down" has 2. Header b is there in "up", header c in "down".
    """
    rows, lengths, labels = [], [], []
    for flow in range(flows):
        up = flow % 2 == 0
        length = int(rng.choice([1, 3, 8], p=[0.5, 0.25, 0.25])) if up else 2
        at, first_id, port = int(rng.integers(4)), int(rng.integers(60_000)), int(rng.integers(1024, 65_536))
        for position in range(length):
            kind = int(KINDS[(at + position) % 4 if up else (at - position) % 4])
            row = bits_of(4, 4) + bits_of(kind, 8) + bits_of(first_id + position, 16)
            row += bits_of(int(rng.integers(1 << 16)), 16)
            row += [int(not up), int(up and position == length - 1)]
            row += bits_of(port, 16) + bits_of(10 * kind, 16) + bits_of(0xABCD, 32) + [-1] * 64 if up else [-1] * 128
            row += [-1] * 8 if up else bits_of(8, 8)
            rows.append(row + bits_of(int(10 ** rng.uniform(3, 4)) if position else 0, 48))
        lengths.append(length)
        labels.append("up" if up else "down")
    return Encoded(
        rows=np.array(rows), starts=np.cumsum([0, *lengths]), labels=np.array(labels),
        start_times=np.arange(flows) + 1_000, layout=LAYOUT,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Encoded:
    return planted(1200, np.random.default_rng(0))


@pytest.fixture(scope="module")
def fitted(data) -> Autoregressive:
    torch.set_num_threads(1)
    backend = Autoregressive(SMALL)
    backend.fit(data, Context(seed=3))
    return backend


def sample(backend: Autoregressive, labels: list[str], max_packets: int = 64, seed: int = 5) -> Encoded:
    return backend.sample(SampleRequest(labels=labels, max_packets=max_packets, seed=seed), Context())


# --- tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["trace", "paper"])
def test_real_packets_come_back_from_their_tokens(layout):
    """
    Of captures: which headers are there, and every value that has a token of its own or stands in the flow before,
    exactly; every other one inside its interval, so that its order of magnitude stays.
    """
    plugins, config = Plugins.discover(), RunConfig(data=SAMPLE, classes=("dns", "redis", "ping"), max_packets=32)
    encoder = plugins.create("encoder", "nprint", {"layout": layout})
    data = pipeline.encode(pipeline.load(config, plugins), encoder)
    codec, tokens = Codec.learn(data)
    parts = split(data.layout)
    assert sum(part.bits for part in parts) == data.layout.width
    assert len(tokens[0]) < 60  # a packet is a short sequence, whatever its width

    recent = np.full((len(data), len(parts), RECENT), -1)
    drawn, rng = np.empty_like(data.rows), np.random.default_rng(0)
    for position in range(int(data.lengths.max())):
        going = np.flatnonzero(data.lengths > position)
        at = data.starts[going] + position
        drawn[at], recent[going] = codec.draw(tokens[at], recent[going], rng.random((len(going), len(parts))))
    assert np.array_equal(drawn == -1, data.rows == -1)
    for field in ("ipv4.proto", "tcp.syn", "tcp.ackf", "tcp.doff", "icmp.type"):
        assert np.array_equal(drawn[:, data.layout.span(field)], data.bits(field)), field
    sizes = numbers(drawn[:, data.layout.span("ipv4.tl")])
    assert np.median(np.abs(sizes - data.values("ipv4.tl"))) == 0


def test_what_is_noise_or_follows_from_a_header_costs_nothing(data):
    codec, _ = Codec.learn(data)
    told = {codec.numbers[column // 2].name for column in codec.columns}
    assert "a.sum" not in told  # uniform
    assert "a.version" not in told  # constant
    assert "c.type" not in told or "b.options" not in told  # each is there when the other is not
    id_columns = [c for c in codec.columns if codec.numbers[c // 2].name == "a.id"]
    assert sum(codec.sizes[list(codec.columns).index(c)] for c in id_columns) < 20  # new, or one more than the last


# --- the model --------------------------------------------------------------------------------------------------


def test_learns_what_joins_packets_and_fields(fitted):
    labels = ["up", "down"] * 150
    made = sample(fitted, labels)
    assert made.labels.tolist() == labels
    assert made.layout == LAYOUT
    kind, size, port, number = (made.values(f) for f in ("a.kind", "b.size", "b.port", "a.id"))
    up = (made.labels == "up")[made.flow_of]
    later = np.flatnonzero(np.diff(made.flow_of, prepend=-1) == 0)
    step = np.where(up, 1, -1)[later]
    at = np.searchsorted(KINDS, kind)
    assert np.isin(kind, KINDS).all()
    assert (at[later] == (at[later - 1] + step) % 4).mean() > 0.95  # across packets, by class
    assert (size[up] == 10 * kind[up]).mean() > 0.95  # across fields
    assert (number[later] == number[later - 1] + 1).mean() > 0.95
    assert (port[later] == port[later - 1]).mean() > 0.95
    assert len(np.unique(port[up])) > 60  # new in each flow
    assert ((size >= 0) == up).mean() > 0.99
    assert (made.values("c.type") == np.where(up, -1, 8)).mean() > 0.99
    sums = made.values("a.sum")
    assert len(np.unique(sums)) > 0.98 * len(sums)
    assert 28_000 < sums.mean() < 37_500
    gaps = made.values("trace.gap")
    assert (gaps[made.starts[:-1]] == 0).mean() > 0.98
    assert ((gaps[later] > 900) & (gaps[later] < 10_100)).mean() > 0.97


def test_learns_how_long_flows_are(fitted, data):
    made = sample(fitted, ["up"] * 400 + ["down"] * 100)
    lengths = made.lengths
    assert (lengths[400:] == 2).mean() > 0.95
    share = [(lengths[:400] == n).mean() for n in (1, 3, 8)]
    assert sum(share) > 0.95
    assert np.abs(np.array(share) - [0.5, 0.25, 0.25]).max() < 0.1
    ends = made.starts[1:401] - 1
    assert (made.values("a.last")[ends] == 1).mean() > 0.95  # the flag and the end come together
    assert data.start_times.min() <= made.start_times.min() <= made.start_times.max() <= data.start_times.max()


def test_a_flow_depends_on_seed_and_number_only(fitted):
    labels = ["up", "down", "up"] * (SAMPLED_FLOWS // 2)
    whole = sample(fitted, labels)
    for count in (1, 3, SAMPLED_FLOWS, SAMPLED_FLOWS + 1):
        assert sample(fitted, labels[:count]) == whole.select(np.arange(count))
    cut = sample(fitted, labels, max_packets=2)
    assert all(np.array_equal(cut.flow(i), whole.flow(i)[:2]) for i in range(len(labels)))
    assert sample(fitted, labels, seed=6).digest() != whole.digest()
    assert len(sample(fitted, [])) == 0


def test_one_packet_flows(data):
    """
    A class of single packets, and no other: learned, and never longer.
    """
    single = data.select(data.lengths == 1)
    backend = Autoregressive(Options(width=32, head_width=16, layers=1, steps=5, rows_per_step=64))
    backend.fit(single, Context())
    assert (sample(backend, ["up"] * 5, max_packets=1024).lengths == 1).all()


def test_low_temperature_draws_the_likeliest(fitted):
    cold = Autoregressive(Options(temperature=1e-3))
    cold._model = fitted._model
    assert len(np.unique(sample(cold, ["up"] * 30).lengths)) == 1


def test_training_goes_on_where_it_was_stopped(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    options = Options(width=32, head_width=16, layers=1, steps=12, rows_per_step=64)
    few = data.select(np.arange(100))

    @contextmanager
    def stopped(title, total):
        count = 0

        def advance(steps=1, note=""):
            nonlocal count
            count += steps
            if title == "train" and count == 7:
                raise KeyboardInterrupt

        yield advance

    whole, parted = Autoregressive(options), Autoregressive(options)
    whole.fit(few, Context(seed=1))
    with pytest.raises(KeyboardInterrupt):
        parted.fit(few, Context(seed=1, checkpoints=tmp_path / "state", progress=stopped))
    parted.fit(few, Context(seed=1, checkpoints=tmp_path / "state"))
    assert sample(parted, ["up", "down"]) == sample(whole, ["up", "down"])


# --- folders and mistakes ---------------------------------------------------------------------------------------


def test_a_model_folder_brings_back_the_same_model(fitted, tmp_path):
    fitted.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}
    loaded = Autoregressive.load(tmp_path, Options(temperature=1.0, layers=9))  # how it was trained stays as it was
    assert loaded.options.layers == SMALL.layers
    assert sample(loaded, ["up", "down"] * 4) == sample(fitted, ["up", "down"] * 4)


@pytest.mark.parametrize("name", ["backend.json", "network.safetensors", "vocabularies.safetensors"])
def test_a_damaged_folder_is_refused(fitted, tmp_path, name):
    fitted.save(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.unlink()
    for content in (None, whole[: len(whole) // 2], b"\x80\x04pickle"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match="fit again"):
            Autoregressive.load(tmp_path)


def test_a_folder_of_another_model_is_refused(fitted, tmp_path):
    fitted.save(tmp_path)
    index = tmp_path / "backend.json"
    record = json.loads(index.read_text())
    for change in ({"labels": ["up"]}, {"format": 99}, {"layout": {"name": "x", "version": 1, "fields": [["a.b", 3]]}}):
        index.write_text(json.dumps(record | change))
        with pytest.raises(DataError, match="fit again"):
            Autoregressive.load(tmp_path)


def test_mistakes_are_named(fitted, data, tmp_path):
    with pytest.raises(DataError, match=r"'upp'\. Did you mean 'up'\? Known: down, up"):
        sample(fitted, ["up", "upp"])
    with pytest.raises(NotFittedError, match="fit or load"):
        sample(Autoregressive(), ["up"])
    with pytest.raises(NotFittedError, match="fit or load"):
        Autoregressive().save(tmp_path)
    with pytest.raises(DataError, match="one packet at least"):
        Autoregressive().fit(data.select(np.array([], np.int64)), Context())
    with pytest.raises(ValueError, match="multiple of 32"):
        Options(width=100)
