"""What lies in a source, whether folder or archive, one or several: folders with sorted entries. No TensorFlow.

Layouts are decided on trees, so that an archive gives what its unpacked folder does. What file managers and file
systems leave behind is not listed, nor what --exclude names.
"""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from shardline.pipeline.errors import UsageError
from shardline.pipeline.source_files import FOLDER, Origin, Place
from shardline.pipeline.text import display
from shardline.pipeline.wording import count, shorten_list
from shardline.tools.conversion.sources import file_stamp

IMAGE_SUFFIXES = (  # for telling a folder that is named like an image, and for wording errors
    *(b".jpg", b".jpeg", b".jpe", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff", b".avif", b".heic"),
    *(b".heif", b".jp2", b".jxl"),
)
AHEAD = 8  # folders whose entries are held before they are asked for
LEFT_BEHIND = {  # by file managers and file systems, in lower case; hidden files are left out, too
    *(b"thumbs.db", b"ehthumbs.db", b"desktop.ini", b"icon\r", b"__macosx", b"@eadir", b"lost+found"),
    *(b"$recycle.bin", b"recycler", b"system volume information", b"#recycle", b"#snapshot", b"__pycache__"),
    b"found.000",
}


class Entry(NamedTuple):
    """What stands in a folder."""

    name: bytes
    is_folder: bool
    size: int = 0  # bytes; 0 also when it cannot be told
    stamp: int = 0  # see `file_stamp`; 0: no file
    place: Place | None = None  # of the file's bytes; None: at its path below the root

    @property
    def is_image(self) -> bool:
        """Whether it is a file that is named like an image."""
        return not self.is_folder and self.name.lower().endswith(IMAGE_SUFFIXES)


class Tree(Protocol):
    """Folders and files, by paths that are relative to a root."""

    def entries(self, folder: bytes) -> list[Entry]:
        """What stands in a folder, b"" for the root, sorted by name."""
        ...

    @property
    def origins(self) -> tuple[Origin, ...]:
        """Where the bytes come from, if not from paths below one folder."""
        ...

    @property
    def is_archive(self) -> bool:
        """Whether all of it is one archive."""
        ...

    @property
    def is_mounted(self) -> bool:
        """Whether it is several sources, or one as a split: its paths are none below what --source gives."""
        ...


class SourceTree(Tree, Protocol):
    """The tree of one source."""

    def hidden_images(self) -> list[bytes]:
        """Hidden folders, which are left out, in which there are images: one may be a class called .NET."""
        ...


def is_left_behind(name: bytes) -> bool:
    """Whether a name is that of no input wherever it stands."""
    return name.startswith(b".") or name.lower() in LEFT_BEHIND


def has_image(names: Iterable[bytes]) -> bool:
    """Whether one of the names is that of an image."""
    return any(name.lower().endswith(IMAGE_SUFFIXES) for name in names)


class FolderTree:
    """A folder on disk. One named like an image that holds none, and a link back up, are files gone wrong, no folders.

    The folders in one that was listed are listed ahead by threads, `AHEAD` at a time: on a network file system, each
    file costs a round trip.
    """

    origins: tuple[Origin, ...] = ()
    is_archive = is_mounted = False

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)
        self._above: dict[bytes, tuple[tuple[int, int], ...]] = {}  # a folder's identity and those above it
        self._pool = ThreadPoolExecutor(AHEAD)
        self._ahead: dict[bytes, Future[list[Entry]]] = {}
        self._next: deque[bytes] = deque()  # folders to be listed ahead
        self._listed: set[bytes] = set()
        self._hidden: set[bytes] = set()

    def entries(self, folder: bytes) -> list[Entry]:
        """See `Tree`."""
        listing = self._ahead.pop(folder, None)
        found = listing.result() if listing else self._list(folder)
        if folder not in self._listed:
            self._listed.add(folder)
            below = [os.path.join(folder, entry.name) for entry in found if entry.is_folder]
            self._next.extendleft(reversed(below))  # what stands in a folder is wanted before what stands beside it
        while self._next and len(self._ahead) < AHEAD:
            if (following := self._next.popleft()) not in self._listed:
                self._ahead[following] = self._pool.submit(self._list, following)
        return found

    def hidden_images(self) -> list[bytes]:
        """See `SourceTree`."""

        def images(folder: bytes) -> bool:
            try:
                return has_image(os.listdir(os.path.join(self._root, folder)))
            except OSError:  # nobody's business
                return False

        return sorted(filter(images, self._hidden))

    def _list(self, folder: bytes) -> list[Entry]:
        path = os.path.join(self._root, folder)
        try:
            above = self._identities(folder)
            entries = []
            with os.scandir(path) as found:
                for entry in found:
                    if not is_left_behind(entry.name):
                        entries.append(self._entry(entry, above))
                    elif entry.name.startswith(b".") and entry.is_dir():
                        self._hidden.add(os.path.join(folder, entry.name))
        except OSError as error:
            raise UsageError(f"--source: cannot list {display(path)}: {error.strerror}") from None
        return sorted(entries)

    def _entry(self, entry: os.DirEntry[bytes], above: Sequence[tuple[int, int]]) -> Entry:
        try:
            facts = entry.stat()
            if stat.S_ISREG(facts.st_mode):
                return Entry(entry.name, False, facts.st_size, file_stamp(facts))
            is_folder = stat.S_ISDIR(facts.st_mode) and (facts.st_dev, facts.st_ino) not in above
            return Entry(entry.name, is_folder and (not has_image([entry.name]) or has_image(os.listdir(entry.path))))
        except OSError:  # a dangling or looping link: an input whose worker will say so
            return Entry(entry.name, False)

    def _identities(self, folder: bytes) -> tuple[tuple[int, int], ...]:
        if folder not in self._above:
            above = self._identities(os.path.dirname(folder)) if folder else ()
            facts = os.stat(os.path.join(self._root, folder))
            self._above[folder] = (*above, (facts.st_dev, facts.st_ino))
        return self._above[folder]


@dataclass
class Exclusions:
    """What to leave out: relative paths, base names with or without suffix, or patterns such as `*.xml`.

    `cat` is every file and folder of this name, `./cat` the one at the top.
    """

    names: frozenset[bytes] = frozenset()
    given: tuple[str, ...] = ()  # on the command line, and not in a file: each has to match something
    used: set[bytes] = field(default_factory=set)
    excluded: set[bytes] = field(default_factory=set)  # paths

    def __post_init__(self) -> None:
        patterns = [name for name in self.names if re.search(rb"[*?\[]", name)]
        self._patterns = {name: re.compile(fnmatch.translate(os.fsdecode(name))) for name in patterns}

    def leaves_out(self, path: bytes) -> bool:
        """Whether the entry at this path is to be left out."""
        if not self.names:
            return False
        name = os.path.basename(path)
        found = {path, b"./" + path, name, os.path.splitext(name)[0]} & self.names
        for pattern, compiled in self._patterns.items():
            if compiled.match(os.fsdecode(path)) or compiled.match(os.fsdecode(name)):
                found.add(pattern)
        self.used |= found
        if found:
            self.excluded.add(path)
        return bool(found)

    def notes(self) -> list[str]:
        """How much was left out. Raises UsageError when a name that was given matches nothing."""
        unused = [name for name in self.given if os.fsencode(name) not in self.used]
        if unused:
            raise UsageError(
                f"--exclude={unused[0]}: no list, and nothing in the source has this path or name; name a file with a "
                "path or name a line, or a path, a name or a pattern like '*.xml' in the source"
            )
        lines = [f"left out {count(len(self.excluded), 'file or folder', 'files and folders')} that --exclude names"]
        if missing := self.names - self.used:
            names = shorten_list(display(name) for name in sorted(missing))
            lines.append(f"--exclude: {count(len(missing), 'line matches', 'lines match')} nothing: {names}")
        return lines if self.names else []


def read_exclusions(items: Iterable[str]) -> Exclusions:
    """Of `--exclude`: each item is a file with one path or name a line, or itself a path, name or pattern."""
    names: set[bytes] = set()
    given = []
    for item in items:
        if os.path.isfile(item) and not has_image([os.fsencode(item)]):
            with open(item, "rb") as file:
                lines = file.read().removeprefix(b"\xef\xbb\xbf").splitlines()
            names |= {
                _clean_path(line.replace(b"\\", b"/")) for line in lines if line.strip() and not line.startswith(b"#")
            }
        else:
            given.append(os.fsdecode(_clean_path(os.fsencode(item))))
    return Exclusions(frozenset({*names, *map(os.fsencode, given)}), tuple(given))


def _clean_path(line: bytes) -> bytes:
    return line.strip().strip(b"/")


@dataclass(eq=False)
class Mount:
    """One of several sources: its tree, and the folder that it is shown as."""

    tree: Tree
    at: bytes  # b"" for the root, or the name of a split


class MountedTree:
    """Several sources as one tree: those of a split are its folder, the others lie over each other."""

    is_archive, is_mounted = False, True

    def __init__(self, mounts: Sequence[Mount], roots: Sequence[str]) -> None:
        self._mounts = mounts
        self._roots = roots
        self._folders: dict[tuple[int, bytes], frozenset[bytes]] = {}
        self._first: list[int] = []  # number of each mount's first origin
        origins: list[Origin] = []
        for mount, root in zip(mounts, roots, strict=True):
            self._first.append(len(origins))
            origins += mount.tree.origins or (Origin(os.path.abspath(root), FOLDER, mount.at),)
        self.origins = tuple(origins)

    def entries(self, folder: bytes) -> list[Entry]:
        """See `Tree`."""
        found: dict[bytes, tuple[Entry, int]] = {}
        for number, mount in enumerate(self._mounts):
            for entry in self._mounted(number, mount, folder):
                before = found.get(entry.name)
                if before and not (entry.is_folder and before[0].is_folder):
                    raise UsageError(
                        f"--source: {display(os.path.join(folder, entry.name))} is in {self._roots[before[1]]} and in "
                        f"{self._roots[number]}; rename one, or make a folder with a link to each source and give that "
                        "with --label_from=parent"
                    )
                found[entry.name] = (self._located(entry, number), number)
        return sorted(entry for entry, _ in found.values())

    def _mounted(self, number: int, mount: Mount, folder: bytes) -> list[Entry]:
        """What one source has there; nothing where only another one has this folder."""
        if mount.at:
            if not folder:
                return [Entry(mount.at, True)]
            top, _, folder = folder.partition(b"/")
            if top != mount.at:
                return []
        above, name = os.path.split(folder)
        if folder and name not in self._folders.get((number, above), ()):
            return []
        entries = mount.tree.entries(folder)
        self._folders[number, folder] = frozenset(entry.name for entry in entries if entry.is_folder)
        return entries

    def _located(self, entry: Entry, mount: int) -> Entry:
        if entry.is_folder:
            return entry
        place = entry.place or Place(0)
        return entry._replace(place=place._replace(origin=place.origin + self._first[mount]))


class ReducedTree:
    """A tree seen from one of its folders, without what is excluded."""

    def __init__(self, tree: Tree, root: bytes = b"", exclusions: Exclusions | None = None) -> None:
        self._tree, self._root = tree, root
        self._exclusions = exclusions or Exclusions()
        self.origins, self.is_archive, self.is_mounted = tree.origins, tree.is_archive, tree.is_mounted

    def entries(self, folder: bytes) -> list[Entry]:
        """See `Tree`."""
        found = self._tree.entries(os.path.join(self._root, folder).rstrip(b"/"))
        return [entry for entry in found if not self._exclusions.leaves_out(os.path.join(folder, entry.name))]
