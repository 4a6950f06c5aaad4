"""Pages of decisions: an audit, a comparison. Each is one file that is whole when mailed."""
