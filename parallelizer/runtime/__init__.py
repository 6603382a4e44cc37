"""Running plans: one program for all devices."""
