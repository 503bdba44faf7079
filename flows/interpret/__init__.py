"""First names for features, from their own tables: deterministic, without a language model and without torch."""
