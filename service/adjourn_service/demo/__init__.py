"""`adjourn demo`: real work on this machine, with a process killed on the way, and a count of what became of it."""

from adjourn_service.demo.run import DemoSettings, run_demo

__all__ = ["DemoSettings", "run_demo"]
