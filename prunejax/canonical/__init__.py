"""Convolutions that stay fast, whatever the network and wherever they stand in a program."""

from prunejax.canonical.transform import canonical

__all__ = ["canonical"]
