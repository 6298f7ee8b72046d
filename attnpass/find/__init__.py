"""graph -> attention calls and near misses."""
