"""Where tasks live: one contract (`base`), one module for each kind of store."""
