"""All tests run on two CPU devices and share the compiled programs of earlier runs."""

from experiments import environment

environment.configure(cpu_devices=2)
