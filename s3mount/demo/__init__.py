"""The demonstration: a real S3 server on loopback, a bucket, a mount, and a tour of it."""
