"""Launchers that Hydra finds by their place under `hydra_plugins`."""
