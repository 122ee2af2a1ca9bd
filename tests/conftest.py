"""What every test may ask for."""

pytest_plugins = [
    "tests.lab.fixtures",
    "tests.daemon.fixtures",
    "tests.daemon.host",
    "tests.xenstore.fixtures",
]
