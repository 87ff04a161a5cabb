"""Archives as sources: the same bytes as from the folder, read in place; hostile members refused. tarfile and zipfile
are the oracles.
"""

import contextlib
import io
import os
import random
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import pytest

from shardline.pipeline.errors import UsageError
from shardline.pipeline.image_types import BadImage
from shardline.pipeline.manifest import Manifest
from shardline.pipeline.source_files import read_member
from shardline.tools.conversion.archives import archive_in, open_archive
from shardline.tools.conversion.scan import ScanOptions, scan
from tests.tools.folders import Run, class_folders, shard_hashes

TAR_FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
NAMES = (
    "cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/" + "x" * 120 + ".jpg",
    "a folder with a long name that does not fit into one hundred bytes alone/" * 1 + "y" * 60 + "/1.jpg",
    "caf\u00e9/\u732b.jpg", "dog/empty.jpg",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos") / "flowers"
    return class_folders(class_folders(root, 2, 4, "train"), 2, 3, "test")


def tar_of(folder, path, mode="w", inside=".", form=tarfile.PAX_FORMAT):
    with tarfile.open(path, mode, format=form) as archive:
        archive.add(folder, inside)
    return path


def zip_of(folder, path, method=zipfile.ZIP_DEFLATED, inside=""):
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, os.path.join(inside, file.relative_to(folder)))
    return path


def members(tree, folder=b""):
    """Path -> bytes of every file."""
    found = {}
    for entry in tree.entries(folder):
        path = os.path.join(folder, entry.name)
        if entry.is_folder:
            found |= members(tree, path)
        else:
            found[path.decode()] = read_member(tree.origins[entry.place.origin], entry.place, entry.size, 1 << 30)
    return found


def contents():
    rng = random.Random(0)
    return {name: rng.randbytes(rng.choice([1, 511, 512, 513, 3000])) * ("empty" not in name) for name in NAMES}


# --------------------------------------------------------------------------------------------- same bytes


OPTIONS = "--noreport", "--size=16", "--duplicates=drop"


@pytest.fixture(scope="module")
def converted(folder, tmp_path_factory):
    """The finished command, and the dataset that it made of the folder."""
    output = tmp_path_factory.mktemp("converted") / "d"
    run = Run("shardline.tools.convert", f"--source={folder}", f"--output={output}", "--engine=inline", *OPTIONS)
    assert run.code == 0, run.stderr
    return run, output


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("flowers.tar", tar_of),
        ("flowers.tar.gz", lambda f, p: tar_of(f, p, "w:gz")),
        ("flowers.tgz", lambda f, p: tar_of(f, p, "w:gz")),
        ("flowers.tar.xz", lambda f, p: tar_of(f, p, "w:xz")),
        ("flowers.tar.bz2", lambda f, p: tar_of(f, p, "w:bz2")),
        ("flowers.zip", zip_of),
        ("flowers.ZIP", lambda f, p: zip_of(f, p, zipfile.ZIP_STORED)),
        ("flowers.tar", lambda f, p: tar_of(f, p, inside="flowers")),  # in a folder of its own
        ("flowers.zip", lambda f, p: zip_of(f, p, inside="some/flowers")),
    ],
)
def test_an_archive_gives_the_dataset_of_its_folder(folder, converted, tmp_path, name, make):
    # Workers that open the archive anew, where it is read in place and where it is not.
    options = *OPTIONS, "--workers=2" if name in ("flowers.tar.gz", "flowers.ZIP") else "--engine=inline"
    one, output = converted
    archive = make(folder, tmp_path / name)
    two = Run("shardline.tools.convert", f"--source={archive}", f"--output={tmp_path}/two", *options)
    assert two.code == 0, two.stderr
    assert one.stdout.splitlines()[-1] == two.stdout.splitlines()[-1]
    assert shard_hashes(output) == shard_hashes(tmp_path / "two")
    assert sorted(os.listdir(tmp_path)) == sorted([name, "two"])  # nothing is left of what was decompressed
    again = Run("shardline.tools.convert", f"--source={archive}", f"--output={tmp_path}/two", *options)
    assert "is finished already" in again.stderr
    again = Run("shardline.tools.convert", f"--source={folder}", f"--output={tmp_path}/two", *options)
    assert "is finished already" in again.stderr, again.stderr  # the content decides, wherever it lies


def test_another_archive_of_the_same_names_and_sizes_is_noticed(folder, tmp_path):
    archive = zip_of(folder, tmp_path / "x.zip", zipfile.ZIP_STORED)
    options = f"--source={archive}", f"--output={tmp_path}/d", "--noreport", "--size=16", "--engine=inline"
    assert Run("shardline.tools.convert", *options).code == 0
    with zipfile.ZipFile(archive) as old:
        pairs = [(name, old.read(name)) for name in old.namelist()]
    first = next(i for i, (name, _) in enumerate(pairs) if name.endswith(".jpg"))
    pairs[first] = (pairs[first][0], pairs[first][1][:-3] + b"\0\xff\xd9")
    with zipfile.ZipFile(archive, "w") as new:
        for name, data in pairs:
            new.writestr(name, data)
    assert "1 input changed since" in Run("shardline.tools.convert", *options).stderr


def test_a_dry_run_of_an_archive(folder, tmp_path):
    archive = tar_of(folder, tmp_path / "x.tar.gz", "w:gz")
    result = Run("shardline.tools.convert", f"--source={archive}", "--dry_run")
    assert result.code == 0, result.stderr
    assert os.listdir(tmp_path) == ["x.tar.gz"]


@pytest.mark.parametrize("form", list(TAR_FORMATS))
def test_members_of_a_tar_are_those_of_tarfile(tmp_path, form):
    expected = contents()
    if form == "ustar":
        expected = {name: data for name, data in expected.items() if len(name) < 100 and name.isascii()}
    with tarfile.open(tmp_path / "x.tar", "w", format=TAR_FORMATS[form]) as archive:
        for name, data in expected.items():
            info = tarfile.TarInfo("./" + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert members(open_archive(str(tmp_path / "x.tar"))) == expected


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh self-extracting\n"])
def test_members_of_a_zip_are_those_of_zipfile(tmp_path, method, streamed, before):
    expected = contents()
    buffer = io.BytesIO()
    target = Unseekable(buffer) if streamed else buffer  # sizes and checksum follow the data
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in expected.items():
            with archive.open(name, "w", force_zip64=name == "cat/1.jpg") as member:
                member.write(data)
    (tmp_path / "x.zip").write_bytes(before + buffer.getvalue() + b"")
    assert members(open_archive(str(tmp_path / "x.zip"))) == expected


class Unseekable(io.RawIOBase):
    """A pipe, for zipfile."""

    def __init__(self, target):
        self.target = target

    def writable(self):
        return True

    def write(self, data):
        return self.target.write(data)


def test_a_zip64_directory_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i in range(65_540):
            archive.writestr(f"a/{i}.jpg", b"")
    tree = open_archive(str(tmp_path / "x.zip"))
    assert len(tree.entries(b"a")) == 65_540


def test_names_of_other_systems(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info = zipfile.ZipInfo("a\\1.jpg")
        info.filename = "a\\1.jpg"  # as some programs of Windows write it
        archive.writestr(info, b"1")
    assert list(members(open_archive(str(tmp_path / "x.zip")))) == ["a/1.jpg"]
    data = (tmp_path / "x.zip").read_bytes().replace(b"a\\1.jpg", b"\x82\\1.jpg")  # é in code page 437
    (tmp_path / "x.zip").write_bytes(data)
    assert list(members(open_archive(str(tmp_path / "x.zip")))) == ["é/1.jpg"]


def test_a_name_in_unicode_beside_one_in_another_code_counts(tmp_path):
    """Info-ZIP's extra field: the name of the entry is in the code page of whoever packed it."""
    names = {"猫/1.jpg": b"\x94L/1.jpg", "café/2.jpg": b"caf\xe9/2.jpg"}
    for name, raw in names.items():
        field = b"\1" + struct.pack("<I", zlib.crc32(raw)) + name.encode()
        for checksum, expected in ((zlib.crc32(raw), name), (0, raw.decode("cp437"))):
            info = zipfile.ZipInfo("n" * len(raw))
            info.extra = struct.pack("<HH", 0x7075, len(field)) + field[:1] + struct.pack("<I", checksum) + field[5:]
            with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
                archive.writestr(info, b"1")
            data = (tmp_path / "x.zip").read_bytes().replace(b"n" * len(raw), raw)
            (tmp_path / "x.zip").write_bytes(data)
            assert list(members(open_archive(str(tmp_path / "x.zip")))) == [expected]
    hostile = b"../../x"
    info = zipfile.ZipInfo("n")
    info.extra = struct.pack("<HHBI", 0x7075, 5 + len(hostile), 1, zlib.crc32(b"n")) + hostile
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, b"1")
    with pytest.raises(UsageError, match="leads out of the archive"):
        open_archive(str(tmp_path / "x.zip"))


def test_of_two_members_with_one_name_the_last_counts_as_if_unpacked(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for data in (b"old", b"newer"):
            info = tarfile.TarInfo("a/1.jpg")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert members(open_archive(str(tmp_path / "x.tar"))) == {"a/1.jpg": b"newer"}


def test_a_tar_of_tars_is_a_folder_of_folders(folder, tmp_path):
    for name in ("class0", "class1"):
        tar_of(folder / "train" / name, tmp_path / f"{name}.tar")
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for name in ("class0", "class1"):
            archive.add(tmp_path / f"{name}.tar", f"{name}.tar")
    expected = {
        str(path.relative_to(folder / "train")): path.read_bytes() for path in (folder / "train").rglob("*.jpg")
    }
    assert members(open_archive(str(tmp_path / "all.tar"))) == expected


def test_folders_in_an_archive_may_be_named(folder, tmp_path):
    archive = zip_of(folder, tmp_path / "x.zip", inside="data/v1")
    assert archive_in(f"{archive}/data/v1/train") == (str(archive), "data/v1/train")
    assert archive_in(str(folder)) == ("", "")
    inside, outside = (scan([path], ScanOptions()) for path in (f"{archive}/data/v1/train", str(folder / "train")))
    assert inside.fingerprint(stamps=False) == outside.fingerprint(stamps=False)
    with pytest.raises(UsageError, match="no folder 'data/v2'"):
        scan(f"{archive}/data/v2", ScanOptions())


def test_archives_and_folders_mix(folder, tmp_path):
    archive = tar_of(folder / "train", tmp_path / "train.tar")
    mixed = scan([f"train={archive}", f"test={folder}/test"], ScanOptions())
    alone = scan([str(folder)], ScanOptions())
    assert mixed.fingerprint(stamps=False) == alone.fingerprint(stamps=False)


# ------------------------------------------------------------------------------------------------ hostile


def tar_with(path, name, kind=tarfile.REGTYPE, link="", data=b"x"):
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, link, len(data) if kind == tarfile.REGTYPE else 0
        archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("line", [b"9" * 5000 + b" path=x\n", b"5011 size=" + b"9" * 5000 + b"\n"])
def test_numbers_of_more_digits_than_python_reads_are_none_of_a_tar(tmp_path, line):
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, len(line)
    blocks = header.tobuf(tarfile.USTAR_FORMAT) + line + bytes(-len(line) % 512)
    (tmp_path / "x.tar").write_bytes(blocks + tarfile.TarInfo("a/1.jpg").tobuf(tarfile.USTAR_FORMAT) + bytes(1024))
    with pytest.raises(UsageError, match="a damaged POSIX header; download the archive again"):
        open_archive(str(tmp_path / "x.tar"))


@pytest.mark.parametrize(
    ("name", "kind", "link", "why"),
    [
        ("/etc/passwd", tarfile.REGTYPE, "", "is an absolute path"),
        ("../../x.jpg", tarfile.REGTYPE, "", "leads out of the archive"),
        ("a/../../x.jpg", tarfile.REGTYPE, "", "leads out of the archive"),
        ("a/link.jpg", tarfile.SYMTYPE, "/etc/passwd", "is a link"),
        ("a/link.jpg", tarfile.LNKTYPE, "/etc/passwd", "is a link"),
        ("a/null", tarfile.CHRTYPE, "", "is a device"),
        ("a/disk", tarfile.BLKTYPE, "", "is a device"),
        ("a/pipe", tarfile.FIFOTYPE, "", "is a pipe"),
        ("a/sparse", tarfile.GNUTYPE_SPARSE, "", "is a sparse file"),
        ("a/\x1b]0;x\x07.jpg", tarfile.SYMTYPE, "x", "is a link"),
        ("a/" * 300 + "1.jpg", tarfile.REGTYPE, "", "is no file name"),
        ("C:\\x.jpg", tarfile.REGTYPE, "", "is an absolute path"),
    ],
)
def test_hostile_members_of_a_tar_are_refused_by_name(tmp_path, name, kind, link, why):
    with pytest.raises(UsageError, match=why) as error:
        open_archive(str(tar_with(tmp_path / "x.tar", name, kind, link)))
    assert "\x1b" not in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "mode", "why"),
    [
        ("/x.jpg", 0, "is an absolute path"),
        ("../x.jpg", 0, "leads out of the archive"),
        ("..\\x.jpg", 0, "leads out of the archive"),
        ("C:\\x.jpg", 0, "is an absolute path"),
        ("a/link.jpg", stat.S_IFLNK | 0o777, "is a link"),
        ("a/pipe", stat.S_IFIFO | 0o600, "is no regular file"),
        ("a/null", stat.S_IFCHR | 0o600, "is no regular file"),
    ],
)
def test_hostile_members_of_a_zip_are_refused_by_name(tmp_path, name, mode, why):
    info = zipfile.ZipInfo("x")
    info.filename, info.external_attr, info.create_system = name, mode << 16, 3
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, b"data")
    with pytest.raises(UsageError, match=why):
        open_archive(str(tmp_path / "x.zip"))


def test_a_path_that_is_a_file_and_a_folder_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/b", b"1")
        archive.writestr("a/b/c.jpg", b"1")
    with pytest.raises(UsageError, match="is a file and a folder"):
        members(open_archive(str(tmp_path / "x.zip")))


def test_bombs_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.bmp", bytes(100 << 20))
    with pytest.raises(UsageError, match=r"bytes expand to 104,857,600 or more"):
        open_archive(str(tmp_path / "x.zip"))
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("a/1.bmp")
        info.size = 100 << 20
        archive.addfile(info, io.BytesIO(bytes(info.size)))
    with pytest.raises(UsageError, match="expand to"):
        open_archive(str(tmp_path / "x.tar.gz"))
    assert sorted(os.listdir(tmp_path)) == ["x.tar.gz", "x.zip"]


def test_members_that_overlap_are_refused(tmp_path):
    """Fifield's bomb: many entries of the directory stand for the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/1.jpg", bytes(range(256)) * 4)
    data = buffer.getvalue()
    at, size = data.rfind(b"PK\1\2"), data.rfind(b"PK\5\6") - data.rfind(b"PK\1\2")
    entries = b"".join(data[at : at + size].replace(b"a/1", b"a/%d" % i) for i in range(9))
    end = struct.pack("<4s4HIIH", b"PK\5\6", 0, 0, 9, 9, len(entries), at, 0)
    (tmp_path / "x.zip").write_bytes(data[:at] + entries + end)
    with pytest.raises(UsageError, match="its members overlap"):
        open_archive(str(tmp_path / "x.zip"))


def test_a_member_that_is_larger_than_it_says_is_not_inflated(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.jpg", bytes(1 << 20))
    data = bytearray((tmp_path / "x.zip").read_bytes())
    at = data.rfind(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", 100)  # the size that the directory gives
    (tmp_path / "x.zip").write_bytes(data)
    tree = open_archive(str(tmp_path / "x.zip"))
    (entry,) = tree.entries(b"a")
    with pytest.raises(BadImage, match="size or checksum"):
        read_member(tree.origins[0], entry.place, entry.size, 1 << 20)
    with pytest.raises(BadImage, match="file-too-large"):
        read_member(tree.origins[0], entry.place, 1 << 30, 1 << 20)


def test_a_flipped_bit_in_a_member_sets_it_aside(folder, tmp_path):
    archive = zip_of(folder, tmp_path / "x.zip", zipfile.ZIP_STORED)
    tree = open_archive(str(archive))
    entry = tree.entries(b"train/class0")[0]
    data = bytearray(archive.read_bytes())
    data[entry.place.offset + 300] ^= 1
    archive.write_bytes(data)
    result = Run("shardline.tools.convert", f"--source={archive}", f"--output={tmp_path}/d", "--noreport", "--size=16")
    assert result.code == 0 and "damaged-member 1" in result.stdout
    assert Manifest.load(tmp_path / "d").ledger.quarantined == 1


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.xz", "x.tar.bz2"])
@pytest.mark.parametrize("data", [b"", b"no archive at all" * 100, b"\0" * 2000])
def test_what_is_no_archive_is_said(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError) as error:
        scan(str(tmp_path / name), ScanOptions())
    assert len(str(error.value).splitlines()) == 1
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:xz"])
@pytest.mark.parametrize("called", ["y.zip", "y.tar", "y.tar.gz", "y.tbz2"])
def test_what_an_archive_is_counts_and_not_what_it_is_called(folder, tmp_path, mode, called):
    archive = tmp_path / called
    zip_of(folder, archive) if mode == "zip" else tar_of(folder, archive, mode)
    found = scan(str(archive), ScanOptions())
    assert list(found.paths()) == list(scan(str(folder), ScanOptions()).paths())


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"<!DOCTYPE html><html>Quota exceeded</html>",
            "is an HTML page, .*, and no .* download it again$",
        ),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer; fetch the real file"),
        (b"Rar!\x1a\x07\1\0" + bytes(999), "is a RAR archive, and no .* unpack it and give the folder$"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(999), "is a 7z archive, and no .* unpack it and give the folder$"),
    ],
)
def test_what_is_called_an_archive_and_is_none_is_named(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=message):
        scan(str(tmp_path / name), ScanOptions())


@pytest.mark.parametrize("name", ["x.7z", "x.rar", "x.tar.zst", "x.gz"])
def test_archives_of_other_kinds_are_refused_with_the_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match="unpack it and give the folder"):
        scan(str(tmp_path / name), ScanOptions())


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_no_mutation_of_an_archive_does_more_than_be_refused(folder, tmp_path, kind):
    """Flipped, cut and repeated bytes: a listing, or one line."""
    make = zip_of if kind == "zip" else tar_of
    original = make(folder / "test", tmp_path / f"o.{kind}").read_bytes()
    starts = headers(original, kind)
    rng = random.Random(1)
    read = refused = 0
    for _ in range(400):
        data = bytearray(original)
        for _ in range(rng.choice([1, 4])):
            at = rng.choice([rng.randrange(len(data)), rng.choice(starts) + rng.randrange(60)])
            data[min(at, len(data) - 1)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        path = tmp_path / f"m.{kind}"
        path.write_bytes(data)
        try:
            tree = open_archive(str(path))
            for entry in tree.entries(b"class0"):
                if not entry.is_folder:
                    with contextlib.suppress(BadImage):
                        read_member(tree.origins[0], entry.place, entry.size, 1 << 20)
            read += 1
        except UsageError:
            refused += 1
    assert read > 20 and refused > 20


def headers(data, kind):
    if kind == "tar":
        return [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    return [at for at in range(len(data) - 4) if data[at : at + 2] == b"PK"]


def test_a_killed_run_leaves_a_stray_that_the_next_one_removes(folder, tmp_path):
    archive = tar_of(folder, tmp_path / "x.tar.gz", "w:gz")
    code = (
        "import os, signal\n"
        "from shardline.tools.conversion.archives import open_archive\n"
        f"tree = open_archive({str(archive)!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code])
    assert len(os.listdir(tmp_path)) == 2
    open_archive(str(archive))
    assert os.listdir(tmp_path) == ["x.tar.gz"]


def test_backslashes_part_folders_in_archives_of_windows_whatever_stands_beside_them(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("photos/cat\\1.jpg", "photos/dog\\2.jpg"):
            member = zipfile.ZipInfo(name)
            member.create_system = 0  # FAT, which has no such letter
            archive.writestr(member, name)
    assert scan(str(tmp_path / "a.zip")).labels == ("cat", "dog")


@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_after_the_end_of_another_is_refused_and_the_remedy_works(tmp_path, packed):
    """`cat a.tar b.tar`: tar and Python read the first one alone."""
    parts = []
    for name in ("cat", "dog"):
        (tmp_path / name / name).mkdir(parents=True)
        (tmp_path / name / name / "1.jpg").write_bytes(name.encode())
        parts.append(tar_of(tmp_path / name, tmp_path / f"{name}.tar", "w:gz" if packed else "w").read_bytes())
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join(parts))
    with tarfile.open(joined) as archive:
        assert not [member for member in archive.getnames() if "dog" in member]
    with pytest.raises(UsageError, match=r"another archive follows its end.*with `tar -i` and give the folder"):
        scan(str(joined))
    (tmp_path / "all").mkdir()
    subprocess.run(["tar", "-i", "-xf", joined, "-C", tmp_path / "all"], check=True)
    assert scan(str(tmp_path / "all")).labels == ("cat", "dog")
    joined.write_bytes(parts[0] if packed else parts[0] + bytes(3 << 20))  # padding is no archive
    assert scan(str(joined)).labels == ("cat",)
