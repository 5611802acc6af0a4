"""Tests of s3mount: real servers, real mounts, real faults."""
