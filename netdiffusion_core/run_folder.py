"""
Output folders that are whole or not there, and the course of a run: stages, times, observers.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from filelock import FileLock, Timeout

from .errors import ConfigError, NetDiffusionError, RunError
from .plugins import Plugins

CHECKPOINTS = "checkpoints"
"""Folder of what only an interrupted run needs. As long as there is none, nothing of a run is worth keeping."""
WORKING = "working"
"""Folder of what only this process and its workers read; it is not kept."""
WORK = "work.json"
_FULL = "no space left on the device of"

logger = logging.getLogger("netdiffusion")


@contextmanager
def new_folder(target: Path, overwrite: bool = False, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """
    Yield a private folder beside `target` that takes its name when all went well, and is removed otherwise.

    overwrite  replace what stands there; it is removed only after the new folder stands in its place
    inputs     files and folders that the work reads: a target that holds one of them is refused

    Raises ConfigError, before any work, when `target` exists or must not be replaced; RunError when it cannot be
    written.
    """
    target = Path(os.path.abspath(target))
    _check_free(target, overwrite, inputs)
    with _partial(target) as partial:
        with _there_to_the_end(target, partial):
            yield partial
        _put(partial, target, overwrite)


@contextmanager
def resumable_folder(
    target: Path, overwrite: bool = False, resume: bool = False, inputs: Sequence[Path] = ()
) -> Iterator[Path]:
    """
    Like `new_folder`, but what the work keeps (see `Run.keep` and `CHECKPOINTS`) survives whatever ends it, and
    `resume` goes on from there. Until all is done the folder is ``.NAME.partial``, and one process works in it.

    Raises what `new_folder` does; ConfigError too when another process works there, or when interrupted work stands
    there and neither `resume` nor `overwrite` says what shall become of it.
    """
    target = Path(os.path.abspath(target))
    _check_free(target, overwrite, inputs)
    partial = target.with_name(f".{target.name}.partial")
    with _errors_in_sentences(target, partial), _alone(target, partial):
        if partial.is_symlink() or (partial.exists() and partial.stat().st_uid != os.geteuid()):
            raise ConfigError(f"what stands for {target} in {target.parent} is not yours; choose another output")
        if partial.exists() and not resume:
            if (partial / CHECKPOINTS).exists() and not overwrite:
                raise ConfigError(
                    f"an interrupted run of {target} was kept: go on with --resume, or begin anew with --overwrite"
                )
            shutil.rmtree(partial)
        partial.mkdir(mode=0o700, exist_ok=True)
        try:
            with _there_to_the_end(target, partial):
                yield partial
            working = partial / WORKING
            working.mkdir(exist_ok=True)
            if (partial / CHECKPOINTS).exists():  # out of the way at once: half of it must never be gone on with
                (partial / CHECKPOINTS).rename(working / CHECKPOINTS)
            shutil.rmtree(working, ignore_errors=True)
            (partial / WORK).unlink(missing_ok=True)
            _put(partial, target, overwrite)
        except BaseException as error:
            if (partial / CHECKPOINTS).exists() and (partial / WORK).exists():
                logger.warning("what was finished is kept: go on with --resume")
            else:
                _remove(partial, error)
            raise


def working_folder(folder: Path) -> Path:
    """
    Return the empty `WORKING` in an unfinished output folder; what an interruption left there is removed.
    """
    working = folder / WORKING
    if working.exists():
        shutil.rmtree(working)
    working.mkdir()
    return working


@contextmanager
def new_file(target: Path, overwrite: bool = False, inputs: Sequence[Path] = ()) -> Iterator[Path]:
    """
    Like `new_folder`, for a file: yield a path where nothing stands yet.
    """
    target = Path(os.path.abspath(target))
    if target.is_dir():
        raise ConfigError(f"{target} is a folder; give the name of a file")
    if any(target.exists() and target.samefile(path) for path in inputs):
        raise ConfigError(f"{target} is what is read; choose another output")
    if os.path.lexists(target) and not overwrite:
        raise ConfigError(f"{target} exists already; choose another output, or replace it with --overwrite")
    with _partial(target) as partial:
        yield partial / target.name
        os.replace(partial / target.name, target)
        partial.rmdir()


@contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """
    Yield a private folder beside `target`, and remove it when something goes wrong.
    """
    with _errors_in_sentences(target, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    with _errors_in_sentences(target, partial):
        try:
            yield partial
        except BaseException as error:
            _remove(partial, error)
            raise


@contextmanager
def _alone(target: Path, partial: Path) -> Iterator[None]:
    """
    Keep other processes out while the work goes on.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{partial}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"another process is writing {target}: wait for it, or choose another output") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def _there_to_the_end(target: Path, partial: Path) -> Iterator[None]:
    """
    Raise RunError when the folder was removed while the work went on: what was written since is not all of it.
    """
    handle = os.open(partial, os.O_RDONLY)  # as long as it is open, no other folder gets its inode
    cause: Exception | None = None
    try:
        yield
    except Exception as error:
        cause = error
    finally:
        there = partial.exists() and os.path.samestat(os.fstat(handle), partial.stat())
        os.close(handle)
    if not there:
        raise RunError(f"{target} was removed while the work went on; run it again") from cause
    if cause is not None:
        raise cause


@contextmanager
def _errors_in_sentences(target: Path, partial: Path) -> Iterator[None]:
    """
    Say the operating system's errors in a sentence, and call the partial folder by the name it was to have.
    """
    try:
        yield
    except Exception as error:
        sentence = no_space(error, target.parent)
        if isinstance(error, OSError) and not sentence:
            # What lies beside the target has a name that nobody asked for: the folder is what could not be written.
            beside = error.filename and Path(os.fsdecode(error.filename)).parent == target.parent
            sentence = f"{target.parent}: {error.strerror}" if beside else explain(error)
        if sentence:
            raise RunError(f"{sentence}; {target} was not written".replace(str(partial), str(target))) from error
        if isinstance(error, NetDiffusionError) and str(partial) in str(error):
            raise type(error)(str(error).replace(str(partial), str(target))) from error
        raise


def _remove(partial: Path, error: BaseException) -> None:
    """
    Remove a folder after an error. One that says that the disk is full is told so before there is space again.
    """
    if sentence := no_space(error, partial.parent):
        error.add_note(sentence)
    shutil.rmtree(partial, ignore_errors=True)


def explain(error: OSError) -> str:
    """
    Say an operating system's error in a sentence.
    """
    text = error.strerror or str(error) or type(error).__name__
    if error.errno is None and "requested and" in text:  # NumPy's short writes
        text = f"a file was not written whole ({text}): there is a limit on the size of files, or a quota"
    return f"{error.filename}: {text}" if error.filename else text


def no_space(error: BaseException, folder: Path) -> str:
    """
    Return a sentence when the error comes from a full disk, else an empty string.
    """
    if told := next((note for note in getattr(error, "__notes__", ()) if note.startswith(_FULL)), ""):
        return str(told)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    # NumPy's short writes carry no errno, and safetensors' errors are no OSError.
    short = isinstance(error, OSError) and error.errno is None and _free_bytes(folder) < 1 << 20
    if not (full or short or "No space left on device" in str(error)):
        return ""
    free = _free_bytes(folder) >> 20
    return f"{_FULL} {folder} ({free} MiB free): free some, or choose another output"


@attrs.define(kw_only=True)
class Run:
    """
    The course of one run: times its stages and tells the observers.

    folder  where the run is written until it takes its final name
    stages  one row a finished stage: ``name``, ``seconds`` and what the stage noted (``sha256`` and the like)
    """

    plugins: Plugins
    folder: Path
    stages: list[dict[str, Any]] = attrs.field(factory=list)

    def begin(self, work: Mapping[str, Any]) -> None:
        """
        Note what the run is made from, or hold it against what an interrupted one was made from.

        Raises ConfigError when they differ: what was kept then belongs to another run.
        """
        path, text = self.folder / WORK, json.dumps(work, indent=1, ensure_ascii=False, default=str)
        if not (self.folder / CHECKPOINTS).exists():
            path.write_text(text, encoding="utf-8")
            return
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise ConfigError("what was kept of the interrupted run is damaged: begin anew with --overwrite") from None
        now = json.loads(text)
        if other := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
            raise ConfigError(
                f"the interrupted run was made from other {' and '.join(other)}; give it the same with --resume, "
                "or begin anew with --overwrite"
            )

    def keep(self, name: str, make: Callable[[Path], Any]) -> Path:
        """
        Make a file or folder of the run: it stands under its name when it is whole and on the disk, not before. One
        that stands already was made before an interruption.
        """
        path = self.folder / name
        if not path.exists():
            draft = path.with_name(f".{path.name}.draft")
            if draft.is_dir():
                shutil.rmtree(draft)
            path.parent.mkdir(exist_ok=True)
            make(draft)
            os.sync()
            os.replace(draft, path)
            (self.folder / CHECKPOINTS).mkdir(exist_ok=True)
        return path

    @contextmanager
    def stage(self, name: str, component: str = "") -> Iterator[dict[str, Any]]:
        """
        Run one stage. Yields the row of the manifest, for the stage to add to.
        """
        row: dict[str, Any] = {"name": name} | ({"component": component} if component else {})
        self.plugins.notify("netdiffusion_stage_started", stage=name, folder=self.folder)
        start = time.perf_counter()
        try:
            yield row
        except Exception as error:
            error.add_note(f"in stage {name}{f' ({component})' if component else ''}")
            raise
        row["seconds"] = round(time.perf_counter() - start, 3)
        self.stages.append(row)
        self.plugins.notify("netdiffusion_stage_finished", stage=name, folder=self.folder, seconds=row["seconds"])


def _check_free(target: Path, overwrite: bool, inputs: Sequence[Path]) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise ConfigError(f"{target} exists already; choose another output, or replace it with --overwrite")
    if target.is_symlink() or not target.is_dir():
        raise ConfigError(f"{target} is no folder, and --overwrite replaces folders only; choose another output")
    place = os.path.realpath(target)
    for kept in (Path.cwd(), Path.home(), *inputs):
        if Path(os.path.realpath(kept)).is_relative_to(place):
            raise ConfigError(f"--overwrite would remove {kept}, which lies in {target}; choose another output")


def _put(partial: Path, target: Path, overwrite: bool) -> None:
    """
    Give the finished folder its name, and the permissions that folders usually have.
    """
    partial.chmod(0o777 & ~_umask())
    if not os.path.lexists(target):
        os.rename(partial, target)
        return
    if not overwrite:
        raise ConfigError(f"{target} appeared while the work went on, and was left alone; choose another output")
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    os.rename(target, aside / target.name)
    try:
        os.rename(partial, target)
    except BaseException:
        os.rename(aside / target.name, target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 1 << 40
