"""Finds the type, the pixels or pages, and the tokens of an image or a PDF from its bytes.

Source: API facts of 2026-11-29, datasets image-token-cost and pdf-token-cost (Oct 2026).
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from typing import TypeAlias

from claudescale.api.catalog import MEDIA

File: TypeAlias = io.BytesIO | io.BufferedReader

HEAD_BYTES = 32  # enough for the type, and for the size of any image but a JPEG
IMAGES, PDF = ("image/jpeg", "image/png", "image/gif", "image/webp"), "application/pdf"
_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_OBJECTS = re.compile(rb"/ObjStm.*?stream\r?\n", re.DOTALL)  # from PDF 1.5 on, pages may be compressed
_SIZES_IN_JPEG = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start-of-frame markers, which precede the size


def media_type(head: bytes) -> str | None:
    """Return the media type from the first bytes of a file; None where the API does not take it."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return PDF if b"%PDF-" in head[:HEAD_BYTES] else None


def pixels(file: File) -> tuple[int, int]:
    """Return the width and height of an image; struct.error or IndexError where it ends too early."""
    file.seek(0)
    head = file.read(HEAD_BYTES)
    match media_type(head):
        case "image/png":
            return struct.unpack_from(">II", head, 16)
        case "image/gif":
            return struct.unpack_from("<HH", head, 6)
        case "image/webp":
            return _webp(head)
        case _:
            return _jpeg(file)


def _webp(head: bytes) -> tuple[int, int]:
    match head[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", head, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case _:
            width, height = struct.unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF


def _jpeg(file: File) -> tuple[int, int]:
    file.seek(2)
    while True:
        _, marker, length = struct.unpack(">BBH", file.read(4))
        if marker in _SIZES_IN_JPEG:
            height, width = struct.unpack_from(">HH", file.read(5), 1)
            return width, height
        file.seek(length - 2, io.SEEK_CUR)


def image_tokens(width: int, height: int, tokenizer: str) -> int:
    """Return the tokens of an image: one per square of pixels, capped as the API scales down large images."""
    side, most = int(MEDIA["pixels_a_token"]), int(MEDIA["most_tokens"][tokenizer])
    return min(math.ceil(width / side) * math.ceil(height / side), most)


def pdf_pages(data: bytes) -> tuple[int, int]:
    """Return the number of pages of a PDF, and their tokens; a PDF without any font is a scan."""
    texts, view = [data], memoryview(data)
    for stream in _OBJECTS.finditer(data):
        try:
            texts.append(zlib.decompressobj().decompress(view[stream.end() :], MEDIA["most_bytes"]))
        except zlib.error:  # encrypted, or compressed in another way
            continue
    pages = sum(len(_PAGE.findall(text)) for text in texts) or 1
    is_text = any(b"/Font" in text for text in texts)
    return pages, pages * MEDIA["page_tokens" if is_text else "scan_tokens"]


def unseen_tokens(block: str) -> int:
    """Return the tokens assumed for an image or a document behind a URL or an id, which is not read here."""
    return int(MEDIA["image_tokens"] if block == "image" else MEDIA["pages"] * MEDIA["page_tokens"])
