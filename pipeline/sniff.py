"""What a file is, told by its first bytes, never by its name. No OpenCV, no TensorFlow."""

from __future__ import annotations


def sniff(data: bytes) -> str:
    """Name of the format by content: a key of FORMATS, a name of UNSUPPORTED, or "" for none we know."""
    for name, _, signatures in _SIGNATURES:
        if data.startswith(signatures):
            return name
    if data[4:8] == b"ftyp":
        return _sniff_isobmff(data)
    if data[:4] in (b"RIFF", b"FORM"):
        return {b"WEBP": "webp", b"AVI ": "video", b"ACON": "ico", b"ILBM": "iff", b"PBM ": "iff"}.get(data[8:12], "")
    if len(data) > 2 and data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "pnm"
    if data[4:8] in (b"wide", b"moov", b"mdat"):
        return "video"
    if data[128:132] == b"DICM":
        return "dicom"
    if data[344:348] in (b"n+1\0", b"ni1\0"):
        return "nifti"
    if data[-18:-2] == b"TRUEVISION-XFILE" or _is_old_tga(data[:18]):
        return "tga"
    text = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "html"
    if text.startswith((b"<svg", b"<!doctype svg")) or (text.startswith((b"<?xml", b"<!--")) and b"<svg" in text):
        return "svg"
    if text.startswith(b"#define ") and b"_width" in text:
        return "xbm"
    return "git-lfs" if text.startswith(b"version https://git-lfs") else ""


def _sniff_isobmff(data: bytes) -> str:
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, min(int.from_bytes(data[:4], "big"), 128), 4))]
    if any(brand in (b"avif", b"avis") for brand in brands):
        return "avif"
    if any(brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1") for brand in brands):
        return "heic"
    return "raw" if data[8:12] == b"crx " else "video"


def _is_old_tga(head: bytes) -> bool:
    """Whether all fields of a Targa header, which has no signature, are what they may be."""
    if len(head) < 17:
        return False
    mapped, kind, bits = head[1], head[2], head[16]
    sides = head[12:14] != b"\0\0" and head[14:16] != b"\0\0"
    known = kind in (1, 2, 3, 9, 10, 11) and bits in (8, 15, 16, 24, 32)
    return known and sides and mapped == (kind in (1, 9)) and head[17:18] < b"\x40"


_SIGNATURES: tuple[tuple[str, str, tuple[bytes, ...]], ...] = (  # name, words for what is not read, first bytes
    ("jpeg", "", (b"\xff\xd8\xff",)),
    ("png", "", (b"\x89PNG\r\n\x1a\n",)),
    ("gif", "", (b"GIF87a", b"GIF89a")),
    ("bmp", "", (b"BM",)),
    ("tiff", "", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ("jp2", "", (b"\0\0\0\x0cjP  \r\n\x87\n",)),
    ("j2k", "", (b"\xff\x4f\xff\x51",)),
    ("jpeg-xl", "", (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")),
    ("jpeg-xr", "JPEG XR", (b"II\xbc",)),
    ("jpeg-xs", "JPEG XS", (b"\xff\x10\xff\x50",)),
    ("psd", "Photoshop (PSD)", (b"8BPS",)),
    ("pdf", "PDF", (b"%PDF",)),
    ("exr", "OpenEXR", (b"\x76\x2f\x31\x01",)),
    ("hdr", "Radiance HDR", (b"#?",)),
    ("ico", "Windows icon or cursor", (b"\0\0\1\0", b"\0\0\2\0\1")),
    ("icns", "Apple icon", (b"icns",)),
    ("bmp-array", "OS/2 bitmap array", (b"BA",)),
    ("pcx", "PCX", (*(bytes([10, version, 1]) for version in (0, 2, 3, 4, 5)), b"\xb1\x68\xde\x3a")),
    ("sgi", "SGI", (b"\x01\xda",)),
    ("sun", "Sun raster", (b"\x59\xa6\x6a\x95",)),
    ("eps", "PostScript", (b"%!PS", b"\xc5\xd0\xd3\xc6")),
    ("fits", "FITS", (b"SIMPLE  =",)),
    ("hdf5", "HDF5", (b"\x89HDF",)),
    ("npy", "NumPy array", (b"\x93NUMPY",)),
    ("pfm", "portable float map (PFM)", (b"PF\n", b"Pf\n", b"PF4\n", b"PF ", b"Pf ")),
    ("pam", "PAM", (b"P7\n", b"P7 332")),
    ("xpm", "X pixmap", (b"/* XPM",)),
    ("xcf", "GIMP (XCF)", (b"gimp xcf",)),
    ("bpg", "BPG", (b"BPG\xfb",)),
    ("flif", "FLIF", (b"FLIF",)),
    ("jbig2", "JBIG2", (b"\x97JB2",)),
    ("mng", "MNG or JNG", (b"\x8aMNG", b"\x8bJNG")),
    ("video", "video", (b"\x1a\x45\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3")),
    ("dds", "DirectDraw surface", (b"DDS ",)),
    ("ktx", "KTX texture", (b"\xabKTX",)),
    ("qoi", "QOI", (b"qoif",)),
    ("dpx", "DPX or Cineon", (b"SDPX", b"XPDS", b"\x80\x2a\x5f\xd7", b"\xd7\x5f\x2a\x80")),
    ("raw", "a camera's raw file", (b"FUJIFILMCCD-RAW", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"II\x1a\0\0\0HEAP",
                                    b"FOVb", b"\0MRM", b"ARRI")),
    ("wmf", "Windows metafile (vector graphics)", (b"\xd7\xcd\xc6\x9a",)),
    ("djvu", "DjVu", (b"AT&TFORM",)),
    ("zip", "", (b"PK\x03\x04",)),
    ("rar", "", (b"Rar!\x1a\x07",)),
    ("7z", "", (b"7z\xbc\xaf\x27\x1c",)),
    ("gzip", "", (b"\x1f\x8b",)),
)  # fmt: skip

UNSUPPORTED = {name: words for name, words, _ in _SIGNATURES if words} | {
    "svg": "SVG (vector graphics)",
    "tga": "Targa (TGA)",
    "dicom": "DICOM",
    "nifti": "NIfTI",
    "iff": "IFF (ILBM)",
    "xbm": "X bitmap",
}

NOT_IMAGES = {
    "html": "an HTML page, often a saved error message",
    "git-lfs": "a Git LFS pointer; fetch the real file with `git lfs pull`",
    "zip": "a ZIP archive",
    "rar": "a RAR archive",
    "7z": "a 7z archive",
    "gzip": "gzip-compressed data",
}
