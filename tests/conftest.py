"""Imported before any test module, and so before torch: `grpo` sets how OpenMP's threads wait."""

import signal

import grpo  # noqa: F401

# A shell that starts the tests in the background has SIGINT ignored, and every process that a test starts inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)
