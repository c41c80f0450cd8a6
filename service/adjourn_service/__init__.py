"""The queue service: persists tasks, hands leases to workers, keeps what they report."""
