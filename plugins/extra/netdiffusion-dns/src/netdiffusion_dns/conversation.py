"""
Who asks, and which question an answer belongs to: for all flows at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from netdiffusion_core.model import Traffic

from .messages import QR, Messages, question_octets

Array = NDArray[Any]


def matches(traffic: Traffic, messages: Messages, asked: Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """
    Find for each response the question that it answers: the last query before it, of the other side of the same flow,
    with the same ID and question, or else with the same ID. Return ``(query, repeats)``: its index among the messages,
    -1 for none, and whether the response repeats its question, where both were captured and the response has one. Names
    may differ in case (RFC 4343).

    asked  bool[n]  the queries that count
    """
    m = messages
    response = (m.flags & QR > 0) & m.headed
    query = asked & m.headed & ~response
    asker = m.forth ^ response  # whose question this message is or answers
    octets = _lower(question_octets(traffic.data, m.at, m.questions))
    question = np.unique(octets.view(f"V{octets.shape[1]}").ravel(), return_inverse=True)[1]
    same_id = _last(np.column_stack([m.flows, asker, m.ids]), query, response)
    same = _last(np.column_stack([m.flows, asker, m.ids, question]), query, response)
    told = (same_id >= 0) & (m.questions > 0) & (m.questions[same_id] > 0)
    return np.where(same >= 0, same, same_id), (same >= 0) | ~told


def _last(key: Array, query: Array, response: Array) -> NDArray[np.int64]:
    """
    Return for each response (bool[n]) the last query (bool[n]) before it with the same key (int64[n, k]), -1 for none.
    """
    place = np.arange(len(key))
    order = np.lexsort((place, *key.T[::-1]))
    head = np.ones(len(key), bool)
    head[1:] = (np.diff(key[order], axis=0) != 0).any(1)
    begin = np.maximum.accumulate(np.where(head, place, 0))
    last = np.maximum.accumulate(np.where(query[order], place, -1))
    found = np.full(len(key), -1)
    found[order] = np.where((last >= begin) & response[order], order[last], -1)
    return found


def _lower(octets: Array) -> NDArray[np.uint8]:
    """
    Return ASCII letters in lower case. Lengths of labels are below them; type and class change alike on both sides.
    """
    return octets + 32 * ((octets >= 65) & (octets <= 90)).astype(np.uint8)


def turns(flows: Array, query: Array, response: Array) -> NDArray[np.int64]:
    """
    Return which message each response (bool[n]) answers: the oldest query (bool[n]) of the flow that is still open, or
    the last one again where all are answered. Each response has a query before it. int64[n], -1 for other messages.

    That is, with r responses and q queries before it, ``a(r) = min(a(r - 1) + 1, q - 1)``, which is r + min(0, min over
    all responses so far of q - 1 - r).

    flows  int64[n], rising
    """
    n = len(flows)
    answered = np.full(n, -1)
    if not response.any():
        return answered
    head = np.searchsorted(flows, flows)
    r, q = (np.cumsum(mask) - mask for mask in (response, query))
    first, r, q = q[head], r - r[head], q - q[head]
    rank = np.unique(flows, return_inverse=True)[1]
    late = np.where(response, np.minimum(q - 1 - r, 0), 0) - rank * (n + 1)  # keeps the flows apart
    turn = r + np.minimum.accumulate(late) + rank * (n + 1)
    answered[response] = np.flatnonzero(query)[(first + turn)[response]]
    return answered
