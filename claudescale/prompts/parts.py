"""Images and PDFs of a row: what a cell holds, what type it has, how many tokens it takes.

A file is read three times at most: its head for the price, piece by piece for the key of its row, and whole
when the row is sent. So no more files are in memory than rows are in flight.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

from claudescale.api import media
from claudescale.api.catalog import MEDIA
from claudescale.errors import refuse

if TYPE_CHECKING:
    from claudescale.api.catalog import Model
    from claudescale.api.media import File

Kind: TypeAlias = Literal["path", "url", "file_id"]
Purpose: TypeAlias = Literal["price", "key", "send"]


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

    Put images before the text. Tokens are estimated from width and height, for free.

    Spends: nothing.

    Parameters
    ----------
    column : str
        Of bytes (`pl.Binary`), or of Strings: each the path of a file, or a URL that begins with ``https://``,
        which Anthropic fetches. A row with a null is not sent, nor is one whose file cannot be read: its
        results say why in `error` and `message`.
    kind : str, optional
        What the Strings are, if it cannot be guessed: ``"path"``, ``"url"`` or ``"file_id"`` (Files API).

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
    most = MEDIA["most_image_tokens"] if part.block == "image" else model.context_tokens
    unseen = media.unseen_tokens(part.block), most
    if kind == "file_id":
        return Source({"type": "file", "file_id": value}, *unseen)
    if kind == "url":
        if not value.lower().startswith("https://"):
            raise Unusable(error="url_not_https", message="The API takes only URLs that begin with https://.")
        return Source({"type": "url", "url": value}, *unseen)
    try:
        path = Path(value).expanduser()
        if path.exists() and not path.is_file():  # a folder, or a pipe, which may never end
            raise Unusable(error="file_unreadable", message="It is not a file.")
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
    media_type, tokens = _measured(file, part.block, model.tokenizer)
    data_bytes, raw = 4 * math.ceil(size / 3), b""
    if part.block == "image" and data_bytes > MEDIA["most_base64_bytes"]:
        most = MEDIA["most_base64_bytes"] * 3 // 4
        raise Unusable(error="image_too_large", message=f"It has {size:,} bytes, and the API takes {most:,}.")
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


def _measured(file: File, block: str, tokenizer: str) -> tuple[str, float]:
    """Return the media type by the first bytes, and the tokens."""
    found = media.media_type(file.read(media.HEAD_BYTES))
    if block == "document":
        if found != media.PDF:
            raise Unusable(error="file_type_unknown", message="It is not a PDF.")
        file.seek(0)
        return found, float(media.pdf_pages(file.read(MEDIA["most_bytes"]))[1])
    if found not in media.IMAGES:
        hint = " It is a PDF, so use cs.pdf(...)." if found == media.PDF else ""
        words = f"It is not a PNG, JPEG, GIF or WebP.{hint}"
        raise Unusable(error="file_type_unknown", message=words)
    try:
        width, height = media.pixels(file)
    except (struct.error, IndexError) as error:
        raise Unusable(error="file_damaged", message="The image ends before its size is given.") from error
    if max(width, height) > MEDIA["most_pixels"]:
        words = f"It has {width:,} x {height:,} pixels, and the API takes {MEDIA['most_pixels']:,} on a side."
        raise Unusable(error="image_too_large", message=words)
    return found, float(media.image_tokens(width, height, tokenizer))
