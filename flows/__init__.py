"""The top floor: steps that make artifacts, the path through them, and what runs it (Prefect, or nothing at all)."""
