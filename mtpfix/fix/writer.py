"""Write what a plan changes: a whole result or none, whatever happens on the way, and never into the source.

The protocol, and what is guaranteed after a crash at each point of it, is told in docs/writer.md. Knows files; what the
changes mean for an engine is the plan's business, and the caller's check before anything is published.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mtpfix.checkpoint.folder import opened, target_of
from mtpfix.checkpoint.ref import safe_member, shown
from mtpfix.errors import MtpfixError, TensorError, UsageError
from mtpfix.fix.changes import (
    Buffer,
    Changes,
    EditedFile,
    EditedShard,
    FileChange,
    Link,
    NewShard,
    Progress,
    RemovedFile,
    Snapshot,
    Verify,
    Written,
    WrittenFile,
)
from mtpfix.fix.disk import free_bytes, sync_folder, told, write_new
from mtpfix.fix.journal import Journal
from mtpfix.fix.link import place
from mtpfix.fix.manifest import holds, manifest_bytes, plan_digest
from mtpfix.fix.shard import Layout, edit_layout, new_layout, produce
from mtpfix.fix.snapshot import MANIFEST_FILE, OWN_PREFIX, check_snapshot, is_shard
from mtpfix.fix.stage import Stage, held, publish, stage_path

IN_PLACE = f"{OWN_PREFIX}in-place"
BACKUP = f"{OWN_PREFIX}backup-"

_PLAN = "make the plan anew"


def write(
    changes: Changes,
    out: Path,
    *,
    link: Link = Link.AUTO,
    overlay: bool = False,
    verify: Verify | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write the checkpoint that `changes` describe to the folder `out`, which appears whole or not at all.

    With `overlay` only what changes is written, with a manifest that says what it is to be laid over. `verify` is
    called with the finished folder before it is published. An interrupted run is continued by the same call; where the
    result is there already, nothing is written. Raises UsageError where `out` cannot be the result's place,
    FormatError for a source that cannot be kept, MtpfixError where the source changed, another run is at work, or
    the system refuses; and whatever `verify` or the reading of a tensor raises.
    """
    out = _place_for(out, changes)
    _check(changes)
    digest = plan_digest(changes, overlay=overlay)
    path = stage_path(out)
    with told(f"read {shown(str(out))}"):
        done = _done(out, digest)
        if done is not None and not path.exists():
            return done
    with told(f"write {shown(str(out))}", path), held(path, out) as stage:
        done = _done(out, digest)  # another run may have finished meanwhile, or died before it tidied up
        if done is not None:
            stage.remove()
            return done
        snapshots = (changes.source, *changes.reads)
        purpose = {"plan": digest, "link": link.value, "marks": [_marks(snapshot) for snapshot in snapshots]}
        journal, resumed = stage.begin(purpose)
        run = _Run(changes, stage, journal, progress)
        try:
            run.stage_files(digest, None if overlay else link, overlay=overlay)
        except TensorError:
            stage.remove()  # numbers that cannot be stored: the next run would say the same
            raise
        try:
            _verify(run, verify, whole=not overlay)
            for snapshot in snapshots:
                check_snapshot(snapshot)
        except MtpfixError:
            stage.remove()  # the same would come out again, or the source is no longer what it was made from
            raise
        with told(f"publish {shown(str(out))}", path):
            publish(stage, out)
        stage.remove()
    return replace(run.result(out, digest), resumed=resumed)


def is_there(changes: Changes, out: Path, *, overlay: bool) -> bool:
    """Return whether `out` is the very result of these changes, so that `write` would write nothing."""
    with told(f"read {shown(str(out))}"):
        return holds(out, plan_digest(changes, overlay=overlay)) is not None and not stage_path(out).exists()


def write_in_place(changes: Changes, *, verify: Verify | None = None) -> Written:
    """Change the configuration files of the source itself, each by one rename; old ones go into a backup beside them.

    Only files that are not shards can be changed in place. The backup is `.mtpfix-backup-PLAN`, with the first twelve
    digits of the plan's digest. When the first file is renamed it is decided that all will be: an interrupted run is
    finished by `finish_in_place`, which a command calls before it reads the folder. Raises as `write` does.
    """
    folder = changes.source.folder.resolve()
    _check(changes)
    for change in changes.files:
        if not isinstance(change, EditedFile) or is_shard(change.name):
            raise UsageError(
                f"{shown(change.name)} cannot be changed in place: only configuration files can",
                "write the result to another folder with --out",
            )
        if (folder / change.name).is_symlink():
            raise UsageError(
                f"{shown(change.name)} is a link, and what it leads to may be shared, as in the Hub's cache",
                "write the result to another folder with --out",
            )
    digest = plan_digest(changes, overlay=False)
    path = folder / IN_PLACE
    with told(f"change {shown(str(folder))}", path), held(path, folder) as stage:
        _refuse_unfinished(stage, folder)  # once more, now that nobody else can be at it
        backup = f"{BACKUP}{digest[:12]}"
        journal, resumed = stage.begin({"plan": digest, "marks": [_marks(changes.source)], "backup": backup})
        run = _Run(changes, stage, journal, None)
        run.stage_files(digest, None, overlay=False)
        try:
            _verify(run, verify, whole=False)
            check_snapshot(changes.source)
        except MtpfixError:
            stage.remove()
            raise
        sync_folder(stage.files)
        journal.decide()
        _roll_forward(stage, folder)
        stage.remove()
    saved = folder / backup if (folder / backup).is_dir() else None
    return replace(run.result(folder, digest), backup=saved, resumed=resumed)


def finish_in_place(folder: Path) -> bool:
    """Finish a repair in place that was interrupted, and return whether there was one to finish.

    Raises MtpfixError if another run is at work there, or where the system refuses.
    """
    folder = folder.resolve()
    path = folder / IN_PLACE
    if not path.is_dir():
        return False
    with told(f"finish the repair of {shown(str(folder))}", path), held(path, folder) as stage:
        finished = _roll_forward(stage, folder)
        stage.remove()
    return finished


def refuse_unfinished(folder: Path) -> None:
    """Raise MtpfixError if a repair of the folder in place stopped between its first and its last file."""
    folder = folder.resolve()
    with told(f"read {shown(str(folder))}"):
        if (folder / IN_PLACE).is_dir():
            _refuse_unfinished(Stage(folder / IN_PLACE), folder)


# --------------------------------------------------------------------------------------------- staging


@dataclass(slots=True)
class _Run:
    """One run of the writer: what it is to make, where, and what it has done so far."""

    changes: Changes
    stage: Stage
    journal: Journal
    progress: Progress | None
    kept: dict[str, int] = field(default_factory=dict)
    bytes_written: int = 0
    told: int = 0
    total: int = 0

    def stage_files(self, digest: str, link: Link | None, *, overlay: bool) -> None:
        """Make every file of the result that is not finished yet; without `link` unchanged ones are left out."""
        source = self.changes.source
        changed = {change.name for change in self.changes.files}
        unchanged = [name for name in source.files if name not in changed and name != MANIFEST_FILE]
        layouts = {change.name: self._layout(change) for change in self.changes.files if _is_layout(change)}
        self.total = sum(layout.size for layout in layouts.values())
        if link is not None:
            self.total += sum(source.files[name].size for name in unchanged)
        self._check_room(layouts, unchanged if link is Link.COPY else ())
        written = {}
        for change in self.changes.files:
            match change:
                case EditedFile(name, content):
                    written[name] = self._write(name, len(content), [content])
                case EditedShard(name) | NewShard(name):
                    written[name] = self._write_shard(layouts[name], is_new=isinstance(change, NewShard))
                case RemovedFile():
                    pass
        unable: set[Link] = set()
        for name in unchanged if link is not None else ():
            self._keep(name, link or Link.AUTO, unable)
        manifest = manifest_bytes(self.changes, digest, written, unchanged, overlay=overlay)
        self._write(MANIFEST_FILE, len(manifest), [manifest])

    def result(self, out: Path, digest: str) -> Written:
        """Return what this run made, once it is at `out`."""
        done = self.journal.done
        removed = tuple(sorted(change.name for change in self.changes.files if isinstance(change, RemovedFile)))
        changed = tuple(done[name] for name in sorted(done) if name != MANIFEST_FILE)
        return Written(out, digest, changed, removed, dict(sorted(self.kept.items())), self.bytes_written)

    def tell(self, count: int) -> None:
        """Tell of bytes that are done."""
        self.told += count
        if self.progress is not None and self.total:
            self.progress(min(self.told, self.total), self.total)

    def _layout(self, change: FileChange) -> Layout:
        if isinstance(change, NewShard):
            return new_layout(change)
        if isinstance(change, EditedShard):
            with opened(self.changes.source.folder, change.name) as descriptor:
                return edit_layout(descriptor, change)
        raise TypeError(change)

    def _check_room(self, layouts: Mapping[str, Layout], copied: Sequence[str]) -> None:
        """Raise MtpfixError where the device has less room than what is not written yet will take."""
        needed = sum(layout.size for name, layout in layouts.items() if name not in self.journal.done)
        for name in copied:
            if not (self.stage.files / name).exists():
                found = target_of(self.changes.source.folder, name).stat()
                needed += min(found.st_size, found.st_blocks * 512)
        free = free_bytes(self.stage.path)
        if free is not None and needed > free:
            raise MtpfixError(
                f"{needed:,} bytes are to be written, and the device has room for {free:,}",
                "free some space, or choose another place; then run the same command again",
            )

    def _write_shard(self, layout: Layout, *, is_new: bool) -> WrittenFile:
        if is_new:
            return self._write(layout.name, layout.size, produce(layout, None))
        with opened(self.changes.source.folder, layout.name) as descriptor:
            return self._write(layout.name, layout.size, produce(layout, descriptor))

    def _write(self, name: str, size: int, pieces: Iterable[Buffer]) -> WrittenFile:
        target, done = self._target(name), self.journal.done.get(name)
        if done is not None and done.size == size and _regular_size(target) == size:
            self.tell(size)
            return done
        with told(f"write {shown(name)}", self.stage.path):
            self.stage.part.unlink(missing_ok=True)
            sha256 = write_new(self.stage.part, size, pieces, self.tell)
            done = WrittenFile(name, size, sha256)
            self.journal.record(done)
            self.stage.part.rename(target)
            sync_folder(target.parent)
        self.bytes_written += size
        return done

    def _keep(self, name: str, link: Link, unable: set[Link]) -> None:
        target, size = self._target(name), self.changes.source.files[name].size
        source = target_of(self.changes.source.folder, name)
        if link is Link.SYMLINK:
            there = target.is_symlink() and target.readlink() == source
        else:
            there = _regular_size(target) == size
        if there:
            self.kept["earlier"] = self.kept.get("earlier", 0) + 1
            self.tell(size)
            return
        with told(f"keep {shown(name)}", self.stage.path):
            target.unlink(missing_ok=True)
            way = place(source, target, self.stage.part, link, unable, self.tell)
        self.kept[way.value] = self.kept.get(way.value, 0) + 1
        if way is Link.COPY:
            self.bytes_written += size

    def _target(self, name: str) -> Path:
        target = self.stage.files / safe_member(name)
        with told(f"make the folder of {shown(name)}", self.stage.path):
            target.parent.mkdir(parents=True, exist_ok=True)
        return target


def _is_layout(change: FileChange) -> bool:
    return isinstance(change, EditedShard | NewShard)


def _regular_size(path: Path) -> int | None:
    """Return the size of a file that is no link, None if there is none."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _marks(snapshot: Snapshot) -> Mapping[str, Any]:
    return {
        "folder": os.fspath(snapshot.folder.resolve()),
        "files": {name: asdict(mark) for name, mark in sorted(snapshot.files.items())},
    }


# -------------------------------------------------------------------------------------------- checking


def _place_for(out: Path, changes: Changes) -> Path:
    """Return where the result goes, as an absolute path. Raises UsageError where nothing can go."""
    source = changes.source.folder.resolve()
    text = shown(str(out))
    if not out.name or out.name in (".", ".."):
        raise UsageError(
            f"{text} cannot be written: it is not the name of a new folder", "name a folder that is not there"
        )
    try:
        parent = out.parent.resolve(strict=True)
    except OSError:
        raise UsageError(f"there is no folder {shown(str(out.parent))} to put the result in", "make it first") from None
    if not parent.is_dir():
        raise UsageError(f"{shown(str(out.parent))} is not a folder", "choose another place")
    place_ = parent / out.name
    for folder in (source, *(snapshot.folder.resolve() for snapshot in changes.reads)):
        if place_ == folder:
            raise UsageError(f"{text} is the source itself", "choose another folder, or use --in-place")
        if place_.is_relative_to(folder) or folder.is_relative_to(place_):
            raise UsageError(
                f"{text} and {shown(str(folder))} lie one in the other", "choose a place beside the source"
            )
    return place_


def _done(out: Path, digest: str) -> Written | None:
    """Return the result if it is there already, None if nothing is. Raises UsageError if something else is."""
    try:
        mode = out.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        if not any(out.iterdir()):
            return None
        files = holds(out, digest)
        if files is not None:
            return Written(out, digest, files, already=True)
    raise UsageError(
        f"{shown(str(out))} is there already, and is not the result of this repair",
        "choose another name, or move it away: nothing that exists is written over",
    )


def _check(changes: Changes) -> None:
    """Raise MtpfixError for changes that contradict each other or the source."""
    if not changes.source.whole:
        raise ValueError("the snapshot of the source is not of the whole folder")
    source = changes.source.files
    seen: set[str] = set()
    for change in changes.files:
        name = safe_member(change.name)
        if name in seen:
            raise MtpfixError(f"{shown(name)} is changed twice", _PLAN)
        seen.add(name)
        if name == MANIFEST_FILE or any(part.startswith(OWN_PREFIX) for part in name.split("/")):
            raise MtpfixError(f"{shown(name)} is a name that mtpfix keeps for itself", _PLAN)
        if isinstance(change, EditedShard | RemovedFile) and name not in source:
            raise MtpfixError(f"{shown(name)} is not there to be changed", _PLAN)
        if isinstance(change, NewShard) and name in source:
            raise MtpfixError(f"{shown(name)} is there already, and cannot be a new shard", _PLAN)
        if isinstance(change, EditedShard | NewShard) and not is_shard(name):
            raise MtpfixError(f"{shown(name)} is not the name of a safetensors file", _PLAN)
    refuse_unfinished(changes.source.folder)


def _refuse_unfinished(stage: Stage, folder: Path) -> None:
    """Raise MtpfixError if a repair in place stopped between its first and its last file. Raises OSError."""
    journal = stage.journal()
    if journal is not None and journal.commit:
        raise MtpfixError(
            f"a repair of {shown(str(folder))} in place was interrupted",
            "run the command with --in-place: it is then finished first",
        )


def _verify(run: _Run, verify: Verify | None, *, whole: bool) -> None:
    """Let the caller look at the result before it is published, as a whole checkpoint."""
    if verify is None:
        return
    if whole:
        verify(run.stage.files)
        return
    view, changed = run.stage.view, {change.name for change in run.changes.files}
    with told("lay the changes over the source", run.stage.path):
        _remove(view)
        for name in run.journal.done:
            target = view / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(run.stage.files / name, target)
        for name in run.changes.source.files:
            if name not in changed and name != MANIFEST_FILE:
                target = view / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(target_of(run.changes.source.folder, name))
    verify(view)
    with told("remove the view", run.stage.path):
        _remove(view)


def _remove(view: Path) -> None:
    """Remove a folder of links. Raises OSError."""
    if view.is_dir():
        shutil.rmtree(view)


# --------------------------------------------------------------------------------------------- in place


def _roll_forward(stage: Stage, folder: Path) -> bool:
    """Give every staged file its name in the folder, if that was decided, and return whether it was. Raises OSError.

    The old file is in the backup, on the device, before the new one takes its name. A file that is no longer staged
    has been renamed before.
    """
    journal = stage.journal()
    if journal is None or not journal.commit:
        return False
    backup = folder / str(journal.purpose["backup"])
    for name in journal.done:
        staged, target = stage.files / safe_member(name), folder / safe_member(name)
        if _regular_size(staged) is None:
            continue
        saved = backup / name
        if _regular_size(target) is not None and _regular_size(saved) is None:
            saved.parent.mkdir(parents=True, exist_ok=True)
            stage.part.unlink(missing_ok=True)
            place(target, saved, stage.part, Link.AUTO, {Link.REFLINK}, lambda _: None)
            sync_folder(saved.parent)
            sync_folder(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.rename(target)
        sync_folder(target.parent)
    return True
