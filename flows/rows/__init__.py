"""Tensors → tables: the only place where results of saelib take the shape of catalog rows."""
