"""Imported before any test module, and so before torch: `grpo` sets how OpenMP's threads wait."""

import grpo  # noqa: F401
