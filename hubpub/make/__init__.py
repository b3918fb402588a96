"""Cells made side by side, and programs that exist measured again."""
