"""
The baseline backends, on toy encodings.
"""

from __future__ import annotations

import json

import attrs
import numpy as np
import pytest

from netdiffusion_baselines.bernoulli import Bernoulli, BernoulliOptions
from netdiffusion_baselines.bootstrap import Bootstrap
from netdiffusion_core.context import Context
from netdiffusion_core.errors import DataError, NotFittedError
from netdiffusion_core.model import Encoded, Layout, SampleRequest

LAYOUT = Layout(name="toy", version=3, fields=(("a.one", 1), ("a.two", 1), ("b.word", 6)))
BACKENDS = [Bernoulli, Bootstrap]


def flows_of(label: str, lengths: list[int], rng: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    """
    Flows whose first two columns always agree, and whose header ``b`` is there in class "web" only.
    """
    flows = []
    for length in lengths:
        rows = rng.integers(0, 2, (length, LAYOUT.width)).astype(np.int8)
        rows[:, 1] = rows[:, 0]
        rows[0, :2] = 1
        if label != "web":
            rows[:, 2:] = -1
        flows.append((label, rows))
    return flows


@pytest.fixture
def data() -> Encoded:
    rng = np.random.default_rng(0)
    flows = flows_of("web", [3, 5, 8] * 30, rng) + flows_of("dns", [1, 2] * 30, rng)
    return Encoded(
        rows=np.concatenate([rows for _, rows in flows]),
        starts=np.cumsum([0] + [len(rows) for _, rows in flows]),
        labels=np.array([label for label, _ in flows]),
        start_times=np.arange(len(flows)) * 1000 + 5_000,
        layout=LAYOUT,
    )


@pytest.fixture(params=BACKENDS)
def fitted(request: pytest.FixtureRequest, data: Encoded) -> Bernoulli | Bootstrap:
    backend = request.param()
    backend.fit(data, Context())
    return backend


def test_flows_start_when_training_flows_did(fitted, data):
    sample = fitted.sample(SampleRequest(labels=("dns", "web") * 3, max_packets=4, seed=1), Context())
    assert (sample.start_times >= data.start_times.min()).all()
    assert (sample.start_times <= data.start_times.max()).all()


def test_an_unknown_class_is_named_with_those_known(fitted):
    with pytest.raises(DataError, match=r"'wbe'\. Did you mean 'web'\? It knows: dns, web"):
        fitted.sample(SampleRequest(labels=("wbe",), max_packets=9, seed=1), Context())


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_saved_before_fit_and_nothing_learned_from_nothing(backend, data, tmp_path):
    with pytest.raises(NotFittedError):
        backend().save(tmp_path)
    with pytest.raises(DataError, match="at least one training flow"):
        backend().fit(data.select(np.array([], np.int64)), Context())


def test_a_folder_that_is_not_its_own_is_refused(fitted, tmp_path):
    other = next(backend for backend in BACKENDS if not isinstance(fitted, backend))
    with pytest.raises(DataError, match="no usable"):
        other.load(tmp_path)
    fitted.save(tmp_path)
    with pytest.raises(DataError, match="Choose the right backend"):
        other.load(tmp_path)

    facts = json.loads((tmp_path / "model.json").read_text())
    facts["layout"]["fields"].append(["c.more", 8])
    (tmp_path / "model.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="do not fit the layout"):
        type(fitted).load(tmp_path)

    (tmp_path / "model.json").write_text("{")
    with pytest.raises(DataError, match="no usable"):
        type(fitted).load(tmp_path)


def test_a_pickled_array_is_refused(fitted, tmp_path):
    fitted.save(tmp_path)
    victim = next(iter(tmp_path.glob("*.npy")))
    np.save(victim, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match="no usable"):
        type(fitted).load(tmp_path)


def test_bernoulli_keeps_each_column_and_loses_what_joins_them(data):
    backend = Bernoulli()
    backend.fit(data, Context())
    sample = backend.sample(SampleRequest(labels=("web",) * 400, max_packets=9, seed=0), Context())
    later = np.arange(len(sample.rows)) != sample.starts[:-1][sample.flow_of]
    real = data.rows[data.labels[data.flow_of] == "web"]
    assert np.abs((sample.rows == 1).mean(0) - (real == 1).mean(0)).max() < 0.05
    one, two = sample.rows[later, :2].T
    assert 0.4 < (one == two).mean() < 0.6  # in every real packet they agree

    # a bit that is always 1, or always missing, stays so: no rounding may make an impossible bit
    assert (sample.rows[sample.starts[:-1], :2] == 1).all()
    dns = backend.sample(SampleRequest(labels=("dns",) * 2000, max_packets=9, seed=0), Context())
    assert (dns.rows[:, 2:] == -1).all()
    assert set(dns.lengths) == {1, 2}


def test_bernoulli_pools_positions_beyond_its_limit(data):
    backend = Bernoulli(BernoulliOptions(positions=1))
    backend.fit(data, Context())
    sample = backend.sample(SampleRequest(labels=("web",) * 200, max_packets=9, seed=0), Context())
    assert set(sample.lengths) == {3, 5, 8}
    assert not (sample.rows[sample.starts[:-1], 0] == 1).all()  # "first packet" is no longer known


def test_bootstrap_gives_training_flows_of_the_class(data):
    backend = Bootstrap()
    backend.fit(data, Context())
    sample = backend.sample(SampleRequest(labels=("web",) * 50 + ("dns",) * 50, max_packets=9, seed=0), Context())
    known = {(str(data.labels[i]), data.flow(i).tobytes()) for i in range(len(data))}
    drawn = {(str(sample.labels[i]), sample.flow(i).tobytes()) for i in range(len(sample))}
    assert drawn <= known
    assert len(drawn) > 30  # with replacement, but not one flow all over


def test_fit_does_not_need_start_times(data):
    backend = Bootstrap()
    backend.fit(attrs.evolve(data, start_times=np.zeros(len(data), np.int64)), Context())
    assert (backend.sample(SampleRequest(labels=("web",), max_packets=9, seed=0), Context()).start_times == 0).all()
