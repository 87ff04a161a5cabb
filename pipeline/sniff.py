"""What a file is, told by its first bytes, never by its name. No OpenCV, no TensorFlow."""

from __future__ import annotations


def sniff(data: bytes) -> str:
    """Name of the format by content: a key of FORMATS, a name of UNSUPPORTED, or "" for none we know."""
    for format_name, signature, _ in _SIGNATURES:
        if data.startswith(signature):
            return format_name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":
        return _sniff_isobmff(data)
    if len(data) > 2 and data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "pnm"
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "video"
    if data[128:132] == b"DICM":
        return "dicom"
    if data[-18:-2] == b"TRUEVISION-XFILE":
        return "tga"
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "html"
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "svg"
    if text.startswith(b"version https://git-lfs"):
        return "git-lfs"
    return ""


def _sniff_isobmff(data: bytes) -> str:
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, min(int.from_bytes(data[:4], "big"), 128), 4))]
    if any(brand in (b"avif", b"avis") for brand in brands):
        return "avif"
    if any(brand in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1") for brand in brands):
        return "heic"
    return "raw" if data[8:12] == b"crx " else "video"


_SIGNATURES: tuple[tuple[str, bytes, str], ...] = (  # name, first bytes, and words for what is not read
    ("jpeg", b"\xff\xd8\xff", ""),
    ("png", b"\x89PNG\r\n\x1a\n", ""),
    ("gif", b"GIF87a", ""),
    ("gif", b"GIF89a", ""),
    ("bmp", b"BM", ""),
    ("jpeg-xr", b"II\xbc", "JPEG XR"),
    ("tiff", b"II*\0", ""),
    ("tiff", b"MM\0*", ""),
    ("tiff", b"II+\0", ""),
    ("tiff", b"MM\0+", ""),
    ("jp2", b"\0\0\0\x0cjP  \r\n\x87\n", ""),
    ("j2k", b"\xff\x4f\xff\x51", ""),
    ("jpeg-xl", b"\xff\x0a", ""),
    ("jpeg-xl", b"\0\0\0\x0cJXL \r\n\x87\n", ""),
    ("psd", b"8BPS", "Photoshop (PSD)"),
    ("pdf", b"%PDF", "PDF"),
    ("exr", b"\x76\x2f\x31\x01", "OpenEXR"),
    ("hdr", b"#?", "Radiance HDR"),
    ("ico", b"\0\0\x01\0", "Windows icon or cursor"),
    ("ico", b"\0\0\2\0\1", ""),
    ("icns", b"icns", "Apple icon"),
    ("pcx", b"\x0a\x05\x01", "PCX"),
    ("sgi", b"\x01\xda", "SGI"),
    ("eps", b"%!PS", "PostScript"),
    ("fits", b"SIMPLE  =", "FITS"),
    ("npy", b"\x93NUMPY", "NumPy array"),
    ("pfm", b"PF\n", "portable float map (PFM)"),
    ("pfm", b"Pf\n", ""),
    ("xcf", b"gimp xcf", "GIMP (XCF)"),
    ("bpg", b"BPG\xfb", "BPG"),
    ("mng", b"\x8aMNG", "MNG or JNG"),
    ("mng", b"\x8bJNG", ""),
    ("video", b"\x1a\x45\xdf\xa3", "video"),
    ("dds", b"DDS ", "DirectDraw surface"),
    ("qoi", b"qoif", "QOI"),
    ("pam", b"P7\n", "PAM"),
    ("raw", b"FUJIFILMCCD-RAW", "a camera's raw file"),
    ("wmf", b"\xd7\xcd\xc6\x9a", "Windows metafile (vector graphics)"),
    ("djvu", b"AT&TFORM", "DjVu"),
    ("zip", b"PK\x03\x04", ""),
    ("rar", b"Rar!\x1a\x07", ""),
    ("7z", b"7z\xbc\xaf\x27\x1c", ""),
    ("gzip", b"\x1f\x8b", ""),
)

UNSUPPORTED = {name: words for name, _, words in _SIGNATURES if words} | {
    "svg": "SVG (vector graphics)",
    "tga": "Targa (TGA)",
    "dicom": "DICOM",
}

NOT_IMAGES = {
    "html": "an HTML page, often a saved error message",
    "git-lfs": "a Git LFS pointer; fetch the real file with `git lfs pull`",
    "zip": "a ZIP archive",
    "rar": "a RAR archive",
    "7z": "a 7z archive",
    "gzip": "gzip-compressed data",
}
