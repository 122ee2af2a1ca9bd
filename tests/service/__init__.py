"""The unit under a real systemd: container.py boots one, unit.py is provisiond in it."""
