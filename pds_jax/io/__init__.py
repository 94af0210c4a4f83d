"""Files that are written: atomically, with a manifest."""
