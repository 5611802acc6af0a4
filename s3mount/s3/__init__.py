"""The object store: S3 calls, signing, connections, capabilities."""
