"""provisionctl create and destroy, and looking at real guests: domains, ip, ips."""
