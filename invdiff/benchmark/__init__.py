"""Benchmarks: a plan (a grid), content-hashed tasks, a store, executors, a report."""

from invdiff.benchmark.engine import run
from invdiff.benchmark.plan import Plan, TaskSpec
from invdiff.benchmark.results import load_results
from invdiff.benchmark.store import Store

__all__ = ["Plan", "Store", "TaskSpec", "load_results", "run"]
