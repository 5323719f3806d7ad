"""Distributed training of low-light photograph enhancers on Ray."""

__version__ = "0.1.0"
