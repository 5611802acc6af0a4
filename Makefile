# `make deb` builds dist/s3mount_VERSION_ARCHITECTURE.deb with this machine's Python, for machines
# of the same release.  Everything else is in scripts/.
.PHONY: deb
deb:
	scripts/bootstrap deb
	.venv/bin/python scripts/mkdeb dist
