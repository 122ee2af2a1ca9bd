"""The guest's script, run for real as root in namespaces of its own."""
