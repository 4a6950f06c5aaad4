"""What a sweep writes: attempts, records, leases."""
