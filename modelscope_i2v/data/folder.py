"""Videos and pictures with captions: in a folder, or in a data set of ModelScope's hub."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import parse_json, reason
from ..media.images import load_image
from ..media.transforms import center_crop
from ..media.videos import read_video

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".mpg", ".mpeg", ".ts", ".wmv")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")

FILE_COLUMNS = ("file", "file_name", "path", "video", "video:FILE", "image", "image:FILE")
CAPTION_COLUMNS = ("caption", "text", "prompt")
_SHOWN = 5
_RATED = 16
"""Frames whose average rate is taken as a video's: the first two may be further apart than the others."""


@dataclass(frozen=True)
class Entry:
    """A video or picture and its caption."""

    source: Any
    """A path, a URL, bytes, a binary file, or a PIL image."""
    caption: str
    name: str
    """The entry's name in messages."""

    @property
    def is_picture(self) -> bool:
        return isinstance(self.source, Image.Image) or Path(self.name).suffix.lower() in PICTURES


@dataclass(frozen=True)
class Decoded:
    """An entry's pixels."""

    frames: np.ndarray
    """uint8 [f, height, width, 3], resized and cropped to the size of training."""
    first: np.ndarray
    """The first frame at its original size, uint8 [h, w, 3]."""
    fps: float


@dataclass(frozen=True)
class Cut:
    """The size, length and rate that videos are brought to."""

    height: int
    width: int
    frames: int
    """Frames that are read of a video."""
    fps: float | None = None
    """Rate that frames are skipped to come near to; None skips none."""
    least: int | None = None
    """Frames that are taken of a shorter video; one with fewer is an error. None: ``frames``."""

    def decode(self, entry: Entry) -> Decoded:
        """The entry's clip; a picture is a clip of one frame at 1 fps.

        Frames are cropped around their centre, as image-to-video crops its picture. Raises InputError for an
        entry that cannot be read, or is too short.
        """
        if entry.is_picture:
            pixels, fps = np.asarray(load_image(entry.source))[None], 1.0
        else:
            stride = 1
            if self.fps is not None:
                stride = max(round(read_video(entry.source, max_frames=_RATED).fps / self.fps), 1)
            video = read_video(entry.source, max_frames=(self.frames - 1) * stride + 1)
            pixels, fps = video.frames[::stride], video.fps / stride
            least = self.least or self.frames
            if len(pixels) < least:
                raise InputError(f"{entry.name} has {len(pixels)} frames, and {least} are needed.")
            if len(pixels) < self.frames:  # shorter videos get one length, so that they fit in one batch
                pixels = pixels[:least]
        pictures = (Image.fromarray(frame) for frame in pixels)
        cut = [np.asarray(center_crop(one, self.width, self.height, fill_short=True)) for one in pictures]
        return Decoded(np.stack(cut), pixels[0], fps)


def folder_entries(folder: str | Path, captions: str | None = None, *, text: bool = True) -> list[Entry]:
    """The entries of a folder.

    Args:
        captions: a CSV or JSONL file, relative to the folder, with a column (key) for the file and one for
            the caption; by default ``captions.csv`` or ``captions.jsonl``, if the folder has one.
        text: captions are needed. Otherwise, without a captions file, every video and picture is an entry.

    Raises:
        InputError: for a folder that does not exist or has nothing to train on, a captions file that cannot
            be read, and captions of files that do not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"data.folder: there is no folder {folder}.")
    file = _captions_file(folder, captions)
    if file is None:
        if text:
            raise InputError(
                f"data.captions: {folder} has no captions.csv or captions.jsonl, and none is named."
            )
        found = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in VIDEOS + PICTURES and os.path.isfile(path)
        )
        if not found:
            raise InputError(f"data.folder: {folder} holds no video and no picture.")
        return [Entry(path, "", path.relative_to(folder).as_posix()) for path in found]
    rows = _rows(file, text)
    missing = [name for name, _ in rows if not os.path.isfile(folder / name)]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise InputError(
            f"{file} names files that {folder} does not have: {', '.join(missing[:_SHOWN])}{more}."
        )
    return [Entry(folder / name, caption, name) for name, caption in rows]


def _captions_file(folder: Path, captions: str | None) -> Path | None:
    if captions is not None:
        path = folder / captions  # an absolute path stays as it is
        if not os.path.isfile(path):
            raise InputError(f"data.captions: there is no file {path}.")
        return path
    usual = (folder / name for name in ("captions.csv", "captions.jsonl"))
    return next((path for path in usual if os.path.isfile(path)), None)


def _rows(file: Path, text: bool) -> list[tuple[str, str]]:
    """File names and captions; captions are empty where no ``text`` is needed."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            if file.suffix.lower() == ".jsonl":
                lines = enumerate(opened, start=1)
                records = [
                    parse_json(line, f"{file}, line {number},", InputError)
                    for number, line in lines
                    if line.strip()
                ]
            else:
                records = list(csv.DictReader(opened, strict=True))
    except UnicodeDecodeError:
        raise InputError(f"{file} cannot be read: it is not UTF-8.") from None
    except OSError as error:
        raise InputError(f"{file} cannot be read: {reason(error)}.") from error
    except csv.Error as error:
        raise InputError(f"{file} cannot be read as CSV: {error}.") from error
    if not records or not all(isinstance(record, Mapping) for record in records):
        raise InputError(f"{file} should have a line for each video, with its file and its caption.")
    columns = [_column(records[0], FILE_COLUMNS, file)]
    columns += [_column(records[0], CAPTION_COLUMNS, file)] if text else []
    rows = []
    for number, record in enumerate(records, start=1):
        if None in record:  # DictReader's key for fields beyond the columns
            raise InputError(
                f"{file}: record {number} has more fields than there are columns. A caption with a comma "
                'belongs in quotes: "a boat, at sea".'
            )
        name, *caption = (record.get(column) for column in columns)
        if not name or not all(isinstance(value, str) for value in (name, *caption)):
            raise InputError(f"{file}: record {number} should have a text under {' and '.join(columns)}.")
        if not all(_is_unicode(value) for value in (name, *caption)):
            raise InputError(f"{file}: record {number} holds characters that are not valid Unicode.")
        rows.append((name, *caption) if text else (name, ""))
    return rows


def _column(record: Mapping[str, Any], names: Iterable[str], where: Any) -> str:
    for name in names:
        if name in record:
            return name
    raise InputError(
        f"{where} has the columns {', '.join(map(str, record))}; one of {', '.join(names)} is needed."
    )


def dataset_entries(settings: Mapping[str, Any], *, text: bool = True) -> list[Entry]:
    """The entries of a ModelScope data set.

    Args:
        settings: ``data`` of the configuration: ``msdataset`` and so on.
        text: captions are needed.

    Raises:
        InputError: the data set cannot be loaded, or lacks a column.
    """
    name = settings["msdataset"]
    try:
        from modelscope.msdatasets import MsDataset

        keys = ("namespace", "subset_name", "split")
        dataset = MsDataset.load(name, **{key: settings[key] for key in keys if key in settings})
        rows = list(dataset if not isinstance(dataset, dict) else next(iter(dataset.values())))
    except Exception as error:  # of the network, the hub, or the data set's own script
        told = " ".join(str(error).split()) or "no reason is given"
        raise InputError(f"data.msdataset: {name!r} cannot be loaded: {told}") from error
    return row_entries(rows, f"data.msdataset: {name!r}", settings, text=text)


def row_entries(
    rows: Iterable[Mapping[str, Any]], where: str, settings: Mapping[str, Any], *, text: bool = True
) -> list[Entry]:
    """The entries of a data set's rows.

    Args:
        where: the data set's name in messages.
        settings: ``file_column`` and ``caption_column``, unless they have one of the usual names.
        text: captions are needed.

    Raises:
        InputError: the data set has no rows, lacks a column, or has a row without a file or caption.
    """
    try:
        rows = list(rows)
    except Exception as error:  # of the data set's own code
        raise InputError(f"{where} cannot be read as a list of rows.") from error
    if not rows:
        raise InputError(f"{where} has no rows.")
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"{where}: row {number} is a {type(row).__name__} and should be a mapping.")
    given = settings.get("file_column"), settings.get("caption_column")
    file = _column(rows[0], (given[0],) if given[0] else FILE_COLUMNS, where)
    caption = _column(rows[0], (given[1],) if given[1] else CAPTION_COLUMNS, where) if text else None
    entries = []
    for number, row in enumerate(rows):
        source, words = row.get(file), row.get(caption) if text else ""
        name = source
        if isinstance(source, Mapping):  # as the library datasets has files
            name = source.get("path")
            source = source.get("bytes") or name
        if source is None or not isinstance(words, str) or not _is_unicode(words):
            wanted = f"a file under {file!r}" + (f" and a text under {caption!r}" if text else "")
            raise InputError(f"{where}: row {number} should have {wanted}.")
        known = isinstance(name, (str, Path)) and str(name)
        entries.append(Entry(source, words, _file_name(str(name)) if known else f"row {number}"))
    return entries


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _file_name(place: str) -> str:
    """The last part of a path or URL, without the URL's query."""
    if "://" in place:
        try:
            place = urlsplit(place).path
        except ValueError:  # such as a bracket that is not closed
            return place.rpartition("/")[2]
    return Path(place).name


def fingerprint(entries: Iterable[Entry], cut: Cut) -> str:
    """A hash of names, captions, file sizes and ``cut``: equal data have the same."""
    digest = hashlib.sha256(repr(cut).encode())
    for entry in entries:
        path = entry.source
        known = isinstance(path, (str, os.PathLike)) and os.path.isfile(path)
        size = os.path.getsize(path) if known else 0
        digest.update(repr((entry.name, entry.caption, size)).encode())
    return digest.hexdigest()[:16]
