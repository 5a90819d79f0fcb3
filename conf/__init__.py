"""The values of every config; a package so that a wheel can carry it as grpo.conf, where Hydra reads pkg://grpo.conf."""
