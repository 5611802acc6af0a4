"""Tests through the kernel: real programs on real mounts of real servers."""
