"""Training images, statistics and references: named data sets, folders, archives and arrays."""
