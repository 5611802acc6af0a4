"""Measures s3mount beside other S3 mounts: one server, the same workloads, one table."""
