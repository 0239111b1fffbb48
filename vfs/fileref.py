"""FileRef: what is known about one file in a storage, without its content; and what every FileRef is made from.

A FileRef is a value: storages make them, events carry them, and nobody changes one. `path` is relative when a `Storage`
made it, and begins with `/` when a persistence did. Session ids, checksums and MIME types live here too, because the
storage contract names them together and everything else in `vfs` may import this module.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from datetime import UTC, datetime
from types import MappingProxyType

import msgspec

__all__ = [
    "CONTENT_TYPES",
    "UNKNOWN_TYPE",
    "FileRef",
    "build_file_ref",
    "compute_checksum",
    "generate_session_id",
    "guess_content_type",
    "validate_session_id",
]

UNKNOWN_TYPE = "application/octet-stream"


class FileRef(msgspec.Struct, frozen=True, kw_only=True):
    """One file. `size` is in bytes, times are UTC, `version` is what a conditional write compares (an S3 ETag)."""

    path: str
    size: int
    content_type: str | None = None
    checksum: str | None = None  # lower-case hex SHA-256
    storage_url: str | None = None
    created_at: datetime
    version: str | None = None
    mtime_ns: int | None = None
    mode: int | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)


def build_file_ref(
    path: str,
    content: bytes,
    *,
    content_type: str | None = None,
    checksum: str | None = None,
    storage_url: str | None = None,
) -> FileRef:
    """The FileRef of `content` as it is now; type and checksum are found out unless given."""
    return FileRef(
        path=path,
        size=len(content),
        content_type=guess_content_type(path) if content_type is None else content_type,
        checksum=compute_checksum(content) if checksum is None else checksum,
        storage_url=storage_url,
        created_at=datetime.now(UTC),
    )


def compute_checksum(content: bytes | bytearray | memoryview | str) -> str:
    """Lower-case hex SHA-256; of a str's UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def generate_session_id() -> str:
    """A new id: 16 characters of URL-safe base64 (96 random bits). It may begin with `-`."""
    return base64.urlsafe_b64encode(os.urandom(12)).decode()


SESSION_ID = "[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}"
_SESSION_ID = re.compile(SESSION_ID)


def validate_session_id(session_id: str) -> str:
    """`session_id` itself if it can be a directory's name and a key's segment, else ValueError that says why.

    Ids that others made are welcome: letters, digits, `.`, `_` and `-`, at most 128, not beginning with a dot. No id is
    thereby a prefix of another one's keys: the segment ends at a slash.
    """
    if _SESSION_ID.fullmatch(session_id):
        return session_id
    raise ValueError(
        f"session id {session_id!r}: 1 to 128 letters, digits, '.', '_' or '-', not beginning with '.', are needed"
    )


def guess_content_type(path: str) -> str:
    """The MIME type that the name's extension says (in any case), or application/octet-stream."""
    name = path.rpartition("/")[2]
    if (known := _NAMES.get(name)) is not None:
        return known
    stem, dot, extension = name.rpartition(".")
    return CONTENT_TYPES.get(extension.lower(), UNKNOWN_TYPE) if dot and stem else UNKNOWN_TYPE


_OFFICE = "application/vnd.openxmlformats-officedocument"
_OPENDOCUMENT = "application/vnd.oasis.opendocument"

# A table of our own: the standard library's mimetypes reads the host's files, so the same file would get another type
# on another host. Sources: IANA's registry; RFC 9239 (JavaScript), RFC 9512 (YAML), RFC 8081 (fonts).
_BY_TYPE: dict[str, str] = {
    "application/epub+zip": "epub",
    "application/geo+json": "geojson",
    "application/gzip": "gz tgz",
    "application/java-archive": "jar",
    "application/json": "json map",
    "application/jsonl": "jsonl ndjson",
    "application/ld+json": "jsonld",
    "application/manifest+json": "webmanifest",
    "application/msword": "doc",
    "application/pdf": "pdf",
    "application/pem-certificate-chain": "pem",
    "application/pgp-signature": "asc sig",
    "application/postscript": "ps eps ai",
    "application/rtf": "rtf",
    "application/sql": "sql",
    "application/toml": "toml",
    "application/vnd.apache.arrow.file": "arrow feather",
    "application/vnd.apache.avro": "avro",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.debian.binary-package": "deb",
    "application/vnd.ms-excel": "xls",
    "application/vnd.ms-fontobject": "eot",
    "application/vnd.ms-outlook": "msg",
    "application/vnd.ms-powerpoint": "ppt",
    "application/vnd.rar": "rar",
    "application/vnd.sqlite3": "sqlite sqlite3 db",
    f"{_OPENDOCUMENT}.presentation": "odp",
    f"{_OPENDOCUMENT}.spreadsheet": "ods",
    f"{_OPENDOCUMENT}.text": "odt",
    f"{_OFFICE}.presentationml.presentation": "pptx",
    f"{_OFFICE}.spreadsheetml.sheet": "xlsx",
    f"{_OFFICE}.wordprocessingml.document": "docx",
    "application/wasm": "wasm",
    "application/x-7z-compressed": "7z",
    "application/x-bzip2": "bz2",
    "application/x-hdf5": "h5 hdf5",
    "application/x-httpd-php": "php",
    "application/x-ipynb+json": "ipynb",
    "application/x-ndarray": "npy npz",
    "application/x-python-code": "pyc",
    "application/x-sh": "sh bash zsh",
    "application/x-tar": "tar",
    "application/x-tex": "tex",
    "application/x-xz": "xz",
    "application/xhtml+xml": "xhtml",
    "application/xml": "xml xsd xsl",
    "application/yaml": "yaml yml",
    "application/zip": "zip whl",
    "application/zstd": "zst",
    "audio/aac": "aac",
    "audio/flac": "flac",
    "audio/midi": "mid midi",
    "audio/mp4": "m4a",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg oga opus",
    "audio/wav": "wav",
    "font/otf": "otf",
    "font/ttf": "ttf",
    "font/woff": "woff",
    "font/woff2": "woff2",
    "image/apng": "apng",
    "image/avif": "avif",
    "image/bmp": "bmp",
    "image/gif": "gif",
    "image/heic": "heic",
    "image/jpeg": "jpg jpeg",
    "image/png": "png",
    "image/svg+xml": "svg",
    "image/tiff": "tif tiff",
    "image/vnd.microsoft.icon": "ico",
    "image/webp": "webp",
    "message/rfc822": "eml",
    "model/gltf+json": "gltf",
    "model/gltf-binary": "glb",
    "model/obj": "obj",
    "model/stl": "stl",
    "text/calendar": "ics",
    "text/css": "css",
    "text/csv": "csv",
    "text/html": "html htm",
    "text/javascript": "js mjs cjs",
    "text/markdown": "md markdown mdx",
    "text/plain": "txt text log ini cfg conf env lock gitignore",
    "text/tab-separated-values": "tsv",
    "text/vcard": "vcf",
    "text/vnd.graphviz": "dot gv",
    "text/vtt": "vtt",
    "text/x-c": "c h",
    "text/x-c++": "cc cpp cxx hpp hh",
    "text/x-csharp": "cs",
    "text/x-diff": "diff patch",
    "text/x-elixir": "ex exs",
    "text/x-erlang": "erl hrl",
    "text/x-go": "go",
    "text/x-haskell": "hs",
    "text/x-java": "java",
    "text/x-jsx": "jsx",
    "text/x-julia": "jl",
    "text/x-kotlin": "kt kts",
    "text/x-lua": "lua",
    "text/x-org": "org",
    "text/x-perl": "pl pm",
    "text/x-python": "py pyi",
    "text/x-r": "r",
    "text/x-rst": "rst",
    "text/x-ruby": "rb",
    "text/x-rust": "rs",
    "text/x-scala": "scala",
    "text/x-scss": "scss sass",
    "text/x-swift": "swift",
    "text/x-typescript": "ts tsx mts",
    "text/x-vue": "vue svelte",
    "text/x-zig": "zig",
    "video/mp4": "mp4 m4v",
    "video/mpeg": "mpg mpeg",
    "video/ogg": "ogv",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-matroska": "mkv",
    "video/x-msvideo": "avi",
}

CONTENT_TYPES = MappingProxyType({ext: kind for kind, extensions in _BY_TYPE.items() for ext in extensions.split()})
"""Extension in lower case, without its dot -> MIME type."""

_NAMES = {
    "Dockerfile": "text/x-dockerfile",
    "LICENSE": "text/plain",
    "Makefile": "text/x-makefile",
    "README": "text/plain",
    ".env": "text/plain",
    ".gitignore": "text/plain",
}
