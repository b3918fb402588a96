"""Patches to upstream packages: one small module each, applied for as long as a context is open."""
