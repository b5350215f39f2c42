"""The version, readable without importing JAX."""

VERSION = "0.1.0"
