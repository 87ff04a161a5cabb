"""Checks of the trainer's GPU programs, on machines without a GPU and with one."""
