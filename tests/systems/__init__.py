"""`make test-guests`: whole Debian systems with the real script. Too long for `make test`."""
