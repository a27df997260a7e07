"""Images and PDFs of a row: what a cell holds, what type it has, how many tokens it takes.

A file is read three times at most: its head for the price, piece by piece for the key of its row, and whole
when the row is sent. So no more files are in memory than rows are in flight.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from claudescale.prompts.parameters import FACTS, refuse

if TYPE_CHECKING:
    from claudescale.api.catalog import Model

Kind: TypeAlias = Literal["path", "url", "file_id"]
Purpose: TypeAlias = Literal["price", "key", "send"]
File: TypeAlias = io.BytesIO | io.BufferedReader

MEDIA: dict[str, Any] = FACTS["media"]
_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_OBJECTS = re.compile(rb"/ObjStm.*?stream\r?\n", re.DOTALL)  # since PDF 1.5 pages stand in compressed streams
_SIZES_IN_JPEG = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of a frame, which has its size


class Unusable(Exception):
    """A cell that cannot be sent; it becomes data of its row."""

    def __init__(self, *, error: str, message: str) -> None:
        super().__init__(error)
        self.error, self.message = error, message


@dataclass(frozen=True, slots=True)
class Part:
    """An image or a PDF in each row of a column. `image` and `pdf` make one."""

    column: str
    block: Literal["image", "document"]
    kind: Kind | None = None

    def __repr__(self) -> str:
        kind = f", kind={self.kind!r}" if self.kind else ""
        return f"cs.{'image' if self.block == 'image' else 'pdf'}({self.column!r}{kind})"


def image(column: str, *, kind: Kind | None = None) -> Part:
    """Return the part of a prompt that is the image in a column: PNG, JPEG, GIF or WebP.

    Images do best before the text. Tokens are estimated from width and height, which is free.

    Spends: nothing.

    Parameters
    ----------
    column : str
        Of bytes (`pl.Binary`), or of Strings: each the path of a file, or a URL that begins with ``https://``,
        which Anthropic fetches. A null leaves the row unsent; a file that cannot be read too, and the
        results say why in `error` and `message`.
    kind : str, optional
        What the Strings are where it cannot be told: ``"path"``, ``"url"`` or ``"file_id"`` (Files API).

    Examples
    --------
    ``cs.plan(frame, [cs.image("photo"), "What is broken? {note}"], model="claude-haiku-5-5")``
    """
    return _part(column, "image", kind)


def pdf(column: str, *, kind: Kind | None = None) -> Part:
    """Return the part of a prompt that is the PDF in a column; its parameters are those of `image`.

    Tokens are estimated from its pages, about 2,300 each.

    Spends: nothing.
    """
    return _part(column, "document", kind)


def _part(column: str, block: Literal["image", "document"], kind: Kind | None) -> Part:
    if not isinstance(column, str):
        refuse(f"{column!r:.60} is not the name of a column: cs.image('photo').")
    if kind is not None and kind not in get_args(Kind):
        refuse(f"kind={kind!r} is not one of {', '.join(map(repr, get_args(Kind)))}.")
    return Part(column, block, kind)


# ------------------------------------------------------------------------------------- one cell of a frame


class Source(NamedTuple):
    """The source of a block in a request, where it is base64 with a digest for the data."""

    source: dict[str, str]
    tokens: float
    most_tokens: float
    data_bytes: int = 0  # how long its data is, in base64
    data: str = ""  # that data, if it is to be sent


def source_of(part: Part, value: Any, model: Model, purpose: Purpose) -> Source:
    """Return what a cell holds; `Unusable` where it cannot be sent."""
    if isinstance(value, bytes):
        return _read(io.BytesIO(value), part, model, purpose)
    kind = part.kind or ("url" if value.lower().startswith(("https://", "http://")) else "path")
    unseen = MEDIA["image_tokens"], MEDIA["most_image_tokens"]
    if part.block == "document":
        unseen = MEDIA["pages"] * MEDIA["page_tokens"], model.context_tokens
    if kind == "file_id":
        return Source({"type": "file", "file_id": value}, *unseen)
    if kind == "url":
        if not value.lower().startswith("https://"):
            raise Unusable(error="url_not_https", message="The API takes URLs that begin with https://.")
        return Source({"type": "url", "url": value}, *unseen)
    try:
        path = Path(value).expanduser()
        if path.exists() and not path.is_file():  # a folder, or a pipe, which may never end
            raise Unusable(error="file_unreadable", message="It is no file.")
        with path.open("rb") as file:
            return _read(file, part, model, purpose)
    except FileNotFoundError as error:
        raise Unusable(error="file_not_found", message="There is no such file.") from error
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, a home that is none
        why = getattr(error, "strerror", None) or type(error).__name__
        raise Unusable(error="file_unreadable", message=f"The file cannot be read: {why}.") from error


def _read(file: File, part: Part, model: Model, purpose: Purpose) -> Source:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    media_type, tokens = _measured(file, part.block, MEDIA["most_tokens"][model.tokenizer])
    data_bytes, raw = 4 * math.ceil(size / 3), b""
    file.seek(0)
    if purpose == "send":
        raw = file.read()
        digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
    else:
        digest = hashlib.file_digest(file, _blake).hexdigest() if purpose == "key" else ""
    source = {"type": "base64", "media_type": media_type, "data": digest}
    return Source(source, tokens, MEDIA["doubt"] * tokens, data_bytes, base64.b64encode(raw).decode())


def _blake() -> Any:
    return hashlib.blake2b(digest_size=16)


def _measured(file: File, block: str, most_tokens: int) -> tuple[str, float]:
    """Return the media type by the first bytes, and the tokens.

    Source: API facts of 2026-11-29, datasets image-token-cost and pdf-token-cost (Oct 2026).
    """
    head = file.read(32)
    if block == "document":
        if b"%PDF-" not in head:
            raise Unusable(error="file_type_unknown", message="It does not begin as a PDF does.")
        return "application/pdf", _page_tokens(head + file.read(MEDIA["most_bytes"]))
    try:
        media_type, (width, height) = _pixels(head, file)
    except (struct.error, IndexError) as error:
        raise Unusable(error="file_damaged", message="The image ends before it says its size.") from error
    if max(width, height) > MEDIA["most_pixels"]:
        words = f"It has {width:,} x {height:,} pixels, and the API takes {MEDIA['most_pixels']:,} on a side."
        raise Unusable(error="image_too_large", message=words)
    side = MEDIA["pixels_a_token"]  # a token is a square of so many pixels; larger images are scaled down
    return media_type, float(min(math.ceil(width / side) * math.ceil(height / side), most_tokens))


def _pixels(head: bytes, file: File) -> tuple[str, tuple[int, int]]:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png", struct.unpack_from(">II", head, 16)
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif", struct.unpack_from("<HH", head, 6)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp", _webp(head)
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg", _jpeg(file)
    hint = " It is a PDF: cs.pdf(...)." if head.startswith(b"%PDF-") else ""
    raise Unusable(
        error="file_type_unknown", message=f"It does not begin as a PNG, JPEG, GIF or WebP does.{hint}"
    )


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


def _page_tokens(data: bytes) -> float:
    """Return the tokens of all pages of a PDF; those without any font are scans."""
    texts, view = [data], memoryview(data)
    for stream in _OBJECTS.finditer(data):
        try:
            texts.append(zlib.decompressobj().decompress(view[stream.end() :], MEDIA["most_bytes"]))
        except zlib.error:  # encrypted, or packed in another way
            continue
    pages = sum(len(_PAGE.findall(text)) for text in texts) or 1
    is_text = any(b"/Font" in text for text in texts)
    return float(pages * MEDIA["page_tokens" if is_text else "scan_tokens"])
