"""Content-Type of a new object, by the extension of its name."""

import mimetypes

# What the system's table lacks (it differs between machines), and what people serve from
# buckets.  Encodings never become a Content-Encoding: the bytes are not to be unpacked.
EXTENSIONS = {
    ".7z": "application/x-7z-compressed",
    ".avro": "application/avro",
    ".bz2": "application/x-bzip2",
    ".csv": "text/csv",
    ".gz": "application/gzip",
    ".ipynb": "application/x-ipynb+json",
    ".jsonl": "application/jsonl",
    ".log": "text/plain",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
    ".toml": "application/toml",
    ".wasm": "application/wasm",
    ".webp": "image/webp",
    ".xz": "application/x-xz",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zst": "application/zstd",
}
DEFAULT = "application/octet-stream"

_types = mimetypes.MimeTypes()  # The built-in table: the same on every host of a bucket.


def content_type(name: str) -> str:
    """The media type of a file called *name*."""
    dot = name.rfind(".")
    if dot < 0:
        return DEFAULT
    extension = name[dot:].lower()
    known = EXTENSIONS.get(extension)
    if known is not None:
        return known
    return _types.types_map[1].get(extension, DEFAULT)
