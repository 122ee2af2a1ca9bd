"""A real sshd in namespaces of its own, for what reaches a guest by ssh."""
