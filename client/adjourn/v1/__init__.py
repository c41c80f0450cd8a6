"""The wire API, generated from proto/adjourn/v1 by `make proto`."""
