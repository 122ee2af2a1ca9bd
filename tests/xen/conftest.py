"""What is under dom0/ runs in a Xen dom0 alone: `make test-xen` boots one."""

from provisiond.doctor import in_dom0

collect_ignore = [] if in_dom0() else ["dom0"]
