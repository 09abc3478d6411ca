"""
Encoded flows as a folder: .npy arrays and one JSON file. Nothing here can run code: pickle stays off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .columns import Column, mapped
from .errors import DataError
from .model import Encoded, Layout

FORMAT = 1
INDEX = "encoded.json"
_ARRAYS = {"rows": np.int8, "starts": np.int64, "start_times": np.int64}


class Writer:
    """
    Writes encoded flows into an existing folder, a few after the others.
    """

    def __init__(self, folder: Path, layout: Layout, encoder: Mapping[str, Any] | None = None) -> None:
        """
        encoder  name and options of the encoder that made them, so that `netdiff decode` needs to ask nobody
        """
        self._folder, self._layout, self._encoder = folder, layout, dict(encoder or {})
        self._labels: list[str] = []
        self._packets = 0
        self._columns = {
            name: Column(folder / f"{name}.npy", dtype, (layout.width,) if name == "rows" else ())
            for name, dtype in _ARRAYS.items()
        }
        self._columns["starts"].append(np.zeros(1))

    def append(self, encoded: Encoded) -> None:
        """
        Write flows of the same layout behind those that are there.
        """
        self._columns["rows"].append(encoded.rows)
        self._columns["starts"].append(encoded.starts[1:] + self._packets)
        self._columns["start_times"].append(encoded.start_times)
        self._labels += encoded.labels.tolist()
        self._packets += len(encoded.rows)

    def close(self) -> None:
        """
        Make the folder whole.
        """
        for column in self._columns.values():
            column.close()
        index = {
            "format": FORMAT,
            "layout": layout_to_json(self._layout),
            "encoder": self._encoder,
            "labels": self._labels,
        }
        (self._folder / INDEX).write_text(json.dumps(index, ensure_ascii=False) + "\n", encoding="utf-8")


def save(encoded: Encoded, folder: Path, encoder: Mapping[str, Any] | None = None) -> None:
    """
    Write encoded flows into an existing folder; see `Writer`.
    """
    writer = Writer(folder, encoded.layout, encoder)
    writer.append(encoded)
    writer.close()


def load(folder: Path) -> Encoded:
    """
    Read what `save` wrote; the rows are memory-mapped.

    Raises DataError for anything else, with what is wrong.
    """
    require_files(folder)
    index = read_index(folder)
    arrays = {}
    for name, dtype in _ARRAYS.items():
        path = folder / f"{name}.npy"
        try:
            arrays[name] = mapped(path)
        except FileNotFoundError:
            raise DataError(f"{folder} is incomplete: {path.name} is missing; encode again") from None
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is damaged ({error}); encode again") from None
        found = getattr(arrays[name], "dtype", "an archive")
        if found != dtype:
            raise DataError(f"{path} holds {found}, not {np.dtype(dtype)}; it was not made by netdiff encode")
    layout = layout_from_json(index["layout"], folder / INDEX)
    rows, starts, labels = arrays["rows"], arrays["starts"], index["labels"]
    consistent = (
        isinstance(labels, list)
        and all(isinstance(label, str) for label in labels)
        and rows.ndim == 2
        and rows.shape[1] == layout.width
        and starts.shape == (len(labels) + 1,)
        and arrays["start_times"].shape == (len(labels),)
        and starts[0] == 0
        and starts[-1] == len(rows)
        and bool((np.diff(starts) >= 0).all())
    )
    if not consistent:
        raise DataError(f"the arrays in {folder} do not fit each other: encode again")
    if len(rows) and (int(rows.min()) < -1 or int(rows.max()) > 1):
        raise DataError(f"{folder / 'rows.npy'} holds values other than -1, 0 and 1: encode again")
    return Encoded(**arrays, labels=np.asarray(labels, np.str_), layout=layout)


def is_encoded(folder: Path) -> bool:
    """
    Tell whether `save` wrote this folder.
    """
    return (folder / INDEX).is_file()


def read_encoder(folder: Path) -> dict[str, Any]:
    """
    Return name and options of the encoder that made an encoded folder. Raises DataError where none is recorded.
    """
    encoder: dict[str, Any] = read_index(folder)["encoder"]
    if not is_component(encoder):
        raise DataError(f"{folder / INDEX} does not say which encoder made it: encode again with netdiff encode")
    return encoder


def read_index(folder: Path) -> dict[str, Any]:
    """
    Return the JSON index of an encoded folder: ``layout``, ``encoder`` and ``labels``.
    """
    return read_json(folder / INDEX, ("layout", "encoder", "labels"), "netdiff encode")


def require_files(folder: Path) -> None:
    """
    Raise DataError for a folder that holds a pipe, a device or a link to one: reading it may never end.
    """
    for path in folder.rglob("*"):
        if not (path.is_file() or path.is_dir()):
            raise DataError(f"{path} is neither a file nor a folder; copy {folder} anew from where it was made")


def is_component(document: Any) -> bool:
    """
    Tell whether a JSON value names a component and its options.
    """
    return isinstance(document, dict) and [type(document.get(k)) for k in ("name", "options")] == [str, dict]


def read_json(path: Path, keys: tuple[str, ...], maker: str, format_version: int = FORMAT) -> dict[str, Any]:
    """
    Read a JSON file of ours. Raises DataError when it is missing, damaged, of another format or lacks a key.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if not path.parent.exists():
            raise DataError(f"there is no folder {path.parent}") from None
        raise DataError(f"{path.parent} was not made by {maker}: it has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); run {maker} again") from None
    if not isinstance(document, dict) or "format" not in document or not all(k in document for k in keys):
        raise DataError(f"{path} is damaged, or was not made by {maker}; run {maker} again")
    if document["format"] != format_version:
        raise DataError(
            f"{path} is of another version of netdiff: it has format {document['format']}, and this one reads "
            f"{format_version}; run {maker} again"
        )
    return document


def layout_to_json(layout: Layout) -> dict[str, Any]:
    """
    Return a layout in JSON's own types.
    """
    return {"name": layout.name, "version": layout.version, "fields": [list(f) for f in layout.fields]}


def layout_from_json(document: Any, path: Path) -> Layout:
    """
    Read what `layout_to_json` made. Raises DataError that names `path`.
    """
    try:
        fields = tuple((str(name), int(bits)) for name, bits in document["fields"])
        return Layout(name=str(document["name"]), version=int(document["version"]), fields=fields)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError(f"the layout in {path} is damaged") from None
