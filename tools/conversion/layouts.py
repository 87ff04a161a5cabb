"""Which folders of a source are splits, which are classes, and what is refused because it is neither. No TensorFlow.

    CLASS/image.jpg                        class folders
    SPLIT/CLASS/image.jpg                  split folders of class folders
    SPLIT/image.jpg                        a split whose labels are in a file, or that has none, when a flag says so

Nothing is guessed: where a wrong guess would make a wrong dataset, one line says what is in the way and which flag
helps.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from shardline.pipeline.errors import UsageError
from shardline.pipeline.wording import count, shorten_list
from shardline.tools.conversion.archives import is_archive
from shardline.tools.conversion.config import is_split_name
from shardline.tools.conversion.label_files import SplitLabels, read_split_labels
from shardline.tools.conversion.labels import (
    LabelOptions,
    check_split,
    label_places,
    order_labels,
    split_notes,
    split_rank,
)
from shardline.tools.conversion.sources import Sources, SourcesBuilder, path_text
from shardline.tools.conversion.trees import IMAGE_SUFFIXES, Entry, ReducedTree, Tree

OnProgress = Callable[[int], None]

# Folders of datasets for detection and segmentation, which are no classes whatever lies in them.
_PARTS = {"annotations", "imagesets", "jpegimages", "segmentationclass", "segmentationobject"}
_PAIRS = ({"images", "labels"}, {"images", "masks"}, {"img", "mask"})
_CONTAINERS = {  # of a split or of everything, and no classes
    *("images", "image", "imgs", "img", "photos", "pictures", "jpegimages", "jpg", "jpeg", "png"),
}
_TABLES = {b".csv", b".tsv", b".tab", b".parquet"}
_BESIDE = {  # of folders that people and programs put beside those of classes, and that may be classes as well
    *("masks", "thumbnails", "thumbs", "previews", "groundtruth", "ground_truth", "backup", "unsorted", "trash"),
    *("new folder", "untitled folder", "background_google", "257.clutter"),  # of Caltech-101 and -256
}
_PIECE = re.compile(  # of a dataset, and no class: fold_2, HAM10000_images_part_1, images_001
    r"(?:.*[^a-z])?(?:folds?|parts?|batch|chunk|shard|images?|imgs?|photos?)[-_ ]?\d+", re.IGNORECASE
)
_SHARD = re.compile(r"0\d{4,}")  # 00000, as img2dataset and StyleGAN's tools call folders
_LABEL_FILES = _TABLES | {b".mat", b".json", b".jsonl", b".lst", b".xml", b".xls", b".xlsx", b".pkl", b".npy", b".npz"}
_SIDE_FILES = {b".txt", b".json", b".xml", b".cls", b".yaml"}  # of one image each
_MASK = re.compile(rb"(.+)([-_ .](?:masks?|segmentation|groundtruth))[-_ ]?\d*\.\w+", re.IGNORECASE)
_IN_A_TABLE = "list path,label in a .csv and give that"
_SEARCH_DEPTH, _SEARCH_FOLDERS = 4, 20  # how far split folders are looked for, for a hint


@dataclass(frozen=True)
class LayoutOptions:
    """What a person says of a source's folders.

    Attributes:
      labels: of the classes.
      label_from: for nested class folders: "parent" takes the folder an image lies in, "first" the outermost one.
      unlabelled: splits whose images have no labels.
      split_labels: splits whose labels are in a file.
      splits: other folders that are splits, whatever they are called.
    """

    labels: LabelOptions = field(default_factory=LabelOptions)
    label_from: str = ""
    unlabelled: tuple[str, ...] = ()
    split_labels: Mapping[str, SplitLabels] = field(default_factory=dict)
    splits: tuple[str, ...] = ()

    @property
    def named(self) -> set[str]:
        """Folders that are said to be splits."""
        return {*self.unlabelled, *self.split_labels, *self.splits}

    def means_split(self, name: bytes) -> bool:
        """Whether a folder of this name is a split, or would be one outside a class."""
        text = path_text(name)
        return text in self.named or (split_rank(text) is not None and text not in self.labels.names)


def scan_tree(tree: Tree, root: str, what: str, options: LayoutOptions, on_progress: OnProgress) -> Sources:
    """The inputs of a tree.

    Args:
      tree: the folders and files.
      root: of the paths.
      what: the source, for messages, e.g. `--source=photos`.
      options: what a person says of it.
      on_progress: called now and then with the number of inputs found so far.

    Raises:
      UsageError: in one line, when there is nothing sensible to convert.
    """
    walk = _Walk(tree, what, options, on_progress)
    splits = _split_folders(tree, what, options)
    if missing := sorted(options.named - set(map(path_text, splits))):
        raise UsageError(f"{what}: no folder {missing[0]!r} beside {shorten_list(map(path_text, splits)) or 'classes'}")
    for folder in splits:
        walk.add_split(folder)
    if splits:
        walk.beside += [entry.name for entry in tree.entries(b"") if not entry.is_folder]
    else:
        walk.add_classes(b"", -1)
    if not len(walk.builder):
        raise UsageError(f"{what}: the class folders hold no files")
    walk.refuse_empty_classes()
    walk.refuse_other_files()
    walk.refuse_tables()
    walk.refuse_containers()
    walk.refuse_foreign_labels()
    places = label_places(walk.builder, walk.labels, list(walk.splits))
    order = order_labels(list(walk.labels), options.labels, what, places=places)
    notes = [*walk.notes(), *split_notes(walk.splits), *order.notes, *_order_note(order.names, options.labels)]
    return walk.builder.finish(
        root, order.names, list(walk.splits), order.relabel, notes,
        unlabelled=[name for name in walk.splits if name in options.unlabelled],
        origins=tree.origins,
    )  # fmt: skip


def unwrapped(tree: Tree, options: LayoutOptions) -> tuple[Tree, bytes]:
    """An archive's tree, seen from the folder that holds everything, as many have one; and that folder."""
    wrapper = b""
    while tree.is_archive and not options.label_from:
        entries = tree.entries(wrapper)
        folders = [entry.name for entry in entries if entry.is_folder]
        if len(folders) != 1 or any(entry.is_image for entry in entries):
            break
        name = path_text(folders[0])
        inside = tree.entries(os.path.join(wrapper, folders[0]))
        has_meaning = name in options.labels.names or options.means_split(folders[0])
        if has_meaning or any(entry.is_image for entry in inside) or not any(entry.is_folder for entry in inside):
            break
        wrapper = os.path.join(wrapper, folders[0])
    return ReducedTree(tree, wrapper) if wrapper else tree, wrapper


# ------------------------------------------------------------------------------------------------ splits


def _split_folders(tree: Tree, what: str, options: LayoutOptions) -> list[bytes]:
    """The folders at the top if they are splits, in order; [] if they are the classes."""
    entries = tree.entries(b"")
    folders = [entry.name for entry in entries if entry.is_folder]
    _refuse_without_folders(tree, what, entries)
    splits = [name for name in folders if options.means_split(name)]
    others = [name for name in folders if name not in splits]
    if splits and others:
        _refuse_others(tree, what, splits, others, options)
    if not splits:
        if hint := "" if options.labels.names or options.label_from else _hidden_splits(tree, what, only=True):
            raise UsageError(
                f"{what}: {hint}, or list path,label,split in a .csv and give that; if they are classes, list them in "
                "--class_names"
            )
        return []
    for name in splits:
        if not is_split_name(path_text(name)):
            raise UsageError(
                f"{what}: the split folder {path_text(name)!r} cannot be a split's name; use letters, digits and _"
            )
    _refuse_flat(tree, what, splits, options)
    ranks = {name: split_rank(path_text(name)) for name in splits}
    return sorted(splits, key=lambda name: (3 if (rank := ranks[name]) is None else rank, name))


def _refuse_without_folders(tree: Tree, what: str, entries: Sequence[Entry]) -> None:
    if any(entry.is_folder for entry in entries):
        return
    if images := sum(entry.is_image for entry in entries):
        raise UsageError(
            f"{what}: {count(images, 'image')} but no class folders; put the images of each class into a folder of "
            "their own (SOURCE/CLASS/image.jpg; one folder will do), or list path,label in a .csv and give that"
        )
    found = f"{count(len(entries), 'file')} and no folders" if entries else "the folder is empty"
    remedy = _instead_of_images(tree, what, b"") or "expected one folder a class, with its images inside"
    raise UsageError(f"{what}: {found}; {remedy}")


def _instead_of_images(tree: Tree, what: str, folder: bytes) -> str:
    """What to do with a folder of archives, tables or records instead of images; "" for one of other files."""
    names = [path_text(entry.name) for entry in tree.entries(folder) if not entry.is_folder]
    where = os.path.join(
        "FOLDER" if tree.is_archive or tree.is_mounted else what.partition("=")[2], path_text(folder)
    ).rstrip("/")
    unpack = "unpack it, and " * tree.is_archive
    if "manifest.json" in names and any("tfrec" in name.lower() for name in names):
        return f"{unpack}train on it as it is: shardline-train --data {shlex.quote(where)} --workdir RUN"
    if archives := [name for name in names if is_archive(name)]:
        flags = " ".join(
            f"--source={_split_before(name, folder)}{shlex.quote(f'{where}/{name}')}" for name in archives[:3]
        )
        return f"{unpack}give each archive: {flags}, or unpack each that is one class into a folder of its name"
    if any(os.path.splitext(name)[1].lower().encode() in _TABLES for name in names):
        return f"{unpack}give a table of path,label as --source"
    if any("tfrec" in name.lower() for name in names):
        return f"{unpack}read TFRecords as they are: shardline-adopt {shlex.quote(where)}"
    return ""


def _split_before(archive: str, folder: bytes) -> str:
    """`train=` for an archive that is called so, or whose folder is."""
    words = (archive.partition(".")[0], path_text(folder))
    return next((f"{word}=" for word in words if split_rank(word) is not None), "")


def _refuse_others(
    tree: Tree, what: str, splits: Sequence[bytes], others: Sequence[bytes], options: LayoutOptions
) -> None:
    """A folder beside splits is no class, and nobody knows which split it would be."""
    one, one_split = others[0], len(splits) == 1
    inside = any(entry.is_folder and entry.name == one for split in splits for entry in tree.entries(split))
    left_out = f"--exclude={_quoted(b'./' * inside + one)}"  # the name alone would be that of the class, too
    remedies = [f"leave {'it' if len(others) == 1 else 'each'} out with {left_out}"]
    if tree.is_mounted:
        remedies.insert(0, "say which split a source of class folders is (--source=train=FOLDER)")
    if inside:
        remedies.append(f"move its images into the folder {path_text(one)} of a split")
    elif is_split_name(path_text(one)) and _is_flat(tree.entries(one)) and any(e.is_image for e in tree.entries(one)):
        remedies.append(f"convert it as a split without labels with --unlabelled={_quoted(one)}")
    elif len(others) == 1 and is_split_name(path_text(one)) and _depth(tree, one) == 1 and not tree.is_mounted:
        where = what.partition("=")[2]
        flags = (f"--source={path_text(name)}={shlex.quote(f'{where}/{path_text(name)}')}" for name in (*splits, one))
        remedies.append(f"convert it as a split, too, with {' '.join(flags)}")
    if not options.named and all(_is_flat(tree.entries(name)) for name in splits):
        remedies.append(
            f"list all classes in --class_names if {_listed(splits)} {'is one' if one_split else 'are some'}"
        )
    raise UsageError(
        f"{what}: {_listed(others)} {'lies' if len(others) == 1 else 'lie'} beside the split "
        f"{'folder' if one_split else 'folders'} {_listed(splits)} and {'is' if len(others) == 1 else 'are'} "
        f"no split by name; {', or '.join(remedies)}"
    )


def _refuse_flat(tree: Tree, what: str, splits: Sequence[bytes], options: LayoutOptions) -> None:
    """Splits without class folders have no labels, unless a flag says where they are or that there are none."""
    unknown = [name for name in splits if path_text(name) not in {*options.unlabelled, *options.split_labels}]
    flat = [name for name in unknown if _without_classes(tree, name, options)]
    if empty := [name for name in unknown if not tree.entries(name)]:
        raise UsageError(
            f"{what}: the folder {_listed(empty)} is empty; leave it out with --exclude={_quoted(empty[0])}"
        )
    if not flat:
        return
    name = path_text(flat[0])
    held = tree.entries(flat[0])
    inside = [tree.entries(os.path.join(flat[0], entry.name)) for entry in held if entry.is_folder]
    images = sum(entry.is_image for entries in (held, *inside) for entry in entries)
    if not images and (remedy := _instead_of_images(tree, what, flat[0])):
        raise UsageError(f"{what}: {name} holds no images; {remedy}")
    tables = [entry.name for entry in held if os.path.splitext(entry.name)[1].lower() in _TABLES]
    where = f"{what.partition('=')[2]}/{path_text(os.path.join(flat[0], tables[0]))}" if tables else ""
    file = shlex.quote(where) if tables and _has_labels(where) else "FILE"
    labels = f"--split_labels={_quoted(flat[0])}={file} reads their labels from a file"
    if len(flat) == len(splits):
        remedy = f"list path,label and perhaps split in a .csv and give that, or {labels}"
    else:
        remedy = labels
        if split_rank(name) != 0:
            remedy = (
                f"--unlabelled={_quoted(flat[0])} converts them as a split without labels, {labels}, "
                f"--exclude={_quoted(flat[0])} leaves them out"
            )
    raise UsageError(
        f"{what}: {name} holds {count(images, 'image')} and no class folders, so nothing says their labels; {remedy}"
    )


def _has_labels(path: str) -> bool:
    """Whether --split_labels can read a file of names and labels."""
    try:
        return bool(read_split_labels("--split_labels", path, {}).by_name)
    except UsageError:
        return False


def _refuse_parts(tree: Tree, what: str, folders: Sequence[bytes], options: LayoutOptions) -> None:
    """Folders of another kind of dataset, which would come out as classes."""
    names = {
        path_text(name).lower(): path_text(name) for name in folders if path_text(name) not in options.labels.names
    }
    found = names.keys() & _PARTS or next((pair for pair in _PAIRS if pair <= names.keys()), set())
    parts = sorted(names[part] for part in found)
    if parts:
        raise UsageError(
            f"{what}: {shorten_list(parts)} {'is' if len(parts) == 1 else 'are'} no class but a part of a dataset for "
            f"detection or segmentation; {_below_hint(tree, what) or _IN_A_TABLE}"
        )


def _is_flat(entries: Iterable[Entry]) -> bool:
    """Whether there are files and no folders."""
    entries = list(entries)
    return bool(entries) and not any(entry.is_folder for entry in entries)


def _without_classes(tree: Tree, split: bytes, options: LayoutOptions) -> bool:
    """Whether a split has no class folders: images alone, or in one folder called so or as a split is."""
    entries = tree.entries(split)
    folders = [entry.name for entry in entries if entry.is_folder]
    if len(folders) != 1 or path_text(folders[0]) in options.labels.names:
        return _is_flat(entries)
    holds_all = path_text(folders[0]).lower() in _CONTAINERS or options.means_split(folders[0])
    return holds_all and _is_flat(tree.entries(os.path.join(split, folders[0])))


def _below_hint(tree: Tree, what: str) -> str:
    """Where split folders with images lie deeper in the tree, and how to say so; "" for nowhere."""
    if tree.is_mounted:
        return ""
    level = [b""]
    for _ in range(_SEARCH_DEPTH):
        below = []
        for folder in level:
            names = [entry.name for entry in tree.entries(folder) if entry.is_folder]
            splits = [name for name in names if split_rank(path_text(name)) is not None]
            alone = len(splits) == len(names) > 1
            if folder and alone and any(_depth(tree, os.path.join(folder, split)) > 0 for split in splits):
                where = path_text(folder)
                return f"the split folders {_listed(splits)} lie in {where}: give {what}/{where}"
            below += [os.path.join(folder, name) for name in names]
        level = below[:_SEARCH_FOLDERS]
    return ""


def _depth(tree: Tree, folder: bytes) -> int:
    """How many folders deeper images lie, going into the first folder of each; -1 for none."""
    for depth in range(_SEARCH_DEPTH):
        entries = tree.entries(folder)
        if any(entry.is_image for entry in entries):
            return depth
        folders = [entry.name for entry in entries if entry.is_folder]
        if not folders:
            break
        folder = os.path.join(folder, folders[0])
    return -1


def _hidden_splits(tree: Tree, what: str, only: bool = False) -> str:
    """How to say that the outermost folders, as seg_train and seg_test, are splits; "" for others.

    Args:
      only: all of the folders have to be named so, or alike but for the word.
    """
    if tree.is_mounted:
        return ""
    names = [entry.name for entry in tree.entries(b"") if entry.is_folder]
    splits = {name: word for name in names if (word := _split_in_name(name))}
    if only and len(splits) < len(names):
        stems = {name: path_text(name).lower().replace(word, "") for name, word in splits.items()}
        splits = {name: word for name, word in splits.items() if [*stems.values()].count(stems[name]) > 1}
    ranks = {split_rank(word) for word in splits.values()}
    if 0 not in ranks or len(ranks) == 1:
        return ""
    where = what.partition("=")[2]
    flags = [f"--source={word}={shlex.quote(f'{where}/{path_text(name)}')}" for name, word in splits.items()]
    flags += [f"--split_labels={word}=FILE" for name, word in splits.items() if _is_flat(tree.entries(name))]
    rest = [name for name in names if name not in splits]
    left_out = f", which leaves out {_listed(rest)}" * bool(rest)
    return f"{_listed(splits)} seem to be splits and no classes: give {' '.join(flags)}{left_out}"


def _split_in_name(name: bytes) -> str:
    """The word in a folder's name that means a split: `test` in seg_test; "" for none."""
    words = re.split(r"[-_. ]+", path_text(name))
    return next((word.lower() for word in words if len(words) > 1 and split_rank(word) is not None), "")


def _listed(names: Iterable[bytes]) -> str:
    return shorten_list(map(path_text, names))


def _quoted(name: bytes) -> str:
    return shlex.quote(path_text(name))


# -------------------------------------------------------------------------------------------------- walk


@dataclass(eq=False)
class _Walk:
    """Collects the files below the folders of splits and classes."""

    tree: Tree
    what: str
    options: LayoutOptions
    on_progress: OnProgress
    builder: SourcesBuilder = field(default_factory=SourcesBuilder)
    labels: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    beside: list[bytes] = field(default_factory=list)  # files that are no inputs
    empty: list[bytes] = field(default_factory=list)  # class folders
    from_folders: set[str] = field(default_factory=set)  # labels
    above: dict[str, set[bytes]] = field(default_factory=dict)  # by label: where in a split its folders lie
    outermost: set[bytes] = field(default_factory=set)  # class folders
    inside: bytes = b""  # where the outermost class folders lie: a split's folder, or the root
    side_files: list[bytes] = field(default_factory=list)  # called as an image beside them, one of each folder
    masks: list[tuple[bytes, bytes]] = field(default_factory=list)  # the same, and what is added to the image's name
    from_files: dict[str, set[str]] = field(default_factory=dict)  # labels by split
    lost: list[str] = field(default_factory=list)  # notes on images that files of labels list

    def add_split(self, folder: bytes) -> None:
        """Everything in a split's folder."""
        name = check_split(path_text(folder), self.splits, self.what, self.options.labels)
        number = self.splits.setdefault(name, len(self.splits))
        if name in self.options.unlabelled:
            self._add_files(self._files_below(folder), number, lambda path, position: -1)
        elif name in self.options.split_labels:
            self._add_labelled(folder, number, self.options.split_labels[name])
        else:
            self.add_classes(self._inner(folder), number)

    def add_classes(self, folder: bytes, split: int) -> None:
        """The class folders in a folder."""
        before = len(self.builder)
        entries = self.tree.entries(folder)
        names = [entry.name for entry in entries if entry.is_folder]
        _refuse_parts(self.tree, self.what, names, self.options)
        self._refuse_splits(folder, names)
        for entry in entries:
            if entry.is_folder:
                self._add_class(os.path.join(folder, entry.name), entry.name, split)
        loose = [os.path.join(folder, entry.name) for entry in entries if not entry.is_folder]
        images = sum(entry.is_image for entry in entries)
        if images > len(self.builder) - before:
            raise UsageError(
                f"{self.what}: {count(images, 'image')} such as {path_text(loose[0])} "
                f"{'lies' if images == 1 else 'lie'} beside the class folders, more than in them; put each into the "
                f"folder of its class, or leave {'it' if images == 1 else 'them'} out with --exclude"
            )
        self.beside += loose

    def _add_class(self, folder: bytes, first: bytes, split: int) -> None:
        before = len(self.builder)
        self.inside = os.path.dirname(folder)
        self.outermost.add(first)
        self._add_folder(folder, first, split)
        if len(self.builder) == before:
            self.empty.append(folder)

    def _inner(self, folder: bytes) -> bytes:
        """The split's folder, or the one of a split's name that is all it holds: training_set/training_set."""
        entries = self.tree.entries(folder)
        names = [entry.name for entry in entries if entry.is_folder]
        if len(names) != 1 or any(entry.is_image for entry in entries):
            return folder
        split = self.options.means_split(names[0]) or split_rank(_split_in_name(names[0])) is not None
        return os.path.join(folder, names[0]) if split else folder

    def _add_folder(self, folder: bytes, first: bytes, split: int) -> None:
        """Every file below `folder`, in sorted order, files before sub-folders."""
        number = self.builder.enter(folder)
        class_name = path_text(first if self.options.label_from != "parent" else os.path.basename(folder))
        below = []
        entries = self.tree.entries(folder)
        for entry in entries:
            if entry.is_folder:
                below.append(entry.name)
                continue
            label = self.labels.setdefault(class_name, len(self.labels))
            self.from_folders.add(class_name)
            self.builder.add(number, entry.name, label, split, entry.size, entry.stamp, entry.place)
        if self.options.label_from == "parent" and class_name in self.from_folders:
            self.above.setdefault(class_name, set()).add(os.path.dirname(folder.removeprefix(self.inside).lstrip(b"/")))
        self.on_progress(len(self.builder))
        self._look_for_companions(folder, [entry.name for entry in entries if not entry.is_folder])
        if below:
            self._refuse_below(folder, below)
        for name in below:
            self._add_folder(os.path.join(folder, name), first, split)

    def _look_for_companions(self, folder: bytes, names: Sequence[bytes]) -> None:
        """Files of a class folder that are called as an image in it, and are none of their own."""
        text = b"/".join(names).lower()  # one search of all: they are millions
        if not any(word in text for word in (*_SIDE_FILES, b"mask", b"segmentation", b"groundtruth")):
            return
        parts = [os.path.splitext(name) for name in names]
        stems = {stem for stem, suffix in parts if suffix.lower() in IMAGE_SUFFIXES}
        side = (stem + suffix for stem, suffix in parts if suffix.lower() in _SIDE_FILES and stem in stems)
        self.side_files += [os.path.join(folder, name) for name in islice(side, 1)]
        found = filter(None, map(_MASK.fullmatch, names))
        masks = ((os.path.join(folder, mask[0]), mask[2]) for mask in found if mask[1] in stems)
        self.masks += islice(masks, 1)

    def _refuse_below(self, folder: bytes, below: Sequence[bytes]) -> None:
        """Splits inside a class, whatever flags say, and other folders there unless a flag says what they are."""
        self._refuse_splits(folder, below)
        if not self.options.label_from:
            hint = (
                ("" if self.splits else _hidden_splits(self.tree, self.what))
                or _below_hint(self.tree, self.what)
                or self._label_hint(folder)
            )
            raise UsageError(
                f"{self.what}: {path_text(os.path.join(folder, below[0]))} is a folder inside a class folder; {hint}"
            )

    def _label_hint(self, folder: bytes) -> str:
        """Which of two folders names the class; only what would give more than one class is advised."""
        above = os.path.dirname(folder)
        folders = [entry.name for entry in self.tree.entries(above) if entry.is_folder]
        held = {name: self.tree.entries(os.path.join(above, name)) for name in folders}
        classes = [name for name in folders if _depth(self.tree, os.path.join(above, name)) >= 0] or folders
        leaves = [leaf for name in classes for leaf in self._leaves(os.path.join(above, name))]
        inside, where = set(leaves), self.what.partition("=")[2]
        below = {entry.name for entry in self.tree.entries(folder) if entry.is_folder}
        if again := sorted(below & set(folders) - {os.path.basename(folder)}):
            return (
                f"{_listed(again)} {'lies' if len(again) == 1 else 'lie'} beside {path_text(folder)}, too: leave that "
                f"out with --exclude={_quoted(folder)}, or make one class of each two with --label_from=parent"
            )
        alone = not above and not self.tree.is_mounted  # paths in it are paths below --source
        if len(classes) == 1 and alone and not any(entry.is_image for entry in held[classes[0]]):
            return f"give --source={shlex.quote(where + '/' + path_text(classes[0]))}"
        advice = []
        if len(inside) > 1 or len(classes) == 1:
            advice.append("--label_from=parent (the folder an image lies in names its class)")
        if len(classes) > 1 and not all(_PIECE.fullmatch(path_text(name)) for name in classes):
            advice.append("--label_from=first (the outermost folder does)")
            if len(inside) < len(leaves) and len(classes) < 5 and alone and not self.options.named:
                flags = (f"--source=SPLIT={shlex.quote(where + '/' + path_text(name))}" for name in classes)
                advice.append(f"{' '.join(flags)} (they are splits)")
        return f"say {' or '.join(advice)}" if advice else _IN_A_TABLE

    def _leaves(self, folder: bytes) -> set[bytes]:
        """Names of the folders below one that hold images, as far as they are looked for."""
        found: set[bytes] = set()
        level = [folder]
        for _ in range(_SEARCH_DEPTH):
            below = [os.path.join(outer, e.name) for outer in level for e in self.tree.entries(outer) if e.is_folder]
            level = below[:_SEARCH_FOLDERS]
            found |= {os.path.basename(name) for name in level if any(e.is_image for e in self.tree.entries(name))}
        return found

    def _refuse_splits(self, folder: bytes, below: Sequence[bytes]) -> None:
        """A split where a class is expected is never made one."""
        inside = next((name for name in below if self.options.means_split(name)), None)
        if inside:
            hint = _below_hint(self.tree, self.what) or "make splits the outermost folders (train/CLASS/image.jpg)"
            raise UsageError(
                f"{self.what}: {path_text(os.path.join(folder, inside))} is a split by name, where a class is "
                f"expected; {hint}, or list path,label,split in a .csv and give that"
            )

    # Splits without class folders ------------------------------------------------------------------------------

    def _files_below(self, folder: bytes) -> list[tuple[bytes, Entry]]:
        """Folder and entry of every file at any depth; other files are left out where some are named like images."""
        entries = self.tree.entries(folder)
        found = [(folder, entry) for entry in entries if not entry.is_folder]
        for entry in entries:
            if entry.is_folder:
                found += self._files_below(os.path.join(folder, entry.name))
        if any(entry.is_image for _, entry in found):
            self.beside += [os.path.join(where, entry.name) for where, entry in found if not entry.is_image]
            found = [(where, entry) for where, entry in found if entry.is_image]
        return found

    def _add_files(
        self, files: Sequence[tuple[bytes, Entry]], split: int, label_of: Callable[[bytes, int], int]
    ) -> None:
        number, inside = -1, None
        for position, (folder, entry) in enumerate(files):
            if folder != inside:
                number, inside = self.builder.enter(folder), folder
            label = label_of(entry.name, position)
            self.builder.add(number, entry.name, label, split, entry.size, entry.stamp, entry.place)
        self.on_progress(len(self.builder))

    def _add_labelled(self, folder: bytes, split: int, labels: SplitLabels) -> None:
        files = self._files_below(folder)
        paths = [os.path.relpath(os.path.join(where, entry.name), folder) for where, entry in files]
        names = labels.match(paths, path_text(folder))
        self.from_files[labels.what] = set(names)
        missing = labels.not_among(paths)
        if 0 < len(missing) <= len(paths):  # more are those of other splits
            self.lost.append(
                f"{labels.what} lists {count(len(missing), 'file')} that {path_text(folder)} does not hold, e.g. "
                f"{path_text(missing[0])}"
            )
        self._add_files(files, split, lambda name, at: self.labels.setdefault(names[at], len(self.labels)))

    # What to say ----------------------------------------------------------------------------------------------

    def refuse_empty_classes(self) -> None:
        """A class folder without files is a slip, unless all classes are named."""
        if self.empty and not self.options.labels.names:
            raise UsageError(
                f"{self.what}: {_listed(self.empty)} hold{'s' if len(self.empty) == 1 else ''} no images; remove the "
                "folder or add images, or name every class in --class_names to keep it without images"
            )

    def refuse_foreign_labels(self) -> None:
        """Labels of a file that are those of no class folder are of another kind: numbers, or words."""
        for what, names in self.from_files.items():
            if self.from_folders and not names & self.from_folders:
                raise UsageError(
                    f"{what}: its labels ({shorten_list(sorted(names), 3)}) are none of the class folders "
                    f"({shorten_list(sorted(self.from_folders), 3)}); if they are numbers, say in --label_order which "
                    "class each is"
                )

    def refuse_containers(self) -> None:
        """Images that all lie in folders of such a name, as Tiny ImageNet's CLASS/images or Flowers-102's jpg."""
        (name, *others) = self.from_folders or ("",)
        if others or name.lower() not in _CONTAINERS or self.options.labels.names:
            return
        if len(self.outermost) > 1:
            raise UsageError(
                f"--label_from=parent: all images lie in folders called {name!r}, which would be the only class; use "
                "--label_from=first"
            )
        raise UsageError(
            f"{self.what}: {name} would be the only class; put the images of each class into a folder of their own, "
            "or list path,label in a .csv and give that; if it is a class, list it in --class_names"
        )

    def refuse_other_files(self) -> None:
        """One folder of archives, tables or records is no class."""
        if len(self.outermost) == 1 and not self.options.labels.names and not self.splits:
            (folder,) = self.outermost
            entries = self.tree.entries(folder)
            other = _is_flat(entries) and not any(entry.is_image for entry in entries)
            if remedy := other and _instead_of_images(self.tree, self.what, folder):
                raise UsageError(f"{self.what}: {path_text(folder)} holds no images; {remedy}")

    def refuse_tables(self) -> None:
        """One class folder, or pieces, with files that may have labels: the labels are there, and those no classes."""
        if not (len(self.from_folders) == 1 or self._pieces(_SHARD)) or self.options.labels.names:
            return
        files = [name for name in self.beside if os.path.splitext(name)[1].lower() in _LABEL_FILES]
        tables = [name for name in files if os.path.splitext(name)[1].lower() in _TABLES]
        if not files and not self.side_files:
            return
        one = len(self.from_folders) == 1
        first = (tables or files or self.side_files)[0]
        where = ("it" if one else "them") if files else "its images"
        remedy = f"give it, {'unpacked, ' * self.tree.is_archive}as --source" if tables else _IN_A_TABLE
        out = path_text(first) if files else f"*{path_text(os.path.splitext(first)[1])}"
        folders, as_what = shorten_list(sorted(self.from_folders)), "the only class" if one else "classes"
        raise UsageError(
            f"{self.what}: {folders} would be {as_what}, but {_listed(tables or files or self.side_files)} lies beside "
            f"{where}; if that has the labels, {remedy}; if not, leave it out with --exclude={shlex.quote(out)}"
        )

    def _pieces(self, *kinds: re.Pattern[str]) -> list[str]:
        """The class folders if all are called as pieces of a dataset are; [] otherwise."""
        names = sorted(self.from_folders)
        pieces = len(names) > 1 and all(any(kind.fullmatch(name) for kind in (_PIECE, *kinds)) for name in names)
        return names * pieces

    def notes(self) -> list[str]:
        """What a person should know."""
        lines = [*self.lost]
        if (pieces := self._pieces()) and not self.options.labels.names:
            lines.append(f"{shorten_list(pieces, 3)} are classes; if they are pieces of a dataset, {_IN_A_TABLE}")
        if self.beside:
            lines.append(
                f"ignored {count(len(self.beside), 'file')} beside the class folders ({_listed(sorted(self.beside))}): "
                "only files in one have a class"
                + ", and archives there are not opened"
                * any(is_archive(path_text(name)) for name in self.beside)
            )
        aside = sorted(name for name in self.from_folders if name.lower() in _BESIDE)
        if aside and len(self.from_folders) > 1 and not self.options.labels.names:
            be, them = ("is a class", "it") if len(aside) == 1 else ("are classes", "each")
            lines.append(
                f"{shorten_list(map(repr, aside))} {be} like the others; if not, leave {them} out with "
                f"--exclude={shlex.quote(aside[0])}"
            )
        if joined := sorted(name for name, above in self.above.items() if len(above) > 1):
            places = shorten_list((path_text(above) or "." for above in sorted(self.above[joined[0]])), 3)
            lines.append(
                f"{count(len(joined), 'class')} of several folders of one name, e.g. {joined[0]} in {places}; if those "
                f"are classes of their own, {_IN_A_TABLE}"
            )
        if self.masks:
            (first, word), *_ = self.masks
            lines.append(
                f"{path_text(first)} is called as an image beside it is; if such files are masks, leave them out with "
                f"--exclude={shlex.quote(f'*{path_text(word)}*')}"
            )
        return lines


def _order_note(names: Sequence[str], options: LabelOptions) -> list[str]:
    """Where numbers are not in the order that Keras and torchvision give class folders."""
    as_text = sorted(names)
    if options.names or list(names) == as_text:
        return []
    label = next(label for label, name in enumerate(names) if name != as_text[label])
    return [
        f"the classes are numbers and in numerical order: label {label} is {names[label]!r}; Keras and torchvision, "
        f"which sort folders as text, make it {as_text[label]!r}"
    ]
