"""POSIX meaning: names, inodes, handles, attributes."""
