"""Builders that take minutes, or packages that nothing else needs: `make test-dib`."""
