"""s3mount mounts an S3 bucket as a directory."""

__version__ = "0.1.0"
