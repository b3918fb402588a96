"""The release: from facts to published repos."""
